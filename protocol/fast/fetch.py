"""Fetch v4 to v18: requests in, replies out. Sessions from v7, flexible from v12, topics by id from v13 on."""

from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import NamedTuple, TypeAlias

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.fast.wire import (
    NodeEndpoint,
    Topic,
    compact_string,
    cut_off,
    is_null,
    node_endpoints,
    parse_compact_count,
    parse_compact_string,
    parse_string,
    refuse_version,
    string,
    tagged_fields,
)
from protocol.framing import read_uvarint, skip_tagged_fields, uvarint

VERSIONS = range(4, 19)
_FLEXIBLE_FROM = 12
_IDS_FROM = 13
_JOIN_BYTES_MAX = 1 << 20
_JOIN_PART_BYTES_MAX = 64 * 1024

#: topic, partition, fetch offset, max bytes; current leader epoch, last fetched epoch, log start offset (-1: not set)
FetchPart: TypeAlias = tuple[Topic, int, int, int, int, int, int]

_tuple = tuple.__new__
_INT32 = Struct(">i")


class FetchRequest(NamedTuple):
    """`parts` and `forgotten` (topic, partition) in the order of the request.

    Before v7 there is no session: id 0, epoch -1. What only brokers and controllers tell each other about a partition
    (replica directory id, high watermark) is read over.
    """

    replica_id: int
    replica_epoch: int
    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    isolation_level: int
    session_id: int
    session_epoch: int
    parts: list[FetchPart]
    forgotten: list[tuple[Topic, int]]
    rack_id: str
    cluster_id: str | None


class FetchResult(NamedTuple):
    """The answer for one partition. `records`: whole batches, which are sent as they are; None for null.

    `size`: their bytes together, counted if it is -1. `aborted`: (producer id, first offset), None if the reader did
    not ask for committed records only. The last three are written from v12 on: diverging epoch (epoch, end offset),
    current leader (id, epoch; KIP-951), snapshot id (end offset, epoch).
    """

    topic: Topic
    partition: int
    error_code: int = 0
    high_watermark: int = -1
    last_stable_offset: int = -1
    log_start_offset: int = -1
    records: Sequence[Buffer] | None = ()
    size: int = -1
    aborted: Sequence[tuple[int, int]] | None = None
    preferred_read_replica: int = -1
    diverging_epoch: tuple[int, int] | None = None
    current_leader: tuple[int, int] | None = None
    snapshot_id: tuple[int, int] | None = None


def parse_fetch(buf: Buffer, pos: int, end: int, version: int) -> FetchRequest:
    """The request whose body is `buf[pos:end]`. ProtocolError: any other bytes."""
    if not 4 <= version <= 18:
        raise refuse_version("Fetch", version)
    if not 0 <= pos <= end <= len(buf):
        raise ProtocolError(f"no Fetch request at {pos} to {end} of {len(buf)} bytes")
    try:
        if version < _FLEXIBLE_FROM:
            return _parse_plain(buf, pos, end, version)
        return _parse_flexible(buf, pos, end, version)
    except (IndexError, StructError):
        raise ProtocolError(f"Fetch v{version} is cut off after {end - pos} bytes") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"Fetch v{version} has a string that is not UTF-8") from None


# replica id (before v15), max wait, min bytes, max bytes, isolation level; from v7 on session id and epoch;
# from v12 on the first byte of the count of topics
_unpack_head_v4 = Struct(">iiiib").unpack_from
_unpack_head_v7 = Struct(">iiiibii").unpack_from
_unpack_head_v12 = Struct(">iiiibiiB").unpack_from
_unpack_head_v15 = Struct(">iiibiiB").unpack_from
_unpack_id_count = Struct(">16sB").unpack_from
# partition, current leader epoch (v9), fetch offset, last fetched epoch (v12), log start offset (v5), max bytes
_unpack_part_v4 = Struct(">iqi").unpack_from
_unpack_part_v5 = Struct(">iqqi").unpack_from
_unpack_part_v9 = Struct(">iiqqi").unpack_from
_unpack_part_v12 = Struct(">iiqiqiB").unpack_from  # and the count of tagged fields
_unpack_replica_state = Struct(">iq").unpack_from


