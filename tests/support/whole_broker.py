"""A whole broker on the test's event loop: the composition root as the process has it, over files below a directory."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker.clock import SystemClock
from broker.node import Broker
from broker.settings_checks import build


@asynccontextmanager
async def whole_broker(data_dir: Path, **overrides: object) -> AsyncIterator[Broker]:
    """Start, hand out, stop cleanly. `tidelog_seal_ms=100` is `tidelog.seal.ms=100`; ports: `broker.listeners`."""
    values: dict[str, object] = {
        "listeners": "PLAINTEXT://127.0.0.1:0",
        "tidelog.http.listener": "127.0.0.1:0",
        "tidelog.data.dir": data_dir,
        "tidelog.wal.file.bytes": 2 << 20,
        "tidelog.wal.bytes.max": 64 << 20,
        "group.initial.rebalance.delay.ms": 0,
        **{key.replace("_", "."): value for key, value in overrides.items()},
    }
    settings = build({key: str(value) for key, value in values.items()})
    broker = Broker(settings, clock=SystemClock(), token=os.urandom)
    stop, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(broker.run(stop, lambda _: ready.set()))
        waiting = group.create_task(ready.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert ready.is_set(), "the broker ended before it was ready"
        try:
            yield broker
        finally:
            stop.set()
            assert await running == 0, "no clean stop"
