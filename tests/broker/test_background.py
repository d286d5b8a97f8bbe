"""Who owns tasks: leaving the block ends them all, also those that a cancellation got lost in. Garbage of cycles."""

import asyncio
import gc
import weakref

import pytest

import broker.background
from broker.background import Tasks, collect_young_garbage


async def test_leaving_the_block_cancels_what_runs() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(name)

    async with Tasks() as tasks:
        tasks.spawn(work("a"), name="a")
        tasks.create_task(work("b"))
        await asyncio.sleep(0)
        assert len(tasks) == 2
    assert sorted(ended) == ["a", "b"] and len(tasks) == 0


async def test_a_task_that_raises_ends_the_block() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with Tasks() as tasks:
            tasks.spawn(broken(), name="broken")
            await asyncio.get_running_loop().create_future()
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


async def test_a_lost_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TaskGroup that meets an error when it is cancelled raises the error alone, and a patient loop goes on."""
    monkeypatch.setattr(broker.background, "CANCEL_AGAIN_S", 0.01)
    lost: list[BaseException] = []

    async def failing() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise OSError("away") from None

    async def patient() -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(failing())
            except* OSError as errors:
                lost.append(errors)
            await asyncio.sleep(3600)

    async with asyncio.timeout(5), Tasks() as tasks:
        tasks.spawn(patient(), name="patient")
        await asyncio.sleep(0.01)
    assert len(lost) == 1


async def test_what_cycles_hold_goes_without_a_full_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body(bytearray):
        """Can be watched."""

    def refuse(body: Body) -> None:
        refused = ValueError("kept in a local variable of its own traceback")
        raise refused

    monkeypatch.setattr(broker.background, "COLLECT_EVERY_S", 0.01)
    before = gc.get_threshold()
    gc.set_threshold(1_000_000)
    try:
        async with Tasks() as tasks:
            tasks.spawn(collect_young_garbage(), name="collect")
            body = Body(b"x")
            alive = weakref.ref(body)
            try:
                refuse(body)
            except ValueError:
                pass
            del body
            assert alive() is not None
            async with asyncio.timeout(5):
                while alive() is not None:
                    await asyncio.sleep(0.001)
    finally:
        gc.set_threshold(*before)


def test_work_for_an_owner_that_has_left_is_cancelled_at_once() -> None:
    """Requests still come while a process ends: they are not answered, and that is no bug."""
    began = []

    async def work() -> None:
        began.append(True)

    async def main() -> None:
        async with Tasks() as tasks:
            pass
        task = tasks.spawn(work(), name="late")
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not began
