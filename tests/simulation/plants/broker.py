"""Bugs that a world of one broker shows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from unittest.mock import patch

import broker.coordination.runtime
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
from broker.log import Log, LogStatus
from broker.log_table import LogTable
from broker.recovery import WalRecovery
from broker.sealing import Sealing
from broker.validation import Validation, assign_high_watermark
from controller.collector import is_orphan
from controller.decide import Decision
from controller.decide.seals import commit_seal
from controller.log_index import LogIndex
from controller.queue import Waiting
from controller.runtime import Runtime
from controller.state import ClusterState
from protocol.records import BatchHeader
from storage.producers import Duplicate, ProducerStates
from storage.seal import CommitSeal
from storage.uploader import Uploader
from storage.wal.files import write_all
from storage.wal.recovery import Damage, Scanner
from storage.wal.volume import VolumeWal
from storage.wal.writer import Writer
from tests.simulation.disk import SimulatedDirectory
from tests.simulation.plants.registry import Patches, plant

# Acknowledgements


@plant(faults={"hang_and_crash": 1})
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


@plant(faults={"hang_and_crash": 1})
def high_watermark_at_append() -> Patches:
    """Consumers are served what is appended, not what is validated."""
    append = Log.append

    def visible(self: Log, *args: Any) -> int:
        sequence = append(self, *args)
        assign_high_watermark(self, self.end)
        self.wake_all()
        return sequence

    yield Log, "append", visible


@plant(faults={"hang_and_crash": 2, "reset": 1})
def duplicate_answered_early() -> Patches:
    """A repeated batch is acknowledged although its original is not durable."""
    check = ProducerStates.check

    def early(self: ProducerStates, header: BatchHeader, now_ms: int) -> Duplicate | None:
        found = check(self, header, now_ms)
        return None if found is None else found._replace(sequence=0)

    yield ProducerStates, "check", early


@plant(faults={"kill": 1, "reset": 1, "hang_and_crash": 1})
def duplicate_check_skipped() -> Patches:
    """Sequences of producers are not looked at."""
    yield ProducerStates, "check", lambda self, header, now_ms: None


@plant(faults={"disk_errors": 3, "crash": 2})
def acknowledged_though_the_wal_failed() -> Patches:
    """A write or sync that failed counts as done."""

    def careless(write: Any, buffers: Sequence[Any], position: int) -> None:
        try:
            write_all(write, buffers, position)
        except OSError:
            pass

    yield storage.wal.writer, "write_all", careless


@plant(faults={"disk_errors": 3, "crash": 2})
def sync_repeated_after_it_failed() -> Patches:
    """A failed sync is tried again; but the kernel has dropped what it could not write."""

    def stubborn(write: Any, buffers: Sequence[Any], position: int) -> None:
        try:
            write_all(write, buffers, position)
        except OSError:
            write.__self__.sync()

    yield storage.wal.writer, "write_all", stubborn


class _Nobody:
    """In the place of a log: what was rolled back is nobody's."""

    hw = lso = 0
    sealed_end = 1 << 62
    status = LogStatus.CLOSED

    def __init__(self) -> None:
        self.producers = ProducerStates()
        self.waiters: dict[Any, None] = {}


@plant(faults={"failed_write_and_crash": 1})
def failed_write_is_rolled_back() -> Patches:
    """A group that could not be synced never was: its offsets are given again. But its bytes may have landed."""
    publish, deliver = Writer._publish, VolumeWal._deliver
    failed: dict[Any, list[tuple[int, int]]] = {}
    erring: set[int] = set()

    def write(write: Any, buffers: Sequence[Any], position: int) -> None:
        try:
            write_all(write, buffers, position)
        except OSError:
            erring.add(id(write.__self__))

    def note(self: Writer, written: Any) -> None:
        wal = cast(Any, self._fenced).__self__
        file = self._file
        if file is not None and id(file.handle) in erring:
            erring.discard(id(file.handle))
            failed.setdefault(wal, []).append((self.progress.sequence + 1, written.sequence))
        publish(self, written)

    def roll_back(self: VolumeWal) -> None:
        validation = cast(Any, self._on_durable).__self__
        for first, last in failed.pop(self, []):
            _roll_back(validation, first - validation.validated - 1, last - validation.validated)
        deliver(self)

    yield storage.wal.writer, "write_all", write
    yield Writer, "_publish", note
    yield VolumeWal, "_deliver", roll_back


def _roll_back(validation: Validation, first: int, last: int) -> None:
    """Entries [first, last) of what is in flight failed, and with them what followed in the same logs."""
    in_flight = validation.in_flight
    lost = {in_flight[at][0] for at in range(first, last)}
    give_up(validation, lost, first)
    for held in lost:
        end = max([held.hw, *[known for other, known, _ in in_flight if other is held]])
        held.end = end
        tail = held.tail
        while tail._bases and tail._bases[-1] >= end:
            tail._memory.release(tail._batches.pop())
            for column in (tail._bases, tail._sequences, tail._timestamps, tail._ends):
                column.pop()
        tail.end = end
        producers = held.producers._producers
        for number, producer in list(producers.items()):
            producer.events = [event for event in producer.events if event.end <= end]
            producer.packed = b""
            if not producer.events:
                del producers[number]


def give_up(validation: Validation, lost: set[Log], first: int = 0) -> None:
    """From entry `first` on nobody hears anything of what is in flight of these logs."""
    in_flight, nobody = validation.in_flight, cast(Any, _Nobody())
    for at in range(first, len(in_flight)):
        held, _, reply = in_flight[at]
        if held in lost:
            in_flight[at] = (nobody, 0, None)
            if reply is not None:
                reply.connection.abort()


