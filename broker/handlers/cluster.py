"""DescribeCluster v0 to v2, DescribeLogDirs v1 to v5, AlterReplicaLogDirs v1 to v2, DescribeQuorum v0 to v2,
UnregisterBroker v0.

DescribeCluster: v1 asks for brokers (1) or controllers (2); controllers do not listen for clients, so the latter is
MISMATCHED_ENDPOINT_TYPE, as from a Kafka broker. v2: fenced brokers too, which are those whose session ended.
DescribeLogDirs: the bucket is the one log directory; a partition's size is what is committed plus what is validated.
How large the bucket is nobody knows: total and usable bytes are -1, which is Kafka's "unknown".
AlterReplicaLogDirs: there is no second directory to move to, so all but the present one is LOG_DIR_NOT_FOUND.
DescribeQuorum: there is no quorum. The controller is shown as the one voter and leader, with the metadata log's epoch
and end; the other live brokers, which follow it, as observers.
UnregisterBroker: a node that is gone for good leaves the list. One that is alive, or left a WAL that was not recovered,
is INVALID_REQUEST; Kafka takes a live one out, which then registers again.
"""

from broker.handlers.metadata import brokers_of
from broker.operations import CLUSTER_OPERATIONS, NOT_ASKED
from broker.services import RequestContext
from controller.brokers import Broker
from controller.commands import UnregisterBroker
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

BROKERS, CONTROLLERS = 1, 2
WRONG_ENDPOINT = "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER"
METADATA_TOPIC = "__cluster_metadata"


def describe_cluster(request: m.DescribeClusterRequest, context: RequestContext) -> m.DescribeClusterResponse:
    """Cluster id, controller, brokers of the listener asked."""
    state = context.services.controller.state
    if request.endpoint_type != BROKERS:
        known = request.endpoint_type == CONTROLLERS
        return m.DescribeClusterResponse(
            error_code=ErrorCode.MISMATCHED_ENDPOINT_TYPE if known else ErrorCode.UNSUPPORTED_ENDPOINT_TYPE,
            error_message=WRONG_ENDPOINT if known else f"Unsupported endpoint type {request.endpoint_type}",
        )
    alive = brokers_of(state, context.listener)
    brokers = [
        m.DescribeClusterResponse.DescribeClusterBroker(broker_id=node_id, host=host, port=port, rack=rack)
        for node_id, host, port, rack in alive
    ]
    if request.include_fenced_brokers:
        brokers += [
            m.DescribeClusterResponse.DescribeClusterBroker(
                broker_id=broker.node_id, host=address.host, port=address.port, rack=broker.rack, is_fenced=True
            )
            for broker in state.brokers.values()
            if not broker.alive
            for address in broker.listeners
            if address.name == context.listener
        ]
    return m.DescribeClusterResponse(
        cluster_id=state.cluster_id,
        controller_id=state.controller_node,
        brokers=brokers,
        cluster_authorized_operations=(
            CLUSTER_OPERATIONS if request.include_cluster_authorized_operations else NOT_ASKED
        ),
    )


def describe_log_dirs(request: m.DescribeLogDirsRequest, context: RequestContext) -> m.DescribeLogDirsResponse:
    """Sizes of the partitions that this broker leads."""
    services = context.services
    state = services.controller.state
    wanted: dict[str, set[int] | None]
    if request.topics is None:
        wanted = dict.fromkeys(state.topics)
    else:
        wanted = {}
        for asked in request.topics:
            wanted[asked.topic] = (wanted.get(asked.topic) or set()).union(asked.partitions)
    topics = []
    for name, partitions in wanted.items():
        topic = state.topics.get(name)
        found = [
            m.DescribeLogDirsResponse.DescribeLogDirsPartition(
                partition_index=index,
                partition_size=state.bytes(log_id) + log.tail.payload_between(log.committed_end, log.hw),
            )
            for index, log_id in enumerate(topic.log_ids if topic is not None else ())
            if (partitions is None or index in partitions) and (log := services.logs.by_log_id.get(log_id)) is not None
        ]
        if found:
            topics.append(m.DescribeLogDirsResponse.DescribeLogDirsTopic(name=name, partitions=found))
    directory = m.DescribeLogDirsResponse.DescribeLogDirsResult(log_dir=services.settings.storage_uri, topics=topics)
    return m.DescribeLogDirsResponse(results=[directory])


