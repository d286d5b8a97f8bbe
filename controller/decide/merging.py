"""Merge jobs: opened, done, given up; rows of manifests that nobody needs; what closed jobs left.

A replacement counts only if its job is open, its inputs are all still named, next to each other and the same, and its
output covers exactly their offsets; and a merge conserves their bytes and batches. Verdict per log, as for seals.
"""

from collections.abc import Iterable, Sequence

from controller import facts as f
from controller.commands import (
    CloseJob,
    Done,
    DropManifestRows,
    ForgetJobs,
    JobAnswer,
    OpenJobs,
    ReplaceRanges,
    WriteManifests,
)
from controller.decide.context import Context, Decision, require_alive
from controller.jobs import MANIFEST, MERGE, Job
from controller.log_index import BATCHES_MAX
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError

NUMBERS_MAX = 2**32


def open_jobs(state: ClusterState, command: OpenJobs, context: Context) -> Decision:
    """What still fits of the jobs that the controller chose."""
    facts: list[f.Fact] = []
    number = state.job_table.next_job
    for new in command.jobs:
        broker = state.broker_table.incarnations.get(new.incarnation)
        parts = _unique(part for part in new.parts if _stands(state, part) and _is_free(state, part, new.kind))
        if broker is None or not broker.alive or not parts or new.kind not in (MERGE, MANIFEST):
            continue
        if number >= NUMBERS_MAX:
            raise KafkaError(ErrorCode.UNKNOWN_SERVER_ERROR, "all numbers of merge jobs are used up")
        facts.append(f.MergeJobOpened(number, broker.node_id, new.incarnation, new.kind, parts))
        number += 1
    return Decision(tuple(facts), Done())


def _unique(parts: Iterable[f.MergePart]) -> tuple[f.MergePart, ...]:
    """A job holds a log at most once, because keys of outputs are named by job and log."""
    return tuple({part.log_id: part for part in parts}.values())


def _stands(state: ClusterState, part: f.MergePart) -> bool:
    """Whether the inputs of a part are all still named, next to each other and the same."""
    log = state.logs.get(part.log_id)
    return log is not None and log.find_part(part) is not None


def _is_free(state: ClusterState, part: f.MergePart, kind: str) -> bool:
    """Whether no pass of compaction is at work on what the part holds: what it reads stays as it is until it is over,
    because a range that it sees twice, or not at all, would make it drop what has to stay."""
    begun = state.compactions.of_log(part.log_id)
    return begun is None or (kind == MERGE and part.base >= begun.bound)


def _open_job(state: ClusterState, number: int, incarnation: int, kind: str) -> Job:
    require_alive(state, incarnation)
    job = state.jobs.get(number)
    if job is None or job.incarnation != incarnation or job.kind != kind:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST, f"job {number} is no open {kind} job of incarnation {incarnation:x}"
        )
    return job


def replace_ranges(state: ClusterState, command: ReplaceRanges, context: Context) -> Decision:
    """The verdict on every output; the job closes, whatever it is."""
    job = _open_job(state, command.job, command.incarnation, MERGE)
    outputs: dict[int, f.Merged] = {}
    for output in command.outputs:
        if _replaces(state, job, output):
            outputs[output.range.log_id] = output
    refused = _refused((output.range.log_id for output in command.outputs), outputs)
    fact = f.RangesReplaced(job.number, tuple(outputs.values())) if outputs else f.JobClosed(job.number)
    return Decision((fact,), JobAnswer(refused))


def _refused(asked: Iterable[int], accepted: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(asked) - set(accepted)))


def _replaces(state: ClusterState, job: Job, output: f.Merged) -> bool:
    """Whether an output may stand in the place of its part."""
    found = output.range
    part = job.part(found.log_id)
    if part is None or not _stands(state, part):
        return False
    return _covers(state, part, output)


