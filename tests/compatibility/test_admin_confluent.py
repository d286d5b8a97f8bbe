"""librdkafka's admin client: topics, configs, records, groups, offsets, cluster."""

from typing import Any

import pytest
from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    ElectionType,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tests.compatibility.clients import confluent, read
from tests.compatibility.clients.base import Out
from tests.support.broker_process import BrokerProcess

TIMEOUT_S = 20


@pytest.fixture
def manager(broker: BrokerProcess) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.bootstrap})


def only(futures: dict[Any, Any]) -> Any:
    """The one result; raises its error."""
    (future,) = futures.values()
    return future.result(TIMEOUT_S)


def code_of(futures: dict[Any, Any]) -> int:
    """The error of the one result."""
    with pytest.raises(KafkaException) as caught:
        only(futures)
    code: int = caught.value.args[0].code()
    return code


def test_topics(manager: AdminClient, topic: str) -> None:
    only(manager.create_topics([NewTopic(topic, 3, 1, config={"retention.ms": "1234567"})]))
    described = only(manager.describe_topics(TopicCollection([topic]), include_authorized_operations=True))
    assert [(one.id, one.leader.id, [node.id for node in one.isr]) for one in described.partitions] == [
        (partition, 1, [1]) for partition in range(3)
    ]
    assert described.authorized_operations
    assert str(described.topic_id) != "AAAAAAAAAAAAAAAAAAAAAA"
    assert code_of(manager.create_topics([NewTopic(topic, 3)])) == KafkaError.TOPIC_ALREADY_EXISTS
    only(manager.create_partitions([NewPartitions(topic, 5)]))
    assert len(manager.list_topics(topic, TIMEOUT_S).topics[topic].partitions) == 5
    assert code_of(manager.create_partitions([NewPartitions(topic, 5)])) == KafkaError.INVALID_PARTITIONS
    only(manager.delete_topics([topic]))
    assert topic not in manager.list_topics(timeout=TIMEOUT_S).topics
    assert code_of(manager.delete_topics([topic])) == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_configs(manager: AdminClient, topic: str) -> None:
    only(manager.create_topics([NewTopic(topic, 1, config={"segment.ms": "5000000"})]))

    def told() -> dict[str, ConfigEntry]:
        found: dict[str, ConfigEntry] = only(manager.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]))
        return found

    assert told()["segment.ms"].value == "5000000"
    assert told()["segment.ms"].source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value
    assert told()["retention.ms"].is_default
    changes = [
        ConfigEntry("retention.ms", "7000", incremental_operation=AlterConfigOpType.SET),
        ConfigEntry("segment.ms", None, incremental_operation=AlterConfigOpType.DELETE),
        ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.APPEND),
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=changes)
    only(manager.incremental_alter_configs([resource]))
    assert told()["retention.ms"].value == "7000"
    assert told()["segment.ms"].is_default
    assert told()["cleanup.policy"].value == "delete,compact"
    with pytest.warns(DeprecationWarning, match="incremental_alter_configs"):
        only(manager.alter_configs([ConfigResource(ResourceType.TOPIC, topic, set_config={"segment.ms": "8000000"})]))
    assert told()["segment.ms"].value == "8000000"
    assert told()["retention.ms"].is_default, "the old kind of change replaces all"
    wrong = [ConfigEntry("no.such.config", "1", incremental_operation=AlterConfigOpType.SET)]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=wrong)
    assert code_of(manager.incremental_alter_configs([resource])) == KafkaError.INVALID_CONFIG
    broker_configs = only(manager.describe_configs([ConfigResource(ResourceType.BROKER, "1")]))
    assert broker_configs["message.max.bytes"].value == "1048588"
    assert broker_configs["node.id"].is_read_only


