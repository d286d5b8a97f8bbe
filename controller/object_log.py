"""The metadata log in the object store.

`meta/entries/<20 digits>` created if absent; `meta/snapshots/<20 digits>`; `meta/boundary` (JSON) replaced by
compare-and-set. Reads go ahead in a window, so that a cold start does not wait for each object in turn.
"""

import asyncio
import json
from collections.abc import Sequence

from controller.entries import CorruptMetadata, SnapshotHead, frame_snapshot, unframe_snapshot
from controller.metadata_log import BelowBoundary, Snapshot
from storage.object_store import (
    NotFound,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    Unavailable,
)
from storage.retrying import RetryingStore

ENTRIES = "meta/entries/"
SNAPSHOTS = "meta/snapshots/"
BOUNDARY = "meta/boundary"
SNAPSHOTS_KEPT = 2
WINDOW_MAX = 32
DELETES_AT_ONCE = 16


def entry_key(position: int) -> str:
    """Where the entry at `position` lies."""
    return f"{ENTRIES}{position:020d}"


def snapshot_key(position: int) -> str:
    """Where the snapshot after entry `position` lies."""
    return f"{SNAPSHOTS}{position:020d}"


class ObjectLog:
    """A `MetadataLog`. Knows nothing of what entries say but their bytes; `store` retries what is safe to retry."""

    def __init__(self, store: ObjectStore, cluster_id: str, *, attempt_ms: int | None = None) -> None:
        """`attempt_ms`: a request for an entry that has no answer by then is made again, where the store is retried.

        Leases wait for entries, and a start for the snapshot: one request that hangs until its client gives up would
        cost all that depend on them.
        """
        self._store = store
        self._attempt_ms = attempt_ms
        self._entries = self._hurried()
        self._cluster_id = cluster_id

    def _hurried(self, size: int = 0) -> ObjectStore:
        """The store for objects of at most so many bytes that somebody waits for."""
        if self._attempt_ms is None or not isinstance(self._store, RetryingStore):
            return self._store
        return self._store.hurried(self._attempt_ms, size)

    def applied(self, position: int, entry_hash: bytes) -> None:
        """As the port says. An object store that loses objects is damaged, which the chain of hashes shows."""

    async def append(self, position: int, entry: bytes) -> bytes:
        """As the port says. One attempt, and a look if its outcome is not known."""
        try:
            await self._entries.put_if_absent(entry_key(position), entry)
            held = entry
        except (PreconditionFailed, OutcomeUnknown, Unavailable) as error:
            found = await self._read(position)
            if found is None:
                await self._check_boundary(position)
                if isinstance(error, PreconditionFailed):
                    raise OutcomeUnknown(f"{entry_key(position)} was there and is gone: look again") from error
                raise
            held = found
        await self._check_boundary(position)
        return held

    async def read_from(self, position: int, limit: int) -> list[bytes]:
        """As the port says."""
        found: list[bytes] = []
        window = 1
        while len(found) < limit:
            first = position + len(found)
            width = min(window, limit - len(found))
            batch = await asyncio.gather(*[self._read(first + i) for i in range(width)])
            present = [data for data in batch[: batch.index(None) if None in batch else width] if data is not None]
            found += present
            if len(present) < width:
                break
            window = min(2 * window, WINDOW_MAX)
        await self._check_boundary(position)
        return found

    async def _read(self, position: int) -> bytes | None:
        try:
            return (await self._entries.get(entry_key(position))).data
        except NotFound:
            return None

    async def _check_boundary(self, position: int) -> None:
        boundary, _ = await self._boundary()
        if position <= boundary:
            raise BelowBoundary(f"entry {position} is at or below the boundary {boundary}")

    async def _boundary(self) -> tuple[int, str | None]:
        try:
            stored = await self._entries.get(BOUNDARY)
        except NotFound:
            return 0, None
        try:
            value = json.loads(stored.data)
            position, cluster_id = int(value["position"]), value["cluster_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptMetadata(f"{BOUNDARY} cannot be read: {error!r}") from error
        if cluster_id != self._cluster_id:
            raise CorruptMetadata(f"{BOUNDARY} belongs to cluster {cluster_id}, this is {self._cluster_id}")
        return position, stored.etag

    async def boundary(self) -> int:
        """The boundary; 0 if nothing was ever trimmed."""
        return (await self._boundary())[0]

    async def newest_snapshot(self) -> Snapshot | None:
        """As the port says."""
        newest = None
        async for info in self._entries.list(SNAPSHOTS):
            newest = info
        if newest is None:
            return None
        try:
            data = (await self._hurried(newest.size).get(newest.key)).data
        except NotFound:
            raise Unavailable(f"{newest.key} was replaced by a newer snapshot meanwhile: look again") from None
        head, state = unframe_snapshot(data)
        if head.cluster_id != self._cluster_id or snapshot_key(head.position) != newest.key:
            raise CorruptMetadata(f"{newest.key} is the snapshot of {head.cluster_id} at {head.position}")
        return Snapshot(head.position, head.entry_hash, state)

    async def _keys(self, prefix: str) -> list[str]:
        return [info.key async for info in self._store.list(prefix)]

    async def write_snapshot(self, position: int, entry_hash: bytes, state: Sequence[bytes]) -> None:
        """As the port says. Whoever was first at a position wrote the same state."""
        pieces = frame_snapshot(SnapshotHead(self._cluster_id, position, entry_hash), state)
        key = snapshot_key(position)
        try:
            await self._store.put_if_absent(key, pieces)
        except (PreconditionFailed, OutcomeUnknown):
            pass  # what counts is what can be read
        try:
            head, _ = unframe_snapshot((await self._store.get(key)).data)
        except NotFound:
            raise OutcomeUnknown(f"{key} was written and is not there") from None
        if head != SnapshotHead(self._cluster_id, position, entry_hash):
            raise CorruptMetadata(f"{key} is not the snapshot that was written")

    async def advance_boundary(self, position: int) -> int:
        """As the port says."""
        while True:
            present, etag = await self._boundary()
            if position <= present:
                return present
            body = json.dumps({"cluster_id": self._cluster_id, "position": position}).encode()
            try:
                if etag is None:
                    await self._store.put_if_absent(BOUNDARY, body)
                else:
                    await self._store.put_if_match(BOUNDARY, body, etag)
            except (PreconditionFailed, OutcomeUnknown):
                continue  # somebody moved it, perhaps we ourselves: look

    async def trim(self) -> int:
        """As the port says. Reads the boundary itself: nothing above it is ever touched."""
        boundary = await self.boundary()
        keys = await self._keys_through(boundary)
        snapshots = await self._keys(SNAPSHOTS)
        keys += snapshots[:-SNAPSHOTS_KEPT]
        for at in range(0, len(keys), DELETES_AT_ONCE):
            await asyncio.gather(*[self._store.delete(key) for key in keys[at : at + DELETES_AT_ONCE]])
        return len(keys)

    async def close(self) -> None:
        """As the port says: nothing, the store is its owner's."""

    async def _keys_through(self, boundary: int) -> list[str]:
        last = entry_key(boundary)
        keys = []
        async for info in self._store.list(ENTRIES):
            if info.key > last:
                break
            keys.append(info.key)
        return keys
