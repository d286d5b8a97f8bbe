"""Records of `__consumer_offsets`, byte for byte as Kafka's coordinators write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.groups.model import (
    ZERO_UUID,
    Change,
    GroupRemoved,
    GroupSaved,
    Offset,
    OffsetCommitted,
    OffsetRemoved,
    SavedMember,
)
from broker.groups.records import decode, encode
from protocol import messages as m
from protocol.errors import ProtocolError

TEXT = st.text(max_size=20)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
OFFSETS = st.one_of(
    st.builds(Offset, INT64, INT32, TEXT, INT64, st.just(-1), st.binary(min_size=16, max_size=16)),
    st.builds(Offset, INT64, st.just(-1), TEXT, INT64, st.integers(0, 2**63 - 1), st.just(ZERO_UUID)),
)
MEMBERS = st.builds(
    SavedMember, TEXT, st.none() | TEXT, TEXT, TEXT, INT32, INT32, st.binary(max_size=20), st.binary(max_size=20)
)
CHANGES = st.one_of(
    st.builds(OffsetCommitted, TEXT, TEXT, INT32, OFFSETS),
    st.builds(OffsetRemoved, TEXT, TEXT, INT32),
    st.builds(
        GroupSaved,
        TEXT,
        TEXT,
        INT32,
        st.none() | TEXT,
        st.none() | TEXT,
        INT64,
        st.lists(MEMBERS, max_size=3).map(tuple),
    ),
    st.builds(GroupRemoved, TEXT),
)


@given(CHANGES)
def test_round_trip(change: Change) -> None:
    assert decode(*encode(change)) == change


def test_offset_bytes() -> None:
    offset = Offset(5, 3, "m", 1000, topic_id=bytes(range(16)))
    assert encode(OffsetCommitted("g", "t", 7, offset)) == (
        bytes.fromhex("0001 0001 67 0001 74 00000007"),
        bytes.fromhex(
            "0004 0000000000000005 00000003 02 6d 00000000000003e8 01 00 10 000102030405060708090a0b0c0d0e0f"
        ),
    )
    assert encode(OffsetCommitted("g", "t", 7, Offset(5, 3, "m", 1000)))[1] == bytes.fromhex(
        "0004 0000000000000005 00000003 02 6d 00000000000003e8 00"
    )
    assert encode(OffsetCommitted("g", "t", 7, Offset(5, -1, "m", 1000, 2000)))[1] == bytes.fromhex(
        "0001 0000000000000005 0001 6d 00000000000003e8 00000000000007d0"
    )
    assert encode(OffsetRemoved("g", "t", 7)) == (bytes.fromhex("0001 0001 67 0001 74 00000007"), None)


def test_group_bytes() -> None:
    member = SavedMember("m", None, "c", "/h", 2, 3, b"s", b"a")
    saved = GroupSaved("g", "consumer", 4, "range", "m", 5, (member,))
    assert encode(saved) == (
        bytes.fromhex("0002 0001 67"),
        bytes.fromhex(
            "0003 0008 636f6e73756d6572 00000004 0005 72616e6765 0001 6d 0000000000000005 00000001"
            "0001 6d ffff 0001 63 0002 2f68 00000002 00000003 00000001 73 00000001 61"
        ),
    )
    assert encode(GroupRemoved("g")) == (bytes.fromhex("0002 0001 67"), None)


@pytest.mark.parametrize("version", range(5))
def test_offsets_of_older_brokers(version: int) -> None:
    value = m.OffsetCommitValue(offset=5, metadata="m", commit_timestamp=1000)
    data = version.to_bytes(2, "big") + value.encode(version)
    for kind in (b"\0\0", b"\0\1"):
        key = kind + m.OffsetCommitKey(group="g", topic="t", partition=7).encode(0)
        assert decode(key, data) == OffsetCommitted("g", "t", 7, Offset(5, -1, "m", 1000))


@pytest.mark.parametrize("version", range(5))
def test_groups_of_older_brokers(version: int) -> None:
    member = m.GroupMetadataValue.MemberMetadata(member_id="m", session_timeout=3)
    value = m.GroupMetadataValue(protocol_type="consumer", generation=4, protocol="range", leader="m", members=[member])
    read = decode(*(bytes.fromhex("0002 0001 67"), version.to_bytes(2, "big") + value.encode(version)))
    assert isinstance(read, GroupSaved)
    assert (read.generation, read.timestamp_ms, read.members[0].rebalance_timeout_ms) == (4, -1, -1)


def test_types_of_newer_brokers_are_not_understood() -> None:
    assert decode(b"\0\3\0\1g", b"\0\0") is None


@given(CHANGES, st.data())
def test_cut_off_records_are_refused(change: Change, data: st.DataObject) -> None:
    key, value = encode(change)
    place = data.draw(st.integers(0, len(key) - 1))
    with pytest.raises(ProtocolError):
        decode(key[:place], value)
    if value is not None:
        with pytest.raises(ProtocolError):
            decode(key, value[: data.draw(st.integers(0, len(value) - 1))])


@pytest.mark.parametrize("key", [None, b"", b"\0"])
def test_records_without_a_key_are_refused(key: bytes | None) -> None:
    with pytest.raises(ProtocolError):
        decode(key, b"")
