"""The WAL's jobs as events of a process: the loop goes on between a write and its report, as with the real thread."""

from __future__ import annotations

import random  # noqa: TID251
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.wal.worker import StartWorker
    from tests.simulation.disk import Owner, ProcessDisk, Timeline


def worker_starter(process: Owner, disk: ProcessDisk, timeline: Timeline, rng: random.Random) -> StartWorker:
    """What `VolumeWal.create(start_worker=...)` takes, for one process."""
    raise NotImplementedError
