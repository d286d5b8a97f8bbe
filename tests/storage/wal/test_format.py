"""The bytes of superblocks and groups: round trips, truncation and flips at every byte, golden files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.wal.format import (
    BATCHES_MAX,
    ENTRY,
    LONE_OVERHEAD,
    Entry,
    Superblock,
    batch_end,
    batch_fault,
    encode_header,
    encode_superblock,
    file_name,
    file_number,
    group_prefix,
    header_size,
    parse_header,
    parse_superblock,
)
from storage.wal.port import Damaged, UnknownFormat
from storage.wal.recovery import entry_begin
from tests.storage.wal.support import make_batch

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "wal"
SUPERBLOCK = Superblock("abcdefghijklmnopqrstuv", 7, "1444aa13-cbc4-43f4-a9b8-75e3f0903714", bytes(range(16)))
PREFIX = group_prefix(bytes(range(16)), 3)


def header_of(batches: list[tuple[int, bytes]], group: int = 9) -> bytes:
    entries = [
        ENTRY.pack(log_id, int.from_bytes(batch[:8]), len(batch) - 12, int.from_bytes(batch[12:16]))
        for log_id, batch in batches
    ]
    return encode_header(PREFIX, group, entries)


entries_strategy = st.lists(
    st.builds(
        Entry,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**63 - 1),
        st.integers(49, 2**31 - 1),
        st.integers(0, 2**31 - 1),
    ),
    min_size=1,
    max_size=40,
)


@given(entries_strategy, st.integers(1, 2**64 - 1), st.binary(max_size=9), st.binary(max_size=9))
def test_header_round_trip(entries: list[Entry], group: int, before: bytes, after: bytes) -> None:
    data = encode_header(PREFIX, group, [ENTRY.pack(*entry) for entry in entries])
    assert len(data) == header_size(len(entries))
    found = parse_header(before + data + after, len(before), PREFIX)
    assert found is not None
    assert found.group == group and found.entries == entries and found.header_size == len(data)
    assert found.size == len(data) + sum(entry.size for entry in entries)


def test_a_header_is_read_whole_or_not_at_all() -> None:
    data = header_of([(1, make_batch(5)), (2, make_batch(6))])
    for end in range(len(data)):
        assert parse_header(data[:end], 0, PREFIX) is None
        assert parse_header(data[:end] + bytes(len(data) - end), 0, PREFIX) is None or data[end:] == bytes(
            len(data) - end
        )


def test_every_flipped_bit_of_a_header_is_seen() -> None:
    data = header_of([(1, make_batch(5)), (2, make_batch(6))])
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert parse_header(flipped, 0, PREFIX) is None


def test_a_header_belongs_to_one_file_of_one_instance() -> None:
    data = header_of([(1, make_batch(5))])
    assert parse_header(data, 0, group_prefix(bytes(range(16)), 4)) is None
    assert parse_header(data, 0, group_prefix(bytes(16), 3)) is None


def test_absurd_counts_and_lengths() -> None:
    huge = PREFIX + (9).to_bytes(8) + (2**32 - 1).to_bytes(4) + bytes(100)
    assert parse_header(huge, 0, PREFIX) is None
    for length in (-1, 0, 48):
        assert parse_header(encode_header(PREFIX, 1, [ENTRY.pack(1, 0, length, 0)]), 0, PREFIX) is None
    assert header_size(1) == LONE_OVERHEAD
    assert BATCHES_MAX + 1 <= 1024, "a group is one call with at most IOV_MAX buffers"


def test_every_flipped_bit_of_a_batch_is_seen() -> None:
    batch = make_batch(77, epoch=3, records=2, size=90, fill=5)
    begin = entry_begin(Entry(1, 77, 78, 3))
    assert batch_fault(batch, begin) is None and batch_end(batch, 77) == 79
    for bit in range(len(batch) * 8):
        flipped = bytearray(batch)
        flipped[bit // 8] ^= 1 << bit % 8
        assert batch_fault(flipped, begin) is not None, bit
    for end in range(len(batch)):
        assert batch_fault(batch[:end], begin) is not None


def test_superblock_round_trip_and_damage() -> None:
    data = encode_superblock(SUPERBLOCK)
    assert parse_superblock(data) == SUPERBLOCK
    for end in range(len(data)):
        with pytest.raises(Damaged):
            parse_superblock(data[:end])
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        with pytest.raises((Damaged, UnknownFormat)):
            parse_superblock(bytes(flipped))
    with pytest.raises(Damaged):
        parse_superblock(data + b"\n")


def test_superblock_of_a_later_format() -> None:
    with pytest.raises(UnknownFormat, match="WAL format 2; this version reads 1"):
        parse_superblock(b"tidelog-wal 2 whatever that one says")


def test_file_names() -> None:
    assert file_name(1) == "000000000001.wal"
    assert [file_number(file_name(number)) for number in (1, 999_999_999_999, 10**13)] == [1, 999_999_999_999, 10**13]
    assert [file_number(name) for name in ("superblock", "fence", "1.wal", "preparing", "00000000000x.wal")] == [
        None
    ] * 5


def golden_group() -> bytes:
    """Group 9 of file 3: batches of two logs in two epochs."""
    batches = [
        (1, make_batch(5, epoch=2, records=3, size=100, fill=1)),
        (4_000_000_000, make_batch(2**40, epoch=0, size=61)),
        (1, make_batch(8, epoch=2, size=75, fill=255)),
    ]
    return header_of(batches) + b"".join(batch for _, batch in batches)


def test_golden_superblock() -> None:
    data = (GOLDEN / "superblock.bin").read_bytes()
    assert parse_superblock(data) == SUPERBLOCK
    assert encode_superblock(SUPERBLOCK) == data


def test_golden_group() -> None:
    data = (GOLDEN / "group.bin").read_bytes()
    found = parse_header(data, 0, PREFIX)
    assert found is not None and found.group == 9 and found.size == len(data)
    assert found.entries == [Entry(1, 5, 88, 2), Entry(4_000_000_000, 2**40, 49, 0), Entry(1, 8, 63, 2)]
    position, ends = found.header_size, []
    for entry in found.entries:
        batch = data[position : position + entry.size]
        assert batch_fault(batch, entry_begin(entry)) is None
        ends.append(batch_end(batch, entry.base_offset))
        position += entry.size
    assert ends == [8, 2**40 + 1, 9]
    assert golden_group() == data
