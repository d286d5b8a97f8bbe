import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.entries import (
    CorruptMetadata,
    NewerFormat,
    SnapshotHead,
    decode_entry,
    encode_entry,
    frame,
    frame_snapshot,
    hash_of,
    unframe_snapshot,
)
from controller.facts import UnknownFact
from tests.controller import golden


def test_round_trip() -> None:
    entry = golden.entry()
    data = encode_entry(entry)
    assert decode_entry(data) == entry
    assert len(hash_of(data)) == 32
    assert encode_entry(entry._replace(nonce=b"m" * 16)) != data


def test_cut_off_anywhere_is_corrupt() -> None:
    data = encode_entry(golden.entry())
    for size in range(len(data)):
        with pytest.raises(CorruptMetadata):
            decode_entry(data[:size])


@given(st.data())
def test_any_flipped_bit_is_noticed(data: st.DataObject) -> None:
    good = bytearray(encode_entry(golden.entry()))
    at = data.draw(st.integers(0, len(good) * 8 - 1))
    good[at // 8] ^= 1 << at % 8
    with pytest.raises((CorruptMetadata, NewerFormat)):
        decode_entry(bytes(good))


def test_newer_forms_are_told_from_damage() -> None:
    data = encode_entry(golden.entry())
    with pytest.raises(NewerFormat):
        decode_entry(data[:4] + b"\x02" + data[5:])
    fields = ["c", 1, b"", 0, b"", 0, [], [[77, 1]]]
    with pytest.raises(UnknownFact, match="upgrade"):
        decode_entry(b"".join(frame(b"TLME", [msgpack.packb(fields)])))
    for bad in (b"\xc1", msgpack.packb([1, 2]), msgpack.packb(7), b""):
        with pytest.raises(CorruptMetadata):
            decode_entry(b"".join(frame(b"TLME", [bad])))


def test_snapshots() -> None:
    head = SnapshotHead("c" * 22, 7, b"h" * 32)
    data = b"".join(frame_snapshot(head, [b"state ", b"of things" * 1000]))
    found, state = unframe_snapshot(data)
    assert found == head and bytes(state) == b"state " + b"of things" * 1000
    for bad in (b"\xc1", msgpack.packb([1, 2]), msgpack.packb(7), b""):
        with pytest.raises(CorruptMetadata):
            unframe_snapshot(b"".join(frame(b"TLMS", [bad])))
