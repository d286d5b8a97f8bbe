"""Retries: bounded, and never a false word about a conditional write."""

import asyncio
import contextlib
import gc
import secrets
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.memory import MemoryStore
from storage.object_store import (
    Body,
    Denied,
    NotFound,
    ObjectInfo,
    OutcomeUnknown,
    PreconditionFailed,
    StoredObject,
    StoreError,
    Unavailable,
)
from storage.retrying import COMPARE_BYTES, RetryingStore, RetryLimits
from tests.controller.virtual import run
from tests.support.faulty_store import FaultyStore, Mishap, in_order

NONE, UNAVAILABLE, LOST, UNHEARD, LATE = Mishap


def over(
    faulty: FaultyStore, *, attempts_max: int = 8, deadline_ms: int = 30_000, backoff_ms: int = 0
) -> RetryingStore:
    limits = RetryLimits(attempts_max=attempts_max, deadline_ms=deadline_ms, backoff_ms=backoff_ms)
    return RetryingStore(faulty, token=secrets.token_bytes, limits=limits)


def pair(*mishaps: Mishap, **limits: int) -> tuple[FaultyStore, RetryingStore]:
    faulty = FaultyStore(MemoryStore(), in_order(*mishaps))
    return faulty, over(faulty, **limits)


@pytest.mark.parametrize("mishap", [UNAVAILABLE, LOST, UNHEARD, LATE])
async def test_every_kind_of_trouble_is_outlived(mishap: Mishap) -> None:
    faulty, store = pair(mishap)
    etag = await store.put_if_absent("key", b"first")
    faulty.plan = in_order(mishap)
    etag = await store.put_if_match("key", b"second", etag)
    faulty.plan = in_order(mishap)
    assert await store.get("key") == (b"second", etag)
    faulty.plan = in_order(mishap)
    await store.put("key", b"third")
    faulty.plan = in_order(mishap)
    await store.delete("key")
    with pytest.raises(NotFound):
        await store.get("key")


async def test_an_applied_create_is_not_sent_again() -> None:
    faulty, store = pair(UNHEARD)
    await store.put_if_absent("key", b"value")
    assert faulty.calls == ["put_if_absent", "get"]


async def test_a_create_after_an_unknown_one_meets_another_writer() -> None:
    faulty, store = pair(LOST)
    await faulty._store.put("key", b"other")
    with pytest.raises(PreconditionFailed):
        await store.put_if_absent("key", b"ours")


async def test_a_late_create_of_our_own_is_no_refusal() -> None:
    """The first attempt arrives just before the second one, which the store then refuses."""
    faulty, store = pair(LATE, NONE)
    etag = await store.put_if_absent("key", b"value")
    assert await store.get("key") == (b"value", etag)
    assert faulty.applied == 1


async def test_a_replacement_that_vanished_stays_unknown() -> None:
    """Applied, unheard, and replaced by another writer before we look: nobody can tell any more."""
    faulty, store = pair()
    etag = await store.put_if_absent("key", b"first")
    faulty.plan = in_order(UNHEARD, UNAVAILABLE)
    async with asyncio.TaskGroup() as group:
        ours = group.create_task(_outcome(store.put_if_match("key", b"ours", etag)))
        while faulty.applied < 2:
            await asyncio.sleep(0)
        await faulty._store.put("key", b"theirs")
    assert isinstance(ours.result(), OutcomeUnknown)


async def test_an_unknown_replacement_that_did_not_happen_is_sent_again() -> None:
    faulty, store = pair()
    etag = await store.put_if_absent("key", b"first")
    faulty.plan = in_order(LOST, NONE, LOST, NONE)
    newer = await store.put_if_match("key", b"second", etag)
    assert await store.get("key") == (b"second", newer)
    assert faulty.applied == 2


async def test_refusals_are_final() -> None:
    faulty, store = pair()
    etag = await store.put_if_absent("key", b"first")
    for call in (store.put_if_absent("key", b"x"), store.put_if_match("key", b"x", "other"), store.get("none")):
        faulty.calls.clear()
        with pytest.raises((PreconditionFailed, NotFound)):
            await call
        assert len(faulty.calls) == 1
    assert (await store.head("key")).etag == etag


