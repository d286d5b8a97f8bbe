"""The words of consumer groups (KIP-848): what is stored, asked and answered beside `broker.groups.model`.

A partition set is a dict from topic id (16 bytes) to partition numbers. What a member holds also says since which
member epoch (KIP-1251): a commit with an older epoch of the same member is good for what it held then already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import NamedTuple, TypeAlias

from protocol.errors import ErrorCode

Partitions: TypeAlias = Mapping[bytes, frozenset[int]]
"""Topic id -> partitions; no topic without any."""

Held: TypeAlias = Mapping[bytes, Mapping[int, int]]
"""Topic id -> partition -> the epoch in which the member was given it."""

LEAVE_EPOCH = -1
STATIC_LEAVE_EPOCH = -2
"""Member epoch of a static member that will be back within its session."""
FIRST_EPOCH = 1
"""Epoch of a group that nobody has joined yet: its assignment is empty. The first one computed has the next epoch."""


class ConsumerState(StrEnum):
    """States of a consumer group, spelled as Kafka's tools show them."""

    EMPTY = "Empty"
    ASSIGNING = "Assigning"
    RECONCILING = "Reconciling"
    STABLE = "Stable"


class MemberState(IntEnum):
    """How far a member is on its way to its target; the numbers are those of the record."""

    STABLE = 0
    UNREVOKED_PARTITIONS = 1
    """It is asked to give up partitions; it keeps its epoch until it says that it has."""
    UNRELEASED_PARTITIONS = 2
    """It is in the newest epoch, but others have not yet given up all that it is to get."""
    UNKNOWN = 127
    """Written by a newer version."""


class MigrationPolicy(StrEnum):
    """Whether groups may change between the protocols while they have members."""

    BIDIRECTIONAL = "bidirectional"
    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    DISABLED = "disabled"

    @property
    def upgrades(self) -> bool:
        return self in (MigrationPolicy.BIDIRECTIONAL, MigrationPolicy.UPGRADE)

    @property
    def downgrades(self) -> bool:
        return self in (MigrationPolicy.BIDIRECTIONAL, MigrationPolicy.DOWNGRADE)


class ConsumerConfig(NamedTuple):
    """The settings that decide about consumer groups; Kafka's names and defaults."""

    session_timeout_ms: int = 45_000
    heartbeat_interval_ms: int = 5_000
    assignment_interval_ms: int = 1_000
    max_size: int = 2**31 - 1
    assignors: tuple[str, ...] = ("uniform", "range")
    """The first one is the default."""
    migration_policy: MigrationPolicy = MigrationPolicy.BIDIRECTIONAL
    regex_refresh_interval_ms: int = 600_000


class GroupTimes(NamedTuple):
    """What the configs of one group (resource type GROUP) may say otherwise than the broker's."""

    session_timeout_ms: int
    heartbeat_interval_ms: int
    assignment_interval_ms: int


TimesOf: TypeAlias = Callable[[str], GroupTimes]


# --- what is stored: one change is one record


class ClassicProtocols(NamedTuple):
    """What a member that speaks the classic protocol brought along."""

    session_timeout_ms: int
    protocols: tuple[tuple[str, bytes], ...]


class EpochSaved(NamedTuple):
    group_id: str
    epoch: int
    metadata_hash: int


class EpochRemoved(NamedTuple):
    """The group is gone."""

    group_id: str


class MemberSaved(NamedTuple):
    group_id: str
    member_id: str
    instance_id: str | None
    rack_id: str | None
    client_id: str
    client_host: str
    topics: tuple[str, ...]
    """Sorted."""
    regex: str | None
    rebalance_timeout_ms: int
    assignor: str | None
    classic: ClassicProtocols | None


class MemberRemoved(NamedTuple):
    group_id: str
    member_id: str


class TargetEpochSaved(NamedTuple):
    group_id: str
    epoch: int
    timestamp_ms: int
    """When it was computed; 0: never, so that the next one need not wait."""


