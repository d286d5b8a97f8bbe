"""Committed offsets of the groups of one shard, as pure state: what was committed, what has expired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from broker.groups.model import (
    NO_TIMESTAMP,
    ZERO_UUID,
    Commit,
    GroupState,
    Offset,
    OffsetCommitted,
    OffsetRemoved,
    OffsetToCommit,
    PendingOffset,
    TxnCommit,
)
from broker.groups.pending import PendingOffsets
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from broker.groups.classic import ClassicGroup
    from broker.groups.consumer import ConsumerGroup


class Offsets:
    """group id -> topic -> partition -> offset."""

    def __init__(self) -> None:
        self.by_group: dict[str, dict[str, dict[int, Offset]]] = {}
        self.count = 0
        self.pending = PendingOffsets()

    def apply(self, change: OffsetCommitted | OffsetRemoved | PendingOffset) -> None:
        if isinstance(change, PendingOffset):
            self.pending.add(change)
            return
        self.pending.changed(change)
        self._apply(change)

    def end_transaction(self, producer_id: int, *, committed: bool) -> None:
        """A marker: what the producer committed is in force now, or never was."""
        for one in self.pending.end(producer_id, committed=committed):
            self._apply(OffsetCommitted(one.group_id, one.topic, one.partition, one.value))

    def _apply(self, change: OffsetCommitted | OffsetRemoved) -> None:
        if isinstance(change, OffsetCommitted):
            partitions = self.by_group.setdefault(change.group_id, {}).setdefault(change.topic, {})
            self.count += change.partition not in partitions
            partitions[change.partition] = change.value
            return
        topics = self.by_group.get(change.group_id)
        partitions = topics.get(change.topic, {}) if topics else {}
        if topics is None or partitions.pop(change.partition, None) is None:
            return
        self.count -= 1
        if not partitions:
            del topics[change.topic]
        if not topics:
            del self.by_group[change.group_id]

    def get(self, group_id: str, topic: str, partition: int) -> Offset | None:
        return self.by_group.get(group_id, {}).get(topic, {}).get(partition)

    def count_of(self, group_id: str) -> int:
        """Committed offsets, and partitions with pending ones."""
        return len(self.places(group_id))

    def places(self, group_id: str) -> list[tuple[str, int]]:
        """(topic, partition) of everything that is stored of the group, in order."""
        committed = {(topic, partition) for topic, partition, _ in self.of_group(group_id)}
        return sorted(committed.union((topic, partition) for _, topic, partition in self.pending.places(group_id)))

    def of_group(self, group_id: str) -> Iterator[tuple[str, int, Offset]]:
        """(topic, partition, offset) by topic name and partition."""
        for topic, partitions in sorted(self.by_group.get(group_id, {}).items()):
            for partition in sorted(partitions):
                yield topic, partition, partitions[partition]

    def remove_group(self, group_id: str) -> list[OffsetRemoved]:
        """The changes that remove everything the group committed."""
        return [OffsetRemoved(group_id, topic, partition) for topic, partition in self.places(group_id)]

    def of_deleted_topics(self, group_id: str, exists: Callable[[str, bytes], bool]) -> list[OffsetRemoved]:
        """The changes that remove what is stored of topics that do not exist any more, by `exists(name, topic id or
        zero)`; also what open transactions would bring back when they are committed."""
        stored = [(topic, partition, offset.topic_id) for topic, partition, offset in self.of_group(group_id)]
        stored += [(topic, partition, ZERO_UUID) for _, topic, partition in self.pending.places(group_id)]
        gone = {(topic, partition) for topic, partition, topic_id in stored if not exists(topic, topic_id)}
        return [OffsetRemoved(group_id, topic, partition) for topic, partition in sorted(gone)]

    def is_stored(self, group_id: str, topic: str, partition: int) -> bool:
        """Whether an offset is committed, or will be when an open transaction is."""
        return self.get(group_id, topic, partition) is not None or self.pending.is_unstable(group_id, topic, partition)

    def expired(self, group: ClassicGroup | ConsumerGroup, now_ms: int, retention_ms: int) -> list[OffsetRemoved]:
        """Offsets of `group` whose time is over (KIP-211): those of an empty group since it became empty, those of a
        consumer group with members and of a group without members ever since their commit, but none of a topic that
        the group still reads. A commit with an expiry of its own keeps to that."""
        since = _retained_since(group)
        if since is None:
            return []
        return [
            OffsetRemoved(group.group_id, topic, partition)
            for topic, partition, offset in self.of_group(group.group_id)
            if not group.is_subscribed(topic)
            and not self.pending.is_unstable(group.group_id, topic, partition)
            and _is_over(offset, since(offset), now_ms, retention_ms)
        ]


def pending(command: TxnCommit, asked: OffsetToCommit, now_ms: int) -> PendingOffset:
    """The change that one offset of a TxnOffsetCommit is."""
    value = Offset(asked.offset, asked.leader_epoch, asked.metadata or "", now_ms)
    return PendingOffset(
        command.producer_id, command.producer_epoch, command.commit.group_id, asked.topic, asked.partition, value
    )


def committed(commit: Commit, asked: OffsetToCommit, now_ms: int) -> OffsetCommitted:
    """The change that one offset of an OffsetCommit is."""
    expires = commit.retention_ms >= 0
    value = Offset(
        asked.offset,
        -1 if expires else asked.leader_epoch,
        asked.metadata or "",
        now_ms,
        now_ms + commit.retention_ms if expires else NO_TIMESTAMP,
        ZERO_UUID if expires else asked.topic_id,
    )
    return OffsetCommitted(commit.group_id, asked.topic, asked.partition, value)


def check(asked: OffsetToCommit, metadata_max: int) -> ErrorCode:
    """`offset.metadata.max.bytes` counts UTF-16 units, as `String.length()` does in Kafka."""
    metadata = asked.metadata
    if metadata is not None and len(metadata) + sum(char > "\uffff" for char in metadata) > metadata_max:
        return ErrorCode.OFFSET_METADATA_TOO_LARGE
    return ErrorCode.NONE


def _retained_since(group: ClassicGroup | ConsumerGroup) -> Callable[[Offset], int] | None:
    """From when on the retention of the group's offsets counts; None: they do not expire now."""
    if group.protocol_type is None:
        return lambda offset: offset.commit_timestamp_ms
    if group.state is GroupState.EMPTY:
        empty_since = group.state_timestamp_ms
        if empty_since == NO_TIMESTAMP:
            return lambda offset: offset.commit_timestamp_ms
        return lambda offset: empty_since
    if group.is_consumer and group.subscribed is not None and group.state is GroupState.STABLE:
        return lambda offset: offset.commit_timestamp_ms
    return None


def _is_over(offset: Offset, since_ms: int, now_ms: int, retention_ms: int) -> bool:
    if offset.expire_timestamp_ms != NO_TIMESTAMP:
        return now_ms >= offset.expire_timestamp_ms
    return now_ms - since_ms >= retention_ms
