"""Fetch by hand is the compiled codec: every version, both directions, right and wrong bytes."""

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

VERSIONS = range(4, 19)
versions = st.sampled_from(VERSIONS)
int16 = st.integers(-(1 << 15), (1 << 15) - 1)
int32 = st.integers(-(1 << 31), (1 << 31) - 1)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)
names = st.text(max_size=12) | st.sampled_from(("x" * 126, "x" * 127, "ü" * 200))
texts = st.none() | names


def flat(request: Any, version: int) -> fast.FetchRequest:
    """The codec's request in our shape."""

    def key(topic: Any) -> str | bytes:
        value: str | bytes = topic.topic_id if version >= 13 else topic.topic
        return value

    parts: list[fast.FetchPart] = [
        (
            key(topic),
            part.partition,
            part.fetch_offset,
            part.partition_max_bytes,
            part.current_leader_epoch,
            part.last_fetched_epoch,
            part.log_start_offset,
        )
        for topic in request.topics
        for part in topic.partitions
    ]
    return fast.FetchRequest(
        replica_id=request.replica_state.replica_id if version >= 15 else request.replica_id,
        replica_epoch=request.replica_state.replica_epoch,
        max_wait_ms=request.max_wait_ms,
        min_bytes=request.min_bytes,
        max_bytes=request.max_bytes,
        isolation_level=request.isolation_level,
        session_id=request.session_id,
        session_epoch=request.session_epoch,
        parts=parts,
        forgotten=[
            (key(topic), partition) for topic in request.forgotten_topics_data for partition in topic.partitions
        ],
        rack_id=request.rack_id,
        cluster_id=request.cluster_id,
    )


def outcome(body: bytes, version: int) -> fast.FetchRequest | None:
    """What the compiled codec makes of it; None if it refuses."""
    try:
        return flat(m.FetchRequest.decode(body, version), version)
    except ProtocolError:
        return None


def outcome_fast(body: bytes, version: int) -> fast.FetchRequest | None:
    buf = bytearray(b"\xff\1" + body + b"\0\1\2\xff")  # in a buffer shared with others
    try:
        return fast.parse_fetch(buf, 2, 2 + len(body), version)
    except ProtocolError:
        return None


