"""Segment bytes <-> batches, index and footer: the immutable objects in the bucket.

    batches            grouped by log id, in offset order; cut into blocks of about 512 KiB at batch boundaries
    producer states    one snapshot per log that has any (`ProducerStates.snapshot`)
    envelope           empty: room for what a reader of encrypted objects needs before it can read the index
    index              msgpack, below
    footer             40 bytes, big-endian: index position u64, index length u32, index CRC-32C u32,
                       envelope length u32, flags u32 (none is known), format version u16, zero u16,
                       CRC-32C u32 of the footer up to here, magic `tdlogseg`

Index, named by position: [key, cluster id, origin, logs]. Origin of a seal: [0, node id, incarnation, seal, part]; of
what a merge job made: [1, job].
Logs: log id and entry in turn, by log id; an entry is msgpack in a binary field, so that a reader of one log of
thousands decodes one: [log id, leader epoch, base, end, position, length, max timestamp, LSO at end, batch count,
blocks, producers, aborted].

- Blocks, flat: (base offset of the first batch - base, length, max timestamp, CRC-32C). They follow each other from the
  range's position on. A range without batches has none.
- Producers: [] or [key, position, length, CRC-32C, offset]: a snapshot exactly at `offset`. Key "" is this object and
  then offset is the range's end; another key is an older object, and the batches from `offset` on are to be replayed.
- Aborted, flat: (producer id, first offset, last offset, LSO after) by last offset, the marker's.

Readers ignore what follows the known fields of an array; anything else new is a new format version. Every byte before
the footer is covered by a CRC-32C in the index or the footer. Positions and lengths are bytes, timestamps Unix ms.
"""

import asyncio
from array import array
from collections.abc import Generator, Sequence
from struct import Struct
from typing import Any, NamedTuple

import msgpack
from crc32c import crc32c

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.records import check_crc, iterate_batches
from storage.object_store import BLOCK_BYTES, NotFound, ObjectStore
from storage.producers import ProducerStates
from storage.seal import AbortedEntry, CorruptSegment, Range, RangeMissing, SealedLog, Writer

__all__ = [
    "FOOTER_SIZE",
    "FORMAT_VERSION",
    "INDEX_GUESS_BYTES",
    "ORIGIN_MERGE",
    "LogIndex",
    "LogReport",
    "ProducersPointer",
    "Range",
    "SealedLog",
    "Segment",
    "SegmentIndex",
    "SegmentReport",
    "SegmentWriter",
    "decode_footer",
    "decode_index",
    "describe_segment",
    "encode_segment",
    "encode_segment_in_steps",
    "encode_tail",
    "fetch",
    "read_end",
    "read_index",
    "read_producers",
]

FORMAT_VERSION = 1
MAGIC = b"tdlogseg"
INDEX_GUESS_BYTES = 64 * 1024
"""Read from the end of an object at first: nearly always holds the whole index, often the producer states too."""

GATHER_BELOW_BYTES = 16 * 1024
"""Blocks whose batches are smaller on average become one buffer: stores pay per buffer, not per byte."""

_FOOTER = Struct(">QIIIIHHI8s")
_FOOTER_CRC_POSITION = 28
FOOTER_SIZE = _FOOTER.size
_OFFSET_AND_TIMESTAMP = Struct(">q27xq")  # of a batch: base offset and max timestamp
_ORIGIN_SEAL = 0
ORIGIN_MERGE = 1


class SegmentWriter(NamedTuple):
    """Who writes this object, as which part of which seal."""

    writer: Writer
    seal: int
    part: int = 0

    @property
    def key(self) -> str:
        """`segments/<node>/<incarnation, 16 hex digits>/<seal>-<part>`; never overwritten, never reused."""
        return f"segments/{self.writer.node_id}/{self.writer.incarnation:016x}/{self.seal}-{self.part}"


class Segment(NamedTuple):
    """An encoded object: `parts` in order. Big batches are not copied: they stay frozen until the object is stored."""

    key: str
    parts: list[Buffer]
    size: int
    ranges: tuple[Range, ...]
    tail: bytes  # the last part: index and footer, which hold a checksum of everything


class ProducersPointer(NamedTuple):
    """Where the snapshot of a log's producers lies, and the offset at which it is exact."""

    key: str
    position: int
    length: int
    crc: int
    offset: int


