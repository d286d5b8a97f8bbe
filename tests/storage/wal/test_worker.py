"""The thread that pulls its work: no wake-up is lost, it ends when told."""

from __future__ import annotations

import threading
from collections import deque

from storage.wal.worker import ThreadWorker


class Queue:
    """Work comes from a queue; `waits` are answered once each."""

    def __init__(self, *waits: float) -> None:
        self.queue: deque[int] = deque()
        self.done: list[int] = []
        self.waits = deque(waits)
        self.all_done = threading.Event()
        self.expected = 0

    def step(self) -> float | None:
        if not self.queue:
            return None
        if self.waits:
            return self.waits.popleft()
        self.done.append(self.queue.popleft())
        if len(self.done) == self.expected:
            self.all_done.set()
        return 0.0


def test_no_wake_up_is_lost() -> None:
    job = Queue()
    worker = ThreadWorker("test", job)
    worker.start()
    for round_number in range(2000):
        job.all_done.clear()
        job.expected = len(job.done) + 1
        job.queue.append(round_number)
        if worker.idle:  # as the loop does: only an idle worker is woken
            worker.wake()
        assert job.all_done.wait(10), round_number
    stopped = threading.Event()
    worker.stop(stopped.set)
    assert stopped.wait(10) and job.done == list(range(2000))


def test_it_waits_as_long_as_told_and_a_wake_up_cuts_it_short() -> None:
    job = Queue(0.01, 1000.0)
    job.expected = 1
    job.queue.append(1)
    worker = ThreadWorker("test", job)
    worker.start()
    while job.waits:
        pass  # both waits were asked for, the first one over
    worker.wake()
    assert job.all_done.wait(10)
    stopped = threading.Event()
    worker.stop(stopped.set)
    assert stopped.wait(10)


def test_stop_does_what_is_queued_but_does_not_wait() -> None:
    job = Queue()
    job.queue.extend(range(5))
    worker = ThreadWorker("test", job)
    stopped = threading.Event()
    worker.stop(stopped.set)
    worker.start()
    assert stopped.wait(10) and job.done == [0, 1, 2, 3, 4]
    waiting = Queue(1000.0)
    waiting.queue.append(1)
    worker = ThreadWorker("test", waiting)
    worker.start()
    again = threading.Event()
    worker.stop(again.set)
    assert again.wait(10)
