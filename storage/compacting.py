"""One pass of compaction over a log in the bucket: ranges are read block by block, outputs are what replaces them.

Memory: the offset map; blocks of 512 KiB that are read and written, and what they decompress to, batch by batch. An
output goes to its writer block by block. A range of which nothing goes is left where it is, unless an output has been
begun: so an output begins when something goes for the first time, and what its first range holds before that is read
once more.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from crc32c import crc32c

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.records import BatchHeader, iterate_batches, parse_header
from storage.compaction import CleanedTransactions, Cleaner, LastBatches, Unreadable, Work, note_keys
from storage.merging import Inputs, MergedObject, Pace, Write, encode_output
from storage.object_store import BLOCK_BYTES, ObjectStore
from storage.offset_map import OffsetMap
from storage.producers import last_appends
from storage.seal import AbortedEntry, CorruptSegment, Range, RangeRow

SLICE_S = 0.001
"""The loop is held for so long at a time."""
ROWS_PER_OUTPUT_MAX = 256
RECORD_BYTES_GUESS = 100

_T = TypeVar("_T")

RowAt = Callable[[int], RangeRow | None]
"""The range that holds an offset, or else the next one; None behind the last one."""

Begin = Callable[[], tuple[int, Write]]
"""Begins an output: the number that names it, and what takes its bytes."""


class RangesChanged(Exception):
    """Somebody else has put together ranges that a pass is at work on: it would see batches twice."""


class Place(NamedTuple):
    """Where a log is read from."""

    store: ObjectStore
    cluster_id: str
    row_at: RowAt
    pace: Pace
    rest: Callable[[], Awaitable[None]]
    """Called between slices of work on the loop."""


class Done(NamedTuple):
    """An output that is written but for its `parts`, and the ranges that it replaces."""

    output: MergedObject
    rows: tuple[RangeRow, ...]


class Half:
    """What both halves of a pass do: read batches in order, and know which transactions were aborted."""

    def __init__(self, place: Place, transactions: CleanedTransactions, start: int) -> None:
        """`start`: the first batch that is looked at begins there or later."""
        self._place = place
        self.transactions = transactions
        self._fed_to = start
        self._stable = -1
        self._inputs: tuple[RangeRow, Inputs] | None = None
        self._until = 0.0
        self.bytes_read = 0

    def inputs(self, row: RangeRow) -> Inputs:
        """What reads the range; the last one is kept."""
        if self._inputs is None or self._inputs[0] != row:
            self._inputs = row, self._open(row)
        return self._inputs[1]

    def _open(self, row: RangeRow) -> Inputs:
        return Inputs(self._place.store, self._place.cluster_id, [row], self._place.pace)

    def row(self, offset: int, *, first: bool = False) -> RangeRow | None:
        """The next range to look at, from `offset` on; the `first` one may begin before that."""
        row = self._place.row_at(offset)
        if row is not None and row.range.base < offset and not first:
            raise RangesChanged
        return row

    async def feed(self, row: RangeRow) -> None:
        """All aborted transactions with data in the range: their markers may lie in later ones. Each is told once: a
        second time it would be taken for the next transaction of its producer."""
        while self._fed_to < row.range.end or self._stable < row.range.end:
            following = self._place.row_at(self._fed_to)
            if following is None:
                return
            if following.range.length:
                log = await (self.inputs(row) if following == row else self._open(following)).log(following)
                self.transactions.add(entry for entry in log.aborted if entry.last_offset >= self._fed_to)
            self._fed_to = following.range.end
            self._stable = max(self._stable, following.range.last_stable_offset)

    async def batches(self, row: RangeRow, from_offset: int = 0) -> AsyncIterator[tuple[BatchHeader, memoryview]]:
        """The batches of the range, but for blocks that end at or below `from_offset`."""
        if not row.range.length:
            return
        inputs = self.inputs(row)
        log = await inputs.log(row)
        for number in range(len(log.bases)):
            if number + 1 < len(log.bases) and log.bases[number + 1] <= from_offset:
                continue
            block = await inputs.block(row, log, number)
            self.bytes_read += len(block)
            view = memoryview(block)
            try:
                for at, header in iterate_batches(block):
                    yield header, view[at : at + header.size]
            except ProtocolError as error:
                raise CorruptSegment(row.key, str(error)) from error

    async def work(self, row: RangeRow, work: Work[_T]) -> _T:
        """Does the work in slices, what takes long off the loop."""
        loop = asyncio.get_running_loop()
        result = None
        try:
            while True:
                asked = work.send(result)
                result = None if asked is None else await loop.run_in_executor(None, asked)
                await self._rest(loop)
        except StopIteration as done:
            await self._rest(loop)
            return done.value  # type: ignore[no-any-return]
        except ProtocolError as error:
            raise CorruptSegment(row.key, str(error)) from error

    async def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() >= self._until:
            await self._place.rest()
            self._until = loop.time() + SLICE_S


async def build_map(
    place: Place, dirty_from: int, bound: int, bytes_max: int, *, seed: int, dirty_bytes: int
) -> tuple[OffsetMap, int]:
    """The map of the keys from `dirty_from` on, up to `bound` or as far as there is room; and the bytes that were read.

    Raises RangeMissing, RangesChanged, CorruptSegment, what the store raises.
    """
    expected = min(dirty_bytes // RECORD_BYTES_GUESS, bytes_max)
    bytes_read = 0
    for check in (False, True):  # what nobody can read is so rare that its price is to begin once more
        offsets = OffsetMap(bytes_max, dirty_from - 1, seed=seed, expected=expected)
        half = Half(place, CleanedTransactions(), dirty_from)
        try:
            await _fill(offsets, half, dirty_from, bound, check=check)
            break
        except Unreadable:
            assert not check
        finally:
            bytes_read += half.bytes_read
    return offsets, bytes_read


async def _fill(offsets: OffsetMap, half: Half, dirty_from: int, bound: int, *, check: bool) -> None:
    offset = dirty_from
    while offset < bound:
        row = half.row(offset, first=offset == dirty_from)
        if row is None or row.range.base >= bound:
            break
        await half.feed(row)
        async for header, batch in half.batches(row, dirty_from):
            if header.last_offset < dirty_from:
                continue
            if header.base_offset >= bound:
                break
            noting = note_keys(header, batch, offsets, half.transactions, dirty_from, check=check)
            if not await half.work(row, noting):
                return
        offset = row.range.end
        offsets.latest = max(offsets.latest, min(offset, bound) - 1)
    offsets.latest = max(offsets.latest, bound - 1)


@dataclass(slots=True)
class _Output:
    """Ranges that are being put together. `write` None: nothing of them has gone so far, and nothing is written."""

    rows: list[RangeRow] = field(default_factory=list)
    number: int = -1
    write: Write | None = None
    blocks: list[int] = field(default_factory=list)
    aborted: list[AbortedEntry] = field(default_factory=list)
    size: int = 0
    batches: int = 0
    newest: int = -1
    _block: list[Buffer] = field(default_factory=list)
    _block_size: int = 0
    _block_newest: int = -1
    _block_base: int = -1

    async def add(self, header: BatchHeader, batch: Buffer) -> None:
        """The next batch."""
        size = len(batch)
        if self._block and self._block_size + size > BLOCK_BYTES:
            await self.close_block()
        if not self._block:
            self._block_base = header.base_offset
        self._block.append(batch)
        self._block_size += size
        self._block_newest = max(self._block_newest, header.max_timestamp)
        self.size += size
        self.batches += 1
        self.newest = max(self.newest, header.max_timestamp)

    async def close_block(self) -> None:
        """What was added since the last block becomes one: copied, so that the blocks that were read are let go."""
        if not self._block:
            return
        assert self.write is not None
        block = b"".join(self._block)
        self.blocks += (self._block_base - self.rows[0].range.base, len(block), self._block_newest, crc32c(block))
        self._block, self._block_size, self._block_newest = [], 0, -1
        await self.write(block)


class Compactor:
    """The second half of a pass: `outputs` gives what replaces ranges, in the order of their offsets."""

    def __init__(
        self,
        place: Place,
        offsets: OffsetMap,
        *,
        start: int,
        now_ms: int,
        delete_retention_ms: int,
        last: LastBatches,
        object_bytes_max: int,
    ) -> None:
        """`start`: where the log begins. `now_ms`: wall time."""
        self._place = place
        self._offsets = offsets
        self._start = start
        self._object_bytes_max = object_bytes_max
        self.cleaner = Cleaner(offsets, now_ms=now_ms, delete_retention_ms=delete_retention_ms, last=last)
        first = place.row_at(start)
        self._half = Half(place, self.cleaner.transactions, start if first is None else first.range.base)

    @property
    def bytes_read(self) -> int:
        """Of batches."""
        return self._half.bytes_read

    async def outputs(self, begin: Begin) -> AsyncIterator[Done]:
        """Every output is written but for its end when it is given; the next ranges are asked for when it was taken
        care of. Raises as `build_map`.
        """
        making = _Output()
        offset = self._start
        while offset <= self._offsets.latest:
            row = self._half.row(offset, first=offset == self._start)
            if row is None or row.range.base > self._offsets.latest:
                break
            if making.rows and not self._fits(making, row):
                yield await self._finish(making)
                making = _Output()
                continue  # the range may be gone by now
            await self._take(making, row, begin)
            if making.write is None:
                making = _Output()
            offset = row.range.end
        if making.rows:
            yield await self._finish(making)

    def _fits(self, making: _Output, row: RangeRow) -> bool:
        return (
            making.rows[-1].range.end == row.range.base
            and making.size + row.range.length <= self._object_bytes_max
            and len(making.rows) < ROWS_PER_OUTPUT_MAX
        )

    async def _take(self, making: _Output, row: RangeRow, begin: Begin) -> None:
        """Adds what stays of a range; of the first one nothing, unless something of it goes or changes."""
        await self._half.feed(row)
        making.rows.append(row)
        async for header, batch in self._half.batches(row):
            cleaned, entry = await self._half.work(row, self.cleaner.clean(header, batch))
            if entry is not None:
                making.aborted.append(entry)
            if cleaned is not batch and making.write is None:
                making.number, making.write = begin()
                await self._add_again(making, row, header.base_offset)
            if making.write is not None and cleaned is not None:
                await making.add(header if cleaned is batch else parse_header(cleaned), cleaned)
        await making.close_block()

    async def _add_again(self, making: _Output, row: RangeRow, end: int) -> None:
        """The batches of the range below `end`, of which all stays."""
        async for header, batch in self._half.batches(row):
            if header.base_offset >= end:
                return
            await making.add(header, batch)

    async def _finish(self, making: _Output) -> Done:
        last = making.rows[-1]
        range_ = Range(
            last.range.log_id,
            last.range.leader_epoch,
            making.rows[0].range.base,
            last.range.end,
            0,
            making.size,
            making.newest,
            last.range.last_stable_offset,
            making.batches,
        )
        inputs = self._half.inputs(last)
        snapshot = await inputs.producers(last, await inputs.log(last))
        aborted = [value for entry in making.aborted for value in entry]
        output = encode_output(self._place.cluster_id, making.number, range_, making.blocks, aborted, *snapshot)
        return Done(output, tuple(making.rows))


async def last_batches(place: Place, newest: RangeRow, now_ms: int, expiration_ms: int) -> LastBatches:
    """What stays for the sake of producers that may come back, by the newest range's producer state."""
    inputs = Inputs(place.store, place.cluster_id, [newest], place.pace)
    snapshot, _ = await inputs.producers(newest, await inputs.log(newest))
    offsets, epochs = set[int](), dict[int, int]()
    try:
        for last in last_appends(snapshot):
            if last.is_open or now_ms - last.used_ms < expiration_ms:
                if last.last_offset >= 0:
                    offsets.add(last.last_offset)
                else:
                    epochs[last.producer_id] = last.epoch
    except ValueError as error:
        raise CorruptSegment(newest.key, str(error)) from error
    return LastBatches(frozenset(offsets), epochs)
