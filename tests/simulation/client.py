"""Simulated Kafka clients: the product's codecs over the running event loop's connections, and what they saw.

Plain asyncio code: it runs on a simulated process's loop as on a real one: `process.spawn(client.run)`. This module has
what all clients share; `producers.py` and `consumers.py` have those that make the load, `operators.py` those that run
a cluster and read everything in the end.
"""

import asyncio
import random  # noqa: TID251
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple, Protocol

from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.errors import ErrorCode
from protocol.framing import parse_response_header, request_frame

_SIZE = Struct(">I")
Address = tuple[str, int]
Part = tuple[str, int]
"""A topic's name and a partition's number."""

_DIGITS_MAX = 20
_DOTS = b"." * (64 << 10)
EARLIEST, LATEST = -2, -1
NO_TOPIC_ID = bytes(16)


class Recorder(Protocol):
    """The part of a `History` that clients use."""

    def record(self, kind: str, **fields: Any) -> None:
        """Append an event that happens now."""


@dataclass(frozen=True)
class ClientSettings:
    """As real clients name them; milliseconds."""

    request_timeout_ms: int = 3_000
    connect_timeout_ms: int = 1_000
    reconnect_backoff_ms: int = 50
    reconnect_backoff_max_ms: int = 500
    retry_backoff_ms: int = 50


class Disconnected(Exception):
    """The connection failed, was closed, or did not answer in time: what was asked may or may not happen."""


class Refused(Exception):
    """The answer is an error."""

    def __init__(self, code: int, what: str = "") -> None:
        super().__init__(f"{error_name(code)} {what}".strip())
        self.code = code


class Leader(NamedTuple):
    """Who leads a partition, as the newest Metadata answer said."""

    node_id: int
    epoch: int


