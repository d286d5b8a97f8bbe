"""A consumer group (KIP-848) as pure state: what its records say, and the questions asked of it.

Every change is one record; `apply` is the only way the state changes, when a record is written as when it is read
again. Decisions are in `broker.groups.heartbeats`. Rules are those of Kafka 4.3's `ConsumerGroup`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from broker.groups.consumer_model import (
    FIRST_EPOCH,
    ClassicProtocols,
    ConsumerChange,
    ConsumerGroupView,
    ConsumerMemberView,
    ConsumerState,
    CurrentRemoved,
    CurrentSaved,
    EpochRemoved,
    EpochSaved,
    Held,
    MemberRemoved,
    MemberSaved,
    MemberState,
    Partitions,
    RegexRemoved,
    RegexSaved,
    TargetEpochRemoved,
    TargetEpochSaved,
    TargetRemoved,
    TargetSaved,
    TopicsOfOldVersion,
)
from broker.groups.model import Commit
from protocol.errors import ErrorCode

CONSUMER_PROTOCOL = "consumer"
"""The protocol type of consumers in the classic protocol."""


class Kept(Enum):
    """Kinds of records in force."""

    MEMBER = 1
    REGEX = 2
    EPOCH = 3
    TARGET = 4
    TARGET_EPOCH = 5
    CURRENT = 6


@dataclass(frozen=True, slots=True)
class ConsumerMember:
    """One member: what it asked for, and what it holds. Epoch 0: it is joining; -2: a static member that is away."""

    member_id: str
    instance_id: str | None = None
    rack_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    topics: tuple[str, ...] = ()
    regex: str | None = None
    rebalance_timeout_ms: int = -1
    assignor: str | None = None
    classic: ClassicProtocols | None = None
    """Not None: it speaks the classic protocol."""
    epoch: int = 0
    previous_epoch: int = 0
    state: int = MemberState.STABLE
    assigned: Held = field(default_factory=dict)
    revoking: Held = field(default_factory=dict)

    def is_reconciled_to(self, epoch: int) -> bool:
        return self.state == MemberState.STABLE and self.epoch == epoch

    def saved(self, group_id: str) -> MemberSaved:
        return MemberSaved(
            group_id,
            self.member_id,
            self.instance_id,
            self.rack_id,
            self.client_id,
            self.client_host,
            self.topics,
            self.regex,
            self.rebalance_timeout_ms,
            self.assignor,
            self.classic,
        )

    def current(self, group_id: str) -> CurrentSaved:
        return CurrentSaved(
            group_id, self.member_id, self.epoch, self.previous_epoch, self.state, self.assigned, self.revoking
        )

    def held_since(self, topic_id: bytes, partition: int) -> int | None:
        """The epoch in which it was given the partition; None: it does not hold it."""
        for held in (self.assigned, self.revoking):
            since = held.get(topic_id, {}).get(partition)
            if since is not None:
                return since
        return None


@dataclass(slots=True)
class ConsumerGroup:
    """State of one group; changed only by `apply`, and by notes of what need not survive."""

    group_id: str
    epoch: int = FIRST_EPOCH
    metadata_hash: int = 0
    assignment_epoch: int = FIRST_EPOCH
    assignment_timestamp_ms: int = 0
    members: dict[str, ConsumerMember] = field(default_factory=dict)
    static_members: dict[str, str] = field(default_factory=dict)
    """Group instance id to member id."""
    target: dict[str, Partitions] = field(default_factory=dict)
    owners: dict[bytes, dict[int, str]] = field(default_factory=dict)
    """Topic id -> partition -> the member that holds it, also while it is to give it up."""
    regexes: dict[str, RegexSaved] = field(default_factory=dict)
    """Resolved regular expressions."""
    topic_counts: Counter[str] = field(default_factory=Counter)
    """Members subscribed by name."""
    regex_counts: Counter[str] = field(default_factory=Counter)
    classic_counts: Counter[str] = field(default_factory=Counter)
    """Members of the classic protocol by assignor that they support."""
    classic_members: int = 0
    saved_epoch: bool = False
    saved_target_epoch: bool = False
    """Whether there is a record of it."""
    seen_version: int = -1
    """Version of the topics that `metadata_hash` was last compared with."""
    assigning: int = 0
    """The epoch of the assignment under way; 0: none."""
    resolving: bool = False
    resolve_again_ms: int = 0

    protocol_type: None = None
    """Offsets expire since their commit, whatever the group's state: as those of a group without members ever."""

    # -- changes

    def apply(self, change: ConsumerChange) -> None:
        match change:
            case CurrentSaved(_, member_id, epoch, previous, state, assigned, revoking):
                member = self.members.get(member_id, ConsumerMember(member_id))
                self._release(member)
                self.members[member_id] = replace(
                    member, epoch=epoch, previous_epoch=previous, state=state, assigned=assigned, revoking=revoking
                )
                self._hold(self.members[member_id])
            case CurrentRemoved(_, member_id):
                known = self.members.get(member_id)
                if known is not None:
                    self._release(known)
                    self.members[member_id] = replace(
                        known, epoch=0, previous_epoch=0, state=MemberState.STABLE, assigned={}, revoking={}
                    )
            case TargetSaved(_, member_id, partitions):
                self.target[member_id] = partitions
            case TargetRemoved(_, member_id):
                self.target.pop(member_id, None)
            case EpochSaved(_, epoch, metadata_hash):
                self.epoch, self.metadata_hash, self.saved_epoch = epoch, metadata_hash, True
            case TargetEpochSaved(_, epoch, timestamp_ms):
                self.assignment_epoch, self.assignment_timestamp_ms = epoch, timestamp_ms
                self.saved_target_epoch = True
            case TargetEpochRemoved():
                self.assignment_epoch, self.assignment_timestamp_ms = FIRST_EPOCH, 0
                self.saved_target_epoch = False
            case MemberSaved():
                self._put(change)
            case MemberRemoved(_, member_id):
                self._remove(member_id)
            case RegexSaved():
                self.regexes[change.regex] = change
            case RegexRemoved(_, regex):
                self.regexes.pop(regex, None)
            case EpochRemoved() | TopicsOfOldVersion():
                pass

    def _put(self, saved: MemberSaved) -> None:
        old = self.members.get(saved.member_id, ConsumerMember(saved.member_id))
        self._count(old, -1)
        new = replace(
            old,
            instance_id=saved.instance_id,
            rack_id=saved.rack_id,
            client_id=saved.client_id,
            client_host=saved.client_host,
            topics=saved.topics,
            regex=saved.regex,
            rebalance_timeout_ms=saved.rebalance_timeout_ms,
            assignor=saved.assignor,
            classic=saved.classic,
        )
        self.members[saved.member_id] = new
        self._count(new, 1)
        if new.instance_id is not None:
            self.static_members[new.instance_id] = new.member_id

    def _remove(self, member_id: str) -> None:
        old = self.members.pop(member_id, None)
        if old is None:
            return
        self._count(old, -1)
        self._release(old)
        if old.instance_id is not None and self.static_members.get(old.instance_id) == member_id:
            del self.static_members[old.instance_id]

    def _count(self, member: ConsumerMember, by: int) -> None:
        for topic in member.topics:
            _add(self.topic_counts, topic, by)
        if member.regex:
            _add(self.regex_counts, member.regex, by)
        if member.classic is not None:
            self.classic_members += by
            for name, _ in member.classic.protocols:
                _add(self.classic_counts, name, by)

    def _release(self, member: ConsumerMember) -> None:
        for held in (member.assigned, member.revoking):
            for topic_id, partitions in held.items():
                owners = self.owners.get(topic_id, {})
                for partition in partitions:
                    if owners.get(partition) == member.member_id:
                        del owners[partition]
                if not owners:
                    self.owners.pop(topic_id, None)

    def _hold(self, member: ConsumerMember) -> None:
        for held in (member.assigned, member.revoking):
            for topic_id, partitions in held.items():
                owners = self.owners.setdefault(topic_id, {})
                for partition in partitions:
                    owners[partition] = member.member_id

    def removal(self) -> list[ConsumerChange]:
        """The changes that remove everything of the group but its offsets, in Kafka's order."""
        group_id, members = self.group_id, list(self.members)
        changes: list[ConsumerChange] = [CurrentRemoved(group_id, member_id) for member_id in members]
        changes += [TargetRemoved(group_id, member_id) for member_id in members]
        changes.append(TargetEpochRemoved(group_id))
        changes += [MemberRemoved(group_id, member_id) for member_id in members]
        changes += [RegexRemoved(group_id, regex) for regex in self.regexes]
        changes.append(EpochRemoved(group_id))
        return changes

    # -- questions

    @property
    def state(self) -> ConsumerState:
        if not self.members:
            return ConsumerState.EMPTY
        if self.epoch > self.assignment_epoch:
            return ConsumerState.ASSIGNING
        if all(member.is_reconciled_to(self.assignment_epoch) for member in self.members.values()):
            return ConsumerState.STABLE
        return ConsumerState.RECONCILING

    def static_member(self, instance_id: str | None) -> ConsumerMember | None:
        member_id = None if instance_id is None else self.static_members.get(instance_id)
        return None if member_id is None else self.members.get(member_id)

    def target_of(self, member_id: str, instance_id: str | None) -> Partitions:
        """A new incarnation of a static member has the target of the one before."""
        known = None if instance_id is None else self.static_members.get(instance_id)
        return self.target.get(known or member_id) or self.target.get(member_id) or {}

    def owner(self, topic_id: bytes, partition: int) -> str | None:
        return self.owners.get(topic_id, {}).get(partition)

    def is_subscribed(self, topic: str) -> bool:
        return topic in self.topic_counts or any(
            topic in resolved.topics for regex, resolved in self.regexes.items() if regex in self.regex_counts
        )

    def waits_for_others(self, member: ConsumerMember) -> bool:
        """Is part of its target still held by others?"""
        if member.state != MemberState.UNRELEASED_PARTITIONS:
            return False
        for topic_id, partitions in self.target.get(member.member_id, {}).items():
            held, owners = member.assigned.get(topic_id, {}), self.owners.get(topic_id, {})
            if any(partition not in held and partition in owners for partition in partitions):
                return True
        return False

    def supports_classic(self, protocol_type: str, protocols: Iterable[str]) -> bool:
        """Is one of these assignors supported by every member of the classic protocol?"""
        return protocol_type == CONSUMER_PROTOCOL and any(
            self.classic_counts[name] == self.classic_members for name in protocols
        )

    def only_classic_without(self, leaving: Iterable[str]) -> bool:
        """Do all members but these speak the classic protocol?"""
        gone = [self.members[member_id] for member_id in leaving]
        classic_gone = sum(member.classic is not None for member in gone)
        return self.classic_members - classic_gone == len(self.members) - len(gone)

    def check_commit(self, commit: Commit, *, has_member_epochs: bool) -> ErrorCode:
        """May these offsets be committed? With the member's epoch; with an older one (KIP-1251) what it has held since
        then or before. `has_member_epochs`: the request is of a version that knows them (9)."""
        if commit.generation < 0 and not self.members:
            return ErrorCode.NONE
        member = self.members.get(commit.member_id)
        if member is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        if member.classic is None and not has_member_epochs:
            return ErrorCode.UNSUPPORTED_VERSION
        if commit.generation == member.epoch:
            return ErrorCode.NONE
        if commit.generation < member.epoch:
            since = [member.held_since(offset.topic_id, offset.partition) for offset in commit.offsets]
            if all(epoch is not None and commit.generation >= epoch for epoch in since):
                return ErrorCode.NONE
        return ErrorCode.STALE_MEMBER_EPOCH if member.classic is None else ErrorCode.ILLEGAL_GENERATION

    def check_fetch(self, member_id: str | None, epoch: int) -> ErrorCode:
        """May this member, or nobody in particular, read the group's offsets?"""
        if member_id is None and epoch < 0:
            return ErrorCode.NONE
        member = self.members.get(member_id or "")
        if member is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        if epoch == member.epoch:
            return ErrorCode.NONE
        return ErrorCode.STALE_MEMBER_EPOCH if member.classic is None else ErrorCode.ILLEGAL_GENERATION

    def preferred_assignor(self, changed: ConsumerMember | None, default: str) -> str:
        """What most members ask for, `changed` being the new state of one of them; ties go to the first by name."""
        votes: Counter[str] = Counter()
        for member in self.members.values():
            if member.assignor is not None and (changed is None or member.member_id != changed.member_id):
                votes[member.assignor] += 1
        if changed is not None and changed.assignor is not None:
            votes[changed.assignor] += 1
        return min(votes, key=lambda name: (-votes[name], name), default=default)

    def describe(self, default_assignor: str) -> ConsumerGroupView:
        return ConsumerGroupView(
            ErrorCode.NONE,
            self.group_id,
            None,
            self.state.value,
            self.epoch,
            self.assignment_epoch,
            self.preferred_assignor(None, default_assignor),
            tuple(
                ConsumerMemberView(
                    member.member_id,
                    member.instance_id,
                    member.rack_id,
                    member.epoch,
                    member.client_id,
                    member.client_host,
                    member.topics,
                    member.regex or "",
                    {topic_id: frozenset(held) for topic_id, held in member.assigned.items()},
                    self.target.get(member.member_id, {}),
                    member.classic is not None,
                )
                for member in self.members.values()
            ),
        )

    def kept(self) -> Iterator[tuple[Kept, str]]:
        """What there are records of; `in_force` tells what they say."""
        for member_id in self.members:
            yield Kept.MEMBER, member_id
        for regex in self.regexes:
            yield Kept.REGEX, regex
        if self.saved_epoch:
            yield Kept.EPOCH, ""
        for member_id in self.target:
            yield Kept.TARGET, member_id
        if self.saved_target_epoch:
            yield Kept.TARGET_EPOCH, ""
        for member_id in self.members:
            yield Kept.CURRENT, member_id

    def in_force(self, kind: Kept, name: str) -> ConsumerChange | None:
        """The record of this key as it is now; applying all of them to a new group gives an equal one."""
        group_id, member = self.group_id, self.members.get(name)
        match kind:
            case Kept.MEMBER:
                return None if member is None else member.saved(group_id)
            case Kept.CURRENT:
                return None if member is None else member.current(group_id)
            case Kept.REGEX:
                return self.regexes.get(name)
            case Kept.TARGET:
                return TargetSaved(group_id, name, self.target[name]) if name in self.target else None
            case Kept.EPOCH:
                return EpochSaved(group_id, self.epoch, self.metadata_hash) if self.saved_epoch else None
            case Kept.TARGET_EPOCH:
                if not self.saved_target_epoch:
                    return None
                return TargetEpochSaved(group_id, self.assignment_epoch, self.assignment_timestamp_ms)


def _add(counts: Counter[str], key: str, by: int) -> None:
    counts[key] += by
    if not counts[key]:
        del counts[key]
