"""The group handlers, through the bytes of every version of their messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from broker.background import Tasks
from broker.handlers import find_coordinator, groups, offsets
from broker.services import RequestContext
from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.errors import ErrorCode, KafkaError
from tests.broker.groups.conftest import Bench
from tests.broker.groups.world import subscription

NONE = ErrorCode.NONE
HANDLERS: dict[type[Any], Any] = {
    m.FindCoordinatorRequest: find_coordinator.find_coordinator,
    m.JoinGroupRequest: groups.join_group,
    m.SyncGroupRequest: groups.sync_group,
    m.HeartbeatRequest: groups.heartbeat,
    m.LeaveGroupRequest: groups.leave_group,
    m.DescribeGroupsRequest: groups.describe_groups,
    m.ListGroupsRequest: groups.list_groups,
    m.DeleteGroupsRequest: groups.delete_groups,
    m.OffsetCommitRequest: offsets.offset_commit,
    m.OffsetFetchRequest: offsets.offset_fetch,
    m.OffsetDeleteRequest: offsets.offset_delete,
}


def versions(key: ApiKey, first: int | None = None, last: int | None = None) -> Any:
    api = APIS[key]
    low = api.min_version if first is None else first
    high = api.max_version if last is None else last
    return pytest.mark.parametrize("version", range(low, high + 1))


class Client:
    """Sends a request as bytes of one version and reads the answer from bytes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.services = SimpleNamespace(
            groups=bench.groups, controller=bench.controller, settings=bench.groups.settings, token=bench.token
        )

    async def send(self, request: Any, version: int, listener: str = "PLAINTEXT") -> Any:
        kind = type(request)
        context = RequestContext(
            services=self.services,  # type: ignore[arg-type]
            connection=None,  # type: ignore[arg-type]
            api_version=version,
            client_id="client",
            client_address="10.0.0.1",
            listener=listener,
            principal="User:ANONYMOUS",
        )
        answer = HANDLERS[kind](kind.decode(request.encode(version), version), context)
        if isawaitable(answer):
            answer = await answer
        response = getattr(m, kind.__name__.replace("Request", "Response"))
        return response.decode(answer.encode(version), version)

    async def join(self, version: int, **values: Any) -> Any:
        request = m.JoinGroupRequest(
            **{
                "group_id": "g",
                "session_timeout_ms": 10_000,
                "rebalance_timeout_ms": 60_000,
                "protocol_type": "consumer",
                "protocols": [m.JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=subscription("t"))],
                **values,
            }
        )
        return await self.send(request, version)

    async def member(self, group: str = "g", **values: Any) -> str:
        """The one member of a stable group in generation 1."""
        joined = await self.join(3, group_id=group, **values)
        assert joined.error_code == NONE
        assignments = [m.SyncGroupRequest.SyncGroupRequestAssignment(member_id=joined.member_id, assignment=b"all")]
        request = m.SyncGroupRequest(
            group_id=group, generation_id=1, member_id=joined.member_id, assignments=assignments
        )
        assert (await self.send(request, 3)).error_code == NONE
        member_id = joined.member_id
        assert isinstance(member_id, str)
        return member_id

    async def commit(self, offset: int, version: int = 9, **values: Any) -> list[int]:
        """Error codes of partitions 0 and 9 of "t", and of partition 0 of an unknown topic."""
        topic = m.OffsetCommitRequest.OffsetCommitRequestTopic
        partition = m.OffsetCommitRequest.OffsetCommitRequestPartition
        request = m.OffsetCommitRequest(
            **{
                "group_id": "g",
                "topics": [
                    topic(
                        name="t",
                        topic_id=self.bench.controller.state.topics["t"].topic_id,
                        partitions=[
                            partition(partition_index=0, committed_offset=offset, committed_metadata="m"),
                            partition(partition_index=9, committed_offset=offset),
                        ],
                    ),
                    topic(name="unknown", topic_id=b"?" * 16, partitions=[partition(partition_index=0)]),
                ],
                **values,
            }
        )
        answer = await self.send(request, version)
        assert [one.name for one in answer.topics] == (["t", "unknown"] if version < 10 else ["", ""])
        return [one.error_code for topic in answer.topics for one in topic.partitions]


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    async with Tasks() as tasks:
        bench = Bench(tasks)
        await bench.open()
        yield Client(bench)
        bench.groups.stop()


