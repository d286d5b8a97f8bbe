"""A TCP proxy that does to connections what networks do: resets, silence in one direction or both, delays, cut replies.

    async with DisturbedLink("127.0.0.1", port) as link:
        await link.set(Trouble(hold_up=True))   # what clients send does not arrive; connections stay
        link.reset()                            # those that are there end
        await link.set(NONE)

What is held is passed on when the trouble ends, unless the connection ended first.
"""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple, Self

CHUNK = 65_536


class Trouble(NamedTuple):
    """`hold_up`: nothing gets to the server; `hold_down`: nothing comes back; `refuse`: new connections end at once.

    `delay_s`: every piece waits so long. `cut_after`: the next connection with so many bytes from the server ends.
    `swallow_answer_to`: the next connection whose client sends this ends when the server has answered it, and the
    answer is lost.
    """

    hold_up: bool = False
    hold_down: bool = False
    refuse: bool = False
    delay_s: float = 0
    cut_after: int | None = None
    swallow_answer_to: bytes | None = None


NONE = Trouble()


@dataclass
class DisturbedLink:
    """See the module. `connections` counts those ever made."""

    upstream_host: str
    upstream_port: int
    connections: int = 0
    _trouble: Trouble = NONE
    _server: asyncio.Server | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Listens on a port that the system chooses."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
            self.reset()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def set(self, trouble: Trouble) -> None:
        """From now on."""
        async with self._changed:
            self._trouble = trouble
            self._changed.notify_all()

    def reset(self) -> None:
        """All connections end, without a word."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._open.add(writer)
        try:
            if not self._trouble.refuse:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self.upstream_host, self.upstream_port)
        self._open.add(server_writer)
        swallows = asyncio.Event()
        try:
            ways = [
                asyncio.ensure_future(self._pass(reader, server_writer, swallows, up=True)),  # noqa: TID251
                asyncio.ensure_future(self._pass(server_reader, writer, swallows, up=False)),  # noqa: TID251
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            server_writer.transport.abort()
            self._open.discard(server_writer)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallows: asyncio.Event, *, up: bool
    ) -> None:
        passed = 0
        while data := await reader.read(CHUNK):
            if self._trouble != NONE:
                wanted = self._trouble.swallow_answer_to
                if up and wanted is not None and wanted in data:
                    self._trouble = self._trouble._replace(swallow_answer_to=None)
                    swallows.set()
                if self._trouble.delay_s:
                    await asyncio.sleep(self._trouble.delay_s)
                async with self._changed:
                    await self._changed.wait_for(lambda: not (self._trouble.hold_up if up else self._trouble.hold_down))
                limit = self._trouble.cut_after
                if limit is not None and not up and passed + len(data) > limit:
                    self._trouble = self._trouble._replace(cut_after=None)
                    writer.write(data[: max(0, limit - passed)])
                    await writer.drain()
                    return
            if swallows.is_set() and not up:
                return
            passed += len(data)
            writer.write(data)
            await writer.drain()
