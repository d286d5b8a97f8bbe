"""Committed ranges -> batches: index, blocks, checksums, bounded caches, read-ahead.

A read goes: rows of facts -> `range_plan.plan` -> indexes (cached) -> blocks (cached, one flight each) -> slices of the
blocks. What is missing is fetched in as few ranged GETs as possible, verified block by block, and kept for the next
reader. Batches are never copied out of their block: a result's views keep their blocks alive beside the cache, so the
caller bounds the results it holds.

Facts may be older than the bucket: `RangeMissing` says that an object of the plan is gone. The caller refreshes its
facts and plans again; if they still name the object, that is loss and an alarm, never an empty answer.
"""

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from crc32c import crc32c

from protocol import Buffer
from protocol.records import HEADER_SIZE, BatchHeader, parse_header
from storage.cache import ByteCache, Gate, arrival
from storage.object_store import BLOCK_BYTES, ObjectStore, StoreError
from storage.range_plan import choose_blocks, collect_aborted, complete, extents, plan
from storage.seal import AbortedEntry, CorruptSegment, RangeMissing, RangeRow
from storage.segment import INDEX_GUESS_BYTES, LogIndex, SegmentIndex, fetch, read_end, read_producers
from storage.tasks import TaskOwner

__all__ = ["Block", "FoundBatch", "RangeMissing", "ReadResult", "Reader", "parse_block"]

GET_BYTES_MAX = 4 * 1024 * 1024
_STREAMS_MAX = 1000
_INDEXES_AHEAD = 16
_ENDS_BYTES_MAX = 8 * 1024 * 1024
_OFFSET_AND_LENGTH = Struct(">qi").unpack_from
_LOG_OVERHEAD = 12
_BLOCK_OVERHEAD = 400


class ReadResult(NamedTuple):
    """Whole batches in order, as views of blocks that hold several batches each."""

    buffers: list[Buffer]
    size: int  # bytes
    next_offset: int  # where the next read begins; beyond the last batch where a gap or an empty range follows
    aborted: list[AbortedEntry]  # transactions with data in what was read, for read_committed
    aborted_complete: bool  # False: more may end beyond the last row: ask the producer states of the tail


class FoundBatch(NamedTuple):
    """A batch that a search by timestamp found. Its records are the caller's to look at."""

    base_offset: int
    next_offset: int  # where to search on if no record of it is the one
    leader_epoch: int
    max_timestamp: int
    batch: Buffer


class Block(NamedTuple):
    """A verified block. Batch i has offsets from bases[i] on and bytes positions[i] to positions[i + 1]."""

    data: bytes
    bases: "array[int]"
    positions: "array[int]"  # one longer

    @property
    def memory_bytes(self) -> int:
        return len(self.data) + 16 * len(self.bases) + _BLOCK_OVERHEAD

    def header(self, number: int) -> BatchHeader:
        return parse_header(self.data, self.positions[number])

    def first_from(self, offset: int) -> int:
        """Number of the first batch that ends above `offset`; the number of batches if none does."""
        number = max(bisect_right(self.bases, offset) - 1, 0)
        return number if self.header(number).next_offset > offset else number + 1

    def view(self, first: int, last: int) -> memoryview:
        """Batches `first` to `last` (exclusive)."""
        return memoryview(self.data)[self.positions[first] : self.positions[last]]


def parse_block(key: str, data: bytes, crc: int, base: int) -> Block:
    """The block with these bytes, whose CRC-32C and first offset the index says. Raises CorruptSegment."""
    if crc32c(data) != crc:
        raise CorruptSegment(key, f"checksum of the block at offset {base} does not match")
    bases, positions = array("q"), array("q")
    pos, end = 0, len(data)
    try:
        while pos < end:
            offset, length = _OFFSET_AND_LENGTH(data, pos)
            if length < HEADER_SIZE - _LOG_OVERHEAD:
                break
            bases.append(offset)
            positions.append(pos)
            pos += length + _LOG_OVERHEAD
    except StructError:
        pos = -1
    if pos != end or not bases or bases[0] != base:
        raise CorruptSegment(key, f"the block at offset {base} does not hold whole batches")
    positions.append(end)
    return Block(data, bases, positions)