def _covers(state: ClusterState, part: f.MergePart, output: f.Merged) -> bool:
    """Whether the output has exactly the offsets, bytes and batches of its inputs, and the state at their end."""
    found = output.range
    log = state.logs[found.log_id]
    first = log.find_part(part)
    assert first is not None
    inputs = [log.row(index).range for index in range(first, first + part.ranges)]
    last = inputs[-1]
    if (found.base, found.end) != (part.base, part.end) or found.position or output.size < found.length:
        return False
    if found.length != sum(row.length for row in inputs) or found.length >= 2**32 or output.size >= 2**32:
        return False
    batches = sum(row.batch_count for row in inputs)
    if found.batch_count != batches or batches > BATCHES_MAX:
        return False
    newest = max(row.max_timestamp for row in inputs)
    return (found.max_timestamp, found.last_stable_offset, found.leader_epoch) == (
        newest,
        last.last_stable_offset,
        last.leader_epoch,
    )


def write_manifests(state: ClusterState, command: WriteManifests, context: Context) -> Decision:
    """As `replace_ranges`, for the oldest ranges of logs."""
    job = _open_job(state, command.job, command.incarnation, MANIFEST)
    manifests: dict[int, f.NewManifest] = {}
    for new in command.manifests:
        if _continues(state, job, new):
            manifests[new.log_id] = new
    refused = _refused((new.log_id for new in command.manifests), manifests)
    fact = f.ManifestsWritten(job.number, tuple(manifests.values())) if manifests else f.JobClosed(job.number)
    return Decision((fact,), JobAnswer(refused))


def _continues(state: ClusterState, job: Job, new: f.NewManifest) -> bool:
    """Whether a manifest holds exactly the oldest rows of the state, behind those of the manifest that it replaces."""
    part = job.part(new.log_id)
    log = state.logs.get(new.log_id)
    if part is None or log is None or log.find_part(part) != 0 or part.ranges >= log.range_count:
        return False
    rows = [log.row(index) for index in range(part.ranges)]
    if not all(row.level for row in rows):
        return False
    old = log.manifests[-1] if new.replaces >= 0 and log.manifests else None
    if new.replaces >= 0 and (old is None or old.job != new.replaces):
        return False
    pointer = new.pointer
    count, size = part.ranges, sum(row.range.length for row in rows)
    base, newest = part.base, max(row.range.max_timestamp for row in rows)
    oldest = (state.newest_ms(rows[0]), rows[0].range.length)
    if old is not None:
        count, size, base = count + old.rows, size + old.bytes, old.base
        newest, oldest = max(newest, old.max_timestamp), (old.oldest_ms, old.oldest_bytes)
    expected = (job.number, 0, count, size, base, part.end, newest, *oldest)
    return (pointer.job, *pointer[2:]) == expected


def close_job(state: ClusterState, command: CloseJob, context: Context) -> Decision:
    """By whoever does it."""
    job = state.jobs.get(command.job)
    if job is None or job.incarnation != command.incarnation:
        return Decision((), Done())
    return Decision((f.JobClosed(job.number),), Done())


def drop_manifest_rows(state: ClusterState, command: DropManifestRows, context: Context) -> Decision:
    """Rows that the log's start has passed, or of a log that is gone."""
    found, left = command.found, command.left
    log = state.logs.get(command.log_id)
    held: Sequence[object] = [] if log is None else log.manifests
    spent = state.job_table.spent.get((found.job, command.log_id))
    if left is None:
        fits = spent == found
    else:
        fits = (
            log is not None
            and found in held
            and (left.job, left.size, left.end) == (found.job, found.size, found.end)
            and left.first + left.rows == found.first + found.rows
            and found.first < left.first
            and left.bytes <= found.bytes
            and left.base >= found.base
            and len(command.objects) == left.first - found.first
        )
    if not fits:
        return Decision((), Done())
    return Decision((f.ManifestRowsDropped(command.log_id, found.job, left, command.objects),), Done())


def forget_jobs(state: ClusterState, command: ForgetJobs, context: Context) -> Decision:
    """Those that are void."""
    jobs = tuple(job for job in command.jobs if job in state.job_table.void)
    return Decision((f.JobsForgotten(jobs),) if jobs else (), Done())
