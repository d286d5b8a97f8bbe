"""Metadata v0 to v13 and DescribeTopicPartitions v0: brokers, topics, partitions and their leaders.

Every partition shows replicas = ISR = [its leader]: copies are the WAL kind's and the bucket's, not other brokers'. A
partition whose log is recovering has no leader (LEADER_NOT_AVAILABLE). A topic that is created by the request (Metadata
only) is answered as soon as it exists, instead of with an error first. v10: topics by id. v13: an error for the whole
answer, which is never used here. Answers show what this broker has applied; brokers are those of the listener asked.
"""

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from broker.metadata_cache import partition_of
from broker.operations import CLUSTER_OPERATIONS, NOT_ASKED, TOPIC_OPERATIONS
from broker.services import RequestContext
from controller.commands import CreateTopics, NewTopic
from controller.state import ClusterState
from controller.topics import Topic, topic_name_problem
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError
from protocol.fast.metadata import MetadataBroker, encode_metadata_response, encode_metadata_topic

AskedTopic = m.MetadataRequest.MetadataRequestTopic
NO_ID = bytes(16)
NULL_NAME_FROM = 12
PARTITION_LIMIT_MAX = 2000
"""Kafka's `max.request.partition.size.limit`."""

CREATION_WAIT_MS = 5_000
"""How long an answer waits for the creation of topics: nothing else of its connection is answered meanwhile."""


class EncodedMetadata(NamedTuple):
    """An answer that is bytes already, of the version that was asked for."""

    body: bytes

    def encode(self, version: int) -> bytes:
        """The body; made for the request's version."""
        return self.body


def metadata(request: m.MetadataRequest, context: RequestContext) -> EncodedMetadata | Awaitable[EncodedMetadata]:
    """Answer at once, or after the missing topics were created."""
    state = context.services.controller.state
    if request.topics:
        if context.api_version < NULL_NAME_FROM and any(
            one.name is None or one.topic_id != NO_ID for one in request.topics
        ):
            return _refused(request, context.api_version)
        request.topics = _distinct(request.topics)
    may_create = request.allow_auto_topic_creation or context.api_version < 4
    if may_create and context.services.settings.auto_create_topics_enable:
        missing = _missing_topics(request, context, state)
        if missing:
            return _create_and_answer(request, context, missing)
    return _answer(request, context, {})


def _distinct(topics: Sequence[AskedTopic]) -> list[AskedTopic]:
    """Each topic once, and only those asked for by id if there are any, as in Kafka."""
    by_id = {topic.topic_id: topic for topic in topics if topic.topic_id != NO_ID}
    return list(by_id.values()) if by_id else list({topic.name: topic for topic in topics}.values())


def _refused(request: m.MetadataRequest, version: int) -> EncodedMetadata:
    """v10 and v11 have ids and null names in their requests and no meaning for them."""
    code = ErrorCode.INVALID_REQUEST
    topics = [
        encode_metadata_topic(version, topic.name or "", topic.topic_id, (), error_code=code)
        for topic in request.topics or ()
    ]
    return EncodedMetadata(encode_metadata_response(version, 0, (), None, -1, topics))


def _wants_all(request: m.MetadataRequest, version: int) -> bool:
    return request.topics is None or (version == 0 and not request.topics)


def _missing_topics(request: m.MetadataRequest, context: RequestContext, state: ClusterState) -> list[str]:
    if _wants_all(request, context.api_version):
        return []
    names = {topic.name for topic in request.topics or () if topic.name is not None and topic.topic_id == NO_ID}
    return [name for name in sorted(names) if name not in state.topics and topic_name_problem(name) is None]


async def _create_and_answer(
    request: m.MetadataRequest, context: RequestContext, missing: Sequence[str]
) -> EncodedMetadata:
    return _answer(request, context, await auto_create(context, missing))


async def auto_create(context: RequestContext, names: Sequence[str]) -> dict[str, ErrorCode]:
    """Create topics with the broker's defaults; what refused names are to be answered with."""
    services = context.services
    settings, controller = services.settings, services.controller
    errors: dict[str, ErrorCode] = {}
    own = {topic.name: topic for topic in (services.groups.topic, services.coordinators.topic)}
    ordinary = [name for name in names if name not in own]
    for name in names:
        if name in own and await own[name].ensure() is not ErrorCode.NONE:
            errors[name] = ErrorCode.LEADER_NOT_AVAILABLE
    try:
        if ordinary:
            topics = tuple(
                NewTopic(name, settings.num_partitions, settings.default_replication_factor) for name in ordinary
            )
            command = CreateTopics(services.token(16), topics)
            for result in (await controller.ask(command, CREATION_WAIT_MS)).results:
                code = ErrorCode(result.error_code)
                if code not in (ErrorCode.NONE, ErrorCode.TOPIC_ALREADY_EXISTS) and result.name is not None:
                    errors[result.name] = code
    except KafkaError:
        errors.update(dict.fromkeys(ordinary, ErrorCode.LEADER_NOT_AVAILABLE))
    return errors


