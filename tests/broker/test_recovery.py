"""Recovery of earlier WAL instances: interrupted anywhere it is repeated safely; what would lose data waits."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import broker.recovery
from broker.background import Tasks
from broker.cold import ColdReads
from broker.recovery import RecoveryStopped, WalRecovery, _wanted
from controller import facts as f
from controller.commands import ReplayLog
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode, KafkaError
from protocol.records import parse_header, patch_offset_and_epoch, records
from storage.manifest import Manifests
from storage.memory import MemoryStore
from storage.producers import ProducerStates
from storage.reader import Reader
from storage.seal import Writer
from storage.uploader import Uploader
from storage.wal.port import Damaged
from storage.wal.recovery import Damage, Extent, ScanReport, StaleCopy
from tests.chaos.disk import flip_bit, groups
from tests.support.deciding_controller import DecidingController
from tests.support.faulty_store import FaultyStore, Mishap
from tests.support.manual_clock import ManualClock
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of
from tests.support.waiting import until

PARTITIONS = 3
OLD, NEW = 70, 77
OLD_WAL, NEW_WAL = b"o" * 16, b"n" * 16


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


# Whole runs, killed and started again


async def write(runs: NodeRuns, rounds: int = 4, topic: str = "t") -> None:
    """A batch of two per partition and round, each acknowledged; the second half of the rounds is not sealed."""
    if (topic, 0) not in runs.broker.logs.find:
        await runs.create(topic, PARTITIONS)
    for number in range(rounds):
        for partition in range(PARTITIONS):
            base = runs.broker.logs.find[topic, partition].end
            batch = batch_of(b"%d:%d" % (partition, base), b"%d:%d" % (partition, base + 1))
            assert await runs.produce(topic, batch, partition=partition) == [base]
        if number == rounds // 2 - 1:
            for partition in range(PARTITIONS):
                log = runs.broker.logs.find[topic, partition]
                await runs.broker.sealing.commit_through(log, log.hw)


async def check(runs: NodeRuns, records_each: int, topic: str = "t") -> None:
    """Every record is there once, in order, and new ones follow."""
    for partition in range(PARTITIONS):
        log = runs.broker.logs.find[topic, partition]
        assert log.hw == log.end == records_each, f"partition {partition} ends at {log.end}"
        offset = 0
        async for buffer in log.read_all(0):
            view, position = memoryview(buffer), 0
            while position < len(view):
                header = parse_header(view, position)
                for record in records(view[position : position + header.size], max_size=1 << 20):
                    assert (record.offset, record.value) == (offset, b"%d:%d" % (partition, offset))
                    offset += 1
                position += header.size
        assert offset == records_each


class CountedStore(FaultyStore):
    """Strikes once, at the call with number `at` after the probe; `then` may end the run instead."""

    def __init__(self, memory: MemoryStore, at: int = -1, mishap: Mishap = Mishap.NONE) -> None:
        super().__init__(memory, self._plan_of)
        self.at = at
        self.mishap = mishap
        self.number = 0
        self.names: list[str] = []
        self.then: Callable[[], None] | None = None
        self.probing = True

    async def get(self, key: str) -> Any:
        self.probing = self.probing and not key.startswith("meta/")
        return await super().get(key)

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[Any]:
        self.probing = self.probing and not prefix.startswith("meta/")
        async for info in super().list(prefix, start_after):
            yield info

    def _plan_of(self, name: str) -> Mishap:
        if self.probing:
            return Mishap.NONE
        self.number += 1
        self.names.append(name)
        if self.number != self.at:
            return Mishap.NONE
        if self.then is not None:
            self.then()
        return self.mishap


async def crashed(runs: NodeRuns) -> int:
    """A run with sealed and unsealed records that was killed; records per partition."""
    await runs.start()
    await write(runs)
    await runs.kill()
    return 8


async def calls_of_a_start(runs: NodeRuns) -> list[str]:
    """What a recovery asks of the store, by method."""
    stores: list[CountedStore] = []

    def wrap(memory: MemoryStore) -> Any:
        stores.append(CountedStore(memory))
        return stores[-1]

    runs.wrap = wrap
    await runs.start()
    await runs.kill()
    return stores[0].names


async def test_the_store_fails_at_every_call_of_a_start_in_turn(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path) as runs:
        count = await crashed(runs)
        back = runs.save()
        names = await calls_of_a_start(runs)
        assert len(names) > 15
        for number, name in enumerate(names, 1):
            writes = name.startswith(("put", "delete"))
            for mishap in (Mishap.LOST, Mishap.UNHEARD, Mishap.LATE) if writes else (Mishap.UNAVAILABLE,):
                back()
                runs.wrap = lambda memory, number=number, mishap=mishap: CountedStore(memory, number, mishap)  # type: ignore[misc]
                await runs.start()
                await check(runs, count)
                await until(lambda: len(runs.instances()) == 1)
                await runs.kill()


async def test_killed_at_every_call_of_a_start_in_turn(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path) as runs:
        count = await crashed(runs)
        back = runs.save()
        for number in range(1, len(await calls_of_a_start(runs)) + 1):
            back()
            reached = asyncio.Event()

            def wrap(memory: MemoryStore, number: int = number, reached: asyncio.Event = reached) -> Any:
                store = CountedStore(memory, number, Mishap.UNHEARD if number % 2 else Mishap.LOST)
                store.then = reached.set
                return store

            runs.wrap = wrap
            serving = runs.spawn()
            waiting = asyncio.ensure_future(reached.wait())  # noqa: TID251
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await runs.kill()
            await serving
            runs.wrap = lambda memory: memory
            await runs.start()
            await check(runs, count)
            await until(lambda: len(runs.instances()) == 1)
            await runs.kill()


async def test_several_instances_are_recovered_each_for_itself(tmp_path: Path) -> None:
    """A damaged one waits and holds up nobody: runs come and go beside it."""
    async with NodeRuns(tmp_path) as runs:
        await runs.start()
        await write(runs, topic="damaged")
        await runs.kill()
        (damaged,) = runs.instances()
        found = groups(damaged)
        flip_bit(damaged, found[-3].file, found[-3].position + found[-3].header.header_size + 70)
        for round_ in range(1, 4):
            await runs.start()
            assert set(runs.broker.recovery.waiting) == {bytes.fromhex(damaged.name)}
            await write(runs, rounds=2, topic="t")
            await check(runs, 4 * round_)
            await until(lambda: len(runs.instances()) == 2)
            await runs.kill()
        await runs.start()
        await check(runs, 12)
        report = await runs.broker.recovery.accept_loss(bytes.fromhex(damaged.name))
        assert {row["topic"] for row in report["logs"]} == {"damaged"}
        assert report["recovered_group"] == found[-4].header.group
        await until(lambda: damaged not in runs.instances())
        with pytest.raises(KeyError):
            runs.broker.recovery.accept_loss(bytes.fromhex(damaged.name))
        await until(lambda: ("damaged", 0) in runs.broker.logs.find)
        (offset,) = await runs.produce("damaged", batch_of(b"behind the hole"))
        assert offset == report["logs"][0]["continues_at_offset"]
        assert await runs.stop() == 0


async def test_the_store_fails_at_every_call_while_a_loss_is_accepted(tmp_path: Path) -> None:
    """The operator is told to ask again, and asking again brings it to its end, once."""
    async with NodeRuns(tmp_path) as runs:
        await runs.start()
        await write(runs)
        await runs.kill()
        (damaged,) = runs.instances()
        found = groups(damaged)
        flip_bit(damaged, found[-2].file, found[-2].position + found[-2].header.header_size + 70)
        wal_id = bytes.fromhex(damaged.name)
        stores: list[CountedStore] = []

        def wrap(memory: MemoryStore) -> Any:
            stores.append(CountedStore(memory))
            return stores[-1]

        runs.wrap = wrap
        await runs.start()
        await runs.kill()
        back = runs.save()
        number, calls = 0, 1
        while number < calls:
            number += 1
            back()
            await runs.start()
            store = stores[-1]
            before = store.number
            store.at, store.mishap = before + number, Mishap.LATE
            while True:
                try:
                    report = await runs.broker.recovery.accept_loss(wal_id)
                except KafkaError as error:
                    assert error.retriable
                else:
                    break
            calls = store.number - before
            assert [row["lost_from_offset"] for row in report["logs"]] == [8, 6, 6]
            stored = [key async for key in keys(runs.memory, "reports/")]
            assert stored == [f"reports/losses/{wal_id.hex()}.json"] or store.names[store.at - 1].startswith("put")
            await runs.kill()
        assert number > 5


async def keys(store: MemoryStore, prefix: str) -> AsyncIterator[str]:
    """Keys below a prefix."""
    async for info in store.list(prefix):
        yield info.key


async def test_a_batch_sent_again_after_a_crash_is_a_duplicate(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path) as runs:
        await runs.start()
        await runs.create("t")

        def numbered(sequence: int) -> bytearray:
            return batch_of(b"a", b"b", producer_id=7, producer_epoch=0, base_sequence=sequence)

        assert await runs.produce("t", numbered(0), numbered(2)) == [0, 2]
        log = runs.broker.logs.find["t", 0]
        await runs.broker.sealing.commit_through(log, 4)
        assert await runs.produce("t", numbered(4), numbered(6)) == [4, 6]
        await runs.kill()
        await runs.start()
        assert await runs.produce("t", numbered(6), numbered(2), numbered(8)) == [6, 2, 8]
        async with runs.client() as client:
            answer = await client.produce("t", numbered(12))
        assert answer.error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_producer_states_are_those_of_a_replay_of_the_log(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was sealed when, and however many small seals the recovery makes."""

    async def run() -> None:
        async with NodeRuns(tmp_path_factory.mktemp("runs")) as runs:
            await runs.start()
            await runs.create("t")
            log = runs.broker.logs.find["t", 0]
            sequences: dict[int, int] = {}
            for _ in range(data.draw(st.integers(1, 20))):
                producer, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
                sequence = sequences.get(producer, 0)
                sequences[producer] = sequence + count
                batch = batch_of(*[b"v"] * count, producer_id=producer, producer_epoch=0, base_sequence=sequence)
                await runs.produce("t", batch)
                if data.draw(st.integers(0, 4)) == 0:
                    await runs.broker.sealing.commit_through(log, log.hw)
            appended = windows(log.producers.snapshot(log.end))
            await runs.kill()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(broker.recovery, "SEAL_BYTES_MAX", data.draw(st.sampled_from([1, 700, 1 << 20])))
                await runs.start()
            log = runs.broker.logs.find["t", 0]
            replayed = ProducerStates()
            async for buffer in log.read_all(0):
                position = 0
                while position < len(buffer):
                    header = parse_header(buffer, position)
                    replayed.replay(header, 0)
                    position += header.size
            assert windows(log.producers.snapshot(log.end)) == windows(replayed.snapshot(log.end)) == appended

    asyncio.run(run())


