"""aiokafka's admin client: topics, configs, records, groups, cluster."""

from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.support.broker_process import BrokerProcess


@pytest.fixture
async def manager(broker: BrokerProcess) -> AsyncIterator[AIOKafkaAdminClient]:
    running = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await running.start()
    yield running
    await running.close()


async def test_topics(manager: AIOKafkaAdminClient, topic: str) -> None:
    made = await manager.create_topics([NewTopic(topic, 3, 1, topic_configs={"retention.ms": "1234567"})])
    assert [row[:2] for row in made.topic_errors] == [(topic, 0)]
    assert topic in await manager.list_topics()
    (described,) = await manager.describe_topics([topic])
    assert [(one["partition"], one["leader"]) for one in described["partitions"]] == [(0, 1), (1, 1), (2, 1)]
    again = await manager.create_topics([NewTopic(topic, 3, 1)])
    assert again.topic_errors[0][1] == 36
    await manager.create_partitions({topic: NewPartitions(4)})
    assert len((await manager.describe_topics([topic]))[0]["partitions"]) == 4
    await manager.delete_topics([topic])
    assert topic not in await manager.list_topics()


async def test_configs(manager: AIOKafkaAdminClient, topic: str) -> None:
    await manager.create_topics([NewTopic(topic, 1, 1)])
    await manager.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs={"retention.ms": "7000"})])
    (answer,) = await manager.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    ((code, _, _, name, configs),) = answer.resources
    assert (code, name) == (0, topic)
    assert {row[0]: row[1] for row in configs}["retention.ms"] == "7000"


async def test_records_and_groups(broker: BrokerProcess, manager: AIOKafkaAdminClient, topic: str) -> None:
    where = TopicPartition(topic, 0)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        for i in range(10):
            await producer.send_and_wait(topic, b"%d" % i)
    assert await manager.delete_records({where: RecordsToDelete(before_offset=4)}) == {where: 4}
    options = {"bootstrap_servers": broker.bootstrap, "group_id": topic, "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(topic, **options) as consumer:
        assert [(await consumer.getone()).offset for _ in range(6)] == [4, 5, 6, 7, 8, 9]
        await consumer.commit()
        (answer,) = await manager.describe_consumer_groups([topic])
        ((code, name, state, kind, *_),) = answer.groups
        assert (code, name, state, kind) == (0, topic, "Stable", "consumer")
    assert (topic, "consumer") in [row[:2] for row in await manager.list_consumer_groups()]
    assert (await manager.list_consumer_group_offsets(topic))[where].offset == 10
    assert await manager.find_coordinator(topic) == 1


async def test_cluster(broker: BrokerProcess, manager: AIOKafkaAdminClient) -> None:
    told = await manager.describe_cluster()
    assert told["controller_id"] == 1
    assert [(one["node_id"], one["port"]) for one in told["brokers"]] == [(1, broker.port)]
