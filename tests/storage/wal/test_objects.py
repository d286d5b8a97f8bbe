"""The object WAL when things go wrong: order, unknown outcomes, fences, rivals, time and space; and its recovery."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from storage.memory import MemoryStore
from storage.object_store import Body, PreconditionFailed, StoredObject
from storage.wal.inspect import describe_object_wal
from storage.wal.object_format import LANE, encode_fence, encode_group, object_key, parse_object_header
from storage.wal.object_recovery import ObjectInstance
from storage.wal.objects import ObjectWal, ObjectWalSettings
from storage.wal.port import Damaged, Fenced, WalError
from tests.storage.wal.objects import QUICK, Owned, counting_token, open_object_wal
from tests.storage.wal.support import WAL_ID, Opened
from tests.support.faulty_store import FaultyStore, Mishap, in_order


class GatedStore(MemoryStore):
    """PUTs wait until the test lets them through, by number."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[int, asyncio.Event] = {}
        self.begun: list[int] = []

    async def put_if_absent(self, key: str, body: Body) -> str:
        number = int(key.rpartition("/")[2])
        self.begun.append(number)
        await self.gates.setdefault(number, asyncio.Event()).wait()
        return await super().put_if_absent(key, body)

    def let(self, number: int) -> None:
        self.gates.setdefault(number, asyncio.Event()).set()


@pytest.fixture
async def owned() -> AsyncIterator[Owned]:
    one = Owned()
    yield one
    await one.end()


def key(number: int) -> str:
    return object_key(WAL_ID, LANE, number)


def instance(store: Any) -> ObjectInstance:
    return ObjectInstance(store, WAL_ID, token=secrets.token_bytes)


async def grown(opened: Opened, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_group_counts_only_with_every_lower_one(owned: Owned) -> None:
    store = GatedStore()
    opened = open_object_wal(store, owned)
    for number in (1, 2, 3):
        opened.append()
        await grown(opened, lambda number=number: store.begun == list(range(1, number + 1)))  # type: ignore[misc]
    store.let(2)
    store.let(3)
    await asyncio.sleep(0.01)
    assert opened.durable == [] and opened.wal.in_flight == 3
    store.let(1)
    await opened.durable_through(3)
    assert opened.durable == [(3, 3)]


async def test_so_many_groups_at_a_time(owned: Owned) -> None:
    store = GatedStore()
    opened = open_object_wal(store, owned, settings=QUICK._replace(in_flight_max=2))
    for _ in range(6):
        opened.append()
        await asyncio.sleep(0.005)
    assert store.begun == [1, 2]
    for number in range(1, 10):
        store.let(number)
    await opened.durable_through(6)
    assert store.begun == [1, 2, 3]  # what waited meanwhile is one group


@pytest.mark.parametrize("mishap", [Mishap.UNAVAILABLE, Mishap.LOST, Mishap.UNHEARD, Mishap.LATE])
async def test_outcomes_that_are_not_known_are_looked_up(owned: Owned, mishap: Mishap) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory, in_order(mishap))
    opened = open_object_wal(store, owned)
    opened.append()
    await opened.durable_through(1)
    opened.append()
    await opened.durable_through(2)
    assert opened.failures == [] and opened.wal.groups == 2
    report = await instance(memory).fence_and_scan()
    assert (report.first_group, report.last_group) == (1, 2) and report.usable


async def test_a_refused_attempt_is_ours_only_with_our_nonce(owned: Owned) -> None:
    store = MemoryStore()
    await store.put(key(2), encode_fence(WAL_ID, LANE, 2, bytes(16)))
    opened = open_object_wal(store, owned)
    opened.append()
    await opened.durable_through(1)
    opened.append()
    await opened.until(lambda: opened.failures)
    assert isinstance(opened.failures[0], Fenced) and opened.wal.fenced
    assert opened.durable == [(1, 1)]
    assert not opened.wal.has_room(1, internal=True)


async def test_a_clone_of_the_process_is_stopped(owned: Owned) -> None:
    store = MemoryStore()
    first = open_object_wal(store, owned, token=counting_token(0))
    second = open_object_wal(store, owned, token=counting_token(1_000))
    first.append(fill=1)
    await first.durable_through(1)
    second.append(fill=2)
    await second.until(lambda: second.failures)
    assert isinstance(second.failures[0], Fenced) and second.durable == []


@pytest.mark.parametrize("data", [b"", b"hello", bytes(500), encode_group(WAL_ID, LANE, 7, bytes(16), [])])
async def test_something_foreign_under_our_key_ends_it(owned: Owned, data: bytes) -> None:
    store = MemoryStore()
    await store.put(key(1), data)
    opened = open_object_wal(store, owned)
    opened.append()
    if len(data) == 0:
        await asyncio.sleep(0.3)  # what is shorter than a header may be somebody's joke: nothing is acknowledged
        assert opened.durable == []
        return
    await opened.until(lambda: opened.failures)
    assert isinstance(opened.failures[0], Damaged) and opened.durable == []


