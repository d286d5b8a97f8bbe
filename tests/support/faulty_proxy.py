"""An HTTP proxy in front of an object store that does to requests what networks and stores do, on demand.

    async with FaultyProxy(server.host, server.port) as proxy:
        proxy.plan = first(3, Answer(503, "SlowDown"))          # a burst
        proxy.plan = lambda request: Drop(applied=True) if request.method == "PUT" else None

Use `proxy.endpoint` instead of the server's. `go_down` refuses connections until `come_back`. It also drips and cuts
plain TCP replies, and counts what passed: `proxy.requests`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What a plan decides by."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    number: int  # from 1, over the life of the proxy


@dataclass(frozen=True)
class Answer:
    """The store's refusal; the request does not reach it. `code` is S3's error code."""

    status: int
    code: str


@dataclass(frozen=True)
class Drop:
    """The connection ends without an answer, the request applied or not."""

    applied: bool


@dataclass(frozen=True)
class Delay:
    """The request waits before it is passed on (`before_s`), or its answer does (`after_s`)."""

    before_s: float = 0
    after_s: float = 0


@dataclass(frozen=True)
class Cut:
    """The answer's headers arrive, then `body_bytes` of its body, then the connection ends."""

    body_bytes: int


@dataclass(frozen=True)
class Drip:
    """The answer's body arrives in pieces of `piece_bytes` with pauses between."""

    piece_bytes: int
    pause_s: float


@dataclass(frozen=True)
class Repeat:
    """The request is applied, and once more `after_s` later: a late duplicate."""

    after_s: float


@dataclass(frozen=True)
class Strip:
    """The named headers (lower case) do not arrive: a store that does not know them."""

    headers: tuple[str, ...]


@dataclass(frozen=True)
class Corrupt:
    """One bit of the request's body arrives flipped."""


@dataclass(frozen=True)
class Hang:
    """The request arrives, is not applied, and nothing ever comes back; it ends when the client gives up."""


Fault = Answer | Drop | Hang | Delay | Cut | Drip | Repeat | Strip | Corrupt
Plan = Callable[[Request], Fault | None]


def first(count: int, fault: Fault, *, method: str | None = None) -> Plan:
    """A plan: `fault` for the next `count` requests (of `method`), then none."""
    left = count

    def plan(request: Request) -> Fault | None:
        nonlocal left
        if left <= 0 or (method is not None and request.method != method):
            return None
        left -= 1
        return fault

    return plan


@dataclass
class FaultyProxy:
    """See the module. One upstream connection per request; the client's connections are kept alive."""

    upstream_host: str
    upstream_port: int
    plan: Plan = lambda _request: None
    requests: list[Request] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _port: int = 0
    _clients: set[asyncio.StreamWriter] = field(default_factory=set)
    _repeats: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "FaultyProxy":
        await self.come_back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_down()
        await asyncio.gather(*self._repeats)

    async def go_down(self) -> None:
        """Ends every connection; new ones are refused."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._clients):
                writer.transport.abort()
            await self._server.wait_closed()
            while self._clients:
                await asyncio.sleep(0.001)
            self._server = None

    async def come_back(self) -> None:
        """Listens again, on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._clients.discard(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        head = await _read_head(reader)
        if head is None:
            return False
        first_line, headers = head
        method, target, _ = first_line.split(" ", 2)
        request = Request(method, target, dict(headers), len(self.requests) + 1)
        self.requests.append(request)
        fault = self.plan(request)
        if request.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _read_body(reader, request.headers)
        match fault:
            case Answer(status, code):
                writer.write(_refusal(status, code, head_only=method == "HEAD"))
                await writer.drain()
                return True
            case Drop(applied=False):
                return False
            case Hang():
                await reader.read()
                return False
            case Delay(before_s=before_s):
                await asyncio.sleep(before_s)
            case Strip(headers=names):
                headers = [(name, value) for name, value in headers if name not in names]
            case Corrupt():
                body = bytes([body[0] ^ 1]) + body[1:] if body else body
        message = _message(first_line, headers, body)
        reply_head, reply_body = await self._forward(message, method)
        match fault:
            case Drop():
                return False
            case Delay(after_s=after_s):
                await asyncio.sleep(after_s)
            case Repeat(after_s=after_s):
                self._repeats.add(asyncio.get_running_loop().create_task(self._again(message, method, after_s)))
            case Cut(body_bytes=count):
                writer.write(reply_head + reply_body[:count])
                await writer.drain()
                return False
            case Drip(piece_bytes=size, pause_s=pause_s):
                writer.write(reply_head)
                for start in range(0, len(reply_body), size):
                    writer.write(reply_body[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(pause_s)
                return True
        writer.write(reply_head)
        writer.write(reply_body)
        await writer.drain()
        return True

    async def _again(self, message: bytes, method: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._forward(message, method)

    async def _forward(self, message: bytes, method: str) -> tuple[bytes, bytes]:
        """The server's whole answer: head (as received, but of known length) and body."""
        reader, writer = await asyncio.open_connection(self.upstream_host, self.upstream_port)
        try:
            writer.write(message)
            await writer.drain()
            head = await _read_head(reader)
            assert head is not None, "the server ended the connection"
            status_line, headers = head
            status = status_line.split(" ")[1]
            bodiless = method == "HEAD" or status in {"204", "304"}
            length_given = {"content-length", "transfer-encoding"} & dict(headers).keys()
            body = b"" if bodiless else await (_read_body(reader, dict(headers)) if length_given else reader.read())
            kept = [(name, value) for name, value in headers if name not in {"transfer-encoding", "connection"}]
            if not bodiless:
                kept = [(name, value) for name, value in kept if name != "content-length"]
                kept.append(("content-length", str(len(body))))
            return _head(status_line, kept), body
        finally:
            writer.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]] | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first_line, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.lower(), value.strip()))
    return first_line, headers


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        pieces = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(pieces)
    return await reader.readexactly(int(headers.get("content-length", 0)))


def _message(first_line: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    kept = [
        (name, value)
        for name, value in headers
        if name not in {"connection", "expect", "transfer-encoding", "content-length"}
    ]
    return _head(first_line, [*kept, ("content-length", str(len(body))), ("connection", "close")]) + body


def _head(first_line: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _refusal(status: int, code: str, *, head_only: bool) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planned by a test</Message></Error>".encode()
    headers = [("content-type", "application/xml"), ("content-length", str(len(body)))]
    return _head(f"HTTP/1.1 {status} Planned", headers) + (b"" if head_only else body)
