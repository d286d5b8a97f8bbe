"""Metadata v0 to v13: requests in; answers put together from pieces that a broker keeps until something changes.

What an answer says about a topic is the same for everyone who may see it, so it is encoded once per version
(`encode_metadata_topic`) and an answer is a join (`encode_metadata_response`). Flexible from v9 on, topic ids from v10.
"""

from collections.abc import Sequence
from struct import Struct, pack
from struct import error as StructError
from typing import NamedTuple

from protocol import Buffer
from protocol.errors import ProtocolError
from protocol.fast.wire import (
    compact_string,
    cut_off,
    is_null,
    parse_compact_string,
    parse_string,
    refuse_version,
    string,
)
from protocol.framing import read_uvarint, skip_tagged_fields, uvarint

VERSIONS = range(14)
_FLEXIBLE_FROM = 9
_IDS_FROM = 10
_ZERO_ID = bytes(16)
#: What stands for authorised operations that were not asked for.
OPERATIONS_UNKNOWN = -(1 << 31)

_INT32 = Struct(">i")


class MetadataRequest(NamedTuple):
    """`topics`: (topic id, name) each, the id zero before v10, the name None if the id is meant; None for all topics.

    v0 has no null and asks for all topics with an empty array, which is None here, too.
    """

    topics: list[tuple[bytes, str | None]] | None
    allow_auto_topic_creation: bool
    include_cluster_authorized_operations: bool
    include_topic_authorized_operations: bool


class MetadataBroker(NamedTuple):
    node_id: int
    host: str
    port: int
    rack: str | None = None


class MetadataPartition(NamedTuple):
    error_code: int
    partition: int
    leader_id: int
    leader_epoch: int
    replicas: Sequence[int]
    isr: Sequence[int]
    offline: Sequence[int] = ()


def parse_metadata(buf: Buffer, pos: int, end: int, version: int) -> MetadataRequest:
    """The request whose body is `buf[pos:end]`. ProtocolError: any other bytes."""
    if not 0 <= version <= 13:
        raise refuse_version("Metadata", version)
    if not 0 <= pos <= end <= len(buf):
        raise ProtocolError(f"no Metadata request at {pos} to {end} of {len(buf)} bytes")
    try:
        if version < _FLEXIBLE_FROM:
            topics, pos = _parse_topics_plain(buf, pos, end, version)
        else:
            topics, pos = _parse_topics_flexible(buf, pos, end, version >= _IDS_FROM)
        create, cluster_operations, topic_operations = True, False, False
        if version >= 4:
            create = buf[pos] != 0
            pos += 1
        if 8 <= version <= 10:
            cluster_operations = buf[pos] != 0
            pos += 1
        if version >= 8:
            topic_operations = buf[pos] != 0
            pos += 1
        if version >= _FLEXIBLE_FROM:
            pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
    except (IndexError, StructError):
        raise ProtocolError(f"Metadata v{version} is cut off after {end - pos} bytes") from None
    except UnicodeDecodeError:
        raise ProtocolError(f"Metadata v{version} has a string that is not UTF-8") from None
    if pos != end:
        raise ProtocolError(f"Metadata ends at byte {pos}, not {end}")
    return MetadataRequest(topics, create, cluster_operations, topic_operations)


def _parse_topics_flexible(
    buf: Buffer, pos: int, end: int, by_id: bool
) -> tuple[list[tuple[bytes, str | None]] | None, int]:
    count = buf[pos]
    pos += 1
    if count > 127:
        count, pos = read_uvarint(buf, pos - 1, end)
    if not count:
        return None, pos
    if count > end - pos:
        raise cut_off("topics", count - 1, end - pos)
    topics: list[tuple[bytes, str | None]] = []
    topic_id = _ZERO_ID
    for _ in range(count - 1):
        if by_id:
            topic_id = bytes(buf[pos : pos + 16])
            pos += 16
        name, pos = parse_compact_string(buf, pos, end, "name")
        if name is None and not by_id:
            raise is_null("name")
        topics.append((topic_id, name))
        pos = skip_tagged_fields(buf, pos, end) if buf[pos] else pos + 1
    return topics, pos


def _parse_topics_plain(
    buf: Buffer, pos: int, end: int, version: int
) -> tuple[list[tuple[bytes, str | None]] | None, int]:
    count = _INT32.unpack_from(buf, pos)[0]
    pos += 4
    if count < 0:
        if not version:
            raise is_null("topics")
        return None, pos
    if count * 2 > end - pos:
        raise cut_off("topics", count, end - pos)
    if not count and not version:
        return None, pos
    topics: list[tuple[bytes, str | None]] = []
    for _ in range(count):
        name, pos = parse_string(buf, pos, end, "name")
        if name is None:
            raise is_null("name")
        topics.append((_ZERO_ID, name))
    return topics, pos


