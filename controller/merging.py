"""Which ranges to merge, which to move to manifests, and who does it. Pure.

The ranges of a log have levels: 0 as they were sealed, one more with each merge. Of `fan_out` neighbours of a level one
of the next is made, unless they are too large together; so a log has at most about `fan_out` ranges per level. Ranges
that share their object with other logs are merged away when they get old, so that few objects are referred to from many
logs, and none for long. A log with more than `head_max` ranges all the same moves its oldest ones to a manifest.

A manifest is written anew with what comes to it until it has `manifest_rows_max` rows; then another one begins. So a
move writes at most 68 bytes times that, for at least `head_max - head_keep` ranges, and a log needs one pointer in the
state per `manifest_rows_max` ranges. A chain of small manifests would write less, but a search by time, or a retention
that is due, would have to read all of them.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.brokers import Broker
from controller.commands import NewJob
from controller.facts import MergePart
from controller.jobs import MANIFEST, MERGE
from controller.log_index import LEVEL_MAX, LogState
from controller.state import ClusterState

MIB = 1024 * 1024


class MergeRules(NamedTuple):
    """Bounds of merging."""

    enabled: bool = True
    fan_out: int = 16
    object_bytes_max: int = 64 * MIB
    """The largest object that is made, unless one range alone is larger."""
    shared_ms: int = 3_600_000
    """Ranges in objects that hold other logs too are merged after so long."""
    head_max: int = 48
    head_keep: int = 32
    manifest_rows_max: int = 4_096
    jobs_per_broker: int = 2
    """Open jobs: one at work, one that waits."""
    parts_per_job: int = 64


class Choice(NamedTuple):
    """What to do with a log next."""

    kind: str
    part: MergePart
    bytes: int


def needs_look(log: LogState, rules: MergeRules) -> bool:
    """Whether it is worth looking at all ranges of a log that got new ones: cheap, and never wrong for long, because
    every log is looked at now and then."""
    count = log.range_count
    if count > rules.head_max:
        return True
    return count >= rules.fan_out and log.row_level(count - rules.fan_out) == log.row_level(count - 1)


def choose(
    state: ClusterState, log: LogState, now_ms: int, rules: MergeRules, *, compacted: bool = False
) -> Choice | None:
    """What to do with the ranges of one log, if anything.

    Ranges that a pass of compaction is at work on are left alone. A log that is compacted has no manifests: all of its
    ranges are cleaned again and again, and have to be in the state for that.
    """
    count = log.range_count
    begun = state.compactions.of_log(log.log_id)
    lowest = 0 if begun is None else log.first_row_beyond(begun.bound - 1) + 1
    if lowest >= count:
        return None
    best: Choice | None = None
    best_level = LEVEL_MAX + 1
    for first, size in _tiers(log, rules, lowest):
        level = log.row_level(first)
        if level < best_level:
            best, best_level = _choice(log, MERGE, first, size), level
    if best is not None:
        return best
    first = next((index for index in range(lowest, count) if not log.row_level(index)), count)
    if first < count and _is_aged(state, log, first, now_ms, rules):
        return _choice(log, MERGE, first, _run(log, first, rules))
    if count <= rules.head_max:
        return None
    if first < count - rules.head_keep:
        return _choice(log, MERGE, first, _run(log, first, rules))
    if compacted or lowest:
        return None
    return _choice(log, MANIFEST, 0, min(count - rules.head_keep, rules.manifest_rows_max))


def _tiers(log: LogState, rules: MergeRules, lowest: int) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbours of one level, from index `lowest` on, that are worth merging: `fan_out` of them, or
    fewer that fill an object."""
    at, count = lowest, log.range_count
    while at < count:
        size = _run(log, at, rules)
        following = at + size
        full = (
            size > 1
            and following < count
            and log.row_level(following) == log.row_level(at)
            and log.row_base(following) == log.row_end(following - 1)
            and log.row_length(following) < rules.object_bytes_max // 2
        )
        if size == rules.fan_out or (size < rules.fan_out and full):
            yield at, size
        at = following