def alter_replica_log_dirs(
    request: m.AlterReplicaLogDirsRequest, context: RequestContext
) -> m.AlterReplicaLogDirsResponse:
    """Nothing can move to another directory."""
    services = context.services
    response = m.AlterReplicaLogDirsResponse
    results: dict[str, list[m.AlterReplicaLogDirsResponse.AlterReplicaLogDirPartitionResult]] = {}
    for directory in request.dirs:
        known = directory.path == services.settings.storage_uri
        for asked in directory.topics:
            topic = services.controller.state.topics.get(asked.name)
            for index in asked.partitions:
                if not known:
                    code = ErrorCode.LOG_DIR_NOT_FOUND
                elif topic is None or not 0 <= index < len(topic.log_ids):
                    code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                elif topic.log_ids[index] not in services.logs.by_log_id:
                    code = ErrorCode.REPLICA_NOT_AVAILABLE
                else:
                    code = ErrorCode.NONE
                result = response.AlterReplicaLogDirPartitionResult(partition_index=index, error_code=code)
                results.setdefault(asked.name, []).append(result)
    return response(
        results=[
            response.AlterReplicaLogDirTopicResult(topic_name=name, partitions=partitions)
            for name, partitions in results.items()
        ]
    )


def describe_quorum(request: m.DescribeQuorumRequest, context: RequestContext) -> m.DescribeQuorumResponse:
    """The metadata log, if nothing else is asked for, as in Kafka; there is no other."""
    response = m.DescribeQuorumResponse
    state = context.services.controller.state
    now_ms = context.services.clock.now_ms()

    def replica(node_id: int) -> m.DescribeQuorumResponse.ReplicaState:
        return response.ReplicaState(
            replica_id=node_id,
            log_end_offset=state.position,
            last_fetch_timestamp=now_ms,
            last_caught_up_timestamp=now_ms,
        )

    asked = [(topic.topic_name, part.partition_index) for topic in request.topics for part in topic.partitions]
    valid = asked == [(METADATA_TOPIC, 0)] and len(request.topics) == 1

    def described(index: int) -> m.DescribeQuorumResponse.PartitionData:
        if not valid:
            code = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            return response.PartitionData(
                partition_index=index,
                error_code=code,
                error_message="This server does not host this topic-partition.",
            )
        leader = state.controller_node
        return response.PartitionData(
            partition_index=index,
            leader_id=leader,
            leader_epoch=state.controller_epoch,
            high_watermark=state.position,
            current_voters=[replica(leader)],
            observers=[replica(broker.node_id) for broker in state.broker_table.alive() if broker.node_id != leader],
        )

    shown = context.api_version >= 2 and valid
    leader = state.brokers.get(state.controller_node)
    return response(
        topics=[
            response.TopicData(
                topic_name=topic.topic_name,
                partitions=[described(part.partition_index) for part in topic.partitions],
            )
            for topic in request.topics
        ],
        nodes=[_voter(leader)] if shown and leader is not None else [],
    )


def _voter(broker: Broker) -> m.DescribeQuorumResponse.Node:
    response = m.DescribeQuorumResponse
    return response.Node(
        node_id=broker.node_id,
        listeners=[response.Listener(name=one.name, host=one.host, port=one.port) for one in broker.listeners],
    )


async def unregister_broker(request: m.UnregisterBrokerRequest, context: RequestContext) -> m.UnregisterBrokerResponse:
    """A broker that is gone for good."""
    services = context.services
    try:
        await services.controller.ask(UnregisterBroker(services.token(16), request.broker_id))
    except KafkaError as error:
        gone = error.code is ErrorCode.RESOURCE_NOT_FOUND
        code = ErrorCode.BROKER_ID_NOT_REGISTERED if gone else error.code
        return m.UnregisterBrokerResponse(error_code=code, error_message=error.message)
    return m.UnregisterBrokerResponse(error_message=None)
