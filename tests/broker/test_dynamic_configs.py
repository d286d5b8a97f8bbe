"""Configs of brokers, loggers and groups that change at run time, through sockets; ListConfigResources."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.config_types import ConfigSource, ConfigType
from broker.dispatch import HANDLERS
from broker.dynamic_configs import DYNAMIC, SETTINGS, STORED, DynamicConfigs, validate_broker_configs
from broker.group_configs import GROUP_CONFIGS
from broker.handlers import loggers
from broker.node import Broker
from broker.settings import FIELDS, Settings
from broker.settings_checks import build
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode, KafkaError
from tests.support.raw_client import RawClient, batch_of
from tests.support.whole_broker import whole_broker

TOPIC, BROKER, LOGGER, CLIENT_METRICS, GROUP = 2, 4, 8, 16, 32
SET, DELETE, APPEND, SUBTRACT = 0, 1, 2, 3


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with whole_broker(tmp_path / "data", tidelog_seal_ms=50, message_max_bytes=2_000_000) as running:
        yield running


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[RawClient]:
    async with RawClient(broker.listeners[0].port) as connected:
        yield connected


async def alter(
    client: RawClient, kind: int, name: str, *changes: tuple[str, int, str | None], validate_only: bool = False
) -> tuple[int, str | None]:
    request = m.IncrementalAlterConfigsRequest
    configs = [request.AlterableConfig(name=key, config_operation=op, value=value) for key, op, value in changes]
    resource = request.AlterConfigsResource(resource_type=kind, resource_name=name, configs=configs)
    asked = request(resources=[resource], validate_only=validate_only)
    (answer,) = (await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, asked)).responses
    assert (answer.resource_type, answer.resource_name) == (kind, name)
    return answer.error_code, answer.error_message


async def describe(client: RawClient, kind: int, name: str, *keys: str) -> Any:
    request = m.DescribeConfigsRequest
    resource = request.DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=list(keys))
    asked = request(resources=[resource], include_synonyms=True, include_documentation=True)
    (answer,) = (await client.ask(ApiKey.DESCRIBE_CONFIGS, 4, asked)).results
    return answer


async def one(client: RawClient, kind: int, name: str, key: str) -> tuple[str | None, list[tuple[str, str, int]]]:
    (config,) = (await describe(client, kind, name, key)).configs
    assert config.config_source == (config.synonyms[0].source if config.synonyms else ConfigSource.DEFAULT_CONFIG)
    return config.value, [(synonym.name, synonym.value, synonym.source) for synonym in config.synonyms]


async def create(client: RawClient, name: str) -> None:
    topic = m.CreateTopicsRequest.CreatableTopic(name=name, num_partitions=1, replication_factor=1)
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
    assert answer.topics[0].error_code == 0


async def test_a_broker_config_is_the_default_of_topics(client: RawClient, broker: Broker) -> None:
    await create(client, "t")
    assert await one(client, TOPIC, "t", "retention.ms") == ("604800000", [])
    assert await alter(client, BROKER, "", ("log.retention.ms", SET, "400000")) == (0, None)
    assert await alter(client, BROKER, "1", ("log.retention.ms", SET, "500000")) == (0, None)
    sources = [("log.retention.ms", "500000", 2), ("log.retention.ms", "400000", 3), ("log.retention.hours", "168", 5)]
    assert await one(client, BROKER, "1", "log.retention.ms") == ("500000", sources)
    assert await one(client, TOPIC, "t", "retention.ms") == ("500000", sources)
    (common,) = (await describe(client, BROKER, "")).configs
    assert (common.name, common.value, common.config_source) == ("log.retention.ms", "400000", 3)
    assert broker.runtime._rules.retention({}) == (500_000, -1)
    assert await alter(client, BROKER, "1", ("log.retention.ms", DELETE, None)) == (0, None)
    assert await one(client, TOPIC, "t", "retention.ms") == ("400000", sources[1:])
    assert broker.runtime._rules.retention({}) == (400_000, -1)
    assert await alter(client, BROKER, "", ("log.segment.bytes", SET, "2000000")) == (0, None)
    value, synonyms = await one(client, TOPIC, "t", "segment.bytes")
    assert (value, [source for _, _, source in synonyms]) == ("2000000", [3, 5])


async def test_the_largest_batch_changes_under_a_log_that_is_open(client: RawClient) -> None:
    await create(client, "t")
    batch = batch_of(b"v" * 5000)
    assert (await client.produce("t", batch)).error_code == 0
    assert await alter(client, BROKER, "", ("message.max.bytes", SET, "4000")) == (0, None)
    assert (await client.produce("t", batch)).error_code == ErrorCode.MESSAGE_TOO_LARGE
    value, synonyms = await one(client, TOPIC, "t", "max.message.bytes")
    assert (value, [source for _, _, source in synonyms]) == ("4000", [3, 4, 5])
    assert await alter(client, BROKER, "", ("message.max.bytes", DELETE, None)) == (0, None)
    assert (await client.produce("t", batch)).error_code == 0


async def test_connections_are_bounded_at_once(client: RawClient, broker: Broker) -> None:
    assert await alter(client, BROKER, "1", ("max.connections.per.ip", SET, "1")) == (0, None)
    async with RawClient(client.port) as refused:
        assert await refused.closed()
    assert await alter(client, BROKER, "1", ("max.connections.per.ip", SET, "2")) == (0, None)
    async with RawClient(client.port) as second:
        assert (await describe(second, BROKER, "")).error_code == 0


async def test_pace_balance_and_producer_state_follow(client: RawClient, broker: Broker) -> None:
    await create(client, "t")
    assert (await client.produce("t", batch_of(b"v"))).error_code == 0
    changes = {
        "tidelog.upload.bytes.per.second": "5000000",
        "tidelog.merge.bytes.per.second": "6000000",
        "tidelog.balance": "false",
        "tidelog.seal.ms": "77",
        "producer.id.expiration.ms": "1234",
    }
    assert await alter(client, BROKER, "", *[(key, SET, value) for key, value in changes.items()]) == (0, None)
    assert (broker.uploader.pace_bytes_per_s, broker.pacer.bytes_per_s) == (5_000_000, 6_000_000)
    assert (broker.runtime.settings.balance, broker.settings.tidelog_seal_ms) == (False, 77)
    assert {log.producers.expiration_ms for log in broker.logs.logs} == {1234}
    assert await alter(client, BROKER, "", *[(key, DELETE, None) for key in changes]) == (0, None)
    assert broker.runtime.settings.balance and broker.settings.tidelog_seal_ms == 50
    assert {log.producers.expiration_ms for log in broker.logs.logs} == {86_400_000}


async def test_they_survive_a_restart(tmp_path: Path) -> None:
    async with whole_broker(tmp_path / "data") as broker, RawClient(broker.listeners[0].port) as client:
        assert await alter(client, BROKER, "", ("max.connections", SET, "50"), ("of.a.plug-in", SET, "x")) == (0, None)
    async with whole_broker(tmp_path / "data") as broker, RawClient(broker.listeners[0].port) as client:
        assert broker.settings.max_connections == 50
        told = {config.name: config for config in (await describe(client, BROKER, "")).configs}
        assert told["max.connections"].value == "50"
        assert (told["of.a.plug-in"].value, told["of.a.plug-in"].is_sensitive) == (None, True)


@pytest.mark.parametrize(
    ("name", "change", "code", "words"),
    [
        ("1", ("node.id", SET, "5"), 42, "Cannot update these configs dynamically: [node.id]"),
        ("", ("num.partitions", SET, "5"), 42, "Cannot update these configs dynamically: [num.partitions]"),
        ("1", ("quota.window.num", SET, "5"), 42, "Cannot update these configs dynamically: [quota.window.num]"),
        ("1", ("tidelog.seel.ms", SET, "5"), 42, "Cannot update these configs dynamically: [tidelog.seel.ms]"),
        ("1", ("ssl.keystore.location", SET, "x"), 42, "Cannot update these configs dynamically"),
        ("1", ("listener.name.a.plain.sasl.jaas.config", SET, "secret"), 42, "Cannot update these configs dynamically"),
        ("", ("listener.name.a.ssl.key.password", SET, "secret"), 42, "Cannot update these configs dynamically"),
        ("2", ("log.retention.ms", SET, "5"), 42, "Unexpected broker id, expected 1, but received 2"),
        ("x", ("log.retention.ms", SET, "5"), 42, "Node id must be an integer, but it is: x"),
        ("1", ("log.retention.ms", SET, "abc"), 42, "Invalid value abc for configuration log.retention.ms"),
        ("1", ("log.retention.ms", SET, None), 42, "Null value not supported for : log.retention.ms"),
        ("1", ("log.retention.bytes", APPEND, "5"), 40, "Config value append is not allowed for config key"),
        ("1", ("log.cleanup.policy", SET, "foo"), 42, "String must be one of: compact, delete"),
        ("1", ("log.retention.ms", 7, "5"), 42, "Unknown operations type 7"),
        ("1", ("message.max.bytes", SET, "100000000"), 42, "message.max.bytes does not fit a WAL file"),
        ("", ("log.segment.bytes", SET, "many"), 42, "Not a number of type INT"),
    ],
)
async def test_refused(
    client: RawClient, name: str, change: tuple[str, int, str | None], code: int, words: str
) -> None:
    error_code, message = await alter(client, BROKER, name, change)
    assert (error_code, words in (message or "")) == (code, True), message
    assert "secret" not in (message or "")
    assert (await describe(client, BROKER, "")).configs == []


async def test_only_checked_changes_nothing(client: RawClient) -> None:
    change = ("log.cleanup.policy", APPEND, "compact")
    assert await alter(client, BROKER, "", change, validate_only=True) == (0, None)
    assert (await describe(client, BROKER, "")).configs == []
    assert await alter(client, BROKER, "", change) == (0, None)
    assert (await one(client, BROKER, "1", "log.cleanup.policy"))[0] == "delete,compact"


async def test_loggers(client: RawClient) -> None:
    name = "broker.sealing"
    assert {config.name for config in (await describe(client, LOGGER, "1")).configs} >= {"root", name}
    before = logging.getLogger(name).level
    try:
        for level, python in (("DEBUG", logging.DEBUG), ("WARN", logging.WARNING), ("FATAL", logging.CRITICAL)):
            assert await alter(client, LOGGER, "1", (name, SET, level)) == (0, None)
            assert logging.getLogger(name).level == python
            (config,) = (await describe(client, LOGGER, "1", name)).configs
            assert (config.value, config.config_source, config.read_only) == (level, 6, False)
        assert await alter(client, LOGGER, "1", (name, SET, "INFO"), validate_only=True) == (0, None)
        assert logging.getLogger(name).level == logging.CRITICAL
        assert await alter(client, LOGGER, "1", (name, DELETE, None)) == (0, None)
        assert logging.getLogger(name).level == logging.NOTSET
    finally:
        logging.getLogger(name).setLevel(before)
    for resource, change, code, words in (
        ("1", ("nobody", SET, "INFO"), 40, "Logger nobody does not exist!"),
        ("1", (name, SET, "LOUD"), 40, "Valid log levels are DEBUG, ERROR, FATAL, INFO, TRACE, WARN"),
        ("1", ("root", DELETE, None), 42, "Removing the log level of the root logger is not allowed"),
        ("1", (name, APPEND, "INFO"), 42, "APPEND operation is not allowed for the BROKER_LOGGER resource"),
        ("2", (name, SET, "INFO"), 42, "Unexpected node id. Expected 1, but received 2"),
    ):
        error_code, message = await alter(client, LOGGER, resource, change)
        assert (error_code, words in (message or "")) == (code, True), message
    assert (await describe(client, LOGGER, "")).error_message == "Broker id must not be empty"


async def test_loggers_that_would_tell_credentials(client: RawClient) -> None:
    """With the root logger at DEBUG too, nothing of the bucket's client is told below INFO."""
    loggers.keep_secrets()
    signer, root = logging.getLogger("botocore.auth"), logging.getLogger()
    before = root.level
    try:
        assert await alter(client, LOGGER, "1", ("root", SET, "DEBUG")) == (0, None)
        for name in ("botocore", "botocore.auth"):
            error_code, message = await alter(client, LOGGER, "1", (name, SET, "DEBUG"))
            assert error_code == 40 and "holds credentials of the bucket" in (message or "")
        assert await alter(client, LOGGER, "1", ("botocore", SET, "WARN")) == (0, None)
        assert not signer.isEnabledFor(logging.INFO)
        assert await alter(client, LOGGER, "1", ("botocore", DELETE, None)) == (0, None)
        assert signer.isEnabledFor(logging.INFO) and not signer.isEnabledFor(logging.DEBUG)
    finally:
        root.setLevel(before)


