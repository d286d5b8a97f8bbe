"""Produce by hand is the compiled codec: every version, both directions, right and wrong bytes."""

from random import Random  # noqa: TID251
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import fast
from protocol import messages as m
from protocol.errors import ProtocolError
from protocol.framing import response_frame
from tests.protocol.instances import random_message
from tests.protocol.mutations import mutated

VERSIONS = range(3, 14)
versions = st.sampled_from(VERSIONS)
int16 = st.integers(-(1 << 15), (1 << 15) - 1)
int32 = st.integers(-(1 << 31), (1 << 31) - 1)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)
names = st.text(max_size=12) | st.sampled_from(("x" * 126, "x" * 127, "ü" * 200))
texts = st.none() | names


def flat(request: Any) -> tuple[Any, ...]:
    parts = [
        (topic.topic_id if topic.topic_id != bytes(16) else topic.name, part.index, part.records)
        for topic in request.topic_data
        for part in topic.partition_data
    ]
    return request.transactional_id, request.acks, request.timeout_ms, parts


def flat_fast(buf: Any, request: fast.ProduceRequest, version: int) -> tuple[Any, ...]:
    parts = [
        # the codec's name is empty where there are ids, as its id is zero where there are names
        ("" if topic == bytes(16) else topic, partition, None if start < 0 else memoryview(buf)[start:stop])
        for topic, partition, start, stop in request.parts
    ]
    return request.transactional_id, request.acks, request.timeout_ms, parts


def outcome(body: bytes, version: int) -> tuple[Any, ...] | None:
    """What the compiled codec makes of it; None if it refuses."""
    try:
        return flat(m.ProduceRequest.decode(body, version))
    except ProtocolError:
        return None


