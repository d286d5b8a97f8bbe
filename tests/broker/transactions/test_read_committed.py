"""What consumers of committed records see, whatever happens to the log: random histories against a simple model.

Read over sockets from memory and from the bucket, with seals, merges, deletions and changes of leader at random places.
Every answer must name exactly the aborted transactions that have data in it.
"""

import asyncio
import random  # noqa: TID251
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import cold
from broker.log import Log
from broker.replay import Replay
from controller import facts as f
from controller.commands import ReplayLog
from protocol import Buffer
from protocol import messages as m
from protocol.apis import ApiKey
from storage.merging import Inputs, merge
from storage.producers import ProducerStates
from tests.support.committed import committed_records
from tests.support.hot_broker import INCARNATION, NODE, WAL_ID, HotBroker
from tests.support.raw_client import RawClient, batch_of, fetch_request
from tests.support.waiting import until

COMMITTED = 1
PRODUCERS = 4


async def no_pace(size: int) -> None:
    return None


@dataclass
class Transaction:
    producer: int
    first: int
    offsets: list[int] = field(default_factory=list)
    marker: int = 1 << 62
    commit: bool = False


@dataclass
class Model:
    """The log as it should be: who wrote which offset in which transaction (None: in none)."""

    written: dict[int, Transaction | None] = field(default_factory=dict)
    transactions: list[Transaction] = field(default_factory=list)
    open: dict[int, Transaction] = field(default_factory=dict)

    def data(self, offset: int, count: int, producer: int | None) -> None:
        transaction = None
        if producer is not None:
            transaction = self.open.get(producer)
            if transaction is None:
                transaction = self.open[producer] = Transaction(producer, offset)
                self.transactions.append(transaction)
            transaction.offsets += range(offset, offset + count)
        self.written.update(dict.fromkeys(range(offset, offset + count), transaction))

    def marker(self, offset: int, producer: int, commit: bool) -> None:
        transaction = self.open.pop(producer, None)
        if transaction is not None:
            transaction.marker, transaction.commit = offset, commit

    def last_stable(self, hw: int, start: int) -> int:
        open_from = [each.first for each in self.transactions if each.marker >= hw and each.first < hw]
        return min([hw, *(max(first, start) for first in open_from)])

    def visible(self, start: int, end: int) -> list[int]:
        return [
            offset
            for offset, transaction in self.written.items()
            if start <= offset < end and (transaction is None or transaction.commit)
        ]

    def aborted(self, offset: int, upper: int, hw: int) -> list[tuple[int, int]]:
        """Those with data in [offset, upper) as far as the log can know: between first offset and marker."""
        return sorted(
            (each.producer, each.first)
            for each in self.transactions
            if not each.commit and each.first < upper and offset <= each.marker < hw
        )


