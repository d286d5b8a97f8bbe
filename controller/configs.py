"""Config overrides of everything but topics (those lie with their topic), and what the controller must know of
configs.

The definitions (names, types, bounds, defaults) belong to the broker and are passed in as `ConfigRules`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from controller.facts import ConfigsChanged

TOPIC, BROKER, GROUP = 2, 4, 32
"""Kafka's resource types."""

SET, DELETE, APPEND, SUBTRACT = 0, 1, 2, 3
"""Kafka's operations of IncrementalAlterConfigs."""

Resource = tuple[int, str]


class CompactionRules(NamedTuple):
    """The topic configs that say when a log is compacted. Times in ms."""

    dirty_ratio: float = 0.5
    min_lag_ms: int = 0
    max_lag_ms: int = 2**63 - 1
    segment_ms: int = 604_800_000
    segment_bytes: int = 2**30


class ConfigRules(Protocol):
    """What `decide` asks about configs."""

    def validate(
        self, resource_type: int, resource_name: str, overrides: Mapping[str, str], changed: Collection[str] = ()
    ) -> None:
        """Raises `KafkaError` (INVALID_CONFIG, INVALID_REQUEST) if these overrides cannot stand together.

        `changed`: the keys whose values differ from what stands.
        """
        ...

    def list_default(self, resource_type: int, key: str) -> str | None:
        """The default of a list-valued config, comma-separated; None if `key` is not list-valued."""
        ...

    def wal_kind(self, overrides: Mapping[str, str], internal: bool, in_use: Iterable[str] = ()) -> str:
        """The WAL kind that the logs of a topic with these overrides are led through.

        `in_use`: the kinds that other topics name.
        """
        ...

    def retention(self, overrides: Mapping[str, str]) -> tuple[int, int] | None:
        """(`retention.ms`, `retention.bytes`) in effect, -1 for unlimited; None if the policy does not delete."""
        ...

    def compaction(self, overrides: Mapping[str, str]) -> CompactionRules | None:
        """When logs with these overrides are compacted; None if the policy does not compact."""
        ...

    def may_balance(self, overrides: Mapping[str, str]) -> bool:
        """Whether balance may move the logs of a topic with these overrides."""
        ...

    def default_partitions(self) -> int:
        """`num.partitions`."""
        ...

    def default_replication(self) -> int:
        """`default.replication.factor`."""
        ...


class PlainRules:
    """Kafka's defaults and no validation, for tests and tools."""

    def validate(
        self, resource_type: int, resource_name: str, overrides: Mapping[str, str], changed: Collection[str] = ()
    ) -> None:
        """Everything goes."""

    def list_default(self, resource_type: int, key: str) -> str | None:
        """Only `cleanup.policy` is a list."""
        return "delete" if key == "cleanup.policy" else None

    def wal_kind(self, overrides: Mapping[str, str], internal: bool, in_use: Iterable[str] = ()) -> str:
        """`volume`, unless the topic says otherwise."""
        return overrides.get("tidelog.wal", "volume")

    def retention(self, overrides: Mapping[str, str]) -> tuple[int, int] | None:
        """Seven days, any size."""
        if "delete" not in overrides.get("cleanup.policy", "delete").split(","):
            return None
        return int(overrides.get("retention.ms", 604_800_000)), int(overrides.get("retention.bytes", -1))

    def compaction(self, overrides: Mapping[str, str]) -> CompactionRules | None:
        """As the topic says, never by default."""
        if "compact" not in overrides.get("cleanup.policy", "delete").split(","):
            return None
        plain = CompactionRules()
        return CompactionRules(
            float(overrides.get("min.cleanable.dirty.ratio", plain.dirty_ratio)),
            int(overrides.get("min.compaction.lag.ms", plain.min_lag_ms)),
            int(overrides.get("max.compaction.lag.ms", plain.max_lag_ms)),
            int(overrides.get("segment.ms", plain.segment_ms)),
            int(overrides.get("segment.bytes", plain.segment_bytes)),
        )

    def may_balance(self, overrides: Mapping[str, str]) -> bool:
        """Unless the topic says otherwise."""
        return overrides.get("tidelog.balance", "true") == "true"

    def default_partitions(self) -> int:
        """One."""
        return 1

    def default_replication(self) -> int:
        """One."""
        return 1


@dataclass(slots=True)
class ConfigTable:
    """Overrides by (resource type, resource name); resources without any are not here."""

    configs: dict[Resource, dict[str, str]] = field(default_factory=dict)

    def change(self, fact: ConfigsChanged) -> None:
        """Sets or removes overrides."""
        resource = (fact.resource_type, fact.resource_name)
        overrides = self.configs.setdefault(resource, {})
        for key, value in fact.changes:
            if value is None:
                overrides.pop(key, None)
            else:
                overrides[key] = value
        if not overrides:
            del self.configs[resource]

    def rows(self) -> Iterator[list[Any]]:
        """Snapshot rows."""
        for (resource_type, name), overrides in self.configs.items():
            yield [resource_type, name, list(overrides.items())]

    def load(self, row: tuple[Any, ...]) -> None:
        """Adds a resource from its snapshot row."""
        self.configs[row[0], row[1]] = dict(row[2])
