"""The cluster's topics as group cores see them, and the hash by which a group knows that they have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from struct import pack
from typing import NamedTuple, Protocol

import xxhash

from controller.facts import Fact, PartitionsAdded, StateReloaded, TopicCreated, TopicDeleted
from controller.state import ClusterState

HASHES_KEPT = 32_768
"""Topics whose hash is not counted again for every group that reads them whenever any topic comes, grows or goes."""
_HASH_FORMAT = b"\0"
_CREATIONS = (TopicCreated, StateReloaded)
_CHANGES = (*_CREATIONS, PartitionsAdded, TopicDeleted)


class TopicInfo(NamedTuple):
    topic_id: bytes
    name: str
    partitions: int


class Topics(Protocol):
    """Versions are positions of the metadata log: every broker counts alike."""

    @property
    def version(self) -> int:
        """When topics last came, grew or went."""
        ...

    @property
    def created_version(self) -> int:
        """When a topic was last created, as far as this process knows."""
        ...

    def named(self, name: str) -> TopicInfo | None: ...

    def with_id(self, topic_id: bytes) -> TopicInfo | None: ...

    def names(self) -> Iterable[str]: ...


class NoTopics:
    """No topics at all."""

    version = 0
    created_version = 0

    def named(self, name: str) -> TopicInfo | None:
        return None

    def with_id(self, topic_id: bytes) -> TopicInfo | None:
        return None

    def names(self) -> Iterable[str]:
        return ()


class ClusterTopics:
    """The topics of the cluster as this process knows them."""

    def __init__(self, state: Callable[[], ClusterState]) -> None:
        self._state = state
        self.version = self.created_version = state().position

    def on_facts(self, facts: Sequence[Fact]) -> None:
        """To be told of all facts, before groups are."""
        if any(isinstance(fact, _CHANGES) for fact in facts):
            self.version = self._state().position
        if any(isinstance(fact, _CREATIONS) for fact in facts):
            self.created_version = self._state().position

    def named(self, name: str) -> TopicInfo | None:
        topic = self._state().topics.get(name)
        return None if topic is None else TopicInfo(topic.topic_id, topic.name, len(topic.log_ids))

    def with_id(self, topic_id: bytes) -> TopicInfo | None:
        topic = self._state().topic_by_id.get(topic_id)
        return None if topic is None else TopicInfo(topic.topic_id, topic.name, len(topic.log_ids))

    def names(self) -> Iterable[str]:
        return list(self._state().topics)


@lru_cache(HASHES_KEPT)
def topic_hash(topic: TopicInfo) -> int:
    """Kafka's `Utils.computeTopicHash` of a topic whose partitions have no racks, which ours have none of: a
    partition's broker changes without its data, and no assignment depends on it. Text is hashed as Java's
    characters and then their number."""
    name = topic.name.encode("utf-16-le", "surrogatepass")
    data = b"".join(
        (
            _HASH_FORMAT,
            topic.topic_id[7::-1],
            topic.topic_id[:7:-1],
            name,
            pack("<ii", len(name) // 2, topic.partitions),
            pack(f"<{topic.partitions}i", *range(topic.partitions)),
        )
    )
    return xxhash.xxh3_64_intdigest(data)


def metadata_hash(names: Iterable[str], topics: Topics) -> int:
    """Kafka's `Utils.computeGroupHash` over those of the named topics that exist; 0: none. A signed 64-bit number."""
    known = [topic for topic in map(topics.named, sorted(names)) if topic is not None]
    if not known:
        return 0
    value = xxhash.xxh3_64_intdigest(b"".join(pack("<Q", topic_hash(topic)) for topic in known))
    return value - (1 << 64) if value >> 63 else value
