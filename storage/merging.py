"""Several ranges of a log -> one, alone in an object of its own: what a merge job stores.

Batches stay as they are, byte for byte; blocks are put together up to about 512 KiB. Every block that is read is
verified against its checksum, and its index against what the metadata says. The output has the producer state of the
last input and the aborted transactions of all of them.

Logs of one job lie next to each other in the objects that they share. So each object is read forward, in pieces of
about a MiB, and the ends of objects, which hold the indexes, are kept from one log to the next.
"""

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import msgpack
from crc32c import crc32c

from protocol import Buffer
from storage.object_store import BLOCK_BYTES, ObjectStore
from storage.seal import CorruptSegment, Range, RangeRow, merged_key
from storage.segment import ORIGIN_MERGE, LogIndex, SegmentIndex, encode_tail, fetch, read_end

PIECE_BYTES = 1024 * 1024
"""Read at a time from one object, unless a block is larger."""
GAP_BYTES = 64 * 1024
"""Bytes of other logs that are read along rather than asked around."""
ENDS_KEPT = 64

Pace = Callable[[int], Awaitable[None]]
"""Called before so many bytes are read or written; returns when they may be."""


Write = Callable[[Buffer], Awaitable[None]]
"""Takes the next bytes of an output."""


class MergedObject(NamedTuple):
    """An encoded output of `size` bytes: `parts` in order, the last one index and footer. What was handed to a `Write`
    before is not among them.
    """

    key: str
    parts: list[Buffer]
    size: int
    range: Range

    @property
    def tail(self) -> Buffer:
        """What holds a checksum of everything before it."""
        return self.parts[-1]


class _End(NamedTuple):
    """The end of an object as it was read: its index, and bytes from `start` on."""

    segment: SegmentIndex
    start: int
    data: bytes


class Inputs:
    """The input ranges of one job. Memory: a piece per object, and the ends of `ENDS_KEPT` objects."""

    def __init__(self, store: ObjectStore, cluster_id: str, rows: Iterable[RangeRow], pace: Pace) -> None:
        """`rows`: of all parts of the job, in the order in which they will be read."""
        self._store = store
        self._cluster_id = cluster_id
        self._pace = pace
        self._needed: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            start, length = row.range.position, row.range.length
            if length:
                self._needed.setdefault(row.key, []).append((start, start + length))
        for extents in self._needed.values():
            extents.sort()
        self._pieces: dict[str, tuple[int, bytes]] = {}
        self._ends: OrderedDict[str, _End] = OrderedDict()

    async def log(self, row: RangeRow) -> LogIndex:
        """The index entry of a row, verified: both must say the same of it."""
        index = (await self._end(row)).segment
        log = index.log(row.range.log_id)
        found, expected = log.range, row.range
        if expected.base == expected.end:  # a state row: its batches are deleted
            found = found._replace(base=found.end, length=0, max_timestamp=-1, batch_count=0)
        if found[2:7] != expected[2:7] or found.batch_count != expected.batch_count:
            raise CorruptSegment(row.key, f"the metadata says {expected}, the index says {found}")
        return log

    async def _end(self, row: RangeRow) -> _End:
        end = self._ends.get(row.key)
        if end is None:
            await self._pace(min(row.size, GAP_BYTES))
            end = _End(*await read_end(self._store, row.key, row.size))
            if end.segment.cluster_id != self._cluster_id:
                raise CorruptSegment(
                    row.key, f"belongs to cluster {end.segment.cluster_id}, this is {self._cluster_id}"
                )
            self._ends[row.key] = end
            if len(self._ends) > ENDS_KEPT:
                self._ends.popitem(last=False)
        return end

    async def block(self, row: RangeRow, log: LogIndex, number: int) -> bytes:
        """Block `number` of the row's index entry, verified."""
        start, stop = log.positions[number], log.positions[number + 1]
        block = await self._bytes(row, start, stop)
        if crc32c(block) != log.crcs[number]:
            raise CorruptSegment(row.key, f"checksum of the block at offset {log.bases[number]} does not match")
        return block

    async def producers(self, row: RangeRow, log: LogIndex) -> tuple[bytes, int]:
        """The producer snapshot of the row and the offset at which it is exact; b"" if no producer was known."""
        pointer = log.producers
        if pointer is None:
            return b"", log.range.end
        if pointer.key in ("", row.key):
            snapshot = await self._bytes(row, pointer.position, pointer.position + pointer.length)
        else:
            await self._pace(pointer.length)
            snapshot = await fetch(self._store, pointer.key, pointer.position, pointer.length, 0)
        if crc32c(snapshot) != pointer.crc:
            raise CorruptSegment(row.key, f"checksum of the producer states of log {row.range.log_id} does not match")
        return snapshot, pointer.offset

    async def _bytes(self, row: RangeRow, start: int, stop: int) -> bytes:
        end = await self._end(row)
        if start >= end.start:
            return end.data[start - end.start : stop - end.start]
        at, piece = self._pieces.get(row.key, (0, b""))
        if not at <= start <= stop <= at + len(piece):
            upper = self._upper(row.key, start, stop)
            self._pieces.pop(row.key, None)
            await self._pace(upper - start)
            piece = await fetch(self._store, row.key, start, upper - start, row.size)
            at, self._pieces[row.key] = start, (start, piece)
        return piece[start - at : stop - at]

    def _upper(self, key: str, start: int, stop: int) -> int:
        """How far to read on from `start`: to what the job needs next, as long as that is near."""
        extents = self._needed.get(key, [])
        for begin, end in extents[max(bisect_left(extents, (start, 0)) - 1, 0) :]:
            if end <= stop:
                continue
            if begin > stop + GAP_BYTES or stop >= start + PIECE_BYTES:
                break
            stop = max(stop, min(end, start + PIECE_BYTES))
        return stop


