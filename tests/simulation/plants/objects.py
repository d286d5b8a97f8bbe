"""Bugs of the object WAL. The first eight are the mutations of the executable model `objects`.

`object_wal_world.py` shows each of them; whole clusters of brokers without a disk can be run with them too.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import controller.collector
import controller.decide.seals
import controller.state
import controller.upkeep
from storage.object_store import StoreError
from storage.wal import object_recovery
from storage.wal.object_format import LANE, ObjectName, encode_fence, object_key, parse_key
from storage.wal.object_recovery import ObjectInstance
from storage.wal.objects import ObjectWal
from storage.wal.port import WalError
from tests.simulation.plants.cluster import commits_by_base_alone
from tests.simulation.plants.registry import OBJECT_PLANTS, Patches, registered_in

object_plant = registered_in(OBJECT_PLANTS, brokers=3, layout="apart", wal="objects", faults_s=12)


async def names_of(instance: Any) -> list[ObjectName]:
    """What is listed of an instance."""
    names = [parse_key(info.key) async for info in instance._store.list(f"{instance.path}/")]
    return [name for name in names if name is not None]


async def groups_but_holes(self: Any) -> AsyncIterator[Any]:
    """What lies there, whatever is missing in between."""
    for number in range(self._first, self._last + 1):
        found = await self._read(number)
        if found is not None and not found.fence:
            yield object_recovery._group(found, ObjectName(self.wal_id, LANE, number))


@object_plant()
def object_wal_not_fenced() -> Patches:
    """Recovery reads to the first hole, and opens."""

    async def create(self: Any, number: int) -> bool:
        return True

    yield ObjectInstance, "_create_fence", create


@object_plant()
def fence_after_the_highest_listed() -> Patches:
    """A hole below it stays open."""

    async def present(self: Any, first: int) -> AsyncIterator[tuple[int, Any]]:
        number = first
        last = max((name.sequence for name in await names_of(self)), default=0)
        while True:
            found = await self._read(number)
            if found is None or found.fence:
                if number > last and (found is not None or await self._create_fence(number)):
                    self.fence = number
                    return
                if found is None and number <= last:
                    number += 1
                    continue
            else:
                yield number, found
            number += 1

    yield ObjectInstance, "_present", present
    yield ObjectInstance, "groups", groups_but_holes


@object_plant()
def acknowledged_out_of_order() -> Patches:
    """What is stored counts, whatever is missing below it."""
    advance = ObjectWal._advance

    def jump(self: Any) -> None:
        for at in reversed(range(len(self._flights))):
            if self._flights[at].stored:
                for flight in list(self._flights)[:at]:
                    flight.stored = True
                break
        advance(self)

    yield ObjectWal, "_advance", jump


@object_plant()
def every_refusal_is_our_own() -> Patches:
    """A fence is taken for a win."""
    is_ours = ObjectWal._is_ours

    async def careless(self: Any, flight: Any, key: str) -> bool:
        try:
            return await is_ours(self, flight, key)
        except WalError:
            return True

    yield ObjectWal, "_is_ours", careless


@object_plant()
def recovery_starts_from_the_first_number() -> Patches:
    """What was committed and deleted looks like a hole."""
    scan = ObjectInstance.fence_and_scan

    async def from_the_first(self: Any, *, committed_group: int = 0, **options: Any) -> Any:
        return await scan(self, committed_group=0, **options)

    yield ObjectInstance, "fence_and_scan", from_the_first


@object_plant()
def objects_past_the_fence_count() -> Patches:
    """What lies beyond is read as if nothing were missing."""
    present = ObjectInstance._present

    async def beyond(self: Any, first: int) -> AsyncIterator[tuple[int, Any]]:
        async for number, found in present(self, first):
            yield number, found
        for name in await names_of(self):
            if name.sequence > self.fence:
                found = await self._read(name.sequence)
                if found is not None and not found.fence:
                    yield name.sequence, found
                    self.fence = name.sequence + 1

    yield ObjectInstance, "_present", beyond
    yield ObjectInstance, "groups", groups_but_holes


@object_plant()
def fence_deleted_without_a_session_check() -> Patches:
    """The zombie's next attempt succeeds again."""
    yield controller.collector, "FENCE_MS", -(1 << 60)


@object_plant()
def commit_of_a_fenced_incarnation() -> Patches:
    """The controller takes what fits the end of the log, whoever asks."""
    yield from commits_by_base_alone()


@object_plant()
def unknown_is_taken_for_stored() -> Patches:
    """An attempt without an answer counts."""
    attempt = ObjectWal._attempt

    async def hopeful(self: Any, flight: Any) -> bool:
        before = self.looks
        return await attempt(self, flight) or self.looks > before

    yield ObjectWal, "_attempt", hopeful


@object_plant()
def number_skipped_when_its_outcome_is_not_known() -> Patches:
    """The same group is sent under the next number instead."""
    store = ObjectWal._store_group

    async def skip(self: Any, flight: Any) -> None:
        with contextlib.suppress(WalError):
            if not await self._attempt(flight):
                self._group += 1
                flight.group = self._group
        await store(self, flight)

    yield ObjectWal, "_store_group", skip


@object_plant()
def object_wal_trimmed_too_far() -> Patches:
    """What is durable goes, committed or not."""
    trim = ObjectWal.trim
    yield ObjectWal, "trim", lambda self, group: trim(self, max(group, self.durable[1]))


@object_plant()
def collector_takes_what_is_being_recovered() -> Patches:
    """Objects of an instance whose session has ended are taken for orphans."""

    def orphan(state: Any, info: Any, now_ms: int) -> bool:
        name = parse_key(info.key)
        wal = None if name is None else state.wals.get(name.wal_id)
        return wal is not None and wal.state != "active"

    yield controller.collector, "is_wal_orphan", orphan
    yield controller.upkeep, "is_wal_orphan", orphan


@object_plant()
def fence_is_written_over() -> Patches:
    """The fence is put without its condition: a group that landed just before is gone."""

    async def create(self: Any, number: int) -> bool:
        fence = encode_fence(self.wal_id, LANE, number, self._token(16))
        try:
            await self._store.put(object_key(self.wal_id, LANE, number), fence)
        except StoreError:
            return False
        return True

    yield ObjectInstance, "_create_fence", create
