"""Hosts and operating-system processes of a simulated world.

A process has an event loop of its own: everything that would wait waits for an event of the `Scheduler`, and every turn
of the loop is one event. What a thread would do is an event of the same process beside the loop.
"""

from __future__ import annotations

import asyncio
import logging
import random  # noqa: TID251
import sys
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from broker.clock import SystemClock
from tests.simulation.scheduler import MS, US, Event, Scheduler

if TYPE_CHECKING:
    from storage.wal.disk import Disk
    from tests.simulation.network import Network

EPOCH_MS = 1_700_000_000_000
TURN_NS = (5 * US, 40 * US)
"""What one turn of a loop takes: at least, and up to so much more."""
THREAD_NS = (20 * US, 400 * US)
"""How long a thread takes to begin, and its loop to hear that it is done; as `TURN_NS`."""


class Host:
    """A machine: its processes, its clocks and its disk. `on_crash` callbacks lose what is not durable."""

    def __init__(self, scheduler: Scheduler, network: Network, name: str, *, rate: float = 1.0) -> None:
        """`rate`: how fast its clocks go, 1.0 is right."""
        self.scheduler = scheduler
        self.network = network
        self.name = name
        self.rate = rate
        self.rng = scheduler.stream(f"host {name}")
        self.up = True
        self.suspended = False
        self.boots = 0
        self.boot_id = ""
        self.disk: Disk | None = None
        self.processes: list[Process] = []
        self.on_crash: list[Callable[[], None]] = []
        self.wall_offset_ms = self.rng.randint(-200, 200)
        self._uptime_ns = 0
        self._booted_ns = 0
        self._awake_from_ns = 0  # boot, later by what it was suspended
        self._suspended_ns = 0
        self._boot(self.rng.randint(0, 5_000) * MS)
        network.hosts[name] = self

    def _boot(self, uptime_ns: int) -> None:
        self.boots += 1
        self.boot_id = f"{self.name}-boot-{self.boots}"
        self._uptime_ns = uptime_ns
        self._booted_ns = self._awake_from_ns = self.scheduler.now_ns

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME: suspended time counts."""
        return self._uptime_ns + int((self.scheduler.now_ns - self._booted_ns) * self.rate)

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC: suspended time does not count."""
        now_ns = self._suspended_ns if self.suspended else self.scheduler.now_ns
        return self._uptime_ns + int((now_ns - self._awake_from_ns) * self.rate)

    def until_ns(self, monotonic_ns: int) -> int:
        """When, in virtual time, this host's monotonic clock will show a value, if it is not suspended."""
        return self.scheduler.now_ns + max(0, int((monotonic_ns - self.monotonic_ns()) / self.rate) + 1)

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return EPOCH_MS + self.wall_offset_ms + int(self.scheduler.now_ns * self.rate) // MS

    def crash(self) -> None:
        """Power is gone: every process is dead, memory is empty, un-synced pages are lost or not."""
        assert self.up
        self.up = False
        self.suspended = False
        for process in list(self.processes):
            process.kill()
        for callback in self.on_crash:
            callback()

    def boot(self) -> None:
        """Power is back; nothing runs yet."""
        assert not self.up
        self.up = True
        self._boot(self.rng.randint(0, 2_000) * MS)
        self.network.host_back()

    def suspend(self) -> None:
        """Nothing of this host runs; CLOCK_BOOTTIME goes on, CLOCK_MONOTONIC does not."""
        assert self.up and not self.suspended
        self.suspended = True
        self._suspended_ns = self.scheduler.now_ns

    def resume(self) -> None:
        """Go on after `suspend`."""
        assert self.suspended
        self._awake_from_ns += self.scheduler.now_ns - self._suspended_ns
        self.suspended = False
        self.network.host_back()
        for process in self.processes:
            process.release()


