"""Retention by time and by size: how far a log's start may move. Pure; only whole committed ranges go.

Kafka's rules (`UnifiedLog.deleteOldSegments`): from the head on, a range goes while its newest record is older than
`retention.ms`; then, from the head on, while what remains without it is still at least `retention.bytes`.
"""

from collections.abc import Iterable, Iterator

from controller.configs import ConfigRules
from controller.facts import LogStart
from controller.log_index import LogState
from controller.state import ClusterState


def new_start(state: ClusterState, log: LogState, now_ms: int, retention_ms: int, retention_bytes: int) -> int:
    """The offset that the log should start at: at least its present start.

    -1 for either limit: unlimited. A range without timestamps counts from its commit.
    """
    drop = 0
    size = log.size
    while drop < log.range_count and retention_ms >= 0:
        number, item = log.row(drop)
        newest = item.max_timestamp if item.max_timestamp >= 0 else state.objects.named[number].committed_ms
        if now_ms - newest <= retention_ms:
            break
        size -= item.length
        drop += 1
    while drop < log.range_count and retention_bytes >= 0:
        size -= log.row(drop).range.length
        if size < retention_bytes:
            break
        drop += 1
    return max(log.start, log.row_end(drop - 1)) if drop else log.start


def sweep(state: ClusterState, log_ids: Iterable[int], rules: ConfigRules, now_ms: int) -> Iterator[LogStart | None]:
    """For each log its new start, or None if it stays. The state may change between two steps."""
    for log_id in log_ids:
        log = state.logs.get(log_id)
        limits = None if log is None or not log.rows else rules.retention(state.topics[log.topic].configs)
        if log is None or limits is None:
            yield None
            continue
        start = new_start(state, log, now_ms, *limits)
        yield LogStart(log_id, start) if start > log.start else None
