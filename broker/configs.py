"""Config definitions of topics and of the broker: type, default, synonyms, validation, what DescribeConfigs answers.

Every topic config of Kafka 4.3 is known, validated, stored and returned. Those that act here are marked so in their
documentation; the others are kept because tools set and compare them.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple, get_args

from broker.settings import FIELDS, INT_MAX, LONG_MAX, WAL_KINDS, Settings, key_of
from protocol.errors import ErrorCode, KafkaError


class ConfigType(IntEnum):
    """The type numbers of DescribeConfigs."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7
    CLASS = 8
    PASSWORD = 9


class ConfigSource(IntEnum):
    """The source numbers of DescribeConfigs."""

    TOPIC_CONFIG = 1
    STATIC_BROKER_CONFIG = 4
    DEFAULT_CONFIG = 5


class Synonym(NamedTuple):
    """One place a value can come from."""

    name: str
    value: str | None
    source: ConfigSource


class ConfigValue(NamedTuple):
    """One effective config with all that DescribeConfigs tells of it."""

    name: str
    value: str | None
    read_only: bool
    source: ConfigSource
    synonyms: list[Synonym]
    type: ConfigType
    documentation: str


class TopicConfig(NamedTuple):
    """Definition of one topic config; `synonym` names the broker key whose value is the default."""

    name: str
    type: ConfigType
    default: str
    synonym: str
    documentation: str
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] = ()


TOPIC_RESOURCE = 2

_STORED = "Stored and returned; without effect here."