def windows(snapshot: bytes) -> list[object]:
    """A snapshot but for the wall times of appends, which a replay cannot know."""
    return [[*entry[:4], *entry[5:]] for entry in msgpack.unpackb(snapshot)[1]] if snapshot else []


async def test_groups_and_their_offsets_survive(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, offsets_topic_num_partitions=2) as runs:
        await runs.start()
        await runs.create("t")
        async with runs.client() as client:
            commit = m.OffsetCommitRequest(
                group_id="g",
                generation_id_or_member_epoch=-1,
                topics=[
                    m.OffsetCommitRequest.OffsetCommitRequestTopic(
                        name="t",
                        partitions=[
                            m.OffsetCommitRequest.OffsetCommitRequestPartition(partition_index=0, committed_offset=5)
                        ],
                    )
                ],
            )

            async def committed() -> bool:
                answer = await client.ask(ApiKey.OFFSET_COMMIT, 8, commit)
                return bool(answer.topics[0].partitions[0].error_code == 0)

            await client.ask(ApiKey.FIND_COORDINATOR, 2, m.FindCoordinatorRequest(key="g"))
            async with asyncio.timeout(5):
                while not await committed():
                    await asyncio.sleep(0.01)
        await runs.kill()
        await runs.start()
        async with runs.client() as client, asyncio.timeout(5):
            fetch = m.OffsetFetchRequest(group_id="g", topics=None)
            while (answer := await client.ask(ApiKey.OFFSET_FETCH, 5, fetch)).error_code:
                await asyncio.sleep(0.01)
        assert answer.topics[0].partitions[0].committed_offset == 5


