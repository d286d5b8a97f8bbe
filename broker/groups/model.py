"""The words of the group cores: what is stored, what is asked, what is answered, what is to be done.

A core decides by returning an `Outcome`: changes to persist, the group as it will be, and effects. The caller
persists the changes first; refused, the outcome is dropped and nothing happened. Times are Unix ms; delays are ms
from now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from broker.groups.consumer_model import ComputeAssignment, ConsumerChange, ConsumerConfig, Note, ResolveRegexes
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from broker.groups.classic import ClassicGroup

ZERO_UUID = bytes(16)
NO_TIMESTAMP = -1
NO_OFFSET = -1


class GroupState(StrEnum):
    """States of a classic group, spelled as Kafka's tools show them. Dead is what an unknown group is described as."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


class GroupConfig(NamedTuple):
    """The settings that decide; Kafka's names and defaults."""

    initial_rebalance_delay_ms: int = 3000
    min_session_timeout_ms: int = 6000
    max_session_timeout_ms: int = 1_800_000
    max_size: int = 2**31 - 1
    offset_metadata_max_bytes: int = 4096
    offsets_retention_ms: int = 7 * 24 * 3600 * 1000
    new_member_join_timeout_ms: int = 5 * 60 * 1000
    """How long a first join may wait: its member cannot send heartbeats yet. A constant in Kafka too."""
    consumer: ConsumerConfig = ConsumerConfig()


# --- what is stored: one change is one record of __consumer_offsets


class Offset(NamedTuple):
    """A committed offset. `leader_epoch` -1: unknown; `expire_timestamp_ms` -1: by the retention setting; `topic_id`
    zero: the topic was unknown, or the commit came with an expiry of its own (Kafka's format has no room for both)."""

    offset: int
    leader_epoch: int
    metadata: str
    commit_timestamp_ms: int
    expire_timestamp_ms: int = NO_TIMESTAMP
    topic_id: bytes = ZERO_UUID


class SavedMember(NamedTuple):
    """A member as GroupMetadataValue has it: the subscription is its metadata for the selected protocol."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


class OffsetCommitted(NamedTuple):
    group_id: str
    topic: str
    partition: int
    value: Offset


class OffsetRemoved(NamedTuple):
    group_id: str
    topic: str
    partition: int


class PendingOffset(NamedTuple):
    """An offset of an open transaction: written under its producer, in force when a marker commits it."""

    producer_id: int
    producer_epoch: int
    group_id: str
    topic: str
    partition: int
    value: Offset


class GroupSaved(NamedTuple):
    """The durable part of a classic group: a generation that has its assignments, or an empty group."""

    group_id: str
    protocol_type: str
    generation: int
    protocol: str | None
    leader: str | None
    timestamp_ms: int
    members: tuple[SavedMember, ...]


class GroupRemoved(NamedTuple):
    group_id: str


Change: TypeAlias = OffsetCommitted | OffsetRemoved | PendingOffset | GroupSaved | GroupRemoved | ConsumerChange


# --- what is asked; `waiter` is the number under which the caller keeps the request


class Join(NamedTuple):
    waiter: int
    group_id: str
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    token: str
    """What makes a new member id unique: UUID text."""
    needs_member_id: bool
    """v4 on: a new dynamic member is first told its id."""
    may_skip_assignment: bool
    """v9 on: a replaced static leader is told not to assign."""


class Sync(NamedTuple):
    waiter: int
    group_id: str
    generation: int
    member_id: str
    instance_id: str | None
    protocol_type: str | None
    protocol: str | None
    assignments: tuple[tuple[str, bytes], ...]


class Heartbeat(NamedTuple):
    waiter: int
    group_id: str
    generation: int
    member_id: str
    instance_id: str | None


class Leaver(NamedTuple):
    member_id: str
    instance_id: str | None


class Leave(NamedTuple):
    waiter: int
    group_id: str
    members: tuple[Leaver, ...]


class OffsetToCommit(NamedTuple):
    topic: str
    topic_id: bytes
    partition: int
    offset: int
    leader_epoch: int
    metadata: str | None


class Commit(NamedTuple):
    waiter: int
    group_id: str
    generation: int
    member_id: str
    instance_id: str | None
    retention_ms: int
    """-1: the setting's; only v2 to v4 can say another."""
    offsets: tuple[OffsetToCommit, ...]
    unknown_group: ErrorCode
    """What a generation of an unknown group is answered with: GROUP_ID_NOT_FOUND from v9, ILLEGAL_GENERATION before."""


