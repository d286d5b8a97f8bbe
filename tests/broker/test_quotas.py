"""Client quotas kept by a real broker: throttle times, muted connections, rates, refused mutations."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kafka import KafkaConsumer, KafkaProducer

from broker.metrics import Counters
from broker.node import Broker
from broker.quotas import CUT_AFTER_MS, PRODUCE_RATE, ClientQuotas
from broker.settings import Settings
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.broker.test_administration import Entity, alter_quotas, quotas
from tests.support.manual_clock import ManualClock
from tests.support.raw_client import RawClient, batch_of, produce_request
from tests.support.waiting import until
from tests.support.whole_broker import whole_broker

KIB = 1024


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    windows = {"quota_window_num": 3, "controller_quota_window_num": 1}
    async with whole_broker(tmp_path / "data", tidelog_seal_ms=50, **windows) as running:
        yield running


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[RawClient]:
    async with RawClient(broker.listeners[0].port) as connected:
        yield connected


async def set_quota(client: RawClient, entity: Entity, **values: float | None) -> None:
    assert await alter_quotas(client, (entity, dict(values))) == [(0, None)]


async def create(client: RawClient, name: str, partitions: int = 1, version: int = 7) -> tuple[int, int]:
    topic = m.CreateTopicsRequest.CreatableTopic(name=name, num_partitions=partitions, replication_factor=1)
    answer = await client.ask(ApiKey.CREATE_TOPICS, version, m.CreateTopicsRequest(topics=[topic]), timeout=20)
    return answer.topics[0].error_code, answer.throttle_time_ms


async def send(client: RawClient, size: int, version: int = 9) -> int:
    """Produce so many bytes; the throttle time of the answer."""
    request = produce_request([("t", 0, batch_of(b"v" * size))])
    answer = await client.ask(ApiKey.PRODUCE, version, request, timeout=30)
    assert answer.responses[0].partition_responses[0].error_code == 0
    throttle_ms: int = answer.throttle_time_ms
    return throttle_ms


async def elapsed(work: Any) -> float:
    """Seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await work
    return loop.time() - began


@pytest.mark.parametrize("version", [3, 8, 9, 12])
async def test_a_producer_is_told_to_wait_and_not_heard(client: RawClient, broker: Broker, version: int) -> None:
    await create(client, "t")
    assert await send(client, 100 * KIB) == 0
    await set_quota(client, {"client-id": "raw"}, producer_byte_rate=100 * KIB)
    assert await send(client, 100 * KIB, version) == 0
    throttle_ms = await send(client, 150 * KIB, version)
    assert 200 < throttle_ms < 1000, "125 KiB/s over the two windows that count at first"
    assert broker.counters.throttled == 1
    async with RawClient(client.port) as other:
        await create(other, "other")  # another connection is heard
    assert await elapsed(client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))) > throttle_ms / 2000
    await set_quota(client, {"client-id": "raw"}, producer_byte_rate=None)
    assert await send(client, 900 * KIB, version) == 0
    assert not broker.services.quotas.active and not broker.services.quotas._rates


async def test_a_producer_that_waited_first_is_told_too(client: RawClient, broker: Broker) -> None:
    """The coordinator of a transaction is asked before its first batch is appended."""
    await create(client, "t")
    await set_quota(client, {"client-id": "raw"}, producer_byte_rate=100 * KIB)
    batch = batch_of(b"v" * 250 * KIB, producer_id=7, producer_epoch=0, base_sequence=0, transactional=True)
    request = produce_request([("t", 0, batch)], transactional_id="unknown")
    answer = await client.ask(ApiKey.PRODUCE, 11, request, timeout=30)
    assert answer.responses[0].partition_responses[0].error_code != 0
    assert 200 < answer.throttle_time_ms < 3000, "at most three windows"


async def test_without_acks_there_is_only_silence(client: RawClient, broker: Broker) -> None:
    await create(client, "t")
    await set_quota(client, {"user": None}, producer_byte_rate=100 * KIB)
    client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"v" * 250 * KIB))], acks=0))
    assert await elapsed(client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))) > 0.2
    assert broker.counters.throttled == 1


