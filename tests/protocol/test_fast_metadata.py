"""Metadata by hand is the compiled codec: every version, both directions, right and wrong bytes."""

from random import Random  # noqa: TID251
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import fast
from protocol import messages as m
from protocol.errors import ProtocolError
from tests.protocol.instances import random_message
from tests.protocol.mutations import mutated

VERSIONS = range(14)
versions = st.sampled_from(VERSIONS)
int16 = st.integers(-(1 << 15), (1 << 15) - 1)
int32 = st.integers(-(1 << 31), (1 << 31) - 1)
names = st.text(max_size=12) | st.sampled_from(("x" * 126, "x" * 127, "ü" * 200))
texts = st.none() | names


def outcome(body: bytes, version: int) -> fast.MetadataRequest | None:
    """What the compiled codec makes of it, in our shape; None if it refuses."""
    try:
        request = m.MetadataRequest.decode(body, version)
    except ProtocolError:
        return None
    topics = None if request.topics is None else [(topic.topic_id, topic.name) for topic in request.topics]
    return fast.MetadataRequest(
        None if version == 0 and not topics else topics,
        request.allow_auto_topic_creation,
        request.include_cluster_authorized_operations,
        request.include_topic_authorized_operations,
    )


def outcome_fast(body: bytes, version: int) -> fast.MetadataRequest | None:
    buf = bytearray(b"\xff\1" + body + b"\0\1\2\xff")  # in a buffer shared with others
    try:
        return fast.parse_metadata(buf, 2, 2 + len(body), version)
    except ProtocolError:
        return None