async def test_a_large_replay_goes_in_seals_of_bounded_size_and_leaves_the_loop_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.recovery, "SEAL_BYTES_MAX", 256 * 1024)
    monkeypatch.setattr(broker.recovery, "STEP_BATCHES", 50)
    async with NodeRuns(tmp_path) as runs:
        await runs.start()
        await runs.create("t", PARTITIONS)
        async with runs.client() as client:
            for number in range(1200):
                await client.produce("t", batch_of(bytes(1024)), partition=number % PARTITIONS)
        ends = [runs.broker.logs.find["t", partition].hw for partition in range(PARTITIONS)]
        await runs.kill()
        stalls: list[float] = []
        flights: list[int] = []

        async def watch() -> None:
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                stalls.append(loop.time() - before)
                with contextlib.suppress(AttributeError):
                    flights.append(runs.broker.uploader.in_flight_bytes)

        watching = asyncio.ensure_future(watch())  # noqa: TID251
        await runs.start()
        watching.cancel()
        assert [runs.broker.logs.find["t", partition].hw for partition in range(PARTITIONS)] == ends
        state = runs.broker.controller.state
        assert sum(state.logs[log.log_id].range_count for log in runs.broker.logs.logs) >= 6
        assert runs.broker.uploader.last_seal >= 6
        assert max(flights) <= 5 * (256 + 70) * 1024
        assert max(stalls) < 0.5, "a bound for busy machines; a step takes milliseconds"


