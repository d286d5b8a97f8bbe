"""Metadata, topics, configs, DeleteRecords, DescribeCluster and DescribeLogDirs through sockets, at every version."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker import dispatch
from broker.dispatch import HANDLERS
from broker.handlers import configs
from broker.node import Broker
from broker.operations import CLUSTER_OPERATIONS, NOT_ASKED, TOPIC_OPERATIONS
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.raw_client import RawClient, batch_of
from tests.support.whole_broker import whole_broker

NO_ID = bytes(16)


def versions(key: ApiKey) -> range:
    return range(HANDLERS[key].min_version, HANDLERS[key].max_version + 1)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with whole_broker(tmp_path / "data", tidelog_seal_ms=50) as running:
        yield running


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[RawClient]:
    async with RawClient(broker.listeners[0].port) as connected:
        yield connected


async def create(client: RawClient, name: str, partitions: int = 1, **configs: str) -> bytes:
    topic = m.CreateTopicsRequest.CreatableTopic(
        name=name,
        num_partitions=partitions,
        replication_factor=1,
        configs=[
            m.CreateTopicsRequest.CreatableTopicConfig(name=key.replace("_", "."), value=value)
            for key, value in configs.items()
        ],
    )
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
    assert answer.topics[0].error_code == 0, answer
    created: bytes = answer.topics[0].topic_id
    return created


async def produce(client: RawClient, topic: str, records: int, partition: int = 0) -> None:
    result = await client.produce(topic, batch_of(*[b"value"] * records), partition=partition)
    assert result.error_code == 0, result


# Metadata


@pytest.mark.parametrize("version", versions(ApiKey.METADATA))
async def test_metadata_shows_brokers_and_topics(client: RawClient, broker: Broker, version: int) -> None:
    topic_id = await create(client, "t", 3)
    asked = [m.MetadataRequest.MetadataRequestTopic(name="t")]
    request = m.MetadataRequest(topics=asked)
    if version >= 8:
        request.include_topic_authorized_operations = True
    if 8 <= version <= 10:
        request.include_cluster_authorized_operations = True
    answer = await client.ask(ApiKey.METADATA, version, request)
    assert [(b.node_id, b.host, b.port) for b in answer.brokers] == [(1, "127.0.0.1", broker.listeners[0].port)]
    (topic,) = answer.topics
    assert (topic.error_code, topic.name, len(topic.partitions)) == (0, "t", 3)
    assert all(p.leader_id == 1 and p.replica_nodes == [1] == p.isr_nodes for p in topic.partitions)
    if version >= 10:
        assert topic.topic_id == topic_id
    if version >= 8:
        assert topic.topic_authorized_operations == TOPIC_OPERATIONS
    if 8 <= version <= 10:
        assert answer.cluster_authorized_operations == CLUSTER_OPERATIONS
    if version >= 2:
        assert answer.cluster_id == broker.cluster_id
    if version >= 1:
        assert answer.controller_id == 1


async def test_metadata_of_all_topics_and_of_none(client: RawClient) -> None:
    await create(client, "a")
    await create(client, "b")
    everything = await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))
    assert [topic.name for topic in everything.topics] == ["a", "b"]
    assert everything.topics[0].topic_authorized_operations == NOT_ASKED
    assert (await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))).topics == []
    assert len((await client.ask(ApiKey.METADATA, 0, m.MetadataRequest(topics=[]))).topics) == 2


async def test_metadata_follows_changes(client: RawClient) -> None:
    await create(client, "t", 1)
    request = m.MetadataRequest(
        topics=[m.MetadataRequest.MetadataRequestTopic(name="t")], allow_auto_topic_creation=False
    )
    assert len((await client.ask(ApiKey.METADATA, 12, request)).topics[0].partitions) == 1
    more = m.CreatePartitionsRequest(
        topics=[m.CreatePartitionsRequest.CreatePartitionsTopic(name="t", count=4, assignments=None)]
    )
    assert (await client.ask(ApiKey.CREATE_PARTITIONS, 3, more)).results[0].error_code == 0
    assert len((await client.ask(ApiKey.METADATA, 12, request)).topics[0].partitions) == 4
    gone = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(name="t")])
    assert (await client.ask(ApiKey.DELETE_TOPICS, 6, gone)).responses[0].error_code == 0
    assert (await client.ask(ApiKey.METADATA, 12, request)).topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


async def test_metadata_creates_missing_topics_when_allowed(client: RawClient) -> None:
    wanted = m.MetadataRequest.MetadataRequestTopic
    refused = await client.ask(
        ApiKey.METADATA, 12, m.MetadataRequest(topics=[wanted(name="new")], allow_auto_topic_creation=False)
    )
    assert refused.topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    created = await client.ask(
        ApiKey.METADATA, 12, m.MetadataRequest(topics=[wanted(name="new"), wanted(name="no/good")])
    )
    by_name = {topic.name: topic for topic in created.topics}
    assert by_name["new"].error_code == 0
    assert by_name["new"].partitions[0].leader_id == 1
    assert by_name["no/good"].error_code == ErrorCode.INVALID_TOPIC_EXCEPTION
    internal = await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[wanted(name="__consumer_offsets")]))
    assert internal.topics[0].is_internal
    assert len(internal.topics[0].partitions) == 50


async def test_metadata_by_topic_id(client: RawClient) -> None:
    """The id counts, whatever stands in the name: Java's admin client sends an empty one."""
    topic_id = await create(client, "t")
    wanted = m.MetadataRequest.MetadataRequestTopic
    for version in (12, 13):
        for name in (None, "", "other"):
            request = m.MetadataRequest(
                topics=[wanted(name=name, topic_id=topic_id), wanted(name=name, topic_id=b"x" * 16)],
                allow_auto_topic_creation=True,
            )
            known, unknown = (await client.ask(ApiKey.METADATA, version, request)).topics
            assert (known.error_code, known.name) == (0, "t")
            assert (unknown.error_code, unknown.name) == (ErrorCode.UNKNOWN_TOPIC_ID, None)
    everything = await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))
    assert [topic.name for topic in everything.topics] == ["t"]
    mixed = m.MetadataRequest(topics=[wanted(name="t"), wanted(name=None, topic_id=b"x" * 16)])
    answer = await client.ask(ApiKey.METADATA, 12, mixed)
    assert [topic.error_code for topic in answer.topics] == [ErrorCode.UNKNOWN_TOPIC_ID]
    twice = m.MetadataRequest(topics=[wanted(name="t"), wanted(name="t")])
    assert len((await client.ask(ApiKey.METADATA, 12, twice)).topics) == 1
    for version in (10, 11):
        request = m.MetadataRequest(topics=[wanted(name=None, topic_id=topic_id), wanted(name="t")])
        answer = await client.ask(ApiKey.METADATA, version, request)
        assert [topic.error_code for topic in answer.topics] == [ErrorCode.INVALID_REQUEST] * 2
        assert (answer.brokers, answer.controller_id) == ([], -1)


