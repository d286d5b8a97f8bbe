"""The event loop of a simulated process.

Everything that would wait waits for an event of the `Scheduler`, and every turn of the loop is one event. What a thread
would do is an event of the same process beside the loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import US

if TYPE_CHECKING:
    from tests.simulation.process import Process

TURN_NS = (5 * US, 40 * US)
"""What one turn of a loop takes: at least, and up to so much more."""
THREAD_NS = (20 * US, 400 * US)
"""How long a thread takes to begin, and its loop to hear that it is done; as `TURN_NS`."""


class Running:
    """See `Process.running`. One is entered once at a time."""

    __slots__ = ("_finalizer", "_loop", "_outer", "_scheduler", "process")

    def __init__(self, process: Process, loop: ProcessLoop | None, finalizer: Callable[[Any], None]) -> None:
        self.process = process
        self._scheduler = process.scheduler
        self._loop = loop
        self._finalizer = finalizer

    def __enter__(self) -> None:
        scheduler = self._scheduler
        self._outer, scheduler.inside = scheduler.inside, self
        self.enter()

    def __exit__(self, *error: object) -> None:
        self._scheduler.inside = outer = self._outer
        if outer is not None:
            outer.enter()
        else:
            self._scheduler.left()

    def enter(self) -> None:
        """Make this loop the running one. It stays that until another one runs, or the scheduler returns."""
        if self._scheduler.entered is not self:
            self._scheduler.entered = self
            asyncio._set_running_loop(self._loop)
            sys.set_asyncgen_hooks(None, self._finalizer)


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
        self._timers: list[tuple[int, int, Call]] = []  # by virtual time
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
            return max(self._free_ns, self._timers[0][0])
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
                    now_ns = scheduler.now_ns
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
                        when_ns = max(when_ns, timers[0][0])
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
        heappush(self._timers, (self.process.host.until_ns(round(when * 1e9)), self._number, call))
        if not self._in_turn and self._timers[0][2] is call:
            self._arm()
        return call

    def put_off(self, slept_ns: int) -> None:
        """The host was suspended for so long: its monotonic clock stood still, and so did what waits for it."""
        self._timers[:] = [(when_ns + slept_ns, number, call) for when_ns, number, call in self._timers]

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
