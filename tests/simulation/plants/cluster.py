"""Bugs that take several brokers to show: zombies, rivals, leaders that move."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import controller.collector
import controller.decide
import controller.decide.brokers
import controller.decide.seals
import controller.sessions
import controller.state
import controller.upkeep
from broker.recovery import WalRecovery
from broker.validation import SessionFence, Validation
from controller.client import ClusterController, Grant, Session
from controller.commands import RegisterBroker, ReportScan, RetireWal
from controller.decide import Decision
from controller.decide.brokers import register_broker
from controller.decide.recovery import report_scan, retire_wal
from controller.facts import SealCommitted, WalRetired
from controller.log_index import LogIndex
from controller.object_log import ObjectLog
from controller.sessions import Sessions, with_margin
from controller.wals import ENDED
from storage.wal.instances import Instance
from storage.wal.recovery import Scanner
from storage.wal.volume import VolumeWal
from storage.wal.writer import Writer
from tests.simulation.hosts import SimulatedClock
from tests.simulation.plants.registry import Patches, cluster_plant

BETWEEN_S = 0.3
"""How long a slow recoverer takes between two steps."""


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults={"zombie": 3, "island": 2})
def fence_never_looked_for() -> Patches:
    """A writer acknowledges though somebody recovers its WAL."""
    yield VolumeWal, "look_for_fence", lambda self: False


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults={"stopped_writing": 1})
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


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults_s=14, faults={"forgotten": 1})
def recoverer_reads_and_fences_then() -> Patches:
    """What the writer acknowledges between the two is in nobody's recovery."""
    fence, scan = Instance.fence, WalRecovery._scan

    async def scan_first(self: WalRecovery, instance: Any, *, accept_loss: bool) -> Any:
        if not isinstance(instance, Instance):
            return await scan(self, instance, accept_loss=accept_loss)
        with patch.object(instance, "fence", lambda: None):
            found = await scan(self, instance, accept_loss=accept_loss)
        await asyncio.sleep(BETWEEN_S)
        await asyncio.to_thread(fence, instance)
        return found

    yield WalRecovery, "_scan", scan_first


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults={"forgotten": 1})
def recovery_without_a_new_epoch() -> Patches:
    """A log goes on in the epoch of the leader that was lost, and commits are told apart by base and epoch alone."""
    yield from commits_by_base_alone(epoch=True)
    named = LogIndex.name_leader

    def same_epoch(self: LogIndex, log_id: int, node_id: int, incarnation: int, epoch: int, wal_id: bytes) -> Any:
        log = self.logs[log_id]
        kept, log.epoch = log.epoch, 0
        return named(self, log_id, node_id, incarnation, max(1, kept), wal_id)

    yield LogIndex, "name_leader", same_epoch


@cluster_plant(layout="apart", session_ms=2_000, moves=0.0, faults_s=14, faults={"older_copy": 1})
def stale_copy_accepted() -> Patches:
    """Nobody compares where a WAL ends with what its writer was known to have acknowledged."""
    scan = Scanner.scan

    def whatever(self: Scanner, validated: int, committed: int | None, *, accept_loss: bool) -> Any:
        return scan(self, 0, committed, accept_loss=accept_loss)

    def believe(state: Any, command: ReportScan, context: Any) -> Decision:
        return report_scan(state, replace(command, last_group=1 << 62), context)

    yield Scanner, "scan", whatever
    yield controller.decide, "_DECIDE", {**controller.decide._DECIDE, ReportScan: believe}


