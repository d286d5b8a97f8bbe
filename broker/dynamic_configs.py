"""Broker configs: their definitions, and those that can be changed while brokers run.

Overrides are facts: of all brokers (resource name empty), or of one by its node id, which goes first. Every broker
gives its `Settings` the values that are in force when the facts reach it; who keeps something made of them listens.
Kafka's other dynamic configs are stored and returned, so that tools find what they set, and have no effect; a topic's
default comes from them all the same. TLS, SASL and listeners cannot be changed at run time here.

Keys that nobody knows are stored, as in Kafka, where plug-ins read them; their values are not shown. Ours are never
unknown: a `tidelog.` key that is not there is a typing error.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args

from broker.config_types import (
    ConfigSource,
    ConfigType,
    ConfigValue,
    Definition,
    Synonym,
    check_value,
)
from broker.settings import FIELDS, LONG_MAX, SettingError, Settings
from broker.settings_checks import check, parse_value
from broker.settings_sources import ALWAYS_TRUE, without_effect
from protocol.errors import ErrorCode, KafkaError

log = logging.getLogger(__name__)

BROKER_RESOURCE = 4

_LONG_KEYS = """connections.max.idle.ms log.cleaner.backoff.ms log.cleaner.dedupe.buffer.size
    log.cleaner.delete.retention.ms log.cleaner.max.compaction.lag.ms log.cleaner.min.compaction.lag.ms
    log.message.timestamp.after.max.ms log.message.timestamp.before.max.ms
    log.retention.bytes log.retention.check.interval.ms log.retention.ms log.roll.ms offsets.retention.check.interval.ms
    queued.max.request.bytes"""
_LONGS = frozenset(_LONG_KEYS.split())
_SHORTS = frozenset({"offsets.topic.replication.factor", "transaction.state.log.replication.factor"})
_LISTS = frozenset({"advertised.listeners", "listeners", "log.cleanup.policy", "process.roles"})

_STORED_KEYS = {
    ConfigType.BOOLEAN: """follower.fetch.last.tiered.offset.enable log.preallocate
        transaction.partition.verification.enable unclean.leader.election.enable""",
    ConfigType.INT: """background.threads compression.gzip.level compression.lz4.level compression.zstd.level
        group.coordinator.cached.buffer.max.bytes
        group.share.assignment.interval.ms group.streams.assignment.interval.ms log.cleaner.io.buffer.size
        log.cleaner.threads log.index.interval.bytes log.index.size.max.bytes
        max.connection.creation.rate num.io.threads num.network.threads num.recovery.threads.per.data.dir
        num.replica.fetchers remote.fetch.max.wait.ms remote.log.manager.copier.thread.pool.size
        remote.log.manager.expiration.thread.pool.size remote.log.manager.follower.thread.pool.size
        remote.log.reader.threads share.coordinator.cached.buffer.max.bytes""",
    ConfigType.LONG: """follower.replication.throttled.rate leader.replication.throttled.rate
        log.flush.interval.messages log.flush.interval.ms log.local.retention.bytes
        log.local.retention.ms log.roll.jitter.ms log.segment.delete.delay.ms
        remote.list.offsets.request.timeout.ms remote.log.index.file.cache.total.size.bytes
        remote.log.manager.copy.max.bytes.per.second remote.log.manager.fetch.max.bytes.per.second
        replica.alter.log.dirs.io.max.bytes.per.second""",
    ConfigType.DOUBLE: """log.cleaner.io.buffer.load.factor log.cleaner.io.max.bytes.per.second""",
    ConfigType.STRING: "max.connections.per.ip.overrides",
}

_FAMILIES = {
    "log.flush.interval.ms": ("log.flush.scheduler.interval.ms",),
    "log.retention.ms": ("log.retention.minutes", "log.retention.hours"),
    "log.roll.jitter.ms": ("log.roll.jitter.hours",),
    "log.roll.ms": ("log.roll.hours",),
}
"""Keys whose values count if this one has none."""


def _type_of(key: str, annotation: Any) -> ConfigType:
    types = get_args(annotation) or (annotation,)
    if bool in types:
        return ConfigType.BOOLEAN
    if float in types:
        return ConfigType.DOUBLE
    if int in types:
        long = key in _LONGS or key.startswith("tidelog.")
        return ConfigType.SHORT if key in _SHORTS else ConfigType.LONG if long else ConfigType.INT
    return ConfigType.LIST if key in _LISTS else ConfigType.STRING


def _defined() -> dict[str, Definition]:
    found = {}
    for key, field in FIELDS.items():
        bounds = field.metadata
        default = text_of(field.default) or ""
        kind, one_of = _type_of(key, field.type), bounds["one_of"]
        if key == "log.cleanup.policy":
            one_of = ("compact", "delete")
        limits = bounds["at_least"], bounds["at_most"]
        found[key] = Definition(key, kind, default, key, bounds["doc"], *limits, one_of)
    return found


def text_of(value: object) -> str | None:
    """A setting's value as Kafka shows it."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