class History:
    """One log, what is done to it, and the model of it."""

    def __init__(self, broker: HotBroker, client: RawClient) -> None:
        self.broker = broker
        self.client = client
        self.model = Model()
        broker.controller.apply(f.FormatLevel(f.FORMAT_LEVEL))
        broker.create_topic("t")
        self.sequences = [0] * PRODUCERS
        self.plain = 0
        self.jobs = 0

    @property
    def log(self) -> Log:
        return self.broker.log("t")

    async def settle(self) -> None:
        """Until everything appended is durable, and validated if the gate is open."""
        await until(lambda: self.broker.gate.last[0] >= self.log.last_sequence)

    def append(self, number: int, producer: int | None) -> None:
        count = 1 + number % 3
        values = [b"v" * (1 + number % 40)] * count
        offset = self.log.end
        if producer is None:
            self.log.append_own(batch_of(*values, producer_id=900, producer_epoch=0, base_sequence=self.plain))
            self.plain += count
        else:
            sequence = self.sequences[producer]
            self.log.append_own(
                batch_of(*values, producer_id=producer, producer_epoch=0, base_sequence=sequence, transactional=True)
            )
            self.sequences[producer] += count
        self.model.data(offset, count, producer)

    def end(self, number: int, commit: bool) -> None:
        producer = number % PRODUCERS
        self.model.marker(self.log.end, producer, commit)
        self.log.append_marker(producer, 0, 1, commit=commit, transaction_version=0)

    async def seal(self) -> None:
        await self.settle()
        if self.log.hw > self.log.committed_end:
            await self.broker.commit([self.log])

    async def delete(self, number: int) -> None:
        log = self.log
        if log.committed_end > log.start:
            start = log.start + 1 + number % (log.committed_end - log.start)
            self.broker.controller.apply(f.LogStartAdvanced((f.LogStart(log.log_id, start),)))

    async def lead_again(self) -> None:
        """The next leader begins with what the bucket has."""
        log = self.log
        self.broker.controller.apply(f.LeaderNamed(log.log_id, NODE, INCARNATION, log.epoch + 1, WAL_ID))
        await until(lambda: self.log is not log and self.log.serving)

    async def move(self) -> None:
        self.broker.gate.open()
        await self.settle()
        await self.seal()
        await self.lead_again()

    async def recover(self) -> None:
        """As after a crash: another one replays what the WAL has and seals it."""
        self.broker.gate.open()
        await self.settle()
        log = self.log
        if log.hw > log.committed_end:
            states = ProducerStates()
            await self.broker.services.cold.producers(log.log_id, states, 0)
            plan = ReplayLog(log.log_id, log.epoch, log.committed_end, log.hw)
            replay = Replay(plan, states, log.committed_end, log.committed_end)
            for buffer in log.tail.slice(log.committed_end, log.hw):
                replay.take(bytes(buffer), 0)
            await self.broker.commit([log], sealed=replay.seal())
        await self.lead_again()

    async def merge(self, number: int) -> None:
        broker, log = self.broker, self.log
        state = broker.controller.state
        known = state.logs[log.log_id]
        if known.range_count < 2:
            return
        first = number % (known.range_count - 1)
        count = min(2 + number % 3, known.range_count - first)
        part = known.part(first, count)
        rows = [state.range_at(log.log_id, index) for index in range(first, first + count)]
        blocks: list[Buffer] = []

        async def write(block: Buffer) -> None:
            blocks.append(block)

        made = await merge(Inputs(broker.store, "test-cluster", rows, no_pace), "test-cluster", self.jobs, rows, write)
        await broker.store.put_if_absent(made.key, [*blocks, *made.parts])
        broker.controller.apply(
            f.MergeJobOpened(self.jobs, NODE, INCARNATION, "merge", (part,)),
            f.RangesReplaced(self.jobs, (f.Merged(made.size, made.range),)),
        )
        self.jobs += 1

    async def do(self, kind: int, number: int) -> None:
        """One step; data and markers are the most frequent."""
        if kind < 40:
            self.append(number, number % PRODUCERS)
        elif kind < 46:
            self.append(number, None)
        elif kind < 70:
            self.end(number, commit=kind % 2 == 0)
        elif kind < 80:
            await self.seal()
        elif kind < 84:
            self.broker.forget_tails()
        elif kind < 87:
            await self.delete(number)
        elif kind < 89:
            await self.move()
        elif kind < 91:
            await self.recover()
        elif kind < 94:
            await self.merge(number)
        elif kind < 96:
            self.broker.gate.closed = True
        elif kind < 97:
            self.broker.gate.open()
        else:
            await self.check(number)

    async def check(self, number: int) -> None:
        """Read everything, in pieces of some size, as a consumer does."""
        await self.settle()
        log, model = self.log, self.model
        assert log.lso == model.last_stable(log.hw, log.start), (log.lso, model)
        seen: list[int] = []
        offset = log.start
        while offset < log.lso:
            part = await self.client.fetch(
                "t", offset, isolation_level=COMMITTED, partition_max_bytes=1 + number % 600, max_wait_ms=5000
            )
            assert (part.error_code, part.last_stable_offset, part.high_watermark) == (0, log.lso, log.hw)
            found, upper = filtered(part, offset)
            told = sorted((each.producer_id, each.first_offset) for each in part.aborted_transactions)
            assert told == model.aborted(offset, upper, log.hw), (offset, upper, model)
            seen += found
            assert upper > offset
            offset = upper
        assert seen == model.visible(log.start, log.lso)
        for isolation, replica_id, limit in ((0, -1, log.hw), (COMMITTED, -1, log.lso), (COMMITTED, -2, log.hw)):
            assert await latest(self.client, isolation, replica_id) == limit


def filtered(part: Any, offset: int) -> tuple[list[int], int]:
    """Offsets of the records that a consumer of committed records gives to its user, and where it goes on."""
    found, upper = committed_records(part, offset)
    return [record.offset for record in found], upper


