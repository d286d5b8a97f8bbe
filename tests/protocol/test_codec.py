"""The compiled codecs: every version of every message there and back, and every way of being wrong."""

import tracemalloc
from random import Random  # noqa: TID251
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages as m
from protocol import schema
from protocol.codec import ApiMessage
from protocol.errors import ProtocolError
from protocol.schema import Struct
from tests.protocol.instances import every_version, random_message

SEEDS = st.integers(0, 2**32 - 1)
DAMAGE = (b"\xff", b"\xff\xff\xff\xff\x0f", b"\xff" * 5, b"\x7f\xff\xff\xff", b"\x80\0", b"\xc3\x28", b"")


def try_decode(cls: type[ApiMessage], data: bytes, version: int) -> None:
    """Anything but a message or ProtocolError comes out as itself."""
    try:
        cls.decode(data, version)
    except ProtocolError:
        pass


@given(SEEDS)
@settings(max_examples=40)
def test_every_version_of_every_message_comes_back_as_it_went(seed: int) -> None:
    rng = Random(seed)
    for cls, version in every_version():
        message = random_message(cls, version, rng)
        encoded = message.encode(version)
        decoded = cls.decode(encoded, version)
        assert decoded == message, (cls, version)
        assert decoded.encode(version) == encoded


@given(SEEDS)
@settings(max_examples=4)
def test_a_message_that_is_cut_off_anywhere_or_has_more_behind_it_is_refused(seed: int) -> None:
    rng = Random(seed)
    for cls, version in every_version():
        encoded = random_message(cls, version, rng).encode(version)
        cuts = range(len(encoded)) if len(encoded) < 300 else [*range(150), *rng.sample(range(len(encoded)), 50)]
        for cut in cuts:
            with pytest.raises(ProtocolError):
                cls.decode(encoded[:cut], version)
        with pytest.raises(ProtocolError, match="ends at byte"):
            cls.decode(encoded + b"\0", version)


@given(SEEDS)
@settings(max_examples=30)
def test_damaged_bytes_give_a_message_or_a_protocol_error(seed: int) -> None:
    rng = Random(seed)
    for cls, version in every_version():
        damaged = bytearray(random_message(cls, version, rng).encode(version))
        for _ in range(4):
            where = rng.randrange(len(damaged) + 1)
            damaged[where : where + rng.randrange(1, 6)] = rng.choice(DAMAGE)
            try_decode(cls, bytes(damaged), version)


@given(st.binary(max_size=200), st.data())
@settings(max_examples=300)
def test_noise_gives_a_message_or_a_protocol_error(noise: bytes, data: st.DataObject) -> None:
    cls = getattr(m, data.draw(st.sampled_from(schema.names())))
    try_decode(cls, noise, data.draw(st.sampled_from(cls.versions)))


