"""A connection of a simulated network as uvloop shows it to a protocol."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.network import Network, Socket

WINDOW_BYTES = 128 * 1024
"""Bytes of one direction that kernels hold: sent and not yet read."""
READ_BYTES = 256 * 1024
HIGH_BYTES = 64 * 1024


class End:
    """In a stream of bytes: nothing follows."""

    def __init__(self, error: OSError | None) -> None:
        self.error = error


class SimulatedTransport(asyncio.Transport):
    """One connection as uvloop shows it: what a turn of the loop writes leaves after the turn."""

    def __init__(self, network: Network, socket: Socket, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._network = network
        self._socket = socket
        self._loop = socket.process.loop
        self._protocol = protocol
        self._begun = False
        self._paused = False
        self._closing = False
        self._lost = False
        self._read_due = False
        self._flush_due = False
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._end_due = False
        self._high, self._low = HIGH_BYTES, HIGH_BYTES // 4
        self._protocol_paused = False

    # Life

    def begin(self, made: asyncio.Future[None] | None = None) -> None:
        """Tell the protocol, then read."""
        self._socket.transport = self
        self._protocol.connection_made(self)
        self._begun = True
        if made is not None and not made.done():
            made.set_result(None)
        self.readable()

    def is_closing(self) -> bool:
        return self._closing or not self._socket.process.alive

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._unsent:
                self._lose(None)
            else:
                self._flush_soon()

    def abort(self) -> None:
        self._closing = True
        self._lose(None, abort=True)

    def _lose(self, error: OSError | None, *, abort: bool = False) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._unsent.clear()
        self._unsent_bytes = 0
        self._loop.call_soon(self._connection_lost, error, abort)

    def _connection_lost(self, error: OSError | None, abort: bool) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._network.close(self._socket, abort=abort)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": self._socket.remote, "sockname": self._socket.local}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    # Reading

    def is_reading(self) -> bool:
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.readable()

    def readable(self) -> None:
        """Something arrived, or somebody wants to read again."""
        if self._begun and self._socket.incoming and not (self._paused or self._closing or self._read_due):
            self._read_due = True
            self._loop.call_soon(self._read)

    def arrived(self) -> None:
        """The kernel has something more for us. One that is closing reads no more, but a reset ends its waiting for
        the other side to make room."""
        if self._closing and self._unsent and self._socket.broken:
            self._flush_soon()
        self.readable()

    def _read(self) -> None:
        self._read_due = False
        incoming = self._socket.incoming
        if self._paused or self._closing or not incoming:
            return
        piece = incoming[0]
        if isinstance(piece, End):
            self._ended(piece)
            return
        if isinstance(self._protocol, asyncio.BufferedProtocol):
            buffer = memoryview(self._protocol.get_buffer(-1))
            data = self._take(len(buffer))
            buffer[: len(data)] = data
            self._protocol.buffer_updated(len(data))
        else:
            assert isinstance(self._protocol, asyncio.Protocol)
            self._protocol.data_received(self._take(READ_BYTES))
        self.readable()

    def _take(self, length: int) -> bytes:
        """What the kernel has, at most `length` bytes."""
        incoming = self._socket.incoming
        data = b""
        while incoming and len(data) < length:
            piece = incoming[0]
            if isinstance(piece, End):
                break
            part = piece[: length - len(data)]
            data = data + part if data else part
            if len(part) == len(piece):
                incoming.popleft()
            else:
                incoming[0] = piece[len(part) :]
        self._network.consumed(self._socket, len(data))
        return data

    def _ended(self, end: End) -> None:
        self._socket.incoming.clear()
        if end.error is not None:
            self._lose(end.error)
            return
        assert isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol)
        if not self._protocol.eof_received():
            self.close()

    # Writing

    @property
    def wants_window(self) -> bool:
        """Whether bytes wait for the other side to read."""
        return bool(self._unsent)

    def write(self, data: Any) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        if self._closing:
            return
        assert not self._end_due
        for data in list_of_data:
            view = memoryview(data).cast("B")
            if view.nbytes:
                self._unsent.append(view)
                self._unsent_bytes += view.nbytes
        if self._unsent_bytes > self._high and not self._protocol_paused:
            self._flush()
        else:
            self._flush_soon()
        if self._unsent_bytes > self._high and not self._protocol_paused and not self._lost:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        self._flush()

    def writable(self) -> None:
        """The other side read something."""
        if self._unsent:
            self._flush_soon()

    def _flush(self) -> None:
        if self._lost:
            return
        socket = self._socket
        if socket.broken:
            self._lose(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            return
        room = WINDOW_BYTES - socket.in_flight
        parts = []
        while self._unsent and room > 0:
            view = self._unsent[0]
            if view.nbytes <= room:
                parts.append(self._unsent.popleft())
            else:
                parts.append(view[:room])
                self._unsent[0] = view[room:]
            room -= parts[-1].nbytes
        if parts:
            data = b"".join(parts)
            self._unsent_bytes -= len(data)
            self._network.send(socket, data)
        if self._protocol_paused and self._unsent_bytes <= self._low:
            self._protocol_paused = False
            self._protocol.resume_writing()
        if not self._unsent and not self._lost:
            if self._closing:
                self._lose(None)
            elif self._end_due:
                self._network.end(socket)

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._end_due = True
        self._flush_soon()
