"""One partition of `__transaction_state` on its leader: the shell around `Shard`.

A decision to end a transaction is answered and its markers are sent when it is durable; the transaction is complete
when every leader has written its marker. Who loads a partition sends the markers of everything that is decided and not
complete. What it finds below a declared loss is fenced before anything is served: later epochs, which other logs have
seen, may have been lost.
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
    State,
    TransactionConfig,
)
from broker.transactions.records import decode, encode
from broker.transactions.shard import NeedsProducerId, Shard
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.transactions.abandoned import Abandoned
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
        abandoned: Abandoned,
    ) -> None:
        """`version`: the level at which `transaction.version` is finalized."""
        super().__init__(transaction_log, clock, tasks, batch_bytes_max=batch_bytes_max, advance_start=advance_start)
        self.config = config
        self.version = version
        self.markers = markers
        self.abandoned = abandoned
        self._search = object()
        """Whose markers those of `abandoned` are."""
        self._fenced: dict[int, str] = {}
        """Producers fenced behind a declared loss, with their transactional ids, until they are looked for."""
        self.shard = Shard(config, version)
        self._until_complete: dict[str, list[asyncio.Future[None]]] = {}

    def resign(self) -> None:
        super().resign()
        self.markers.drop(self)
        self.markers.drop(self._search)
        for transactional_id in list(self._until_complete):
            self._told_complete(transactional_id)

    # -- what the log holds

    def new_state(self) -> Shard:
        return Shard(self.config, self.version)

    def replay(self, state: Shard, change: Change) -> None:
        state.replay(change)

    def adopt(self, state: Shard) -> int:
        self.shard = state
        return len(state.transactions)

    def replay_loss(self, state: Shard) -> None:
        state.replay_loss()

    async def loaded(self) -> None:
        suspects = list(self.shard.suspects)
        if suspects:
            log.warning(
                "%s goes on behind what was declared lost: %d transactional ids, of which later records may be lost, "
                "get new producer ids; what they had going on is aborted",
                self,
                len(suspects),
            )
        for number, transactional_id in enumerate(suspects, 1):
            await self._fence_lost(transactional_id)
            if number % shared.SLICE_RECORDS == 0:
                await asyncio.sleep(0)

    async def _fence_lost(self, transactional_id: str) -> None:
        """Until it is appended."""
        before = self.shard.transactions[transactional_id]
        if before.state is not State.PREPARE_COMMIT:
            self._fenced[before.producer_id] = transactional_id
        while True:
            try:
                self._persist(self.shard.fence_lost(transactional_id, self.clock.now_ms()))
                break
            except KafkaError as error:
                log.info("%s cannot fence %s yet: %s", self, transactional_id, error)
                await asyncio.sleep(shared.RETRY_MS / 1000)
        if before.state is State.PREPARE_COMMIT and not self.shard.transactions[transactional_id].state.is_preparing:
            log.error(
                "a transaction of %s (producer %d) was to be committed, and it was declared lost whether it is, in %s",
                transactional_id,
                before.producer_id,
                sorted(before.partitions),
            )

    @property
    def may_rewrite(self) -> bool:
        """Also not while a suspect waits for its markers: behind the loss it would be none."""
        return not self.shard.suspects and super().may_rewrite

    def activated(self) -> None:
        for transactional_id in self.shard.endings():
            self._send_markers_soon(transactional_id)
        self._end_abandoned()

    def _end_abandoned(self) -> None:
        if self._fenced:
            fenced, self._fenced = self._fenced, {}
            self.own(self._end_of(fenced), "end abandoned transactions of")

    async def _end_of(self, fenced: dict[int, str]) -> None:
        await self.until_validated(self._last_sequence)
        await self.abandoned.end(self._search, fenced, self.log.epoch)

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
        self._persist(outcome)
        for effect in outcome.effects:
            match effect:
                case Reply(waiter, answer):
                    assert transactional_id is not None
                    self.answer(waiter, answer, self.sequence_of((transactional_id,)))
                case SendMarkers(ended):
                    self._send_markers_soon(ended)

    def _persist(self, outcome: Outcome) -> None:
        for batch in self.batches(outcome.changes):
            self.append(batch)
            self.shard.apply(Outcome(batch.changes))

    # -- markers

    def _send_markers_soon(self, transactional_id: str) -> None:
        """When the decision is validated."""
        decided = partial(self._send_markers, transactional_id)
        self.log.validation.when_validated(self.sequence_of((transactional_id,)), decided)

    def _send_markers(self, transactional_id: str) -> None:
        ending = self.shard.ending(transactional_id)
        if self.active and ending is not None:
            self.markers.begin(self, ending, self.log.epoch, partial(self._markers_written, ending))

    def _markers_written(self, ending: Ending) -> None:
        if not self.active:
            return
        was_suspect = ending.transactional_id in self.shard.suspects
        try:
            self.execute(self.shard.complete(ending, self.clock.now_ms()))
        except KafkaError as error:
            log.info("%s cannot complete the transaction of %s now: %s", self, ending.transactional_id, error)
            self._loop.call_later(shared.RETRY_MS / 1000, self._markers_written, ending)

        else:
            self._told_complete(ending.transactional_id)
            if was_suspect:
                self._fenced[ending.producer_id] = ending.transactional_id
                self._end_abandoned()

    async def until_complete(self, transactional_id: str, timeout_s: float) -> None:
        """Return when its markers are written, when this coordinator is none any more, or when the time is over."""
        if not self.active or self.shard.ending(transactional_id) is None:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = self._until_complete.setdefault(transactional_id, [])
        waiting.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            waiting.remove(future)
            if not waiting:
                self._until_complete.pop(transactional_id, None)

    def _told_complete(self, transactional_id: str) -> None:
        for future in self._until_complete.pop(transactional_id, ()):
            if not future.done():
                future.set_result(None)

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