def _run(log: LogState, first: int, rules: MergeRules) -> int:
    """How many neighbours from `first` on, of its level and at most `fan_out`, one object takes: at least one."""
    level, total, count = log.row_level(first), log.row_length(first), 1
    if total >= rules.object_bytes_max // 2:
        return 1
    while count < rules.fan_out and first + count < log.range_count:
        index = first + count
        total += log.row_length(index)
        if log.row_level(index) != level or log.row_base(index) != log.row_end(index - 1):
            break
        if total > rules.object_bytes_max or log.row_length(index) >= rules.object_bytes_max // 2:
            break
        count += 1
    return count


def _is_aged(state: ClusterState, log: LogState, first: int, now_ms: int, rules: MergeRules) -> bool:
    """Whether a sealed range lies for too long in an object that holds much else."""
    row = log.row(first)
    found = state.objects.named[row.object]
    shared = found.refs > 1 or found.size > 2 * row.range.length + 64 * 1024
    return shared and now_ms - found.committed_ms >= rules.shared_ms


def _choice(log: LogState, kind: str, first: int, count: int) -> Choice:
    size = sum(log.row_length(index) for index in range(first, first + count))
    return Choice(kind, log.part(first, count), size)


@dataclass(slots=True)
class _Open:
    """A job that is being put together."""

    kind: str
    parts: list[MergePart] = field(default_factory=list)
    bytes: int = 0


def plan_jobs(
    state: ClusterState,
    log_ids: Iterable[int],
    now_ms: int,
    rules: MergeRules,
    jobs_max: int = 100,
    is_compacted: Callable[[LogState], bool] = lambda log: False,
) -> tuple[list[NewJob], list[int]]:
    """Jobs for these logs, and the logs that have to wait because their broker has enough to do.

    A log's leader does its jobs; without one, a live broker by the log's number. Neighbouring logs share a job, because
    their ranges lie next to each other in the same objects.
    """
    alive = state.broker_table.alive()
    busy = {part.log_id for job in state.jobs.values() for part in job.parts}
    room = {broker.incarnation: rules.jobs_per_broker for broker in alive}
    for job in state.jobs.values():
        if job.incarnation in room:
            room[job.incarnation] -= 1
    jobs: list[NewJob] = []
    waiting: list[int] = []
    making: dict[tuple[int, str], _Open] = {}
    for log_id in sorted(log_ids):
        log = state.logs.get(log_id)
        if log is None or log_id in busy or not alive:
            continue
        incarnation = _doer(log, alive, room)
        if room[incarnation] <= 0 or len(jobs) >= jobs_max:
            waiting.append(log_id)
            continue
        choice = choose(state, log, now_ms, rules, compacted=is_compacted(log))
        if choice is None:
            continue
        made = making.setdefault((incarnation, choice.kind), _Open(choice.kind))
        if made.parts and made.bytes + choice.bytes > rules.object_bytes_max:
            if room[incarnation] <= 1:
                waiting.append(log_id)
                continue
            _close(jobs, making, room, incarnation, choice.kind)
            made = making[incarnation, choice.kind] = _Open(choice.kind)
        made.parts.append(choice.part)
        made.bytes += choice.bytes if choice.kind == MERGE else 0
        if len(made.parts) >= rules.parts_per_job:
            _close(jobs, making, room, incarnation, choice.kind)
    for incarnation, kind in list(making):
        if room[incarnation] > 0:
            _close(jobs, making, room, incarnation, kind)
        else:
            waiting += [part.log_id for part in making[incarnation, kind].parts]
    return jobs, waiting


def _doer(log: LogState, alive: list[Broker], room: Container[int]) -> int:
    if log.leader_incarnation in room:
        return log.leader_incarnation
    return alive[log.log_id % len(alive)].incarnation


def _close(
    jobs: list[NewJob], making: dict[tuple[int, str], _Open], room: dict[int, int], incarnation: int, kind: str
) -> None:
    made = making.pop((incarnation, kind))
    jobs.append(NewJob(incarnation, kind, tuple(made.parts)))
    room[incarnation] -= 1
