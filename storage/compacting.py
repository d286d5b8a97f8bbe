"""One pass of compaction over a log in the bucket: ranges are read block by block, outputs are what replaces them.

Memory: the offset map; a block of 512 KiB and what it decompresses to, batch by batch; and one output of at most
`object_bytes_max`, or of one range that is larger. A range of which nothing goes is left where it is, unless an output
has been begun.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from crc32c import crc32c

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.records import BatchHeader, iterate_batches, parse_header
from storage.compaction import CleanedTransactions, Cleaner, LastBatches, Work, note_keys
from storage.merging import Inputs, MergedObject, Pace, encode_output
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


class Place(NamedTuple):
    """Where a log is read from."""

    store: ObjectStore
    cluster_id: str
    row_at: RowAt
    pace: Pace
    rest: Callable[[], Awaitable[None]]
    """Called between slices of work on the loop."""


class Done(NamedTuple):
    """An output, and the ranges that it replaces."""

    output: MergedObject
    rows: tuple[RangeRow, ...]


class Half:
    """What both halves of a pass do: read batches in order, and know which transactions were aborted."""

    def __init__(self, place: Place, transactions: CleanedTransactions, start: int) -> None:
        """`start`: the first batch that is looked at begins there or later."""
        self._place = place
        self._transactions = transactions
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

    async def feed(self, row: RangeRow) -> None:
        """All aborted transactions with data in the range: their markers may lie in later ones. Each is told once: a
        second time it would be taken for the next transaction of its producer."""
        while self._fed_to < row.range.end or self._stable < row.range.end:
            following = self._place.row_at(self._fed_to)
            if following is None:
                return
            if following.range.length:
                log = await (self.inputs(row) if following == row else self._open(following)).log(following)
                self._transactions.add(entry for entry in log.aborted if entry.last_offset >= self._fed_to)
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

    Raises RangeMissing, CorruptSegment, what the store raises.
    """
    expected = min(dirty_bytes // RECORD_BYTES_GUESS, bytes_max)
    offsets = OffsetMap(bytes_max, dirty_from - 1, seed=seed, expected=expected)
    transactions = CleanedTransactions()
    half = Half(place, transactions, dirty_from)
    offset = dirty_from
    while offset < bound:
        row = place.row_at(offset)
        if row is None or row.range.base >= bound:
            break
        await half.feed(row)
        async for header, batch in half.batches(row, dirty_from):
            if header.last_offset < dirty_from:
                continue
            if header.base_offset >= bound:
                break
            if not await half.work(row, note_keys(header, batch, offsets, transactions, dirty_from)):
                return offsets, half.bytes_read
        offset = row.range.end
        offsets.latest = max(offsets.latest, min(offset, bound) - 1)
    offsets.latest = max(offsets.latest, bound - 1)
    return offsets, half.bytes_read


@dataclass(slots=True)
class _Output:
    """Ranges that are being put together."""

    rows: list[RangeRow] = field(default_factory=list)
    parts: list[Buffer] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    aborted: list[AbortedEntry] = field(default_factory=list)
    size: int = 0
    batches: int = 0
    newest: int = -1
    _block: list[Buffer] = field(default_factory=list)
    _block_size: int = 0
    _block_newest: int = -1
    _block_base: int = -1

    def add(self, header: BatchHeader, batch: Buffer, base: int) -> None:
        """A batch; `base` is that of the output."""
        size = len(batch)
        if self._block and self._block_size + size > BLOCK_BYTES:
            self.close_block(base)
        if not self._block:
            self._block_base = header.base_offset
        self._block.append(batch)
        self._block_size += size
        self._block_newest = max(self._block_newest, header.max_timestamp)
        self.size += size
        self.batches += 1
        self.newest = max(self.newest, header.max_timestamp)

    def close_block(self, base: int) -> None:
        """What was added since the last block becomes one: copied, so that the blocks that were read are let go."""
        if not self._block:
            return
        block = b"".join(self._block)
        self.parts.append(block)
        self.blocks += (self._block_base - base, len(block), self._block_newest, crc32c(block))
        self._block, self._block_size, self._block_newest = [], 0, -1


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

    async def outputs(self, number_of: Callable[[], int]) -> AsyncIterator[Done]:
        """Every output is complete when it is given; the next ranges are asked for when it was taken care of.

        `number_of`: the number that names the next one. Raises as `build_map`.
        """
        making = _Output()
        offset = self._start
        while offset <= self._offsets.latest:
            row = self._place.row_at(offset)
            if row is None or row.range.base > self._offsets.latest:
                break
            if making.rows and not self._fits(making, row):
                yield await self._finish(making, number_of())
                making = _Output()
                continue  # the row may have been merged meanwhile
            changed = await self._take(making, row)
            if not changed and len(making.rows) == 1:
                making = _Output()
            offset = row.range.end
        if making.rows:
            yield await self._finish(making, number_of())

    def _fits(self, making: _Output, row: RangeRow) -> bool:
        return (
            making.rows[-1].range.end == row.range.base
            and making.size + row.range.length <= self._object_bytes_max
            and len(making.rows) < ROWS_PER_OUTPUT_MAX
        )

    async def _take(self, making: _Output, row: RangeRow) -> bool:
        """Adds what stays of a range; whether anything of it goes or changes."""
        await self._half.feed(row)
        making.rows.append(row)
        base = making.rows[0].range.base
        changed = False
        async for header, batch in self._half.batches(row):
            cleaned, entry = await self._half.work(row, self.cleaner.clean(header, batch))
            if entry is not None:
                making.aborted.append(entry)
            if cleaned is batch:
                making.add(header, batch, base)
                continue
            changed = True
            if cleaned is not None:
                making.add(parse_header(cleaned), cleaned, base)
        making.close_block(base)
        return changed

    async def _finish(self, making: _Output, number: int) -> Done:
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
        output = encode_output(self._place.cluster_id, number, range_, making.parts, making.blocks, aborted, *snapshot)
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
