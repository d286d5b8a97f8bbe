"""What drives the WAL's two jobs: a thread for each, or a simulation.

A job is plain code that does one piece of work per call. The driver calls it again until there is nothing to do, then
until somebody wakes it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable


class Job(Protocol):
    def step(self) -> float | None:
        """Do one piece of work. 0: call again; more: not before so many seconds; None: nothing until woken."""


class Worker(Protocol):
    #: True: the job had nothing to do when it was last asked, so new work needs a `wake`.
    idle: bool

    def start(self) -> None: ...

    def wake(self) -> None:
        """There may be work. From any thread; harmless when there is none."""

    def stop(self, stopped: Callable[[], None]) -> None:
        """Do what there is to do, then end and call `stopped` (from any thread)."""


#: (name, job) -> driver, not started.
StartWorker: TypeAlias = "Callable[[str, Job], Worker]"


class ThreadWorker:
    """A thread that pulls its work: it looks again after it said that it is idle, so no wake-up is lost."""

    def __init__(self, name: str, job: Job) -> None:
        self.idle = False
        self._job = job
        self._bell = threading.Lock()  # used as a binary semaphore
        self._bell.acquire()
        self._stopped: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self.idle = False
        try:
            self._bell.release()
        except RuntimeError:
            pass  # released before and not taken yet: it will look anyway

    def stop(self, stopped: Callable[[], None]) -> None:
        self._stopped = stopped
        self.wake()

    def _run(self) -> None:
        step = self._job.step
        bell = self._bell
        while True:
            wait = step()
            if wait is None:
                self.idle = True
                wait = step()
                if wait is None:
                    if self._stopped is not None:
                        break
                    bell.acquire()
                self.idle = False
            if wait:
                if self._stopped is not None:
                    break
                bell.acquire(timeout=wait)
        self._stopped()
