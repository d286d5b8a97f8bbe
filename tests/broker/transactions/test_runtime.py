"""The shell of a transaction coordinator: nothing is told or sent before it is validated, and a successor goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from broker.background import Tasks
from broker.coordination import runtime
from broker.settings import Settings
from broker.transactions.coordinator import TRANSACTION_TOPIC, TransactionCoordinators
from broker.transactions.model import (
    EPOCH_LAST,
    EPOCH_MAX,
    TV2,
    AddPartitions,
    Ending,
    EndTxn,
    InitProducer,
    ProducerAnswer,
    State,
    Transaction,
    TransactionSaved,
    VerifyPartitions,
)
from broker.transactions.records import encode
from protocol.errors import ErrorCode, KafkaError
from protocol.records import build_batch
from tests.broker.groups.conftest import FakeClock, FakeController
from tests.support.memory_log import MemoryLog

NONE = ErrorCode.NONE
T0 = ("t", 0)


class Markers:
    """Keeps what is to be written until the test says that it was."""

    def __init__(self) -> None:
        self.begun: list[tuple[Ending, int, Callable[[], None]]] = []
        self.dropped = 0

    def begin(self, owner: object, ending: Ending, coordinator_epoch: int, done: Callable[[], None]) -> None:
        self.begun.append((ending, coordinator_epoch, done))

    def drop(self, owner: object) -> None:
        self.dropped += 1
        self.begun.clear()

    def write_all(self) -> None:
        begun, self.begun = self.begun, []
        for _, _, done in begun:
            done()


class Abandoned:
    """Keeps whose transactions are to be looked for."""

    def __init__(self) -> None:
        self.ended: list[tuple[dict[int, str], int]] = []

    async def end(self, owner: object, producers: dict[int, str], coordinator_epoch: int) -> None:
        self.ended.append((producers, coordinator_epoch))


class Ids:
    """Producer ids; `refuse` is raised while it is set."""

    def __init__(self) -> None:
        self.last = 5000
        self.refuse: KafkaError | None = None

    async def get(self) -> int:
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        self.last += 1
        return self.last


class Bench:
    def __init__(self, tasks: Tasks, **settings: Any) -> None:
        self.clock = FakeClock()
        self.controller = FakeController()
        self.controller.state.features["transaction.version"] = 2
        self.controller.state.add(TRANSACTION_TOPIC, 1)
        self.markers = Markers()
        self.abandoned = Abandoned()
        self.ids = Ids()
        self.moved: list[int] = []
        self.coordinators = TransactionCoordinators(
            Settings(**{"transaction_state_log_num_partitions": 1, **settings}),
            self.controller,  # type: ignore[arg-type]
            self.clock,  # type: ignore[arg-type]
            lambda count: bytes(count),
            tasks,
            advance_start=self.advance_start,
            abandoned=self.abandoned,  # type: ignore[arg-type]
            markers=self.markers,  # type: ignore[arg-type]
            producer_ids=self.ids,  # type: ignore[arg-type]
        )

    async def advance_start(self, log: Any, offset: int) -> None:
        await asyncio.sleep(0)
        self.moved.append(offset)
        log.start = offset

    async def open(self, log: MemoryLog | None = None, **options: Any) -> MemoryLog:
        log = log or MemoryLog(**options)
        log.topic = TRANSACTION_TOPIC
        self.coordinators.open(0, log)
        while not self.coordinators.partitions[0].active:
            await asyncio.sleep(0)
        return log

    def init(self, name: str = "tx", timeout_ms: int = 60_000) -> Any:
        return self.coordinators.init_producer(InitProducer(0, name, timeout_ms))

    async def add(self, producer: ProducerAnswer, name: str = "tx") -> ErrorCode:
        adding = AddPartitions(0, name, producer.producer_id, producer.producer_epoch, frozenset({T0}), TV2)
        return (await self.coordinators.add(adding)).error

    def end(self, producer: ProducerAnswer, commit: bool = True, name: str = "tx") -> Any:
        return self.coordinators.end(EndTxn(0, name, producer.producer_id, producer.producer_epoch, commit, TV2))

    async def state(self, name: str = "tx") -> State:
        view = await self.coordinators.describe(name)
        assert view.transaction is not None
        return view.transaction.state


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as owner:
        yield owner


@pytest_asyncio.fixture
async def bench(tasks: Tasks) -> AsyncIterator[Bench]:
    made = Bench(tasks)
    yield made
    made.coordinators.stop()


async def test_nothing_is_told_before_it_is_validated(bench: Bench) -> None:
    """Not even that a transactional id is unknown no more; and markers wait with the answer."""
    log = await bench.open(validate_soon=False)
    starting = asyncio.ensure_future(bench.init())  # noqa: TID251
    await turns()
    looking = bench.coordinators.describe("tx")
    verifying = bench.coordinators.verify(VerifyPartitions(0, "tx", 5001, 0, frozenset({T0})))
    assert not starting.done() and not looking.done() and not verifying.done()
    log.validate()
    producer = await starting
    assert producer == ProducerAnswer(NONE, 5001, 0)
    assert (await looking).error is NONE and (await verifying).of(T0) is ErrorCode.TRANSACTION_ABORTABLE
    adding = asyncio.ensure_future(bench.add(producer))  # noqa: TID251
    await turns()
    ending = asyncio.ensure_future(bench.end(producer))  # noqa: TID251
    await turns()
    assert not adding.done() and not ending.done() and not bench.markers.begun
    log.validate()
    assert await adding is NONE and await ending == ProducerAnswer(NONE, 5001, 1)
    ((marker, epoch, _),) = bench.markers.begun
    assert marker == Ending("tx", 5001, 1, True, frozenset({T0}), TV2) and epoch == log.epoch
    bench.markers.write_all()
    log.validate()
    assert await bench.state() is State.COMPLETE_COMMIT


async def test_a_refused_append_changes_nothing(bench: Bench) -> None:
    log = await bench.open()
    producer = await bench.init()
    log.refuse = ErrorCode.NOT_ENOUGH_REPLICAS
    assert await bench.add(producer) is ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert (await bench.init("other")).error is ErrorCode.COORDINATOR_NOT_AVAILABLE
    log.refuse = ErrorCode.NOT_LEADER_OR_FOLLOWER
    assert (await bench.end(producer, commit=False)).error is ErrorCode.NOT_COORDINATOR
    log.refuse = None
    assert await bench.state() is State.EMPTY
    assert (await bench.coordinators.describe("other")).error is ErrorCode.TRANSACTIONAL_ID_NOT_FOUND
    assert await bench.add(producer) is NONE


async def test_completion_is_tried_until_it_is_appended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "RETRY_MS", 1)
    log = await bench.open()
    producer = await bench.init()
    await bench.add(producer)
    await bench.end(producer)
    log.refuse = ErrorCode.NOT_ENOUGH_REPLICAS
    bench.markers.write_all()
    await asyncio.sleep(0.01)
    assert await bench.state() is State.PREPARE_COMMIT
    log.refuse = None
    while await bench.state() is not State.COMPLETE_COMMIT:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("commit", [True, False])
async def test_a_successor_sends_the_markers_of_what_was_decided(bench: Bench, tasks: Tasks, commit: bool) -> None:
    log = await bench.open()
    producer = await bench.init()
    await bench.add(producer)
    await bench.end(producer, commit)
    assert len(bench.markers.begun) == 1
    bench.coordinators.close(0)
    assert bench.markers.dropped == 2
    other = Bench(tasks)
    later = await other.open(log.cut(len(log.batches)))
    ((marker, epoch, _),) = other.markers.begun
    assert (marker.commit, marker.producer_epoch, epoch) == (commit, 1, later.epoch) and epoch > log.epoch
    assert (await other.end(producer, commit)).error is ErrorCode.CONCURRENT_TRANSACTIONS
    other.markers.write_all()
    assert await other.end(producer, commit) == ProducerAnswer(NONE, 5001, 1)
    other.coordinators.stop()


async def test_a_decision_that_was_not_durable_never_was(bench: Bench, tasks: Tasks) -> None:
    log = await bench.open()
    producer = await bench.init()
    await bench.add(producer)
    log.validate_soon = False
    ending = asyncio.ensure_future(bench.end(producer))  # noqa: TID251
    await turns()
    bench.coordinators.close(0)
    assert (await ending).error is ErrorCode.NOT_COORDINATOR and not bench.markers.begun
    other = Bench(tasks)
    later = log.cut(len(log.batches) - 1)
    later.validate_soon = True
    await other.open(later)
    assert await other.state() is State.ONGOING and not other.markers.begun
    assert await other.end(producer, commit=False) == ProducerAnswer(NONE, 5001, 1), "the other way, and no harm done"
    other.coordinators.stop()


async def test_behind_a_declared_loss_everybody_is_fenced_before_anything_is_served(
    bench: Bench, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the markers of what that aborts wait until the fence is durable."""
    monkeypatch.setattr(runtime, "RETRY_MS", 1)
    log = await bench.open()
    idle, busy = await bench.init("idle"), await bench.init("busy")
    await bench.add(busy, "busy")
    kept = len(log.batches)
    idle, busy = await bench.init("idle"), await bench.end(busy, True, "busy")
    bench.markers.write_all()
    assert await bench.add(busy, "busy") is NONE, "its records are there, and nothing tells of it any more"
    bench.coordinators.close(0)
    behind = log.cut(kept, lost=True)
    behind.refuse, behind.validate_soon = ErrorCode.NOT_ENOUGH_REPLICAS, False
    other = Bench(tasks)
    other.ids.last = bench.ids.last
    other.coordinators.open(0, behind)
    await asyncio.sleep(0.01)
    assert (await other.init("idle")).error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    behind.refuse = None
    while not other.coordinators.partitions[0].active:
        await asyncio.sleep(0.001)
    await turns()
    assert not other.markers.begun and not other.abandoned.ended
    behind.validate()
    await turns()
    assert other.abandoned.ended == [({idle.producer_id: "idle", busy.producer_id: "busy"}, behind.epoch)]
    ((ending, _, _),) = other.markers.begun
    assert (ending.producer_id, ending.producer_epoch, ending.commit) == (busy.producer_id, EPOCH_MAX, False)
    other.markers.write_all()
    behind.validate_soon = True
    assert await other.add(idle, "idle") is ErrorCode.PRODUCER_FENCED
    assert await other.init("idle") == ProducerAnswer(NONE, 5003, 0)
    assert await other.init("busy") == ProducerAnswer(NONE, 5004, 0)
    third = Bench(tasks)
    await third.open(behind.cut(len(behind.batches)))
    assert await third.init("busy") == ProducerAnswer(NONE, 5004, 1), "only what is below it is suspect"
    assert not third.abandoned.ended
    third.coordinators.stop(), other.coordinators.stop()


