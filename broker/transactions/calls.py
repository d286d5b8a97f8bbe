"""What coordinators and leaders of the cluster say to each other about transactions, here or over the network.

Leaders ask coordinators whether a log is part of a transaction (AddPartitionsToTxn v5, many transactions in a request,
one request at a time to each broker); coordinators tell leaders how transactions end (WriteTxnMarkers v2), and ask them
where some are open (DescribeProducers); leaders ask what is under way (ListTransactions, DescribeTransactions). All are
Kafka's own APIs on the inter-broker listener. What this broker asks itself takes no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.transactions.marker_sender import Wanted
from broker.transactions.markers import write_markers
from broker.transactions.model import TV2, AddPartitions, Part, State, VerifyPartitions
from controller.remote import LinkError, Target
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.log_table import LogTable
    from broker.metrics import Counters
    from broker.peers import Peers
    from broker.transactions.coordinator import TransactionCoordinators
    from controller.client import ControllerClient

ADD_PARTITIONS_VERSION = 5
WRITE_MARKERS_VERSION = 2
DESCRIBE_PRODUCERS_VERSION = 0
LIST_TRANSACTIONS_VERSION = 0
DESCRIBE_TRANSACTIONS_VERSION = 0
ADD_PARTITIONS_MS = 5_000
WRITE_MARKERS_MS = 5_000
DESCRIBE_PRODUCERS_MS = 5_000
UNDER_WAY_MS = 5_000
"""How long an answer is waited for; then it is asked again, of whoever leads then."""
PARTITIONS_MAX = 1000
"""Of one request, unless one transaction alone has more."""


class Neighbours:
    """The other brokers, by node id."""

    def __init__(self, peers: Peers, controller: ControllerClient, *, node_id: int, listener: str) -> None:
        """`listener`: `inter.broker.listener.name`."""
        self.node_id = node_id
        self._peers = peers
        self._controller = controller
        self._listener = listener

    async def ask(self, what: str, node: int, api_key: ApiKey, version: int, request: Any, timeout_ms: int) -> Any:
        """The decoded answer of a node. LinkError. Questions of different kinds (`what`) do not wait for each other."""
        broker = self._controller.state.brokers.get(node)
        if broker is not None and broker.alive:
            for listener in broker.listeners:
                if listener.name == self._listener:
                    target = Target(node, broker.incarnation, listener.host, listener.port)
                    return await self._peers.ask(f"{what} {node}", target, api_key, version, request, timeout_ms)
        raise LinkError(f"node {node} is not there, or has no listener {self._listener}")


class MarkerCalls:
    """A `marker_sender.Send`."""

    def __init__(self, neighbours: Neighbours, logs: LogTable, counters: Counters) -> None:
        self._neighbours = neighbours
        self._logs = logs
        self._counters = counters

    async def __call__(self, node: int, wanted: Wanted) -> list[dict[Part, ErrorCode]]:
        if node == self._neighbours.node_id:
            return await write_markers(self._logs, self._counters, wanted, WRITE_MARKERS_MS / 1000)
        answer: m.WriteTxnMarkersResponse = await self._neighbours.ask(
            "markers",
            node,
            ApiKey.WRITE_TXN_MARKERS,
            WRITE_MARKERS_VERSION,
            m.WriteTxnMarkersRequest(
                markers=[
                    m.WriteTxnMarkersRequest.WritableTxnMarker(
                        producer_id=marker.producer_id,
                        producer_epoch=marker.producer_epoch,
                        transaction_result=marker.commit,
                        topics=[
                            m.WriteTxnMarkersRequest.WritableTxnMarkerTopic(name=topic, partition_indexes=partitions)
                            for topic, partitions in _by_topic(parts).items()
                        ],
                        coordinator_epoch=marker.coordinator_epoch,
                        transaction_version=marker.transaction_version,
                    )
                    for marker, parts in wanted
                ]
            ),
            WRITE_MARKERS_MS,
        )
        results: dict[int, dict[Part, ErrorCode]] = {}
        for one in answer.markers:
            results.setdefault(one.producer_id, {}).update(
                ((topic.name, partition.partition_index), ErrorCode(partition.error_code))
                for topic in one.topics
                for partition in topic.partitions
            )
        return [results.get(marker.producer_id, {}) for marker, _ in wanted]


class OpenTransactionCalls:
    """An `abandoned.Describe`."""

    def __init__(self, neighbours: Neighbours, logs: LogTable) -> None:
        self._neighbours = neighbours
        self._logs = logs

    async def __call__(self, node: int, parts: list[Part]) -> dict[Part, list[int]]:
        if node == self._neighbours.node_id:
            led = [(part, self._logs.find.get(part)) for part in parts]
            return {
                part: [producer_id for producer_id, _ in log.producers.open_transactions()]
                for part, log in led
                if log is not None and log.serving and log.may_answer_authoritatively()
            }
        answer: m.DescribeProducersResponse = await self._neighbours.ask(
            "producers",
            node,
            ApiKey.DESCRIBE_PRODUCERS,
            DESCRIBE_PRODUCERS_VERSION,
            m.DescribeProducersRequest(
                topics=[
                    m.DescribeProducersRequest.TopicRequest(name=topic, partition_indexes=partitions)
                    for topic, partitions in _by_topic(parts).items()
                ]
            ),
            DESCRIBE_PRODUCERS_MS,
        )
        return {
            (topic.name, one.partition_index): [
                producer.producer_id for producer in one.active_producers if producer.current_txn_start_offset >= 0
            ]
            for topic in answer.topics
            for one in topic.partitions
            if one.error_code == ErrorCode.NONE
        }


UNDER_WAY = (State.ONGOING, State.PREPARE_COMMIT, State.PREPARE_ABORT)


class UnderWayCalls:
    """An `undecided.UnderWay`."""

    def __init__(self, neighbours: Neighbours, coordinators: TransactionCoordinators) -> None:
        self._neighbours = neighbours
        self._coordinators = coordinators

    async def __call__(self, node: int, producer_ids: frozenset[int]) -> dict[int, set[Part]]:
        here = node == self._neighbours.node_id
        ids = await (self._listed_here(producer_ids) if here else self._listed_there(node, producer_ids))
        if not ids:
            return {}
        return await (self._described_here(ids) if here else self._described_there(node, ids))

    async def _listed_here(self, producer_ids: frozenset[int]) -> list[str]:
        answer = await self._coordinators.list_transactions(
            states=frozenset(UNDER_WAY), producer_ids=producer_ids, longer_than_ms=-1, matches=lambda _: True
        )
        _check(answer.error)
        return [one.transactional_id for one in answer.transactions]

    async def _listed_there(self, node: int, producer_ids: frozenset[int]) -> list[str]:
        request = m.ListTransactionsRequest(
            state_filters=[state.shown for state in UNDER_WAY], producer_id_filters=sorted(producer_ids)
        )
        answer: m.ListTransactionsResponse = await self._neighbours.ask(
            "transactions under way", node, ApiKey.LIST_TRANSACTIONS, LIST_TRANSACTIONS_VERSION, request, UNDER_WAY_MS
        )
        _check(ErrorCode(answer.error_code))
        return [one.transactional_id for one in answer.transaction_states]

    async def _described_here(self, ids: list[str]) -> dict[int, set[Part]]:
        found: dict[int, set[Part]] = {}
        for transactional_id in ids:
            view = await self._coordinators.describe(transactional_id)
            _check(view.error)
            if view.transaction is not None:
                found.setdefault(view.transaction.producer_id, set()).update(view.transaction.partitions)
        return found

    async def _described_there(self, node: int, ids: list[str]) -> dict[int, set[Part]]:
        answer: m.DescribeTransactionsResponse = await self._neighbours.ask(
            "transactions under way",
            node,
            ApiKey.DESCRIBE_TRANSACTIONS,
            DESCRIBE_TRANSACTIONS_VERSION,
            m.DescribeTransactionsRequest(transactional_ids=ids),
            UNDER_WAY_MS,
        )
        found: dict[int, set[Part]] = {}
        for one in answer.transaction_states:
            _check(ErrorCode(one.error_code))
            parts = found.setdefault(one.producer_id, set())
            parts.update((topic.topic, partition) for topic in one.topics for partition in topic.partitions)
        return found


def _check(error: ErrorCode) -> None:
    """LinkError: what a coordinator knows cannot be told now."""
    if error is not ErrorCode.NONE:
        raise LinkError(f"a transaction coordinator answered {error.name}")


class _Question(NamedTuple):
    transactional_id: str
    producer_id: int
    producer_epoch: int
    partitions: tuple[Part, ...]
    implicit: bool
    answer: asyncio.Future[dict[Part, ErrorCode]]

    def refuse(self, error: ErrorCode) -> None:
        if not self.answer.done():
            self.answer.set_result(dict.fromkeys(self.partitions, error))


class CoordinatorCalls:
    """A `verification.TransactionVerifier`: finds the coordinator, and asks it."""

    def __init__(self, neighbours: Neighbours, coordinators: TransactionCoordinators, tasks: Tasks) -> None:
        self._neighbours = neighbours
        self._coordinators = coordinators
        self._tasks = tasks
        self._queues: dict[int, list[_Question]] = {}
        """Node -> what it will be asked; a node that is here has a task that asks."""

    async def verify(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[Part],
        *,
        implicit: bool,
    ) -> dict[Part, ErrorCode]:
        """See `TransactionVerifier`."""
        topic = self._coordinators.topic
        node = topic.leader(topic.partition_for(transactional_id))
        if node is None:
            return dict.fromkeys(partitions, ErrorCode.COORDINATOR_NOT_AVAILABLE)
        if node == self._neighbours.node_id:
            return await self._ask_here(transactional_id, producer_id, producer_epoch, partitions, implicit)
        answer: asyncio.Future[dict[Part, ErrorCode]] = asyncio.get_running_loop().create_future()
        question = _Question(transactional_id, producer_id, producer_epoch, tuple(partitions), implicit, answer)
        if node not in self._queues:
            self._queues[node] = []
            self._tasks.spawn(self._serve(node), name=f"ask {node} about transactions")
        self._queues[node].append(question)
        return await answer

    async def _ask_here(
        self, transactional_id: str, producer_id: int, epoch: int, partitions: Sequence[Part], implicit: bool
    ) -> dict[Part, ErrorCode]:
        asked = frozenset(partitions)
        if implicit:
            adding = AddPartitions(0, transactional_id, producer_id, epoch, asked, TV2)
            answer = await self._coordinators.add_patiently(adding)
        else:
            verifying = VerifyPartitions(0, transactional_id, producer_id, epoch, asked)
            answer = await self._coordinators.verify(verifying)
        return {part: error for part in partitions if (error := answer.of(part)) is not ErrorCode.NONE}

    async def _serve(self, node: int) -> None:
        """Ask one broker until there is nothing more for it."""
        while self._queues[node]:
            batch: dict[str, _Question] = {}
            later: list[_Question] = []
            room = PARTITIONS_MAX
            for question in self._queues[node]:
                # An answer is found by its transactional id.
                if question.transactional_id not in batch and (len(question.partitions) <= room or not batch):
                    batch[question.transactional_id] = question
                    room -= len(question.partitions)
                else:
                    later.append(question)
            self._queues[node] = later
            try:
                answer: m.AddPartitionsToTxnResponse = await self._neighbours.ask(
                    "transactions",
                    node,
                    ApiKey.ADD_PARTITIONS_TO_TXN,
                    ADD_PARTITIONS_VERSION,
                    m.AddPartitionsToTxnRequest(transactions=[_asked(question) for question in batch.values()]),
                    ADD_PARTITIONS_MS,
                )
            except LinkError:
                for question in batch.values():
                    question.refuse(ErrorCode.NETWORK_EXCEPTION)
                continue
            _give(batch, answer)
        del self._queues[node]


def _asked(question: _Question) -> m.AddPartitionsToTxnRequest.AddPartitionsToTxnTransaction:
    return m.AddPartitionsToTxnRequest.AddPartitionsToTxnTransaction(
        transactional_id=question.transactional_id,
        producer_id=question.producer_id,
        producer_epoch=question.producer_epoch,
        verify_only=not question.implicit,
        topics=[
            m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name=topic, partitions=partitions)
            for topic, partitions in _by_topic(question.partitions).items()
        ],
    )


def _give(batch: dict[str, _Question], answer: m.AddPartitionsToTxnResponse) -> None:
    """Hand out the results; who is not among them has the error of the whole answer, or none that can be told."""
    error = ErrorCode(answer.error_code)
    for result in answer.results_by_transaction:
        question = batch.pop(result.transactional_id, None)
        if question is not None and not question.answer.done():
            question.answer.set_result(
                {
                    (topic.name, one.partition_index): ErrorCode(one.partition_error_code)
                    for topic in result.topic_results
                    for one in topic.results_by_partition
                    if one.partition_error_code != ErrorCode.NONE
                }
            )
    for question in batch.values():
        question.refuse(error if error is not ErrorCode.NONE else ErrorCode.NETWORK_EXCEPTION)


def _by_topic(parts: Sequence[Part]) -> dict[str, list[int]]:
    topics: dict[str, list[int]] = {}
    for topic, partition in parts:
        topics.setdefault(topic, []).append(partition)
    return topics