async def test_describe_topic_partitions_pages(client: RawClient) -> None:
    await create(client, "a", 3)
    await create(client, "b", 2)
    found: list[tuple[str, int]] = []
    cursor = None
    for _ in range(10):
        request = m.DescribeTopicPartitionsRequest(topics=[], response_partition_limit=2, cursor=cursor)
        answer = await client.ask(ApiKey.DESCRIBE_TOPIC_PARTITIONS, 0, request)
        found += [(topic.name, p.partition_index) for topic in answer.topics for p in topic.partitions]
        if answer.next_cursor is None:
            break
        cursor = m.DescribeTopicPartitionsRequest.Cursor(
            topic_name=answer.next_cursor.topic_name, partition_index=answer.next_cursor.partition_index
        )
    assert found == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    asked = m.DescribeTopicPartitionsRequest(topics=[m.DescribeTopicPartitionsRequest.TopicRequest(name="none")])
    missing = await client.ask(ApiKey.DESCRIBE_TOPIC_PARTITIONS, 0, asked)
    assert missing.topics[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


# Topics


@pytest.mark.parametrize("version", versions(ApiKey.CREATE_TOPICS))
async def test_create_topics_gives_one_result_each(client: RawClient, version: int) -> None:
    topic = m.CreateTopicsRequest.CreatableTopic
    request = m.CreateTopicsRequest(
        topics=[
            topic(name="good", num_partitions=2, replication_factor=3),
            topic(name="bad name", num_partitions=1, replication_factor=1),
            topic(name="none", num_partitions=0, replication_factor=1),
            topic(name="twice", num_partitions=1, replication_factor=1),
            topic(name="twice", num_partitions=2, replication_factor=1),
            topic(
                name="config",
                num_partitions=1,
                replication_factor=1,
                configs=[m.CreateTopicsRequest.CreatableTopicConfig(name="retention.ms", value="soon")],
            ),
        ]
    )
    answer = await client.ask(ApiKey.CREATE_TOPICS, version, request)
    codes = {result.name: result.error_code for result in answer.topics}
    assert codes == {
        "good": 0,
        "bad name": ErrorCode.INVALID_TOPIC_EXCEPTION,
        "none": ErrorCode.INVALID_PARTITIONS,
        "twice": ErrorCode.INVALID_REQUEST,
        "config": ErrorCode.INVALID_CONFIG,
    }
    good = next(result for result in answer.topics if result.name == "good")
    if version >= 5:
        assert (good.num_partitions, good.replication_factor) == (2, 3)
        assert {config.name for config in good.configs} >= {"retention.ms", "cleanup.policy"}
    again = await client.ask(ApiKey.CREATE_TOPICS, version, m.CreateTopicsRequest(topics=request.topics[:1]))
    assert again.topics[0].error_code == ErrorCode.TOPIC_ALREADY_EXISTS


async def test_validate_only_creates_nothing(client: RawClient) -> None:
    topic = m.CreateTopicsRequest.CreatableTopic(name="t", num_partitions=1, replication_factor=1)
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic], validate_only=True))
    assert answer.topics[0].error_code == 0
    assert (await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))).topics == []


