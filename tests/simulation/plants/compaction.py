"""Bugs of compaction, in worlds with a compacted topic."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import broker.compaction
import broker.node
import controller.compacting
import controller.decide.compacting
import storage.compacting
import storage.compaction
import storage.offset_map
from controller.log_index import LogState
from protocol.records import BatchHeader
from storage.compacting import Begin, Compactor, Done, Half
from storage.compaction import Cleaner
from storage.seal import RangeRow
from tests.simulation.plants.registry import Patches, plant

EAGER = {
    "tidelog.merge.check.interval.ms": "100",
    "tidelog.merge.bytes.per.second": "0",
    "tidelog.delete.grace.ms": "0",
    "tidelog.seal.ms": "200",
    "tidelog.tail.keep.bytes": "0",
    "log.cleaner.backoff.ms": "50",
}
"""Worlds in which passes follow each other at once."""

table_plant = partial(plant, tables=1.0, settings=EAGER)


@table_plant(faults={})
def keys_collide() -> Patches:
    """Few bits of a key's hash are compared."""
    digest = storage.offset_map.xxh3_128_intdigest
    yield storage.offset_map, "xxh3_128_intdigest", lambda key, seed: digest(key, seed) & 3


@table_plant(faults={})
def what_is_left_of_a_batch_moves_together() -> Patches:
    """The records that stay get the last offsets of their batch."""
    rewrite = storage.compaction.rewrite

    def moved(header: BatchHeader, payload: Any, count: int, *more: Any) -> bytes:
        gone = header.record_count - count
        return rewrite(header._replace(base_offset=header.base_offset + gone), payload, count, *more)

    yield storage.compaction, "rewrite", moved


@table_plant(faults={})
def output_loses_a_batch() -> Patches:
    """The last batch of a range is not written: what an output holds cannot be checked by the metadata."""
    batches = Half.batches

    async def lossy(self: Half, row: RangeRow, from_offset: int = 0) -> AsyncIterator[Any]:
        held = None
        async for found in batches(self, row, from_offset):
            if held is not None:
                yield held
            held = found

    yield Half, "batches", lossy


@table_plant(faults={})
def last_stable_offset_ignored() -> Patches:
    """What is not decided yet supersedes what was committed, and then it is aborted."""

    def end(log: LogState) -> int:
        return log.end

    yield controller.compacting, "stable_end", end
    yield controller.decide.compacting, "stable_end", end


@table_plant(faults={}, settings=EAGER | {"log.cleaner.dedupe.buffer.size": "1024"})
def map_said_to_reach_further() -> Patches:
    """A map without room for all keys counts for everything that was to be looked at: who has no later record in it is
    taken for the last of its key, and the tombstone that is seen goes though older records are still there."""
    build = storage.compacting.build_map

    async def boastful(place: Any, dirty_from: int, bound: int, *args: Any, **options: Any) -> Any:
        offsets, size = await build(place, dirty_from, bound, *args, **options)
        offsets.latest = max(offsets.latest, bound - 1)
        return offsets, size

    yield broker.compaction, "build_map", boastful


@table_plant(faults={"client_pause": 3, "slow_store": 1})
def tombstones_go_at_once() -> Patches:
    """`delete.retention.ms` is taken for zero: who reads slowly never hears that a key was deleted."""
    yield broker.node, "delete_retention_ms", lambda defaults, state, name: 0


@table_plant(faults={"kill": 3, "store_errors": 3, "slow_store": 2})
def outputs_from_the_end_to_the_start() -> Patches:
    """Tombstones are left out at once, and the last ranges are replaced first: a pass that ends early leaves what was
    deleted."""
    sift, replaces = Cleaner._sift, controller.decide.compacting._replaces

    async def backwards(self: Compactor, begin: Begin) -> AsyncIterator[Done]:
        rows, offset = [], self._start
        while (row := self._place.row_at(offset)) is not None and row.range.base <= self._offsets.latest:
            rows.append(row)
            offset = row.range.end
        for row in reversed(rows):
            making = storage.compacting._Output()
            await self._take(making, row, begin)
            if making.write is not None:
                yield await self._finish(making)

    yield Compactor, "outputs", backwards
    yield Cleaner, "_sift", lambda self, header, data, kept, passed: sift(self, header, data, kept, True)
    yield (
        controller.decide.compacting,
        "_replaces",
        lambda log, found, *more: replaces(log, dataclasses.replace(found, position=0), *more),
    )
