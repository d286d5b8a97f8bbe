"""kafka-python, librdkafka and aiokafka produce and consume, each with its default settings but for what is tested."""

import itertools
import random  # noqa: TID251
import time

import pytest
from kafka import TopicPartition

from tests.compatibility.admin import admin, create_topic
from tests.compatibility.clients import CLIENTS, confluent, each_client, poll_until, read
from tests.compatibility.clients.base import Client, Out
from tests.support.broker_process import BrokerProcess

KIB = 1024
FROM_START = {"auto.offset.reset": "earliest"}


@each_client
def test_default_settings(broker: BrokerProcess, client: Client, topic: str) -> None:
    """A topic that nobody created; keys, headers, null keys and values, times; read by a new consumer."""
    now = int(time.time() * 1000)  # noqa: TID251
    records = [
        Out(b"plain"),
        Out(b"with key", key=b"k"),
        Out(None, key=b"tombstone"),
        Out(b""),
        Out(b"headers", headers=(("a", b"1"), ("a", b"2"), ("empty", b""), ("ünï", bytes(range(256))))),
        Out(b"old", timestamp_ms=1_234_567_890_123),
    ]
    with client.producer(broker.bootstrap) as producer:
        sent = producer.send(topic, records)
    assert [one.offset for one in sent] == list(range(6))
    with client.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, 0): "beginning"})
        found = read(consumer, 6)
    assert [(one.value, one.key, one.headers) for one in found] == [
        (one.value, one.key, one.headers) for one in records
    ]
    assert [one.offset for one in found] == list(range(6))
    assert found[5].timestamp_ms == 1_234_567_890_123
    assert all(abs(one.timestamp_ms - now) < 60_000 for one in found[:5])


def test_null_header_values(broker: BrokerProcess, topic: str) -> None:
    """Only librdkafka can produce a header without a value; all read it."""
    with confluent.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"v", headers=(("nothing", None), ("something", b"x")))])
    for client in CLIENTS:
        with client.consumer(broker.bootstrap) as consumer:
            consumer.assign({(topic, 0): 0})
            assert read(consumer, 1)[0].headers == (("nothing", None), ("something", b"x"))


@each_client
def test_acks(broker: BrokerProcess, client: Client, topic: str) -> None:
    create_topic(broker, topic, 3)
    values = [b"%d" % i for i in range(100)]
    for partition, acks in enumerate((0, 1, "all")):
        options: dict[str, object] = {"acks": acks}
        if acks != "all" and client.name == "kafka-python":
            options["enable.idempotence"] = False  # its default, which wants acks=all
        with client.producer(broker.bootstrap, options) as producer:
            sent = producer.send(topic, (Out(value, partition=partition) for value in values))
        assert acks == 0 or [one.offset for one in sent] == list(range(100))
    with client.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, partition): 0 for partition in range(3)})
        found = read(consumer, 300)
    for partition in range(3):
        assert [one.value for one in found if one.partition == partition] == values


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compression(broker: BrokerProcess, topic: str, codec: str) -> None:
    """What one library compresses, all libraries read."""
    options = {"compression.type": codec, "linger.ms": 20, "batch.size": 64 * KIB}
    values = [b"%06d" % i + b" compresses well" * 10 for i in range(1000)]
    create_topic(broker, topic, len(CLIENTS))
    for partition, client in enumerate(CLIENTS):
        with client.producer(broker.bootstrap, options) as producer:
            producer.send(topic, (Out(value, partition=partition) for value in values))
    for client in CLIENTS:
        with client.consumer(broker.bootstrap) as consumer:
            consumer.assign({(topic, partition): 0 for partition in range(len(CLIENTS))})
            found = read(consumer, 1000 * len(CLIENTS))
        for partition in range(len(CLIENTS)):
            assert [one.value for one in found if one.partition == partition] == values


