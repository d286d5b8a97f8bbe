"""Open object WALs for tests, and the tasks that they run in."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

from storage.object_store import ObjectStore
from storage.wal.objects import ObjectWal, ObjectWalSettings
from tests.storage.wal.support import WAL_ID, Opened

QUICK = ObjectWalSettings(interval_ms=2, busy_interval_ms=1, bytes_max=8 << 20, group_bytes=256 << 10)


class Owned:
    """A `TaskOwner`: `end` cancels what still runs; an error of a task is raised there."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def create_task(self, work: Coroutine[Any, Any, Any], /) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


def counting_token(seed: int = 0) -> Any:
    """Tokens that differ from each other and are the same in every run."""
    numbers = itertools.count(seed + 1)
    return lambda n: next(numbers).to_bytes(n, "big")


def open_object_wal(
    store: ObjectStore,
    owned: Owned,
    *,
    wal_id: bytes = WAL_ID,
    settings: ObjectWalSettings = QUICK,
    token: Any = None,
    message_bytes_max: int = 64 << 10,
) -> Opened:
    """An open object WAL and what it told."""
    opened = Opened()
    opened.wal = ObjectWal(  # type: ignore[assignment]
        store,
        owned,
        wal_id=wal_id,
        token=token or counting_token(),
        on_durable=opened.on_durable,
        on_failed=opened.on_failed,
        on_room=opened.on_room,
        message_bytes_max=message_bytes_max,
        settings=settings,
    )
    return opened
