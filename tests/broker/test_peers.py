"""Calls to other brokers: order, loss, silence, back-off."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

import broker.peers
from broker.peers import IN_FLIGHT_MAX, Peers
from controller.remote import LinkError, LinkTimeout, Target
from tests.support.waiting import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Other:
    """A listener that does what the test says with every connection."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.connections = 0
        self.target = Target(2, 200, "127.0.0.1", 0)

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def other(serve: Serve) -> AsyncIterator[tuple[Other, Peers]]:
    made, peers = Other(serve), Peers()
    server = await asyncio.start_server(made.met, "127.0.0.1", 0)
    async with server:
        made.target = made.target._replace(port=server.sockets[0].getsockname()[1])
        yield made, peers
        await peers.close()


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(correlation id, body) of a request."""
    frame = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
    assert frame[:4] == b"\x75\x30\0\0" and frame[8:17] == b"\0\7tidelog"
    return int.from_bytes(frame[4:8], "big"), frame[17:]


def answer(number: int, body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + number.to_bytes(4, "big") + body


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(answer(*await read(reader)))


async def test_many_at_once_over_one_connection() -> None:
    async with other(echo) as (made, peers):
        bodies = [str(i).encode() * (1 + i % 3000) for i in range(3 * IN_FLIGHT_MAX)]
        assert await asyncio.gather(*[peers.call("ask", made.target, body, 5000) for body in bodies]) == bodies
        assert made.connections == 1
        assert await peers.call("follow", made.target, b"x", 5000) == b"x"
        assert made.connections == 2, "a lane of its own"


async def test_a_lost_connection_is_told_to_all_and_made_again() -> None:
    rounds = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            await echo(reader, writer)
        for _ in range(3):
            await read(reader)

    async with other(serve) as (made, peers):
        calls = [peers.call("ask", made.target, b"x", 5000) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LinkError] * 3
        assert await peers.call("ask", made.target, b"y", 5000) == b"y"


async def test_silence_is_told_from_loss_and_ends_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        assert await reader.read() == b""

    async with other(serve) as (made, peers):
        with pytest.raises(LinkTimeout, match="within 50 ms"):
            await peers.call("ask", made.target, b"x", 50)
        made.serve = echo
        assert await peers.call("ask", made.target, b"y", 5000) == b"y"
        assert made.connections == 2


@pytest.mark.parametrize(
    "garbage", [b"\0\0\0\5\0\0\0\x63x", b"\x7f\xff\xff\xff\0\0\0\1", b"\0\0\0\1\0\0\0\1", b"HTTP/1.1 400 Bad"]
)
async def test_answers_that_are_none(garbage: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(garbage)
        await reader.read()

    async with other(serve) as (made, peers):
        with pytest.raises(LinkError, match="what was not asked"):
            await peers.call("ask", made.target, b"x", 5000)


async def test_nobody_listens_and_it_is_not_tried_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.peers, "BACKOFF_MS", 30)
    async with other(echo) as (made, peers):
        target = made.target
        dead = await asyncio.start_server(made.met, "127.0.0.1", 0)
        gone = target._replace(port=dead.sockets[0].getsockname()[1])
        dead.close()
        await dead.wait_closed()
        with pytest.raises(LinkError, match="cannot connect"):
            await peers.call("ask", gone, b"x", 5000)
        with pytest.raises(LinkError, match="just now"):
            await peers.call("ask", gone, b"x", 5000)
        assert await peers.call("ask", target, b"x", 5000) == b"x", "another target is tried at once"
        with pytest.raises(LinkError, match="cannot connect"):
            await peers.call("ask", gone, b"x", 5000)
        tried = 0

        async def again() -> bool:
            nonlocal tried
            tried += 1
            with pytest.raises(LinkError) as caught:
                await peers.call("ask", gone, b"x", 5000)
            return "cannot connect" in str(caught.value)

        while not await again():
            await asyncio.sleep(0.005)
        assert tried > 1


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "a b", "."])
async def test_what_is_no_host_cannot_be_connected_to(host: str) -> None:
    """What a broker says of itself is all that others know: one that is told wrong ends nobody else."""
    async with other(echo) as (made, peers):
        with pytest.raises(LinkError, match="cannot connect"):
            await peers.call("ask", made.target._replace(host=host), b"x", 5000)
        with pytest.raises(LinkError, match="just now"):
            await peers.call("ask", made.target._replace(host=host), b"x", 5000)


async def test_who_gives_up_does_not_confuse_the_rest() -> None:
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, second = await read(reader), await read(reader)
        await gate.wait()
        writer.write(answer(*first) + answer(*second))
        await reader.read()

    async with other(serve) as (made, peers):
        calls = [asyncio.ensure_future(peers.call("ask", made.target, body, 5000)) for body in (b"a", b"b")]  # noqa: TID251
        await until(lambda: made.connections)
        calls[0].cancel()
        gate.set()
        assert await calls[1] == b"b"
