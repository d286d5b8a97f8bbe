"""Configs of single groups (KIP-848, KIP-932, KIP-1071): definitions and validation.

They are kept and returned for any group, whether it exists or not, as in Kafka. Those of consumer groups act; those of
share and Streams groups, which are not served, are only stored.
"""

from collections.abc import Iterable, Mapping

from broker.config_types import ConfigSource, ConfigType, ConfigValue, Definition, Synonym, check_value
from broker.settings import FIELDS, INT_MAX, Settings
from protocol.errors import ErrorCode, KafkaError

GROUP_RESOURCE = 32

_STORED = "Stored and returned; without effect here."


def _definitions() -> Iterable[Definition]:
    integer, string = ConfigType.INT, ConfigType.STRING
    for kind, meaning in (("consumer", "The group's own value of the broker setting."), ("share", _STORED)):
        for name, default in (("session.timeout.ms", 45_000), ("heartbeat.interval.ms", 5_000)):
            yield Definition(f"{kind}.{name}", integer, str(default), f"group.{kind}.{name}", meaning, 1)
        name = f"{kind}.assignment.interval.ms"
        yield Definition(name, integer, "1000", f"group.{name}", meaning, 0)
    yield Definition(
        "share.auto.offset.reset", string, "latest", "share.auto.offset.reset", _STORED, one_of=("latest", "earliest")
    )
    levels = ("read_committed", "read_uncommitted")
    yield Definition("share.isolation.level", string, levels[1], "share.isolation.level", _STORED, one_of=levels)
    yield Definition(
        "share.renew.acknowledge.enable", ConfigType.BOOLEAN, "true", "share.renew.acknowledge.enable", _STORED
    )
    for name, default, least, most in (
        ("share.delivery.count.limit", 5, 2, 10),
        ("share.partition.max.record.locks", 2000, 100, 10_000),
        ("share.record.lock.duration.ms", 30_000, 1000, 3_600_000),
        ("streams.assignment.interval.ms", 1000, 0, INT_MAX),
        ("streams.heartbeat.interval.ms", 5000, 1, INT_MAX),
        ("streams.initial.rebalance.delay.ms", 3000, 0, INT_MAX),
        ("streams.num.standby.replicas", 0, 0, INT_MAX),
        ("streams.session.timeout.ms", 45_000, 1, INT_MAX),
    ):
        yield Definition(name, integer, str(default), f"group.{name}", _STORED, least, most)


GROUP_CONFIGS: dict[str, Definition] = {definition.name: definition for definition in _definitions()}


def validate(settings: Settings, group: str, overrides: Mapping[str, str]) -> None:
    """INVALID_CONFIG unless the overrides can stand; the broker's bounds count for a consumer group's."""
    if not group:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "Default group resources are not allowed.")
    for name, value in overrides.items():
        definition = GROUP_CONFIGS.get(name)
        if definition is None:
            raise KafkaError(ErrorCode.INVALID_CONFIG, f"Unknown group config name: {name}")
        check_value(definition, value)
        _check_bounds(settings, name, value)
    session, beat = (int(value_of(settings, overrides, f"consumer.{name}.ms")) for name in _BOUNDED)
    if session <= beat:
        raise KafkaError(
            ErrorCode.INVALID_CONFIG,
            "consumer.session.timeout.ms must be greater than consumer.heartbeat.interval.ms",
        )


_BOUNDED = ("session.timeout", "heartbeat.interval")


def _check_bounds(settings: Settings, name: str, value: str) -> None:
    kind, _, rest = name.partition(".")
    for side, words in (("min", "greater than or equal to"), ("max", "less than or equal to")):
        field = FIELDS.get(f"group.{kind}.{side}.{rest}")
        if field is None:
            continue
        bound = getattr(settings, field.name)
        if (int(value) < bound) if side == "min" else (int(value) > bound):
            why = f"{name} must be {words} group.{kind}.{side}.{rest}"
            raise KafkaError(ErrorCode.INVALID_CONFIG, why)


def value_of(settings: Settings, overrides: Mapping[str, str], name: str) -> str:
    """The text that counts for group config `name`."""
    if name in overrides:
        return overrides[name]
    definition = GROUP_CONFIGS[name]
    field = FIELDS.get(definition.synonym)
    return definition.default if field is None else str(getattr(settings, field.name))


def describe(settings: Settings, overrides: Mapping[str, str]) -> list[ConfigValue]:
    """Every group config with its source, in name order."""
    plain = Settings()
    described = []
    for name, definition in sorted(GROUP_CONFIGS.items()):
        synonyms = [Synonym(name, overrides[name], ConfigSource.GROUP_CONFIG)] if name in overrides else []
        field = FIELDS.get(definition.synonym)
        if field is not None and getattr(settings, field.name) != getattr(plain, field.name):
            static = str(getattr(settings, field.name))
            synonyms.append(Synonym(definition.synonym, static, ConfigSource.STATIC_BROKER_CONFIG))
        synonyms.append(Synonym(definition.synonym, definition.default, ConfigSource.DEFAULT_CONFIG))
        described.append(
            ConfigValue(
                name, synonyms[0].value, False, synonyms[0].source, synonyms, definition.type, definition.documentation
            )
        )
    return described
