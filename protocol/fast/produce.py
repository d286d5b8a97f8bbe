"""Produce v3 to v13: requests in, replies out. Flexible from v9 on, topics by id from v13 on."""

from collections.abc import Callable, Sequence
from functools import lru_cache
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
    parse_compact_string,
    parse_string,
    refuse_version,
    string,
    tagged_fields,
)
from protocol.framing import read_uvarint, skip_tagged_fields, uvarint

VERSIONS = range(3, 14)
PARTS_MAX = 50_000
"""A request of 100 MB has room for millions of empty partitions, which would hold everybody up for seconds."""
_FLEXIBLE_FROM = 9
_IDS_FROM = 13

#: topic, partition, start, stop: the records are `buf[start:stop]`; start and stop are -1 for null.
ProducePart: TypeAlias = tuple[Topic, int, int, int]

_tuple = tuple.__new__
_INT32 = Struct(">i")
_unpack_acks_compact = Struct(">hiB").unpack_from
_unpack_acks = Struct(">hii").unpack_from
_unpack_usual_id = Struct(">BhiB16sBiB").unpack_from
_unpack_usual_name = Struct(">BhiBB").unpack_from
_unpack_one_part = Struct(">BiB").unpack_from
_unpack_id_count = Struct(">16sB").unpack_from
_unpack_part_compact = Struct(">iB").unpack_from
_unpack_part = Struct(">ii").unpack_from


class ProduceRequest(NamedTuple):
    """`parts` in the order of the request; a topic may come twice, as may a partition."""

    transactional_id: str | None
    acks: int
    timeout_ms: int
    parts: list[ProducePart]


#: acks, topic, partition, start, stop of a request without a transaction that has one part.
OnePart: TypeAlias = tuple[int, Topic, int, int, int]


class ProduceResult(NamedTuple):
    """The answer for one partition. `record_errors`: (index of the record in its batch, message or None)."""

    topic: Topic
    partition: int
    error_code: int = 0
    base_offset: int = -1
    log_append_time: int = -1
    log_start_offset: int = -1
    record_errors: Sequence[tuple[int, str | None]] = ()
    error_message: str | None = None
    #: leader id and leader epoch, from v10 on (KIP-951)
    current_leader: tuple[int, int] | None = None


def parse_produce(buf: Buffer, pos: int, end: int, version: int) -> ProduceRequest:
    """The request whose body is `buf[pos:end]`. Nothing is copied but names and ids. ProtocolError: any other bytes."""
    if not 3 <= version <= 13:
        raise refuse_version("Produce", version)
    if not 0 <= pos <= end <= len(buf):
        raise ProtocolError(f"no Produce request at {pos} to {end} of {len(buf)} bytes")
    try:
        if version < _FLEXIBLE_FROM:
            return _parse_plain(buf, pos, end)
        return _parse_flexible(buf, pos, end, version >= _IDS_FROM)
    except (IndexError, StructError):
        raise ProtocolError(f"Produce v{version} is cut off after {end - pos} bytes") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"Produce v{version} has a string that is not UTF-8") from None


def parse_usual_produce(buf: Buffer, pos: int, end: int, version: int) -> OnePart | None:
    """`parse_produce` for what most producers send from v9 on: one part, no transaction. None: another one, or damaged.

    Every bound is checked against `end`, which is the caller's to know within `buf`.
    """
    if end - pos < 33 or version < _FLEXIBLE_FROM:
        return None
    topic: Topic
    if version >= _IDS_FROM:
        transactional, acks, _, topics, topic, partitions, partition, size = _unpack_usual_id(buf, pos)
        if transactional or topics != 2:
            return None
        pos += 30
    else:
        transactional, acks, _, topics, name_size = _unpack_usual_name(buf, pos)
        stop = pos + 8 + name_size
        if transactional or topics != 2 or not 0 < name_size < 128 or stop + 6 >= end:
            return None
        try:
            topic = str(buf[pos + 9 : stop], "utf-8")
        except UnicodeDecodeError:
            return None
        partitions, partition, size = _unpack_one_part(buf, stop)
        pos = stop + 6
    if partitions != 2 or not size:
        return None
    if size > 127:
        byte = buf[pos]
        if byte < 128:
            size += (byte << 7) - 128
            pos += 1
        else:
            size, pos = read_uvarint(buf, pos - 1, end)
    stop = pos + size - 1
    # Nothing after the records but three empty sections of tagged fields.
    if stop + 3 != end or buf[stop] or buf[stop + 1] or buf[stop + 2]:
        return None
    return acks, topic, partition, pos, stop


