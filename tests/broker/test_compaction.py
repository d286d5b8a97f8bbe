"""Compaction end to end: a broker, its bucket, and what clients see of a topic whose records are superseded."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker.node import Broker
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from protocol.records import Record, build_batch, iterate_batches, parse_header, records
from storage.segment import describe_segment
from tests.support.raw_client import RawClient
from tests.support.whole_broker import whole_broker

STAMP = 1_700_000_000_000
SETTINGS: dict[str, Any] = {
    "tidelog_seal_ms": 10,
    "tidelog_merge_check_interval_ms": 10,
    "tidelog_merge_fan_out": 3,
    "tidelog_delete_grace_ms": 0,
    "tidelog_tail_keep_bytes": 0,
    "tidelog_orphan_check_interval_ms": 50,
    "tidelog_log_ranges_head_max": 6,
    "log_retention_check_interval_ms": 50,
    "log_cleaner_backoff_ms": 10,
}
EAGER = {
    "cleanup.policy": "compact",
    "segment.ms": "1",
    "min.cleanable.dirty.ratio": "0.01",
    "delete.retention.ms": "0",
    "retention.ms": "-1",
}


async def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for a condition that background work makes true."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(what) from None


class Topic:
    """One partition on a broker, seen through a client."""

    def __init__(self, broker: Broker, client: RawClient, name: str) -> None:
        self.broker = broker
        self.client = client
        self.name = name
        self.model: dict[bytes, tuple[int, bytes]] = {}

    @property
    def log(self) -> Any:
        return self.broker.logs.find[self.name, 0]

    @property
    def state(self) -> Any:
        return self.broker.controller.state.logs[self.log.log_id]

    @property
    def clean_end(self) -> int:
        return int(self.broker.controller.state.compactions.clean.get(self.log.log_id, 0))

    async def create(self, **configs: str) -> None:
        values = EAGER | {key.replace("_", "."): value for key, value in configs.items()}
        pairs = [m.CreateTopicsRequest.CreatableTopicConfig(name=key, value=value) for key, value in values.items()]
        topic = m.CreateTopicsRequest.CreatableTopic(
            name=self.name, num_partitions=1, replication_factor=1, configs=pairs
        )
        answer = await self.client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
        assert answer.topics[0].error_code == 0, answer
        await until(lambda: (self.name, 0) in self.broker.logs.find, "led")

    async def alter(self, **configs: str) -> None:
        item = m.IncrementalAlterConfigsRequest.AlterConfigsResource(
            resource_type=2,
            resource_name=self.name,
            configs=[
                m.IncrementalAlterConfigsRequest.AlterableConfig(
                    name=key.replace("_", "."), config_operation=0, value=value
                )
                for key, value in configs.items()
            ],
        )
        request = m.IncrementalAlterConfigsRequest(resources=[item], validate_only=False)
        answer = await self.client.ask(ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, request)
        assert answer.responses[0].error_code == 0, answer

    async def put(self, *pairs: tuple[bytes | None, bytes | None], codec: int = 0) -> int:
        """One batch, sealed at once; its error code."""
        base = self.log.end
        made = [(STAMP + base + at, key, value, ()) for at, (key, value) in enumerate(pairs)]
        answer = await self.client.produce(self.name, build_batch(made, codec=codec))
        if answer.error_code:
            return int(answer.error_code)
        assert answer.base_offset == base
        for at, (key, value) in enumerate(pairs):
            assert key is not None
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = (base + at, value)
        await until(lambda: self.log.committed_end == self.log.end, "sealed")
        return 0

    async def cleaned(self) -> None:
        """The log is clean up to its end."""
        await until(lambda: self.clean_end == self.log.end, f"{self.clean_end} of {self.log.end} is clean")
        await until(lambda: not self.broker.controller.state.compactions.open, "no pass is open")

    async def read(self, offset: int = 0) -> list[Record]:
        """Records from the offset to the end, as a consumer gets them."""
        found: list[Record] = []
        while offset < self.log.hw:
            part = await self.client.fetch(self.name, offset, max_wait_ms=1)
            assert part.error_code == 0
            assert part.records, f"nothing at {offset} of {self.log.hw}"
            for at, header in iterate_batches(part.records):
                batch = memoryview(part.records)[at : at + header.size]
                found += [record for record in records(batch, max_size=1 << 24) if record.offset >= offset]
                following = header.next_offset
            assert following > offset
            offset = following
        return found

    async def check(self) -> list[Record]:
        """A reader's map is the model's."""
        found = await self.read()
        seen: dict[bytes, tuple[int, bytes]] = {}
        for record in found:
            assert record.key is not None and record.timestamp == STAMP + record.offset
            if record.value is None:
                seen.pop(record.key, None)
            else:
                seen[record.key] = (record.offset, record.value)
        assert seen == self.model
        return found

    async def list_offset(self, timestamp: int) -> tuple[int, int]:
        asked = m.ListOffsetsRequest.ListOffsetsTopic(
            name=self.name,
            partitions=[m.ListOffsetsRequest.ListOffsetsPartition(partition_index=0, timestamp=timestamp)],
        )
        request = m.ListOffsetsRequest(replica_id=-1, topics=[asked])
        answer = (await self.client.ask(ApiKey.LIST_OFFSETS, 9, request)).topics[0].partitions[0]
        assert answer.error_code == 0
        return answer.offset, answer.timestamp


@asynccontextmanager
async def topic_on(path: Path, name: str = "t", **settings: Any) -> Any:
    async with (
        whole_broker(path / "data", **(SETTINGS | settings)) as broker,
        RawClient(broker.listeners[0].port) as client,
    ):
        yield Topic(broker, client, name)


def pairs(keys: Iterable[int], value: bytes) -> list[tuple[bytes | None, bytes | None]]:
    return [(b"key %d" % key, value) for key in keys]


async def test_the_last_value_of_every_key_is_left(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create()
        for number in range(30):
            await topic.put(*pairs(range(number % 7, 20, 3), b"%d" % number * 50), codec=number % 5)
        await topic.cleaned()
        found = await topic.check()
        assert len(found) == len(topic.model) == 20
        compacting = topic.broker.compacting
        assert compacting.passes and not compacting.alarms and compacting.bytes_written
        assert compacting.records_out < compacting.records_in
        state = topic.broker.controller.state
        assert topic.state.row_end(topic.state.range_count - 1) == topic.log.end
        for index in range(topic.state.range_count):
            report = await describe_segment(topic.broker.store, state.range_at(topic.log.log_id, index).key)
            assert report.problems == ()
        await until(lambda: not state.objects.doomed and not state.job_table.void, "what was replaced is deleted")


async def test_no_time_of_a_client_stops_it(tmp_path: Path) -> None:
    """Times before 1970, times that fit nowhere once they are counted from a delete horizon, and tombstones that are
    kept for ever."""
    async with topic_on(tmp_path, log_message_timestamp_after_max_ms=2**63 - 1) as topic:
        await topic.create(delete_retention_ms=str(2**63 - 1))
        for stamp in (-5, -(2**62), 2**62, -1):
            for key, value in ((b"k", b"v"), (b"gone", None)):
                made = [(stamp, key, value, ()), (stamp, b"%d" % stamp, None, ())]
                answer = await topic.client.produce(topic.name, build_batch(made))
                assert answer.error_code == 0
                await until(lambda: topic.log.committed_end == topic.log.end, "sealed")
        await topic.cleaned()
        left = [(record.offset, record.timestamp, record.key) for record in await topic.read()]
        stamps = (-5, -(2**62), 2**62, -1)
        lasts = [(4 * at + 3, stamp, b"%d" % stamp) for at, stamp in enumerate(stamps)]
        assert left == sorted([*lasts, (12, -1, b"k"), (14, -1, b"gone")])
        assert topic.broker.compacting.passes and not topic.broker.compacting.alarms


async def test_reads_of_offsets_that_are_gone(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create()
        await topic.put(*pairs([1, 2, 3], b"old"))
        await topic.put(*pairs([4], b"stays"))
        await topic.put(*pairs([1, 2, 3], b"new"))
        end = topic.log.end
        await topic.cleaned()
        left = [3, 4, 5, 6]
        for offset in range(end):
            found = await topic.read(offset)
            assert [record.offset for record in found] == [at for at in left if at >= offset], offset
        assert await topic.list_offset(-2) == (0, -1), "the start stays where it is"
        assert await topic.list_offset(-1) == (end, -1)
        assert await topic.list_offset(-3) == (6, STAMP + 6)
        assert (await topic.list_offset(-4))[0] == 0 and (await topic.list_offset(-5))[0] == -1
        for stamp in range(8):
            expected = min((at for at in left if at >= stamp), default=-1)
            assert (await topic.list_offset(STAMP + stamp))[0] == expected
        epoch = m.OffsetForLeaderEpochRequest.OffsetForLeaderPartition(
            partition=0, current_leader_epoch=-1, leader_epoch=topic.log.epoch
        )
        asked = m.OffsetForLeaderEpochRequest.OffsetForLeaderTopic(topic="t", partitions=[epoch])
        answer = await topic.client.ask(
            ApiKey.OFFSET_FOR_LEADER_EPOCH, 4, m.OffsetForLeaderEpochRequest(replica_id=-1, topics=[asked])
        )
        assert answer.topics[0].partitions[0].end_offset == end
        assert await delete_records(topic, 2) == ErrorCode.POLICY_VIOLATION
        await topic.alter(cleanup_policy="compact,delete")
        await until(lambda: topic.log.config.compacted, "the policy is known")
        assert await delete_records(topic, 5) == 0
        assert (await topic.client.fetch("t", 4)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        assert [record.offset for record in await topic.read(5)] == [5, 6]


async def delete_records(topic: Topic, offset: int) -> int:
    gone = m.DeleteRecordsRequest.DeleteRecordsTopic(
        name=topic.name, partitions=[m.DeleteRecordsRequest.DeleteRecordsPartition(partition_index=0, offset=offset)]
    )
    answer = await topic.client.ask(ApiKey.DELETE_RECORDS, 2, m.DeleteRecordsRequest(topics=[gone], timeout_ms=5_000))
    return int(answer.topics[0].partitions[0].error_code)


async def test_a_reader_reaches_the_end_of_a_log_of_which_nothing_is_left(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create()
        await topic.put((b"a", b"1"), (b"b", b"2"))
        await topic.put((b"a", None), (b"b", None))
        await topic.cleaned()
        assert len(await topic.read()) == 2, "tombstones stay for one more pass"
        await topic.put((b"c", b"3"))
        await topic.cleaned()
        assert [record.key for record in await topic.read()] == [b"c"]
        await topic.put((b"c", None))
        await topic.cleaned()
        await topic.put((b"d", b"4"))
        await topic.put((b"d", None))
        await topic.cleaned()
        await topic.read()
        await topic.check()


async def test_records_without_key(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create(cleanup_policy="delete")
        made = [(STAMP, None, b"no key", ()), (STAMP + 1, b"k", b"v", ())]
        assert (await topic.client.produce("t", build_batch(made))).error_code == 0
        await topic.alter(cleanup_policy="compact")
        await until(lambda: topic.log.config.compacted, "the policy is known")
        assert await topic.put((None, b"refused")) == ErrorCode.INVALID_RECORD
        await until(lambda: topic.clean_end == 2, "compacted as it is")
        assert [(record.offset, record.key) for record in await topic.read()] == [(1, b"k")]


async def test_many_ranges_and_manifests_when_the_policy_changes(tmp_path: Path) -> None:
    """What a topic that only deletes has in manifests comes back to be cleaned; and none is made any more."""
    async with topic_on(tmp_path, tidelog_merge_object_bytes=64 << 10) as topic:
        await topic.create(cleanup_policy="delete")
        for number in range(40):
            await topic.put((b"key %d" % (number % 9), b"%d " % number * 4_000))
        await until(lambda: bool(topic.state.manifests), "manifests")
        await topic.alter(cleanup_policy="compact")
        await topic.cleaned()
        assert not topic.state.manifests
        assert len(await topic.check()) == 9
        await topic.alter(cleanup_policy="delete")
        await topic.put((b"key 1", b"last"))
        assert len(await topic.check()) == 10


async def test_several_passes_with_a_small_map(tmp_path: Path) -> None:
    async with topic_on(tmp_path, log_cleaner_dedupe_buffer_size=2_048) as topic:
        await topic.create()
        for number in range(6):
            await topic.put(*pairs(range(120), b"%d" % number))
        await topic.cleaned()
        assert topic.broker.compacting.passes >= 6
        assert len(await topic.check()) == 120


async def test_young_records_and_small_changes_wait(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create(min_cleanable_dirty_ratio="0.6")
        await topic.put(*pairs(range(50), b"x" * 100))
        await topic.cleaned()
        passes = topic.broker.compacting.passes
        await topic.put(*pairs(range(10), b"y" * 100))
        await asyncio.sleep(0.1)
        assert topic.broker.compacting.passes == passes, "a sixth of it is not worth it"
        await topic.alter(max_compaction_lag_ms="1")
        await topic.cleaned()
        assert topic.broker.compacting.passes > passes, "it became too old"
        assert len(await topic.check()) == 50


async def test_compacted_and_deleted(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create(cleanup_policy="compact,delete")
        for number in range(12):
            await topic.put(*pairs([number, number + 1], b"z" * 1_000))
        await topic.cleaned()
        await topic.alter(retention_ms="1")  # every record is years old
        await until(lambda: topic.log.start == topic.log.end, "retention takes what compaction left")
        assert await topic.read(topic.log.start) == []


async def test_a_restart_in_the_middle_of_a_pass(tmp_path: Path) -> None:
    async with topic_on(tmp_path, tidelog_merge_bytes_per_second=300_000) as topic:
        await topic.create()
        for number in range(20):
            await topic.put(*pairs([number % 5, 5], b"%d" % number * 3_000))
        await until(lambda: topic.broker.compacting.outputs > 0 or topic.clean_end > 0, "begun")
        model = topic.model
    async with topic_on(tmp_path) as topic:
        topic.model = model
        await until(lambda: ("t", 0) in topic.broker.logs.find, "led")
        await topic.cleaned()
        assert len(await topic.check()) == len(model) == 6


async def test_idempotent_producers_go_on(tmp_path: Path) -> None:
    async with topic_on(tmp_path) as topic:
        await topic.create()
        identity: dict[str, Any] = {"producer_id": 77, "producer_epoch": 1}
        for sequence in range(3):
            made = [(STAMP, b"k", b"%d" % sequence, ())]
            answer = await topic.client.produce("t", build_batch(made, base_sequence=sequence, **identity))
            assert (answer.error_code, answer.base_offset) == (0, sequence)
        await until(lambda: topic.log.committed_end == 3, "sealed")
        await topic.put((b"k", b"other"))
        await topic.cleaned()
        part = await topic.client.fetch("t", 0)
        headers = [header for _, header in iterate_batches(part.records)]
        assert [(header.producer_id, header.record_count, header.last_sequence) for header in headers] == [
            (77, 0, 2),
            (-1, 1, -1),
        ]
        again = build_batch([(STAMP, b"k", b"2", ())], base_sequence=2, **identity)
        answer = await topic.client.produce("t", again)
        assert (answer.error_code, answer.base_offset) == (0, 2), "a retry is recognised"
        assert parse_header(part.records).base_offset == 2
