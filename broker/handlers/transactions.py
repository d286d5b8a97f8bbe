"""AddPartitionsToTxn v0 to v5, AddOffsetsToTxn v0 to v4, EndTxn v0 to v5, DescribeTransactions v0, ListTransactions v0
to v2: what producers, other brokers and tools ask a transaction coordinator.

AddPartitionsToTxn v4 and v5 come from brokers: many transactions, each to be verified only or added to (KIP-890); v0 to
v3 from producers of the first generation. A request that names a partition that does not exist adds none. v2 of
AddPartitionsToTxn, AddOffsetsToTxn and EndTxn: PRODUCER_FENCED instead of INVALID_PRODUCER_EPOCH. EndTxn v5 is of the
second generation: the epoch grows with every transaction, and the answer says who the producer is now.
ListTransactions v1: by duration. v2: by a regular expression (RE2, of the whole id).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import re2

from broker.groups.coordinator import OFFSETS_TOPIC
from broker.services import RequestContext
from broker.transactions.model import (
    TV0,
    TV2,
    AddPartitions,
    EndTxn,
    Part,
    ProducerAnswer,
    State,
    TransactionView,
    VerifyPartitions,
)
from protocol import messages as m
from protocol.errors import ErrorCode

BATCHED_FROM = 4
BUMPING_FROM = 5
FENCED_FROM = 2

_Added = m.AddPartitionsToTxnResponse
_Topics = list[m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic]
_QUIET = re2.Options()
_QUIET.log_errors = False
_SHOWN = {state.shown: state for state in State}


def add_partitions_to_txn(
    request: m.AddPartitionsToTxnRequest, context: RequestContext
) -> m.AddPartitionsToTxnResponse | Awaitable[m.AddPartitionsToTxnResponse]:
    """One error per partition."""
    if context.api_version >= BATCHED_FROM:
        return _add_batched(request, context)
    topics = request.v3_and_below_topics
    missing = _missing(topics, context)
    if missing:
        return _Added(results_by_topic_v3_and_below=_results(topics, _not_all_exist(missing)))
    adding = AddPartitions(
        0,
        request.v3_and_below_transactional_id,
        request.v3_and_below_producer_id,
        request.v3_and_below_producer_epoch,
        frozenset(_parts(topics)),
        TV0,
    )

    async def respond() -> m.AddPartitionsToTxnResponse:
        answer = await context.services.coordinators.add_patiently(adding)
        answer = answer._replace(error=_fenced(answer.error, context))
        return _Added(results_by_topic_v3_and_below=_results(topics, answer.of))

    return respond()


async def _add_batched(request: m.AddPartitionsToTxnRequest, context: RequestContext) -> m.AddPartitionsToTxnResponse:
    coordinators = context.services.coordinators
    waiting: list[tuple[m.AddPartitionsToTxnRequest.AddPartitionsToTxnTransaction, Any]] = []
    for one in request.transactions:
        missing = _missing(one.topics, context)
        whose = one.transactional_id, one.producer_id, one.producer_epoch
        parts = frozenset(_parts(one.topics))
        if missing:
            waiting.append((one, _not_all_exist(missing)))
        elif one.verify_only:
            waiting.append((one, coordinators.verify(VerifyPartitions(0, *whose, parts))))
        else:
            waiting.append((one, coordinators.add(AddPartitions(0, *whose, parts, TV2))))
    return _Added(
        results_by_transaction=[
            _Added.AddPartitionsToTxnResult(
                transactional_id=one.transactional_id,
                topic_results=_results(one.topics, answer if callable(answer) else (await answer).of),
            )
            for one, answer in waiting
        ]
    )


def _parts(topics: _Topics) -> Iterable[Part]:
    return ((topic.name, partition) for topic in topics for partition in topic.partitions)


def _missing(topics: _Topics, context: RequestContext) -> set[Part]:
    """Partitions that do not exist, as far as this broker knows."""
    known = context.services.controller.state.topics
    return {
        (topic.name, partition)
        for topic in topics
        for partition in topic.partitions
        if topic.name not in known or not 0 <= partition < len(known[topic.name].log_ids)
    }


def _not_all_exist(missing: set[Part]) -> Callable[[Part], ErrorCode]:
    return lambda part: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if part in missing else ErrorCode.OPERATION_NOT_ATTEMPTED


def _results(
    topics: _Topics, error_of: Callable[[Part], ErrorCode]
) -> list[m.AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult]:
    return [
        _Added.AddPartitionsToTxnTopicResult(
            name=topic.name,
            results_by_partition=[
                _Added.AddPartitionsToTxnPartitionResult(
                    partition_index=partition, partition_error_code=error_of((topic.name, partition))
                )
                for partition in topic.partitions
            ],
        )
        for topic in topics
    ]


def _fenced(error: ErrorCode, context: RequestContext) -> ErrorCode:
    """Older producers do not know PRODUCER_FENCED."""
    old = error is ErrorCode.PRODUCER_FENCED and context.api_version < FENCED_FROM
    return ErrorCode.INVALID_PRODUCER_EPOCH if old else error


async def add_offsets_to_txn(request: m.AddOffsetsToTxnRequest, context: RequestContext) -> m.AddOffsetsToTxnResponse:
    """The partition that holds a group's offsets becomes part of the transaction. It must exist: a marker is only sent
    to what does."""
    error = await context.services.groups.topic.ensure()
    if error is not ErrorCode.NONE:
        return m.AddOffsetsToTxnResponse(error_code=error)
    part = (OFFSETS_TOPIC, context.services.groups.partition_for(request.group_id))
    adding = AddPartitions(
        0, request.transactional_id, request.producer_id, request.producer_epoch, frozenset({part}), TV0
    )
    answer = await context.services.coordinators.add_patiently(adding)
    return m.AddOffsetsToTxnResponse(error_code=_fenced(answer.error, context))


async def end_txn(request: m.EndTxnRequest, context: RequestContext) -> m.EndTxnResponse:
    """Answers when the decision is durable; markers are written after that."""
    version = TV2 if context.api_version >= BUMPING_FROM else TV0
    answer: ProducerAnswer = await context.services.coordinators.end(
        EndTxn(0, request.transactional_id, request.producer_id, request.producer_epoch, request.committed, version)
    )
    return m.EndTxnResponse(
        error_code=_fenced(answer.error, context),
        producer_id=answer.producer_id,
        producer_epoch=answer.producer_epoch,
    )


async def describe_transactions(
    request: m.DescribeTransactionsRequest, context: RequestContext
) -> m.DescribeTransactionsResponse:
    """One state per transactional id, each with its own error."""
    describe = context.services.coordinators.describe
    waiting = [describe(transactional_id) for transactional_id in request.transactional_ids]
    return m.DescribeTransactionsResponse(transaction_states=[_described(await view) for view in waiting])


def _described(view: TransactionView) -> m.DescribeTransactionsResponse.TransactionState:
    described = m.DescribeTransactionsResponse.TransactionState(
        error_code=view.error, transactional_id=view.transactional_id
    )
    one = view.transaction
    if view.error is not ErrorCode.NONE or one is None:
        return described
    described.transaction_state = one.state.shown
    described.transaction_timeout_ms = one.timeout_ms
    described.transaction_start_time_ms = one.started_ms
    described.producer_id = one.producer_id
    described.producer_epoch = one.producer_epoch
    topics: dict[str, list[int]] = {}
    for topic, partition in sorted(one.partitions):
        topics.setdefault(topic, []).append(partition)
    described.topics = [
        m.DescribeTransactionsResponse.TopicData(topic=topic, partitions=partitions)
        for topic, partitions in topics.items()
    ]
    return described


async def list_transactions(request: m.ListTransactionsRequest, context: RequestContext) -> m.ListTransactionsResponse:
    """Those that this broker coordinates; states it does not know are named and match nothing."""
    pattern = None
    if request.transactional_id_pattern:
        try:
            pattern = re2.compile(request.transactional_id_pattern, _QUIET)
        except re2.error:
            return m.ListTransactionsResponse(error_code=ErrorCode.INVALID_REGULAR_EXPRESSION)
    wanted = request.state_filters
    answer = await context.services.coordinators.list_transactions(
        states=frozenset(_SHOWN[name] for name in wanted if name in _SHOWN) if wanted else None,
        producer_ids=frozenset(request.producer_id_filters),
        longer_than_ms=request.duration_filter,
        matches=lambda transactional_id: pattern is None or pattern.fullmatch(transactional_id) is not None,
    )
    return m.ListTransactionsResponse(
        error_code=answer.error,
        unknown_state_filters=[name for name in wanted if name not in _SHOWN],
        transaction_states=[
            m.ListTransactionsResponse.TransactionState(
                transactional_id=one.transactional_id, producer_id=one.producer_id, transaction_state=one.state.shown
            )
            for one in answer.transactions
        ],
    )
