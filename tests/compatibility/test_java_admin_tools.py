"""Kafka's own tools for administrators, unmodified, of two Kafka versions: configs of everything, quotas, credentials,
access lists, features, the quorum, brokers that are gone.
"""

import re
from collections.abc import Callable, Iterator

import pytest

from broker.settings import AUTHORIZER
from tests.compatibility.jvm import Shell, refused
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

CONFIGS = "kafka.admin.ConfigCommand"
Command = Callable[..., list[str]]


@pytest.fixture
def configs(tools: Shell, where: tuple[str, str]) -> Command:
    """`kafka-configs.sh`; the lines that it prints, stripped."""

    def command(*arguments: object) -> list[str]:
        return [line.strip() for line in tools.run(CONFIGS, *where, *arguments).lines]

    return command


@pytest.fixture
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("secured") / "data", authorizer_class_name=AUTHORIZER) as running:
        yield running
        assert running.stop() == 0, running.log_tail()


def test_brokers(tools: Shell, where: tuple[str, str], configs: Command) -> None:
    everybody, one = ("--entity-type", "brokers", "--entity-default"), ("--entity-type", "brokers", "--entity-name", 1)
    added = "log.retention.ms=123456,leader.replication.throttled.rate=5"
    assert configs("--alter", *everybody, "--add-config", added) == [
        "Completed updating default config for brokers in the cluster."
    ]
    assert configs("--alter", *one, "--add-config", "max.connections=5000") == [
        "Completed updating config for broker 1."
    ]
    try:
        source = "sensitive=false synonyms={DYNAMIC_DEFAULT_BROKER_CONFIG"
        assert configs("--describe", *everybody)[1:] == [
            f"leader.replication.throttled.rate=5 {source}:leader.replication.throttled.rate=5}}",
            f"log.retention.ms=123456 {source}:log.retention.ms=123456}}",
        ]
        assert configs("--describe", *one)[1:] == [
            "max.connections=5000 sensitive=false synonyms={DYNAMIC_BROKER_CONFIG:max.connections=5000, "
            "DEFAULT_CONFIG:max.connections=2147483647}"
        ]
        wrong = tools.try_run(CONFIGS, *where, "--alter", *one, "--add-config", "node.id=5")
        refused(wrong, "InvalidRequestException: Cannot update these configs dynamically: [node.id]")
    finally:
        configs("--alter", *everybody, "--delete-config", "log.retention.ms,leader.replication.throttled.rate")
        configs("--alter", *one, "--delete-config", "max.connections")
    assert len(configs("--describe", *everybody)) == 1


def test_loggers_and_groups(tools: Shell, configs: Command) -> None:
    loggers = ("--entity-type", "broker-loggers", "--entity-name", 1)
    configs("--alter", *loggers, "--add-config", "broker.sealing=DEBUG")
    shown = configs("--describe", *loggers)
    assert "broker.sealing=DEBUG sensitive=false synonyms={}" in shown
    assert "broker.cold=INFO sensitive=false synonyms={}" in shown
    configs("--alter", *loggers, "--delete-config", "broker.sealing")
    if tools.older:
        return
    group = ("--entity-type", "groups", "--entity-name", "configured")
    configs("--alter", *group, "--add-config", "consumer.session.timeout.ms=50000")
    shown = configs("--describe", "--entity-type", "groups")
    assert shown[shown.index("Dynamic configs for group configured are:") + 1] == (
        "consumer.session.timeout.ms=50000 sensitive=false synonyms={DYNAMIC_GROUP_CONFIG:"
        "consumer.session.timeout.ms=50000, DEFAULT_CONFIG:group.consumer.session.timeout.ms=45000}"
    )
    configs("--alter", *group, "--delete-config", "consumer.session.timeout.ms")


def test_quotas(configs: Command) -> None:
    client = ("--entity-type", "clients", "--entity-name", "c")
    pair = ("--entity-type", "users", "--entity-name", "u", "--entity-type", "clients", "--entity-default")
    address = ("--entity-type", "ips", "--entity-name", "10.0.0.1")
    rows = (
        (client, "producer_byte_rate=1000,consumer_byte_rate=2000", ("clients",), "client-id 'c'"),
        (pair, "request_percentage=50", ("users", "clients"), "user-principal 'u', the default client-id"),
        (address, "connection_creation_rate=5", ("ips",), "ip '10.0.0.1'"),
    )
    for entity, values, kinds, words in rows:
        configs("--alter", *entity, "--add-config", values)
        of_kinds = [word for kind in kinds for word in ("--entity-type", kind)]
        (line,) = configs("--describe", *of_kinds)
        shown = ", ".join(f"{value}.0" for value in sorted(values.split(",")))
        assert line == f"Quota configs for {words} are {shown}"
        configs("--alter", *entity, "--delete-config", re.sub(r"=\d+", "", values))
        assert configs("--describe", *of_kinds) == []


