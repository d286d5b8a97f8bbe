"""Which logs to compact, how far, and who does it. Pure.

Kafka cleans whole segments, but not the active one, which becomes an old one when it has `segment.bytes`, or at the
first append when it is `segment.ms` (or, if that is less, `max.compaction.lag.ms`) old. Here a log has no active
segment: what is not in the bucket yet is never cleaned, and what is there is cut, from where the log was cleaned to, as
Kafka would have cut it. Time alone is enough: an old record is cleaned also when none follows it.

As in Kafka (`LogCleanerManager`) nothing is cleaned that lies at or above the last stable offset, or from the first
range on that holds a record younger than `min.compaction.lag.ms`. A log is cleaned when what may be cleaned is more
than `min.cleanable.dirty.ratio` of that and all that was cleaned before, or when `max.compaction.lag.ms` has passed.
"""

from collections.abc import Iterable
from typing import NamedTuple

from controller.commands import NewCompaction
from controller.configs import CompactionRules
from controller.log_index import LogState
from controller.state import ClusterState


class Dirty(NamedTuple):
    """What can be cleaned of a log: offsets from `dirty_from` up to `bound`."""

    log_id: int
    dirty_from: int
    bound: int
    clean_bytes: int
    dirty_bytes: int  # up to `bound`
    is_due: bool

    @property
    def ratio(self) -> float:
        """The part of what can be cleaned in that and what is clean."""
        return self.dirty_bytes / max(self.dirty_bytes + self.clean_bytes, 1)


def stable_end(log: LogState) -> int:
    """Below it every transaction is decided, as committed ranges tell."""
    return log.row(-1).range.last_stable_offset if log.range_count else log.start


def look(
    state: ClusterState, log: LogState, rules: CompactionRules, now_ms: int, since_ms: int | None = None
) -> Dirty | None:
    """What can be cleaned of a log; None if nothing can.

    `since_ms`: when the oldest of it was committed, if that is known. Else it is taken to be as old as the last record
    before it: a log that was quiet is cleaned sooner, and never later.
    """
    dirty_from = max(state.compactions.clean.get(log.log_id, 0), log.start)
    first = log.first_row_beyond(dirty_from)
    if first >= log.range_count:
        return None
    if since_ms is None:
        since_ms = state.newest_ms(log.row(max(first - 1, 0)))
    stable = stable_end(log)
    segment_ms = min(rules.segment_ms, rules.max_lag_ms)
    bound, dirty_bytes = dirty_from, 0
    ended, in_segment = dirty_from, 0
    bytes_to_end = 0
    total_dirty = sum(_dirty_bytes(log, index, dirty_from) for index in range(first, log.range_count))
    old = now_ms - since_ms >= segment_ms
    for index in range(first, log.range_count):
        row = log.row(index)
        if row.range.end > stable or (rules.min_lag_ms > 0 and state.newest_ms(row) > now_ms - rules.min_lag_ms):
            break
        size = _dirty_bytes(log, index, dirty_from)
        ended = row.range.end
        bytes_to_end += size
        in_segment += size
        if old or in_segment >= rules.segment_bytes:
            bound, dirty_bytes, in_segment = ended, bytes_to_end, 0
            if not old:
                old = now_ms - state.newest_ms(row) >= segment_ms
    if bound <= dirty_from:
        return None
    clean_bytes = log.size - total_dirty
    found = Dirty(log.log_id, dirty_from, bound, clean_bytes, dirty_bytes, False)
    late = now_ms - since_ms >= rules.max_lag_ms
    return found._replace(is_due=dirty_bytes > 0 and (late or found.ratio > rules.dirty_ratio))


def _dirty_bytes(log: LogState, index: int, dirty_from: int) -> int:
    """Bytes of a range from an offset on, as if they were spread evenly over its offsets."""
    base, end, length = log.row_base(index), log.row_end(index), log.row_length(index)
    return length if dirty_from <= base else length * (end - dirty_from) // max(end - base, 1)


def plan(state: ClusterState, found: Iterable[Dirty], per_broker: int) -> tuple[list[NewCompaction], int]:
    """Passes over the dirtiest logs that are due, and how many have to wait because brokers have enough to do.

    A log's leader does it; without one, a live broker by the log's number. A log with an open merge job waits for its
    end.
    """
    alive = state.broker_table.alive()
    if not alive:
        return [], 0
    room = {broker.incarnation: per_broker for broker in alive}
    busy: set[int] = set()
    for one in state.compactions.open.values():
        busy.add(one.log_id)
        if one.incarnation in room:
            room[one.incarnation] -= 1
    merged = {part.log_id for job in state.jobs.values() for part in job.parts}
    made: list[NewCompaction] = []
    waiting = 0
    for dirty in sorted(found, key=lambda item: -item.ratio):
        log = state.logs.get(dirty.log_id)
        if log is None or not dirty.is_due or dirty.log_id in busy:
            continue
        doer = log.leader_incarnation if log.leader_incarnation in room else None
        incarnation = doer if doer is not None else alive[dirty.log_id % len(alive)].incarnation
        if room[incarnation] <= 0 or dirty.log_id in merged:
            waiting += 1
            continue
        room[incarnation] -= 1
        made.append(NewCompaction(incarnation, dirty.log_id, dirty.dirty_from, dirty.bound))
    return made, waiting