class LogIndex(NamedTuple):
    """One log's part of an index. Block i is bytes positions[i] to positions[i + 1] of the object."""

    range: Range
    bases: "array[int]"  # base offset of the first batch of each block
    positions: "array[int]"  # one longer than the others
    timestamps: "array[int]"  # max timestamp of each block
    crcs: "array[int]"
    producers: ProducersPointer | None
    aborted: tuple[AbortedEntry, ...]


class Footer(NamedTuple):
    index_position: int
    index_length: int
    index_crc: int
    envelope_length: int


class SegmentIndex:
    """The verified index of one object. Entries of logs are decoded when they are asked for."""

    __slots__ = ("_decoded", "_entries", "cluster_id", "data_end", "key", "memory_bytes", "origin", "size")

    def __init__(
        self, key: str, size: int, cluster_id: str, origin: list[int], data_end: int, entries: dict[int, bytes]
    ) -> None:
        self.key = key
        self.size = size
        self.cluster_id = cluster_id
        self.origin = origin
        self.data_end = data_end  # where batches and producer states end
        self.memory_bytes = 500 + sum(6 * len(entry) + 500 for entry in entries.values())  # decoded, generous
        self._entries = entries
        self._decoded: dict[int, LogIndex] = {}

    @property
    def log_ids(self) -> list[int]:
        """Ascending."""
        return list(self._entries)

    @property
    def writer(self) -> SegmentWriter | None:
        """The seal that the object belongs to; None if it is of another origin."""
        if self.origin[0] != _ORIGIN_SEAL:
            return None
        _, node_id, incarnation, seal, part = self.origin[:5]
        return SegmentWriter(Writer(self.cluster_id, node_id, incarnation), seal, part)

    def log(self, log_id: int) -> LogIndex:
        """CorruptSegment: there is no such log, or its entry contradicts itself."""
        index = self._decoded.get(log_id)
        if index is None:
            entry = self._entries.get(log_id)
            if entry is None:
                raise CorruptSegment(self.key, f"the index does not name log {log_id}")
            index = self._decoded[log_id] = _decode_log(self.key, log_id, entry, self.data_end)
        return index


def encode_segment(writer: SegmentWriter, logs: Sequence[SealedLog]) -> Segment:
    """One object of all the logs, at most one range each. Holds the loop while it runs: see the variant below."""
    steps = _encode(writer, logs)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            segment: Segment = done.value
            return segment


async def encode_segment_in_steps(writer: SegmentWriter, logs: Sequence[SealedLog]) -> Segment:
    """As `encode_segment`, giving way to the loop after every block."""
    steps = _encode(writer, logs)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            segment: Segment = done.value
            return segment
        await asyncio.sleep(0)


def _encode(writer: SegmentWriter, logs: Sequence[SealedLog]) -> Generator[None, None, Segment]:
    logs = sorted(logs, key=lambda log: log.log_id)
    assert len({log.log_id for log in logs}) == len(logs), "a segment holds one range per log"
    parts: list[Buffer] = []
    ranges: list[Range] = []
    blocks: list[list[int]] = []
    position = 0
    for log in logs:
        log_blocks, length = yield from _encode_blocks(log, parts)
        blocks.append(log_blocks)
        ranges.append(
            Range(
                log.log_id,
                log.leader_epoch,
                log.base,
                log.end,
                position,
                length,
                log.max_timestamp,
                log.last_stable_offset,
                len(log.batches),
            )
        )
        position += length
    entries: list[int | bytes] = []
    for log, range_, log_blocks in zip(logs, ranges, blocks):
        producers: list[str | int] = []
        if log.producers:
            producers = ["", position, len(log.producers), crc32c(log.producers), log.end]
            parts.append(log.producers)
            position += len(log.producers)
        aborted = [number for entry in log.aborted for number in entry]
        entries += (log.log_id, msgpack.packb((*range_, log_blocks, producers, aborted)))
    identity = writer.writer
    origin = (_ORIGIN_SEAL, identity.node_id, identity.incarnation, writer.seal, writer.part)
    tail = encode_tail([writer.key, identity.cluster_id, origin, entries], position)
    parts.append(tail)
    return Segment(writer.key, parts, position + len(tail), tuple(ranges), tail)


