"""Bugs of transactions, shown by worlds with a bank (`transfers.py`)."""

from __future__ import annotations

from typing import Any

import broker.handlers.fetch
import broker.handlers.produce
import broker.validation
from broker.log import Log
from broker.transactions.runtime import TransactionRuntime
from broker.transactions.shard import Shard
from storage.producers import ProducerStates
from tests.simulation.plants.registry import TRANSACTION_PLANTS, Patches, registered_in

transaction_plant = registered_in(TRANSACTION_PLANTS, brokers=3, transactions=True, faults_s=12)


@transaction_plant()
def stable_offset_is_the_high_watermark() -> Patches:
    """What is undecided is shown."""

    def assign(log: Any, end: int) -> None:
        log.hw = log.lso = end

    yield broker.validation, "assign_high_watermark", assign


@transaction_plant()
def snapshot_without_open_transactions() -> Patches:
    """The next leader takes what is undecided for decided."""
    load = ProducerStates.load

    def forgetful(self: Any, snapshot: bytes) -> None:
        load(self, snapshot)
        for producer_id in self._open:
            events = self._producers[producer_id].events
            events[:] = [event._replace(open_from=-1) for event in events]
        self._open.clear()

    yield ProducerStates, "load", forgetful


@transaction_plant()
def aborted_not_sealed() -> Patches:
    """Ranges do not know which transactions were aborted; memory does."""

    def nothing(self: Any, base: int, end: int) -> list[Any]:
        return []

    yield ProducerStates, "aborted", nothing


@transaction_plant()
def aborted_not_told_from_memory() -> Patches:
    """Reads of the tail show what was aborted."""

    def nothing(log: Any, offset: int, upper: int) -> list[Any]:
        return []

    yield broker.handlers.fetch, "_aborted", nothing


@transaction_plant()
def marker_lost() -> Patches:
    """Some are acknowledged without being written."""
    append_marker = Log.append_marker

    def lossy(self: Any, producer_id: int, *args: Any, **options: Any) -> int:
        if self.end % 7 == 0 and producer_id in dict(self.producers.open_transactions()):
            sequence: int = self.last_sequence
            return sequence
        return append_marker(self, producer_id, *args, **options)

    yield Log, "append_marker", lossy


@transaction_plant()
def markers_not_sent_again() -> Patches:
    """A new coordinator leaves what its predecessor decided as it is."""

    def activated(self: Any) -> None:
        return None

    yield TransactionRuntime, "activated", activated


@transaction_plant()
def producer_not_fenced() -> Patches:
    """Who comes with a transactional id gets the epoch that its last owner has."""
    begun = Shard._begun

    def kind(self: Any, command: Any, current: Any, now_ms: int, new_id: Any) -> Any:
        made = begun(self, command, current, now_ms, new_id)
        if made is None or current.producer_epoch < 0 or made.producer_id != current.producer_id:
            return made
        return made._replace(producer_epoch=current.producer_epoch)

    yield Shard, "_begun", kind


@transaction_plant()
def verification_skipped() -> Patches:
    """A batch of the first generation opens a transaction without asking: nobody may know of it."""
    verify = broker.handlers.produce.verify

    async def trusting(*args: Any, implicit: bool, **options: Any) -> Any:
        return await verify(*args, implicit=True, **options) if implicit else {}

    yield broker.handlers.produce, "verify", trusting
