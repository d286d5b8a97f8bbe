"""Calls to other brokers: frames over connections that are made when needed and made again when lost.

Each lane has one connection to one target at a time; answers of a connection come in order, so what may wait long (a
long poll) has a lane of its own. A call is one attempt: it is never sent twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from struct import Struct
from typing import Any, cast

from controller.remote import LinkError, LinkTimeout, Target
from protocol import messages
from protocol.apis import APIS, CONTROL_KEY, CONTROL_VERSION, ApiKey
from protocol.errors import ProtocolError
from protocol.framing import request_frame, skip_tagged_fields

IN_FLIGHT_MAX = 64
ANSWER_BYTES_MAX = 64 << 20
CONNECT_MS = 2_000
BACKOFF_MS = 20
BACKOFF_MS_MAX = 500
CLIENT_ID = "tidelog"

_HEAD = Struct(">ii")  # length, correlation id
_HEAD_BYTES = 8


class PeerConnection(asyncio.Protocol):
    """One connection: requests out, answers in the same order."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._numbers = count(1)
        self._waiting: deque[tuple[int, asyncio.Future[bytes]]] = deque()
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, they only behave as such.
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, api_key: int, version: int, body: bytes) -> asyncio.Future[bytes]:
        """The answer's body; `LinkError` when the connection is lost first. Cancelling it forgets the answer."""
        assert self._transport is not None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self.closed:
            answer.set_exception(LinkError("the connection is closed"))
            return answer
        number = next(self._numbers) & 0x7FFFFFFF
        self._waiting.append((number, answer))
        self._transport.write(request_frame(api_key, version, number, CLIENT_ID, body))
        return answer

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= _HEAD_BYTES:
            length, number = _HEAD.unpack_from(received)
            if not 4 <= length <= ANSWER_BYTES_MAX or not self._waiting or self._waiting[0][0] != number:
                self.close("it answers what was not asked")
                return
            if len(received) < 4 + length:
                return
            answer = self._waiting.popleft()[1]
            if not answer.done():
                answer.set_result(bytes(memoryview(received)[_HEAD_BYTES : 4 + length]))
            del received[: 4 + length]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc) if exc is not None else "the connection was closed")

    def close(self, why: str) -> None:
        """Close at once; whoever waits gets a `LinkError`."""
        self._fail(why)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, why: str) -> None:
        self.closed = True
        self._received.clear()
        while self._waiting:
            answer = self._waiting.popleft()[1]
            if not answer.done():
                answer.set_exception(LinkError(why))
                answer.exception()  # retrieved: nobody may be waiting any more


class _Lane:
    """The connection of one lane, and when another attempt may be made."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._connection: PeerConnection | None = None
        self._connecting = asyncio.Lock()
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._backoff_ms = 0
        self._not_before = 0.0

    async def call(self, target: Target, api_key: int, version: int, body: bytes, timeout_ms: int) -> bytes:
        """See `Peers.request`."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                async with self._slots:
                    connection = await self._connect(target)
                    return await connection.ask(api_key, version, body)
        except TimeoutError:
            # Whatever waits there waits behind what was not answered.
            self.close(f"no answer from {target.host}:{target.port} within {timeout_ms} ms")
            raise LinkTimeout(f"no answer from {target.host}:{target.port} within {timeout_ms} ms") from None

    async def _connect(self, target: Target) -> PeerConnection:
        async with self._connecting:
            loop = asyncio.get_running_loop()
            if target != self._target:
                self.close("the target is another one")
                self._target, self._backoff_ms, self._not_before = target, 0, 0.0
            if self._connection is not None and not self._connection.closed:
                return self._connection
            if loop.time() < self._not_before:
                raise LinkError(f"{target.host}:{target.port} did not answer just now")
            try:
                async with asyncio.timeout(CONNECT_MS / 1000):
                    _, connection = await loop.create_connection(PeerConnection, target.host, target.port)
            except (OSError, TimeoutError, ValueError) as error:  # ValueError: no name of a host at all
                self._backoff_ms = min(max(BACKOFF_MS, 2 * self._backoff_ms), BACKOFF_MS_MAX)
                self._not_before = loop.time() + self._backoff_ms / 1000
                kind = LinkTimeout if isinstance(error, TimeoutError) else LinkError
                raise kind(f"cannot connect to {target.host}:{target.port}: {error}") from None
            self._backoff_ms = 0
            self._connection = connection
            return connection

    def close(self, why: str) -> None:
        if self._connection is not None:
            self._connection.close(why)
            self._connection = None


class Peers:
    """A `controller.remote.Link` over TCP."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    async def call(self, lane: str, target: Target, body: bytes, timeout_ms: int) -> bytes:
        """See `controller.remote.Link`."""
        return await self.request(lane, target, CONTROL_KEY, CONTROL_VERSION, body, timeout_ms)

    async def request(
        self, lane: str, target: Target, api_key: int, version: int, body: bytes, timeout_ms: int
    ) -> bytes:
        """One request of Kafka's, as brokers send them to each other: what follows the answer's correlation id.
        `LinkError`."""
        return await self._lanes.setdefault(lane, _Lane()).call(target, api_key, version, body, timeout_ms)

    def forget(self, lane: str) -> None:
        """Nothing will be asked there any more."""
        gone = self._lanes.pop(lane, None)
        if gone is not None:
            gone.close("the broker is gone")

    async def ask(self, lane: str, target: Target, api_key: ApiKey, version: int, request: Any, timeout_ms: int) -> Any:
        """The decoded answer to a request of Kafka's. `LinkError`, also for an answer that cannot be read."""
        answer = await self.request(lane, target, api_key, version, request.encode(version), timeout_ms)
        api = APIS[api_key]
        try:
            flexible = api.response_header_v1_from is not None and version >= api.response_header_v1_from
            body = skip_tagged_fields(answer, 0, len(answer)) if flexible else 0
            return getattr(messages, api.name + "Response").decode(answer, version, body)
        except ProtocolError as error:
            raise LinkError(f"an answer of {target.host}:{target.port} is not known here: {error}") from None

    async def close(self) -> None:
        """Close every connection."""
        for lane in self._lanes.values():
            lane.close("this broker stops")
