"""The contract of every metadata log engine, and what the object engine does when the store is faulty."""

import asyncio
from collections.abc import Callable

import pytest

from controller.entries import CorruptMetadata
from controller.metadata_log import BelowBoundary, MetadataLog
from controller.object_log import BOUNDARY, ENTRIES, ObjectLog, entry_key, snapshot_key
from storage.memory import MemoryStore
from storage.object_store import OutcomeUnknown, PreconditionFailed, Unavailable
from tests.controller.builders import CLUSTER
from tests.support.faulty_store import FaultyStore, Mishap, in_order

HASH = b"h" * 32


class LogContract:
    """Each engine subclasses this; `logs` are two processes' views of one log."""

    @pytest.fixture
    def logs(self) -> tuple[MetadataLog, MetadataLog]:
        raise NotImplementedError

    async def test_one_writer_wins_and_the_other_is_told_who(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        outcomes = await asyncio.gather(*[log.append(1, b"of %d" % i) for i, log in enumerate(logs * 8)])
        assert len(set(outcomes)) == 1 and outcomes[0].startswith(b"of ")
        assert await logs[1].read_from(1, 10) == [outcomes[0]]

    async def test_the_same_bytes_again_are_no_second_entry(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        assert await logs[0].append(1, b"one") == b"one"
        assert await logs[0].append(1, b"one") == b"one"
        assert await logs[1].append(1, b"other") == b"one"

    async def test_reading_in_order_up_to_the_end(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        entries = [b"entry %d" % position for position in range(1, 101)]
        for position, data in enumerate(entries, 1):
            await logs[0].append(position, data)
        assert await logs[1].read_from(1, 1000) == entries
        assert await logs[1].read_from(50, 7) == entries[49:56]
        assert await logs[1].read_from(101, 10) == []

    async def test_snapshots(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        assert await logs[0].newest_snapshot() is None
        await logs[0].write_snapshot(5, HASH, [b"old"])
        await logs[0].write_snapshot(9, HASH, [b"st", b"ate"])
        await logs[1].write_snapshot(9, HASH, [b"state"])
        newest = await logs[1].newest_snapshot()
        assert newest is not None
        assert (newest.position, newest.entry_hash, bytes(newest.state)) == (9, HASH, b"state")

    async def test_below_the_boundary_nothing_counts(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        first, second = logs
        for position in range(1, 11):
            await first.append(position, b"entry %d" % position)
        await first.write_snapshot(10, HASH, [b"state"])
        assert await first.advance_boundary(6) == 6
        assert await second.advance_boundary(4) == 6, "never back"
        assert await first.trim() == 6
        for position in (1, 6):
            with pytest.raises(BelowBoundary):
                await second.read_from(position, 5)
            with pytest.raises(BelowBoundary):
                await second.append(position, b"late")
        assert await second.read_from(7, 2) == [b"entry 7", b"entry 8"]
        assert await first.trim() in (0, 2), "what paused writers left there"

    async def test_racing_boundaries_end_at_the_highest(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        await asyncio.gather(*[log.advance_boundary(10 + 5 * i) for i, log in enumerate(logs * 4)])
        assert await logs[0].advance_boundary(0) == 45


class TestObjectLog(LogContract):
    @pytest.fixture
    def logs(self) -> tuple[MetadataLog, MetadataLog]:
        store = MemoryStore()
        return ObjectLog(store, CLUSTER), ObjectLog(store, CLUSTER)

    async def test_old_snapshots_go_but_for_two(self) -> None:
        store = MemoryStore()
        log = ObjectLog(store, CLUSTER)
        for position in range(1, 6):
            await log.write_snapshot(position, HASH, [b"state"])
        assert await log.trim() == 3
        assert [info.key async for info in store.list("meta/")] == [snapshot_key(4), snapshot_key(5)]

    async def test_damage_is_named(self) -> None:
        store = MemoryStore()
        log = ObjectLog(store, CLUSTER)
        await log.write_snapshot(3, HASH, [b"state"])
        data = (await store.get(snapshot_key(3))).data
        for bad in (data[:-1], data[:20] + b"x" + data[21:], b"TLMX" + data[4:], b""):
            await store.put(snapshot_key(3), bad)
            with pytest.raises(CorruptMetadata):
                await log.newest_snapshot()
        await store.put(snapshot_key(4), data)
        with pytest.raises(CorruptMetadata, match="at 3"):
            await log.newest_snapshot()
        for body in (b"{", b"{}", b'{"position": 1, "cluster_id": "another"}'):
            await store.put(BOUNDARY, body)
            with pytest.raises(CorruptMetadata):
                await log.read_from(1, 1)

    async def test_a_snapshot_that_reads_back_differently_is_no_snapshot(self) -> None:
        store = MemoryStore()
        await ObjectLog(store, CLUSTER).write_snapshot(3, b"other hash".ljust(32), [b"state"])
        with pytest.raises(CorruptMetadata):
            await ObjectLog(store, CLUSTER).write_snapshot(3, HASH, [b"state"])

    @pytest.mark.parametrize("mishap", [Mishap.UNAVAILABLE, Mishap.LOST, Mishap.UNHEARD, Mishap.LATE])
    async def test_an_append_of_unknown_outcome_ends_known(self, mishap: Mishap) -> None:
        store = FaultyStore(MemoryStore())
        log = ObjectLog(store, CLUSTER)
        store.plan = in_order(mishap)
        assert await until_known(lambda: log.append(1, b"mine")) == b"mine"
        store.plan = in_order(mishap)
        other = ObjectLog(store, CLUSTER)
        assert await until_known(lambda: other.append(1, b"theirs")) == b"mine"
        assert await log.read_from(1, 5) == [b"mine"]
        assert store.applied == 1

    async def test_a_late_put_that_lost_changes_nothing(self) -> None:
        store = FaultyStore(MemoryStore())
        paused, other = ObjectLog(store, CLUSTER), ObjectLog(store, CLUSTER)
        store.plan = in_order(Mishap.LATE)
        with pytest.raises(OutcomeUnknown):
            await paused.append(1, b"late")
        assert await other.append(1, b"other") == b"late", "the late attempt landed first"
        assert await paused.append(1, b"late") == b"late"

    async def test_a_precondition_failure_without_an_entry_is_not_the_end(self) -> None:
        """The entry was there and was deleted in between: the boundary tells."""
        store = MemoryStore()
        log = ObjectLog(store, CLUSTER)
        await log.append(1, b"one")

        class Vanishing(MemoryStore):
            async def put_if_absent(self, key: str, body: object) -> str:
                raise PreconditionFailed(key)

        with pytest.raises(OutcomeUnknown, match="look again"):
            await ObjectLog(Vanishing(), CLUSTER).append(1, b"one")

    async def test_errors_of_the_store_come_through(self) -> None:
        store = FaultyStore(MemoryStore(), lambda name: Mishap.UNAVAILABLE)
        log = ObjectLog(store, CLUSTER)
        for call in (
            lambda: log.append(1, b"x"),
            lambda: log.read_from(1, 1),
            lambda: log.write_snapshot(1, HASH, []),
            lambda: log.advance_boundary(1),
            lambda: log.trim(),
        ):
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await call()

    def test_keys_sort_as_positions(self) -> None:
        assert sorted(entry_key(position) for position in (10, 9, 100, 10**19)) == [
            entry_key(position) for position in (9, 10, 100, 10**19)
        ]
        assert entry_key(7) == f"{ENTRIES}00000000000000000007"


async def until_known(attempt: Callable[[], object]) -> object:
    while True:
        try:
            return await attempt()  # type: ignore[misc]
        except (Unavailable, OutcomeUnknown):
            continue