def _parse_flexible(buf: Buffer, pos: int, end: int, by_id: bool) -> ProduceRequest:
    if buf[pos]:
        transactional_id, pos = parse_compact_string(buf, pos, end, "transactional_id")
    else:
        transactional_id = None
        pos += 1
    acks, timeout_ms, topics = _unpack_acks_compact(buf, pos)
    pos += 7
    if topics > 127:
        topics, pos = read_uvarint(buf, pos - 1, end)
    if not topics:
        raise is_null("topic_data")
    if topics > end - pos:
        raise cut_off("topic_data", topics - 1, end - pos)
    if topics > PARTS_MAX:
        raise _too_many(topics)
    parts: list[ProducePart] = []
    for _ in range(topics - 1):
        topic: Topic | None
        if by_id:
            topic, count = _unpack_id_count(buf, pos)
            pos += 17
        else:
            topic, pos = parse_compact_string(buf, pos, end, "name")
            if topic is None:
                raise is_null("name")
            count = buf[pos]
            pos += 1
        if count > 127:
            count, pos = read_uvarint(buf, pos - 1, end)
        if not count:
            raise is_null("partition_data")
        count -= 1
        if count * 6 > end - pos:
            raise cut_off("partition_data", count, end - pos)
        if count + len(parts) > PARTS_MAX:
            raise _too_many(count + len(parts))
        for _ in range(count):
            partition, size = _unpack_part_compact(buf, pos)
            pos += 5
            if size > 127:
                # Batches under 16 KiB have a length of two bytes, those under 2 MiB one of three.
                byte = buf[pos]
                if byte < 128:
                    size += (byte << 7) - 128
                    pos += 1
                else:
                    size, pos = read_uvarint(buf, pos - 1, end)
            if size:
                stop = pos + size - 1
                if stop >= end:
                    raise cut_off("records", size - 1, end - pos)
                parts.append((topic, partition, pos, stop))
                pos = stop
            else:
                parts.append((topic, partition, -1, -1))
            pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
        pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
    pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
    if pos != end:
        raise ProtocolError(f"Produce ends at byte {pos}, not {end}")
    return _tuple(ProduceRequest, (transactional_id, acks, timeout_ms, parts))


def _parse_plain(buf: Buffer, pos: int, end: int) -> ProduceRequest:
    transactional_id, pos = parse_string(buf, pos, end, "transactional_id")
    acks, timeout_ms, topics = _unpack_acks(buf, pos)
    pos += 10
    if topics < 0:
        raise is_null("topic_data")
    if topics * 6 > end - pos:
        raise cut_off("topic_data", topics, end - pos)
    if topics > PARTS_MAX:
        raise _too_many(topics)
    parts: list[ProducePart] = []
    for _ in range(topics):
        topic, pos = parse_string(buf, pos, end, "name")
        if topic is None:
            raise is_null("name")
        count = _INT32.unpack_from(buf, pos)[0]
        pos += 4
        if count < 0:
            raise is_null("partition_data")
        if count * 8 > end - pos:
            raise cut_off("partition_data", count, end - pos)
        if count + len(parts) > PARTS_MAX:
            raise _too_many(count + len(parts))
        for _ in range(count):
            partition, size = _unpack_part(buf, pos)
            pos += 8
            if size >= 0:
                stop = pos + size
                if stop > end:
                    raise cut_off("records", size, end - pos)
                parts.append((topic, partition, pos, stop))
                pos = stop
            else:
                parts.append((topic, partition, -1, -1))
    if pos != end:
        raise ProtocolError(f"Produce ends at byte {pos}, not {end}")
    return _tuple(ProduceRequest, (transactional_id, acks, timeout_ms, parts))


def _too_many(count: int) -> ProtocolError:
    return ProtocolError(f"{count} topics or partitions in one Produce request, at most {PARTS_MAX} are read")


def encode_produce_response(
    version: int,
    correlation_id: int,
    results: Sequence[ProduceResult],
    *,
    throttle_ms: int = 0,
    endpoints: Sequence[NodeEndpoint] = (),
) -> bytes:
    """The whole reply, with length and header. Neighbouring results of one topic go into one topic of the answer.

    Written where the version has them: log append time always, log start offset from v5, record errors and message
    from v8, current leader and endpoints from v10 on. ProtocolError: a value that the version cannot say.
    """
    if version not in VERSIONS:
        raise refuse_version("Produce", version)
    try:
        return _encode(version, correlation_id, results, throttle_ms, endpoints)
    except (StructError, UnicodeEncodeError, AttributeError) as error:
        raise ProtocolError(f"ProduceResponse v{version}: {error}") from None


