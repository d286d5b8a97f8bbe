"""Sealing: what goes into a seal and when, and that the WAL never gives up what nothing else holds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.log import Log, LogStatus
from broker.sealing import PRESSURE_SLOWEST, seal_interval_ms
from controller import facts as f
from protocol.errors import ErrorCode, KafkaError
from protocol.records import parse_header
from storage.producers import ProducerStates
from storage.seal import Move
from tests.support.sealing_bench import Bench, Flight

KIB = 1024


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    yield Bench()


def held(flight: Flight) -> dict[int, tuple[int, int]]:
    """Log id -> offsets of a seal."""
    return {log.log_id: (log.base, log.end) for log in flight.logs}


# When


async def test_the_oldest_unsealed_batch_starts_a_seal_by_its_age(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log)
    await bench.tick()
    assert not bench.uploader.submitted, "nothing is validated yet"
    bench.write()
    await bench.tick()
    bench.append(log)
    bench.write()
    await bench.tick(999)
    assert not bench.uploader.submitted
    await bench.tick(1)
    assert held(bench.uploader.submitted[0]) == {log.log_id: (0, 2)}
    # What comes later has its own age: the seal does not make it older.
    bench.append(log)
    bench.write()
    await bench.tick(400)
    await bench.tick(999)
    assert len(bench.uploader.submitted) == 1
    await bench.tick(1)
    assert held(bench.uploader.submitted[1]) == {log.log_id: (2, 3)}


async def test_logs_of_half_their_age_go_along(bench: Bench) -> None:
    first, second, third = bench.create(3)
    for log, later_ms in ((first, 0), (second, 500), (third, 1)):
        bench.append(log)
        bench.write()
        await bench.tick(later_ms)
    await bench.tick(498)
    assert not bench.uploader.submitted
    await bench.tick(1)
    assert held(bench.uploader.submitted[0]) == {first.log_id: (0, 1), second.log_id: (0, 1)}
    await bench.tick(500)
    assert len(bench.uploader.submitted) == 1
    await bench.tick(1)
    assert held(bench.uploader.submitted[1]) == {third.log_id: (0, 1)}


def test_seals_by_age_slow_down_with_the_pressure_on_ranges() -> None:
    steps = [seal_interval_ms(1000, pressure / 100) for pressure in range(130)]
    assert steps[:6] == [1000] * 6 and steps == sorted(steps)
    assert steps[100] == steps[129] == 1000 * PRESSURE_SLOWEST


async def test_a_log_under_pressure_neither_seals_early_nor_goes_along() -> None:
    bench = Bench(tidelog_log_ranges_max=32)
    full, other = bench.create(2)
    for _ in range(12):
        bench.append(full)
        bench.write()
        await bench.tick(64_000)
        await bench.tick(64_000)
        await bench.commit()
    assert bench.controller.state.logs[full.log_id].range_count == 12
    bench.append(full)
    bench.append(other)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    assert held(bench.uploader.submitted[-1]) == {other.log_id: (0, 1)}
    interval = seal_interval_ms(1000, 12 / 32)
    await bench.tick(interval - 1001)
    assert len(bench.uploader.flights) == 1
    await bench.tick(1)
    assert held(bench.uploader.submitted[-1]) == {full.log_id: (12, 13)}
    bench.append(full)
    bench.write()
    await bench.tick()
    await bench.tick(interval // 2 - 1000)
    bench.append(other)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    assert held(bench.uploader.submitted[-1]) == {other.log_id: (1, 2), full.log_id: (13, 14)}, "half of its own age"


async def test_a_log_at_its_bound_stops_alone_until_its_start_moves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench(tidelog_log_ranges_max=16)
    full, other = bench.create(2)
    for _ in range(13):
        bench.append(full)
        bench.write()
        await bench.tick()
        await bench.tick(64_000)
        await bench.commit()
    with pytest.raises(KafkaError) as refused:
        bench.append(full)
    assert refused.value.code is ErrorCode.NOT_LEADER_OR_FOLLOWER and full.status is LogStatus.FROZEN
    assert caplog.text.count("it has 12 of tidelog.log.ranges.max=16") == 1
    assert full.committed_end == full.hw == 13, "what it took before is in the bucket"
    bench.append(other)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    await bench.commit()
    assert other.committed_end == 1
    assert await bench.sealing.advance_start(full, 2) == 2
    assert full.status is LogStatus.FROZEN, "a little is not enough"
    assert await bench.sealing.advance_start(full, 4) == 4
    assert full.status is LogStatus.OPEN and "t0-0 takes records again" in caplog.text
    bench.append(full)


async def test_a_full_log_whose_move_was_refused_takes_records_again_later() -> None:
    """Retention may free its ranges while it is frozen for the move: nobody but the move may thaw it then."""
    bench = Bench(tidelog_log_ranges_max=16)
    (full,) = bench.create()
    for _ in range(13):
        bench.append(full)
        bench.write()
        await bench.tick()
        await bench.tick(64_000)
        await bench.commit()
    assert full.status is LogStatus.FROZEN
    full.status = LogStatus.MOVING
    await bench.sealing.advance_start(full, 5)
    assert full.status is LogStatus.MOVING
    full.status = LogStatus.FROZEN
    await bench.sealing.advance_start(full, 6)
    assert full.status is LogStatus.OPEN


async def test_a_full_log_is_not_thawed_while_stopping() -> None:
    bench = Bench(tidelog_log_ranges_max=16)
    (full,) = bench.create()
    for _ in range(13):
        bench.append(full)
        bench.write()
        await bench.tick()
        await bench.tick(64_000)
        await bench.commit()
    await bench.sealing.drain()
    await bench.sealing.advance_start(full, 13)
    assert full.status is LogStatus.FROZEN


async def test_many_bytes_start_a_seal_of_the_largest_logs() -> None:
    bench = Bench(tidelog_seal_bytes=256 * KIB, tidelog_tail_bytes_max=8 * KIB * KIB, tidelog_tail_keep_bytes=0)
    large, *small = bench.create(5)
    for log in small:
        bench.append(log, value=bytes(10 * KIB))
    for _ in range(10):
        bench.append(large, value=bytes(20 * KIB))
    bench.write()
    await bench.tick()
    assert not bench.uploader.submitted
    bench.append(large, value=bytes(20 * KIB))
    await bench.tick()
    assert not bench.uploader.submitted, "what is not validated cannot be sealed"
    bench.write()
    await bench.tick()
    assert held(bench.uploader.submitted[0]) == {large.log_id: (0, 11)}
    await bench.tick()
    assert len(bench.uploader.submitted) == 1, "what is in flight does not count again"


async def test_the_memory_for_tails_starts_a_seal_when_it_is_smaller() -> None:
    bench = Bench(tidelog_tail_bytes_max=KIB * KIB, tidelog_tail_keep_bytes=0)
    (log,) = bench.create()
    for _ in range(30):
        bench.append(log, value=bytes(10 * KIB))
    bench.write()
    await bench.tick()
    assert held(bench.uploader.submitted[0]) == {log.log_id: (0, 30)}


async def test_everything_is_sealed_while_somebody_waits_for_space(bench: Bench) -> None:
    logs = bench.create(3)
    for log in logs:
        bench.append(log)
    bench.write()
    bench.wal.room = False
    retried: list[str] = []
    bench.logs.space.wait(1, 1, 5, lambda: retried.append("retry"), lambda: retried.append("expire"))
    await bench.tick()
    assert set(held(bench.uploader.submitted[0])) == {log.log_id for log in logs}
    bench.wal.room = True
    await bench.commit()
    assert retried == ["retry"]


async def test_seals_in_flight_are_bounded(bench: Bench) -> None:
    (log,) = bench.create()
    for _ in range(6):
        bench.append(log)
        bench.write()
        await bench.tick()
        await bench.tick(1000)
    assert len(bench.uploader.flights) == bench.sealing.in_flight == 4  # two per upload
    await bench.commit()
    await bench.tick()
    assert held(bench.uploader.submitted[-1]) == {log.log_id: (4, 6)}, "what waited goes together"


# What comes back


async def test_the_wal_is_trimmed_by_facts_alone(bench: Bench) -> None:
    first, second = bench.create(2)
    bench.append(first)
    bench.write()
    bench.append(second)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    bench.append(second)
    bench.write()
    flight = bench.uploader.submitted[0]
    assert [through.group for through in flight.through] == [2]
    assert bench.wal.trimmed == 0
    await bench.commit()
    assert bench.wal.trimmed == 2


async def test_what_is_durable_but_not_validated_stays_in_the_wal(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log)
    bench.write()
    await bench.tick()
    bench.append(log)
    bench.wal.write_group(1)
    await bench.tick(1000)
    (flight,) = bench.uploader.submitted
    assert held(flight) == {log.log_id: (0, 1)} and flight.through[0].group == 1


async def test_an_idle_log_with_one_old_batch_holds_the_wal_until_it_is_sealed(bench: Bench) -> None:
    idle, busy = bench.create(2)
    bench.append(idle)
    bench.write()
    await bench.tick()
    await wait_for_commit(bench, busy)
    assert not bench.uploader.submitted[0].through
    await bench.tick(1000)
    assert bench.uploader.submitted[1].through[0].group == 2


async def wait_for_commit(bench: Bench, log: Log) -> None:
    """Append, and commit that alone."""
    bench.append(log)
    bench.write()
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.sealing.commit_through(log, log.hw))
        await bench.settle()
        await bench.tick()
        await bench.commit()


async def test_the_wal_gives_up_a_deleted_topic_though_nothing_else_is_written(bench: Bench) -> None:
    (kept,), (gone,) = bench.create(), bench.create()
    bench.append(kept)
    bench.write()
    await wait_for_commit(bench, kept)
    bench.append(gone)
    bench.write()
    bench.append(gone)  # still on its way to the disk
    await bench.tick()
    bench.delete(gone)
    await bench.tick()
    assert not bench.uploader.flights, "the last batch may still be written"
    bench.write()
    await bench.tick()
    (flight,) = bench.uploader.flights
    assert flight.logs == []
    await bench.commit()
    assert bench.wal.trimmed == len(bench.wal.group_ends)
    await bench.tick(10_000)
    assert not bench.uploader.flights, "once is enough"


async def test_a_topic_deleted_while_its_seal_is_in_flight(bench: Bench) -> None:
    (kept,), (gone,) = bench.create(), bench.create()
    bench.append(kept)
    bench.append(gone)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    bench.delete(gone)
    await bench.commit()
    assert bench.sealing.refused_ranges == 1 and not bench.failures
    assert bench.wal.trimmed == 1
    assert kept.committed_end == 1


async def test_a_refused_range_of_a_log_that_is_ours_ends_the_process_and_keeps_the_wal(bench: Bench) -> None:
    log, other = bench.create(2)
    bench.append(log)
    bench.append(other)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    await bench.commit(refuse=[log.log_id])
    (failure,) = bench.failures
    assert "refused what this broker leads" in str(failure)
    assert bench.wal.trimmed == 0


async def test_a_reloaded_state_trims_and_wakes_as_its_facts_would_have(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log)
    bench.write()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(bench.sealing.commit_through(log, 1))
        await bench.settle()
        await bench.tick()
        await bench.commit(quietly=True)
        assert not waiting.done() and bench.wal.trimmed == 0
        bench.controller.reload()
        await bench.settle()
        assert waiting.done()
    assert bench.wal.trimmed == 1 and log.committed_end == 1


async def test_a_seal_that_fails_for_good_ends_the_process(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    bench.uploader.flights[0].verdict.set_exception(KafkaError(ErrorCode.STALE_BROKER_EPOCH, "ended"))
    await bench.settle()
    assert len(bench.failures) == 1 and bench.sealing.in_flight == 0


# What others ask for


async def test_those_who_wait_at_the_same_time_share_a_seal(bench: Bench) -> None:
    logs = bench.create(50)
    for log in logs:
        bench.append(log)
    bench.write()
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(bench.sealing.advance_start(log, 1)) for log in logs]
        await bench.settle()
        await bench.tick()
        assert len(bench.uploader.flights) == 1
        await bench.commit()
    assert [start.result() for start in starts] == [1] * 50
    assert all(log.start == 1 for log in logs)


async def test_a_start_inside_a_batch_while_more_is_appended(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log, 10)
    bench.write()
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(bench.sealing.advance_start(log, 7))
        await bench.settle()
        bench.append(log, 5)
        await bench.tick()
        bench.append(log, 5)
        bench.write()
        assert held(bench.uploader.flights[0]) == {log.log_id: (0, 10)}
        await bench.commit()
        assert await moving == 7
    assert (log.start, log.committed_end, log.hw) == (7, 10, 20)


async def test_whoever_waits_for_a_log_that_is_deleted_is_told(bench: Bench) -> None:
    (early,), (late,), (over,) = bench.create(), bench.create(), bench.create()
    for log in (early, late, over):
        bench.append(log)
    bench.write()
    bench.delete(over)
    results = []
    async with asyncio.TaskGroup() as group:
        for log in (early, late, over):
            results.append(group.create_task(refusal_of(bench, log)))
        await bench.settle()
        bench.delete(early)  # before it is in a seal
        await bench.settle()
        await bench.tick()
        bench.delete(late)  # while its seal is in flight
        await bench.settle()
    assert [result.result() for result in results] == [ErrorCode.NOT_LEADER_OR_FOLLOWER] * 3
    assert held(bench.uploader.submitted[0]) == {late.log_id: (0, 1)}


async def refusal_of(bench: Bench, log: Log) -> ErrorCode:
    """How waiting for the log ends."""
    try:
        await bench.sealing.commit_through(log, log.hw)
    except KafkaError as error:
        return error.code
    return ErrorCode.NONE


async def test_those_who_give_up_leave_nothing_behind(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log)
    bench.write()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await bench.sealing.commit_through(log, 1)
    assert not bench.sealing._waiting
    await bench.tick()
    await bench.commit()
    assert log.committed_end == 1


async def test_a_drain_commits_everything_and_skips_what_is_deleted(bench: Bench) -> None:
    logs = bench.create(20)
    (gone,) = bench.create()
    for log in [*logs, gone]:
        bench.append(log)
    bench.write()
    for log in [*logs[::2], gone]:
        bench.append(log)
        log.freeze()
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(bench.sealing.drain())
        await bench.settle()
        await bench.tick()
        assert not bench.uploader.flights, "what is appended is not durable yet"
        bench.write()
        await bench.settle()
        await bench.tick()
        assert len(bench.uploader.flights) == 1 and not draining.done()
        bench.delete(gone)
        await bench.commit()
    assert all(log.committed_end == log.end for log in logs)


async def move(bench: Bench, targets: dict[Log, int], patience_s: float = 1000.0) -> bool:
    async with bench.sealing.undisturbed():
        seal = await bench.sealing.begin_moves(targets)
    return await bench.sealing.moved(seal, patience_s)


async def test_a_drain_ends_when_every_seal_is_decided_and_no_other_begins(bench: Bench) -> None:
    """What is committed after the end of the session would be refused, and end a clean stop as a failure."""
    leaving, staying = bench.create(2)
    bench.append(leaving)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    await bench.commit()
    leaving.status = LogStatus.MOVING
    async with asyncio.TaskGroup() as group:
        moving = group.create_task(move(bench, {leaving: 2}))
        await bench.settle()
        assert leaving.committed_end == leaving.end and len(bench.uploader.flights) == 1
        draining = group.create_task(bench.sealing.drain())
        await bench.settle()
        assert not draining.done(), "the move may still happen"
        await bench.commit()
        await moving
        await bench.settle()
        assert draining.done()
    assert await move(bench, {staying: 2})
    bench.delete(staying)
    await bench.tick(10_000)
    assert len(bench.uploader.submitted) == 2 and not bench.failures


# When it looks by itself


async def until(true: Callable[[], object]) -> None:
    """Let time pass until it is."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_it_sleeps_until_there_may_be_something_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sealing.TICK_S", 0.005)
    bench = Bench(tidelog_seal_ms=20, tidelog_upload_parallel=1)
    sealing = bench.sealing
    (log,) = bench.create()
    running = asyncio.ensure_future(sealing.run())  # noqa: TID251
    await until(lambda: sealing._alarm is None)

    async def write_and_be_seen() -> None:
        bench.append(log)
        assert sealing._alarm is None, "what is not validated is none of its business"
        bench.write()
        await until(lambda: sealing.unsealed_logs)
        assert sealing._alarm is not None

    await write_and_be_seen()
    bench.clock.advance(20)
    await until(lambda: bench.uploader.submitted)
    await until(lambda: sealing._alarm is None)
    await write_and_be_seen()
    bench.clock.advance(20)
    await until(lambda: len(bench.uploader.submitted) == 2)
    await until(lambda: sealing._alarm is None)
    bench.append(log)
    bench.write()
    await until(lambda: sealing.unsealed_logs and sealing._alarm is None)  # as many seals as may be in flight are
    bench.clock.advance(20)
    await bench.commit()
    await until(lambda: len(bench.uploader.submitted) == 3)
    await until(lambda: sealing._alarm is None)
    running.cancel()


