"""Changes of groups and offsets <-> keys and values of `__consumer_offsets`, exactly as Kafka 4.3 writes them.

A key begins with its record type (int16: 0 and 1 offset, 2 classic group; for consumer groups see
`broker.groups.consumer_records`), a value with its schema version (int16). Kafka 4.3
writes GroupMetadataValue v3, OffsetCommitValue v1 when the commit brought an expiry of its own, else v4 with the
topic id.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

from broker.groups.consumer_records import CONSUMER_KINDS, decode_consumer, encode_consumer
from broker.groups.model import (
    NO_TIMESTAMP,
    Change,
    GroupRemoved,
    GroupSaved,
    Offset,
    OffsetCommitted,
    OffsetRemoved,
    PendingOffset,
    SavedMember,
)
from protocol import messages as m
from protocol.errors import ProtocolError

GROUP_VALUE_VERSION = 3
OFFSET_VALUE_VERSION = 4
EXPIRING_OFFSET_VALUE_VERSION = 1

_OFFSET_KEYS = (0, 1)
_OFFSET_KEY = 1
_GROUP_KEY = 2

_INT16 = Struct(">h")


def encode(change: Change) -> tuple[bytes, bytes | None]:
    """Key and value; the value of a removal is None (a tombstone)."""
    match change:
        case OffsetCommitted(group_id, topic, partition, value):
            return _offset_key(group_id, topic, partition), _offset_value(value)
        case PendingOffset(_, _, group_id, topic, partition, value):
            return _offset_key(group_id, topic, partition), _offset_value(value)
        case OffsetRemoved(group_id, topic, partition):
            return _offset_key(group_id, topic, partition), None
        case GroupSaved():
            return _group_key(change.group_id), _group_value(change)
        case GroupRemoved(group_id):
            return _group_key(group_id), None
        case _:
            return encode_consumer(change)


def decode(key: bytes | None, value: bytes | None) -> Change | None:
    """The change that a record is; None for a type that this version does not know. ProtocolError: malformed."""
    try:
        if key is None:
            raise ProtocolError("record of __consumer_offsets without a key")
        (kind,) = _INT16.unpack_from(key, 0)
        if kind in _OFFSET_KEYS:
            what = m.OffsetCommitKey.decode(key, 0, 2)
            if value is None:
                return OffsetRemoved(what.group, what.topic, what.partition)
            return OffsetCommitted(what.group, what.topic, what.partition, _parse_offset(value))
        if kind == _GROUP_KEY:
            group_id = m.GroupMetadataKey.decode(key, 0, 2).group
            return GroupRemoved(group_id) if value is None else _parse_group(group_id, value)
        if kind in CONSUMER_KINDS:
            return decode_consumer(kind, key, value)
    except StructError as error:
        raise ProtocolError(f"record of __consumer_offsets with key {key!r}: {error}") from error
    return None


def _offset_key(group_id: str, topic: str, partition: int) -> bytes:
    key = m.OffsetCommitKey(group=group_id, topic=topic, partition=partition)
    return _INT16.pack(_OFFSET_KEY) + key.encode(0)


def _group_key(group_id: str) -> bytes:
    return _INT16.pack(_GROUP_KEY) + m.GroupMetadataKey(group=group_id).encode(0)


def _offset_value(value: Offset) -> bytes:
    expires = value.expire_timestamp_ms != NO_TIMESTAMP
    version = EXPIRING_OFFSET_VALUE_VERSION if expires else OFFSET_VALUE_VERSION
    return _INT16.pack(version) + m.OffsetCommitValue(
        offset=value.offset,
        leader_epoch=value.leader_epoch,
        metadata=value.metadata,
        commit_timestamp=value.commit_timestamp_ms,
        expire_timestamp=value.expire_timestamp_ms,
        topic_id=value.topic_id,
    ).encode(version)


def _parse_offset(data: bytes) -> Offset:
    (version,) = _INT16.unpack_from(data, 0)
    value = m.OffsetCommitValue.decode(data, version, 2)
    return Offset(
        value.offset,
        value.leader_epoch,
        value.metadata,
        value.commit_timestamp,
        value.expire_timestamp,
        value.topic_id,
    )


def _group_value(saved: GroupSaved) -> bytes:
    value = m.GroupMetadataValue(
        protocol_type=saved.protocol_type,
        generation=saved.generation,
        protocol=saved.protocol,
        leader=saved.leader,
        current_state_timestamp=saved.timestamp_ms,
        members=[
            m.GroupMetadataValue.MemberMetadata(
                member_id=member.member_id,
                group_instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                rebalance_timeout=member.rebalance_timeout_ms,
                session_timeout=member.session_timeout_ms,
                subscription=member.subscription,
                assignment=member.assignment,
            )
            for member in saved.members
        ],
    )
    return _INT16.pack(GROUP_VALUE_VERSION) + value.encode(GROUP_VALUE_VERSION)


def _parse_group(group_id: str, data: bytes) -> GroupSaved:
    (version,) = _INT16.unpack_from(data, 0)
    value = m.GroupMetadataValue.decode(data, version, 2)
    return GroupSaved(
        group_id,
        value.protocol_type,
        value.generation,
        value.protocol,
        value.leader,
        value.current_state_timestamp,
        tuple(
            SavedMember(
                member.member_id,
                member.group_instance_id,
                member.client_id,
                member.client_host,
                member.rebalance_timeout,
                member.session_timeout,
                member.subscription,
                member.assignment,
            )
            for member in value.members
        ),
    )
