"""Records of `__consumer_offsets`, byte for byte as Kafka's coordinators write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.groups.consumer_model import (
    ClassicProtocols,
    CurrentRemoved,
    CurrentSaved,
    EpochRemoved,
    EpochSaved,
    MemberRemoved,
    MemberSaved,
    RegexRemoved,
    RegexSaved,
    TargetEpochRemoved,
    TargetEpochSaved,
    TargetRemoved,
    TargetSaved,
    TopicsOfOldVersion,
)
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
UUIDS = st.binary(min_size=16, max_size=16)
PARTITIONS = st.dictionaries(UUIDS, st.sets(st.integers(0, 99), min_size=1).map(frozenset), max_size=3)
HELD = st.dictionaries(UUIDS, st.dictionaries(st.integers(0, 99), INT32, min_size=1, max_size=3), max_size=3)
CLASSIC = st.builds(ClassicProtocols, INT32, st.lists(st.tuples(TEXT, st.binary(max_size=20)), max_size=2).map(tuple))
CONSUMER_CHANGES = st.one_of(
    st.builds(EpochSaved, TEXT, INT32, INT64),
    st.builds(
        MemberSaved,
        TEXT,
        TEXT,
        st.none() | TEXT,
        st.none() | TEXT,
        TEXT,
        TEXT,
        st.lists(TEXT, max_size=3).map(tuple),
        st.none() | TEXT,
        INT32,
        st.none() | TEXT,
        st.none() | CLASSIC,
    ),
    st.builds(TargetEpochSaved, TEXT, INT32, INT64),
    st.builds(TargetSaved, TEXT, TEXT, PARTITIONS),
    st.builds(CurrentSaved, TEXT, TEXT, INT32, INT32, st.sampled_from([0, 1, 2, 127]), HELD, HELD),
    st.builds(RegexSaved, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple), INT64, INT64),
    *(st.builds(kind, TEXT) for kind in (EpochRemoved, TargetEpochRemoved, TopicsOfOldVersion)),
    *(st.builds(kind, TEXT, TEXT) for kind in (MemberRemoved, TargetRemoved, CurrentRemoved, RegexRemoved)),
)
CHANGES = st.one_of(
    CONSUMER_CHANGES,
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
    assert decode(b"\0\13\0\1g", b"\0\0") is None


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


UID = bytes(range(16))
CONSUMER_RECORDS = [
    (EpochSaved("g", 7, 0), "0003 0001 67", "0000 00000007 00"),
    (EpochSaved("g", 7, -2), "0003 0001 67", "0000 00000007 01 00 08 fffffffffffffffe"),
    (
        MemberSaved("g", "m", "i", None, "c", "/h", ("t", "u"), "", 300, "range", None),
        "0005 0001 67 0001 6d",
        "0000 02 69 00 02 63 03 2f68 03 02 74 02 75 01 0000012c 06 72616e6765 01 00 01 00",
    ),
    (
        MemberSaved("g", "m", None, None, "c", "/h", ("t",), None, -1, None, ClassicProtocols(9, (("range", b"xy"),))),
        "0005 0001 67 0001 6d",
        "0000 00 00 02 63 03 2f68 02 02 74 00 ffffffff 00 01 00 11 01 00000009 02 06 72616e6765 03 7879 00 00",
    ),
    (TargetEpochSaved("g", 7, 0), "0006 0001 67", "0000 00000007 00"),
    (TargetEpochSaved("g", 7, 258), "0006 0001 67", "0000 00000007 01 00 08 0000000000000102"),
    (
        TargetSaved("g", "m", {UID: frozenset({2, 1})}),
        "0007 0001 67 0001 6d",
        "0000 02 000102030405060708090a0b0c0d0e0f 03 00000001 00000002 00 00",
    ),
    (
        CurrentSaved("g", "m", 7, 6, 1, {UID: {1: 5, 2: 7}}, {}),
        "0008 0001 67 0001 6d",
        "0000 00000007 00000006 01 02 000102030405060708090a0b0c0d0e0f 03 00000001 00000002 01 00 09 03 00000005"
        " 00000007 01 00",
    ),
    (
        RegexSaved("g", "t.*", ("t",), 4, 5),
        "0010 0001 67 0003 742e2a",
        "0000 02 02 74 0000000000000004 0000000000000005 00",
    ),
]


@pytest.mark.parametrize("change,key,value", CONSUMER_RECORDS)
def test_consumer_record_bytes(change: Change, key: str, value: str) -> None:
    assert [part and part.hex(" ") for part in encode(change)] == [
        bytes.fromhex(key).hex(" "),
        bytes.fromhex(value).hex(" "),
    ]


def test_a_member_without_assignment_epochs_has_held_all_since_its_own() -> None:
    """As before KIP-1251."""
    key, value = encode(CurrentSaved("g", "m", 7, 6, 0, {UID: {1: 7, 2: 7}}, {}))
    assert value is not None
    old = value.replace(bytes.fromhex("01 00 09 03 00000007 00000007"), b"\0")
    assert len(old) < len(value)
    assert decode(key, old) == CurrentSaved("g", "m", 7, 6, 0, {UID: {1: 7, 2: 7}}, {})