# One instance, its bytes by hand


class HandInstance:
    """A locked instance that holds what the test says: (log id, epoch, base offset, batch) in append order."""

    def __init__(self, wal_id: bytes = OLD_WAL) -> None:
        self.wal_id = wal_id
        self.path = "/instances/" + wal_id.hex()
        self.entries: list[tuple[int, int, int, bytes]] = []
        self.fenced = self.removed = self.closed = False
        self.must_fence = True
        self.damage: Damage | None = None
        self.stale: StaleCopy | None = None
        self.last_group = 9
        self.error: Exception | None = None

    def add(self, log_id: int, epoch: int, base: int, count: int = 1, **options: Any) -> None:
        batch = batch_of(*[b"v"] * count, **options)
        patch_offset_and_epoch(batch, 0, base, epoch)
        self.entries.append((log_id, epoch, base, bytes(batch)))

    def fence(self) -> None:
        self.fenced = True

    def scan(
        self, *, validated_group: int = 0, committed_group: int | None = None, accept_loss: bool = False
    ) -> ScanReport:
        assert self.fenced or not self.must_fence, "fence, then read"
        if self.error is not None:
            raise self.error
        extents: dict[tuple[int, int], Extent] = {}
        for log_id, epoch, base, batch in self.entries:
            known = extents.get((log_id, epoch))
            end = parse_header(batch).next_offset
            extents[log_id, epoch] = Extent(log_id, epoch, known.base if known else base, end, 0, 0)
        usable = accept_loss or (self.damage is None and self.stale is None)
        groups = 9 if self.last_group else 0
        return ScanReport(list(extents.values()), 1, self.last_group, groups, None, self.damage, self.stale, usable)

    def batches(self, log_id: int) -> Iterator[tuple[int, int, bytes]]:
        for held, epoch, base, batch in self.entries:
            if held == log_id:
                yield epoch, base, batch

    def remove(self) -> None:
        self.removed = True

    def close(self) -> None:
        self.closed = True