async def test_who_begins_the_next_transaction_waits_for_the_end_of_the_last(bench: Bench, tasks: Tasks) -> None:
    log = await bench.open()

    def adding(where: Bench = bench) -> asyncio.Future[Any]:
        command = AddPartitions(0, "tx", 5001, epoch, frozenset({T0}), 0)
        return asyncio.ensure_future(where.coordinators.add_patiently(command))  # noqa: TID251

    await bench.init()
    epoch = 0
    for _ in range(3):
        assert (await adding()).error is NONE
        await bench.end(ProducerAnswer(NONE, 5001, epoch))
        epoch += 1
        waiting, other = adding(), adding()
        await turns()
        assert not waiting.done()
        bench.markers.write_all()
        assert (await waiting).error is (await other).error is NONE
        await bench.end(ProducerAnswer(NONE, 5001, epoch), commit=False)
        bench.markers.write_all()
        epoch += 1
    await adding()
    await bench.end(ProducerAnswer(NONE, 5001, epoch))
    epoch += 1
    waiting = adding()
    await turns()
    bench.coordinators.close(0)
    assert (await waiting).error is ErrorCode.NOT_COORDINATOR
    hasty = Bench(tasks, add_partitions_to_txn_retry_backoff_max_ms=1)
    await hasty.open(log.cut(len(log.batches)))
    assert (await adding(hasty)).error is ErrorCode.CONCURRENT_TRANSACTIONS
    assert not hasty.coordinators.partitions[0]._until_complete
    hasty.coordinators.stop()