SETTINGS = _defined()
"""Every setting as a config."""


def _said_of(key: str) -> str:
    why = ALWAYS_TRUE.get(key)
    return f"Stored and returned; always true here: {why}." if why else "Stored and returned; without effect here."


STORED = {
    key: Definition(key, kind, "", key, _said_of(key), -LONG_MAX - 1)
    for kind, keys in _STORED_KEYS.items()
    for key in keys.split()
    if key not in FIELDS
}
"""Kafka's dynamic configs without a meaning here."""

_NOT_AT_RUN_TIME = ("tidelog.", "ssl.", "sasl.", "listener.name.")
"""Ours that are not there; and what would hold the secrets of listeners, which mean nothing here and would be kept."""

DYNAMIC = frozenset(key for key, field in FIELDS.items() if field.metadata["dynamic"])
"""Settings that can be changed at run time."""


def validate_broker_configs(settings: Settings, overrides: Mapping[str, str], changed: Collection[str]) -> None:
    """INVALID_REQUEST unless these overrides can stand together. Only what `changed` has to be dynamic."""
    refused = sorted(key for key in changed if key in overrides and not _may_change(key))
    if refused:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Cannot update these configs dynamically: [{', '.join(refused)}]")
    values = {}
    for key, text in overrides.items():
        definition = SETTINGS.get(key) or STORED.get(key)
        if definition is None:
            continue
        try:
            check_value(definition, text)
        except KafkaError as error:
            raise KafkaError(ErrorCode.INVALID_REQUEST, error.message) from None
        if key in DYNAMIC:
            values[FIELDS[key].name] = parse_value(key, text)
    try:
        check(dataclasses.replace(settings, **values))
    except SettingError as error:
        raise KafkaError(ErrorCode.INVALID_REQUEST, str(error)) from None


def _may_change(key: str) -> bool:
    if key in DYNAMIC or key in STORED:
        return True
    return key not in FIELDS and not key.startswith(_NOT_AT_RUN_TIME) and not without_effect(key)


def list_default(settings: Settings, key: str) -> str | None:
    """The default of a broker config that is a list; None if it is none."""
    definition = SETTINGS.get(key)
    if definition is None or definition.type is not ConfigType.LIST:
        return None
    return text_of(getattr(settings, FIELDS[key].name)) or ""


Changed = Callable[[frozenset[str]], None]
"""Called with the keys whose values are other ones now. Must not raise or wait."""


