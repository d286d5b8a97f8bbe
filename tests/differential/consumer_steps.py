"""Steps about consumer groups of KIP-848, also while a member of theirs speaks the classic protocol.

One member of each protocol, who read different topics: what each is assigned is then no matter of taste, nor of the
order of ids that brokers choose. Members that share topics are in `sharing_steps`.
"""

from __future__ import annotations

import time
from struct import pack
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.machine import NAMES, PROBE, UNKNOWN_ID, Machine

FIRST, SECOND = "AAAAAAAAAAAAAAAAAAAAAQ", "AAAAAAAAAAAAAAAAAAAAAg"
RED, GREEN, BLUE = NAMES
"""RED is what members of the new protocol name, GREEN what those of the classic one do, BLUE what expressions match."""
INSTANCE = "static"
SLIP = st.sampled_from([0] * 10 + [-1, 1])
LEAVE, LEAVE_FOR_A_WHILE, JOIN = -1, -2, 0
MEMBER_ID_REQUIRED, UNKNOWN_MEMBER_ID, SUBSCRIBED = 79, 25, 86
REFRESH_S = 10
"""A group's expressions are not resolved more often: a constant in both brokers."""


class ConsumerSteps(Machine):
    """ConsumerGroupHeartbeat, ConsumerGroupDescribe, and what all other group APIs make of such groups."""

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.group = self.name("consumers")
        self.member = FIRST
        self.epoch = JOIN
        self.owned: list[Any] = []
        self.regex = ""
        self.resolved = ""
        self.resolved_s = 0.0
        self.classic = ("", -1)
        """The member of the classic protocol: Kafka's id, generation."""
        self.classic_instance: str | None = None

    @initialize(instance=st.sampled_from([None, None, "old", INSTANCE]))
    def begin(self, instance: str | None) -> None:
        """Three topics. The member of the classic protocol is static or not, for good; it may be the instance that
        the other member is."""
        self.classic_instance = instance
        topic = m.CreateTopicsRequest.CreatableTopic
        wanted = [
            topic(name=self.name(short), num_partitions=count, replication_factor=1)
            for short, count in ((RED, 2), (GREEN, 1), (BLUE, 1))
        ]
        self.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=wanted, timeout_ms=10_000))
        for one in wanted:
            self.wait_for_group_topic(one.name, one.num_partitions)

    # -- the member of the new protocol

    def _beat(self, version: int, epoch: int, member: str, **fields: Any) -> None:
        """A heartbeat; what it brought is taken over, as a client does."""
        if self.resolved and time.perf_counter() > self.resolved_s + REFRESH_S - 2:
            return  # a slow machine: nobody knows which of the two resolves the expression first
        request = m.ConsumerGroupHeartbeatRequest(
            group_id=self.group, member_id=member, member_epoch=epoch, **{"rebalance_timeout_ms": -1, **fields}
        )
        answer = self.ask(ApiKey.CONSUMER_GROUP_HEARTBEAT, version, request)
        if answer is None or answer.error_code:
            return
        self.member = member
        self.epoch = max(answer.member_epoch, JOIN)
        if epoch in (LEAVE, LEAVE_FOR_A_WHILE):
            self.owned = []
        elif answer.assignment is not None:
            owned = m.ConsumerGroupHeartbeatRequest.TopicPartitions
            self.owned = [
                owned(topic_id=one.topic_id, partitions=one.partitions) for one in answer.assignment.topic_partitions
            ]
        self._resolve("" if epoch == LEAVE else request.subscribed_topic_regex)

    def _resolve(self, regex: str | None) -> None:
        """Expressions are resolved beside the heartbeats: wait if this one was the reason to."""
        begins = not self.resolved
        self.regex = self.regex if regex is None else regex
        if self.resolved != self.regex:
            self.resolved = ""
        if not begins or not self.regex:
            return
        topic = m.OffsetDeleteRequest.OffsetDeleteRequestTopic
        part = m.OffsetDeleteRequest.OffsetDeleteRequestPartition
        request = m.OffsetDeleteRequest(
            group_id=self.group, topics=[topic(name=self.name(BLUE), partitions=[part(partition_index=0)])]
        )

        def known() -> bool:
            answers = self.pair.each(ApiKey.OFFSET_DELETE, 0, request)
            return all(one.topics and one.topics[0].partitions[0].error_code == SUBSCRIBED for one in answers)

        self.wait("an expression that is resolved", known)
        self.resolved, self.resolved_s = self.regex, time.perf_counter()

    @rule(data=st.data(), static=st.booleans(), regex=st.booleans())
    def join(self, data: st.DataObject, static: bool, regex: bool) -> None:
        """As clients do it."""
        version = self.version(data, ApiKey.CONSUMER_GROUP_HEARTBEAT, first=1)
        names = [self.name(short) for short in data.draw(st.sampled_from([[RED], [RED], []]))]
        self._beat(
            version,
            JOIN,
            self.member,
            topic_partitions=[],
            rebalance_timeout_ms=30_000,
            subscribed_topic_names=names,
            subscribed_topic_regex=f"s{self.sequence}-b.*" if regex else None,
            instance_id=INSTANCE if static else None,
        )

    @rule(data=st.data(), static=st.booleans(), shorts=st.sampled_from([[RED], [RED], [RED, "none"], []]))
    def join_oddly(self, data: st.DataObject, static: bool, shorts: list[str]) -> None:
        """With names or an expression; sometimes with what cannot be. A static member may be a new incarnation."""
        version = self.version(data, ApiKey.CONSUMER_GROUP_HEARTBEAT)
        fields: dict[str, Any] = {"subscribed_topic_names": [self.name(short) for short in shorts]}
        if version >= 1 and data.draw(st.booleans(), label="by expression"):
            some = f"s{self.sequence}-b.*"
            fields["subscribed_topic_regex"] = data.draw(st.sampled_from([some, some, f"{some}e", "(", ""]))
            fields["subscribed_topic_names"] = data.draw(st.sampled_from([fields["subscribed_topic_names"], None]))
        self._beat(
            version,
            JOIN,
            data.draw(st.sampled_from([FIRST, SECOND])) if static else FIRST,
            topic_partitions=data.draw(st.sampled_from([[]] * 9 + [None])),
            rebalance_timeout_ms=data.draw(st.sampled_from([30_000] * 9 + [-1])),
            server_assignor=data.draw(st.sampled_from([None, None, "uniform", "range", "range", "uniform", "mine"])),
            instance_id=INSTANCE if static else data.draw(st.sampled_from([None] * 9 + [""])),
            rack_id=data.draw(st.sampled_from([None] * 5 + ["a", "a", ""])),
            **fields,
        )

    @rule(data=st.data(), says=st.booleans())
    def beat(self, data: st.DataObject, says: bool) -> None:
        """Still there, with what it has or without a word about it; sometimes with a new subscription."""
        version = self.version(data, ApiKey.CONSUMER_GROUP_HEARTBEAT)
        epoch = max(1, self.epoch + data.draw(SLIP, label="epoch slip"))
        fields: dict[str, Any] = {}
        if data.draw(st.sampled_from([False, False, False, True]), label="new subscription"):
            names = data.draw(st.sampled_from([None, [], [self.name(RED)], [self.name(RED), self.name("none")]]))
            fields["subscribed_topic_names"] = names
            fields["rebalance_timeout_ms"] = data.draw(st.sampled_from([-1, 30_000]))
        self._beat(
            version,
            epoch,
            data.draw(st.sampled_from([self.member] * 8 + [FIRST, SECOND, ""])),
            topic_partitions=data.draw(st.sampled_from([self.owned, self.owned, []])) if says else None,
            instance_id=data.draw(st.sampled_from([None] * 4 + [INSTANCE, "other"])),
            **fields,
        )

    @rule(data=st.data(), epoch=st.sampled_from([LEAVE, LEAVE_FOR_A_WHILE, LEAVE_FOR_A_WHILE, -3]))
    def leave(self, data: st.DataObject, epoch: int) -> None:
        """For ever, or as a static member for a while."""
        instance = data.draw(st.sampled_from([None, INSTANCE, INSTANCE, "other"]))
        member = data.draw(st.sampled_from([self.member] * 8 + [FIRST, SECOND]))
        self._beat(self.version(data, ApiKey.CONSUMER_GROUP_HEARTBEAT), epoch, member, instance_id=instance)

    # -- the member of the classic protocol

    @rule(data=st.data())
    def classic_join(self, data: st.DataObject) -> None:
        """As the only one of its protocol, so that no answer waits for others."""
        version = self.version(data, ApiKey.JOIN_GROUP, first=2 if self.classic_instance is None else 5)
        protocol = m.JoinGroupRequest.JoinGroupRequestProtocol
        of = data.draw(st.integers(0, 3), label="version of the subscription")
        shorts = data.draw(st.sampled_from([[GREEN], [GREEN], [GREEN, "none"], []]))
        owned = m.ConsumerProtocolSubscription.TopicPartition(topic=self.name(GREEN), partitions=[0])
        subscription = m.ConsumerProtocolSubscription(
            topics=[self.name(short) for short in shorts],
            owned_partitions=data.draw(st.sampled_from([[], [owned]])) if of >= 1 else [],
            rack_id="a" if of >= 3 else None,
        )
        said = data.draw(st.sampled_from([pack(">h", of) + subscription.encode(of)] * 8 + [b"\x00\x01"]))
        names = data.draw(st.sampled_from([["range"], ["range", "roundrobin"]]))
        request = m.JoinGroupRequest(
            group_id=self.group,
            session_timeout_ms=30_000,
            rebalance_timeout_ms=30_000,
            member_id=self.classic[0],
            group_instance_id=self.classic_instance,
            protocol_type=data.draw(st.sampled_from(["consumer"] * 8 + ["connect"])),
            protocols=[protocol(name=name, metadata=said) for name in names],
        )
        if self.classic_instance is not None:
            request.member_id = data.draw(st.sampled_from([self.classic[0], ""]), label="incarnation")
        answer = self.ask(ApiKey.JOIN_GROUP, version, request)
        if answer is not None and answer.error_code == MEMBER_ID_REQUIRED:
            request.member_id = answer.member_id
            answer = self.ask(ApiKey.JOIN_GROUP, version, request)
        if answer is not None and answer.error_code == UNKNOWN_MEMBER_ID:
            self.classic = ("", -1)
        elif answer is not None and answer.error_code == 0:
            self.classic = (answer.member_id, answer.generation_id)
            if self.classic_instance == INSTANCE:
                self.regex = self.resolved = ""

    def _classic(self, data: st.DataObject) -> tuple[str, int]:
        member, generation = self.classic
        member = data.draw(st.sampled_from([member] * 6 + [self.member]), label="member")
        return member, generation + data.draw(SLIP, label="generation slip")

    @rule(data=st.data())
    def classic_sync(self, data: st.DataObject) -> None:
        """It leads where there is a leader."""
        version = self.version(data, ApiKey.SYNC_GROUP, first=3)
        member, generation = self._classic(data)
        mine = m.SyncGroupRequest.SyncGroupRequestAssignment
        assigned = m.ConsumerProtocolAssignment.TopicPartition(topic=self.name(GREEN), partitions=[0])
        assignment = m.ConsumerProtocolAssignment(
            assigned_partitions=[assigned], user_data=data.draw(st.sampled_from([None] * 6 + [b"", b"own"]))
        )
        said = data.draw(st.sampled_from([pack(">h", 1) + assignment.encode(1)] * 8 + [b"mine", b""]))
        request = m.SyncGroupRequest(
            group_id=self.group,
            generation_id=generation,
            member_id=member,
            group_instance_id=self.classic_instance,
            protocol_type=data.draw(st.sampled_from(["consumer", None, "connect"])) if version >= 5 else None,
            protocol_name=data.draw(st.sampled_from(["range", None, "rr"])) if version >= 5 else None,
            assignments=[mine(member_id=member, assignment=said)],
        )
        self.ask(ApiKey.SYNC_GROUP, version, request)

    @rule(data=st.data())
    def classic_beat(self, data: st.DataObject) -> None:
        """It learns that it has to join again."""
        member, generation = self._classic(data)
        version = self.version(data, ApiKey.HEARTBEAT, first=3)
        request = m.HeartbeatRequest(
            group_id=self.group,
            generation_id=generation,
            member_id=member,
            group_instance_id=self.classic_instance,
        )
        self.ask(ApiKey.HEARTBEAT, version, request)

    @rule(data=st.data())
    def classic_leave(self, data: st.DataObject) -> None:
        """Members of either protocol may be told to go."""
        member, _ = self._classic(data)
        identity = m.LeaveGroupRequest.MemberIdentity
        instance = data.draw(st.sampled_from([self.classic_instance, self.classic_instance, None, INSTANCE]))
        leaver = data.draw(st.sampled_from([member, member, ""])) if instance is not None else member
        request = m.LeaveGroupRequest(
            group_id=self.group, members=[identity(member_id=leaver, group_instance_id=instance)]
        )
        answer = self.ask(ApiKey.LEAVE_GROUP, self.version(data, ApiKey.LEAVE_GROUP, first=3), request)
        if answer is None or answer.error_code or answer.members[0].error_code:
            return
        if leaver == self.classic[0] or (instance is not None and instance == self.classic_instance):
            self.classic = ("", -1)
        if leaver == self.member or instance == INSTANCE:
            self.epoch, self.owned = JOIN, []
            self._resolve("")

    # -- what others ask of the group

    def _somebody(self, data: st.DataObject) -> tuple[str, int]:
        who = data.draw(st.sampled_from([(self.member, self.epoch)] * 4 + [self.classic] * 2 + [("", -1), (SECOND, 1)]))
        return who[0], who[1] + data.draw(SLIP, label="epoch slip")

    @rule(data=st.data(), offset=st.integers(0, 9))
    def commit(self, data: st.DataObject, offset: int) -> None:
        """With the member's epoch, or another."""
        version = self.version(data, ApiKey.OFFSET_COMMIT, first=2)
        member, epoch = self._somebody(data)
        name = self.name(data.draw(st.sampled_from([RED, RED, GREEN, "none"])))
        part = m.OffsetCommitRequest.OffsetCommitRequestPartition
        topic = m.OffsetCommitRequest.OffsetCommitRequestTopic(
            name="" if version >= 10 else name,
            topic_id=self.topic_ids.get(name, UNKNOWN_ID) if version >= 10 else bytes(16),
            partitions=[part(partition_index=0, committed_offset=offset, committed_metadata="")],
        )
        request = m.OffsetCommitRequest(
            group_id=self.group, generation_id_or_member_epoch=epoch, member_id=member, topics=[topic]
        )
        self.ask(ApiKey.OFFSET_COMMIT, version, request)

    @rule(data=st.data(), by_member=st.booleans())
    def committed(self, data: st.DataObject, by_member: bool) -> None:
        """What the group has committed, asked by a member or by a tool."""
        wanted = m.OffsetFetchRequest.OffsetFetchRequestGroup
        version = self.version(data, ApiKey.OFFSET_FETCH, first=8)
        group = wanted(group_id=self.group, topics=None)
        if by_member and version >= 9:
            group.member_id, group.member_epoch = self._somebody(data)
        self.ask(ApiKey.OFFSET_FETCH, version, m.OffsetFetchRequest(groups=[group]))

    @rule(data=st.data(), names=st.sampled_from([["consumers"], ["nobody"], ["consumers", "nobody"], [""]]))
    def describe(self, data: st.DataObject, names: list[str]) -> None:
        """As such a group, and as a classic one."""
        groups = [self.name(name) if name else "" for name in names]
        version = self.version(data, ApiKey.CONSUMER_GROUP_DESCRIBE)
        operations = data.draw(st.booleans(), label="operations")
        request = m.ConsumerGroupDescribeRequest(group_ids=groups, include_authorized_operations=operations)
        self.ask(ApiKey.CONSUMER_GROUP_DESCRIBE, version, request)
        self.ask(
            ApiKey.DESCRIBE_GROUPS,
            self.version(data, ApiKey.DESCRIBE_GROUPS, first=5),
            m.DescribeGroupsRequest(groups=groups),
        )

    @rule(data=st.data(), types=st.sampled_from([[], ["consumer"], ["Classic"], ["consumer", "classic"], ["none"]]))
    def list_groups(self, data: st.DataObject, types: list[str]) -> None:
        """By state and type."""
        version = self.version(data, ApiKey.LIST_GROUPS)
        states = data.draw(st.sampled_from([[], ["Stable"], ["empty"], ["Reconciling", "Assigning"], ["No"]]))
        self.ask_for_groups(
            version,
            m.ListGroupsRequest(
                states_filter=states if version >= 4 else [], types_filter=types if version >= 5 else []
            ),
        )

    @rule(data=st.data(), short=st.sampled_from([RED, GREEN, BLUE]), whole=st.booleans())
    def delete(self, data: st.DataObject, short: str, whole: bool) -> None:
        """The group, if it is empty; or its offsets."""
        if whole:
            request = m.DeleteGroupsRequest(groups_names=[self.group])
            self.ask(ApiKey.DELETE_GROUPS, self.version(data, ApiKey.DELETE_GROUPS), request)
            return
        topic = m.OffsetDeleteRequest.OffsetDeleteRequestTopic
        part = m.OffsetDeleteRequest.OffsetDeleteRequestPartition
        topics = [topic(name=self.name(short), partitions=[part(partition_index=0)])]
        self.ask(ApiKey.OFFSET_DELETE, 0, m.OffsetDeleteRequest(group_id=self.group, topics=topics))

    @rule()
    def grow(self) -> None:
        """There is more to assign."""
        wanted = m.CreatePartitionsRequest.CreatePartitionsTopic(
            name=self.name(RED), count=self.partitions[self.name(RED)] + 1, assignments=None
        )
        if wanted.count <= 4:
            self.ask(ApiKey.CREATE_PARTITIONS, 3, m.CreatePartitionsRequest(topics=[wanted], timeout_ms=10_000))
            self.wait_for_group_topic(wanted.name, wanted.count)

    def teardown(self) -> None:
        """Nobody is left in the group, nor the group."""
        self.forget_group(self.group, self.member, self.classic[0])
        self.forget_group(self.name("probe"), PROBE)
        super().teardown()
