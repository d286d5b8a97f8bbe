"""Steps about members that share topics: who gets what, and what has to be given up before.

Of the new protocol all ask for the assignor `range`: its result does not depend on topic ids, which brokers choose. Of
the classic protocol one leads, whose assignment is bytes; requests that wait for others are sent on connections of
their own.
"""

from __future__ import annotations

from struct import pack
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.machine import NAMES, PROBE, Machine

RED, GREEN, BLUE = NAMES
MEMBERS = tuple(f"AAAAAAAAAAAAAAAAAAAAA{end}" for end in "Qgw")
MEMBER = st.sampled_from(MEMBERS)
NUMBER = st.sampled_from([0, 1, 2])
SUBSCRIPTION = st.sampled_from([[RED], [RED, GREEN], [RED, GREEN], [GREEN], []])
LEAVE, JOIN = -1, 0
MEMBER_ID_REQUIRED = 79


class ConsumersSteps(Machine):
    """Members of a consumer group (KIP-848), up to three."""

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.group = self.name("sharing")
        self.epochs = dict.fromkeys(MEMBERS, JOIN)
        self.assigned: dict[str, list[Any]] = {member: [] for member in MEMBERS}
        self.before: dict[str, list[Any]] = {member: [] for member in MEMBERS}
        """What each had before it was last told something new: some go on saying so."""

    @initialize()
    def begin(self) -> None:
        """Two topics of several partitions."""
        topic = m.CreateTopicsRequest.CreatableTopic
        wanted = [
            topic(name=self.name(short), num_partitions=count, replication_factor=1)
            for short, count in ((RED, 3), (GREEN, 2))
        ]
        self.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=wanted, timeout_ms=10_000))
        for one in wanted:
            self.wait_for_group_topic(one.name, one.num_partitions)

    @initialize(data=st.data(), members=st.lists(MEMBER, unique=True))
    def some(self, data: st.DataObject, members: list[str]) -> None:
        """Some have joined before anything else happens."""
        for member in members:
            self.join(data, member, [RED, GREEN])

    def _beat(self, data: st.DataObject, member: str, epoch: int, **fields: Any) -> None:
        request = m.ConsumerGroupHeartbeatRequest(
            group_id=self.group, member_id=member, member_epoch=epoch, **{"rebalance_timeout_ms": -1, **fields}
        )
        version = self.version(data, ApiKey.CONSUMER_GROUP_HEARTBEAT)
        answer = self.ask(ApiKey.CONSUMER_GROUP_HEARTBEAT, version, request)
        if answer is None or answer.error_code:
            return
        self.epochs[member] = max(answer.member_epoch, JOIN)
        if epoch == LEAVE:
            self.assigned[member] = self.before[member] = []
        elif answer.assignment is not None:
            owned = m.ConsumerGroupHeartbeatRequest.TopicPartitions
            self.before[member] = self.assigned[member]
            self.assigned[member] = [
                owned(topic_id=one.topic_id, partitions=one.partitions) for one in answer.assignment.topic_partitions
            ]

    @rule(data=st.data(), member=MEMBER, shorts=SUBSCRIPTION)
    def join(self, data: st.DataObject, member: str, shorts: list[str]) -> None:
        """One more, or one that begins again."""
        self._beat(
            data,
            member,
            JOIN,
            subscribed_topic_names=[self.name(short) for short in shorts],
            topic_partitions=[],
            rebalance_timeout_ms=60_000,
            server_assignor="range",
            instance_id=None if member != MEMBERS[2] else "third",
        )

    @rule(data=st.data(), member=MEMBER, has=st.sampled_from(["what it was told"] * 4 + ["more", "no word", "nothing"]))
    def beat(self, data: st.DataObject, member: str, has: str) -> None:
        """It says what it has: gives up at once what it is to give up, or not yet."""
        owned = {
            "what it was told": self.assigned[member],
            "more": self.before[member] + self.assigned[member],
            "no word": None,
            "nothing": [],
        }
        epoch = max(1, self.epochs[member] + data.draw(st.sampled_from([0] * 10 + [-1]), label="epoch slip"))
        self._beat(data, member, epoch, topic_partitions=owned[has])

    @rule(data=st.data(), member=MEMBER, shorts=SUBSCRIPTION)
    def read_other_topics(self, data: st.DataObject, member: str, shorts: list[str]) -> None:
        """A new subscription in a heartbeat."""
        self._beat(
            data,
            member,
            max(1, self.epochs[member]),
            subscribed_topic_names=[self.name(short) for short in shorts],
            topic_partitions=self.assigned[member],
        )

    @rule(data=st.data(), member=MEMBER)
    def leave(self, data: st.DataObject, member: str) -> None:
        """What it had is free."""
        self._beat(data, member, LEAVE)

    @rule(data=st.data())
    def everybody(self, data: st.DataObject) -> None:
        """All do as they are told, in turn: the group comes to rest."""
        for _ in range(2):
            for member in MEMBERS:
                if self.epochs[member] > 0:
                    self._beat(data, member, self.epochs[member], topic_partitions=self.assigned[member])

    @rule(data=st.data())
    def describe(self, data: st.DataObject) -> None:
        """Targets and what is held."""
        request = m.ConsumerGroupDescribeRequest(group_ids=[self.group])
        self.ask(ApiKey.CONSUMER_GROUP_DESCRIBE, self.version(data, ApiKey.CONSUMER_GROUP_DESCRIBE), request)
        self.ask_for_groups(5, m.ListGroupsRequest())

    @rule(data=st.data(), member=MEMBER, partition=st.sampled_from([0, 1, 2]))
    def commit(self, data: st.DataObject, member: str, partition: int) -> None:
        """An older epoch is good for what the member has held since (KIP-1251)."""
        part = m.OffsetCommitRequest.OffsetCommitRequestPartition
        topic = m.OffsetCommitRequest.OffsetCommitRequestTopic(
            name=self.name(RED), partitions=[part(partition_index=partition, committed_offset=1)]
        )
        slip = data.draw(st.sampled_from([0, 0, -1, -2, 1]), label="epoch slip")
        request = m.OffsetCommitRequest(
            group_id=self.group,
            generation_id_or_member_epoch=max(0, self.epochs[member] + slip),
            member_id=member,
            topics=[topic],
        )
        self.ask(ApiKey.OFFSET_COMMIT, 9, request)

    @rule(short=st.sampled_from([RED, GREEN]))
    def grow(self, short: str) -> None:
        """There is more to share."""
        name = self.name(short)
        wanted = m.CreatePartitionsRequest.CreatePartitionsTopic(
            name=name, count=self.partitions[name] + 1, assignments=None
        )
        if wanted.count <= 5:
            self.ask(ApiKey.CREATE_PARTITIONS, 3, m.CreatePartitionsRequest(topics=[wanted], timeout_ms=10_000))
            self.wait_for_group_topic(wanted.name, wanted.count)

    def teardown(self) -> None:
        """Nobody is left in the group, nor the group."""
        self.forget_group(self.group, *MEMBERS)
        self.forget_group(self.name("probe"), PROBE)
        super().teardown()


