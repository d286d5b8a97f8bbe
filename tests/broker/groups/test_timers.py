"""Many deadlines, one call on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from broker.groups.model import TimerKey
from broker.groups.timers import Timers


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Time that moves when told to; counts the calls that are due at some time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Handle, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        handle = Handle()
        self.calls.append((when, handle, callback))
        return handle

    def advance(self, seconds: float) -> None:
        stop = self.now + seconds
        while True:
            self.calls = [call for call in self.calls if not call[1].cancelled]
            assert len(self.calls) <= 1, "one call for all timers"
            if not self.calls or self.calls[0][0] > stop:
                break
            when, _, callback = self.calls.pop()
            self.now = max(self.now, when)
            callback()
        self.now = stop


def key(name: str) -> TimerKey:
    return ("session", "g", name)


NAMES = st.sampled_from("abcd")
ACTIONS = st.one_of(
    st.tuples(st.just("set"), NAMES, st.integers(0, 50)),
    st.tuples(st.just("cancel"), NAMES, st.just(0)),
    st.tuples(st.just("advance"), st.just(""), st.integers(0, 30)),
)


@given(st.lists(ACTIONS, max_size=60))
def test_every_deadline_fires_once_and_in_time(actions: list[tuple[str, str, int]]) -> None:
    loop = Loop()
    fired: list[tuple[str, float]] = []
    timers = Timers(loop, lambda fired_key: fired.append((fired_key[2], loop.now)))  # type: ignore[arg-type]
    expected: dict[str, float] = {}
    for action, name, number in [*actions, ("advance", "", 100)]:
        if action == "set":
            timers.set(key(name), number)
            expected[name] = loop.now + number / 1000
        elif action == "cancel":
            timers.cancel(key(name))
            expected.pop(name, None)
        else:
            loop.advance(number / 1000)
            due = {one: when for one, when in expected.items() if when <= loop.now}
            assert sorted(fired) == sorted(due.items())
            assert [when for _, when in fired] == sorted(when for _, when in fired)
            for one in due:
                del expected[one]
            fired.clear()
    assert len(timers) == 0


def test_heartbeats_do_not_fill_the_heap() -> None:
    loop = Loop()
    timers = Timers(loop, lambda fired_key: None)  # type: ignore[arg-type]
    for _ in range(1000):
        timers.set(key("a"), 10_000)
        timers.set(key("b"), 10_000)
        timers.cancel(key("b"))
        loop.advance(0.003)
    assert len(timers._heap) <= 4
    assert len(loop.calls) == 1


def test_after_a_stop_of_the_process_what_arrived_meanwhile_is_read_first() -> None:
    loop = Loop()
    fired: list[TimerKey] = []
    timers = Timers(loop, fired.append)  # type: ignore[arg-type]
    timers.set(key("a"), 10_000)
    timers.set(key("b"), 10_000)
    loop.now = 60.0
    loop.advance(0.5)
    assert not fired
    timers.set(key("a"), 10_000)  # its heartbeat
    loop.advance(0.6)
    assert fired == [key("b")]
    loop.advance(10)
    assert fired == [key("b"), key("a")]


async def test_on_a_real_loop() -> None:
    fired: asyncio.Future[TimerKey] = asyncio.get_running_loop().create_future()
    timers = Timers(asyncio.get_running_loop(), fired.set_result)
    timers.set(key("a"), 20)
    timers.set(key("b"), 1)
    timers.cancel(key("a"))
    assert await fired == key("b")
    timers.set(key("a"), 1)
    timers.close()
    assert len(timers) == 0
    await asyncio.sleep(0.005)