def test_offsets_and_deleted_records(broker: BrokerProcess, manager: AdminClient, topic: str) -> None:
    base = 1_700_000_000_000
    with confluent.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % i, timestamp_ms=base + i) for i in range(10)])
    where = TopicPartition(topic, 0)

    def listed(spec: OffsetSpec) -> int:
        offset: int = only(
            manager.list_offsets({where: spec}, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=10)
        ).offset
        return offset

    assert listed(OffsetSpec.earliest()) == 0
    assert listed(OffsetSpec.latest()) == 10
    assert listed(OffsetSpec.max_timestamp()) == 9
    assert listed(OffsetSpec.for_timestamp(base + 3)) == 3
    assert only(manager.delete_records([TopicPartition(topic, 0, 4)])).low_watermark == 4
    assert listed(OffsetSpec.earliest()) == 4
    assert code_of(manager.delete_records([TopicPartition(topic, 0, 99)])) == KafkaError.OFFSET_OUT_OF_RANGE
    with confluent.consumer(broker.bootstrap) as consumer:
        assert consumer.bounds((topic, 0)) == (4, 10)


def test_groups(broker: BrokerProcess, manager: AdminClient, topic: str) -> None:
    with confluent.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % i) for i in range(20)])
    options = {"group.id": topic, "auto.offset.reset": "earliest", "client.id": "reader"}
    with confluent.consumer(broker.bootstrap, options) as consumer:
        consumer.subscribe(topic)
        read(consumer, 20)
        consumer.commit()
        described = only(manager.describe_consumer_groups([topic], include_authorized_operations=True))
        assert described.state == ConsumerGroupState.STABLE
        assert described.partition_assignor == "range"
        assert described.coordinator.id == 1
        (member,) = described.members
        assert (member.client_id, member.host) == ("reader", "/127.0.0.1")
        assert [(one.topic, one.partition) for one in member.assignment.topic_partitions] == [(topic, 0)]
        found = manager.list_consumer_groups(states={ConsumerGroupState.STABLE}).result(TIMEOUT_S)
        assert not found.errors
        assert topic in [one.group_id for one in found.valid]
        assert code_of(manager.delete_consumer_groups([topic])) == KafkaError.NON_EMPTY_GROUP
        moved = ConsumerGroupTopicPartitions(topic, [TopicPartition(topic, 0, 1)])
        (refused,) = only(manager.alter_consumer_group_offsets([moved])).topic_partitions
        assert refused.error.code() == KafkaError.UNKNOWN_MEMBER_ID

    def offset() -> int:
        told = only(manager.list_consumer_group_offsets([ConsumerGroupTopicPartitions(topic)]))
        (one,) = told.topic_partitions
        return int(one.offset)

    assert offset() == 20
    moved = ConsumerGroupTopicPartitions(topic, [TopicPartition(topic, 0, 5)])
    only(manager.alter_consumer_group_offsets([moved]))
    assert offset() == 5
    assert only(manager.describe_consumer_groups([topic])).state == ConsumerGroupState.EMPTY
    only(manager.delete_consumer_groups([topic]))
    assert code_of(manager.delete_consumer_groups([topic])) == KafkaError.GROUP_ID_NOT_FOUND


def test_cluster(broker: BrokerProcess, manager: AdminClient) -> None:
    told = manager.describe_cluster(include_authorized_operations=True).result(TIMEOUT_S)
    assert len(told.cluster_id) == 22
    assert told.controller.id == 1
    assert [(one.id, one.host, one.port) for one in told.nodes] == [(1, "127.0.0.1", broker.port)]
    assert told.authorized_operations
    listed = manager.list_topics(timeout=TIMEOUT_S)
    assert listed.cluster_id == told.cluster_id
    assert listed.controller_id == 1


def test_nobody_has_credentials(manager: AdminClient) -> None:
    assert manager.describe_user_scram_credentials().result(TIMEOUT_S) == {}


def test_everybody_is_the_preferred_leader_already(manager: AdminClient) -> None:
    assert manager.elect_leaders(ElectionType.PREFERRED).result(TIMEOUT_S) == {}
