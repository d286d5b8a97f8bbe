"""Changes of consumer groups <-> keys and values of `__consumer_offsets`, exactly as Kafka 4.3 writes them.

Record types 3 (epoch), 5 (member), 6 (target epoch), 7 (target of a member), 8 (what a member holds) and 16 (resolved
regular expression); 4, which Kafka has stopped writing, is read and without effect. Topics go by id in ascending order,
where Kafka's order is any. Assignment epochs (KIP-1251) are a tagged field; a record without holds them for the
member's epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

from broker.groups.consumer_model import (
    ClassicProtocols,
    ConsumerChange,
    CurrentRemoved,
    CurrentSaved,
    EpochRemoved,
    EpochSaved,
    Held,
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
from protocol import messages as m

EPOCH, TOPICS, MEMBER, TARGET_EPOCH, TARGET, CURRENT, REGEX = 3, 4, 5, 6, 7, 8, 16
CONSUMER_KINDS = (EPOCH, TOPICS, MEMBER, TARGET_EPOCH, TARGET, CURRENT, REGEX)

_INT16 = Struct(">h")
_VALUE_VERSION = _INT16.pack(0)
_NOT_CLASSIC = b"\1\0\1\0"
"""One tagged field, number 0, a byte long: null. Kafka's schema fails to say that null is the default of this field, so
Kafka always writes it, and takes a member without it for one of the classic protocol. We take either for null."""
_CurrentTopic = m.ConsumerGroupCurrentMemberAssignmentValue.TopicPartitions


def encode_consumer(change: ConsumerChange) -> tuple[bytes, bytes | None]:
    """Key and value; the value of a removal is None (a tombstone)."""
    group_id = change.group_id
    match change:
        case EpochSaved(_, epoch, metadata_hash):
            value = m.ConsumerGroupMetadataValue(epoch=epoch, metadata_hash=metadata_hash)
            return _key(EPOCH, m.ConsumerGroupMetadataKey(group_id=group_id)), _value(value)
        case EpochRemoved():
            return _key(EPOCH, m.ConsumerGroupMetadataKey(group_id=group_id)), None
        case TopicsOfOldVersion():
            return _key(TOPICS, m.ConsumerGroupPartitionMetadataKey(group_id=group_id)), None
        case MemberSaved(_, member_id):
            member = _value(_member_value(change))
            return _member_key(group_id, member_id), member if change.classic else member[:-1] + _NOT_CLASSIC
        case MemberRemoved(_, member_id):
            return _member_key(group_id, member_id), None
        case TargetEpochSaved(_, epoch, timestamp_ms):
            written = m.ConsumerGroupTargetAssignmentMetadataValue(
                assignment_epoch=epoch, assignment_timestamp=timestamp_ms
            )
            return _target_epoch_key(group_id), _value(written)
        case TargetEpochRemoved():
            return _target_epoch_key(group_id), None
        case TargetSaved(_, member_id, partitions):
            target = m.ConsumerGroupTargetAssignmentMemberValue(
                topic_partitions=[
                    m.ConsumerGroupTargetAssignmentMemberValue.TopicPartition(
                        topic_id=topic_id, partitions=sorted(partitions[topic_id])
                    )
                    for topic_id in sorted(partitions)
                ]
            )
            return _target_key(group_id, member_id), _value(target)
        case TargetRemoved(_, member_id):
            return _target_key(group_id, member_id), None
        case CurrentSaved(_, member_id, epoch, previous, state, assigned, revoking):
            current = m.ConsumerGroupCurrentMemberAssignmentValue(
                member_epoch=epoch,
                previous_member_epoch=previous,
                state=state,
                assigned_partitions=_held(assigned),
                partitions_pending_revocation=_held(revoking),
            )
            return _current_key(group_id, member_id), _value(current)
        case CurrentRemoved(_, member_id):
            return _current_key(group_id, member_id), None
        case RegexSaved(_, regex, topics, version, timestamp_ms):
            resolved = m.ConsumerGroupRegularExpressionValue(
                topics=list(topics), version=version, timestamp=timestamp_ms
            )
            return _regex_key(group_id, regex), _value(resolved)
        case RegexRemoved(_, regex):
            return _regex_key(group_id, regex), None


def decode_consumer(kind: int, key: bytes, value: bytes | None) -> ConsumerChange:
    """The change of a record of one of `CONSUMER_KINDS`. ProtocolError or struct.error: malformed."""
    match kind:
        case 3:
            group_id = m.ConsumerGroupMetadataKey.decode(key, 0, 2).group_id
            if value is None:
                return EpochRemoved(group_id)
            epoch = m.ConsumerGroupMetadataValue.decode(value, _version(value), 2)
            return EpochSaved(group_id, epoch.epoch, epoch.metadata_hash)
        case 4:
            return TopicsOfOldVersion(m.ConsumerGroupPartitionMetadataKey.decode(key, 0, 2).group_id)
        case 5:
            of = m.ConsumerGroupMemberMetadataKey.decode(key, 0, 2)
            return MemberRemoved(of.group_id, of.member_id) if value is None else _read_member(of, value)
        case 6:
            group_id = m.ConsumerGroupTargetAssignmentMetadataKey.decode(key, 0, 2).group_id
            if value is None:
                return TargetEpochRemoved(group_id)
            made = m.ConsumerGroupTargetAssignmentMetadataValue.decode(value, _version(value), 2)
            return TargetEpochSaved(group_id, made.assignment_epoch, made.assignment_timestamp)
        case 7:
            whose = m.ConsumerGroupTargetAssignmentMemberKey.decode(key, 0, 2)
            if value is None:
                return TargetRemoved(whose.group_id, whose.member_id)
            target = m.ConsumerGroupTargetAssignmentMemberValue.decode(value, _version(value), 2)
            partitions = {one.topic_id: frozenset(one.partitions) for one in target.topic_partitions}
            return TargetSaved(whose.group_id, whose.member_id, partitions)
        case 8:
            holder = m.ConsumerGroupCurrentMemberAssignmentKey.decode(key, 0, 2)
            if value is None:
                return CurrentRemoved(holder.group_id, holder.member_id)
            return _read_current(holder, value)
        case _:
            which = m.ConsumerGroupRegularExpressionKey.decode(key, 0, 2)
            if value is None:
                return RegexRemoved(which.group_id, which.regular_expression)
            resolved = m.ConsumerGroupRegularExpressionValue.decode(value, _version(value), 2)
            return RegexSaved(
                which.group_id,
                which.regular_expression,
                tuple(resolved.topics),
                resolved.version,
                resolved.timestamp,
            )


def _key(kind: int, key: Any) -> bytes:
    encoded: bytes = key.encode(0)
    return _INT16.pack(kind) + encoded


def _value(value: Any) -> bytes:
    encoded: bytes = value.encode(0)
    return _VALUE_VERSION + encoded


def _version(value: bytes) -> int:
    return int(_INT16.unpack_from(value, 0)[0])


def _member_key(group_id: str, member_id: str) -> bytes:
    return _key(MEMBER, m.ConsumerGroupMemberMetadataKey(group_id=group_id, member_id=member_id))


def _target_epoch_key(group_id: str) -> bytes:
    return _key(TARGET_EPOCH, m.ConsumerGroupTargetAssignmentMetadataKey(group_id=group_id))


def _target_key(group_id: str, member_id: str) -> bytes:
    return _key(TARGET, m.ConsumerGroupTargetAssignmentMemberKey(group_id=group_id, member_id=member_id))


def _current_key(group_id: str, member_id: str) -> bytes:
    return _key(CURRENT, m.ConsumerGroupCurrentMemberAssignmentKey(group_id=group_id, member_id=member_id))


def _regex_key(group_id: str, regex: str) -> bytes:
    return _key(REGEX, m.ConsumerGroupRegularExpressionKey(group_id=group_id, regular_expression=regex))


def _member_value(saved: MemberSaved) -> m.ConsumerGroupMemberMetadataValue:
    value = m.ConsumerGroupMemberMetadataValue
    classic = None
    if saved.classic is not None:
        classic = value.ClassicMemberMetadata(
            session_timeout_ms=saved.classic.session_timeout_ms,
            supported_protocols=[
                value.ClassicProtocol(name=name, metadata=metadata) for name, metadata in saved.classic.protocols
            ],
        )
    return value(
        instance_id=saved.instance_id,
        rack_id=saved.rack_id,
        client_id=saved.client_id,
        client_host=saved.client_host,
        subscribed_topic_names=list(saved.topics),
        subscribed_topic_regex=saved.regex,
        rebalance_timeout_ms=saved.rebalance_timeout_ms,
        server_assignor=saved.assignor,
        classic_member_metadata=classic,
    )


def _read_member(of: m.ConsumerGroupMemberMetadataKey, data: bytes) -> MemberSaved:
    value = m.ConsumerGroupMemberMetadataValue.decode(data, _version(data), 2)
    classic = value.classic_member_metadata
    return MemberSaved(
        of.group_id,
        of.member_id,
        value.instance_id,
        value.rack_id,
        value.client_id,
        value.client_host,
        tuple(value.subscribed_topic_names),
        value.subscribed_topic_regex,
        value.rebalance_timeout_ms,
        value.server_assignor,
        None
        if classic is None
        else ClassicProtocols(
            classic.session_timeout_ms, tuple((one.name, one.metadata) for one in classic.supported_protocols)
        ),
    )


def _held(held: Held) -> list[_CurrentTopic]:
    return [
        _CurrentTopic(
            topic_id=topic_id,
            partitions=sorted(held[topic_id]),
            assignment_epochs=[held[topic_id][partition] for partition in sorted(held[topic_id])],
        )
        for topic_id in sorted(held)
    ]


def _read_current(holder: m.ConsumerGroupCurrentMemberAssignmentKey, data: bytes) -> CurrentSaved:
    value = m.ConsumerGroupCurrentMemberAssignmentValue.decode(data, _version(data), 2)
    return CurrentSaved(
        holder.group_id,
        holder.member_id,
        value.member_epoch,
        value.previous_member_epoch,
        value.state,
        _read_held(value.assigned_partitions, value.member_epoch),
        _read_held(value.partitions_pending_revocation, value.member_epoch),
    )


def _read_held(topics: Sequence[_CurrentTopic], epoch: int) -> Held:
    held: dict[bytes, dict[int, int]] = {}
    for one in topics:
        since = one.assignment_epochs or [epoch] * len(one.partitions)
        held[one.topic_id] = dict(zip(one.partitions, since))
    return held