def _definitions() -> Iterable[TopicConfig]:
    boolean, string, integer, long = ConfigType.BOOLEAN, ConfigType.STRING, ConfigType.INT, ConfigType.LONG
    yield TopicConfig(
        "cleanup.policy",
        ConfigType.LIST,
        "delete",
        "log.cleanup.policy",
        "delete removes old data; compact is kept for internal topics and otherwise stored.",
        one_of=("compact", "delete"),
    )
    yield TopicConfig("compression.gzip.level", integer, "-1", "compression.gzip.level", _STORED, -1, 9)
    yield TopicConfig("compression.lz4.level", integer, "9", "compression.lz4.level", _STORED, 1, 17)
    yield TopicConfig(
        "compression.type",
        string,
        "producer",
        "compression.type",
        "Stored and returned; batches stay as the producer sent them.",
        one_of=("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
    )
    yield TopicConfig("compression.zstd.level", integer, "3", "compression.zstd.level", _STORED, -131072, 22)
    yield TopicConfig("delete.retention.ms", long, "86400000", "log.cleaner.delete.retention.ms", _STORED, 0)
    yield TopicConfig("file.delete.delay.ms", long, "60000", "log.segment.delete.delay.ms", _STORED, 0)
    yield TopicConfig("flush.messages", long, str(LONG_MAX), "log.flush.interval.messages", _STORED, 1)
    yield TopicConfig("flush.ms", long, str(LONG_MAX), "log.flush.interval.ms", _STORED, 0)
    for side in ("follower", "leader"):
        name = f"{side}.replication.throttled.replicas"
        yield TopicConfig(name, ConfigType.LIST, "", name, "Stored and returned; there is no replication to throttle.")
    yield TopicConfig("index.interval.bytes", integer, "4096", "log.index.interval.bytes", _STORED, 0)
    for unit in ("bytes", "ms"):
        name = f"local.retention.{unit}"
        yield TopicConfig(name, long, "-2", f"log.{name}", "Stored and returned; all data is remote.", -2)
    yield TopicConfig("max.compaction.lag.ms", long, str(LONG_MAX), "log.cleaner.max.compaction.lag.ms", _STORED, 1)
    yield TopicConfig("max.message.bytes", integer, "1048588", "message.max.bytes", "The largest record batch.", 0)
    for side, default in (("after", "3600000"), ("before", str(LONG_MAX))):
        name = f"message.timestamp.{side}.max.ms"
        yield TopicConfig(
            name, long, default, f"log.{name}", f"How far a CreateTime may lie {side} the broker's clock.", 0
        )
    yield TopicConfig(
        "message.timestamp.type",
        string,
        "CreateTime",
        "log.message.timestamp.type",
        "Whether the producer's or the broker's time counts.",
        one_of=("CreateTime", "LogAppendTime"),
    )
    yield TopicConfig(
        "min.cleanable.dirty.ratio", ConfigType.DOUBLE, "0.5", "log.cleaner.min.cleanable.ratio", _STORED, 0, 1
    )
    yield TopicConfig("min.compaction.lag.ms", long, "0", "log.cleaner.min.compaction.lag.ms", _STORED, 0)
    yield TopicConfig(
        "min.insync.replicas", integer, "1", "min.insync.replicas", "Stored and returned; the WAL kind decides.", 1
    )
    yield TopicConfig("preallocate", boolean, "false", "log.preallocate", _STORED)
    for name in ("remote.log.copy.disable", "remote.log.delete.on.disable", "remote.storage.enable"):
        yield TopicConfig(name, boolean, "false", name, "Stored and returned; every topic lives in the bucket anyway.")
    yield TopicConfig(
        "retention.bytes", long, "-1", "log.retention.bytes", "Bytes kept of each partition; -1: no bound.", -1
    )
    yield TopicConfig(
        "retention.ms", long, "604800000", "log.retention.ms", "How long records are kept; -1: for ever.", -1
    )
    yield TopicConfig("segment.bytes", integer, "1073741824", "log.segment.bytes", _STORED, 1024 * 1024)
    yield TopicConfig("segment.index.bytes", integer, "10485760", "log.index.size.max.bytes", _STORED, 4)
    yield TopicConfig("segment.jitter.ms", long, "0", "log.roll.jitter.ms", _STORED, 0)
    yield TopicConfig("segment.ms", long, "604800000", "log.roll.ms", _STORED, 1)
    yield TopicConfig(
        "unclean.leader.election.enable",
        boolean,
        "false",
        "unclean.leader.election.enable",
        "Stored and returned; no election here can lose an acknowledged record.",
    )
    yield TopicConfig(
        "tidelog.balance",
        boolean,
        "true",
        "tidelog.balance",
        "false: balance does not move this topic's partitions. Without effect where the broker's setting is off.",
    )
    yield TopicConfig(
        "tidelog.wal",
        string,
        "volume",
        "tidelog.wal",
        "The WAL kind of this topic's partitions; a change moves each of them to its own leader.",
        one_of=WAL_KINDS,
    )


_WITHOUT_BROKER_DEFAULT = frozenset(
    {
        # The broker key is unset by default: a coarser one (hours) stands behind it.
        *("flush.ms", "retention.ms", "segment.jitter.ms", "segment.ms"),
        # There is no broker key.
        *("follower.replication.throttled.replicas", "leader.replication.throttled.replicas"),
        *("remote.log.copy.disable", "remote.log.delete.on.disable", "remote.storage.enable"),
    }
)
"""Topic configs whose default Kafka lists no synonym for."""

TOPIC_CONFIGS: dict[str, TopicConfig] = {definition.name: definition for definition in _definitions()}

_RANGES = {ConfigType.INT: INT_MAX, ConfigType.LONG: LONG_MAX}


def _invalid(name: str, value: str, why: str) -> KafkaError:
    return KafkaError(ErrorCode.INVALID_CONFIG, f"Invalid value {value} for configuration {name}: {why}")


def _number(definition: TopicConfig, text: str) -> float:
    convert: Callable[[str], float] = float if definition.type is ConfigType.DOUBLE else int
    try:
        number = convert(text.strip())
    except ValueError:
        raise _invalid(definition.name, text, f"Not a number of type {definition.type.name}") from None
    limit = _RANGES.get(definition.type)
    if limit is not None and not -limit - 1 <= number <= limit:
        raise _invalid(definition.name, text, f"Not a number of type {definition.type.name}")
    if definition.at_least is not None and not number >= definition.at_least:
        raise _invalid(definition.name, text, f"Value must be at least {definition.at_least}")
    if definition.at_most is not None and number > definition.at_most:
        raise _invalid(definition.name, text, f"Value must be at most {definition.at_most}")
    return number


def validate_topic_config(name: str, value: str | None) -> None:
    """Raise KafkaError(INVALID_CONFIG) unless `value` may be stored for topic config `name`."""
    definition = TOPIC_CONFIGS.get(name)
    if definition is None:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"Unknown topic config name: {name}")
    if value is None:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"Null value not supported for topic configs: {name}")
    if definition.type is ConfigType.BOOLEAN:
        if value.strip().lower() not in ("true", "false"):
            raise _invalid(name, value, "Expected value to be either true or false")
    elif definition.type is ConfigType.LIST:
        for part in list_value(value):
            if definition.one_of and part not in definition.one_of:
                raise _invalid(name, value, f"String must be one of: {', '.join(definition.one_of)}")
    elif definition.type is ConfigType.STRING:
        if definition.one_of and value not in definition.one_of:
            raise _invalid(name, value, f"String must be one of: {', '.join(definition.one_of)}")
    else:
        _number(definition, value)