# -- FindCoordinator


@versions(ApiKey.FIND_COORDINATOR)
async def test_find_coordinator(client: Client, version: int) -> None:
    if version >= 4:
        answer = await client.send(m.FindCoordinatorRequest(coordinator_keys=["g", "h"]), version, "OTHER")
        found = [(one.key, one.error_code, one.node_id, one.host, one.port) for one in answer.coordinators]
        assert found == [("g", NONE, 1, "elsewhere", 9093), ("h", NONE, 1, "elsewhere", 9093)]
    else:
        answer = await client.send(m.FindCoordinatorRequest(key="g"), version)
        assert (answer.error_code, answer.node_id, answer.host, answer.port) == (NONE, 1, "localhost", 9092)


@versions(ApiKey.FIND_COORDINATOR, 1)
@pytest.mark.parametrize("key_type", [2, 7, -1])
async def test_find_other_coordinators(client: Client, version: int, key_type: int) -> None:
    keys: dict[str, Any] = {"coordinator_keys": ["x"]} if version >= 4 else {"key": "x"}
    answer = await client.send(m.FindCoordinatorRequest(key_type=key_type, **keys), version)
    error = answer.coordinators[0].error_code if version >= 4 else answer.error_code
    assert error == ErrorCode.INVALID_REQUEST


async def test_first_question_creates_the_topic(client: Client) -> None:
    bench = client.bench
    bench.controller.state.remove("__consumer_offsets")
    bench.controller.refuse = KafkaError(ErrorCode.NOT_CONTROLLER, "refused by the test")
    request = m.FindCoordinatorRequest(coordinator_keys=["g"])
    refused = await client.send(request, 4)
    assert refused.coordinators[0].error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE
    bench.controller.refuse = None
    answers = await asyncio.gather(*(client.send(request, 4) for _ in range(5)))
    assert [one.coordinators[0].error_code for one in answers] == [NONE] * 5
    assert len(bench.controller.asked) == 2, "one creation for all who ask together"
    command = bench.controller.asked[1]
    assert (command.name, command.partitions) == ("__consumer_offsets", 1)
    assert dict(command.configs)["cleanup.policy"] == "compact"


async def test_coordinator_without_leader(client: Client) -> None:
    state = client.bench.controller.state
    leadership = state.logs[state.topics["__consumer_offsets"].log_ids[0]]
    leadership.status = "recovering"
    answer = await client.send(m.FindCoordinatorRequest(coordinator_keys=["g"]), 6)
    assert answer.coordinators[0].error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE
    leadership.status, leadership.leader_node = "open", 9
    answer = await client.send(m.FindCoordinatorRequest(key="g"), 0)
    assert answer.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE


# -- JoinGroup, SyncGroup


@versions(ApiKey.JOIN_GROUP)
async def test_join_group(client: Client, version: int) -> None:
    first = await client.join(version)
    if version >= 4:
        assert first.error_code == ErrorCode.MEMBER_ID_REQUIRED
        assert (first.generation_id, first.protocol_name, first.leader) == (-1, None if version >= 7 else "", "")
        first = await client.join(version, member_id=first.member_id)
    assert first.error_code == NONE
    assert first.member_id.startswith("client-")
    assert (first.generation_id, first.protocol_name, first.leader) == (1, "range", first.member_id)
    assert first.protocol_type == ("consumer" if version >= 7 else None)
    assert [(one.member_id, one.metadata) for one in first.members] == [(first.member_id, subscription("t"))]
    member = client.bench.groups.partitions[0].shard.groups["g"].members[first.member_id]
    assert member.rebalance_timeout_ms == (10_000 if version == 0 else 60_000)
    assert member.client_host == "/10.0.0.1"