async def test_refused_as_existing_and_yet_not_there_is_tried_again(owned: Owned) -> None:
    class Odd(MemoryStore):
        refusals = 2

        async def put_if_absent(self, key: str, body: Body) -> str:
            if self.refusals:
                self.refusals -= 1
                raise PreconditionFailed("another attempt is arriving")
            return await super().put_if_absent(key, body)

    opened = open_object_wal(Odd(), owned)
    opened.append()
    await opened.durable_through(1)
    assert opened.failures == []


async def test_a_late_attempt_that_makes_a_deleted_object_again_does_no_harm(owned: Owned) -> None:
    store = MemoryStore()
    opened = open_object_wal(store, owned)
    for _ in range(4):
        opened.append()
        await opened.durable_through(opened.wal.appended)
    first = (await store.get(key(1))).data
    opened.wal.trim(3)
    await grown(opened, lambda: opened.wal.deletes >= 3)
    await store.put(key(1), first)
    found = instance(store)
    report = await found.fence_and_scan(committed_group=3, validated_group=4)
    assert report.usable and (report.first_group, report.last_group) == (4, 4) and found.fence == 5


async def test_time_between_groups(owned: Owned) -> None:
    settings = ObjectWalSettings(interval_ms=100_000, busy_interval_ms=60, busy_bytes=10_000, group_bytes=100_000)
    opened = open_object_wal(MemoryStore(), owned, settings=settings)
    loop = asyncio.get_running_loop()
    opened.append()  # the first one after idle does not wait
    await opened.durable_through(1)
    began = loop.time()
    opened.append()
    await asyncio.sleep(0.1)
    assert opened.wal.groups == 1
    opened.append(size=11_000)
    await opened.durable_through(3)
    opened.append(size=11_000)
    await opened.durable_through(4)
    assert loop.time() - began > 0.12 and opened.wal.groups == 3
    opened.append(size=100_000)
    await opened.durable_through(5)
    assert opened.wal.puts == 4 == opened.wal.puts_last_hour


async def test_everything_of_one_turn_is_one_group_and_groups_have_a_size(owned: Owned) -> None:
    opened = open_object_wal(MemoryStore(), owned, settings=QUICK._replace(group_bytes=10_000, in_flight_max=8))
    for _ in range(50):
        opened.append(size=1_000)
    await opened.durable_through(50)
    assert opened.wal.groups == 6  # nine batches with their headers fit one
    opened.append(size=50_000)
    await opened.durable_through(51)
    assert opened.wal.groups == 7


async def test_space_that_is_not_committed_is_bounded(owned: Owned) -> None:
    with pytest.raises(WalError, match=r"tidelog\.wal\.objects\.bytes\.max=1000 is too little"):
        open_object_wal(MemoryStore(), owned, settings=QUICK._replace(bytes_max=1000))
    opened = open_object_wal(
        FaultyStore(MemoryStore(), lambda name: Mishap.LOST),
        owned,
        message_bytes_max=10_000,
        settings=QUICK._replace(bytes_max=100_000),
    )
    while opened.wal.has_room(5_000, internal=False):
        opened.append(size=5_000)
    assert opened.wal.appended == 18 and opened.wal.has_room(4_000, internal=True)
    assert opened.wal.free_bytes < 5_100 and opened.durable == []


