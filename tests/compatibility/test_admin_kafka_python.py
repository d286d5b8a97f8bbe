"""kafka-python's admin client: topics, configs, records, groups, offsets, cluster."""

from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    InvalidPartitionsError,
    InvalidTopicError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.consumer import OffsetSpec
from kafka.structs import OffsetAndMetadata

from tests.compatibility.admin import admin
from tests.compatibility.clients import kafka_python, read
from tests.compatibility.clients.base import Out
from tests.support.broker_process import BrokerProcess


@pytest.fixture
def manager(broker: BrokerProcess) -> Iterator[KafkaAdminClient]:
    with admin(broker) as running:
        yield running


def fill(broker: BrokerProcess, topic: str, count: int, partition: int | None = None) -> None:
    with kafka_python.producer(broker.bootstrap) as producer:
        producer.send(
            topic, [Out(b"%d" % i, partition=partition, timestamp_ms=1_700_000_000_000 + i) for i in range(count)]
        )


def test_topics(manager: KafkaAdminClient, topic: str) -> None:
    assert topic not in manager.list_topics()
    dry = manager.create_topics({topic: {"num_partitions": 3}}, validate_only=True)
    assert dry["topics"][0]["num_partitions"] == 3
    assert topic not in manager.list_topics()
    made = manager.create_topics(
        {topic: {"num_partitions": 3, "replication_factor": 1, "configs": {"retention.ms": "1234567"}}},
        wait_for_metadata=True,
    )["topics"][0]
    assert (made["name"], made["num_partitions"], made["replication_factor"]) == (topic, 3, 1)
    assert made["configs"]["retention.ms"]["value"] == "1234567"
    (described,) = manager.describe_topics([topic])
    assert [(one["partition_index"], one["leader_id"]) for one in described["partitions"]] == [(0, 1), (1, 1), (2, 1)]
    with pytest.raises(TopicAlreadyExistsError):
        manager.create_topics({topic: {"num_partitions": 3}})
    with pytest.raises(InvalidTopicError):
        manager.create_topics({"not/a name": {"num_partitions": 1}})
    manager.create_partitions({topic: 5})
    assert len(manager.describe_topics([topic])[0]["partitions"]) == 5
    with pytest.raises(InvalidPartitionsError):
        manager.create_partitions({topic: 2})
    manager.delete_topics([topic])
    assert topic not in manager.list_topics()
    with pytest.raises(UnknownTopicOrPartitionError):
        manager.delete_topics([topic])


def test_defaults_of_a_topic(manager: KafkaAdminClient, topic: str) -> None:
    """Neither partitions nor replication factor given: the broker's defaults."""
    made = manager.create_topics([topic])["topics"][0]
    assert (made["num_partitions"], made["replication_factor"]) == (1, 1)


def test_any_replication_factor_is_accepted(manager: KafkaAdminClient, topic: str) -> None:
    """Scripts made for three brokers work on one."""
    made = manager.create_topics({topic: {"num_partitions": 2, "replication_factor": 3}})["topics"][0]
    assert made["error_code"] == 0


