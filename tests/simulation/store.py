"""An object store with virtual latency and faults: one `Bucket` per world, one handle per process.

A request leaves its process at one moment, lands in the bucket at another and is answered at a third. Landing is whole
and atomic, and a condition is judged then, however late it is; the process may be paused or killed, or have given up,
at any point between.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

from storage.memory import MemoryStore
from storage.object_store import (
    Body,
    ObjectInfo,
    ObjectStore,
    OutcomeUnknown,
    StoredObject,
    StoreError,
    Unavailable,
    body_blocks,
    body_parts,
    check_key,
)
from storage.retrying import RetryingStore

if TYPE_CHECKING:
    from tests.simulation.disk import Timeline

_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000
_BYTES_PER_SECOND = 100_000_000
_TIMEOUT_NS = (3 * _S, 12 * _S)
"""When an engine gives up an attempt that nobody answers."""
_PAGE_KEYS = 100
_MEAN_NS = {"get": 15 * _MS, "get_range": 15 * _MS, "head": 8 * _MS, "list": 30 * _MS, "delete": 15 * _MS}
_MEAN_WRITE_NS = 30 * _MS


class StoreClient(Protocol):
    """The part of a `Process` that a handle uses."""

    name: str
    alive: bool

    def token(self, n: int) -> bytes: ...


@dataclass
class StoreFaults:
    """Chances per call, and how slow it is. Turn them at any time; `StoreFaults()` is a store without faults."""

    unavailable: float = 0.0
    """Refused: certainly not applied."""
    lost: float = 0.0
    """A write that never arrives, its outcome unknown."""
    unheard: float = 0.0
    """A write that is applied, its outcome unknown."""
    late: float = 0.0
    """A write whose outcome is unknown and that lands up to `late_ns_max` after that."""
    hang: float = 0.0
    """No answer until the engine or the caller gives up."""
    cut: float = 0.0
    """A body that breaks off, a listing that ends in the middle."""
    slow: float = 0.0
    """A call that takes `slow_factor` times as long."""
    slow_factor: int = 50
    late_ns_max: int = 60 * _S

    @classmethod
    def some(cls, rng: random.Random) -> StoreFaults:
        """A bad day: each kind is there or not."""
        faults = cls()
        for kind in ("unavailable", "lost", "unheard", "late", "hang", "cut", "slow"):
            setattr(faults, kind, rng.choice((0.0, 0.0, 0.01, 0.05)))
        return faults


class Bucket:
    """The objects of a world and what happens to calls.

    `findings` tells what the product did wrong with the port; `calls` counts by method, `mishaps` by kind; `slowness`
    is a factor for every call.
    """

    def __init__(
        self,
        timeline: Timeline,
        rng: random.Random,
        *,
        record: Callable[..., None] = lambda kind, **fields: None,
    ) -> None:
        self.faults = StoreFaults()
        self.slowness = 1.0
        self.findings: list[str] = []
        self.calls: Counter[str] = Counter()
        self.mishaps: Counter[str] = Counter()
        self.written_bytes = 0
        self.memory = MemoryStore()
        self.timeline = timeline
        self.rng = rng
        self.record = record
        self.on_write: Callable[[str, bytes, StoreClient], None] = lambda key, data, process: None
        """Called when a process makes a request that writes: it still has it in its hands."""
        self.unreachable: Counter[str] = Counter()
        """Hosts whose requests do not get here, while they count above 0."""
        self.deaf: Counter[str] = Counter()
        """Hosts that hear no answer, while they count above 0."""
        self.answered_ns = 0
        """When everything that was asked up to now is answered."""
        self._away = False
        self._away_for: tuple[str, ...] = ()

    def opener(self, process: StoreClient, host: str) -> Callable[[str], ObjectStore]:
        """What `Broker(open_store=...)` takes: a handle of this process in the product's retries, for any URI."""
        return lambda uri: RetryingStore(self.handle(process, host), token=process.token)

    def handle(self, process: StoreClient, host: str) -> SimulatedStore:
        """One process's bare client: one attempt per call."""
        return SimulatedStore(self, process, host)

    def outage(self, hosts: tuple[str, ...] | None = None) -> None:
        """From now on the store answers nobody, or not these hosts."""
        self.record("store.outage", hosts=hosts)
        self._away = hosts is None
        self._away_for = hosts or ()

    def end_outage(self) -> None:
        """Everybody reaches the store again."""
        self.record("store.back")
        self._away, self._away_for = False, ()

    def reached_by(self, host: str) -> bool:
        return not self._away and host not in self._away_for and self.unreachable[host] <= 0

    def heard_by(self, host: str) -> bool:
        return self.reached_by(host) and self.deaf[host] <= 0

    @property
    def objects(self) -> dict[str, bytes]:
        """What is there now, by key in order."""
        found = {}
        for info in self.page("", "", None)[0]:
            found[info.key] = at_once(self.memory.get(info.key)).data
        return found

    def page(self, prefix: str, start_after: str, keys: int | None) -> tuple[list[ObjectInfo], bool]:
        """The next keys of a listing, and whether it ends with them."""
        listing = self.memory.list(prefix, start_after)
        assert isinstance(listing, AsyncGenerator)
        infos: list[ObjectInfo] = []
        while keys is None or len(infos) < keys:
            try:
                infos.append(at_once(anext(listing)))
            except StopAsyncIteration:
                return infos, True
        at_once(listing.aclose())
        return infos, False

    def latency_ns(self, name: str, size: int) -> int:
        """How long a call takes, there and back."""
        mean_ns = _MEAN_NS.get(name, _MEAN_WRITE_NS)
        took = mean_ns // 4 + int(self.rng.expovariate(1 / mean_ns)) + size * _S // _BYTES_PER_SECOND
        if self.faults.slow and self.rng.random() < self.faults.slow:
            took *= self.faults.slow_factor
        return int(took * self.slowness)