@pytest.mark.parametrize("version", versions(ApiKey.DELETE_TOPICS))
async def test_delete_topics_by_name_and_id(client: RawClient, version: int) -> None:
    topic_id = await create(client, "a")
    await create(client, "b")
    if version < 6:
        request = m.DeleteTopicsRequest(topic_names=["a", "b", "c"], timeout_ms=1000)
    else:
        state = m.DeleteTopicsRequest.DeleteTopicState
        request = m.DeleteTopicsRequest(
            topics=[state(name=None, topic_id=topic_id), state(name="b"), state(name="c")], timeout_ms=1000
        )
    answer = await client.ask(ApiKey.DELETE_TOPICS, version, request)
    assert [(r.name, r.error_code) for r in answer.responses] == [
        ("a", 0),
        ("b", 0),
        ("c", ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    ]
    assert (await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))).topics == []


@pytest.mark.parametrize("version", versions(ApiKey.CREATE_PARTITIONS))
async def test_create_partitions(client: RawClient, version: int) -> None:
    await create(client, "t", 2)
    grown = m.CreatePartitionsRequest.CreatePartitionsTopic
    for topic, code in (
        (grown(name="t", count=2, assignments=None), ErrorCode.INVALID_PARTITIONS),
        (grown(name="t", count=5, assignments=None), ErrorCode.NONE),
        (grown(name="none", count=5, assignments=None), ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    ):
        answer = await client.ask(ApiKey.CREATE_PARTITIONS, version, m.CreatePartitionsRequest(topics=[topic]))
        assert answer.results[0].error_code == code, answer
    await produce(client, "t", 1, partition=4)


# Configs


def topic_resource(name: str, kind: int = 2, keys: list[str] | None = None) -> Any:
    return m.DescribeConfigsRequest.DescribeConfigsResource(
        resource_type=kind, resource_name=name, configuration_keys=keys
    )


async def described(client: RawClient, name: str, keys: list[str] | None = None) -> dict[str, str | None]:
    request = m.DescribeConfigsRequest(resources=[topic_resource(name, keys=keys)])
    answer = await client.ask(ApiKey.DESCRIBE_CONFIGS, 4, request)
    assert answer.results[0].error_code == 0
    return {config.name: config.value for config in answer.results[0].configs}


@pytest.mark.parametrize("version", versions(ApiKey.DESCRIBE_CONFIGS))
async def test_describe_configs(client: RawClient, version: int) -> None:
    await create(client, "t", retention_ms="1000")
    request = m.DescribeConfigsRequest(
        resources=[
            topic_resource("t", keys=["retention.ms", "cleanup.policy"]),
            topic_resource("none"),
            topic_resource("1", kind=4, keys=["num.partitions"]),
            topic_resource("2", kind=4),
        ]
    )
    if version >= 1:
        request.include_synonyms = True
    topic, missing, broker, other = (await client.ask(ApiKey.DESCRIBE_CONFIGS, version, request)).results
    configs = {config.name: config for config in topic.configs}
    assert set(configs) == {"retention.ms", "cleanup.policy"}
    assert configs["retention.ms"].value == "1000"
    assert not configs["retention.ms"].read_only
    assert configs["retention.ms"].config_source == 1
    assert [s.value for s in configs["retention.ms"].synonyms] == ["1000"]
    assert missing.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert [(c.name, c.value, c.read_only) for c in broker.configs] == [("num.partitions", "1", True)]
    assert other.error_code == ErrorCode.INVALID_REQUEST
    request.resources = [topic_resource("t"), topic_resource("x", kind=16)]
    refused = (await client.ask(ApiKey.DESCRIBE_CONFIGS, version, request)).results
    assert [one.error_code for one in refused] == [ErrorCode.INVALID_REQUEST] * 2, "a type that is none refuses all"


async def test_descriptions_of_the_same_broker_come_to_an_end(client: RawClient) -> None:
    """A request of a megabyte names it two hundred thousand times: no machine holds the answer."""
    resources = [topic_resource("1", kind=4, keys=["num.partitions"]) for _ in range(500)]
    answer = await client.ask(ApiKey.DESCRIBE_CONFIGS, 4, m.DescribeConfigsRequest(resources=resources))
    codes = [one.error_code for one in answer.results]
    assert codes == [0] * 10 + [ErrorCode.INVALID_REQUEST] * 490


async def test_a_large_description_leaves_the_event_loop_to_others(
    client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools ask for the configs of all topics at once. Ten thousand would take longer than a session."""
    threads: list[int] = []
    turns: list[int] = []
    seen: list[int] = []
    encode, describe = dispatch._encode, configs._describe

    def encoded(*what: Any) -> bytes:
        threads.append(threading.get_ident())
        return encode(*what)

    def described(*what: Any, **how: Any) -> Any:
        asyncio.get_running_loop().call_soon(turns.append, 0)
        seen.append(len(turns))
        return describe(*what, **how)

    monkeypatch.setattr(dispatch, "_encode", encoded)
    monkeypatch.setattr(configs, "_describe", described)
    resources = [topic_resource("none" * 10 + str(number)) for number in range(1000)]
    answer = await client.ask(ApiKey.DESCRIBE_CONFIGS, 4, m.DescribeConfigsRequest(resources=resources))
    assert len(answer.results) == 1000 and threads[-1] != threading.get_ident()
    assert len(set(seen)) >= 10, "others had their turn in between"
    await client.ask(ApiKey.DESCRIBE_CONFIGS, 4, m.DescribeConfigsRequest(resources=resources[:1]))
    assert threads[-1] == threading.get_ident()


@pytest.mark.parametrize("name", ["1" * 5000, "01", "\u0661", "-1", "--1"])
async def test_names_of_brokers_that_are_none(client: RawClient, name: str) -> None:
    """What is set for "01" would be found by nobody; and a number may be too long for one."""
    resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource
    config = m.IncrementalAlterConfigsRequest.AlterableConfig
    change = config(name="log.retention.ms", config_operation=0, value="5000")
    request = m.IncrementalAlterConfigsRequest(
        resources=[
            resource(resource_type=4, resource_name=name, configs=[change]),
            resource(resource_type=4, resource_name="1", configs=[change]),
        ]
    )
    answer = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, request)
    assert {one.resource_name: one.error_code for one in answer.responses} == {name: ErrorCode.INVALID_REQUEST, "1": 0}
    described = m.DescribeConfigsRequest(resources=[topic_resource(name, kind=4), topic_resource("1", kind=4)])
    results = (await client.ask(ApiKey.DESCRIBE_CONFIGS, 4, described)).results
    assert [one.error_code for one in results] == [ErrorCode.INVALID_REQUEST, 0]


@pytest.mark.parametrize("version", versions(ApiKey.ALTER_CONFIGS))
async def test_alter_configs_replaces_all(client: RawClient, version: int) -> None:
    await create(client, "t", retention_ms="1000", cleanup_policy="compact")
    resource = m.AlterConfigsRequest.AlterConfigsResource
    config = m.AlterConfigsRequest.AlterableConfig
    request = m.AlterConfigsRequest(
        resources=[
            resource(resource_type=2, resource_name="t", configs=[config(name="segment.bytes", value="2000000")]),
            resource(resource_type=4, resource_name="1", configs=[]),
        ]
    )
    answer = await client.ask(ApiKey.ALTER_CONFIGS, version, request)
    codes = {(r.resource_type, r.resource_name): r.error_code for r in answer.responses}
    assert codes == {(2, "t"): 0, (4, "1"): 0}
    configs = await described(client, "t")
    assert (configs["segment.bytes"], configs["retention.ms"], configs["cleanup.policy"]) == (
        "2000000",
        "604800000",
        "delete",
    )


@pytest.mark.parametrize("version", versions(ApiKey.INCREMENTAL_ALTER_CONFIGS))
async def test_incremental_alter_configs(client: RawClient, version: int) -> None:
    await create(client, "t", retention_ms="1000")
    resource = m.IncrementalAlterConfigsRequest.AlterConfigsResource
    config = m.IncrementalAlterConfigsRequest.AlterableConfig
    changes = [
        config(name="retention.ms", config_operation=1, value=None),
        config(name="cleanup.policy", config_operation=2, value="compact"),
        config(name="max.message.bytes", config_operation=0, value="5000"),
    ]
    request = m.IncrementalAlterConfigsRequest(
        resources=[resource(resource_type=2, resource_name="t", configs=changes)]
    )
    answer = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, version, request)
    assert answer.responses[0].error_code == 0, answer
    configs = await described(client, "t", ["retention.ms", "cleanup.policy", "max.message.bytes"])
    assert configs == {"retention.ms": "604800000", "cleanup.policy": "delete,compact", "max.message.bytes": "5000"}
    request.validate_only = True
    request.resources[0].configs = [config(name="retention.ms", config_operation=0, value="no")]
    refused = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, version, request)
    assert refused.responses[0].error_code == ErrorCode.INVALID_CONFIG
    throttle = config(name="leader.replication.throttled.rate", config_operation=1, value=None)
    request.resources = [resource(resource_type=4, resource_name="1", configs=[throttle])]
    answer = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, version, request)
    assert answer.responses[0].error_code == 0, "what Kafka's tools do when a reassignment is over"
    throttle.config_operation, throttle.value = 0, "1"
    answer = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, version, request)
    assert answer.responses[0].error_code == 0, "stored, as Kafka does; nothing is replicated here"


async def test_a_config_acts_at_once(client: RawClient) -> None:
    await create(client, "t", max_message_bytes="100")
    assert (await client.produce("t", batch_of(b"x" * 100))).error_code == ErrorCode.MESSAGE_TOO_LARGE


# Records and places


@pytest.mark.parametrize("version", versions(ApiKey.DELETE_RECORDS))
async def test_delete_records_moves_the_start(client: RawClient, version: int) -> None:
    await create(client, "t")
    await create(client, "compacted", cleanup_policy="compact")
    await produce(client, "t", 10)

    async def delete(topic: str, partition: int, offset: int, timeout_ms: int = 5000) -> tuple[int, int]:
        asked = m.DeleteRecordsRequest.DeleteRecordsTopic(
            name=topic,
            partitions=[m.DeleteRecordsRequest.DeleteRecordsPartition(partition_index=partition, offset=offset)],
        )
        request = m.DeleteRecordsRequest(topics=[asked], timeout_ms=timeout_ms)
        answer = await client.ask(ApiKey.DELETE_RECORDS, version, request)
        result = answer.topics[0].partitions[0]
        return result.error_code, result.low_watermark

    assert await delete("t", 0, 4) == (0, 4)
    assert await delete("t", 0, 2) == (0, 4)
    assert await delete("t", 0, 11) == (ErrorCode.OFFSET_OUT_OF_RANGE, -1)
    assert await delete("t", 0, -2) == (ErrorCode.OFFSET_OUT_OF_RANGE, -1)
    assert await delete("t", 1, 1) == (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1)
    assert await delete("compacted", 0, 0) == (ErrorCode.POLICY_VIOLATION, -1)
    assert await delete("t", 0, 6, timeout_ms=0) == (0, 6)
    assert await delete("t", 0, -1) == (0, 10)


@pytest.mark.parametrize("version", versions(ApiKey.DESCRIBE_CLUSTER))
async def test_describe_cluster(client: RawClient, broker: Broker, version: int) -> None:
    request = m.DescribeClusterRequest(include_cluster_authorized_operations=True)
    answer = await client.ask(ApiKey.DESCRIBE_CLUSTER, version, request)
    assert (answer.error_code, answer.cluster_id, answer.controller_id) == (0, broker.cluster_id, 1)
    assert [(b.broker_id, b.port) for b in answer.brokers] == [(1, broker.listeners[0].port)]
    assert answer.cluster_authorized_operations == CLUSTER_OPERATIONS
    if version >= 1:
        for kind, code in ((2, ErrorCode.MISMATCHED_ENDPOINT_TYPE), (3, ErrorCode.UNSUPPORTED_ENDPOINT_TYPE)):
            refused = await client.ask(ApiKey.DESCRIBE_CLUSTER, version, m.DescribeClusterRequest(endpoint_type=kind))
            assert refused.error_code == code


@pytest.mark.parametrize("version", versions(ApiKey.DESCRIBE_LOG_DIRS))
async def test_describe_log_dirs(client: RawClient, version: int) -> None:
    await create(client, "t", 2)
    await produce(client, "t", 100)
    answer = await client.ask(ApiKey.DESCRIBE_LOG_DIRS, version, m.DescribeLogDirsRequest(topics=None))
    (directory,) = answer.results
    sizes = {p.partition_index: p.partition_size for topic in directory.topics for p in topic.partitions}
    assert sizes[0] > 100
    assert sizes[1] == 0
    asked = m.DescribeLogDirsRequest.DescribableLogDirTopic(topic="t", partitions=[1])
    one = await client.ask(ApiKey.DESCRIBE_LOG_DIRS, version, m.DescribeLogDirsRequest(topics=[asked]))
    assert [p.partition_index for p in one.results[0].topics[0].partitions] == [1]
    twice = [asked, m.DescribeLogDirsRequest.DescribableLogDirTopic(topic="t", partitions=[0])]
    both = await client.ask(ApiKey.DESCRIBE_LOG_DIRS, version, m.DescribeLogDirsRequest(topics=twice))
    assert sorted(p.partition_index for topic in both.results[0].topics for p in topic.partitions) == [0, 1]


async def test_bytes_behind_a_request_are_ignored_as_in_kafka(client: RawClient) -> None:
    """librdkafka 2.16 asks for all topics with three zero bytes too many."""
    await create(client, "t")
    number, frame = client.frame(ApiKey.METADATA, 13, m.MetadataRequest(topics=None))
    client.writer.write((len(frame) - 4 + 3).to_bytes(4, "big") + frame[4:] + bytes(3))
    answered, response = await client.receive(ApiKey.METADATA, 13)
    assert answered == number
    assert [topic.name for topic in response.topics] == ["t"]
