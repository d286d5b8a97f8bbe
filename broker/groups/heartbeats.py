"""One step of a consumer group: a heartbeat, a member that leaves or is fenced, what was computed meanwhile.

`ConsumerStep` only reads the group and collects changes, one per record. A heartbeat does three things, in Kafka's
order: the member is created or updated, and the group's epoch raised if what the group reads has changed; a new target
assignment is made if the epoch is ahead of the last one; the member goes one step towards its target.

Two things are done beside the requests, and come back as commands: the assignment of a large group, and resolving
regular expressions. Semantics are those of Kafka 4.3's `GroupMetadataManager`, with three differences. An assignment
that is large is computed off the heartbeat, as Kafka 4.4 does with all. A group left by all its members does not wait
for the assignment interval when somebody joins. A member's partitions count as held until its records say otherwise,
whatever its epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from broker.groups.assignors import Input, Subscriber, assign, run_to_end
from broker.groups.consumer import ConsumerGroup, ConsumerMember
from broker.groups.consumer_model import (
    STATIC_LEAVE_EPOCH,
    AssignmentRun,
    ComputeAssignment,
    ConsumerConfig,
    ConsumerHeartbeat,
    ConsumerHeartbeatAnswer,
    CurrentRemoved,
    EpochSaved,
    GroupTimes,
    MemberRemoved,
    MemberState,
    MetadataSeen,
    Note,
    Partitions,
    RegexRemoved,
    RegexRun,
    RegexSaved,
    ResolveRegexes,
    TargetEpochSaved,
    TargetRemoved,
    TargetSaved,
)
from broker.groups.model import CancelTimer, Change, Effect, Outcome, Reply, SetTimer
from broker.groups.reconcile import reconcile
from broker.groups.regexes import check_regex
from broker.groups.topics import Topics, metadata_hash
from protocol.errors import ErrorCode, KafkaError

REGEX_REFRESH_MIN_MS = 10_000
"""Regular expressions of a group are not resolved more often; a constant in Kafka too."""

INLINE_WORK_MAX = 1_000
"""Members and partitions of an assignment that is made within a heartbeat: a few milliseconds."""

MEMBER_TIMERS = ("session", "rebalance", "rejoin", "resync")


class ConsumerStep:
    """One step of one group: construct, call one command, take `outcome()`. KafkaError: refused, nothing happened."""

    def __init__(
        self,
        group: ConsumerGroup,
        config: ConsumerConfig,
        times: GroupTimes,
        topics: Topics,
        now_ms: int,
        changes: Iterable[Change] = (),
        effects: Iterable[Effect] = (),
    ) -> None:
        """`changes` and `effects`: what made `group` just now, if it is not in the shard's state."""
        self.group = group
        self.config = config
        self.times = times
        self.topics = topics
        self.now_ms = now_ms
        self.changes: list[Change] = list(changes)
        self.effects: list[Effect] = list(effects)
        self.notes: list[Note] = []
        self.whole = bool(self.changes)
        self.replaced: str | None = None
        """The member whose place is taken in this step."""
        self.begins = False
        """Nothing was ever assigned in this group, though it has members."""

    def outcome(self) -> Outcome:
        return Outcome(self.changes, None, self.effects, notes=self.notes, whole=self.whole)

    # -- ConsumerGroupHeartbeat

    def heartbeat(self, asked: ConsumerHeartbeat) -> None:
        group = self.group
        joins = asked.member_epoch == 0
        member_id = asked.member_id or asked.token
        self.check_size(member_id)
        if asked.instance_id is None:
            member = self.dynamic_member(member_id, create=joins)
            check_epoch(member, asked.member_epoch, asked.owned)
        else:
            member = self.static_member(member_id, asked.instance_id, create=joins, consumer_protocol=True)
            if not joins:
                check_epoch(member, asked.member_epoch, asked.owned)
        updated = replace(
            member,
            instance_id=asked.instance_id if asked.instance_id is not None else member.instance_id,
            rack_id=asked.rack_id if asked.rack_id is not None else member.rack_id,
            rebalance_timeout_ms=(
                member.rebalance_timeout_ms if asked.rebalance_timeout_ms == -1 else asked.rebalance_timeout_ms
            ),
            assignor=asked.assignor if asked.assignor is not None else member.assignor,
            topics=tuple(sorted(set(asked.topics))) if asked.topics is not None else member.topics,
            regex=asked.regex if asked.regex is not None else member.regex,
            client_id=asked.client_id,
            client_host=asked.client_host,
            classic=None,
        )
        names_changed = self.save_member(member, updated)
        regex_changed, resolved = self.update_regexes(member, updated)
        epoch = self.raise_epoch(member, updated, must=names_changed or resolved or self.begins)
        target_epoch, target = self.next_target(epoch, updated)
        after = self.reconcile(
            updated, target_epoch, target, asked.owned, subscription_changed=names_changed or regex_changed
        )
        self.effects.append(SetTimer(("session", group.group_id, member_id), self.times.session_timeout_ms))
        shown = joins or asked.is_full or member.assigned != after.assigned
        self.effects.append(
            Reply(
                asked.waiter,
                ConsumerHeartbeatAnswer(
                    ErrorCode.NONE,
                    None,
                    after.member_id,
                    after.epoch,
                    self.times.heartbeat_interval_ms,
                    {topic_id: frozenset(held) for topic_id, held in after.assigned.items()} if shown else None,
                ),
            )
        )

    def check_size(self, member_id: str) -> None:
        size = len(self.group.members)
        if size >= self.config.max_size and member_id not in self.group.members:
            raise KafkaError(
                ErrorCode.GROUP_MAX_SIZE_REACHED,
                f"The consumer group has reached its maximum capacity of {self.config.max_size} members.",
            )

    def dynamic_member(self, member_id: str, *, create: bool) -> ConsumerMember:
        member = self.group.members.get(member_id)
        if member is not None:
            return member
        if not create:
            raise KafkaError(
                ErrorCode.UNKNOWN_MEMBER_ID, f"Member {member_id} is not a member of group {self.group.group_id}."
            )
        return ConsumerMember(member_id)

    def static_member(
        self, member_id: str, instance_id: str, *, create: bool, consumer_protocol: bool
    ) -> ConsumerMember:
        """The member of this instance; a new incarnation takes its place, with all that it has, once it is released."""
        known = self.group.static_member(instance_id)
        if not create:
            return self.known_static_member(known, member_id, instance_id)
        if known is None:
            return self.group.members.get(member_id) or ConsumerMember(member_id)
        if consumer_protocol and known.classic is None and known.epoch != STATIC_LEAVE_EPOCH:
            raise KafkaError(
                ErrorCode.UNRELEASED_INSTANCE_ID,
                f"Static member {member_id} with instance id {instance_id} cannot join the group because the instance "
                f"id is owned by {known.member_id} member.",
            )
        group_id = self.group.group_id
        member = replace(known, member_id=member_id, epoch=0, previous_epoch=0)
        self.changes += self._removal(known.member_id)
        self.changes += [
            member.saved(group_id),
            TargetSaved(group_id, member_id, self.group.target.get(known.member_id, {})),
            member.current(group_id),
        ]
        if known.member_id != member_id:
            self.replaced = known.member_id
            self._cancel_timers(known.member_id)
        return member

    def known_static_member(self, known: ConsumerMember | None, member_id: str, instance_id: str) -> ConsumerMember:
        if known is None:
            raise KafkaError(ErrorCode.UNKNOWN_MEMBER_ID, f"Instance id {instance_id} is unknown.")
        if known.member_id != member_id:
            raise KafkaError(
                ErrorCode.FENCED_INSTANCE_ID,
                f"Static member {member_id} with instance id {instance_id} was fenced by member {known.member_id}.",
            )
        return known

    def save_member(self, member: ConsumerMember, updated: ConsumerMember) -> bool:
        """Have the names changed that it reads?"""
        if updated != member or (member.member_id not in self.group.members and self.replaced is None):
            self.changes.append(updated.saved(self.group.group_id))
        return updated.topics != member.topics

    # -- regular expressions

    def update_regexes(self, member: ConsumerMember, updated: ConsumerMember) -> tuple[bool, bool]:
        """(has the member's expression changed, is what it reads now known); may have expressions resolved."""
        group, old, new = self.group, member.regex, updated.regex
        changed, known, must = (old or "") != (new or ""), False, False
        if changed:
            if old and group.regex_counts[old] == 1:
                self.changes.append(RegexRemoved(group.group_id, old))
            if new and not group.regex_counts[new]:
                check_regex(new)
                must = True
            elif new:
                known = new in group.regexes
            else:
                known = True
        self._refresh_regexes(old if changed else None, new if changed else None, must=must)
        return changed, known

    def _refresh_regexes(self, old: str | None, new: str | None, *, must: bool) -> None:
        """Resolve all expressions together, so that one rebalance does for all of them."""
        group = self.group
        counts = group.regex_counts.copy()
        if old:
            counts[old] -= 1
        if new:
            counts[new] += 1
        wanted = sorted(+counts)
        if not wanted or group.resolving or self.now_ms < group.resolve_again_ms:
            return
        last_ms = max((resolved.timestamp_ms for resolved in group.regexes.values()), default=None)
        seen = max((resolved.version for resolved in group.regexes.values()), default=0)
        if last_ms is not None and self.now_ms <= last_ms + REGEX_REFRESH_MIN_MS:
            return
        if (
            must
            or len(wanted) != len(group.regexes)
            or seen < self.topics.created_version
            or (last_ms is not None and self.now_ms > last_ms + self.config.regex_refresh_interval_ms)
        ):
            self.notes.append(RegexRun(group.group_id, True))
            self.effects.append(ResolveRegexes(group.group_id, tuple(wanted)))

    def regexes_resolved(self, resolved: Mapping[str, tuple[str, ...]] | None, version: int) -> None:
        """None: it failed, and is tried again with a later heartbeat. `version`: of the topics that were matched."""
        group = self.group
        again_ms = 0 if resolved is not None else self.now_ms + REGEX_REFRESH_MIN_MS
        self.notes.append(RegexRun(group.group_id, False, again_ms))
        changed = False
        topics_of = {regex: set(known.topics) for regex, known in group.regexes.items()}
        for regex, topics in sorted((resolved or {}).items()):
            if not group.regex_counts[regex]:
                continue
            known = group.regexes.get(regex)
            changed = changed or (known.topics if known is not None else ()) != topics
            topics_of[regex] = set(topics)
            self.changes.append(RegexSaved(group.group_id, regex, topics, version, self.now_ms))
        if not changed:
            return
        names = set(group.topic_counts).union(
            *(topics for regex, topics in topics_of.items() if group.regex_counts[regex])
        )
        self.changes.append(EpochSaved(group.group_id, group.epoch + 1, metadata_hash(names, self.topics)))

    # -- the group's epoch and its target

    def raise_epoch(self, member: ConsumerMember, updated: ConsumerMember, *, must: bool) -> int:
        """The group's epoch, raised if it `must`, or if topics that it reads have changed since it last looked."""
        group = self.group
        version = self.topics.version
        if not must and group.seen_version == version:
            return group.epoch
        self.notes.append(MetadataSeen(group.group_id, version))
        found = metadata_hash(self._names_read(member, updated), self.topics)
        if not must and found == group.metadata_hash:
            return group.epoch
        self.changes.append(EpochSaved(group.group_id, group.epoch + 1, found))
        return group.epoch + 1

    def _names_read(self, member: ConsumerMember | None, updated: ConsumerMember | None) -> set[str]:
        """All topics that the group reads when `updated` is in the place of `member`."""
        group = self.group
        names, regexes = group.topic_counts.copy(), group.regex_counts.copy()
        known = (member is not None and member.member_id in group.members) or self.replaced is not None
        if member is not None and known:
            names.subtract(member.topics)
            regexes.subtract([member.regex] if member.regex else [])
        if updated is not None:
            names.update(updated.topics)
            regexes.update([updated.regex] if updated.regex else [])
        read = set(+names)
        return read.union(*(group.regexes[regex].topics for regex in +regexes if regex in group.regexes))

    def next_target(self, epoch: int, updated: ConsumerMember) -> tuple[int, Partitions]:
        """(epoch, partitions) of the member's target: a new one, if it is time for one and it is small."""
        group = self.group
        last = group.assignment_epoch, group.target_of(updated.member_id, updated.instance_id)
        wait_ms = group.assignment_timestamp_ms + self.times.assignment_interval_ms - self.now_ms
        if epoch <= group.assignment_epoch or wait_ms > 0 or group.assigning:
            return last
        given = self.assignor_input(updated)
        if given.work > INLINE_WORK_MAX:
            self.notes.append(AssignmentRun(group.group_id, epoch))
            self.effects.append(ComputeAssignment(group.group_id, epoch))
            return last
        targets = run_to_end(assign(given))
        old = dict(group.target)
        if self.replaced is not None:
            old[updated.member_id] = old.pop(self.replaced, {})
        for member_id, partitions in targets.items():
            if old.get(member_id) != partitions:
                self.changes.append(TargetSaved(group.group_id, member_id, partitions))
        self.changes.append(TargetEpochSaved(group.group_id, epoch, self.now_ms))
        return epoch, targets[updated.member_id]

    def assignor_input(self, updated: ConsumerMember | None) -> Input:
        """What an assignment is made from, as it is when this step is done; `updated` is this step's member."""
        group = self.group
        members = {member_id: member for member_id, member in group.members.items() if member_id != self.replaced}
        if updated is not None:
            members[updated.member_id] = updated
        resolved: dict[str | None, tuple[str, ...]] = {regex: known.topics for regex, known in group.regexes.items()}
        topics: dict[bytes, int] = {}
        ids: dict[str, bytes | None] = {}
        read: dict[tuple[tuple[str, ...], str | None], frozenset[bytes]] = {}
        for member in members.values():
            subscription = (member.topics, member.regex)
            if subscription in read:
                continue
            for name in (*member.topics, *resolved.get(member.regex, ())):
                if name not in ids:
                    topic = self.topics.named(name)
                    ids[name] = None if topic is None else topic.topic_id
                    if topic is not None:
                        topics[topic.topic_id] = topic.partitions
            found = (ids[name] for name in (*member.topics, *resolved.get(member.regex, ())))
            read[subscription] = frozenset(topic_id for topic_id in found if topic_id is not None)
        return Input(
            group.preferred_assignor(updated, self.config.assignors[0]),
            topics,
            {
                member_id: Subscriber(
                    member.instance_id,
                    read[(member.topics, member.regex)],
                    group.target_of(member_id, member.instance_id),
                )
                for member_id, member in members.items()
            },
        )

    # -- reconciliation

    def reconcile(
        self,
        member: ConsumerMember,
        epoch: int,
        target: Partitions,
        owned: Partitions | None,
        *,
        subscription_changed: bool,
    ) -> ConsumerMember:
        group = self.group
        mine = (None, member.member_id, self.replaced) if self.replaced is not None else (None, member.member_id)
        resolved = group.regexes.get(member.regex) if member.regex else None
        names = {*member.topics, *(resolved.topics if resolved is not None else ())}

        def is_subscribed(topic_id: bytes) -> bool:
            topic = self.topics.with_id(topic_id)
            return topic is not None and topic.name in names

        after = reconcile(
            member,
            epoch,
            target,
            owned,
            is_free=lambda topic_id, partition: group.owner(topic_id, partition) in mine,
            is_subscribed=is_subscribed,
            subscription_changed=subscription_changed,
        )
        if after != member:
            self.changes.append(after.current(group.group_id))
            if after.classic is None:
                key = ("rebalance", group.group_id, member.member_id)
                if after.state == MemberState.UNREVOKED_PARTITIONS:
                    self.effects.append(SetTimer(key, after.rebalance_timeout_ms))
                else:
                    self.effects.append(CancelTimer(key))
        return after

    # -- leaving

    def leave(self, asked: ConsumerHeartbeat) -> list[str]:
        """Answers; the members that are to be removed. A static member with epoch -2 stays, and with it what it
        holds: it will be back within its session."""
        group = self.group
        if asked.instance_id is None:
            member = self.dynamic_member(asked.member_id, create=False)
        else:
            member = self.known_static_member(
                group.static_member(asked.instance_id), asked.member_id, asked.instance_id
            )
        answer = ConsumerHeartbeatAnswer(ErrorCode.NONE, None, member.member_id, asked.member_epoch)
        self.effects.append(Reply(asked.waiter, answer))
        if asked.instance_id is None or asked.member_epoch != STATIC_LEAVE_EPOCH:
            return [member.member_id]
        away = replace(
            member,
            epoch=STATIC_LEAVE_EPOCH,
            assigned={topic_id: dict.fromkeys(held, 0) for topic_id, held in member.assigned.items()},
            revoking={},
        )
        self.changes.append(away.current(group.group_id))
        self.effects.append(CancelTimer(("rebalance", group.group_id, member.member_id)))
        return []

    def remove(self, member_ids: Iterable[str]) -> None:
        """Remove members, and what nobody else asked for; what they held is free."""
        group, gone = self.group, list(member_ids)
        if not gone:
            return
        for member_id in gone:
            self.changes += self._removal(member_id)
            self._cancel_timers(member_id)
        names, regexes = group.topic_counts.copy(), group.regex_counts.copy()
        for member_id in gone:
            member = group.members[member_id]
            names.subtract(member.topics)
            regexes.subtract([member.regex] if member.regex else [])
        for regex in sorted(group.regex_counts):
            if not regexes[regex]:
                self.changes.append(RegexRemoved(group.group_id, regex))
        read = set(+names).union(*(group.regexes[regex].topics for regex in +regexes if regex in group.regexes))
        self.changes.append(EpochSaved(group.group_id, group.epoch + 1, metadata_hash(read, self.topics)))
        if len(gone) == len(group.members) and group.assignment_timestamp_ms:
            self.changes.append(TargetEpochSaved(group.group_id, group.assignment_epoch, 0))

    def _removal(self, member_id: str) -> list[Change]:
        group_id = self.group.group_id
        return [
            CurrentRemoved(group_id, member_id),
            TargetRemoved(group_id, member_id),
            MemberRemoved(group_id, member_id),
        ]

    def _cancel_timers(self, member_id: str) -> None:
        self.effects += [CancelTimer((kind, self.group.group_id, member_id)) for kind in MEMBER_TIMERS]

    def loaded(self) -> None:
        """The group was read from its log: fresh sessions, and time anew for those who are to give up partitions."""
        group_id = self.group.group_id
        for member in self.group.members.values():
            classic = member.classic
            session_ms = self.times.session_timeout_ms if classic is None else classic.session_timeout_ms
            self.effects.append(SetTimer(("session", group_id, member.member_id), session_ms))
            if member.state == MemberState.UNREVOKED_PARTITIONS and classic is None:
                key = ("rebalance", group_id, member.member_id)
                self.effects.append(SetTimer(key, member.rebalance_timeout_ms))

    # -- an assignment that was computed meanwhile

    def assigned(self, given: Input, targets: Mapping[str, Partitions]) -> None:
        """Part of a computed assignment. Members that have left get nothing; one that a new incarnation replaced
        passes its target on. Partitions are given out only when nobody holds them, so that parts do no harm."""
        group = self.group
        for member_id, partitions in targets.items():
            name = member_id
            instance_id = given.members[member_id].instance_id
            if name not in group.members and instance_id is not None:
                name = group.static_members.get(instance_id, name)
            if name in group.members and group.target.get(name) != partitions:
                self.changes.append(TargetSaved(group.group_id, name, partitions))

    def assignment_done(self, epoch: int) -> None:
        """All parts of the assignment of this epoch are there."""
        group = self.group
        self.notes.append(AssignmentRun(group.group_id, 0))
        if epoch > group.assignment_epoch and group.members:
            self.changes.append(TargetEpochSaved(group.group_id, epoch, self.now_ms))


def check_epoch(member: ConsumerMember, epoch: int, owned: Partitions | None) -> None:
    """FENCED_MEMBER_EPOCH unless the member says its own epoch, 0 to join again, or the one before together with
    nothing that it does not have: the answer with the new one may have been lost."""
    if epoch in (0, member.epoch):
        return
    which = "greater" if epoch > member.epoch else "smaller"
    if epoch == member.previous_epoch and epoch < member.epoch and owned is not None:
        assigned = member.assigned
        if all(partitions <= assigned.get(topic_id, {}).keys() for topic_id, partitions in owned.items()):
            return
    raise KafkaError(
        ErrorCode.FENCED_MEMBER_EPOCH,
        f"The consumer group member has a {which} member epoch ({epoch}) than the one known by the group coordinator "
        f"({member.epoch}). The member must abandon all its partitions and rejoin.",
    )
