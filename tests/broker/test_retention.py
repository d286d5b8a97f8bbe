"""Retention and deletion end to end: what is too old or too much leaves the log, then the bucket."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from broker.node import Broker
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.raw_client import RawClient, batch_of
from tests.support.whole_broker import whole_broker

OLD_MS = 1_000_000_000_000


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that background work makes true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


async def create(client: RawClient, name: str, configs: dict[str, str]) -> None:
    topic = m.CreateTopicsRequest.CreatableTopic(
        name=name,
        num_partitions=1,
        replication_factor=1,
        configs=[m.CreateTopicsRequest.CreatableTopicConfig(name=key, value=value) for key, value in configs.items()],
    )
    answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
    assert answer.topics[0].error_code == 0, answer


def segments(broker: Broker) -> int:
    """Objects that hold records."""
    return sum(path.is_file() for path in (Path(broker.settings.tidelog_data_dir) / "bucket" / "segments").rglob("*-*"))


async def test_old_records_leave_log_and_bucket(tmp_path: Path) -> None:
    async with (
        whole_broker(
            tmp_path / "data",
            tidelog_seal_ms=20,
            log_retention_check_interval_ms=50,
            tidelog_delete_grace_ms=0,
        ) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await create(client, "t", {"retention.ms": "60000"})
        log = broker.logs.find["t", 0]
        for _ in range(3):
            await client.produce("t", batch_of(b"old", timestamp=OLD_MS))
            await until(lambda: log.committed_end == log.end, "sealed")
        await client.produce("t", batch_of(b"new", timestamp=broker.clock.now_ms()))
        await until(lambda: log.start == 3, "the old records are gone")
        await until(lambda: segments(broker) == 1, "their objects are gone")
        refused = await client.fetch("t", 0)
        assert refused.error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        kept = await client.fetch("t", 3)
        assert (kept.error_code, kept.log_start_offset, kept.high_watermark) == (0, 3, 4)


async def test_too_many_bytes_leave_from_the_head(tmp_path: Path) -> None:
    async with (
        whole_broker(
            tmp_path / "data",
            tidelog_seal_ms=20,
            log_retention_check_interval_ms=50,
            tidelog_delete_grace_ms=0,
        ) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await create(client, "t", {"retention.bytes": "2500", "retention.ms": "-1"})
        log = broker.logs.find["t", 0]
        for _ in range(6):
            await client.produce("t", batch_of(b"x" * 1000, timestamp=OLD_MS))
            await until(lambda: log.committed_end == log.end, "sealed")
        state = broker.controller.state
        await until(lambda: state.bytes(log.log_id) < 2500 + 1100, "what is not needed to keep 2,500 bytes is gone")
        assert state.bytes(log.log_id) >= 2500
        await until(lambda: segments(broker) == 6 - log.start, "their objects are gone")


async def test_a_deleted_topic_leaves_the_bucket_and_its_name_is_free(tmp_path: Path) -> None:
    async with (
        whole_broker(tmp_path / "data", tidelog_seal_ms=20, tidelog_delete_grace_ms=0) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        await create(client, "t", {})
        log = broker.logs.find["t", 0]
        await client.produce("t", batch_of(b"value"))
        await until(lambda: log.committed_end == log.end, "sealed")
        gone = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(name="t")])
        assert (await client.ask(ApiKey.DELETE_TOPICS, 6, gone)).responses[0].error_code == 0
        assert (await client.fetch("t", 0)).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        await until(lambda: segments(broker) == 0, "its objects are gone")
        await until(lambda: not broker.controller.state.topic_table.deleted, "its name is free")
        await create(client, "t", {})
        assert (await client.fetch("t", 0)).high_watermark == 0