@pytest.mark.parametrize("flexible", [False, True])
def test_an_absurd_count_allocates_nothing(flexible: bool) -> None:
    """A count just above what fits is refused before anything is made, for arrays of numbers and of structs."""
    version = 12 if flexible else 1
    filler = bytes(1 << 20)
    counts = (b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x08") if flexible else (b"\x7f\xff\xff\xff", b"\x00\x10\x00\x01")
    for count in counts:
        tracemalloc.start()
        with pytest.raises(ProtocolError, match="topics says"):
            m.MetadataRequest.decode(count + filler, version)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2.2 * len(filler)  # the input joined here, and its copy


def test_absurd_lengths_are_refused() -> None:
    head = b"\x00\x01g" + bytes(8)
    with pytest.raises(ProtocolError, match="member_id says 32767, 1 bytes are left"):
        m.JoinGroupRequest.decode(head + b"\x7f\xffx", 1)
    with pytest.raises(ProtocolError, match="varint is longer than 32 bits"):
        m.MetadataRequest.decode(b"\xff\xff\xff\xff\x7f", 12)
    with pytest.raises(ProtocolError, match="varint is longer than five bytes"):
        m.MetadataRequest.decode(b"\xff\xff\xff\xff\xff\x01", 12)
    with pytest.raises(ProtocolError, match="name says 32768"):
        m.MetadataRequest.decode(b"\x02" + bytes(16) + b"\x81\x80\x02" + bytes(40000), 12)


def densest(message: type[ApiMessage], struct: Struct, version: int) -> Any:
    """An array of as many elements as bytes allow makes the most objects of the fewest bytes."""
    cls: Any = message if struct is message.schema.root else getattr(message, struct.name)
    values: dict[str, Any] = {}
    for item in struct.fields:
        if version in item.versions and item.array and item.struct and version not in item.tagged:
            outermost = struct is message.schema.root
            values[item.name] = [densest(message, item.struct, version)] * (300 if outermost else 1)
        elif item.type == "records":
            values[item.name] = b""
    return cls(**values)


def test_a_decoded_message_takes_a_bounded_multiple_of_its_bytes() -> None:
    for cls, version in every_version():
        if cls.api_key is None:
            continue
        encoded = densest(cls, cls.schema.root, version).encode(version)
        cls.decode(encoded, version)
        tracemalloc.start()
        decoded = cls.decode(encoded, version)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert decoded is not None
        assert peak < 4000 + 60 * len(encoded), (cls, version, peak / len(encoded))


def test_unknown_tagged_fields_are_skipped_known_ones_read() -> None:
    body = m.ApiVersionsResponse(error_code=3).encode(3)
    assert body.endswith(b"\0")
    tags = b"\x03" + b"\x01\x08" + (77).to_bytes(8) + b"\x09\x02ab" + b"\xff\x01\x00"
    assert m.ApiVersionsResponse.decode(body[:-1] + tags, 3) == m.ApiVersionsResponse(
        error_code=3, finalized_features_epoch=77
    )
    many = b"\xc8\x01" + b"".join(bytes((0x80 | tag & 0x7F, 1 + (tag >> 7), 1, 0)) for tag in range(200))
    assert m.MetadataRequest.decode(b"\0\1\0" + many, 12).topics is None
    for broken in (b"\x01\x01\x07" + bytes(7), b"\x01\x01\x09" + bytes(9), b"\x01\x09\x05ab", b"\x02\x09\x00"):
        with pytest.raises(ProtocolError):
            m.ApiVersionsResponse.decode(body[:-1] + broken, 3)


def test_what_is_not_utf8_is_refused_both_ways() -> None:
    with pytest.raises(ProtocolError, match="UTF-8"):
        m.MetadataRequest.decode(b"\0\0\0\1\0\2\xc3\x28", 0)
    topic = m.MetadataRequest.MetadataRequestTopic(name="\ud800")
    with pytest.raises(ProtocolError):
        m.MetadataRequest(topics=[topic]).encode(0)


def test_null_only_where_a_version_allows_it() -> None:
    with pytest.raises(ProtocolError, match="topics is null"):
        m.MetadataRequest.decode(b"\xff\xff\xff\xff", 0)
    assert m.MetadataRequest.decode(b"\xff\xff\xff\xff", 1).topics is None
    with pytest.raises(ProtocolError, match="topics is null"):
        m.MetadataRequest(topics=None).encode(0)
    with pytest.raises(ProtocolError, match="group_id is null"):
        m.JoinGroupRequest(group_id=None).encode(9)  # type: ignore[arg-type]


def test_values_that_do_not_fit_are_refused() -> None:
    for message in (
        m.MetadataResponse(throttle_time_ms=1 << 31),
        m.MetadataResponse(cluster_id="x" * 32768),
        m.MetadataResponse(brokers=[None]),  # type: ignore[list-item]
        m.MetadataResponse(topics=[m.MetadataResponse.MetadataResponseTopic(topic_id=b"short")]),
        m.MetadataResponse(topics=3),  # type: ignore[arg-type]
        m.JoinGroupRequest(protocols=[m.JoinGroupRequest.JoinGroupRequestProtocol(metadata="text")]),  # type: ignore[arg-type]
        m.ConsumerGroupDescribeRequest(group_ids=[1]),  # type: ignore[list-item]
    ):
        with pytest.raises(ProtocolError):
            message.encode(message.versions[-1])


def test_a_field_that_the_version_has_not() -> None:
    with pytest.raises(ProtocolError, match="include_topic_authorized_operations is set"):
        m.MetadataRequest(include_topic_authorized_operations=True).encode(4)
    assert m.MetadataRequest(allow_auto_topic_creation=True).encode(1) == m.MetadataRequest().encode(1)
    with pytest.raises(ProtocolError, match="allow_auto_topic_creation is set"):
        m.MetadataRequest(allow_auto_topic_creation=False).encode(1)
    ignorable = m.MetadataResponse(cluster_id="c", controller_id=4)
    assert ignorable.encode(0) == m.MetadataResponse().encode(0)
    assert m.MetadataResponse.decode(ignorable.encode(1), 1) == m.MetadataResponse(controller_id=4)


def test_versions_that_do_not_exist() -> None:
    for version in (-1, 2, 14):
        with pytest.raises(ProtocolError, match=f"has no version {version}"):
            m.ProduceRequest.decode(b"", version)
        with pytest.raises(ProtocolError, match=f"has no version {version}"):
            m.ProduceRequest().encode(version)


def test_records_are_views_of_the_input_and_all_else_is_copied() -> None:
    part = m.ProduceRequest.PartitionProduceData(index=1, records=bytearray(b"batch"))
    topic = m.ProduceRequest.TopicProduceData(name="t", partition_data=[part])
    message = m.ProduceRequest(acks=-1, topic_data=[topic])
    buf = bytearray(b"before" + message.encode(11) + b"after")
    decoded = m.ProduceRequest.decode(buf, 11, 6, len(buf) - 5)
    assert decoded == message
    records = decoded.topic_data[0].partition_data[0].records
    assert isinstance(records, memoryview)
    at = buf.index(b"batch")
    buf[at : at + 5] = b"BATCH"
    assert records == b"BATCH"
    assert any(sent is part.records for sent in message.encode_parts(11))


def test_any_buffer_and_any_part_of_it() -> None:
    message = m.JoinGroupRequest(group_id="g", protocols=[m.JoinGroupRequest.JoinGroupRequestProtocol(name="n")])
    encoded = message.encode(9)
    for buf in (encoded, bytearray(encoded), memoryview(encoded)):
        assert m.JoinGroupRequest.decode(buf, 9) == message
    around = memoryview(b"xx" + encoded + b"yyy")
    assert m.JoinGroupRequest.decode(around, 9, 2, 2 + len(encoded)) == message
    assert m.JoinGroupRequest.decode(around[:-3], 9, 2) == message
    decoded = m.JoinGroupRequest.decode(around, 9, 2, 2 + len(encoded))
    assert type(decoded.protocols[0].metadata) is bytes