def outcome_fast(body: bytes, version: int) -> tuple[Any, ...] | None:
    """`parse_produce` in a buffer shared with others; `parse_usual_produce` must say the same, or nothing."""
    buf = bytearray(b"\xff\1" + body + b"\0\1\2\xff")
    try:
        usual = fast.parse_usual_produce(buf, 2, 2 + len(body), version)
    except ProtocolError:
        usual = None
    try:
        request = fast.parse_produce(buf, 2, 2 + len(body), version)
    except ProtocolError:
        assert usual is None
        return None
    if usual is not None:
        assert usual == (request.acks, *request.parts[0])
        assert (len(request.parts), request.transactional_id) == (1, None)
    return flat_fast(buf, request, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_usual_request_is_known_as_such(version: int) -> None:
    for size in (61, 126, 127, 200, 16382, 16383, 40000, 3_000_000):
        body = usual_request(version, size)
        usual = fast.parse_usual_produce(bytearray(body), 0, len(body), version)
        assert (usual is not None) == (version >= 9)
        assert outcome_fast(body, version) == outcome(body, version)
    body = usual_request(version, 200)
    for end in range(len(body)):
        assert outcome_fast(body[:end], version) is None
    if version < 13:
        assert outcome_fast(body.replace(b"\xc3\xbc", b"\xc3\xc3"), version) is None


def usual_request(version: int, size: int) -> bytes:
    fields = {"topic_id": b"#" * 16} if version >= 13 else {"name": "orders ü"}
    part = m.ProduceRequest.PartitionProduceData(index=3, records=bytes(size))
    topic = m.ProduceRequest.TopicProduceData(partition_data=[part], **fields)
    encoded: bytes = m.ProduceRequest(acks=-1, timeout_ms=30_000, topic_data=[topic]).encode(version)
    return encoded


@given(version=versions, rng=st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_requests(version: int, rng: Random) -> None:
    body = random_message(m.ProduceRequest, version, rng).encode(version)
    expected = outcome(body, version)
    assert expected is not None
    assert outcome_fast(body, version) == expected
    for buf in (body, bytearray(body), memoryview(body)):
        assert flat_fast(buf, fast.parse_produce(buf, 0, len(body), version), version) == expected


@given(version=versions, rng=st.randoms(use_true_random=False), data=st.data())
@settings(max_examples=400)
def test_nearly_right_requests(version: int, rng: Random, data: st.DataObject) -> None:
    body = data.draw(mutated(random_message(m.ProduceRequest, version, rng).encode(version)))
    assert outcome_fast(body, version) == outcome(body, version)


@given(version=versions, body=st.binary(max_size=60))
@settings(max_examples=200)
def test_noise(version: int, body: bytes) -> None:
    assert outcome_fast(body, version) == outcome(body, version)


def rich_request(version: int) -> bytes:
    part = m.ProduceRequest.PartitionProduceData
    topic = m.ProduceRequest.TopicProduceData
    sizes = (0, 1, 126, 127, 200, 16382, 16383, 40000)
    topics = []
    for name in ("orders", "ü"):
        fields = {"topic_id": name.encode().ljust(16, b"#")} if version >= 13 else {"name": name}
        parts = [part(index=i, records=bytes([i]) * size) for i, size in enumerate(sizes)]
        topics.append(topic(partition_data=[*parts, part(index=99, records=None)], **fields))
    request = m.ProduceRequest(transactional_id="tx", acks=-1, timeout_ms=30_000, topic_data=topics)
    encoded: bytes = request.encode(version)
    return encoded


@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_all_lengths(version: int) -> None:
    body = rich_request(version)
    assert outcome_fast(body, version) == outcome(body, version)
    request = fast.parse_produce(body, 0, len(body), version)
    assert [stop - start for _, _, start, stop in request.parts[:9]] == [0, 1, 126, 127, 200, 16382, 16383, 40000, 0]
    assert request.parts[8][1:] == (99, -1, -1)


@pytest.mark.parametrize("version", VERSIONS)
def test_truncated_at_every_byte(version: int) -> None:
    rng = Random(version)
    body = random_message(m.ProduceRequest, version, rng).encode(version)
    while not 300 < len(body) < 2000:
        body = random_message(m.ProduceRequest, version, rng).encode(version)
    buf = bytearray(body + body)
    for size in range(len(body)):
        for start, cut in ((0, body[:size]), (0, buf), (5, bytes(5) + body[:size])):
            with pytest.raises(ProtocolError):
                fast.parse_produce(cut, start, start + size, version)
    with pytest.raises(ProtocolError):
        fast.parse_produce(buf, 0, len(body) + 1, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_bounds_are_those_of_the_buffer(version: int) -> None:
    body = rich_request(version)
    for pos, end in ((0, len(body) + 1), (-1, len(body)), (5, 4), (len(body), len(body))):
        with pytest.raises(ProtocolError):
            fast.parse_produce(body, pos, end, version)


@pytest.mark.parametrize("version", [-1, 0, 2, 14])
def test_other_versions(version: int) -> None:
    with pytest.raises(ProtocolError, match="version"):
        fast.parse_produce(rich_request(9), 0, 10, version)
    with pytest.raises(ProtocolError, match="version"):
        fast.encode_produce_response(version, 1, [])
    with pytest.raises(ProtocolError, match="version"):
        fast.success_encoder(version, "t", 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_absurd_counts_are_refused_at_once(version: int) -> None:
    flexible = version >= 9
    topic_id = bytes(16) if version >= 13 else b"\2t" if flexible else b"\0\1t"
    head = b"\0" if flexible else b"\xff\xff"
    many = b"\xff\xff\xff\xff\x0f" if flexible else b"\x7f\xff\xff\xff"
    one = b"\2" if flexible else b"\0\0\0\1"
    fixed = b"\0\1\0\0\0\1"
    for body in (head + fixed + many, head + fixed + one + topic_id + many, head + fixed + one + topic_id + one + many):
        with pytest.raises(ProtocolError):
            fast.parse_produce(body + bytes(100), 0, len(body) + 100, version)


results = st.lists(
    st.builds(
        fast.ProduceResult,
        topic=st.sampled_from(("a", "b")) | names,
        partition=int32,
        error_code=int16,
        base_offset=int64,
        log_append_time=int64,
        log_start_offset=int64,
        record_errors=st.lists(st.tuples(int32, texts), max_size=3),
        error_message=texts,
        current_leader=st.none() | st.just((-1, -1)) | st.tuples(int32, int32),
    ),
    max_size=6,
)
endpoints = st.lists(st.builds(fast.NodeEndpoint, int32, names, int32, texts), max_size=2)


def topic_of(name: str, version: int) -> str | bytes:
    return name.encode()[:16].ljust(16, b"\1") if version >= 13 else name


def same_by_codec(
    version: int, results: list[fast.ProduceResult], throttle_ms: int, nodes: list[fast.NodeEndpoint]
) -> bytes:
    response = m.ProduceResponse(throttle_time_ms=throttle_ms)
    last: Any = None
    for result in results:
        if result.topic != last:
            last = result.topic
            field = "topic_id" if version >= 13 else "name"
            response.responses.append(m.ProduceResponse.TopicProduceResponse(**{field: last}))
        part = m.ProduceResponse.PartitionProduceResponse(
            index=result.partition,
            error_code=result.error_code,
            base_offset=result.base_offset,
            log_append_time_ms=result.log_append_time,
            log_start_offset=result.log_start_offset,
            record_errors=[
                m.ProduceResponse.BatchIndexAndErrorMessage(batch_index=index, batch_index_error_message=text)
                for index, text in result.record_errors
            ],
            error_message=result.error_message,
        )
        if version >= 10 and result.current_leader is not None:
            leader_id, epoch = result.current_leader
            part.current_leader = m.ProduceResponse.LeaderIdAndEpoch(leader_id=leader_id, leader_epoch=epoch)
        response.responses[-1].partition_responses.append(part)
    if version >= 10:
        response.node_endpoints = [
            m.ProduceResponse.NodeEndpoint(node_id=node_id, host=host, port=port, rack=rack)
            for node_id, host, port, rack in nodes
        ]
    encoded: bytes = response.encode(version)
    return encoded


@given(version=versions, results=results, throttle_ms=int32, nodes=endpoints, correlation_id=int32)
@settings(max_examples=300)
def test_responses(
    version: int,
    results: list[fast.ProduceResult],
    throttle_ms: int,
    nodes: list[fast.NodeEndpoint],
    correlation_id: int,
) -> None:
    results = [result._replace(topic=topic_of(str(result.topic), version)) for result in results]
    frame = fast.encode_produce_response(version, correlation_id, results, throttle_ms=throttle_ms, endpoints=nodes)
    assert frame == response_frame(0, version, correlation_id, same_by_codec(version, results, throttle_ms, nodes))


@given(version=versions, name=names, numbers=st.tuples(int32, int64, int64, int64, int32), partition=int32)
@settings(max_examples=200)
def test_success_encoder(version: int, name: str, numbers: tuple[int, int, int, int, int], partition: int) -> None:
    topic = topic_of(name, version)
    correlation_id, base_offset, append_time, start_offset, throttle_ms = numbers
    result = fast.ProduceResult(topic, partition, 0, base_offset, append_time, start_offset)
    expected = fast.encode_produce_response(version, correlation_id, [result], throttle_ms=throttle_ms)
    assert fast.success_encoder(version, topic, partition)(*numbers) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_what_cannot_be_said(version: int) -> None:
    topic = topic_of("t", version)
    other = "t" if version >= 13 else bytes(16)
    for result in (
        fast.ProduceResult(other, 0),
        fast.ProduceResult(topic, 1 << 31),
        fast.ProduceResult(topic, 0, 1 << 15),
        fast.ProduceResult(topic, 0, 0, 1 << 63),
    ):
        with pytest.raises(ProtocolError):
            fast.encode_produce_response(version, 0, [result])
    if version >= 8:
        for text in ("x" * 32768, "\ud800"):
            with pytest.raises(ProtocolError):
                fast.encode_produce_response(version, 0, [fast.ProduceResult(topic, 0, error_message=text)])
    if version < 13:
        with pytest.raises(ProtocolError):
            fast.encode_produce_response(version, 0, [fast.ProduceResult("x" * 32768, 0)])
