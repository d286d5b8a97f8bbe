"""Produce requests that wait because the WAL or the memory for tails is full. First come, first served."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from broker.metrics import Counters
    from broker.wals import OwnWals
    from storage.wal.port import Wal

log = logging.getLogger(__name__)

WAIT_SECONDS_MAX = 30.0
WATCH_S = 1


class Waiting:
    """One request that waits for `n_bytes` in `n_batches`, to be appended through `wals`; none: any of them."""

    __slots__ = ("expire", "n_batches", "n_bytes", "number", "retry", "timer", "wals")

    def __init__(
        self,
        n_bytes: int,
        n_batches: int,
        retry: Callable[[], None],
        expire: Callable[[], None],
        wals: tuple[Wal, ...],
        number: int,
    ) -> None:
        self.n_bytes = n_bytes
        self.n_batches = n_batches
        self.retry = retry
        self.expire = expire
        self.wals = wals
        self.number = number
        self.timer: asyncio.TimerHandle | None = None


_Queue: TypeAlias = "OrderedDict[int, Waiting]"
"""By number, first come first. Whoever gave up leaves at once: he holds the bytes of his request."""

HasRoom: TypeAlias = "Callable[[int, int, tuple[Wal, ...]], bool]"
"""(bytes, batches, WAL instances): whether so much can be appended now."""


class SpaceQueue:
    """At most one request per connection waits here (its connection takes no further ones meanwhile).

    A full WAL holds up only those who need it: requests wait in a queue per set of instances, and whoever came later
    waits behind everybody who needs one of the same.
    """

    def __init__(self, has_room: HasRoom, counters: Counters) -> None:
        self._has_room = has_room
        self._counters = counters
        self._queues: dict[tuple[Wal, ...], _Queue] = {}
        self._came = 0
        self.waiting = 0
        """How many wait."""
        self.on_wait: list[Callable[[], None]] = []
        """Called when a request begins to wait."""

    def __len__(self) -> int:
        return self.waiting

    def blocks(self, wals: tuple[Wal, ...]) -> bool:
        """Whether somebody waits before a request for these instances."""
        return any(not one or not wals or not set(one).isdisjoint(wals) for one in self._queues)

    def wait(
        self,
        n_bytes: int,
        n_batches: int,
        timeout_s: float,
        retry: Callable[[], None],
        expire: Callable[[], None],
        wals: tuple[Wal, ...] = (),
    ) -> None:
        """Call `retry` when there is room and nobody came before, or `expire` after `timeout_s` (at most 30 s)."""
        self._counters.full_waits += 1
        self._came += 1
        self.waiting += 1
        waiting = Waiting(n_bytes, n_batches, retry, expire, wals, self._came)
        seconds = max(0.0, min(timeout_s, WAIT_SECONDS_MAX))
        waiting.timer = asyncio.get_running_loop().call_later(seconds, self._give_up, waiting)
        self._queues.setdefault(wals, OrderedDict())[waiting.number] = waiting
        for callback in self.on_wait:
            callback()

    def serve(self) -> None:
        """Room may have come back."""
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Whether somebody was passed: the first one who has room and whose instances nobody before waits for."""
        blocked: list[Wal] = []
        for first in sorted((_first(queue) for queue in self._queues.values()), key=_number):
            if blocked and not set(blocked).isdisjoint(first.wals):
                blocked += first.wals
            elif self._has_room(first.n_bytes, first.n_batches, first.wals):
                self._leave(first)
                assert first.timer is not None
                first.timer.cancel()
                first.retry()
                return True
            elif not first.wals:
                return False
            else:
                blocked += first.wals
        return False

    def _leave(self, waiting: Waiting) -> None:
        queue = self._queues[waiting.wals]
        del queue[waiting.number]
        self.waiting -= 1
        if not queue:
            del self._queues[waiting.wals]

    def expire_all(self) -> None:
        """Nobody waits any longer: the broker stops."""
        for waiting in [waiting for queue in self._queues.values() for waiting in queue.values()]:
            if waiting.number in self._queues.get(waiting.wals, ()):
                assert waiting.timer is not None
                waiting.timer.cancel()
                self._expire(waiting)

    def _give_up(self, waiting: Waiting) -> None:
        self._expire(waiting)
        self.serve()  # whoever came later may need less

    def _expire(self, waiting: Waiting) -> None:
        self._leave(waiting)
        self._counters.full_timeouts += 1
        waiting.expire()


def _first(queue: _Queue) -> Waiting:
    return next(iter(queue.values()))


def _number(waiting: Waiting) -> int:
    return waiting.number


async def watch_space(space: SpaceQueue, wals: OwnWals) -> None:
    """Say when producers wait for space and why, and when they go on: nothing else tells the operator."""
    full, error = False, ""
    while True:
        await asyncio.sleep(WATCH_S)
        now = str(wals.volume.file_error or "") if wals.volume is not None else ""
        if wals.volume is not None and now and not error:
            where = os.path.dirname(wals.volume.path)
            log.warning("no further WAL file can be prepared in %s, trying on: %s", where, now)
        elif error and not now:
            log.info("WAL files can be prepared again")
        error = now
        if len(space) and not full:
            log.warning("the WAL or the memory for tails is full: producers wait")
        elif full and not len(space):
            log.info("there is space again: producers go on")
        full = bool(len(space))
