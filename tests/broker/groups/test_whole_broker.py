"""Groups on a whole broker: the real log, WAL, sealing, controller and bucket."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from broker.coordination import runtime
from broker.groups.coordinator import OFFSETS_TOPIC
from broker.node import Broker
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.raw_client import RawClient
from tests.support.waiting import until
from tests.support.whole_broker import whole_broker

SETTINGS = {"tidelog_seal_ms": 50, "offsets_topic_num_partitions": 2, "group_initial_rebalance_delay_ms": 0}


async def create(client: RawClient, name: str, partitions: int = 1) -> None:
    topic = m.CreateTopicsRequest.CreatableTopic(name=name, num_partitions=partitions, replication_factor=1)
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
    assert answer.topics[0].error_code == 0, answer


async def ready(client: RawClient, group: str) -> None:
    """The group's coordinator is known and loaded."""
    while True:
        found = await client.ask(ApiKey.FIND_COORDINATOR, 4, m.FindCoordinatorRequest(coordinator_keys=[group]))
        if found.coordinators[0].error_code == 0 and (await fetch(client, group))[0] == 0:
            return
        await asyncio.sleep(0.01)


async def commit(client: RawClient, group: str, topic: str, offsets: dict[int, int]) -> set[int]:
    asked = m.OffsetCommitRequest.OffsetCommitRequestTopic(
        name=topic,
        partitions=[
            m.OffsetCommitRequest.OffsetCommitRequestPartition(
                partition_index=partition, committed_offset=offset, committed_metadata="x" * 100
            )
            for partition, offset in offsets.items()
        ],
    )
    answer = await client.ask(ApiKey.OFFSET_COMMIT, 9, m.OffsetCommitRequest(group_id=group, topics=[asked]))
    return {one.error_code for one in answer.topics[0].partitions}


async def fetch(client: RawClient, group: str) -> tuple[int, dict[tuple[str, int], int]]:
    asked = m.OffsetFetchRequest.OffsetFetchRequestGroup(group_id=group, topics=None)
    answer = (await client.ask(ApiKey.OFFSET_FETCH, 9, m.OffsetFetchRequest(groups=[asked]))).groups[0]
    found = {
        (topic.name, one.partition_index): one.committed_offset for topic in answer.topics for one in topic.partitions
    }
    return answer.error_code, found


def starts(broker: Broker) -> list[int]:
    return [log.start for log in broker.logs.logs if log.topic == OFFSETS_TOPIC]


async def test_rewritten_log_survives_with_the_bucket_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 20_000)
    expected = {}
    async with (
        whole_broker(tmp_path / "data", **SETTINGS) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await create(client, "t", 20)
        for group in ("g", "h"):
            await ready(client, group)
        round_number = 0
        while min(starts(broker)) == 0:
            round_number += 1
            for group in ("g", "h"):
                assert await commit(client, group, "t", {p: round_number + p for p in range(20)}) == {0}
        assert round_number < 200
        expected = {("t", partition): round_number + partition for partition in range(20)}
        assert await fetch(client, "g") == (0, expected)
    shutil.rmtree(tmp_path / "data" / "wal")
    async with (
        whole_broker(tmp_path / "data", **SETTINGS) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        for group in ("g", "h"):
            await ready(client, group)
            assert await fetch(client, group) == (0, expected)
        assert min(starts(broker)) > 0
        for shard in broker.services.groups.partitions.values():
            assert shard.bytes_since_rewrite < 20_000 * 4


async def test_members_survive_a_restart(tmp_path: Path) -> None:
    join = m.JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        protocol_type="consumer",
        protocols=[m.JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=b"")],
    )
    beat = m.HeartbeatRequest(group_id="g", generation_id=1)
    async with (
        whole_broker(tmp_path / "data", **SETTINGS) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await ready(client, "g")
        joined = await client.ask(ApiKey.JOIN_GROUP, 3, join)
        assert (joined.error_code, joined.generation_id) == (0, 1)
        beat.member_id = joined.member_id
        sync = m.SyncGroupRequest(group_id="g", generation_id=1, member_id=joined.member_id)
        assert (await client.ask(ApiKey.SYNC_GROUP, 3, sync)).error_code == 0
        assert (await client.ask(ApiKey.HEARTBEAT, 4, beat)).error_code == 0
        # A join that waits for others does not hold up the stop.
        async with RawClient(broker.listeners[0].port) as waiting:
            waiting.send(ApiKey.JOIN_GROUP, 3, join)
            shard = broker.services.groups.partitions[broker.services.groups.partition_for("g")].shard
            await until(lambda: shard.groups["g"].joining_count)
            broker.services.groups.stop()
            _, answer = await waiting.receive(ApiKey.JOIN_GROUP, 3)
            assert answer.error_code == ErrorCode.NOT_COORDINATOR
    async with (
        whole_broker(tmp_path / "data", **SETTINGS) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await ready(client, "g")
        assert (await client.ask(ApiKey.HEARTBEAT, 4, beat)).error_code == 0


async def test_offsets_of_a_deleted_topic_go(tmp_path: Path) -> None:
    async with (
        whole_broker(tmp_path / "data", **SETTINGS) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await create(client, "t")
        await create(client, "u")
        await ready(client, "g")
        assert await commit(client, "g", "t", {0: 1}) == {0}
        assert await commit(client, "g", "u", {0: 2}) == {0}
        gone = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(name="t")])
        assert (await client.ask(ApiKey.DELETE_TOPICS, 6, gone)).responses[0].error_code == 0
        while (await fetch(client, "g"))[1] != {("u", 0): 2}:
            await asyncio.sleep(0.01)