def error_name(code: int) -> str:
    """The name of a Kafka error code, for histories."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)


class Connection(asyncio.Protocol):
    """One connection to a broker: answers come in the order of the requests."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: deque[tuple[int, ApiKey, int, asyncio.Future[Any]]] = deque()
        self._last_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            end = 4 + _SIZE.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[4:end])
            del self._buffer[:end]
            self._answered(frame)

    def _answered(self, frame: bytes) -> None:
        number, api, version, future = self._waiting.popleft()
        answered, at = parse_response_header(frame, api, version)
        assert answered == number, f"answer {answered} came where {number} was due"
        if not future.done():
            future.set_result(getattr(m, APIS[api].name + "Response").decode(frame, version, at))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        waiting, self._waiting = self._waiting, deque()
        for *_, future in waiting:
            if not future.done():
                future.set_exception(Disconnected(str(error or "closed by the other side")))
                future.exception()  # retrieved: whoever asked may be gone

    def ask(self, api: ApiKey, version: int, message: Any, client_id: str) -> asyncio.Future[Any]:
        """Write a request now; the future gets its answer, or Disconnected."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.closed or self._transport is None:
            future.set_exception(Disconnected("closed before"))
            future.exception()
            return future
        self._last_id += 1
        self._waiting.append((self._last_id, api, version, future))
        self._transport.write(request_frame(api, version, self._last_id, client_id, message.encode(version)))
        return future

    def tell(self, api: ApiKey, version: int, message: Any, client_id: str) -> None:
        """Write a request that gets no answer."""
        if not self.closed and self._transport is not None:
            self._last_id += 1
            self._transport.write(request_frame(api, version, self._last_id, client_id, message.encode(version)))

    def abort(self) -> None:
        """Close without delivering what is not sent yet."""
        if self._transport is not None and not self.closed:
            self._transport.abort()


class SimulatedClient:
    """What all clients have: a name, brokers to begin with, a history, a seeded source of choices.

    `run()` is the main coroutine of the client's process. It ends some time after `stop()` was called (from anywhere:
    that only sets a flag), once what it began has an outcome, and then records `client.end`. A client's process may be
    killed at any moment: what it invoked stays without an outcome.
    `numbers` gives integers that nobody else in the history has: values, request numbers.
    """

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[Address],
        history: Recorder,
        rng: random.Random,
        numbers: Iterator[int],
        settings: ClientSettings | None = None,
    ) -> None:
        self.name = name
        self.bootstrap = tuple(bootstrap)
        self.history = history
        self.rng = rng
        self.numbers = numbers
        self.settings = settings or ClientSettings()
        self.stopping = False
        self.leaders: dict[Part, Leader] = {}
        self.topic_ids: dict[str, bytes] = {}
        self.brokers: dict[int, Address] = {}
        self._connections: dict[Address, Connection] = {}
        self._failures: dict[Address, int] = {}

    def stop(self) -> None:
        """Begin nothing new; `run` ends when what is under way has an outcome."""
        self.stopping = True

    async def run(self) -> None:
        """The client's life."""
        await self.main()
        for connection in self._connections.values():
            connection.abort()
        self.history.record("client.end", client=self.name)

    async def main(self) -> None:
        """What this kind of client does."""
        raise NotImplementedError

    # Connections

    async def connection(self, address: Address) -> Connection:
        """The open connection to an address; Disconnected when there is none and none can be made now."""
        known = self._connections.get(address)
        if known is not None and not known.closed:
            return known
        try:
            async with asyncio.timeout(self.settings.connect_timeout_ms / 1000):
                loop = asyncio.get_running_loop()
                _, made = await loop.create_connection(Connection, address[0], address[1])
        except (OSError, TimeoutError) as error:
            self._failures[address] = self._failures.get(address, 0) + 1
            raise Disconnected(f"{address}: {type(error).__name__}") from None
        newer = self._connections.get(address)
        if newer is not None and not newer.closed:  # made meanwhile by another task of ours
            made.abort()
            return newer
        self._failures.pop(address, None)
        self._connections[address] = made
        return made

    async def ask(
        self, address: Address, api: ApiKey, version: int, message: Any, *, timeout_ms: int | None = None
    ) -> Any:
        """One request and its answer; Disconnected, and the connection is gone, when none comes in time."""
        connection = await self.connection(address)
        return await self.answer(connection, connection.ask(api, version, message, self.name), timeout_ms)

    async def answer(self, connection: Connection, future: asyncio.Future[Any], timeout_ms: int | None = None) -> Any:
        """The answer to what was asked; on time-out the connection is closed, as real clients do."""
        try:
            async with asyncio.timeout((timeout_ms or self.settings.request_timeout_ms) / 1000):
                return await future
        except TimeoutError:
            connection.abort()
            raise Disconnected("no answer in time") from None

    async def back_off(self, address: Address | None = None) -> None:
        """Wait before the next attempt: longer after each failed connection, with jitter."""
        failures = 0 if address is None else self._failures.get(address, 0)
        wait_ms = self.settings.retry_backoff_ms
        if failures:
            wait_ms = self.settings.reconnect_backoff_ms << min(failures - 1, 10)
        wait_ms = min(wait_ms, self.settings.reconnect_backoff_max_ms)
        await sleep_ms(wait_ms * self.rng.uniform(0.8, 1.2))

    # Metadata

    def known_addresses(self) -> list[Address]:
        """Every broker that may be asked, those of the newest metadata first."""
        return list(dict.fromkeys([*self.brokers.values(), *self.bootstrap]))

    async def ask_any(self, api: ApiKey, version: int, message: Any) -> Any:
        """The answer of some broker; tries until one answers."""
        while True:
            addresses = self.known_addresses()
            address = addresses[self.rng.randrange(len(addresses))]
            try:
                return await self.ask(address, api, version, message)
            except Disconnected:
                await self.back_off(address)

    async def refresh(self, topics: Iterable[str]) -> None:
        """Ask once for the leaders of these topics; tries until a broker answers."""
        asked = [m.MetadataRequest.MetadataRequestTopic(name=name) for name in sorted(set(topics))]
        answer = await self.ask_any(
            ApiKey.METADATA, 12, m.MetadataRequest(topics=asked, allow_auto_topic_creation=False)
        )
        self.brokers = {broker.node_id: (broker.host, broker.port) for broker in answer.brokers}
        for topic in answer.topics:
            if topic.error_code:
                continue
            self.topic_ids[topic.name] = topic.topic_id
            for part in topic.partitions:
                key = (topic.name, part.partition_index)
                if part.leader_id >= 0 and not part.error_code:
                    self.leaders[key] = Leader(part.leader_id, part.leader_epoch)
                else:
                    self.leaders.pop(key, None)

    def address_of(self, part: Part) -> Address | None:
        """Where the partition's leader is, as far as known."""
        leader = self.leaders.get(part)
        return None if leader is None else self.brokers.get(leader.node_id)

    async def leader_address(self, part: Part) -> Address:
        """Where the partition's leader is; asks until there is one."""
        while (address := self.address_of(part)) is None:
            await self.refresh([part[0]])
            if self.address_of(part) is None:
                await self.back_off()
        return address

    # What several kinds of clients ask for

    async def offset_at(self, part: Part, timestamp: int) -> int:
        """ListOffsets of one partition, once; records it. Disconnected or Refused."""
        address = await self.leader_address(part)
        asked = m.ListOffsetsRequest.ListOffsetsTopic(
            name=part[0],
            partitions=[m.ListOffsetsRequest.ListOffsetsPartition(partition_index=part[1], timestamp=timestamp)],
        )
        number, node = next(self.numbers), self.leaders[part].node_id
        fields = {"client": self.name, "list": number, "topic": part[0], "partition": part[1], "node": node}
        self.history.record("list_offsets.invoke", **fields, timestamp=timestamp)
        answer = await self.ask(address, ApiKey.LIST_OFFSETS, 7, m.ListOffsetsRequest(replica_id=-1, topics=[asked]))
        found = answer.topics[0].partitions[0]
        if found.error_code:
            self.leaders.pop(part, None)
            raise Refused(found.error_code, "ListOffsets")
        self.history.record("list_offsets.ok", **fields, timestamp=timestamp, offset=found.offset)
        offset: int = found.offset
        return offset

    async def offset_patiently(self, part: Part, timestamp: int) -> int:
        """The same until it is answered."""
        while True:
            try:
                return await self.offset_at(part, timestamp)
            except (Disconnected, Refused):
                self.leaders.pop(part, None)
                await self.back_off(self.address_of(part))


async def sleep_ms(ms: float) -> None:
    """Wait on the running loop's clock."""
    await asyncio.sleep(ms / 1000)


def encode_value(value: int, size: int) -> bytes:
    """The bytes of a value, filled up to `size`."""
    return str(value).encode().ljust(size, b".")


def decode_value(data: bytes | None) -> int:
    """The number that `encode_value` wrote; -1 for bytes that no client of ours wrote."""
    data = bytes(data or b"")
    text = data[:_DIGITS_MAX].rstrip(b".")
    rest = data[len(text) :]
    return int(text) if text.isdigit() and (_DOTS.startswith(rest) or not rest.strip(b".")) else -1