def test_pages_of_topic_partitions(manager: KafkaAdminClient, topic: str) -> None:
    manager.create_topics({topic: {"num_partitions": 7}})
    seen, cursor = [], None
    while True:
        page = manager.describe_topic_partitions([topic], response_partition_limit=3, cursor=cursor)
        seen.append([one["partition_index"] for one in page["topics"][0]["partitions"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("incremental", [True, False])
def test_topic_configs(manager: KafkaAdminClient, topic: str, incremental: bool) -> None:
    manager.create_topics({topic: {"configs": {"cleanup.policy": "delete", "segment.ms": "5000000"}}})

    def told() -> dict[str, str]:
        found = manager.describe_configs([ConfigResource("TOPIC", topic)])["topic"][topic]
        return {name: value["value"] for name, value in found.items()}

    assert told() == {"cleanup.policy": "delete", "segment.ms": "5000000"}
    change = ConfigResource("TOPIC", topic, {"retention.ms": "99999", "max.message.bytes": "2000000"})
    assert manager.alter_configs([change], incremental=incremental)["topic"][topic] == "OK"
    assert told().items() >= {"segment.ms": "5000000", "retention.ms": "99999", "max.message.bytes": "2000000"}.items()
    everything = manager.describe_configs([ConfigResource("TOPIC", topic)], include_synonyms=True, config_filter="all")
    one = everything["topic"][topic]["max.message.bytes"]
    assert one["config_source"] == "DYNAMIC_TOPIC_CONFIG"
    assert one["config_type"] == "INT"
    assert [(synonym["name"], synonym["source"]) for synonym in one["synonyms"]] == [
        ("max.message.bytes", "DYNAMIC_TOPIC_CONFIG"),
        ("message.max.bytes", "DEFAULT_CONFIG"),
    ]
    manager.reset_configs([ConfigResource("TOPIC", topic, {"retention.ms": None})], incremental=incremental)
    assert "retention.ms" not in told()
    wrong = ConfigResource("TOPIC", topic, {"retention.ms": "soon"})
    assert "soon" in manager.alter_configs([wrong], incremental=incremental)["topic"][topic]
    assert "retention.ms" not in told()


def test_list_configs_grow_and_shrink(manager: KafkaAdminClient, topic: str) -> None:
    manager.create_topics([topic])
    for step, wanted in ((("APPEND", "compact"), "delete,compact"), (("SUBTRACT", "delete"), "compact")):
        change = ConfigResource("TOPIC", topic, {"cleanup.policy": step})
        assert manager.alter_configs([change])["topic"][topic] == "OK"
        found = manager.describe_configs([ConfigResource("TOPIC", topic)])["topic"][topic]
        assert found["cleanup.policy"]["value"] == wanted


def test_broker_configs(manager: KafkaAdminClient) -> None:
    found = manager.describe_configs([ConfigResource("BROKER", "1")], config_filter="all")["broker"]["1"]
    assert found["message.max.bytes"]["value"] == "1048588"
    assert found["group.initial.rebalance.delay.ms"]["config_source"] == "STATIC_BROKER_CONFIG"
    assert found["node.id"]["read_only"]


def test_offsets_and_deleted_records(broker: BrokerProcess, manager: KafkaAdminClient, topic: str) -> None:
    fill(broker, topic, 10)
    where = TopicPartition(topic, 0)

    def listed(spec: OffsetSpec | int) -> tuple[int, int]:
        found = manager.list_partition_offsets({where: spec})[where]
        return found.offset, found.timestamp

    assert listed(OffsetSpec.EARLIEST) == (0, -1)
    assert listed(OffsetSpec.LATEST) == (10, -1)
    assert listed(OffsetSpec.MAX_TIMESTAMP) == (9, 1_700_000_000_009)
    assert listed(1_700_000_000_004) == (4, 1_700_000_000_004)
    assert manager.delete_records({where: 4})[where]["low_watermark"] == 4
    assert listed(OffsetSpec.EARLIEST)[0] == 4
    with pytest.raises(OffsetOutOfRangeError):
        manager.delete_records({where: 11})
    with kafka_python.consumer(broker.bootstrap, {"auto.offset.reset": "earliest"}) as consumer:
        consumer.assign({(topic, 0): "beginning"})
        assert [one.offset for one in read(consumer, 6)] == [4, 5, 6, 7, 8, 9]
    assert manager.delete_records({where: -1})[where]["low_watermark"] == 10
    assert listed(OffsetSpec.EARLIEST)[0] == listed(OffsetSpec.LATEST)[0] == 10


def test_groups(broker: BrokerProcess, manager: KafkaAdminClient, topic: str) -> None:
    """List, describe, offsets read, altered, reset and deleted, members removed, group deleted."""
    fill(broker, topic, 20)
    options = {"group.id": topic, "auto.offset.reset": "earliest", "client.id": "reader"}
    where = TopicPartition(topic, 0)
    with kafka_python.consumer(broker.bootstrap, options) as consumer:
        consumer.subscribe(topic)
        read(consumer, 20)
        consumer.commit()
        described = manager.describe_groups([topic])[topic]
        assert (described["group_state"], described["protocol_type"], described["protocol_data"]) == (
            "Stable",
            "consumer",
            "range",
        )
        (member,) = described["members"]
        assert (member["client_id"], member["client_host"]) == ("reader", "/127.0.0.1")
        assert member["member_assignment"]["assigned_partitions"] == [{"topic": topic, "partitions": [0]}]
        assert described["authorized_operations"]
        (listed,) = [group for group in manager.list_groups() if group["group_id"] == topic]
        assert listed["group_state"] == "Stable"
        assert listed["group_type"] == "classic"
        assert topic in [one["group_id"] for one in manager.list_groups(states_filter=["Stable"])]
        assert topic not in [one["group_id"] for one in manager.list_groups(states_filter=["Empty"])]
        assert manager.delete_groups([topic])[topic] == "NonEmptyGroupError"
    assert manager.describe_groups([topic])[topic]["group_state"] == "Empty"
    assert manager.list_group_offsets({topic: None})[topic][where].offset == 20
    manager.alter_group_offsets(topic, {where: OffsetAndMetadata(7, "by hand", -1)})
    found = manager.list_group_offsets({topic: [where]})[topic][where]
    assert (found.offset, found.metadata) == (7, "by hand")
    manager.reset_group_offsets(topic, {where: OffsetSpec.EARLIEST})
    assert manager.list_group_offsets({topic: None})[topic][where].offset == 0
    manager.delete_group_offsets(topic, [where])
    assert where not in manager.list_group_offsets({topic: None})[topic]
    assert manager.delete_groups([topic])[topic] == "OK"
    assert topic not in [one["group_id"] for one in manager.list_groups()]
    assert manager.delete_groups([topic])[topic] == "GroupIdNotFoundError"
    assert manager.describe_groups([topic])[topic]["group_state"] == "Dead"


def test_cluster(broker: BrokerProcess, manager: KafkaAdminClient) -> None:
    told = manager.describe_cluster()
    assert len(told["cluster_id"]) == 22
    assert told["controller_id"] == 1
    assert [(one["broker_id"], one["host"], one["port"]) for one in told["brokers"]] == [(1, "127.0.0.1", broker.port)]
    assert manager.api_versions()[0] == (0, 13)


def test_log_dirs(broker: BrokerProcess, manager: KafkaAdminClient, topic: str) -> None:
    fill(broker, topic, 100)
    (told,) = manager.describe_log_dirs()
    (directory,) = told["log_dirs"]
    (found,) = [one for one in directory["topics"] if one["name"] == topic]
    assert found["partitions"][0]["partition_size"] > 100