@versions(ApiKey.JOIN_GROUP, 5)
async def test_join_static_member(client: Client, version: int) -> None:
    first = await client.join(version, group_instance_id="i")
    assert first.error_code == NONE
    assert [one.group_instance_id for one in first.members] == ["i"]
    assignments = [m.SyncGroupRequest.SyncGroupRequestAssignment(member_id=first.member_id, assignment=b"x")]
    request = m.SyncGroupRequest(
        group_id="g", generation_id=1, member_id=first.member_id, group_instance_id="i", assignments=assignments
    )
    assert (await client.send(request, 3)).assignment == b"x"
    again = await client.join(version, group_instance_id="i")
    assert (again.error_code, again.generation_id) == (NONE, 1)
    assert again.member_id != first.member_id
    assert again.skip_assignment == (version >= 9)
    assert (again.leader == again.member_id) == (version >= 9)
    fenced = await client.join(version, group_instance_id="i", member_id=first.member_id)
    assert fenced.error_code == ErrorCode.FENCED_INSTANCE_ID


@versions(ApiKey.JOIN_GROUP)
async def test_join_refusals(client: Client, version: int) -> None:
    assert (await client.join(version, group_id="")).error_code == ErrorCode.INVALID_GROUP_ID
    assert (await client.join(version, session_timeout_ms=1)).error_code == ErrorCode.INVALID_SESSION_TIMEOUT
    unknown = await client.join(version, member_id="nobody")
    assert (unknown.error_code, unknown.member_id) == (ErrorCode.UNKNOWN_MEMBER_ID, "nobody")
    assert (await client.join(version, protocols=[])).error_code == ErrorCode.INCONSISTENT_GROUP_PROTOCOL


@versions(ApiKey.SYNC_GROUP)
async def test_sync_group(client: Client, version: int) -> None:
    joined = await client.join(3)
    assignments = [m.SyncGroupRequest.SyncGroupRequestAssignment(member_id=joined.member_id, assignment=b"x")]
    values = {"group_id": "g", "generation_id": 1, "member_id": joined.member_id, "assignments": assignments}
    if version >= 5:
        missing = await client.send(m.SyncGroupRequest(**values, protocol_type="consumer"), version)
        assert missing.error_code == ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        wrong = await client.send(
            m.SyncGroupRequest(**values, protocol_type="consumer", protocol_name="sticky"), version
        )
        assert wrong.error_code == ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        values |= {"protocol_type": "consumer", "protocol_name": "range"}
    answer = await client.send(m.SyncGroupRequest(**values), version)
    assert (answer.error_code, answer.assignment) == (NONE, b"x")
    assert (answer.protocol_type, answer.protocol_name) == (("consumer", "range") if version >= 5 else (None, None))
    stale = await client.send(m.SyncGroupRequest(**(values | {"generation_id": 0})), version)
    assert stale.error_code == ErrorCode.ILLEGAL_GENERATION


# -- Heartbeat, LeaveGroup


@versions(ApiKey.HEARTBEAT)
async def test_heartbeat(client: Client, version: int) -> None:
    member_id = await client.member()
    for generation, name, error in (
        (1, member_id, NONE),
        (0, member_id, ErrorCode.ILLEGAL_GENERATION),
        (1, "nobody", ErrorCode.UNKNOWN_MEMBER_ID),
    ):
        request = m.HeartbeatRequest(group_id="g", generation_id=generation, member_id=name)
        assert (await client.send(request, version)).error_code == error


