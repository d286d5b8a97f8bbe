"""Members of the classic protocol in a consumer group: JoinGroup, SyncGroup, Heartbeat and LeaveGroup.

To such a member the group looks as if it rebalanced cooperatively by itself: its generation is its member epoch, its
JoinGroup answers at once and without members, SyncGroup brings what it is assigned now, and Heartbeat asks it to join
again whenever there is something to give up or to get. Kafka 4.3's `classicGroup...ToConsumerGroup`.
"""

from __future__ import annotations

from dataclasses import replace
from struct import error as StructError

from broker.groups.consumer import CONSUMER_PROTOCOL, ConsumerMember
from broker.groups.consumer_model import ClassicProtocols, MemberState, MigrationPolicy, Partitions
from broker.groups.heartbeats import ConsumerStep
from broker.groups.model import (
    CancelTimer,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    Leaver,
    Reply,
    SetTimer,
    Sync,
    SyncAnswer,
)
from broker.groups.subscription import Subscription, assignment_version, read_subscription, write_assignment
from protocol.errors import ErrorCode, KafkaError, ProtocolError


class MixedStep(ConsumerStep):
    """One step that a member of the classic protocol asks for. KafkaError: refused, nothing happened."""

    def join(self, join: Join) -> ConsumerMember | None:
        """The member as it joins, its subscription changed or not told by `subscription_changed`; None: it is first
        told its id."""
        group = self.group
        if self.config.migration_policy is MigrationPolicy.DISABLED:
            raise KafkaError(ErrorCode.INCONSISTENT_GROUP_PROTOCOL, "Groups may not change between the protocols.")
        member_id = join.member_id or join.token
        self.check_size(member_id)
        if not group.supports_classic(join.protocol_type, (name for name, _ in join.protocols)):
            raise KafkaError(
                ErrorCode.INCONSISTENT_GROUP_PROTOCOL, f"Member {member_id}'s protocols are not supported."
            )
        if not join.member_id and join.instance_id is None and join.needs_member_id:
            self.effects.append(Reply(join.waiter, JoinAnswer(ErrorCode.MEMBER_ID_REQUIRED, member_id)))
            return None
        subscription = joined_subscription(join)
        if join.instance_id is None:
            member = self.dynamic_member(member_id, create=True)
        else:
            member = self.static_member(member_id, join.instance_id, create=not join.member_id, consumer_protocol=False)
        updated = replace(
            member,
            instance_id=join.instance_id if join.instance_id is not None else member.instance_id,
            rack_id=subscription.rack_id if subscription.rack_id is not None else member.rack_id,
            rebalance_timeout_ms=join.rebalance_timeout_ms,
            topics=subscription.topics,
            regex="",
            client_id=join.client_id,
            client_host=join.client_host,
            classic=ClassicProtocols(join.session_timeout_ms, join.protocols),
        )
        names_changed = self.save_member(member, updated)
        regex_changed, _ = self.update_regexes(member, updated)
        self.subscription_changed = names_changed or regex_changed
        self.new_epoch = self.raise_epoch(member, updated, must=self.subscription_changed)
        self.owned = self._by_id(subscription)
        return updated

    def join_done(self, join: Join, updated: ConsumerMember) -> None:
        """The group stays a consumer group: give the member what it is to have."""
        epoch, target = self.next_target(self.new_epoch, updated)
        after = self.reconcile(updated, epoch, target, self.owned, subscription_changed=self.subscription_changed)
        group_id = self.group.group_id
        self.effects += [
            CancelTimer(("rejoin", group_id, after.member_id)),
            SetTimer(("session", group_id, after.member_id), join.session_timeout_ms),
            SetTimer(("resync", group_id, after.member_id), join.rebalance_timeout_ms),
        ]
        self.reply_joined(join, after)

    def reply_joined(self, join: Join, member: ConsumerMember) -> None:
        answer = JoinAnswer(ErrorCode.NONE, member.member_id, member.epoch, CONSUMER_PROTOCOL, protocol_of(member))
        self.effects.append(Reply(join.waiter, answer))

    def _by_id(self, subscription: Subscription) -> Partitions:
        found = ((self.topics.named(name), partitions) for name, partitions in subscription.owned.items())
        return {topic.topic_id: partitions for topic, partitions in found if topic is not None}

    def sync(self, sync: Sync) -> None:
        group = self.group
        member = self._classic_member(sync.member_id, sync.instance_id, sync.generation)
        said_type = sync.protocol_type is not None and sync.protocol_type != CONSUMER_PROTOCOL
        if said_type or (sync.protocol is not None and sync.protocol != protocol_of(member)):
            raise KafkaError(ErrorCode.INCONSISTENT_GROUP_PROTOCOL)
        if group.epoch > member.epoch and member.state != MemberState.UNREVOKED_PARTITIONS:
            # One that is to give up partitions has joined for that, and is asked again when it has.
            raise KafkaError(ErrorCode.REBALANCE_IN_PROGRESS)
        named = ((self.topics.with_id(topic_id), held) for topic_id, held in member.assigned.items())
        assignment = write_assignment(
            {topic.name: held for topic, held in named if topic is not None}, classic_version(member)
        )
        self.effects += [
            CancelTimer(("resync", group.group_id, member.member_id)),
            self._session(member),
            Reply(sync.waiter, SyncAnswer(ErrorCode.NONE, sync.protocol_type, sync.protocol, assignment)),
        ]

    def classic_heartbeat(self, beat: Heartbeat) -> None:
        """REBALANCE_IN_PROGRESS if there is something to give up, or to get."""
        group = self.group
        member = self._classic_member(beat.member_id, beat.instance_id, beat.generation)
        self.effects.append(self._session(member))
        error = ErrorCode.NONE
        if (
            member.epoch < group.epoch
            or member.state == MemberState.UNREVOKED_PARTITIONS
            or (member.state == MemberState.UNRELEASED_PARTITIONS and not group.waits_for_others(member))
        ):
            error = ErrorCode.REBALANCE_IN_PROGRESS
            key = ("rejoin", group.group_id, member.member_id)
            self.effects.append(SetTimer(key, member.rebalance_timeout_ms, keep=True))
        self.effects.append(Reply(beat.waiter, error))

    def leavers(self, leave: Leave) -> list[str]:
        """Answers, and tells the members that are to be removed; of both protocols, since administrators may ask."""
        results: list[tuple[Leaver, ErrorCode]] = []
        gone: dict[str, None] = {}
        for leaver in leave.members:
            try:
                if leaver.instance_id is None:
                    member = self.dynamic_member(leaver.member_id, create=False)
                else:
                    known = self.group.static_member(leaver.instance_id)
                    asked_id = leaver.member_id or (known.member_id if known is not None else "")
                    member = self.known_static_member(known, asked_id, leaver.instance_id)
                gone[member.member_id] = None
                results.append((leaver, ErrorCode.NONE))
            except KafkaError as refused:
                results.append((leaver, refused.code))
        self.effects.append(Reply(leave.waiter, LeaveAnswer(ErrorCode.NONE, tuple(results))))
        return list(gone)

    def _classic_member(self, member_id: str, instance_id: str | None, generation: int) -> ConsumerMember:
        if instance_id is None:
            member = self.dynamic_member(member_id, create=False)
        else:
            member = self.known_static_member(self.group.static_member(instance_id), member_id, instance_id)
        if member.classic is None:
            raise KafkaError(ErrorCode.UNKNOWN_MEMBER_ID, f"Member {member_id} does not use the classic protocol.")
        if generation != member.epoch:
            raise KafkaError(ErrorCode.ILLEGAL_GENERATION)
        return member

    def _session(self, member: ConsumerMember) -> SetTimer:
        assert member.classic is not None, "asked of members of the classic protocol only"
        return SetTimer(("session", self.group.group_id, member.member_id), member.classic.session_timeout_ms)


def joined_subscription(join: Join) -> Subscription:
    """Consumers write the same subscription for each of their assignors. INCONSISTENT_GROUP_PROTOCOL: not a
    subscription."""
    try:
        return read_subscription(join.protocols[0][1])
    except (ProtocolError, ValueError, StructError, IndexError) as error:
        raise KafkaError(ErrorCode.INCONSISTENT_GROUP_PROTOCOL, f"the subscription cannot be read: {error}") from error


def protocol_of(member: ConsumerMember) -> str:
    return member.classic.protocols[0][0] if member.classic is not None else ""


def classic_version(member: ConsumerMember) -> int:
    """Version of the member's subscription, which its assignment is written in."""
    assert member.classic is not None, "asked of members of the classic protocol only"
    return assignment_version(member.classic.protocols[0][1])