@given(version=versions, rng=st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_requests(version: int, rng: Random) -> None:
    body = random_message(m.MetadataRequest, version, rng).encode(version)
    expected = outcome(body, version)
    assert expected is not None
    assert outcome_fast(body, version) == expected
    for buf in (body, bytearray(body), memoryview(body)):
        assert fast.parse_metadata(buf, 0, len(body), version) == expected


@given(version=versions, rng=st.randoms(use_true_random=False), data=st.data())
@settings(max_examples=400)
def test_nearly_right_requests(version: int, rng: Random, data: st.DataObject) -> None:
    body = data.draw(mutated(random_message(m.MetadataRequest, version, rng).encode(version)))
    assert outcome_fast(body, version) == outcome(body, version)


@given(version=versions, body=st.binary(max_size=40))
@settings(max_examples=200)
def test_noise(version: int, body: bytes) -> None:
    assert outcome_fast(body, version) == outcome(body, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_truncated_at_every_byte(version: int) -> None:
    topics = [m.MetadataRequest.MetadataRequestTopic(name=name) for name in ("orders", "ü" * 100)]
    body = m.MetadataRequest(topics=topics).encode(version)
    buf = bytearray(body + body)
    for size in range(len(body)):
        for start, cut in ((0, body[:size]), (0, buf), (5, bytes(5) + body[:size])):
            with pytest.raises(ProtocolError):
                fast.parse_metadata(cut, start, start + size, version)
    for pos, end in ((0, len(body) + 1), (-1, len(body)), (5, 4), (len(buf), len(buf))):
        with pytest.raises(ProtocolError):
            fast.parse_metadata(buf, pos, end, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_absurd_counts_are_refused_at_once(version: int) -> None:
    body = b"\xff\xff\xff\xff\x0f" if version >= 9 else b"\x7f\xff\xff\xff"
    with pytest.raises(ProtocolError):
        fast.parse_metadata(body + bytes(100), 0, len(body) + 100, version)


def test_asking_for_all_and_for_none() -> None:
    assert fast.parse_metadata(b"\0\0\0\0", 0, 4, 0).topics is None
    assert fast.parse_metadata(b"\0\0\0\0", 0, 4, 1).topics == []
    assert fast.parse_metadata(b"\xff\xff\xff\xff", 0, 4, 1).topics is None
    with pytest.raises(ProtocolError):
        fast.parse_metadata(b"\xff\xff\xff\xff", 0, 4, 0)


@pytest.mark.parametrize("version", [-1, 14])
def test_other_versions(version: int) -> None:
    with pytest.raises(ProtocolError, match="version"):
        fast.parse_metadata(bytes(10), 0, 10, version)
    with pytest.raises(ProtocolError, match="version"):
        fast.encode_metadata_topic(version, "t", bytes(16), [])
    with pytest.raises(ProtocolError, match="version"):
        fast.encode_metadata_response(version, 0, [], None, -1, [])


nodes = st.lists(int32, min_size=1, max_size=1) | st.lists(int32, max_size=3)
no_or_few = st.just([]) | st.lists(int32, max_size=3)
partitions = st.lists(
    st.builds(fast.MetadataPartition, int16, int32, int32, int32, nodes, nodes, no_or_few), max_size=4
)
topics = st.lists(
    st.fixed_dictionaries(
        {
            "name": texts,
            "topic_id": st.binary(min_size=16, max_size=16),
            "partitions": partitions,
            "error_code": int16,
            "is_internal": st.booleans(),
            "authorized_operations": int32,
        }
    ),
    max_size=3,
)
brokers = st.lists(st.builds(fast.MetadataBroker, int32, names, int32, texts), max_size=3)


def codec_topic(version: int, topic: dict[str, Any]) -> Any:
    response = m.MetadataResponse
    made = response.MetadataResponseTopic(
        error_code=topic["error_code"],
        name=topic["name"],
        topic_id=topic["topic_id"],
        is_internal=topic["is_internal"],
        partitions=[
            response.MetadataResponsePartition(
                error_code=part.error_code,
                partition_index=part.partition,
                leader_id=part.leader_id,
                leader_epoch=part.leader_epoch,
                replica_nodes=part.replicas,
                isr_nodes=part.isr,
                offline_replicas=part.offline,
            )
            for part in topic["partitions"]
        ],
    )
    if version >= 8:
        made.topic_authorized_operations = topic["authorized_operations"]
    return made


@given(
    version=versions,
    topics=topics,
    brokers=brokers,
    cluster_id=texts,
    numbers=st.tuples(int32, int32, int32, int16),
)
@settings(max_examples=300)
def test_responses(
    version: int,
    topics: list[dict[str, Any]],
    brokers: list[fast.MetadataBroker],
    cluster_id: str | None,
    numbers: tuple[int, int, int, int],
) -> None:
    for topic in topics:
        if version < 12 and topic["name"] is None:
            topic["name"] = ""
    throttle_ms, controller_id, operations, error_code = numbers
    body = fast.encode_metadata_response(
        version,
        throttle_ms,
        brokers,
        cluster_id,
        controller_id,
        [fast.encode_metadata_topic(version, **topic) for topic in topics],
        cluster_authorized_operations=operations,
        error_code=error_code,
    )
    expected = m.MetadataResponse(
        throttle_time_ms=throttle_ms,
        brokers=[
            m.MetadataResponse.MetadataResponseBroker(node_id=node_id, host=host, port=port, rack=rack)
            for node_id, host, port, rack in brokers
        ],
        cluster_id=cluster_id,
        controller_id=controller_id,
        topics=[codec_topic(version, topic) for topic in topics],
    )
    if 8 <= version <= 10:
        expected.cluster_authorized_operations = operations
    if version >= 13:
        expected.error_code = error_code
    assert body == expected.encode(version)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_cannot_be_said(version: int) -> None:
    if version < 12:
        with pytest.raises(ProtocolError, match="null"):
            fast.encode_metadata_topic(version, None, bytes(16), [])
    if version >= 10:
        with pytest.raises(ProtocolError, match="16 bytes"):
            fast.encode_metadata_topic(version, "t", bytes(15), [])
    for name in ("x" * 32768, "\ud800"):
        with pytest.raises(ProtocolError):
            fast.encode_metadata_topic(version, name, bytes(16), [])
        with pytest.raises(ProtocolError):
            fast.encode_metadata_response(version, 0, [fast.MetadataBroker(1, name, 2)], None, 1, [])
    for part in (
        fast.MetadataPartition(0, 1 << 31, 1, 1, [1], [1]),
        fast.MetadataPartition(0, 1, 1, 1, [1 << 31], [1]),
        fast.MetadataPartition(0, 1, 1, 1, [1], [1, 1 << 31]),
    ):
        with pytest.raises(ProtocolError):
            fast.encode_metadata_topic(version, "t", bytes(16), [part])