async def test_it_looks_when_somebody_waits_for_space_or_a_log_is_closed(bench: Bench) -> None:
    (log,) = bench.create()
    bench.logs.space.wait(1, 1, 1.0, lambda: None, lambda: None)
    alarm = bench.sealing._alarm
    assert alarm is not None
    bench.logs.space.expire_all()
    bench.sealing._look_in(None)
    bench.delete(log)
    assert alarm.cancelled() and bench.sealing._alarm is not None


# What it costs


async def test_logs_that_nobody_writes_to_cost_nothing() -> None:
    bench = Bench()
    bench.create(10_000)
    (busy,) = bench.create()
    began = perf_counter()
    for _ in range(20):
        bench.append(busy)
        bench.write()
        await bench.tick(50)
    assert perf_counter() - began < 0.2, "20 looks at one busy log among 10,000"


async def test_a_seal_of_very_many_logs_gives_way_to_the_loop() -> None:
    bench = Bench()
    logs = bench.create(2_000)
    (gone,) = bench.create()
    for log in [*logs, gone]:
        bench.append(log)
    bench.write()
    await bench.tick()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())  # noqa: TID251
    late = logs[-1]
    bench.clock.advance(1000)
    sealing = asyncio.ensure_future(bench.sealing.seal_due())  # noqa: TID251
    await asyncio.sleep(0)
    bench.append(late)
    bench.append(logs[0])  # taken already: the rest stays for the next seal, and the WAL keeps it
    bench.delete(gone)
    bench.write()
    await sealing
    counting.cancel()
    assert turns >= 2_000 // 256
    (flight,) = bench.uploader.flights
    assert len(flight.logs) == 2_000
    assert held(flight)[late.log_id] == (0, 2) and held(flight)[logs[0].log_id] == (0, 1)
    assert flight.through[0].group == 1
    await bench.commit()


