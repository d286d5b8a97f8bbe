"""One log on its leader: append, offsets, producers, waiters. Everything runs on the event loop thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from broker.transactions.verification import Verifications
from protocol import Buffer
from protocol.errors import ErrorCode, KafkaError
from protocol.records import BatchHeader, build_control_batch, parse_header, patch_offset_and_epoch

if TYPE_CHECKING:
    from broker.connection import Reply
    from broker.log_table import LogTable
    from broker.validation import Validation
    from storage.producers import ProducerStates
    from storage.tail import Tail
    from storage.wal.port import Wal

READ_ALL_BYTES = 1024 * 1024


class LogStatus(Enum):
    """What the log does with appends and reads."""

    OPENING = "opening"
    """Its producer state is being read: nothing is served yet."""
    OPEN = "open"
    FROZEN = "frozen"
    """Reads go on; appends are refused (clean stop, no room for ranges)."""
    MOVING = "moving"
    """Reads go on; appends wait for a moment and are then refused, until facts tell whether the log moved."""
    CLOSED = "closed"
    """Not ours any more."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The topic configs that act on append."""

    max_message_bytes: int
    log_append_time: bool
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int
    compacted: bool


class Waiter(Protocol):
    """A fetch that waits for a log to grow, to move or to close, or a produce that waits for it to open or to move."""

    def wake(self) -> None:
        """Look again."""
        ...


