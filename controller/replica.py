"""One process's copy of the cluster state: follows the log, verifies the chain, tells listeners.

Reading goes entry, then boundary, then apply (the log engine does the first two). Whatever does not fit (below the
boundary, a break in the chain) is answered by loading the newest snapshot; if even that does not help, the metadata is
damaged and the process says so.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import islice

from controller import facts as f
from controller.entries import FIRST_HASH, CorruptMetadata, Entry, NewerFormat, decode_entry, hash_of
from controller.facts import ControllerElected, Fact, StateReloaded
from controller.metadata_log import BelowBoundary, MetadataLog
from controller.state import ClusterState

READ_LIMIT = 256
RECENT_BYTES_MAX = 8 << 20
RECENT_ENTRIES_MAX = 4_096

_log = logging.getLogger(__name__)

Listener = Callable[[Sequence[Fact]], None]


class ChainBroken(Exception):
    """An entry does not continue what was applied: the state or the entry is not of this log."""


class RecentEntries:
    """The newest entries as bytes, for followers that ask for them; what is older they read in the bucket."""

    def __init__(self) -> None:
        self._entries: deque[bytes] = deque()
        self._next = 1
        self._bytes = 0

    def clear(self, position: int) -> None:
        """Forget all; the next one is that after `position`."""
        self._entries.clear()
        self._next = position + 1
        self._bytes = 0

    def add(self, position: int, data: bytes) -> None:
        """Entry `position`, the one after the last that was added."""
        self._entries.append(data)
        self._next = position + 1
        self._bytes += len(data)
        while self._bytes > RECENT_BYTES_MAX or len(self._entries) > RECENT_ENTRIES_MAX:
            self._bytes -= len(self._entries.popleft())

    def since(self, position: int, bytes_max: int) -> list[bytes] | None:
        """Entries from `position` on, as many as fit and at least one if there is any; None: it is not here."""
        first = self._next - len(self._entries)
        if position >= self._next:
            return []
        if position < first:
            return None
        found: list[bytes] = []
        for data in islice(self._entries, position - first, None):
            if found and len(data) > bytes_max:
                break
            found.append(data)
            bytes_max -= len(data)
        return found


class Replica:
    """`state` is what entries 1 to `state.position` made. Only `apply` and `reload` change it, from one task."""

    def __init__(self, log: MetadataLog, cluster_id: str) -> None:
        self.log = log
        self.state = ClusterState(cluster_id)
        self.recent = RecentEntries()
        self.bytes_since_snapshot = 0
        self.entries_since_snapshot = 0
        self.snapshot_bytes = 0
        self._listeners: list[Listener] = []
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = 0

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `ControllerClient.subscribe`."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_applied(self, position: int) -> None:
        """Returns when entry `position` was applied."""
        if self.state.position < position:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._tickets += 1
            heappush(self._waiting, (position, self._tickets, future))
            await future

    async def load(self) -> None:
        """Starts from the newest snapshot, if there is one."""
        snapshot = await self.log.newest_snapshot()
        fresh = ClusterState(self.state.cluster_id)
        if snapshot is not None:
            fresh = ClusterState.decode([bytes(snapshot.state)])
            if (fresh.cluster_id, fresh.position, fresh.entry_hash) != (
                self.state.cluster_id,
                snapshot.position,
                snapshot.entry_hash,
            ):
                raise CorruptMetadata(f"snapshot {snapshot.position} holds the state at {fresh.position}")
            self.snapshot_bytes = len(snapshot.state)
        self.state.adopt(fresh)
        self.log.applied(fresh.position, fresh.entry_hash)
        self.recent.clear(fresh.position)
        self.bytes_since_snapshot = self.entries_since_snapshot = 0
        self._publish((StateReloaded(),))

    async def catch_up(self) -> int:
        """Applies entries until the end of the log; returns how many came to the state, those of a snapshot that it had
        to be loaded from among them. `ChainBroken` or `CorruptMetadata` if damaged."""
        before = self.state.position
        reloads = 0
        while True:
            try:
                batch = await self.log.read_from(self.state.position + 1, READ_LIMIT)
                for data in batch:
                    self.apply(data)
                if len(batch) < READ_LIMIT:
                    return self.state.position - before
            except (BelowBoundary, ChainBroken) as error:
                reloads += 1
                if reloads > 2:
                    raise CorruptMetadata(f"the newest snapshot does not help: {error}") from error
                _log.warning("starting again from the newest metadata snapshot: %s", error)
                await self.load()

    def apply(self, data: bytes) -> Entry:
        """Applies the next entry and tells the listeners. `ChainBroken`, `CorruptMetadata`, `facts.UnknownFact`,
        `entries.NewerFormat`.
        """
        entry = decode_entry(data)
        self._verify(entry)
        self.state.apply_entry(entry.position, hash_of(data), entry.wall_ms, entry.answers, entry.facts)
        self.log.applied(entry.position, self.state.entry_hash)
        self.recent.add(entry.position, data)
        self.bytes_since_snapshot += len(data)
        self.entries_since_snapshot += 1
        self._publish(entry.facts)
        return entry

    def _verify(self, entry: Entry) -> None:
        state = self.state
        previous = state.entry_hash if state.position else FIRST_HASH
        if entry.cluster_id != state.cluster_id:
            raise CorruptMetadata(f"entry {entry.position} belongs to cluster {entry.cluster_id}")
        if entry.position != state.position + 1 or entry.previous != previous:
            raise ChainBroken(f"entry {entry.position} does not follow entry {state.position} as it was applied")
        elected = [fact.epoch for fact in entry.facts if isinstance(fact, ControllerElected)]
        if entry.controller_epoch != (elected[-1] if elected else state.controller_epoch):
            raise ChainBroken(f"entry {entry.position} is of controller epoch {entry.controller_epoch}")
        level = max((fact.level for fact in entry.facts if isinstance(fact, f.FormatLevel)), default=0)
        if level > f.FORMAT_LEVEL:
            raise NewerFormat(
                f"the cluster was raised to format level {level}, this version knows {f.FORMAT_LEVEL}: upgrade"
            )

    def _publish(self, facts: Sequence[Fact]) -> None:
        for listener in list(self._listeners):
            listener(facts)
        while self._waiting and self._waiting[0][0] <= self.state.position:
            future = heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)
