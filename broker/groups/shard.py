"""One partition of `__consumer_offsets` as pure state: its groups and their offsets.

Commands decide and return an `Outcome`; `apply` puts an outcome whose changes were persisted into effect; `replay`
applies one change read from the log; `live` is the whole state as changes again. `replay` of everything that was
persisted, in order, gives the state that a crash leaves: groups empty or stable, nobody waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from broker.groups import classic, offsets
from broker.groups.classic import ClassicGroup
from broker.groups.model import (
    ZERO_UUID,
    Change,
    Commit,
    CommitAnswer,
    DeleteGroups,
    DeleteGroupsAnswer,
    DeleteOffsets,
    DeleteOffsetsAnswer,
    FetchAnswer,
    GroupConfig,
    GroupRemoved,
    GroupSaved,
    GroupState,
    GroupView,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    ListedGroup,
    Offset,
    OffsetCommitted,
    OffsetRemoved,
    Outcome,
    PendingOffset,
    Reply,
    Sync,
    SyncAnswer,
    TimerKey,
    TxnCommit,
)
from broker.groups.rebalance import Transition
from protocol.errors import ErrorCode

CLASSIC = "classic"

StateKey: TypeAlias = tuple[str, str | None, int]
"""(group id, topic, partition) of an offset; topic None: the group itself."""

_NO_MEMBERS = (GroupState.EMPTY, GroupState.DEAD)


class Shard:
    """State and decisions. Nothing but `apply` and `replay` changes it."""

    def __init__(self, config: GroupConfig) -> None:
        self.config = config
        self.groups: dict[str, ClassicGroup] = {}
        self.offsets = offsets.Offsets()

    # -- decide: memberships

    def join(self, join: Join, now_ms: int) -> Outcome:
        if not self.config.min_session_timeout_ms <= join.session_timeout_ms <= self.config.max_session_timeout_ms:
            return _reply(join.waiter, JoinAnswer(ErrorCode.INVALID_SESSION_TIMEOUT, join.member_id))
        group = self.groups.get(join.group_id)
        if group is None and join.member_id:
            return _reply(join.waiter, JoinAnswer(ErrorCode.UNKNOWN_MEMBER_ID, join.member_id))
        step = Transition(
            group or ClassicGroup(join.group_id, state_timestamp_ms=now_ms), self.config, now_ms, created=group is None
        )
        step.join(join)
        return step.outcome()

    def sync(self, sync: Sync, now_ms: int) -> Outcome:
        group = self.groups.get(sync.group_id)
        if group is None:
            return _reply(sync.waiter, SyncAnswer(ErrorCode.UNKNOWN_MEMBER_ID))
        step = Transition(group, self.config, now_ms)
        step.sync(sync)
        return step.outcome()

    def heartbeat(self, heartbeat: Heartbeat) -> Outcome:
        group = self.groups.get(heartbeat.group_id)
        if group is None:
            return _reply(heartbeat.waiter, ErrorCode.UNKNOWN_MEMBER_ID)
        return classic.heartbeat(group, heartbeat)

    def leave(self, leave: Leave, now_ms: int) -> Outcome:
        group = self.groups.get(leave.group_id)
        if group is None:
            unknown = tuple((leaver, ErrorCode.UNKNOWN_MEMBER_ID) for leaver in leave.members)
            return _reply(leave.waiter, LeaveAnswer(ErrorCode.NONE, unknown))
        step = Transition(group, self.config, now_ms)
        step.leave(leave)
        return step.outcome()

    def timer(self, key: TimerKey, now_ms: int) -> Outcome:
        """A timer that an outcome set has fired."""
        kind, group_id, member_id = key
        group = self.groups.get(group_id)
        if group is None:
            return Outcome()
        step = Transition(group, self.config, now_ms)
        match kind:
            case "session":
                step.session_timeout(member_id)
            case "join":
                step.join_timeout()
            case "sync":
                step.sync_timeout()
            case _:
                raise AssertionError(f"timer {key}")
        return step.outcome()

    def loaded(self, group_id: str, now_ms: int) -> Outcome:
        """What a group needs after the log was read: session timers."""
        step = Transition(self.groups[group_id], self.config, now_ms)
        step.loaded()
        return step.outcome()

    # -- decide: offsets

    def commit(self, commit: Commit, now_ms: int) -> Outcome:
        """Does not depend on other offsets, so that several may be decided on one state and persisted together."""
        group = self.groups.get(commit.group_id)
        if group is None and commit.generation >= 0:
            error = commit.unknown_group
        elif group is None:
            # A simple consumer: it only stores offsets.
            error = ErrorCode.NONE
        else:
            error = group.check_commit(commit.member_id, commit.instance_id, commit.generation)
        if error is not ErrorCode.NONE:
            return _reply(commit.waiter, CommitAnswer((error,) * len(commit.offsets)))
        outcome = Outcome()
        errors = tuple(offsets.check(asked, self.config.offset_metadata_max_bytes) for asked in commit.offsets)
        outcome.changes += [
            offsets.committed(commit, asked, now_ms)
            for asked, error in zip(commit.offsets, errors)
            if error is ErrorCode.NONE
        ]
        if group is not None and commit.member_id in group.members:
            outcome.effects.append(classic.keep_alive(group, commit.member_id))
        outcome.effects.append(Reply(commit.waiter, CommitAnswer(errors)))
        return outcome

    def txn_commit(self, command: TxnCommit, now_ms: int) -> Outcome:
        """TxnOffsetCommit. Whoever says who he is must be who he says; a producer need not be a member."""
        commit = command.commit
        group = self.groups.get(commit.group_id)
        says_nothing = commit.generation < 0 and not commit.member_id and commit.instance_id is None
        if group is None:
            error = ErrorCode.ILLEGAL_GENERATION if commit.generation >= 0 else ErrorCode.NONE
        elif says_nothing:
            error = ErrorCode.NONE
        else:
            error = group.check_commit(commit.member_id, commit.instance_id, commit.generation)
        if error is ErrorCode.REBALANCE_IN_PROGRESS:
            error = ErrorCode.NONE
        elif error is ErrorCode.STALE_MEMBER_EPOCH:
            error = ErrorCode.ILLEGAL_GENERATION
        if error is not ErrorCode.NONE:
            return _reply(commit.waiter, CommitAnswer((error,) * len(commit.offsets)))
        errors = tuple(offsets.check(asked, self.config.offset_metadata_max_bytes) for asked in commit.offsets)
        return Outcome(
            [
                offsets.pending(command, asked, now_ms)
                for asked, error in zip(commit.offsets, errors)
                if error is ErrorCode.NONE
            ],
            effects=[Reply(commit.waiter, CommitAnswer(errors))],
        )

    def end_transaction(self, producer_id: int, *, committed: bool) -> None:
        """A marker was appended: it is the record of what happens here."""
        self.offsets.end_transaction(producer_id, committed=committed)

    def delete_offsets(self, command: DeleteOffsets) -> Outcome:
        group = self.groups.get(command.group_id)
        if group is None:
            return _reply(command.waiter, DeleteOffsetsAnswer(ErrorCode.GROUP_ID_NOT_FOUND))
        if group.state not in _NO_MEMBERS and not group.is_consumer:
            return _reply(command.waiter, DeleteOffsetsAnswer(ErrorCode.NON_EMPTY_GROUP))
        outcome = Outcome()
        errors = []
        for topic, partition in command.partitions:
            if group.is_subscribed(topic):
                errors.append(ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC)
                continue
            errors.append(ErrorCode.NONE)
            if self.offsets.get(command.group_id, topic, partition) is not None:
                outcome.changes.append(OffsetRemoved(command.group_id, topic, partition))
        outcome.effects.append(Reply(command.waiter, DeleteOffsetsAnswer(ErrorCode.NONE, tuple(errors))))
        return outcome

    def delete_groups(self, command: DeleteGroups) -> Outcome:
        outcome = Outcome()
        errors = []
        for group_id in command.group_ids:
            group = self.groups.get(group_id)
            if group is None:
                errors.append(ErrorCode.GROUP_ID_NOT_FOUND)
            elif group.state is not GroupState.EMPTY:
                errors.append(ErrorCode.NON_EMPTY_GROUP)
            else:
                errors.append(ErrorCode.NONE)
                outcome.changes += [*self.offsets.remove_group(group_id), GroupRemoved(group_id)]
        outcome.effects.append(Reply(command.waiter, DeleteGroupsAnswer(tuple(errors))))
        return outcome

    def expire(self, group_id: str, now_ms: int) -> Outcome:
        """Remove what is over of one group; the group too, when it is empty and has no offset left."""
        group = self.groups.get(group_id)
        if group is None:
            return Outcome()
        expired = self.offsets.expired(group, now_ms, self.config.offsets_retention_ms)
        changes: list[Change] = list(expired)
        if (
            self.offsets.count_of(group_id) == len(expired)
            and group.state is GroupState.EMPTY
            and not group.pending_joins
        ):
            changes.append(GroupRemoved(group_id))
        return Outcome(changes)

    def forget_topics(self, group_id: str, exists: Callable[[str, bytes], bool]) -> Outcome:
        """Remove one group's offsets of topics that do not exist any more: `exists(name, topic id or zero)`."""
        return Outcome(
            [
                OffsetRemoved(group_id, topic, partition)
                for topic, partition, offset in self.offsets.of_group(group_id)
                if not exists(topic, offset.topic_id)
            ]
        )

    # -- apply

    def apply(self, outcome: Outcome) -> None:
        for change in outcome.changes:
            match change:
                case GroupSaved():
                    assert outcome.group is not None, "a saved group comes with its state"
                    outcome.group.saved = change
                case GroupRemoved(group_id):
                    self.groups.pop(group_id, None)
                case _:
                    self._apply_offset(change)
        if outcome.group is not None:
            self.groups[outcome.group.group_id] = outcome.group

    def replay(self, change: Change) -> None:
        match change:
            case GroupSaved():
                self.groups[change.group_id] = ClassicGroup.restored(change)
            case GroupRemoved(group_id):
                self.groups.pop(group_id, None)
            case _:
                self._apply_offset(change)

    def _apply_offset(self, change: OffsetCommitted | OffsetRemoved | PendingOffset) -> None:
        if not isinstance(change, OffsetRemoved) and change.group_id not in self.groups:
            self.groups[change.group_id] = ClassicGroup(change.group_id)
        self.offsets.apply(change)

    def keys(self, group_id: str) -> list[StateKey]:
        """Everything persisted of a group, to be asked for with `live`, also in parts."""
        group = self.groups.get(group_id)
        own: list[StateKey] = [] if group is None or group.saved is None else [(group_id, None, 0)]
        return own + [(group_id, topic, partition) for topic, partition in self.offsets.places(group_id)]

    def live(self, keys: Iterable[StateKey]) -> list[Change]:
        """What is persisted now under these keys, as changes; replaying those of all keys gives the same state."""
        changes: list[Change] = []
        for group_id, topic, partition in keys:
            if topic is None:
                group = self.groups.get(group_id)
                if group is not None and group.saved is not None:
                    changes.append(group.saved)
            else:
                offset = self.offsets.get(group_id, topic, partition)
                if offset is not None:
                    changes.append(OffsetCommitted(group_id, topic, partition, offset))
                changes += self.offsets.pending.live((group_id, topic, partition))
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
        if group is None:
            return GroupView(ErrorCode.GROUP_ID_NOT_FOUND, group_id, GroupState.DEAD.value)
        return group.describe()

    def list_groups(self, states: frozenset[str], types: frozenset[str]) -> list[ListedGroup]:
        """Groups in these states and of these types, all in lower case; an empty set: any."""
        return [
            ListedGroup(group.group_id, group.protocol_type or "", group.state.value, CLASSIC)
            for group in self.groups.values()
            if (not states or group.state.value.lower() in states) and (not types or CLASSIC in types)
        ]


def _reply(waiter: int, answer: object) -> Outcome:
    return Outcome(effects=[Reply(waiter, answer)])


def _of_topic_id(offset: Offset | None, topic_id: bytes) -> Offset | None:
    if offset is None or ZERO_UUID in (topic_id, offset.topic_id) or topic_id == offset.topic_id:
        return offset
    return None
