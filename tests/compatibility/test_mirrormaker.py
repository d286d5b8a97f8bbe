"""MirrorMaker 2, unmodified: one cluster is mirrored into another, with the offsets of its groups."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.compatibility.clients import confluent, poll_until
from tests.compatibility.clients.base import In, Out
from tests.compatibility.connect import connect_tools
from tests.compatibility.jvm import Running, Tools
from tests.support.broker_process import BrokerProcess

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(600)]

PROPERTIES = """\
clusters = from, to
from.bootstrap.servers = {source}
to.bootstrap.servers = {target}
from->to.enabled = true
from->to.topics = orders
from->to.groups = readers
to->from.enabled = false
replication.factor = 1
checkpoints.topic.replication.factor = 1
heartbeats.topic.replication.factor = 1
offset-syncs.topic.replication.factor = 1
config.storage.replication.factor = 1
offset.storage.replication.factor = 1
status.storage.replication.factor = 1
offset.storage.partitions = 2
offset.flush.interval.ms = 500
sync.group.offsets.enabled = true
sync.group.offsets.interval.seconds = 1
emit.checkpoints.interval.seconds = 1
refresh.topics.interval.seconds = 1
refresh.groups.interval.seconds = 1
offset.lag.max = 0
"""
TIME = 1_700_000_000_000
SECONDS = 120


def records(first: int, count: int) -> list[Out]:
    return [
        Out(
            key=b"account %d" % number,
            value=b"value %d" % number,
            headers=(("trace", b"%d" % number), ("none", None)),
            timestamp_ms=TIME + number,
            partition=number % 3,
        )
        for number in range(first, first + count)
    ]


def content(found: list[In]) -> list[tuple[object, ...]]:
    """What has to be alike on both sides, offsets included: the source topic is new."""
    return sorted((one.partition, one.offset, one.key, one.value, one.headers, one.timestamp_ms) for one in found)


def read_all(broker: BrokerProcess, topic: str, count: int) -> list[In]:
    with confluent.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, partition): "beginning" for partition in range(3)})
        return poll_until(consumer, lambda found: len(found) >= count, SECONDS)


@contextmanager
def mirroring(tools: Tools, properties: Path) -> "Iterator[Running]":
    with tools.running("main.org.apache.kafka.connect.mirror.MirrorMaker", properties) as process:
        yield process


def test_records_configs_and_group_offsets(make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    """A group that moves to the mirror goes on where it was; a restarted MirrorMaker repeats nothing."""
    tools = connect_tools()
    source, target = make_broker(num_partitions=3), make_broker()
    properties = tmp_path / "mm2.properties"
    properties.write_text(PROPERTIES.format(source=source.bootstrap, target=target.bootstrap))
    with confluent.producer(source.bootstrap) as producer:
        producer.send("orders", records(0, 900))
        with mirroring(tools, properties) as process:
            assert content(read_all(target, "from.orders", 900)) == content(read_all(source, "orders", 900))
            with confluent.consumer(source.bootstrap, {"group.id": "readers"}) as group:
                group.commit({("orders", partition): 300 for partition in range(3)})
            producer.send("orders", records(900, 300))
            with confluent.consumer(target.bootstrap, {"group.id": "readers"}) as group:
                process.wait_for(lambda _: group.committed(("from.orders", 2)) == 300, SECONDS)
                assert [group.committed(("from.orders", partition)) for partition in range(3)] == [300] * 3
            assert process.end() in (0, 143)
        producer.send("orders", records(1200, 300))
        with mirroring(tools, properties):
            mirrored = read_all(target, "from.orders", 1500)
    assert content(mirrored) == content(read_all(source, "orders", 1500))