def _encode_blocks(log: SealedLog, parts: list[Buffer]) -> Generator[None, None, tuple[list[int], int]]:
    """Appends the batches of one log to `parts`; its blocks as the index has them, and its length."""
    blocks: list[int] = []
    block: list[Buffer] = []
    block_bytes = length = 0
    newest = block_base = block_timestamp = -1
    expected = log.base
    for batch in log.batches:
        size = len(batch)
        base, timestamp = _OFFSET_AND_TIMESTAMP.unpack_from(batch)
        assert expected <= base < log.end, (expected, base, log.end)
        expected = base + 1
        if block and block_bytes + size > BLOCK_BYTES:
            blocks += (block_base - log.base, block_bytes, block_timestamp, _close_block(block, block_bytes, parts))
            yield
            length += block_bytes
            newest = max(newest, block_timestamp)
            block = []
        if not block:
            block_bytes, block_base, block_timestamp = 0, base, -1
        block.append(batch)
        block_bytes += size
        if timestamp > block_timestamp:
            block_timestamp = timestamp
    if block:
        blocks += (block_base - log.base, block_bytes, block_timestamp, _close_block(block, block_bytes, parts))
        yield
        length += block_bytes
        newest = max(newest, block_timestamp)
    assert length == log.size, f"log {log.log_id}: {log.size} bytes, found {length}"
    assert newest == log.max_timestamp, f"log {log.log_id}: max timestamp {log.max_timestamp}, found {newest}"
    return blocks, length


def _close_block(block: list[Buffer], block_bytes: int, parts: list[Buffer]) -> int:
    """Appends the block to `parts` and returns its CRC."""
    if block_bytes < GATHER_BELOW_BYTES * len(block) and len(block) > 1:
        joined = b"".join(block)
        parts.append(joined)
        return crc32c(joined)
    crc = 0
    for batch in block:
        crc = crc32c(batch, crc)
    parts += block
    return crc


def encode_tail(index: list[Any], position: int) -> bytes:
    """Index, its entries of logs packed already, and footer, to be put at `position`."""
    packed: bytes = msgpack.packb(index)
    footer = bytearray(FOOTER_SIZE)
    _FOOTER.pack_into(footer, 0, position, len(packed), crc32c(packed), 0, 0, FORMAT_VERSION, 0, 0, MAGIC)
    footer[_FOOTER_CRC_POSITION : _FOOTER_CRC_POSITION + 4] = crc32c(footer[:_FOOTER_CRC_POSITION]).to_bytes(4, "big")
    return packed + bytes(footer)


def decode_footer(key: str, size: int, footer: Buffer) -> Footer:
    """The last `FOOTER_SIZE` bytes of an object of `size` bytes. Raises CorruptSegment."""
    if len(footer) != FOOTER_SIZE:
        raise CorruptSegment(key, f"{size} bytes are too few for a footer")
    position, length, index_crc, envelope, flags, version, zero, crc, magic = _FOOTER.unpack(footer)
    if magic != MAGIC:
        raise CorruptSegment(key, f"no segment: its last bytes are {magic.hex()}, not {MAGIC.hex()}")
    if crc != crc32c(memoryview(footer)[:_FOOTER_CRC_POSITION]):
        raise CorruptSegment(key, "checksum of the footer does not match")
    if version != FORMAT_VERSION or flags or zero:
        raise CorruptSegment(
            key, f"format version {version}, flags {flags:#x}; this version reads {FORMAT_VERSION}: upgrade"
        )
    if position + length + FOOTER_SIZE != size or envelope > position:
        raise CorruptSegment(key, f"the footer says {position + length + FOOTER_SIZE} bytes, the object has {size}")
    return Footer(position, length, index_crc, envelope)


def decode_index(key: str, size: int, footer: Footer, packed: Buffer) -> SegmentIndex:
    """The index of the object `key`, its bytes as the footer names them. Raises CorruptSegment."""
    if len(packed) != footer.index_length or crc32c(packed) != footer.index_crc:
        raise CorruptSegment(key, "checksum of the index does not match")
    try:
        own_key, cluster_id, origin, entries = msgpack.unpackb(packed, use_list=True)[:4]
        if own_key != key:
            raise CorruptSegment(key, f"these are the bytes of object {own_key}")
        logs = dict(zip(entries[::2], entries[1::2], strict=True))
        if not isinstance(cluster_id, str) or not all(isinstance(number, int) for number in origin):
            raise TypeError("cluster id or origin")
        if not all(isinstance(log_id, int) and isinstance(entry, bytes) for log_id, entry in logs.items()):
            raise TypeError("entries of logs")
    except (TypeError, ValueError, IndexError, msgpack.UnpackException) as error:
        raise CorruptSegment(key, f"the index cannot be read: {error!r}") from error
    return SegmentIndex(key, size, cluster_id, origin, footer.index_position - footer.envelope_length, logs)