def encode_metadata_topic(
    version: int,
    name: str | None,
    topic_id: bytes,
    partitions: Sequence[MetadataPartition],
    *,
    error_code: int = 0,
    is_internal: bool = False,
    authorized_operations: int = OPERATIONS_UNKNOWN,
) -> bytes:
    """One topic of an answer of this version. A null name (an unknown id) exists from v12 on.

    ProtocolError: a value that the version cannot say.
    """
    if version not in VERSIONS:
        raise refuse_version("Metadata", version)
    if name is None and version < 12:
        raise is_null("name")
    if version >= _IDS_FROM and len(topic_id) != 16:
        raise ProtocolError("topic_id is not 16 bytes")
    flexible = version >= _FLEXIBLE_FROM
    try:
        parts = [pack(">h", error_code), compact_string(name, "name") if flexible else string(name, "name")]
        if version >= _IDS_FROM:
            parts.append(topic_id)
        if version >= 1:
            parts.append(b"\1" if is_internal else b"\0")
        parts.append(uvarint(len(partitions) + 1) if flexible else _INT32.pack(len(partitions)))
        if flexible:
            for partition in partitions:
                _append_partition_flexible(parts, partition)
        else:
            for partition in partitions:
                _append_partition_plain(parts, partition, version)
        if version >= 8:
            parts.append(_INT32.pack(authorized_operations))
        if flexible:
            parts.append(b"\0")
    except (StructError, UnicodeEncodeError) as error:
        raise ProtocolError(f"MetadataResponse v{version}: {error}") from None
    return b"".join(parts)


_pack_partition_v0 = Struct(">hii").pack  # error code, partition, leader id
_pack_partition_v7 = Struct(">hiii").pack  # and leader epoch
# The usual partition has one replica, itself in sync: its two arrays, empty offline replicas, no tagged fields.
_pack_one_replica = Struct(">hiiiBiBixx").pack


def _append_partition_flexible(parts: list[bytes], partition: MetadataPartition) -> None:
    error_code, index, leader_id, leader_epoch, replicas, isr, offline = partition
    if len(replicas) == 1 == len(isr) and not offline:
        packed = bytearray(_pack_one_replica(error_code, index, leader_id, leader_epoch, 2, replicas[0], 2, isr[0]))
        packed[-2] = 1
        parts.append(bytes(packed))
        return
    parts.append(_pack_partition_v7(error_code, index, leader_id, leader_epoch))
    for nodes in (replicas, isr, offline):
        parts += (uvarint(len(nodes) + 1), pack(f">{len(nodes)}i", *nodes))
    parts.append(b"\0")


def _append_partition_plain(parts: list[bytes], partition: MetadataPartition, version: int) -> None:
    error_code, index, leader_id, leader_epoch, replicas, isr, offline = partition
    if version >= 7:
        parts.append(_pack_partition_v7(error_code, index, leader_id, leader_epoch))
    else:
        parts.append(_pack_partition_v0(error_code, index, leader_id))
    for nodes in (replicas, isr, offline) if version >= 5 else (replicas, isr):
        parts.append(pack(f">i{len(nodes)}i", len(nodes), *nodes))


def encode_metadata_response(
    version: int,
    throttle_ms: int,
    brokers: Sequence[MetadataBroker],
    cluster_id: str | None,
    controller_id: int,
    topics: Sequence[bytes],
    *,
    cluster_authorized_operations: int = OPERATIONS_UNKNOWN,
    error_code: int = 0,
) -> bytes:
    """The body of an answer; `topics` from `encode_metadata_topic` of the same version.

    ProtocolError: a value that the version cannot say.
    """
    if version not in VERSIONS:
        raise refuse_version("Metadata", version)
    flexible = version >= _FLEXIBLE_FROM
    text = compact_string if flexible else string
    try:
        parts = [_INT32.pack(throttle_ms)] if version >= 3 else []
        parts.append(uvarint(len(brokers) + 1) if flexible else _INT32.pack(len(brokers)))
        for node_id, host, port, rack in brokers:
            parts += (_INT32.pack(node_id), text(host, "host"), _INT32.pack(port))
            if version >= 1:
                parts.append(text(rack, "rack"))
            if flexible:
                parts.append(b"\0")
        if version >= 2:
            parts.append(text(cluster_id, "cluster_id"))
        if version >= 1:
            parts.append(_INT32.pack(controller_id))
        parts.append(uvarint(len(topics) + 1) if flexible else _INT32.pack(len(topics)))
        parts += topics
        if 8 <= version <= 10:
            parts.append(_INT32.pack(cluster_authorized_operations))
        if version >= 13:
            parts.append(pack(">h", error_code))
        if flexible:
            parts.append(b"\0")
    except (StructError, UnicodeEncodeError) as error:
        raise ProtocolError(f"MetadataResponse v{version}: {error}") from None
    return b"".join(parts)
