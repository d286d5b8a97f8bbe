"""A log in memory with the names of `broker.log.Log` and `broker.validation.Validation`, as coordinators use them.

Appends are validated when the test says so, or (`validate_soon`) in the next turn of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from broker.transactions.verification import Verifications
from controller.facts import LOSS_GAP
from protocol import Buffer
from protocol.errors import ErrorCode, KafkaError
from protocol.records import build_control_batch, parse_header, patch_offset_and_epoch
from storage.producers import ProducerStates


class MemoryValidation:
    def __init__(self) -> None:
        self.validated = 0
        self._callbacks: list[tuple[int, Callable[[], None]]] = []

    def when_validated(self, sequence: int, callback: Callable[[], None]) -> None:
        if sequence <= self.validated:
            callback()
        else:
            self._callbacks.append((sequence, callback))

    def validate(self, sequence: int) -> None:
        if sequence <= self.validated:
            return
        self.validated = sequence
        due = [callback for wanted, callback in self._callbacks if wanted <= sequence]
        self._callbacks = [entry for entry in self._callbacks if entry[0] > sequence]
        for callback in due:
            callback()


class MemoryLog:
    """Batches with their base offsets; `refuse` is raised by the next appends while it is set."""

    def __init__(self, partition: int = 0, *, epoch: int = 1, validate_soon: bool = True) -> None:
        self.log_id = 1000 + partition
        self.topic = "__consumer_offsets"
        self.partition = partition
        self.epoch = epoch
        self.start = 0
        self.hw = 0
        self.last_sequence = 0
        self.producers = ProducerStates()
        self.verifications = Verifications()
        self.end = 0
        self.batches: list[bytes] = []
        self.validation = MemoryValidation()
        self.validate_soon = validate_soon
        self.refuse: ErrorCode | None = None
        self.may_answer = True
        self.sequence = 0
        self._ends: list[int] = [0]

    @property
    def lso(self) -> int:
        return self.producers.last_stable_offset(self.hw)

    def may_answer_authoritatively(self) -> bool:
        return self.may_answer

    def append_own(self, batch: bytearray) -> int:
        if self.refuse is not None:
            raise KafkaError(self.refuse, "refused by the test")
        patch_offset_and_epoch(batch, 0, self.end, self.epoch)
        header = parse_header(batch)
        if header.is_transactional:
            self.producers.check_own(header.producer_id, header.producer_epoch)
            self.verifications.end(header.producer_id)
            self.producers.append(header, self.end, self.sequence + 1, 0, self.hw)
        return self._appended(batch)

    def append_marker(self, producer_id: int, epoch: int, *, commit: bool, coordinator_epoch: int = 0) -> int:
        """As a leader does that was told how a transaction ends."""
        batch = build_control_batch(
            commit=commit,
            producer_id=producer_id,
            producer_epoch=epoch,
            coordinator_epoch=coordinator_epoch,
            timestamp=0,
            base_offset=self.end,
        )
        self.producers.complete(
            producer_id, epoch, coordinator_epoch, self.end, 0, timestamp=0, abort=not commit, durable_end=self.hw
        )
        self.verifications.end(producer_id)
        return self._appended(batch)

    def _appended(self, batch: bytearray) -> int:
        self.batches.append(bytes(batch))
        self.end = parse_header(batch).next_offset
        self._ends.append(self.end)
        self.sequence += 1
        self.last_sequence = self.sequence
        if self.validate_soon:
            asyncio.get_running_loop().call_soon(self.validate, self.sequence)
        return self.sequence

    def validate(self, sequence: int | None = None) -> None:
        """Everything up to this append sequence is durable and acknowledged; all of it by default."""
        sequence = self.sequence if sequence is None else sequence
        self.hw = max(self.hw, self._ends[sequence])
        self.validation.validate(sequence)

    async def read_all(self, from_offset: int) -> AsyncIterator[Buffer]:
        limit = self.hw
        for batch in list(self.batches):
            header = parse_header(batch)
            if header.next_offset > max(from_offset, self.start) and header.next_offset <= limit:
                yield batch

    def cut(self, count: int, start: int | None = None, *, lost: bool = False) -> MemoryLog:
        """What a new leader finds after a crash that left the first `count` batches; `lost`: what followed was declared
        lost."""
        log = MemoryLog(self.partition, epoch=self.epoch + 1, validate_soon=self.validate_soon)
        log.topic = self.topic
        log.start = self.start if start is None else start
        log.batches = self.batches[:count]
        log.end = log.hw = parse_header(log.batches[-1]).next_offset if log.batches else 0
        if lost:
            log.end = log.hw = log.end + LOSS_GAP
        log.producers = ProducerStates(hole_end=log.end if lost else self.producers.hole_end)
        log._ends = [log.end]
        for batch in log.batches:
            log.producers.replay(parse_header(batch), 0, batch)
        return log