async def test_attempts_are_bounded() -> None:
    faulty, store = pair(attempts_max=5)
    faulty.plan = lambda _name: UNAVAILABLE
    for call in (store.get("key"), store.put("key", b""), store.put_if_absent("key", b""), store.delete("key")):
        faulty.calls.clear()
        with pytest.raises(Unavailable):
            await call
        assert len(faulty.calls) == 5


async def test_a_write_that_may_have_happened_is_never_called_unavailable() -> None:
    faulty, store = pair(attempts_max=3)
    for mishaps in ([LOST, UNAVAILABLE, UNAVAILABLE, UNAVAILABLE], [UNAVAILABLE, LATE, UNAVAILABLE, UNAVAILABLE]):
        for call in (store.put, store.put_if_absent):
            faulty.plan = in_order(*mishaps, *[UNAVAILABLE] * 20)
            with pytest.raises(OutcomeUnknown):
                await call("key", b"value")


async def test_a_denial_after_an_unknown_attempt_does_not_say_that_nothing_happened() -> None:
    class Denying(FaultyStore):
        async def put(self, key: str, body: object) -> str:
            self.calls.append("put")
            if len(self.calls) == 1:
                raise OutcomeUnknown("planned")
            raise Denied("planned")

    with pytest.raises(OutcomeUnknown):
        await over(Denying(MemoryStore())).put("key", b"")
    denying = Denying(MemoryStore())
    denying.calls.append("")
    with pytest.raises(Denied):
        await over(denying).put("key", b"")


async def test_the_deadline_ends_a_hanging_attempt() -> None:
    class Hanging(MemoryStore):
        async def put_if_absent(self, key: str, body: object) -> str:
            await asyncio.Event().wait()
            raise AssertionError

        async def get(self, key: str) -> StoredObject:
            await asyncio.Event().wait()
            raise AssertionError

    store = RetryingStore(Hanging(), token=secrets.token_bytes, limits=RetryLimits(deadline_ms=30))
    with pytest.raises(Unavailable, match="no answer within 30 ms"):
        await store.get("key")
    with pytest.raises(OutcomeUnknown, match="no answer within 30 ms"):
        await store.put_if_absent("key", b"")


