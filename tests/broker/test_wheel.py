"""Deadlines in steps, metrics read in place, tasks that have an owner."""

import asyncio

import pytest

from broker.background import Tasks
from broker.metrics import Counters, Metrics, new_histogram
from broker.wheel import STEP_MS, Wheel


async def test_callbacks_come_in_time_and_in_order() -> None:
    wheel, loop = Wheel(), asyncio.get_running_loop()
    began = loop.time()
    called: list[tuple[str, float]] = []
    done = asyncio.Event()

    def note(name: str) -> None:
        called.append((name, (loop.time() - began) * 1000))

    wheel.add(60, lambda: (note("c"), done.set()))  # type: ignore[func-returns-value]
    wheel.add(5, lambda: note("a"))
    gone = lambda: note("never")  # noqa: E731
    slot = wheel.add(30, gone)
    wheel.add(30, lambda: note("b"))
    assert len(wheel) == 4
    wheel.remove(slot, gone)
    await asyncio.wait_for(done.wait(), 5)
    assert [name for name, _ in called] == ["a", "b", "c"]
    for (_, at), wanted in zip(called, (5, 30, 60)):
        assert wanted - 1 <= at < wanted + STEP_MS + 200
    assert len(wheel) == 0
    wheel.remove(slot, gone)


async def test_a_callback_may_add_and_remove() -> None:
    wheel = Wheel()
    done = asyncio.Event()
    wheel.add(1, lambda: wheel.add(1, done.set))
    await asyncio.wait_for(done.wait(), 5)


def test_metrics_are_read_in_place() -> None:
    metrics, counters = Metrics(), Counters()
    metrics.counter("requests", "How many.", lambda: [({"api": "Produce"}, counters.requests[0])])
    metrics.gauge("open", "Connections.", lambda: 3)
    metrics.histogram("seconds", "Latency.", counters.produce_latency)
    counters.requests[0] += 2
    counters.produce_latency[(5).bit_length()] += 1
    counters.error(6)
    counters.error(6)
    requests, gauge, histogram = metrics.read()
    assert requests.samples == [((("api", "Produce"),), 2)]
    assert (gauge.kind, gauge.samples) == ("gauge", [((), 3)])
    assert histogram.histogram is not None and histogram.histogram[8e-6] == 1
    assert sum(histogram.histogram.values()) == 1
    assert counters.errors == {6: 2}
    assert len(new_histogram()) == len(counters.produce_latency)
    with pytest.raises(AssertionError):
        metrics.gauge("open", "Again.", lambda: 0)


async def test_tasks_end_with_their_owner() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    async with Tasks() as tasks:
        tasks.spawn(forever(), name="forever")
        short = tasks.spawn(asyncio.sleep(0), name="short")
        await short
        await asyncio.sleep(0)
        assert len(tasks) == 1
    assert ended == ["cancelled"]


async def test_a_task_that_raises_ends_its_owner() -> None:
    async def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.spawn(bug(), name="bug")
            await asyncio.sleep(60)
    assert caught.group_contains(ZeroDivisionError)
