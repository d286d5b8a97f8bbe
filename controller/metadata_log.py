"""The port to the metadata log: where entries are kept, one per position, for ever the same.

Engines: `object_log.py` (the object store; default), `postgres_log.py`. What every engine keeps, and the contract suite
checks:

- Of all writers of position N exactly one wins; what it wrote never changes.
- `append` knows: won, lost to these bytes, or an error. After an error the only ways on are the *same bytes* at the
same position again, or to drop all memory and replay.
- Entries at or below the *boundary* may be gone, and what is found there may be a paused writer's late one. So whoever
  created or read an entry looks at the boundary afterwards; `BelowBoundary` means: load the newest snapshot.
- The boundary is durable before anything is deleted, and there is a verified snapshot above it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

KEEP_ENTRIES = 1_000
"""How far the boundary stays behind a snapshot, so that followers need not reload."""


class BelowBoundary(Exception):
    """The position lies at or below the boundary: forget what was read there, load the newest snapshot."""


class Snapshot(NamedTuple):
    """A verified snapshot: the state after entry `position`, whose hash is `entry_hash`, as `ClusterState.encode`
    gave it.
    """

    position: int
    entry_hash: bytes
    state: memoryview


class MetadataLog(Protocol):
    """All methods but `applied` may raise `storage.object_store.StoreError` (or one of its kinds): try again later."""

    def applied(self, position: int, entry_hash: bytes) -> None:
        """This process acts on entries 1 to `position`: an engine whose medium can lose its end holds it to that."""
        ...

    async def append(self, position: int, entry: bytes) -> bytes:
        """Makes `entry` the entry at `position`, if nobody else did: returns the bytes that the position now holds.

        Equal to `entry`: won (entries carry a nonce). Others: lost; apply those, decide again. `BelowBoundary`. After a
        `StoreError` the outcome is unknown, see above.
        """
        ...

    async def read_from(self, position: int, limit: int) -> list[bytes]:
        """Entries from `position` on, in order, at most `limit`. None: `position` is the end. `BelowBoundary`."""
        ...

    async def newest_snapshot(self) -> Snapshot | None:
        """None if there is none. `entries.CorruptMetadata` if it is damaged."""
        ...

    async def write_snapshot(self, position: int, entry_hash: bytes, state: Sequence[bytes]) -> None:
        """Stores the encoded state after entry `position`, reads it back and compares."""
        ...

    async def advance_boundary(self, position: int) -> int:
        """Moves the boundary up to `position` (never back); returns the boundary. A snapshot above it must exist."""
        ...

    async def trim(self) -> int:
        """Deletes entries at or below the boundary and old snapshots; returns how many objects."""
        ...

    async def close(self) -> None:
        """Gives back what the engine holds of its own."""
        ...
