"""Steps about topics: create, grow, delete, describe."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.machine import NAMES, Machine

SHORT = st.sampled_from(NAMES)
BAD_NAMES = ("", ".", "..", "a b", "a" * 250, "é", "under_score", "under.score")
CONFIGS = (
    ("cleanup.policy", "delete"),
    ("cleanup.policy", "compact"),
    ("cleanup.policy", "burn"),
    ("retention.ms", "600000"),
    ("retention.ms", "soon"),
    ("retention.ms", "-2"),
    ("max.message.bytes", "2000"),
    ("max.message.bytes", None),
    ("message.timestamp.type", "CreateTime"),
    ("message.timestamp.type", "LogAppendTime"),
    ("no.such.config", "1"),
)


def _assigned(*replicas: list[int]) -> list[Any]:
    assignment = m.CreateTopicsRequest.CreatableReplicaAssignment
    return [assignment(partition_index=index, broker_ids=ids) for index, ids in enumerate(replicas)]


ASSIGNMENTS = (_assigned([1]), _assigned([1], [1]), _assigned([7]), _assigned([]))


class TopicSteps(Machine):
    """CreateTopics, CreatePartitions, DeleteTopics, Metadata, DescribeTopicPartitions."""

    @rule(data=st.data(), short=SHORT, partitions=st.sampled_from([1, 2, 3, 1, 2, -1, 0, -2]))
    def create(self, data: st.DataObject, short: str, partitions: int) -> None:
        """A topic, often a possible one."""
        name = self.name(short)
        factor = data.draw(st.sampled_from([1, 1, 1, -1, 0]), label="replication factor")
        configs = data.draw(st.lists(st.sampled_from(CONFIGS), max_size=2, unique_by=lambda one: one[0]))
        topic = self._topic(name, partitions, factor, configs)
        if data.draw(st.integers(0, 5)) == 0:
            topic.num_partitions = topic.replication_factor = -1
            topic.assignments = data.draw(
                st.sampled_from([_assigned([1]), _assigned([1], [1]), _assigned([7]), _assigned([])])
            )
        self._create(data, [topic])

    @rule(data=st.data(), short=SHORT)
    def create_badly(self, data: st.DataObject, short: str) -> None:
        """Names that are not allowed, one topic twice."""
        bad = data.draw(st.sampled_from(BAD_NAMES))
        known = self.name(short)
        names = data.draw(st.sampled_from([[bad], [known, known], [bad, known], []]))
        topics = [self._topic(name, 1, 1, []) for name in names if name not in ("under_score", "under.score")]
        self._create(data, topics)

    def _topic(self, name: str, partitions: int, factor: int, configs: list[Any]) -> Any:
        config = m.CreateTopicsRequest.CreatableTopicConfig
        return m.CreateTopicsRequest.CreatableTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=factor,
            assignments=[],
            configs=[config(name=key, value=value) for key, value in configs],
        )

    def _create(self, data: st.DataObject, topics: list[Any]) -> None:
        only = data.draw(st.sampled_from([False, False, False, True]), label="validate only")
        version = self.version(data, ApiKey.CREATE_TOPICS)
        answer = self.ask(
            ApiKey.CREATE_TOPICS,
            version,
            m.CreateTopicsRequest(topics=topics, timeout_ms=10_000, validate_only=only),
        )
        for made in answer.topics if answer is not None and not only else []:
            if made.error_code == 0:
                wanted = next(topic for topic in topics if topic.name == made.name)
                count = len(wanted.assignments) or max(wanted.num_partitions, 1)
                self.wait_for_topic(made.name, count)

    @rule(data=st.data(), short=SHORT, more=st.integers(-1, 2))
    def grow(self, data: st.DataObject, short: str, more: int) -> None:
        """More partitions, sometimes fewer."""
        name = self.name(short)
        count = self.partitions.get(name, 1) + more
        wanted = m.CreatePartitionsRequest.CreatePartitionsTopic(name=name, count=count, assignments=None)
        topics = data.draw(st.sampled_from([[wanted], [wanted], [wanted, wanted]]))
        only = data.draw(st.booleans(), label="validate only")
        answer = self.ask(
            ApiKey.CREATE_PARTITIONS,
            self.version(data, ApiKey.CREATE_PARTITIONS),
            m.CreatePartitionsRequest(topics=topics, timeout_ms=10_000, validate_only=only),
        )
        if answer is not None and not only and any(one.error_code == 0 for one in answer.results):
            self.wait_for_topic(name, count)

    @rule(data=st.data(), shorts=st.lists(SHORT, min_size=1, max_size=3))
    def delete(self, data: st.DataObject, shorts: list[str]) -> None:
        """Topics by name or id, there or not, some twice."""
        names = [self.name(short) for short in shorts]
        version = self.version(data, ApiKey.DELETE_TOPICS)
        if version >= 6:
            by_id = data.draw(st.booleans())
            state = m.DeleteTopicsRequest.DeleteTopicState
            unknown = bytes(15) + b"\x05"
            states = [
                state(name=None, topic_id=self.topic_ids.get(name, unknown)) if by_id else state(name=name)
                for name in names
            ]
            odd = data.draw(st.sampled_from(["no", "no", "neither", "both", "mixed"]), label="odd")
            if odd == "neither":
                states.append(state(name=None))
            elif odd == "both":
                states.append(state(name=names[0], topic_id=unknown))
            elif odd == "mixed":
                states.append(state(name=None, topic_id=self.topic_ids.get(names[0], unknown)))
            request = m.DeleteTopicsRequest(topics=states, timeout_ms=10_000)
        else:
            request = m.DeleteTopicsRequest(topic_names=names, timeout_ms=10_000)
        answer = self.ask(ApiKey.DELETE_TOPICS, version, request)
        for gone in answer.responses if answer is not None else []:
            if gone.error_code == 0 and gone.name:
                self.wait_for_no_topic(gone.name)

    @rule(data=st.data(), shorts=st.lists(SHORT, max_size=3))
    def metadata(self, data: st.DataObject, shorts: list[str]) -> None:
        """Some topics, by name or by id."""
        version = self.version(data, ApiKey.METADATA)
        topic = m.MetadataRequest.MetadataRequestTopic
        topics = [topic(name=self.name(short)) for short in shorts]
        if version >= 12 and data.draw(st.booleans()):
            topics = [
                topic(name=None, topic_id=self.topic_ids.get(self.name(short), bytes(15) + b"\x07")) for short in shorts
            ]
        if version == 0 and not topics:
            return  # all topics: others are about to be deleted
        self.ask(
            ApiKey.METADATA,
            version,
            m.MetadataRequest(
                topics=topics,
                allow_auto_topic_creation=version < 4,
                include_cluster_authorized_operations=data.draw(st.booleans()) and 8 <= version <= 10,
                include_topic_authorized_operations=data.draw(st.booleans()) and version >= 8,
            ),
        )

    @rule(data=st.data(), shorts=st.lists(SHORT, min_size=1, max_size=3), limit=st.sampled_from([1, 2, 2000, 0, -1]))
    def describe_partitions(self, data: st.DataObject, shorts: list[str], limit: int) -> None:
        """Pages of partitions."""
        request = m.DescribeTopicPartitionsRequest(
            topics=[m.DescribeTopicPartitionsRequest.TopicRequest(name=self.name(short)) for short in shorts],
            response_partition_limit=limit,
        )
        if data.draw(st.booleans()):
            cursor = m.DescribeTopicPartitionsRequest.Cursor
            index = data.draw(st.sampled_from([0, 1, 5, -1]))
            request.cursor = cursor(topic_name=self.name(data.draw(SHORT)), partition_index=index)
        self.ask(ApiKey.DESCRIBE_TOPIC_PARTITIONS, self.version(data, ApiKey.DESCRIBE_TOPIC_PARTITIONS), request)