def _encode(
    version: int,
    correlation_id: int,
    results: Sequence[ProduceResult],
    throttle_ms: int,
    endpoints: Sequence[NodeEndpoint],
) -> bytes:
    flexible = version >= _FLEXIBLE_FROM
    topics = 0
    parts: list[bytes] = []
    at = 0
    while at < len(results):
        topic = results[at].topic
        first = at
        while at < len(results) and results[at].topic == topic:
            at += 1
        topics += 1
        parts.append(_topic_head(version, topic, at - first))
        parts += [_partition(version, result) for result in results[first:at]]
        if flexible:
            parts.append(b"\0")
    if flexible:
        tail = _INT32.pack(throttle_ms) + (node_endpoints(endpoints) if version >= 10 else b"\0")
        body = b"".join((b"\0", uvarint(topics + 1), *parts, tail))
    else:
        body = b"".join((_INT32.pack(topics), *parts, _INT32.pack(throttle_ms)))
    return _pack_frame_head(len(body) + 4, correlation_id) + body


_pack_frame_head = Struct(">ii").pack
_pack_partition_v3 = Struct(">ihqq").pack
_pack_partition_v5 = Struct(">ihqqq").pack
_pack_leader = Struct(">iix").pack


def _topic_head(version: int, topic: Topic, partitions: int) -> bytes:
    """Name or id of a topic and the count of its partitions."""
    if version >= _IDS_FROM:
        if type(topic) is not bytes or len(topic) != 16:
            raise ProtocolError(f"Produce v{version} answers by topic id, not {topic!r}")
        return topic + uvarint(partitions + 1)
    if type(topic) is not str:
        raise ProtocolError(f"Produce v{version} answers by topic name, not {topic!r}")
    if version >= _FLEXIBLE_FROM:
        return compact_string(topic, "name") + uvarint(partitions + 1)
    return string(topic, "name") + _INT32.pack(partitions)


def _partition(version: int, result: ProduceResult) -> bytes:
    _, partition, error_code, base_offset, append_time, start_offset, errors, message, leader = result
    if version < 5:
        return _pack_partition_v3(partition, error_code, base_offset, append_time)
    fixed = _pack_partition_v5(partition, error_code, base_offset, append_time, start_offset)
    if version < 8:
        return fixed
    if version < _FLEXIBLE_FROM:
        parts = [fixed, _INT32.pack(len(errors))]
        for index, text in errors:
            parts += (_INT32.pack(index), string(text, "batch_index_error_message"))
        parts.append(string(message, "error_message"))
        return b"".join(parts)
    if not errors and message is None and leader is None:
        return fixed + b"\1\0\0"
    parts = [fixed, uvarint(len(errors) + 1)]
    for index, text in errors:
        parts += (_INT32.pack(index), compact_string(text, "batch_index_error_message"), b"\0")
    parts.append(compact_string(message, "error_message"))
    if leader is None or leader == (-1, -1) or version < 10:
        parts.append(b"\0")
    else:
        parts.append(tagged_fields([(0, _pack_leader(*leader))]))
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _packer(layout: str) -> Callable[..., bytes]:
    """Logs whose names are of one length share a packer."""
    return Struct(layout).pack


def success_encoder(version: int, topic: Topic, partition: int) -> Callable[[int, int, int, int, int], bytes]:
    """A function that writes the whole reply to a request with this one partition, which was appended.

    Its arguments: correlation id, base offset, log append time (-1: create time), log start offset, throttle time (ms).
    To be kept per log and version; everything that does not change is packed beforehand.
    """
    if version not in VERSIONS:
        raise refuse_version("Produce", version)
    flexible = version >= _FLEXIBLE_FROM
    one_topic = b"\0\2" if flexible else _INT32.pack(1)
    prefix = one_topic + _topic_head(version, topic, 1) + Struct(">ih").pack(partition, 0)
    # After the numbers: no record errors, no message, ends of partition and topic; then throttle time and end.
    middle = b"" if version < 8 else b"\0\0\0\0\xff\xff" if not flexible else b"\1\0\0\0"
    tail = b"\0" if flexible else b""
    numbers = "qq" if version < 5 else "qqq"
    layout = f">ii{len(prefix)}s{numbers}{len(middle)}si{len(tail)}s"
    pack = _packer(layout)
    length = Struct(layout).size - 4

    if version < 5:

        def encode_v3(
            correlation_id: int, base_offset: int, log_append_time: int, log_start_offset: int, throttle_ms: int
        ) -> bytes:
            return pack(length, correlation_id, prefix, base_offset, log_append_time, middle, throttle_ms, tail)

        return encode_v3

    def encode(
        correlation_id: int, base_offset: int, log_append_time: int, log_start_offset: int, throttle_ms: int
    ) -> bytes:
        return pack(
            length, correlation_id, prefix, base_offset, log_append_time, log_start_offset, middle, throttle_ms, tail
        )

    return encode
