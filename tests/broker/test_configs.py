"""Topic and broker configs: validation, effective values, sources and synonyms."""

import pytest

from broker.config_types import ConfigSource
from broker.configs import TOPIC_CONFIGS, TopicDefaults, validate_topic_config, validate_topic_configs
from broker.dynamic_configs import DynamicConfigs
from broker.settings import Settings
from broker.settings_checks import build
from protocol.errors import ErrorCode, KafkaError


@pytest.mark.parametrize("name", sorted(TOPIC_CONFIGS))
def test_every_default_is_valid(name: str) -> None:
    validate_topic_config(name, TOPIC_CONFIGS[name].default)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no.such.config", "1"),
        ("retention.ms", None),
        ("retention.ms", "soon"),
        ("retention.ms", "1_000"),
        ("retention.ms", "1" * 5000),
        ("retention.ms", "-2"),
        ("retention.ms", str(2**63)),
        ("max.message.bytes", str(2**31)),
        ("cleanup.policy", "shred"),
        ("cleanup.policy", "delete,shred"),
        ("message.timestamp.type", "createtime"),
        ("preallocate", "yes"),
        ("min.cleanable.dirty.ratio", "1.5"),
        ("min.cleanable.dirty.ratio", "nan"),
        ("compression.zstd.level", "23"),
        ("tidelog.wal", "paper"),
    ],
)
def test_bad_values_are_refused(name: str, value: str | None) -> None:
    with pytest.raises(KafkaError) as caught:
        validate_topic_config(name, value)
    assert caught.value.code is ErrorCode.INVALID_CONFIG


def test_contradicting_lags_are_refused() -> None:
    validate_topic_configs({"min.compaction.lag.ms": "5", "max.compaction.lag.ms": "5"})
    with pytest.raises(KafkaError):
        validate_topic_configs({"min.compaction.lag.ms": "6", "max.compaction.lag.ms": "5"})


def test_topic_over_broker_over_default() -> None:
    defaults = TopicDefaults(build({"log.retention.hours": "1", "message.max.bytes": "1000"}))
    assert defaults.number({}, "retention.ms") == 3_600_000
    assert defaults.number({"retention.ms": "7"}, "retention.ms") == 7
    described = {value.name: value for value in defaults.describe({"retention.ms": "7"})}
    assert [(s.name, s.value, s.source) for s in described["retention.ms"].synonyms] == [
        ("retention.ms", "7", ConfigSource.TOPIC_CONFIG),
    ]
    assert described["max.message.bytes"].source is ConfigSource.STATIC_BROKER_CONFIG
    assert [(s.name, s.value, s.source) for s in described["max.message.bytes"].synonyms] == [
        ("message.max.bytes", "1000", ConfigSource.STATIC_BROKER_CONFIG),
        ("message.max.bytes", "1048588", ConfigSource.DEFAULT_CONFIG),
    ]
    # As in Kafka, whose log.roll.ms is unset by default.
    assert described["segment.ms"].source is ConfigSource.DEFAULT_CONFIG
    assert described["segment.ms"].value == "604800000"
    assert described["segment.ms"].synonyms == []


def test_the_broker_shows_every_setting() -> None:
    described = {value.name: value for value in DynamicConfigs(build({"num.partitions": "3"})).describe()}
    assert described["num.partitions"].value == "3"
    assert described["num.partitions"].source is ConfigSource.STATIC_BROKER_CONFIG
    assert described["auto.create.topics.enable"].value == "true"
    assert described["broker.rack"].value is None
    assert described["num.partitions"].read_only and not described["max.connections"].read_only
    assert all(value.documentation for value in described.values())
    assert len(described) == len(Settings.__dataclass_fields__)
