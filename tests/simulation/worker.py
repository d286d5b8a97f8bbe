"""The WAL's jobs as events of a process: the loop goes on between a write and its report, as with the real threads.

A step of the writer runs when the thread would begin it. What it writes lands, perhaps in two pieces, while the thread
waits, is durable when the wait is over, and only then comes the next step, which reports it. A step of any other job
happens whole at the end of its wait, because its effects within the process must not come before those on the disk; a
process that is killed meanwhile did some part of it.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.disk import Dead, Io, Owner, ProcessDisk, Timeline
from tests.simulation.volume import SECTOR

if TYPE_CHECKING:
    from storage.wal.worker import Job, StartWorker

_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000
_WRITER = "tidelog-wal-writer"
_PAGE = 8 * SECTOR


def worker_starter(process: Owner, disk: ProcessDisk, timeline: Timeline, rng: random.Random) -> StartWorker:
    """What `VolumeWal.create(start_worker=...)` takes, for one process and its disk."""

    def start(name: str, job: Job) -> SimulatedWorker:
        return SimulatedWorker(name, job, process, disk, timeline, rng)

    return start


class SimulatedWorker:
    """Drives one job; a `storage.wal.worker.Worker`."""

    def __init__(
        self, name: str, job: Job, process: Owner, disk: ProcessDisk, timeline: Timeline, rng: random.Random
    ) -> None:
        self.idle = False
        self._job = job
        self._process = process
        self._disk = disk
        self._timeline = timeline
        self._rng = rng
        self._overlapped = name == _WRITER
        self._stopped: Callable[[], None] | None = None
        self._ended = False
        self._busy = False  # a step is under way or will come without a wake
        self._rung = False
        self._alarm = 0  # number of the timer that may still ring

    def start(self) -> None:
        self._begin()

    def wake(self) -> None:
        self.idle = False
        if self._busy:
            self._rung = True
        else:
            self._begin()

    def stop(self, stopped: Callable[[], None]) -> None:
        self._stopped = stopped
        self.wake()

    def _begin(self) -> None:
        """The thread wakes up, and soon begins a step."""
        if self._ended:
            return
        self._busy = True
        self._alarm += 1
        if self._overlapped:
            self._later(self._rng.randint(5 * _US, 60 * _US), self._run)
        else:
            self._disk.owed[self._step] = None
            self._later(self._disk.disk.sync_ns(self._rng.randint(1, 4)), self._run)

    def _later(self, delay_ns: int, callback: Callable[..., object], *args: object) -> None:
        self._timeline.call_at_ns(self._timeline.now_ns + delay_ns, callback, *args, owner=self._process)

    def _step(self) -> float | None:
        with self._process.running(None):
            return self._job.step()

    def _run(self) -> None:
        """One step, and what follows from it."""
        disk = self._disk
        disk.owed.pop(self._step, None)
        self._rung = False
        disk.busy_ns = 0
        queue: list[Io] | None = [] if self._overlapped else None
        disk.queue = queue
        try:
            wait = self._step()
        except Dead:
            return
        finally:
            disk.queue = None
        if not self._process.alive:
            return
        if queue:
            self._carry_out(queue, wait)
        else:
            self._go_on(wait)

    def _carry_out(self, queue: list[Io], wait: float | None) -> None:
        rng = self._rng
        self._disk.waiting = True
        at_write, self._disk.at_write = self._disk.at_write, None
        if at_write is not None:
            at_write()
        for io in queue:
            if io.data is None:
                continue
            pages = len(io.data) // _PAGE
            if pages and rng.random() < 0.1:
                cut = rng.randint(1, pages) * _PAGE - io.position % _PAGE
                first, second = sorted((rng.randint(io.begin_ns, io.end_ns), rng.randint(io.begin_ns, io.end_ns)))
                self._later(first, io.inode.write, io.position, io.data[:cut])
                self._later(second, io.inode.write, io.position + cut, io.data[cut:])
            else:
                self._later(rng.randint(io.begin_ns, io.end_ns), io.inode.write, io.position, io.data)
        self._later(self._disk.busy_ns, self._carried_out, queue, wait)

    def _carried_out(self, queue: list[Io], wait: float | None) -> None:
        self._disk.waiting = False
        for io in queue:
            if io.data is None and io.failed:
                io.inode.fail_to_sync(self._rng)
            elif io.data is None:
                io.inode.sync()
            elif not b"".join(io.buffers).startswith(io.data):
                self._disk.disk.findings.append(f"{self._process.name}: a buffer changed while it was written")
        self._go_on(wait)

    def _go_on(self, wait: float | None) -> None:
        if wait == 0.0 or self._rung:
            if self._overlapped:
                self._run()
            else:
                self._begin()
            return
        if self._stopped is not None:
            self._ended = True
            with self._process.running(None):
                self._stopped()
            return
        self._busy = False
        if wait is None:
            self.idle = True
        else:
            self._alarm += 1
            self._later(int(wait * _S), self._ring, self._alarm)

    def _ring(self, alarm: int) -> None:
        if alarm == self._alarm:
            self._begin()


class LoopWorker:
    """Drives a job on the running event loop, a step a turn. `hold` stops it between two steps."""

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self.idle = False
        self.hold = False
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._stopped: Callable[[], None] | None = None
        self._turn_due = False

    def start(self) -> None:
        self._call_soon()

    def wake(self) -> None:
        self.idle = False
        self._call_soon()

    def stop(self, stopped: Callable[[], None]) -> None:
        self._stopped = stopped
        self.hold = False
        self._call_soon()

    def release(self) -> None:
        self.hold = False
        self._call_soon()

    def _call_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.hold:
            return
        try:
            wait = self._job.step()
        except Dead:
            wait = None
        if wait == 0.0:
            self._call_soon()
        elif self._stopped is not None:
            self._stopped()
        elif wait is None:
            self.idle = True
        else:
            self._loop.call_later(wait / 100, self._call_soon)
