"""What Kafka's tools say about APIs that this broker does not advertise: a clear refusal, at once, and nothing breaks.

A row leaves this table when its API is served.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compatibility import versions
from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent
from tests.compatibility.jvm import Shell, shell
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

CONFIGS = "kafka.admin.ConfigCommand"

REFUSED: list[tuple[str, str, str]] = [
    # Share groups, streams groups
    ("consumer.ConsoleShareConsumer", "--topic TOPIC --timeout-ms 4000", "does not support SHARE_GROUP_HEARTBEAT"),
    ("VerifiableShareConsumer", "--topic TOPIC --group-id g", "does not support SHARE_GROUP_HEARTBEAT"),
    (
        "ShareConsumerPerformance",
        "--topic TOPIC --group g --num-records 1 --timeout 4000",
        "does not support SHARE_GROUP_HEARTBEAT",
    ),
    ("consumer.group.ShareGroupCommand", "--describe --group g", "does not support SHARE_GROUP_DESCRIBE"),
    ("streams.StreamsGroupCommand", "--describe --group g", "does not support STREAMS_GROUP_DESCRIBE"),
    # Client metrics
    (
        CONFIGS,
        "--alter --entity-type client-metrics --entity-name m --add-config interval.ms=1000",
        "Unknown resource type 16",
    ),
    # Security
    ("AclCommand", "--list", "SecurityDisabledException: No Authorizer is configured on the broker"),
    ("DelegationTokenCommand", "--describe --command-config FILE", "does not support DESCRIBE_DELEGATION_TOKEN"),
]


@pytest.fixture(scope="module")
def tools() -> Iterator[Shell]:
    with shell(versions.KAFKA) as opened:
        yield opened


@pytest.mark.parametrize(("name", "arguments", "error"), REFUSED, ids=[f"{row[0]} {row[1]}"[:70] for row in REFUSED])
def test_refusal(
    tools: Shell, broker: BrokerProcess, topic: str, tmp_path: Path, name: str, arguments: str, error: str
) -> None:
    create_topic(broker, topic)
    file = tmp_path / "file"
    file.write_text("")
    if "BOOTSTRAP" not in arguments:
        arguments = f"--bootstrap-server BOOTSTRAP {arguments}"
    values = {"BOOTSTRAP": broker.bootstrap, "TOPIC": topic, "FILE": str(file)}
    told = tools.try_run(name, *(values.get(word, word) for word in arguments.split()))
    assert error in told.out + told.err, told
    with confluent.consumer(broker.bootstrap) as consumer:
        assert consumer.bounds((topic, 0)) == (0, 0)


@pytest.mark.parametrize("name", ["streams.StreamsGroupCommand", "consumer.group.ShareGroupCommand"])
def test_nothing_listed(tools: Shell, broker: BrokerProcess, name: str) -> None:
    """There are no groups of these kinds, which is true."""
    assert tools.run(name, "--bootstrap-server", broker.bootstrap, "--list").lines == []