class SimulatedClock(SystemClock):
    """The product's clock on those of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def now_ms(self) -> int:
        return self._host.now_ms()

    def boottime_ms(self) -> int:
        return self._host.boottime_ns() // MS

    def ticks_us(self) -> int:
        return self._host.monotonic_ns() // US


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


class Running:
    """See `Process.running`. One is entered once at a time."""

    __slots__ = ("_current", "_finalizer", "_loop", "_outer", "_process", "_scheduler")

    def __init__(self, process: Process, loop: ProcessLoop | None, finalizer: Callable[[Any], None]) -> None:
        self._process = process
        self._scheduler = process.scheduler
        self._loop = loop
        self._finalizer = finalizer

    def __enter__(self) -> None:
        scheduler = self._scheduler
        self._current, scheduler.current = scheduler.current, self._process
        self._outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self._loop)
        sys.set_asyncgen_hooks(None, self._finalizer)

    def __exit__(self, *error: object) -> None:
        asyncio._set_running_loop(self._outer)
        self._scheduler.current = current = self._current
        sys.set_asyncgen_hooks(None, None if current is None else current.loop.finalize_generator)


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number, so that sets of tasks have one order in every run."""

    __slots__ = ("_number",)

    def __init__(self, *args: Any, number: int, **kwargs: Any) -> None:
        self._number = number
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class NumberedFuture(asyncio.Future[Any]):
    """As `NumberedTask`; its loop gives it the number."""

    __slots__ = ("number",)

    def __hash__(self) -> int:
        return self.number


