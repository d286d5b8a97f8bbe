"""Bugs of consumer groups."""

from __future__ import annotations

from typing import Any

import broker.groups.heartbeats
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_model import FIRST_EPOCH, CurrentSaved
from broker.groups.heartbeats import ConsumerStep
from broker.groups.shard import Shard
from protocol.errors import ErrorCode
from tests.simulation.plants.registry import PLANTS, Patches, registered_in

group_plant = registered_in(PLANTS, brokers=1, wal="volume", faults_s=12, groups="consumer")


@group_plant(faults={"client_pause": 1})
def given_before_it_was_released() -> Patches:
    """A target is in effect at once, whoever still holds what is in it."""
    step = broker.groups.heartbeats.reconcile

    def at_once(*args: Any, is_free: Any, **options: Any) -> Any:
        return step(*args, is_free=lambda topic_id, partition: True, **options)

    yield broker.groups.heartbeats, "reconcile", at_once


@group_plant(faults={"client_pause": 1})
def commit_whatever_the_epoch() -> Patches:
    """Members that were removed, or whose epoch is over, go on to commit."""
    yield ConsumerGroup, "check_commit", lambda self, commit, **options: ErrorCode.NONE


@group_plant(faults={}, faults_s=40)
def epoch_not_raised_for_a_subscription() -> Patches:
    """The group's epoch stays when a member comes or subscribes to something else: the last assignment goes on."""
    raise_epoch = ConsumerStep.raise_epoch

    def seldom(self: ConsumerStep, member: Any, updated: Any, *, must: bool) -> int:
        return raise_epoch(self, member, updated, must=must and self.group.epoch == FIRST_EPOCH)

    yield ConsumerStep, "raise_epoch", seldom


@group_plant(brokers=3, moves=1.0, faults={"client_pause": 1})
def holdings_not_replayed() -> Patches:
    """A new coordinator knows members and their epochs, and not what they hold."""
    replay = Shard.replay

    def forgetful(self: Shard, change: Any) -> None:
        if isinstance(change, CurrentSaved) and not getattr(self, "written", False):
            change = change._replace(assigned={}, revoking={})
        replay(self, change)

    apply = Shard.apply

    def own(self: Shard, outcome: Any) -> None:
        self.written = True  # type: ignore[attr-defined]
        apply(self, outcome)
        self.written = False  # type: ignore[attr-defined]

    yield Shard, "replay", forgetful
    yield Shard, "apply", own
