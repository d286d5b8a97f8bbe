"""Clients of one broker that keeps quotas, on virtual time: the real hub, connections, quotas and Fetch handler, while
sockets, logs and the loop are imitated. Nothing here runs by itself: `World.run` goes from event to event.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from types import SimpleNamespace
from typing import Any
from unittest import mock

from broker.connection import Connection
from broker.dispatch import HANDLERS, Entry
from broker.fetch_sessions import FetchSessions
from broker.handlers.fetch import fetch
from broker.metrics import Counters
from broker.quotas import ClientQuotas
from broker.server import ServerHub
from broker.settings import Settings
from broker.wheel import Wheel
from controller import facts as f
from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.framing import parse_response_header, request_frame, response_frame
from tests.support.manual_clock import ManualClock

SECOND = 1_000_000
PRODUCE_VERSION, FETCH_VERSION, METADATA_VERSION = 9, 12, 12
BATCH_BYTES = 100


class Timer:
    """What `call_at` returns."""

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.callback = None


class Tail:
    """Without end: whoever reads gets as many batches as there is room for, at least one."""

    start = 0

    def __init__(self, batch_bytes: int) -> None:
        self.batch_bytes = batch_bytes

    def read(self, offset: int, limit: int, room: int, at_least_one: bool) -> tuple[list[bytes], int]:
        count = max(room // self.batch_bytes, 1 if at_least_one else 0)
        return ([bytes(count * self.batch_bytes)] if count else []), count * self.batch_bytes


class World:
    """Virtual time and one broker in it. `work_us` is what each request keeps the loop busy."""

    def __init__(self, *, work_us: int = 100, batch_bytes: int = BATCH_BYTES, **settings: Any) -> None:
        self.now_us = 0
        self.work_us = work_us
        self._events: list[tuple[int, int, Timer]] = []
        self._numbers = itertools.count()
        self.clock = ManualClock()
        self.quotas_set: dict[Any, dict[str, float]] = {}
        self.counters = Counters()
        self.settings = Settings(node_id=1, **settings)
        self.quotas = ClientQuotas(
            self.settings, self, lambda: self.now_us, self.counters, lambda: SimpleNamespace(quotas=self.quotas_set)
        )
        log = SimpleNamespace(
            serving=True, hw=1 << 40, lso=1 << 40, start=0, end=1 << 40, epoch=0, tail=Tail(batch_bytes), waiters={}
        )
        self.log = log
        services: Any = SimpleNamespace(
            settings=self.settings,
            counters=self.counters,
            ticks_us=lambda: self.now_us,
            handlers={
                **HANDLERS,
                ApiKey.PRODUCE: Entry(self._produce, 0, PRODUCE_VERSION, "", raw=True),
                ApiKey.FETCH: Entry(self._fetch, 4, FETCH_VERSION, "", raw=True),
                ApiKey.METADATA: Entry(self._metadata, 0, METADATA_VERSION, ""),
            },
            quotas=self.quotas,
            clock=self,
            logs=SimpleNamespace(find={("t", 0): log}),
            wheel=Wheel(),
            fetch_sessions=FetchSessions(100, lambda: next(self._numbers) + 1),
        )
        self.hub = ServerHub(services)
        self.hub.serve_clients(True)
        self.taken: list[tuple[int, Connection, int]] = []
        """(when, whose, bytes) of Produce requests."""

    # The clock and the loop

    def boottime_ms(self) -> int:
        return 1_000_000 + self.now_us // 1000

    def now_ms(self) -> int:
        return 1_700_000_000_000 + self.now_us // 1000

    def time(self) -> float:
        return self.now_us / SECOND

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(when, callback, args)
        heappush(self._events, (max(self.now_us, round(when * SECOND)), next(self._numbers), timer))
        return timer

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        return self.call_at(self.time() + seconds, callback, *args)

    def run(self, seconds: float) -> None:
        """All that happens in so many seconds from now on."""
        until_us = self.now_us + round(seconds * SECOND)
        while self._events and self._events[0][0] <= until_us:
            at_us, _, timer = heappop(self._events)
            self.now_us = max(self.now_us, at_us)
            if timer.callback is not None:
                timer.callback(*timer.args)
        self.now_us = max(self.now_us, until_us)

    # What the broker does

    def set_quota(self, entity: Any, **values: float) -> None:
        """From now on; without values there is none."""
        if values:
            self.quotas_set[entity] = dict(values)
        else:
            self.quotas_set.pop(entity, None)
        self.quotas.on_facts([f.QuotasChanged(entity, tuple(values.items()))])

    def _produce(
        self,
        services: Any,
        connection: Connection,
        buf: bytearray,
        pos: int,
        end: int,
        version: int,
        number: int,
        owned: bool,
    ) -> None:
        self.now_us += self.work_us
        self.taken.append((self.now_us, connection, end - pos))
        payload = response_frame(ApiKey.PRODUCE, version, number, m.ProduceResponse(responses=[]).encode(version))
        reply = connection.owe(1, self.counters.produce_latency, payload)

        def durable() -> None:
            reply.waits = 0
            if not connection.closed:
                connection.ready(reply)

        self.call_later(0.002, durable)

    def _fetch(self, *arguments: Any) -> None:
        self.now_us += self.work_us
        fetch(*arguments)

    def _metadata(self, request: Any, context: Any) -> Any:
        self.now_us += self.work_us
        return m.MetadataResponse(brokers=[], topics=[])


class Client:
    """A connection whose client always asks for more. `polite` clients wait for as long as they are told."""

    def __init__(
        self, world: World, client_id: str, api: ApiKey, size: int = 0, *, polite: bool = False, pause_s: float = 0.0
    ) -> None:
        """`size`: of the records that a Produce request carries, or of the most that a fetch asks for, or nothing."""
        self.world = world
        self.client_id = client_id
        self.api = api
        self.size = size
        self.polite = polite
        self.pause_s = pause_s
        self.connection = Connection(world.hub, "PLAINTEXT")
        self.reading, self.gone = True, False
        self._inbox = b""
        self._outbox = b""
        self._numbers = itertools.count(1)
        self._sent: dict[int, int] = {}
        self.waits_us: list[int] = []
        """How long each answer took."""
        self.received: list[tuple[int, int]] = []
        """(when, bytes) of the answers."""
        self.throttled: list[int] = []
        self.connection.connection_made(self)  # type: ignore[arg-type]

    # As a transport

    def get_extra_info(self, name: str) -> Any:
        return ("10.0.0.1", 4242)

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.gone

    def write(self, data: Any) -> None:
        self._outbox += data
        while len(self._outbox) >= 4:
            length = int.from_bytes(self._outbox[:4], "big")
            if len(self._outbox) < 4 + length:
                break
            frame, self._outbox = self._outbox[: 4 + length], self._outbox[4 + length :]
            self.world.call_later(0, self._answered, frame)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True
        self.world.call_later(0, self._deliver)

    def close(self) -> None:
        if not self.gone:
            self.gone = True
            self.world.call_later(0, self.connection.connection_lost, None)

    abort = close

    # As a client

    def start(self, depth: int = 1) -> "Client":
        """Keep so many requests under way."""
        for _ in range(depth):
            self.ask()
        return self

    def ask(self) -> None:
        if self.gone:
            return
        number = next(self._numbers)
        body, version = self._body()
        self._sent[number] = self.world.now_us
        self._inbox += request_frame(self.api, version, number, self.client_id, body)
        self.world.call_later(0, self._deliver)

    def _body(self) -> tuple[bytes, int]:
        if self.api == ApiKey.PRODUCE:
            return bytes(self.size), PRODUCE_VERSION
        if self.api == ApiKey.FETCH:
            part = m.FetchRequest.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=self.size)
            topic = m.FetchRequest.FetchTopic(topic="t", partitions=[part])
            request = m.FetchRequest(
                max_bytes=self.size, min_bytes=1, max_wait_ms=500, session_epoch=-1, topics=[topic]
            )
            return request.encode(FETCH_VERSION), FETCH_VERSION
        return m.MetadataRequest(topics=[]).encode(METADATA_VERSION), METADATA_VERSION

    def _deliver(self) -> None:
        while self._inbox and self.reading and not self.gone:
            buffer = self.connection.get_buffer(-1)
            size = min(len(buffer), len(self._inbox))
            buffer[:size] = self._inbox[:size]
            self._inbox = self._inbox[size:]
            self.connection.buffer_updated(size)

    def _answered(self, frame: bytes) -> None:
        version = {ApiKey.PRODUCE: PRODUCE_VERSION, ApiKey.FETCH: FETCH_VERSION}.get(self.api, METADATA_VERSION)
        number, pos = parse_response_header(frame, self.api, version, 4)
        answer = getattr(m, APIS[self.api].name + "Response").decode(frame, version, pos)
        world = self.world
        self.waits_us.append(world.now_us - self._sent.pop(number))
        self.received.append((world.now_us, len(frame)))
        if answer.throttle_time_ms:
            self.throttled.append(answer.throttle_time_ms)
        wait_s = answer.throttle_time_ms / 1000 if self.polite else 0.0
        world.call_later(max(wait_s, self.pause_s), self.ask)

    @property
    def unanswered(self) -> int:
        return len(self._sent)


@contextlib.contextmanager
def world(**values: Any) -> Iterator[World]:
    """A world whose loop is the running one."""
    made = World(**values)
    with mock.patch("asyncio.get_running_loop", return_value=made):
        yield made
