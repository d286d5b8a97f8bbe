"""More of Kafka's own tools for whoever runs a cluster, unmodified: options of `kafka-topics.sh` beyond the usual ones,
features, the quorum, directories, access lists, a Streams application that is reset.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.settings import AUTHORIZER
from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent
from tests.compatibility.jvm import Shell, refused
from tests.compatibility.test_java_tools import cells, fill
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

CONFIGS = "kafka.admin.ConfigCommand"
FEATURES = "FeatureCommand"
Command = Callable[..., list[str]]


def test_topics_listed_and_shown(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    def command(*arguments: object) -> list[str]:
        return tools.run("TopicCommand", *where, *arguments).lines

    create_topic(broker, f"{topic}-plain", 1)
    create_topic(broker, f"{topic}-special", 1, retention_ms="7777")
    with confluent.consumer(broker.bootstrap, {"group.id": topic}) as consumer:
        consumer.assign({(f"{topic}-plain", 0): "end"})
        consumer.commit({(f"{topic}-plain", 0): 0})
    assert "__consumer_offsets" in command("--list")
    assert "__consumer_offsets" not in command("--list", "--exclude-internal")
    assert command("--list", "--topic", f"{topic}-(plain|special)") == [f"{topic}-plain", f"{topic}-special"]
    special = command("--describe", "--topics-with-overrides", "--topic", f"{topic}-.*")
    assert len(special) == 1 and f"{topic}-special" in special[0] and "retention.ms=7777" in special[0]
    at_least = command("--describe", "--at-min-isr-partitions", "--topic", f"{topic}-plain")
    assert len(at_least) == 1, "one replica, and min.insync.replicas is one"
    found = re.search(r"TopicId: (\S+)", command("--describe", "--topic", f"{topic}-plain")[0])
    assert found is not None
    (first, _) = command("--describe", "--topic-id", found[1])
    assert f"Topic: {topic}-plain" in first
    command("--create", "--topic", f"{topic}-placed", "--replica-assignment", "1,1,1")
    assert len(command("--describe", "--topic", f"{topic}-placed")) == 4
    refused(
        tools.try_run("TopicCommand", *where, "--create", "--topic", "no/name"),
        "is invalid",
    )
    refused(
        tools.try_run("TopicCommand", *where, "--create", "--topic", f"{topic}-c", "--config", "retention.ms=x"),
        "Invalid value x for configuration retention.ms",
    )
    refused(tools.try_run("TopicCommand", *where, "--delete", "--topic", f"{topic}-none"), "does not exist")
    command("--delete", "--topic", f"{topic}-none", "--if-exists")
    command("--delete", "--topic", f"{topic}-(plain|special|placed)")
    assert not [name for name in command("--list") if name.startswith(topic)]


def test_configs_from_a_file(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 1)
    file = broker.data_dir / "changes.properties"
    file.write_text("retention.ms=99000\nmax.message.bytes=5000\n")
    entity = ("--entity-type", "topics", "--entity-name", topic)
    tools.run(CONFIGS, *where, "--alter", *entity, "--add-config-file", file)
    shown = [line.split()[0] for line in tools.run(CONFIGS, *where, "--describe", *entity).lines[1:]]
    assert shown == ["max.message.bytes=5000", "retention.ms=99000"]
    short = tools.run(CONFIGS, *where, "--describe", "--topic", topic).lines
    assert len(short) == 3, "the options' short forms"
    gone = tools.try_run(CONFIGS, *where, "--alter", *entity, "--delete-config", "no.such.config")
    if tools.older:  # the tool itself looks whether it is set
        refused(gone, "Invalid config(s): no.such.config")
    else:
        assert gone.code == 0


def test_what_an_upgrade_of_everything_is_told(tools: Shell, where: tuple[str, str]) -> None:
    """`--release-version` means all features of a release, of which some are not there: nothing changes."""
    if tools.older:
        told = tools.try_run(FEATURES, *where, "upgrade", "--metadata", "3.9-IV0")
    else:
        told = tools.try_run(FEATURES, *where, "upgrade", "--release-version", "4.3-IV0")
    before = tools.run(FEATURES, *where, "describe").lines
    assert told.code == 1, told
    if tools.older:
        assert "metadata.version" in told.out and "only supports versions 30-30" in told.out
    else:
        assert re.search(r"Could not upgrade share.version to 1\. .*feature had an error: Invalid update", told.out)
        assert re.search(r"for feature (\S+)\. Local controller 1 does not support this feature\.", told.out)
        assert re.search(r"(\d+) out of \1 operation\(s\) failed", told.out + told.err), "all or nothing"
    assert tools.run(FEATURES, *where, "describe").lines == before


def test_features_disabled_and_looked_up(tools: Shell, where: tuple[str, str]) -> None:
    def command(*arguments: object) -> list[str]:
        return tools.run(FEATURES, *where, *arguments).lines

    assert command("disable", "--feature", "group.version", "--dry-run") == ["group.version can be disabled."]
    refused(
        tools.try_run(FEATURES, *where, "downgrade", "--feature", "metadata.version=20", "--unsafe"),
        "only supports versions 30-30",
    )
    refused(
        tools.try_run(FEATURES, *where, "upgrade", "--feature", "transaction.version=1"), "Can't downgrade the version"
    )
    if tools.older:
        return
    mapped = command("version-mapping", "--release-version", "4.3-IV0")
    assert any(line.startswith("transaction.version=2") for line in mapped)
    assert command("feature-dependencies", "--feature", "group.version=1")


def test_the_quorum(tools: Shell, where: tuple[str, str], broker: BrokerProcess) -> None:
    told = tools.run("MetadataQuorumCommand", *where, "describe", "--replication", "--human-readable").lines
    assert told[0].split()[:2] == ["NodeId", "DirectoryId"] and "ms ago" in told[1]
    wanted = ("--controller-id", 1, "--controller-directory-id", "AAAAAAAAAAAAAAAAAAAAAQ")
    refused(tools.try_run("MetadataQuorumCommand", *where, "remove-controller", *wanted), "REMOVE_RAFT_VOTER")


def test_client_metrics(tools: Shell, where: tuple[str, str]) -> None:
    """There are none, and none can be made."""
    if tools.older:
        pytest.skip("since Kafka 4")
    assert tools.run("ClientMetricsCommand", *where, "--list").lines == []
    told = tools.try_run(
        "ClientMetricsCommand", *where, "--alter", "--name", "m", "--metrics", "org.apache.kafka", "--interval", 1000
    )
    refused(told, "Unknown resource type 16")


def test_directories_of_some_brokers(tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str) -> None:
    fill(broker, topic, 10)
    told = tools.run("LogDirsCommand", *where, "--describe", "--broker-list", 1)
    assert f'"partition":"{topic}-0"' in told.lines[-1]
    missing = tools.try_run("LogDirsCommand", *where, "--describe", "--broker-list", "1,7")
    assert "brokers do not exist" in missing.out + missing.err


def test_endpoints(tools: Shell, where: tuple[str, str]) -> None:
    if tools.older:
        pytest.skip("since Kafka 4")
    told = tools.run("ClusterTool", "list-endpoints", *where, "--include-fenced-brokers")
    assert cells(told.lines)[-1][-2:] == ["unfenced", "broker"]


def test_rights_of_producers_and_consumers(tools: Shell, tmp_path: Path) -> None:
    """The conveniences of `kafka-acls.sh`, prefixes, denials, and lists by principal and by resource."""
    name = "kafka.admin.AclCommand" if tools.older else "AclCommand"
    with BrokerProcess(tmp_path / "data", authorizer_class_name=AUTHORIZER) as secured:

        def command(*arguments: object) -> list[str]:
            told = tools.run(name, "--bootstrap-server", secured.bootstrap, *arguments)
            return [line.strip() for line in told.lines]

        command("--add", "--allow-principal", "User:p", "--producer", "--idempotent", "--topic", "orders")
        command("--add", "--allow-principal", "User:c", "--consumer", "--topic", "orders", "--group", "readers")
        prefixed = ("--resource-pattern-type", "prefixed")
        denied = ("--deny-principal", "User:d", "--deny-host", "10.0.0.1", "--operation", "All", "--topic", "pay")
        command("--add", *denied, *prefixed)
        shown = command("--list", "--topic", "orders")
        for operation in ("WRITE", "CREATE", "DESCRIBE"):
            assert f"(principal=User:p, host=*, operation={operation}, permissionType=ALLOW)" in shown
        assert "(principal=User:c, host=*, operation=READ, permissionType=ALLOW)" in shown
        everything = "\n".join(command("--list"))
        assert "operation=IDEMPOTENT_WRITE" in everything and "resourceType=CLUSTER" in everything
        assert "(principal=User:d, host=10.0.0.1, operation=ALL, permissionType=DENY)" in everything
        assert "User:d" not in "\n".join(command("--list", "--principal", "User:c"))
        matching = command("--list", "--topic", "payments", "--resource-pattern-type", "match")
        assert any("name=pay, patternType=PREFIXED" in line for line in matching)
        command("--remove", "--force", *denied, *prefixed)
        assert "User:d" not in "\n".join(command("--list"))
        assert secured.stop() == 0


def test_a_streams_application_is_reset(
    tools: Shell, where: tuple[str, str], broker: BrokerProcess, topic: str
) -> None:
    """`kafka-streams-application-reset.sh`: offsets of the inputs, and topics that were the application's own."""
    fill(broker, topic, 10)
    internal = f"{topic}-app-sums-changelog"
    create_topic(broker, internal, 1)
    with confluent.consumer(broker.bootstrap, {"group.id": f"{topic}-app"}) as consumer:
        consumer.assign({(topic, 0): "end"})
        consumer.commit({(topic, 0): 10})
    told = tools.run(
        "StreamsResetter", *where, "--application-id", f"{topic}-app", "--input-topics", topic, "--to-offset", 3
    )
    assert internal in told.out
    with confluent.consumer(broker.bootstrap, {"group.id": f"{topic}-app"}) as consumer:
        assert consumer.committed((topic, 0)) == 3
    assert internal not in tools.run("TopicCommand", *where, "--list").lines