def at_once(call: Any) -> Any:
    """The result of a coroutine that waits for nothing but its turn."""
    steps: Coroutine[Any, Any, Any] = call.__await__() if not hasattr(call, "send") else call
    try:
        while True:
            steps.send(None)
    except StopIteration as end:
        return end.value


class _Call:
    """One attempt, from its process to the bucket and back."""

    def __init__(
        self, bucket: Bucket, process: StoreClient, host: str, name: str, key: str, apply: Callable[[], Any]
    ) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.mishap = ""
        self.latency_ns = 0
        self._bucket = bucket
        self._process = process
        self._host = host
        self._name = name
        self._key = key
        self._apply = apply

    def later(self, delay_ns: int, callback: Callable[..., object], *args: object, owner: Any = None) -> None:
        timeline = self._bucket.timeline
        timeline.call_at_ns(timeline.now_ns + delay_ns, callback, *args, owner=owner)

    def draw(self, *kinds: str) -> None:
        """What goes wrong with this call, if anything."""
        faults, rng = self._bucket.faults, self._bucket.rng
        dice = rng.random()
        for kind in kinds:
            dice -= getattr(faults, kind)
            if dice < 0:
                self.struck(kind)
                return

    def struck(self, kind: str) -> None:
        self.mishap = kind
        self._bucket.mishaps[kind] += 1
        self._bucket.record("store.fault", fault=kind, call=self._name, key=self._key, process=self._process.name)

    def timeout_ns(self) -> int:
        return self._bucket.rng.randint(*_TIMEOUT_NS)

    def take(self, size: int, given_up: type[StoreError]) -> None:
        """Draw how long it takes; what takes too long is given up by the engine, and goes on without it."""
        self.latency_ns = self._bucket.latency_ns(self._name, size)
        if self.latency_ns > _TIMEOUT_NS[0] and self.latency_ns > (timeout_ns := self.timeout_ns()):
            self.answer(given_up(f"simulated: {self._name} {self._key}: too slow"), timeout_ns)

    def soon_or_late_ns(self) -> int:
        """When a failure is noticed: a reset connection at once, a silent one after the engine's time-out."""
        return self.latency_ns if self._bucket.rng.random() < 0.5 else self.timeout_ns()

    def fail(self, error: type[StoreError], delay_ns: int) -> None:
        self.answer(error(f"simulated: {self._name} {self._key}: {self.mishap}"), delay_ns)

    def answer(self, outcome: Any, delay_ns: int) -> None:
        bucket = self._bucket
        bucket.answered_ns = max(bucket.answered_ns, bucket.timeline.now_ns + delay_ns)
        self.later(delay_ns, self.answered, outcome, owner=self._process)

    def answered(self, outcome: Any) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)

    def applied(self) -> Any:
        """Apply it, which is atomic; its result or its error."""
        try:
            return self._apply()
        except StoreError as error:
            return error

    def reaches(self) -> bool:
        return self._bucket.reached_by(self._host)

    def hears(self) -> bool:
        return self._bucket.heard_by(self._host)