class Call:
    """What `call_soon` and `call_at` return: an `asyncio.Handle` that costs less."""

    __slots__ = ("_when", "args", "callback", "context")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when: float
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = copy_context() if context is None else context
        self._when = when

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self._when


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one process. Times are the host's CLOCK_MONOTONIC, seconds."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._scheduler = process.scheduler
        self._ready: deque[Call] = deque()
        self._timers: list[tuple[int, int, Call]] = []
        self._turn_ns = -1  # when the next turn comes; -1: none does
        self._turn_number = 0  # of that one; others were given up for it
        self._free_ns = 0
        self._fuse: tuple[int, Callable[[], None]] | None = None
        self._running = Running(process, self, self.finalize_generator)
        self._in_turn = False
        self._number = 0
        self._tasks: list[NumberedTask] = []
        self._tasks_kept = 64
        self._graveyard: list[object] = []

    # Turns

    def _arm(self) -> None:
        """Make sure that a turn comes when there is something to do."""
        if not self.process.alive:
            return
        when_ns = self._next_turn_ns()
        if when_ns < 0 or 0 <= self._turn_ns <= when_ns:
            return
        self._turn_ns = when_ns
        self._turn_number += 1
        self._scheduler.call_at_ns(when_ns, self._turn, self._turn_number, owner=self.process)

    def _next_turn_ns(self) -> int:
        """When there will be something to do; -1: never."""
        if self._ready:
            return max(self._free_ns, self._scheduler.now_ns)
        if self._timers:
            return max(self._free_ns, self.process.host.until_ns(self._timers[0][0]))
        return -1

    def _turn(self, number: int) -> None:
        """One turn, and all that follow before anything else happens in the world."""
        if number != self._turn_number:
            return
        process, scheduler = self.process, self._scheduler
        host, dice = process.host, process.rng.random
        ready, timers = self._ready, self._timers
        shortest_ns, longer_ns = TURN_NS
        self._turn_ns = -1
        self._in_turn = True
        try:
            with self._running:
                while True:
                    if timers:
                        now_ns = host.monotonic_ns()
                        while timers and (timers[0][0] <= now_ns or timers[0][2].callback is None):
                            timed = heappop(timers)[2]
                            if timed.callback is not None:
                                ready.append(timed)
                    for _ in range(len(ready)):
                        call = ready.popleft()
                        callback = call.callback
                        if callback is None:
                            continue
                        try:
                            call.context.run(callback, *call.args)
                        except (SystemExit, KeyboardInterrupt):
                            raise
                        except BaseException as error:
                            process.failed(f"exception in {_name_of(callback)}", error)
                        if self._fuse is not None:
                            self._burn()
                        if not process.alive:
                            self._graveyard.append(call)
                            return
                    self._free_ns = when_ns = scheduler.now_ns + shortest_ns + int(dice() * longer_ns)
                    if process.paused or host.suspended:
                        break
                    if not ready:
                        if not timers:
                            break
                        when_ns = max(when_ns, host.until_ns(timers[0][0]))
                    if not scheduler.goes_on_at(when_ns):
                        break
        finally:
            self._in_turn = False
        self._arm()

    def call_after(self, callbacks: int, callback: Callable[[], None]) -> None:
        """Call from outside of the process, in the middle of a turn: when it has run so many callbacks more."""
        self._fuse = (callbacks, callback)

    def _burn(self) -> None:
        assert self._fuse is not None
        left, callback = self._fuse
        if left > 0:
            self._fuse = (left - 1, callback)
        else:
            self._fuse = None
            callback()

    def time(self) -> float:
        return self.process.host.monotonic_ns() / 1e9

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        call = Call(callback, args, context, 0.0)
        self._ready.append(call)
        if not self._in_turn and len(self._ready) == 1:
            self._arm()
        return call

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        call = Call(callback, args, context, when)
        self._number += 1
        heappush(self._timers, (round(when * 1e9), self._number, call))
        if not self._in_turn and self._timers[0][2] is call:
            self._arm()
        return call

    # Tasks and futures

    def create_future(self) -> asyncio.Future[Any]:
        self._number += 1
        future = NumberedFuture(loop=self)
        future.number = self._number
        return future

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        self._number += 1
        task = NumberedTask(coro, number=self._number, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_kept:
            self._tasks = [one for one in self._tasks if not one.done()]
            self._tasks_kept = 64 + 2 * len(self._tasks)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """The call is a later event of the process, whole at one moment; the loop hears of its end later still."""
        future = self.create_future()
        self._later(self._in_thread, future, func, args)
        return future

    def _later(self, callback: Callable[..., object], *args: Any) -> None:
        delay_ns = THREAD_NS[0] + int(self.process.rng.random() * THREAD_NS[1])
        self._scheduler.call_later_ns(delay_ns, callback, *args, owner=self.process)

    def _in_thread(self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        result: Any = None
        error: BaseException | None = None
        with self.process.running(None):
            try:
                result = func(*args)
            except StopIteration as stopped:
                error = RuntimeError(f"a thread raised {stopped!r}")
            except BaseException as raised:
                error = raised
        if not self.process.alive:
            return
        self._later(self.call_soon, self._thread_done, future, result, error)

    def _thread_done(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    # Network

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int = 0,
        *,
        backlog: int = 100,
        start_serving: bool = True,
        **others: Any,
    ) -> Any:
        """As asyncio's. `host` is None or the name of this process's host; port 0 takes a free one."""
        assert not others, f"not simulated: {others}"
        return self.process.network.listen(self.process, protocol_factory, host, port, start_serving=start_serving)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **others: Any
    ) -> Any:
        """As asyncio's: (transport, protocol). OSError when nobody answers there."""
        assert not others, f"not simulated: {others}"
        return await self.process.network.connect(self.process, protocol_factory, host, port)

    # The rest of what asyncio and the product ask a loop

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._in_turn

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.process.alive:
            self.process.failed(context.get("message", "unhandled"), context.get("exception"))

    default_exception_handler = call_exception_handler

    def get_exception_handler(self) -> None:
        return None

    def set_exception_handler(self, handler: object) -> None:
        raise NotImplementedError("what nobody handles is a finding")

    async def shutdown_asyncgens(self) -> None:
        pass

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        pass

    # The end

    def finalize_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Somebody let go of an asynchronous generator in the middle."""
        if self.process.alive:
            self.call_soon(lambda: self.create_task(generator.aclose()))
        else:
            self._graveyard.append(generator)

    def bury(self) -> None:
        """Close every coroutine that was left in the middle."""
        while self._tasks:
            task = self._tasks.pop()
            if task.done():
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(task.get_coro())
        self._ready.clear()
        self._timers.clear()
        self._graveyard.clear()


def _name_of(callback: Callable[..., object]) -> str:
    return getattr(callback, "__qualname__", type(callback).__name__)


def _close(coroutine: Any) -> None:
    """Close a coroutine and all that it awaits, from the inside: each may wait again in a `finally`."""
    for _ in range(1000):
        inner, awaited = None, coroutine
        while awaited is not None:
            if getattr(awaited, "cr_frame", None) is not None:
                inner = awaited
            awaited = getattr(awaited, "cr_await", None)
        if inner is None:
            return
        try:
            inner.close()
        except BaseException:
            continue
