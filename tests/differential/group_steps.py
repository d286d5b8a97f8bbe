"""Steps about groups: members, offsets, descriptions."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.machine import NAMES, UNKNOWN_ID, Machine

GROUP = st.sampled_from(["one", "two"])
SHORT = st.sampled_from(NAMES)
ASSIGNORS = (["range"], ["range", "rr"], [])


class GroupSteps(Machine):
    """Classic groups: the coordinator is there from the first FindCoordinator on."""

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.members: dict[str, tuple[str, int]] = {}  # group: (Kafka's member id, generation)

    @rule(data=st.data(), group=GROUP, kind=st.sampled_from([0, 0, 2, 7]))
    def find_coordinator(self, data: st.DataObject, group: str, kind: int) -> None:
        """Of a group, or of what has none."""
        version = self.version(data, ApiKey.FIND_COORDINATOR)
        request = m.FindCoordinatorRequest(key_type=kind if version else 0)
        if version >= 4:
            request.coordinator_keys = data.draw(
                st.sampled_from([[self.name(group)], [], [""], [self.name(group)] * 2])
            )
        else:
            request.key = self.name(group)
        self.ask(ApiKey.FIND_COORDINATOR, version, request)

    @rule(data=st.data(), group=GROUP, static=st.booleans(), known=st.booleans())
    def join(self, data: st.DataObject, group: str, static: bool, known: bool) -> None:
        """The only member of a group joins, or joins again."""
        version = self.version(data, ApiKey.JOIN_GROUP, first=2)
        member, _ = self.members.get(group, ("", 0))
        protocol = m.JoinGroupRequest.JoinGroupRequestProtocol
        request = m.JoinGroupRequest(
            group_id=self.name(group),
            session_timeout_ms=data.draw(st.sampled_from([30_000, 30_000, 1, 10**8])),
            rebalance_timeout_ms=30_000,
            member_id=member if known or member else data.draw(st.sampled_from(["", "", "stranger"])),
            group_instance_id="static" if static and version >= 5 else None,
            protocol_type=data.draw(st.sampled_from(["consumer", "consumer", "consumer", "connect", ""])),
            protocols=[
                protocol(name=name, metadata=b"\x00\x01")
                for name in data.draw(st.sampled_from([["range"], ["range", "rr"], []]))
            ],
        )
        answer = self.ask(ApiKey.JOIN_GROUP, version, request)
        if answer is not None and answer.error_code == 79:  # MEMBER_ID_REQUIRED
            request.member_id = answer.member_id
            answer = self.ask(ApiKey.JOIN_GROUP, version, request)
        if answer is not None and answer.error_code == 0:
            self.members[group] = (answer.member_id, answer.generation_id)

    def _member(self, data: st.DataObject, group: str) -> tuple[str, int]:
        member, generation = self.members.get(group, ("", -1))
        member = data.draw(st.sampled_from([member, member, member, "stranger", ""]), label="member")
        return member, generation + data.draw(st.sampled_from([0, 0, 0, -1, 1]), label="generation")

    @rule(data=st.data(), group=GROUP)
    def sync(self, data: st.DataObject, group: str) -> None:
        """The assignment, given by the member, who leads."""
        version = self.version(data, ApiKey.SYNC_GROUP)
        member, generation = self._member(data, group)
        assignment = m.SyncGroupRequest.SyncGroupRequestAssignment
        self.ask(
            ApiKey.SYNC_GROUP,
            version,
            m.SyncGroupRequest(
                group_id=self.name(group),
                generation_id=generation,
                member_id=member,
                protocol_type=data.draw(st.sampled_from(["consumer", None, "connect"])) if version >= 5 else None,
                protocol_name=data.draw(st.sampled_from(["range", None, "rr"])) if version >= 5 else None,
                assignments=[assignment(member_id=member, assignment=b"mine")],
            ),
        )

    @rule(data=st.data(), group=GROUP)
    def heartbeat(self, data: st.DataObject, group: str) -> None:
        """Still there."""
        member, generation = self._member(data, group)
        version = self.version(data, ApiKey.HEARTBEAT)
        self.ask(
            ApiKey.HEARTBEAT,
            version,
            m.HeartbeatRequest(group_id=self.name(group), generation_id=generation, member_id=member),
        )

    @rule(data=st.data(), group=GROUP)
    def leave(self, data: st.DataObject, group: str) -> None:
        """Not there any more."""
        member, _ = self._member(data, group)
        version = self.version(data, ApiKey.LEAVE_GROUP)
        request = m.LeaveGroupRequest(group_id=self.name(group), member_id=member)
        if version >= 3:
            identity = m.LeaveGroupRequest.MemberIdentity
            instance = data.draw(st.sampled_from([None, None, "static"]))
            request = m.LeaveGroupRequest(
                group_id=self.name(group),
                members=[identity(member_id=member, group_instance_id=instance)],
            )
        answer = self.ask(ApiKey.LEAVE_GROUP, version, request)
        gone = answer is not None and answer.error_code == 0 and not any(one.error_code for one in answer.members)
        if gone and self.members.get(group, ("", 0))[0] == member:
            del self.members[group]

    @rule(data=st.data(), group=GROUP, short=SHORT, partition=st.sampled_from([0, 0, 1, 9]), offset=st.integers(-1, 9))
    def commit(self, data: st.DataObject, group: str, short: str, partition: int, offset: int) -> None:
        """Of a member, or of nobody in particular."""
        version = self.version(data, ApiKey.OFFSET_COMMIT, first=2)
        member, generation = data.draw(st.sampled_from([("", -1), self._member(data, group)]), label="who")
        name = self.name(short)
        part = m.OffsetCommitRequest.OffsetCommitRequestPartition(
            partition_index=partition,
            committed_offset=offset,
            committed_metadata=data.draw(st.sampled_from(["", None, "note", "x" * 5000])),
        )
        topic = m.OffsetCommitRequest.OffsetCommitRequestTopic(
            name="" if version >= 10 else name,
            topic_id=self.topic_ids.get(name, UNKNOWN_ID) if version >= 10 else bytes(16),
            partitions=[part],
        )
        self.ask(
            ApiKey.OFFSET_COMMIT,
            version,
            m.OffsetCommitRequest(
                group_id=data.draw(st.sampled_from([self.name(group), self.name(group), ""])),
                generation_id_or_member_epoch=generation,
                member_id=member,
                topics=[topic],
            ),
        )

    @rule(data=st.data(), group=GROUP, shorts=st.lists(SHORT, max_size=2, unique=True), everything=st.booleans())
    def committed(self, data: st.DataObject, group: str, shorts: list[str], everything: bool) -> None:
        """What is committed: some partitions or all there is."""
        version = self.version(data, ApiKey.OFFSET_FETCH)
        names = [self.name(short) for short in shorts]
        request = m.OffsetFetchRequest(require_stable=version >= 7 and data.draw(st.booleans()))
        if version >= 8:
            topic: Any = m.OffsetFetchRequest.OffsetFetchRequestTopics
            topics = [
                topic(
                    name="" if version >= 10 else name,
                    topic_id=self.topic_ids.get(name, UNKNOWN_ID) if version >= 10 else bytes(16),
                    partition_indexes=[0, 1, 9],
                )
                for name in names
            ]
            wanted = m.OffsetFetchRequest.OffsetFetchRequestGroup
            request.groups = [wanted(group_id=self.name(group), topics=None if everything else topics)]
        else:
            topic = m.OffsetFetchRequest.OffsetFetchRequestTopic
            request.group_id = self.name(group)
            request.topics = (
                None if everything and version >= 2 else [topic(name=name, partition_indexes=[0, 1]) for name in names]
            )
        self.ask(ApiKey.OFFSET_FETCH, version, request)

    @rule(data=st.data(), groups=st.lists(GROUP, min_size=1, max_size=2))
    def describe(self, data: st.DataObject, groups: list[str]) -> None:
        """Classic groups, or what is none."""
        version = self.version(data, ApiKey.DESCRIBE_GROUPS)
        request = m.DescribeGroupsRequest(
            groups=[self.name(group) for group in groups],
            include_authorized_operations=version >= 3 and data.draw(st.booleans()),
        )
        self.ask(ApiKey.DESCRIBE_GROUPS, version, request)

    @rule(data=st.data(), groups=st.lists(GROUP, min_size=1, max_size=2))
    def delete_groups(self, data: st.DataObject, groups: list[str]) -> None:
        """Groups that are empty, or not, or unknown."""
        names = [self.name(group) for group in groups]
        self.ask(
            ApiKey.DELETE_GROUPS, self.version(data, ApiKey.DELETE_GROUPS), m.DeleteGroupsRequest(groups_names=names)
        )

    @rule(data=st.data(), group=GROUP, short=SHORT)
    def delete_offsets(self, data: st.DataObject, group: str, short: str) -> None:
        """Committed offsets of a topic."""
        topic = m.OffsetDeleteRequest.OffsetDeleteRequestTopic
        part = m.OffsetDeleteRequest.OffsetDeleteRequestPartition
        request = m.OffsetDeleteRequest(
            group_id=self.name(group),
            topics=[topic(name=self.name(short), partitions=[part(partition_index=0), part(partition_index=7)])],
        )
        self.ask(ApiKey.OFFSET_DELETE, self.version(data, ApiKey.OFFSET_DELETE), request)
