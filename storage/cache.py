"""A cache bounded by bytes, with a single flight per entry, and a gate that bounds what is being fetched.

Loading is the caller's: it opens a flight for what is neither cached nor on its way, and lands or fails it. Waiters
come and go: a cancelled one does not disturb the flight. Everything happens on one event loop.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from storage.object_store import Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Least recently used entries go first when bytes run out.

    `bytes` counts cached entries; `reserved` what is being fetched for them. Together they stay at or below
    `bytes_max`, as far as dropping entries can achieve it.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.reserved = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._flights: dict[K, asyncio.Future[V]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        """Cached or on its way."""
        return key in self._entries or key in self._flights

    def get(self, key: K) -> V | None:
        """The cached value, which becomes the most recently used one."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def flight(self, key: K) -> "asyncio.Future[V] | None":
        """What is on its way: wait with `arrival`, never by awaiting the future, which would cancel it with you."""
        return self._flights.get(key)

    def open_flight(self, key: K) -> "asyncio.Future[V]":
        """The caller promises to `land` or `fail` it."""
        assert key not in self._flights, key
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._flights[key] = future
        return future

    def land(self, key: K, value: V, size: int) -> None:
        """Ends a flight with a value of `size` bytes. A value bigger than the cache reaches the waiters only."""
        self._flights.pop(key).set_result(value)
        if size > self.bytes_max:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        self._evict()

    def fail(self, key: K, error: Exception) -> None:
        """Ends a flight without a value; the next one who asks starts anew. No effect if it has ended."""
        future = self._flights.pop(key, None)
        if future is not None:
            future.set_exception(error)
            future.exception()  # nobody may be waiting: that is no news

    def cancel(self, key: K) -> None:
        """As `fail`, because whoever fetches is being cancelled: waiters get `Unavailable`."""
        future = self._flights.pop(key, None)
        if future is not None:
            future.cancel()

    def discard(self, key: K) -> None:
        """Forgets a cached value."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

    def reserve(self, size: int) -> None:
        """Makes room for bytes that are about to arrive; give them back with `release`."""
        self.reserved += size
        self._evict()

    def release(self, size: int) -> None:
        self.reserved -= size

    def _evict(self) -> None:
        while self._entries and self.bytes + self.reserved > self.bytes_max:
            _, (_, size) = self._entries.popitem(last=False)
            self.bytes -= size


async def arrival(future: "asyncio.Future[V]") -> V:
    """The value of a flight, or what it failed with. Cancelling the caller leaves the flight alone."""
    if not future.done():
        await asyncio.wait([future])
    if future.cancelled():
        raise Unavailable("the reader is closing")
    return future.result()


class Gate:
    """Lets at most `parallel` holders with together `bytes_max` bytes through, in the order of their arrival.

    One that is bigger than `bytes_max` passes alone.
    """

    def __init__(self, parallel: int, bytes_max: int) -> None:
        self.parallel = parallel
        self.bytes_max = bytes_max
        self.holders = 0
        self.bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def pass_with(self, size: int) -> AsyncIterator[None]:
        if self._waiting or not self._fits(size):
            await self._wait(size)
        else:
            self._enter(size)
        try:
            yield
        finally:
            self.holders -= 1
            self.bytes -= size
            self._admit()

    async def _wait(self, size: int) -> None:
        """Returns once admitted: `_admit` has counted us in."""
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, ticket))
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():  # admitted, and cancelled before we ran
                self.holders -= 1
                self.bytes -= size
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting:
            size, ticket = self._waiting[0]
            if ticket.done():  # cancelled
                self._waiting.popleft()
            elif self._fits(size):
                self._waiting.popleft()
                self._enter(size)
                ticket.set_result(None)
            else:
                return

    def _fits(self, size: int) -> bool:
        return self.holders < self.parallel and (self.bytes + size <= self.bytes_max or not self.holders)

    def _enter(self, size: int) -> None:
        self.holders += 1
        self.bytes += size
