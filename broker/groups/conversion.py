"""Online change of a group between the protocols (KIP-848): what it is made of, one way and the other.

A classic group of consumers becomes a consumer group when a member of that protocol joins; its members stay as they
are, with what they hold, and go on in the classic protocol. A consumer group whose last member of that protocol goes
becomes a classic group again, if all others speak it. Empty groups change whenever the other protocol is used.
`group.consumer.migration.policy` may forbid either.
"""

from __future__ import annotations

from dataclasses import replace
from struct import error as StructError

from broker.groups.classic import ClassicGroup, Member
from broker.groups.consumer import CONSUMER_PROTOCOL, ConsumerGroup, ConsumerMember
from broker.groups.consumer_model import (
    FIRST_EPOCH,
    ClassicProtocols,
    ConsumerChange,
    ConsumerConfig,
    EpochSaved,
    TargetEpochSaved,
    TargetSaved,
)
from broker.groups.model import CancelTimer, Change, Effect, GroupRemoved, GroupState, JoinAnswer, Reply, SyncAnswer
from broker.groups.subscription import assignment_version, read_assignment, read_subscription, write_assignment
from broker.groups.topics import Topics, metadata_hash
from protocol.errors import ErrorCode, KafkaError, ProtocolError


def upgrade(
    old: ClassicGroup, config: ConsumerConfig, topics: Topics
) -> tuple[ConsumerGroup, list[Change], list[Effect]]:
    """The consumer group that a classic one becomes, the changes that make it so, and what its members are told.
    GROUP_ID_NOT_FOUND, as in Kafka: it cannot become one."""
    _check_upgrade(old, config)
    changes: list[Change] = [GroupRemoved(old.group_id)] if old.saved is not None else []
    effects: list[Effect] = [CancelTimer((kind, old.group_id, "")) for kind in ("join", "sync")]
    for pending in old.pending_joins:
        effects.append(CancelTimer(("session", old.group_id, pending)))
    for member in old.members.values():
        error = ErrorCode.REBALANCE_IN_PROGRESS
        if member.joining is not None:
            effects.append(Reply(member.joining, JoinAnswer(error, member.member_id)))
        if member.syncing is not None:
            effects.append(Reply(member.syncing, SyncAnswer(error)))
    # In the first rebalance of a group nobody has a generation yet, and 0 is no epoch that a member may have.
    epoch = max(old.generation, FIRST_EPOCH)
    new = ConsumerGroup(old.group_id)
    made: list[ConsumerChange] = []
    members = [_upgraded(old, member, epoch, topics) for member in old.members.values()]
    made += [one.saved(old.group_id) for one in members]
    names = {name for one in members for name in one.topics}
    made.append(EpochSaved(old.group_id, epoch, metadata_hash(names, topics)))
    for one in members:
        target = {topic_id: frozenset(held) for topic_id, held in one.assigned.items()}
        made.append(TargetSaved(old.group_id, one.member_id, target))
    made.append(TargetEpochSaved(old.group_id, epoch, 0))
    made += [one.current(old.group_id) for one in members]
    for change in made:
        new.apply(change)
    return new, [*changes, *made], effects


def _check_upgrade(old: ClassicGroup, config: ConsumerConfig) -> None:
    problem = ""
    if not config.migration_policy.upgrades:
        problem = "online upgrade is disabled"
    elif not old.is_consumer:
        problem = "the group does not use the consumer embedded protocol"
    elif len(old.members) > config.max_size:
        problem = "the group size exceeds the consumer group maximum size"
    if problem:
        raise _cannot_upgrade(old, problem)


def _cannot_upgrade(old: ClassicGroup, problem: str) -> KafkaError:
    return KafkaError(
        ErrorCode.GROUP_ID_NOT_FOUND,
        f"Cannot upgrade classic group {old.group_id} to consumer group because {problem}.",
    )


def _upgraded(old: ClassicGroup, member: Member, epoch: int, topics: Topics) -> ConsumerMember:
    try:
        subscription = read_subscription(member.metadata(old.protocol) or member.protocols[0][1])
        assignment, user_data = read_assignment(member.assignment)
    except (ProtocolError, ValueError, StructError, IndexError) as error:
        raise _cannot_upgrade(old, "the embedded consumer protocol is malformed") from error
    if user_data:
        raise _cannot_upgrade(
            old,
            "an unsupported custom assignor is in use. Please refer to the documentation or switch to a default "
            "assignor before re-attempting the upgrade",
        )
    found = ((topics.named(name), partitions) for name, partitions in assignment.items())
    return ConsumerMember(
        member.member_id,
        member.instance_id,
        subscription.rack_id,
        member.client_id,
        member.client_host,
        subscription.topics,
        "",
        member.rebalance_timeout_ms,
        None,
        ClassicProtocols(member.session_timeout_ms, member.protocols),
        epoch,
        epoch,
        assigned={
            topic.topic_id: dict.fromkeys(sorted(partitions), epoch) for topic, partitions in found if topic is not None
        },
    )


def may_downgrade(group: ConsumerGroup, leaving: list[str], config: ConsumerConfig, classic_max_size: int) -> bool:
    """Is the group to become a classic one as these members leave?"""
    left = len(group.members) - len(leaving)
    return 0 < left <= classic_max_size and config.migration_policy.downgrades and group.only_classic_without(leaving)


def may_downgrade_replacing(group: ConsumerGroup, replaced: str, config: ConsumerConfig, classic_max_size: int) -> bool:
    """The same when a static member comes back with the classic protocol."""
    member = group.members[replaced]
    return (
        member.classic is None
        and len(group.members) <= classic_max_size
        and config.migration_policy.downgrades
        and group.classic_members == len(group.members) - 1
    )


def downgraded(
    group: ConsumerGroup, leaving: list[str], joining: ConsumerMember | None, epoch: int, topics: Topics, now_ms: int
) -> ClassicGroup:
    """The classic group that a consumer group becomes: stable in the group's epoch, everybody with its target. Its
    members learn by ILLEGAL_GENERATION or a rebalance that they are in it."""
    members: list[ConsumerMember] = []
    for member in group.members.values():
        if joining is not None and member.instance_id is not None and member.instance_id == joining.instance_id:
            members.append(replace(joining, member_id=joining.member_id))
        elif member.member_id not in leaving:
            members.append(member)
    new = ClassicGroup(
        group.group_id,
        state=GroupState.STABLE,
        previous_state=GroupState.STABLE,
        generation=epoch,
        protocol_type=CONSUMER_PROTOCOL,
        state_timestamp_ms=now_ms,
    )
    for member in members:
        assert member.classic is not None, "only members of the classic protocol are left"
        new.put(
            Member(
                member.member_id,
                member.instance_id,
                member.client_id,
                member.client_host,
                member.rebalance_timeout_ms,
                member.classic.session_timeout_ms,
                member.classic.protocols,
                _classic_assignment(group, member, topics),
            )
        )
    new.leader = members[0].member_id
    new.protocol = new.select_protocol()
    new.subscribed = new.compute_subscribed()
    return new


def _classic_assignment(group: ConsumerGroup, member: ConsumerMember, topics: Topics) -> bytes:
    assert member.classic is not None, "only members of the classic protocol are left"
    version = assignment_version(member.classic.protocols[0][1])
    target = group.target_of(member.member_id, member.instance_id)
    named = ((topics.with_id(topic_id), partitions) for topic_id, partitions in target.items())
    return write_assignment({topic.name: partitions for topic, partitions in named if topic is not None}, version)
