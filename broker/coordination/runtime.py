"""One partition of an internal topic on its leader: decide, append, apply, answer once validated.

The shell around a pure core that holds what the partition says. It owns what a core may not have: the log, futures,
tasks. Three rules:

- The append comes first. Refused, nothing of the outcome happens, and the command is answered with Kafka's
  coordinator error.
- An answer waits until the last append that concerns its owners (groups, transactional ids) is validated, so that it
  never reveals what a failover could take back; then the right to give authoritative answers is checked.
- The log is kept compacted: when what was appended since the last rewrite exceeds max(1 MiB, twice that rewrite), all
  live state is appended again and then the log start moves to where that began, but not over a transaction that is
  still open in the log. So loading is bounded. Every prefix of the log loads to the right state: a rewrite only repeats
  what is in force, and the start moves after it is durable. While a transaction is open from below what was declared
  lost of the log nothing is rewritten: nothing may go on with it, and the start could not move.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from struct import error as StructError
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from protocol.errors import ErrorCode, KafkaError, ProtocolError
from protocol.records import (
    BatchHeader,
    NewRecord,
    Record,
    build_batch,
    iterate_batches,
    parse_end_txn_marker,
    records,
)
from storage.object_store import StoreError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.transactions.verification import Verifications
    from protocol import Buffer
    from storage.clock import Clock
    from storage.producers import ProducerStates

log = logging.getLogger(__name__)

REWRITE_BYTES_MIN = 1024 * 1024
REWRITE_FACTOR = 2
SLICE_RECORDS = 256
"""Records read, expired or rewritten between two turns of the event loop."""
RETRY_MS = 1000
_PASSING = (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.NOT_ENOUGH_REPLICAS)
"""Why an append is refused for a while."""
_RECORD_OVERHEAD_BYTES = 32
_BATCH_OVERHEAD_BYTES = 64
_DECOMPRESSED_BYTES_MAX = 64 * 1024 * 1024

ChangeT = TypeVar("ChangeT")

Refusal: TypeAlias = Callable[[ErrorCode], Any]
"""Makes the answer of a command that could not be decided or persisted."""


class LogValidation(Protocol):
    """What the shell needs of `broker.validation.Validation`."""

    validated: int

    def when_validated(self, sequence: int, callback: Callable[[], None]) -> None: ...


class CoordinatorLog(Protocol):
    """What the shell needs of `broker.log.Log`, the log of one partition of an internal topic."""

    log_id: int
    topic: str
    partition: int
    epoch: int
    start: int
    hw: int
    lso: int
    end: int
    last_sequence: int
    producers: ProducerStates

    @property
    def validation(self) -> LogValidation: ...

    @property
    def verifications(self) -> Verifications: ...

    def may_answer_authoritatively(self) -> bool:
        """Whether nobody else can lead the log by now."""
        ...

    def append_own(self, batch: bytearray) -> int:
        """Append one batch; its append sequence. KafkaError when this broker does not lead the log, it is full, or its
        producer was fenced."""
        ...

    def read_all(self, from_offset: int) -> AsyncIterator[Buffer]:
        """Batches from the one that holds `from_offset` up to the high watermark."""
        ...


class Producer(NamedTuple):
    """The transaction that a record is written under."""

    producer_id: int
    epoch: int


class Encoded(NamedTuple, Generic[ChangeT]):
    change: ChangeT
    record: NewRecord
    size: int


class Batch(NamedTuple, Generic[ChangeT]):
    producer: Producer | None
    """Whose transaction the records belong to; None: they are in force at once."""
    entries: list[Encoded[ChangeT]]

    @property
    def changes(self) -> list[ChangeT]:
        return [one.change for one in self.entries]


class _Waiting(NamedTuple):
    future: asyncio.Future[Any]
    refusal: Refusal


class PartitionRuntime(ABC, Generic[ChangeT]):
    """State of one led partition: loading, then active, then closed for good.

    What a subclass gives: a fresh core (`new_state`), which a load fills with `replay` and then makes the current one
    (`adopt`); records (`encode`, `decode`) and whom a change concerns (`owner`, `producer`); what is in force
    (`live_slices`). It decides, appends with `append` and applies.
    """

    def __init__(
        self,
        partition_log: CoordinatorLog,
        clock: Clock,
        tasks: Tasks,
        *,
        batch_bytes_max: int,
        advance_start: Callable[[CoordinatorLog, int], Awaitable[None]],
    ) -> None:
        """`batch_bytes_max`: the largest batch the log takes."""
        self.log = partition_log
        self.clock = clock
        self.tasks = tasks
        self.batch_bytes_max = batch_bytes_max
        self.advance_start = advance_start
        self.active = False
        self.closed = False
        self.rewriting = False
        self.rewrites = 0
        self.bytes_since_rewrite = 0
        self.rewrite_bytes = 0
        """Size of the last rewrite; after loading: what one would take, about."""
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, _Waiting] = {}
        self._decided: set[int] = set()
        """Waiters whose answer waits to be validated."""
        self._next_waiter = 1
        self._owner_sequences: dict[str, int] = {}
        """Owner -> append sequence of its last change, while that is not validated."""
        self._last_sequence = 0
        self._knows_all_records = True
        self._own_tasks = [tasks.spawn(self._load(), name=f"load {self}")]

    def __str__(self) -> str:
        return f"{self.log.topic}-{self.log.partition}"

    # -- what a coordinator says

    @abstractmethod
    def new_state(self) -> Any:
        """A core that knows nothing yet."""

    @abstractmethod
    def replay(self, state: Any, change: ChangeT) -> None:
        """Put one change of the log into effect."""

    @abstractmethod
    def adopt(self, state: Any) -> int:
        """The log is read: this is the state from now on. How many records it takes to write it down."""

    async def loaded(self) -> None:
        """After `adopt`, before the first command."""

    @abstractmethod
    def encode(self, change: ChangeT) -> tuple[bytes, bytes | None]:
        """Key and value; the value of a removal is None."""

    @abstractmethod
    def decode(self, key: bytes | None, value: bytes | None, producer: Producer | None) -> ChangeT | None:
        """The change that a record is; None for one of a newer version. ProtocolError: malformed."""

    @abstractmethod
    def owner(self, change: ChangeT) -> str:
        """Whose answers wait for the change."""

    def producer(self, change: ChangeT) -> Producer | None:
        """The transaction that the change is written under."""
        return None

    @abstractmethod
    def live_slices(self) -> Iterator[Callable[[], list[ChangeT]]]:
        """What is in force, in parts of at most `SLICE_RECORDS`, each to be asked for when it is appended."""

    def replay_marker(self, state: Any, producer_id: int, committed: bool) -> None:
        """A transaction ended in the log."""

    def replay_loss(self, state: Any) -> None:
        """What followed in the log, before what is read now, was declared lost."""

    @property
    def may_rewrite(self) -> bool:
        """Whether all that is in force may be written down again, and the start of the log can move then."""
        return self.log.lso >= self.log.producers.hole_end

    def decide_waiting(self) -> None:
        """Decide and append what was put off, so that what follows sees it."""

    # -- ending

    def resign(self) -> None:
        """Decide nothing more: whoever waits for a decision looks for the new coordinator. Answers that only wait to be
        validated still come, if they are."""
        self.decide_waiting()
        self.closed = True
        self.active = False
        for task in self._own_tasks:
            task.cancel()
        for waiter in [waiter for waiter in self._waiting if waiter not in self._decided]:
            self.finish(waiter, None, ErrorCode.NOT_COORDINATOR)

    def close(self) -> None:
        """Not ours any more: nothing that still waits can be told."""
        self.resign()
        for waiter in list(self._waiting):
            self.finish(waiter, None, ErrorCode.NOT_COORDINATOR)

    # -- answers

    def look(self, owners: Sequence[str] | None, look: Callable[[], Any], refusal: Refusal) -> asyncio.Future[Any]:
        """Answer what `look` returns now, once it cannot be taken back. `owners` None: it concerns all of them."""
        waiter, future = self.wait(refusal)
        if not self.active:
            self.finish(waiter, None, self.inactive_error)
            return future
        self.decide_waiting()
        sequence = self._last_sequence if owners is None else self.sequence_of(owners)
        self.answer(waiter, look(), sequence)
        return future

    @property
    def inactive_error(self) -> ErrorCode:
        return ErrorCode.NOT_COORDINATOR if self.closed else ErrorCode.COORDINATOR_LOAD_IN_PROGRESS

    def wait(self, refusal: Refusal) -> tuple[int, asyncio.Future[Any]]:
        """A number for a command, and where its answer will be."""
        waiter = self._next_waiter
        self._next_waiter += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[waiter] = _Waiting(future, refusal)
        return waiter, future

    def answer(self, waiter: int, answer: Any, sequence: int) -> None:
        """Give the answer when `sequence` is validated."""
        if sequence <= self.log.validation.validated:
            self.finish(waiter, answer, ErrorCode.NONE)
        elif waiter in self._waiting:
            self._decided.add(waiter)
            self.log.validation.when_validated(sequence, lambda: self.finish(waiter, answer, ErrorCode.NONE))

    def finish(self, waiter: int, answer: Any, error: ErrorCode) -> None:
        """Give the answer, or its refusal, now."""
        waiting = self._waiting.pop(waiter, None)
        self._decided.discard(waiter)
        if waiting is None or waiting.future.done():
            return
        if error is ErrorCode.NONE and not self.log.may_answer_authoritatively():
            error = ErrorCode.NOT_COORDINATOR
        waiting.future.set_result(answer if error is ErrorCode.NONE else waiting.refusal(error))

    def sequence_of(self, owners: Iterable[str]) -> int:
        """What answers about these owners wait for."""
        return max((self._owner_sequences.get(owner, 0) for owner in owners), default=0)

    async def until_validated(self, sequence: int) -> None:
        """Return when `sequence` is validated."""
        future: asyncio.Future[None] = self._loop.create_future()

        def validated() -> None:
            if not future.done():
                future.set_result(None)

        self.log.validation.when_validated(sequence, validated)
        await future

    # -- persisting

    def batches(self, changes: Sequence[ChangeT]) -> list[Batch[ChangeT]]:
        """The changes as records, as many to a batch as the log takes, in order; a batch is of one transaction."""
        now_ms = self.clock.now_ms()
        batches: list[Batch[ChangeT]] = []
        limit = self.batch_bytes_max - _BATCH_OVERHEAD_BYTES
        room = 0
        for change in changes:
            try:
                key, value = self.encode(change)
            except (StructError, ProtocolError) as error:
                raise KafkaError(ErrorCode.INVALID_REQUEST, f"cannot be stored: {error}") from error
            size = len(key) + len(value or b"") + _RECORD_OVERHEAD_BYTES
            if size > limit:
                raise KafkaError(ErrorCode.RECORD_LIST_TOO_LARGE, f"a record of {size} bytes")
            producer = self.producer(change)
            if size > room or batches[-1].producer != producer:
                batches.append(Batch(producer, []))
                room = limit
            batches[-1].entries.append(Encoded(change, (now_ms, key, value, ()), size))
            room -= size
        return batches

    def append(self, batch: Batch[ChangeT]) -> None:
        """KafkaError: refused, and nothing happened."""
        of = batch.producer
        built = build_batch(
            [one.record for one in batch.entries],
            producer_id=-1 if of is None else of.producer_id,
            producer_epoch=-1 if of is None else of.epoch,
            transactional=of is not None,
        )
        sequence = self.log.append_own(built)
        self.bytes_since_rewrite += len(built)
        self.appended(sequence, dict.fromkeys(self.owner(one.change) for one in batch.entries))

    def appended(self, sequence: int, owners: Iterable[str]) -> None:
        """Answers about `owners` wait for this append sequence from now on."""
        self._last_sequence = sequence
        for owner in owners:
            self._owner_sequences[owner] = sequence
        self.log.validation.when_validated(sequence, lambda: self._validated(sequence, owners))
        self._rewrite_if_due()

    def _validated(self, sequence: int, owners: Iterable[str]) -> None:
        for owner in owners:
            if self._owner_sequences.get(owner) == sequence:
                del self._owner_sequences[owner]

    # -- loading

    async def _load(self) -> None:
        while True:
            state = self.new_state()
            try:
                size, count = await self._replay(state)
                break
            except (KafkaError, StoreError, ProtocolError) as error:
                log.error("%s cannot be loaded yet: %s", self, error)
                await asyncio.sleep(RETRY_MS / 1000)
        live = self.adopt(state)
        self.bytes_since_rewrite = size
        self.rewrite_bytes = size * live // max(count, 1)
        await self.loaded()
        self.active = True
        self.activated()
        self._rewrite_if_due()

    def activated(self) -> None:
        """Commands are served from now on."""

    async def _replay(self, state: Any) -> tuple[int, int]:
        """Read the log into `state`; (bytes, records) read."""
        size = count = 0
        hole_end = self.log.producers.hole_end
        async for buffer in self.log.read_all(self.log.start):
            for position, header in iterate_batches(buffer):
                if header.base_offset >= hole_end > 0:
                    self.replay_loss(state)
                    hole_end = 0
                size += header.size
                batch = memoryview(buffer)[position : position + header.size]
                producer = Producer(header.producer_id, header.producer_epoch) if header.is_transactional else None
                for record in records(batch, max_size=_DECOMPRESSED_BYTES_MAX):
                    if header.is_control:
                        self._replay_control(state, header, record)
                        continue
                    self._replay_one(state, record, producer)
                    count += 1
                    if count % SLICE_RECORDS == 0:
                        await asyncio.sleep(0)
        if hole_end:
            self.replay_loss(state)
        return size, count

    def _replay_control(self, state: Any, header: BatchHeader, record: Record) -> None:
        marker = parse_end_txn_marker(record)
        if marker is not None:
            self.replay_marker(state, header.producer_id, marker.commit)

    def _replay_one(self, state: Any, record: Record, producer: Producer | None) -> None:
        change = self.decode(record.key, record.value, producer)
        if change is not None:
            self.replay(state, change)
        elif self._knows_all_records:
            # A rewrite would lose it.
            self._knows_all_records = False
            log.warning("%s holds records of a newer version: not rewritten", self)

    # -- what happens by itself

    def own(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run until done or resigned."""
        self._own_tasks = [task for task in self._own_tasks if not task.done()]
        self._own_tasks.append(self.tasks.spawn(work, name=f"{name} {self}"))

    # -- rewriting

    def _rewrite_if_due(self) -> None:
        limit = max(REWRITE_BYTES_MIN, REWRITE_FACTOR * self.rewrite_bytes)
        if self.rewriting or not (self.active and self._knows_all_records and self.bytes_since_rewrite > limit):
            return
        if self.may_rewrite:
            self.rewriting = True
            self.own(self._rewrite(), "rewrite")

    async def _rewrite(self) -> None:
        begin = self.log.end
        self.bytes_since_rewrite = 0
        size = 0
        try:
            for live in self.live_slices():
                size += await self._rewrite_slice(live)
        except KafkaError as error:
            log.error("%s cannot be written down again, so its log stays as long as it is: %s", self, error)
            self.rewriting = False
            return
        await self.until_validated(self._last_sequence)
        while True:
            try:
                # What an open transaction wrote is needed until its marker is here.
                open_from = self.log.lso if self.log.lso < self.log.hw else begin
                await self.advance_start(self.log, min(begin, open_from))
                break
            except (KafkaError, StoreError) as error:
                log.info("%s cannot move its start now: %s", self, error)
                await asyncio.sleep(RETRY_MS / 1000)
        self.rewrite_bytes = size
        self.bytes_since_rewrite -= size
        self.rewriting = False
        self.rewrites += 1
        self._rewrite_if_due()

    async def _rewrite_slice(self, live: Callable[[], list[ChangeT]]) -> int:
        """Append what is in force at this moment; bytes appended. KafkaError: trying again does not help."""
        while True:
            self.decide_waiting()
            before = self.bytes_since_rewrite
            try:
                for batch in self.batches(live()):
                    self.append(batch)
            except KafkaError as error:
                if error.code not in _PASSING:
                    raise
                log.info("%s waits to be rewritten: %s", self, error)
                await asyncio.sleep(RETRY_MS / 1000)
                continue
            await asyncio.sleep(0)
            return self.bytes_since_rewrite - before


def coordinator_error(error: KafkaError) -> ErrorCode:
    """What a refused append means to the client of a coordinator (Kafka's CoordinatorOperationExceptionHelper)."""
    match error.code:
        case ErrorCode.UNKNOWN_TOPIC_OR_PARTITION | ErrorCode.NOT_ENOUGH_REPLICAS | ErrorCode.REQUEST_TIMED_OUT:
            return ErrorCode.COORDINATOR_NOT_AVAILABLE
        case ErrorCode.NOT_LEADER_OR_FOLLOWER | ErrorCode.KAFKA_STORAGE_ERROR:
            return ErrorCode.NOT_COORDINATOR
        case ErrorCode.MESSAGE_TOO_LARGE | ErrorCode.RECORD_LIST_TOO_LARGE | ErrorCode.INVALID_FETCH_SIZE:
            return ErrorCode.UNKNOWN_SERVER_ERROR
        case code:
            return code