def test_credentials(configs: Command) -> None:
    user = ("--entity-type", "users", "--entity-name", "alice")
    assert configs("--alter", *user, "--add-config", "SCRAM-SHA-256=[iterations=8192,password=pencil]") == [
        "Completed updating config for user alice."
    ]
    assert configs("--describe", "--entity-type", "users") == [
        "SCRAM credential configs for user-principal 'alice' are SCRAM-SHA-256=iterations=8192"
    ]
    configs("--alter", *user, "--delete-config", "SCRAM-SHA-256")
    assert configs("--describe", "--entity-type", "users") == []


def test_access_lists(tools: Shell, where: tuple[str, str], secured: BrokerProcess) -> None:
    name = "kafka.admin.AclCommand" if tools.older else "AclCommand"
    refused(
        tools.try_run(name, *where, "--list"), "SecurityDisabledException: No Authorizer is configured on the broker"
    )
    with_authorizer = ("--bootstrap-server", secured.bootstrap)
    allow = ("--allow-principal", "User:a", "--operation", "Read", "--topic", "t", "--group", "g")
    tools.run(name, *with_authorizer, "--add", *allow)
    shown = [line.strip() for line in tools.run(name, *with_authorizer, "--list").lines]
    assert shown.count("(principal=User:a, host=*, operation=READ, permissionType=ALLOW)") == 2
    assert any("resourceType=GROUP, name=g, patternType=LITERAL" in line for line in shown)
    tools.run(name, *with_authorizer, "--remove", "--force", "--topic", "t")
    tools.run(name, *with_authorizer, "--remove", "--force", "--group", "g")
    assert tools.run(name, *with_authorizer, "--list").lines == []


def test_features(tools: Shell, where: tuple[str, str]) -> None:
    def command(*arguments: object) -> list[str]:
        return tools.run("FeatureCommand", *where, *arguments).lines

    def shown() -> dict[str, list[str]]:
        rows = [re.split(r"\s*\t\s*|\s{2,}", line) for line in command("describe")]
        return {row[0].split()[1]: [cell.partition(": ")[2] for cell in row[1:4]] for row in rows}

    known = "UNKNOWN 30" if tools.older else "4.3-IV0"
    assert shown() == {
        "group.version": ["0", "1", "1"],
        "metadata.version": [known, known, known],
        "transaction.version": ["0", "2", "2"],
    }
    change = ("--feature", "transaction.version=1")
    assert command("downgrade", *change, "--dry-run") == ["transaction.version can be downgraded to 1."]
    assert command("downgrade", *change) == ["transaction.version was downgraded to 1."]
    assert shown()["transaction.version"] == ["0", "2", "1"]
    assert command("upgrade", "--feature", "transaction.version=2") == ["transaction.version was upgraded to 2."]
    wrong = tools.try_run("FeatureCommand", *where, "upgrade", "--feature", "share.version=1")
    refused(wrong, "Local controller 1 does not support this feature")


def test_quorum_and_brokers(tools: Shell, where: tuple[str, str], broker: BrokerProcess) -> None:
    status = tools.run("MetadataQuorumCommand", *where, "describe", "--status").out
    assert re.search(r"LeaderId: +1\n", status) and re.search(r"CurrentObservers: +\[\]", status)
    assert f"PLAINTEXT://{broker.bootstrap}" in status
    row = tools.run("MetadataQuorumCommand", *where, "describe", "--replication").lines[-1].split()
    assert (row[0], row[3], row[-1]) == ("1", "0", "Leader")
    refused(tools.try_run("ClusterTool", "unregister", "--id", 7, *where), "Unregister broker request for broker ID 7")
    wrong = tools.try_run("ClusterTool", "unregister", "--id", 1, *where)
    refused(wrong, "Unregister broker request for broker ID 1 failed")
    if not tools.older:
        assert "Broker 1 is alive: stop it before it is unregistered." in wrong.err
