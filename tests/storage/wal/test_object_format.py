"""The bytes of the object WAL: round trips, truncation and flips at every byte, the golden files."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.wal.format import ENTRY, Entry
from storage.wal.object_format import (
    FENCE,
    FENCE_SIZE,
    GROUP,
    HEADER_SIZE,
    OVERHEAD,
    ObjectHeader,
    ObjectName,
    check_name,
    encode_fence,
    encode_group,
    object_key,
    parse_group,
    parse_key,
    parse_object_header,
)
from storage.wal.port import Damaged, UnknownFormat
from tests.storage.wal.support import make_batch

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "wal"
WAL_ID = bytes(range(16))
NAME = ObjectName(WAL_ID, 0, 9)
NONCE = bytes(range(200, 216))
BATCHES = [
    (1, 2, 5, make_batch(5, epoch=2, records=3, size=100, fill=1)),
    (4_000_000_000, 0, 2**40, make_batch(2**40, epoch=0, size=61)),
    (1, 2, 8, make_batch(8, epoch=2, size=75, fill=255)),
]


def group_object() -> bytes:
    entries = [ENTRY.pack(log_id, base, len(batch) - 12, epoch) for log_id, epoch, base, batch in BATCHES]
    return b"".join([encode_group(WAL_ID, 0, 9, NONCE, entries), *(batch for *_, batch in BATCHES)])


def test_keys_sort_as_numbers_do() -> None:
    keys = [object_key(WAL_ID, 0, number) for number in (1, 9, 10, 999_999_999_999)]
    assert keys == sorted(keys) and keys[0] == f"wal/{WAL_ID.hex()}/0/000000000001"
    assert parse_key(keys[2]) == ObjectName(WAL_ID, 0, 10)
    for key in ("segments/1/00/1-0", f"wal/{WAL_ID.hex()}/0/1", f"wal/{WAL_ID.hex()[1:]}/0/000000000001", "wal/x"):
        assert parse_key(key) is None


def test_a_group_comes_back() -> None:
    data = group_object()
    header = parse_object_header(data)
    assert header == ObjectHeader(GROUP, WAL_ID, 0, 9, NONCE)
    check_name(header, NAME)
    group = parse_group(data, NAME)
    assert [(entry.log_id, entry.leader_epoch, entry.base_offset, bytes(batch)) for entry, batch in group.batches] == (
        BATCHES
    )
    assert len(data) == OVERHEAD + 2 * ENTRY.size + sum(len(batch) for *_, batch in BATCHES)


def test_a_fence_is_a_header_alone() -> None:
    data = encode_fence(WAL_ID, 0, 7, NONCE)
    assert len(data) == FENCE_SIZE == HEADER_SIZE < OVERHEAD
    assert parse_object_header(data) == ObjectHeader(FENCE, WAL_ID, 0, 7, NONCE)


def test_every_cut_and_every_flipped_bit_is_seen() -> None:
    data = group_object()
    for end in range(len(data)):
        with pytest.raises(Damaged):
            parse_object_header(data[:end])
            parse_group(data[:end], NAME)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Damaged, UnknownFormat)):
            check_name(parse_object_header(flipped), NAME)
            parse_group(flipped, NAME)
    with pytest.raises(Damaged):
        parse_group(data + b"x", NAME)


def test_a_copy_under_another_key_is_seen() -> None:
    header = parse_object_header(group_object())
    for name in (ObjectName(bytes(16), 0, 9), ObjectName(WAL_ID, 1, 9), ObjectName(WAL_ID, 0, 10)):
        with pytest.raises(Damaged, match="is a copy of number 9 in lane 0"):
            check_name(header, name)
        with pytest.raises(Damaged):
            parse_group(group_object(), name)


def test_a_later_format_is_told() -> None:
    data = bytearray(encode_fence(WAL_ID, 0, 7, NONCE))
    data[5] = 2
    with pytest.raises(UnknownFormat, match="has format 2; this version reads 1"):
        parse_object_header(data)


def test_golden_group() -> None:
    data = (GOLDEN / "object-group.bin").read_bytes()
    assert data == group_object()
    assert parse_object_header(data) == ObjectHeader(GROUP, WAL_ID, 0, 9, NONCE)
    assert [entry for entry, _ in parse_group(data, NAME).batches] == [
        Entry(1, 5, 88, 2),
        Entry(4_000_000_000, 2**40, 49, 0),
        Entry(1, 8, 63, 2),
    ]


def test_golden_fence() -> None:
    data = (GOLDEN / "object-fence.bin").read_bytes()
    assert data == encode_fence(WAL_ID, 0, 7, NONCE)
    assert parse_object_header(data) == ObjectHeader(FENCE, WAL_ID, 0, 7, NONCE)
