"""Fetch over real sockets: versions, limits, long polls, sessions, isolation, errors, reads from the bucket."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.fetch_sessions import EVICTION_MS
from broker.handlers import fetch
from controller import facts as f
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from protocol.records import check_crc, iterate_batches, parse_header
from storage.object_store import Unavailable
from tests.support.hot_broker import HotBroker, topic_id_of
from tests.support.manual_clock import ManualClock
from tests.support.raw_client import RawClient, batch_of, fetch_request, produce_request
from tests.support.waiting import until


def offsets(records: Any) -> list[int]:
    """Base offsets of the batches of an answer."""
    return [header.base_offset for _, header in iterate_batches(records or b"")]


@pytest.mark.parametrize("version", range(4, 19))
async def test_every_version_reads_what_was_produced(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        for value in (b"a", b"b", b"c"):
            await client.produce("t", batch_of(value, value))
        topic = topic_id_of("t") if version >= 13 else "t"
        answer = await client.ask(ApiKey.FETCH, version, fetch_request([(topic, 0, 3)]))
        (told,) = answer.responses
        assert (told.topic, told.topic_id) == (("t", bytes(16)) if version < 13 else ("", topic))
        (part,) = told.partitions
        assert (part.partition_index, part.error_code, part.high_watermark, part.last_stable_offset) == (0, 0, 6, 6)
        assert part.log_start_offset == (0 if version >= 5 else -1)
        assert part.aborted_transactions is None
        # The batch that holds the offset comes whole; bytes are the stored ones.
        assert bytes(part.records) == b"".join(log.tail.read(3, 6, 1 << 20)[0])
        assert offsets(part.records) == [2, 4]
        assert part.preferred_read_replica == -1
        assert answer.session_id == 0


async def test_limits_give_whole_batches_and_at_least_one(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        logs = broker.create_topic("t", 2)
        for i in range(4):
            for partition in (0, 1):
                await client.produce("t", batch_of(b"x" * 1000 + bytes([i])), partition=partition)
        size = len(logs[0].tail.read(0, 1, 1)[0][0])

        async def sizes(**limits: int) -> list[list[int]]:
            answer = await client.ask(ApiKey.FETCH, 12, fetch_request([("t", 0, 0), ("t", 1, 1)], **limits))
            return [offsets(part.records) for topic in answer.responses for part in topic.partitions]

        assert await sizes() == [[0, 1, 2, 3], [1, 2, 3]]
        assert await sizes(partition_max_bytes=2 * size) == [[0, 1], [1, 2]]
        assert await sizes(partition_max_bytes=2 * size - 1) == [[0], [1]]
        assert await sizes(max_bytes=size + 1) == [[0], []]
        assert await sizes(max_bytes=5 * size) == [[0, 1, 2, 3], [1]]
        # The first batch comes whatever its size, the second partition's does not.
        assert await sizes(max_bytes=1) == [[0], []]
        assert await sizes(partition_max_bytes=1) == [[0], []]
        assert await sizes(max_bytes=0) == [[0], []]


async def test_a_long_poll_wakes_when_enough_is_validated(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as consumer, RawClient(broker.port) as producer:
        broker.create_topic("t", 3)
        consumer.send(
            ApiKey.FETCH, 12, fetch_request([("t", p, 0) for p in range(3)], max_wait_ms=30_000, min_bytes=150)
        )
        await until(lambda: broker.services.counters.fetch_waits == 1)
        await producer.produce("t", batch_of(b"a"), partition=0)
        await asyncio.sleep(0.03)
        assert len(broker.log("t", 2).waiters) == 1, "one record is not enough"
        broker.gate.closed = True
        producer.send(ApiKey.PRODUCE, 9, produce_request([("t", 1, batch_of(b"b" * 100))]))
        await until(lambda: broker.gate.last[0] == 2)
        await asyncio.sleep(0.03)
        assert len(broker.log("t", 2).waiters) == 1, "what is not validated does not count"
        broker.gate.open()
        _, answer = await consumer.receive(ApiKey.FETCH, 12)
        assert [offsets(p.records) for p in answer.responses[0].partitions] == [[0], [0], []]
        assert not any(broker.log("t", p).waiters for p in range(3))
        assert not len(broker.services.wheel)


async def test_a_long_poll_ends_in_time(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        loop = asyncio.get_running_loop()
        began = loop.time()
        part = await client.fetch("t", 0, max_wait_ms=100)
        assert 0.095 <= loop.time() - began < 1.0
        assert (part.error_code, part.high_watermark, offsets(part.records)) == (0, 0, [])
        began = loop.time()
        answer = await client.ask(ApiKey.FETCH, 12, fetch_request([], max_wait_ms=10_000))
        assert answer.responses == [] and loop.time() - began < 1.0, "nothing to wait for"


async def test_answers_behind_a_long_poll_keep_their_order(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        polled = client.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=10_000))
        produced = client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"x"))]))
        number, answer = await client.receive(ApiKey.FETCH, 12)
        assert (number, offsets(answer.responses[0].partitions[0].records)) == (polled, [0])
        assert (await client.receive(ApiKey.PRODUCE, 9))[0] == produced


async def test_a_connection_that_goes_leaves_no_waiter(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        (log,) = broker.create_topic("t")
        async with RawClient(broker.port) as client:
            client.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=60_000))
            await until(lambda: log.waiters)
        await until(lambda: not log.waiters and not len(broker.services.wheel))


async def test_moves_and_deletions_wake_long_polls(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (moved,) = broker.create_topic("moved")
        broker.create_topic("deleted")
        client.send(ApiKey.FETCH, 16, fetch_request([(topic_id_of("moved"), 0, 0)], max_wait_ms=60_000))
        await until(lambda: moved.waiters)
        broker.controller.apply(f.LeaderNamed(moved.log_id, 2, 88, 1, bytes(range(16, 32))))
        _, answer = await client.receive(ApiKey.FETCH, 16)
        part = answer.responses[0].partitions[0]
        assert part.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (part.current_leader.leader_id, part.current_leader.leader_epoch) == (2, 1)
        assert [(e.node_id, e.host) for e in answer.node_endpoints] == [(2, "other")]
        older = await client.ask(ApiKey.FETCH, 12, fetch_request([("moved", 0, 0)]))
        assert older.responses[0].partitions[0].error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert older.responses[0].partitions[0].current_leader.leader_id == -1, "it could not say where that is"
        client.send(ApiKey.FETCH, 12, fetch_request([("deleted", 0, 0)], max_wait_ms=60_000))
        await until(lambda: broker.log("deleted").waiters)
        broker.controller.apply(f.TopicDeleted(topic_id_of("deleted")))
        _, answer = await client.receive(ApiKey.FETCH, 12)
        assert answer.responses[0].partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION


async def test_errors_per_partition(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        broker.create_topic("theirs", lead=False)
        await client.produce("t", batch_of(b"a", b"b"))

        async def code(topic: str, offset: int = 0, partition: int = 0, **values: int) -> int:
            # An error ends the wait, whatever the other partitions have.
            return int(
                (await client.fetch(topic, offset, partition=partition, max_wait_ms=30_000, **values)).error_code
            )

        assert await code("missing") == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert await code("t", partition=1) == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert await code("theirs") == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert await code("t", 3) == ErrorCode.OFFSET_OUT_OF_RANGE
        assert await code("t", -1) == ErrorCode.OFFSET_OUT_OF_RANGE
        assert await code("t", current_leader_epoch=5) == ErrorCode.UNKNOWN_LEADER_EPOCH
        broker.controller.apply(f.LeaderNamed(log.log_id, 1, 77, 3, bytes(range(16))))
        assert await code("t", current_leader_epoch=0) == ErrorCode.FENCED_LEADER_EPOCH
        answer = await client.ask(ApiKey.FETCH, 13, fetch_request([(b"?" * 16, 0, 0)], max_wait_ms=30_000))
        assert answer.responses[0].partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID


async def test_out_of_range_needs_the_session(tmp_path: Path) -> None:
    clock = ManualClock()
    async with HotBroker(tmp_path, clock) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        await client.produce("t", batch_of(b"a"))
        assert (await client.fetch("t", 5)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        clock.advance(4_000_000)
        assert (await client.fetch("t", 5)).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (await client.fetch("t", 0)).error_code == 0, "what lies below the high watermark may be read"
        # Cut off from the metadata log, the absence of a fence file is the right to answer.
        broker.controller.reachable = False
        assert (await client.fetch("t", 5)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        assert (await client.produce("t", batch_of(b"b"))).error_code == 0


async def test_diverging_epochs(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"a", b"b", b"c"))
        await broker.commit([log])
        broker.controller.apply(f.LeaderNamed(log.log_id, 1, 77, 4, bytes(range(16))))
        await until(lambda: broker.log("t").serving)
        await client.produce("t", batch_of(b"d"))
        part = await client.fetch("t", 4, last_fetched_epoch=2)
        assert (part.error_code, part.diverging_epoch.epoch, part.diverging_epoch.end_offset) == (0, 0, 3)
        assert offsets(part.records) == []
        part = await client.fetch("t", 3, last_fetched_epoch=0)
        assert (part.diverging_epoch.epoch, offsets(part.records)) == (-1, [3])
        assert (await client.fetch("t", 3, last_fetched_epoch=9)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE


async def test_a_bug_met_by_one_long_poll_stays_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client, RawClient(broker.port) as other:
        (log,) = broker.create_topic("t")
        client.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=60_000))
        await until(lambda: len(log.waiters) == 1)
        other.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=60_000))
        await until(lambda: len(log.waiters) == 2)
        real = fetch.encode_fetch_response
        calls = iter([True])

        def broken_once(*args: Any, **values: Any) -> Any:
            if next(calls, False):
                raise ZeroDivisionError
            return real(*args, **values)

        monkeypatch.setattr(fetch, "encode_fetch_response", broken_once)
        async with RawClient(broker.port) as producer:
            assert (await producer.produce("t", batch_of(b"x"))).error_code == 0
        assert await client.closed()
        _, answer = await other.receive(ApiKey.FETCH, 12)
        assert offsets(answer.responses[0].partitions[0].records) == [0]
        assert broker.services.counters.server_errors == 1


# Sessions


async def test_a_session_tells_only_what_changed(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client, RawClient(broker.port) as producer:
        broker.create_topic("t", 3)
        await producer.produce("t", batch_of(b"a"), partition=1)
        wanted: list[tuple[str | bytes, int, int]] = [("t", p, 0) for p in range(3)]
        first = await client.ask(ApiKey.FETCH, 12, fetch_request(wanted, session_epoch=0))
        assert [len(t.partitions) for t in first.responses] == [3]
        number = first.session_id
        assert number and len(broker.services.fetch_sessions) == 1

        async def go_on(epoch: int, *parts: tuple[str, int, int], wait: int = 0) -> list[tuple[int, list[int]]]:
            request = fetch_request(list(parts), session_id=number, session_epoch=epoch, max_wait_ms=wait)
            answer = await client.ask(ApiKey.FETCH, 12, request)
            assert (answer.error_code, answer.session_id) == (0, number)
            return [(p.partition_index, offsets(p.records)) for t in answer.responses for p in t.partitions]

        assert await go_on(1, ("t", 1, 1)) == []
        await producer.produce("t", batch_of(b"b"), partition=2)
        assert await go_on(2) == [(2, [0])]
        assert await go_on(3, ("t", 2, 1), wait=50) == []
        later = asyncio.ensure_future(go_on(4, wait=10_000))  # noqa: TID251
        await until(lambda: broker.log("t", 0).waiters)
        await producer.produce("t", batch_of(b"c"), partition=0)
        assert await later == [(0, [0])]
        broken = await client.ask(ApiKey.FETCH, 12, fetch_request([], session_id=number, session_epoch=2))
        assert broken.error_code == ErrorCode.INVALID_FETCH_SESSION_EPOCH
        broken = await client.ask(ApiKey.FETCH, 12, fetch_request([], session_id=number + 1, session_epoch=2))
        assert broken.error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
        closing = await client.ask(ApiKey.FETCH, 12, fetch_request([], session_id=number, session_epoch=-1))
        assert closing.session_id == 0 and len(broker.services.fetch_sessions) == 0


async def test_partitions_of_a_session_take_turns(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t", 3)
        for p in range(3):
            for _ in range(3):
                await client.produce("t", batch_of(b"x" * 1000), partition=p)
        first = await client.ask(
            ApiKey.FETCH, 12, fetch_request([("t", p, 0) for p in range(3)], session_epoch=0, max_bytes=1100)
        )
        seen = []
        for epoch in range(1, 7):
            request = fetch_request([], session_id=first.session_id, session_epoch=epoch, max_bytes=1100)
            answer = await client.ask(ApiKey.FETCH, 12, request)
            seen += [p.partition_index for t in answer.responses for p in t.partitions if p.records]
        assert seen == [0, 1, 2, 0, 1, 2]


async def test_sessions_are_bounded(tmp_path: Path) -> None:
    clock = ManualClock()
    async with HotBroker(tmp_path, clock, max_incremental_fetch_session_cache_slots=1) as broker:
        broker.create_topic("t")
        async with RawClient(broker.port) as client:
            request = fetch_request([("t", 0, 0)], session_epoch=0)
            assert (await client.ask(ApiKey.FETCH, 12, request)).session_id
            assert (await client.ask(ApiKey.FETCH, 12, request)).session_id == 0
            clock.advance(EVICTION_MS + 1)
            assert (await client.ask(ApiKey.FETCH, 12, request)).session_id
            assert len(broker.services.fetch_sessions) == 1


# Isolation


async def test_read_committed_stops_at_the_last_stable_offset(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")

        def transactional(producer_id: int) -> None:
            log.append_own(
                batch_of(b"x", producer_id=producer_id, producer_epoch=0, base_sequence=0, transactional=True)
            )

        def abort(producer_id: int) -> None:
            log.append_marker(producer_id, 0, 1, commit=False, transaction_version=0)

        transactional(9)
        transactional(8)
        transactional(7)
        abort(9)
        transactional(6)
        abort(8)
        abort(6)
        await until(lambda: log.hw == log.end)
        part = await client.fetch("t", 0, isolation_level=1)
        assert (offsets(part.records), part.high_watermark, part.last_stable_offset) == ([0, 1], 7, 2)
        # Their markers lie beyond the last stable offset; a transaction that lies beyond it is not told.
        assert [(a.producer_id, a.first_offset) for a in part.aborted_transactions] == [(9, 0), (8, 1)]
        part = await client.fetch("t", 2, isolation_level=1)
        assert (offsets(part.records), part.aborted_transactions) == ([], [])
        assert offsets((await client.fetch("t", 0)).records) == list(range(7))


# The bucket


async def test_what_left_memory_is_read_from_the_bucket(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        stored = b""
        for i in range(6):
            await client.produce("t", batch_of(b"%d" % i, b"x" * 100))
            stored += b"".join(log.tail.read(2 * i, log.hw, 1 << 20)[0])
            if i % 2:
                await broker.commit([log])
        broker.forget_tails()
        assert log.tail.start == log.hw == 12
        await client.produce("t", batch_of(b"hot"))
        got = b""
        offset = 0
        while offset < 13:
            part = await client.fetch("t", offset, max_wait_ms=5000)
            assert part.error_code == 0
            assert part.high_watermark == 13
            assert part.records, f"nothing at {offset}"
            got += part.records
            offset = [header for _, header in iterate_batches(part.records)][-1].next_offset
        assert got == stored + b"".join(log.tail.read(12, 13, 1 << 20)[0])
        part = await client.fetch("t", 5, max_wait_ms=5000, partition_max_bytes=1)
        assert offsets(part.records) == [4]
        assert broker.services.counters.fetch_cold


async def test_committed_batches_stay_in_memory_as_configured(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=25_000) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        for i in range(10):
            await client.produce("t", batch_of(b"x" * 10_000))
            if i % 2:
                await broker.commit([log])
        await until(lambda: broker.logs.kept_bytes <= 25_000)
        assert broker.logs.kept_bytes == log.tail.bytes
        assert log.tail.start == 8
        assert broker.logs.memory.bytes == log.tail.bytes


async def test_a_store_that_is_away_is_a_retriable_error(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        cold, hot = broker.create_topic("t", 2)
        await client.produce("t", batch_of(b"cold"))
        await broker.commit([cold])
        broker.forget_tails()
        await client.produce("t", batch_of(b"hot"), partition=1)
        get_range = broker.store.get_range

        async def away(*_: Any) -> bytes:
            raise Unavailable("away")

        broker.store.get_range = away
        answer = await client.ask(ApiKey.FETCH, 12, fetch_request([("t", 0, 0), ("t", 1, 0)]))
        parts = answer.responses[0].partitions
        assert [p.error_code for p in parts] == [ErrorCode.KAFKA_STORAGE_ERROR, 0]
        assert offsets(parts[1].records) == [0]
        assert hot.hw == 1
        broker.store.get_range = get_range
        assert offsets((await client.fetch("t", 0)).records) == [0]
        assert broker.services.cold.alarms == 0


async def test_a_missing_object_is_planned_again_or_an_alarm(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"0"))
        key = await broker.commit([log])
        await client.produce("t", batch_of(b"1"))
        await broker.commit([log])
        broker.forget_tails()
        await broker.store.delete(key)
        part = await client.fetch("t", 0)
        assert part.error_code == ErrorCode.KAFKA_STORAGE_ERROR
        assert broker.services.cold.alarms == 1
        # As retention does it: first a fact, then the deletion. A reader in between plans again.
        broker.controller.apply(f.LogStartAdvanced((f.LogStart(log.log_id, 1),)))
        assert (await client.fetch("t", 0)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        part = await client.fetch("t", 1)
        assert (part.error_code, offsets(part.records), part.log_start_offset) == (0, [1], 1)


async def test_hot_data_does_not_wait_for_the_bucket(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        cold, _ = broker.create_topic("t", 2)
        await client.produce("t", batch_of(b"cold"))
        await broker.commit([cold])
        broker.forget_tails()
        await client.produce("t", batch_of(b"hot"), partition=1)
        gate = asyncio.Event()
        get_range = broker.store.get_range

        async def slow(key: str, start: int, length: int) -> bytes:
            await gate.wait()
            data: bytes = await get_range(key, start, length)
            return data

        broker.store.get_range = slow
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await client.ask(ApiKey.FETCH, 12, fetch_request([("t", 0, 0), ("t", 1, 0)], max_wait_ms=30_000))
        assert loop.time() - began < 1.0
        assert [offsets(p.records) for p in answer.responses[0].partitions] == [[], [0]]
        # The same for data that comes while the bucket is waited for.
        request = fetch_request([("t", 0, 0), ("t", 1, 1)], max_wait_ms=30_000)
        client.send(ApiKey.FETCH, 12, request)
        await until(lambda: broker.services.counters.fetch_cold == 2)
        async with RawClient(broker.port) as producer:
            await producer.produce("t", batch_of(b"hotter"), partition=1)
        began = loop.time()
        _, answer = await client.receive(ApiKey.FETCH, 12)
        assert loop.time() - began < 1.0
        assert [offsets(p.records) for p in answer.responses[0].partitions] == [[], [1]]
        # Alone it is waited for; the read that was begun goes on meanwhile.
        client.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=500))
        await asyncio.sleep(0.01)
        gate.set()
        _, answer = await client.receive(ApiKey.FETCH, 12)
        assert offsets(answer.responses[0].partitions[0].records) == [0]


async def test_a_declared_loss_is_read_over(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"0"))
        await broker.commit([log])
        broker.controller.apply(
            f.LossDeclared(log.log_id, 1, 1 + f.LOSS_GAP), f.LeaderNamed(log.log_id, 1, 77, 1, bytes(range(16)))
        )
        await until(lambda: broker.log("t").serving)
        part = await client.produce("t", batch_of(b"after"))
        assert (part.error_code, part.base_offset) == (0, 1 + f.LOSS_GAP)
        assert offsets((await client.fetch("t", 0)).records) == [0]
        for offset in (1, 1000, 1 + f.LOSS_GAP):
            assert offsets((await client.fetch("t", offset, max_wait_ms=1000)).records) == [1 + f.LOSS_GAP]
        again = broker.log("t")
        assert [parse_header(memoryview(b)).base_offset async for b in again.read_all(0)] == [0, 1 + f.LOSS_GAP]


async def test_what_leaves_the_tail_while_a_declared_loss_is_read_is_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"0"))
        await broker.commit([log])
        broker.controller.apply(
            f.LossDeclared(log.log_id, 1, 1 + f.LOSS_GAP), f.LeaderNamed(log.log_id, 1, 77, 1, bytes(range(16)))
        )
        await until(lambda: broker.log("t").serving)
        again = broker.log("t")
        read = broker.services.cold.read

        async def slow(*args: Any, **options: Any) -> Any:
            found = await read(*args, **options)
            async with RawClient(broker.port) as producer:
                await producer.produce("t", batch_of(b"after"))
            await broker.commit([again])
            await until(lambda: again.tail.start == again.hw)
            return found

        monkeypatch.setattr(broker.services.cold, "read", slow)
        part = await client.fetch("t", 1, max_wait_ms=60_000)
        batches = list(iterate_batches(memoryview(part.records)))
        assert batches[-1][1].next_offset == 1 + f.LOSS_GAP, "up to what was asked for, and no further"
        monkeypatch.undo()
        assert offsets((await client.fetch("t", 1 + f.LOSS_GAP)).records) == [1 + f.LOSS_GAP]


async def test_a_declared_loss_at_the_end_is_crossed_by_empty_batches(tmp_path: Path) -> None:
    """A client that wants to read to the end gets there, though nothing was written since."""
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"0"))
        await broker.commit([log])
        broker.controller.apply(
            f.LossDeclared(log.log_id, 1, 1 + f.LOSS_GAP), f.LeaderNamed(log.log_id, 1, 77, 1, bytes(range(16)))
        )
        await until(lambda: broker.log("t").serving)
        end = broker.log("t").hw
        for isolation_level in (0, 1):
            for offset in (1, 1000, 1 << 31, end - 1):
                part = await client.fetch("t", offset, max_wait_ms=60_000, isolation_level=isolation_level)
                batches = list(iterate_batches(memoryview(part.records)))
                assert [header.record_count for _, header in batches] == [0] * len(batches)
                assert batches[0][1].base_offset == offset and batches[-1][1].next_offset == end
                assert all(check_crc(part.records, at, header.size) for at, header in batches)
        assert (await client.fetch("t", end, max_wait_ms=1)).records in (b"", None), "the end itself has nothing"


async def test_what_was_deleted_up_to_the_end_is_still_known_as_a_duplicate(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        broker.controller.apply(f.FormatLevel(2))
        (log,) = broker.create_topic("t")
        batch = batch_of(b"0", producer_id=7, producer_epoch=0, base_sequence=0)
        await client.produce("t", batch)
        await broker.commit([log])
        broker.controller.apply(f.LogStartAdvanced((f.LogStart(log.log_id, 1),)))
        broker.controller.apply(f.LeaderNamed(log.log_id, 1, 77, 1, bytes(range(16))))
        await until(lambda: broker.log("t").serving)
        part = await client.produce("t", batch)
        assert (part.error_code, part.base_offset) == (0, 0)
        assert broker.services.counters.duplicates == 1
        assert (await client.fetch("t", 0)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE


async def test_a_reopened_log_knows_its_producers(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        batch = batch_of(b"0", producer_id=7, producer_epoch=0, base_sequence=0)
        await client.produce("t", batch)
        await broker.commit([log])
        broker.controller.apply(f.LeaderNamed(log.log_id, 1, 77, 1, bytes(range(16))))
        assert not broker.log("t").serving, "being opened"
        part = await client.produce("t", batch)
        assert (part.error_code, part.base_offset) == (0, 0)
        assert broker.services.counters.duplicates == broker.services.counters.settle_waits == 1
        following = batch_of(b"1", producer_id=7, producer_epoch=0, base_sequence=1)
        assert (await client.produce("t", following)).base_offset == 1


# Readers that are slow


async def test_a_reader_that_does_not_read_holds_little(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as producer:
        broker.create_topic("t")
        for _ in range(8):
            await producer.produce("t", batch_of(b"x" * 900_000))
        async with RawClient(broker.port) as reader:
            reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(200):
                reader.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], partition_max_bytes=4 << 20))
            await until(lambda: broker.server.hub.unsent_bytes)
            for _ in range(20):
                await producer.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
            assert broker.server.hub.unsent_bytes < 16 << 20
            reader.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(200):
                _, answer = await reader.receive(ApiKey.FETCH, 12)
                assert offsets(answer.responses[0].partitions[0].records) == [0, 1, 2, 3]
            assert broker.server.hub.unsent_bytes == 0


async def test_many_long_polls_of_one_reader_are_filled_one_by_one(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as producer, RawClient(broker.port) as reader:
        broker.create_topic("t")
        reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            reader.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=60_000))
        await until(lambda: broker.services.counters.fetch_waits == 100)
        await producer.produce("t", batch_of(b"x" * 900_000))
        for _ in range(20):
            await producer.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
        assert broker.server.hub.unsent_bytes < 16 << 20
        reader.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            _, answer = await reader.receive(ApiKey.FETCH, 12)
            assert offsets(answer.responses[0].partitions[0].records) == [0]


async def test_a_reader_that_never_reads_is_closed(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, connections_max_idle_ms=200) as broker, RawClient(broker.port) as producer:
        broker.create_topic("t")
        for _ in range(8):
            await producer.produce("t", batch_of(b"x" * 900_000))
        async with RawClient(broker.port) as reader:
            reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(20):
                reader.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], partition_max_bytes=8 << 20))
            await until(lambda: broker.services.counters.slow_readers_closed == 1)
            await until(lambda: broker.server.hub.unsent_bytes == 0)