class _Stream:
    """A reader who reads on where it stopped.

    `window` bytes are fetched ahead of it at a time: up to offset `until`, and more when it comes to offset `trigger`,
    so that a fetch is big and arrives before it is needed.
    """

    __slots__ = ("fetching", "trigger", "until", "window")

    def __init__(self) -> None:
        self.window = self.trigger = self.until = 0
        self.fetching = False


class Reader:
    """Reads committed ranges. Raises RangeMissing, CorruptSegment and what the store raises.

    Memory: `cache_bytes_max` for blocks, cached or being fetched; `index_bytes_max` for indexes. At most
    `read_ahead_bytes_max` of the blocks are there without having been asked for. Fetches run in the owner's TaskGroup:
    they outlive the reads that wait for them.
    """

    def __init__(
        self,
        store: ObjectStore,
        tasks: TaskOwner,
        *,
        cache_bytes_max: int = 256 * 1024 * 1024,
        index_bytes_max: int = 32 * 1024 * 1024,
        read_ahead_bytes_max: int = 64 * 1024 * 1024,
        parallel: int = 16,
        cluster_id: str | None = None,
    ) -> None:
        """`parallel`: ranged GETs at a time. `cluster_id`: segments of another cluster are refused."""
        self._store = store
        self._tasks = tasks
        self._cluster_id = cluster_id
        self.blocks: ByteCache[tuple[str, int], Block] = ByteCache(cache_bytes_max)
        self.indexes: ByteCache[str, SegmentIndex] = ByteCache(index_bytes_max)
        self._ends: ByteCache[str, tuple[SegmentIndex, int, bytes]] = ByteCache(_ENDS_BYTES_MAX)
        self._checking = asyncio.Lock()  # one block per turn of the loop is checked, up to a millisecond each
        self._gate = Gate(parallel, max(cache_bytes_max // 2, 1))
        self._get_bytes_max = max(min(GET_BYTES_MAX, cache_bytes_max // (2 * parallel)), BLOCK_BYTES)
        self._read_ahead_bytes_max = min(read_ahead_bytes_max, cache_bytes_max // 2)
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()
        self._ahead: OrderedDict[tuple[str, int], int] = OrderedDict()  # fetched ahead, not used yet -> bytes
        self.ahead_bytes = 0
        self.gets = 0
        self.bytes_fetched = 0

    @property
    def busy(self) -> bool:
        """Whether half of the GETs that may run at a time do."""
        return 2 * self._gate.holders >= self._gate.parallel

    async def read(
        self,
        rows: Sequence[RangeRow],
        offset: int,
        limit: int,
        max_bytes: int,
        *,
        read_committed: bool = False,
        at_least_one: bool = True,
    ) -> ReadResult:
        """Batches from the one holding `offset` on, none that begins at or above `limit`, at most `max_bytes`.

        The first batch comes whatever its size if `at_least_one`. `rows` are the log's ranges in offset order, from the
        one holding `offset` on, as far as the caller knows them; for read_committed `limit` is the LSO and the rows go
        on beyond it. An empty result with `next_offset` at the end of the rows means that they hold nothing more.
        """
        buffers: list[Buffer] = []
        size, at = 0, offset
        while not buffers and at < limit and (chosen := plan(rows, at, limit, max_bytes)):
            before = at
            buffers, size, at = await self._read_rows(chosen, at, limit, max_bytes, at_least_one)
            if at <= before:
                break
        if buffers:
            self._follow(rows, offset, at)
        aborted: list[AbortedEntry] = []
        aborted_complete = not read_committed or not buffers
        if not aborted_complete:
            aborted_complete = await self.collect_aborted(rows, offset, at, aborted)
        return ReadResult(buffers, size, at, aborted, aborted_complete)

    async def find_timestamp(
        self, rows: Sequence[RangeRow], timestamp: int, limit: int, from_offset: int = 0
    ) -> FoundBatch | None:
        """The first batch with a max timestamp of at least `timestamp` that ends above `from_offset` and begins below
        `limit`; None if there is none."""
        for row in rows:
            if row.range.end <= from_offset or row.range.max_timestamp < timestamp:
                continue
            if row.range.base >= limit:
                break
            log = await self._log(row)
            for number in choose_blocks(log, from_offset, limit, row.range.length):
                if log.timestamps[number] < timestamp:
                    continue
                block = await self._block(row, log, number)
                for batch in range(len(block.bases)):
                    header = block.header(batch)
                    if header.base_offset >= limit:
                        break
                    if header.max_timestamp >= timestamp and header.last_offset >= from_offset:
                        return _found(block, batch, header)
        return None

    async def find_max_timestamp(self, rows: Sequence[RangeRow], limit: int, from_offset: int = 0) -> FoundBatch | None:
        """The batch with the greatest max timestamp, the first of equals, of those with records that end above
        `from_offset` and begin below `limit`; None if there is none."""
        best: FoundBatch | None = None
        for row in sorted(rows, key=lambda row: (-row.range.max_timestamp, row.range.base)):
            if row.range.end <= from_offset or row.range.base >= limit or not row.range.length:
                continue
            if best is not None and row.range.max_timestamp <= best.max_timestamp:
                break
            log = await self._log(row)
            numbers = choose_blocks(log, from_offset, limit, row.range.length)
            for number in sorted(numbers, key=lambda number: (-log.timestamps[number], number)):
                if best is not None and log.timestamps[number] <= best.max_timestamp:
                    break
                block = await self._block(row, log, number)
                for batch in range(len(block.bases)):
                    header = block.header(batch)
                    if header.last_offset < from_offset or header.base_offset >= limit or not header.record_count:
                        continue
                    if best is None or header.max_timestamp > best.max_timestamp:
                        best = _found(block, batch, header)
        return best

    async def producers(self, row: RangeRow) -> tuple[bytes, int]:
        """The producer snapshot that belongs to this range, and the offset at which it is exact: `read_producers`.

        What is read of an object for one log serves the others in it.
        """
        return await read_producers(self._store, row.key, row.size, row.range.log_id, await self._end(row))

    async def warm(self, row: RangeRow) -> None:
        """Read what opening the log needs of its newest range's object, but no batches. Raises as `producers`."""
        await self._end(row)

    async def _end(self, row: RangeRow) -> tuple[SegmentIndex, int, bytes]:
        end = self._ends.get(row.key)
        if end is None:
            flight = self._ends.flight(row.key)
            if flight is None:
                flight = self._ends.open_flight(row.key)
                self._tasks.create_task(self._fetch_end(row.key, row.size))
            end = await arrival(flight)
        return end

    async def _fetch_end(self, key: str, size: int) -> None:
        try:
            async with self._gate.pass_with(min(size, INDEX_GUESS_BYTES)):
                end = await read_end(self._store, key, size)
            self.gets += 1
            self.bytes_fetched += len(end[2])
            if self._cluster_id not in (None, end[0].cluster_id):
                raise CorruptSegment(key, f"belongs to cluster {end[0].cluster_id}, this is {self._cluster_id}")
            self._ends.land(key, end, len(end[2]) + end[0].memory_bytes)
        except asyncio.CancelledError:
            self._ends.cancel(key)
            raise
        except Exception as error:
            self._ends.fail(key, error)

    async def _read_rows(
        self, rows: Sequence[RangeRow], offset: int, limit: int, max_bytes: int, at_least_one: bool
    ) -> tuple[list[Buffer], int, int]:
        """Buffers, their size and the offset to go on at, which lies above `offset` unless nothing fits."""
        planned = await self._plan_blocks(rows, offset, limit, max_bytes)
        requested = [(log, numbers, self._request(row, log, numbers)) for row, log, numbers in planned]
        buffers: list[Buffer] = []
        size, at = 0, offset
        for log, numbers, requests in requested:
            for number, request in zip(numbers, requests):
                block = request if isinstance(request, Block) else await arrival(request)
                count = len(block.bases)
                first = block.first_from(at)
                last = bisect_left(block.bases, limit, first)
                room = block.positions[first] + max_bytes - size
                fit = max(bisect_right(block.positions, room, first, last + 1) - 1, first)
                if fit == first < last and at_least_one and not buffers:
                    fit += 1
                if fit > first:
                    buffers.append(block.view(first, fit))
                    size += block.positions[fit] - block.positions[first]
                    at = block.header(fit - 1).next_offset
                if fit < last:
                    return buffers, size, at
                if last < count:
                    return buffers, size, limit
                at = log.bases[number + 1] if number + 1 < len(log.bases) else log.range.end
            if numbers.stop < len(log.bases):
                return buffers, size, min(log.bases[numbers.stop], limit)
            at = max(at, log.range.end)
        return buffers, size, min(at, limit)

    async def _plan_blocks(
        self, rows: Sequence[RangeRow], offset: int, limit: int, max_bytes: int
    ) -> list[tuple[RangeRow, LogIndex, range]]:
        """Per row its index and the numbers of the blocks to read, enough for `max_bytes` in all."""
        for row in rows:
            if row.key not in self.indexes:
                self._request_index(row)
        planned: list[tuple[RangeRow, LogIndex, range]] = []
        for row in rows:
            log = await self._log(row)
            numbers = choose_blocks(log, offset, limit, max_bytes)
            planned.append((row, log, numbers))
            if numbers:
                max_bytes -= log.positions[numbers.stop] - log.positions[numbers.start]
                if max_bytes <= 0:
                    break
        return planned

    async def collect_aborted(
        self, rows: Sequence[RangeRow], offset: int, upper: int, into: list[AbortedEntry]
    ) -> bool:
        """Adds the aborted transactions with data in [offset, upper) whose marker lies in `rows`, forward from the one
        that holds `offset`, until everything below `upper` is known to be decided; False: `rows` did not tell that."""
        ahead = 1
        rows = [row for row in rows if row.range.end > offset]
        for number, row in enumerate(rows):
            if number == ahead:  # usually the first one is enough; a long transaction takes many
                ahead += min(2 * number, _INDEXES_AHEAD)
                for later in rows[number:ahead]:
                    if later.key not in self.indexes:
                        self._request_index(later)
            log = await self._log(row)
            if collect_aborted(log.aborted, offset, upper, into) or log.range.last_stable_offset >= upper:
                return True
        return False

    async def _log(self, row: RangeRow) -> LogIndex:
        """The index entry of a row. Both must name the same offsets and bytes."""
        index = self.indexes.get(row.key)
        if index is None:
            index = await arrival(self._request_index(row))
        log = index.log(row.range.log_id)
        if log.range[2:6] != row.range[2:6]:
            raise CorruptSegment(row.key, f"the metadata says {row.range}, the index says {log.range}")
        return log

    def _request_index(self, row: RangeRow) -> "asyncio.Future[SegmentIndex]":
        """The flight of an index that is not cached, started if there is none."""
        flight = self.indexes.flight(row.key)
        if flight is None:
            flight = self.indexes.open_flight(row.key)
            self._tasks.create_task(self._fetch_index(row.key, row.size))
        return flight

    async def _fetch_index(self, key: str, size: int) -> None:
        try:
            async with self._gate.pass_with(min(size, INDEX_GUESS_BYTES)):
                index, start, data = await read_end(self._store, key, size)
            self.gets += 1
            self.bytes_fetched += len(data)
            if self._cluster_id not in (None, index.cluster_id):
                raise CorruptSegment(key, f"belongs to cluster {index.cluster_id}, this is {self._cluster_id}")
            if start == 0:
                self._keep_blocks(index, data)
            self.indexes.land(key, index, index.memory_bytes)
        except asyncio.CancelledError:
            self.indexes.cancel(key)
            raise
        except Exception as error:
            self.indexes.fail(key, error)

    def _keep_blocks(self, index: SegmentIndex, data: bytes) -> None:
        """A small object came whole with its index: no second GET for its blocks."""
        for log_id in index.log_ids:
            log = index.log(log_id)
            for number, base in enumerate(log.bases):
                key = index.key, log.positions[number]
                if key in self.blocks:
                    continue
                try:
                    block = parse_block(index.key, data[key[1] : log.positions[number + 1]], log.crcs[number], base)
                except CorruptSegment:
                    continue  # whoever wants this block will hear of it
                self.blocks.open_flight(key)
                self.blocks.land(key, block, block.memory_bytes)

    async def _block(self, row: RangeRow, log: LogIndex, number: int) -> Block:
        [request] = self._request(row, log, range(number, number + 1))
        return request if isinstance(request, Block) else await arrival(request)

    def _request(
        self, row: RangeRow, log: LogIndex, numbers: range, *, ahead: bool = False
    ) -> "list[Block | asyncio.Future[Block]]":
        """The blocks, or their flights, started where there are none. `ahead`: nobody has asked for them yet."""
        wanted = complete(log, numbers)
        keys = {number: (row.key, log.positions[number]) for number in wanted}
        cached = {number: self.blocks.get(keys[number]) for number in numbers}
        missing = [number for number in wanted if cached.get(number) is None and keys[number] not in self.blocks]
        for run in extents(log, missing, self._get_bytes_max):
            for number in run:
                self.blocks.open_flight(keys[number])
            self._tasks.create_task(self._fetch_blocks(row, log, run))
        if ahead:
            self._remember_ahead({keys[number]: log.positions[number + 1] - keys[number][1] for number in missing})
        requests: list[Block | asyncio.Future[Block]] = []
        for number in numbers:
            block = cached[number]
            if not ahead:
                self.ahead_bytes -= self._ahead.pop(keys[number], 0)
            flight = self.blocks.flight(keys[number])
            assert block is not None or flight is not None
            requests.append(block if block is not None else flight)  # type: ignore[arg-type]
        return requests

    async def _fetch_blocks(self, row: RangeRow, log: LogIndex, run: range) -> None:
        """One ranged GET; lands or fails the flight of every block of the run, each judged by itself."""
        start, end = log.positions[run.start], log.positions[run.stop]
        try:
            async with self._gate.pass_with(end - start):
                self.blocks.reserve(end - start)
                try:
                    self.gets += 1
                    data = await fetch(self._store, row.key, start, end - start, row.size)
                    self.bytes_fetched += len(data)
                    for number in run:
                        position = log.positions[number]
                        async with self._checking:
                            piece = (
                                data if len(run) == 1 else data[position - start : log.positions[number + 1] - start]
                            )
                            try:
                                block = parse_block(row.key, piece, log.crcs[number], log.bases[number])
                            except CorruptSegment as error:
                                self.blocks.fail((row.key, position), error)
                            else:
                                self.blocks.land((row.key, position), block, block.memory_bytes)
                            await asyncio.sleep(0)
                finally:
                    self.blocks.release(end - start)
        except asyncio.CancelledError:
            for number in run:
                self.blocks.cancel((row.key, log.positions[number]))
            raise
        except Exception as error:
            for number in run:
                self.blocks.fail((row.key, log.positions[number]), error)

    def _follow(self, rows: Sequence[RangeRow], offset: int, next_offset: int) -> None:
        """Fetches ahead of a reader that goes on where an earlier read stopped, further each time."""
        log_id = rows[0].range.log_id
        stream = self._streams.pop((log_id, offset), None)
        here = log_id, next_offset
        if stream is None:
            self._streams.setdefault(here, _Stream())
        else:
            self._streams[here] = stream
            if next_offset >= stream.trigger and not stream.fetching:
                stream.fetching = True
                stream.window = min(max(2 * stream.window, 2 * BLOCK_BYTES), self._read_ahead_bytes_max // 4)
                self._tasks.create_task(self._fetch_ahead(rows, max(next_offset, stream.until), stream))
        if len(self._streams) > _STREAMS_MAX:
            self._streams.popitem(last=False)

    async def _fetch_ahead(self, rows: Sequence[RangeRow], offset: int, stream: _Stream) -> None:
        limit, window = rows[-1].range.end, stream.window
        try:
            planned = await self._plan_blocks(plan(rows, offset, limit, window), offset, limit, window)
            half = window // 2
            for row, log, numbers in planned:
                self._request(row, log, numbers, ahead=True)
                for number in numbers:
                    if half > 0:
                        stream.trigger = log.bases[number]
                    half -= log.positions[number + 1] - log.positions[number]
                last = not numbers or numbers.stop == len(log.bases)
                stream.until = log.range.end if last else log.bases[numbers.stop]
        except (RangeMissing, CorruptSegment, StoreError):
            pass  # whoever reads there will hear of it
        finally:
            stream.fetching = False

    def _remember_ahead(self, blocks: dict[tuple[str, int], int]) -> None:
        """Counts blocks fetched ahead; the oldest that nobody came for go first."""
        for key, size in blocks.items():
            self._ahead[key] = size
            self.ahead_bytes += size
        while self.ahead_bytes > self._read_ahead_bytes_max:
            key, size = self._ahead.popitem(last=False)
            self.ahead_bytes -= size
            self.blocks.discard(key)


def _found(block: Block, number: int, header: BatchHeader) -> FoundBatch:
    return FoundBatch(
        header.base_offset,
        header.next_offset,
        header.leader_epoch,
        header.max_timestamp,
        block.view(number, number + 1),
    )
