"""Batches and open WALs for the tests of the volume WAL."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from crc32c import crc32c

from storage.wal.volume import VolumeWal
from tests.simulation.disk import SimulatedDisk
from tests.simulation.worker import LoopWorker

CLUSTER = "test-cluster-000000000"
FILE_BYTES = 64 << 10
WAL_ID = bytes(range(16))


def make_batch(base: int, *, epoch: int = 0, records: int = 1, size: int = 100, fill: int = 0) -> bytes:
    """A record batch v2 whose header and checksum hold; its records are `fill` bytes."""
    assert size >= 61
    body = struct.pack(">hiqqqhii", 0, records - 1, 0, 0, -1, -1, -1, records) + bytes([fill]) * (size - 61)
    return struct.pack(">qiibI", base, size - 12, epoch, 2, crc32c(body)) + body


class Opened:
    """A WAL and what it told us."""

    wal: VolumeWal
    workers: dict[str, LoopWorker]

    def __init__(self) -> None:
        self.durable: list[tuple[int, int]] = []
        self.failures: list[BaseException] = []
        self.rooms = 0
        self.workers = {}
        self.changed = asyncio.Event()
        self.ends: dict[int, int] = {}

    def on_durable(self, sequence: int, group: int) -> None:
        self.durable.append((sequence, group))
        self.changed.set()

    def on_failed(self, error: BaseException) -> None:
        self.failures.append(error)
        self.changed.set()

    def on_room(self) -> None:
        self.rooms += 1
        self.changed.set()

    def worker(self, name: str, job: Any) -> LoopWorker:
        self.workers[name] = LoopWorker(name, job)
        return self.workers[name]

    @property
    def writer(self) -> LoopWorker:
        return self.workers["tidelog-wal-writer"]

    @property
    def preparer(self) -> LoopWorker:
        return self.workers["tidelog-wal-files"]

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something a callback brings about."""
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def durable_through(self, sequence: int) -> None:
        await self.until(lambda: self.durable and self.durable[-1][0] >= sequence)

    async def settle(self) -> None:
        """Let a WAL on simulated workers do everything it can."""
        for _ in range(200):
            await asyncio.sleep(0)

    def append(self, log_id: int = 1, *, epoch: int = 0, records: int = 1, size: int = 100, fill: int = 0) -> int:
        """Append the log's next batch."""
        base = self.ends.get(log_id, 0)
        self.ends[log_id] = base + records
        return self.wal.append(
            log_id, epoch, base, make_batch(base, epoch=epoch, records=records, size=size, fill=fill)
        )


async def open_wal(root: Any, *, disk: SimulatedDisk | None = None, wal_id: bytes = WAL_ID, **settings: Any) -> Opened:
    """An open WAL; on simulated workers when a simulated disk is given."""
    opened = Opened()
    settings = {"file_bytes": FILE_BYTES, "bytes_max": 8 * FILE_BYTES, "message_bytes_max": FILE_BYTES // 2} | settings
    if disk is not None:
        settings |= {"disk": disk, "start_worker": opened.worker, "fence_kind": "file"}
    opened.wal = await VolumeWal.create(
        root,
        cluster_id=CLUSTER,
        node_id=1,
        wal_id=wal_id,
        on_durable=opened.on_durable,
        on_failed=opened.on_failed,
        on_room=opened.on_room,
        **settings,
    )
    return opened
