"""Bugs that take several brokers to show: zombies, rivals, leaders that move."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import controller.decide
import controller.decide.brokers
import controller.decide.seals
import controller.sessions
import controller.upkeep
from broker.validation import Validation
from controller.client import Session
from controller.object_log import ObjectLog
from controller.sessions import Sessions, with_margin
from storage.wal.instances import Instance
from storage.wal.volume import VolumeWal
from storage.wal.writer import Writer
from tests.simulation.plants.registry import Patches, cluster_plant


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults={"zombie": 3, "island": 2})
def fence_never_looked_for() -> Patches:
    """A writer acknowledges though somebody recovers its WAL."""
    yield VolumeWal, "look_for_fence", lambda self: False


@cluster_plant(first=17, layout="together", session_ms=2_000, moves=0.0, faults_s=14, faults={"zombie": 1})
def fence_looked_for_before_the_sync() -> Patches:
    """Look, sync, acknowledge: the recoverer may come in between."""
    write_group, publish = Writer._write_group, Writer._publish
    looked: dict[Writer, bool] = {}

    def look_first(self: Writer) -> bool:
        if self._queue:  # a look without a group to come would be one after the group before
            looked[self] = self._fenced()
        return write_group(self)

    def publish_anyway(self: Writer, written: Any) -> None:
        with patch.object(self, "_fenced", lambda: looked[self]):
            publish(self, written)

    yield Writer, "_write_group", look_first
    yield Writer, "_publish", publish_anyway


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults={"zombie": 1})
def recoverer_does_not_fence() -> Patches:
    """It reads what the writer may still add to."""
    yield Instance, "fence", lambda self: None


# Epochs alone may be ignored, in commits and in replays, without harm: whoever is replaced by force is dead for good,
# and its instance with it, and whoever moves a log away has committed all of it, in the order of its seals, before the
# log gets its next epoch. What breaks those rules is planted beside the moves.


@cluster_plant(first=5, layout="shared", session_ms=6_000, moves=0.0, faults_s=40, faults={"island": 1})
def negative_answers_without_the_right() -> Patches:
    """OFFSET_OUT_OF_RANGE and the like from a broker that may have been replaced."""
    yield Validation, "may_answer_authoritatively", lambda self: True


@cluster_plant(layout="shared", session_ms=2_000, moves=0.0, faults={"zombie": 3, "island": 2})
def session_without_end() -> Patches:
    """A broker that was granted a session once believes in it until it is told otherwise."""
    yield Session, "stands", lambda self, now_ms: not self.ended


@cluster_plant(
    first=8, layout="shared", session_ms=2_000, moves=0.0, faults_s=14, faults={"island": 2, "pause_controller": 1}
)
def zombie_controller_grants() -> Patches:
    """A controller renews sessions without looking at its own lease."""
    yield Sessions, "may_grant", lambda self, now: True


@cluster_plant(
    first=6,
    layout="shared",
    session_ms=2_000,
    moves=0.0,
    faults_s=14,
    faults={"island": 2, "pause_controller": 2, "slow_store": 1},
)
def lease_counted_from_the_reply() -> Patches:
    """A late answer to an append extends the controller's lease."""
    appended = Sessions.appended
    yield Sessions, "appended", lambda self, sent_ms, now: appended(self, now, now)


@cluster_plant(moves=0.0, faults={"kill_controller": 1})
def new_controller_declares_at_once() -> Patches:
    """It waits neither for what its predecessor may have granted nor until who is alive may have been heard.

    One of the waits without the other does no harm: silence counts from when the controller could have answered, which
    is a lease after the last entry that it saw of its predecessor, and a session follows.
    """
    took_over = Sessions.took_over

    def expires(self: Sessions, incarnation: int) -> int:
        return self.granted.get(incarnation, -(1 << 40)) + with_margin(self.session_ms)

    yield Sessions, "took_over", lambda self, last_entry_seen_ms, old: took_over(self, -(1 << 40), old)
    yield Sessions, "expires", expires


@cluster_plant(first=6, layout="shared", session_ms=6_000, moves=0.0, faults_s=30, faults={"last_word": 1})
def session_being_ended_is_renewed() -> Patches:
    """Between the decision to end a session and the fact, its broker is granted another one."""
    expired = Sessions.expired

    def forgetful(self: Sessions, alive: Any, now: int) -> list[int]:
        found = expired(self, alive, now)
        self.ending.clear()
        return found

    yield Sessions, "expired", forgetful


@cluster_plant(
    first=5,
    layout="shared",
    session_ms=20_000,
    clock_rates=(0.955, 1.045),
    moves=0.0,
    faults_s=70,
    faults={"island": 1},
)
def no_margin_for_clock_rates() -> Patches:
    """A slow clock keeps a session that the controller's clock has ended."""
    yield controller.sessions, "with_margin", lambda wait_ms: wait_ms


@cluster_plant(moves=0.0, faults={"pause_controller": 1, "island": 1})
def every_conflict_taken_as_our_own() -> Patches:
    """A metadata entry that exists already is taken for the one that was to be written."""
    append = ObjectLog.append

    async def careless(self: ObjectLog, position: int, entry: bytes) -> bytes:
        await append(self, position, entry)
        return entry

    yield ObjectLog, "append", careless
