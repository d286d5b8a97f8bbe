"""TxnOffsetCommit v0 to v5: offsets that are in force when a transaction is committed.

v3: who commits as a member of the group. v4: TRANSACTION_ABORTABLE. v5: the partition that holds the offsets becomes
part of the transaction by itself (KIP-890 part 2). Partitions that do not exist are refused by themselves.
"""

from __future__ import annotations

from broker.groups.model import ZERO_UUID, Commit, CommitAnswer, OffsetToCommit, TxnCommit
from broker.services import RequestContext
from protocol import messages as m
from protocol.errors import ErrorCode

ABORTABLE_FROM = 4
IMPLICIT_FROM = 5

_Response = m.TxnOffsetCommitResponse


async def txn_offset_commit(request: m.TxnOffsetCommitRequest, context: RequestContext) -> m.TxnOffsetCommitResponse:
    """One error per partition asked, in the order asked."""
    services = context.services
    topics = services.controller.state.topics
    offsets = [
        OffsetToCommit(
            topic.name,
            ZERO_UUID,
            one.partition_index,
            one.committed_offset,
            one.committed_leader_epoch,
            one.committed_metadata,
        )
        for topic in request.topics
        for one in topic.partitions
        if topic.name in topics and 0 <= one.partition_index < len(topics[topic.name].log_ids)
    ]
    answer = CommitAnswer(())
    if offsets:
        commit = Commit(
            0,
            request.group_id,
            request.generation_id,
            request.member_id,
            request.group_instance_id,
            -1,
            tuple(offsets),
            ErrorCode.GROUP_ID_NOT_FOUND,
        )
        assert services.transactions is not None
        answer = await services.groups.txn_commit(
            TxnCommit(request.producer_id, request.producer_epoch, commit),
            request.transactional_id,
            services.transactions,
            implicit=context.api_version >= IMPLICIT_FROM,
        )
    errors = {
        (offset.topic, offset.partition): _known(error, context.api_version)
        for offset, error in zip(offsets, answer.errors)
    }
    return _Response(
        topics=[
            _Response.TxnOffsetCommitResponseTopic(
                name=topic.name,
                partitions=[
                    _Response.TxnOffsetCommitResponsePartition(
                        partition_index=one.partition_index,
                        error_code=errors.get((topic.name, one.partition_index), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
                    )
                    for one in topic.partitions
                ],
            )
            for topic in request.topics
        ]
    )


def _known(error: ErrorCode, version: int) -> ErrorCode:
    """What producers of this version do the right thing with: they look for another coordinator, or know that they are
    fenced, or try again (COORDINATOR_LOAD_IN_PROGRESS does not make them look for the group's coordinator)."""
    match error:
        case ErrorCode.NETWORK_EXCEPTION:
            return ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
        case ErrorCode.PRODUCER_FENCED:
            return ErrorCode.INVALID_PRODUCER_EPOCH
        case ErrorCode.TRANSACTION_ABORTABLE if version < ABORTABLE_FROM:
            return ErrorCode.INVALID_TXN_STATE
    return error