@versions(ApiKey.LEAVE_GROUP)
async def test_leave_group(client: Client, version: int) -> None:
    member_id = await client.member()
    if version >= 3:
        identity = m.LeaveGroupRequest.MemberIdentity
        request = m.LeaveGroupRequest(
            group_id="g", members=[identity(member_id="nobody"), identity(member_id=member_id)]
        )
        answer = await client.send(request, version)
        assert answer.error_code == NONE
        assert [(one.member_id, one.error_code) for one in answer.members] == [
            ("nobody", ErrorCode.UNKNOWN_MEMBER_ID),
            (member_id, NONE),
        ]
    else:
        unknown = await client.send(m.LeaveGroupRequest(group_id="g", member_id="nobody"), version)
        assert unknown.error_code == ErrorCode.UNKNOWN_MEMBER_ID
        assert (await client.send(m.LeaveGroupRequest(group_id="g", member_id=member_id), version)).error_code == NONE
    assert client.bench.groups.partitions[0].shard.groups["g"].members == {}


# -- DescribeGroups, ListGroups, DeleteGroups


@versions(ApiKey.DESCRIBE_GROUPS)
async def test_describe_groups(client: Client, version: int) -> None:
    member_id = await client.member()
    request = m.DescribeGroupsRequest(groups=["g", "unknown"], include_authorized_operations=version >= 3)
    known, unknown = (await client.send(request, version)).groups
    assert (known.error_code, known.group_state, known.protocol_type, known.protocol_data) == (
        NONE,
        "Stable",
        "consumer",
        "range",
    )
    one = known.members[0]
    assert (one.member_id, one.client_id, one.client_host) == (member_id, "client", "/10.0.0.1")
    assert (one.member_metadata, one.member_assignment) == (subscription("t"), b"all")
    assert known.authorized_operations == (3400 if version >= 3 else -(2**31))
    assert unknown.group_state == "Dead"
    if version >= 6:
        assert (unknown.error_code, unknown.error_message) == (
            ErrorCode.GROUP_ID_NOT_FOUND,
            "Group unknown not found.",
        )
    else:
        assert unknown.error_code == NONE


@versions(ApiKey.LIST_GROUPS)
async def test_list_groups(client: Client, version: int) -> None:
    await client.member()
    await client.commit(1, group_id="lone")

    async def listed(**filters: list[str]) -> list[tuple[str, str, str, str]]:
        answer = await client.send(m.ListGroupsRequest(**filters), version)
        assert answer.error_code == NONE
        return [(one.group_id, one.protocol_type, one.group_state, one.group_type) for one in answer.groups]

    state = "Stable" if version >= 4 else ""
    kind = "classic" if version >= 5 else ""
    member = ("g", "consumer", state, kind)
    assert member in await listed()
    assert len(await listed()) == 2
    if version >= 4:
        assert await listed(states_filter=["sTaBlE", "Dead"]) == [member]
    if version >= 5:
        assert await listed(types_filter=["Classic"], states_filter=["Stable"]) == [member]
        assert await listed(types_filter=["consumer", "nonsense"]) == []


@versions(ApiKey.DELETE_GROUPS)
async def test_delete_groups(client: Client, version: int) -> None:
    await client.member()
    await client.commit(1, group_id="lone")
    answer = await client.send(m.DeleteGroupsRequest(groups_names=["lone", "g", "unknown"]), version)
    assert [(one.group_id, one.error_code) for one in answer.results] == [
        ("lone", NONE),
        ("g", ErrorCode.NON_EMPTY_GROUP),
        ("unknown", ErrorCode.GROUP_ID_NOT_FOUND),
    ]


# -- OffsetCommit, OffsetFetch, OffsetDelete


