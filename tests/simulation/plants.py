"""Planted bugs: each patches the product while its context is entered, and the simulation must catch it.

Some are the mutations of the executable model of the protocol, the others are what could go wrong in this code. `FOCUS`
has the faults that a bug needs in order to show, where those of every world would take too many seeds.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias
from unittest.mock import patch

import broker.groups.runtime
import broker.recovery
import controller.decide
import controller.decide.brokers
import controller.decide.seals
import controller.sessions
import controller.upkeep
import storage.wal.writer
from broker.cold import ColdReads
from broker.groups.runtime import ShardRuntime
from broker.groups.shard import Shard
from broker.handlers.fetch import Poll
from broker.log import Log
from broker.log_table import LogTable
from broker.recovery import WalRecovery
from broker.sealing import Sealing
from broker.validation import Validation, assign_high_watermark
from controller.client import Session
from controller.collector import is_orphan
from controller.commands import ReplayLog
from controller.decide import Decision
from controller.decide.seals import commit_seal
from controller.log_index import LogIndex
from controller.object_log import ObjectLog
from controller.queue import Waiting
from controller.runtime import Runtime
from controller.sessions import Sessions
from controller.state import ClusterState
from protocol.records import BatchHeader, parse_header
from storage.producers import Duplicate, ProducerStates
from storage.seal import CommitSeal
from storage.uploader import Uploader
from storage.wal.files import write_all
from storage.wal.instances import Instance
from storage.wal.recovery import Damage, Scanner
from storage.wal.volume import VolumeWal
from storage.wal.writer import Writer
from tests.simulation.disk import SimulatedDirectory

Plant: TypeAlias = Callable[[], AbstractContextManager[None]]
Patches: TypeAlias = "Iterator[tuple[Any, str, Any]]"
"""(class or module, name, what it becomes)."""

PLANTS: dict[str, Plant] = {}
"""Name -> context manager, of the bugs that a world of one broker shows."""

CLUSTER_PLANTS: dict[str, Plant] = {}
"""Those that take several brokers to show."""

FOCUS: dict[str, dict[str, int]] = {
    "reply_before_durable": {"hang_and_crash": 1},
    "high_watermark_at_append": {"hang_and_crash": 1},
    "duplicate_check_skipped": {"kill": 1, "reset": 1, "hang_and_crash": 1},
    "producer_state_not_recovered": {"kill": 1, "crash": 1, "hang_and_crash": 1},
    "duplicate_answered_early": {"hang_and_crash": 2, "reset": 1},
    "snapshot_newer_than_its_range": {"hang_and_crash": 2, "reset": 1},
    "group_answers_before_durable": {"hang_and_crash": 1},
    "group_not_synced": {"crash": 3, "hang_and_crash": 1},
    "directory_not_synced": {"crash": 1},
    "acknowledged_though_the_wal_failed": {"disk_errors": 3, "crash": 2},
    "sync_repeated_after_it_failed": {"disk_errors": 3, "crash": 2},
    "wal_trimmed_before_the_commit": {"outage": 2, "store_errors": 1, "kill": 3},
    "seals_committed_out_of_order": {"slow_store": 2, "store_errors": 2},
    "collector_deletes_what_a_living_broker_uploads": {"slow_store": 1, "store_errors": 1},
    "torn_tail_taken_for_damage": {"hang_and_crash": 1},
    "damage_taken_for_a_torn_tail": {"rot": 1},
    "long_poll_registered_late": {},
    "group_rewrite_forgets": {"kill": 2, "stop": 1},
}
"""Name -> kinds of faults and their weights."""


def _register(make: Callable[[], Patches], among: dict[str, Plant]) -> None:
    @contextmanager
    def planted() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, new in make():
                stack.enter_context(patch.object(owner, name, new))
            yield

    among[make.__name__] = planted


def plant(make: Callable[[], Patches]) -> Callable[[], Patches]:
    """Register a bug under the name of the generator that makes its patches."""
    _register(make, PLANTS)
    return make


def cluster_plant(make: Callable[[], Patches]) -> Callable[[], Patches]:
    """The same for `CLUSTER_PLANTS`."""
    _register(make, CLUSTER_PLANTS)
    return make


# Acknowledgements


@plant
def reply_before_durable() -> Patches:
    """A producer hears of success when its batch is appended."""
    append = Log.append

    def early(self: Log, header: BatchHeader, batch: Any, stamp: int, now_ms: int, reply: Any = None) -> int:
        sequence = append(self, header, batch, stamp, now_ms)
        if reply is not None:
            _answer_now(reply)
        return sequence

    yield Log, "append", early
    yield Validation, "when_reply", lambda self, sequence, reply: _answer_now(reply)


def _answer_now(reply: Any) -> None:
    reply.waits -= 1
    if not reply.waits:
        reply.connection.ready(reply)


@plant
def high_watermark_at_append() -> Patches:
    """Consumers are served what is appended, not what is validated."""
    append = Log.append

    def visible(self: Log, *args: Any) -> int:
        sequence = append(self, *args)
        assign_high_watermark(self, self.end)
        self.wake_all()
        return sequence

    yield Log, "append", visible


@plant
def duplicate_answered_early() -> Patches:
    """A repeated batch is acknowledged although its original is not durable."""
    check = ProducerStates.check

    def early(self: ProducerStates, header: BatchHeader, now_ms: int) -> Duplicate | None:
        found = check(self, header, now_ms)
        return None if found is None else found._replace(sequence=0)

    yield ProducerStates, "check", early


@plant
def duplicate_check_skipped() -> Patches:
    """Sequences of producers are not looked at."""
    yield ProducerStates, "check", lambda self, header, now_ms: None


@plant
def acknowledged_though_the_wal_failed() -> Patches:
    """A write or sync that failed counts as done."""

    def careless(write: Any, buffers: Sequence[Any], position: int) -> None:
        try:
            write_all(write, buffers, position)
        except OSError:
            pass

    yield storage.wal.writer, "write_all", careless


@plant
def sync_repeated_after_it_failed() -> Patches:
    """A failed sync is tried again; but the kernel has dropped what it could not write."""

    def stubborn(write: Any, buffers: Sequence[Any], position: int) -> None:
        try:
            write_all(write, buffers, position)
        except OSError:
            write.__self__.sync()

    yield storage.wal.writer, "write_all", stubborn


@plant
def group_not_synced() -> Patches:
    """Groups are written and reported durable without a sync."""
    yield (
        storage.wal.writer,
        "write_all",
        lambda write, buffers, position: write_all(write.__self__.write, buffers, position),
    )


@plant
def directory_not_synced() -> Patches:
    """The name of a new WAL file is not made durable before its first group."""
    yield SimulatedDirectory, "sync", lambda self: None


# Seals, trimming, segments


@plant
def snapshot_newer_than_its_range() -> Patches:
    """A range holds the producer state of the moment of its seal, batches above its end included."""
    snapshot = ProducerStates.snapshot
    yield ProducerStates, "snapshot", lambda self, end: snapshot(self, 1 << 62)


@plant
def wal_trimmed_before_the_commit() -> Patches:
    """Files go when a seal is on its way, not when a fact says that it is committed."""
    seal = Sealing._seal

    async def hasty(self: Sealing, due: Sequence[Log]) -> None:
        await seal(self, due)
        self._wal.trim(self._through)

    yield Sealing, "_seal", hasty


@plant
def tail_trimmed_too_far() -> Patches:
    """What leaves memory after a commit is everything validated, not only what was committed."""
    committed = LogTable._committed

    def too_far(self: LogTable, log_id: int) -> None:
        committed(self, log_id)
        held = self.by_log_id.get(log_id)
        if held is not None:
            self._kept.append((held, held.hw))
            self._trim_later()

    yield LogTable, "_committed", too_far


@plant
def seals_committed_out_of_order() -> Patches:
    """No seal waits for the one before it, and the controller takes any number."""
    submit = Uploader.submit

    def at_once(self: Uploader, *args: Any, **options: Any) -> asyncio.Future[Any]:
        self._newest_decided = asyncio.Event()
        self._newest_decided.set()
        return submit(self, *args, **options)

    def any_number(state: ClusterState, command: Any, context: Any) -> Decision:
        known = state.broker_table.incarnations[command.incarnation]
        known.last_seal = command.seal - 1
        return commit_seal(state, command, context)

    yield Uploader, "submit", at_once
    table = {**controller.decide._DECIDE, CommitSeal: any_number}
    yield controller.decide, "_DECIDE", table


@plant
def collector_deletes_what_a_living_broker_uploads() -> Patches:
    """Every segment that no fact names is garbage."""

    def unnamed(state: ClusterState, key: str) -> bool:
        return is_orphan(state, key) or not (key in state.objects.numbers or key in state.objects.doomed)

    yield controller.upkeep, "is_orphan", unnamed


# Recovery


@plant
def log_opened_before_its_wal_is_scanned() -> Patches:
    """Logs are led again as soon as their leader's session has ended."""
    open_leaderless = controller.decide.brokers._open_leaderless

    def at_once(state: ClusterState, command: Any, context: Any, ended: list[int]) -> list[Any]:
        dead = (0, *ended)
        logs = [log.log_id for log in state.logs.values() if log.leader_incarnation in dead]
        with patch.object(LogIndex, "through", lambda self, wal_id: logs):
            return open_leaderless(state, command, context, ended)

    yield controller.decide.brokers, "_open_leaderless", at_once


