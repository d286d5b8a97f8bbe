"""What a partition of `__consumer_offsets` says: its groups and their offsets, and the questions asked of them.

`apply` puts an outcome whose changes were persisted into effect; `replay` applies one change read from the log; `live`
is the whole state as changes again. `replay` of everything that was persisted, in order, gives the state that a crash
leaves: groups empty or stable, nobody waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from broker.groups import offsets
from broker.groups.classic import ClassicGroup
from broker.groups.consumer import ConsumerGroup, Kept
from broker.groups.consumer_model import (
    AssignmentRun,
    ConsumerChange,
    CurrentRemoved,
    EpochRemoved,
    MemberRemoved,
    MetadataSeen,
    Note,
    RegexRemoved,
    RegexRun,
    TargetEpochRemoved,
    TargetRemoved,
    TopicsOfOldVersion,
)
from broker.groups.model import (
    ZERO_UUID,
    Change,
    FetchAnswer,
    GroupRemoved,
    GroupSaved,
    GroupState,
    GroupView,
    ListedGroup,
    Offset,
    OffsetCommitted,
    OffsetRemoved,
    Outcome,
    PendingOffset,
)
from protocol.errors import ErrorCode

CLASSIC = "classic"
CONSUMER = "consumer"

Group: TypeAlias = ClassicGroup | ConsumerGroup

StateKey: TypeAlias = tuple[str, str | None, int] | tuple[str, Kept, str]
"""(group id, topic, partition) of an offset; topic None: a classic group itself. (group id, kind, name): one record of
a consumer group."""

_SAYS_NOTHING = (
    CurrentRemoved,
    MemberRemoved,
    RegexRemoved,
    TargetEpochRemoved,
    TargetRemoved,
    TopicsOfOldVersion,
)
"""Records that are nothing to a group that does not exist."""


class ShardState:
    """Nothing but `apply`, `replay` and markers change it."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.offsets = offsets.Offsets()

    def apply(self, outcome: Outcome) -> None:
        for change in outcome.changes:
            if isinstance(change, GroupSaved):
                assert outcome.group is not None, "a saved group comes with its state"
                outcome.group.saved = change
            else:
                self.replay(change)
        if outcome.group is not None:
            self.groups[outcome.group.group_id] = outcome.group
        for note in outcome.notes:
            self._note(note)

    def end_transaction(self, producer_id: int, *, committed: bool) -> None:
        """A marker was appended: it is the record of what happens here."""
        self.offsets.end_transaction(producer_id, committed=committed)

    def replay(self, change: Change) -> None:
        match change:
            case OffsetCommitted() | OffsetRemoved() | PendingOffset():
                self._apply_offset(change)
            case GroupSaved():
                self.groups[change.group_id] = ClassicGroup.restored(change)
            case GroupRemoved(group_id):
                self._remove_group(group_id)
            case EpochRemoved(group_id):
                if isinstance(self.groups.get(group_id), ConsumerGroup):
                    self._remove_group(group_id)
            case _:
                self._apply_consumer(change)

    def _remove_group(self, group_id: str) -> None:
        """A group that changes its protocol leaves its offsets to the next one. Should nobody write that, they are
        those of a group without members, as after a commit without group: to be seen, deleted, and to expire."""
        if self.groups.pop(group_id, None) is not None and self.offsets.places(group_id):
            self.groups[group_id] = ClassicGroup(group_id)

    def _apply_consumer(self, change: ConsumerChange) -> None:
        """The first record that says something of a group makes it one of consumers: also in place of a classic one,
        which has no records of its own then, only offsets."""
        group = self.groups.get(change.group_id)
        if not isinstance(group, ConsumerGroup):
            if isinstance(change, _SAYS_NOTHING):
                return
            group = self.groups[change.group_id] = ConsumerGroup(change.group_id)
        group.apply(change)

    def _note(self, note: Note) -> None:
        group = self.groups.get(note.group_id)
        if not isinstance(group, ConsumerGroup):
            return
        match note:
            case MetadataSeen(_, version):
                group.seen_version = version
            case AssignmentRun(_, epoch):
                group.assigning = epoch
            case RegexRun(_, running, again_ms):
                group.resolving, group.resolve_again_ms = running, again_ms

    def _apply_offset(self, change: OffsetCommitted | OffsetRemoved | PendingOffset) -> None:
        if not isinstance(change, OffsetRemoved) and change.group_id not in self.groups:
            self.groups[change.group_id] = ClassicGroup(change.group_id)
        self.offsets.apply(change)

    @property
    def records_in_force(self) -> int:
        """How many records the state is."""
        return self.offsets.count + sum(
            sum(1 for _ in group.kept()) if isinstance(group, ConsumerGroup) else group.saved is not None
            for group in self.groups.values()
        )

    def keys(self, group_id: str) -> list[StateKey]:
        """Everything persisted of a group, to be asked for with `live`, also in parts."""
        group = self.groups.get(group_id)
        own: list[StateKey] = []
        if isinstance(group, ConsumerGroup):
            own += [(group_id, kind, name) for kind, name in group.kept()]
        elif group is not None and group.saved is not None:
            own.append((group_id, None, 0))
        return own + [(group_id, topic, partition) for topic, partition in self.offsets.places(group_id)]

    def live(self, keys: Iterable[StateKey]) -> list[Change]:
        """What is persisted now under these keys, as changes; replaying those of all keys gives the same state."""
        changes: list[Change] = []
        for key in keys:
            group = self.groups.get(key[0])
            if isinstance(key[1], Kept):
                assert isinstance(key[2], str), "a name goes with a kind"
                kept = group.in_force(key[1], key[2]) if isinstance(group, ConsumerGroup) else None
                if kept is not None:
                    changes.append(kept)
                continue
            assert isinstance(key[2], int), "a partition goes with a topic"
            if key[1] is None:
                if isinstance(group, ClassicGroup) and group.saved is not None:
                    changes.append(group.saved)
            else:
                offset = self.offsets.get(key[0], key[1], key[2])
                if offset is not None:
                    changes.append(OffsetCommitted(key[0], key[1], key[2], offset))
                changes += self.offsets.pending.live((key[0], key[1], key[2]))
        return changes

    # -- look

    def fetch(
        self, group_id: str, partitions: Sequence[tuple[str, bytes, int]] | None, *, require_stable: bool = False
    ) -> FetchAnswer:
        """Offsets of (topic, topic id or zero, partition), or all there are. An unknown group has none; nor does a
        topic of another id than the one that was committed for. `require_stable`: say which are not."""
        if partitions is None:
            found: tuple[tuple[str, int, Offset | None], ...] = tuple(self.offsets.of_group(group_id))
        else:
            found = tuple(
                (topic, partition, _of_topic_id(self.offsets.get(group_id, topic, partition), topic_id))
                for topic, topic_id, partition in partitions
            )
        is_unstable = self.offsets.pending.is_unstable
        unstable = frozenset(
            (topic, partition)
            for topic, partition, _ in found
            if require_stable and is_unstable(group_id, topic, partition)
        )
        return FetchAnswer(ErrorCode.NONE, found, unstable)

    def describe(self, group_id: str) -> GroupView:
        """GROUP_ID_NOT_FOUND and state Dead for an unknown group."""
        group = self.groups.get(group_id)
        if not isinstance(group, ClassicGroup):
            return GroupView(ErrorCode.GROUP_ID_NOT_FOUND, group_id, GroupState.DEAD.value)
        return group.describe()

    def check_fetch(self, group_id: str, member_id: str | None, epoch: int) -> ErrorCode:
        """May offsets be read in the name of this member? Members of classic groups and nobody always may."""
        group = self.groups.get(group_id)
        return group.check_fetch(member_id, epoch) if isinstance(group, ConsumerGroup) else ErrorCode.NONE

    def list_groups(self, states: frozenset[str], types: frozenset[str]) -> list[ListedGroup]:
        """Groups in these states and of these types, all in lower case; an empty set: any."""
        listed = (
            ListedGroup(group.group_id, CONSUMER, group.state.value, CONSUMER)
            if isinstance(group, ConsumerGroup)
            else ListedGroup(group.group_id, group.protocol_type or "", group.state.value, CLASSIC)
            for group in self.groups.values()
        )
        return [
            one for one in listed if (not states or one.state.lower() in states) and (not types or one.type in types)
        ]


def _of_topic_id(offset: Offset | None, topic_id: bytes) -> Offset | None:
    if offset is None or ZERO_UUID in (topic_id, offset.topic_id) or topic_id == offset.topic_id:
        return offset
    return None
