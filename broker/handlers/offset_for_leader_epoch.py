"""OffsetForLeaderEpoch: v2 to v4, for consumers that check for truncation (KIP-320).

The end of the asked epoch is the start of the next one, or the high watermark. Authoritative: NOT_LEADER_OR_FOLLOWER
without the right to say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.handlers.common import check_leader_epoch, leader_log
from protocol import messages as m
from protocol.errors import KafkaError

if TYPE_CHECKING:
    from broker.services import RequestContext, Services


def offset_for_leader_epoch(
    request: m.OffsetForLeaderEpochRequest, context: RequestContext
) -> m.OffsetForLeaderEpochResponse:
    """One result per partition asked for."""
    response = m.OffsetForLeaderEpochResponse
    return response(
        topics=[
            response.OffsetForLeaderTopicResult(
                topic=topic.topic,
                partitions=[_end_of(context.services, topic.topic, asked) for asked in topic.partitions],
            )
            for topic in request.topics
        ]
    )


def _end_of(
    services: Services, topic: str, asked: m.OffsetForLeaderEpochRequest.OffsetForLeaderPartition
) -> m.OffsetForLeaderEpochResponse.EpochEndOffset:
    result = m.OffsetForLeaderEpochResponse.EpochEndOffset(partition=asked.partition)
    try:
        log = leader_log(services, topic, asked.partition, authoritative=True)
        check_leader_epoch(log, asked.current_leader_epoch)
        result.leader_epoch, result.end_offset = log.end_of_epoch(asked.leader_epoch)
    except KafkaError as error:
        services.counters.error(error.code)
        result.error_code = error.code
    return result