@versions(ApiKey.OFFSET_COMMIT)
async def test_offset_commit(client: Client, version: int) -> None:
    unknown = ErrorCode.UNKNOWN_TOPIC_ID if version >= 10 else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    missing = [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, unknown]
    assert await client.commit(7, version) == [NONE, *missing]
    member_id = await client.member()
    mine = {"member_id": member_id, "generation_id_or_member_epoch": 1}
    assert await client.commit(8, version, **mine) == [NONE, *missing]
    assert await client.commit(9, version) == [ErrorCode.UNKNOWN_MEMBER_ID, *missing]
    stale = mine | {"generation_id_or_member_epoch": 0}
    assert await client.commit(9, version, **stale) == [ErrorCode.ILLEGAL_GENERATION, *missing]
    refused = ErrorCode.GROUP_ID_NOT_FOUND if version >= 9 else ErrorCode.ILLEGAL_GENERATION
    assert await client.commit(9, version, group_id="none", **mine) == [refused, *missing]
    saved = client.bench.groups.partitions[0].shard.offsets.get("g", "t", 0)
    assert saved is not None
    assert (saved.offset, saved.metadata, saved.commit_timestamp_ms) == (8, "m", client.bench.clock.wall_ms)
    assert saved.topic_id == client.bench.controller.state.topics["t"].topic_id


@versions(ApiKey.OFFSET_COMMIT, 2, 4)
async def test_offset_commit_with_retention(client: Client, version: int) -> None:
    await client.commit(7, version, retention_time_ms=5000)
    saved = client.bench.groups.partitions[0].shard.offsets.get("g", "t", 0)
    assert saved is not None
    assert saved.expire_timestamp_ms == client.bench.clock.wall_ms + 5000


async def test_offset_commit_of_nothing_that_exists(client: Client) -> None:
    topic = m.OffsetCommitRequest.OffsetCommitRequestTopic(name="unknown", partitions=[])
    answer = await client.send(m.OffsetCommitRequest(group_id="g", topics=[topic]), 9)
    assert [one.name for one in answer.topics] == ["unknown"]
    assert (await client.send(m.OffsetCommitRequest(group_id="g"), 9)).topics == []


@versions(ApiKey.OFFSET_FETCH, None, 7)
async def test_offset_fetch_of_one_group(client: Client, version: int) -> None:
    await client.commit(7)
    topic = m.OffsetFetchRequest.OffsetFetchRequestTopic
    request = m.OffsetFetchRequest(group_id="g", topics=[topic(name="t", partition_indexes=[0, 1])])
    answer = await client.send(request, version)
    assert answer.error_code == NONE
    assert [
        (one.partition_index, one.committed_offset, one.metadata, one.error_code) for one in answer.topics[0].partitions
    ] == [(0, 7, "m", NONE), (1, -1, "", NONE)]
    if version >= 2:
        everything = await client.send(m.OffsetFetchRequest(group_id="g", topics=None), version)
        assert [(one.name, len(one.partitions)) for one in everything.topics] == [("t", 1)]
    client.bench.groups.close(0)
    refused = await client.send(request, version)
    if version >= 2:
        assert (refused.error_code, refused.topics) == (ErrorCode.NOT_COORDINATOR, [])
    else:
        errors = [one.error_code for one in refused.topics[0].partitions]
        assert errors == [ErrorCode.NOT_COORDINATOR, ErrorCode.NOT_COORDINATOR]