async def test_groups(client: RawClient) -> None:
    key = "consumer.session.timeout.ms"
    assert await one(client, GROUP, "g", key) == ("45000", [("group.consumer.session.timeout.ms", "45000", 5)])
    assert await alter(client, GROUP, "g", (key, SET, "50000")) == (0, None)
    assert await one(client, GROUP, "g", key) == (
        "50000",
        [(key, "50000", 8), ("group.consumer.session.timeout.ms", "45000", 5)],
    )
    assert len((await describe(client, GROUP, "other")).configs) == len(GROUP_CONFIGS)
    for group, change, code, words in (
        ("g", (key, SET, "x"), 40, "Not a number of type INT"),
        ("g", ("share.isolation.level", SET, "x"), 40, "read_committed"),
        ("g", (key, SET, "4000"), 40, "must be greater than"),
        ("g", ("other", SET, "1"), 40, "Unknown group config name: other"),
        ("", (key, SET, "50000"), 42, "Default group resources are not allowed."),
    ):
        error_code, message = await alter(client, GROUP, group, change)
        assert (error_code, words in (message or "")) == (code, True), message
    assert (await describe(client, GROUP, "")).error_message == "Group name must not be empty"


async def test_unknown_kinds(client: RawClient) -> None:
    assert await alter(client, CLIENT_METRICS, "m", ("interval.ms", SET, "5")) == (42, "Unknown resource type 16")
    assert (await describe(client, CLIENT_METRICS, "m")).error_code == ErrorCode.INVALID_REQUEST
    for name, code in (("", 42), ("a b", 17), ("nope", 3)):
        assert (await alter(client, TOPIC, name, ("retention.ms", SET, "5")))[0] == code


