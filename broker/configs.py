"""Configs of topics: definitions, validation, effective values with their sources, what the controller asks of configs.

Every topic config of Kafka 4.3 is known, validated, stored and returned. Those that act here are marked so in their
documentation; the others are kept because tools set and compare them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from broker import group_configs
from broker.config_types import (
    ConfigSource,
    ConfigType,
    ConfigValue,
    Definition,
    Synonym,
    check_value,
    invalid,
    list_value,
)
from broker.dynamic_configs import BROKER_RESOURCE, DynamicConfigs, list_default, validate_broker_configs
from broker.settings import LONG_MAX, WAL_KINDS, Settings
from controller.configs import CompactionRules
from protocol.errors import ErrorCode, KafkaError

TOPIC_RESOURCE = 2

_STORED = "Stored and returned; without effect here."
_REPLICA = re.compile(r"[0-9]+:[0-9]+")


def _throttled(name: str) -> Callable[[list[str]], str | None]:
    """Partitions and brokers, or all of them."""

    def problem(parts: list[str]) -> str | None:
        if parts == ["*"] or all(_REPLICA.fullmatch(part) for part in parts):
            return None
        return (
            f"{name} must be the literal '*' or a list of replicas in the following format: "
            "[partitionId]:[brokerId],[partitionId]:[brokerId],..."
        )

    return problem


def _compaction_definitions() -> Iterable[Definition]:
    """Those that say when and how a log is compacted."""
    integer, long = ConfigType.INT, ConfigType.LONG
    yield Definition(
        "delete.retention.ms",
        long,
        "86400000",
        "log.cleaner.delete.retention.ms",
        "How long a tombstone stays after the first compaction that saw it.",
        0,
    )
    yield Definition(
        "max.compaction.lag.ms",
        long,
        str(LONG_MAX),
        "log.cleaner.max.compaction.lag.ms",
        "A record is compacted after so long, whatever the dirty ratio.",
        1,
    )
    yield Definition(
        "min.cleanable.dirty.ratio",
        ConfigType.DOUBLE,
        "0.5",
        "log.cleaner.min.cleanable.ratio",
        "Compaction begins when more than this part of what may be compacted is new.",
        0,
        1,
    )
    yield Definition(
        "min.compaction.lag.ms",
        long,
        "0",
        "log.cleaner.min.compaction.lag.ms",
        "No record is compacted before it is so old.",
        0,
    )
    yield Definition(
        "segment.bytes",
        integer,
        "1073741824",
        "log.segment.bytes",
        "Compaction waits for so many new bytes, or for segment.ms. Retention takes smaller pieces.",
        1024 * 1024,
    )
    yield Definition(
        "segment.ms",
        long,
        "604800000",
        "log.roll.ms",
        "Compaction waits until new records are so old, or are segment.bytes.",
        1,
    )


def _definitions() -> Iterable[Definition]:
    boolean, string, integer, long = ConfigType.BOOLEAN, ConfigType.STRING, ConfigType.INT, ConfigType.LONG
    yield from _compaction_definitions()
    yield Definition(
        "cleanup.policy",
        ConfigType.LIST,
        "delete",
        "log.cleanup.policy",
        "delete removes old data, compact keeps the last value of every key. May be both, and be changed at any time.",
        one_of=("compact", "delete"),
    )
    yield Definition("compression.gzip.level", integer, "-1", "compression.gzip.level", _STORED, 1, 9, or_equal=-1)
    yield Definition("compression.lz4.level", integer, "9", "compression.lz4.level", _STORED, 1, 17)
    yield Definition(
        "compression.type",
        string,
        "producer",
        "compression.type",
        "Stored and returned; batches stay as the producer sent them.",
        one_of=("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
    )
    yield Definition("compression.zstd.level", integer, "3", "compression.zstd.level", _STORED, -131072, 22)
    yield Definition("file.delete.delay.ms", long, "60000", "log.segment.delete.delay.ms", _STORED, 0)
    yield Definition("flush.messages", long, str(LONG_MAX), "log.flush.interval.messages", _STORED, 1)
    yield Definition("flush.ms", long, str(LONG_MAX), "log.flush.interval.ms", _STORED, 0)
    for side in ("follower", "leader"):
        name = f"{side}.replication.throttled.replicas"
        why = "Stored and returned; there is no replication to throttle."
        yield Definition(name, ConfigType.LIST, "", name, why, may_be=_throttled(name))
    yield Definition("index.interval.bytes", integer, "4096", "log.index.interval.bytes", _STORED, 0)
    for unit in ("bytes", "ms"):
        name = f"local.retention.{unit}"
        yield Definition(name, long, "-2", f"log.{name}", "Stored and returned; all data is remote.", -2)
    yield Definition("max.message.bytes", integer, "1048588", "message.max.bytes", "The largest record batch.", 0)
    for side, default in (("after", "3600000"), ("before", str(LONG_MAX))):
        name = f"message.timestamp.{side}.max.ms"
        yield Definition(
            name, long, default, f"log.{name}", f"How far a CreateTime may lie {side} the broker's clock.", 0
        )
    yield Definition(
        "message.timestamp.type",
        string,
        "CreateTime",
        "log.message.timestamp.type",
        "Whether the producer's or the broker's time counts.",
        one_of=("CreateTime", "LogAppendTime"),
    )
    yield Definition(
        "min.insync.replicas", integer, "1", "min.insync.replicas", "Stored and returned; the WAL kind decides.", 1
    )
    yield Definition("preallocate", boolean, "false", "log.preallocate", _STORED)
    for name in ("remote.log.copy.disable", "remote.log.delete.on.disable", "remote.storage.enable"):
        yield Definition(name, boolean, "false", name, "Stored and returned; every topic lives in the bucket anyway.")
    yield Definition(
        "retention.bytes", long, "-1", "log.retention.bytes", "Bytes kept of each partition; below 0: no bound."
    )
    yield Definition(
        "retention.ms", long, "604800000", "log.retention.ms", "How long records are kept; -1: for ever.", -1
    )
    yield Definition("segment.index.bytes", integer, "10485760", "log.index.size.max.bytes", _STORED, 4)
    yield Definition("segment.jitter.ms", long, "0", "log.roll.jitter.ms", _STORED, 0)
    yield Definition(
        "unclean.leader.election.enable",
        boolean,
        "false",
        "unclean.leader.election.enable",
        "Stored and returned; no election here can lose an acknowledged record.",
    )
    yield Definition(
        "tidelog.balance",
        boolean,
        "true",
        "tidelog.balance",
        "false: balance does not move this topic's partitions. Without effect where the broker's setting is off.",
    )
    yield Definition(
        "tidelog.wal",
        string,
        "volume",
        "tidelog.wal",
        "The WAL kind of this topic's partitions; a change moves each of them to its own leader.",
        one_of=WAL_KINDS,
    )


_NO_BROKER_KEY = frozenset(
    {
        *("follower.replication.throttled.replicas", "leader.replication.throttled.replicas"),
        *("remote.log.copy.disable", "remote.log.delete.on.disable", "remote.storage.enable"),
    }
)
"""Topic configs that brokers have no default for."""

_UNSET_BROKER_KEY = frozenset({"flush.ms", "retention.ms", "segment.jitter.ms", "segment.ms"})
"""Those whose broker key is unset by default: a coarser one (hours) stands behind it."""

TOPIC_CONFIGS: dict[str, Definition] = {definition.name: definition for definition in _definitions()}


def validate_topic_config(name: str, value: str | None) -> None:
    """Raise KafkaError(INVALID_CONFIG) unless `value` may be stored for topic config `name`."""
    definition = TOPIC_CONFIGS.get(name)
    if definition is None:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"Unknown topic config name: {name}")
    if value is None:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"Null value not supported for topic configs: {name}")
    check_value(definition, value)


def validate_topic_configs(configs: Mapping[str, str] | Mapping[str, str | None]) -> None:
    """`validate_topic_config` for each, then what contradicts between them."""
    for name, value in configs.items():
        validate_topic_config(name, value)
    least, most = configs.get("min.compaction.lag.ms"), configs.get("max.compaction.lag.ms")
    if least is not None and most is not None and int(least) > int(most):
        raise KafkaError(
            ErrorCode.INVALID_CONFIG,
            f"conflict topic config setting min.compaction.lag.ms ({least}) > max.compaction.lag.ms ({most})",
        )


class TopicDefaults:
    """What topic configs are when a topic does not set them: brokers' dynamic configs over settings over defaults."""

    def __init__(self, settings: Settings, dynamic: DynamicConfigs | None = None) -> None:
        self._settings = settings
        self.dynamic = DynamicConfigs(settings) if dynamic is None else dynamic
        self.dynamic.listen(lambda changed: self._refresh())
        self._refresh()

    def _refresh(self) -> None:
        self._values = {name: self._inherited(definition) for name, definition in TOPIC_CONFIGS.items()}

    def _inherited(self, definition: Definition) -> str:
        if definition.name == "retention.ms":
            return str(self._settings.retention_ms)
        if definition.name == "segment.ms":
            return str(self._settings.segment_ms)
        synonyms = self._synonyms(definition)
        value = synonyms[0].value if synonyms else None
        return definition.default if value is None else value

    def _synonyms(self, definition: Definition) -> list[Synonym]:
        if definition.name in _NO_BROKER_KEY:
            return []
        plain = None if definition.name in _UNSET_BROKER_KEY else definition.default
        return self.dynamic.synonyms(definition.synonym, plain)

    def value(self, configs: Mapping[str, str], name: str) -> str:
        """The text that counts for topic config `name`."""
        value = configs.get(name)
        return self._values[name] if value is None else value

    def number(self, configs: Mapping[str, str], name: str) -> int:
        """The same as a whole number."""
        return int(self.value(configs, name))

    def compacts(self, configs: Mapping[str, str]) -> bool:
        """Whether the cleanup policy says so."""
        return "compact" in list_value(self.value(configs, "cleanup.policy"))

    def describe(self, configs: Mapping[str, str]) -> list[ConfigValue]:
        """Every topic config with its source, in name order."""
        return [self._describe_one(configs, TOPIC_CONFIGS[name]) for name in sorted(TOPIC_CONFIGS)]

    def _describe_one(self, configs: Mapping[str, str], definition: Definition) -> ConfigValue:
        name, synonyms = definition.name, self._synonyms(definition)
        if name in configs:
            synonyms.insert(0, Synonym(name, configs[name], ConfigSource.TOPIC_CONFIG))
        source = synonyms[0].source if synonyms else ConfigSource.DEFAULT_CONFIG
        value = self.value(configs, name)
        return ConfigValue(name, value, False, source, synonyms, definition.type, definition.documentation)