@cluster_plant(layout="apart", session_ms=2_000, moves=0.0, faults_s=14, faults={"lost_volume": 1})
def another_volume_passes_for_the_same() -> Patches:
    """A node that comes back is taken to have recovered all that it wrote, whatever it found."""

    def settled(state: Any, command: RegisterBroker, context: Any) -> Decision:
        decision = register_broker(state, command, context)
        facts = list(decision.facts)
        for wal in state.wals.values():
            if wal.node_id == command.node_id and wal.state == ENDED and wal.wal_id not in command.locked and facts:
                bound = [state.logs[log_id] for log_id in state.log_index.through(wal.wal_id)]
                facts += [WalRetired(wal.wal_id), *context.name_leaders(state, bound, context.candidates(state))]
        return decision._replace(facts=tuple(facts))

    yield controller.decide, "_DECIDE", {**controller.decide._DECIDE, RegisterBroker: settled}


def commits_by_base_alone(*, epoch: bool = False) -> Patches:
    """Commits count by where they begin, and by their epoch if that is asked for, and not by who asks.

    With volume WALs neither matters alone: only what is validated is sealed, so that whoever was replaced by force can
    commit nothing but what its recoverer commits too, and whoever moves a log away has committed all of it, in the
    order of its seals, before the log gets its next epoch. For the same reasons a replay meets no frame of another
    epoch above the end of its log. `tests/broker/test_recovery.py` gives it some, and the worlds of the object WAL show
    commits of the replaced.
    """
    apply = controller.state._APPLY[SealCommitted]

    def fits(state: Any, command: Any, found: Any) -> bool:
        log = state.logs.get(found.log_id)
        return log is not None and found.base == log.end and (not epoch or found.leader_epoch == log.epoch)

    def committed(state: Any, fact: Any) -> None:
        broker = state.broker_table.incarnations.get(fact.incarnation)
        if broker is None:
            return
        alive, broker.alive = broker.alive, True
        try:
            apply(state, fact)
        finally:
            broker.alive = alive

    yield controller.decide.seals, "_fits", fits
    yield controller.decide.seals, "require_alive", lambda state, incarnation: None
    yield controller.state, "_APPLY", {**controller.state._APPLY, SealCommitted: committed}


@cluster_plant(layout="together", session_ms=2_000, moves=0.0, faults={"kill": 1})
def wal_retired_before_its_commit() -> Patches:
    """A recoverer says that it is done as soon as it has read, and then commits; and is believed."""
    replay_all = WalRecovery._replay_all

    async def retire_first(self: WalRecovery, instance: Any, named: Any, plans: Any) -> Any:
        await self._ask(RetireWal(self._token(16), instance.wal_id, self._incarnation, named.number))
        return await replay_all(self, instance, named, plans)

    def forget(state: Any, command: Any, context: Any) -> Decision:
        wal = state.wals.get(command.wal_id)
        if wal is not None:
            wal.scanned.clear()
        return retire_wal(state, command, context)

    yield WalRecovery, "_replay_all", retire_first
    yield controller.decide, "_DECIDE", {**controller.decide._DECIDE, RetireWal: forget}


@cluster_plant(layout="shared", session_ms=2_000, moves=0.0, faults_s=20, faults={"forgotten": 1})
def negative_answers_without_the_right() -> Patches:
    """OFFSET_OUT_OF_RANGE and the like from a broker that may have been replaced."""
    yield Validation, "may_answer_authoritatively", lambda self: True


@cluster_plant(
    layout="shared", session_ms=12_000, clock_rates=(1.0,), moves=0.0, faults_s=36, faults={"late_grants": 1}
)
def deadline_counted_from_the_reply() -> Patches:
    """A late answer to a heartbeat extends the session.

    The margin for clock rates would mostly hide it, because a heartbeat is given up after a sixth of a session: these
    clocks are right, and nobody waits any longer than for equal ones.
    """
    heartbeat = ClusterController.heartbeat

    async def hopeful(self: ClusterController, *args: Any) -> Grant:
        sent = asyncio.get_running_loop().time()
        grant = await heartbeat(self, *args)
        return grant._replace(valid_ms=grant.valid_ms + int((asyncio.get_running_loop().time() - sent) * 1000))

    yield ClusterController, "heartbeat", hopeful
    yield controller.sessions, "with_margin", lambda wait_ms: wait_ms


