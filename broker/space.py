"""Produce requests that wait because the WAL or the memory for tails is full. First come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.metrics import Counters

WAIT_SECONDS_MAX = 30.0


class Waiting:
    """One request that waits for `n_bytes` in `n_batches`."""

    __slots__ = ("expire", "n_batches", "n_bytes", "over", "retry", "timer")

    def __init__(self, n_bytes: int, n_batches: int, retry: Callable[[], None], expire: Callable[[], None]) -> None:
        self.n_bytes = n_bytes
        self.n_batches = n_batches
        self.retry = retry
        self.expire = expire
        self.over = False
        self.timer: asyncio.TimerHandle | None = None


class SpaceQueue:
    """At most one request per connection waits here (its connection takes no further ones meanwhile)."""

    def __init__(self, has_room: Callable[[int, int], bool], counters: Counters) -> None:
        self._has_room = has_room
        self._counters = counters
        self.queue: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self.queue)

    def wait(
        self, n_bytes: int, n_batches: int, timeout_s: float, retry: Callable[[], None], expire: Callable[[], None]
    ) -> None:
        """Call `retry` when there is room and nobody came before, or `expire` after `timeout_s` (at most 30 s)."""
        self._counters.full_waits += 1
        waiting = Waiting(n_bytes, n_batches, retry, expire)
        seconds = max(0.0, min(timeout_s, WAIT_SECONDS_MAX))
        waiting.timer = asyncio.get_running_loop().call_later(seconds, self._expire, waiting)
        self.queue.append(waiting)

    def serve(self) -> None:
        """Room may have come back."""
        queue = self.queue
        while queue:
            first = queue[0]
            if first.over:
                queue.popleft()
            elif self._has_room(first.n_bytes, first.n_batches):
                queue.popleft()
                assert first.timer is not None
                first.timer.cancel()
                first.retry()
            else:
                return

    def expire_all(self) -> None:
        """Nobody waits any longer: the broker stops."""
        for waiting in list(self.queue):
            if not waiting.over:
                assert waiting.timer is not None
                waiting.timer.cancel()
                self._expire(waiting)
        self.queue.clear()

    def _expire(self, waiting: Waiting) -> None:
        waiting.over = True
        self._counters.full_timeouts += 1
        if self.queue and self.queue[0] is waiting:
            self.queue.popleft()
        waiting.expire()
