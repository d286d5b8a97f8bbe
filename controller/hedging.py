"""A metadata log whose calls do not hang: one that is not answered is made again beside the first.

A lost packet may hold a request for as long as an engine waits before it gives one up, which is longer than a lease.
Both calls that a lease hangs on may be made any number of times at once: an append is of the same bytes at the same
position, and what is read never changes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from controller.metadata_log import MetadataLog, Snapshot

CALLS_MAX = 4
"""So many at a time; each waits twice as long for the next as the one before."""

T = TypeVar("T")


async def hedged(call: Callable[[], Awaitable[T]], after_ms: int) -> T:
    """What the first of several equal calls to end returns or raises. The second begins `after_ms` after the first."""

    async def one() -> T:
        return await call()

    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[T]] = []
    try:
        while True:
            tasks.append(loop.create_task(one()))
            last = len(tasks) == CALLS_MAX
            await asyncio.wait(tasks, timeout=None if last else after_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    return task.result()
            after_ms *= 2
    finally:
        if len(tasks) > 1 or not tasks[0].done():
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class HedgedLog:
    """A `MetadataLog` over another one."""

    def __init__(self, log: MetadataLog, after_ms: int) -> None:
        self._log = log
        self._after_ms = after_ms

    def applied(self, position: int, entry_hash: bytes) -> None:
        """As the port says."""
        self._log.applied(position, entry_hash)

    async def append(self, position: int, entry: bytes) -> bytes:
        """As the port says."""
        return await hedged(lambda: self._log.append(position, entry), self._after_ms)

    async def read_from(self, position: int, limit: int) -> list[bytes]:
        """As the port says."""
        return await hedged(lambda: self._log.read_from(position, limit), self._after_ms)

    async def newest_snapshot(self) -> Snapshot | None:
        """As the port says."""
        return await self._log.newest_snapshot()

    async def write_snapshot(self, position: int, entry_hash: bytes, state: Sequence[bytes]) -> None:
        """As the port says."""
        await self._log.write_snapshot(position, entry_hash, state)

    async def advance_boundary(self, position: int) -> int:
        """As the port says."""
        return await self._log.advance_boundary(position)

    async def trim(self) -> int:
        """As the port says."""
        return await self._log.trim()

    async def close(self) -> None:
        """As the port says."""
        await self._log.close()
