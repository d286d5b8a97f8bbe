"""Transactional producers of librdkafka, aiokafka and kafka-python: all or nothing, offsets too, one at a time."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError as AioKafkaError
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as ConfluentPartition
from kafka import KafkaProducer
from kafka import TopicPartition as PythonPartition
from kafka.errors import KafkaError as PythonKafkaError
from kafka.structs import OffsetAndMetadata

from tests.compatibility.admin import admin, create_topic
from tests.compatibility.clients import confluent
from tests.support.broker_process import BrokerProcess

TURNS = 12


def values(broker: BrokerProcess, topic: str, isolation: str = "read_committed") -> list[str]:
    """Everything that is in the topic, by partition and offset."""
    found: list[tuple[int, int, str]] = []
    with confluent.consumer(broker.bootstrap, {"isolation.level": isolation, "enable.partition.eof": True}) as reader:
        ends = {(topic, number): reader.bounds((topic, number))[1] for number in range(2)}
        for place, end in ends.items():
            if not end:
                continue
            reader._consumer.assign([ConfluentPartition(*place, 0)])
            while True:
                one = reader._consumer.poll(20)
                assert one is not None, f"{found} after 20 s"
                if one.error() is not None:
                    break  # the end of the partition
                found.append((one.partition(), one.offset(), (one.value() or b"").decode()))
    return [value for _, _, value in sorted(found)]


def expected(turns: int = TURNS) -> list[str]:
    """What `turns` transactions leave of which every third is aborted: both halves, in order."""
    kept = [turn for turn in range(turns) if turn % 3 != 2]
    return [f"{turn}-{partition}" for partition in range(2) for turn in kept]


def with_librdkafka(broker: BrokerProcess, topic: str) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": topic})
    producer.init_transactions(20)
    for turn in range(TURNS):
        producer.begin_transaction()
        for partition in range(2):
            producer.produce(topic, value=f"{turn}-{partition}", partition=partition)
        if turn % 3 == 2:
            producer.flush(20)
            producer.abort_transaction(20)
        else:
            producer.commit_transaction(20)


def with_aiokafka(broker: BrokerProcess, topic: str) -> None:
    async def run() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic) as producer:
            for turn in range(TURNS):
                await producer.begin_transaction()
                for partition in range(2):
                    await producer.send_and_wait(topic, f"{turn}-{partition}".encode(), partition=partition)
                if turn % 3 == 2:
                    await producer.abort_transaction()
                else:
                    await producer.commit_transaction()

    asyncio.run(run())


def with_kafka_python(broker: BrokerProcess, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
    try:
        producer.init_transactions()
        for turn in range(TURNS):
            producer.begin_transaction()
            for partition in range(2):
                producer.send(topic, f"{turn}-{partition}".encode(), partition=partition)
            if turn % 3 == 2:
                producer.flush()
                producer.abort_transaction()
            else:
                producer.commit_transaction()
    finally:
        producer.close(5)


@pytest.mark.parametrize("run", [with_librdkafka, with_aiokafka, with_kafka_python], ids=lambda run: run.__name__)
def test_all_or_nothing(broker: BrokerProcess, topic: str, run: Callable[[BrokerProcess, str], None]) -> None:
    create_topic(broker, topic, 2)
    run(broker, topic)
    assert values(broker, topic) == expected()
    assert len(values(broker, topic, "read_uncommitted")) == 2 * TURNS


def test_consume_process_produce_with_librdkafka(broker: BrokerProcess, topic: str) -> None:
    """The offsets of what was read are committed with what was written; after an abort both are done again."""
    create_topic(broker, topic, 2)
    create_topic(broker, f"{topic}-out", 2)
    with_librdkafka(broker, topic)
    total = len(expected())
    for attempt in range(3):
        consumer = Consumer(
            {
                "bootstrap.servers": broker.bootstrap,
                "group.id": topic,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "session.timeout.ms": 6000,
            }
        )
        consumer.subscribe([topic])
        producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": f"{topic}-copy"})
        producer.init_transactions(20)
        copied = 0
        while copied < total // 2 and attempt < 2:
            one = consumer.poll(20)
            assert one is not None and one.error() is None, one
            producer.begin_transaction()
            producer.produce(f"{topic}-out", value=one.value(), partition=one.partition())
            position = [ConfluentPartition(topic, one.partition(), one.offset() + 1)]
            producer.send_offsets_to_transaction(position, consumer.consumer_group_metadata(), 20)
            if copied == total // 2 - 1 and attempt == 0:
                producer.abort_transaction(20)
                break
            producer.commit_transaction(20)
            copied += 1
        if attempt == 2:
            while len(values(broker, f"{topic}-out")) < total:
                one = consumer.poll(20)
                assert one is not None and one.error() is None, one
                producer.begin_transaction()
                producer.produce(f"{topic}-out", value=one.value(), partition=one.partition())
                position = [ConfluentPartition(topic, one.partition(), one.offset() + 1)]
                producer.send_offsets_to_transaction(position, consumer.consumer_group_metadata(), 20)
                producer.commit_transaction(20)
        consumer.close()
    assert values(broker, f"{topic}-out") == expected()


async def test_offsets_with_aiokafka(broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 2)
    where = TopicPartition(topic, 0)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic) as producer:
        for offset, commit in ((3, True), (7, False)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"x", partition=1)
            await producer.send_offsets_to_transaction({where: offset}, topic)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
    async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=topic) as consumer:
        consumer.assign([where])
        assert await consumer.committed(where) == 3


def test_offsets_with_kafka_python(broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 2)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
    try:
        producer.init_transactions()
        for offset, commit in ((3, True), (7, False)):
            producer.begin_transaction()
            producer.send(topic, b"x", partition=1)
            producer.send_offsets_to_transaction({PythonPartition(topic, 0): OffsetAndMetadata(offset, "", -1)}, topic)
            producer.commit_transaction() if commit else producer.abort_transaction()
    finally:
        producer.close(5)
    with confluent.consumer(broker.bootstrap, {"group.id": topic}) as reader:
        assert reader.committed((topic, 0)) == 3


def test_a_second_producer_fences_the_first(broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 2)
    options = {"bootstrap.servers": broker.bootstrap, "transactional.id": topic}
    first, second = Producer(options), Producer(options)
    first.init_transactions(20)
    first.begin_transaction()
    first.produce(topic, value=b"lost", partition=0)
    first.flush(20)
    second.init_transactions(20)
    second.begin_transaction()
    second.produce(topic, value=b"kept", partition=0)
    with pytest.raises(KafkaException) as caught:
        first.commit_transaction(20)
    assert caught.value.args[0].fatal()
    second.commit_transaction(20)
    assert values(broker, topic) == ["kept"]


async def test_a_second_producer_fences_the_first_with_aiokafka(broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 2)
    first = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
    second = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
    await first.start()
    await first.begin_transaction()
    await first.send_and_wait(topic, b"lost", partition=0)
    await second.start()
    with pytest.raises(AioKafkaError):
        await first.commit_transaction()
    await second.begin_transaction()
    await second.send_and_wait(topic, b"kept", partition=0)
    await second.commit_transaction()
    await first.stop()
    await second.stop()


def test_a_second_producer_fences_the_first_with_kafka_python(broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 2)
    first = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
    second = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
    try:
        first.init_transactions()
        first.begin_transaction()
        first.send(topic, b"lost", partition=0).get(20)
        second.init_transactions()
        with pytest.raises(PythonKafkaError):
            first.commit_transaction()
    finally:
        first.close(1)
        second.close(1)


def test_looking_with_kafka_python(broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 2)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": topic})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topic, value=b"x", partition=1)
    producer.flush(20)
    with admin(broker) as manager:
        assert topic in str(manager.list_transactions())
        assert "Ongoing" in str(manager.describe_transactions([topic]))
    producer.commit_transaction(20)
