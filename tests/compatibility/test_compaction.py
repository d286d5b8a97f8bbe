"""A compacted topic under continuous updates: each library reads it into the map that the producer has in mind."""

import time
from collections.abc import Callable, Iterator
from random import Random  # noqa: TID251

import pytest

from tests.compatibility.admin import admin, create_topic
from tests.compatibility.clients import confluent, each_client, poll_until
from tests.compatibility.clients.base import Client, In, Out
from tests.support.broker_process import BrokerProcess

SETTINGS = {
    "tidelog_seal_ms": 20,
    "tidelog_tail_keep_bytes": 0,
    "tidelog_delete_grace_ms": 0,
    "tidelog_merge_check_interval_ms": 50,
    "log_cleaner_backoff_ms": 20,
}
CONFIGS = {
    "cleanup_policy": "compact",
    "segment_ms": "1",
    "min_cleanable_dirty_ratio": "0.01",
    "delete_retention_ms": "60000",
}
KEYS = 100
TOPIC = "table"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("compaction") / "data", **SETTINGS) as running:
        yield running
        assert running.stop() == 0, running.log_tail()


def updates(rng: Random, model: dict[bytes, bytes | None], count: int) -> list[Out]:
    made = []
    for _ in range(count):
        key = b"key %d" % rng.randrange(KEYS)
        model[key] = None if rng.random() < 0.1 else b"%d " % rng.randrange(10**9) * rng.randrange(1, 30)
        made.append(Out(model[key], key))
    return made


def compacted(client: Client, broker: BrokerProcess, topic: str, sent: int, most: int) -> list[In]:
    """What is left of a topic, once that is not more than `most` records."""
    for _ in range(100):
        with client.consumer(broker.bootstrap) as consumer:
            consumer.assign({(topic, 0): 0})
            found = poll_until(consumer, lambda found: bool(found) and found[-1].offset == sent - 1)
        if len(found) <= most:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{len(found)} records are left")


@each_client
def test_a_table_is_read_while_it_changes(broker: BrokerProcess, client: Client) -> None:
    topic = f"{TOPIC}-{client.name}"
    create_topic(broker, topic, **CONFIGS)
    rng, model, seen = Random(7), dict[bytes, bytes | None](), dict[bytes, bytes | None]()
    sent = 0
    with client.consumer(broker.bootstrap) as consumer, confluent.producer(broker.bootstrap) as producer:
        consumer.assign({(topic, 0): 0})
        position = -1
        for _ in range(400):
            if sent < 2_400:
                sent += len(producer.send(topic, updates(rng, model, 60)))
            elif position == sent - 1:
                break
            for one in consumer.poll(0.05):
                assert one.offset > position
                position = one.offset
                seen[one.key or b""] = one.value
    assert seen == model
    found = compacted(client, broker, topic, sent, sent // 4)
    assert {one.key or b"": one.value for one in found} == model
    with client.consumer(broker.bootstrap) as consumer:
        assert consumer.bounds((topic, 0)) == (0, sent)
        consumer.assign({(topic, 0): 1})
        (following, *_) = poll_until(consumer, lambda found: bool(found))
    # Passes go on meanwhile: what is passed over has been superseded by then, or is a tombstone.
    assert following.offset in {one.offset for one in found}
    for one in found:
        if 1 <= one.offset < following.offset:
            assert one.value is None or any(two.key == one.key and two.offset > one.offset for two in found)


def test_the_policy_changes_at_run_time(make_broker: Callable[..., BrokerProcess]) -> None:
    """From deleting to compacting, with the library's own call, and back."""
    from kafka.admin import ConfigResource, ConfigResourceType

    broker = make_broker(**SETTINGS)
    create_topic(broker, TOPIC, segment_ms="1", min_cleanable_dirty_ratio="0.01")
    model: dict[bytes, bytes | None] = {}
    with confluent.producer(broker.bootstrap) as producer:
        producer.send(TOPIC, updates(Random(3), model, 2_000))
    with admin(broker) as manager:
        manager.alter_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC, {"cleanup.policy": "compact"})])
    found = compacted(confluent, broker, TOPIC, 2_000, 500)
    assert {one.key: one.value for one in found} == model
