"""Virtual time: a heap of events, one seeded source of choices. Nothing here waits, and nothing reads a real clock."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251
import sys
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from tests.simulation.history import History

if TYPE_CHECKING:
    from tests.simulation.loop import Running
    from tests.simulation.process import Process

US = 1_000
MS = 1_000_000
S = 1_000_000_000

EVENTS_MAX = 5_000_000
"""More events than any honest run has: something goes round in circles."""


class Runaway(AssertionError):
    """The run does not come forward."""


Event = tuple[int, int, Callable[..., object], tuple[Any, ...], "Process | None"]
"""Virtual time, its number, callback and arguments, owner."""


class Scheduler:
    """Runs events in the order of their time; events of one time in the order in which they were made.

    An event with an `owner` is code of that process: it never runs once the process is dead, and waits while the
    process is stopped or its host is suspended.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = 0
        self.rng = random.Random(f"{seed}/schedule")
        """For choices of the schedule itself; parts with choices of their own take a `stream`."""
        self.history = History(lambda: self.now_ns)
        self.inside: Running | None = None
        """Whose code runs at this moment."""
        self.entered: Running | None = None
        """Whose loop the interpreter takes for the running one: the last that ran."""
        self.events_run = 0
        self._heap: list[Event] = []
        self._made = 0
        self._until_ns = 0
        self._stop: Callable[[], bool] | None = None
        self._runs = False

    @property
    def current(self) -> Process | None:
        """The process whose code runs at this moment."""
        return None if self.inside is None else self.inside.process

    def stream(self, name: str) -> random.Random:
        """A source of choices of its own: what one part draws does not move what another part draws."""
        return random.Random(f"{self.seed}/{name}")

    def call_at_ns(
        self, when_ns: int, callback: Callable[..., object], *args: Any, owner: Process | None = None
    ) -> None:
        """Call at a virtual time, now at the earliest."""
        self._made = made = self._made + 1
        now_ns = self.now_ns
        heappush(self._heap, (when_ns if when_ns > now_ns else now_ns, made, callback, args, owner))

    def call_later_ns(
        self, delay_ns: int, callback: Callable[..., object], *args: Any, owner: Process | None = None
    ) -> None:
        """Call after a delay."""
        self.call_at_ns(self.now_ns + delay_ns, callback, *args, owner=owner)

    def requeue(self, event: Event) -> None:
        """An event that a stopped process kept happens now."""
        _, _, callback, args, owner = event
        self.call_at_ns(self.now_ns, callback, *args, owner=owner)

    def run_until(self, when_ns: int, stop: Callable[[], bool] | None = None) -> bool:
        """Run every event up to this time; with `stop`, no further than when it says so. Whether it said so."""
        self._until_ns, self._stop = when_ns, stop
        self._runs = True
        try:
            return self._run(when_ns, stop)
        finally:
            self._runs = False
            self.left()

    def left(self) -> None:
        """No code of a process runs. Within a run the next one to enter makes its loop the running one."""
        if not self._runs and self.entered is not None:
            self.entered = None
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(None, None)

    def _run(self, when_ns: int, stop: Callable[[], bool] | None) -> bool:
        heap = self._heap
        while heap and heap[0][0] <= when_ns:
            event = heappop(heap)
            self.now_ns, _, callback, args, owner = event
            if owner is not None and (not owner.alive or owner.paused or owner.host.suspended):
                owner.keep(event)
                continue
            self.events_run += 1
            callback(*args)
            if self.events_run > EVENTS_MAX:
                raise Runaway(f"{EVENTS_MAX} events in {self.now_ns / S:.3f} s")
            if stop is not None and stop():
                return True
        self.now_ns = max(self.now_ns, when_ns)
        return False

    def goes_on_at(self, when_ns: int) -> bool:
        """Whether the event that runs may do at once what it would make an event of for `when_ns`; it is then now.

        It may when nothing else comes before: the heap would give it back at once.
        """
        heap = self._heap
        if when_ns > self._until_ns or (heap and heap[0][0] <= when_ns) or (self._stop is not None and self._stop()):
            return False
        if when_ns > self.now_ns:
            self.now_ns = when_ns
        self.events_run += 1
        return self.events_run <= EVENTS_MAX