@plant
def scan_overlooks_the_tail() -> Patches:
    """A recovery reports that the instance holds nothing."""
    report = WalRecovery._report

    async def nothing(self: WalRecovery, wal_id: bytes, named: Any, scan: Any, *, complete: bool) -> Any:
        return await report(self, wal_id, named, scan._replace(entries=[]), complete=complete)

    yield WalRecovery, "_report", nothing


@plant
def scan_stops_one_group_early() -> Patches:
    """The last valid group is taken for a torn one."""
    remember = Scanner._remember
    scan = Scanner._scan

    def short(self: Scanner, *args: Any, **options: Any) -> Any:
        found: list[Any] = []

        def later(scanner: Scanner, group: Any) -> None:
            found.append(group)
            if len(found) > 1:
                remember(scanner, found[-2])

        with patch.object(Scanner, "_remember", later), patch.object(Scanner, "_forget", lambda self, group: None):
            return scan(self, *args, **options)

    yield Scanner, "_scan", short


@plant
def torn_tail_taken_for_damage() -> Patches:
    """A last group that a crash tore keeps the log closed until an operator decides."""
    evidence = Scanner._evidence

    def severe(self: Scanner, numbers: list[int], stop: Any) -> Damage | None:
        found = evidence(self, numbers, stop)
        if found is None and stop.header is not None:
            return Damage("torn", stop.position, stop.group, stop.reason, None, [])
        return found

    yield Scanner, "_evidence", severe