@given(version=versions, rng=st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_requests(version: int, rng: Random) -> None:
    body = random_message(m.FetchRequest, version, rng).encode(version)
    expected = outcome(body, version)
    assert expected is not None
    assert outcome_fast(body, version) == expected
    for buf in (body, bytearray(body), memoryview(body)):
        assert fast.parse_fetch(buf, 0, len(body), version) == expected


@given(version=versions, rng=st.randoms(use_true_random=False), data=st.data())
@settings(max_examples=500)
def test_nearly_right_requests(version: int, rng: Random, data: st.DataObject) -> None:
    body = data.draw(mutated(random_message(m.FetchRequest, version, rng).encode(version)))
    assert outcome_fast(body, version) == outcome(body, version)


@given(version=versions, body=st.binary(max_size=80))
@settings(max_examples=200)
def test_noise(version: int, body: bytes) -> None:
    assert outcome_fast(body, version) == outcome(body, version)


def rich_request(version: int) -> bytes:
    """Every field that the version has."""
    topics, forgotten = [], []
    for name in ("orders", "ü"):
        fields = {"topic_id": name.encode().ljust(16, b"#")} if version >= 13 else {"topic": name}
        parts = [
            m.FetchRequest.FetchPartition(partition=i, fetch_offset=i << 40, partition_max_bytes=i) for i in (1, 2)
        ]
        if version >= 9:
            parts[0].current_leader_epoch = 9
        if version >= 12:
            parts[0].last_fetched_epoch = 8
        if version >= 5:
            parts[0].log_start_offset = 7
        if version >= 17:
            parts[1].replica_directory_id = b"#" * 16
        if version >= 18:
            parts[1].high_watermark = 99
        topics.append(m.FetchRequest.FetchTopic(partitions=parts, **fields))
        forgotten.append(m.FetchRequest.ForgottenTopic(partitions=[1, 2, 3], **fields))
    request = m.FetchRequest(max_wait_ms=500, min_bytes=1, max_bytes=1 << 20, isolation_level=1, topics=topics)
    if version < 15:
        request.replica_id = 5
    else:
        request.replica_state = m.FetchRequest.ReplicaState(replica_id=5, replica_epoch=6)
    if version >= 7:
        request.session_id, request.session_epoch, request.forgotten_topics_data = 77, 3, forgotten
    if version >= 11:
        request.rack_id = "rack-1"
    if version >= 12:
        request.cluster_id = "cluster"
    encoded: bytes = request.encode(version)
    return encoded


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field(version: int) -> None:
    body = rich_request(version)
    request = fast.parse_fetch(body, 0, len(body), version)
    assert request == outcome(body, version)
    assert (request.replica_id, request.isolation_level, request.max_bytes) == (5, 1, 1 << 20)
    topic = b"orders".ljust(16, b"#") if version >= 13 else "orders"
    later = (9 if version >= 9 else -1, 8 if version >= 12 else -1, 7 if version >= 5 else -1)
    assert request.parts[0] == (topic, 1, 1 << 40, 1, *later)
    assert request.parts[1] == (topic, 2, 2 << 40, 2, -1, -1, -1)
    if version >= 7:
        assert (request.session_id, request.session_epoch) == (77, 3)
        assert request.forgotten[:3] == [(topic, 1), (topic, 2), (topic, 3)]
    else:
        assert (request.session_id, request.session_epoch, request.forgotten) == (0, -1, [])
    assert request.rack_id == ("rack-1" if version >= 11 else "")
    assert request.cluster_id == ("cluster" if version >= 12 else None)
    assert request.replica_epoch == (6 if version >= 15 else -1)


@pytest.mark.parametrize("version", VERSIONS)
def test_truncated_at_every_byte(version: int) -> None:
    body = rich_request(version)
    buf = bytearray(body + body)
    for size in range(len(body)):
        for start, cut in ((0, body[:size]), (0, buf), (5, bytes(5) + body[:size])):
            with pytest.raises(ProtocolError):
                fast.parse_fetch(cut, start, start + size, version)
    for pos, end in ((0, len(body) + 1), (-1, len(body)), (5, 4), (len(buf), len(buf))):
        with pytest.raises(ProtocolError):
            fast.parse_fetch(buf, pos, end, version)


@pytest.mark.parametrize("version", [-1, 0, 3, 19])
def test_other_versions(version: int) -> None:
    with pytest.raises(ProtocolError, match="version"):
        fast.parse_fetch(rich_request(12), 0, 10, version)
    with pytest.raises(ProtocolError, match="version"):
        fast.encode_fetch_response(version, 1, [])


@pytest.mark.parametrize("version", VERSIONS)
def test_absurd_counts_are_refused_at_once(version: int) -> None:
    head = bytes(17 if version < 7 else 25 if version < 15 else 21)
    topic = bytes(16) if version >= 13 else b"\2t" if version >= 12 else b"\0\1t"
    many = b"\xff\xff\xff\xff\x0f" if version >= 12 else b"\x7f\xff\xff\xff"
    one = b"\2" if version >= 12 else b"\0\0\0\1"
    for body in (head + many, head + one + topic + many):
        with pytest.raises(ProtocolError):
            fast.parse_fetch(body + bytes(100), 0, len(body) + 100, version)


pair = st.none() | st.just((-1, -1)) | st.tuples(int32, int32)
results = st.lists(
    st.builds(
        fast.FetchResult,
        topic=st.sampled_from(("a", "b")) | names,
        partition=int32,
        error_code=int16,
        size=st.just(-1),
        high_watermark=int64,
        last_stable_offset=int64,
        log_start_offset=int64,
        records=st.none() | st.lists(st.binary(max_size=200), max_size=3),
        aborted=st.none() | st.lists(st.tuples(int64, int64), max_size=3),
        preferred_read_replica=int32,
        diverging_epoch=st.none() | st.just((-1, -1)) | st.tuples(int32, int64),
        current_leader=pair,
        snapshot_id=st.none() | st.just((-1, -1)) | st.tuples(int64, int32),
    ),
    max_size=6,
)
endpoints = st.lists(st.builds(fast.NodeEndpoint, int32, names, int32, texts), max_size=2)


def for_version(result: fast.FetchResult, version: int) -> fast.FetchResult:
    topic = str(result.topic)
    return result._replace(topic=topic.encode()[:16].ljust(16, b"\1")) if version >= 13 else result


def codec_part(version: int, result: fast.FetchResult) -> Any:
    response = m.FetchResponse
    part = response.PartitionData(
        partition_index=result.partition,
        error_code=result.error_code,
        high_watermark=result.high_watermark,
        last_stable_offset=result.last_stable_offset,
        records=None if result.records is None else b"".join(result.records),
        aborted_transactions=None
        if result.aborted is None
        else [response.AbortedTransaction(producer_id=p, first_offset=o) for p, o in result.aborted],
    )
    if version >= 5:
        part.log_start_offset = result.log_start_offset
    if version >= 11:
        part.preferred_read_replica = result.preferred_read_replica
    if version >= 12:
        if result.diverging_epoch is not None:
            epoch, end = result.diverging_epoch
            part.diverging_epoch = response.EpochEndOffset(epoch=epoch, end_offset=end)
        if result.current_leader is not None:
            leader, epoch = result.current_leader
            part.current_leader = response.LeaderIdAndEpoch(leader_id=leader, leader_epoch=epoch)
        if result.snapshot_id is not None:
            end, epoch = result.snapshot_id
            part.snapshot_id = response.SnapshotId(end_offset=end, epoch=epoch)
    return part


def same_by_codec(
    version: int, results: list[fast.FetchResult], numbers: tuple[int, int, int], nodes: list[fast.NodeEndpoint]
) -> bytes:
    response = m.FetchResponse(throttle_time_ms=numbers[2])
    if version >= 7:
        response.error_code, response.session_id = numbers[:2]
    last: Any = None
    for result in results:
        if result.topic != last:
            last = result.topic
            field = "topic_id" if version >= 13 else "topic"
            response.responses.append(m.FetchResponse.FetchableTopicResponse(**{field: last}))
        response.responses[-1].partitions.append(codec_part(version, result))
    if version >= 16:
        response.node_endpoints = [
            m.FetchResponse.NodeEndpoint(node_id=node_id, host=host, port=port, rack=rack)
            for node_id, host, port, rack in nodes
        ]
    encoded: bytes = response.encode(version)
    return encoded


@given(
    version=versions,
    results=results,
    numbers=st.tuples(int16, int32, int32),
    nodes=endpoints,
    correlation_id=int32,
    sized=st.booleans(),
)
@settings(max_examples=400)
def test_responses(
    version: int,
    results: list[fast.FetchResult],
    numbers: tuple[int, int, int],
    nodes: list[fast.NodeEndpoint],
    correlation_id: int,
    sized: bool,
) -> None:
    results = [for_version(result, version) for result in results]
    if sized:
        results = [result._replace(size=sum(map(len, result.records or ()))) for result in results]
    error_code, session_id, throttle_ms = numbers
    size, pieces = fast.encode_fetch_response(
        version,
        correlation_id,
        results,
        error_code=error_code,
        session_id=session_id,
        throttle_ms=throttle_ms,
        endpoints=nodes,
    )
    frame = b"".join(pieces)
    assert size == len(frame)
    assert frame == response_frame(1, version, correlation_id, same_by_codec(version, results, numbers, nodes))
    assert b"".join(fast.coalesce(size, pieces)) == frame


@pytest.mark.parametrize("version", VERSIONS)
def test_records_are_not_copied(version: int) -> None:
    batches = [bytearray(b"a" * 100), memoryview(b"b" * 50), b"c" * 20]
    results = [for_version(fast.FetchResult("t", i, records=batches), version) for i in range(2)]
    _, pieces = fast.encode_fetch_response(version, 1, results)
    for batch in batches:
        assert sum(piece is batch for piece in pieces) == 2
    assert len(pieces) == 9


def test_small_answers_are_joined_and_big_ones_are_not() -> None:
    def pieces(count: int, size: int) -> tuple[int, list[Any]]:
        return fast.encode_fetch_response(12, 1, [fast.FetchResult("t", 0, records=[bytes(size)] * count)])

    for count, size, joined in ((6000, 170, True), (64, 16_000, True), (1, 100, True), (8, 131_072, False)):
        assert (len(fast.coalesce(*pieces(count, size))) == 1) == joined, (count, size)
    assert len(fast.coalesce(*pieces(200, 16_000))) == 202, "more than 1 MiB"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_cannot_be_said(version: int) -> None:
    topic = b"t" * 16 if version >= 13 else "t"
    other = "t" if version >= 13 else b"t" * 16
    for result in (
        fast.FetchResult(other, 0),
        fast.FetchResult(topic, 1 << 31),
        fast.FetchResult(topic, 0, 1 << 15),
        fast.FetchResult(topic, 0, 0, 1 << 63),
        fast.FetchResult(topic, 0, aborted=[(1 << 63, 0)]),
    ):
        with pytest.raises(ProtocolError):
            fast.encode_fetch_response(version, 0, [result])
    if version < 13:
        for name in ("x" * 32768, "\ud800"):
            with pytest.raises(ProtocolError):
                fast.encode_fetch_response(version, 0, [fast.FetchResult(name, 0)])
