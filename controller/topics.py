"""Topics by name and id, and the names of deleted topics that are not free yet."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.facts import ConfigsChanged, PartitionsAdded, TopicCreated

NAME_MAX = 249
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


def topic_name_problem(name: str) -> str | None:
    """What is wrong with the name of a topic, in Kafka's words; None if Kafka allows it."""
    if not name:
        why = "the empty string is not allowed"
    elif name in (".", ".."):
        why = f"'{name}' is not allowed"
    elif len(name) > NAME_MAX:
        why = f"the length of '{name}' is longer than the max allowed length {NAME_MAX}"
    elif not _LEGAL.fullmatch(name):
        why = f"'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
    else:
        return None
    return f"Topic name is invalid: {why}"


def collision_key(name: str) -> str:
    """Names with equal keys collide in Kafka's metric names."""
    return name.replace(".", "_")


@dataclass(slots=True)
class Topic:
    """A topic; `log_ids` in partition order; `configs` holds the overrides as they were given."""

    name: str
    topic_id: bytes
    internal: bool
    log_ids: list[int]
    configs: dict[str, str]
    replication_factor: int


@dataclass(slots=True)
class DeletedTopic:
    """A name that is taken until each of these incarnations applied entry `position` or its session ended."""

    position: int
    leaders: tuple[int, ...]


@dataclass(slots=True)
class TopicTable:
    """`topics` by name; `by_id` holds the same objects; `deleted` by name; `by_key` gives names by `collision_key`."""

    topics: dict[str, Topic] = field(default_factory=dict)
    by_id: dict[bytes, Topic] = field(default_factory=dict)
    deleted: dict[str, DeletedTopic] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)

    def create(self, fact: TopicCreated) -> Topic:
        """Adds the topic; its name stops being a deleted one."""
        assert fact.name not in self.topics, f"topic {fact.name} exists"
        assert fact.topic_id not in self.by_id, f"topic id {fact.topic_id.hex()} exists"
        topic = Topic(
            fact.name, fact.topic_id, fact.internal, list(fact.log_ids), dict(fact.configs), fact.replication_factor
        )
        self.deleted.pop(fact.name, None)
        self._add(topic)
        return topic

    def _add(self, topic: Topic) -> None:
        self.topics[topic.name] = self.by_id[topic.topic_id] = topic
        self.by_key[collision_key(topic.name)] = topic.name

    def grow(self, fact: PartitionsAdded) -> Topic:
        """Appends partitions."""
        topic = self.by_id[fact.topic_id]
        topic.log_ids.extend(fact.log_ids)
        return topic

    def delete(self, topic_id: bytes, position: int, leaders: Iterable[int]) -> Topic:
        """Removes the topic; the name stays taken while one of `leaders` may not know."""
        topic = self.by_id.pop(topic_id)
        del self.topics[topic.name]
        del self.by_key[collision_key(topic.name)]
        self.deleted[topic.name] = DeletedTopic(position, tuple(sorted(leaders)))
        return topic

    def free(self, names: Iterable[str]) -> None:
        """Forgets deleted names."""
        for name in names:
            self.deleted.pop(name, None)

    def configure(self, fact: ConfigsChanged) -> None:
        """Sets or removes overrides of one topic."""
        configs = self.topics[fact.resource_name].configs
        for key, value in fact.changes:
            if value is None:
                configs.pop(key, None)
            else:
                configs[key] = value

    def topic_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the topics."""
        for t in self.topics.values():
            yield [t.name, t.topic_id, t.internal, t.log_ids, list(t.configs.items()), t.replication_factor]

    def load_topic(self, row: tuple[Any, ...]) -> Topic:
        """Adds a topic from its snapshot row."""
        name, topic_id, internal, log_ids, configs, replication_factor = row
        topic = Topic(name, topic_id, internal, list(log_ids), dict(configs), replication_factor)
        self._add(topic)
        return topic

    def deleted_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the deleted names."""
        for name, deleted in self.deleted.items():
            yield [name, deleted.position, deleted.leaders]

    def load_deleted(self, row: tuple[Any, ...]) -> None:
        """Adds a deleted name from its snapshot row."""
        name, position, leaders = row
        self.deleted[name] = DeletedTopic(position, leaders)


def wal_kinds_named(topics: Iterable[Topic]) -> tuple[str, ...]:
    """The WAL kinds that topics ask for by their own configs."""
    return tuple(dict.fromkeys(kind for topic in topics if (kind := topic.configs.get("tidelog.wal")) is not None))
