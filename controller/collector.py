"""What may be deleted from the bucket. Pure, and without a clock but for the grace, which is a courtesy to readers.

Doomed objects were un-named by facts. Orphans were uploaded but no fact names them; one may go only if no later
commit can name it: its seal is at or below the last committed one of its incarnation, or the incarnation is over and
all its WAL instances are retired or lost, or its merge job is closed without it. None of these ever becomes false
again, so an old view of the state does no harm.

What a merge job made is garbage only if the job's end says so, not because the state does not name it: it may be named
by a manifest, which is in the bucket.

Objects of a WAL go by the same kind of rule: what is committed, and everything of an instance that is retired or lost.
Only its fence stays for a while: with it the object store itself refuses what a process of long ago still sends.
"""

import re
from collections.abc import Iterable
from itertools import islice

from controller.state import FORGET_LEVEL, ClusterState
from storage.object_store import ObjectInfo
from storage.seal import MANIFESTS, MERGED
from storage.wal.object_format import FENCE_SIZE, parse_key

SEGMENTS = "segments/"
_KEY = re.compile(r"segments/(\d+)/([0-9a-f]{16})/(\d+)-(\d+)")
_OUTPUT = re.compile(rf"(?:{MERGED}|{MANIFESTS})(\d{{10}})/(\d+)")


def is_orphan(state: ClusterState, key: str) -> bool:
    """Whether the object at `key` is a segment or a manifest that nothing names and nothing ever will."""
    output = _OUTPUT.fullmatch(key)
    if output is not None:
        return state.job_table.is_void(int(output[1]), int(output[2]))
    match = _KEY.fullmatch(key)
    if match is None or key in state.objects.numbers or key in state.objects.doomed:
        return False
    incarnation, seal = int(match[2], 16), int(match[3])
    if incarnation in state.broker_table.closed:
        return True
    broker = state.broker_table.incarnations.get(incarnation)
    if broker is None:
        return False
    if seal <= broker.last_seal:
        return True
    return not broker.alive and all(wal.closed for wal in state.wal_table.of(incarnation))


FENCE_MS = 7 * 24 * 3_600_000
"""How long the fence of an instance stays after that was closed."""


def is_wal_orphan(state: ClusterState, info: ObjectInfo, now_ms: int) -> bool:
    """Whether this object of a WAL is needed by nobody any more. `now_ms` is wall time, for fences alone.

    Unknown instances are left alone: they may be newer than the state.
    """
    name = parse_key(info.key)
    wal = None if name is None else state.wals.get(name.wal_id)
    if wal is None or name is None:
        return False
    if not wal.closed:
        return name.sequence <= wal.committed.get(name.lane, 0)  # a late attempt made it once more
    if info.size != FENCE_SIZE:
        return True
    closed_ms = state.wal_table.closed_ms.get(wal.wal_id)
    return closed_ms is not None and now_ms >= closed_ms + FENCE_MS


CLOSED_KEPT = 1_000
"""So many closed incarnations are remembered: whoever comes late is told what became of him."""
CLOSED_MAX = 10_000
"""Beyond so many the oldest are forgotten at once, whatever they may have left in the bucket."""


def forgettable(state: ClusterState, now_ms: int) -> list[int]:
    """Closed incarnations of which only garbage in the bucket may be left; `now_ms` is wall time, for fences alone."""
    if state.format_level < FORGET_LEVEL:
        return []
    table = state.broker_table
    found = []
    for incarnation in islice(table.closed, max(0, len(table.closed) - CLOSED_KEPT)):
        times = [state.wal_table.closed_ms.get(wal.wal_id) for wal in state.wal_table.of(incarnation)]
        if all(closed_ms is None or now_ms >= closed_ms + FENCE_MS for closed_ms in times):
            found.append(incarnation)
    return found


def too_many_closed(state: ClusterState) -> list[int]:
    """Closed incarnations beyond what a state may hold, the oldest."""
    closed = state.broker_table.closed
    return list(islice(closed, max(0, len(closed) - CLOSED_MAX))) if state.format_level >= FORGET_LEVEL else []


LOSSES_KEPT = 100
"""So many losses stay, the newest, whether or not a log needs them: `tidelog inspect metadata` shows them."""


def forgettable_losses(state: ClusterState) -> list[bytes]:
    """Losses beyond those of which no log needs to know."""
    if state.format_level < FORGET_LEVEL:
        return []
    losses = state.wal_table.losses
    older = islice(losses.items(), max(0, len(losses) - LOSSES_KEPT))
    return [wal_id for wal_id, loss in older if not state.is_needed(loss)]


ABANDONED_MS = 7 * 24 * 3_600_000
"""An ended instance on a disk that no log was led through is waited for so long, and is retired then: if its disk comes
back nothing is done but to delete its files."""
ABANDONED_MAX = 1_000
"""Beyond so many the oldest are retired at once: who begins with an empty disk each time may restart for ever."""


def abandoned(state: ClusterState, now_ms: int) -> list[bytes]:
    """Instances on disks that nobody came back with, and that hold nothing of any log. `now_ms` is wall time.

    Those in the bucket are recovered by whoever is alive.
    """
    empty = [wal for wal in state.wals.values() if wal.kind != "objects" and state.holds_nothing(wal)]
    incarnations = state.broker_table.incarnations
    surplus = len(empty) - ABANDONED_MAX
    return [
        wal.wal_id
        for index, wal in enumerate(empty)
        if index < surplus or now_ms >= incarnations[wal.incarnation].last_heard_ms + ABANDONED_MS
    ]


class Grace:
    """Since when (boottime ms) each doomed object was seen to be doomed. A new controller begins anew."""

    def __init__(self, grace_ms: int) -> None:
        self._grace_ms = grace_ms
        self._since: dict[str, int] = {}

    def due(self, doomed: Iterable[str], now: int, limit: int) -> list[str]:
        """Up to `limit` of the doomed keys whose grace is over."""
        self._since = {key: self._since.get(key, now) for key in doomed}
        found = []
        for key, since in self._since.items():
            if now - since >= self._grace_ms:
                found.append(key)
                if len(found) == limit:
                    break
        return found
