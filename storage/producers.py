"""Producer state of one log: idempotence windows and open transactions."""

from typing import NamedTuple

from protocol import Buffer
from protocol.records import BatchHeader
from storage.seal import AbortedEntry


class Duplicate(NamedTuple):
    """The batch is in the log already. Answer it when append sequence `sequence` is validated (0: long since)."""

    base_offset: int
    last_offset: int
    timestamp: int  # max timestamp of the original, Unix ms
    sequence: int


class ProducerStates:
    """What the log knows of every producer, appended and durable (two ends), see the methods."""

    def __init__(self, expiration_ms: int) -> None:
        raise NotImplementedError

    def check(self, header: BatchHeader, now_ms: int) -> Duplicate | None:
        """May this data batch of a client be appended? None: yes. `KafkaError` as Kafka 4 refuses."""
        raise NotImplementedError

    def append(self, header: BatchHeader, base_offset: int, sequence: int, now_ms: int, durable_end: int) -> None:
        """Applies a data batch that was appended at `base_offset` with append sequence `sequence`."""
        raise NotImplementedError

    def check_marker(
        self, producer_id: int, producer_epoch: int, coordinator_epoch: int, transaction_version: int
    ) -> None:
        """May this end-of-transaction marker be written? `KafkaError` if not."""
        raise NotImplementedError

    def complete(
        self,
        producer_id: int,
        producer_epoch: int,
        coordinator_epoch: int,
        offset: int,
        now_ms: int,
        *,
        timestamp: int,
        abort: bool,
    ) -> AbortedEntry | None:
        """Applies a marker that was appended at `offset`; the entry if it aborted an open transaction."""
        raise NotImplementedError

    def replay(self, header: BatchHeader, now_ms: int, batch: Buffer | None = None) -> AbortedEntry | None:
        """Applies a stored batch without refusing. A control batch needs its bytes."""
        raise NotImplementedError

    def first_open_offset(self, durable_end: int) -> int | None:
        """First offset of the oldest transaction that is open as of `durable_end`, which never goes back."""
        raise NotImplementedError

    def last_stable_offset(self, end: int) -> int:
        """The LSO exactly at `end`, for the range that ends there."""
        raise NotImplementedError

    def aborted(self, base: int, end: int) -> list[AbortedEntry]:
        """Entries whose marker lies in [base, end), by marker."""
        raise NotImplementedError

    def snapshot(self, end: int) -> bytes:
        """The state exactly at `end`, whatever was appended above it; b"" if there is none."""
        raise NotImplementedError

    def load(self, snapshot: bytes) -> None:
        """Replaces everything by a snapshot. ValueError if it is damaged."""
        raise NotImplementedError