async def test_a_suspect_that_waits_for_its_markers_stays_one(
    bench: Bench, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewrite would put it behind the loss."""
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 500)
    log = await bench.open()
    producer = await bench.init()
    await bench.add(producer)
    await bench.end(producer)
    bench.coordinators.close(0)
    behind = log.cut(len(log.batches), lost=True)
    for _ in range(2):
        other = Bench(tasks)
        await other.open(behind)
        for _ in range(20):
            await other.init("other")
        assert not other.moved and other.markers.begun[0][0].producer_epoch == 1 and not other.abandoned.ended
        other.coordinators.close(0)
    last = Bench(tasks)
    last.ids.last = 6000
    await last.open(behind)
    last.markers.write_all()
    assert await last.init() == ProducerAnswer(NONE, 6001, 0)
    await turns()
    assert last.abandoned.ended == [({producer.producer_id: "tx"}, behind.epoch)], "what was begun after it, perhaps"
    while not last.moved:
        await last.init("other")
        await asyncio.sleep(0)
    last.coordinators.stop()


async def test_while_loading_and_elsewhere(bench: Bench) -> None:
    producer = ProducerAnswer(NONE, 1, 0)
    assert (await bench.init()).error is ErrorCode.NOT_COORDINATOR
    assert await bench.add(producer) is ErrorCode.NOT_COORDINATOR
    assert (await bench.coordinators.describe("tx")).error is ErrorCode.NOT_COORDINATOR
    assert await bench.coordinators.list_transactions(
        states=None, producer_ids=frozenset(), longer_than_ms=-1, matches=lambda name: True
    ) == (NONE, ())
    log = MemoryLog()
    bench.coordinators.open(0, log)
    assert (await bench.coordinators.describe("tx")).error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    log.may_answer = False
    while not bench.coordinators.partitions[0].active:
        await asyncio.sleep(0)
    assert (await bench.init()).error is ErrorCode.NOT_COORDINATOR, "this broker lost the right to say so"


async def test_without_a_producer_id(bench: Bench) -> None:
    await bench.open()
    bench.ids.refuse = KafkaError(ErrorCode.NOT_CONTROLLER, "away")
    assert (await bench.init()).error is ErrorCode.NOT_CONTROLLER
    bench.ids.refuse = KafkaError(ErrorCode.INVALID_REQUEST, "strange")
    assert (await bench.init()).error is ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    assert (await bench.coordinators.describe("tx")).error is ErrorCode.TRANSACTIONAL_ID_NOT_FOUND


async def test_only_one_of_two_that_begin_at_once(bench: Bench) -> None:
    """Both wait for a producer id; the second finds that the transactional id is there."""
    await bench.open()
    first, second = await asyncio.gather(bench.init(), bench.init())
    assert {first.error, second.error} == {NONE}
    assert first.producer_id == second.producer_id and {first.producer_epoch, second.producer_epoch} == {0, 1}


async def test_timeouts_and_expiry(tasks: Tasks) -> None:
    bench = Bench(
        tasks,
        transaction_abort_timed_out_transaction_cleanup_interval_ms=1,
        transaction_remove_expired_transaction_cleanup_interval_ms=1,
        transactional_id_expiration_ms=100_000,
    )
    log = await bench.open()
    producer = await bench.init()
    await bench.add(producer)
    exhausted = await bench.init("exhausted")
    shard = bench.coordinators.partitions[0].shard
    shard.transactions["exhausted"] = shard.transactions["exhausted"]._replace(producer_epoch=EPOCH_LAST)
    exhausted = exhausted._replace(producer_epoch=EPOCH_LAST)
    assert await bench.add(exhausted, "exhausted") is NONE
    bench.clock.wall_ms += 60_001
    while len(bench.markers.begun) < 2:
        await asyncio.sleep(0.001)
    assert bench.coordinators.timed_out == 2
    assert {ending.producer_epoch for ending, _, _ in bench.markers.begun} == {1, EPOCH_LAST + 1}
    bench.markers.write_all()
    assert await bench.state() is State.COMPLETE_ABORT
    assert shard.transactions["exhausted"].producer_epoch == 0
    bench.clock.wall_ms += 100_000
    while shard.transactions:
        await asyncio.sleep(0.001)
    assert log.end > 0 and bench.coordinators.by_state()[State.COMPLETE_ABORT] == 0
    bench.coordinators.stop()


async def test_the_log_is_kept_compacted(bench: Bench, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 2_000)
    monkeypatch.setattr(runtime, "SLICE_RECORDS", 2)
    log = await bench.open()
    producers = {f"tx-{n}": await bench.init(f"tx-{n}") for n in range(5)}
    for turn in range(20):
        for name, producer in list(producers.items()):
            assert await bench.add(producer, name) is NONE
            if (turn, name) == (19, "tx-3"):
                continue
            producers[name] = await bench.end(producer, turn % 2 == 0, name)
            if (turn, name) != (19, "tx-4"):
                bench.markers.write_all()
    await asyncio.sleep(0.01)
    assert len(bench.moved) > 3 and bench.moved == sorted(bench.moved)
    before = bench.coordinators.partitions[0].shard.transactions
    other = Bench(tasks)
    await other.open(log.cut(len(log.batches)))
    loaded = other.coordinators.partitions[0].shard.transactions
    assert loaded == {name: one._replace(last_epoch=-1) for name, one in before.items()}
    assert loaded["tx-3"].state is State.ONGOING and len(other.markers.begun) == 1
    other.coordinators.stop()


async def test_records_of_a_newer_version_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 100)
    log = MemoryLog()
    key, _ = encode(TransactionSaved("new", Transaction(1, 0, 1000), 1))
    log.append_own(build_batch([(1, key, b"\0\7future", ())]))
    log.validate()
    await bench.open(log)
    for _ in range(20):
        await bench.init()
    await asyncio.sleep(0.01)
    assert not bench.moved
