"""Record batches of format v2, the only one there is (message sets of magic 0 and 1 are refused).

A batch is 61 bytes of header and its records, which are compressed together:

    base offset i64 | batch length i32 (bytes after this field) | leader epoch i32 | magic i8 | crc u32 |
    attributes i16 | last offset delta i32 | base timestamp i64 | max timestamp i64 | producer id i64 |
    producer epoch i16 | base sequence i32 | record count i32 | records

The CRC-32C covers everything from the attributes on, so base offset and leader epoch can be patched in place.
Attributes: bits 0-2 codec, 3 timestamp type (1: log append time), 4 transactional, 5 control, 6 the base timestamp is a
delete horizon. Source: `org.apache.kafka.common.record.DefaultRecordBatch` and `DefaultRecord`.

Positions and sizes are bytes, timestamps Unix milliseconds. Nothing here reads a record unless its name says so.
"""

from collections.abc import Iterator, Sequence
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from crc32c import crc32c

from protocol import Buffer
from protocol.compression import Codec, compress, decompress
from protocol.errors import ErrorCode, ProtocolError
from protocol.record_writing import Headers, NewRecord, append_record

__all__ = [
    "HEADER_SIZE",
    "BatchError",
    "BatchHeader",
    "Codec",
    "EndTxnMarker",
    "Headers",
    "NewRecord",
    "Record",
    "batch_crc",
    "build_batch",
    "build_control_batch",
    "build_empty_batches",
    "check_batch",
    "check_crc",
    "first_since",
    "iterate_batches",
    "offset_of_max_timestamp",
    "parse_end_txn_marker",
    "parse_header",
    "patch_offset_and_epoch",
    "records",
    "stamp_log_append_time",
    "stamp_timestamps",
]

HEADER_SIZE = 61
MAGIC = 2
NO_TIMESTAMP = -1

LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
DELETE_HORIZON = 0x40
_CODEC = 0x07
_CODEC_MAX = int(Codec.ZSTD)
_NOT_FROM_PRODUCERS = ~(TRANSACTIONAL | CONTROL | _CODEC)

SMALL_BYTES = 4096
"""Up to here copying the bytes of a batch costs less than a view of them does."""
_LENGTH_POSITION = 8
_EPOCH_POSITION = 12
_CRC_POSITION = 17
_ATTRIBUTES_POSITION = 21
_MAX_TIMESTAMP_POSITION = 35
_LOG_OVERHEAD = 12  # base offset and length, which the length does not count
_RECORD_SIZE_MIN = 6  # attributes, timestamp, offset, key length, value length, header count: a byte each
_HALF = 1 << 63

_HEADER = Struct(">qiibIhiqqqhii")
_unpack_header = _HEADER.unpack_from
_START = Struct(">qiibI")  # what the CRC does not cover
_pack_start = _START.pack
_tuple = tuple.__new__  # several times cheaper than `_make`
_INT16 = Struct(">h")
_INT32 = Struct(">i")
_UINT32 = Struct(">I")
_INT64 = Struct(">q")
_MARKER_KEY = Struct(">hh")
_MARKER_VALUE = Struct(">hi")


class BatchError(ProtocolError):
    """A batch that may not be appended. `code` is what Produce answers, the message says which rule it breaks."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotOneBatch(BatchError):
    """What is to be appended is not exactly one batch of magic 2: Kafka says so before it looks at the log."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVALID_RECORD, message)


class BatchHeader(NamedTuple):
    base_offset: int
    batch_length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return self.batch_length + _LOG_OVERHEAD

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """The offset that the batch after this one begins at, unless compaction removed something between."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def codec(self) -> int:
        """A `Codec`, or 5 to 7, which nobody knows."""
        return self.attributes & _CODEC

    @property
    def log_append_time(self) -> bool:
        """Every record's timestamp is `max_timestamp`."""
        return self.attributes & LOG_APPEND_TIME != 0

    @property
    def is_transactional(self) -> bool:
        return self.attributes & TRANSACTIONAL != 0

    @property
    def is_control(self) -> bool:
        return self.attributes & CONTROL != 0

    @property
    def has_delete_horizon(self) -> bool:
        """Compaction has written into `base_timestamp` when tombstones of this batch may go."""
        return self.attributes & DELETE_HORIZON != 0

    @property
    def last_sequence(self) -> int:
        """Sequences wrap from 2^31 - 1 to 0. -1 if there is no producer."""
        if self.base_sequence < 0:
            return -1
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF


class Record(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class EndTxnMarker(NamedTuple):
    commit: bool
    coordinator_epoch: int


def parse_header(buf: Buffer, pos: int = 0) -> BatchHeader:
    """The header at `pos`, unjudged. ProtocolError: fewer than 61 bytes there."""
    try:
        return _tuple(BatchHeader, _unpack_header(buf, pos))
    except StructError:
        raise ProtocolError(f"batch header is cut off: {len(buf) - pos} bytes of {HEADER_SIZE}") from None


def check_batch(buf: Buffer, pos: int, end: int) -> BatchHeader:
    """The header of the batch `buf[pos:end]`, if a producer may send it; BatchError otherwise.

    Checked: magic, exact length, record count, CRC, codec, attributes, sequence. Two rules that hold for clients only
    are the caller's: no control batch (`is_control`), base offset 0. Size and time limits are the caller's too, and
    whether the request's version allows the codec (zstd from Produce v7 on). The records are not looked at.
    """
    if not 0 <= pos <= end - HEADER_SIZE or end > len(buf):
        raise NotOneBatch(f"no record batch in {end - pos} bytes")
    # Judged as a plain tuple: looking into a named one costs several times as much.
    fields = _unpack_header(buf, pos)
    _, length, _, magic, crc, attributes, last_delta, _, _, producer_id, _, sequence, count = fields
    if magic != MAGIC:
        raise NotOneBatch(f"record format {magic}, only record batches of magic 2 are kept")
    if length != end - pos - _LOG_OVERHEAD:
        raise _wrong_length(length + _LOG_OVERHEAD, end - pos)
    if count <= 0 or count != last_delta + 1:
        raise BatchError(
            ErrorCode.INVALID_RECORD, f"record count {count} does not fit the last offset delta {last_delta}"
        )
    covered = pos + _ATTRIBUTES_POSITION
    # A small copy is cheaper than a view.
    if crc32c(buf[covered:end] if end - pos <= SMALL_BYTES else memoryview(buf)[covered:end]) != crc:
        raise BatchError(ErrorCode.CORRUPT_MESSAGE, "CRC-32C of the record batch does not match")
    # The usual batch has a codec, perhaps a transaction, nothing else.
    if attributes & _NOT_FROM_PRODUCERS or attributes & _CODEC > _CODEC_MAX:
        raise _wrong_attributes(attributes)
    if sequence < 0 <= producer_id and not attributes & CONTROL:
        raise BatchError(
            ErrorCode.INVALID_RECORD, f"producer id {producer_id} needs a sequence, the batch has {sequence}"
        )
    return _tuple(BatchHeader, fields)


def _wrong_length(size: int, room: int) -> BatchError:
    if size < HEADER_SIZE:
        return BatchError(ErrorCode.CORRUPT_MESSAGE, f"record batch says {size} bytes, less than its header")
    if size > room:
        return NotOneBatch(f"record batch says {size} bytes, there are {room}")
    return NotOneBatch(f"{room - size} bytes follow the only record batch of the partition")


def _wrong_attributes(attributes: int) -> BatchError:
    if attributes & _CODEC > Codec.ZSTD:
        return BatchError(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, f"unknown compression codec {attributes & _CODEC}")
    if attributes & LOG_APPEND_TIME:
        return BatchError(ErrorCode.INVALID_TIMESTAMP, "the timestamp type LogAppendTime is the broker's to set")
    if attributes & DELETE_HORIZON:
        return BatchError(ErrorCode.INVALID_RECORD, "the delete horizon is the broker's to set")
    return BatchError(ErrorCode.INVALID_RECORD, f"unknown attributes {attributes & 0xFFFF:#06x}")


def check_crc(buf: Buffer, pos: int, size: int) -> bool:
    """Whether the CRC of the batch `buf[pos:pos + size]` matches. ProtocolError: too short for a header."""
    if size < HEADER_SIZE or pos < 0 or pos + size > len(buf):
        raise ProtocolError(f"no record batch of {size} bytes at {pos} in {len(buf)} bytes")
    crc: int = _UINT32.unpack_from(buf, pos + _CRC_POSITION)[0]
    return batch_crc(buf, pos, size) == crc


def batch_crc(buf: Buffer, pos: int, size: int) -> int:
    """CRC-32C from the attributes to the end of the batch `buf[pos:pos + size]`. Nothing is copied."""
    return crc32c(memoryview(buf)[pos + _ATTRIBUTES_POSITION : pos + size])


def copy_with_offset_and_epoch(
    header: BatchHeader, buf: bytes | bytearray, pos: int, end: int, base_offset: int, leader_epoch: int
) -> bytes:
    """A copy of the checked batch `buf[pos:end]` with what a leader assigns; `header` is the one it came with."""
    start = _pack_start(base_offset, header[1], leader_epoch, MAGIC, header[4])
    return start + buf[pos + _ATTRIBUTES_POSITION : end]


def patch_offset_and_epoch(buf: bytearray | memoryview, pos: int, base_offset: int, leader_epoch: int) -> None:
    """Writes what a leader assigns into the batch at `pos`. The CRC does not cover it."""
    _INT64.pack_into(buf, pos, base_offset)
    _INT32.pack_into(buf, pos + _EPOCH_POSITION, leader_epoch)


def stamp_log_append_time(buf: bytearray | memoryview, pos: int, size: int, now_ms: int) -> None:
    """Gives all records of the batch the time of the append. `size` is the batch's, its CRC is computed anew."""
    stamp_timestamps(buf, pos, size, log_append_time=True, max_timestamp=now_ms)


def stamp_timestamps(
    buf: bytearray | memoryview, pos: int, size: int, *, log_append_time: bool, max_timestamp: int
) -> None:
    """Sets timestamp type and max timestamp of the batch `buf[pos:pos + size]`, and its CRC if anything changed."""
    attributes: int = _INT16.unpack_from(buf, pos + _ATTRIBUTES_POSITION)[0]
    stamped = attributes | LOG_APPEND_TIME if log_append_time else attributes & ~LOG_APPEND_TIME
    if stamped == attributes and _INT64.unpack_from(buf, pos + _MAX_TIMESTAMP_POSITION)[0] == max_timestamp:
        return
    _INT16.pack_into(buf, pos + _ATTRIBUTES_POSITION, stamped)
    _INT64.pack_into(buf, pos + _MAX_TIMESTAMP_POSITION, max_timestamp)
    _UINT32.pack_into(buf, pos + _CRC_POSITION, batch_crc(buf, pos, size))


def iterate_batches(
    buf: Buffer, pos: int = 0, end: int | None = None, *, partial_ok: bool = False
) -> Iterator[tuple[int, BatchHeader]]:
    """Position and header of every batch in `buf[pos:end]`. CRCs are not checked.

    ProtocolError: another magic than 2, an impossible length, or a last batch that is cut off; with `partial_ok` the
    last ends the iteration, as in what a Fetch returned.
    """
    if end is None:
        end = len(buf)
    while pos < end:
        room = end - pos
        if room < HEADER_SIZE:
            if partial_ok:
                return
            raise ProtocolError(f"record batch at {pos} is cut off: {room} bytes")
        header = _tuple(BatchHeader, _unpack_header(buf, pos))
        if header.magic != MAGIC:
            raise ProtocolError(f"record format {header.magic} at {pos}")
        size = header.size
        if size < HEADER_SIZE:
            raise ProtocolError(f"record batch of {size} bytes at {pos}")
        if size > room:
            if partial_ok:
                return
            raise ProtocolError(f"record batch at {pos} is cut off: {room} bytes of {size}")
        yield pos, header
        pos += size


def records(batch: Buffer, *, max_size: int) -> Iterator[Record]:
    """The records of one batch, which fills the buffer. Its CRC is not checked.

    At most `max_size` bytes are decompressed. ProtocolError: anything that is not as the format says, when the
    iteration gets there.
    """
    header, data = _open(batch, max_size)
    base_offset, base_timestamp, last_delta = header.base_offset, header.base_timestamp, header.last_offset_delta
    append_time = header.max_timestamp if header.log_append_time else None
    pos, end = 0, len(data)
    # Most varints are one byte and read here. Positions only grow, so fields that overrun their record show at its end.
    try:
        for _ in range(header.record_count):
            size, pos = _varint(data, pos)
            stop = pos + size
            if size < _RECORD_SIZE_MIN or stop > end:
                raise _wrong_size("record", size, end - pos)
            pos += 1  # attributes, unused
            byte = data[pos]
            if byte < 0x80:
                timestamp_delta = (byte >> 1) ^ -(byte & 1)
                pos += 1
            else:
                timestamp_delta, pos = _varint(data, pos)
            offset_delta, pos = _varint(data, pos)
            if not 0 <= offset_delta <= last_delta:
                raise _wrong_offset_delta(offset_delta, header)
            key = value = None
            if data[pos] == 1:
                pos += 1
            else:
                key, pos = _sized(data, pos, stop)
            if data[pos] == 1:
                pos += 1
            else:
                value, pos = _sized(data, pos, stop)
            headers: tuple[tuple[str, bytes | None], ...] = ()
            if data[pos]:
                headers, pos = _headers(data, pos, stop)
            else:
                pos += 1
            if pos != stop:
                raise ProtocolError(f"record ends at byte {pos}, its length says {stop}")
            timestamp = base_timestamp + timestamp_delta if append_time is None else append_time
            if not -_HALF <= timestamp < _HALF:
                timestamp = wrapped(timestamp)
            yield _tuple(Record, (base_offset + offset_delta, timestamp, key, value, headers))
    except IndexError:
        raise ProtocolError("record is cut off") from None
    _check_all_read(pos, end)


def wrapped(value: int) -> int:
    """A sum of timestamps as the 64 bits that clients count with: nobody checks the deltas that producers write."""
    return (value + _HALF) % (2 * _HALF) - _HALF


def first_since(batch: Buffer, timestamp: int, *, max_size: int, from_offset: int = 0) -> tuple[int, int] | None:
    """Offset and timestamp of the first record at `timestamp` or later, not below `from_offset`; None if none is.

    What ListOffsets by timestamp looks for in the first batch whose max timestamp is not earlier.
    """
    for offset, at in _offsets_and_timestamps(batch, max_size):
        if at >= timestamp and offset >= from_offset:
            return offset, at
    return None


def offset_of_max_timestamp(batch: Buffer, *, max_size: int) -> tuple[int, int] | None:
    """Offset and timestamp of the first record that has the batch's highest timestamp; None if it has no records."""
    best: tuple[int, int] | None = None
    for offset, at in _offsets_and_timestamps(batch, max_size):
        if best is None or at > best[1]:
            best = offset, at
    return best


def _offsets_and_timestamps(batch: Buffer, max_size: int) -> Iterator[tuple[int, int]]:
    """As `records`, without keys, values and headers, which are not looked at."""
    header, data = _open(batch, max_size)
    append_time = header.max_timestamp if header.log_append_time else None
    pos, end = 0, len(data)
    try:
        for _ in range(header.record_count):
            size, pos = _varint(data, pos)
            stop = pos + size
            if size < _RECORD_SIZE_MIN or stop > end:
                raise _wrong_size("record", size, end - pos)
            timestamp_delta, pos = _varint(data, pos + 1)  # after the attributes
            offset_delta, pos = _varint(data, pos)
            if not 0 <= offset_delta <= header.last_offset_delta:
                raise _wrong_offset_delta(offset_delta, header)
            if pos > stop:
                raise _wrong_size("record", size, end - stop + size)
            pos = stop
            timestamp = wrapped(header.base_timestamp + timestamp_delta) if append_time is None else append_time
            yield header.base_offset + offset_delta, timestamp
    except IndexError:
        raise ProtocolError("record is cut off") from None
    _check_all_read(pos, end)


def _open(batch: Buffer, max_size: int) -> tuple[BatchHeader, bytes]:
    """Header and decompressed records of the batch that fills the buffer. As `bytes`: slices are what callers get."""
    header = parse_header(batch)
    if header.magic != MAGIC:
        raise ProtocolError(f"record format {header.magic}")
    if header.size != len(batch):
        raise ProtocolError(f"record batch of {header.size} bytes in a buffer of {len(batch)}")
    if header.record_count < 0:
        raise ProtocolError(f"record batch of {header.record_count} records")
    return header, bytes(decompress(header.codec, memoryview(batch)[HEADER_SIZE:], max_size))


def _wrong_size(what: str, size: int, left: int) -> ProtocolError:
    return ProtocolError(f"{what} of {size} bytes, {left} are left")


def _wrong_offset_delta(offset_delta: int, header: BatchHeader) -> ProtocolError:
    return ProtocolError(f"record at offset delta {offset_delta} in a batch up to {header.last_offset_delta}")


def _check_all_read(pos: int, end: int) -> None:
    if pos != end:
        raise ProtocolError(f"{end - pos} bytes follow the last record")


def _sized(data: bytes, pos: int, end: int) -> tuple[bytes | None, int]:
    """A length, -1 for null, and as many bytes, which end at `end` at the latest."""
    size, pos = _varint(data, pos)
    stop = pos + size
    if size < 0 or stop > end:
        if size == -1:
            return None, pos
        raise _wrong_size("field of a record", size, end - pos)
    return data[pos:stop], stop


def _headers(data: bytes, pos: int, end: int) -> tuple[tuple[tuple[str, bytes | None], ...], int]:
    count, pos = _varint(data, pos)
    if not 0 <= count <= (end - pos) // 2:
        raise ProtocolError(f"{count} headers in {end - pos} bytes")
    headers = []
    for _ in range(count):
        name, pos = _sized(data, pos, end)
        value, pos = _sized(data, pos, end)
        if name is None:
            raise ProtocolError("header without a name")
        try:
            headers.append((name.decode(), value))
        except UnicodeDecodeError:
            raise ProtocolError("header name is not UTF-8") from None
    return tuple(headers), pos


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    """A zigzag varint of at most 64 bits and the position after it. IndexError: the data ends in it."""
    byte = data[pos]
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), pos + 1
    value = byte & 0x7F
    byte = data[pos + 1]
    if byte < 0x80:
        value |= byte << 7
        return (value >> 1) ^ -(value & 1), pos + 2
    for shift in range(7, 70, 7):
        pos += 1
        byte = data[pos]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return (value >> 1) ^ -(value & 1), pos + 1
    raise ProtocolError("varint is longer than 64 bits")


