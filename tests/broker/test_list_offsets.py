"""ListOffsets and OffsetForLeaderEpoch over real sockets."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.log import LogStatus
from controller import facts as f
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from protocol.records import Codec, build_batch
from tests.support.hot_broker import HotBroker
from tests.support.manual_clock import ManualClock
from tests.support.raw_client import RawClient, batch_of
from tests.support.waiting import until

T = 1_700_000_000_000


def request(
    *asked: tuple[str, int, int], isolation_level: int = 0, epoch: int = -1, timeout_ms: int = 5000
) -> m.ListOffsetsRequest:
    """(topic, partition, timestamp) each."""
    topics: dict[str, list[Any]] = {}
    for topic, partition, timestamp in asked:
        topics.setdefault(topic, []).append(
            m.ListOffsetsRequest.ListOffsetsPartition(
                partition_index=partition, timestamp=timestamp, current_leader_epoch=epoch
            )
        )
    return m.ListOffsetsRequest(
        replica_id=-1,
        isolation_level=isolation_level,
        timeout_ms=timeout_ms,
        topics=[m.ListOffsetsRequest.ListOffsetsTopic(name=name, partitions=parts) for name, parts in topics.items()],
    )


async def ask(client: RawClient, version: int, *asked: tuple[str, int, int], **values: int) -> list[tuple[int, ...]]:
    """(error, offset, timestamp, leader epoch) per partition asked for."""
    answer = await client.ask(ApiKey.LIST_OFFSETS, version, request(*asked, **values))
    return [(p.error_code, p.offset, p.timestamp, p.leader_epoch) for t in answer.topics for p in t.partitions]


async def fill(client: RawClient) -> None:
    """Offsets 0 to 8, timestamps T + 0, 10, 20, 5, 15, 40, 41, 30, 31."""
    for codec, times in ((Codec.NONE, (0, 10, 20)), (Codec.GZIP, (5, 15, 40)), (Codec.NONE, (41, 30, 31))):
        batch = build_batch([(T + at, None, b"v", ()) for at in times], codec=codec)
        assert (await client.produce("t", batch)).error_code == 0


@pytest.mark.parametrize("version", range(1, 12))
async def test_every_version_knows_its_specs(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        await fill(client)
        epoch = 0 if version >= 4 else -1

        async def one(timestamp: int) -> tuple[int, ...]:
            return (await ask(client, version, ("t", 0, timestamp)))[0]

        assert await one(-1) == (0, 9, -1, epoch)
        assert await one(-2) == (0, 0, -1, epoch)
        assert await one(T + 16) == (0, 2, T + 20, epoch)
        refused = (ErrorCode.UNSUPPORTED_VERSION, -1, -1, -1)
        assert await one(-3) == ((0, 6, T + 41, epoch) if version >= 7 else refused)
        assert await one(-4) == ((0, 0, -1, epoch) if version >= 8 else refused)
        assert await one(-5) == ((0, -1, -1, -1) if version >= 9 else refused)
        assert await one(-6) == ((0, -1, -1, -1) if version >= 11 else refused)
        assert await one(-7) == refused


@pytest.mark.parametrize("cold", [0, 3, 6, 9])
async def test_timestamps_are_exact_to_the_record(tmp_path: Path, cold: int) -> None:
    """The same answers whether records are in memory or in the bucket."""
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        if cold:
            await fill(client)
            await until(lambda: log.hw == 9)
            for end in range(3, cold + 1, 3):
                log.hw = log.lso = end
                await broker.commit([log])
            broker.forget_tails()
            log.hw = log.lso = 9
            assert log.tail.start == cold
        else:
            await fill(client)
        times = [0, 10, 20, 5, 15, 40, 41, 30, 31]
        for at in range(-1, 43):
            wanted = next(((0, i, T + time, 0) for i, time in enumerate(times) if time >= at), (0, -1, -1, -1))
            assert (await ask(client, 8, ("t", 0, T + at)))[0] == wanted, at
        assert (await ask(client, 8, ("t", 0, -3)))[0] == (0, 6, T + 41, 0)


async def test_an_empty_log_and_a_moved_start(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        assert await ask(client, 8, ("t", 0, -1)) == [(0, 0, -1, 0)]
        assert await ask(client, 8, ("t", 0, -3)) == [(0, -1, -1, -1)]
        assert await ask(client, 8, ("t", 0, 0)) == [(0, -1, -1, -1)]
        await fill(client)
        await broker.commit([log])
        broker.forget_tails()
        broker.controller.apply(f.LogStartAdvanced((f.LogStart(log.log_id, 4),)))
        assert await ask(client, 8, ("t", 0, -2)) == [(0, 4, -1, 0)]
        # Records below the start are gone, also those in a batch that reaches beyond it.
        assert await ask(client, 8, ("t", 0, T)) == [(0, 4, T + 15, 0)]


async def test_isolation_epochs_and_errors(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        broker.create_topic("theirs", lead=False)
        await fill(client)
        log.lso = 3
        assert await ask(client, 8, ("t", 0, -1), isolation_level=1) == [(0, 3, -1, 0)]
        assert await ask(client, 8, ("t", 0, T + 30), isolation_level=1) == [(0, -1, -1, -1)]
        none = (-1, -1, -1)
        assert await ask(client, 8, ("t", 0, -1), epoch=2) == [(ErrorCode.UNKNOWN_LEADER_EPOCH, *none)]
        assert await ask(client, 8, ("t", 0, -1), ("t", 0, -2), ("theirs", 0, -1), ("gone", 0, -1)) == [
            (0, 9, -1, 0),
            (ErrorCode.INVALID_REQUEST, *none),
            (ErrorCode.NOT_LEADER_OR_FOLLOWER, *none),
            (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, *none),
        ]


async def test_answers_need_the_session(tmp_path: Path) -> None:
    clock = ManualClock()
    async with HotBroker(tmp_path, clock) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        clock.advance(4_000_000)
        assert (await ask(client, 8, ("t", 0, -1)))[0][0] == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (await ends(client, 3, ("t", 0, 0)))[0][0] == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert log.hw == 0


async def test_a_log_whose_move_is_asked_for_does_not_tell_its_end(tmp_path: Path) -> None:
    """Its next leader may acknowledge already what this one has not heard of."""
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        log.status = LogStatus.MOVING
        assert (await ask(client, 8, ("t", 0, -1)))[0][0] == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (await ends(client, 3, ("t", 0, 0)))[0][0] == ErrorCode.NOT_LEADER_OR_FOLLOWER
        log.status = LogStatus.OPEN
        assert (await ask(client, 8, ("t", 0, -1)))[0][0] == 0


async def test_the_right_is_checked_again_after_a_slow_read(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await fill(client)
        await broker.commit([log])
        broker.forget_tails()
        gate = asyncio.Event()
        get_range = broker.store.get_range

        async def slow(key: str, start: int, length: int) -> bytes:
            await gate.wait()
            data: bytes = await get_range(key, start, length)
            return data

        broker.store.get_range = slow
        client.send(ApiKey.LIST_OFFSETS, 10, request(("t", 0, T), timeout_ms=30))
        _, answer = await client.receive(ApiKey.LIST_OFFSETS, 10)
        assert answer.topics[0].partitions[0].error_code == ErrorCode.REQUEST_TIMED_OUT
        client.send(ApiKey.LIST_OFFSETS, 10, request(("t", 0, T)))
        await asyncio.sleep(0.01)
        broker.session.end()
        gate.set()
        _, answer = await client.receive(ApiKey.LIST_OFFSETS, 10)
        part = answer.topics[0].partitions[0]
        assert (part.error_code, part.offset) == (ErrorCode.NOT_LEADER_OR_FOLLOWER, -1)


async def test_no_timeout_given(tmp_path: Path) -> None:
    """kafka-python leaves the timeout at 0: what takes a read or a decompression is answered all the same."""
    async with HotBroker(tmp_path, tidelog_tail_keep_bytes=0) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"a", b"b", timestamp=T, codec=Codec.GZIP))
        for where in ("memory", "bucket"):
            if where == "bucket":
                await broker.commit([log])
                broker.forget_tails()
            for timeout_ms in (0, -1):
                assert await ask(client, 10, ("t", 0, T + 1), timeout_ms=timeout_ms) == [(0, 1, T + 1, 0)]
                assert await ask(client, 10, ("t", 0, -3), timeout_ms=timeout_ms) == [(0, 1, T + 1, 0)]


async def test_unreadable_records_answer_by_their_batch(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        batch = batch_of(b"a" * 100, b"b", timestamp=T, codec=Codec.GZIP)
        batch[65:80] = b"\xee" * 15
        from protocol.records import batch_crc

        batch[17:21] = batch_crc(batch, 0, len(batch)).to_bytes(4, "big")
        assert (await client.produce("t", batch)).error_code == 0
        assert await ask(client, 8, ("t", 0, T)) == [(0, 0, T + 1, 0)]


async def ends(client: RawClient, version: int, *asked: tuple[str, int, int], epoch: int = -1) -> list[tuple[int, ...]]:
    """(error, leader epoch, end offset) per (topic, partition, epoch)."""
    topics = [
        m.OffsetForLeaderEpochRequest.OffsetForLeaderTopic(
            topic=topic,
            partitions=[
                m.OffsetForLeaderEpochRequest.OffsetForLeaderPartition(
                    partition=partition, current_leader_epoch=epoch, leader_epoch=leader_epoch
                )
            ],
        )
        for topic, partition, leader_epoch in asked
    ]
    answer = await client.ask(
        ApiKey.OFFSET_FOR_LEADER_EPOCH, version, m.OffsetForLeaderEpochRequest(replica_id=-1, topics=topics)
    )
    return [(p.error_code, p.leader_epoch, p.end_offset) for t in answer.topics for p in t.partitions]


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_ends_of_epochs(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        await client.produce("t", batch_of(b"a", b"b"))
        await broker.commit([log])
        broker.controller.apply(f.LeaderNamed(log.log_id, 1, 77, 5, bytes(range(16))))
        await until(lambda: broker.log("t").serving)
        await client.produce("t", batch_of(b"c"))
        assert await ends(client, version, ("t", 0, 0)) == [(0, 0, 2)]
        assert await ends(client, version, ("t", 0, 3)) == [(0, 0, 2)]
        assert await ends(client, version, ("t", 0, 5)) == [(0, 5, 3)]
        assert await ends(client, version, ("t", 0, 6)) == [(0, -1, -1)]
        assert await ends(client, version, ("t", 0, -1)) == [(0, -1, -1)]
        assert await ends(client, version, ("gone", 0, 0)) == [(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, -1)]
        assert await ends(client, version, ("t", 0, 0), epoch=4) == [(ErrorCode.FENCED_LEADER_EPOCH, -1, -1)]
        assert await ask(client, 8, ("t", 0, -2)) == [(0, 0, -1, 0)]
        assert await ask(client, 8, ("t", 0, -1)) == [(0, 3, -1, 5)]
