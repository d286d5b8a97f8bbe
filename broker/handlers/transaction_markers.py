"""WriteTxnMarkers v1 and v2, DescribeProducers v0: what a log's leader does for transaction coordinators and tools.

WriteTxnMarkers answers once every marker is durable and validated, or says per partition why it is not. v2: the
transaction version; with 2 a marker's epoch must be above that of the transaction it ends. Tools send it too, to end
transactions that their coordinator does not know.
DescribeProducers shows what is durable: idempotent producers and open transactions. Authoritative, so refused with
NOT_LEADER_OR_FOLLOWER without the right to say it.
"""

import asyncio

from broker.handlers.common import leader_log
from broker.log import Log
from broker.services import RequestContext
from broker.transactions.markers import Marker, write_markers
from protocol import messages as m
from protocol.errors import KafkaError

TIMEOUT_S = 30.0
PRODUCERS_PER_STEP = 1000

_Marked = m.WriteTxnMarkersResponse
_Described = m.DescribeProducersResponse


async def write_txn_markers(request: m.WriteTxnMarkersRequest, context: RequestContext) -> m.WriteTxnMarkersResponse:
    """A result per marker and partition, in the order of the request."""
    services = context.services
    wanted = [
        (
            Marker(
                one.producer_id,
                one.producer_epoch,
                one.coordinator_epoch,
                one.transaction_result,
                one.transaction_version if context.api_version >= 2 else 0,
            ),
            [(topic.name, partition) for topic in one.topics for partition in topic.partition_indexes],
        )
        for one in request.markers
    ]
    results = await write_markers(services.logs, services.counters, wanted, TIMEOUT_S)
    return _Marked(
        markers=[
            _Marked.WritableTxnMarkerResult(
                producer_id=one.producer_id,
                topics=[
                    _Marked.WritableTxnMarkerTopicResult(
                        name=topic.name,
                        partitions=[
                            _Marked.WritableTxnMarkerPartitionResult(
                                partition_index=partition, error_code=result[topic.name, partition]
                            )
                            for partition in topic.partition_indexes
                        ],
                    )
                    for topic in one.topics
                ],
            )
            for one, result in zip(request.markers, results)
        ]
    )


async def describe_producers(
    request: m.DescribeProducersRequest, context: RequestContext
) -> m.DescribeProducersResponse:
    """One result per partition asked for."""
    return _Described(
        topics=[
            _Described.TopicResponse(
                name=topic.name,
                partitions=[await _describe(topic.name, partition, context) for partition in topic.partition_indexes],
            )
            for topic in request.topics
        ]
    )


async def _describe(
    topic: str, partition: int, context: RequestContext
) -> m.DescribeProducersResponse.PartitionResponse:
    result = _Described.PartitionResponse(partition_index=partition)
    try:
        log = leader_log(context.services, topic, partition, authoritative=True)
        result.active_producers = await _active(log, context)
        leader_log(context.services, topic, partition, authoritative=True)
    except KafkaError as error:
        result.active_producers = []
        result.error_code, result.error_message = error.code, error.message
    return result


async def _active(log: Log, context: RequestContext) -> list[m.DescribeProducersResponse.ProducerState]:
    found = []
    now_ms = context.services.clock.now_ms()
    for number, producer_id in enumerate(log.producers.ids(), 1):
        known = log.producers.describe(producer_id, log.hw, now_ms)
        if known is not None:
            found.append(
                _Described.ProducerState(
                    producer_id=producer_id,
                    producer_epoch=known.epoch,
                    last_sequence=known.last_sequence,
                    last_timestamp=known.last_timestamp,
                    coordinator_epoch=known.coordinator_epoch,
                    current_txn_start_offset=known.open_from,
                )
            )
        if number % PRODUCERS_PER_STEP == 0:
            await asyncio.sleep(0)
    return found
