"""The HTTP address: taken before anything else happens, answered when clients are served."""

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from broker.bucket import CannotStart
from broker.metrics import Metrics
from broker.operators import Operators

if TYPE_CHECKING:
    from broker.http.server import HttpServer

LATER_S = 2
"""How long a start may take before the port answers: importing its library takes as long as all the rest."""


class HttpPort:
    """A socket that listens."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening

    @classmethod
    def bind(cls, listener: str) -> Self:
        """`listener`: the setting, `host:port`. CannotStart if the address is taken."""
        host, _, port = listener.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            every = not host and socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if every or ":" in host else socket.AF_INET
            listening = socket.create_server((host, int(port)), family=family, dualstack_ipv6=every)
        except OSError as error:
            why = error.strerror or error
            raise CannotStart(f"cannot listen on tidelog.http.listener {listener}: {why}") from None
        return cls(listening)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port as bound."""
        host, port = self._listening.getsockname()[:2]
        return host, port

    async def serve(
        self,
        started: asyncio.Event,
        metrics: Metrics,
        ready: Callable[[], bool],
        operators: Callable[[], Operators | None],
    ) -> None:
        """Answer once clients are served, or when that takes a while. Requests wait in the socket till then."""
        with self._listening:
            try:
                async with asyncio.timeout(LATER_S):
                    await started.wait()
            except TimeoutError:
                pass
            server = await asyncio.to_thread(_import_server)
            http = server(metrics, ready, operators)
            try:
                await http.start(self._listening)
                await asyncio.get_running_loop().create_future()
            finally:
                await http.stop()


def _import_server() -> "type[HttpServer]":
    from broker.http.server import HttpServer

    return HttpServer
