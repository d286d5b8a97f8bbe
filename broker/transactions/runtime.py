"""One partition of `__transaction_state` on its leader: the shell around `Shard`.

A decision to end a transaction is answered and its markers are sent when it is durable; the transaction is complete
when every leader has written its marker. Who loads a partition sends the markers of everything that is decided and not
complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from broker.coordination import runtime as shared
from broker.coordination.runtime import (
    CoordinatorLog,
    PartitionRuntime,
    Producer,
    Refusal,
    coordinator_error,
)
from broker.transactions.model import (
    Change,
    Ending,
    Outcome,
    Reply,
    SendMarkers,
    TransactionConfig,
)
from broker.transactions.records import decode, encode
from broker.transactions.shard import NeedsProducerId, Shard
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.transactions.marker_sender import MarkerSender
    from storage.clock import Clock

log = logging.getLogger(__name__)


class TransactionRuntime(PartitionRuntime[Change]):
    """State of one led partition: loading, then active, then closed for good."""

    def __init__(
        self,
        transaction_log: CoordinatorLog,
        config: TransactionConfig,
        version: Callable[[], int],
        clock: Clock,
        tasks: Tasks,
        *,
        batch_bytes_max: int,
        advance_start: Callable[[CoordinatorLog, int], Awaitable[None]],
        markers: MarkerSender,
    ) -> None:
        """`version`: the level at which `transaction.version` is finalized."""
        super().__init__(transaction_log, clock, tasks, batch_bytes_max=batch_bytes_max, advance_start=advance_start)
        self.config = config
        self.version = version
        self.markers = markers
        self.shard = Shard(config, version)

    def resign(self) -> None:
        super().resign()
        self.markers.drop(self)

    # -- what the log holds

    def new_state(self) -> Shard:
        return Shard(self.config, self.version)

    def replay(self, state: Shard, change: Change) -> None:
        state.replay(change)

    def adopt(self, state: Shard) -> int:
        self.shard = state
        return len(state.transactions)

    def activated(self) -> None:
        for transactional_id in self.shard.endings():
            self._send_markers(transactional_id)

    def encode(self, change: Change) -> tuple[bytes, bytes | None]:
        return encode(change)

    def decode(self, key: bytes | None, value: bytes | None, producer: Producer | None) -> Change | None:
        return decode(key, value)

    def owner(self, change: Change) -> str:
        return change.transactional_id

    def live_slices(self) -> Iterator[Callable[[], list[Change]]]:
        known = list(self.shard.transactions)
        for first in range(0, len(known), shared.SLICE_RECORDS):
            yield partial(self.shard.live, known[first : first + shared.SLICE_RECORDS])

    # -- commands

    def submit(self, transactional_id: str, decide: Callable[[int], Outcome], refusal: Refusal) -> asyncio.Future[Any]:
        """Decide with a waiter number, persist, apply. The future gets the answer, or `refusal(error)`.

        NeedsProducerId of `decide` comes through, and nothing happened.
        """
        waiter, future = self.wait(refusal)
        if not self.active:
            self.finish(waiter, None, self.inactive_error)
            return future
        try:
            self.execute(decide(waiter), transactional_id)
        except NeedsProducerId:
            self.finish(waiter, None, ErrorCode.COORDINATOR_NOT_AVAILABLE)
            raise
        except KafkaError as error:
            self.finish(waiter, None, coordinator_error(error))
        return future

    def execute(self, outcome: Outcome, transactional_id: str | None = None) -> None:
        """KafkaError: refused, and nothing happened; or, if the changes did not fit one batch, only the first ones."""
        for batch in self.batches(outcome.changes):
            self.append(batch)
            self.shard.apply(Outcome(batch.changes))
        for effect in outcome.effects:
            match effect:
                case Reply(waiter, answer):
                    assert transactional_id is not None
                    self.answer(waiter, answer, self.sequence_of((transactional_id,)))
                case SendMarkers(ended):
                    decided = partial(self._send_markers, ended)
                    self.log.validation.when_validated(self.sequence_of((ended,)), decided)

    # -- markers

    def _send_markers(self, transactional_id: str) -> None:
        ending = self.shard.ending(transactional_id)
        if self.active and ending is not None:
            self.markers.begin(self, ending, self.log.epoch, partial(self._markers_written, ending))

    def _markers_written(self, ending: Ending) -> None:
        if not self.active:
            return
        try:
            self.execute(self.shard.complete(ending, self.clock.now_ms()))
        except KafkaError as error:
            log.info("%s cannot complete the transaction of %s now: %s", self, ending.transactional_id, error)
            self._loop.call_later(shared.RETRY_MS / 1000, self._markers_written, ending)

    # -- what happens by itself

    def expire(self) -> None:
        """Look once for transactional ids that nobody uses any more."""
        if self.active:
            self.own(self._expire(), "expire transactional ids")

    async def _expire(self) -> None:
        known = list(self.shard.transactions)
        for first in range(0, len(known), shared.SLICE_RECORDS):
            try:
                self.execute(self.shard.expired(known[first : first + shared.SLICE_RECORDS], self.clock.now_ms()))
            except KafkaError as error:
                log.info("%s cannot remove what is over now: %s", self, error)
                return
            await asyncio.sleep(0)
