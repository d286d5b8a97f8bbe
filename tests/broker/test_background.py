import asyncio
import gc
import weakref

import pytest

from broker import background


async def test_what_cycles_hold_goes_without_a_full_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body(bytearray):
        """Can be watched."""

    def refuse(body: Body) -> None:
        refused = ValueError("kept in a local variable of its own traceback")
        raise refused

    monkeypatch.setattr(background, "COLLECT_EVERY_S", 0.01)
    before = gc.get_threshold()
    gc.set_threshold(1_000_000)
    try:
        async with background.Tasks() as tasks:
            tasks.spawn(background.collect_young_garbage(), name="collect")
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