EMPTY_SPAN_MAX = 2**31
"""The most offsets one batch can span: its last offset delta is an int32."""


def build_batch(
    records: Sequence[NewRecord],
    *,
    base_offset: int = 0,
    leader_epoch: int = -1,
    codec: int = Codec.NONE,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    log_append_time: bool = False,
    transactional: bool = False,
    control: bool = False,
    level: int | None = None,
) -> bytearray:
    """A batch of consecutive records (timestamp, key, value, headers), at least one."""
    assert records, "a batch has at least one record"
    base_timestamp = records[0][0]
    data = bytearray()
    for offset_delta, record in enumerate(records):
        append_record(data, offset_delta, base_timestamp, record)
    attributes = int(codec)
    if log_append_time:
        attributes |= LOG_APPEND_TIME
    if transactional:
        attributes |= TRANSACTIONAL
    if control:
        attributes |= CONTROL
    payload = data if codec == Codec.NONE else compress(codec, data, level)
    batch = bytearray(HEADER_SIZE + len(payload))
    batch[HEADER_SIZE:] = payload
    _HEADER.pack_into(
        batch,
        0,
        base_offset,
        len(batch) - _LOG_OVERHEAD,
        leader_epoch,
        MAGIC,
        0,
        attributes,
        len(records) - 1,
        base_timestamp,
        max(record[0] for record in records),
        producer_id,
        producer_epoch,
        base_sequence,
        len(records),
    )
    _UINT32.pack_into(batch, _CRC_POSITION, batch_crc(batch, 0, len(batch)))
    return batch