@plant
def damage_taken_for_a_torn_tail() -> Patches:
    """Groups behind an invalid one are not looked for: what was acknowledged there is gone without a word."""
    yield Scanner, "_evidence", lambda self, numbers, stop: None
    yield Scanner, "_front", lambda self, numbers, first, committed_group: None


@plant
def producer_state_not_recovered() -> Patches:
    """A log opens without knowing its producers."""

    async def nothing(self: ColdReads, log_id: int, states: ProducerStates, now_ms: int) -> None:
        return None

    yield ColdReads, "producers", nothing


# Fetching


@plant
def long_poll_registered_late() -> Patches:
    """Between the look at the log and the registration for what follows, records may come: nobody is woken."""
    park = Poll._park

    def late(self: Poll) -> None:
        park(self)
        for log in self.logs:
            log.waiters.pop(self, None)

        def register() -> None:
            if not self.done:
                for log in self.logs:
                    log.waiters[self] = None

        asyncio.get_running_loop().call_later(0.05, register)

    yield Poll, "_park", late


# Groups


@plant
def group_answers_before_durable() -> Patches:
    """Commits are acknowledged, and committed offsets told, when they are appended."""
    yield ShardRuntime, "_sequence_of", lambda self, group_ids: 0


@plant
def group_rewrite_not_awaited() -> Patches:
    """The start of a group partition moves up to its rewrite before that is durable."""

    async def at_once(self: ShardRuntime, sequence: int) -> None:
        return None

    yield ShardRuntime, "_until_validated", at_once
    yield broker.groups.runtime, "REWRITE_BYTES_MIN", 2_000


@plant
def group_rewrite_forgets() -> Patches:
    """A rewrite leaves some of what is in force behind."""
    live = Shard.live
    yield Shard, "live", lambda self, keys: live(self, keys)[:-1]
    yield broker.groups.runtime, "REWRITE_BYTES_MIN", 2_000


# Metadata