# Against a model

LOGS = 4
ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, LOGS - 1), st.integers(1, 3)),
    st.tuples(st.just("append"), st.integers(0, LOGS - 1), st.integers(1, 3)),
    st.tuples(st.just("write"), st.integers(1, 4)),
    st.tuples(st.just("report")),
    st.tuples(st.just("tick"), st.sampled_from([0, 50, 500, 1000])),
    st.tuples(st.just("commit")),
    st.tuples(st.just("replace"), st.integers(0, LOGS - 1)),
    st.tuples(st.just("want"), st.integers(0, LOGS - 1)),
    st.tuples(st.just("full")),
    st.tuples(st.just("quiet")),
)


class Model:
    """Checks every seal when it is made: exactly what is validated, without holes, and `committed through` to match."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.sealed: dict[int, int] = {}
        self.through = 0  # the group that seals named last: one that names none says there is no higher one
        self.seen = 0

    def check(self) -> None:
        """Look at the seals made since the last call."""
        for flight in self.bench.uploader.submitted[self.seen :]:
            for part in flight.logs:
                appended = [(log, base) for log, base, _ in self.bench.appended if log.log_id == part.log_id]
                assert part.base == self.sealed.get(part.log_id, 0), "no hole, no overlap"
                assert part.end <= appended[0][0].hw
                bases = [parse_header(batch).base_offset for batch in part.batches]
                assert bases == [base for _, base in appended if part.base <= base < part.end]
                self.sealed[part.log_id] = part.end
            self.check_through(flight)
        self.seen = len(self.bench.uploader.submitted)

    def settled(self, group: int) -> bool:
        """Whether every batch of a group is in a seal, or of a log that is not ours any more."""
        return all(
            log.status is LogStatus.CLOSED or end <= self.sealed.get(log.log_id, 0)
            for log, _, end in self.bench.in_group(group)
        )

    def check_through(self, flight: Flight) -> None:
        assert len(flight.through) <= 1
        for _, through, _ in flight.through:
            assert through > self.through
            self.through = through
        assert all(self.settled(group) for group in range(1, self.through + 1)), "never more than what seals hold"
        if self.through < self.bench.validation.validated_group:
            assert not self.settled(self.through + 1), "and never less"


async def run_actions(actions: list[tuple[object, ...]]) -> None:
    bench = Bench(tidelog_seal_bytes=64 * KIB)
    model = Model(bench)
    logs = [bench.create()[0] for _ in range(LOGS)]
    async with asyncio.TaskGroup() as group:
        for action, *values in actions:
            match action, values:
                case "append", [int(index), int(records)]:
                    bench.append(logs[index], records)
                case "write", [int(batches)]:
                    bench.wal.write_group(batches)
                case "report", []:
                    bench.report()
                case "tick", [int(ms)]:
                    await bench.tick(ms)
                case "commit", [] if bench.uploader.flights:
                    await bench.commit()
                case "quiet", [] if bench.uploader.flights:
                    await bench.commit(quietly=True)
                    bench.controller.reload()
                case "replace", [int(index)]:
                    bench.delete(logs[index])
                    logs[index] = bench.create()[0]
                case "want", [int(index)]:
                    group.create_task(refusal_of(bench, logs[index]))
                    await bench.settle()
                case "full", []:
                    bench.logs.space.wait(1, 1, 5, lambda: None, lambda: None)
                    await bench.tick()
                case _:
                    pass
            model.check()
        # In the end everything is in the bucket, whoever waited was answered, and the WAL is free.
        bench.write()
        for _ in range(3 * LOGS + len(bench.uploader.flights)):
            await bench.tick(1000)
            model.check()
            while bench.uploader.flights:
                await bench.commit()
    assert not bench.failures
    for log in logs:
        assert log.committed_end == log.sealed_end == log.hw == log.end
    assert bench.wal.trimmed == len(bench.wal.group_ends)
    assert not bench.sealing._waiting and not bench.sealing._unsealed and not bench.sealing._flights
    assert bench.sealing._flying_bytes == 0


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, max_size=60))
@example([("append", 0, 1), ("append", 1, 1), ("write", 2), ("report",), ("want", 0)])
def test_committed_through_is_exact_and_trimming_loses_nothing(actions: list[tuple[object, ...]]) -> None:
    asyncio.run(run_actions(actions))


@settings(max_examples=30)
@given(st.data())
def test_the_producer_snapshot_of_a_seal_is_exact_at_its_end(data: st.DataObject) -> None:
    async def run() -> None:
        bench = Bench()
        (log,) = bench.create()
        sequences = {1: 0, 2: 0}
        headers = []
        for _ in range(data.draw(st.integers(1, 25))):
            producer = data.draw(st.sampled_from([1, 2]))
            records = data.draw(st.integers(1, 3))
            bench.append(log, records, producer_id=producer, producer_epoch=0, base_sequence=sequences[producer])
            sequences[producer] += records
            headers.append(parse_header(log.tail.slice(bench.appended[-1][1], log.end)[0]))
            if data.draw(st.booleans()):
                bench.write(data.draw(st.integers(1, 4)))
            if data.draw(st.booleans()):
                await bench.tick(data.draw(st.sampled_from([0, 1000])))
        for flight in bench.uploader.submitted:
            for part in flight.logs:
                replayed = ProducerStates()
                for header in headers:
                    if header.next_offset <= part.end:
                        replayed.replay(header, bench.clock.now_ms())
                assert windows(part.producers) == windows(replayed.snapshot(part.end))

    asyncio.run(run())


def windows(snapshot: bytes) -> list[object]:
    """A snapshot but for the wall times of appends, which a replay cannot know."""
    return [[*entry[:4], *entry[5:]] for entry in msgpack.unpackb(snapshot)[1]] if snapshot else []


# Moves


def wish(bench: Bench, log: Log, target: int) -> None:
    """The log is to be led by another broker, which is alive; it is frozen for that."""
    if target not in bench.controller.state.brokers:
        listener = (f.Listener("PLAINTEXT", "PLAINTEXT", "there", 1),)
        bench.controller.apply(
            f.BrokerRegistered(target, 1000 + target, "boot", None, listener, 1, 0),
            f.WalRegistered(bytes([target]) * 16, target, 1000 + target, "volume"),
        )
    bench.controller.apply(f.MovesRequested((f.MoveTarget(log.log_id, target),)))
    log.status = LogStatus.MOVING


async def test_a_move_takes_what_is_left_and_is_decided_by_facts_alone(bench: Bench) -> None:
    log, other = bench.create(2)
    for each in (log, other):
        bench.append(each)
    bench.write()
    wish(bench, log, 2)
    moving = asyncio.ensure_future(move(bench, {log: 2}))  # noqa: TID251
    await until(lambda: bench.uploader.flights)
    (flight,) = bench.uploader.flights
    assert held(flight) == {log.log_id: (0, 1)}, "of the others nothing is sealed for it"
    assert flight.moves == (Move(log.log_id, 0, 1, 2),)
    await bench.tick(10_000_000)
    assert not moving.done() and log.status is LogStatus.MOVING, "no timer thaws it"
    await bench.commit()
    await moving
    assert log.status is LogStatus.CLOSED
    assert bench.controller.state.logs[log.log_id].leader_node == 2
    assert not bench.failures


async def test_moves_are_withdrawn_while_nobody_was_asked_for_them(bench: Bench) -> None:
    """The upload is slow: the seal goes on without them, and the log may take appends again."""
    log, other = bench.create(2)
    for each in (log, other):
        bench.append(each)
    bench.write()
    wish(bench, log, 2)
    assert not await move(bench, {log: 2}, patience_s=0.0)
    assert log.status is LogStatus.MOVING, "whoever froze it thaws it"
    log.status = LogStatus.OPEN
    flight = await bench.commit()
    assert flight.moves == () and log.status is LogStatus.OPEN and log.committed_end == 1
    wish(bench, log, 2)
    bench.uploader.asked = True
    moving = asyncio.ensure_future(move(bench, {log: 2}, patience_s=0.0))  # noqa: TID251
    await asyncio.sleep(0.05)
    assert not moving.done(), "the controller may have moved it by now: only its answer tells"
    await bench.commit()
    assert await moving
    assert log.status is LogStatus.CLOSED and not bench.failures


async def test_no_seal_gets_in_front_of_the_last_one_of_logs_that_move(bench: Bench) -> None:
    log, other = bench.create(2)
    bench.append(log)
    bench.write()
    await bench.tick()
    await bench.tick(1000)
    bench.append(other)
    bench.write()
    await bench.tick()
    async with asyncio.TaskGroup() as group, bench.sealing.undisturbed():
        await bench.sealing.landed(0.0)
        assert len(bench.uploader.flights) == 1, "one that is in flight is waited for, but not for ever"
        landed = group.create_task(bench.sealing.landed(1000.0))
        await bench.settle()
        assert not landed.done()
        await bench.commit()
        await landed
        bench.clock.advance(60_000)
        sealing = group.create_task(bench.sealing.seal_due())
        await bench.settle()
        assert not bench.uploader.flights
        wish(bench, log, 2)
        seal = await bench.sealing.begin_moves({log: 2})
        assert [flight.number for flight in bench.uploader.flights] == [seal]
    await sealing
    assert [held(flight) for flight in bench.uploader.flights] == [{}, {other.log_id: (0, 1)}]


async def test_a_refused_move_is_told_by_the_commit_without_it(bench: Bench) -> None:
    (log,) = bench.create()
    bench.append(log)
    bench.write()
    wish(bench, log, 2)
    moving = asyncio.ensure_future(move(bench, {log: 2}))  # noqa: TID251
    await until(lambda: bench.uploader.flights)
    bench.controller.apply(f.MovesCancelled((log.log_id,)))
    assert not moving.done()
    await bench.commit()
    await moving
    assert log.status is LogStatus.MOVING and log.committed_end == 1, "whoever froze it may thaw it"


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_move_that_was_decided_while_facts_were_skipped(bench: Bench, wanted: bool) -> None:
    (log,) = bench.create()
    bench.append(log)
    bench.write()
    wish(bench, log, 2)
    moving = asyncio.ensure_future(move(bench, {log: 2}))  # noqa: TID251
    await until(lambda: bench.uploader.flights)
    if not wanted:
        bench.controller.apply(f.MovesCancelled((log.log_id,)))
    bench.controller.reload()
    await asyncio.sleep(0)
    assert not moving.done(), "a reload that says nothing of the seal decides nothing"
    bench.uploader.commit(quietly=True)
    await asyncio.sleep(0)
    assert not moving.done()
    bench.controller.reload()
    await moving
    assert (log.status is LogStatus.CLOSED) == wanted