def _decode_log(key: str, log_id: int, entry: bytes, data_end: int) -> LogIndex:
    try:
        fields = msgpack.unpackb(entry, use_list=True)
        range_ = Range(*fields[:9])
        blocks, pointer, aborted = fields[9:12]
        if {*map(type, range_), *map(type, blocks), *map(type, aborted)} != {int}:
            raise TypeError("a field is not a number")
        positions = array("q", [range_.position])
        for length in blocks[1::4]:
            positions.append(positions[-1] + length)
        index = LogIndex(
            range_,
            array("q", [range_.base + delta for delta in blocks[::4]]),
            positions,
            array("q", blocks[2::4]),
            array("I", blocks[3::4]),
            ProducersPointer(*pointer[:5]) if pointer else None,
            tuple(AbortedEntry(*aborted[at : at + 4]) for at in range(0, len(aborted), 4)),
        )
        if len(blocks) % 4 or positions[-1] != range_.position + range_.length or positions[-1] > data_end:
            raise ValueError("blocks do not fill the range")
        if range_.log_id != log_id or range_.base > range_.end or range_.position < 0:
            raise ValueError("the range contradicts itself")
    except (TypeError, ValueError, IndexError, OverflowError, msgpack.UnpackException) as error:
        raise CorruptSegment(key, f"the entry of log {log_id} cannot be read: {error!r}") from error
    return index


async def read_index(store: ObjectStore, key: str, size: int) -> SegmentIndex:
    """The index of the object `key` of `size` bytes, verified. One ranged GET if it lies in the last 64 KiB.

    Raises RangeMissing (no such object), CorruptSegment, StoreError.
    """
    return (await read_end(store, key, size))[0]


async def read_producers(
    store: ObjectStore, key: str, size: int, log_id: int, end: tuple[SegmentIndex, int, bytes] | None = None
) -> tuple[bytes, int]:
    """The newest producer snapshot of `log_id` that this object knows, and the offset at which it is exact.

    That is the end of the range, unless the object points to an older one: then replay what lies between. b"" if no
    producer was known. One ranged GET if it lies in the last 64 KiB, none if it lies in `end`, which `read_end` gave.
    Raises as `read_index`.
    """
    index, start, data = await read_end(store, key, size) if end is None else end
    log = index.log(log_id)
    pointer = log.producers
    if pointer is None:
        return b"", log.range.end
    if pointer.key in ("", key) and pointer.position >= start:
        at = pointer.position - start
        snapshot = data[at : at + pointer.length]
    else:
        older = pointer.key not in ("", key)
        snapshot = await fetch(store, pointer.key or key, pointer.position, pointer.length, 0 if older else size)
    if len(snapshot) != pointer.length or crc32c(snapshot) != pointer.crc:
        raise CorruptSegment(pointer.key or key, f"checksum of the producer states of log {log_id} does not match")
    return snapshot, pointer.offset


async def read_end(store: ObjectStore, key: str, size: int) -> tuple[SegmentIndex, int, bytes]:
    """As `read_index`, with the bytes at the object's end that were read for it and their position."""
    if size < FOOTER_SIZE:
        raise CorruptSegment(key, f"{size} bytes are too few for a footer")
    start = max(size - INDEX_GUESS_BYTES, 0)
    data = await fetch(store, key, start, size - start, size)
    footer = decode_footer(key, size, data[-FOOTER_SIZE:])
    if footer.index_position < start:
        data = await fetch(store, key, footer.index_position, start - footer.index_position, size) + data
        start = footer.index_position
    at = footer.index_position - start
    index = decode_index(key, size, footer, memoryview(data)[at : at + footer.index_length])
    return index, start, data


