"""Bugs of merging, manifests and what is deleted after them; first the mutations of the model `compaction`."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, cast

import broker.merging
import controller.decide.merging
import controller.merge_upkeep
import controller.upkeep
from broker.cold import ColdReads
from broker.merging import Merging
from controller.commands import ReplaceRanges
from controller.facts import MergeJobOpened
from controller.jobs import Job
from controller.log_index import LogState
from controller.merge_upkeep import MergeUpkeep
from controller.merging import plan_jobs
from controller.state import ClusterState
from storage.manifest import encode_manifest, point_to
from storage.merging import Inputs, MergedObject, Write, merge
from storage.reader import ReadResult
from storage.seal import MANIFESTS, MERGED, RangeMissing, RangeRow
from storage.segment import LogIndex
from tests.simulation.plants.registry import Patches, plant

MERGING = {
    "tidelog.merge.enable": "true",
    "tidelog.merge.fan.out": "2",
    "tidelog.merge.check.interval.ms": "100",
    "tidelog.merge.bytes.per.second": "0",
    "tidelog.log.ranges.head.max": "4",
    "tidelog.delete.grace.ms": "0",
    "tidelog.orphan.check.interval.ms": "500",
    "tidelog.seal.ms": "200",
}
"""Worlds in which merging has much to do, and what it leaves goes at once."""

LARGE = MERGING | {"tidelog.merge.object.bytes": "65536", "tidelog.tail.keep.bytes": "0"}
"""Where records are large, objects are full soon, and manifests take them; little of it is in memory."""


PLAN_AGE_S = 0.3


class _WithoutJobs:
    """A state in which nobody sees the open jobs."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self.jobs: dict[int, Job] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


@plant(faults={}, settings=MERGING | {"tidelog.delete.grace.ms": "2000"})
def replacement_does_not_check_its_inputs() -> Patches:
    """Jobs overlap, and each replaces as many ranges as it had from where it began, whatever is there by then."""
    on_facts, rows_of = Merging.on_facts, Merging._rows
    inputs: dict[Any, list[RangeRow] | None] = {}

    def remember(self: Merging, facts: Sequence[Any]) -> None:
        for fact in facts:
            if isinstance(fact, MergeJobOpened):
                inputs.update((id(part), rows_of(self, part)) for part in fact.parts)
        on_facts(self, facts)

    yield Merging, "on_facts", remember
    yield Merging, "_rows", lambda self, part: inputs.get(id(part))

    def wherever(self: LogState, part: Any) -> int | None:
        first = bisect_left(range(self.range_count), part.base, key=self.row_base)
        return first if 0 < part.ranges <= self.range_count - first else None

    yield LogState, "find_part", wherever
    yield controller.decide.merging, "_covers", lambda state, part, output: True
    yield controller.merge_upkeep, "plan_jobs", lambda state, *more: plan_jobs(cast(Any, _WithoutJobs(state)), *more)


@plant(faults={}, settings=MERGING)
def replacement_does_not_check_its_cover() -> Patches:
    """A merge that loses its last input is taken for the whole."""

    async def lossy(inputs: Inputs, cluster_id: str, job: int, rows: Sequence[RangeRow], write: Write) -> MergedObject:
        return await merge(inputs, cluster_id, job, rows[:-1] if len(rows) > 1 else rows, write)

    yield broker.merging, "merge", lossy
    yield controller.decide.merging, "_covers", lambda state, part, output: True


@plant(faults={"slow_store": 1, "store_errors": 1}, settings=MERGING)
def output_deleted_while_its_job_is_open() -> Patches:
    """What a job stores is garbage until a fact names it."""

    async def unnamed(self: MergeUpkeep) -> list[str]:
        jobs = self._runtime.replica.state.jobs
        return [
            info.key
            for number in list(jobs)
            for prefix in (MERGED, MANIFESTS)
            async for info in self._store.list(f"{prefix}{number:010d}/")
        ]

    is_orphan = controller.upkeep.is_orphan
    yield MergeUpkeep, "find_void", unnamed
    yield (
        controller.upkeep,
        "is_orphan",
        lambda state, key: key.startswith((MERGED, MANIFESTS)) or is_orphan(state, key),
    )


@plant(faults={}, settings=MERGING)
def inputs_deleted_before_the_fact() -> Patches:
    """Whoever merged deletes what went into it, and then asks for the replacement."""
    merge_job = Merging._merge

    async def hasty(self: Merging, job: Job) -> ReplaceRanges:
        rows = [row for part in job.parts for row in self._rows(part) or ()]
        command = await merge_job(self, job)
        for row in rows:
            await self._store.delete(row.key)
        return command

    yield Merging, "_merge", hasty


@plant(faults={}, rereaders=2, settings=MERGING | {"tidelog.tail.keep.bytes": "0"})
def reader_takes_a_missing_object_for_the_end() -> Patches:
    """No second plan when an object of the first one is gone. Plans are older than usual when they are used."""

    async def read(self: ColdReads, log_id: int, offset: int, limit: int, max_bytes: int, **options: Any) -> ReadResult:
        rows = await self._ranges(log_id, offset)
        await asyncio.sleep(PLAN_AGE_S)
        try:
            return await self._reader.read(rows, offset, limit, max_bytes, **options)
        except RangeMissing:
            return ReadResult([], 0, offset, [], True)

    yield ColdReads, "read", read
    yield controller.upkeep, "TICK_MS", 10  # what is doomed goes at once


@plant(faults={"unheard_and_kill": 1}, settings=MERGING)
def merge_loses_the_producer_state() -> Patches:
    """An output has the batches of its inputs and nothing else."""

    async def nothing(self: Inputs, row: RangeRow, log: LogIndex) -> tuple[bytes, int]:
        return b"", log.range.end

    yield Inputs, "producers", nothing


@plant(faults={}, load=3, settings=LARGE)
def manifest_lacks_a_row() -> Patches:
    """One range is in no manifest and in no state any more."""

    def without(rows: Sequence[Any]) -> list[Any]:
        return [*rows[:1], *rows[2:]]

    yield (
        broker.merging,
        "encode_manifest",
        lambda cluster_id, job, log_id, rows: encode_manifest(cluster_id, job, log_id, without(rows)),
    )
    yield broker.merging, "point_to", lambda job, size, rows, *more: point_to(job, size, without(rows), *more)
    yield controller.decide.merging, "_continues", lambda state, job, new: True