@versions(ApiKey.OFFSET_FETCH, 8)
async def test_offset_fetch_of_many_groups(client: Client, version: int) -> None:
    await client.commit(7)
    await client.commit(8, group_id="h")
    state = client.bench.controller.state
    gone = state.add("gone", 1)
    partition = m.OffsetCommitRequest.OffsetCommitRequestPartition(partition_index=0, committed_offset=3)
    topic = m.OffsetCommitRequest.OffsetCommitRequestTopic(name="gone", partitions=[partition])
    await client.send(m.OffsetCommitRequest(group_id="h", topics=[topic]), 9)
    state.remove("gone")
    asked = m.OffsetFetchRequest.OffsetFetchRequestTopics
    request = m.OffsetFetchRequest(
        groups=[
            m.OffsetFetchRequest.OffsetFetchRequestGroup(
                group_id="g",
                topics=[
                    asked(name="t", topic_id=state.topics["t"].topic_id, partition_indexes=[1, 0]),
                    asked(name="gone", topic_id=gone.topic_id, partition_indexes=[0]),
                ],
            ),
            m.OffsetFetchRequest.OffsetFetchRequestGroup(group_id="h", topics=None),
            m.OffsetFetchRequest.OffsetFetchRequestGroup(group_id="unknown", topics=None),
        ],
        require_stable=True,
    )
    g, h, unknown = (await client.send(request, version)).groups
    assert [g.group_id, h.group_id, unknown.group_id] == ["g", "h", "unknown"]
    assert [one.committed_offset for one in g.topics[0].partitions] == [-1, 7]
    error = ErrorCode.UNKNOWN_TOPIC_ID if version >= 10 else NONE
    assert [(one.committed_offset, one.error_code) for one in g.topics[1].partitions] == [(-1, error)]
    if version >= 10:
        assert [one.topic_id for one in h.topics] == [state.topics["t"].topic_id]
    else:
        assert [one.name for one in h.topics] == ["gone", "t"]
    assert (unknown.error_code, unknown.topics) == (NONE, [])
    client.bench.groups.close(0)
    refused = await client.send(request, version)
    assert [(one.error_code, one.topics) for one in refused.groups] == [(ErrorCode.NOT_COORDINATOR, [])] * 3


async def test_offset_of_a_topic_of_another_id_is_not_seen(client: Client) -> None:
    await client.commit(7)
    client.bench.controller.state.remove("t")
    client.bench.controller.state.add("t", 4)
    topic = m.OffsetFetchRequest.OffsetFetchRequestTopic(name="t", partition_indexes=[0])
    answer = await client.send(m.OffsetFetchRequest(group_id="g", topics=[topic]), 7)
    assert answer.topics[0].partitions[0].committed_offset == -1


@versions(ApiKey.OFFSET_DELETE)
async def test_offset_delete(client: Client, version: int) -> None:
    client.bench.controller.state.add("u", 1)
    partition = m.OffsetDeleteRequest.OffsetDeleteRequestPartition
    topic = m.OffsetDeleteRequest.OffsetDeleteRequestTopic
    request = m.OffsetDeleteRequest(
        group_id="g",
        topics=[
            topic(name="t", partitions=[partition(partition_index=0), partition(partition_index=9)]),
            topic(name="u", partitions=[partition(partition_index=0)]),
            topic(name="unknown", partitions=[partition(partition_index=0)]),
        ],
    )
    assert (await client.send(request, version)).error_code == ErrorCode.GROUP_ID_NOT_FOUND
    # Kafka looks for the group before the partitions.
    unknown = m.OffsetDeleteRequest(group_id="g", topics=request.topics[2:])
    assert (await client.send(unknown, version)).error_code == ErrorCode.GROUP_ID_NOT_FOUND
    await client.commit(7)
    await client.member()
    answer = await client.send(request, version)
    assert answer.error_code == NONE
    missing = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert [[one.error_code for one in topic.partitions] for topic in answer.topics] == [
        [ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC, missing],
        [NONE],
        [missing],
    ]
    nothing = m.OffsetDeleteRequest(group_id="g", topics=[topic(name="unknown", partitions=[])])
    assert (await client.send(nothing, version)).error_code == NONE


def test_every_version_is_served() -> None:
    """What the tests above cover, and what the dispatch table has to say."""
    assert {key: (APIS[key].min_version, APIS[key].max_version) for key in APIS if key in range(8, 17)} | {
        key: (APIS[key].min_version, APIS[key].max_version) for key in (42, 47)
    } == {
        8: (2, 10),
        9: (1, 10),
        10: (0, 6),
        11: (0, 9),
        12: (0, 4),
        13: (0, 5),
        14: (0, 5),
        15: (0, 6),
        16: (0, 5),
        42: (0, 2),
        47: (0, 0),
    }