def _answer(request: m.MetadataRequest, context: RequestContext, errors: dict[str, ErrorCode]) -> EncodedMetadata:
    services, version = context.services, context.api_version
    state = services.controller.state
    operations = TOPIC_OPERATIONS if request.include_topic_authorized_operations else NOT_ASKED
    if _wants_all(request, version):
        topics = [services.metadata_cache.topic(version, topic, operations) for topic in state.topics.values()]
    else:
        topics = [_asked_topic(context, asked, errors, operations) for asked in request.topics or ()]
    body = encode_metadata_response(
        version,
        0,
        [MetadataBroker(*broker) for broker in brokers_of(state, context.listener)],
        state.cluster_id,
        state.controller_node,
        topics,
        cluster_authorized_operations=CLUSTER_OPERATIONS
        if request.include_cluster_authorized_operations
        else NOT_ASKED,
    )
    return EncodedMetadata(body)


def brokers_of(state: ClusterState, listener: str) -> list[tuple[int, str, int, str | None]]:
    """(node id, host, port, rack) of every live broker that has the listener, in node order."""
    return [
        (broker.node_id, address.host, address.port, broker.rack)
        for _, broker in sorted(state.brokers.items())
        if broker.alive
        for address in broker.listeners
        if address.name == listener
    ]


def _asked_topic(
    context: RequestContext,
    asked: AskedTopic,
    errors: dict[str, ErrorCode],
    operations: int,
) -> bytes:
    services, version = context.services, context.api_version
    # An id counts before a name, as in Kafka: the Java admin client sends the id with an empty name.
    name = asked.name if asked.topic_id == NO_ID else None
    topic, code = find_topic(services.controller.state, name, asked.topic_id)
    if topic is not None:
        return services.metadata_cache.topic(version, topic, operations)
    if name is not None:
        code = errors.get(name, code)
    # Kafka says what may be done with a topic whether it is there or not, if it is asked for by name.
    operations = NOT_ASKED if name is None else operations
    return encode_metadata_topic(version, name, asked.topic_id, (), error_code=code, authorized_operations=operations)


def find_topic(state: ClusterState, name: str | None, topic_id: bytes) -> tuple[Topic | None, ErrorCode]:
    """The topic by name, or by id when the name is None; without one the error Kafka gives."""
    if name is None:
        return state.topic_by_id.get(topic_id), ErrorCode.UNKNOWN_TOPIC_ID
    topic = state.topics.get(name)
    if topic is None and topic_name_problem(name) is not None:
        return None, ErrorCode.INVALID_TOPIC_EXCEPTION
    return topic, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


def describe_topic_partitions(
    request: m.DescribeTopicPartitionsRequest, context: RequestContext
) -> m.DescribeTopicPartitionsResponse:
    """Topics in name order, cut off after the limit of partitions; the cursor tells where to go on.

    A cursor at a topic that is not asked for, or at no partition, is INVALID_REQUEST for each topic.
    """
    state = context.services.controller.state
    names = sorted({topic.name for topic in request.topics}) if request.topics else sorted(state.topics)
    from_name, from_partition = "", 0
    if request.cursor is not None:
        from_name, from_partition = request.cursor.topic_name, request.cursor.partition_index
        if from_partition < 0 or (request.topics and from_name not in names):
            return _refused_description(request)
        names = [name for name in names if name >= from_name]
    left = max(1, min(request.response_partition_limit, PARTITION_LIMIT_MAX))
    answer = m.DescribeTopicPartitionsResponse()
    for name in names:
        first = from_partition if name == from_name else 0
        if left == 0:
            answer.next_cursor = m.DescribeTopicPartitionsResponse.Cursor(topic_name=name, partition_index=first)
            break
        described = _described_topic(state, name, first, left)
        answer.topics.append(described)
        left -= len(described.partitions)
        topic = state.topics.get(name)
        if topic is not None and first + len(described.partitions) < len(topic.log_ids):
            answer.next_cursor = m.DescribeTopicPartitionsResponse.Cursor(
                topic_name=name, partition_index=first + len(described.partitions)
            )
            break
    return answer


def _refused_description(request: m.DescribeTopicPartitionsRequest) -> m.DescribeTopicPartitionsResponse:
    topic = m.DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponseTopic
    return m.DescribeTopicPartitionsResponse(
        topics=[topic(error_code=ErrorCode.INVALID_REQUEST, name=one.name) for one in request.topics]
    )


def _described_topic(
    state: ClusterState, name: str, first: int, most: int
) -> m.DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponseTopic:
    topic, code = find_topic(state, name, NO_ID)
    if topic is None:
        return m.DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponseTopic(
            error_code=code, name=name, topic_authorized_operations=TOPIC_OPERATIONS
        )
    described = m.DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponseTopic(
        name=name, topic_id=topic.topic_id, is_internal=topic.internal, topic_authorized_operations=TOPIC_OPERATIONS
    )
    for index in range(first, min(first + most, len(topic.log_ids))):
        partition = partition_of(state, topic.log_ids[index], index)
        described.partitions.append(
            m.DescribeTopicPartitionsResponse.DescribeTopicPartitionsResponsePartition(
                error_code=partition.error_code,
                partition_index=index,
                leader_id=partition.leader_id,
                leader_epoch=partition.leader_epoch,
                replica_nodes=list(partition.replicas),
                isr_nodes=list(partition.isr),
                eligible_leader_replicas=[],
                last_known_elr=[],
            )
        )
    return described
