"""One client connection: bytes in, frames to the dispatcher, answers out in request order.

Every connection of an event loop reads through one scratch buffer. A frame that is complete there is handled in place;
one that is not goes straight into a bytearray of its own, so that an idle connection costs no buffer. Nothing stays in
the scratch when `buffer_updated` returns: get_buffer, the read and buffer_updated run back to back.

Answers are owed in request order (`pending`); each waits for a count to reach zero (a WAL group, a long poll, a slow
handler). No task and no future belongs to a request.

While a connection is held (`HOLD_*`), complete frames go to its backlog and, as soon as one does, reading pauses. The
class knows nothing of the transport below it: plain TCP now, TLS as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Protocol, cast

from broker.refused_batches import RefusedBatches
from protocol.errors import ProtocolError

if TYPE_CHECKING:
    from broker.metrics import Counters
    from broker.quotas import MeteredRequest
    from protocol import Buffer

log = logging.getLogger(__name__)

SCRATCH_BYTES = 64 * 1024
WRITE_HIGH_BYTES = 512 * 1024
WRITE_LOW_BYTES = 128 * 1024
READY_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of finished answers that may wait behind an unfinished one before fetches of the connection stop filling."""
JOIN_BYTES_MAX = 1024 * 1024
JOIN_PART_BYTES = 64 * 1024
FRAME_SECONDS = 30
FRAME_BYTES_PER_SECOND = 256 * 1024
"""While others wait for memory, a frame must have arrived within 30 s and its size at this rate."""

HOLD_MUTED = 1  # a slow request is being answered; Kafka handles one request of a connection at a time
HOLD_FULL = 2  # a produce request waits for space in the WAL or the tails
HOLD_PENDING = 4  # too many answers are owed
HOLD_BUDGET = 8  # the next frame does not fit the memory for requests
HOLD_WRITE = 16  # the client does not read its answers
HOLD_CLOSING = 32  # no further request is taken
HOLD_THROTTLED = 64  # the client used more than its quota

_LENGTH = Struct(">i")
_START = Struct(">ihh")  # length, api key, api version
_START_BYTES = 8

#: `dispatch(connection, buf, start, end, owned)`: one frame without its length prefix; the buffer is the caller's again
#: when it returns, unless `owned`.
Dispatch = Callable[["Connection", "bytearray", int, int, bool], None]


class Reply:
    """One answer owed. It goes out when `waits` is 0 and all before it went out."""

    __slots__ = ("connection", "held", "latency", "payload", "started_us", "waits")

    def __init__(
        self, connection: Connection, payload: bytes | list[Buffer], waits: int, started_us: int, latency: list[int]
    ) -> None:
        self.connection = connection
        self.payload = payload
        self.waits = waits
        self.started_us = started_us
        self.latency = latency
        self.held = 0
        """Bytes of request memory given back when the answer goes out."""

    def fill(self, payload: bytes | list[Buffer]) -> None:
        """The answer is known and waits for nothing more."""
        self.payload = payload
        self.waits = 0
        self.connection.ready(self)


class Parked(Protocol):
    """A long poll of a connection."""

    def expire(self) -> None:
        """Its time is over: answer with what there is."""
        ...

    def drop(self) -> None:
        """Its connection is gone."""
        ...


