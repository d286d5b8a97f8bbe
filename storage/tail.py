"""The tail of one log: its newest batches in memory, in parallel lists."""

from protocol import Buffer

BATCH_OVERHEAD_BYTES = 250


class TailMemory:
    """What all tails of a process keep alive together, in bytes. A frame with several views in tails counts once."""

    bytes: int


class Tail:
    """Batches of one log from the first kept one on.

    Every batch has an absolute number that trimming does not change. Offsets below `start` are not here, `end` is the
    offset the next batch gets. Committed batches may stay as read cache; what is sealed is the caller's to know.
    """

    def __init__(self, start: int, memory: TailMemory | None = None) -> None:
        raise NotImplementedError

    start: int
    end: int
    bytes: int

    def append(self, base_offset: int, end_offset: int, batch: Buffer, sequence: int, max_timestamp: int) -> None:
        """Adds a batch of [base_offset, end_offset). `sequence` is its append sequence in the WAL, 0 if it has none."""
        raise NotImplementedError

    def read(
        self, offset: int, limit_offset: int, max_bytes: int, *, at_least_one: bool = True
    ) -> tuple[list[Buffer], int]:
        """The batches from the one holding `offset` on, below `limit_offset`, and their size in bytes."""
        raise NotImplementedError

    def slice(self, from_offset: int, to_offset: int) -> list[Buffer]:
        """The batches of exactly [from_offset, to_offset): both are batch boundaries."""
        raise NotImplementedError

    def first_sequence_from(self, offset: int) -> int | None:
        """The append sequence of the first batch at or above `offset`; None if there is none."""
        raise NotImplementedError

    def trim(self, offset: int, max_batches: int) -> int:
        """Forgets at most `max_batches` batches that end at or below `offset`; bytes freed, 0 when done."""
        raise NotImplementedError

    def first_batch_with_timestamp(
        self, timestamp: int, limit_offset: int, from_offset: int = 0
    ) -> tuple[int, Buffer] | None:
        """(base offset, batch) of the first batch at or after `from_offset`, below `limit_offset`, as new as `timestamp`."""
        raise NotImplementedError

    def max_timestamp(self, limit_offset: int, from_offset: int = 0) -> tuple[int, Buffer] | None:
        """(timestamp, batch) of the newest batch, the earliest of equals; None if there is no batch."""
        raise NotImplementedError
