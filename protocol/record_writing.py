"""One record of a batch of format v2 as bytes, as `org.apache.kafka.common.record.DefaultRecord` writes it."""

from collections.abc import Sequence
from typing import TypeAlias

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
#: timestamp, key, value, headers
NewRecord: TypeAlias = tuple[int, bytes | None, bytes | None, Headers]


def append_record(out: bytearray, offset_delta: int, base_timestamp: int, record: NewRecord) -> None:
    """One record behind what `out` holds; its batch begins with `base_timestamp`."""
    timestamp, key, value, headers = record
    body = bytearray(1)  # attributes, unused
    _append_varint(body, timestamp - base_timestamp)
    _append_varint(body, offset_delta)
    _append_sized(body, key)
    _append_sized(body, value)
    _append_varint(body, len(headers))
    for name, content in headers:
        _append_sized(body, name.encode())
        _append_sized(body, content)
    _append_varint(out, len(body))
    out += body


def _append_sized(out: bytearray, data: bytes | None) -> None:
    if data is None:
        out.append(1)  # zigzag of -1
    else:
        _append_varint(out, len(data))
        out += data


def _append_varint(out: bytearray, value: int) -> None:
    zigzag = (value << 1) ^ (value >> 63)
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
