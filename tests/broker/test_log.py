"""Logs and the log table: offsets, epochs, what facts open and close, memory."""

import asyncio
import itertools
from pathlib import Path

import pytest

from broker import log_table
from broker.log import LogStatus
from broker.log_table import LeaderHint
from controller import facts as f
from protocol.errors import ErrorCode, KafkaError
from protocol.records import parse_header
from tests.support.hot_broker import (
    INCARNATION,
    NODE,
    OTHER_INCARNATION,
    OTHER_NODE,
    OTHER_WAL,
    WAL_ID,
    HotBroker,
    topic_id_of,
)
from tests.support.raw_client import batch_of
from tests.support.waiting import until


async def validated(broker: HotBroker, sequence: int) -> None:
    """Wait for an append sequence."""
    done = asyncio.Event()
    broker.validation.when_validated(sequence, done.set)
    await asyncio.wait_for(done.wait(), 5)


async def test_own_batches_are_patched_and_read_back_from_memory_and_bucket(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker:
        (log,) = broker.create_topic("__own", internal=True)
        for i in range(6):
            sequence = log.append_own(batch_of(b"%d" % i, b"x"))
            assert (sequence, log.end, log.when_validated_end()) == (i + 1, 2 * i + 2, i + 1)
            await validated(broker, sequence)
            if i in (1, 3):
                await broker.commit([log])
        broker.forget_tails()
        assert (log.tail.start, log.committed_end, log.hw) == (8, 8, 12)
        read = b"".join([bytes(buffer) async for buffer in log.read_all(0)])
        bases = []
        while read:
            header = parse_header(read)
            bases.append((header.base_offset, header.leader_epoch))
            read = read[header.size :]
        assert bases == [(i, 0) for i in range(0, 12, 2)]
        assert [parse_header(memoryview(b)).base_offset async for b in log.read_all(9)] == [8, 10]


async def test_read_all_stops_at_the_high_watermark_and_when_the_log_moves(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        (log,) = broker.create_topic("__own", internal=True)
        await validated(broker, log.append_own(batch_of(b"a")))
        broker.gate.closed = True
        log.append_own(batch_of(b"b"))
        await until(lambda: broker.gate.last[0] == 2)
        assert len([buffer async for buffer in log.read_all(0)]) == 1
        reader = log.read_all(0)
        broker.controller.apply(f.LeaderNamed(log.log_id, OTHER_NODE, OTHER_INCARNATION, 1, OTHER_WAL))
        with pytest.raises(KafkaError) as caught:
            await anext(aiter(reader))
        assert caught.value.code == ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_facts_open_close_and_configure(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        opened: list[str] = []
        broker.logs.on_open(lambda log: opened.append(f"+{log.topic}-{log.partition}@{log.epoch}"))
        broker.logs.on_close(lambda log: opened.append(f"-{log.topic}-{log.partition}@{log.epoch}"))
        first, second = broker.create_topic("t", 2)
        assert opened == ["+t-0@0", "+t-1@0"]
        assert broker.logs.find["t", 1] is second is broker.logs.find[topic_id_of("t"), 1]
        broker.controller.apply(f.LeaderNamed(second.log_id, OTHER_NODE, OTHER_INCARNATION, 1, OTHER_WAL))
        assert (second.status, opened[2:]) == (LogStatus.CLOSED, ["-t-1@0"])
        assert ("t", 1) not in broker.logs.find and len(broker.logs) == 1
        broker.controller.apply(f.LeaderNamed(second.log_id, NODE, INCARNATION, 2, WAL_ID))
        assert opened[3:] == ["+t-1@2"]
        assert broker.log("t", 1).epochs == [(2, 0)]
        broker.controller.apply(f.ConfigsChanged(2, "t", (("max.message.bytes", "99"), ("cleanup.policy", "compact"))))
        assert (first.config.max_message_bytes, first.config.compacted) == (99, True)
        broker.controller.apply(f.ConfigsChanged(4, "1", (("max.message.bytes", "5"),)))
        assert first.config.max_message_bytes == 99
        broker.controller.apply(
            f.PartitionsAdded(topic_id_of("t"), (70,)), f.LeaderNamed(70, NODE, INCARNATION, 0, WAL_ID)
        )
        assert broker.log("t", 2).serving
        broker.controller.apply(f.TopicDeleted(topic_id_of("t")))
        assert len(broker.logs) == 0 and not broker.logs.find
        assert opened[-3:] == ["-t-0@0", "-t-1@2", "-t-2@0"]
        broker._log_ids = itertools.count(71)
        broker.create_topic("u")
        broker.controller.apply(f.SessionEnded(INCARNATION, "silence", 0))
        assert len(broker.logs) == 0


async def test_a_reloaded_state_is_followed(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        first, second = broker.create_topic("t", 2)
        await validated(broker, first.append_own(batch_of(b"a", b"b")))
        # Facts that this broker did not see one by one.
        broker.controller._listeners.clear()
        broker.controller.apply(f.LeaderNamed(second.log_id, OTHER_NODE, OTHER_INCARNATION, 1, OTHER_WAL))
        await broker.commit([first])
        broker.controller.apply(f.LogStartAdvanced((f.LogStart(first.log_id, 1),)))
        broker.create_topic("late", lead=False)
        broker.logs.apply([f.StateReloaded()])
        assert (len(broker.logs), second.status) == (1, LogStatus.CLOSED)
        assert (first.start, first.committed_end) == (1, 2)


async def test_refusals_name_the_leader(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        (frozen,) = broker.create_topic("t")
        broker.create_topic("theirs", lead=False)
        assert broker.logs.refusal("no", 0).code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert broker.logs.refusal(bytes(16), 0).code == ErrorCode.UNKNOWN_TOPIC_ID
        assert broker.logs.refusal("t", -1).code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        refusal = broker.logs.refusal(topic_id_of("theirs"), 0)
        assert isinstance(refusal, LeaderHint)
        assert (refusal.code, refusal.leader_id, refusal.leader_epoch) == (
            ErrorCode.NOT_LEADER_OR_FOLLOWER,
            OTHER_NODE,
            0,
        )
        frozen.freeze()
        assert frozen.serving
        with pytest.raises(KafkaError):
            frozen.append_own(batch_of(b"x"))


async def test_epochs_as_kafka_caches_them(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        (log,) = broker.create_topic("t")
        log.epochs, log.epoch, log.hw = [(2, 0), (5, 10), (7, 20)], 7, 25
        assert [log.epoch_at(offset) for offset in (0, 9, 10, 19, 20, 99)] == [2, 2, 5, 5, 7, 7]
        assert [log.end_of_epoch(epoch) for epoch in (-1, 0, 1, 2, 3, 4, 5, 6, 7, 8)] == [
            (-1, -1),
            (0, 0),
            (1, 0),
            (2, 10),
            (2, 10),
            (2, 10),
            (5, 20),
            (5, 20),
            (7, 25),
            (-1, -1),
        ]


async def test_memory_of_closed_logs_comes_back(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        first, second = broker.create_topic("t", 2)
        for log in (first, second):
            for _ in range(5):
                sequence = log.append_own(batch_of(b"x" * 1000))
            await validated(broker, sequence)
        await broker.commit([first])
        assert broker.logs.kept_bytes == first.tail.bytes
        broker.controller.apply(f.TopicDeleted(topic_id_of("t")))
        await until(lambda: broker.logs.memory.bytes == 0)
        assert broker.logs.kept_bytes == 0


async def test_an_unreadable_producer_state_keeps_the_log_closed_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_table, "LOAD_AGAIN_S", 0.01)
    async with HotBroker(tmp_path) as broker:
        (log,) = broker.create_topic("t")
        await validated(broker, log.append_own(batch_of(b"x")))
        key = await broker.commit([log])
        lost = (await broker.store.get(key)).data
        await broker.store.delete(key)
        broker.controller.apply(f.LeaderNamed(log.log_id, NODE, INCARNATION, 1, WAL_ID))
        await until(lambda: broker.services.cold.alarms)
        await until(lambda: caplog.text.count("cannot open") == 2)
        assert broker.log("t").status is LogStatus.OPENING
        with pytest.raises(KafkaError):
            broker.log("t").append_own(batch_of(b"x"))
        await broker.store.put(key, lost)
        await until(lambda: broker.log("t").status is LogStatus.OPEN)
        broker.log("t").append_own(batch_of(b"x"))