@pytest.mark.parametrize("version", range(HANDLERS[ApiKey.LIST_CONFIG_RESOURCES].max_version + 1))
async def test_list_config_resources(client: RawClient, version: int) -> None:
    await create(client, "t")
    assert await alter(client, GROUP, "g", ("consumer.session.timeout.ms", SET, "50000")) == (0, None)

    async def listed(*types: int) -> Any:
        request = (
            m.ListConfigResourcesRequest(resource_types=list(types)) if version else m.ListConfigResourcesRequest()
        )
        return await client.ask(ApiKey.LIST_CONFIG_RESOURCES, version, request)

    if version == 0:
        assert (await listed()).config_resources == []
        return
    everything = [("g", GROUP), ("1", LOGGER), ("1", BROKER), ("t", TOPIC)]
    assert [(found.resource_name, found.resource_type) for found in (await listed()).config_resources] == everything
    found = (await listed(TOPIC, CLIENT_METRICS)).config_resources
    assert [(each.resource_name, each.resource_type) for each in found] == [("t", TOPIC)]
    assert (await listed(3)).error_code == ErrorCode.UNSUPPORTED_VERSION


# The rules alone


def test_every_dynamic_setting_is_one_of_kafkas_or_ours() -> None:
    assert set(FIELDS) >= DYNAMIC and not DYNAMIC & set(STORED)
    assert SETTINGS["log.retention.ms"].type is ConfigType.LONG
    assert SETTINGS["num.partitions"].type is ConfigType.INT
    assert SETTINGS["offsets.topic.replication.factor"].type is ConfigType.SHORT
    assert SETTINGS["listeners"].type is ConfigType.LIST


