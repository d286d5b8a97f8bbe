"""A TCP proxy in front of any server, for what networks do to connections: cut, hang, swallow replies.

async with TcpProxy("127.0.0.1", server.port) as proxy:
    proxy.deaf = True       # what clients send arrives; nothing comes back
    proxy.cut()             # every connection ends at once
"""

import asyncio
from contextlib import suppress


class TcpProxy:
    """Use `port` in place of the server's."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.upstream_port = host, port
        self.port = 0
        self.deaf = False
        """Nothing comes back any more, on every connection."""
        self.stuck = False
        """Nothing arrives any more either."""
        self.cut_after: bytes | None = None
        """A connection whose client sends this is cut once the server has answered it, the answer swallowed."""
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "TcpProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """End every connection, without a word."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(self.host, self.upstream_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        marked = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(1 << 16):
                while self.stuck:
                    await asyncio.sleep(0.01)
                if self.cut_after is not None and self.cut_after in data:
                    marked.set()
                up_writer.write(data)
                await up_writer.drain()

        async def replies() -> None:
            while data := await up_reader.read(1 << 16):
                if marked.is_set():
                    self.cut_after = None
                    return
                if not self.deaf:
                    writer.write(data)
                    await writer.drain()

        try:
            with suppress(OSError):
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(requests()), group.create_task(replies())]
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in tasks:
                        task.cancel()
        except* OSError:
            pass
        finally:
            for one in (writer, up_writer):
                self._writers.discard(one)
                one.transport.abort()
