"""Virtual time: where asyncio would wait, the clock jumps to the next timer. No waiting, no luck."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(AssertionError):
    """Everything waits and no timer is set."""


class _Jump(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("every task waits for another one")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 1000 s and moves only when all tasks wait."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return 1000.0 + self._jump.now


class VirtualClock:
    """A `Clock` on the loop's time. `rate` and `shift_ms` make it one that differs from others."""

    def __init__(self, rate: float = 1.0, shift_ms: int = 0) -> None:
        self._rate = rate
        self._shift_ms = shift_ms

    def boottime_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000 * self._rate) + self._shift_ms

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(asyncio.get_running_loop().time() * 1000)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Runs a coroutine function in virtual time."""

    async def main() -> T:
        return await work()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
