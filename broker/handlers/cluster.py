"""DescribeCluster v0 to v2 and DescribeLogDirs v1 to v5.

DescribeCluster: v1 asks for brokers (1) or controllers (2); controllers do not listen for clients, so the latter is
MISMATCHED_ENDPOINT_TYPE, as from a Kafka broker. v2: fenced brokers too, which are those whose session ended.
DescribeLogDirs: the bucket is the one log directory; a partition's size is what is committed plus what is validated.
"""

from broker.handlers.metadata import brokers_of
from broker.operations import CLUSTER_OPERATIONS, NOT_ASKED
from broker.services import RequestContext
from protocol import messages as m
from protocol.errors import ErrorCode

BROKERS, CONTROLLERS = 1, 2


def describe_cluster(request: m.DescribeClusterRequest, context: RequestContext) -> m.DescribeClusterResponse:
    """Cluster id, controller, brokers of the listener asked."""
    state = context.services.controller.state
    if request.endpoint_type != BROKERS:
        known = request.endpoint_type == CONTROLLERS
        return m.DescribeClusterResponse(
            error_code=ErrorCode.MISMATCHED_ENDPOINT_TYPE if known else ErrorCode.UNSUPPORTED_ENDPOINT_TYPE,
            error_message="The request was sent to an endpoint of type BROKER."
            if known
            else f"Unsupported endpoint type {request.endpoint_type}",
            endpoint_type=request.endpoint_type,
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
        wanted = {topic.topic: set(topic.partitions) for topic in request.topics}
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
