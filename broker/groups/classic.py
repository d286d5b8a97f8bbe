"""A classic group (JoinGroup, SyncGroup, Heartbeat, LeaveGroup) as pure state: members, and the questions asked of it.

`Transition` in `broker.groups.rebalance` changes a draft of it. Rules are those of Kafka 4.3's `ClassicGroup`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from broker.groups.model import (
    NO_TIMESTAMP,
    GroupSaved,
    GroupState,
    GroupView,
    Heartbeat,
    JoinedMember,
    MemberView,
    Outcome,
    Reply,
    SavedMember,
    SetTimer,
)
from broker.groups.subscription import subscribed_topics
from protocol.errors import ErrorCode

CONSUMER = "consumer"
"""The protocol type of consumers; the only one whose subscriptions the coordinator understands."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `joining` and `syncing` are the waiters of its JoinGroup and SyncGroup, if they wait."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocols: tuple[tuple[str, bytes], ...]
    assignment: bytes = b""
    is_new: bool = False
    joining: int | None = None
    syncing: int | None = None

    def metadata(self, protocol: str | None) -> bytes:
        for name, metadata in self.protocols:
            if name == protocol:
                return metadata
        return b""

    def heartbeat_satisfied(self) -> bool:
        """A waiting member cannot send heartbeats. A new one is removed all the same: its client may be long gone."""
        return not self.is_new and (self.joining is not None or self.syncing is not None)


