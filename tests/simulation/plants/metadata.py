"""Bugs of the metadata log: the mutations of the model `metalog`, and snapshots.

Two of them take controllers that are alone at what they do, over a store: two writers stopped at one position (a reader
ignores the boundary), commands that contradict each other (stale facts at the next position). They are planted in
`tests/controller/test_chaos.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from controller.entries import SnapshotHead, frame_snapshot
from controller.metadata_log import BelowBoundary
from controller.object_log import ObjectLog, entry_key, snapshot_key
from controller.replica import READ_LIMIT, Replica
from storage.object_store import OutcomeUnknown, PreconditionFailed, Unavailable
from tests.simulation.plants.registry import Patches, cluster_plant

TRIMMED_SOON = {"session_ms": 2_000, "moves": 0.0, "metadata": (6, 2), "faults_s": 24}
"""Worlds in which little of the log stays behind a snapshot, and snapshots are many."""


@cluster_plant(**TRIMMED_SOON, faults={"stopped_appending": 1})
def writer_ignores_the_boundary() -> Patches:
    """An entry that was created where others were deleted counts."""
    append = ObjectLog.append

    async def careless(self: ObjectLog, position: int, entry: bytes) -> bytes:
        try:
            return await append(self, position, entry)
        except BelowBoundary:
            held = (await self._entries.get(entry_key(position))).data
            if held != entry:
                raise
            return held

    yield ObjectLog, "append", careless


@cluster_plant(**TRIMMED_SOON, faults={"stopped_appending": 1})
def boundary_written_after_the_deletion() -> Patches:
    """Entries go first, and for a while nobody can know that they did."""
    advance = ObjectLog.advance_boundary
    wanted: dict[ObjectLog, int] = {}

    async def later(self: ObjectLog, position: int) -> int:
        wanted[self] = position
        return position

    async def trim(self: ObjectLog) -> int:
        keys = await self._keys_through(max(0, wanted.get(self, 0)))
        for key in keys:
            await self._store.delete(key)
        await asyncio.sleep(10)
        await advance(self, wanted.get(self, 0))
        return len(keys)

    yield ObjectLog, "advance_boundary", later
    yield ObjectLog, "trim", trim


@cluster_plant(session_ms=2_000, moves=0.0, metadata=(40, 4), faults_s=24, faults={"lost_snapshot": 1})
def snapshot_not_read_back() -> Patches:
    """What was sent is taken for what lies there: the entries before it go.

    It is sent once: sending it again until its outcome is known, as every write is, would hide that nobody looks.
    """

    async def hopeful(self: ObjectLog, position: int, entry_hash: bytes, state: Sequence[bytes]) -> None:
        pieces = frame_snapshot(SnapshotHead(self._cluster_id, position, entry_hash), state)
        try:
            await cast(Any, self._store)._store.put_if_absent(snapshot_key(position), pieces)
        except (PreconditionFailed, OutcomeUnknown, Unavailable):
            pass

    yield ObjectLog, "write_snapshot", hopeful


@cluster_plant(session_ms=2_000, moves=0.0, metadata=(2, 0), faults_s=24, faults={"long_pause": 1})
def snapshot_is_no_sign_of_life() -> Patches:
    """Who loads one counts only the entries behind it, and takes a controller at work for silent since before."""

    async def catch_up(self: Replica) -> int:
        applied = 0
        while True:
            try:
                batch = await self.log.read_from(self.state.position + 1, READ_LIMIT)
                for data in batch:
                    self.apply(data)
                    applied += 1
                if len(batch) < READ_LIMIT:
                    return applied
            except BelowBoundary:
                await self.load()

    yield Replica, "catch_up", catch_up