class Slow(MemoryStore):
    """Calls take so many seconds, one after the other, then none. `waiting` counts calls that nobody gave up."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.seconds = list(seconds)
        self.began: list[float] = []
        self.waiting = 0

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        self.began.append(round(loop.time() - 1000.0, 2))
        self.waiting += 1
        try:
            await asyncio.sleep(self.seconds.pop(0) if self.seconds else 0)
        finally:
            self.waiting -= 1

    async def put_if_absent(self, key: str, body: Body) -> str:
        etag = await super().put_if_absent(key, body)
        await self._take()
        return etag

    async def get(self, key: str) -> StoredObject:
        await self._take()
        return await super().get(key)


HANGS = 3600.0


def hurried(slow: Slow, attempt_ms: int = 1_000) -> RetryingStore:
    limits = RetryLimits(backoff_ms=0)
    return RetryingStore(slow, token=secrets.token_bytes, limits=limits).hurried(attempt_ms)


def test_an_attempt_that_hangs_is_given_up_for_another_one() -> None:
    async def main() -> None:
        slow = Slow(HANGS)
        store = hurried(slow)
        etag = await store.put_if_absent("key", b"value")
        assert slow.began == [0, 1] and slow.waiting == 0, "the second call looked what became of the first"
        assert await store.get("key") == (b"value", etag)
        slow.seconds = [HANGS]
        with pytest.raises(PreconditionFailed):
            await store.put_if_absent("key", b"other")
        slow.seconds = [HANGS]
        assert await store.get("key") == (b"value", etag)
        assert round(asyncio.get_running_loop().time() - 1000.0, 2) == 2

    run(main)


def test_patience_grows_and_one_attempt_is_under_way_at_a_time() -> None:
    async def main() -> None:
        slow = Slow(*[HANGS] * 20)
        store = hurried(slow)
        with pytest.raises(Unavailable):
            await store.get("key")
        assert slow.began == [0, 1, 3, 6, 10, 15, 21, 28] and slow.waiting == 0
        assert round(asyncio.get_running_loop().time() - 1000.0, 2) == 30

    run(main)


def test_a_slow_store_is_not_asked_again_and_again() -> None:
    async def main() -> None:
        slow = Slow(2.5, *[2.5] * 10)
        store = hurried(slow)
        for number in range(4):
            with pytest.raises(NotFound):
                await store.get(f"missing-{number}")
        assert len(slow.began) == 2 + 1 + 3, "given up after 1 s and after 2 s, then it is known how slow it is"
        assert slow.waiting == 0

    run(main)


def test_large_bodies_get_the_time_that_they_need() -> None:
    async def main() -> None:
        slow = Slow(4.5)
        await hurried(slow).put_if_absent("key", bytes(4 << 20))
        assert slow.began == [0]

    run(main)


def test_large_objects_get_the_time_that_they_need() -> None:
    async def main() -> None:
        slow = Slow(0, 35.5, 36.5)
        await slow.put_if_absent("key", b"value")
        store = RetryingStore(slow, token=secrets.token_bytes).hurried(1_000, size=35 << 20)
        await store.get("key")
        await store.get("key")
        assert slow.began == [0, 0, 35.5], "35 MiB may take 36 s, and a store that lately was as slow gets more"

    run(main)


def test_a_listing_that_hangs_goes_on_behind_its_last_key() -> None:
    class SlowListing(MemoryStore):
        starts: ClassVar[list[str]] = []

        async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
            self.starts.append(start_after)
            async for info in super().list(prefix, start_after):
                if info.key == "b" and len(self.starts) == 1:
                    await asyncio.sleep(HANGS)
                yield info

    async def main() -> None:
        slow = SlowListing()
        for key in "abc":
            await slow.put(key, b"")
        store = RetryingStore(slow, token=secrets.token_bytes, limits=RetryLimits(backoff_ms=0)).hurried(1_000)
        assert [info.key async for info in store.list("")] == ["a", "b", "c"]
        assert slow.starts == ["", "a"]
        assert round(asyncio.get_running_loop().time() - 1000.0, 2) == 1

    run(main)


async def test_pauses_grow_and_are_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = RetryLimits(attempts_max=7, backoff_ms=100, backoff_ms_max=1000)
    pauses: list[float] = []

    async def sleep(delay: float) -> None:
        pauses.append(delay)

    monkeypatch.setattr("storage.retrying.asyncio.sleep", sleep)
    for drawn, fraction in ((b"\xff\xff", 1.0), (b"\x7f\xff", 0.5)):
        faulty = FaultyStore(MemoryStore(), lambda _name: UNAVAILABLE)
        store = RetryingStore(faulty, token=lambda _size, drawn=drawn: drawn, limits=limits)  # type: ignore[misc]
        pauses.clear()
        with pytest.raises(Unavailable):
            await store.get("key")
        # The memory store's own giving way is a sleep of 0.
        assert [pause / fraction for pause in pauses if pause] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


async def test_a_listing_goes_on_where_it_broke() -> None:
    faulty, store = pair()
    keys = [f"key/{n:03}" for n in range(20)]
    for key in keys:
        await store.put(key, b"")
    faulty.plan = in_order(*[UNAVAILABLE] * 6)
    faulty.calls.clear()
    assert [info.key async for info in store.list("key/")] == keys
    assert faulty.calls == ["list"] * 7
    faulty.plan = lambda _name: UNAVAILABLE
    assert [info.key async for info in store.list("key/", keys[16])] == keys[17:]


async def test_large_bodies_are_compared_in_ranges() -> None:
    body = [secrets.token_bytes(COMPARE_BYTES // 2 + 1)] * 3
    faulty, store = pair(UNHEARD)
    await store.put_if_absent("large", body)
    assert set(faulty.calls) == {"put_if_absent", "head", "get_range"}
    for other in ([*body[:2], body[2][:-1] + bytes([body[2][-1] ^ 1])], [*body, b"x"], body[:2]):
        faulty.plan = in_order(LOST)
        with pytest.raises(PreconditionFailed):
            await store.put_if_absent("large", other)


@settings(max_examples=300)
@given(
    mishaps=st.lists(st.sampled_from(Mishap), max_size=14),
    rival=st.integers(0, 12),
    replace=st.booleans(),
)
def test_no_false_word(mishaps: Sequence[Mishap], rival: int, replace: bool) -> None:
    """Whatever goes wrong, and whenever a rival creates or replaces the key: what we are told is true."""

    async def run() -> None:
        memory = MemoryStore()
        etag = await memory.put("key", b"old") if replace else ""
        faulty = FaultyStore(memory, in_order(*mishaps))
        store = over(faulty, attempts_max=6)
        ours = store.put_if_match("key", b"ours", etag) if replace else store.put_if_absent("key", b"ours")
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_outcome(ours))
            for _ in range(rival):
                await asyncio.sleep(0)
            theirs = memory.put_if_match("key", b"theirs", etag) if replace else memory.put_if_absent("key", b"theirs")
            won = isinstance(await _outcome(theirs), str)
        outcome = waiting.result()
        data = (await memory.get("key")).data
        if isinstance(outcome, str):
            assert data == b"ours" and not won
            assert (await memory.get("key")).etag == outcome
        elif isinstance(outcome, PreconditionFailed):
            assert won and data == b"theirs" and faulty.applied == 0
        elif isinstance(outcome, Unavailable):
            assert faulty.applied == 0
        else:
            assert isinstance(outcome, OutcomeUnknown)

    asyncio.run(run())


async def _outcome(call: object) -> str | StoreError:
    try:
        return await call  # type: ignore[misc,no-any-return]
    except StoreError as error:
        return error


@pytest.mark.parametrize("mishap", [Mishap.UNAVAILABLE, Mishap.LOST, Mishap.UNHEARD])
async def test_a_failed_write_keeps_nothing_alive(mishap: Mishap) -> None:
    class Body(bytearray):
        """Can be watched."""

    limits = RetryLimits(attempts_max=3, backoff_ms=1)
    store = RetryingStore(FaultyStore(MemoryStore(), lambda _: mishap), token=secrets.token_bytes, limits=limits)
    gc.disable()
    try:
        for write in (store.put, store.put_if_absent):
            body = Body(b"x" * 1000)
            alive = weakref.ref(body)
            with contextlib.suppress(StoreError):
                await write("key", [memoryview(body)])
            del body
            assert alive() is None, "a cycle through a traceback holds the body until the collector comes"
    finally:
        gc.enable()


async def test_parts_of_an_upload_are_repeated_each_by_itself() -> None:
    faulty = FaultyStore(MemoryStore(), in_order(NONE, UNAVAILABLE, LOST, UNHEARD, NONE, UNAVAILABLE, LOST))
    upload = over(faulty).upload("key")
    await upload.write(b"one")
    await upload.write([b"t", b"wo"])
    await upload.create()
    assert (await faulty.get("key")).data == b"onetwo"
    assert faulty.calls == ["write_part"] * 5 + ["create"] * 2 + ["head", "create", "get"]


async def test_whoever_creates_an_upload_learns_that_something_is_there() -> None:
    """It may be what an attempt made whose answer was lost: the caller looks."""
    faulty = FaultyStore(MemoryStore(), in_order(NONE, UNHEARD))
    upload = over(faulty).upload("key")
    await upload.write(b"one")
    with pytest.raises(PreconditionFailed, match="perhaps by an earlier attempt"):
        await upload.create()
    assert (await faulty.get("key")).data == b"one"
    await upload.abort()


async def test_an_upload_is_not_tried_for_ever() -> None:
    faulty = FaultyStore(MemoryStore(), lambda _: LOST)
    upload = over(faulty, attempts_max=3).upload("key")
    with pytest.raises(Unavailable):
        await upload.write(b"one")
    faulty.plan = in_order()
    await upload.write(b"one")
    faulty.plan = lambda name: LOST if name == "create" else NONE
    with pytest.raises(OutcomeUnknown):
        await upload.create()