def _parse_flexible(buf: Buffer, pos: int, end: int, version: int) -> FetchRequest:
    if version >= 15:
        replica_id = -1
        max_wait_ms, min_bytes, max_bytes, isolation_level, session_id, session_epoch, topics = _unpack_head_v15(
            buf, pos
        )
        pos += 22
    else:
        (
            replica_id,
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation_level,
            session_id,
            session_epoch,
            topics,
        ) = _unpack_head_v12(buf, pos)
        pos += 26
    if topics > 127:
        topics, pos = read_uvarint(buf, pos - 1, end)
    if not topics:
        raise is_null("topics")
    if topics > end - pos:
        raise cut_off("topics", topics - 1, end - pos)
    by_id = version >= _IDS_FROM
    parts: list[FetchPart] = []
    for _ in range(topics - 1):
        topic, count, pos = _parse_topic_flexible(buf, pos, end, by_id, 33)
        for _ in range(count):
            partition, epoch, offset, last_epoch, start_offset, part_bytes, tags = _unpack_part_v12(buf, pos)
            parts.append((topic, partition, offset, part_bytes, epoch, last_epoch, start_offset))
            pos += 33
            if tags:
                pos = _part_tags(buf, pos - 1, end, version)
        pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
    forgotten: list[tuple[Topic, int]] = []
    rack_id: str | None = ""
    replica_epoch, cluster_id = -1, None
    if buf[pos] == 1 == buf[pos + 1] and not buf[pos + 2]:
        pos += 3  # nothing forgotten, no rack, no tagged fields: the usual end
    else:
        forgotten, pos = _parse_forgotten_flexible(buf, pos, end, by_id)
        rack_id, pos = parse_compact_string(buf, pos, end, "rack_id")
        if rack_id is None:
            raise is_null("rack_id")
        replica_id, replica_epoch, cluster_id, pos = _tags(buf, pos, end, version, replica_id)
    _check_end(pos, end)
    return _tuple(
        FetchRequest,
        (
            replica_id,
            replica_epoch,
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation_level,
            session_id,
            session_epoch,
            parts,
            forgotten,
            rack_id,
            cluster_id,
        ),
    )


def _parse_topic_flexible(buf: Buffer, pos: int, end: int, by_id: bool, least: int) -> tuple[Topic, int, int]:
    """Name or id of a topic, the count of its partitions, which have `least` bytes each, and the position after it."""
    topic: Topic | None
    if by_id:
        topic, count = _unpack_id_count(buf, pos)
        pos += 17
    else:
        topic, pos = parse_compact_string(buf, pos, end, "topic")
        count = buf[pos]
        pos += 1
    if topic is None:
        raise is_null("topic")
    if count > 127:
        count, pos = read_uvarint(buf, pos - 1, end)
    if not count:
        raise is_null("partitions")
    count -= 1
    if count * least > end - pos:
        raise cut_off("partitions", count, end - pos)
    return topic, count, pos


def _parse_forgotten_flexible(buf: Buffer, pos: int, end: int, by_id: bool) -> tuple[list[tuple[Topic, int]], int]:
    topics, pos = parse_compact_count(buf, pos, end, "forgotten_topics_data", 3)
    forgotten: list[tuple[Topic, int]] = []
    for _ in range(topics):
        topic, count, pos = _parse_topic_flexible(buf, pos, end, by_id, 4)
        for _ in range(count):
            forgotten.append((topic, _INT32.unpack_from(buf, pos)[0]))
            pos += 4
        pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
    return forgotten, pos


def _part_tags(buf: Buffer, pos: int, end: int, version: int) -> int:
    """Position after the tagged fields of a partition: directory id (0, v17) and high watermark (1, v18) are skipped,
    the rest is unknown. Their sizes have to be right all the same."""
    count, pos = read_uvarint(buf, pos, end)
    for _ in range(count):
        tag, pos = read_uvarint(buf, pos, end)
        size, pos = read_uvarint(buf, pos, end)
        if size > end - pos:
            raise cut_off("tagged field", size, end - pos)
        if (tag == 0 and version >= 17 and size != 16) or (tag == 1 and version >= 18 and size != 8):
            raise ProtocolError(f"tagged field {tag} of a partition has {size} bytes")
        pos += size
    return pos


def _tags(buf: Buffer, pos: int, end: int, version: int, replica_id: int) -> tuple[int, int, str | None, int]:
    """Replica id, replica epoch and cluster id from the request's tagged fields, and the position after them."""
    replica_epoch, cluster_id = -1, None
    count, pos = read_uvarint(buf, pos, end)
    for _ in range(count):
        tag, pos = read_uvarint(buf, pos, end)
        size, pos = read_uvarint(buf, pos, end)
        stop = pos + size
        if stop > end:
            raise cut_off("tagged field", size, end - pos)
        if tag == 0:
            cluster_id, pos = parse_compact_string(buf, pos, end, "cluster_id")
        elif tag == 1 and version >= 15:
            replica_id, replica_epoch = _unpack_replica_state(buf, pos)
            pos = skip_tagged_fields(buf, pos + 12, end)
        else:
            pos = stop
        if pos != stop:
            raise ProtocolError(f"tagged field {tag} is not of the size it says")
    return replica_id, replica_epoch, cluster_id, pos