def test_what_was_there_before_may_stay() -> None:
    """A key that was dynamic in another version does not bar other changes."""
    validate_broker_configs(Settings(), {"num.partitions": "5", "max.connections": "5"}, ["max.connections"])
    with pytest.raises(KafkaError, match=r"\[num.partitions\]"):
        validate_broker_configs(Settings(), {"num.partitions": "5"}, ["num.partitions"])


def test_a_broker_that_cannot_have_them_keeps_its_own(caplog: pytest.LogCaptureFixture) -> None:
    settings = build({"tidelog.wal.file.bytes": str(2 << 20), "tidelog.wal.bytes.max": str(64 << 20)})
    dynamic = DynamicConfigs(settings)
    dynamic.update({(4, ""): {"message.max.bytes": "50000000", "max.connections": "5"}})
    assert settings == dynamic.static
    dynamic.update({(4, ""): {"max.connections": "as another version knows them"}})
    assert settings == dynamic.static
    assert "dynamic configs of this broker are not applied" in caplog.text
    heard: list[frozenset[str]] = []
    dynamic.listen(heard.append)
    dynamic.update({(4, ""): {"max.connections": "5"}, (4, "1"): {"max.connections": "6"}, (4, "2"): {"x": "y"}})
    assert settings.max_connections == 6
    dynamic.update({(4, ""): {"max.connections": "5"}, (4, "1"): {"max.connections": "6"}})
    assert heard == [{"max.connections"}]
