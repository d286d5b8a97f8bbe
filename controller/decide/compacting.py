"""Passes of compaction: opened, brought forward range by range, closed; and manifests whose rows come back for them.

As for merge jobs the state decides: an output counts if its pass is open, its inputs are the same as they were and
follow those of the outputs before it, so what is superseded is gone before what deletes it. It covers exactly their
offsets, and holds nothing that they did not hold.
"""

from controller import facts as f
from controller.commands import (
    CloseCompaction,
    CompactRanges,
    Done,
    JobAnswer,
    NewCompaction,
    OpenCompactions,
    UnpackManifest,
)
from controller.compacting import stable_end
from controller.compactions import Compaction
from controller.decide.context import Context, Decision, require_alive
from controller.decide.merging import NUMBERS_MAX
from controller.log_index import LogState
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError


def open_compactions(state: ClusterState, command: OpenCompactions, context: Context) -> Decision:
    """What still fits of the passes that the controller chose."""
    facts: list[f.Fact] = []
    number = state.job_table.next_job
    taken: set[int] = set()
    for new in command.passes:
        broker = state.broker_table.incarnations.get(new.incarnation)
        log = state.logs.get(new.log_id)
        if broker is None or not broker.alive or log is None or new.log_id in taken:
            continue
        if not _may_open(state, log, new, context):
            continue
        outputs = sum(log.row_base(index) < new.bound for index in range(log.range_count))
        if number + outputs >= NUMBERS_MAX:
            raise KafkaError(ErrorCode.UNKNOWN_SERVER_ERROR, "all numbers of merge jobs are used up")
        facts.append(
            f.CompactionOpened(number, outputs, broker.node_id, new.incarnation, new.log_id, new.dirty_from, new.bound)
        )
        number += outputs
        taken.add(new.log_id)
    return Decision(tuple(facts), Done())


def _may_open(state: ClusterState, log: LogState, new: NewCompaction, context: Context) -> bool:
    """Whether the bounds hold: nothing that is not committed, or not decided, is cleaned. And whether nobody else is
    at work on the log: an open job could move ranges to a manifest, where a pass would not see them."""
    return (
        _is_compacted(state, log, context)
        and not any(job.part(log.log_id) for job in state.jobs.values())
        and not log.manifests
        and log.range_count > 0
        and new.dirty_from == max(state.compactions.clean.get(log.log_id, 0), log.start)
        and new.dirty_from < new.bound <= stable_end(log)
        and state.compactions.of_log(log.log_id) is None
    )


def _is_compacted(state: ClusterState, log: LogState, context: Context) -> bool:
    """Coordinators keep their own topics short."""
    topic = state.topics[log.topic]
    return not topic.internal and context.rules.compaction(topic.configs) is not None


def _open_pass(state: ClusterState, number: int, incarnation: int) -> Compaction:
    require_alive(state, incarnation)
    found = state.compactions.open.get(number)
    if found is None or found.incarnation != incarnation:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"compaction {number} is not open for incarnation {incarnation:x}")
    return found


def compact_ranges(state: ClusterState, command: CompactRanges, context: Context) -> Decision:
    """The verdict on one output; if it is refused the pass closes."""
    found = _open_pass(state, command.job, command.incarnation)
    log = state.logs.get(found.log_id)
    if (
        log is None
        or not _is_compacted(state, log, context)
        or command.number != found.next_output
        or command.number >= found.number + found.outputs
        or not _replaces(log, found, command.part, command.output)
    ):
        return Decision((f.CompactionClosed(found.number),), JobAnswer((found.log_id,)))
    fact = f.RangesCompacted(found.number, command.number, command.part, command.output)
    return Decision((fact,), JobAnswer(()))


def _replaces(log: LogState, found: Compaction, part: f.MergePart, output: f.Merged) -> bool:
    first = log.find_part(part) if part.log_id == log.log_id else None
    if first is None or not found.position <= part.base < found.bound:
        return False
    if log.row_base(first + part.ranges - 1) >= found.bound:
        return False
    made = output.range
    inputs = [log.row(index).range for index in range(first, first + part.ranges)]
    last = inputs[-1]
    if (made.log_id, made.base, made.end, made.position) != (log.log_id, part.base, part.end, 0):
        return False
    if output.size < made.length or output.size >= 2**32:
        return False
    return (
        made.batch_count <= sum(row.batch_count for row in inputs)
        and made.max_timestamp <= max(row.max_timestamp for row in inputs)
        and (made.last_stable_offset, made.leader_epoch) == (last.last_stable_offset, last.leader_epoch)
    )


def close_compaction(state: ClusterState, command: CloseCompaction, context: Context) -> Decision:
    """By whoever does it."""
    found = state.compactions.open.get(command.job)
    if found is None or found.incarnation != command.incarnation:
        return Decision((), Done())
    done = found.dirty_from < command.clean_end <= found.bound and found.log_id in state.logs
    return Decision((f.CompactionClosed(found.number, command.clean_end if done else -1),), Done())


def unpack_manifest(state: ClusterState, command: UnpackManifest, context: Context) -> Decision:
    """The rows of a manifest, for a log whose ranges all have to be in the state to be cleaned."""
    log, found, rows = state.logs.get(command.log_id), command.found, command.rows
    if log is None or not log.manifests or log.manifests[-1] != found or not rows:
        return Decision((), Done())
    ends = [row.range.end for row in rows]
    fits = (
        len(rows) == found.rows
        and (rows[0].range.base, ends[-1]) == (found.base, found.end)
        and sum(row.range.length for row in rows) == found.bytes
        and all(row.range.base >= end for row, end in zip(rows[1:], ends))
        and all(row.range.log_id == log.log_id and not row.range.position for row in rows)
        and rows[0].range.end > log.start  # what lies below it is un-named first: in the state it might stay for ever
    )
    if not fits or log.range_count + len(rows) > context.limits.ranges_per_log:
        return Decision((), Done())
    return Decision((f.ManifestUnpacked(log.log_id, found.job, rows),), Done())