@each_client
def test_idempotent_producer_in_order(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Thousands of records over three partitions with pipelined requests: all there once, each partition in order."""
    rng = random.Random(7)
    count = 6000
    records = [Out(b"%d" % i + b"." * rng.randrange(300), partition=i % 3) for i in range(count)]
    create_topic(broker, topic, 3)
    with client.producer(broker.bootstrap, {"enable.idempotence": True}) as producer:
        sent = producer.send(topic, records)
    assert [one.offset for one in sent] == [i // 3 for i in range(count)]
    with client.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, partition): 0 for partition in range(3)})
        found = read(consumer, count)
    for partition in range(3):
        mine = [one for one in found if one.partition == partition]
        assert [one.offset for one in mine] == list(range(count // 3))
        assert [one.value for one in mine] == [one.value for one in records[partition::3]]


@each_client
def test_partitioner_spreads_keys(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Without a partition the library chooses from Metadata; the same key goes to the same partition."""
    create_topic(broker, topic, 4)
    with client.producer(broker.bootstrap) as producer:
        first = producer.send(topic, [Out(b"v", key=b"key-%d" % i) for i in range(64)])
        second = producer.send(topic, [Out(b"v", key=b"key-%d" % i) for i in range(64)])
    assert [one.partition for one in first] == [one.partition for one in second]
    assert {one.partition for one in first} == {0, 1, 2, 3}


@each_client
def test_where_to_begin(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Beginning, end, an offset, a time; log start and high watermark."""
    base = 1_600_000_000_000
    create_topic(broker, topic, 1)
    where = (topic, 0)
    # Another consumer asks: on the one that reads, an answer waits behind the fetch under way (`fetch.max.wait.ms`).
    with (
        client.producer(broker.bootstrap) as producer,
        client.consumer(broker.bootstrap) as consumer,
        client.consumer(broker.bootstrap) as asker,
    ):
        assert asker.bounds(where) == (0, 0)
        producer.send(topic, [Out(b"%d" % i, timestamp_ms=base + 1000 * i) for i in range(10)])
        assert asker.bounds(where) == (0, 10)
        consumer.assign({where: 7})
        assert [one.offset for one in read(consumer, 3)] == [7, 8, 9]
        assert consumer.position(where) == 10
        for ask, offset in ((base - 1, 0), (base, 0), (base + 1, 1), (base + 8500, 9), (base + 9000, 9)):
            assert asker.offset_for_time(where, ask) == offset
        assert asker.offset_for_time(where, base + 9001) is None
        consumer.assign({where: "beginning"})
        assert read(consumer, 10)[0].offset == 0
        consumer.assign({where: "end"})
        assert consumer.poll(0.8) == []  # the end is asked for behind a fetch that may wait 0.5 s
        producer.send(topic, [Out(b"new", timestamp_ms=base + 99_000)])
        assert [(one.offset, one.value) for one in read(consumer, 1)] == [(10, b"new")]


@each_client
def test_offset_out_of_range(broker: BrokerProcess, client: Client, topic: str) -> None:
    """The reset policy answers OFFSET_OUT_OF_RANGE."""
    with client.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % i) for i in range(5)])
    with client.consumer(broker.bootstrap, FROM_START) as consumer:
        consumer.assign({(topic, 0): 1000})
        assert [one.offset for one in read(consumer, 5)] == list(range(5))


@each_client
def test_large_messages(broker: BrokerProcess, client: Client, topic: str) -> None:
    """900 KiB pass with default limits, several of them in one fetch; beyond message.max.bytes the broker refuses."""
    rng = random.Random(3)
    values = [rng.randbytes(900 * KIB) for _ in range(4)]
    with client.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(value) for value in values])
    with client.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, 0): 0})
        assert [one.value for one in read(consumer, 4)] == values
    larger = "message.max.bytes" if client.name == "confluent-kafka" else "max.request.size"
    with (
        client.producer(broker.bootstrap, {larger: 4 << 20}) as producer,
        pytest.raises(Exception, match=r"(?i)large|10\b"),
    ):
        producer.send(topic, [Out(rng.randbytes(2 << 20))])


@each_client
def test_reads_committed(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Without transactions both isolation levels read the same."""
    with client.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % i) for i in range(50)])
        for level in ("read_committed", "read_uncommitted"):
            with client.consumer(broker.bootstrap, {"isolation.level": level}) as consumer:
                assert consumer.bounds((topic, 0)) == (0, 50)
                consumer.assign({(topic, 0): 0})
                assert len(read(consumer, 50)) == 50


