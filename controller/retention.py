"""Retention by time and by size: how far a log's start may move. Pure; only whole committed ranges go.

Kafka's rules (`UnifiedLog.deleteOldSegments`): from the head on, a range goes while its newest record is older than
`retention.ms`; then, from the head on, while what remains without it is still at least `retention.bytes`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from controller.configs import ConfigRules
from controller.facts import LogStart
from controller.log_index import LogState
from controller.state import ClusterState


def new_start(state: ClusterState, log: LogState, now_ms: int, retention_ms: int, retention_bytes: int) -> int:
    """The offset that the log should start at: at least its present start.

    -1 for either limit: unlimited. A range without timestamps counts from its commit.
    """
    count = log.range_count
    drop = 0
    size = log.size
    while drop < count and retention_ms >= 0:
        row = log.row(drop)
        if now_ms - state.newest_ms(row) <= retention_ms:
            break
        size -= row.range.length
        drop += 1
    while drop < count and retention_bytes >= 0:
        size -= log.row_length(drop)
        if size < retention_bytes:
            break
        drop += 1
    return max(log.start, log.row_end(drop - 1)) if drop else log.start


class OldRange(NamedTuple):
    """What retention needs of a range in a manifest."""

    end: int
    length: int
    newest_ms: int


class InManifest(NamedTuple):
    """The answer depends on rows of the log's first manifest, which somebody has to read: `start_in_manifest`."""

    log_id: int
    retention_ms: int
    retention_bytes: int


def start_in_manifest(log: LogState, rows: Sequence[OldRange], now_ms: int, limits: InManifest) -> int:
    """As `new_start`, for the `rows` that are left of the log's first manifest."""
    drop = 0
    size = log.size
    while drop < len(rows) and (
        rows[drop].end <= log.start or 0 <= limits.retention_ms < now_ms - rows[drop].newest_ms
    ):
        size -= rows[drop].length
        drop += 1
    while drop < len(rows) and limits.retention_bytes >= 0:
        size -= rows[drop].length
        if size < limits.retention_bytes:
            break
        drop += 1
    return max(log.start, rows[drop - 1].end) if drop else log.start


def _may_drop_first(log: LogState, now_ms: int, retention_ms: int, retention_bytes: int) -> bool:
    """Whether retention takes the first range of the first manifest, or the start has passed it."""
    first = log.manifests[0]
    return (
        first.base < log.start
        or 0 <= retention_ms < now_ms - first.oldest_ms
        or 0 <= retention_bytes <= log.size - first.oldest_bytes
    )


def sweep(
    state: ClusterState, log_ids: Iterable[int], rules: ConfigRules, now_ms: int
) -> Iterator[LogStart | InManifest | None]:
    """For each log its new start, or None if it stays. The state may change between two steps."""
    for log_id in log_ids:
        log = state.logs.get(log_id)
        limits = None if log is None or not log.rows else rules.retention(state.topics[log.topic].configs)
        if log is None or limits is None:
            yield None
        elif log.manifests:
            yield InManifest(log_id, *limits) if _may_drop_first(log, now_ms, *limits) else None
        else:
            start = new_start(state, log, now_ms, *limits)
            yield LogStart(log_id, start) if start > log.start else None