@plant(faults={"crash": 3, "hang_and_crash": 1})
def group_not_synced() -> Patches:
    """Groups are written and reported durable without a sync."""
    yield (
        storage.wal.writer,
        "write_all",
        lambda write, buffers, position: write_all(write.__self__.write, buffers, position),
    )


@plant(faults={"crash": 1})
def directory_not_synced() -> Patches:
    """The name of a new WAL file is not made durable before its first group."""
    yield SimulatedDirectory, "sync", lambda self: None


# Seals, trimming, segments


@plant(faults={"hang_and_crash": 2, "reset": 1})
def snapshot_newer_than_its_range() -> Patches:
    """A range holds the producer state of the moment of its seal, batches above its end included."""
    snapshot = ProducerStates.snapshot
    yield ProducerStates, "snapshot", lambda self, end: snapshot(self, 1 << 62)


@plant(faults={"outage_and_kill": 1}, load=3)
def wal_trimmed_before_the_commit() -> Patches:
    """Files go when a seal is on its way, not when a fact says that it is committed."""
    seal = Sealing._seal

    async def hasty(self: Sealing, due: Sequence[Log]) -> None:
        await seal(self, due)
        for one in self._instances.values():
            one.wal.trim(one.through)

    yield Sealing, "_seal", hasty


@plant()
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


@plant(faults={"slow_store": 2, "store_errors": 2})
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


@plant(faults={"slow_store": 1, "store_errors": 1})
def collector_deletes_what_a_living_broker_uploads() -> Patches:
    """Every segment that no fact names is garbage."""

    def unnamed(state: ClusterState, key: str) -> bool:
        return is_orphan(state, key) or not (key in state.objects.numbers or key in state.objects.doomed)

    yield controller.upkeep, "is_orphan", unnamed


# Recovery


@plant()
def log_opened_before_its_wal_is_scanned() -> Patches:
    """Logs are led again as soon as their leader's session has ended."""
    open_leaderless = controller.decide.brokers._open_leaderless

    def at_once(state: ClusterState, command: Any, context: Any, ended: list[int]) -> list[Any]:
        dead = (0, *ended)
        logs = [log.log_id for log in state.logs.values() if log.leader_incarnation in dead]
        with patch.object(LogIndex, "through", lambda self, wal_id: logs):
            return open_leaderless(state, command, context, ended)

    yield controller.decide.brokers, "_open_leaderless", at_once


@plant()
def scan_overlooks_the_tail() -> Patches:
    """A recovery reports that the instance holds nothing."""
    report = WalRecovery._report

    async def nothing(self: WalRecovery, wal_id: bytes, named: Any, scan: Any, *, complete: bool) -> Any:
        return await report(self, wal_id, named, scan._replace(entries=[]), complete=complete)

    yield WalRecovery, "_report", nothing


@plant()
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


@plant(faults={"hang_and_crash": 1, "crash": 1}, load=3)
def torn_tail_taken_for_damage() -> Patches:
    """A last group that a crash tore keeps the log closed until an operator decides."""
    evidence = Scanner._evidence

    def severe(self: Scanner, numbers: list[int], stop: Any) -> Damage | None:
        found = evidence(self, numbers, stop)
        if found is None and stop.header is not None:
            return Damage("torn", stop.position, stop.group, stop.reason, None, [])
        return found

    yield Scanner, "_evidence", severe


@plant(faults={"rot": 1})
def damage_taken_for_a_torn_tail() -> Patches:
    """Groups behind an invalid one are not looked for: what was acknowledged there is gone without a word."""
    yield Scanner, "_evidence", lambda self, numbers, stop: None
    yield Scanner, "_front", lambda self, numbers, first, committed_group: None


@plant(faults={"unheard_and_kill": 1})
def producer_state_not_recovered() -> Patches:
    """A log opens without knowing its producers."""

    async def nothing(self: ColdReads, log_id: int, states: ProducerStates, now_ms: int) -> int:
        return 0

    yield ColdReads, "producers", nothing


# Fetching


@plant(faults={})
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


@plant(faults={"hang_and_crash": 1})
def group_answers_before_durable() -> Patches:
    """Commits are acknowledged, and committed offsets told, when they are appended."""
    yield ShardRuntime, "sequence_of", lambda self, group_ids: 0


@plant()
def group_rewrite_not_awaited() -> Patches:
    """The start of a group partition moves up to its rewrite before that is durable."""

    async def at_once(self: ShardRuntime, sequence: int) -> None:
        return None

    yield ShardRuntime, "until_validated", at_once
    yield broker.coordination.runtime, "REWRITE_BYTES_MIN", 2_000


@plant(faults={"stop": 1})
def group_rewrite_forgets() -> Patches:
    """A rewrite leaves most of what is in force behind."""
    live = Shard.live
    yield Shard, "live", lambda self, keys: live(self, keys)[:1]
    yield broker.coordination.runtime, "REWRITE_BYTES_MIN", 500


# Metadata


@plant()
def controller_replies_before_durable() -> Patches:
    """Commands are answered when they are decided."""
    decide_one = Runtime._decide_one

    def early(self: Runtime, item: Waiting, context: Any) -> Any:
        decision = decide_one(self, item, context)
        if isinstance(decision, Decision):
            self.queue.settle(item, decision.answer)
        return decision

    yield Runtime, "_decide_one", early
