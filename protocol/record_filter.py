"""What log compaction does with the bytes of one batch: look at keys, and write the batch again with fewer records.

Records that stay are copied as they are: the batch keeps its base offset and its base timestamp, so their deltas do not
change. Only a batch that gets a delete horizon, which lies in the place of the base timestamp, has its timestamp deltas
written anew. Offsets, timestamps, producer fields and codec never change (Kafka's `MemoryRecords.filterTo`).
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.records import (
    DELETE_HORIZON,
    HEADER_SIZE,
    NO_TIMESTAMP,
    BatchHeader,
    batch_crc,
)

_HEADER = Struct(">qiibIhiqqqhii")
_UINT32 = Struct(">I")
_CRC_POSITION = 17
_LOG_OVERHEAD = 12
_MAGIC = 2
_CODEC = 0x07
_RECORD_SIZE_MIN = 6


class Span(NamedTuple):
    """A record in the decompressed bytes of a batch: bytes `start` to `stop`, its length included; from `rest` on it
    holds what follows the timestamp delta. `key` None: it has none."""

    start: int
    stop: int
    rest: int
    timestamp_delta: int
    offset_delta: int
    key: bytes | None
    has_value: bool


_span = tuple.__new__


def spans(header: BatchHeader, data: bytes) -> Iterator[Span]:
    """The records of a batch, whose decompressed bytes are `data`. Headers of records are not looked at.

    ProtocolError: anything that is not as the format says, when the iteration gets there.
    """
    pos, end, last_delta = 0, len(data), header.last_offset_delta
    try:
        for _ in range(header.record_count):
            start = pos
            byte = data[pos]
            if byte < 0x80:
                size = (byte >> 1) ^ -(byte & 1)
                pos += 1
            else:
                size, pos = _varint(data, pos)
            stop = pos + size
            if size < _RECORD_SIZE_MIN or stop > end:
                raise ProtocolError(f"record of {size} bytes, {end - pos} are left")
            pos += 1  # attributes, unused
            byte = data[pos]
            if byte < 0x80:
                timestamp_delta = (byte >> 1) ^ -(byte & 1)
                pos += 1
            else:
                timestamp_delta, pos = _varint(data, pos)
            rest = pos
            byte = data[pos]
            if byte < 0x80:
                offset_delta = (byte >> 1) ^ -(byte & 1)
                pos += 1
            else:
                offset_delta, pos = _varint(data, pos)
            if not 0 <= offset_delta <= last_delta:
                raise ProtocolError(f"record at offset delta {offset_delta} in a batch up to {last_delta}")
            byte = data[pos]
            if byte < 0x80:
                size = (byte >> 1) ^ -(byte & 1)
                pos += 1
            else:
                size, pos = _varint(data, pos)
            key: bytes | None = None
            if size >= 0:
                key = data[pos : pos + size]
                pos += size
            elif size != -1:
                raise ProtocolError(f"key of {size} bytes")
            if pos >= stop:
                raise ProtocolError("record is cut off")
            has_value = data[pos] != 1  # zigzag of -1: no value
            yield _span(Span, (start, stop, rest, timestamp_delta, offset_delta, key, has_value))
            pos = stop
    except IndexError:
        raise ProtocolError("record is cut off") from None
    if pos != end:
        raise ProtocolError(f"{end - pos} bytes follow the last record")


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ProtocolError("varint is longer than 64 bits")
    if value >> 64:
        raise ProtocolError("varint is longer than 64 bits")
    return (value >> 1) ^ -(value & 1), pos


def _pack_varint(value: int) -> bytes:
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def with_timestamp(data: bytes, span: Span, timestamp_delta: int) -> bytes:
    """The record with another timestamp delta, of 64 bits."""
    rest = data[span.rest : span.stop]
    stamp = _pack_varint(timestamp_delta)
    return _pack_varint(1 + len(stamp) + len(rest)) + b"\0" + stamp + rest


def rewrite(
    header: BatchHeader, payload: Buffer, count: int, max_timestamp: int, delete_horizon_ms: int | None = None
) -> bytes:
    """The batch with `count` of its records, at least one, compressed into `payload` already, as before.

    `delete_horizon_ms`: it gets one, and timestamp deltas in the payload count from it.
    """
    attributes, base_timestamp = header.attributes, header.base_timestamp
    if delete_horizon_ms is not None:
        attributes, base_timestamp = attributes | DELETE_HORIZON, delete_horizon_ms
    return _batch(header, attributes, base_timestamp, max_timestamp, count, payload)


def without_records(header: BatchHeader) -> bytes:
    """The batch without any record: what keeps its offsets and its producer's sequence (`writeEmptyHeader`)."""
    attributes = header.attributes & ~(_CODEC | DELETE_HORIZON)
    return _batch(header, attributes, NO_TIMESTAMP, header.max_timestamp, 0, b"")


def _batch(
    header: BatchHeader, attributes: int, base_timestamp: int, max_timestamp: int, count: int, payload: Buffer
) -> bytes:
    batch = bytearray(HEADER_SIZE + len(payload))
    batch[HEADER_SIZE:] = payload
    _HEADER.pack_into(
        batch,
        0,
        header.base_offset,
        len(batch) - _LOG_OVERHEAD,
        header.leader_epoch,
        _MAGIC,
        0,
        attributes,
        header.last_offset_delta,
        base_timestamp,
        max_timestamp,
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
        count,
    )
    _UINT32.pack_into(batch, _CRC_POSITION, batch_crc(batch, 0, len(batch)))
    return bytes(batch)
