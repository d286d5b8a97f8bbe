"""Committed ranges -> batches."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from protocol import Buffer
from storage.object_store import ObjectStore
from storage.seal import AbortedEntry, RangeRow


class ReadResult(NamedTuple):
    """Batches in order; `next_offset` is where the next read begins."""

    buffers: list[Buffer]
    size: int
    next_offset: int
    aborted: list[AbortedEntry]
    aborted_complete: bool  # False: transactions below `next_offset` may end after the last given range: ask the tail


class FoundBatch(NamedTuple):
    """A batch that a search by timestamp found."""

    base_offset: int
    leader_epoch: int
    max_timestamp: int
    batch: Buffer


class Reader:
    """Reads committed ranges through bounded caches, with read-ahead. Raises RangeMissing, CorruptSegment, StoreError."""

    def __init__(
        self,
        store: ObjectStore,
        tasks: asyncio.TaskGroup,
        *,
        cache_bytes_max: int,
        index_bytes_max: int,
        read_ahead_bytes_max: int,
        parallel: int = 16,
    ) -> None:
        raise NotImplementedError

    async def read(
        self,
        rows: Sequence[RangeRow],
        offset: int,
        limit: int,
        max_bytes: int,
        *,
        read_committed: bool = False,
    ) -> ReadResult:
        """Batches from the one holding `offset` on, none that starts at or above `limit`, about `max_bytes`, at least one.

        `rows` are the log's ranges in order, from the one holding `offset` on, as far as the caller knows them.
        """
        raise NotImplementedError

    async def find_timestamp(
        self, rows: Sequence[RangeRow], timestamp: int, limit: int, from_offset: int = 0
    ) -> FoundBatch | None:
        """The first batch at or above `from_offset` and below `limit` whose max timestamp is at least `timestamp`."""
        raise NotImplementedError

    async def find_max_timestamp(self, rows: Sequence[RangeRow], limit: int, from_offset: int = 0) -> FoundBatch | None:
        """The batch with the greatest max timestamp, the earliest of equals."""
        raise NotImplementedError

    async def producers(self, row: RangeRow) -> bytes:
        """The producer snapshot at the end of this range."""
        raise NotImplementedError