def _parse_plain(buf: Buffer, pos: int, end: int, version: int) -> FetchRequest:
    session_id, session_epoch = 0, -1
    if version < 7:
        replica_id, max_wait_ms, min_bytes, max_bytes, isolation_level = _unpack_head_v4(buf, pos)
        pos += 17
    else:
        replica_id, max_wait_ms, min_bytes, max_bytes, isolation_level, session_id, session_epoch = _unpack_head_v7(
            buf, pos
        )
        pos += 25
    least = 28 if version >= 9 else 24 if version >= 5 else 16
    parts: list[FetchPart] = []
    topics, pos = _plain_count(buf, pos, end, "topics", 6)
    for _ in range(topics):
        topic, count, pos = _parse_topic_plain(buf, pos, end, least)
        epoch, start_offset = -1, -1
        for _ in range(count):
            if version >= 9:
                partition, epoch, offset, start_offset, part_bytes = _unpack_part_v9(buf, pos)
            elif version >= 5:
                partition, offset, start_offset, part_bytes = _unpack_part_v5(buf, pos)
            else:
                partition, offset, part_bytes = _unpack_part_v4(buf, pos)
            parts.append((topic, partition, offset, part_bytes, epoch, -1, start_offset))
            pos += least
    forgotten: list[tuple[Topic, int]] = []
    if version >= 7:
        topics, pos = _plain_count(buf, pos, end, "forgotten_topics_data", 6)
        for _ in range(topics):
            topic, count, pos = _parse_topic_plain(buf, pos, end, 4)
            for _ in range(count):
                forgotten.append((topic, _INT32.unpack_from(buf, pos)[0]))
                pos += 4
    rack_id: str | None = ""
    if version >= 11:
        rack_id, pos = parse_string(buf, pos, end, "rack_id")
        if rack_id is None:
            raise is_null("rack_id")
    _check_end(pos, end)
    return _tuple(
        FetchRequest,
        (
            replica_id,
            -1,
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation_level,
            session_id,
            session_epoch,
            parts,
            forgotten,
            rack_id,
            None,
        ),
    )


def _parse_topic_plain(buf: Buffer, pos: int, end: int, least: int) -> tuple[Topic, int, int]:
    """As `_parse_topic_flexible`, for the versions before."""
    topic, pos = parse_string(buf, pos, end, "topic")
    if topic is None:
        raise is_null("topic")
    count, pos = _plain_count(buf, pos, end, "partitions", least)
    return topic, count, pos


def _plain_count(buf: Buffer, pos: int, end: int, what: str, least: int) -> tuple[int, int]:
    count: int = _INT32.unpack_from(buf, pos)[0]
    pos += 4
    if count < 0:
        raise is_null(what)
    if count * least > end - pos:
        raise cut_off(what, count, end - pos)
    return count, pos


def _check_end(pos: int, end: int) -> None:
    if pos != end:
        raise ProtocolError(f"Fetch ends at byte {pos}, not {end}")


_pack_frame_plain = Struct(">ii").pack
_pack_frame_flexible = Struct(">iix").pack
_pack_head_v7 = Struct(">ihi").pack  # throttle time, error code, session id
_pack_part_v4 = Struct(">ihqq").pack  # partition, error code, high watermark, last stable offset
_pack_part_v5 = Struct(">ihqqq").pack  # and log start offset
_pack_two_longs = Struct(">qq").pack
_pack_aborted_compact = Struct(">qqx").pack
_pack_diverging = Struct(">iqx").pack
_pack_leader = Struct(">iix").pack
_pack_snapshot = Struct(">qix").pack


def encode_fetch_response(
    version: int,
    correlation_id: int,
    results: Sequence[FetchResult],
    *,
    error_code: int = 0,
    session_id: int = 0,
    throttle_ms: int = 0,
    endpoints: Sequence[NodeEndpoint] = (),
) -> tuple[int, list[Buffer]]:
    """The whole reply, with length and header: its size in bytes, and the buffers it consists of, in order.

    The records' buffers are among them as they are. Neighbouring results of one topic go into one topic of the answer.
    ProtocolError: a value that the version cannot say.
    """
    if version not in VERSIONS:
        raise refuse_version("Fetch", version)
    try:
        return _encode(version, correlation_id, results, error_code, session_id, throttle_ms, endpoints)
    except (StructError, UnicodeEncodeError, AttributeError) as error:
        raise ProtocolError(f"FetchResponse v{version}: {error}") from None