async def merge(inputs: Inputs, cluster_id: str, job: int, rows: Sequence[RangeRow], write: Write) -> MergedObject:
    """The output of one part, whose inputs are `rows`: neighbouring ranges of a log. Its batches go to `write`, block
    by block; what comes after them is in the result.

    Raises RangeMissing (an input is gone: another job or retention was faster), CorruptSegment, what the store raises.
    """
    log_id = rows[0].range.log_id
    blocks: list[int] = []
    aborted: list[int] = []
    base, position = rows[0].range.base, 0
    async for first, timestamp, crc, buffers, size in _blocks(inputs, rows):
        blocks += (first - base, size, timestamp, crc)
        await write(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        position += size
    for row in rows:
        if row.range.length:
            aborted += [number for entry in (await inputs.log(row)).aborted for number in entry]
    last = rows[-1]
    range_ = Range(
        log_id,
        last.range.leader_epoch,
        base,
        last.range.end,
        0,
        position,
        max(row.range.max_timestamp for row in rows),
        last.range.last_stable_offset,
        sum(row.range.batch_count for row in rows),
    )
    snapshot = await inputs.producers(last, await inputs.log(last))
    return encode_output(cluster_id, job, range_, blocks, aborted, *snapshot)


def encode_output(
    cluster_id: str,
    job: int,
    range_: Range,
    blocks: list[int],
    aborted: list[int],
    snapshot: bytes,
    snapshot_offset: int,
) -> MergedObject:
    """What follows the batches in the object of one range; `blocks` and `aborted` as the index has them, flat."""
    parts: list[Buffer] = []
    position = range_.length
    producers: list[str | int] = []
    if snapshot:
        producers = ["", position, len(snapshot), crc32c(snapshot), snapshot_offset]
        parts.append(snapshot)
        position += len(snapshot)
    key = merged_key(job, range_.log_id)
    entry = msgpack.packb((*range_, blocks, producers, aborted))
    tail = encode_tail([key, cluster_id, (ORIGIN_MERGE, job), [range_.log_id, entry]], position)
    parts.append(tail)
    return MergedObject(key, parts, position + len(tail), range_)


async def _blocks(inputs: Inputs, rows: Sequence[RangeRow]) -> AsyncIterator[tuple[int, int, int, list[bytes], int]]:
    """(first offset, max timestamp, CRC, buffers, size) of the output's blocks: whole blocks of the inputs, put
    together up to `BLOCK_BYTES`. The CRC of one that stays alone is not counted again."""
    buffers: list[bytes] = []
    first = timestamp = -1
    crc = size = 0
    for row in rows:
        if not row.range.length:
            continue
        log = await inputs.log(row)
        for number in range(len(log.bases)):
            block = await inputs.block(row, log, number)
            if buffers and size + len(block) > BLOCK_BYTES:
                yield first, timestamp, crc, buffers, size
                buffers = []
            if not buffers:
                first, timestamp, crc, size = log.bases[number], log.timestamps[number], log.crcs[number], 0
            else:
                timestamp, crc = max(timestamp, log.timestamps[number]), crc32c(block, crc)
            buffers.append(block)
            size += len(block)
            await asyncio.sleep(0)
    if buffers:
        yield first, timestamp, crc, buffers, size
