"""Bugs of transactions: torn, lost and aborted transfers, readers that see too much, ends that never come."""

from __future__ import annotations

from typing import Any

import broker.handlers.fetch
import broker.handlers.produce
import broker.sealing
import broker.transactions.shard
import broker.validation
import storage.producers
from broker.groups.model import OffsetCommitted, PendingOffset
from broker.groups.offsets import Offsets
from broker.log import Log
from broker.transactions.markers import _Written
from broker.transactions.runtime import TransactionRuntime
from broker.transactions.shard import Shard
from broker.transactions.verification import Verifications
from protocol.errors import ErrorCode
from storage.producers import ProducerStates
from storage.seal import SealedLog
from tests.simulation.plants.registry import TRANSACTION_PLANTS, Patches, registered_in

bank_plant = registered_in(
    TRANSACTION_PLANTS, bank=True, brokers=3, layout="apart", session_ms=2_000, moves=0.0, faults_s=12
)
SEALED_SOON = {"tidelog.merge.enable": "false", "tidelog.seal.ms": "100", "tidelog.tail.keep.bytes": "0"}
"""What is read comes from the bucket, as far as it can."""
SEALED_NOW_AND_THEN = {"tidelog.merge.enable": "false", "tidelog.seal.ms": "2500"}
"""What is lost with a machine is much, and not all."""


@bank_plant(faults={})
def marker_lost() -> Patches:
    """A leader says that it wrote a marker, and did not: every fifth one."""
    append = Log.append_marker
    count = 0

    def forget(self: Log, *args: Any, **options: Any) -> int:
        nonlocal count
        count += 1
        return self.last_sequence if count % 5 == 0 else append(self, *args, **options)

    yield Log, "append_marker", forget


@bank_plant(faults={"stall_at_end": 1})
def marker_not_awaited() -> Patches:
    """Markers count as written when they are appended: the transaction is complete, and then they are lost."""

    async def at_once(self: _Written, timeout_s: float) -> None:
        self._complete = True
        self.pending.clear()

    yield _Written, "wait", at_once


@bank_plant(faults={"stall_at_end": 1})
def end_answered_before_durable() -> Patches:
    """What a transaction coordinator decided is told, and done, when it is appended."""
    yield TransactionRuntime, "sequence_of", lambda self, owners: 0


@bank_plant(faults={"client_pause": 1})
def fencing_skipped() -> Patches:
    """Neither coordinators nor leaders look at the epoch of who asks."""

    def by_id(current: Any, producer_id: int, epoch: int) -> ErrorCode:
        return ErrorCode.NONE if current.producer_id == producer_id else ErrorCode.INVALID_PRODUCER_ID_MAPPING

    yield broker.transactions.shard, "_check_producer", by_id
    yield (
        broker.transactions.shard,
        "_check_end",
        lambda command, current: (by_id(current, command.producer_id, command.producer_epoch), False),
    )
    yield storage.producers, "_check_epoch_and_sequence", lambda producer, header: None


@bank_plant(faults={})
def last_stable_offset_too_high() -> Patches:
    """Committed readers get what is validated, decided or not."""

    def everything(log: Log, end: int) -> None:
        log.hw = log.lso = end

    yield broker.validation, "assign_high_watermark", everything


@bank_plant(faults={"kill": 1}, settings=SEALED_SOON)
def snapshot_without_open_transactions() -> Patches:
    """Who opens a log does not know which transactions were open in it."""
    load = ProducerStates.load

    def closed(self: ProducerStates, snapshot: bytes) -> None:
        load(self, snapshot)
        self._open.clear()
        for producer in self._producers.values():
            producer.events = [event._replace(open_from=-1) for event in producer.events]

    yield ProducerStates, "load", closed


@bank_plant(faults={"late_batches": 1})
def verification_skipped() -> Patches:
    """Any batch may open a transaction, however late it comes."""

    def nothing(self: Verifications, *args: Any, **options: Any) -> None:
        return

    async def none(*args: Any, **options: Any) -> dict[Any, ErrorCode]:
        return {}

    yield Verifications, "check_held", nothing
    yield Verifications, "check", nothing
    yield broker.handlers.produce, "verify", none


@bank_plant(layout="together", faults_s=20, faults={"late_markers": 1})
def late_marker_of_an_old_coordinator() -> Patches:
    """Leaders do not look at the epoch of the coordinator that sends a marker: what a dead one sent ends the
    producer's next transaction."""
    check = ProducerStates.check_marker

    def whoever(self: ProducerStates, producer_id: int, epoch: int, coordinator_epoch: int, version: int) -> None:
        check(self, producer_id, epoch, 1 << 30, version)

    yield ProducerStates, "check_marker", whoever


@bank_plant(faults={"cut_off_and_kill": 1})
def coordinator_forgets_what_it_decided() -> Patches:
    """Who loads a partition of transactions leaves those alone that wait for their markers."""
    yield TransactionRuntime, "activated", lambda self: None


@bank_plant(faults={})
def offsets_in_force_at_once() -> Patches:
    """What a transaction commits as its offset counts before it is committed itself, and if it is aborted."""
    apply = Offsets.apply

    def at_once(self: Offsets, change: Any) -> None:
        apply(self, change)
        if isinstance(change, PendingOffset):
            self._apply(OffsetCommitted(change.group_id, change.topic, change.partition, change.value))

    yield Offsets, "apply", at_once


@bank_plant(faults={})
def offsets_never_in_force() -> Patches:
    """A marker ends what is pending, and nothing of it counts."""
    end = Offsets.end_transaction

    def never(self: Offsets, producer_id: int, *, committed: bool) -> None:
        end(self, producer_id, committed=False)

    yield Offsets, "end_transaction", never


@bank_plant(faults={}, settings=SEALED_SOON)
def aborted_transactions_not_stored() -> Patches:
    """Segments do not tell what was aborted: whoever reads them gets it."""

    def without(**fields: Any) -> SealedLog:
        return SealedLog(**fields | {"aborted": []})

    yield broker.sealing, "SealedLog", without


@bank_plant(faults={})
def aborted_is_taken_for_committed() -> Patches:
    """One of the leaders of a transaction writes the other marker: every fifth abort is a commit."""
    append = Log.append_marker
    count = 0

    def other(self: Log, *args: Any, commit: bool, **options: Any) -> int:
        nonlocal count
        count += not commit
        return append(self, *args, commit=commit or count % 5 == 0, **options)

    yield Log, "append_marker", other


@bank_plant(faults={})
def aborted_not_told_from_memory() -> Patches:
    """Reads of the tail show what was aborted."""
    yield broker.handlers.fetch, "_aborted", lambda log, offset, end, known=None: []


@bank_plant(wal="volume", faults={"destroy": 1}, settings=SEALED_NOW_AND_THEN)
def producer_ids_go_on_behind_a_loss() -> Patches:
    """A coordinator goes on with what is left of its state: epochs begin lower than logs and producers have seen."""
    yield Shard, "replay_loss", lambda self: None


@bank_plant(faults={"client_pause": 1})
def producer_not_fenced() -> Patches:
    """Who comes with a transactional id gets the epoch that its last owner has."""
    begun = Shard._begun

    def kind(self: Any, command: Any, current: Any, now_ms: int, new_id: Any) -> Any:
        made = begun(self, command, current, now_ms, new_id)
        if made is None or current.producer_epoch < 0 or made.producer_id != current.producer_id:
            return made
        return made._replace(producer_epoch=current.producer_epoch)

    yield Shard, "_begun", kind
