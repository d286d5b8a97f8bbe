"""The controller's slow work for merging: opens jobs, un-names rows of manifests, searches for what jobs left behind.

What becomes true here becomes so by commands like any other. Nothing is urgent; errors of the store end the round.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from controller import facts as f
from controller.commands import DropManifestRows, ForgetJobs, OpenJobs
from controller.log_index import LogState
from controller.merging import MergeRules, needs_look, plan_jobs
from controller.resting import Resting
from controller.retention import InManifest, OldRange, start_in_manifest
from storage.clock import Clock
from storage.manifest import Manifest, ManifestRow, point_to, read_manifest
from storage.object_store import ObjectStore
from storage.seal import MANIFESTS, MERGED, CorruptSegment, ManifestPointer, RangeMissing, manifest_key, merged_key

if TYPE_CHECKING:
    from controller.runtime import Runtime

MERGE_LEVEL = 2
"""Format level from which on there are merge jobs."""

LOOKS_PER_STEP = 100
JOBS_PER_STEP = 100
LOOKS_PER_ROUND = 2_000
MANIFESTS_PER_ROUND = 16
MANIFESTS_KEPT = 8
VOID_JOBS_PER_ROUND = 1_000
REST_MS = 500
REST_MS_MAX = 300_000
SCAN_MS = 300_000
"""Every log is looked at once in so long, or four times while a shared object gets old, whichever is sooner."""

_log = logging.getLogger(__name__)


class MergeUpkeep:
    """Belongs to one runtime; idle while another process is controller."""

    def __init__(
        self,
        runtime: "Runtime",
        store: ObjectStore,
        clock: Clock,
        token: Callable[[int], bytes],
        ask: Callable[[Any], Awaitable[None]],
        rules: MergeRules,
        check_ms: int,
        is_compacted: Callable[[LogState], bool],
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._clock = clock
        self._token = token
        self._ask = ask
        self._rules = rules
        self._check_ms = check_ms
        self._is_compacted = is_compacted
        self._touched: dict[int, None] = {}
        self._passed: dict[int, None] = {}
        """Logs whose start may lie beyond rows of their first manifest."""
        self._resting = Resting(REST_MS, REST_MS_MAX)
        self._of_job: dict[int, tuple[f.MergePart, ...]] = {}
        self._scanning: list[int] = []
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._searched: set[int] = set()
        """Void jobs that the last search for orphans looked for."""
        self._broken: set[str] = set()
        runtime.replica.subscribe(self._on_facts)

    def _on_facts(self, facts: Sequence[f.Fact]) -> None:
        for fact in facts:
            match fact:
                case f.SealCommitted():
                    for item in fact.objects:
                        self._touched.update((found.log_id, None) for found in item.ranges)
                case f.LogStartAdvanced():
                    self._passed.update((moved.log_id, None) for moved in fact.starts)
                case f.MergeJobOpened():
                    self._of_job[fact.job] = fact.parts
                case f.RangesReplaced():
                    self._closed(fact.job, {output.range.log_id for output in fact.outputs})
                case f.ManifestsWritten():
                    self._closed(fact.job, {new.log_id for new in fact.manifests})
                case f.JobClosed():
                    self._closed(fact.job, set())
                case f.SessionEnded() | f.StateReloaded():
                    open_jobs = self._runtime.replica.state.jobs
                    for job in [job for job in self._of_job if job not in open_jobs]:
                        self._touched.update((part.log_id, None) for part in self._of_job.pop(job))
                case _:
                    pass
        if not self._runtime.leads:
            self._touched.clear()  # whoever leads looks at every log before long
            self._passed.clear()
            self._resting.clear()

    def _closed(self, job: int, done: set[int]) -> None:
        """What was done may be merged further, and so may what changed meanwhile. What is as it was rests."""
        logs, now = self._runtime.replica.state.logs, self._clock.boottime_ms()
        for part in self._of_job.pop(job, ()):
            log = logs.get(part.log_id)
            if part.log_id in done or log is None or log.find_part(part) is None:
                self._touched[part.log_id] = None
                self._resting.forget(part.log_id)
            else:
                self._resting.begin(part.log_id, now)

    # Jobs

    async def merge_round(self) -> None:
        """Opens jobs for logs that need them."""
        state = self._runtime.replica.state
        if state.format_level < MERGE_LEVEL:
            return
        await self._drop_rows()
        if not self._rules.enabled:
            return
        self._touched.update((log_id, None) for log_id in self._resting.wake(self._clock.boottime_ms()))
        due = self._scan()
        while self._touched and len(due) < LOOKS_PER_ROUND:
            log_id = next(iter(self._touched))
            del self._touched[log_id]
            log = state.logs.get(log_id)
            if log is not None and needs_look(log, self._rules):
                due[log_id] = None
        log_ids = sorted(log_id for log_id in due if log_id not in self._resting)
        for at in range(0, len(log_ids), LOOKS_PER_STEP):
            some = log_ids[at : at + LOOKS_PER_STEP]
            now_ms = self._clock.now_ms()
            jobs, waiting = plan_jobs(state, some, now_ms, self._rules, JOBS_PER_STEP, self._is_compacted)
            self._touched.update((log_id, None) for log_id in waiting)
            if jobs:
                await self._ask(OpenJobs(self._token(16), tuple(jobs)))
            await asyncio.sleep(0)

    def _scan(self) -> dict[int, None]:
        """The next of all logs: everything that no fact tells of, above all that time has passed."""
        logs = self._runtime.replica.state.logs
        if not self._scanning:
            self._scanning = sorted(logs, reverse=True)
        every_ms = min(SCAN_MS, max(self._rules.shared_ms // 4, 1))
        count = min(LOOKS_PER_ROUND, 1 + len(logs) * self._check_ms // every_ms)
        found: dict[int, None] = {}
        for _ in range(min(count, len(self._scanning))):
            log_id = self._scanning.pop()
            log = logs.get(log_id)
            if log is None:
                continue
            found[log_id] = None
            if log.manifests and log.manifests[0].base < log.start:
                self._passed[log_id] = None
        return found

    # Manifests

    async def _manifest(self, log_id: int, pointer: ManifestPointer) -> Manifest | None:
        """The manifest; None if it is damaged or gone, which is told once."""
        key = manifest_key(pointer.job, log_id)
        manifest = self._manifests.get(key)
        if manifest is None:
            try:
                manifest = await read_manifest(self._store, log_id, pointer, self._runtime.replica.state.cluster_id)
            except (RangeMissing, CorruptSegment) as error:
                if key not in self._broken:
                    _log.error("ALARM: manifest %s cannot be read: %s", key, error)
                    self._broken.add(key)
                return None
            self._manifests[key] = manifest
            if len(self._manifests) > MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
        return manifest

    async def start_of(self, limits: InManifest) -> f.LogStart | None:
        """Where retention moves the start of a log with manifests, if it does."""
        log = self._runtime.replica.state.logs.get(limits.log_id)
        if log is None or not log.manifests:
            return None
        pointer = log.manifests[0]
        manifest = await self._manifest(log.log_id, pointer)
        if manifest is None:
            return None
        rows = [OldRange(row.range.end, row.range.length, row.newest_ms) for row in manifest.rows(pointer.first)]
        start = start_in_manifest(log, rows, self._clock.now_ms(), limits)
        return f.LogStart(log.log_id, start) if start > log.start else None

    async def _drop_rows(self) -> None:
        """Un-names what the starts of logs have passed, and what deleted logs had."""
        state = self._runtime.replica.state
        for (_, log_id), pointer in list(state.job_table.spent.items())[:MANIFESTS_PER_ROUND]:
            manifest = await self._manifest(log_id, pointer)
            if manifest is not None:
                await self._drop(log_id, pointer, None, manifest.rows(pointer.first))
        for log_id in list(self._passed)[:MANIFESTS_PER_ROUND]:
            del self._passed[log_id]
            log = state.logs.get(log_id)
            if log is None or not log.manifests or log.manifests[0].base >= log.start:
                continue
            pointer = log.manifests[0]
            manifest = await self._manifest(log_id, pointer)
            first = 0 if manifest is None else manifest.first_beyond(log.start)
            if manifest is None or not pointer.first < first < manifest.count:
                continue
            left = point_to(pointer.job, pointer.size, manifest.rows(0), first, pointer.max_timestamp)
            await self._drop(log_id, pointer, left, manifest.rows(pointer.first, first))

    async def _drop(
        self, log_id: int, found: ManifestPointer, left: ManifestPointer | None, rows: Sequence[ManifestRow]
    ) -> None:
        objects = tuple(f.UnnamedObject(merged_key(row.job, log_id), row.size) for row in rows)
        await self._ask(DropManifestRows(self._token(16), log_id, found, left, objects))

    # What jobs left

    async def find_void(self) -> list[str]:
        """Keys of what closed jobs stored in vain. Jobs that two searches looked for are forgotten: whatever a dead
        process had on its way has arrived by then, and what arrives later costs its space and no more."""
        void = self._runtime.replica.state.job_table.void
        numbers = set(list(void)[:VOID_JOBS_PER_ROUND])
        found = []
        for number in sorted(numbers):
            for prefix in (MERGED, MANIFESTS):
                async for info in self._store.list(f"{prefix}{number:010d}/"):
                    found.append(info.key)
        done = tuple(sorted(numbers & self._searched))
        self._searched = numbers
        if done:
            await self._ask(ForgetJobs(self._token(16), done))
        return found
