"""A simulated network: streams between hosts as asyncio shows them, with delays, resets, partitions and dead hosts.

A `Socket` is the kernel's end of a connection and outlives its process; a `SimulatedTransport` is what the loop makes
of it. Packets of one direction of a connection arrive in order, whatever their delays. What a partition or a dead or
suspended host stops is sent again when it is over, as TCP does.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tests.simulation.scheduler import MS, US, Scheduler
from tests.simulation.transport import End, SimulatedTransport

if TYPE_CHECKING:
    from tests.simulation.hosts import Host
    from tests.simulation.process import Process

Address = tuple[str, int]
"""(host name, port)."""

SEGMENT_BYTES = 64 * 1024
DELAY_NS = (30 * US, 400 * US)
"""At least, and up to so much more."""
SPIKE_CHANCE = 0.01
SPIKE_NS = 40 * MS
RETRANSMIT_NS = 400 * MS
CUT_CHANCE = 0.15
"""How often a write arrives in two pieces."""
FIRST_PORT = 20_000


class Socket:
    """One end of a connection, as the kernel of its host knows it."""

    def __init__(self, process: Process, local: Address, remote: Address) -> None:
        self.process = process
        self.local = local
        self.remote = remote
        self.peer: Socket | None = None
        self.transport: SimulatedTransport | None = None
        self.incoming: deque[bytes | End] = deque()
        self.closed = False
        """The process or its kernel let go of it: whatever still arrives is answered with a reset."""
        self.broken = False
        """A reset arrived."""
        self.ended = False
        """Nothing more is sent."""
        self.in_flight = 0
        """Bytes sent that the other side did not read yet."""
        self.last_arrival_ns = 0
        """When the last packet sent arrives."""

    @property
    def host(self) -> Host:
        return self.process.host


class _Callee(Protocol):
    def __call__(self, *args: Any) -> None: ...


class Network:
    """All links of a world. Faults are between two hosts, by name, and last until they are healed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.hosts: dict[str, Host] = {}
        self.rng = scheduler.stream("network")
        self.resets = 0
        self._blocked: dict[tuple[str, str], None] = {}
        self._slow: dict[tuple[str, str], int] = {}
        self._waiting: list[tuple[str, str, _Callee, tuple[Any, ...]]] = []
        self._behind: dict[tuple[str, str], int] = {}  # until then a link repeats what it could not deliver
        self._listeners: dict[Address, SimulatedServer] = {}
        self._sockets: dict[Socket, None] = {}
        self._next_port = FIRST_PORT

    # Faults

    def block(self, source: str, target: str) -> None:
        """Nothing gets from one host to another; the other way is open."""
        self._blocked[source, target] = None

    def partition(self, one: str, other: str) -> None:
        """Nothing gets through between two hosts."""
        self.block(one, other)
        self.block(other, one)

    def cut_off(self, name: str) -> None:
        """Nothing gets to or from a host."""
        for other in self.hosts:
            if other != name:
                self.partition(name, other)

    def slow(self, source: str, target: str, delay_ns: int) -> None:
        """Everything takes so much longer from one host to another."""
        self._slow[source, target] = delay_ns

    def reset(self, one: str, other: str) -> None:
        """Every connection between two hosts is reset, by something between them; what is under way is lost."""
        for socket in list(self._sockets):
            if {socket.host.name, socket.remote[0]} == {one, other} and not socket.closed:
                self.resets += 1
                self._break(socket)

    def heal(self, *links: tuple[str, str]) -> None:
        """These links work again, without arguments all of them; what waited arrives."""
        if links:
            for link in links:
                self._blocked.pop(link, None)
                self._slow.pop(link, None)
        else:
            self._blocked.clear()
            self._slow.clear()
        self._send_again()

    # Packets

    def _delay_ns(self, source: str, target: str) -> int:
        dice = self.rng.random()
        delay = DELAY_NS[0] + int(dice * DELAY_NS[1]) + self._slow.get((source, target), 0)
        if dice < SPIKE_CHANCE:
            delay += self.rng.randint(0, SPIKE_NS)
        return delay

    def _send(self, source: str, target: str, callback: _Callee, *args: Any) -> None:
        """A packet on its way: `callback` when it arrives."""
        self.scheduler.call_later_ns(self._delay_ns(source, target), self._arrive, source, target, callback, args)

    def _arrive(self, source: str, target: str, callback: _Callee, args: tuple[Any, ...]) -> None:
        host = self.hosts[target]
        link = (source, target)
        if self._behind.get(link, 0) > self.scheduler.now_ns:
            self.scheduler.call_at_ns(self._behind[link], self._arrive, source, target, callback, args)
        elif link in self._blocked or not host.up or host.suspended:
            self._waiting.append((source, target, callback, args))
        else:
            callback(*args)

    def _send_again(self) -> None:
        """Something is back: what waited arrives after a delay, and nothing overtakes it, whatever is lost again."""
        waiting, self._waiting = self._waiting, []
        for link in dict.fromkeys((source, target) for source, target, _, _ in waiting):
            again_ns = self.scheduler.now_ns + self.rng.randint(0, RETRANSMIT_NS)
            self._behind[link] = max(again_ns, self._behind.get(link, 0))
        for source, target, callback, args in waiting:
            self.scheduler.call_at_ns(self._behind[source, target], self._arrive, source, target, callback, args)

    def _send_in_order(self, socket: Socket, piece: bytes | End) -> None:
        """The next piece of a connection's stream."""
        source, target = socket.host.name, socket.remote[0]
        arrival = self.scheduler.now_ns + self._delay_ns(source, target)
        socket.last_arrival_ns = max(arrival, socket.last_arrival_ns)
        self.scheduler.call_at_ns(socket.last_arrival_ns, self._arrive, source, target, self._receive, (socket, piece))

    def _receive(self, sender: Socket, piece: bytes | End) -> None:
        socket = sender.peer
        if socket is None or socket.closed:
            if not (isinstance(piece, End) and piece.error is not None):
                self._send(sender.remote[0], sender.local[0], self._break, sender)
            return
        socket.incoming.append(piece)
        if isinstance(piece, End) and piece.error is not None:
            socket.broken = True
        if socket.transport is not None:
            socket.transport.arrived()

    def _break(self, socket: Socket) -> None:
        """A reset arrives: nothing that was not read yet can be read any more."""
        if socket.closed:
            return
        socket.broken = True
        socket.incoming.clear()
        socket.incoming.append(End(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")))
        if socket.transport is not None:
            socket.transport.arrived()

    def send(self, socket: Socket, data: bytes) -> None:
        """Take bytes out of a transport's buffer; the window was looked at."""
        socket.in_flight += len(data)
        pieces = [data[start : start + SEGMENT_BYTES] for start in range(0, len(data), SEGMENT_BYTES)]
        if len(data) > 1 and self.rng.random() < CUT_CHANCE:
            at = self.rng.randint(1, min(len(pieces[0]), 64) - 1) if len(pieces[0]) > 1 else 0
            pieces[:1] = [piece for piece in (pieces[0][:at], pieces[0][at:]) if piece]
        for piece in pieces:
            self._send_in_order(socket, piece)

    def end(self, socket: Socket) -> None:
        """FIN: nothing follows."""
        if not socket.ended:
            socket.ended = True
            self._send_in_order(socket, End(None))

    def consumed(self, socket: Socket, n_bytes: int) -> None:
        """The process read so much: the sender may send on."""
        sender = socket.peer
        assert sender is not None
        if sender.transport is not None and sender.transport.wants_window:
            self._send(socket.local[0], sender.local[0], self._acknowledge, sender, n_bytes)
        else:
            sender.in_flight -= n_bytes

    def _acknowledge(self, sender: Socket, n_bytes: int) -> None:
        sender.in_flight -= n_bytes
        if sender.transport is not None:
            sender.transport.writable()

    def close(self, socket: Socket, *, abort: bool) -> None:
        """The process closed it, or is dead. Unread bytes make it a reset, as in Linux."""
        if socket.closed:
            return
        socket.closed = True
        del self._sockets[socket]
        if socket.broken:
            return
        if abort or any(not isinstance(piece, End) for piece in socket.incoming):
            self._send_in_order(socket, End(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")))
        else:
            self.end(socket)

    # What processes and hosts use

    def listen(
        self,
        process: Process,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str | None,
        port: int,
        *,
        start_serving: bool,
    ) -> SimulatedServer:
        """A server as asyncio's `create_server` returns it. OSError: the port is taken."""
        name = process.host.name
        if host not in (None, "", name):
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is no address of {name}")
        address = (name, port or self._free_port())
        if address in self._listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        server = self._listeners[address] = SimulatedServer(self, process, factory, address)
        server.serving = start_serving
        return server

    def _free_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def forget(self, server: SimulatedServer) -> None:
        """It does not listen any more."""
        self._listeners.pop(server.address, None)

    async def connect(
        self, process: Process, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """As asyncio's `create_connection`. OSError when the host is unknown or nobody listens there."""
        if host not in self.hosts:
            raise OSError(errno.EHOSTUNREACH, f"no host {host}")
        loop = process.loop
        socket = Socket(process, (process.host.name, self._free_port()), (host, port))
        self._sockets[socket] = None
        established: asyncio.Future[None] = loop.create_future()
        self._send(process.host.name, host, self._syn, socket, established)
        try:
            await established
        except BaseException:
            self.close(socket, abort=True)
            raise
        protocol = factory()
        transport = SimulatedTransport(self, socket, protocol)
        made = loop.create_future()
        loop.call_soon(transport.begin, made)
        await made
        return transport, protocol

    def _syn(self, socket: Socket, established: asyncio.Future[None]) -> None:
        """At the server's host: its kernel accepts, whatever the process is doing."""
        server = self._listeners.get(socket.remote)
        name = socket.remote[0]
        if server is None or not server.serving:
            self._send(name, socket.local[0], self._answered, socket, established, False)
            return
        if socket.closed:
            return
        accepted = Socket(server.process, socket.remote, socket.local)
        accepted.peer, socket.peer = socket, accepted
        self._sockets[accepted] = None
        server.process.call(server.accept, accepted)
        self._send(name, socket.local[0], self._answered, socket, established, True)

    def _answered(self, socket: Socket, established: asyncio.Future[None], accepted: bool) -> None:
        def tell() -> None:
            if established.done():
                return
            if not accepted:
                established.set_exception(ConnectionRefusedError(errno.ECONNREFUSED, f"nobody at {socket.remote}"))
            elif socket.broken:
                established.set_exception(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            else:
                established.set_result(None)

        socket.process.call(tell)

    def process_died(self, process: Process) -> None:
        """Its kernel closes what the process had open: what it had taken still arrives, then the end or a reset.

        On a host that has crashed connections are only forgotten.
        """
        for server in [one for one in self._listeners.values() if one.process is process]:
            self.forget(server)
        for socket in [one for one in self._sockets if one.process is process]:
            if process.host.up:
                self.close(socket, abort=socket.transport is None or self.rng.random() < 0.5)
            else:  # nobody is left to tell the other side
                socket.closed = True
                del self._sockets[socket]

    def host_back(self) -> None:
        """A host is up again, or awake: what waited for it arrives."""
        self._send_again()


class _BoundSocket:
    """What a server tells of its socket."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        return self._address


class SimulatedServer:
    """What `create_server` returns."""

    def __init__(
        self, network: Network, process: Process, factory: Callable[[], asyncio.BaseProtocol], address: Address
    ) -> None:
        self.process = process
        self.address = address
        self.serving = False
        self.sockets: tuple[_BoundSocket, ...] = (_BoundSocket(address),)
        self._network = network
        self._factory = factory

    async def start_serving(self) -> None:
        self.serving = True

    def is_serving(self) -> bool:
        return self.serving

    def close(self) -> None:
        if self.sockets:
            self.serving = False
            self.sockets = ()
            self._network.forget(self)

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)

    def accept(self, socket: Socket) -> None:
        """On the loop of the server: a connection was made."""
        if not self.sockets:
            self._network.close(socket, abort=True)
            return
        transport = SimulatedTransport(self._network, socket, self._factory())
        self.process.loop.call_soon(transport.begin)
