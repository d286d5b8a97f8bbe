"""Operating-system processes of a simulated world: one run of a program each, on an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import random  # noqa: TID251
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.hosts import Host, SimulatedClock
from tests.simulation.loop import ProcessLoop, Running
from tests.simulation.scheduler import Event


class Failure:
    """What nobody handled in a process: a finding of the run."""

    def __init__(self, process: Process, message: str, error: BaseException | None) -> None:
        self.at_ns = process.scheduler.now_ns
        self.process = process.name
        self.message = message
        self.error = error

    def __str__(self) -> str:
        return f"{self.process}: {self.message}" + (f": {self.error!r}" if self.error is not None else "")


class Process:
    """One run of a program. `failures` lists what nobody handled; `on_end(process)` is called once when it is over.

    `on_death` callbacks are what the kernel does about handles (locks, files), before the process counts as dead.
    """

    def __init__(self, host: Host, name: str, on_end: Callable[[Process], None] | None = None) -> None:
        assert host.up
        self.host = host
        self.name = name
        self.scheduler = host.scheduler
        self.network = host.network
        self.rng = self.scheduler.stream(f"process {name}")
        """For its schedule; what the program itself draws comes from `token`."""
        self.clock = SimulatedClock(host)
        self.alive = True
        self.paused = False
        self.killed = False
        self.result: Any = None
        """What the main coroutine returned."""
        self.error: BaseException | None = None
        """What it raised."""
        self.failures: list[Failure] = []
        self.on_death: list[Callable[[], None]] = []
        self._on_end = on_end
        self._tokens = self.scheduler.stream(f"token {name}")
        self._parked: list[Event] = []
        self._ending = False
        self.loop = ProcessLoop(self)  # type: ignore[abstract]
        host.processes.append(self)

    def token(self, n: int) -> bytes:
        """`n` bytes that no other process gets."""
        return self._tokens.randbytes(n)

    def random(self, name: str) -> random.Random:
        """A source of choices for the program."""
        return self.scheduler.stream(f"{self.name} {name}")

    def spawn(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start `main`; when it returns or raises, the process is over."""

        def start() -> None:
            self.loop.create_task(main()).add_done_callback(self._main_done)

        self.call(start)

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Call something on the loop of this process, as from outside: nothing happens when it is dead."""
        self.loop.call_soon(callback, *args)

    def _main_done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.error = asyncio.CancelledError()
        else:
            self.error = task.exception()
        if self.error is None:
            self.result = task.result()
        self._end()

    def kill(self) -> None:
        """SIGKILL: no code of it runs from now on. What it left open is closed by the kernel."""
        if self.alive:
            self.killed = True
            self._end()

    def _end(self) -> None:
        if self._ending:
            return
        self._ending = True
        for callback in self.on_death:
            callback()
        self.alive = False
        self.host.processes.remove(self)
        self.network.process_died(self)
        if self._on_end is not None:
            self._on_end(self)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: what became due meanwhile happens now."""
        self.paused = False
        self.release()

    @property
    def stopped(self) -> bool:
        """Alive, and not running."""
        return self.paused or self.host.suspended

    def keep(self, event: Event) -> None:
        """An event comes while this process does not run: it waits, unless the process is dead."""
        if self.alive:
            self._parked.append(event)

    def release(self) -> None:
        """Queue what waited, unless the process is still stopped."""
        if self.alive and not self.stopped:
            parked, self._parked = self._parked, []
            for event in parked:
                self.scheduler.requeue(event)

    def failed(self, message: str, error: BaseException | None) -> None:
        """Nobody handled this. What breaks because the process was killed in the midst of it is no failure."""
        if self.killed:
            return
        failure = Failure(self, message, error)
        self.failures.append(failure)
        self.scheduler.history.record("process.failure", process=self.name, message=message, error=type(error).__name__)

    def running(self, loop: ProcessLoop | None) -> Running:
        """A block in which code of this process runs; `loop` None: in a thread beside the loop."""
        return Running(self, loop, self.loop.finalize_generator)

    def bury(self) -> None:
        """The world is over: let go of every coroutine that was left in the middle, silently and without effects."""
        assert not self.alive
        logging.disable()
        try:
            with warnings.catch_warnings(), self.running(self.loop):
                warnings.simplefilter("ignore")  # coroutines that a `finally` makes and nobody awaits
                self.loop.bury()
        finally:
            logging.disable(logging.NOTSET)