@cluster_plant(layout="shared", session_ms=6_000, moves=0.0, faults_s=24, faults={"long_sleep": 1})
def clock_stops_in_suspend() -> Patches:
    """Sessions are counted on CLOCK_MONOTONIC, which does not know how long the machine slept."""
    yield SimulatedClock, "boottime_ms", lambda self: self.ticks_us() // 1000


@cluster_plant(layout="shared", session_ms=6_000, moves=0.0, faults_s=20, faults={"forgotten": 1})
def sessions_end_before_their_deadline() -> Patches:
    """The controller gives a silent broker up while that one may still believe in its session."""
    yield Sessions, "expires", lambda self, incarnation: self.granted.get(incarnation, 0) + self.session_ms // 2


@cluster_plant(layout="shared", session_ms=2_000, moves=0.0, faults={"zombie": 1})
def session_looked_at_before_the_sync() -> Patches:
    """Look at the session, write, sync, acknowledge: it may end in between."""
    write_group = Writer._write_group
    stood: dict[Any, bool] = {}
    fences: dict[Any, SessionFence] = {}
    made, on_durable = SessionFence.__init__, Validation.on_durable

    def make(self: SessionFence, wal: Any, session: Session, clock: Any) -> None:
        made(self, wal, session, clock)
        fences[wal] = self

    def look_first(self: Writer) -> bool:
        wal = cast(Any, self._fenced).__self__
        if self._queue and wal in fences:
            stood[wal] = fences[wal].may_acknowledge()
        return write_group(self)

    def acknowledge(self: Validation, sequence: int, group: int) -> None:
        fence = self._fence
        if isinstance(fence, SessionFence) and stood.pop(fence._wal, False):
            with patch.object(fence, "may_acknowledge", lambda: True):
                on_durable(self, sequence, group)
        else:
            on_durable(self, sequence, group)

    yield SessionFence, "__init__", make
    yield Writer, "_write_group", look_first
    yield Validation, "on_durable", acknowledge


@cluster_plant(layout="shared", session_ms=2_000, moves=0.0, faults={"zombie": 3, "island": 2})
def session_without_end() -> Patches:
    """A broker that was granted a session once believes in it until it is told otherwise."""
    yield Session, "stands", lambda self, now_ms: not self.ended


@cluster_plant(layout="shared", session_ms=2_000, moves=0.0, faults_s=16, faults={"usurped": 1})
def zombie_controller_grants() -> Patches:
    """A controller renews sessions without looking at its own lease."""
    yield Sessions, "may_grant", lambda self, now: True


@cluster_plant(
    layout="shared", session_ms=12_000, clock_rates=(1.0,), moves=0.0, faults_s=40, faults={"usurped_late": 1}
)
def lease_counted_from_the_reply() -> Patches:
    """A late answer to an append extends the controller's lease.

    The margin for clock rates and the time in which others notice that it is silent would mostly hide it: these clocks
    are right, and nobody waits any longer than for equal ones.
    """
    appended = Sessions.appended
    yield Sessions, "appended", lambda self, sent_ms, now: appended(self, now, now)
    yield controller.sessions, "with_margin", lambda wait_ms: wait_ms


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


@cluster_plant(layout="shared", session_ms=6_000, moves=0.0, faults_s=30, faults={"last_word": 1})
def session_being_ended_is_renewed() -> Patches:
    """Between the decision to end a session and the fact, its broker is granted another one."""
    expired = Sessions.expired

    def forgetful(self: Sessions, alive: Any, now: int) -> list[int]:
        found = expired(self, alive, now)
        self.ending.clear()
        return found

    yield Sessions, "expired", forgetful


@cluster_plant(
    layout="shared",
    session_ms=20_000,
    clock_rates=(0.955, 1.045),
    moves=0.0,
    faults_s=50,
    faults={"forgotten": 1},
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