class DynamicConfigs:
    """The overrides of this broker, and what they make of its settings."""

    def __init__(self, settings: Settings) -> None:
        """`settings` are those of the process; their dynamic values change from here on."""
        self.settings = settings
        self.static = dataclasses.replace(settings)
        self._own: dict[str, str] = {}
        self._common: dict[str, str] = {}
        self._listeners: list[Changed] = []

    def listen(self, listener: Changed) -> None:
        """Call it whenever values change."""
        self._listeners.append(listener)

    def update(self, configs: Mapping[tuple[int, str], Mapping[str, str]]) -> None:
        """Makes the overrides of the cluster's state those in force."""
        common = dict(configs.get((BROKER_RESOURCE, ""), {}))
        own = dict(configs.get((BROKER_RESOURCE, str(self.settings.node_id)), {}))
        changed = {key for key in {**common, **own, **self._common, **self._own} if self._differ(key, common, own)}
        if not changed:
            return
        self._common, self._own = common, own
        texts = {key: text for key in DYNAMIC if (text := own.get(key, common.get(key))) is not None}
        try:
            wanted = {FIELDS[key].name: parse_value(key, text) for key, text in texts.items()}
            check(dataclasses.replace(self.static, **wanted))
        except SettingError as error:  # of a broker whose settings, or whose version, are not the controller's
            log.error("dynamic configs of this broker are not applied: %s", error)
            return
        for key in DYNAMIC:
            name = FIELDS[key].name
            value = wanted.get(name, getattr(self.static, name))
            if value != getattr(self.settings, name):
                log.info("%s is %s now", key, text_of(value))
                self.settings.change(name, value)
        for listener in self._listeners:
            listener(frozenset(changed))

    def _differ(self, key: str, common: Mapping[str, str], own: Mapping[str, str]) -> bool:
        return (common.get(key), own.get(key)) != (self._common.get(key), self._own.get(key))

    def synonyms(self, key: str, default: str | None = None) -> list[Synonym]:
        """Where the value of a broker config can come from, the one that counts first. `default`: Kafka's own."""
        found: list[Synonym] = []
        for name in (key, *_FAMILIES.get(key, ())):
            if name in self._own:
                found.append(Synonym(name, self._own[name], ConfigSource.DYNAMIC_BROKER_CONFIG))
            if name in self._common:
                found.append(Synonym(name, self._common[name], ConfigSource.DYNAMIC_DEFAULT_BROKER_CONFIG))
            field = FIELDS.get(name)
            if field is not None:
                static, plain = text_of(getattr(self.static, field.name)), text_of(field.default)
                if static != plain and static is not None:
                    found.append(Synonym(name, static, ConfigSource.STATIC_BROKER_CONFIG))
                if plain is not None:
                    found.append(Synonym(name, plain, ConfigSource.DEFAULT_CONFIG))
            elif name == key and default is not None:
                found.append(Synonym(name, default, ConfigSource.DEFAULT_CONFIG))
        while found and found[0].name != key:  # as Kafka lists them: nothing is said of others if the key has no value
            found.pop(0)
        return found

    def describe(self) -> list[ConfigValue]:
        """Every config of this broker in key order: settings, and what was set beside them."""
        keys = sorted({*FIELDS, *self._common, *self._own})
        return [self._described(key, self.synonyms(key)) for key in keys]

    def describe_default(self) -> list[ConfigValue]:
        """What was set for all brokers."""
        source = ConfigSource.DYNAMIC_DEFAULT_BROKER_CONFIG
        return [self._described(key, [Synonym(key, value, source)]) for key, value in sorted(self._common.items())]

    def _described(self, key: str, synonyms: list[Synonym]) -> ConfigValue:
        definition = SETTINGS.get(key) or STORED.get(key)
        source = synonyms[0].source if synonyms else ConfigSource.DEFAULT_CONFIG
        value = synonyms[0].value if synonyms else None
        if definition is None:
            hidden = [one._replace(value=None) for one in synonyms]
            return ConfigValue(key, None, False, source, hidden, ConfigType.UNKNOWN, "", sensitive=True)
        read_only = not _may_change(key)
        return ConfigValue(key, value, read_only, source, synonyms, definition.type, definition.documentation)