class _Read(_Call):
    def begin(self, size: int, *kinds: str) -> None:
        self.take(size, Unavailable)
        if not self.reaches():
            self.struck("no connection")
            self.fail(Unavailable, self.soon_or_late_ns())
            return
        self.draw("unavailable", "hang", *kinds)
        if self.mishap == "hang":
            self.fail(Unavailable, self.timeout_ns())
        elif self.mishap:
            self.fail(Unavailable, self.latency_ns)
        else:
            self.later(self.latency_ns // 2, self._land)

    def _land(self) -> None:
        outcome = self.applied()
        if not self.hears():
            self.struck("connection lost")
            self.fail(Unavailable, self.timeout_ns())
        else:
            self.answer(outcome, self.latency_ns // 2)


class _Write(_Call):
    """`body` is what the caller promised not to change until the call returns, `data` what it was at the call."""

    body: Body = b""
    data: bytes = b""

    def begin(self) -> None:
        self.take(len(self.data), OutcomeUnknown)
        # The process still has the request in its hands: it may be stopped, killed or give up before it is sent.
        self.later(self.latency_ns // 4, self._send, owner=self._process)

    def _send(self) -> None:
        self._look_at_body()
        if self.future.done():
            return  # cancelled: the request broke off
        if not self.reaches():
            self.struck("no connection")
            self.fail(Unavailable, self.soon_or_late_ns())
            return
        self.draw("unavailable", "lost", "unheard", "late", "hang")
        if self.mishap == "unavailable":
            self.fail(Unavailable, self.latency_ns // 4)
        elif self.mishap in {"lost", "late"}:
            delay_ns = self.soon_or_late_ns()
            self.fail(OutcomeUnknown, delay_ns)
            if self.mishap == "late":
                rng = self._bucket.rng
                late_ns = int(self._bucket.faults.late_ns_max * rng.random() ** 3)
                self.later(delay_ns + late_ns if rng.random() < 0.8 else delay_ns * 2 // 3, self._land_late)
        else:
            self.later(self.latency_ns // 4, self._land)

    def _land(self) -> None:
        if not self.reaches() and self._bucket.rng.random() < 0.5:
            self.struck("lost on the way")
            self.fail(OutcomeUnknown, self.timeout_ns())
            return
        outcome = self.applied()
        if not self.mishap and not self.hears():
            self.struck("connection lost")
        if self.mishap == "hang":
            self.fail(OutcomeUnknown, self.timeout_ns())
        elif self.mishap:
            self.fail(OutcomeUnknown, self.soon_or_late_ns())
        else:
            self.answer(outcome, self.latency_ns // 2)

    def _land_late(self) -> None:
        outcome = self.applied()
        told = type(outcome).__name__ if isinstance(outcome, Exception) else "applied"
        self._bucket.record("store.late", call=self._name, key=self._key, process=self._process.name, outcome=told)

    def answered(self, outcome: Any) -> None:
        self._look_at_body()
        super().answered(outcome)

    def _look_at_body(self) -> None:
        if not self.future.done() and not _same(self.body, self.data):
            self._bucket.findings.append(f"{self._process.name}: {self._name} {self._key}: its body changed meanwhile")
            self.body = b""


def _same(body: Body, data: bytes) -> bool:
    """Whether a body is what it was."""
    if isinstance(body, bytes):
        return True
    at = 0
    for part in body_parts(body):
        if isinstance(part, bytes):
            at += len(part)
            continue
        view = memoryview(part).cast("B")
        if view.tobytes() != data[at : at + view.nbytes]:  # views compare their items one by one
            return False
        at += view.nbytes
    return at == len(data)


class SimulatedStore:
    """An `ObjectStore`. Calls of a process that dies or gives up may be applied or not, now or later."""

    def __init__(self, bucket: Bucket, process: StoreClient, host: str) -> None:
        self._bucket = bucket
        self._process = process
        self._host = host

    def __repr__(self) -> str:
        return "simulated:"

    async def put(self, key: str, body: Body) -> str:
        memory, data = self._bucket.memory, b"".join(body_blocks(body))
        return await self._write("put", key, body, data, lambda: memory.put(key, data))

    async def put_if_absent(self, key: str, body: Body) -> str:
        memory, data = self._bucket.memory, b"".join(body_blocks(body))
        return await self._write("put_if_absent", key, body, data, lambda: memory.put_if_absent(key, data))

    def upload(self, key: str) -> SimulatedUpload:
        return SimulatedUpload(self, key)

    async def write_part(self, key: str, body: Body, parts: list[bytes]) -> None:
        """A part that lands changes nothing that anybody sees; one whose fate is not known is sent again."""
        data = b"".join(body_blocks(body))

        async def nothing() -> str:
            return ""

        try:
            await self._write("write_part", key, body, data, nothing)
        except OutcomeUnknown as error:
            raise Unavailable(str(error)) from None
        parts.append(data)

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        memory, data = self._bucket.memory, b"".join(body_blocks(body))
        return await self._write("put_if_match", key, body, data, lambda: memory.put_if_match(key, data, etag))

    async def delete(self, key: str) -> None:
        await self._write("delete", key, b"", b"", lambda: self._bucket.memory.delete(key))

    async def get(self, key: str) -> StoredObject:
        found: StoredObject = await self._read("get", key, 0, lambda: self._bucket.memory.get(key), "cut")
        return found

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        assert start >= 0 and length > 0, (start, length)
        memory = self._bucket.memory
        data: bytes = await self._read("get_range", key, length, lambda: memory.get_range(key, start, length), "cut")
        return data

    async def head(self, key: str) -> ObjectInfo:
        info: ObjectInfo = await self._read("head", key, 0, lambda: self._bucket.memory.head(key))
        return info

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        while True:
            call = self._call(_Read, "list", prefix, lambda: self._bucket.page(prefix, start_after, _PAGE_KEYS))  # noqa: B023
            call.begin(0, "cut")
            infos, ended = await call.future
            for info in infos:
                start_after = info.key
                yield info
            if ended:
                return

    async def close(self) -> None:
        """Nothing to give back."""

    def _call(self, kind: type[Any], name: str, key: str, apply: Callable[[], Any]) -> Any:
        self._bucket.calls[name] += 1
        return kind(self._bucket, self._process, self._host, name, key, apply)

    async def _read(self, name: str, key: str, size: int, found: Callable[[], Any], *kinds: str) -> Any:
        check_key(key)
        call: _Read = self._call(_Read, name, key, lambda: at_once(found()))
        call.begin(size, *kinds)
        return await call.future

    async def _write(self, name: str, key: str, body: Body, data: bytes, applied: Callable[[], Any]) -> str:
        check_key(key)
        call: _Write = self._call(_Write, name, key, lambda: at_once(applied()))
        call.body, call.data = body, data
        self._bucket.written_bytes += len(data)
        call.begin()
        self._bucket.on_write(key, data, self._process)
        etag: str = await call.future
        return etag


class SimulatedUpload:
    """An object that comes in parts: they wait at the bucket until it is created."""

    def __init__(self, store: SimulatedStore, key: str) -> None:
        self._store = store
        self._key = key
        self._parts: list[bytes] = []

    async def write(self, part: Body) -> None:
        await self._store.write_part(self._key, part, self._parts)

    async def create(self) -> str:
        return await self._store.put_if_absent(self._key, self._parts)

    async def abort(self) -> None:
        self._parts = []


class LoopTimeline:
    """Virtual time on the running event loop, where nobody waits for it: for tests without a `Scheduler`."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._events: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._made = 0

    def call_at_ns(self, when_ns: int, callback: Callable[..., object], *args: Any, owner: Any = None) -> None:
        self._made += 1
        heappush(self._events, (when_ns, self._made, callback, args))
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        when_ns, _, callback, args = heappop(self._events)
        self.now_ns = max(self.now_ns, when_ns)
        callback(*args)
