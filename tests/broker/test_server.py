"""Listeners, ApiVersions, limits on connections, graceful stop."""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from broker.dispatch import HANDLERS
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.support.hot_broker import HotBroker
from tests.support.raw_client import RawClient, batch_of, fetch_request, produce_request
from tests.support.waiting import until


@pytest.mark.parametrize("version", range(5))
async def test_api_versions_come_from_the_table(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        request = m.ApiVersionsRequest(client_software_name="test", client_software_version="1.0")
        answer = await client.ask(ApiKey.API_VERSIONS, version, request)
        assert answer.error_code == 0
        told = {row.api_key: (row.min_version, row.max_version) for row in answer.api_keys}
        wanted = {int(key): (entry.min_version, entry.max_version) for key, entry in HANDLERS.items()}
        wanted[ApiKey.PRODUCE] = (0, 13)
        assert told == wanted


async def test_newer_api_versions_are_answered_in_version_0(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        # As a client of the future would: flexible header, a body nobody knows.
        client.writer.write(b"\0\0\0\x13" + b"\0\x12" + b"\0\x63" + b"\0\0\0\x2a" + b"\xff\xff" + b"\0" + b"whatever")
        frame = await client.receive_frame()
        assert frame[:4] == b"\0\0\0\x2a"
        answer = m.ApiVersionsResponse.decode(frame, 0, 4)
        assert answer.error_code == ErrorCode.UNSUPPORTED_VERSION
        assert [(row.api_key, row.min_version, row.max_version) for row in answer.api_keys] == [(18, 0, 4)]
        # The connection goes on with what is served.
        assert (await client.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())).error_code == 0


async def test_software_names_are_checked_as_in_kafka(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        for name in ("", "-x", "a b"):
            request = m.ApiVersionsRequest(client_software_name=name, client_software_version="1")
            answer = await client.ask(ApiKey.API_VERSIONS, 3, request)
            assert answer.error_code == ErrorCode.INVALID_REQUEST


async def test_connections_beyond_the_limits_are_closed(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, max_connections_per_ip=2) as broker:
        async with RawClient(broker.port) as first, RawClient(broker.port) as second:
            await first.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
            await second.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
            async with RawClient(broker.port) as third:
                assert await third.closed()
            assert broker.services.counters.connections_refused == 1
            await first.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
        await until(lambda: not broker.server.hub.connections)
        async with RawClient(broker.port) as again:
            await again.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())


async def test_idle_connections_are_closed_and_busy_ones_are_not(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, connections_max_idle_ms=200) as broker:
        broker.create_topic("t")
        async with RawClient(broker.port) as idle, RawClient(broker.port) as polling, RawClient(broker.port) as busy:
            polling.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=800))
            for _ in range(12):
                await busy.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
                await asyncio.sleep(0.05)
            assert idle.reader.at_eof()
            assert not busy.reader.at_eof()
            await polling.receive(ApiKey.FETCH, 12)
        assert broker.services.counters.connections_idle_closed >= 1


async def test_connections_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        hub = broker.server.hub
        accepted: list[weakref.ref[object]] = []
        for _ in range(10):
            async with RawClient(broker.port) as client:
                await client.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
                accepted += [weakref.ref(connection) for connection in hub.connections]
            await until(lambda: not hub.connections)
        gc.collect()
        assert accepted and not any(connection() for connection in accepted), "not before their idle time is over"


async def test_drain_answers_what_is_appended_and_what_waits(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as producer, RawClient(broker.port) as consumer:
        broker.create_topic("t")
        broker.gate.closed = True
        consumer.send(ApiKey.FETCH, 12, fetch_request([("t", 0, 0)], max_wait_ms=60_000))
        producer.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"a"))]))
        await until(lambda: broker.gate.last[0] >= 1)
        draining = asyncio.ensure_future(broker.server.drain(5000))  # noqa: TID251
        await asyncio.sleep(0.02)
        assert not draining.done()
        broker.gate.open()
        _, answer = await producer.receive(ApiKey.PRODUCE, 9)
        assert answer.responses[0].partition_responses[0].error_code == 0
        _, fetched = await consumer.receive(ApiKey.FETCH, 12)
        assert fetched.responses[0].partitions[0].high_watermark == 0, "a long poll does not hold up the stop"
        await asyncio.wait_for(draining, 5)
        assert await producer.closed()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", broker.port)
