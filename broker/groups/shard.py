"""One partition of `__consumer_offsets`: what is decided about its groups and their offsets.

Commands decide and return an `Outcome`, which `apply` puts into effect once its changes are persisted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from broker.groups import classic, offsets
from broker.groups.assignors import Input
from broker.groups.classic import ClassicGroup
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_model import (
    AssignmentRun,
    ConsumerConfig,
    ConsumerGroupView,
    ConsumerHeartbeat,
    ConsumerHeartbeatAnswer,
    GroupTimes,
    MemberState,
    Partitions,
    TimesOf,
)
from broker.groups.conversion import downgraded, may_downgrade, may_downgrade_replacing, upgrade
from broker.groups.heartbeats import MEMBER_TIMERS, ConsumerStep
from broker.groups.mixed import MixedStep
from broker.groups.model import (
    CancelTimer,
    Change,
    Commit,
    CommitAnswer,
    DeleteGroups,
    DeleteGroupsAnswer,
    DeleteOffsets,
    DeleteOffsetsAnswer,
    Effect,
    GroupConfig,
    GroupRemoved,
    GroupState,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    OffsetRemoved,
    Outcome,
    Reply,
    Sync,
    SyncAnswer,
    TimerKey,
    TxnCommit,
)
from broker.groups.rebalance import Transition
from broker.groups.state import Group, ShardState
from broker.groups.topics import NoTopics, Topics
from protocol.errors import ErrorCode, KafkaError

_NO_MEMBERS = (GroupState.EMPTY, GroupState.DEAD)


class Shard(ShardState):
    """State and decisions."""

    def __init__(self, config: GroupConfig, topics: Topics | None = None, times_of: TimesOf | None = None) -> None:
        """`times_of(group id)`: what the group's own configs say, else the settings."""
        super().__init__()
        self.config = config
        self.topics: Topics = topics if topics is not None else NoTopics()
        self.times_of: TimesOf = times_of if times_of is not None else self._default_times

    def _default_times(self, group_id: str) -> GroupTimes:
        consumer = self.config.consumer
        return GroupTimes(consumer.session_timeout_ms, consumer.heartbeat_interval_ms, consumer.assignment_interval_ms)

    # -- decide: memberships of classic groups

    def join(self, join: Join, now_ms: int) -> Outcome:
        if not self.config.min_session_timeout_ms <= join.session_timeout_ms <= self.config.max_session_timeout_ms:
            return _reply(join.waiter, JoinAnswer(ErrorCode.INVALID_SESSION_TIMEOUT, join.member_id))
        group = self.groups.get(join.group_id)
        if isinstance(group, ConsumerGroup) and group.members:
            try:
                return self._join_consumer_group(group, join, now_ms)
            except KafkaError as refused:
                return _reply(join.waiter, JoinAnswer(refused.code, ""))
        if isinstance(group, ConsumerGroup) and not join.member_id:
            # An empty group is of the protocol that is used next.
            step = Transition(ClassicGroup(join.group_id, state_timestamp_ms=now_ms), self.config, now_ms, created=True)
            step.changes += group.removal()
            step.join(join)
            return step.outcome()
        if (group is None or isinstance(group, ConsumerGroup)) and join.member_id:
            return _reply(join.waiter, JoinAnswer(ErrorCode.UNKNOWN_MEMBER_ID, join.member_id))
        assert not isinstance(group, ConsumerGroup), "all its cases are above"
        step = Transition(
            group or ClassicGroup(join.group_id, state_timestamp_ms=now_ms), self.config, now_ms, created=group is None
        )
        step.join(join)
        return step.outcome()

    def sync(self, sync: Sync, now_ms: int) -> Outcome:
        group = self.groups.get(sync.group_id)
        if group is None:
            return _reply(sync.waiter, SyncAnswer(ErrorCode.UNKNOWN_MEMBER_ID))
        if isinstance(group, ConsumerGroup):
            mixed = self._mixed(group, now_ms)
            try:
                mixed.sync(sync)
            except KafkaError as refused:
                return _reply(sync.waiter, SyncAnswer(refused.code))
            return mixed.outcome()
        step = Transition(group, self.config, now_ms)
        step.sync(sync)
        return step.outcome()

    def heartbeat(self, heartbeat: Heartbeat, now_ms: int) -> Outcome:
        group = self.groups.get(heartbeat.group_id)
        if group is None:
            return _reply(heartbeat.waiter, ErrorCode.UNKNOWN_MEMBER_ID)
        if isinstance(group, ConsumerGroup):
            mixed = self._mixed(group, now_ms)
            try:
                mixed.classic_heartbeat(heartbeat)
            except KafkaError as refused:
                return _reply(heartbeat.waiter, refused.code)
            return mixed.outcome()
        return classic.heartbeat(group, heartbeat)

    def leave(self, leave: Leave, now_ms: int) -> Outcome:
        group = self.groups.get(leave.group_id)
        if group is None:
            unknown = tuple((leaver, ErrorCode.UNKNOWN_MEMBER_ID) for leaver in leave.members)
            return _reply(leave.waiter, LeaveAnswer(ErrorCode.NONE, unknown))
        if isinstance(group, ConsumerGroup):
            mixed = self._mixed(group, now_ms)
            return self._without(mixed, mixed.leavers(leave))
        step = Transition(group, self.config, now_ms)
        step.leave(leave)
        return step.outcome()

    # -- decide: memberships of consumer groups

    def consumer_heartbeat(self, asked: ConsumerHeartbeat, now_ms: int) -> Outcome:
        try:
            group = self.groups.get(asked.group_id)
            if asked.member_epoch < 0:
                if not isinstance(group, ConsumerGroup):
                    raise _no_consumer_group(asked.group_id, group)
                step = ConsumerStep(group, *self._surroundings(asked.group_id, now_ms))
                leaving = step.leave(asked)
                return self._without(step, leaving)
            step = self._step_of_joined(group, asked, now_ms)
            step.heartbeat(asked)
            return step.outcome()
        except KafkaError as refused:
            return _reply(asked.waiter, ConsumerHeartbeatAnswer(refused.code, refused.message or None))

    def _step_of_joined(self, group: Group | None, asked: ConsumerHeartbeat, now_ms: int) -> ConsumerStep:
        """A step of the group, which a joining member may create or bring to its protocol."""
        surroundings = self._surroundings(asked.group_id, now_ms)
        if isinstance(group, ConsumerGroup):
            return ConsumerStep(group, *surroundings)
        if asked.member_epoch != 0:
            raise _no_consumer_group(asked.group_id, group)
        if group is None or group.state is GroupState.EMPTY:
            removed: list[Change] = (
                [GroupRemoved(asked.group_id)] if group is not None and group.saved is not None else []
            )
            return ConsumerStep(ConsumerGroup(asked.group_id), *surroundings, removed)
        new, changes, effects = upgrade(group, self.config.consumer, self.topics)
        step = ConsumerStep(new, *surroundings, changes, effects)
        step.begins = group.generation == 0
        step.loaded()
        return step

    def _surroundings(self, group_id: str, now_ms: int) -> tuple[ConsumerConfig, GroupTimes, Topics, int]:
        return self.config.consumer, self.times_of(group_id), self.topics, now_ms

    def _mixed(self, group: ConsumerGroup, now_ms: int) -> MixedStep:
        return MixedStep(group, *self._surroundings(group.group_id, now_ms))

    def _join_consumer_group(self, group: ConsumerGroup, join: Join, now_ms: int) -> Outcome:
        step = self._mixed(group, now_ms)
        known = group.static_member(join.instance_id)
        member = step.join(join)
        if member is None:
            return step.outcome()
        config = self.config
        if known is None or not may_downgrade_replacing(group, known.member_id, config.consumer, config.max_size):
            step.join_done(join, member)
            return step.outcome()
        if not step.subscription_changed:
            target = group.target_of(member.member_id, member.instance_id)
            member = step.reconcile(member, group.assignment_epoch, target, step.owned, subscription_changed=False)
        step.reply_joined(join, member)
        new = downgraded(group, [], member, group.epoch, self.topics, now_ms)
        return self._downgrade(group, new, step.effects, now_ms, rebalance=step.subscription_changed)

    def _without(self, step: ConsumerStep, leaving: list[str]) -> Outcome:
        """The group without these members; a classic one, if that is what is left."""
        group, config = step.group, self.config
        if leaving and may_downgrade(group, leaving, config.consumer, config.max_size):
            new = downgraded(group, leaving, None, group.epoch, self.topics, step.now_ms)
            return self._downgrade(group, new, step.effects, step.now_ms, rebalance=True)
        step.remove(leaving)
        return step.outcome()

    def _downgrade(
        self, group: ConsumerGroup, new: ClassicGroup, effects: Sequence[Effect], now_ms: int, *, rebalance: bool
    ) -> Outcome:
        transition = Transition(new, self.config, now_ms)
        transition.converted(rebalance=rebalance)
        outcome = transition.outcome()
        timers = [
            CancelTimer((kind, group.group_id, member_id)) for member_id in group.members for kind in MEMBER_TIMERS
        ]
        return Outcome(
            [*group.removal(), *outcome.changes], outcome.group, [*timers, *effects, *outcome.effects], whole=True
        )

    def regexes_resolved(
        self, group_id: str, resolved: Mapping[str, tuple[str, ...]] | None, version: int, now_ms: int
    ) -> Outcome:
        """What the group's expressions match at this version of the topics; None: that failed."""
        group = self.groups.get(group_id)
        if not isinstance(group, ConsumerGroup) or not group.resolving:
            return Outcome()
        step = ConsumerStep(group, *self._surroundings(group_id, now_ms))
        step.regexes_resolved(resolved, version)
        return step.outcome()

    def assignor_input(self, group_id: str, epoch: int) -> Input | None:
        """What the assignment under way is made from; None: it is not wanted any more."""
        group = self.groups.get(group_id)
        if not isinstance(group, ConsumerGroup) or group.assigning != epoch:
            return None
        return ConsumerStep(group, *self._surroundings(group_id, 0)).assignor_input(None)

    def assigned(
        self, group_id: str, epoch: int, given: Input, targets: Mapping[str, Partitions], now_ms: int, *, last: bool
    ) -> Outcome:
        """A part of the assignment of this epoch, or none and `last`: then the epoch is the group's target's."""
        group = self.groups.get(group_id)
        if not isinstance(group, ConsumerGroup) or group.assigning != epoch:
            return Outcome()
        step = ConsumerStep(group, *self._surroundings(group_id, now_ms))
        step.assigned(given, targets)
        if last:
            step.assignment_done(epoch)
        return step.outcome()

    def assignment_failed(self, group_id: str) -> None:
        """The log refused; a later heartbeat begins again."""
        self._note(AssignmentRun(group_id, 0))

    def timer(self, key: TimerKey, now_ms: int) -> Outcome:
        """A timer that an outcome set has fired."""
        kind, group_id, member_id = key
        group = self.groups.get(group_id)
        if group is None:
            return Outcome()
        if isinstance(group, ConsumerGroup):
            return self._consumer_timer(group, kind, member_id, now_ms)
        step = Transition(group, self.config, now_ms)
        match kind:
            case "session":
                step.session_timeout(member_id)
            case "join":
                step.join_timeout()
            case "sync":
                step.sync_timeout()
            case "rebalance" | "rejoin" | "resync":
                # Of the consumer group that it was.
                return Outcome()
            case _:
                raise AssertionError(f"timer {key}")
        return step.outcome()

    def _consumer_timer(self, group: ConsumerGroup, kind: str, member_id: str, now_ms: int) -> Outcome:
        member = group.members.get(member_id)
        if member is None or kind in ("join", "sync"):
            return Outcome()
        if kind == "rebalance" and member.state != MemberState.UNREVOKED_PARTITIONS:
            return Outcome()
        if kind != "session" and (kind == "rebalance") is (member.classic is not None):
            return Outcome()  # it was set before the member changed its protocol
        return self._without(ConsumerStep(group, *self._surroundings(group.group_id, now_ms)), [member_id])

    def loaded(self, group_id: str, now_ms: int) -> Outcome:
        """What a group needs after the log was read: session timers."""
        group = self.groups[group_id]
        if isinstance(group, ConsumerGroup):
            consumer = ConsumerStep(group, *self._surroundings(group_id, now_ms))
            consumer.loaded()
            return consumer.outcome()
        step = Transition(group, self.config, now_ms)
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
        elif isinstance(group, ConsumerGroup):
            error = group.check_commit(commit, has_member_epochs=commit.unknown_group is ErrorCode.GROUP_ID_NOT_FOUND)
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
        if isinstance(group, ClassicGroup) and commit.member_id in group.members:
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
        elif isinstance(group, ConsumerGroup):
            error = group.check_commit(commit, has_member_epochs=True)
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

    def delete_offsets(self, command: DeleteOffsets) -> Outcome:
        group = self.groups.get(command.group_id)
        if group is None:
            return _reply(command.waiter, DeleteOffsetsAnswer(ErrorCode.GROUP_ID_NOT_FOUND))
        if isinstance(group, ClassicGroup) and group.state not in _NO_MEMBERS and not group.is_consumer:
            return _reply(command.waiter, DeleteOffsetsAnswer(ErrorCode.NON_EMPTY_GROUP))
        outcome = Outcome()
        errors = []
        for topic, partition in command.partitions:
            if group.is_subscribed(topic):
                errors.append(ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC)
                continue
            errors.append(ErrorCode.NONE)
            if self.offsets.is_stored(command.group_id, topic, partition):
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
            elif not _is_empty(group):
                errors.append(ErrorCode.NON_EMPTY_GROUP)
            else:
                errors.append(ErrorCode.NONE)
                outcome.changes += [*self.offsets.remove_group(group_id), *_removal(group)]
        outcome.effects.append(Reply(command.waiter, DeleteGroupsAnswer(tuple(errors))))
        return outcome

    def expire(self, group_id: str, now_ms: int) -> Outcome:
        """Remove what is over of one group; the group too, when it is empty and has no offset left."""
        group = self.groups.get(group_id)
        if group is None:
            return Outcome()
        expired = self.offsets.expired(group, now_ms, self.config.offsets_retention_ms)
        changes: list[Change] = list(expired)
        if self.offsets.count_of(group_id) == len(expired) and _is_empty(group) and not _is_expected(group):
            changes += _removal(group)
        return Outcome(changes)

    def forget_topics(self, group_id: str, exists: Callable[[str, bytes], bool]) -> Outcome:
        """Remove one group's offsets of topics that do not exist any more: `exists(name, topic id or zero)`."""
        return Outcome(list(self.offsets.of_deleted_topics(group_id, exists)))

    # -- look

    def describe_consumer(self, group_id: str) -> ConsumerGroupView:
        """GROUP_ID_NOT_FOUND for an unknown group, and for a classic one."""
        group = self.groups.get(group_id)
        if not isinstance(group, ConsumerGroup):
            missing = _no_consumer_group(group_id, group)
            return ConsumerGroupView(missing.code, group_id, missing.message)
        return group.describe(self.config.consumer.assignors[0])


def _is_empty(group: Group) -> bool:
    return not group.members if isinstance(group, ConsumerGroup) else group.state is GroupState.EMPTY


def _is_expected(group: Group) -> bool:
    """Has somebody been told an id to join with?"""
    return isinstance(group, ClassicGroup) and bool(group.pending_joins)


def _removal(group: Group) -> Sequence[Change]:
    return group.removal() if isinstance(group, ConsumerGroup) else [GroupRemoved(group.group_id)]


def _no_consumer_group(group_id: str, group: Group | None) -> KafkaError:
    problem = f"Consumer group {group_id} not found." if group is None else f"Group {group_id} is not a consumer group."
    return KafkaError(ErrorCode.GROUP_ID_NOT_FOUND, problem)


def _reply(waiter: int, answer: object) -> Outcome:
    return Outcome(effects=[Reply(waiter, answer)])