@dataclass(slots=True)
class ClassicGroup:
    """State of one group; changed only through a draft."""

    group_id: str
    state: GroupState = GroupState.EMPTY
    previous_state: GroupState = GroupState.EMPTY
    generation: int = 0
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str | None = None
    members: dict[str, Member] = field(default_factory=dict)
    static_members: dict[str, str] = field(default_factory=dict)
    """Group instance id to member id."""
    pending_joins: dict[str, None] = field(default_factory=dict)
    """Ids given out with MEMBER_ID_REQUIRED and not seen again yet (an ordered set)."""
    pending_syncs: dict[str, None] = field(default_factory=dict)
    joining_count: int = 0
    protocol_counts: dict[str, int] = field(default_factory=dict)
    """How many members support each protocol."""
    new_member_added: bool = False
    initial_delay: tuple[int, int] | None = None
    """While the first rebalance is held back: (this delay, what may be added), ms."""
    state_timestamp_ms: int = NO_TIMESTAMP
    subscribed: frozenset[str] | None = None
    """Topics its members consume; None: not known."""
    saved: GroupSaved | None = None
    """What a restart would find."""

    def draft(self) -> ClassicGroup:
        return replace(
            self,
            members=self.members.copy(),
            static_members=self.static_members.copy(),
            pending_joins=self.pending_joins.copy(),
            pending_syncs=self.pending_syncs.copy(),
            protocol_counts=self.protocol_counts.copy(),
        )

    @classmethod
    def restored(cls, saved: GroupSaved) -> ClassicGroup:
        """The group that a record describes: empty, or stable in its generation."""
        group = cls(
            saved.group_id,
            state=GroupState.STABLE if saved.members else GroupState.EMPTY,
            generation=saved.generation,
            protocol_type=saved.protocol_type or None,
            protocol=saved.protocol,
            leader=saved.leader,
            state_timestamp_ms=saved.timestamp_ms,
            saved=saved,
        )
        for one in saved.members:
            group.put(
                Member(
                    one.member_id,
                    one.instance_id,
                    one.client_id,
                    one.client_host,
                    one.session_timeout_ms if one.rebalance_timeout_ms == -1 else one.rebalance_timeout_ms,
                    one.session_timeout_ms,
                    ((saved.protocol or "", one.subscription),),
                    one.assignment,
                )
            )
        group.subscribed = group.compute_subscribed()
        return group

    def to_save(self) -> GroupSaved:
        return GroupSaved(
            self.group_id,
            self.protocol_type or "",
            self.generation,
            self.protocol,
            self.leader,
            self.state_timestamp_ms,
            tuple(
                SavedMember(
                    member.member_id,
                    member.instance_id,
                    member.client_id,
                    member.client_host,
                    member.rebalance_timeout_ms,
                    member.session_timeout_ms,
                    member.metadata(self.protocol),
                    member.assignment,
                )
                for member in self.members.values()
            ),
        )

    # -- members

    def put(self, member: Member) -> None:
        """Add or replace the member of this id; keeps all counts."""
        self._forget(self.members.get(member.member_id))
        self.members[member.member_id] = member
        if member.instance_id is not None:
            self.static_members[member.instance_id] = member.member_id
        for name, _ in member.protocols:
            self.protocol_counts[name] = self.protocol_counts.get(name, 0) + 1
        self.joining_count += member.joining is not None

    def remove(self, member_id: str) -> None:
        member = self.members.pop(member_id, None)
        self._forget(member)
        if member is not None and member.instance_id is not None:
            self.static_members.pop(member.instance_id, None)
        if self.leader == member_id:
            self.leader = next(iter(self.members), None)
        self.pending_joins.pop(member_id, None)
        self.pending_syncs.pop(member_id, None)

    def _forget(self, member: Member | None) -> None:
        if member is None:
            return
        for name, _ in member.protocols:
            count = self.protocol_counts[name] - 1
            if count:
                self.protocol_counts[name] = count
            else:
                del self.protocol_counts[name]
        self.joining_count -= member.joining is not None

    # -- questions

    @property
    def all_joined(self) -> bool:
        return len(self.members) == self.joining_count and not self.pending_joins

    @property
    def rebalance_timeout_ms(self) -> int:
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    @property
    def is_consumer(self) -> bool:
        return self.protocol_type == CONSUMER

    def check_member(self, member_id: str, instance_id: str | None) -> ErrorCode:
        if instance_id is not None:
            known = self.static_members.get(instance_id)
            if known is None:
                return ErrorCode.UNKNOWN_MEMBER_ID
            if known != member_id:
                return ErrorCode.FENCED_INSTANCE_ID
        return ErrorCode.NONE if member_id in self.members else ErrorCode.UNKNOWN_MEMBER_ID

    def check_commit(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """May this member, or nobody in particular, commit offsets now?"""
        if generation < 0 and self.state is GroupState.EMPTY:
            return ErrorCode.NONE
        if generation >= 0 or member_id or instance_id is not None:
            error = self.check_member(member_id, instance_id)
            if error is not ErrorCode.NONE:
                return error
            if generation != self.generation:
                return ErrorCode.ILLEGAL_GENERATION
        elif self.state is not GroupState.EMPTY:
            return ErrorCode.UNKNOWN_MEMBER_ID
        if self.state is GroupState.COMPLETING_REBALANCE:
            return ErrorCode.REBALANCE_IN_PROGRESS
        return ErrorCode.NONE

    def supports(self, protocol_type: str, protocols: tuple[tuple[str, bytes], ...]) -> bool:
        if self.state is GroupState.EMPTY:
            return bool(protocol_type and protocols)
        return protocol_type == self.protocol_type and any(
            self.protocol_counts.get(name, 0) == len(self.members) for name, _ in protocols
        )

    def is_subscribed(self, topic: str) -> bool:
        """A consumer group whose subscriptions could not be read counts as subscribed to everything."""
        return self.is_consumer if self.subscribed is None else topic in self.subscribed

    def compute_subscribed(self) -> frozenset[str] | None:
        if not self.is_consumer:
            return None
        if not self.members:
            return frozenset()
        if self.protocol is None:
            return None
        return subscribed_topics(member.metadata(self.protocol) for member in self.members.values())

    def select_protocol(self) -> str:
        """Every member votes for the first protocol it lists that all support; ties go to the one voted for first
        (in Kafka to any)."""
        common = {name for name, count in self.protocol_counts.items() if count == len(self.members)}
        votes: Counter[str] = Counter()
        for member in self.members.values():
            votes[next(name for name, _ in member.protocols if name in common)] += 1
        return votes.most_common(1)[0][0]

    def joined_members(self) -> tuple[JoinedMember, ...]:
        return tuple(
            JoinedMember(member.member_id, member.instance_id, member.metadata(self.protocol))
            for member in self.members.values()
        )

    def describe(self) -> GroupView:
        """Member metadata only while stable, as in Kafka: before that no protocol is selected."""
        stable = self.state is GroupState.STABLE
        protocol = self.protocol if stable else None
        return GroupView(
            ErrorCode.NONE,
            self.group_id,
            self.state.value,
            self.protocol_type or "",
            protocol or "",
            self.generation,
            self.leader or "",
            tuple(
                MemberView(
                    member.member_id,
                    member.instance_id,
                    member.client_id,
                    member.client_host,
                    member.metadata(protocol) if stable else b"",
                    member.assignment,
                )
                for member in self.members.values()
            ),
        )


def heartbeat(group: ClassicGroup, request: Heartbeat) -> Outcome:
    """Needs no draft: a heartbeat only moves the member's session timer."""
    error = group.check_member(request.member_id, request.instance_id)
    if error is ErrorCode.NONE and request.generation != group.generation:
        error = ErrorCode.ILLEGAL_GENERATION
    if error is not ErrorCode.NONE:
        return Outcome(effects=[Reply(request.waiter, error)])
    return Outcome(
        effects=[
            keep_alive(group, request.member_id),
            Reply(
                request.waiter,
                ErrorCode.REBALANCE_IN_PROGRESS if group.state is GroupState.PREPARING_REBALANCE else ErrorCode.NONE,
            ),
        ]
    )


def keep_alive(group: ClassicGroup, member_id: str) -> SetTimer:
    return SetTimer(("session", group.group_id, member_id), group.members[member_id].session_timeout_ms)
