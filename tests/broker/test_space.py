"""Requests that wait for space: who is served, who gives up, and what is kept of him."""

import asyncio
import gc
import weakref
from typing import Any, cast

from broker.metrics import Counters
from broker.space import SpaceQueue
from tests.support.waiting import until


class Request:
    """Holds bytes, and says what became of it."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told

    def retry(self) -> None:
        self.told.append(f"{self.name} retried")

    def expire(self) -> None:
        self.told.append(f"{self.name} gave up")


class Room:
    """So many bytes are free."""

    def __init__(self) -> None:
        self.free = 0
        self.queue = SpaceQueue(self.has, Counters())
        self.told: list[str] = []

    def has(self, n_bytes: int, n_batches: int, wals: tuple[Any, ...]) -> bool:
        return n_bytes <= self.free

    def wait(
        self, name: str, n_bytes: int, timeout_s: float = 5.0, wals: tuple[str, ...] = ()
    ) -> "weakref.ref[Request]":
        request = Request(name, self.told)
        self.queue.wait(n_bytes, 1, timeout_s, request.retry, request.expire, cast(Any, wals))
        return weakref.ref(request)


async def test_whoever_gives_up_behind_others_leaves_nothing_behind() -> None:
    """A producer that is in a hurry would fill the memory while an earlier one is patient."""
    room = Room()
    room.wait("patient", 10)
    hasty = [room.wait("hasty", 10, 0.0) for _ in range(100)]
    await until(lambda: len(room.told) == 100)
    gc.collect()
    assert not any(request() for request in hasty)
    assert len(room.queue) == room.queue.waiting == 1
    room.free = 10
    room.queue.serve()
    assert room.told[100:] == ["patient retried"] and not len(room.queue)


async def test_when_the_first_one_gives_up_those_behind_it_may_need_less() -> None:
    room = Room()
    room.free = 10
    room.wait("large", 11, 0.02)
    room.wait("small", 10)
    room.queue.serve()
    assert room.told == []
    await until(lambda: room.told)
    await asyncio.sleep(0)
    assert room.told == ["large gave up", "small retried"]


async def test_first_come_first_served_among_those_who_need_the_same() -> None:
    room = Room()
    room.wait("a", 5, wals=("x",))
    room.wait("b", 1, wals=("x", "y"))
    room.wait("c", 1, wals=("z",))
    room.free = 1
    room.queue.serve()
    assert room.told == ["c retried"], "a full instance holds up only those who need it"
    room.free = 5
    room.queue.serve()
    assert room.told[1:] == ["a retried", "b retried"]


async def test_when_the_broker_stops_everybody_gives_up_once() -> None:
    room = Room()

    class Last(Request):
        def expire(self) -> None:
            super().expire()
            room.free = 1
            room.queue.serve()

    last = Last("last", room.told)
    room.queue.wait(1, 1, 5, last.retry, last.expire)
    room.wait("d", 1)
    room.queue.expire_all()
    assert room.told == ["last gave up", "d retried"] and not len(room.queue)