def build_empty_batches(base_offset: int, end_offset: int, leader_epoch: int) -> bytes:
    """Batches without records that together span [base_offset, end_offset), for readers who have to get across.

    Kafka's log cleaner leaves such batches (`DefaultRecordBatch.writeEmptyHeader`); one spans at most 2^31 offsets.
    """
    batches = bytearray()
    while base_offset < end_offset:
        delta = min(end_offset - base_offset, EMPTY_SPAN_MAX) - 1
        batch = bytearray(HEADER_SIZE)
        length = HEADER_SIZE - _LOG_OVERHEAD
        _HEADER.pack_into(batch, 0, base_offset, length, leader_epoch, MAGIC, 0, 0, delta, -1, -1, -1, -1, -1, 0)
        _UINT32.pack_into(batch, _CRC_POSITION, batch_crc(batch, 0, HEADER_SIZE))
        batches += batch
        base_offset += delta + 1
    return bytes(batches)


def build_control_batch(
    *,
    commit: bool,
    producer_id: int,
    producer_epoch: int,
    coordinator_epoch: int,
    timestamp: int,
    base_offset: int = 0,
    leader_epoch: int = -1,
) -> bytearray:
    """The marker that ends a transaction (`EndTransactionMarker`): key {version 0, type 0 abort or 1 commit}, value
    {version 0, coordinator epoch}."""
    key = _MARKER_KEY.pack(0, 1 if commit else 0)
    value = _MARKER_VALUE.pack(0, coordinator_epoch)
    return build_batch(
        [(timestamp, key, value, ())],
        base_offset=base_offset,
        leader_epoch=leader_epoch,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        transactional=True,
        control=True,
    )


def parse_end_txn_marker(record: Record) -> EndTxnMarker | None:
    """What a control record says; None if it is of another type. ProtocolError: damaged.

    As Kafka does, later versions of key and value are read as far as they are known: fields are only ever added.
    """
    try:
        key_version, kind = _MARKER_KEY.unpack_from(record.key or b"")
        if kind not in (0, 1):
            return None
        value_version, coordinator_epoch = _MARKER_VALUE.unpack_from(record.value or b"")
    except StructError:
        raise ProtocolError("control record is cut off") from None
    if key_version < 0 or value_version < 0:
        raise ProtocolError(f"control record of version {key_version}, {value_version}")
    return EndTxnMarker(kind == 1, coordinator_epoch)
