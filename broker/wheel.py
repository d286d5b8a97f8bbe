"""Deadlines that may be late by a step: hundreds of idle long polls share one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush

STEP_MS = 10


class Wheel:
    """Callbacks by deadline, rounded up to `STEP_MS`. One timer for the earliest slot."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Callable[[], None], None]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = 0

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, delay_ms: int, callback: Callable[[], None]) -> int:
        """Call `callback` after `delay_ms`; the slot that `remove` wants."""
        loop = asyncio.get_running_loop()
        slot = (int(loop.time() * 1000) + delay_ms) // STEP_MS + 1
        callbacks = self._slots.get(slot)
        if callbacks is None:
            callbacks = self._slots[slot] = {}
            heappush(self._order, slot)
            if self._timer is None or slot < self._timer_slot:
                self._arm(loop)
        callbacks[callback] = None
        return slot

    def remove(self, slot: int, callback: Callable[[], None]) -> None:
        """The deadline does not matter any more."""
        callbacks = self._slots.get(slot)
        if callbacks is not None:
            callbacks.pop(callback, None)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_slot = self._order[0]
        self._timer = loop.call_at(self._timer_slot * STEP_MS / 1000, self._expire)

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = int(loop.time() * 1000) // STEP_MS
        while self._order and self._order[0] <= max(now, self._timer_slot):
            for callback in self._slots.pop(heappop(self._order)):
                callback()
        if self._order and self._timer is None:
            self._arm(loop)