async def fetch(store: ObjectStore, key: str, start: int, length: int, size: int) -> bytes:
    """Bytes of the object `key`, which should have `size` bytes (0: unknown).

    Tells an absent object (RangeMissing) from one that was cut off (CorruptSegment).
    """
    try:
        return await store.get_range(key, start, length)
    except NotFound:
        try:
            found = (await store.head(key)).size
        except NotFound:
            raise RangeMissing(key) from None
        if size and found == size:  # it came back between the two calls
            raise RangeMissing(key) from None
        raise CorruptSegment(key, f"the object has {found} bytes, {size or start + length} were written") from None


class LogReport(NamedTuple):
    """What an object holds of one log."""

    range: Range
    blocks: int
    records: int
    producers: int  # producer ids in the snapshot
    producers_pointer: ProducersPointer | None
    open_transactions: tuple[tuple[int, int], ...]  # (producer id, first offset) at the end
    aborted: tuple[AbortedEntry, ...]


class SegmentReport(NamedTuple):
    """What the bytes of one object say, for people. `problems` is empty if every checksum and rule holds."""

    key: str
    size: int
    format_version: int
    cluster_id: str
    writer: SegmentWriter | None
    index_bytes: int
    logs: tuple[LogReport, ...]
    problems: tuple[str, ...]


async def describe_segment(store: ObjectStore, key: str) -> SegmentReport:
    """Reads the whole object block by block and verifies everything. Damage is told in `problems`, never raised.

    Raises RangeMissing if there is no such object, StoreError.
    """
    try:
        size = (await store.head(key)).size
    except NotFound:
        raise RangeMissing(key) from None
    try:
        index, start, data = await read_end(store, key, size)
    except CorruptSegment as error:
        return SegmentReport(key, size, FORMAT_VERSION, "", None, 0, (), (error.what,))
    problems: list[str] = []
    logs: list[LogReport] = []
    for log_id in index.log_ids:
        try:
            logs.append(await _describe_log(store, index, log_id, problems))
        except CorruptSegment as error:
            problems.append(error.what)
    index_bytes = len(data) - (index.data_end - start)
    return SegmentReport(
        key, size, FORMAT_VERSION, index.cluster_id, index.writer, index_bytes, tuple(logs), tuple(problems)
    )


async def _describe_log(store: ObjectStore, index: SegmentIndex, log_id: int, problems: list[str]) -> LogReport:
    log = index.log(log_id)
    range_ = log.range
    records = batches = 0
    newest = -1
    expected = range_.base
    for number in range(len(log.bases)):
        position = log.positions[number]
        where = f"log {log_id}, block {number} at {position}"
        block = await fetch(store, index.key, position, log.positions[number + 1] - position, index.size)
        if crc32c(block) != log.crcs[number]:
            problems.append(f"{where}: checksum of the block does not match")
        block_newest = -1
        try:
            for at, header in iterate_batches(block):
                if at == 0 and header.base_offset != log.bases[number]:
                    problems.append(f"{where}: begins at offset {header.base_offset}, not {log.bases[number]}")
                if not expected <= header.base_offset <= header.last_offset < range_.end:
                    problems.append(f"{where}: offsets {header.base_offset} to {header.last_offset} at byte {at}")
                if not check_crc(block, at, header.size):
                    problems.append(f"{where}: checksum of the batch at offset {header.base_offset} does not match")
                expected = header.next_offset
                block_newest = max(block_newest, header.max_timestamp)
                batches += 1
                records += header.record_count
        except ProtocolError as error:
            problems.append(f"{where}: {error}")
        if block_newest != log.timestamps[number]:
            problems.append(f"{where}: max timestamp {log.timestamps[number]}, found {block_newest}")
        newest = max(newest, block_newest)
    if batches != range_.batch_count:
        problems.append(f"log {log_id}: {range_.batch_count} batches, found {batches}")
    if newest != range_.max_timestamp:
        problems.append(f"log {log_id}: max timestamp {range_.max_timestamp}, found {newest}")
    states = ProducerStates()
    try:
        states.load((await read_producers(store, index.key, index.size, log_id))[0])
    except (CorruptSegment, RangeMissing, ValueError) as error:
        problems.append(f"log {log_id}: producer states: {error}")
    return LogReport(
        range_, len(log.bases), records, len(states), log.producers, tuple(states.open_transactions()), log.aborted
    )