async def test_a_store_that_hangs_is_asked_again(owned: Owned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.wal.objects.ATTEMPT_S", 0.05)

    class Hanging(MemoryStore):
        calls = 0

        async def put_if_absent(self, key: str, body: Body) -> str:
            self.calls += 1
            if self.calls == 1:
                await asyncio.Event().wait()
            return await super().put_if_absent(key, body)

    opened = open_object_wal(Hanging(), owned)
    opened.append()
    await opened.durable_through(1)


async def test_removal_deletes_and_a_dead_store_does_not_keep_it(owned: Owned, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryStore()
    store = FaultyStore(memory)
    opened = open_object_wal(store, owned)
    opened.append()
    await opened.durable_through(1)
    await opened.wal.remove()
    assert [info async for info in memory.list("wal/")] == []
    opened = open_object_wal(store, owned, wal_id=bytes(16))
    opened.append()
    await opened.durable_through(1)
    store.plan = lambda name: Mishap.LOST
    monkeypatch.setattr("storage.wal.objects.CLOSE_S", 0.05)
    opened.append()
    await opened.wal.close()
    await opened.wal.remove()
    assert [info.key async for info in memory.list("wal/")] == [object_key(bytes(16), LANE, 1)]


# Recovery


async def filled(store: Any, owned: Owned, count: int) -> Opened:
    opened = open_object_wal(store, owned)
    for _ in range(count):
        opened.append(size=200)
        await opened.durable_through(opened.wal.appended)
    return opened


async def test_the_fence_is_at_the_first_hole_and_what_lies_beyond_is_void(owned: Owned) -> None:
    store = MemoryStore()
    opened = await filled(store, owned, 6)
    await store.delete(key(4))
    found = instance(store)
    report = await found.fence_and_scan()
    assert (report.last_group, found.fence) == (3, 4) and report.usable
    assert parse_object_header((await store.get(key(4))).data).what == 2
    assert sum([len(group.batches) async for group in found.groups()]) == 3
    again = await instance(store).fence_and_scan()  # by a successor
    assert again == report
    assert isinstance(opened.wal, ObjectWal)
    opened.append()
    await opened.durable_through(7)  # beyond the hole the writer goes on: its session is what stops it there


async def test_a_writer_that_is_faster_than_the_fence_is_read_on(owned: Owned) -> None:
    class Racing(MemoryStore):
        """The zombie's next group lands just before each of the first three fences."""

        left = 3

        async def put_if_absent(self, key: str, body: Body) -> str:
            if isinstance(body, bytes) and len(body) < 100 and self.left:
                self.left -= 1
                opened.append()
                await opened.durable_through(opened.wal.appended)
            return await super().put_if_absent(key, body)

    store = Racing()
    opened = await filled(store, owned, 2)
    found = instance(store)
    report = await found.fence_and_scan(validated_group=2)
    assert (report.last_group, found.fence) == (5, 6)
    opened.append()
    await opened.until(lambda: opened.failures)
    assert opened.wal.fenced and opened.wal.durable == (5, 5)


@pytest.mark.parametrize("mishap", [Mishap.UNAVAILABLE, Mishap.LOST, Mishap.UNHEARD, Mishap.LATE])
async def test_a_fence_whose_outcome_is_not_known(
    owned: Owned, mishap: Mishap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.wal.object_recovery.RETRY_S", 0.001)
    memory = MemoryStore()
    await filled(memory, owned, 2)
    mishaps = iter([mishap])
    store = FaultyStore(memory, lambda name: next(mishaps, Mishap.NONE) if name == "put_if_absent" else Mishap.NONE)
    found = instance(store)
    report = await found.fence_and_scan()
    assert (report.last_group, found.fence) == (2, 3)
    assert parse_object_header((await memory.get(key(3))).data).what == 2


async def test_damage_is_reported_with_what_it_concerns(owned: Owned) -> None:
    store = MemoryStore()
    await filled(store, owned, 5)
    data = bytearray((await store.get(key(3))).data)
    data[-1] ^= 1
    await store.put(key(3), data)
    found = instance(store)
    report = await found.fence_and_scan(validated_group=5)
    assert not report.usable and report.damage is not None and found.fence == 6
    assert (report.damage.group, report.damage.found, report.last_group) == (3, (4, 5), 2)
    assert [(part.log_id, part.base, part.end) for part in report.damage.missing] == [(1, 2, 5)]
    assert "holds a batch of log 1 at offset 2 that has a wrong checksum" in str(report.damage)
    accepted = await found.fence_and_scan(validated_group=5, accept_loss=True)
    assert accepted.usable and [extent.end for extent in accepted.entries] == [2]
    assert sum([len(group.batches) async for group in found.groups()]) == 2


@pytest.mark.parametrize("data", [b"", b"x" * 500, encode_group(bytes(16), LANE, 2, bytes(16), [])])
async def test_hostile_objects_are_damage_not_a_crash(owned: Owned, data: bytes) -> None:
    store = MemoryStore()
    await filled(store, owned, 3)
    await store.put(key(2), data)
    report = await instance(store).fence_and_scan()
    assert report.damage is not None and (report.damage.group, report.last_group) == (2, 1)


async def test_many_large_objects_are_read_in_pieces(owned: Owned) -> None:
    class Counting(MemoryStore):
        now = most = 0

        async def get(self, key: str) -> StoredObject:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await super().get(key)
            finally:
                self.now -= 1

    store = Counting()
    opened = open_object_wal(store, owned)
    for _ in range(40):
        opened.append(size=60_000)
        await opened.durable_through(opened.wal.appended)
    found = ObjectInstance(store, WAL_ID, token=secrets.token_bytes, cache_bytes=300_000)
    scan = await found.fence_and_scan()
    assert scan.groups == 40 and store.most <= 32
    store.now = store.most = 0
    bases = [entry.base_offset async for group in found.groups() for entry, _ in group.batches]
    assert bases == list(range(40)) and 0 < store.most <= 32
    report = await describe_object_wal(store, WAL_ID)
    assert [one.sequence for one in report.objects] == list(range(1, 42)) and report.problems == []
    assert [one.what for one in report.objects] == ["group"] * 40 + ["fence"]


async def test_what_an_operator_sees(owned: Owned) -> None:
    store = MemoryStore()
    await filled(store, owned, 3)
    data = bytearray((await store.get(key(2))).data)
    data[70] ^= 1
    await store.put(key(2), data)
    await store.put(f"wal/{WAL_ID.hex()}/0/notes", b"hello")
    report = await describe_object_wal(store, WAL_ID)
    assert [(one.sequence, one.what, one.batches) for one in report.objects] == [
        (1, "group", 1),
        (2, "unreadable", 0),
        (3, "group", 1),
    ]
    assert report.problems == [
        f"{key(2)} has no valid group header",
        f"wal/{WAL_ID.hex()}/0/notes is no object of a WAL",
    ]