@pytest.mark.parametrize("version", [4, 11, 12, 17])
async def test_a_consumer_gets_its_share(client: RawClient, broker: Broker, version: int) -> None:
    await create(client, "t")
    for _ in range(6):
        await send(client, 90 * KIB)
    await set_quota(client, {"user": "ANONYMOUS", "client-id": None}, consumer_byte_rate=100 * KIB)
    topic_id = broker.controller.state.topics["t"].topic_id

    async def fetch(offset: int) -> tuple[int, int]:
        part = m.FetchRequest.FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=1 << 30)
        topic = m.FetchRequest.FetchTopic(partitions=[part])
        if version >= 13:
            topic.topic_id = topic_id
        else:
            topic.topic = "t"
        request = m.FetchRequest(max_bytes=1 << 30, min_bytes=1, max_wait_ms=500, topics=[topic])
        answer = await client.ask(ApiKey.FETCH, version, request, timeout=30)
        records = b"".join(part.records or b"" for topic in answer.responses for part in topic.partitions)
        return len(records), answer.throttle_time_ms

    size, throttle_ms = await fetch(0)
    assert 90 * KIB < size < 200 * KIB, "cut to what all windows but one allow"
    assert throttle_ms == 0
    size, throttle_ms = await fetch(2)
    assert size == 0 and throttle_ms > 300, "nothing now, and nothing of it is counted"
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not size:
        size, _ = await fetch(2)
    assert loop.time() - began > throttle_ms / 2000


async def test_a_throttled_fetch_leaves_its_session_as_it_was(client: RawClient, broker: Broker) -> None:
    """A full one opens none; an incremental one moves on, and is told later what it was not told now."""
    await create(client, "t")
    for _ in range(6):
        await send(client, 90 * KIB)
    part = m.FetchRequest.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 30)
    topic = m.FetchRequest.FetchTopic(topic="t", partitions=[part])

    async def fetch(session_id: int, epoch: int, *topics: Any) -> Any:
        request = m.FetchRequest(
            max_bytes=1 << 30, min_bytes=1, max_wait_ms=500, session_id=session_id, session_epoch=epoch, topics=topics
        )
        answer = await client.ask(ApiKey.FETCH, 12, request, timeout=30)
        assert answer.error_code == 0
        return answer

    opened = await fetch(0, 0, topic)
    session_id = opened.session_id
    assert session_id and opened.throttle_time_ms == 0
    await set_quota(client, {"client-id": "raw"}, consumer_byte_rate=100 * KIB)
    epoch, sizes = 1, []
    while len(sizes) < 4:
        answer = await fetch(session_id, epoch)
        assert answer.session_id == session_id
        assert bool(answer.throttle_time_ms) is (not answer.responses)
        sizes.append(len(answer.responses and answer.responses[0].partitions[0].records))
        epoch += 1
    assert 0 in sizes and max(sizes) > 90 * KIB
    while (full := await fetch(0, 0, topic)).responses:
        assert full.session_id
    assert full.throttle_time_ms and full.session_id == 0


async def test_a_long_poll_is_measured_when_it_is_answered(client: RawClient, broker: Broker) -> None:
    await create(client, "t")
    await set_quota(client, {"client-id": None}, consumer_byte_rate=10 * KIB)
    async with RawClient(client.port) as consumer, asyncio.TaskGroup() as group:
        waiting = group.create_task(consumer.fetch("t", 0, max_wait_ms=5000, min_bytes=1))
        await until(lambda: bool(broker.counters.fetch_waits))
        await send(client, 30 * KIB)
        assert len((await waiting).records) > 30 * KIB, "more than all windows allow, but it has to come some day"
        assert await elapsed(consumer.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))) > 1


async def test_request_time(client: RawClient, broker: Broker) -> None:
    await create(client, "t", 50)
    await set_quota(client, {"user": "ANONYMOUS"}, request_percentage=1e-6)  # any machine takes longer for a request
    told = [(await client.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))).throttle_time_ms for _ in range(2)]
    assert told == [0, 1000], "a request counts for the next one, which is throttled for a window at most"
    assert broker.counters.throttled >= 1


async def test_a_quota_that_nobody_can_keep_can_be_taken_back(client: RawClient, broker: Broker) -> None:
    await set_quota(client, {"user": None}, request_percentage=5e-324, controller_mutation_rate=1e-9)
    async with RawClient(client.port) as other:
        assert await create(other, "a", 12) == (0, CUT_AFTER_MS), "what is told fits where it is told"
    for _ in range(2):
        async with RawClient(client.port) as other:
            assert (await other.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=None))).throttle_time_ms <= 1000
    async with RawClient(client.port) as other:
        await set_quota(other, {"user": None}, request_percentage=None, controller_mutation_rate=None)
    assert not broker.services.quotas.active


async def test_a_client_that_goes_before_it_is_throttled_is_forgotten(broker: Broker) -> None:
    async with RawClient(broker.listeners[0].port) as other:
        await other.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))
        (connection,) = broker.server.hub.connections
    await until(lambda: connection.closed)
    broker.services.quotas.mute(connection, CUT_AFTER_MS)
    assert not broker.services.quotas._muted