class TopicRules:
    """What the controller asks about configs (`controller.configs.ConfigRules`)."""

    def __init__(self, settings: Settings, dynamic: DynamicConfigs | None = None) -> None:
        self._settings = settings
        self._defaults = TopicDefaults(settings, dynamic)

    def validate(
        self, resource_type: int, resource_name: str, overrides: Mapping[str, str], changed: Collection[str] = ()
    ) -> None:
        """Raise KafkaError unless the overrides, of which some were `changed`, can stand together."""
        if resource_type == BROKER_RESOURCE:
            validate_broker_configs(self._defaults.dynamic.static, overrides, changed)
        elif resource_type == group_configs.GROUP_RESOURCE:
            group_configs.validate(self._settings, resource_name, overrides)
        elif resource_type == TOPIC_RESOURCE:
            self._validate_topic(overrides)
        else:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unknown resource type {resource_type}")

    def _validate_topic(self, overrides: Mapping[str, str]) -> None:
        validate_topic_configs(overrides)
        kind = self._defaults.value(overrides, "tidelog.wal")
        largest = self._settings.batch_bytes_max(kind)
        if int(overrides.get("max.message.bytes", 0)) > largest:
            why = f"a WAL of kind {kind} holds batches up to {largest}"
            raise invalid("max.message.bytes", overrides["max.message.bytes"], why)

    def list_default(self, resource_type: int, key: str) -> str | None:
        """The default of a list-valued config."""
        if resource_type == BROKER_RESOURCE:
            return list_default(self._defaults.dynamic.static, key)
        definition = TOPIC_CONFIGS.get(key) if resource_type == TOPIC_RESOURCE else None
        if definition is None or definition.type is not ConfigType.LIST:
            return None
        return self._defaults.value({}, key)

    def wal_kind(self, overrides: Mapping[str, str], internal: bool, in_use: Iterable[str] = ()) -> str:
        """The WAL kind of a topic's logs; of internal ones the strongest `in_use`, if no setting says otherwise."""
        kind = self._defaults.value(overrides, "tidelog.wal")
        if not internal or "tidelog.wal" in overrides:
            return kind
        return self._settings.tidelog_internal_wal or max((kind, *in_use), key=WAL_KINDS.index)

    def retention(self, overrides: Mapping[str, str]) -> tuple[int, int] | None:
        """(retention.ms, retention.bytes), -1 for unlimited; None if the policy does not delete."""
        if "delete" not in list_value(self._defaults.value(overrides, "cleanup.policy")):
            return None
        return self._defaults.number(overrides, "retention.ms"), self._defaults.number(overrides, "retention.bytes")

    def compaction(self, overrides: Mapping[str, str]) -> CompactionRules | None:
        """When logs with these overrides are compacted; None if the policy does not compact."""
        if not self._defaults.compacts(overrides):
            return None
        number = self._defaults.number
        return CompactionRules(
            float(self._defaults.value(overrides, "min.cleanable.dirty.ratio")),
            number(overrides, "min.compaction.lag.ms"),
            number(overrides, "max.compaction.lag.ms"),
            number(overrides, "segment.ms"),
            number(overrides, "segment.bytes"),
        )

    def may_balance(self, overrides: Mapping[str, str]) -> bool:
        """`tidelog.balance` of the topic. Where the broker's is off nobody asks."""
        return self._defaults.value(overrides, "tidelog.balance").strip().lower() == "true"

    def default_partitions(self) -> int:
        """`num.partitions`."""
        return self._settings.num_partitions

    def default_replication(self) -> int:
        """`default.replication.factor`."""
        return self._settings.default_replication_factor
