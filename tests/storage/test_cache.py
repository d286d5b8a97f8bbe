import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cache import ByteCache, Gate, arrival
from storage.object_store import Unavailable


def put(cache: ByteCache[str, str], key: str, size: int) -> None:
    cache.open_flight(key)
    cache.land(key, key.upper(), size)


async def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str, str] = ByteCache(30)
    for key in "abc":
        put(cache, key, 10)
    assert cache.get("a") == "A"
    put(cache, "d", 10)
    assert cache.get("b") is None
    assert [cache.get(key) for key in "acd"] == ["A", "C", "D"]
    assert (cache.bytes, len(cache), cache.hits, cache.misses) == (30, 3, 4, 1)
    cache.discard("a")
    cache.discard("a")
    assert cache.bytes == 20 and "a" not in cache


async def test_what_is_bigger_than_the_cache_only_reaches_its_waiters() -> None:
    cache: ByteCache[str, str] = ByteCache(30)
    put(cache, "a", 10)
    flight = cache.open_flight("big")
    cache.land("big", "BIG", 31)
    assert await arrival(flight) == "BIG"
    assert cache.get("big") is None and cache.get("a") == "A"


async def test_reserved_bytes_make_room() -> None:
    cache: ByteCache[str, str] = ByteCache(30)
    for key in "abc":
        put(cache, key, 10)
    cache.reserve(15)
    assert cache.bytes == 10 and cache.get("c") == "C"
    put(cache, "d", 10)
    assert cache.bytes == 10
    cache.release(15)
    put(cache, "e", 10)
    assert cache.bytes == 20


@given(st.lists(st.tuples(st.sampled_from(["put", "reserve", "release", "get", "discard"]), st.integers(0, 40))))
def test_bytes_stay_below_the_bound_whatever_happens(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        cache: ByteCache[int, int] = ByteCache(100)
        reserved: list[int] = []
        sizes: dict[int, int] = {}
        for number, (step, size) in enumerate(steps):
            if step == "put":
                cache.open_flight(number)
                cache.land(number, number, size)
                sizes[number] = size
            elif step == "reserve" and sum(reserved) + size <= 100:
                reserved.append(size)
                cache.reserve(size)
            elif step == "release" and reserved:
                cache.release(reserved.pop())
            elif step == "get" and number:
                cache.get(size % number)
            elif step == "discard":
                cache.discard(size)
            assert cache.bytes + cache.reserved <= 100
            assert cache.bytes == sum(sizes[key] for key in cache._entries)

    asyncio.run(play())


async def test_a_cancelled_waiter_leaves_the_flight_to_the_others() -> None:
    cache: ByteCache[str, str] = ByteCache(30)
    flight = cache.open_flight("a")
    assert cache.flight("a") is flight and "a" in cache
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(arrival(flight))
        second = tasks.create_task(arrival(flight))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        cache.land("a", "A", 1)
    assert first.cancelled() and second.result() == "A"
    assert cache.flight("a") is None


async def test_a_failed_flight_fails_its_waiters_and_is_forgotten() -> None:
    cache: ByteCache[str, str] = ByteCache(30)
    flight = cache.open_flight("a")
    cache.fail("a", KeyError("gone"))
    cache.fail("a", KeyError("once is enough"))
    with pytest.raises(KeyError, match="gone"):
        await arrival(flight)
    assert "a" not in cache
    put(cache, "a", 1)
    assert cache.get("a") == "A"


async def test_a_flight_that_is_cancelled_is_no_cancellation_of_its_waiters() -> None:
    cache: ByteCache[str, str] = ByteCache(30)
    flight = cache.open_flight("a")
    cache.cancel("a")
    cache.cancel("a")
    with pytest.raises(Unavailable):
        await arrival(flight)


class Users:
    """Tasks that pass a gate and stay until told."""

    def __init__(self, gate: Gate, tasks: asyncio.TaskGroup) -> None:
        self.gate, self.tasks = gate, tasks
        self.inside: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.task: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, size: int) -> None:
        self.leave[name] = asyncio.Event()
        self.task[name] = self.tasks.create_task(self._pass(name, size))
        await settle()

    async def _pass(self, name: str, size: int) -> None:
        async with self.gate.pass_with(size):
            self.inside.append(name)
            await self.leave[name].wait()
            self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_gate_bounds_holders_and_bytes_in_order_of_arrival() -> None:
    gate = Gate(2, 100)
    async with asyncio.TaskGroup() as tasks:
        users = Users(gate, tasks)
        for name, size in (("a", 60), ("b", 60), ("c", 10), ("huge", 500)):
            await users.add(name, size)
        assert users.inside == ["a"]  # c would fit, but b came first
        users.leave["a"].set()
        await settle()
        assert users.inside == ["b", "c"]
        users.leave["b"].set()
        await settle()
        assert users.inside == ["c"]
        users.leave["c"].set()
        await settle()
        assert users.inside == ["huge"]  # alone
        users.leave["huge"].set()
    assert (gate.holders, gate.bytes) == (0, 0)


async def test_cancelled_waiters_do_not_block_the_gate() -> None:
    gate = Gate(1, 100)
    async with asyncio.TaskGroup() as tasks:
        users = Users(gate, tasks)
        async with gate.pass_with(10):
            for name in "bcd":
                await users.add(name, 10)
            users.task["b"].cancel()
            await settle()
        users.task["c"].cancel()  # admitted already, but has not run yet
        await settle()
        assert users.inside == ["d"]
        users.leave["d"].set()
    assert (gate.holders, gate.bytes) == (0, 0)