def test_meters_of_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are heard now keep theirs, however many others come under names of their own."""
    monkeypatch.setattr("broker.quotas.METERS_MAX", 10)
    state = SimpleNamespace(quotas={(("client-id", None),): {PRODUCE_RATE: 1000.0}})
    counted = ClientQuotas(Settings(), ManualClock(), lambda: 0, Counters(), lambda: cast(Any, state))
    counted.follow(lambda: None)
    for number in range(1000):
        assert counted.took(PRODUCE_RATE, "u", f"client {number}", 1.0) == 0
        throttle_ms = counted.took(PRODUCE_RATE, "u", "regular", 100.0)
    assert throttle_ms > 0
    assert len(counted._rates) == len(counted._used) == 10


async def test_mutations(client: RawClient) -> None:
    """A window's worth at once, and one request beyond it; then those who know are refused, others throttled."""
    await set_quota(client, {"user": "ANONYMOUS"}, controller_mutation_rate=2.0)
    assert await create(client, "a", 2) == (0, 0)
    code, throttle_ms = await create(client, "b", 12)
    assert (code, 1000 < throttle_ms <= 6000) == (0, True)
    async with RawClient(client.port) as strict:
        code, throttle_ms = await create(strict, "c")
        assert (code, throttle_ms > 0) == (ErrorCode.THROTTLING_QUOTA_EXCEEDED, True)
    async with RawClient(client.port) as older:
        code, throttle_ms = await create(older, "d", version=5)
        assert (code, throttle_ms > 0) == (0, True)
    delete = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(name="a")])
    async with RawClient(client.port) as strict:
        answer = await strict.ask(ApiKey.DELETE_TOPICS, 6, delete)
        assert [one.error_code for one in answer.responses] == [ErrorCode.THROTTLING_QUOTA_EXCEEDED]
        assert answer.throttle_time_ms > 0
    more = m.CreatePartitionsRequest.CreatePartitionsTopic(name="b", count=20)
    async with RawClient(client.port) as strict:
        grow = m.CreatePartitionsRequest(topics=[more], timeout_ms=5000)
        answer = await strict.ask(ApiKey.CREATE_PARTITIONS, 3, grow)
        assert [one.error_code for one in answer.results] == [ErrorCode.THROTTLING_QUOTA_EXCEEDED]
        assert answer.throttle_time_ms > 0


async def test_connections_of_an_address(client: RawClient, broker: Broker) -> None:
    await set_quota(client, {"ip": None}, connection_creation_rate=1.0)
    assert not broker.services.quotas.active, "requests are not measured for it"
    others = [RawClient(client.port) for _ in range(4)]
    for other in others:
        await other.__aenter__()
    for other in others[:2]:
        await other.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))
    assert await others[3].closed(timeout=10), "after a while, unheard"
    for other in others:
        await other.__aexit__(None, None, None)
    await set_quota(client, {"ip": "127.0.0.1"}, connection_creation_rate=1000.0)
    async with RawClient(client.port) as welcome:
        await welcome.ask(ApiKey.METADATA, 12, m.MetadataRequest(topics=[]))


async def test_real_clients_stay_within_their_quotas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """kafka-python produces and consumes at the rate it is given, and says that it was throttled."""
    rate = 200 * KIB
    caplog.set_level(logging.WARNING, logger="kafka")  # our command line, where it ran before, has made it silent
    async with whole_broker(tmp_path / "data", quota_window_num=3) as broker:
        bootstrap = f"127.0.0.1:{broker.listeners[0].port}"
        async with RawClient(broker.listeners[0].port) as client:
            await create(client, "t")
            await set_quota(client, {"client-id": "limited"}, producer_byte_rate=rate, consumer_byte_rate=rate)
            assert len(await quotas(client)) == 1

        def produce() -> None:
            producer = KafkaProducer(
                bootstrap_servers=bootstrap, client_id="limited", batch_size=32 * KIB, acks=1, linger_ms=5
            )
            for _ in range(1200):
                producer.send("t", b"v" * KIB)
            producer.flush(60)
            producer.close(10)

        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(produce)
        assert loop.time() - began > 1200 * KIB / rate - 3, "but for the burst that all windows allow"
        assert "ProduceResponse throttled by broker" in caplog.text

        def consume() -> int:
            consumer = KafkaConsumer(
                "t", bootstrap_servers=bootstrap, client_id="limited", auto_offset_reset="earliest"
            )
            count = 0
            while count < 1200:
                count += sum(len(records) for records in consumer.poll(1000).values())
            consumer.close(autocommit=False)
            return count

        began = loop.time()
        assert await asyncio.to_thread(consume) == 1200
        assert loop.time() - began > 1200 * KIB / rate - 3
        assert "FetchResponse throttled by broker" in caplog.text
