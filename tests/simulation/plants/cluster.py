"""Bugs that take several brokers to show: zombies, rivals, leaders that move."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import broker.groups.runtime
import broker.recovery
import controller.decide
import controller.decide.brokers
import controller.decide.seals
import controller.sessions
import controller.upkeep
from broker.sealing import Sealing
from broker.validation import Validation
from controller.client import Session
from controller.commands import ReplayLog
from controller.object_log import ObjectLog
from controller.sessions import Sessions
from controller.state import ClusterState
from protocol.records import parse_header
from storage.wal.instances import Instance
from storage.wal.volume import VolumeWal
from storage.wal.writer import Writer
from tests.simulation.plants.registry import Patches, cluster_plant


@cluster_plant()
def fence_never_looked_for() -> Patches:
    """A writer acknowledges though somebody recovers its WAL."""
    yield VolumeWal, "look_for_fence", lambda self: False


@cluster_plant()
def fence_looked_for_before_the_sync() -> Patches:
    """Look, sync, acknowledge: the recoverer may come in between."""
    write_group, publish = Writer._write_group, Writer._publish
    looked: dict[Writer, bool] = {}

    def look_first(self: Writer) -> bool:
        looked[self] = self._fenced()
        return write_group(self)

    def publish_anyway(self: Writer, written: Any) -> None:
        with patch.object(self, "_fenced", lambda: looked[self]):
            publish(self, written)

    yield Writer, "_write_group", look_first
    yield Writer, "_publish", publish_anyway


@cluster_plant()
def recoverer_does_not_fence() -> Patches:
    """It reads what the writer may still add to."""
    yield Instance, "fence", lambda self: None


@cluster_plant()
def replay_ignores_the_epoch() -> Patches:
    """Frames of an older leadership through the same instance come back."""
    wanted = broker.recovery._wanted
    yield (
        broker.recovery,
        "_wanted",
        lambda batches, plan, done: wanted(((plan.epoch, base, batch) for _, base, batch in batches), plan, done),
    )


@cluster_plant()
def replay_ignores_a_gap() -> Patches:
    """What follows a hole is taken as if nothing were missing."""

    def wanted(batches: Iterator[tuple[int, int, bytes]], plan: ReplayLog, done: Any) -> Iterator[bytes]:
        end = plan.end
        for epoch, base, batch in batches:
            if epoch == plan.epoch and base >= end:
                end = parse_header(batch).next_offset
                yield batch

    yield broker.recovery, "_wanted", wanted


@cluster_plant()
def refused_range_taken_for_committed() -> Patches:
    """A leader goes on though the controller refused what it sealed."""
    on_commit = Sealing._on_commit
    yield Sealing, "_on_commit", lambda self, fact: on_commit(self, dataclasses.replace(fact, refused=()))


@cluster_plant()
def commit_without_its_epoch() -> Patches:
    """The controller takes a range whose leader was replaced, if only its base fits."""
    fits = controller.decide.seals._fits

    def by_base(state: ClusterState, command: Any, found: Any) -> bool:
        known = state.logs.get(found.log_id)
        return known is not None and fits(state, command, found._replace(leader_epoch=known.epoch))

    yield controller.decide.seals, "_fits", by_base


@cluster_plant()
def negative_answers_without_the_right() -> Patches:
    """OFFSET_OUT_OF_RANGE and the like from a broker that may have been replaced."""
    yield Validation, "may_answer_authoritatively", lambda self: True


@cluster_plant()
def session_without_end() -> Patches:
    """A broker that was granted a session once believes in it until it is told otherwise."""
    yield Session, "stands", lambda self, now_ms: not self.ended


@cluster_plant()
def zombie_controller_grants() -> Patches:
    """A controller renews sessions without looking at its own lease."""
    yield Sessions, "may_grant", lambda self, now: True


@cluster_plant()
def lease_counted_from_the_reply() -> Patches:
    """A late answer to an append extends the controller's lease."""
    appended = Sessions.appended
    yield Sessions, "appended", lambda self, sent_ms, now: appended(self, now, now)


@cluster_plant()
def new_controller_declares_at_once() -> Patches:
    """It does not wait for what its predecessor may have granted."""
    took_over = Sessions.took_over
    yield Sessions, "took_over", lambda self, last_entry_seen_ms, old: took_over(self, -(1 << 40), old)


@cluster_plant()
def session_being_ended_is_renewed() -> Patches:
    """Between the decision to end a session and the fact, its broker is granted another one."""
    expired = Sessions.expired

    def forgetful(self: Sessions, alive: Any, now: int) -> list[int]:
        found = expired(self, alive, now)
        self.ending.clear()
        return found

    yield Sessions, "expired", forgetful


@cluster_plant()
def no_margin_for_clock_rates() -> Patches:
    """A slow clock keeps a session that the controller's clock has ended."""
    yield controller.sessions, "with_margin", lambda wait_ms: wait_ms


@cluster_plant()
def every_conflict_taken_as_our_own() -> Patches:
    """A metadata entry that exists already is taken for the one that was to be written."""
    append = ObjectLog.append

    async def careless(self: ObjectLog, position: int, entry: bytes) -> bytes:
        await append(self, position, entry)
        return entry

    yield ObjectLog, "append", careless
