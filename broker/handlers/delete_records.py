"""DeleteRecords v0 to v2: move the start of logs forward.

-1 means the high watermark. An offset above it or below zero is OFFSET_OUT_OF_RANGE; one at or below the present start
changes nothing. An offset in the tail is sealed and committed first, so the answer may wait for the bucket.
`cleanup.policy=compact` alone refuses with POLICY_VIOLATION. The answer's low watermark is the new start.
"""

import asyncio

from broker.config_types import list_value
from broker.handlers.common import patience_ms
from broker.log import Log
from broker.services import RequestContext
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

HIGH_WATERMARK = -1


async def delete_records(request: m.DeleteRecordsRequest, context: RequestContext) -> m.DeleteRecordsResponse:
    """Each partition by itself; those above the committed end wait for one seal together."""
    answers = await asyncio.gather(
        *(
            _delete(topic.name, asked.partition_index, asked.offset, request.timeout_ms, context)
            for topic in request.topics
            for asked in topic.partitions
        )
    )
    found = iter(answers)
    return m.DeleteRecordsResponse(
        topics=[
            m.DeleteRecordsResponse.DeleteRecordsTopicResult(
                name=topic.name, partitions=[next(found) for _ in topic.partitions]
            )
            for topic in request.topics
        ]
    )


async def _delete(
    topic: str, partition: int, offset: int, timeout_ms: int, context: RequestContext
) -> m.DeleteRecordsResponse.DeleteRecordsPartitionResult:
    result = m.DeleteRecordsResponse.DeleteRecordsPartitionResult(partition_index=partition, low_watermark=-1)
    try:
        log = _log(topic, partition, context)
        if offset == HIGH_WATERMARK:
            offset = log.hw
        if not 0 <= offset <= log.hw:
            raise KafkaError(ErrorCode.OFFSET_OUT_OF_RANGE, f"offset {offset} is not between 0 and {log.hw}")
        async with asyncio.timeout(patience_ms(timeout_ms) / 1000):
            result.low_watermark = await context.services.sealing.advance_start(log, offset)
    except KafkaError as error:
        result.error_code = error.code
    except TimeoutError:
        result.error_code = ErrorCode.REQUEST_TIMED_OUT
    return result


def _log(topic: str, partition: int, context: RequestContext) -> Log:
    services = context.services
    log = services.logs.find.get((topic, partition))
    if log is None:
        raise services.logs.refusal(topic, partition)
    if not log.may_answer_authoritatively():
        raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "this broker may not answer for the log now")
    configs = services.controller.state.topics[topic].configs
    if list_value(services.topic_defaults.value(configs, "cleanup.policy")) == ["compact"]:
        raise KafkaError(ErrorCode.POLICY_VIOLATION, f"topic {topic} is compacted")
    return log
