"""The bytes of the volume WAL: superblock, group header, entries. Pure.

Group, all integers big-endian::

    magic "TLWG"   4     \
    format         2      |
    reserved       2, 0   |  `group_prefix`: the same for every group of one file
    wal_id        16      |
    file number    8     /
    group number   8        from 1, without holes over the whole instance
    n              4        1 ..
    n entries     20 each   log_id 4, then the first 16 bytes of the batch as they must be:
                            base offset 8, batch length 4 (size - 12), leader epoch 4
    CRC-32C        4        of everything above
    n batches               Kafka record batches v2, each with its own CRC over all but its first 21 bytes

File and group number make the groups that a recycled file still holds invalid. A batch's CRC does not cover base
offset, length, leader epoch and magic: the entry does.

Superblock: two lines of text, `tidelog-wal <format> <crc32c of the second line, hex>` and a JSON object.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from crc32c import crc32c

from storage.wal.port import Damaged, UnknownFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol import Buffer

FORMAT = 1
MAGIC = b"TLWG"
BATCHES_MAX = 1000  # in one group; with the header below IOV_MAX (1024)
ENTRIES_READ_MAX = 65_535  # a larger count in a header is garbage

_PREFIX = struct.Struct(">4sHH16sQ")
_NUMBERS = struct.Struct(">QI")
ENTRY = struct.Struct(">Iqii")
_CRC = struct.Struct(">I")
PREFIX_SIZE = _PREFIX.size
FIXED_SIZE = _PREFIX.size + _NUMBERS.size
ENTRY_SIZE = ENTRY.size
#: What a group with one batch adds to it.
LONE_OVERHEAD = FIXED_SIZE + ENTRY_SIZE + _CRC.size

_BATCH_LENGTH_BEGINS = 12  # the length field of a batch counts what follows it
_BATCH_HEADER = 61
_BATCH_CRC_FROM = 21
_BATCH_CRC = struct.Struct(">BI")  # at 16: magic, crc
_LAST_OFFSET_DELTA = struct.Struct(">i")  # at 23


class Entry(NamedTuple):
    """One batch of a group. `batch_length` is the field of the batch: its size - 12."""

    log_id: int
    base_offset: int
    batch_length: int
    leader_epoch: int

    @property
    def size(self) -> int:
        return self.batch_length + _BATCH_LENGTH_BEGINS


class GroupHeader(NamedTuple):
    """A group header whose checksum holds. `size` counts header and batches."""

    group: int
    entries: list[Entry]
    header_size: int
    size: int


def group_prefix(wal_id: bytes, file_number: int) -> bytes:
    """The first bytes of every group of one file."""
    assert len(wal_id) == 16
    return _PREFIX.pack(MAGIC, FORMAT, 0, wal_id, file_number)


def encode_header(prefix: bytes, group: int, entries: Sequence[bytes]) -> bytes:
    """Everything of a group but its batches; `entries` are packed by `ENTRY`."""
    head = b"".join((prefix, _NUMBERS.pack(group, len(entries)), *entries))
    return head + _CRC.pack(crc32c(head))


def header_size(count: int) -> int:
    """Bytes in front of the first batch of a group of `count` batches."""
    return FIXED_SIZE + count * ENTRY_SIZE + _CRC.size


def entry_count(data: Buffer, position: int, prefix: bytes) -> int:
    """The number of entries that the group header at `position` claims; 0: no header of this file is there."""
    if data[position : position + PREFIX_SIZE] != prefix or position + FIXED_SIZE > len(data):
        return 0
    count: int = _NUMBERS.unpack_from(data, position + PREFIX_SIZE)[1]
    return count if count <= ENTRIES_READ_MAX else 0


def parse_header(data: Buffer, position: int, prefix: bytes) -> GroupHeader | None:
    """The group header at `position`, or None when it is not complete, not of this file, or damaged."""
    count = entry_count(data, position, prefix)
    size = header_size(count)
    if not count or position + size > len(data):
        return None
    crc_at = position + size - _CRC.size
    (crc,) = _CRC.unpack_from(data, crc_at)
    if crc32c(memoryview(data)[position:crc_at]) != crc:
        return None
    group, _ = _NUMBERS.unpack_from(data, position + PREFIX_SIZE)
    entries = list(map(Entry._make, ENTRY.iter_unpack(memoryview(data)[position + FIXED_SIZE : crc_at])))
    payload = 0
    for entry in entries:
        if entry.size < _BATCH_HEADER:
            return None
        payload += entry.size
    return GroupHeader(group, entries, size, size + payload)


def batch_fault(batch: Buffer, begin: bytes) -> str | None:
    """What is wrong with a batch whose first 16 bytes must be `begin`; None: nothing."""
    if len(batch) < _BATCH_HEADER:
        return "is cut off"
    if batch[:16] != begin:
        return "does not match its entry in the group header"
    magic, crc = _BATCH_CRC.unpack_from(batch, 16)
    if magic != 2:
        return f"has magic {magic}"
    if crc32c(memoryview(batch)[_BATCH_CRC_FROM:]) != crc:
        return "has a wrong checksum"
    return None


def batch_end(batch: Buffer, base_offset: int) -> int:
    """The offset after the last record of a batch."""
    end: int = base_offset + _LAST_OFFSET_DELTA.unpack_from(batch, 23)[0] + 1
    return end


class Superblock(NamedTuple):
    """Whose instance a directory is."""

    cluster_id: str
    node_id: int
    boot_id: str
    wal_id: bytes


def encode_superblock(superblock: Superblock) -> bytes:
    fields = superblock._asdict() | {"wal_id": superblock.wal_id.hex()}
    body = json.dumps(fields, sort_keys=True).encode()
    return b"tidelog-wal %d %08x\n%s\n" % (FORMAT, crc32c(body), body)


def parse_superblock(data: bytes) -> Superblock:
    """UnknownFormat for another version's, Damaged for anything that is not a whole superblock."""
    first, _, rest = data.partition(b"\n")
    words = first.split(b" ")
    if len(words) < 2 or words[0] != b"tidelog-wal" or not words[1].isdigit():
        raise Damaged("not a WAL superblock")
    if int(words[1]) != FORMAT:
        raise UnknownFormat(f"WAL format {int(words[1])}; this version reads {FORMAT}: start the version that wrote it")
    body, newline, after = rest.partition(b"\n")
    if len(words) != 3 or not newline or after or b"%08x" % crc32c(body) != words[2]:
        raise Damaged("the superblock is cut off or its checksum is wrong")
    fields: dict[str, Any] = json.loads(body)
    return Superblock(
        str(fields["cluster_id"]), int(fields["node_id"]), str(fields["boot_id"]), bytes.fromhex(fields["wal_id"])
    )


def file_name(number: int) -> str:
    return f"{number:012d}.wal"


def file_number(name: str) -> int | None:
    """The number of a WAL file, None for any other name."""
    stem = name.removesuffix(".wal")
    return int(stem) if stem != name and len(stem) >= 12 and stem.isascii() and stem.isdigit() else None