@each_client
def test_many_partitions_in_one_session(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Few of many partitions have news in each round: what an incremental fetch session leaves out is not missed."""
    partitions = 60
    create_topic(broker, topic, partitions)
    rng = random.Random(11)
    wanted: dict[int, list[bytes]] = {partition: [] for partition in range(partitions)}
    numbers = itertools.count()
    with client.producer(broker.bootstrap) as producer, client.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, partition): 0 for partition in range(partitions)})
        found: dict[int, list[bytes | None]] = {partition: [] for partition in range(partitions)}
        for _ in range(12):
            records = [
                Out(b"%d" % next(numbers), partition=rng.randrange(partitions)) for _ in range(rng.randrange(1, 9))
            ]
            producer.send(topic, records)
            for one in records:
                assert one.partition is not None and one.value is not None
                wanted[one.partition].append(one.value)
            for got in read(consumer, len(records)):
                found[got.partition].append(got.value)
        assert found == wanted


@each_client
def test_topic_recreated_under_clients(broker: BrokerProcess, client: Client, topic: str) -> None:
    """A deleted and recreated topic has a new id: running producers and consumers follow."""
    age = "topic.metadata.refresh.interval.ms" if client.name == "confluent-kafka" else "metadata.max.age.ms"
    with (
        client.producer(broker.bootstrap, {age: 300}) as producer,
        client.consumer(broker.bootstrap, {**FROM_START, age: 300}) as consumer,
    ):
        producer.send(topic, [Out(b"old")])
        consumer.assign({(topic, 0): 0})
        read(consumer, 1)
        with admin(broker) as manager:
            manager.delete_topics([topic])
            # A client that asks for the topic in between creates it itself.
            manager.create_topics({topic: {"num_partitions": 1}}, raise_errors=False)
        producer.send(topic, [Out(b"%d" % i) for i in range(5)])
        found = poll_until(consumer, lambda records: records and records[-1].offset == 4)
        # Whether it begins at the old position or anew is the library's affair.
        assert found[-1].value == b"4"
    with client.consumer(broker.bootstrap) as consumer:
        consumer.assign({(topic, 0): 0})
        assert [one.value for one in read(consumer, 5)] == [b"%d" % i for i in range(5)]


@each_client
def test_append_time(broker: BrokerProcess, client: Client, topic: str) -> None:
    """The broker's time replaces the producer's, in what is told and in what is read, compressed batches too."""
    create_topic(broker, topic, 1, message_timestamp_type="LogAppendTime")
    now = int(time.time() * 1000)  # noqa: TID251
    with client.producer(broker.bootstrap, {"compression.type": "gzip"}) as producer:
        producer.send(topic, [Out(b"%d" % i, timestamp_ms=1_000_000 + i) for i in range(20)])
    with client.consumer(broker.bootstrap) as consumer:
        assert consumer.offset_for_time((topic, 0), now - 60_000) == 0
        consumer.assign({(topic, 0): 0})
        assert all(abs(one.timestamp_ms - now) < 60_000 for one in read(consumer, 20))


@each_client
def test_small_fetches(broker: BrokerProcess, client: Client, topic: str) -> None:
    """A record larger than the consumer's limits is still delivered, alone."""
    rng = random.Random(5)
    sizes = [10, 200 * KIB, 10, 10, 500 * KIB, 10]
    with client.producer(broker.bootstrap) as producer:
        for size in sizes:
            producer.send(topic, [Out(rng.randbytes(size))])
    limits = {"max.partition.fetch.bytes": 1000, "fetch.max.bytes": 1000}
    if client.name == "confluent-kafka":
        limits = {"max.partition.fetch.bytes": 1000, "fetch.max.bytes": 2000, "message.max.bytes": 2000}
    with client.consumer(broker.bootstrap, limits) as consumer:
        consumer.assign({(topic, 0): 0})
        assert [len(one.value or b"") for one in read(consumer, len(sizes))] == sizes


@each_client
def test_records_deleted_under_a_consumer(broker: BrokerProcess, client: Client, topic: str) -> None:
    """A position below the log start goes on where the reset policy says."""
    with client.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % i) for i in range(10)])
    with admin(broker) as manager:
        manager.delete_records({TopicPartition(topic, 0): 6})
    with client.consumer(broker.bootstrap, FROM_START) as consumer:
        consumer.assign({(topic, 0): 2})
        assert [one.offset for one in read(consumer, 4)] == [6, 7, 8, 9]
        assert consumer.bounds((topic, 0)) == (6, 10)
