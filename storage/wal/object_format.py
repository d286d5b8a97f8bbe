"""The bytes and keys of the object WAL. Pure.

Object `wal/<wal_id, 32 hex digits>/<lane>/<sequence, 12 digits or more>`, all integers big-endian::

    magic "TLWO"   4
    format         2
    what           2        1: a group, 2: a fence
    wal_id        16
    lane           4
    sequence       8        from 1, without holes; the number of the group
    nonce         16        random, another one for every object: whose it is
    CRC-32C        4        of everything above
    group                   as in a file of the volume WAL (`format.py`), with the lane as file number; none in a fence

A fence is nothing but a header, and nothing else is as short: so a listing tells it from a group.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from crc32c import crc32c

from storage.wal.format import (
    LONE_OVERHEAD,
    GroupHeader,
    batch_fault,
    encode_header,
    group_prefix,
    parse_header,
)
from storage.wal.port import Damaged, UnknownFormat
from storage.wal.recovery import entry_begin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from protocol import Buffer
    from storage.wal.format import Entry

FORMAT = 1
MAGIC = b"TLWO"
GROUP, FENCE = 1, 2
PREFIX = "wal/"
LANE = 0
"""The only lane so far; keys carry it so that there can be more."""

_HEADER = struct.Struct(">4sHH16sIQ16s")
_CRC = struct.Struct(">I")
HEADER_SIZE = _HEADER.size + _CRC.size
FENCE_SIZE = HEADER_SIZE
OVERHEAD = HEADER_SIZE + LONE_OVERHEAD
"""What a group with one batch adds to it."""

_KEY = re.compile(r"wal/([0-9a-f]{32})/(\d{1,9})/(\d{12,18})")


class ObjectName(NamedTuple):
    """What the key of an object says."""

    wal_id: bytes
    lane: int
    sequence: int


class ObjectHeader(NamedTuple):
    """The first bytes of an object whose checksum holds. `what` is `GROUP` or `FENCE`."""

    what: int
    wal_id: bytes
    lane: int
    sequence: int
    nonce: bytes


class ObjectGroup(NamedTuple):
    """A group read back: every checksum holds. `batches` are views of the object's bytes."""

    header: GroupHeader
    batches: list[tuple[Entry, memoryview]]


def object_key(wal_id: bytes, lane: int, sequence: int) -> str:
    """Where an object lies; keys sort as their sequences do."""
    return f"{PREFIX}{wal_id.hex()}/{lane}/{sequence:012d}"


def parse_key(key: str) -> ObjectName | None:
    """The reverse of `object_key`; None for any other key."""
    match = _KEY.fullmatch(key)
    return None if match is None else ObjectName(bytes.fromhex(match[1]), int(match[2]), int(match[3]))


def _encode(header: ObjectHeader) -> bytes:
    assert len(header.wal_id) == len(header.nonce) == 16
    head = _HEADER.pack(MAGIC, FORMAT, *header)
    return head + _CRC.pack(crc32c(head))


def encode_fence(wal_id: bytes, lane: int, sequence: int, nonce: bytes) -> bytes:
    """A whole fence object."""
    return _encode(ObjectHeader(FENCE, wal_id, lane, sequence, nonce))


def encode_group(wal_id: bytes, lane: int, sequence: int, nonce: bytes, entries: Sequence[bytes]) -> bytes:
    """Everything of a group's object but its batches; `entries` are packed by `format.ENTRY`."""
    head = _encode(ObjectHeader(GROUP, wal_id, lane, sequence, nonce))
    return head + encode_header(group_prefix(wal_id, lane), sequence, entries)


def parse_object_header(data: Buffer) -> ObjectHeader:
    """The header of an object. UnknownFormat for another version's, Damaged for anything else that is none."""
    if len(data) < HEADER_SIZE:
        raise Damaged(f"has {len(data)} bytes, less than a header")
    magic, version, *fields = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Damaged("is no object of a WAL")
    if version != FORMAT:
        raise UnknownFormat(f"has format {version}; this version reads {FORMAT}: use the version that wrote it")
    (crc,) = _CRC.unpack_from(data, _HEADER.size)
    if crc32c(memoryview(data)[: _HEADER.size]) != crc:
        raise Damaged("has a wrong checksum in its header")
    header = ObjectHeader(*fields)
    if header.what not in (GROUP, FENCE):
        raise UnknownFormat(f"is of a kind {header.what} that this version does not know")
    return header


def check_name(header: ObjectHeader, name: ObjectName) -> None:
    """Damaged unless the object is the one that its key says."""
    if (header.wal_id, header.lane, header.sequence) != name:
        raise Damaged(f"is a copy of number {header.sequence} in lane {header.lane} of WAL {header.wal_id.hex()}")


def parse_group_header(data: Buffer, name: ObjectName) -> GroupHeader | None:
    """The entries of a group's object, its batches not looked at; None when they cannot be read."""
    header = parse_header(data, HEADER_SIZE, group_prefix(name.wal_id, name.lane))
    return header if header is not None and header.group == name.sequence else None


def parse_group(data: Buffer, name: ObjectName) -> ObjectGroup:
    """The group of a whole object whose own header was read. Damaged when any byte is not what was written."""
    header = parse_group_header(data, name)
    if header is None:
        raise Damaged("has no valid group header")
    if HEADER_SIZE + header.size != len(data):
        raise Damaged(f"has {len(data)} bytes, its header says {HEADER_SIZE + header.size}")
    return ObjectGroup(header, list(_batches(memoryview(data), header)))


def _batches(data: memoryview, header: GroupHeader) -> Iterator[tuple[Entry, memoryview]]:
    at = HEADER_SIZE + header.header_size
    for entry in header.entries:
        batch = data[at : at + entry.size]
        fault = batch_fault(batch, entry_begin(entry))
        if fault is not None:
            raise Damaged(f"holds a batch of log {entry.log_id} at offset {entry.base_offset} that {fault}")
        yield entry, batch
        at += entry.size
