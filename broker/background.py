"""Who owns tasks: one object around an `asyncio.TaskGroup`, entered by the composition root."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

COLLECT_EVERY_S = 1.0
CANCEL_AGAIN_S = 1.0


async def collect_young_garbage() -> None:
    """Free what cycles keep alive, as long as it runs.

    The collector counts objects, not bytes: one exception that holds itself by its traceback holds a request of
    megabytes too, and a thousand of them are no reason for it to come by itself. Young generations only: a full
    collection would walk every tail.
    """
    while True:
        await asyncio.sleep(COLLECT_EVERY_S)
        gc.collect(1)


class Tasks:
    """Tasks of one owner. Leaving the block cancels what still runs; a task that raises ends it, as in a TaskGroup.

    `spawn` is for work that the owner does not wait for: it must handle its own refusals, because an exception that
    escapes is a bug of ours and ends the process.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._again: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancel_all()
        try:
            await self._group.__aexit__(kind, error, traceback)
        finally:
            if self._again is not None:
                self._again.cancel()

    def _cancel_all(self) -> None:
        """Cancel what still runs, again and again: a TaskGroup that meets an error at the moment of its cancellation
        raises the error alone, so whoever waits for an error to pass would never hear that it has to end."""
        for task in self._tasks:
            task.cancel()
        self._again = asyncio.get_running_loop().call_later(CANCEL_AGAIN_S, self._cancel_all)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `work`; it is cancelled when the owner leaves its block, at once when it has left it already."""
        try:
            task = self._group.create_task(work, name=name)
        except RuntimeError:  # of a group that ends; connections are closed only after that, and requests still come
            task = asyncio.get_running_loop().create_task(work, name=name)
            task.cancel()
            return task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """`spawn` for code that takes a `storage.tasks.TaskOwner`."""
        return self.spawn(work, name=type(work).__name__)

    def __len__(self) -> int:
        return len(self._tasks)
