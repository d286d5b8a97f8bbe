"""Consumer groups (KIP-848) through the bytes of every version, and on whole brokers: topics that change, assignments
beside the requests, a coordinator that restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.background import Tasks
from broker.handlers import consumer_groups
from broker.node import Broker
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.broker.groups.conftest import Bench
from tests.broker.groups.test_whole_broker import create, ready
from tests.broker.groups.world import subscription
from tests.broker.test_handlers_groups import HANDLERS, Client, versions
from tests.support.raw_client import RawClient
from tests.support.waiting import until
from tests.support.whole_broker import whole_broker

NONE = ErrorCode.NONE
HANDLERS[m.ConsumerGroupHeartbeatRequest] = consumer_groups.consumer_group_heartbeat
HANDLERS[m.ConsumerGroupDescribeRequest] = consumer_groups.consumer_group_describe
Owned = m.ConsumerGroupHeartbeatRequest.TopicPartitions


def joining(**values: Any) -> m.ConsumerGroupHeartbeatRequest:
    return m.ConsumerGroupHeartbeatRequest(
        **{
            "group_id": "g",
            "member_id": "a",
            "member_epoch": 0,
            "rebalance_timeout_ms": 30_000,
            "subscribed_topic_names": ["t"],
            "topic_partitions": [],
            **values,
        }
    )


def beating(epoch: int, **values: Any) -> m.ConsumerGroupHeartbeatRequest:
    return m.ConsumerGroupHeartbeatRequest(**{"group_id": "g", "member_id": "a", "member_epoch": epoch, **values})


def assigned(answer: m.ConsumerGroupHeartbeatResponse) -> list[int] | None:
    """Partitions of the one topic."""
    if answer.assignment is None:
        return None
    return [number for one in answer.assignment.topic_partitions for number in one.partitions]


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    async with Tasks() as tasks:
        bench = Bench(tasks, group_consumer_assignment_interval_ms=0)
        await bench.open()
        yield Client(bench)
        bench.groups.stop()


@versions(ApiKey.CONSUMER_GROUP_HEARTBEAT)
async def test_heartbeat(client: Client, version: int) -> None:
    joined = await client.send(joining(rack_id="r"), version)
    assert (joined.error_code, joined.error_message, joined.member_id) == (NONE, None, "a")
    assert (joined.member_epoch, joined.heartbeat_interval_ms) == (2, 5000)
    assert joined.assignment.topic_partitions[0].topic_id == client.bench.controller.state.topics["t"].topic_id
    assert assigned(joined) == [0, 1, 2, 3]
    again = await client.send(beating(2), version)
    assert (again.error_code, again.assignment, again.member_epoch) == (NONE, None, 2)
    left = await client.send(beating(-1), version)
    assert (left.error_code, left.member_epoch) == (NONE, -1)
    gone = await client.send(beating(2), version)
    assert (gone.error_code, gone.error_message) == (
        ErrorCode.UNKNOWN_MEMBER_ID,
        "Member a is not a member of group g.",
    )


async def test_the_first_version_has_the_coordinator_make_ids(client: Client) -> None:
    joined = await client.send(joining(member_id=""), 0)
    assert joined.error_code == NONE
    assert len(joined.member_id) == 36
    refused = await client.send(joining(member_id=""), 1)
    assert (refused.error_code, refused.error_message) == (ErrorCode.INVALID_REQUEST, "MemberId can't be empty.")


async def test_expressions_are_of_the_second_version(client: Client) -> None:
    asked = joining(subscribed_topic_names=None, subscribed_topic_regex="t.*")
    joined = await client.send(asked, 1)
    assert (joined.error_code, joined.member_epoch) == (NONE, 1)
    epoch = 1
    async with asyncio.timeout(5):
        while True:
            await asyncio.sleep(0)
            answer = await client.send(beating(epoch), 1)
            epoch = answer.member_epoch
            if assigned(answer):
                break
    described = await describe(client, 1)
    assert described.members[0].subscribed_topic_regex == "t.*"
    refused = await client.send(joining(member_id="b", subscribed_topic_regex="("), 1)
    assert refused.error_code == ErrorCode.INVALID_REGULAR_EXPRESSION


@pytest.mark.parametrize(
    "request_,words",
    [
        (joining(group_id=""), "GroupId can't be empty."),
        (joining(instance_id=""), "InstanceId can't be empty."),
        (joining(rack_id=""), "RackId can't be empty."),
        (joining(rebalance_timeout_ms=-1), "RebalanceTimeoutMs must be provided in first request."),
        (joining(topic_partitions=None), "TopicPartitions must be empty when (re-)joining."),
        (joining(topic_partitions=[Owned()]), "TopicPartitions must be empty when (re-)joining."),
        (
            joining(subscribed_topic_names=None),
            "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.",
        ),
        (beating(-2), "InstanceId can't be null."),
        (beating(-3), "MemberEpoch is invalid."),
        (beating(1, member_id=""), "MemberId can't be empty."),
    ],
)
async def test_requests_that_are_refused(client: Client, request_: Any, words: str) -> None:
    answer = await client.send(request_, 1)
    assert (answer.error_code, answer.error_message) == (ErrorCode.INVALID_REQUEST, words)


async def test_assignors(client: Client) -> None:
    answer = await client.send(joining(server_assignor="mine"), 1)
    assert answer.error_code == ErrorCode.UNSUPPORTED_ASSIGNOR
    assert answer.error_message == "ServerAssignor mine is not supported. Supported assignors: uniform, range."
    assert (await client.send(joining(server_assignor="range"), 1)).error_code == NONE
    assert (await describe(client, 1)).assignor_name == "range"


async def test_the_feature_must_be_finalized(client: Client) -> None:
    client.bench.controller.state.features = {}
    assert (await client.send(joining(), 1)).error_code == ErrorCode.UNSUPPORTED_VERSION
    assert (await describe(client, 1)).error_code == ErrorCode.UNSUPPORTED_VERSION


async def describe(client: Client, version: int, group: str = "g") -> Any:
    request = m.ConsumerGroupDescribeRequest(group_ids=[group], include_authorized_operations=True)
    return (await client.send(request, version)).groups[0]


@versions(ApiKey.CONSUMER_GROUP_DESCRIBE)
async def test_describe_needs_a_name(client: Client, version: int) -> None:
    request = m.ConsumerGroupDescribeRequest(group_ids=["", "g", ""])
    answer = await client.send(request, version)
    codes = [(group.group_id, group.error_code) for group in answer.groups]
    invalid = ("", ErrorCode.INVALID_GROUP_ID)
    assert codes == [invalid, ("g", ErrorCode.GROUP_ID_NOT_FOUND), invalid]


@versions(ApiKey.CONSUMER_GROUP_DESCRIBE)
async def test_describe(client: Client, version: int) -> None:
    await client.send(joining(instance_id="i", rack_id="r"), 1)
    group = await describe(client, version)
    assert (group.error_code, group.group_state, group.group_epoch, group.assignment_epoch) == (NONE, "Stable", 2, 2)
    assert (group.assignor_name, group.authorized_operations > 0) == ("uniform", True)
    (member,) = group.members
    assert (member.member_id, member.instance_id, member.rack_id, member.member_epoch) == ("a", "i", "r", 2)
    assert (member.client_id, member.client_host) == ("client", "/10.0.0.1")
    assert (member.subscribed_topic_names, member.subscribed_topic_regex) == (["t"], "")
    for assignment in (member.assignment, member.target_assignment):
        (topic,) = assignment.topic_partitions
        assert (topic.topic_name, topic.partitions) == ("t", [0, 1, 2, 3])
    assert member.member_type == (-1 if version == 0 else 1)
    missing = await describe(client, version, "other")
    assert (missing.error_code, missing.error_message) == (
        ErrorCode.GROUP_ID_NOT_FOUND,
        "Consumer group other not found.",
    )


async def test_describe_a_member_of_the_classic_protocol(client: Client) -> None:
    await client.send(joining(), 1)
    await client.join(3)
    members = (await describe(client, 1)).members
    assert [one.member_type for one in members] == [1, 0]


async def test_offsets_in_the_name_of_a_member(client: Client) -> None:
    await client.send(joining(), 1)
    unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert await client.commit(5, 9, member_id="a", generation_id_or_member_epoch=2) == [NONE, unknown, unknown]
    stale = ErrorCode.STALE_MEMBER_EPOCH
    assert (await client.commit(6, 9, member_id="a", generation_id_or_member_epoch=3))[0] == stale
    old = ErrorCode.UNSUPPORTED_VERSION
    assert (await client.commit(6, 8, member_id="a", generation_id_or_member_epoch=2))[0] == old
    for member_id, epoch, error in (("a", 2, NONE), ("a", 1, stale), ("b", 2, 25), (None, -1, NONE)):
        asked = m.OffsetFetchRequest.OffsetFetchRequestGroup(
            group_id="g", member_id=member_id, member_epoch=epoch, topics=None
        )
        for version in (9, 10):
            group = (await client.send(m.OffsetFetchRequest(groups=[asked]), version)).groups[0]
            assert group.error_code == error
            assert bool(group.topics) == (error == NONE)


async def test_classic_apis_see_it(client: Client) -> None:
    await client.send(joining(), 1)
    described = (await client.send(m.DescribeGroupsRequest(groups=["g"]), 6)).groups[0]
    assert described.error_code == ErrorCode.GROUP_ID_NOT_FOUND
    for filters, found in (({}, 1), ({"types_filter": ["Consumer"]}, 1), ({"types_filter": ["classic"]}, 0)):
        listed = (await client.send(m.ListGroupsRequest(**filters), 5)).groups
        assert [(one.group_id, one.protocol_type, one.group_state, one.group_type) for one in listed] == [
            ("g", "consumer", "Stable", "consumer")
        ] * found
    assert (await client.send(m.ListGroupsRequest(states_filter=["empty"]), 5)).groups == []
    deleted = (await client.send(m.DeleteGroupsRequest(groups_names=["g"]), 2)).results[0]
    assert deleted.error_code == ErrorCode.NON_EMPTY_GROUP


# -- whole brokers

SETTINGS = {
    "tidelog_seal_ms": 50,
    "offsets_topic_num_partitions": 1,
    "group_consumer_assignment_interval_ms": 0,
}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with whole_broker(tmp_path / "data", **SETTINGS) as running:
        yield running


async def send(client: RawClient, request: m.ConsumerGroupHeartbeatRequest) -> Any:
    return await client.ask(ApiKey.CONSUMER_GROUP_HEARTBEAT, 1, request)


async def test_topics_that_grow_come_and_go(broker: Broker) -> None:
    async with RawClient(broker.listeners[0].port) as client:
        await create(client, "t")
        await ready(client, "g")
        joined = await send(client, joining(subscribed_topic_regex="[tu]"))
        assert assigned(joined) == [0]
        topic = m.CreatePartitionsRequest.CreatePartitionsTopic(name="t", count=3, assignments=None)
        grown = await client.ask(
            ApiKey.CREATE_PARTITIONS, 3, m.CreatePartitionsRequest(topics=[topic], timeout_ms=5000)
        )
        assert grown.results[0].error_code == 0
        epoch = joined.member_epoch

        async def until_assigned(count: int) -> None:
            nonlocal epoch
            async with asyncio.timeout(20):
                while True:
                    answer = await send(client, beating(epoch))
                    assert answer.error_code == 0, answer
                    epoch = answer.member_epoch
                    numbers = assigned(answer)
                    if numbers is not None and len(numbers) == count:
                        return
                    await asyncio.sleep(0.01)

        await until_assigned(3)
        state = broker.controller.state
        owned = [Owned(topic_id=state.topics["t"].topic_id, partitions=[])]
        deletion = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(name="t")], timeout_ms=5000)
        assert (await client.ask(ApiKey.DELETE_TOPICS, 6, deletion)).responses[0].error_code == 0
        await until_assigned(0)
        answer = await send(client, beating(epoch, topic_partitions=owned))
        assert (answer.error_code, assigned(answer)) == (0, None)
        assert answer.member_epoch > epoch


async def test_a_large_group_is_assigned_beside_the_requests(broker: Broker) -> None:
    async with RawClient(broker.listeners[0].port) as client:
        await create(client, "t", 3000)
        await ready(client, "g")
        joined = await send(client, joining())
        assert (joined.member_epoch, assigned(joined)) == (1, [])
        async with asyncio.timeout(20):
            while not assigned(answer := await send(client, beating(1))):
                assert (answer.error_code, answer.member_epoch) == (0, 1)
        assert (assigned(answer), answer.member_epoch) == (list(range(3000)), 2)


async def test_a_new_coordinator_knows_members_and_epochs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with whole_broker(data, **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        await create(client, "t", 2)
        await ready(client, "g")
        assert assigned(await send(client, joining())) == [0, 1]
        assert assigned(await send(client, joining(member_id="b"))) == []
    async with whole_broker(data, **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        await ready(client, "g")
        revoked = await send(client, beating(2))
        assert (revoked.member_epoch, assigned(revoked)) == (2, [0])
        kept = [Owned(topic_id=broker.controller.state.topics["t"].topic_id, partitions=[0])]
        assert (await send(client, beating(2, topic_partitions=kept))).member_epoch == 3
        given = await send(client, beating(3, member_id="b"))
        assert (given.error_code, assigned(given)) == (0, [1])
        fenced = await send(client, beating(2, member_id="b"))
        assert fenced.error_code == ErrorCode.FENCED_MEMBER_EPOCH


async def test_configs_of_a_group_act(broker: Broker) -> None:
    async with RawClient(broker.listeners[0].port) as client:
        await create(client, "t")
        await ready(client, "g")
        assert (await send(client, joining())).heartbeat_interval_ms == 5000
        config = m.IncrementalAlterConfigsRequest
        change = config.AlterableConfig(name="consumer.heartbeat.interval.ms", config_operation=0, value="15000")
        resource = config.AlterConfigsResource(resource_type=32, resource_name="g", configs=[change])
        answer = await client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, config(resources=[resource]))
        assert answer.responses[0].error_code == 0
        assert (await send(client, beating(2))).heartbeat_interval_ms == 15_000


async def test_members_of_both_protocols(broker: Broker) -> None:
    """A group of the classic protocol takes in a member of the other one, and is classic again when that leaves."""
    protocols = [m.JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=subscription("t"))]
    join = m.JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        protocol_type="consumer",
        protocols=protocols,
    )
    async with RawClient(broker.listeners[0].port) as client, RawClient(broker.listeners[0].port) as other:
        await create(client, "t", 2)
        await ready(client, "g")
        joined = await client.ask(ApiKey.JOIN_GROUP, 3, join, timeout=10)
        mine = joined.member_id
        number = other.send(ApiKey.CONSUMER_GROUP_HEARTBEAT, 1, joining())
        assert (await other.receive(ApiKey.CONSUMER_GROUP_HEARTBEAT, 1))[0] == number
        beat = m.HeartbeatRequest(group_id="g", generation_id=1, member_id=mine)
        again = await client.ask(ApiKey.HEARTBEAT, 3, beat)
        assert again.error_code == ErrorCode.REBALANCE_IN_PROGRESS
        join.member_id = mine
        joined = await client.ask(ApiKey.JOIN_GROUP, 3, join)
        assert (joined.error_code, joined.generation_id) == (0, 2)
        sync = m.SyncGroupRequest(group_id="g", generation_id=2, member_id=mine)
        assert (await client.ask(ApiKey.SYNC_GROUP, 3, sync)).assignment
        assert broker.services.groups.counts().consumer_groups == 1
        assert (await send(other, beating(-1))).error_code == 0
        await until(lambda: broker.services.groups.counts().groups == 1)
        assert broker.services.groups.counts().consumer_groups == 0
        listed = (await client.ask(ApiKey.LIST_GROUPS, 5, m.ListGroupsRequest())).groups
        assert [(one.group_type, one.group_state) for one in listed] == [("classic", "PreparingRebalance")]
