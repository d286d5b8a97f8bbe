"""One step of a member towards its target assignment (KIP-848's reconciliation), as a pure function.

A member first gives up what it is not to have, in its old epoch; it says so by no longer naming the partitions among
those it owns. Then it goes to the target's epoch and gets what is free. What others have not given up yet it waits
for. So no partition has two owners: it is given only when nobody holds it. Kafka 4.3's `CurrentAssignmentBuilder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from broker.groups.consumer import ConsumerMember
from broker.groups.consumer_model import Held, MemberState, Partitions
from protocol.errors import ErrorCode, KafkaError


def reconcile(
    member: ConsumerMember,
    epoch: int,
    target: Partitions,
    owned: Partitions | None,
    *,
    is_free: Callable[[bytes, int], bool],
    is_subscribed: Callable[[bytes], bool],
    subscription_changed: bool,
) -> ConsumerMember:
    """The member after one step; the same object if there is none to take.

    `epoch`: the target's. `owned`: what the member says it has, None if it did not say. `is_free(topic id, partition)`:
    no other member holds it.
    """
    if not subscription_changed and member.is_reconciled_to(epoch):
        return member

    def next_step() -> ConsumerMember:
        return _towards_target(member, epoch, target, owned, is_free, is_subscribed)

    match member.state:
        case MemberState.STABLE:
            if member.epoch != epoch:
                return next_step()
            return _without_unsubscribed(member, owned, is_subscribed)
        case MemberState.UNREVOKED_PARTITIONS:
            if _still_owns(owned, member.revoking):
                return _without_unsubscribed(member, owned, is_subscribed) if subscription_changed else member
            return next_step()
        case MemberState.UNRELEASED_PARTITIONS:
            return next_step()
    if owned is None or owned:
        raise KafkaError(
            ErrorCode.FENCED_MEMBER_EPOCH,
            "The consumer group member is in a unknown state. The member must abandon all its partitions and rejoin.",
        )
    return next_step()


def _still_owns(owned: Partitions | None, revoking: Held) -> bool:
    """A member that does not say what it owns has not given up anything."""
    if owned is None:
        return True
    return any(not partitions.isdisjoint(revoking.get(topic_id, ())) for topic_id, partitions in owned.items())


def _without_unsubscribed(
    member: ConsumerMember, owned: Partitions | None, is_subscribed: Callable[[bytes], bool]
) -> ConsumerMember:
    """Takes away at once what a new subscription does not cover; the rest waits for the next target."""
    dropped = {topic_id: held for topic_id, held in member.assigned.items() if not is_subscribed(topic_id)}
    if not dropped:
        return member
    kept = {topic_id: held for topic_id, held in member.assigned.items() if topic_id not in dropped}
    revoking = {topic_id: dict(held) for topic_id, held in member.revoking.items()}
    for topic_id, held in dropped.items():
        revoking.setdefault(topic_id, {}).update(held)
    moved = replace(member, previous_epoch=member.epoch, assigned=kept)
    if _still_owns(owned, revoking):
        return replace(moved, state=MemberState.UNREVOKED_PARTITIONS, revoking=revoking)
    return moved


def _towards_target(
    member: ConsumerMember,
    epoch: int,
    target: Partitions,
    owned: Partitions | None,
    is_free: Callable[[bytes, int], bool],
    is_subscribed: Callable[[bytes], bool],
) -> ConsumerMember:
    assigned: dict[bytes, dict[int, int]] = {}
    revoking: dict[bytes, dict[int, int]] = {}
    given: dict[bytes, dict[int, int]] = {}
    unreleased = False
    for topic_id in sorted(target.keys() | member.assigned.keys()):
        wanted = target.get(topic_id, frozenset()) if is_subscribed(topic_id) else frozenset()
        held = member.assigned.get(topic_id, {})
        kept = {partition: since for partition, since in held.items() if partition in wanted}
        lost = {partition: since for partition, since in held.items() if partition not in wanted}
        missing = wanted.difference(kept)
        free = {partition: epoch for partition in sorted(missing) if is_free(topic_id, partition)}
        unreleased = unreleased or len(free) < len(missing)
        if kept:
            assigned[topic_id] = kept
        if lost:
            revoking[topic_id] = lost
        if free:
            given[topic_id] = free
    if revoking and _still_owns(owned, revoking):
        return replace(
            member,
            state=MemberState.UNREVOKED_PARTITIONS,
            previous_epoch=member.epoch,
            assigned=assigned,
            revoking=revoking,
        )
    for topic_id, free in given.items():
        assigned.setdefault(topic_id, {}).update(free)
    return replace(
        member,
        state=MemberState.UNRELEASED_PARTITIONS if unreleased else MemberState.STABLE,
        epoch=epoch,
        previous_epoch=member.epoch,
        assigned=assigned,
        revoking={},
    )
