"""Listeners, limits on connections, idle and stuck clients, graceful stop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from broker.connection import Connection, Hub
from broker.dispatch import Dispatcher
from broker.settings import Listener

if TYPE_CHECKING:
    from broker.services import Services

log = logging.getLogger(__name__)

TICK_MS = 1000
TICK_MS_MIN = 20


class ServerHub(Hub):
    """The hub of a server: it refuses connections beyond the limits and closes those that are idle or stuck."""

    def __init__(self, services: Services) -> None:
        settings = services.settings
        dispatcher = Dispatcher(services, services.handlers)
        super().__init__(
            dispatcher.dispatch,
            dispatcher.request_bytes_max,
            services.counters,
            services.ticks_us,
            request_bytes_max=settings.socket_request_max_bytes,
            requests_bytes_max=settings.queued_max_request_bytes,
            pending_max=settings.queued_max_requests,
        )
        self._connections_max = settings.max_connections
        self._per_ip_max = settings.max_connections_per_ip
        self._per_ip: dict[str, int] = {}
        idle_ms = settings.connections_max_idle_ms
        self.tick_ms = TICK_MS if idle_ms < 0 else max(TICK_MS_MIN, min(TICK_MS, idle_ms // 4))
        self._idle_ticks = 0 if idle_ms < 0 else max(1, -(-idle_ms // self.tick_ms))
        self._wheel: dict[int, dict[Connection, None]] = {}
        self._due: dict[Connection, int] = {}  # where in the wheel it is: a closed one leaves at once

    def accept(self, connection: Connection) -> bool:
        """Count the connection; False: it is one too many and is closed at once."""
        address = connection.client_address
        if len(self.connections) >= self._connections_max or self._per_ip.get(address, 0) >= self._per_ip_max:
            self.counters.connections_refused += 1
            self.complain("refusing a connection of %s: too many connections", address)
            return False
        self.connections[connection] = None
        self.counters.connections_opened += 1
        self._per_ip[address] = self._per_ip.get(address, 0) + 1
        if self._idle_ticks:
            self._look_at(connection, self.tick + self._idle_ticks)
        return True

    def _look_at(self, connection: Connection, tick: int) -> None:
        self._due[connection] = tick
        self._wheel.setdefault(tick, {})[connection] = None

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        if self.connections.pop(connection, self) is self:
            return
        self._wheel.get(self._due.pop(connection, -1), {}).pop(connection, None)
        self.counters.connections_closed += 1
        left = self._per_ip[connection.client_address] - 1
        if left:
            self._per_ip[connection.client_address] = left
        else:
            del self._per_ip[connection.client_address]

    def on_tick(self) -> None:
        """Once per `tick_ms`: close what is idle, and what holds memory that others wait for."""
        self.tick += 1
        self.complaints_left = 10
        for connection in self._wheel.pop(self.tick, ()):
            if connection.closed:
                continue
            due = connection.active_tick + self._idle_ticks
            stuck = connection.is_stuck()
            if due > self.tick or (connection.pending and not stuck):
                self._look_at(connection, max(due, self.tick + 1))
            elif stuck:
                self._close_slow(connection)
            else:
                self.counters.connections_idle_closed += 1
                connection.close()
        if self.unsent_bytes > self.budget.limit:
            for connection in sorted(self.connections, key=lambda each: each.active_tick):
                if self.unsent_bytes <= self.budget.limit:
                    break
                if connection.is_stuck():
                    self._close_slow(connection)
        if self.budget.waiting:
            ticks_per_second = 1000 / self.tick_ms
            for connection in list(self.connections):
                if connection.frame_is_late(ticks_per_second):
                    self.complain(
                        "closing the connection of %s: its request does not arrive", connection.client_address
                    )
                    connection.abort()

    def _close_slow(self, connection: Connection) -> None:
        self.counters.slow_readers_closed += 1
        self.complain("closing the connection of %s: it does not read its answers", connection.client_address)
        connection.abort()


class Server:
    """All listeners of the broker, on the running loop."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.hub = ServerHub(services)
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    async def bind(self, listeners: list[Listener]) -> list[Listener]:
        """Take the addresses; the listeners with the ports that they got. OSError if an address is taken."""
        loop = asyncio.get_running_loop()
        bound = []
        for listener in listeners:
            server = await loop.create_server(
                lambda name=listener.name: Connection(self.hub, name),
                listener.host or None,
                listener.port,
                backlog=self.services.settings.socket_listen_backlog_size,
                start_serving=False,
            )
            self._servers.append(server)
            bound.append(listener._replace(port=server.sockets[0].getsockname()[1]))
        return bound

    async def serve(self) -> None:
        """Accept connections from now on."""
        self._timer = asyncio.get_running_loop().call_later(self.hub.tick_ms / 1000, self._tick)
        for server in self._servers:
            await server.start_serving()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.hub.tick_ms / 1000, self._tick)
        self.hub.on_tick()

    def stop_accepting(self) -> None:
        """Close the listeners; connections go on."""
        for server in self._servers:
            server.close()

    async def drain(self, timeout_ms: int) -> None:
        """Take no further request, answer what is appended, release what waits, then close every connection."""
        self.stop_accepting()
        self.services.logs.space.expire_all()
        for connection in list(self.hub.connections):
            connection.finish()
        for opened in list(self.services.logs.logs):
            opened.wake_all()
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        while self.hub.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        await self.close()

    async def close(self) -> None:
        """Close everything at once."""
        self.stop_accepting()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self.hub.connections):
            connection.abort()
        while self.hub.connections:
            await asyncio.sleep(0)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