class TxnCommit(NamedTuple):
    """Offsets that become part of a producer's transaction."""

    producer_id: int
    producer_epoch: int
    commit: Commit


class DeleteOffsets(NamedTuple):
    waiter: int
    group_id: str
    partitions: tuple[tuple[str, int], ...]


class DeleteGroups(NamedTuple):
    waiter: int
    group_ids: tuple[str, ...]


# --- what is answered


class JoinedMember(NamedTuple):
    member_id: str
    instance_id: str | None
    metadata: bytes


class JoinAnswer(NamedTuple):
    error: ErrorCode
    member_id: str = ""
    generation: int = -1
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str = ""
    skip_assignment: bool = False
    members: tuple[JoinedMember, ...] = ()


class SyncAnswer(NamedTuple):
    error: ErrorCode
    protocol_type: str | None = None
    protocol: str | None = None
    assignment: bytes = b""


class LeaveAnswer(NamedTuple):
    error: ErrorCode
    members: tuple[tuple[Leaver, ErrorCode], ...] = ()


class CommitAnswer(NamedTuple):
    """One error per offset of the command, in its order."""

    errors: tuple[ErrorCode, ...]


class DeleteOffsetsAnswer(NamedTuple):
    error: ErrorCode
    errors: tuple[ErrorCode, ...] = ()


class DeleteGroupsAnswer(NamedTuple):
    errors: tuple[ErrorCode, ...]


class FetchAnswer(NamedTuple):
    """`offsets`: (topic, partition, offset or None), in the order asked, or by name and number when all were asked."""

    error: ErrorCode
    offsets: tuple[tuple[str, int, Offset | None], ...] = ()
    unstable: frozenset[tuple[str, int]] = frozenset()
    """Partitions of them that an open transaction may still change."""


class MemberView(NamedTuple):
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    assignment: bytes


class GroupView(NamedTuple):
    """A group as plain data: for DescribeGroups, for HTTP and the console."""

    error: ErrorCode
    group_id: str
    state: str
    protocol_type: str = ""
    protocol: str = ""
    generation: int = -1
    leader: str = ""
    members: tuple[MemberView, ...] = ()


class ListedGroup(NamedTuple):
    group_id: str
    protocol_type: str
    state: str
    type: str


class ListAnswer(NamedTuple):
    error: ErrorCode
    groups: tuple[ListedGroup, ...] = ()


# --- what is to be done

TimerKey: TypeAlias = tuple[str, str, str]
"""(kind, group id, member id or ""). Kinds of a classic group: "session", "join", "sync"; of a consumer group, all of
them with a member: "session", "rebalance" (to give up partitions), "rejoin" and "resync" (members of the classic
protocol)."""


class Reply(NamedTuple):
    waiter: int
    answer: Any


class SetTimer(NamedTuple):
    """Fire once, `delay_ms` from now; replaces the timer of the same key, unless it is to be kept."""

    key: TimerKey
    delay_ms: int
    keep: bool = False


class CancelTimer(NamedTuple):
    key: TimerKey


Effect: TypeAlias = Reply | SetTimer | CancelTimer | ComputeAssignment | ResolveRegexes


@dataclass(slots=True)
class Outcome:
    """What a core decided. `group`: a classic group's state once the changes are persisted; None: as it was. `notes`:
    what is known from then on, and not persisted. `whole`: the changes do no good one without the other, so that they
    must fit one batch."""

    changes: list[Change] = field(default_factory=list)
    group: ClassicGroup | None = None
    effects: list[Effect] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    whole: bool = False
