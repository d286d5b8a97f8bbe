"""Leaders and coordinators of different brokers: questions in batches, answers to whom they belong, silence told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from broker.background import Tasks
from broker.transactions import calls
from broker.transactions.calls import CoordinatorCalls, MarkerCalls, Neighbours, OpenTransactionCalls
from broker.transactions.markers import Marker
from broker.transactions.model import AddPartitions, PartitionsAnswer, VerifyPartitions
from controller.remote import LinkError, Target
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode

T0, T1, U0 = ("t", 0), ("t", 1), ("u", 0)


class FakePeers:
    """The other broker: refuses `refused`, answers nothing while `down`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Target, ApiKey, Any]] = []
        self.refused: dict[tuple[str, int], ErrorCode] = {}
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.top_level = ErrorCode.NONE

    async def ask(self, lane: str, target: Target, api_key: ApiKey, version: int, request: Any, timeout_ms: int) -> Any:
        request = type(request).decode(request.encode(version), version)
        self.asked.append((lane, target, api_key, request))
        await self.gate.wait()
        if self.down:
            raise LinkError("down")
        answers = {
            ApiKey.ADD_PARTITIONS_TO_TXN: self._transactions,
            ApiKey.WRITE_TXN_MARKERS: self._markers,
            ApiKey.DESCRIBE_PRODUCERS: self._producers,
        }
        answer = answers[api_key](request)
        return type(answer).decode(answer.encode(version), version)

    def _transactions(self, request: Any) -> Any:
        added = m.AddPartitionsToTxnResponse
        if self.top_level is not ErrorCode.NONE:
            return added(error_code=self.top_level)
        return added(
            results_by_transaction=[
                added.AddPartitionsToTxnResult(
                    transactional_id=one.transactional_id,
                    topic_results=[
                        added.AddPartitionsToTxnTopicResult(
                            name=topic.name,
                            results_by_partition=[
                                added.AddPartitionsToTxnPartitionResult(
                                    partition_index=n,
                                    partition_error_code=self.refused.get((topic.name, n), ErrorCode.NONE),
                                )
                                for n in topic.partitions
                            ],
                        )
                        for topic in one.topics
                    ],
                )
                for one in request.transactions
            ]
        )

    def _markers(self, request: Any) -> Any:
        written = m.WriteTxnMarkersResponse
        return written(
            markers=[
                written.WritableTxnMarkerResult(
                    producer_id=one.producer_id,
                    topics=[
                        written.WritableTxnMarkerTopicResult(
                            name=topic.name,
                            partitions=[
                                written.WritableTxnMarkerPartitionResult(
                                    partition_index=n, error_code=self.refused.get((topic.name, n), ErrorCode.NONE)
                                )
                                for n in topic.partition_indexes
                            ],
                        )
                        for topic in one.topics
                    ],
                )
                for one in request.markers
            ]
        )

    def _producers(self, request: Any) -> Any:
        described = m.DescribeProducersResponse
        return described(
            topics=[
                described.TopicResponse(
                    name=topic.name,
                    partitions=[
                        described.PartitionResponse(
                            partition_index=n,
                            error_code=self.refused.get((topic.name, n), ErrorCode.NONE),
                            active_producers=[
                                described.ProducerState(producer_id=7, current_txn_start_offset=12),
                                described.ProducerState(producer_id=8, current_txn_start_offset=-1),
                            ],
                        )
                        for n in topic.partition_indexes
                    ],
                )
                for topic in request.topics
            ]
        )


