"""Merging end to end: many small seals become few ranges and a manifest, and every record stays readable."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.node import Broker
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from protocol.records import iterate_batches
from tests.support.raw_client import RawClient, batch_of
from tests.support.whole_broker import whole_broker

STAMP = 1_700_000_000_000
SETTINGS: dict[str, Any] = {
    "tidelog_seal_ms": 10,
    "tidelog_merge_fan_out": 2,
    "tidelog_merge_object_bytes": 64 << 10,
    "tidelog_merge_check_interval_ms": 10,
    "tidelog_log_ranges_head_max": 4,
    "tidelog_manifest_ranges_max": 6,
    "tidelog_merge_shared_ms": 200,
    "tidelog_delete_grace_ms": 0,
    "tidelog_tail_keep_bytes": 0,
    "tidelog_orphan_check_interval_ms": 50,
    "log_retention_check_interval_ms": 50,
    "log_retention_ms": -1,
}


async def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for a condition that background work makes true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


async def create(client: RawClient, *names: str) -> None:
    topics = [m.CreateTopicsRequest.CreatableTopic(name=name, num_partitions=1, replication_factor=1) for name in names]
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=topics))
    assert all(topic.error_code == 0 for topic in answer.topics), answer


async def write(broker: Broker, client: RawClient, count: int, size: int = 20) -> None:
    """So many seals, each with a record of both topics."""
    logs = [broker.logs.find[name, 0] for name in ("a", "b")]
    for _ in range(count):
        for log in logs:
            value = b"%s %d" % (log.topic.encode(), log.end)
            await client.produce(log.topic, batch_of(value.ljust(size), timestamp=STAMP + log.end))
        await until(lambda: all(log.committed_end == log.end for log in logs), "sealed")


async def read_all(client: RawClient, topic: str, offset: int) -> list[int]:
    """Base offsets of what is read from the offset to the end."""
    found: list[int] = []
    while True:
        part = await client.fetch(topic, offset, max_wait_ms=1)
        assert part.error_code == 0
        if not part.records:
            return found
        for _, header in iterate_batches(part.records):
            found.append(header.base_offset)
            offset = header.next_offset


def objects(broker: Broker, kind: str) -> int:
    root = Path(broker.settings.tidelog_data_dir) / "bucket" / kind
    return sum(path.is_file() for path in root.rglob("*")) if root.exists() else 0


def at_rest(broker: Broker) -> bool:
    state = broker.controller.state
    heads = [log.range_count for log in state.logs.values()]
    return max(heads) <= 4 and not state.jobs and not state.objects.doomed and not state.job_table.spent


async def list_offset(client: RawClient, topic: str, timestamp: int) -> int:
    asked = m.ListOffsetsRequest.ListOffsetsTopic(
        name=topic,
        partitions=[m.ListOffsetsRequest.ListOffsetsPartition(partition_index=0, timestamp=timestamp)],
    )
    answer = await client.ask(ApiKey.LIST_OFFSETS, 7, m.ListOffsetsRequest(replica_id=-1, topics=[asked]))
    return int(answer.topics[0].partitions[0].offset)


async def test_few_ranges_are_left_and_every_record_is_read(tmp_path: Path) -> None:
    count = 80
    async with whole_broker(tmp_path / "data", **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        await create(client, "a", "b")
        await write(broker, client, count, size=9_000)
        await until(lambda: at_rest(broker), "merging comes to rest")
        state = broker.controller.state
        log = state.logs[broker.logs.find["a", 0].log_id]
        assert log.manifests and log.end == count
        assert log.manifests[0].base == 0 and log.manifests[-1].end == log.row_base(0)
        for topic in ("a", "b"):
            assert await read_all(client, topic, 0) == list(range(count))
        for offset in (0, 1, 17, count - 1):
            assert await list_offset(client, "a", STAMP + offset) == offset
        assert await list_offset(client, "a", -3) == count - 1
        await until(lambda: objects(broker, "segments") <= 8, "inputs are gone")
        held = sum(len(pointer) > 0 for one in state.logs.values() for pointer in one.manifests)
        assert objects(broker, "manifests") == held
        # The start moves into a manifest: rows below it go, and their objects.
        before = objects(broker, "merged")
        gone = m.DeleteRecordsRequest.DeleteRecordsTopic(
            name="a", partitions=[m.DeleteRecordsRequest.DeleteRecordsPartition(partition_index=0, offset=40)]
        )
        answer = await client.ask(ApiKey.DELETE_RECORDS, 2, m.DeleteRecordsRequest(topics=[gone], timeout_ms=5_000))
        assert answer.topics[0].partitions[0].low_watermark == 40
        await until(lambda: objects(broker, "merged") < before and at_rest(broker), "what lies below is deleted")
        assert (await client.fetch("a", 39)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        assert await read_all(client, "a", 40) == list(range(40, count))
        assert broker.merging.jobs > 10 and not broker.merging.alarms and not broker.services.cold.alarms
    async with whole_broker(tmp_path / "data", **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        assert await read_all(client, "a", 40) == list(range(40, count))
        assert await read_all(client, "b", 0) == list(range(count))
        for topic in ("a", "b"):
            deleted = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(name=topic)])
            assert (await client.ask(ApiKey.DELETE_TOPICS, 6, deleted)).responses[0].error_code == 0
        await until(
            lambda: not any(objects(broker, kind) for kind in ("segments", "merged", "manifests")), "all is deleted"
        )


async def test_retention_takes_rows_of_manifests(tmp_path: Path) -> None:
    settings = {**SETTINGS, "log_retention_bytes": 200_000}
    async with whole_broker(tmp_path / "data", **settings) as broker, RawClient(broker.listeners[0].port) as client:
        await create(client, "a", "b")
        await write(broker, client, 80, size=9_000)
        state = broker.controller.state
        log = state.logs[broker.logs.find["a", 0].log_id]
        await until(lambda: at_rest(broker) and log.size < 200_000 + 70_000, "retention has done its part")
        assert log.size >= 200_000 and log.start > 0
        assert await read_all(client, "a", log.start) == list(range(log.start, 80))


async def test_idempotence_survives_merging(tmp_path: Path) -> None:
    async with whole_broker(tmp_path / "data", **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        await create(client, "a", "b")
        batch = batch_of(b"once", producer_id=7, producer_epoch=0, base_sequence=0)
        await client.produce("a", batch)
        log_id = broker.logs.find["a", 0].log_id
        await until(lambda: broker.controller.state.logs[log_id].range_count == 1, "sealed")
        gone = m.DeleteRecordsRequest.DeleteRecordsTopic(
            name="a", partitions=[m.DeleteRecordsRequest.DeleteRecordsPartition(partition_index=0, offset=1)]
        )
        await client.ask(ApiKey.DELETE_RECORDS, 2, m.DeleteRecordsRequest(topics=[gone], timeout_ms=5_000))
        assert broker.controller.state.logs[log_id].has_state_row
    async with whole_broker(tmp_path / "data", **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        part = await client.produce("a", batch)
        assert (part.error_code, part.base_offset) == (0, 0)
        assert broker.counters.duplicates == 1
        await write(broker, client, 10)
    async with whole_broker(tmp_path / "data", **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        await until(lambda: at_rest(broker), "merged")
        assert broker.controller.state.logs[log_id].row_level(0) > 0
    async with whole_broker(tmp_path / "data", **SETTINGS) as broker, RawClient(broker.listeners[0].port) as client:
        part = await client.produce("a", batch)
        assert (part.error_code, part.base_offset) == (0, 0), "the merged range carries the producer state"


async def test_damage_stays_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged input is an alarm; it is never merged, and does not hold up the other partitions of its job."""
    settings = {**SETTINGS, "tidelog_merge_fan_out": 4, "tidelog_merge_shared_ms": 3_600_000}
    async with whole_broker(tmp_path / "data", **settings) as broker, RawClient(broker.listeners[0].port) as client:
        await create(client, "a", "b")
        await write(broker, client, 3, size=1_000)
        row = broker.controller.state.range_at(broker.logs.find["a", 0].log_id, 1)
        path = Path(broker.settings.tidelog_data_dir) / "bucket" / row.key
        data = bytearray(path.read_bytes())
        data[row.range.position + 70] ^= 1
        path.write_bytes(data)
        await write(broker, client, 1)
        logs = {log.topic: log for log in broker.controller.state.logs.values()}
        await until(lambda: broker.merging.alarms > 0 and logs["b"].range_count == 1, "b is merged, a is not")
        assert logs["a"].range_count == 4
        assert "ALARM: merge job" in caplog.text
