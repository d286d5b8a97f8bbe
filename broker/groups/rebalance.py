"""One step of a classic group as a pure state machine: join, sync, leave, timers.

`Transition` works on a draft of the group, so that the group itself is untouched until the caller has persisted the
outcome's changes and puts the draft in its place. Semantics are those of Kafka 4.3's `GroupMetadataManager`, with two
differences that clients cannot tell from a slow broker: an assignment is applied as soon as its record is accepted
(answers wait for durability, the state does not), and a request that a later one of the same member supersedes, or
whose member leaves, is answered, where Kafka sometimes never answers it.
"""

from __future__ import annotations

from dataclasses import replace

from broker.groups.classic import ClassicGroup, Member
from broker.groups.model import (
    CancelTimer,
    Change,
    Effect,
    GroupConfig,
    GroupSaved,
    GroupState,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    Leaver,
    Outcome,
    Reply,
    SetTimer,
    Sync,
    SyncAnswer,
    TimerKey,
)
from protocol.errors import ErrorCode

_CAN_PREPARE = (GroupState.EMPTY, GroupState.STABLE, GroupState.COMPLETING_REBALANCE)


class Transition:
    """One step of one group: construct, call one command, take `outcome()`."""

    def __init__(self, group: ClassicGroup, config: GroupConfig, now_ms: int, *, created: bool = False) -> None:
        """`created`: the group exists only if this step is persisted."""
        self.group = group.draft()
        self.config = config
        self.now_ms = now_ms
        self.created = created
        self.changes: list[Change] = []
        self.effects: list[Effect] = []

    def outcome(self) -> Outcome:
        return Outcome(self.changes, self.group, self.effects)

    # -- JoinGroup

    def join(self, join: Join) -> None:
        group = self.group
        if not self._accepts(join.member_id):
            group.remove(join.member_id)
            self._reply(join.waiter, JoinAnswer(ErrorCode.GROUP_MAX_SIZE_REACHED))
        elif not group.supports(join.protocol_type, join.protocols):
            self._reply(join.waiter, JoinAnswer(ErrorCode.INCONSISTENT_GROUP_PROTOCOL, join.member_id))
        elif not join.member_id:
            self._join_new(join)
        else:
            self._join_known(join)
        if self.created and not self.changes:
            # The group must survive a restart, so that the id it gave out is still pending in an existing group.
            self.changes.append(GroupSaved(group.group_id, "", 0, None, None, group.state_timestamp_ms, ()))

    def _accepts(self, member_id: str) -> bool:
        """Room for this member? While members rejoin, those who wait count, so that a smaller limit takes effect."""
        group = self.group
        member = group.members.get(member_id)
        match group.state:
            case GroupState.PREPARING_REBALANCE:
                waiting = member is not None and member.joining is not None
                return waiting or group.joining_count < self.config.max_size
            case GroupState.COMPLETING_REBALANCE | GroupState.STABLE:
                return member is not None or len(group.members) < self.config.max_size
            case _:
                return True

    def _join_new(self, join: Join) -> None:
        group = self.group
        new_id = f"{join.client_id if join.instance_id is None else join.instance_id}-{join.token}"
        if join.instance_id is not None:
            known = group.static_members.get(join.instance_id)
            if known is None:
                self._add(join, new_id)
            else:
                self._replace_static(join, known, new_id)
        elif join.needs_member_id:
            group.pending_joins[new_id] = None
            self._set_session_timer(new_id, join.session_timeout_ms)
            self._reply(join.waiter, JoinAnswer(ErrorCode.MEMBER_ID_REQUIRED, new_id))
        else:
            self._add(join, new_id)

    def _join_known(self, join: Join) -> None:
        group = self.group
        if join.member_id in group.pending_joins and join.instance_id is None:
            self._add(join, join.member_id)
            return
        error = group.check_member(join.member_id, join.instance_id)
        if error is not ErrorCode.NONE:
            self._reply(join.waiter, JoinAnswer(error, join.member_id))
            return
        unchanged = group.members[join.member_id].protocols == join.protocols
        is_leader = group.leader == join.member_id
        match group.state:
            case GroupState.COMPLETING_REBALANCE if unchanged:
                # It may have missed the answer to its first join.
                self._reply(join.waiter, self._joined(join.member_id, with_members=is_leader))
            case GroupState.STABLE if unchanged and not is_leader:
                self._reply(join.waiter, self._joined(join.member_id, with_members=False))
            case GroupState.EMPTY:
                self._reply(join.waiter, JoinAnswer(ErrorCode.UNKNOWN_MEMBER_ID, join.member_id))
            case _:
                # A stable group's leader joins again to have partitions assigned anew (topics changed).
                self._update(join, join.member_id)
                self._rebalance_or_complete()

    def _add(self, join: Join, member_id: str) -> None:
        group = self.group
        if group.state is GroupState.PREPARING_REBALANCE and group.previous_state is GroupState.EMPTY:
            group.new_member_added = True
        if not group.members:
            group.protocol_type = join.protocol_type
        if group.leader is None:
            group.leader = member_id
        group.pending_joins.pop(member_id, None)
        group.put(
            Member(
                member_id,
                join.instance_id,
                join.client_id,
                join.client_host,
                join.rebalance_timeout_ms,
                join.session_timeout_ms,
                join.protocols,
                is_new=True,
                joining=join.waiter,
            )
        )
        self._set_session_timer(member_id, self.config.new_member_join_timeout_ms)
        self._rebalance_or_complete()

    def _update(self, join: Join, member_id: str) -> None:
        member = self.group.members[member_id]
        self._answer_join(member, JoinAnswer(ErrorCode.REBALANCE_IN_PROGRESS, member_id))
        self.group.put(
            replace(
                member,
                protocols=join.protocols,
                rebalance_timeout_ms=join.rebalance_timeout_ms,
                session_timeout_ms=join.session_timeout_ms,
                joining=join.waiter,
            )
        )

    def _replace_static(self, join: Join, old_id: str, new_id: str) -> None:
        """The instance was restarted: its new incarnation takes the place of the old one, which is fenced."""
        group = self.group
        told_leader = group.leader or ""
        old = group.members[old_id]
        self._answer_join(old, JoinAnswer(ErrorCode.FENCED_INSTANCE_ID, old_id))
        self._answer_sync(group.members[old_id], SyncAnswer(ErrorCode.FENCED_INSTANCE_ID))
        # In place, so that the order of members (who becomes leader next) does not depend on restarts.
        renamed = replace(group.members[old_id], member_id=new_id, is_new=False)
        group.members = {
            new_id if member_id == old_id else member_id: renamed if member_id == old_id else member
            for member_id, member in group.members.items()
        }
        assert renamed.instance_id is not None
        group.static_members[renamed.instance_id] = new_id
        group.pending_syncs.pop(old_id, None)
        if group.leader == old_id:
            group.leader = new_id
        self.effects.append(CancelTimer(self._session_key(old_id)))
        self._set_session_timer(new_id, renamed.session_timeout_ms)
        self._update(join, new_id)
        match group.state:
            case GroupState.STABLE if group.protocol == group.select_protocol():
                self._save()
                is_leader = group.leader == new_id
                answer = self._joined(new_id, with_members=is_leader and join.may_skip_assignment)
                if join.may_skip_assignment:
                    answer = answer._replace(skip_assignment=is_leader)
                else:
                    # A restarted leader that cannot be told to skip its assignment must not believe that it leads.
                    answer = answer._replace(leader=told_leader)
                self._answer_join(group.members[new_id], answer)
            case GroupState.STABLE:
                self._rebalance_or_complete()
            case GroupState.COMPLETING_REBALANCE:
                # The leader may have been told the old id, and would assign to that one.
                self._prepare_rebalance()
            case _:
                self._complete_if_all_joined()

    # -- rebalance

    def _rebalance_or_complete(self) -> None:
        if self.group.state in _CAN_PREPARE:
            self._prepare_rebalance()
        else:
            self._complete_if_all_joined()

    def _complete_if_all_joined(self) -> None:
        """The first rebalance of a group is not shortened: its delay ends it."""
        group = self.group
        first = group.previous_state is GroupState.EMPTY
        if group.state is GroupState.PREPARING_REBALANCE and group.all_joined and not first:
            self._complete_join()

    def _prepare_rebalance(self) -> None:
        group = self.group
        if group.state is GroupState.COMPLETING_REBALANCE:
            for member in list(group.members.values()):
                group.put(replace(member, assignment=b""))
            self._answer_syncs(SyncAnswer(ErrorCode.REBALANCE_IN_PROGRESS))
        group.pending_syncs.clear()
        self.effects.append(CancelTimer(self._sync_key))
        if group.state is GroupState.EMPTY:
            delay_ms = self.config.initial_rebalance_delay_ms
            group.initial_delay = (delay_ms, max(group.rebalance_timeout_ms - delay_ms, 0))
            self.effects.append(SetTimer(self._join_key, delay_ms))
            self._move_to(GroupState.PREPARING_REBALANCE)
            return
        self._move_to(GroupState.PREPARING_REBALANCE)
        if group.all_joined:
            self._complete_join()
        else:
            self.effects.append(SetTimer(self._join_key, group.rebalance_timeout_ms))

    def join_timeout(self) -> None:
        """Extend the first rebalance while members keep arriving, else go on without those who are missing."""
        group = self.group
        if group.state is not GroupState.PREPARING_REBALANCE:
            return
        if group.initial_delay is not None:
            delay_ms, remaining_ms = group.initial_delay
            if group.new_member_added and remaining_ms:
                group.new_member_added = False
                next_ms = min(self.config.initial_rebalance_delay_ms, remaining_ms)
                group.initial_delay = (next_ms, max(remaining_ms - delay_ms, 0))
                self.effects.append(SetTimer(self._join_key, next_ms))
                return
        self._complete_join()

    def _complete_join(self) -> None:
        """Next generation with those who joined; static members stay until their session ends."""
        group = self.group
        self.effects.append(CancelTimer(self._join_key))
        group.initial_delay = None
        group.new_member_added = False
        for member in list(group.members.values()):
            if member.joining is None and member.instance_id is None:
                group.remove(member.member_id)
                self.effects.append(CancelTimer(self._session_key(member.member_id)))
        if group.members and not self._elect_joined_leader():
            # Only static members, and none came: wait for their sessions to end.
            self.effects.append(SetTimer(self._join_key, group.rebalance_timeout_ms))
            return
        group.generation += 1
        group.pending_syncs.clear()
        if not group.members:
            group.protocol = None
            group.subscribed = group.compute_subscribed()
            self._move_to(GroupState.EMPTY)
            self._save()
            return
        group.protocol = group.select_protocol()
        group.subscribed = group.compute_subscribed()
        self._move_to(GroupState.COMPLETING_REBALANCE)
        for member in list(group.members.values()):
            self._answer_join(member, self._joined(member.member_id, with_members=group.leader == member.member_id))
            group.put(replace(group.members[member.member_id], is_new=False))
            self._set_session_timer(member.member_id, member.session_timeout_ms)
            group.pending_syncs[member.member_id] = None
        self.effects.append(SetTimer(self._sync_key, group.rebalance_timeout_ms))

    def _elect_joined_leader(self) -> bool:
        group = self.group
        if group.leader is not None and group.members[group.leader].joining is not None:
            return True
        for member in group.members.values():
            if member.joining is not None:
                group.leader = member.member_id
                return True
        return False

    # -- SyncGroup

    def sync(self, sync: Sync) -> None:
        group = self.group
        error = self._check_sync(sync)
        if error is not ErrorCode.NONE:
            self._reply(sync.waiter, SyncAnswer(error))
            return
        group.pending_syncs.pop(sync.member_id, None)
        if not group.pending_syncs:
            self.effects.append(CancelTimer(self._sync_key))
        member = group.members[sync.member_id]
        if group.state is GroupState.STABLE:
            self._reply(sync.waiter, self._synced(member))
            return
        if member.syncing is not None:
            self._reply(member.syncing, SyncAnswer(ErrorCode.REBALANCE_IN_PROGRESS))
        group.put(replace(member, syncing=sync.waiter))
        if group.leader != sync.member_id:
            return
        assignments = dict(sync.assignments)
        for other in list(group.members.values()):
            group.put(replace(other, assignment=assignments.get(other.member_id, b"")))
        self._move_to(GroupState.STABLE)
        self._save()
        for other in list(group.members.values()):
            self._answer_sync(other, self._synced(other))

    def _check_sync(self, sync: Sync) -> ErrorCode:
        group = self.group
        error = group.check_member(sync.member_id, sync.instance_id)
        if error is not ErrorCode.NONE:
            return error
        if sync.generation != group.generation:
            return ErrorCode.ILLEGAL_GENERATION
        for said, known in ((sync.protocol_type, group.protocol_type), (sync.protocol, group.protocol)):
            if said is not None and known is not None and said != known:
                return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        match group.state:
            case GroupState.EMPTY:
                return ErrorCode.UNKNOWN_MEMBER_ID
            case GroupState.PREPARING_REBALANCE:
                return ErrorCode.REBALANCE_IN_PROGRESS
            case _:
                return ErrorCode.NONE

    def sync_timeout(self) -> None:
        """Those who joined but did not sync for a whole rebalance timeout are removed."""
        group = self.group
        if group.state not in (GroupState.COMPLETING_REBALANCE, GroupState.STABLE) or not group.pending_syncs:
            return
        for member_id in list(group.pending_syncs):
            self._drop(member_id)
            self.effects.append(CancelTimer(self._session_key(member_id)))
        self._prepare_rebalance()

    # -- LeaveGroup, sessions

    def leave(self, leave: Leave) -> None:
        group = self.group
        results = tuple((leaver, self._leave_one(leaver)) for leaver in leave.members)
        if any(error is ErrorCode.NONE for _, error in results):
            if group.state in (GroupState.STABLE, GroupState.COMPLETING_REBALANCE):
                self._rebalance_or_complete()
            elif group.state is GroupState.PREPARING_REBALANCE:
                self._complete_if_all_joined()
        self._reply(leave.waiter, LeaveAnswer(ErrorCode.NONE, results))

    def _leave_one(self, leaver: Leaver) -> ErrorCode:
        group = self.group
        member_id = leaver.member_id
        if not member_id:
            # An administrator removes a static member by its instance id.
            member_id = group.static_members.get(leaver.instance_id or "", "")
            if leaver.instance_id is None or not member_id:
                return ErrorCode.UNKNOWN_MEMBER_ID
        elif member_id not in group.pending_joins:
            error = group.check_member(member_id, leaver.instance_id)
            if error is not ErrorCode.NONE:
                return error
        self.effects.append(CancelTimer(self._session_key(member_id)))
        self._drop(member_id)
        return ErrorCode.NONE

    def session_timeout(self, member_id: str) -> None:
        group = self.group
        member = group.members.get(member_id)
        if member is None and member_id not in group.pending_joins:
            return
        if member is not None and member.heartbeat_satisfied():
            return
        self._drop(member_id)
        if member is not None and group.state in (GroupState.STABLE, GroupState.COMPLETING_REBALANCE):
            self._rebalance_or_complete()
        elif group.state is GroupState.PREPARING_REBALANCE and group.all_joined:
            self._complete_join()

    def _drop(self, member_id: str) -> None:
        """UNKNOWN_MEMBER_ID makes a client that is still there join again, with a new id."""
        member = self.group.members.get(member_id)
        if member is not None:
            self._answer_join(member, JoinAnswer(ErrorCode.UNKNOWN_MEMBER_ID))
            self._answer_sync(self.group.members[member_id], SyncAnswer(ErrorCode.UNKNOWN_MEMBER_ID))
        self.group.remove(member_id)

    def converted(self, *, rebalance: bool) -> None:
        """The group was one of consumers until now: persist it as it is, with fresh sessions."""
        self._save()
        for member in self.group.members.values():
            self._set_session_timer(member.member_id, member.session_timeout_ms)
        if rebalance:
            self._prepare_rebalance()

    def loaded(self) -> None:
        """The group was read from its log: fresh sessions, and a rebalance if the limit shrank meanwhile."""
        for member in self.group.members.values():
            self._set_session_timer(member.member_id, member.session_timeout_ms)
        if len(self.group.members) > self.config.max_size:
            self._prepare_rebalance()

    # -- helpers

    @property
    def _join_key(self) -> TimerKey:
        return ("join", self.group.group_id, "")

    @property
    def _sync_key(self) -> TimerKey:
        return ("sync", self.group.group_id, "")

    def _session_key(self, member_id: str) -> TimerKey:
        return ("session", self.group.group_id, member_id)

    def _set_session_timer(self, member_id: str, delay_ms: int) -> None:
        self.effects.append(SetTimer(self._session_key(member_id), delay_ms))

    def _reply(self, waiter: int, answer: JoinAnswer | SyncAnswer | LeaveAnswer) -> None:
        self.effects.append(Reply(waiter, answer))

    def _move_to(self, state: GroupState) -> None:
        self.group.previous_state = self.group.state
        self.group.state = state
        self.group.state_timestamp_ms = self.now_ms

    def _save(self) -> None:
        self.changes.append(self.group.to_save())

    def _joined(self, member_id: str, *, with_members: bool) -> JoinAnswer:
        group = self.group
        return JoinAnswer(
            ErrorCode.NONE,
            member_id,
            group.generation,
            group.protocol_type,
            group.protocol,
            group.leader or "",
            members=group.joined_members() if with_members else (),
        )

    def _synced(self, member: Member) -> SyncAnswer:
        return SyncAnswer(ErrorCode.NONE, self.group.protocol_type, self.group.protocol, member.assignment)

    def _answer_join(self, member: Member, answer: JoinAnswer) -> None:
        if member.joining is not None:
            self._reply(member.joining, answer)
            self.group.put(replace(member, joining=None))

    def _answer_sync(self, member: Member, answer: SyncAnswer) -> None:
        if member.syncing is not None:
            self._reply(member.syncing, answer)
            self.group.put(replace(member, syncing=None))
            if answer.error in (ErrorCode.NONE, ErrorCode.REBALANCE_IN_PROGRESS):
                # Its session may have run out while it waited, which was ignored.
                self._set_session_timer(member.member_id, member.session_timeout_ms)

    def _answer_syncs(self, answer: SyncAnswer) -> None:
        for member in list(self.group.members.values()):
            self._answer_sync(member, answer)
