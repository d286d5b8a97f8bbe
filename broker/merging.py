"""Does the merge jobs that the controller opened for this broker, slowly, and one after the other.

Outputs lie under keys of the job. A PUT whose outcome is unknown is repeated with the same bytes; a job for which
the store stays away is given up, and the controller opens another one later. A part whose inputs are damaged is left
out, with an alarm: the other parts of its job count.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from broker.job_worker import JobWorker, Workplace
from broker.outputs import ASK_ATTEMPTS, YIELD_S, ask
from controller.commands import CloseJob, ReplaceRanges, WriteManifests
from controller.facts import Merged, MergeJobOpened, MergePart, NewManifest
from controller.jobs import MERGE, Job
from controller.merging import MergeRules
from storage.manifest import ManifestRow, encode_manifest, point_to, read_manifest
from storage.merging import Inputs, MergedObject, merge
from storage.object_store import StoreError
from storage.seal import CorruptSegment, RangeMissing, RangeRow, manifest_key, merged_key

log = logging.getLogger(__name__)


class JobGone(Exception):
    """The job was closed, or its inputs are not as they were."""


class Merging(JobWorker[Job]):
    """The worker of one broker."""

    opens = MergeJobOpened

    def __init__(self, place: Workplace, rules: MergeRules) -> None:
        super().__init__(place)
        self._rules = rules
        self.jobs = self.jobs_given_up = self.refused_parts = 0
        self.ranges = self.manifests_written = 0

    def _mine(self) -> list[Job]:
        return [job for job in self._controller.state.jobs.values() if job.incarnation == self._incarnation]

    async def _do(self, job: Job) -> None:
        try:
            command = await (self._merge(job) if job.kind == MERGE else self._write_manifests(job))
        except JobGone:
            await self._close(job)
        except StoreError as error:
            log.info("merge job %d is given up: %s", job.number, error)
            self.jobs_given_up += 1
            await self._close(job)
        else:
            answer = await self._ask(command)
            if answer is None:
                await self._close(job)
            else:
                self.jobs += 1
                self.refused_parts += len(answer.refused)
                await self._until_closed(job)

    async def _close(self, job: Job) -> None:
        """Give the job up, if it is open still."""
        while job.number in self._controller.state.jobs:
            await self._ask(CloseJob(self._token(16), self._incarnation, job.number))
            await self._until_closed(job)

    async def _until_closed(self, job: Job) -> None:
        """Wait for the fact; not for long, because it may never come."""
        for _ in range(ASK_ATTEMPTS):
            if job.number not in self._controller.state.jobs:
                return
            await asyncio.sleep(YIELD_S)

    def _alarm(self, job: Job, error: Exception) -> None:
        self.alarms += 1
        log.error("ALARM: merge job %d cannot read what is named: %s", job.number, error)

    async def _ask(self, command: Any) -> Any:
        return await ask(self._controller, command)

    # The two kinds of jobs

    def _rows(self, part: MergePart) -> list[RangeRow] | None:
        """The inputs of a part as the state names them now; None if they are not what they were."""
        state = self._controller.state
        known = state.logs.get(part.log_id)
        first = None if known is None else known.find_part(part)
        if first is None:
            return None
        return [state.range_at(part.log_id, index) for index in range(first, first + part.ranges)]

    async def _merge(self, job: Job) -> ReplaceRanges:
        """Store the outputs of all parts, one after the other."""
        inputs = Inputs(
            self._store,
            self._cluster_id,
            [row for part in job.parts for row in self._rows(part) or ()],
            self._writer.read_pace,
        )
        outputs: list[Merged] = []
        for part in job.parts:
            self._check_open(job)
            rows = self._rows(part)
            if rows is None:
                continue
            try:
                made = await self._make(inputs, job.number, rows)
            except (RangeMissing, CorruptSegment) as error:
                if self._rows(part) == rows:  # else retention was faster
                    self._alarm(job, error)
                continue
            outputs.append(_output(made))
            self.ranges += len(rows)
        if not outputs:
            raise JobGone
        return ReplaceRanges(self._token(16), self._incarnation, job.number, tuple(outputs))

    async def _make(self, inputs: Inputs, job: int, rows: Sequence[RangeRow]) -> MergedObject:
        """Read the inputs of one part, and store its output as it comes."""
        output = self._writer.output(merged_key(job, rows[0].range.log_id))
        try:
            made = await merge(inputs, self._cluster_id, job, rows, output.write)
            await output.finish(made.parts)
        except BaseException:
            await output.abort()
            raise
        return made

    async def _write_manifests(self, job: Job) -> WriteManifests:
        written: list[NewManifest] = []
        for part in job.parts:
            self._check_open(job)
            try:
                new = await self._write_manifest(job, part)
            except (RangeMissing, CorruptSegment) as error:
                self._alarm(job, error)
                continue
            if new is not None:
                written.append(new)
        if not written:
            raise JobGone
        return WriteManifests(self._token(16), self._incarnation, job.number, tuple(written))

    async def _write_manifest(self, job: Job, part: MergePart) -> NewManifest | None:
        """The rows of the part, behind those of the log's last manifest if there is room."""
        state = self._controller.state
        known = state.logs.get(part.log_id)
        if known is None or known.find_part(part) != 0:
            return None
        added = [known.row(index) for index in range(part.ranges)]
        rows = [ManifestRow(row.object, row.size, row.range, state.newest_ms(row)) for row in added]
        old = known.manifests[-1] if known.manifests else None
        if old is not None and old.rows + len(rows) > self._rules.manifest_rows_max:
            old = None
        if old is not None:
            await self._writer.read_pace(old.size)
            try:
                before = await read_manifest(self._store, part.log_id, old, self._cluster_id)
            except RangeMissing:
                if old in known.manifests:
                    raise
                return None
            rows = before.rows(old.first) + rows
        data = encode_manifest(self._cluster_id, job.number, part.log_id, rows)
        await self._writer.put(manifest_key(job.number, part.log_id), [data])
        self.manifests_written += 1
        pointer = point_to(job.number, len(data), rows, 0, -1 if old is None else old.max_timestamp)
        return NewManifest(part.log_id, -1 if old is None else old.job, pointer)

    def _check_open(self, job: Job) -> None:
        if job.number not in self._controller.state.jobs:
            raise JobGone


def _output(made: MergedObject) -> Merged:
    return Merged(made.size, made.range)