class Bench:
    """A recovery with two logs that an earlier incarnation led through `OLD_WAL`, epoch 0."""

    def __init__(self, tasks: Tasks) -> None:
        self.controller = DecidingController()
        self.store = FaultyStore(MemoryStore())
        self.instance = HandInstance()
        told = (f.Listener("PLAINTEXT", "PLAINTEXT", "here", 1),)
        self.controller.apply(
            f.FormatLevel(f.FORMAT_LEVEL),
            f.BrokerRegistered(1, OLD, "boot", None, told, 1, 0),
            f.WalRegistered(OLD_WAL, 1, OLD, "volume"),
            f.TopicCreated("t", bytes(15) + b"t", False, (0, 1), ()),
            f.LeaderNamed(0, 1, OLD, 0, OLD_WAL),
            f.LeaderNamed(1, 1, OLD, 0, OLD_WAL),
            f.SessionEnded(OLD, "silence", 0),
            f.BrokerRegistered(1, NEW, "boot", None, told, 1, 0),
            f.WalRegistered(NEW_WAL, 1, NEW, "volume"),
        )
        clock = ManualClock()
        controller = cast(Any, self.controller)
        self.cold = ColdReads(
            Reader(self.store, tasks, cache_bytes_max=1 << 20), Manifests(self.store, tasks), controller
        )
        self.uploader = Uploader(
            self.store, Writer("test-cluster", 1, NEW), cast(Any, self.controller.ask), tasks, clock
        )
        self.recovery = WalRecovery(
            node_id=1,
            incarnation=NEW,
            controller=controller,
            store=self.store,
            cold=self.cold,
            uploader=self.uploader,
            clock=clock,
            token=os.urandom,
            tasks=tasks,
            memory_bytes=1 << 20,
        )

    @property
    def state(self) -> Any:
        return self.controller.state

    async def run(self, *instances: HandInstance) -> None:
        await self.recovery.recover_all([cast(Any, one) for one in instances or (self.instance,)], [])
        await self.recovery.remove_settled()

    def ends(self) -> list[int]:
        return [self.state.logs[log_id].end for log_id in (0, 1)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Tasks() as tasks:
        yield Bench(tasks)


async def test_what_no_segment_holds_is_replayed_and_the_instance_goes(bench: Bench) -> None:
    for base in range(3):
        bench.instance.add(0, 0, base)
    bench.instance.add(1, 0, 0, 5)
    await bench.run()
    assert bench.ends() == [3, 5]
    assert bench.instance.removed and bench.state.wals[OLD_WAL].state == "retired"
    assert all(bench.state.logs[log_id].leader_incarnation == NEW for log_id in (0, 1))


async def test_ghosts_of_other_epochs_are_dropped_and_what_is_committed_is_skipped(bench: Bench) -> None:
    bench.instance.add(0, 0, 0, 2)
    bench.instance.add(1, 0, 0)
    await bench.run()
    # The same bytes again in a later instance, as epoch 0 and as epoch 1, which is under recovery then.
    bench.controller.apply(f.SessionEnded(NEW, "silence", 0))
    third, wal = 78, b"3" * 16
    told = (f.Listener("PLAINTEXT", "PLAINTEXT", "here", 1),)
    bench.controller.apply(
        f.BrokerRegistered(1, third, "boot", None, told, 1, 0), f.WalRegistered(wal, 1, third, "volume")
    )
    again = HandInstance(NEW_WAL)
    again.add(0, 0, 2, 7)  # a ghost: epoch 0 is over
    again.add(0, 1, 2, 1)
    again.add(0, 1, 1, 1)  # below what continues the log
    again.add(0, 1, 3, 2)
    bench.recovery._incarnation = third
    bench.uploader._writer = Writer("test-cluster", 1, third)
    bench.uploader.last_seal = 0
    await bench.run(again)
    assert bench.ends() == [5, 1] and again.removed
    rows = bench.state.ranges(0, 0)
    assert [(row.range.base, row.range.end, row.range.leader_epoch) for row in rows] == [(0, 2, 0), (2, 5, 1)]


def test_the_batches_that_continue_a_log() -> None:
    def batch(base: int, count: int = 1) -> bytes:
        made = batch_of(*[b"v"] * count)
        patch_offset_and_epoch(made, 0, base, 1)
        return bytes(made)

    found = [(1, 3, batch(3, 2)), (0, 5, batch(5)), (1, 5, batch(5)), (1, 7, batch(7)), (1, 6, batch(6))]
    done = broker.recovery.Recovered()
    taken = _wanted(iter(found), ReplayLog(0, 1, 3, 9), done)
    assert [parse_header(one).base_offset for one in taken] == [3, 5], "a gap ends the log"
    assert done.dropped == 1
    taken = _wanted(iter(found), ReplayLog(0, 1, 3, 5), done)
    assert [parse_header(one).base_offset for one in taken] == [3], "and so does the scanned end"
    assert list(_wanted(iter(found[1:]), ReplayLog(0, 1, 3, 9), done)) == []


async def test_a_gap_stops_its_log_and_waits_for_the_operator_who_can_accept_it(bench: Bench) -> None:
    bench.instance.add(0, 0, 0)
    bench.instance.add(0, 0, 5)
    bench.instance.add(1, 0, 0, 4)
    await bench.run()
    assert bench.ends() == [1, 4], "the other log is replayed all the same"
    assert "log 0 has a gap at offset 1 of 6" in bench.recovery.waiting[OLD_WAL].why
    assert not bench.instance.removed and bench.state.wals[OLD_WAL].state == "recovering"
    report = await bench.recovery.accept_loss(OLD_WAL)
    assert [row["lost_from_offset"] for row in report["logs"]] == [1, 4]
    await until(lambda: bench.instance.removed)
    assert not bench.recovery.waiting


@pytest.mark.parametrize("what", ["damage", "stale", "error"])
async def test_what_would_lose_acknowledged_bytes_waits(bench: Bench, what: str) -> None:
    bench.instance.add(0, 0, 0)
    if what == "damage":
        bench.instance.damage = Damage("f", 1, 2, "is bad", (3, 4), [])
    elif what == "stale":
        bench.instance.stale = StaleCopy(9, 12)
    else:
        bench.instance.error = Damaged("the disk returns other bytes at every read")
    await bench.run()
    waiting = bench.recovery.waiting[OLD_WAL]
    assert "tidelog wal recover --accept-loss" in waiting.why and not bench.instance.removed
    assert bench.ends() == [0, 0]
    assert [row["why"] for row in bench.recovery.rows(settled=False)] == [waiting.why, None]
    if what == "error":
        with pytest.raises(RecoveryStopped):
            await bench.recovery.accept_loss(OLD_WAL)
        bench.instance.error = None
    report = await bench.recovery.accept_loss(OLD_WAL)
    assert [row["lost_from_offset"] for row in report["logs"]] == [1, 0]
    assert bench.state.wals[OLD_WAL].state == "lost"


async def test_a_disk_that_fails_for_a_while_needs_no_operator(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(broker.recovery, "AGAIN_S", 0.01)
    bench.instance.add(0, 0, 0, 3)
    bench.instance.error = OSError(errno.EIO, "I/O error")
    await bench.run()
    assert "I/O error" in bench.recovery.waiting[OLD_WAL].why and bench.ends() == [0, 0]
    await until(lambda: caplog.text.count("stays as it is") >= 3)
    bench.instance.error = None
    await until(lambda: bench.instance.removed)
    assert bench.ends() == [3, 0] and not bench.recovery.waiting
    assert bench.state.wals[OLD_WAL].state == "retired"


async def test_asking_twice_at_the_same_time_is_asking_once(bench: Bench) -> None:
    bench.instance.add(0, 0, 0)
    bench.instance.stale = StaleCopy(9, 12)
    await bench.run()
    first, second = bench.recovery.accept_loss(OLD_WAL), bench.recovery.accept_loss(OLD_WAL)
    assert first is second
    await first
    lost = await bench.recovery.declare_lost(OLD_WAL, host_is_destroyed=True)
    assert lost == first.result(), "a loss that is a fact is told again"


async def test_a_loss_whose_report_was_not_stored_is_told_again(bench: Bench) -> None:
    bench.instance.add(0, 0, 0)
    bench.instance.stale = StaleCopy(9, 12)
    await bench.run()
    committed = bench.controller.ask

    async def ask(command: Any, timeout_ms: int = 0) -> Any:
        answer = await committed(command, timeout_ms)
        if type(command).__name__ == "DeclareLost":
            bench.controller.ask = committed  # type: ignore[method-assign]
            raise KafkaError(ErrorCode.REQUEST_TIMED_OUT, "the answer is lost")
        return answer

    bench.controller.ask = ask  # type: ignore[method-assign]
    with pytest.raises(KafkaError):
        await bench.recovery.accept_loss(OLD_WAL)
    report = await bench.recovery.accept_loss(OLD_WAL)
    assert report["recovered_group"] == 9 and [row["lost_from_offset"] for row in report["logs"]] == [1, 0]


async def test_what_the_operator_may_not_declare_lost(bench: Bench) -> None:
    async def refusal(wal_id: bytes, destroyed: bool = False) -> ErrorCode:
        with pytest.raises(KafkaError) as caught:
            await bench.recovery.declare_lost(wal_id, host_is_destroyed=destroyed)
        return caught.value.code

    bench.controller.now_ms = 60_000
    assert await refusal(OLD_WAL) is ErrorCode.POLICY_VIOLATION
    assert await refusal(b"?" * 16, True) is ErrorCode.RESOURCE_NOT_FOUND
    assert await refusal(NEW_WAL, True) is ErrorCode.INVALID_REQUEST, "its writer is alive: this broker"
    bench.recovery._recovering = {OLD_WAL}
    assert await refusal(OLD_WAL, True) is ErrorCode.CONCURRENT_TRANSACTIONS
    bench.recovery._recovering = set()
    assert [wal.wal_id for wal in bench.recovery.missing()] == [OLD_WAL]
    report = await bench.recovery.declare_lost(OLD_WAL, host_is_destroyed=True)
    assert len(report["logs"]) == 2 and not bench.recovery.missing()


async def test_another_recoverer_takes_over(bench: Bench) -> None:
    """Refused ranges stop the recovery, and nothing of it is in flight any more when it is said."""
    for base in range(20):
        bench.instance.add(0, 0, base)
    bench.recovery._seal_bytes = 1000
    decided = bench.controller.ask

    async def ask(command: Any, timeout_ms: int = 0) -> Any:
        if type(command).__name__ == "CommitSeal":
            bench.controller.apply(f.RecoveryNamed(OLD_WAL, 1, NEW, bench.state.wals[OLD_WAL].recovery_number + 1))
        return await decided(command, timeout_ms)

    bench.uploader._commit = cast(Any, ask)
    await bench.run()
    assert "another recovery took over" in bench.recovery.waiting[OLD_WAL].why
    assert bench.uploader.in_flight == 0 and bench.ends() == [0, 0]


async def test_a_refusal_of_the_controller_stops_one_instance(bench: Bench) -> None:
    bench.instance.add(0, 0, 0)
    bench.controller.errors = [None, KafkaError(ErrorCode.FENCED_STATE_EPOCH, "recovery 1 is over")]
    await bench.run()
    assert bench.recovery.waiting[OLD_WAL].why == "recovery 1 is over"


async def test_what_another_broker_retired_needs_no_operator(bench: Bench) -> None:
    """The refusal comes before the fact that it speaks of."""
    bench.instance.add(0, 0, 0)
    bench.controller.errors = [KafkaError(ErrorCode.INVALID_REQUEST, "WAL is retired: nothing to recover")]
    await bench.run()
    assert not bench.recovery.waiting and bench.instance.removed


async def test_a_few_seals_are_in_flight_and_no_more(bench: Bench) -> None:
    for base in range(40):
        bench.instance.add(0, 0, base)
    bench.recovery._seal_bytes = 1000
    seen: list[int] = []

    def watch(name: str) -> Mishap:
        seen.append(bench.uploader.in_flight)
        return Mishap.NONE if len(seen) > 40 else Mishap.UNAVAILABLE

    bench.store.plan = watch
    await bench.run()
    assert bench.ends() == [40, 0] and bench.uploader.last_seal == 10
    assert max(seen) == broker.recovery.SEALS_IN_FLIGHT


async def test_a_controller_that_cannot_write_is_waited_for(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.instance.add(0, 0, 0)
    away = KafkaError(ErrorCode.REQUEST_TIMED_OUT, "is the object store reachable?")
    bench.controller.errors = [away] * 3 + [None] + [away] * 2
    await bench.run()
    assert bench.ends() == [1, 0] and bench.instance.removed
    named = [command for command in bench.controller.asked if type(command).__name__ == "NameRecoverer"]
    assert len({command.command_id for command in named}) == 1, "one command, asked again"
    assert sum("waits for the controller" in record.message for record in caplog.records) == 2


async def test_an_unreadable_producer_state_stops_one_instance(bench: Bench) -> None:
    bench.instance.add(0, 0, 0)

    async def unreadable(*_: Any) -> None:
        raise KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, "segment x is named by the newest facts and does not exist")

    bench.recovery._cold = cast(Any, SimpleNamespace(producers=unreadable))
    await bench.run()
    assert "is unreadable: KAFKA_STORAGE_ERROR: segment x" in bench.recovery.waiting[OLD_WAL].why


def unknown_instance() -> HandInstance:
    """One that the cluster does not know, and nobody writes."""
    unknown = HandInstance(b"u" * 16)
    unknown.must_fence = False
    return unknown


async def test_an_instance_that_the_cluster_does_not_know_goes_only_if_it_is_empty(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Never registered: it holds nothing. Forgotten, or newer than the metadata: not ours to throw away."""
    empty, full, broken = (unknown_instance() for _ in range(3))
    empty.last_group = 0
    broken.error = OSError(5, "Input/output error")
    await bench.run(empty)
    assert empty.removed and "does not know" not in caplog.text
    await bench.run(full)
    assert not full.removed and "holds groups up to 9, but the cluster does not know it" in caplog.text
    await bench.run(broken)
    assert not broken.removed and "cannot be read" in caplog.text
    assert not full.fenced and not bench.recovery.waiting


async def test_an_instance_that_was_forgotten_while_it_waited_is_settled(bench: Bench) -> None:
    bench.instance.damage = Damage("f", 1, 2, "is bad", (3, 4), [])
    await bench.run()
    assert OLD_WAL in bench.recovery.waiting
    bench.controller.state.wal_table.retire(OLD_WAL)
    bench.controller.state.broker_table.close(OLD)
    bench.controller.apply(f.ClosedForgotten((OLD,), 5))
    with pytest.raises(RecoveryStopped, match="so long ago that it is forgotten"):
        await bench.recovery.accept_loss(OLD_WAL)
    assert OLD_WAL not in [row["wal_id"] for row in bench.recovery.rows(settled=True)]


async def test_files_that_cannot_be_deleted_are_only_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    unknown = unknown_instance()
    unknown.last_group = 0

    def stuck() -> None:
        raise OSError(30, "Read-only file system")

    unknown.remove = stuck  # type: ignore[method-assign]
    await bench.run(unknown)
    assert "cannot be deleted" in caplog.text and not unknown.fenced, "nothing was acknowledged through it"


async def test_the_store_away_while_seals_are_uploaded(bench: Bench) -> None:
    for base in range(40):
        bench.instance.add(0, 0, base)
    outage = iter([True] * 25)
    bench.store.plan = lambda name: (
        Mishap.UNAVAILABLE if name == "put_if_absent" and next(outage, False) else Mishap.NONE
    )
    await bench.run()
    assert bench.ends() == [40, 0] and bench.instance.removed


def test_how_long_a_replay_would_take() -> None:
    recovery = cast(Any, WalRecovery.__new__(WalRecovery))
    recovery._replayed_bytes, recovery._replayed_ms = 0, 0
    assert recovery.estimated_seconds(100_000_000) == 2
    recovery._replayed_bytes, recovery._replayed_ms = 50_000_000, 500
    assert recovery.estimated_seconds(100_000_000) == 1
