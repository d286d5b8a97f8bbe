"""What all steps share: the brokers, the names of this sequence, and waiting until Kafka did what it said."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.sides import Pair

SETTLE_S = 10.0
NAMES = ("red", "green", "blue")
_sequences = itertools.count(1)

LATEST = -1
PROBE = "AAAAAAAAAAAAAAAAAAAAAA"
UNKNOWN_ID = bytes(15) + b"\x09"


class Machine(RuleBasedStateMachine):
    """A sequence of requests. Topics and groups have names that no other sequence uses."""

    pair: Pair

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair
        self.sequence = next(_sequences)
        self.partitions: dict[str, int] = {}
        self.topic_ids: dict[str, bytes] = {}

    def name(self, short: str) -> str:
        """The whole name of a topic or a group."""
        return f"s{self.sequence}-{short}"

    def version(self, data: st.DataObject, api: ApiKey, first: int = 0) -> int:
        """Any version that both serve, the newest ones most often."""
        versions = [one for one in self.pair.versions[api] if one >= first]
        return data.draw(st.one_of(st.just(versions[-1]), st.sampled_from(versions)), label="version")

    def wait(self, what: str, done: Callable[[], bool], seconds: float = SETTLE_S) -> None:
        """Until both brokers have come so far: Kafka answers before its own caches know."""
        deadline = time.perf_counter() + seconds
        while not done():
            assert time.perf_counter() < deadline, what
            time.sleep(0.005)

    def follow(self, alike: Callable[[], bool]) -> None:
        """Until both show the same, or never will: then the next answers tell, field by field."""
        try:
            self.wait("the same", alike, 1.0)
        except AssertionError:
            pass

    def wait_for_topic(self, name: str, partitions: int) -> None:
        """Until both lead as many partitions."""
        metadata = m.MetadataRequest(
            topics=[m.MetadataRequest.MetadataRequestTopic(name=name)], allow_auto_topic_creation=False
        )
        offsets = m.ListOffsetsRequest(
            topics=[
                m.ListOffsetsRequest.ListOffsetsTopic(
                    name=name,
                    partitions=[
                        m.ListOffsetsRequest.ListOffsetsPartition(partition_index=index, timestamp=LATEST)
                        for index in range(partitions)
                    ],
                )
            ]
        )

        def known() -> bool:
            answers = self.pair.each(ApiKey.METADATA, 12, metadata)
            if any(len(one.topics[0].partitions) != partitions for one in answers):
                return False
            answers = self.pair.each(ApiKey.LIST_OFFSETS, 5, offsets)
            return not any(part.error_code for one in answers for topic in one.topics for part in topic.partitions)

        self.wait(f"{name} with {partitions} partitions", known)
        self.partitions[name] = partitions
        kafka, ours = self.pair.each(ApiKey.METADATA, 12, metadata)
        assert self.pair.values.alike("topic_id", kafka.topics[0].topic_id, ours.topics[0].topic_id)
        self.topic_ids[name] = kafka.topics[0].topic_id

    def wait_for_group_topic(self, name: str, partitions: int) -> None:
        """Until the coordinators of groups know it, which Kafka's does later than its broker: a group that is of no
        further interest is assigned as many partitions."""
        self.wait_for_topic(name, partitions)
        request = m.ConsumerGroupHeartbeatRequest(
            group_id=self.name("probe"),
            member_id=PROBE,
            member_epoch=0,
            rebalance_timeout_ms=30_000,
            subscribed_topic_names=[name],
            topic_partitions=[],
        )

        def known() -> bool:
            answers = self.pair.each(ApiKey.CONSUMER_GROUP_HEARTBEAT, 1, request)
            return all(
                one.error_code == 0
                and [len(topic.partitions) for topic in one.assignment.topic_partitions] == [partitions]
                for one in answers
            )

        self.wait(f"{name} assigned", known)

    def wait_for_no_topic(self, name: str) -> None:
        """Until neither knows it."""
        metadata = m.MetadataRequest(
            topics=[m.MetadataRequest.MetadataRequestTopic(name=name)], allow_auto_topic_creation=False
        )
        kept = m.DescribeLogDirsRequest(
            topics=[m.DescribeLogDirsRequest.DescribableLogDirTopic(topic=name, partitions=[0])]
        )

        def gone() -> bool:
            if not all(one.topics[0].error_code for one in self.pair.each(ApiKey.METADATA, 12, metadata)):
                return False
            return not any(one.results[0].topics for one in self.pair.each(ApiKey.DESCRIBE_LOG_DIRS, 4, kept))

        self.wait(f"{name} gone", gone)
        self.partitions.pop(name, None)
        self.topic_ids.pop(name, None)

    def ask(self, api: ApiKey, version: int, request: Any, connection: str = "main") -> Any:
        """One request to both."""
        return self.pair.ask(api, version, request, connection)

    def ask_for_groups(self, version: int, request: Any) -> None:
        """ListGroups: of this sequence, since others may leave some that are about to expire."""

        def own(answer: Any) -> Any:
            answer.groups = [one for one in answer.groups if one.group_id.startswith(self.name(""))]
            return answer

        self.pair.ask(ApiKey.LIST_GROUPS, version, request, part=own)

    def forget_group(self, group: str, *members: str) -> None:
        """Nobody is in it any more, nor is it there."""
        identity = m.LeaveGroupRequest.MemberIdentity
        gone = [identity(member_id=member) for member in members if member]
        self.pair.each(ApiKey.LEAVE_GROUP, 5, m.LeaveGroupRequest(group_id=group, members=gone))
        self.pair.each(ApiKey.DELETE_GROUPS, 2, m.DeleteGroupsRequest(groups_names=[group]))

    def teardown(self) -> None:
        """Leave nothing for the next sequence."""
        if self.partitions:
            names = [m.DeleteTopicsRequest.DeleteTopicState(name=name) for name in self.partitions]
            self.ask(ApiKey.DELETE_TOPICS, 6, m.DeleteTopicsRequest(topics=names, timeout_ms=10_000))
            for name in list(self.partitions):
                self.wait_for_no_topic(name)