def coalesce(size: int, pieces: list[Buffer]) -> list[Buffer]:
    """The same bytes in one buffer if a copy is cheaper than a vector of many small parts, else `pieces` itself."""
    if size <= _JOIN_BYTES_MAX + 4096 and size < len(pieces) * _JOIN_PART_BYTES_MAX:
        return [b"".join(pieces)]
    return pieces


def _encode(
    version: int,
    correlation_id: int,
    results: Sequence[FetchResult],
    error_code: int,
    session_id: int,
    throttle_ms: int,
    endpoints: Sequence[NodeEndpoint],
) -> tuple[int, list[Buffer]]:
    flexible = version >= _FLEXIBLE_FROM
    write_part = _append_part_flexible if flexible else _append_part_plain
    pieces: list[Buffer] = []
    out = bytearray()  # what stands between two partitions' records
    head = _pack_head_v7(throttle_ms, error_code, session_id) if version >= 7 else _INT32.pack(throttle_ms)
    topics = 0
    body_size = 0
    at, total = 0, len(results)
    while at < total:
        topic = results[at].topic
        first = at
        at += 1
        while at < total and results[at].topic == topic:
            at += 1
        topics += 1
        out += _topic_head(version, topic, at - first)
        for result in results[first:at]:
            records = result.records
            size = result.size
            if size < 0:
                size = sum(map(len, records)) if records else 0
            tags = write_part(version, out, result, size)
            if size:
                assert records is not None
                pieces.append(out)
                pieces += records
                body_size += len(out) + size
                out = bytearray()
            out += tags
        if flexible:
            out.append(0)
    if flexible:
        head += uvarint(topics + 1)
        out += node_endpoints(endpoints) if version >= 16 else b"\0"
    else:
        head += _INT32.pack(topics)
    pieces.append(out)
    body_size += len(head) + len(out)
    if flexible:
        pieces[0] = b"".join((_pack_frame_flexible(body_size + 5, correlation_id), head, pieces[0]))
        return body_size + 9, pieces
    pieces[0] = b"".join((_pack_frame_plain(body_size + 4, correlation_id), head, pieces[0]))
    return body_size + 8, pieces


def _topic_head(version: int, topic: Topic, partitions: int) -> bytes:
    """Name or id of a topic and the count of its partitions."""
    if version >= _IDS_FROM:
        if type(topic) is not bytes or len(topic) != 16:
            raise ProtocolError(f"Fetch v{version} answers by topic id, not {topic!r}")
        return topic + uvarint(partitions + 1)
    if type(topic) is not str:
        raise ProtocolError(f"Fetch v{version} answers by topic name, not {topic!r}")
    if version >= _FLEXIBLE_FROM:
        return compact_string(topic, "topic") + uvarint(partitions + 1)
    return string(topic, "topic") + _INT32.pack(partitions)


def _append_part_flexible(version: int, out: bytearray, result: FetchResult, size: int) -> bytes:
    """Writes a partition up to its records' length; returns what stands after the records."""
    out += _pack_part_v5(*result[1:6])
    aborted = result.aborted
    if aborted is None:
        out.append(0)
    else:
        out += uvarint(len(aborted) + 1)
        for producer_id, first_offset in aborted:
            out += _pack_aborted_compact(producer_id, first_offset)
    out += _INT32.pack(result.preferred_read_replica)
    out += b"\0" if result.records is None else uvarint(size + 1)
    diverging, leader, snapshot = result[10:]
    if diverging is None and leader is None and snapshot is None:
        return b"\0"
    tags = []
    if diverging is not None and diverging != (-1, -1):
        tags.append((0, _pack_diverging(*diverging)))
    if leader is not None and leader != (-1, -1):
        tags.append((1, _pack_leader(*leader)))
    if snapshot is not None and snapshot != (-1, -1):
        tags.append((2, _pack_snapshot(*snapshot)))
    return tagged_fields(tags)


def _append_part_plain(version: int, out: bytearray, result: FetchResult, size: int) -> bytes:
    """As `_append_part_flexible`, for the versions before."""
    out += _pack_part_v5(*result[1:6]) if version >= 5 else _pack_part_v4(*result[1:5])
    aborted = result.aborted
    if aborted is None:
        out += b"\xff\xff\xff\xff"
    else:
        out += _INT32.pack(len(aborted))
        for transaction in aborted:
            out += _pack_two_longs(*transaction)
    if version >= 11:
        out += _INT32.pack(result.preferred_read_replica)
    out += _INT32.pack(-1 if result.records is None else size)
    return b""
