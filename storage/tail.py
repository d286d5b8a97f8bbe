"""The tail of one log: its newest batches in memory, in parallel lists.

A read is two bisects and a slice, whatever the number of batches. Lists hold `bytes`, views and integers only: nothing
that the garbage collector would have to walk where batches are small.
"""

from bisect import bisect_left, bisect_right
from itertools import islice

from protocol import Buffer

BATCH_OVERHEAD_BYTES = 250
"""What a batch costs beside its payload: list slots, integers, object headers, its entry in the producer state."""

_SEARCH_STEP = 1024


class TailMemory:
    """What all tails of a process keep alive together, in bytes: what `tidelog.tail.bytes.max` bounds.

    A view keeps its whole frame alive, and a frame may have views in many tails: it counts once, in full, from its
    first view to its last.
    """

    __slots__ = ("_views", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self._views: dict[int, int] = {}  # id of a frame -> views of it in tails, which keep the id taken

    def keep(self, batch: Buffer) -> None:
        if isinstance(batch, memoryview):
            frame = id(batch.obj)
            views = self._views.get(frame, 0)
            self._views[frame] = views + 1
            self.bytes += BATCH_OVERHEAD_BYTES if views else BATCH_OVERHEAD_BYTES + len(batch.obj)  # type: ignore[arg-type]
        else:
            self.bytes += BATCH_OVERHEAD_BYTES + len(batch)

    def release(self, batch: Buffer) -> None:
        self.bytes -= BATCH_OVERHEAD_BYTES
        if isinstance(batch, memoryview):
            frame = id(batch.obj)
            views = self._views.pop(frame) - 1
            if views:
                self._views[frame] = views
            else:
                self.bytes -= len(batch.obj)  # type: ignore[arg-type]
        else:
            self.bytes -= len(batch)


class Tail:
    """Batches of one log from the first kept one on; what is sealed or committed is the caller's to know.

    Batches have absolute numbers, which trimming does not change: `first_number` is that of the first kept one.
    Offsets below `start` are not here; `end` is the offset that the next batch begins at or after.
    Committed batches may stay as read cache until their memory is wanted.
    """

    __slots__ = ("_bases", "_batches", "_ends", "_memory", "_sequences", "_timestamps", "end", "first_number", "start")

    def __init__(self, start: int, memory: TailMemory | None = None) -> None:
        self.start = start
        self.end = start
        self.first_number = 0
        self._memory = memory if memory is not None else TailMemory()
        self._bases: list[int] = []
        self._batches: list[Buffer] = []
        self._sequences: list[int] = []
        self._timestamps: list[int] = []
        self._ends: list[int] = [0]  # payload bytes up to each batch since the tail was made; one longer, never reset

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def bytes(self) -> int:
        """Payload and overhead of the kept batches. Frames behind views are `TailMemory`'s to count."""
        return self._ends[-1] - self._ends[0] + BATCH_OVERHEAD_BYTES * len(self._batches)

    @property
    def payload_bytes(self) -> int:
        """Payload of the kept batches."""
        return self._ends[-1] - self._ends[0]

    def append(self, base_offset: int, end_offset: int, batch: Buffer, sequence: int, max_timestamp: int) -> None:
        """Adds the batch of offsets [base_offset, end_offset).

        `sequence` is its append sequence in the WAL; 0 for a batch that was recovered, not appended. The batch stays
        frozen until it is trimmed.
        """
        assert self.end <= base_offset < end_offset, (self.end, base_offset, end_offset)
        self._bases.append(base_offset)
        self._batches.append(batch)
        self._sequences.append(sequence)
        self._timestamps.append(max_timestamp)
        size = len(batch)
        self._ends.append(self._ends[-1] + size)
        if type(batch) is bytes:
            self._memory.bytes += BATCH_OVERHEAD_BYTES + size
        else:
            self._memory.keep(batch)
        self.end = end_offset

    def read(
        self, offset: int, limit_offset: int, max_bytes: int, *, at_least_one: bool = True
    ) -> tuple[list[Buffer], int]:
        """The batches from the one holding `offset` on that begin below `limit_offset`, and their size.

        At most `max_bytes`, but the first batch comes whatever its size if `at_least_one`. Batches are whole: the
        first one may begin below `offset`. Nothing is copied.
        """
        first = self._index(offset)
        limit = bisect_left(self._bases, limit_offset, first)
        if first >= limit:
            return [], 0
        sizes = self._ends
        before = sizes[first]
        last = bisect_right(sizes, before + max_bytes, first + 1, limit + 1) - 1
        if last == first:
            if not at_least_one:
                return [], 0
            last = first + 1
        return self._batches[first:last], sizes[last] - before

    def slice(self, from_offset: int, to_offset: int) -> list[Buffer]:
        """All batches of [from_offset, to_offset), both of which are batch boundaries: what is sealed."""
        first = bisect_left(self._bases, from_offset)
        last = bisect_left(self._bases, to_offset, first)
        assert self.start <= from_offset, (self.start, from_offset)
        assert to_offset <= self.end, (to_offset, self.end)
        return self._batches[first:last]

    def payload_between(self, from_offset: int, to_offset: int) -> int:
        """Payload bytes of the batches that begin in [from_offset, to_offset)."""
        first = bisect_left(self._bases, from_offset)
        return self._ends[bisect_left(self._bases, to_offset, first)] - self._ends[first]

    def first_sequence_from(self, offset: int) -> int | None:
        """The append sequence of the first batch that begins at or above `offset`; None if there is none.

        A WAL group whose sequences all lie below it holds nothing of this log that is not below `offset`.
        """
        at = bisect_left(self._bases, offset)
        return self._sequences[at] if at < len(self._sequences) else None

    def trim(self, offset: int, max_batches: int) -> int:
        """Forgets batches that end at or below `offset`, at most `max_batches`; the payload and overhead bytes freed.

        0 means there is nothing to trim. Large tails are trimmed in slices, a few thousand batches per turn of the
        loop: freeing is a stall too.
        """
        done = bisect_right(self._bases, offset) - (0 if offset >= self.end else 1)
        count = min(done, max_batches)
        if count <= 0:
            return 0
        for batch in islice(self._batches, count):
            self._memory.release(batch)
        freed = self._ends[count] - self._ends[0] + BATCH_OVERHEAD_BYTES * count
        for column in (self._bases, self._batches, self._sequences, self._timestamps, self._ends):
            del column[:count]
        self.first_number += count
        self.start = self._bases[0] if self._bases else self.end
        return freed

    def number_of(self, offset: int) -> int:
        """The absolute number of the batch that holds `offset`, of the next one to come at the end."""
        return self.first_number + self._index(offset)

    def first_batch_with_timestamp(
        self, timestamp: int, limit_offset: int, from_offset: int = 0
    ) -> tuple[int, Buffer] | None:
        """(base offset, batch) of the first batch whose max timestamp is at least `timestamp`; None if there is none.

        Looked for from the batch holding `from_offset` on, below `limit_offset`.
        """
        first, limit = self._bounds(from_offset, limit_offset)
        timestamps = self._timestamps
        for step in range(first, limit, _SEARCH_STEP):
            if max(timestamps[step : min(step + _SEARCH_STEP, limit)]) >= timestamp:
                at = next(i for i in range(step, limit) if timestamps[i] >= timestamp)
                return self._bases[at], self._batches[at]
        return None

    def max_timestamp(self, limit_offset: int, from_offset: int = 0) -> tuple[int, Buffer] | None:
        """(timestamp, batch) of the batch with the greatest max timestamp, the first of equals; None without a batch.

        Looked for from the batch holding `from_offset` on, below `limit_offset`.
        """
        first, limit = self._bounds(from_offset, limit_offset)
        if first >= limit:
            return None
        greatest = max(islice(self._timestamps, first, limit))
        return greatest, self._batches[self._timestamps.index(greatest, first, limit)]

    def max_timestamp_between(self, from_offset: int, to_offset: int) -> int:
        """The greatest max timestamp of the batches that begin in [from_offset, to_offset); -1 if none has one.

        Clients may send times before 1970: a range has none of those, as its blocks have none.
        """
        first = bisect_left(self._bases, from_offset)
        return max(max(self._timestamps[first : bisect_left(self._bases, to_offset, first)], default=-1), -1)

    def _bounds(self, from_offset: int, limit_offset: int) -> tuple[int, int]:
        first = self._index(max(from_offset, self.start))
        return first, bisect_left(self._bases, limit_offset, first)

    def _index(self, offset: int) -> int:
        """Index of the batch that holds `offset`; the length at or above `end`."""
        assert offset >= self.start, f"offset {offset} was trimmed, the tail begins at {self.start}"
        if offset >= self.end:
            return len(self._bases)
        return max(bisect_right(self._bases, offset) - 1, 0)
