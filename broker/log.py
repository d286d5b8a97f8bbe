"""One log on its leader: append, offsets, producers, waiters. Everything runs on the event loop thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from protocol import Buffer

if TYPE_CHECKING:
    from broker.validation import Validation
    from protocol.records import BatchHeader
    from storage.producers import ProducerStates
    from storage.tail import Tail
    from storage.wal.port import Wal


class LogStatus(Enum):
    """OPENING: producer state is being read. OPEN. FROZEN: appends wait for a fact (planned move). CLOSED: not ours any more."""

    OPENING = "opening"
    OPEN = "open"
    FROZEN = "frozen"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The topic configs that act on append."""

    max_message_bytes: int
    log_append_time: bool
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int
    compacted: bool


class Log:
    """`start <= committed_end <= hw <= end`, `lso <= hw`. Only `Validation` moves `hw` and `lso`."""

    log_id: int
    topic: str
    topic_id: bytes
    partition: int
    internal: bool
    epoch: int
    epoch_start: int
    status: LogStatus
    config: LogConfig
    start: int
    committed_end: int
    hw: int
    lso: int
    end: int
    tail: Tail
    producers: ProducerStates
    wal: Wal
    validation: Validation

    def append(self, header: BatchHeader, batch: Buffer) -> int:
        """Append a checked batch whose bytes already carry `end` as base offset and `epoch`; its append sequence."""
        raise NotImplementedError

    def append_own(self, batch: bytearray) -> int:
        """Append a batch of our own (coordinators): offsets and epoch are patched in; its append sequence.

        KafkaError NOT_LEADER_OR_FOLLOWER when not open, NOT_ENOUGH_REPLICAS when the WAL or the tails are full; then
        nothing happened.
        """
        raise NotImplementedError

    def read_all(self, from_offset: int) -> AsyncIterator[Buffer]:
        """Batches from the one that holds `from_offset` up to the high watermark at the time of the call."""
        raise NotImplementedError

    def when_validated_end(self) -> int:
        """Append sequence of the last batch appended to this log so far (0: none by this incarnation)."""
        raise NotImplementedError

    def trim_tail(self, offset: int, max_batches: int) -> int:
        """Drop at most `max_batches` committed batches below `offset` from memory; bytes freed."""
        raise NotImplementedError