class Budget:
    """Bytes of requests read and not yet answered, all connections together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.peak = 0
        self.waiting: deque[Connection] = deque()

    def fits(self, size: int) -> bool:
        """Whether `size` more may be taken; a request larger than the whole budget may go alone."""
        return self.used + size <= self.limit or self.used == 0

    def take(self, size: int) -> None:
        """Account for `size` bytes."""
        self.used += size
        if self.used > self.peak:
            self.peak = self.used

    def give(self, size: int) -> None:
        """`size` bytes are free again; connections that waited for them go on."""
        self.used -= size
        while self.waiting and self.fits(self.waiting[0].wanted_bytes):
            self.waiting.popleft().take_frame()


class Hub:
    """What the connections of one event loop share."""

    def __init__(
        self,
        dispatch: Dispatch,
        known_api: Callable[[int], int],
        counters: Counters,
        ticks_us: Callable[[], int],
        *,
        request_bytes_max: int,
        requests_bytes_max: int,
        pending_max: int,
    ) -> None:
        """`known_api(api key)` is the largest request of that API in bytes, 0 if it is not served."""
        self.dispatch = dispatch
        self.known_api = known_api
        self.counters = counters
        self.ticks_us = ticks_us
        self.request_bytes_max = request_bytes_max
        self.pending_max = pending_max
        self.budget = Budget(requests_bytes_max)
        self.connections: dict[Connection, None] = {}
        self.scratch = bytearray(SCRATCH_BYTES)
        self.scratch_view = memoryview(self.scratch)
        self.tick = 0
        """Coarse time, moved by the server; only differences count."""
        self.unsent_bytes = 0
        """Answers handed to transports whose clients do not read them."""
        self.complaints_left = 10

    def accept(self, connection: Connection) -> bool:
        """Whether a new connection may stay."""
        self.connections[connection] = None
        return True

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self.connections.pop(connection, None)

    def complain(self, message: str, *args: object) -> None:
        """A warning about what a client did; a few each tick at most."""
        if self.complaints_left > 0:
            self.complaints_left -= 1
            log.warning(message, *args)


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one connection. Handlers use `answer`, `owe`, `hold`, `release` and `close`."""

    def __init__(self, hub: Hub, listener: str) -> None:
        self.hub = hub
        self.listener = listener
        self.principal = "User:ANONYMOUS"
        self.client_address = ""
        self.client_software = ""
        self.pending: deque[Reply] = deque()
        self.closed = False
        self.started_us = 0
        """When the bytes now being handled were read."""
        self.active_tick = hub.tick
        self.frame_tick = 0
        self.holds = 0
        self.wanted_bytes = 0
        self.polls: dict[Parked, None] = {}
        self._transport: asyncio.Transport | None = None
        self._frame: bytearray | None = None
        self._frame_view: memoryview | None = None
        self._filled = 0
        self._stash = b""
        self._backlog: deque[bytearray] = deque()
        self._paused = False
        self._handling = False
        self._ready_bytes = 0
        self._deferred: list[Callable[[], None]] = []
        self._unsent = 0
        self._unsent_seen = 0
        self.refused_batches = RefusedBatches()
        self.metered: MeteredRequest | None = None
        """The request being handled, if quotas are set."""

    # Transport events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, they only behave as such.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.client_address = peer[0] if isinstance(peer, tuple) else str(peer or "")
        if not self.hub.accept(self):
            self.closed = True
            transport.close()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame_view is not None:
            return self._frame_view[self._filled :]
        stash = self._stash
        if stash:
            self.hub.scratch[: len(stash)] = stash
            return self.hub.scratch_view[len(stash) :]
        return self.hub.scratch_view

    def buffer_updated(self, nbytes: int) -> None:
        hub = self.hub
        self.active_tick = hub.tick
        hub.counters.bytes_in += nbytes
        if self.closed:
            self._stash = b""
            return
        self.started_us = hub.ticks_us()
        self._handling = True
        try:
            if self._frame is not None:
                self._filled += nbytes
                if self._filled == len(self._frame):
                    self._frame_complete()
            else:
                self._walk(len(self._stash) + nbytes)
        except ProtocolError as error:
            self.refuse(str(error))
        except Exception:
            self.broken()
        finally:
            self._handling = False
        self.flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        hub = self.hub
        hub.forget(self)
        if self._frame is not None:
            self._drop_frame()
        for frame in self._backlog:
            hub.budget.give(len(frame))
        self._backlog.clear()
        for reply in self.pending:
            if reply.held:
                hub.budget.give(reply.held)
                reply.held = 0
        self.pending.clear()
        if self.holds & HOLD_BUDGET and self in hub.budget.waiting:
            hub.budget.waiting.remove(self)
        hub.unsent_bytes -= self._unsent
        self._unsent = 0
        self._deferred.clear()
        for parked in list(self.polls):
            parked.drop()
        self.polls.clear()

    def pause_writing(self) -> None:
        assert self._transport is not None
        self.holds |= HOLD_WRITE
        self._unsent = self._unsent_seen = self._transport.get_write_buffer_size()
        self.hub.unsent_bytes += self._unsent

    def resume_writing(self) -> None:
        self.hub.unsent_bytes -= self._unsent
        self._unsent = 0
        self.active_tick = self.hub.tick
        self.release(HOLD_WRITE)
        self._run_deferred()

    # Frames

    def _walk(self, end: int) -> None:
        """Handle every complete frame in `scratch[:end]`, take what is left out of it."""
        hub = self.hub
        scratch = hub.scratch
        self._stash = b""
        dispatch = hub.dispatch
        pos = 0
        while end - pos >= 4:
            (length,) = _LENGTH.unpack_from(scratch, pos)
            start = pos + 4
            stop = start + length
            if stop > end or length < 10:
                break
            if self.holds:
                self._set_aside(scratch, start, stop)
            else:
                dispatch(self, scratch, start, stop, False)
                if self.closed:
                    return
            pos = stop
        if pos < end:
            self._partial(pos, end)

    def _partial(self, pos: int, end: int) -> None:
        """The bytes `scratch[pos:end]` begin a frame whose rest has not arrived."""
        hub = self.hub
        if end - pos >= 4:
            length = _LENGTH.unpack_from(hub.scratch, pos)[0]
            if length < 10 or length > hub.request_bytes_max:
                raise ProtocolError(_bad_length(bytes(hub.scratch[pos : min(end, pos + 8)]), length))
        if end - pos < _START_BYTES:
            self._stash = bytes(hub.scratch_view[pos:end])
            return
        length, api_key, api_version = _START.unpack_from(hub.scratch, pos)
        limit = hub.known_api(api_key)
        if length > limit:
            raise ProtocolError(
                f"request of {length} bytes for API {api_key} version {api_version}, "
                + (f"at most {limit} are taken" if limit else "which is not served")
            )
        # Until memory is granted the beginning waits outside the scratch, at most one scratch full.
        self._stash = bytes(hub.scratch_view[pos:end])
        self.wanted_bytes = length
        if hub.budget.fits(length):
            self.take_frame()
        else:
            self.holds |= HOLD_BUDGET
            self._pause()
            hub.budget.waiting.append(self)

    def take_frame(self) -> None:
        """Memory for the frame that begins in the stash is granted."""
        length = self.wanted_bytes
        self.hub.budget.take(length)
        self._frame = bytearray(length)
        view = memoryview(self._frame)
        filled = len(self._stash) - 4
        view[:filled] = memoryview(self._stash)[4:]
        self._frame_view = view
        self._filled = filled
        self.frame_tick = self.hub.tick
        self._stash = b""
        if self.holds & HOLD_BUDGET:
            self.release(HOLD_BUDGET)

    def _drop_frame(self) -> None:
        assert self._frame is not None
        self.hub.budget.give(len(self._frame))
        self._frame = self._frame_view = None

    def _frame_complete(self) -> None:
        frame = self._frame
        assert frame is not None
        self._frame = self._frame_view = None
        if self.holds:
            self._backlog.append(frame)
            self._pause()
        else:
            self._handle_owned(frame)

    def _handle_owned(self, frame: bytearray) -> None:
        try:
            self.hub.dispatch(self, frame, 0, len(frame), True)
        finally:
            self.hub.budget.give(len(frame))

    def _set_aside(self, scratch: bytearray, start: int, stop: int) -> None:
        self._backlog.append(scratch[start:stop])
        self.hub.budget.take(stop - start)
        self._pause()

    # Holding and going on

    def hold(self, flag: int) -> None:
        """Handle no further request until `release(flag)`."""
        self.holds |= flag

    def release(self, flag: int) -> None:
        """The reason `flag` is gone; with no other left, go on with the backlog, then with reading."""
        self.holds &= ~flag
        if self.holds or self.closed or self._handling:
            return
        if self._backlog:
            self.started_us = self.hub.ticks_us()
            self._handling = True
            try:
                while self._backlog and not self.holds and not self.closed:
                    self._handle_owned(self._backlog.popleft())
            except ProtocolError as error:
                self.refuse(str(error))
            except Exception:
                self.broken()
            finally:
                self._handling = False
            self.flush()
        if self._paused and not self.holds and self._transport_is_open():
            self._paused = False
            self._transport.resume_reading()  # type: ignore[union-attr]

    def _pause(self) -> None:
        if not self._paused and self._transport_is_open():
            self._paused = True
            self._transport.pause_reading()  # type: ignore[union-attr]

    def _transport_is_open(self) -> bool:
        """Between a client's end of file and `connection_lost` a transport takes no such calls any more."""
        return not self.closed and self._transport is not None and not self._transport.is_closing()

    # Answers

    def answer(self, payload: bytes | list[Buffer], latency: list[int]) -> None:
        """An answer that waits for nothing."""
        if self.metered is not None:
            payload = self.metered.answered(payload)
        pending = self.pending
        if pending and pending[0].waits:
            self._ready_bytes += sum(map(len, payload)) if type(payload) is list else len(payload)
        pending.append(Reply(self, payload, 0, self.started_us, latency))
        # A large answer goes to the transport at once, so that it can tell when the client does not read.
        if not self._handling or type(payload) is list:
            self.flush()

    def owe(self, waits: int, latency: list[int], payload: bytes | list[Buffer] = b"") -> Reply:
        """An answer that waits for `waits` events (`Validation.when_reply`) or for its `fill`."""
        if self.metered is None:
            reply = Reply(self, payload, waits, self.started_us, latency)
        else:
            reply = self.metered.owed(waits, latency, payload)
        pending = self.pending
        pending.append(reply)
        if len(pending) >= self.hub.pending_max:
            self.holds |= HOLD_PENDING
        return reply

    def ready(self, reply: Reply) -> None:
        """`reply.waits` reached 0."""
        if self.closed:
            return
        if self.pending[0] is reply:
            if not self._handling:
                self.flush()
        elif type(reply.payload) is list:
            self._ready_bytes += sum(map(len, reply.payload))
        else:
            self._ready_bytes += len(reply.payload)

    def may_fill(self, reply: Reply | None = None) -> bool:
        """Whether a large answer may be made now: the client reads, and not too much waits behind unfinished ones."""
        if self.holds & HOLD_WRITE:
            return False
        return self._ready_bytes < READY_BYTES_MAX or self.pending[0] is reply

    def defer(self, retry: Callable[[], None]) -> None:
        """Call `retry` when `may_fill` may have changed."""
        self._deferred.append(retry)

    def _run_deferred(self) -> None:
        if self._deferred and not self.closed:
            deferred, self._deferred = self._deferred, []
            for retry in deferred:
                retry()

    def flush(self) -> None:
        """Send every answer that is due, in one write."""
        pending = self.pending
        if not pending or pending[0].waits or self.closed:
            return
        hub = self.hub
        now_us = hub.ticks_us()
        parts: list[Buffer] = []
        size = 0
        while pending and not pending[0].waits:
            reply = pending.popleft()
            payload = reply.payload
            if isinstance(payload, bytes):
                parts.append(payload)
                size += len(payload)
            else:
                parts += payload
                size += sum(map(len, payload))
            reply.latency[(now_us - reply.started_us).bit_length()] += 1
            if reply.held:
                hub.budget.give(reply.held)
                reply.held = 0
        self._ready_bytes = 0 if not pending else max(0, self._ready_bytes - size)
        hub.counters.bytes_out += size
        transport = self._transport
        assert transport is not None
        if len(parts) == 1:
            transport.write(parts[0])
        elif size <= JOIN_BYTES_MAX and size < JOIN_PART_BYTES * len(parts):
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)
        if self.holds:
            if self.holds & HOLD_PENDING and len(pending) <= hub.pending_max // 2:
                self.release(HOLD_PENDING)
            if self.holds & HOLD_CLOSING and not pending:
                self.close()
        if self._deferred:
            self._run_deferred()

    # Ends

    def close(self) -> None:
        """Send what was written, then close."""
        if not self.closed:
            self.closed = True
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """Take no further request; close when everything owed was answered."""
        if self.closed:
            return
        self.holds |= HOLD_CLOSING
        self._pause()
        if self._frame is not None:
            self._drop_frame()
        for parked in list(self.polls):
            parked.expire()
        if not self.pending:
            self.close()

    def refuse(self, why: str) -> None:
        """The client does not speak the protocol, or asks for what is not served: one line, then close."""
        if not self.closed:
            self.hub.counters.protocol_errors += 1
            self.hub.complain("closing the connection of %s on %s: %s", self.client_address, self.listener, why)
            self._close_after_flush()

    def broken(self) -> None:
        """A bug of ours met a request: the process goes on, the connection does not."""
        self.hub.counters.server_errors += 1
        log.exception("request of %s on %s failed; closing the connection", self.client_address, self.listener)
        self._close_after_flush()

    def _close_after_flush(self) -> None:
        self.flush()
        self.close()

    # What the server's tick looks at

    def is_stuck(self) -> bool:
        """The client does not read its answers: nothing was sent since this was asked last."""
        if not self.holds & HOLD_WRITE or self._transport is None:
            return False
        size = self._transport.get_write_buffer_size()
        stuck = size >= self._unsent_seen
        self._unsent_seen = size
        return stuck

    def frame_is_late(self, ticks_per_second: float) -> bool:
        """A frame has been arriving for longer than a client that means it would need."""
        if self._frame is None:
            return False
        allowed = FRAME_SECONDS + len(self._frame) / FRAME_BYTES_PER_SECOND
        return (self.hub.tick - self.frame_tick) > allowed * ticks_per_second


def _bad_length(start: bytes, length: int) -> str:
    """Who speaks what to a Kafka port, for the one log line."""
    if start[:4] in (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PRI ", b"CONN"):
        return "this is HTTP, not the Kafka protocol"
    if start[:2] == b"\x16\x03":
        return "this is TLS on a plaintext listener"
    return f"a request of {length} bytes is outside 10 to socket.request.max.bytes"
