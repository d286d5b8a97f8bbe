"""The engine in the object store: the contract, and what it does when the store is faulty."""

from collections.abc import Callable

import pytest

from controller.entries import CorruptMetadata
from controller.metadata_log import MetadataLog
from controller.object_log import BOUNDARY, ENTRIES, ObjectLog, entry_key, snapshot_key
from storage.memory import MemoryStore
from storage.object_store import OutcomeUnknown, PreconditionFailed, Unavailable
from tests.controller.builders import CLUSTER
from tests.controller.log_contract import HASH, LogContract
from tests.support.faulty_store import FaultyStore, Mishap, in_order


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
