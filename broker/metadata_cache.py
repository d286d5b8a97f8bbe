"""What Metadata says of each topic, as bytes, kept until a fact changes it.

Clients of a large cluster ask for the same topics over and over; an answer is a join of what is here. Nothing in a
topic's bytes depends on who asks, only on the version and on whether operations were asked for.
"""

from collections.abc import Callable, Sequence

from controller import facts as f
from controller.state import ClusterState
from controller.topics import Topic
from protocol.errors import ErrorCode
from protocol.fast.metadata import MetadataPartition, encode_metadata_topic

UNCHANGING = (
    f.ControllerElected,
    f.ControllerResigned,
    f.LeaseExtended,
    f.SealCommitted,
    f.LogStartAdvanced,
    f.ObjectsDeleted,
    f.ProducerIdsAllocated,
    f.ConfigsChanged,
    f.MovesRequested,
    f.MovesCancelled,
    f.NodeDrained,
    f.LeadersPreferred,
    f.BrokerLeaving,
)
"""Facts that say nothing of topics, partitions and their leaders."""


class MetadataCache:
    """`on_facts` is subscribed to the controller client's facts; `state` gives what is applied."""

    def __init__(self, state: Callable[[], ClusterState]) -> None:
        self._state = state
        self._topics: dict[tuple[int, int], dict[str, bytes]] = {}

    def on_facts(self, facts: Sequence[f.Fact]) -> None:
        """Forget everything when anything may have changed: it is rebuilt topic by topic as it is asked for."""
        if not all(isinstance(fact, UNCHANGING) for fact in facts):
            self._topics.clear()

    def topic(self, version: int, topic: Topic, operations: int) -> bytes:
        """One topic of an answer of `version`; `operations` is what to say of authorised operations."""
        kept = self._topics.setdefault((version, operations), {})
        encoded = kept.get(topic.name)
        if encoded is None:
            encoded = kept[topic.name] = encode_metadata_topic(
                version,
                topic.name,
                topic.topic_id,
                [partition_of(self._state(), log_id, index) for index, log_id in enumerate(topic.log_ids)],
                is_internal=topic.internal,
                authorized_operations=operations,
            )
        return encoded


def partition_of(state: ClusterState, log_id: int, index: int) -> MetadataPartition:
    """One partition: replicas = ISR = [leader]; LEADER_NOT_AVAILABLE while nobody may lead it."""
    log = state.logs[log_id]
    if log.status != "open" or log.leader_node < 0:
        return MetadataPartition(ErrorCode.LEADER_NOT_AVAILABLE, index, -1, log.epoch, (), ())
    nodes = (log.leader_node,)
    return MetadataPartition(ErrorCode.NONE, index, log.leader_node, log.epoch, nodes, nodes)
