"""Real consumers with a quota of bytes, told to wait by empty answers: each record comes, once, in order, in time."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.compatibility import versions
from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent, each_client, poll_until
from tests.compatibility.clients.base import Client, Out
from tests.compatibility.health import metric
from tests.compatibility.jvm import tools as tools_of
from tests.compatibility.test_java_tools import CONSOLE_CONSUMER
from tests.support.broker_process import ROOT, BrokerProcess

pytestmark = pytest.mark.compatibility

COUNT, VALUE_BYTES = 800, 1024
RATE = 200 * 1024
WINDOWS = 3


@pytest.fixture
def limited(make_broker: Callable[..., BrokerProcess], topic: str) -> Iterator[BrokerProcess]:
    """800 KiB, of which each client may read 200 KiB/s."""
    broker = make_broker(quota_window_num=WINDOWS)
    create_topic(broker, topic, 2)
    with confluent.producer(broker.bootstrap, {"batch.size": 32 * 1024}) as producer:
        producer.send(topic, [Out(b"%08d" % i * (VALUE_BYTES // 8), partition=i % 2) for i in range(COUNT)])
    command = [sys.executable, "-m", "broker", "config", "alter", "quota", "--client-id", "<default>"]
    command += ["--set", f"consumer_byte_rate={RATE}", "-b", broker.bootstrap]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    yield broker
    assert metric(broker, "tidelog_throttled_total") > 0


def check(numbers: list[int], seconds: float) -> None:
    for partition in range(2):
        assert [one for one in numbers if one % 2 == partition] == list(range(partition, COUNT, 2))
    assert seconds > COUNT * VALUE_BYTES / RATE - WINDOWS, "but for the burst that all windows allow"


@each_client
def test_a_consumer(limited: BrokerProcess, client: Client, topic: str) -> None:
    with client.consumer(limited.bootstrap) as consumer:
        consumer.assign({(topic, partition): "beginning" for partition in range(2)})
        began = time.monotonic()  # noqa: TID251
        found = poll_until(consumer, lambda records: len(records) >= COUNT)
        check([int((one.value or b"")[:8]) for one in found], time.monotonic() - began)  # noqa: TID251


@pytest.mark.parametrize("version", [versions.KAFKA, versions.OLDER_KAFKA])
def test_the_console_consumer(limited: BrokerProcess, topic: str, version: str) -> None:
    began = time.monotonic()  # noqa: TID251
    told = tools_of(version).run(
        CONSOLE_CONSUMER,
        *("--bootstrap-server", limited.bootstrap, "--topic", topic, "--from-beginning", "--max-messages", COUNT),
    )
    check([int(line[:8]) for line in told.lines if line[:8].isdigit()], time.monotonic() - began)  # noqa: TID251