def subscription(said: bytes) -> bytes:
    """What a member tells its leader: no topics, but something that tells it from others."""
    return pack(">h", 0) + bytes(m.ConsumerProtocolSubscription(topics=[], user_data=said).encode(0))


class ClassicSteps(Machine):
    """Members of a classic group, up to three. Who waits for others is asked again after every step.

    When the leader of three leaves Kafka takes any other: leaders leave when at most one is left.
    """

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.group = self.name("rebalancing")
        self.ids: dict[int, str] = {}
        """Kafka's id of each member that was given one."""
        self.generations: dict[int, int] = {}
        self.leader = ""
        self.waiting: dict[int, tuple[ApiKey, int, Any]] = {}
        """Requests without answer, by member; each has a connection."""

    def _send(self, number: int, api: ApiKey, version: int, request: Any) -> None:
        """Send what others may have to answer, and see who has an answer then."""
        self.pair.begin(api, version, request, f"member {number}")
        self.waiting[number] = (api, version, request)
        self._collect()

    def _collect(self) -> None:
        """What both say of the group is alike once both have seen all requests; then who is to be answered is."""
        request = m.DescribeGroupsRequest(groups=[self.group])

        def alike() -> bool:
            kafka, ours = (one.groups[0] for one in self.pair.each(ApiKey.DESCRIBE_GROUPS, 6, request))
            return (kafka.group_state, len(kafka.members)) == (ours.group_state, len(ours.members))

        self.follow(alike)
        self.ask(ApiKey.DESCRIBE_GROUPS, 6, request)
        for number in list(self.waiting):
            if not self.pair.answered(f"member {number}"):
                continue
            api, version, request = self.waiting.pop(number)
            answer = self.pair.finish(api, version, request, f"member {number}")
            if api is ApiKey.JOIN_GROUP and answer is not None and answer.error_code == 0:
                self.ids[number] = answer.member_id
                self.generations[number] = answer.generation_id
                self.leader = answer.leader

    @rule(data=st.data(), number=NUMBER, change=st.booleans())
    def join(self, data: st.DataObject, number: int, change: bool) -> None:
        """Joins, or joins again; the answer comes when all have."""
        if number in self.waiting:
            return
        version = self.version(data, ApiKey.JOIN_GROUP, first=5)
        protocol = m.JoinGroupRequest.JoinGroupRequestProtocol
        request = m.JoinGroupRequest(
            group_id=self.group,
            session_timeout_ms=60_000,
            rebalance_timeout_ms=60_000,
            member_id=self.ids.get(number, ""),
            group_instance_id="third" if number == 2 else None,
            protocol_type="consumer",
            protocols=[
                protocol(name=name, metadata=subscription(b"%d" % (number + 3 * change)))
                for name in ("range", "roundrobin")
            ],
        )
        if not request.member_id and request.group_instance_id is None:
            answer = self.ask(ApiKey.JOIN_GROUP, version, request)
            assert answer.error_code == MEMBER_ID_REQUIRED
            self.ids[number] = request.member_id = answer.member_id
        self._send(number, ApiKey.JOIN_GROUP, version, request)

    @rule(data=st.data(), number=NUMBER)
    def sync(self, data: st.DataObject, number: int) -> None:
        """The leader brings what all are to have; the others wait for that."""
        if number in self.waiting or number not in self.generations:
            return
        mine = m.SyncGroupRequest.SyncGroupRequestAssignment
        leads = self.ids.get(number) == self.leader
        version = self.version(data, ApiKey.SYNC_GROUP)
        request = m.SyncGroupRequest(
            group_id=self.group,
            generation_id=self.generations[number] + data.draw(st.sampled_from([0] * 8 + [-1, 1]), label="slip"),
            member_id=self.ids.get(number, "gone"),
            assignments=[mine(member_id=one, assignment=b"for %d" % other) for other, one in self.ids.items()]
            if leads
            else [],
            protocol_type="consumer" if version >= 5 else None,
            protocol_name="range" if version >= 5 else None,
        )
        self._send(number, ApiKey.SYNC_GROUP, version, request)

    @rule(data=st.data(), number=NUMBER)
    def beat(self, data: st.DataObject, number: int) -> None:
        """Learns whether to join again."""
        if number in self.generations:
            request = m.HeartbeatRequest(
                group_id=self.group,
                generation_id=self.generations[number],
                member_id=self.ids.get(number, "gone"),
            )
            self.ask(ApiKey.HEARTBEAT, self.version(data, ApiKey.HEARTBEAT), request)
            self._collect()

    @rule()
    def everybody(self) -> None:
        """All members join again, and those who led and followed synchronize: the group comes to rest."""
        for api in (ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP):
            for number in list(self.ids):
                if number in self.waiting:
                    continue
                self._again(number, api)

    def _again(self, number: int, api: ApiKey) -> None:
        if api is ApiKey.JOIN_GROUP:
            protocol = m.JoinGroupRequest.JoinGroupRequestProtocol
            request: Any = m.JoinGroupRequest(
                group_id=self.group,
                session_timeout_ms=60_000,
                rebalance_timeout_ms=60_000,
                member_id=self.ids[number],
                group_instance_id="third" if number == 2 else None,
                protocol_type="consumer",
                protocols=[protocol(name=name, metadata=subscription(b"again")) for name in ("range", "roundrobin")],
            )
            self._send(number, api, 9, request)
        elif number in self.generations:
            mine = m.SyncGroupRequest.SyncGroupRequestAssignment
            request = m.SyncGroupRequest(
                group_id=self.group,
                generation_id=self.generations[number],
                member_id=self.ids[number],
                protocol_type="consumer",
                protocol_name="range",
            )
            if self.ids[number] == self.leader:
                request.assignments = [mine(member_id=one, assignment=b"rest") for one in self.ids.values()]
            self._send(number, api, 5, request)

    @rule(data=st.data(), numbers=st.lists(NUMBER, min_size=1, max_size=3, unique=True))
    def leave(self, data: st.DataObject, numbers: list[int]) -> None:
        """One, or several at once; the others have to join again."""
        version = self.version(data, ApiKey.LEAVE_GROUP)
        numbers = [number for number in numbers if number in self.ids and number not in self.waiting]
        stay = [number for number in self.ids if number not in numbers]
        if not numbers or (version < 3 and len(numbers) > 1):
            return
        if len(stay) > 1 and self.leader in [self.ids[number] for number in numbers]:
            return
        if version < 3:
            request = m.LeaveGroupRequest(group_id=self.group, member_id=self.ids[numbers[0]])
        else:
            identity = m.LeaveGroupRequest.MemberIdentity
            request = m.LeaveGroupRequest(
                group_id=self.group, members=[identity(member_id=self.ids[number]) for number in numbers]
            )
        self.ask(ApiKey.LEAVE_GROUP, version, request)
        for number in numbers:
            del self.ids[number]
            self.generations.pop(number, None)
        self._collect()

    @rule(data=st.data(), protocols=st.sampled_from([("other",), ("other", "range"), ("range",)]))
    def join_badly(self, data: st.DataObject, protocols: tuple[str, ...]) -> None:
        """Of another protocol type, which a group with members does not take."""
        if not self.generations:
            return
        protocol = m.JoinGroupRequest.JoinGroupRequestProtocol
        request = m.JoinGroupRequest(
            group_id=self.group,
            session_timeout_ms=60_000,
            rebalance_timeout_ms=60_000,
            member_id="",
            group_instance_id="stranger",
            protocol_type="connect",
            protocols=[protocol(name=name, metadata=b"") for name in protocols],
        )
        self.ask(ApiKey.JOIN_GROUP, self.version(data, ApiKey.JOIN_GROUP, first=5), request)
        self._collect()

    def teardown(self) -> None:
        """Nobody waits, nobody is left in the group."""
        for number in range(3):
            self.pair.drop(f"member {number}")
        self.forget_group(self.group, *self.ids.values())
        super().teardown()