class TargetEpochRemoved(NamedTuple):
    group_id: str


class TargetSaved(NamedTuple):
    group_id: str
    member_id: str
    partitions: Partitions


class TargetRemoved(NamedTuple):
    group_id: str
    member_id: str


class CurrentSaved(NamedTuple):
    group_id: str
    member_id: str
    epoch: int
    previous_epoch: int
    state: int
    assigned: Held
    revoking: Held


class CurrentRemoved(NamedTuple):
    group_id: str
    member_id: str


class RegexSaved(NamedTuple):
    """Topics that a regular expression matched at metadata position `version`."""

    group_id: str
    regex: str
    topics: tuple[str, ...]
    """Sorted."""
    version: int
    timestamp_ms: int


class RegexRemoved(NamedTuple):
    group_id: str
    regex: str


class TopicsOfOldVersion(NamedTuple):
    """Kafka wrote the partition counts that a group had seen before it wrote their hash; without effect."""

    group_id: str


ConsumerChange: TypeAlias = (
    EpochSaved
    | EpochRemoved
    | MemberSaved
    | MemberRemoved
    | TargetEpochSaved
    | TargetEpochRemoved
    | TargetSaved
    | TargetRemoved
    | CurrentSaved
    | CurrentRemoved
    | RegexSaved
    | RegexRemoved
    | TopicsOfOldVersion
)


# --- what is known and not stored


class MetadataSeen(NamedTuple):
    """The group has been compared with the topics as they were at this version of them."""

    group_id: str
    version: int


class AssignmentRun(NamedTuple):
    """A target assignment for this epoch is being computed; 0: none is."""

    group_id: str
    epoch: int


class RegexRun(NamedTuple):
    """Regular expressions of the group are being resolved, or not any more."""

    group_id: str
    running: bool
    again_ms: int = 0
    """Not before then, because it failed."""


Note: TypeAlias = MetadataSeen | AssignmentRun | RegexRun


# --- what is asked and answered


class ConsumerHeartbeat(NamedTuple):
    """A ConsumerGroupHeartbeat; None: as said before."""

    waiter: int
    group_id: str
    member_id: str
    member_epoch: int
    instance_id: str | None
    rack_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    """-1: as before."""
    topics: tuple[str, ...] | None
    regex: str | None
    assignor: str | None
    owned: Partitions | None
    token: str
    """The id of a member that has none (v0): UUID text."""

    @property
    def is_full(self) -> bool:
        """Says everything, as a member does when it joins or after an error; it is then told everything."""
        return (
            self.rebalance_timeout_ms != -1
            and (self.topics is not None or self.regex is not None)
            and self.owned is not None
        )


class ConsumerHeartbeatAnswer(NamedTuple):
    error: ErrorCode
    message: str | None = None
    member_id: str | None = None
    member_epoch: int = 0
    heartbeat_interval_ms: int = 0
    assignment: Partitions | None = None
    """None: as told before."""


class ConsumerMemberView(NamedTuple):
    member_id: str
    instance_id: str | None
    rack_id: str | None
    epoch: int
    client_id: str
    client_host: str
    topics: tuple[str, ...]
    regex: str
    """Empty: none."""
    assigned: Partitions
    target: Partitions
    is_classic: bool


class ConsumerGroupView(NamedTuple):
    """A consumer group as plain data."""

    error: ErrorCode
    group_id: str
    message: str | None = None
    state: str = ""
    epoch: int = 0
    assignment_epoch: int = 0
    assignor: str = ""
    members: tuple[ConsumerMemberView, ...] = ()


# --- what is to be done


class ComputeAssignment(NamedTuple):
    """Compute a target assignment beside everything else: too much work for one heartbeat."""

    group_id: str
    epoch: int


class ResolveRegexes(NamedTuple):
    group_id: str
    regexes: tuple[str, ...]