class Log:
    """`start <= committed_end <= sealed_end <= hw <= end`, `lso <= hw`.

    Only `validation.assign_high_watermark` moves `hw` and `lso`, which is at least `start`; only `sealing` moves
    `sealed_end`.
    Offsets: `start` the first readable one, `committed_end` what the bucket has by applied facts, `sealed_end` what is
    in seals, `hw` validated, `end` appended. `epochs` are (leader epoch, first offset), ascending.
    """

    __slots__ = (
        "_table",
        "_verifications",
        "answers",
        "committed_end",
        "config",
        "end",
        "epoch",
        "epochs",
        "hw",
        "internal",
        "last_sequence",
        "log_id",
        "lso",
        "partition",
        "producers",
        "sealed_end",
        "start",
        "status",
        "tail",
        "topic",
        "topic_id",
        "validation",
        "waiters",
        "wal",
    )

    def __init__(
        self,
        table: LogTable,
        *,
        log_id: int,
        topic: str,
        topic_id: bytes,
        partition: int,
        internal: bool,
        epoch: int,
        epochs: list[tuple[int, int]],
        start: int,
        end: int,
        config: LogConfig,
        tail: Tail,
        producers: ProducerStates,
        wal: Wal,
        validation: Validation,
    ) -> None:
        """A log as the facts have it: everything below `end` is committed."""
        self._table = table
        self.log_id = log_id
        self.topic = topic
        self.topic_id = topic_id
        self.partition = partition
        self.internal = internal
        self.epoch = epoch
        self.epochs = epochs
        self.start = start
        self.committed_end = self.sealed_end = self.hw = self.lso = self.end = end
        self.config = config
        self.tail = tail
        self.producers = producers
        self.wal = wal
        self.validation = validation
        self.status = LogStatus.OPENING
        self.last_sequence = 0
        """Append sequence of the newest batch of this incarnation; what an answer that reveals `end` waits for."""
        self.waiters: dict[Waiter, None] = {}
        self.answers: dict[int, Callable[[int, int, int, int, int], bytes]] = {}
        """Produce version -> encoder of the answer to a request with this log alone (`success_encoder`)."""
        self._verifications: Verifications | None = None

    def __repr__(self) -> str:
        return f"<Log {self.topic}-{self.partition} epoch {self.epoch} {self.status.value} [{self.start}, {self.end})>"

    @property
    def node_id(self) -> int:
        """The leader: this broker."""
        return self._table.node_id

    @property
    def serving(self) -> bool:
        """Whether reads are answered."""
        status = self.status
        return status is LogStatus.OPEN or status is LogStatus.FROZEN or status is LogStatus.MOVING

    def may_answer_authoritatively(self) -> bool:
        """Whether what this broker says of the log is true now: that its session stands, and that no move is asked for.

        The move may be a fact by then, and known elsewhere: the next leader acknowledges while this one still serves.
        """
        return self.status is not LogStatus.MOVING and self.validation.may_answer_authoritatively()

    @property
    def settling(self) -> bool:
        """Whether it will be known in a moment where appends go: it is about to open, or to move."""
        return self.status is LogStatus.OPENING or self.status is LogStatus.MOVING

    @property
    def verifications(self) -> Verifications:
        """Of producers that are about to open a transaction here."""
        if self._verifications is None:
            self._verifications = Verifications()
        return self._verifications

    def expire_verifications(self, before_ms: int) -> None:
        """Drop those that began before that and never came to an end."""
        if self._verifications is not None:
            self._verifications.expire(before_ms)

    def append(
        self, header: BatchHeader, batch: Buffer, max_timestamp: int, now_ms: int, reply: Reply | None = None
    ) -> int:
        """Append a checked batch whose bytes already carry `end` as base offset and `epoch`; its append sequence.

        The caller asked `LogTable.has_room` and the producer state; nothing can fail from here on. One of the waits of
        `reply` is over when the batch is validated.
        """
        base = self.end
        end = base + header.last_offset_delta + 1
        sequence = self.wal.append(self.log_id, self.epoch, base, batch)
        self.tail.append(base, end, batch, sequence, max_timestamp)
        if header.producer_id >= 0:
            if max_timestamp != header.max_timestamp:  # LogAppendTime: the state is what a replay of the log gives
                header = header._replace(max_timestamp=max_timestamp)
            self.producers.append(header, base, sequence, now_ms, self.hw)
        self.end = end
        self.last_sequence = sequence
        self.validation.in_flight.append((self, end, reply))
        return sequence

    def append_own(self, batch: bytearray) -> int:
        """Append a batch of our own (coordinators): offsets and epoch are patched in; its append sequence.

        KafkaError NOT_LEADER_OR_FOLLOWER when not open, NOT_ENOUGH_REPLICAS when the WAL or the tails are full,
        for a batch of a transaction what `ProducerStates.check_own` raises; then nothing happened.
        """
        if self.status is not LogStatus.OPEN:
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{self.topic}-{self.partition} is {self.status.value}")
        if not self._table.has_room(len(batch), 1, internal=self.internal, wals=(self.wal,)):
            raise KafkaError(ErrorCode.NOT_ENOUGH_REPLICAS, "the write-ahead log is full")
        header = parse_header(batch)
        assert header.size == len(batch), "one whole batch"
        if header.is_transactional:
            self.producers.check_own(header.producer_id, header.producer_epoch)
            self.verifications.end(header.producer_id)
        patch_offset_and_epoch(batch, 0, self.end, self.epoch)
        return self.append(header, bytes(batch), header.max_timestamp, self._table.clock.now_ms())

    def append_marker(
        self, producer_id: int, producer_epoch: int, coordinator_epoch: int, *, commit: bool, transaction_version: int
    ) -> int:
        """End the producer's transaction here, if one is open; the marker's append sequence.

        KafkaError, and nothing happened: NOT_LEADER_OR_FOLLOWER (not open, or no right to refuse), NOT_ENOUGH_REPLICAS
        (no space), INVALID_PRODUCER_EPOCH, TRANSACTION_COORDINATOR_FENCED (`ProducerStates.check_marker`), or what
        `LogTable.before_marker` raises. Space is that of internal logs: markers never wait behind what they end.
        """
        if self.status is not LogStatus.OPEN:
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{self.topic}-{self.partition} is {self.status.value}")
        try:
            self.producers.check_marker(producer_id, producer_epoch, coordinator_epoch, transaction_version)
        except KafkaError:
            if self.may_answer_authoritatively():
                raise
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "this broker may have been replaced") from None
        self._table.check_marker(self)
        now_ms = self._table.clock.now_ms()
        base, end = self.end, self.end + 1
        batch = bytes(
            build_control_batch(
                commit=commit,
                producer_id=producer_id,
                producer_epoch=producer_epoch,
                coordinator_epoch=coordinator_epoch,
                timestamp=now_ms,
                base_offset=base,
                leader_epoch=self.epoch,
            )
        )
        if not self._table.has_room(len(batch), 1, internal=True, wals=(self.wal,)):
            raise KafkaError(ErrorCode.NOT_ENOUGH_REPLICAS, "the write-ahead log is full")
        sequence = self.wal.append(self.log_id, self.epoch, base, batch)
        self.tail.append(base, end, batch, sequence, now_ms)
        self.producers.complete(
            producer_id,
            producer_epoch,
            coordinator_epoch,
            base,
            now_ms,
            timestamp=now_ms,
            abort=not commit,
            durable_end=self.hw,
            sequence=sequence,
        )
        if self._verifications is not None:
            self._verifications.end(producer_id)
        self.end = end
        self.last_sequence = sequence
        self.validation.in_flight.append((self, end, None))
        self._table.marked(self, producer_id, commit)
        return sequence

    async def read_all(self, from_offset: int) -> AsyncIterator[Buffer]:
        """Buffers of one or several whole batches, from the batch that holds `from_offset` up to the high watermark.

        KafkaError NOT_LEADER_OR_FOLLOWER when the log is closed meanwhile, KAFKA_STORAGE_ERROR when a committed object
        is missing or damaged; a store that is away is waited for.
        """
        limit = self.hw
        offset = max(from_offset, self.start)
        while offset < limit:
            if not self.serving:
                raise KafkaError(
                    ErrorCode.NOT_LEADER_OR_FOLLOWER, f"{self.topic}-{self.partition} is {self.status.value}"
                )
            if offset >= self.tail.start:
                batches, _ = self.tail.read(offset, limit, READ_ALL_BYTES)
                if not batches:
                    return
                offset = parse_header(batches[-1]).next_offset
            else:
                result = await self._table.cold.read_patiently(self.log_id, offset, limit, READ_ALL_BYTES)
                batches, offset = result.buffers, max(result.next_offset, offset)
                if not batches and offset < self.tail.start:
                    offset = self.tail.start  # nothing is left below the tail: a declared loss
            for batch in batches:
                yield batch

    def when_validated_end(self) -> int:
        """Append sequence that an answer revealing `end` waits for (0: nothing was appended by this incarnation)."""
        return self.last_sequence

    def epoch_at(self, offset: int) -> int:
        """Leader epoch of the record at `offset`, -1 if unknown."""
        found = -1
        for epoch, first in self.epochs:
            if first > offset:
                break
            found = epoch
        return found

    def end_of_epoch(self, epoch: int) -> tuple[int, int]:
        """(largest epoch <= `epoch`, offset where the next one starts, or the high watermark), (-1, -1) if unknown.

        As Kafka's LeaderEpochFileCache.endOffsetFor: below the first known epoch the asked one comes back with the
        start of the first; above the last one nothing is known.
        """
        if epoch == -1 or epoch > self.epoch:
            return -1, -1
        if epoch == self.epoch:
            return epoch, self.hw
        floor = -1
        for known, first in self.epochs:
            if known > epoch:
                return (epoch if floor == -1 else floor), first
            floor = known
        return floor, self.hw

    def freeze(self) -> None:
        """Refuse appends until a fact says who leads; what is appended goes on to be validated and read."""
        if self.status is LogStatus.OPEN:
            self.status = LogStatus.FROZEN

    def wake_all(self) -> None:
        """Every waiting fetch looks again."""
        for waiter in list(self.waiters):
            waiter.wake()

    def trim_tail(self, offset: int, max_batches: int) -> int:
        """Drop at most `max_batches` committed batches below `offset` from memory; bytes freed."""
        return self.tail.trim(min(offset, self.committed_end), max_batches)
