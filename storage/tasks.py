"""Who runs background work of storage code: an `asyncio.TaskGroup`, or anything that owns tasks like one."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol


class TaskOwner(Protocol):
    """Owns the tasks it creates: waits for them or cancels them when it ends."""

    def create_task(self, work: Coroutine[Any, Any, Any], /) -> "asyncio.Task[Any]":
        """Start `work`."""
        ...
