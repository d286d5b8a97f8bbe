"""A declared loss with nothing behind it: clients that want to read to the end (Kafka Connect does) get there.

Each library passes over the empty batches that the broker makes up for offsets which nothing holds.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from controller.facts import LOSS_GAP
from tests.compatibility import versions
from tests.compatibility.clients import aio, confluent, kafka_python
from tests.compatibility.clients.base import Client, Out
from tests.compatibility.jvm import tools as tools_of
from tests.support.broker_process import BrokerProcess

LOST = ("lost", 0)


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose log was given up once, after five records, and not written to since."""
    path = tmp_path_factory.mktemp("holed") / "data"
    with BrokerProcess(path, tidelog_seal_ms=20) as broker:
        with confluent.producer(broker.bootstrap) as producer:
            producer.send("lost", [Out(b"%d" % i) for i in range(5)])
        assert broker.stop() == 0
        broker.start()
        broker.kill()
        shutil.rmtree(path / "wal")
        broker.start()
        command = [sys.executable, "-m", "broker", "wal"]
        listed = subprocess.run([*command, "list", "--http", broker.http], capture_output=True, text=True, check=True)
        (wal_id,) = [line.split()[0] for line in listed.stdout.splitlines() if " ended " in line]
        lose = [*command, "declare-lost", wal_id, "--host-is-destroyed", "--http", broker.http]
        subprocess.run(lose, capture_output=True, check=True)
        yield broker


@pytest.mark.parametrize("client", [kafka_python, aio], ids=lambda client: client.name)
def test_positions_reach_the_end(holed: BrokerProcess, client: Client) -> None:
    with client.consumer(holed.bootstrap) as consumer:
        consumer.assign({LOST: 0})
        found = []
        for _ in range(100):
            found += consumer.poll(0.1)
            if consumer.position(LOST) == 5 + LOSS_GAP:
                break
        assert [one.offset for one in found] == list(range(5))
        assert consumer.position(LOST) == consumer.bounds(LOST)[1] == 5 + LOSS_GAP


def test_librdkafka_tells_the_end(holed: BrokerProcess) -> None:
    """Its position is that of the last record; what it fetched shows in the end-of-partition event."""
    options = {"bootstrap.servers": holed.bootstrap, "group.id": "x", "enable.partition.eof": True}
    consumer = Consumer(options)
    try:
        consumer.assign([TopicPartition(*LOST, 0)])
        offsets = []
        for _ in range(100):
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                offsets.append(message.offset())
            elif message is not None and message.error().code() == KafkaError._PARTITION_EOF:
                offsets.append(message.offset())
                break
        assert offsets == [*range(5), 5 + LOSS_GAP]
    finally:
        consumer.close()


@pytest.mark.compatibility
@pytest.mark.parametrize("version", [versions.KAFKA, versions.OLDER_KAFKA])
def test_java_reaches_the_end(holed: BrokerProcess, version: str) -> None:
    tools = tools_of(version, [Path(__file__).with_name("Clients.java")])
    told = tools.try_run("main.Clients", "read_to_end", holed.bootstrap, "lost", timeout_s=90)
    assert told.code == 0, told.err
    assert told.lines == ["5 records", "passed"]
