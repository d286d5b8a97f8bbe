"""The shell of a group partition: nothing is told before it is validated, nothing happens that was not appended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.coordination import runtime
from broker.groups.model import (
    ZERO_UUID,
    Commit,
    CommitAnswer,
    FetchAnswer,
    GroupState,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    Leaver,
    Offset,
    OffsetToCommit,
    Sync,
    SyncAnswer,
)
from broker.groups.records import decode
from broker.groups.shard import Shard
from protocol.errors import ErrorCode, KafkaError
from protocol.records import build_batch, parse_header, records
from tests.broker.groups.conftest import Bench
from tests.broker.groups.world import subscription
from tests.support.memory_log import MemoryLog


def join(group: str = "g", member: str = "", **other: Any) -> Join:
    values: dict[str, Any] = {
        "waiter": 0,
        "group_id": group,
        "member_id": member,
        "instance_id": None,
        "client_id": "c",
        "client_host": "/127.0.0.1",
        "session_timeout_ms": 10_000,
        "rebalance_timeout_ms": 60_000,
        "protocol_type": "consumer",
        "protocols": (("range", subscription("t")),),
        "token": "1",
        "needs_member_id": False,
        "may_skip_assignment": True,
    }
    return Join(**(values | other))


def commit(offset: int, group: str = "g", partition: int = 0, topic: str = "t", **other: Any) -> Commit:
    values: dict[str, Any] = {
        "waiter": 0,
        "group_id": group,
        "generation": -1,
        "member_id": "",
        "instance_id": None,
        "retention_ms": -1,
        "offsets": (OffsetToCommit(topic, ZERO_UUID, partition, offset, -1, "m"),),
        "unknown_group": ErrorCode.GROUP_ID_NOT_FOUND,
    }
    return Commit(**(values | other))


def fetched(answer: FetchAnswer) -> dict[tuple[str, int], int]:
    assert answer.error is ErrorCode.NONE
    return {(topic, partition): offset.offset for topic, partition, offset in answer.offsets if offset is not None}


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def stable_member(bench: Bench, group: str = "g") -> JoinAnswer:
    joined = await bench.groups.join(join(group))
    assert joined.error is ErrorCode.NONE
    synced = await bench.groups.sync(
        Sync(0, group, joined.generation, joined.member_id, None, None, None, ((joined.member_id, b"all"),))
    )
    assert synced == SyncAnswer(ErrorCode.NONE, "consumer", "range", b"all")
    return joined


# -- answers wait


async def test_commit_and_the_fetch_after_it_wait_for_validation(bench: Bench) -> None:
    log = await bench.open(MemoryLog(validate_soon=False))
    committed = bench.groups.commit(commit(7))
    before = bench.groups.fetch("other", None, require_stable=False)
    after = bench.groups.fetch("g", None, require_stable=False)
    await turns()
    assert before.result() == FetchAnswer(ErrorCode.NONE)
    assert not committed.done()
    assert not after.done()
    log.validate()
    assert (await committed) == CommitAnswer((ErrorCode.NONE,))
    assert fetched(await after) == {("t", 0): 7}


async def test_join_sync_and_heartbeat_wait_for_what_they_reveal(bench: Bench) -> None:
    log = await bench.open(MemoryLog(validate_soon=False))
    joining = bench.groups.join(join())
    while bench.groups.partitions[0].shard.groups["g"].state is not GroupState.COMPLETING_REBALANCE:
        await asyncio.sleep(0.001)
    assert not joining.done(), "the group's first record is not validated"
    log.validate()
    joined = await joining
    syncing = bench.groups.sync(Sync(0, "g", 1, joined.member_id, None, None, None, ((joined.member_id, b"x"),)))
    beating = bench.groups.heartbeat(Heartbeat(0, "g", 1, joined.member_id, None))
    listing = asyncio.ensure_future(bench.groups.list_groups())  # noqa: TID251
    describing = bench.groups.describe("g")
    await turns()
    assert not any(future.done() for future in (syncing, beating, listing, describing))
    log.validate()
    assert (await syncing).assignment == b"x"
    assert await beating is ErrorCode.NONE
    assert [group.state for group in (await listing).groups] == ["Stable"]
    assert (await describing).state == "Stable"


async def test_without_the_right_to_answer_nobody_is_told_anything(bench: Bench) -> None:
    log = await bench.open()
    assert (await bench.groups.commit(commit(7))).errors == (ErrorCode.NONE,)
    log.may_answer = False
    assert (await bench.groups.fetch("g", None, require_stable=False)).error is ErrorCode.NOT_COORDINATOR
    assert (await bench.groups.commit(commit(8))).errors == (ErrorCode.NOT_COORDINATOR,)
    assert (await bench.groups.heartbeat(Heartbeat(0, "g", 1, "m", None))) is ErrorCode.NOT_COORDINATOR
    assert (await bench.groups.join(join("h", "m"))).error is ErrorCode.NOT_COORDINATOR


async def test_right_lost_while_the_answer_waited(bench: Bench) -> None:
    log = await bench.open(MemoryLog(validate_soon=False))
    committed = bench.groups.commit(commit(7))
    await turns()
    log.may_answer = False
    log.validate()
    assert (await committed).errors == (ErrorCode.NOT_COORDINATOR,)


# -- appends


async def test_commits_of_one_turn_are_one_batch(bench: Bench) -> None:
    log = await bench.open()
    waiting = [bench.groups.commit(commit(offset, group, offset % 4)) for offset in range(4) for group in "gh"]
    waiting.append(bench.groups.commit(commit(9, "i", generation=5, member_id="m")))
    answers = await asyncio.gather(*waiting)
    assert [answer.errors[0] for answer in answers] == [ErrorCode.NONE] * 8 + [ErrorCode.GROUP_ID_NOT_FOUND]
    assert [parse_header(batch).record_count for batch in log.batches] == [8]


async def test_a_command_sees_the_commits_before_it(bench: Bench) -> None:
    log = await bench.open()
    committed = bench.groups.commit(commit(7))
    answer = await bench.groups.fetch("g", [("t", ZERO_UUID, 0), ("t", ZERO_UUID, 1)], require_stable=True)
    assert fetched(answer) == {("t", 0): 7}
    assert (await committed).errors == (ErrorCode.NONE,)
    assert len(log.batches) == 1


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (ErrorCode.NOT_ENOUGH_REPLICAS, ErrorCode.COORDINATOR_NOT_AVAILABLE),
        (ErrorCode.REQUEST_TIMED_OUT, ErrorCode.COORDINATOR_NOT_AVAILABLE),
        (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.NOT_COORDINATOR),
        (ErrorCode.KAFKA_STORAGE_ERROR, ErrorCode.NOT_COORDINATOR),
        (ErrorCode.MESSAGE_TOO_LARGE, ErrorCode.UNKNOWN_SERVER_ERROR),
        (ErrorCode.COORDINATOR_NOT_AVAILABLE, ErrorCode.COORDINATOR_NOT_AVAILABLE),
    ],
)
async def test_refused_append_changes_nothing(bench: Bench, refusal: ErrorCode, told: ErrorCode) -> None:
    log = await bench.open()
    log.refuse = refusal
    commits = [bench.groups.commit(commit(7)), bench.groups.commit(commit(7, generation=1, member_id="m"))]
    assert (await commits[0]).errors == (told,)
    assert (await commits[1]).errors == (ErrorCode.GROUP_ID_NOT_FOUND,)
    assert (await bench.groups.join(join("h"))).error is told
    log.refuse = None
    assert (await bench.groups.list_groups()).groups == ()
    assert (await bench.groups.fetch("g", None, require_stable=False)).offsets == ()
    assert log.batches == []


async def test_refused_timer_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "RETRY_MS", 5)
    log = await bench.open()
    joined = await stable_member(bench)
    shard = bench.groups.partitions[0]
    log.refuse = ErrorCode.NOT_ENOUGH_REPLICAS
    shard._timer_fired(("session", "g", joined.member_id))
    assert shard.shard.groups["g"].state is GroupState.STABLE
    log.refuse = None
    while shard.shard.groups["g"].state is not GroupState.EMPTY:
        await asyncio.sleep(0.001)


async def test_large_deletions_take_several_batches(tasks: Any) -> None:
    bench = Bench(tasks, message_max_bytes=4096)
    log = await bench.open()
    for partition in range(0, 300, 20):
        offsets = tuple(OffsetToCommit("t", ZERO_UUID, partition + i, 1, -1, "") for i in range(20))
        await bench.groups.commit(commit(0, offsets=offsets))
    assert await bench.groups.delete_groups(["g", "none", "g"]) == {
        "g": ErrorCode.NONE,
        "none": ErrorCode.GROUP_ID_NOT_FOUND,
    }
    assert max(len(batch) for batch in log.batches) <= 4096
    assert (await bench.groups.fetch("g", None, require_stable=False)).offsets == ()
    assert (await bench.groups.list_groups()).groups == ()
    bench.groups.stop()


async def test_group_larger_than_a_batch_is_refused(tasks: Any) -> None:
    bench = Bench(tasks, message_max_bytes=4096)
    await bench.open()
    joined = await bench.groups.join(join())
    sync = Sync(0, "g", 1, joined.member_id, None, None, None, ((joined.member_id, bytes(5000)),))
    assert (await bench.groups.sync(sync)).error is ErrorCode.UNKNOWN_SERVER_ERROR
    assert bench.groups.partitions[0].shard.groups["g"].state is GroupState.COMPLETING_REBALANCE
    bench.groups.stop()


# -- leadership


async def test_loading_and_not_leading(bench: Bench) -> None:
    assert (await bench.groups.join(join())).error is ErrorCode.NOT_COORDINATOR
    assert (await bench.groups.commit(commit(1))).errors == (ErrorCode.NOT_COORDINATOR,)
    assert (await bench.groups.describe("g")).error is ErrorCode.NOT_COORDINATOR
    assert await bench.groups.delete_groups(["g"]) == {"g": ErrorCode.NOT_COORDINATOR}
    log = MemoryLog()
    bench.groups.open(0, log)
    assert (await bench.groups.join(join())).error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    assert (await bench.groups.commit(commit(1))).errors == (ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,)
    loading = await bench.groups.fetch("g", None, require_stable=False)
    assert loading.error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    assert (await bench.groups.heartbeat(Heartbeat(0, "g", 1, "m", None))) is ErrorCode.NONE, "as in Kafka"
    await bench.open(log)
    assert (await bench.groups.list_groups()).error is ErrorCode.NONE


async def test_empty_group_id(bench: Bench) -> None:
    await bench.open()
    assert (await bench.groups.join(join(""))).error is ErrorCode.INVALID_GROUP_ID
    assert (await bench.groups.leave(Leave(0, "", ()))).error is ErrorCode.INVALID_GROUP_ID
    assert (await bench.groups.heartbeat(Heartbeat(0, "", 1, "m", None))) is ErrorCode.INVALID_GROUP_ID
    assert (await bench.groups.commit(commit(1, ""))).errors == (ErrorCode.NONE,), "old clients commit without one"


async def test_resigning_answers_everybody(bench: Bench) -> None:
    log = await bench.open(MemoryLog(validate_soon=False))
    committed = bench.groups.commit(commit(7))
    joining = bench.groups.join(join())
    queued = bench.groups.commit(commit(8))
    bench.groups.close(0)
    for answer in (await committed, await queued):
        assert answer.errors == (ErrorCode.NOT_COORDINATOR,)
    assert (await joining).error is ErrorCode.NOT_COORDINATOR
    log.validate()
    await turns()
    assert (await bench.groups.heartbeat(Heartbeat(0, "g", 1, "m", None))) is ErrorCode.NOT_COORDINATOR


async def test_stopping_answers_what_is_appended(bench: Bench) -> None:
    log = await bench.open(MemoryLog(validate_soon=False))
    committed = bench.groups.commit(commit(7))
    await turns()
    joining = bench.groups.join(join())
    bench.groups.stop()
    late = bench.groups.commit(commit(8))
    assert (await joining).error is ErrorCode.NOT_COORDINATOR
    assert (await late).errors == (ErrorCode.NOT_COORDINATOR,)
    assert not committed.done()
    log.validate()
    assert (await committed).errors == (ErrorCode.NONE,)


async def test_a_new_leader_continues_where_the_log_ends(bench: Bench) -> None:
    log = await bench.open()
    joined = await stable_member(bench)
    await bench.groups.commit(commit(7, generation=1, member_id=joined.member_id))
    bench.groups.close(0)
    await bench.open(log.cut(len(log.batches)))
    assert fetched(await bench.groups.fetch("g", None, require_stable=False)) == {("t", 0): 7}
    assert (await bench.groups.heartbeat(Heartbeat(0, "g", 1, joined.member_id, None))) is ErrorCode.NONE
    assert len(bench.groups.partitions[0]._timers) == 1, "a fresh session"
    left = await bench.groups.leave(Leave(0, "g", (Leaver(joined.member_id, None),)))
    assert left.members[0][1] is ErrorCode.NONE
    assert (await bench.groups.describe("g")).state == "Empty"


async def test_session_ends_by_itself(tasks: Any) -> None:
    bench = Bench(tasks, group_min_session_timeout_ms=1)
    await bench.open()
    joined = await bench.groups.join(join(session_timeout_ms=20))
    while (await bench.groups.describe("g")).state != "Empty":
        await asyncio.sleep(0.005)
    assert (await bench.groups.heartbeat(Heartbeat(0, "g", 1, joined.member_id, None))) is ErrorCode.UNKNOWN_MEMBER_ID
    bench.groups.stop()


async def test_damaged_log_keeps_loading(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "RETRY_MS", 1)
    log = MemoryLog()
    log.append_own(build_batch([(0, b"\0\1\0", b"", ())]))
    log.validate()
    bench.groups.open(0, log)
    await asyncio.sleep(0.01)
    assert (await bench.groups.commit(commit(1))).errors == (ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,)
    log.batches.clear()
    while not bench.groups.partitions[0].active:
        await asyncio.sleep(0.001)


# -- what happens by itself


async def test_expired_and_deleted_offsets(bench: Bench) -> None:
    log = await bench.open()
    topic_id = bench.controller.state.topics["t"].topic_id
    offsets = (OffsetToCommit("t", topic_id, 0, 1, -1, ""),)
    for group in ("g", "h"):
        await bench.groups.commit(commit(0, group, offsets=offsets))
    bench.clock.wall_ms += 3 * 24 * 3600 * 1000
    await bench.groups.commit(commit(0, "h", offsets=offsets))
    bench.clock.wall_ms += 5 * 24 * 3600 * 1000
    bench.groups._expire()
    await turns()
    assert [group.group_id for group in (await bench.groups.list_groups()).groups] == ["h"]
    bench.controller.state.remove("t")
    bench.groups.partitions[0].forget_deleted_topics()
    await turns()
    assert (await bench.groups.fetch("h", None, require_stable=False)).offsets == ()
    written = [record for batch in log.batches for record in records(batch, max_size=1 << 20)]
    assert [record.value is None for record in written].count(True) == 3


async def test_topics_deleted_while_nobody_coordinated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "RETRY_MS", 1)
    log = await bench.open()
    other = bench.controller.state.add("u", 1)
    offsets = (OffsetToCommit("u", other.topic_id, 0, 1, -1, ""), OffsetToCommit("t", ZERO_UUID, 0, 2, -1, ""))
    await bench.groups.commit(commit(0, offsets=offsets))
    bench.groups.close(0)
    bench.controller.state.remove("u")
    bench.controller.state.add("u", 1)
    again = log.cut(len(log.batches))
    again.refuse = ErrorCode.NOT_ENOUGH_REPLICAS
    await bench.open(again)
    await turns()
    assert len(fetched(await bench.groups.fetch("g", None, require_stable=False))) == 2
    again.refuse = None
    while len(fetched(await bench.groups.fetch("g", None, require_stable=False))) == 2:
        await asyncio.sleep(0.001)
    assert fetched(await bench.groups.fetch("g", None, require_stable=False)) == {("t", 0): 2}


# -- rewriting


async def busy(bench: Bench, rounds: int, commits: list[dict[tuple[str, int], int]] | None = None) -> None:
    """Commit, delete and rejoin until the log was rewritten `rounds` times."""
    shard = bench.groups.partitions[0]
    number = 0
    while shard.rewrites < rounds:
        number += 1
        await asyncio.gather(*(bench.groups.commit(commit(number, f"g{i}", number % 3)) for i in range(10)))
        if number % 7 == 0:
            await bench.groups.delete_groups([f"g{number % 5}"])
        if number % 11 == 0:
            await stable_member(bench, f"m{number % 2}-{number}")


async def test_log_is_kept_compacted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 20_000)
    monkeypatch.setattr(runtime, "SLICE_RECORDS", 4)
    log = await bench.open()
    await busy(bench, 5)
    assert len(bench.moved) >= 5
    counts = bench.groups.counts()
    assert (counts.partitions_active, counts.partitions_loading, counts.rewrites) == (1, 0, 5)
    assert counts.offsets >= counts.groups - 2 > 0
    starts = [offset for _, offset in bench.moved]
    assert starts == sorted(starts)
    shard = bench.groups.partitions[0]
    in_log = sum(len(batch) for batch in log.batches if parse_header(batch).base_offset >= log.start)
    assert in_log < 20_000 + 3 * shard.rewrite_bytes + 20_000


async def test_every_prefix_of_the_log_loads_to_the_right_state(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tasks: Any
) -> None:
    """Crash after any append, with the start where it was or moved by a rewrite that was durable: the same state."""
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 3_000)
    monkeypatch.setattr(runtime, "SLICE_RECORDS", 3)
    log = await bench.open()
    shard = bench.groups.partitions[0]
    states: list[Any] = []
    plain = log.append_own
    monkeypatch.setattr(log, "append_own", lambda batch: (states.append(starts()), plain(batch))[1])

    def starts() -> list[int]:
        return sorted({0, log.start})

    await busy(bench, 3)
    states.append(starts())
    await turns()
    reference: dict[str, Any] = {}
    other = Bench(tasks)
    for count in range(len(log.batches) + 1):
        if count:
            for record in records(log.batches[count - 1], max_size=1 << 20):
                if record.value is None:
                    reference.pop(repr(record.key), None)
                else:
                    assert record.key is not None
                    reference[repr(record.key)] = decode(record.key, record.value)
        for start in states[count]:
            cut = log.cut(count, start=start)
            probe = Shard(other.groups.config)
            async for batch in cut.read_all(cut.start):
                for record in records(batch, max_size=1 << 20):
                    change = decode(record.key, record.value)
                    assert change is not None
                    probe.replay(change)
            live = probe.live(key for group_id in probe.groups for key in probe.keys(group_id))
            assert {repr(change) for change in live} == {repr(change) for change in reference.values()}, (count, start)
    assert shard.rewrites == 3
    assert shard.shard.offsets.count == probe.offsets.count


async def test_rewrite_survives_a_full_log_and_an_absent_controller(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 2_000)
    monkeypatch.setattr(runtime, "RETRY_MS", 2)
    log = await bench.open()
    shard = bench.groups.partitions[0]
    bench.move_error = KafkaError(ErrorCode.NOT_CONTROLLER, "refused by the test")
    number = 0
    while not shard.rewriting:
        number += 1
        await bench.groups.commit(commit(number))
    log.refuse = ErrorCode.NOT_ENOUGH_REPLICAS
    await asyncio.sleep(0.01)
    log.refuse = None
    while not log.start:
        assert (await bench.groups.commit(commit(number))).errors == (ErrorCode.NONE,)
        await asyncio.sleep(0.001)
        if number % 3 == 0:
            bench.move_error = None
        number += 1
    bench.groups.close(0)
    await bench.open(log.cut(len(log.batches)))
    assert fetched(await bench.groups.fetch("g", None, require_stable=False)) == {("t", 0): number - 1}


async def test_unknown_records_are_not_lost_by_rewriting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 1)
    log = MemoryLog()
    log.append_own(build_batch([(0, b"\0\x63future", b"\0\0", ())]))
    log.validate()
    await bench.open(log)
    for number in range(20):
        await bench.groups.commit(commit(number))
    assert not bench.groups.partitions[0].rewriting
    assert bench.moved == []


async def test_loading_yields_to_the_loop(bench: Bench) -> None:
    log = await bench.open()
    offsets = tuple(OffsetToCommit("t", ZERO_UUID, partition, 1, -1, "") for partition in range(2000))
    await bench.groups.commit(commit(0, offsets=offsets))
    bench.groups.close(0)
    bench.groups.open(0, log.cut(len(log.batches)))
    count = 0
    while not bench.groups.partitions[0].active:
        count += 1
        await asyncio.sleep(0)
    assert count > 2000 // runtime.SLICE_RECORDS
    assert (await bench.groups.fetch("g", [("t", ZERO_UUID, 1999)], require_stable=False)).offsets == (
        ("t", 1999, Offset(1, -1, "", bench.clock.wall_ms)),
    )
