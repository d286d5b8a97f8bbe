"""The object WAL keeps its word through all that a bucket, zombies and rivals may do, and worlds see when it does not.

`object_wal_world.py` tells what is judged. The first eight planted bugs are the mutations of the model `objects`.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from controller import collector
from controller.decide import seals
from controller.state import _APPLY
from storage.object_store import PreconditionFailed
from storage.wal import object_recovery, objects
from storage.wal.object_format import LANE, ObjectName, object_key, parse_key
from tests.simulation import object_wal_world
from tests.simulation.object_wal_world import ObjectWalWorld

SEEDS = 240
GROUPS = 4
CAUGHT_WITHIN = 150
"""Seeds."""


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    """Worlds are cyclic garbage, collected once at the end of a test."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.parametrize("group", range(GROUPS))
def test_what_was_acknowledged_is_found_by_whoever_is_named(group: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(group * SEEDS // GROUPS, (group + 1) * SEEDS // GROUPS):
        world = ObjectWalWorld(seed)
        assert world.run() == [], f"seed {seed}"
        seen.update(world.seen)
    assert min(seen.values()) > 0, seen


def test_one_seed_is_one_run() -> None:
    def run(seed: int) -> list[Any]:
        world = ObjectWalWorld(seed)
        world.run()
        told = [(wal_id, truth.acknowledged, truth.recovered) for wal_id, truth in world.truths.items()]
        return [*told, world.scheduler.now_ns, world.scheduler.events_run]

    for seed in range(3):
        assert run(seed) == run(seed)
    assert run(0) != run(1)


Patch = Callable[[pytest.MonkeyPatch], None]


async def names_of(instance: Any) -> list[ObjectName]:
    names = [parse_key(info.key) async for info in instance._store.list(f"{instance.path}/")]
    return [name for name in names if name is not None]


async def groups_but_holes(self: Any) -> AsyncIterator[Any]:
    for number in range(self._first, self._last + 1):
        found = await self._read(number)
        if found is not None and not found.fence:
            yield object_recovery._group(found, ObjectName(self.wal_id, LANE, number))


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """Recovery reads to the first hole, and opens."""

    async def create(self: Any, number: int) -> bool:
        return True

    patch.setattr(object_recovery.ObjectInstance, "_create_fence", create)


def fence_after_the_highest_listed(patch: pytest.MonkeyPatch) -> None:
    """A hole below it stays open."""

    async def present(self: Any, first: int) -> AsyncIterator[tuple[int, Any]]:
        number = first
        names = await names_of(self)
        last = max((name.sequence for name in names), default=0)
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

    patch.setattr(object_recovery.ObjectInstance, "_present", present)
    patch.setattr(object_recovery.ObjectInstance, "groups", groups_but_holes)


def acknowledged_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """What is stored counts, whatever is missing below it."""
    real = objects.ObjectWal._advance

    def advance(self: Any) -> None:
        for at in reversed(range(len(self._flights))):
            if self._flights[at].stored:
                for flight in list(self._flights)[:at]:
                    flight.stored = True
                break
        real(self)

    patch.setattr(objects.ObjectWal, "_advance", advance)


def every_refusal_is_our_own(patch: pytest.MonkeyPatch) -> None:
    """A fence is taken for a win."""
    real = objects.ObjectWal._is_ours

    async def ours(self: Any, flight: Any, key: str) -> bool:
        try:
            return await real(self, flight, key)
        except objects.WalError:
            return True

    patch.setattr(objects.ObjectWal, "_is_ours", ours)


def recovery_starts_from_the_first_number(patch: pytest.MonkeyPatch) -> None:
    """What was committed and deleted looks like a hole."""
    real = object_recovery.ObjectInstance.fence_and_scan

    async def scan(self: Any, *, committed_group: int = 0, **options: Any) -> Any:
        return await real(self, committed_group=0, **options)

    patch.setattr(object_recovery.ObjectInstance, "fence_and_scan", scan)


def objects_past_the_fence_count(patch: pytest.MonkeyPatch) -> None:
    """What lies beyond is read as if nothing were missing."""
    real = object_recovery.ObjectInstance._present

    async def present(self: Any, first: int) -> AsyncIterator[tuple[int, Any]]:
        async for number, found in real(self, first):
            yield number, found
        names = await names_of(self)
        for name in names:
            if name.sequence > self.fence:
                found = await self._read(name.sequence)
                if found is not None and not found.fence:
                    yield name.sequence, found
                    self.fence = name.sequence + 1

    patch.setattr(object_recovery.ObjectInstance, "_present", present)
    patch.setattr(object_recovery.ObjectInstance, "groups", groups_but_holes)


def fence_deleted_without_a_session_check(patch: pytest.MonkeyPatch) -> None:
    """The zombie's next attempt succeeds again."""
    patch.setattr(collector, "FENCE_MS", -(1 << 60))


def commit_of_a_fenced_incarnation(patch: pytest.MonkeyPatch) -> None:
    """The controller takes what fits the end of the log, whoever asks."""

    def fits(state: Any, command: Any, found: Any) -> bool:
        log = state.logs.get(found.log_id)
        return log is not None and found.base == log.end

    def committed(state: Any, fact: Any) -> None:
        broker = state.broker_table.incarnations.get(fact.incarnation)
        if broker is None:
            return
        alive, broker.alive = broker.alive, True
        try:
            real(state, fact)
        finally:
            broker.alive = alive

    real = _APPLY[seals.SealCommitted]
    patch.setattr(seals, "_fits", fits)
    patch.setattr(seals, "require_alive", lambda state, incarnation: None)
    patch.setitem(_APPLY, seals.SealCommitted, committed)


def unknown_is_taken_for_stored(patch: pytest.MonkeyPatch) -> None:
    real = objects.ObjectWal._attempt

    async def attempt(self: Any, flight: Any) -> bool:
        before = self.looks
        stored = await real(self, flight)
        return stored or self.looks > before

    patch.setattr(objects.ObjectWal, "_attempt", attempt)


def a_number_is_skipped_when_its_outcome_is_not_known(patch: pytest.MonkeyPatch) -> None:
    """The same group is sent under the next number instead."""
    real = objects.ObjectWal._store_group

    async def store(self: Any, flight: Any) -> None:
        with contextlib.suppress(objects.WalError):
            if not await self._attempt(flight):
                self._group += 1
                flight.group = self._group
        await real(self, flight)

    patch.setattr(objects.ObjectWal, "_store_group", store)


def trimmed_too_far(patch: pytest.MonkeyPatch) -> None:
    real = objects.ObjectWal.trim
    patch.setattr(objects.ObjectWal, "trim", lambda self, group: real(self, max(group, self.durable[1])))


def collector_takes_instances_that_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    def orphan(state: Any, info: Any, now_ms: int) -> bool:
        wal = state.wals.get(bytes.fromhex(info.key.split("/")[1]))
        return wal is not None and wal.state != "active"

    patch.setattr(object_wal_world, "is_wal_orphan", orphan)
    real = ObjectWalWorld._pass

    def passing(self: Any, ns: int) -> None:
        self._collect()
        real(self, ns)

    patch.setattr(ObjectWalWorld, "_pass", passing)


def fence_is_written_over(patch: pytest.MonkeyPatch) -> None:
    """The fence is put without its condition: a group that landed just before is gone."""

    async def create(self: Any, number: int) -> bool:
        key = object_key(self.wal_id, LANE, number)
        try:
            await self._store.put(key, object_recovery.encode_fence(self.wal_id, LANE, number, self._token(16)))
        except (objects.StoreError, PreconditionFailed):
            return False
        return True

    patch.setattr(object_recovery.ObjectInstance, "_create_fence", create)


PLANTS: list[Patch] = [
    no_fence,
    fence_after_the_highest_listed,
    acknowledged_out_of_order,
    every_refusal_is_our_own,
    recovery_starts_from_the_first_number,
    objects_past_the_fence_count,
    fence_deleted_without_a_session_check,
    commit_of_a_fenced_incarnation,
    unknown_is_taken_for_stored,
    a_number_is_skipped_when_its_outcome_is_not_known,
    trimmed_too_far,
    collector_takes_instances_that_are_not_closed,
    fence_is_written_over,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(CAUGHT_WITHIN):
        if ObjectWalWorld(seed).run():
            return
    raise AssertionError(f"{plant.__name__} was not noticed in {CAUGHT_WITHIN} worlds")