@plant
def controller_replies_before_durable() -> Patches:
    """Commands are answered when they are decided."""
    decide_one = Runtime._decide_one

    def early(self: Runtime, item: Waiting, context: Any) -> Any:
        decision = decide_one(self, item, context)
        if isinstance(decision, Decision):
            self.queue.settle(item, decision.answer)
        return decision

    yield Runtime, "_decide_one", early


# What takes several brokers: zombies, rivals, leaders that move


@cluster_plant
def fence_never_looked_for() -> Patches:
    """A writer acknowledges though somebody recovers its WAL."""
    yield VolumeWal, "look_for_fence", lambda self: False


@cluster_plant
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


@cluster_plant
def recoverer_does_not_fence() -> Patches:
    """It reads what the writer may still add to."""
    yield Instance, "fence", lambda self: None


@cluster_plant
def replay_ignores_the_epoch() -> Patches:
    """Frames of an older leadership through the same instance come back."""
    wanted = broker.recovery._wanted
    yield (
        broker.recovery,
        "_wanted",
        lambda batches, plan, done: wanted(((plan.epoch, base, batch) for _, base, batch in batches), plan, done),
    )


@cluster_plant
def replay_ignores_a_gap() -> Patches:
    """What follows a hole is taken as if nothing were missing."""

    def wanted(batches: Iterator[tuple[int, int, bytes]], plan: ReplayLog, done: Any) -> Iterator[bytes]:
        end = plan.end
        for epoch, base, batch in batches:
            if epoch == plan.epoch and base >= end:
                end = parse_header(batch).next_offset
                yield batch

    yield broker.recovery, "_wanted", wanted


@cluster_plant
def refused_range_taken_for_committed() -> Patches:
    """A leader goes on though the controller refused what it sealed."""
    on_commit = Sealing._on_commit
    yield Sealing, "_on_commit", lambda self, fact: on_commit(self, dataclasses.replace(fact, refused=()))


@cluster_plant
def commit_without_its_epoch() -> Patches:
    """The controller takes a range whose leader was replaced, if only its base fits."""
    fits = controller.decide.seals._fits

    def by_base(state: ClusterState, command: Any, found: Any) -> bool:
        known = state.logs.get(found.log_id)
        return known is not None and fits(state, command, found._replace(leader_epoch=known.epoch))

    yield controller.decide.seals, "_fits", by_base


@cluster_plant
def negative_answers_without_the_right() -> Patches:
    """OFFSET_OUT_OF_RANGE and the like from a broker that may have been replaced."""
    yield Validation, "may_answer_authoritatively", lambda self: True


@cluster_plant
def session_without_end() -> Patches:
    """A broker that was granted a session once believes in it until it is told otherwise."""
    yield Session, "stands", lambda self, now_ms: not self.ended


@cluster_plant
def zombie_controller_grants() -> Patches:
    """A controller renews sessions without looking at its own lease."""
    yield Sessions, "may_grant", lambda self, now: True


@cluster_plant
def lease_counted_from_the_reply() -> Patches:
    """A late answer to an append extends the controller's lease."""
    appended = Sessions.appended
    yield Sessions, "appended", lambda self, sent_ms, now: appended(self, now, now)


@cluster_plant
def new_controller_declares_at_once() -> Patches:
    """It does not wait for what its predecessor may have granted."""
    took_over = Sessions.took_over
    yield Sessions, "took_over", lambda self, last_entry_seen_ms, old: took_over(self, -(1 << 40), old)


@cluster_plant
def session_being_ended_is_renewed() -> Patches:
    """Between the decision to end a session and the fact, its broker is granted another one."""
    expired = Sessions.expired

    def forgetful(self: Sessions, alive: Any, now: int) -> list[int]:
        found = expired(self, alive, now)
        self.ending.clear()
        return found

    yield Sessions, "expired", forgetful


@cluster_plant
def no_margin_for_clock_rates() -> Patches:
    """A slow clock keeps a session that the controller's clock has ended."""
    yield controller.sessions, "with_margin", lambda wait_ms: wait_ms


@cluster_plant
def every_conflict_taken_as_our_own() -> Patches:
    """A metadata entry that exists already is taken for the one that was to be written."""
    append = ObjectLog.append

    async def careless(self: ObjectLog, position: int, entry: bytes) -> bytes:
        await append(self, position, entry)
        return entry

    yield ObjectLog, "append", careless
