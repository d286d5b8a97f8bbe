"""Hostile clients over real sockets, on both event loops: they get an error or are closed, nobody else notices."""

import asyncio
import functools
import inspect
import random  # noqa: TID251
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.errors import ErrorCode
from tests.support.hot_broker import HotBroker
from tests.support.raw_client import RawClient, batch_of, fetch_request, produce_request
from tests.support.waiting import until


def hostile(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run `test(broker, ...)` on both event loops; afterwards others are served and all memory came back."""

    def run(tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop], **values: object) -> None:
        async def body() -> None:
            async with HotBroker(tmp_path, queued_max_request_bytes=8 << 20) as broker:
                broker.create_topic("t", 3)
                await test(broker, **values)
                async with RawClient(broker.port) as client:
                    assert (await client.produce("t", batch_of(b"still there"))).error_code == 0
                hub = broker.server.hub
                await until(lambda: not hub.connections)
                assert broker.services.counters.server_errors == 0
                assert (hub.budget.used, hub.unsent_bytes, len(hub.budget.waiting)) == (0, 0, 0)
                assert hub.budget.peak <= hub.budget.limit

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(body())

    functools.update_wrapper(run, test)
    own = [p for p in inspect.signature(test).parameters.values() if p.name != "broker"]
    used = [p for p in inspect.signature(run, follow_wrapped=False).parameters.values() if p.kind is not p.VAR_KEYWORD]
    run.__signature__ = inspect.Signature([*used, *own])  # type: ignore[attr-defined]
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("loop_factory", loops, ids=["asyncio", "uvloop"])(run)


def some_frames(client: RawClient) -> list[bytes]:
    """One valid frame of each kind that this broker parses by hand or decodes."""
    versions = m.ApiVersionsRequest(client_software_name="x", client_software_version="1")
    return [
        client.frame(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"a")), ("t", 1, batch_of(b"b" * 50))]))[1],
        client.frame(ApiKey.PRODUCE, 3, produce_request([("t", 0, batch_of(b"a"))]))[1],
        client.frame(ApiKey.FETCH, 12, fetch_request([("t", 0, 0), ("t", 2, 0)], session_epoch=0))[1],
        client.frame(ApiKey.FETCH, 4, fetch_request([("t", 0, 0)]))[1],
        client.frame(ApiKey.API_VERSIONS, 3, versions)[1],
        client.frame(ApiKey.LIST_OFFSETS, 7, m.ListOffsetsRequest())[1],
    ]


@hostile
async def test_one_byte_at_a_time(broker: HotBroker) -> None:
    async with RawClient(broker.port) as client:
        request = produce_request([("t", 0, batch_of(b"slowly"))])
        number, frame = client.frame(ApiKey.PRODUCE, 9, request)
        for byte in frame * 2:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        for offset in (0, 1):
            got, answer = await client.receive(ApiKey.PRODUCE, 9)
            part = answer.responses[0].partition_responses[0]
            assert (got, part.error_code, part.base_offset) == (number, 0, offset)


@hostile
async def test_frames_cut_off_at_every_byte(broker: HotBroker) -> None:
    """The length says less than the request: an error or a closed connection, whatever the cut."""
    async with RawClient(broker.port) as template:
        frames = some_frames(template)
    for frame in frames:
        body = frame[4:]
        stops = range(len(body)) if len(body) < 90 else [*range(60), *range(60, len(body), 7)]
        clients = [RawClient(broker.port) for _ in stops]
        for client, stop in zip(clients, stops):
            await client.__aenter__()
            client.writer.write(stop.to_bytes(4, "big") + body[:stop])
        for client in clients:
            assert await client.closed()
            await client.__aexit__(None, None, None)
    assert broker.services.counters.protocol_errors > 200
    assert not any(log.end for log in broker.logs.logs), "half a request appends nothing"


@hostile
async def test_connections_cut_off_at_every_byte(broker: HotBroker) -> None:
    async with RawClient(broker.port) as template:
        frame = some_frames(template)[2]
    for stop in range(0, len(frame), 3):
        async with RawClient(broker.port) as client:
            client.writer.write(frame[:stop])
            await client.writer.drain()


@hostile
async def test_random_damage(broker: HotBroker) -> None:
    draw = random.Random(4)
    async with RawClient(broker.port) as template:
        frames = some_frames(template)
    for _ in range(300):
        frame = bytearray(draw.choice(frames))
        for _ in range(draw.randrange(1, 4)):
            frame[draw.randrange(8, len(frame))] = draw.randrange(256)
        async with RawClient(broker.port) as client:
            client.writer.write(frame)
            client.writer.write_eof()
            assert await client.closed()


@hostile
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"\x7f\xff\xff\xff" + bytes(100),
        b"\x80\x00\x00\x00" + bytes(100),
        b"\x00\x00\x00\x05hello",
        b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\x7f\xff",
        b"\x00\x00\x00\x0a\x03\xe7\x00\x00\x00\x00\x00\x01\xff\xff",
        b"\x00\x00\x00\x0a\xff\xff\x00\x00\x00\x00\x00\x01\xff\xff",
        b"\x00\x00\x00\x0b\x00\x12\x00\x03\x00\x00\x00\x01\xff\xff\xff",
        bytes(200),
        b"\xff" * 200,
    ],
)
async def test_garbage_before_anything_else(broker: HotBroker, data: bytes) -> None:
    async with RawClient(broker.port) as client:
        client.writer.write(data)
        assert await client.closed()
    assert broker.services.counters.protocol_errors == 1


@hostile
async def test_versions_that_are_not_served(broker: HotBroker) -> None:
    for key, version in ((ApiKey.PRODUCE, 14), (ApiKey.FETCH, 3), (ApiKey.FETCH, 19), (ApiKey.METADATA, 99)):
        async with RawClient(broker.port) as client:
            content = key.to_bytes(2, "big") + version.to_bytes(2, "big") + b"\0\0\0\1\xff\xff\0" + bytes(30)
            client.writer.write(len(content).to_bytes(4, "big") + content)
            assert await client.closed(), (key, version)
    unserved = next(key for key in APIS if key not in broker.handlers)
    async with RawClient(broker.port) as client:
        content = unserved.to_bytes(2, "big") + bytes(30)
        client.writer.write(len(content).to_bytes(4, "big") + content)
        assert await client.closed()


@hostile
async def test_absurd_counts(broker: HotBroker) -> None:
    """Counts and lengths far beyond the frame are refused before anything is made for them."""
    head = b"\x00\x00\x00\x09\x00\x00\x00\x01\xff\xff\x00"
    for body in (
        b"\x00\xff\xff\x00\x00\x03\xe8\xff\xff\xff\xff\x0f",
        b"\x00\xff\xff\x00\x00\x03\xe8\x02\x02t\xff\xff\xff\xff\x0f",
        b"\x00\xff\xff\x00\x00\x03\xe8\x02\x02t\x02\x00\x00\x00\x00\xff\xff\xff\xff\x0f",
        b"\xff\xff\xff\xff\x0f",
    ):
        async with RawClient(broker.port) as client:
            content = head[:4] + head[4:] + body
            client.writer.write(len(content).to_bytes(4, "big") + content)
            assert await client.closed()
    async with RawClient(broker.port) as client:
        content = b"\x00\x02\x00\x01\x00\x00\x00\x01\xff\xff" + b"\xff\xff\xff\xff" + b"\x7f\xff\xff\xff" + bytes(10)
        client.writer.write(len(content).to_bytes(4, "big") + content)
        assert await client.closed()


@hostile
async def test_many_connections_that_promise_much(broker: HotBroker) -> None:
    """Two hundred connections announce 4 MiB each: memory stays within its bound, small requests pass."""
    clients = [RawClient(broker.port) for _ in range(200)]
    for client in clients:
        await client.__aenter__()
        content = b"\x00\x00\x00\x09\x00\x00\x00\x01\xff\xff\x00" + bytes(2000)
        client.writer.write((4 << 20).to_bytes(4, "big") + content)
    await until(lambda: len(broker.server.hub.budget.waiting) == 198)
    assert broker.server.hub.budget.used == 8 << 20
    async with RawClient(broker.port) as client:
        assert (await client.produce("t", batch_of(b"x" * 10_000))).error_code == 0
    for client in clients:
        client.writer.transport.abort()
        await client.__aexit__(None, None, None)


@hostile
async def test_a_frame_that_does_not_come_is_given_up_when_others_wait(broker: HotBroker) -> None:
    hub = broker.server.hub
    async with RawClient(broker.port) as stalled, RawClient(broker.port) as waiting:
        large = (8 << 20).to_bytes(4, "big") + b"\x00\x00\x00\x09\x00\x00\x00\x01\xff\xff\x00" + bytes(2000)
        stalled.writer.write(large)
        await until(lambda: hub.budget.used == 8 << 20)
        _, frame = waiting.frame(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"x" * 500_000))]))
        waiting.writer.write(frame)
        await until(lambda: hub.budget.waiting)
        hub.tick += 200
        hub.on_tick()
        _, answer = await waiting.receive(ApiKey.PRODUCE, 9)
        assert answer.responses[0].partition_responses[0].error_code == 0
        assert await stalled.closed()


@hostile
async def test_requests_in_a_flood_are_bounded(broker: HotBroker) -> None:
    """A client that sends without end and reads nothing back."""
    broker.gate.closed = True
    async with RawClient(broker.port) as client:
        _, frame = client.frame(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"x" * 100))]))
        client.writer.write(frame * 5000)
        limit = broker.settings.queued_max_requests
        await until(lambda: broker.log("t").end >= limit)
        for _ in range(20):
            await asyncio.sleep(0)
        assert broker.log("t").end == limit
        broker.gate.open()
        for i in range(5000):
            _, answer = await client.receive(ApiKey.PRODUCE, 9)
            assert answer.responses[0].partition_responses[0].base_offset == i


@hostile
async def test_a_large_request_of_a_small_api_is_refused(broker: HotBroker) -> None:
    async with RawClient(broker.port) as client:
        content = b"\x00\x02\x00\x07\x00\x00\x00\x01\xff\xff\x00" + bytes(1000)
        client.writer.write((9 << 20).to_bytes(4, "big") + content)
        assert await client.closed()


@hostile
async def test_millions_of_empty_partitions(broker: HotBroker) -> None:
    """Other connections do not wait for what a frame of small parts would take to handle."""
    served = 0

    async def others() -> None:
        nonlocal served
        async with RawClient(broker.port) as client:
            while True:
                await client.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
                served += 1

    async with RawClient(broker.port) as client, asyncio.TaskGroup() as group:
        meanwhile = group.create_task(others())
        parts = b"\xc1\x84\x3d" + bytes(6_000_000)
        body = b"\x00\xff\xff\x00\x00\x03\xe8\x02\x02t" + parts + bytes(3)
        content = b"\x00\x00\x00\x09\x00\x00\x00\x01\xff\xff\x00" + body
        client.writer.write(len(content).to_bytes(4, "big") + content)
        assert await client.closed()
        offsets = b"\x00\x02\x00\x07\x00\x00\x00\x02\xff\xff\x00" + b"\xff\xff\xff\xff\x00" + b"\xc1\x84\x3d"
        async with RawClient(broker.port) as second:
            content = offsets + bytes(1_000_000 - len(offsets))
            second.writer.write(len(content).to_bytes(4, "big") + content)
            assert await second.closed()
        assert served > 3
        meanwhile.cancel()


@hostile
async def test_a_large_request_is_decoded_off_the_loop_and_answered(broker: HotBroker) -> None:
    wanted = [m.ListOffsetsRequest.ListOffsetsPartition(partition_index=i % 3, timestamp=-1) for i in range(5000)]
    topic = m.ListOffsetsRequest.ListOffsetsTopic(name="t", partitions=wanted)
    request = m.ListOffsetsRequest(replica_id=-1, topics=[topic])
    async with RawClient(broker.port) as client:
        client.send(ApiKey.LIST_OFFSETS, 7, request)
        client.send(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
        _, answer = await client.receive(ApiKey.LIST_OFFSETS, 7)
        assert len(answer.topics[0].partitions) == 5000
        await client.receive(ApiKey.API_VERSIONS, 0)


@hostile
async def test_a_thousand_idle_connections_cost_little(broker: HotBroker) -> None:
    clients = [RawClient(broker.port) for _ in range(500)]
    for client in clients:
        await client.__aenter__()
    await asyncio.gather(*(client.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest()) for client in clients))
    assert len(broker.server.hub.connections) == 500
    assert broker.server.hub.budget.used == 0
    for client in clients:
        await client.__aexit__(None, None, None)


@hostile
async def test_error_code_for_what_the_broker_cannot_take(broker: HotBroker) -> None:
    async with RawClient(broker.port) as client:
        part = await client.produce("t", batch_of(b"x" * 2_000_000))
        assert part.error_code == ErrorCode.MESSAGE_TOO_LARGE
        assert (await client.produce("t", b"\0" * 100)).error_code == ErrorCode.INVALID_RECORD