async def latest(client: RawClient, isolation: int, replica_id: int = -1) -> int:
    asked = m.ListOffsetsRequest.ListOffsetsPartition(partition_index=0, timestamp=-1)
    topics = [m.ListOffsetsRequest.ListOffsetsTopic(name="t", partitions=[asked])]
    request = m.ListOffsetsRequest(replica_id=replica_id, isolation_level=isolation, topics=topics)
    answer = await client.ask(ApiKey.LIST_OFFSETS, 7, request)
    offset: int = answer.topics[0].partitions[0].offset
    return offset


async def run(steps: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as path:
        async with HotBroker(Path(path), tidelog_tail_keep_bytes=1 << 20) as broker, RawClient(broker.port) as client:
            history = History(broker, client)
            for kind, number in steps:
                await history.do(kind, number)
            await history.check(599)
            broker.gate.open()
            for producer in range(PRODUCERS):
                history.end(producer, commit=producer % 2 == 0)
            await history.check(37)
            assert history.log.lso == history.log.hw
            await history.seal()
            broker.forget_tails()
            await history.check(150)
            await history.lead_again()
            await history.check(599)


@pytest.fixture(autouse=True)
def few_ranges_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan sees little, so that markers often lie beyond it."""
    monkeypatch.setattr(cold, "ROWS_MAX", 2)


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=30)
async def test_random_histories(seed: int) -> None:
    rng = random.Random(seed)
    await run([(rng.randrange(100), rng.randrange(10_000)) for _ in range(rng.randrange(20, 200))])


def open_and_abort(log: Log, producer: int, *between: int) -> None:
    """A transaction of one record, a record outside of it, the marker."""
    log.append_own(batch_of(b"x", producer_id=producer, producer_epoch=0, base_sequence=0, transactional=True))
    for _ in between:
        log.append_own(batch_of(b"plain"))
    log.append_marker(producer, 0, 1, commit=False, transaction_version=0)


async def test_markers_that_leave_memory_while_the_bucket_is_asked_are_not_forgotten(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=1 << 20) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        log.append_own(batch_of(b"x", producer_id=1, producer_epoch=0, base_sequence=0, transactional=True))
        await until(lambda: log.hw == 1)
        await broker.commit([log])
        broker.forget_tails()
        log.append_own(batch_of(b"plain"))
        log.append_marker(1, 0, 1, commit=False, transaction_version=0)
        await until(lambda: log.hw == 3)
        gate, asked = asyncio.Event(), asyncio.Event()
        get_range = broker.store.get_range

        async def slow(key: str, start: int, length: int) -> bytes:
            asked.set()
            await gate.wait()
            data: bytes = await get_range(key, start, length)
            return data

        broker.store.get_range = slow
        request = fetch_request([("t", 0, 0)], max_wait_ms=5000, isolation_level=COMMITTED)
        client.send(ApiKey.FETCH, 12, request)
        await asked.wait()
        await broker.commit([log])
        broker.forget_tails()
        assert not log.producers.aborted_count
        gate.set()
        _, answer = await client.receive(ApiKey.FETCH, 12)
        part = answer.responses[0].partitions[0]
        assert filtered(part, 0) == ([], 1)


async def test_a_transaction_whose_marker_was_lost_stays_open_and_can_be_aborted(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        log.append_own(batch_of(b"x", producer_id=1, producer_epoch=0, base_sequence=0, transactional=True))
        await until(lambda: log.hw == 1)
        await broker.commit([log])
        log.append_marker(1, 0, 1, commit=True, transaction_version=0)
        await until(lambda: log.hw == 2)
        behind = 1 + f.LOSS_GAP
        broker.controller.apply(
            f.LossDeclared(log.log_id, 1, behind), f.LeaderNamed(log.log_id, NODE, INCARNATION, 1, WAL_ID)
        )
        await until(lambda: broker.log("t").serving)
        log = broker.log("t")
        assert (log.end, log.lso, list(log.producers.open_transactions())) == (behind, 0, [(1, 0)])
        open_and_abort(log, 2, 1)
        await until(lambda: log.hw == behind + 3)
        assert (log.lso, await latest(client, COMMITTED)) == (0, 0)
        log.append_marker(1, 0, 1, commit=False, transaction_version=0)
        await until(lambda: log.lso == log.hw == behind + 4)
        found, upper = filtered(await client.fetch("t", 0, isolation_level=COMMITTED, max_wait_ms=5000), 0)
        assert (found, upper) == ([], 1)
        # What is read across the loss comes from memory, with what was aborted there.
        found, upper = filtered(await client.fetch("t", 1, isolation_level=COMMITTED, max_wait_ms=5000), 1)
        assert (found, upper) == ([behind + 1], behind + 4)