class FakeCoordinators:
    """Those of this broker; `leader` says where all transactional ids are."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.leader: int | None = 2
        self.topic = SimpleNamespace(partition_for=lambda key: 0, leader=lambda partition: self.leader)

    async def add_patiently(self, command: AddPartitions) -> PartitionsAnswer:
        self.asked.append(command)
        return PartitionsAnswer(ErrorCode.PRODUCER_FENCED)

    async def verify(self, command: VerifyPartitions) -> PartitionsAnswer:
        self.asked.append(command)
        return PartitionsAnswer(ErrorCode.NONE, {T1: ErrorCode.TRANSACTION_ABORTABLE})


class Bench:
    def __init__(self, tasks: Tasks) -> None:
        self.peers = FakePeers()
        listener = SimpleNamespace(name="PEERS", host="there", port=9)
        self.brokers = {2: SimpleNamespace(alive=True, incarnation=22, listeners=[listener])}
        controller = SimpleNamespace(state=SimpleNamespace(brokers=self.brokers))
        self.neighbours = Neighbours(self.peers, controller, node_id=1, listener="PEERS")  # type: ignore[arg-type]
        self.coordinators = FakeCoordinators()
        self.calls = CoordinatorCalls(self.neighbours, self.coordinators, tasks)  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Tasks() as tasks:
        yield Bench(tasks)


async def test_the_coordinator_is_here(bench: Bench) -> None:
    bench.coordinators.leader = 1
    assert await bench.calls.verify("tx", 7, 3, [T0, T1], implicit=False) == {T1: ErrorCode.TRANSACTION_ABORTABLE}
    fenced = dict.fromkeys([T0], ErrorCode.PRODUCER_FENCED)
    assert await bench.calls.verify("tx", 7, 3, [T0], implicit=True) == fenced
    assert bench.coordinators.asked == [
        VerifyPartitions(0, "tx", 7, 3, frozenset({T0, T1})),
        AddPartitions(0, "tx", 7, 3, frozenset({T0}), 2),
    ]
    assert not bench.peers.asked


async def test_nobody_coordinates(bench: Bench) -> None:
    bench.coordinators.leader = None
    assert await bench.calls.verify("tx", 7, 3, [T0], implicit=True) == {T0: ErrorCode.COORDINATOR_NOT_AVAILABLE}


async def test_the_coordinator_is_elsewhere(bench: Bench) -> None:
    bench.peers.refused = {T1: ErrorCode.TRANSACTION_ABORTABLE}
    answer = await bench.calls.verify("tx", 7, 3, [T0, T1, U0], implicit=False)
    assert answer == {T1: ErrorCode.TRANSACTION_ABORTABLE}
    ((_, target, api_key, request),) = bench.peers.asked
    assert target == Target(2, 22, "there", 9) and api_key == ApiKey.ADD_PARTITIONS_TO_TXN
    (asked,) = request.transactions
    assert (asked.transactional_id, asked.producer_id, asked.producer_epoch) == ("tx", 7, 3) and asked.verify_only
    assert [(topic.name, topic.partitions) for topic in asked.topics] == [("t", [0, 1]), ("u", [0])]


async def test_questions_share_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number of partitions in each, and one question of a transactional id."""
    monkeypatch.setattr(calls, "PARTITIONS_MAX", 4)
    bench.peers.gate.clear()
    names = ["a", "a", "b", "c", "d", "e"]
    waiting = [asyncio.ensure_future(bench.calls.verify(n, 7, 3, [T0, U0], implicit=True)) for n in names]  # noqa: TID251
    large = asyncio.ensure_future(bench.calls.verify("large", 7, 3, [("t", n) for n in range(9)], implicit=True))  # noqa: TID251
    await asyncio.sleep(0)
    bench.peers.gate.set()
    assert await asyncio.gather(*waiting, large) == [{}] * 7
    batches = [[one.transactional_id for one in request.transactions] for *_, request in bench.peers.asked]
    assert batches == [["a", "b"], ["a", "c"], ["d", "e"], ["large"]]


async def test_silence_and_refusals_of_the_whole(bench: Bench) -> None:
    bench.peers.down = True
    assert await bench.calls.verify("tx", 7, 3, [T0], implicit=True) == {T0: ErrorCode.NETWORK_EXCEPTION}
    bench.peers.down = False
    bench.peers.top_level = ErrorCode.CLUSTER_AUTHORIZATION_FAILED
    refused = {T0: ErrorCode.CLUSTER_AUTHORIZATION_FAILED}
    assert await bench.calls.verify("tx", 7, 3, [T0], implicit=True) == refused
    bench.brokers[2].alive = False
    assert await bench.calls.verify("tx", 7, 3, [T0], implicit=True) == {T0: ErrorCode.NETWORK_EXCEPTION}
    del bench.brokers[2]
    assert await bench.calls.verify("tx", 7, 3, [T0], implicit=True) == {T0: ErrorCode.NETWORK_EXCEPTION}
    assert len(bench.peers.asked) == 2


async def test_markers_of_another_broker(bench: Bench) -> None:
    bench.peers.refused = {T1: ErrorCode.NOT_LEADER_OR_FOLLOWER}
    send = MarkerCalls(bench.neighbours, None, None)  # type: ignore[arg-type]
    first, second = Marker(7, 3, 9, True, 2), Marker(8, 0, 9, False, 0)
    results = await send(2, [(first, [T0, T1]), (second, [U0])])
    assert results == [{T0: ErrorCode.NONE, T1: ErrorCode.NOT_LEADER_OR_FOLLOWER}, {U0: ErrorCode.NONE}]
    ((_, _, api_key, request),) = bench.peers.asked
    assert api_key == ApiKey.WRITE_TXN_MARKERS
    told = [
        (one.producer_id, one.producer_epoch, one.coordinator_epoch, one.transaction_result, one.transaction_version)
        for one in request.markers
    ]
    assert told == [(7, 3, 9, True, 2), (8, 0, 9, False, 0)]
    bench.peers.down = True
    with pytest.raises(LinkError):
        await send(2, [(first, [T0])])


async def test_where_transactions_are_open(bench: Bench) -> None:
    bench.peers.refused = {T1: ErrorCode.NOT_LEADER_OR_FOLLOWER}

    def led(serving: bool, authoritative: bool) -> Any:
        return SimpleNamespace(
            serving=serving,
            may_answer_authoritatively=lambda: authoritative,
            producers=SimpleNamespace(open_transactions=lambda: iter([(9, 40)])),
        )

    logs = SimpleNamespace(find={T0: led(True, True), T1: led(True, False), U0: led(False, True)})
    describe = OpenTransactionCalls(bench.neighbours, logs)  # type: ignore[arg-type]
    assert await describe(2, [T0, T1, U0]) == {T0: [7], U0: [7]}
    assert await describe(1, [T0, T1, U0, ("u", 1)]) == {T0: [9]}
    bench.peers.down = True
    with pytest.raises(LinkError):
        await describe(2, [T0])


async def test_two_markers_of_one_producer_in_a_request(bench: Bench) -> None:
    send = MarkerCalls(bench.neighbours, None, None)  # type: ignore[arg-type]
    marker = Marker(7, 3, 9, False, 2)
    first, second = await send(2, [(marker, [T0]), (marker, [T1])])
    assert first[T0] is second[T1] is ErrorCode.NONE
