"""The proxy that disturbs connections, over an echo server."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from tests.support.disturbed_link import NONE, DisturbedLink, Trouble
from tests.support.waiting import until

SILENT_S = 0.05


@pytest.fixture
async def echo() -> AsyncIterator[DisturbedLink]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with DisturbedLink("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
        for client in Client.open:
            client.writer.transport.abort()
        Client.open.clear()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)


class Client:
    open: ClassVar[list["Client"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.open.append(self)

    @classmethod
    async def of(cls, proxy: DisturbedLink) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def says(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.hears(len(data))

    async def hears(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), 5)

    async def ended(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(100), 5) == b""
        except ConnectionError:
            return True

    async def silent(self) -> bool:
        try:
            await asyncio.wait_for(self.reader.read(100), SILENT_S)
        except TimeoutError:
            return True
        return False


async def test_it_passes_what_comes(echo: DisturbedLink) -> None:
    one, other = await Client.of(echo), await Client.of(echo)
    assert await one.says(b"a" * 1000) == b"a" * 1000
    assert await other.says(b"b") == b"b" and echo.connections == 2


async def test_resets_and_refusals_end_connections(echo: DisturbedLink) -> None:
    one = await Client.of(echo)
    await one.says(b"a")
    echo.reset()
    assert await one.ended()
    await echo.set(Trouble(refuse=True))
    assert await (await Client.of(echo)).ended()
    await echo.set(NONE)
    assert await (await Client.of(echo)).says(b"b") == b"b"


@pytest.mark.parametrize("trouble", [Trouble(hold_up=True), Trouble(hold_down=True), Trouble(True, True)])
async def test_what_is_held_arrives_when_it_is_over(echo: DisturbedLink, trouble: Trouble) -> None:
    one = await Client.of(echo)
    await one.says(b"a")
    await echo.set(trouble)
    one.writer.write(b"held")
    assert await one.silent()
    await echo.set(NONE)
    assert await one.hears(4) == b"held"


async def test_delays(echo: DisturbedLink) -> None:
    one = await Client.of(echo)
    await echo.set(Trouble(delay_s=0.05))
    began = asyncio.get_running_loop().time()
    assert await one.says(b"late") == b"late"
    assert asyncio.get_running_loop().time() - began >= 0.1


async def test_a_reply_that_is_cut(echo: DisturbedLink) -> None:
    one = await Client.of(echo)
    await echo.set(Trouble(cut_after=3))
    one.writer.write(b"abcdef")
    assert await one.hears(3) == b"abc" and await one.ended()
    assert await (await Client.of(echo)).says(b"abcdef") == b"abcdef", "once"


async def test_who_leaves_is_not_kept(echo: DisturbedLink) -> None:
    one = await Client.of(echo)
    await one.says(b"a")
    one.writer.close()
    await until(lambda: not echo._open)
