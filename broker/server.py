"""Listeners, limits on connections, idle and stuck clients, graceful stop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from broker.connection import HOLD_THROTTLED, Connection, Hub
from broker.dispatch import Dispatcher
from broker.settings import Listener
from protocol.apis import CONTROL_KEY

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
        self._dispatcher = dispatcher
        super().__init__(
            self._peers_only,
            dispatcher.request_bytes_max,
            services.counters,
            services.ticks_us,
            request_bytes_max=settings.socket_request_max_bytes,
            requests_bytes_max=settings.queued_max_request_bytes,
            pending_max=settings.queued_max_requests,
        )
        self._settings = settings
        self._serving = False
        self._quotas = services.quotas
        self._quotas.follow(self._choose_dispatch)
        self._per_ip: dict[str, int] = {}
        idle_ms = settings.connections_max_idle_ms
        self.tick_ms = TICK_MS if idle_ms < 0 else max(TICK_MS_MIN, min(TICK_MS, idle_ms // 4))
        self._idle_ticks = 0 if idle_ms < 0 else max(1, -(-idle_ms // self.tick_ms))
        self._wheel: dict[int, dict[Connection, None]] = {}
        self._due: dict[Connection, int] = {}  # where in the wheel it is: a closed one leaves at once

    def serve_clients(self, serve: bool) -> None:
        """Whether requests of clients are answered; those of other brokers always are."""
        self._serving = serve
        self._choose_dispatch()

    def _choose_dispatch(self) -> None:
        """Requests are measured only while quotas are set."""
        inner = self._dispatcher.dispatch if self._serving else self._peers_only
        self.dispatch = self._quotas.dispatch(inner) if self._serving and self._quotas.active else inner

    def _peers_only(self, connection: Connection, buf: bytearray, start: int, end: int, owned: bool) -> None:
        """Before clients are served and when they are no more: they may as well have found nobody listening."""
        if int.from_bytes(buf[start : start + 2], "big") == CONTROL_KEY:
            self._dispatcher.dispatch(connection, buf, start, end, owned)
        else:
            connection.close()

    def accept(self, connection: Connection) -> bool:
        """Count the connection; False: it is one too many and is closed at once."""
        address = connection.client_address
        settings, here = self._settings, self._per_ip.get(address, 0)
        if len(self.connections) >= settings.max_connections or here >= settings.max_connections_per_ip:
            self.counters.connections_refused += 1
            self.complain("refusing a connection of %s: too many connections", address)
            return False
        self.connections[connection] = None
        self.counters.connections_opened += 1
        self._per_ip[address] = here + 1
        delay_ms = self._quotas.connection_delay_ms(address)
        if delay_ms:
            self.counters.connections_refused += 1
            connection.hold(HOLD_THROTTLED)
            asyncio.get_running_loop().call_later(delay_ms / 1000, connection.abort)
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
        self._quotas.forget(connection)
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
        self._servers: dict[str, asyncio.Server] = {}
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
            self._servers[listener.name] = server
            bound.append(listener._replace(port=server.sockets[0].getsockname()[1]))
        return bound

    async def serve_peers(self) -> None:
        """Answer other brokers from now on, and nobody else."""
        assert self.services.control is not None
        self._tick_later()
        await self._servers[self.services.control.listener].start_serving()

    async def serve(self) -> None:
        """Answer clients from now on."""
        self._tick_later()
        self.hub.serve_clients(True)
        for server in self._servers.values():
            await server.start_serving()

    def _tick_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.hub.tick_ms / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.hub.tick_ms / 1000, self._tick)
        self.hub.on_tick()

    def stop_accepting(self, *, but_peers: bool = False) -> None:
        """Close the listeners, `but_peers`: not the one where other brokers ask; connections go on."""
        control = self.services.control
        for name, server in self._servers.items():
            if control is None or name != control.listener or not but_peers:
                server.close()

    async def drain(self, timeout_ms: int, *, but_peers: bool = False) -> None:
        """Take no further request of a client, answer what is appended, release what waits, then close.

        `but_peers`: other brokers are answered until `close`; this one may be their controller.
        """
        self.stop_accepting(but_peers=but_peers)
        self.services.logs.space.expire_all()
        for connection in self._clients():
            connection.finish()
        self.hub.serve_clients(False)
        for opened in list(self.services.logs.logs):
            opened.wake_all()
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        while self._clients() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        for connection in self._clients():
            connection.abort()
        if not but_peers:
            await self.close()

    def _clients(self) -> list[Connection]:
        control = self.services.control
        peers = control.connections if control is not None else {}
        return [connection for connection in self.hub.connections if connection not in peers]

    async def close(self) -> None:
        """Close everything at once."""
        for server in self._servers.values():
            server.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self.hub.connections):
            connection.abort()
        while self.hub.connections:
            await asyncio.sleep(0)
        for server in self._servers.values():
            await server.wait_closed()
        self._servers.clear()