def list_value(value: str) -> list[str]:
    """The parts of a list config."""
    return [part.strip() for part in value.split(",") if part.strip()]


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
    """Effective topic configs: the topic's own values over the broker's settings over Kafka's defaults."""

    def __init__(self, settings: Settings) -> None:
        plain = Settings()
        self._static: dict[str, str] = {}
        for name, definition in TOPIC_CONFIGS.items():
            field = FIELDS.get(definition.synonym)
            if field is None:
                continue
            value = getattr(settings, field.name)
            if value is not None and value != getattr(plain, field.name):
                self._static[name] = text_of(value)
        if settings.retention_ms != plain.retention_ms:
            self._static["retention.ms"] = str(settings.retention_ms)

    def value(self, configs: Mapping[str, str], name: str) -> str:
        """The text that counts for topic config `name`."""
        value = configs.get(name)
        if value is None:
            value = self._static.get(name)
        return TOPIC_CONFIGS[name].default if value is None else value

    def number(self, configs: Mapping[str, str], name: str) -> int:
        """The same as a whole number."""
        return int(self.value(configs, name))

    def describe(self, configs: Mapping[str, str]) -> list[ConfigValue]:
        """Every topic config with its source, in name order."""
        return [self._describe_one(configs, TOPIC_CONFIGS[name]) for name in sorted(TOPIC_CONFIGS)]

    def _describe_one(self, configs: Mapping[str, str], definition: TopicConfig) -> ConfigValue:
        name, synonyms = definition.name, []
        if name in configs:
            synonyms.append(Synonym(name, configs[name], ConfigSource.TOPIC_CONFIG))
        if name in self._static:
            synonyms.append(Synonym(definition.synonym, self._static[name], ConfigSource.STATIC_BROKER_CONFIG))
        if name not in _WITHOUT_BROKER_DEFAULT:
            synonyms.append(Synonym(definition.synonym, definition.default, ConfigSource.DEFAULT_CONFIG))
        return ConfigValue(
            name,
            synonyms[0].value if synonyms else definition.default,
            False,
            synonyms[0].source if synonyms else ConfigSource.DEFAULT_CONFIG,
            synonyms,
            definition.type,
            definition.documentation,
        )


def text_of(value: object) -> str:
    """A setting's value as Kafka shows it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe_broker(settings: Settings) -> list[ConfigValue]:
    """Every setting of this broker, read-only, in key order."""
    plain = Settings()
    described = []
    for key, field in sorted(FIELDS.items()):
        value, default = getattr(settings, field.name), getattr(plain, field.name)
        shown = None if value is None else text_of(value)
        source = ConfigSource.DEFAULT_CONFIG if value == default else ConfigSource.STATIC_BROKER_CONFIG
        types = get_args(field.type) or (field.type,)
        kind = ConfigType.BOOLEAN if bool in types else ConfigType.LONG if int in types else ConfigType.STRING
        described.append(
            ConfigValue(
                key_of(field.name), shown, True, source, [Synonym(key, shown, source)], kind, field.metadata["doc"]
            )
        )
    return described


class TopicRules:
    """What the controller asks about configs (`controller.configs.ConfigRules`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._defaults = TopicDefaults(settings)

    def validate(self, resource_type: int, resource_name: str, overrides: Mapping[str, str]) -> None:
        """Raise KafkaError unless the overrides can stand together. Only topics have overrides here."""
        if resource_type != TOPIC_RESOURCE:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"resource type {resource_type} has no configs here")
        validate_topic_configs(overrides)
        kind = self._defaults.value(overrides, "tidelog.wal")
        largest = self._settings.batch_bytes_max(kind)
        if int(overrides.get("max.message.bytes", 0)) > largest:
            raise _invalid(
                "max.message.bytes",
                overrides["max.message.bytes"],
                f"a WAL of kind {kind} holds batches up to {largest}",
            )

    def list_default(self, resource_type: int, key: str) -> str | None:
        """The default of a list-valued topic config."""
        definition = TOPIC_CONFIGS.get(key)
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

    def may_balance(self, overrides: Mapping[str, str]) -> bool:
        """`tidelog.balance` of the topic. Where the broker's is off nobody asks."""
        return self._defaults.value(overrides, "tidelog.balance").strip().lower() == "true"

    def default_partitions(self) -> int:
        """`num.partitions`."""
        return self._settings.num_partitions

    def default_replication(self) -> int:
        """`default.replication.factor`."""
        return self._settings.default_replication_factor
