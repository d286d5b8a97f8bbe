"""Calls that hang are made again; what comes first counts."""

import asyncio

import pytest

from controller.hedging import CALLS_MAX, hedged
from storage.object_store import Unavailable


def test_a_call_that_answers_is_made_once() -> None:
    async def main() -> None:
        calls = []

        async def call() -> int:
            calls.append(0)
            return 7

        assert await hedged(call, 1_000) == 7
        assert len(calls) == 1

    asyncio.run(main())


def test_a_call_that_hangs_is_made_again_and_dropped() -> None:
    async def main() -> None:
        dropped = []
        calls = 0

        async def call() -> int:
            nonlocal calls
            calls += 1
            if calls < 3:
                try:
                    await asyncio.Event().wait()
                finally:
                    dropped.append(calls)
            return calls

        assert await hedged(call, 1) == 3
        assert len(dropped) == 2

    asyncio.run(main())


def test_the_first_error_is_the_outcome() -> None:
    """The others are cancelled and their errors forgotten: who asked tries the whole again."""

    async def main() -> None:
        calls = 0

        async def call() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ValueError("forgotten")
            raise Unavailable("away")

        with pytest.raises(Unavailable):
            await hedged(call, 1)

    asyncio.run(main())


def test_calls_at_once_are_bounded_and_end_with_the_asker() -> None:
    async def main() -> None:
        under_way = 0

        async def call() -> None:
            nonlocal under_way
            under_way += 1
            try:
                await asyncio.Event().wait()
            finally:
                under_way -= 1

        async with asyncio.TaskGroup() as group:
            asking = group.create_task(hedged(call, 1))
            while under_way < CALLS_MAX:
                await asyncio.sleep(0.001)
            asking.cancel()
        assert asking.cancelled() and not under_way

    asyncio.run(main())
