"""Deadlines by key on one heap, with one call scheduled on the event loop: the earliest.

Moving a deadline later, which every heartbeat does, only writes a dict entry; the heap is put right when the old time
comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush

from broker.groups.model import TimerKey

_FIRED_AT_ONCE_MAX = 256
"""Timers fired in one loop turn; thousands of sessions that end together do not stop the loop."""


_LATE_S = 1.0
"""So late, the process or the loop was stopped: heartbeats may lie unread, and are read first."""


class Timers:
    """`fire(key)` is called once per deadline, on the loop. Deadlines are the loop's time, seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fire: Callable[[TimerKey], None]) -> None:
        self._loop = loop
        self._fire = fire
        self._deadlines: dict[TimerKey, float] = {}
        self._queued: dict[TimerKey, float] = {}
        """Time of the one heap entry of a key that counts: at or before its deadline."""
        self._heap: list[tuple[float, TimerKey]] = []
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._late = False

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, key: TimerKey, delay_ms: int, *, keep: bool = False) -> None:
        """`keep`: an earlier deadline of this key stays."""
        if keep and key in self._deadlines:
            return
        deadline = self._loop.time() + delay_ms / 1000
        self._deadlines[key] = deadline
        queued = self._queued.get(key)
        if queued is None or deadline < queued:
            self._push(key, deadline)
            self._arm()

    def cancel(self, key: TimerKey) -> None:
        self._deadlines.pop(key, None)

    def close(self) -> None:
        self._deadlines.clear()
        self._queued.clear()
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _push(self, key: TimerKey, when: float) -> None:
        self._queued[key] = when
        heappush(self._heap, (when, key))

    def _arm(self) -> None:
        if not self._heap:
            return
        earliest = self._heap[0][0]
        if self._handle is not None:
            if self._armed_for <= earliest:
                return
            self._handle.cancel()
        self._armed_for = earliest
        self._handle = self._loop.call_at(earliest, self._run)

    def _run(self) -> None:
        self._handle = None
        now = self._loop.time()
        if now - self._armed_for > _LATE_S and not self._late:
            self._late = True
            self._armed_for = now + _LATE_S
            self._handle = self._loop.call_at(self._armed_for, self._run)
            return
        self._late = False
        due: list[TimerKey] = []
        while self._heap and self._heap[0][0] <= now and len(due) < _FIRED_AT_ONCE_MAX:
            noted, key = heappop(self._heap)
            if self._queued.get(key) != noted:
                continue
            del self._queued[key]
            deadline = self._deadlines.get(key)
            if deadline is None:
                continue
            if deadline > now:
                self._push(key, deadline)
            else:
                del self._deadlines[key]
                due.append(key)
        for key in due:
            self._fire(key)
        self._arm()
