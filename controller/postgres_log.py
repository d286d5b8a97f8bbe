"""The metadata log in PostgreSQL: an entry is a row, inserted if its position is free.

A database can lose its end: a standby that was not synchronous is promoted, a backup is restored. Then positions that
somebody acted on come again with other facts. So this engine holds what the process applied last against what the
server has, with every entry that it writes or reads: if the entry is missing, or another one is there, the process goes
no further, and writes down its doubt, which stops everybody from writing. Another server, or another timeline of the
same, is trusted only when somebody who knows an end of the log found it there, or an operator says so.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence

from controller.entries import CorruptMetadata, SnapshotHead, frame_snapshot, hash_of, unframe_snapshot
from controller.metadata_log import BelowBoundary, Snapshot
from controller.postgres_tables import Doubt, Page, Tables
from storage.object_store import OutcomeUnknown, Unavailable

PART_BYTES = 4 << 20
SNAPSHOTS_KEPT = 2
PATIENCE_S = 8
"""Longer than anybody who follows the log takes from one attempt to the next: the longest pause, a slow connection."""

_log = logging.getLogger(__name__)


class EndLost(Unavailable):
    """The server does not hold what was applied, or nobody vouches that it does. Nothing is read or written meanwhile;
    the message says what an operator can do.
    """


class PostgresLog:
    """A `MetadataLog`. `who` names this process to others and to operators."""

    def __init__(self, tables: Tables, cluster_id: str, who: str) -> None:
        self._tables = tables
        self._cluster_id = cluster_id
        self._who = who
        self._applied = 0
        self._applied_hash = b""
        self._doubts = False
        self._written = 0
        self._strange = ""
        self._strange_since = 0.0

    def applied(self, position: int, entry_hash: bytes) -> None:
        """As the port says."""
        self._applied, self._applied_hash = position, entry_hash

    async def append(self, position: int, entry: bytes) -> bytes:
        """As the port says. One attempt, and a look."""
        digest = hash_of(entry)
        previous = self._applied_hash if self._applied == position - 1 and self._applied else None
        inserted = await self._tables.insert_entry(position, entry, digest, previous)
        page = await self._page(position, 1)
        if not page.entries and not inserted:
            await self._refuse_doubted()
            raise OutcomeUnknown(f"entry {position} was refused, and nothing stands against it now: again")
        if not page.entries:
            raise OutcomeUnknown(f"entry {position} was written and is not there: look again")
        (held,) = page.entries
        if held == entry:
            self._written = position
            if not inserted:
                await self._tables.flush()  # an attempt whose answer was lost may not be on the standby yet
        return held

    async def read_from(self, position: int, limit: int) -> list[bytes]:
        """As the port says."""
        return (await self._page(position, limit)).entries

    async def _page(self, position: int, limit: int) -> Page:
        """Entries that may be believed. `BelowBoundary`, `EndLost`."""
        page = await self._tables.read(position, limit)
        if position <= page.boundary:
            self._check_server(page)
            raise BelowBoundary(f"entry {position} is at or below the boundary {page.boundary}")
        known = self._applied > page.boundary
        if known and self._applied == position - 1:
            await self._check_end(page.before)
        elif known:
            await self._check_end((await self._tables.read(self._applied + 1, 0)).before)
        if page.server != page.trusted:
            if not known:
                self._check_server(page)
            self._give_others_time(page.server)
            await self._trust(page)
        return page

    async def _check_end(self, found: bytes | None) -> None:
        """`found`: the hash of the entry that was applied last, as the server has it."""
        if found == self._applied_hash:
            if self._doubts:
                await self._tables.settle()
                self._doubts = False
            return
        if not self._doubts:
            await self._tables.doubt(Doubt(self._who, self._applied, self._applied_hash))
            self._doubts = True
            _log.critical("the end of the metadata log was lost: %s", self._lost(self._who, self._applied))
        raise EndLost(self._lost(self._who, self._applied))

    @staticmethod
    def _lost(who: str, position: int) -> str:
        return (
            f"{who} applied entry {position} of the metadata log, and PostgreSQL does not hold it: bring back the "
            "server that does, or accept the loss (`tidelog cluster accept-server`) and restart the brokers"
        )

    def _check_server(self, page: Page) -> None:
        """A process that knows no end of the log believes only a server that somebody vouched for."""
        if page.server != page.trusted:
            raise EndLost(
                f"PostgreSQL was failed over or replaced (it is {page.server}, {page.trusted} was trusted), and no "
                "broker that knows the end of the metadata log has found it there yet; if none is left, an operator "
                "says so with `tidelog cluster accept-server`"
            )

    def _give_others_time(self, server: str) -> None:
        """Who wrote the last entry that he knows can vouch at once. Others may know less than somebody who is about to
        say that his end is missing.
        """
        if self._written == self._applied:
            return
        now = asyncio.get_running_loop().time()
        if self._strange != server:
            self._strange, self._strange_since = server, now
        if now < self._strange_since + PATIENCE_S:
            raise EndLost(
                f"PostgreSQL was failed over or replaced ({server}): others look whether it has all they know"
            )

    async def _trust(self, page: Page) -> None:
        if await self._tables.trust(page.trusted, page.server):
            _log.warning(
                "PostgreSQL was failed over or replaced (%s, before %s); entry %d, the last one applied here, is there",
                page.server,
                page.trusted,
                self._applied,
            )

    async def _refuse_doubted(self) -> None:
        """Somebody else applied what this server does not hold: nobody writes until that is settled."""
        for doubt in await self._tables.settle():
            raise EndLost(self._lost(doubt.who, doubt.position))

    async def newest_snapshot(self) -> Snapshot | None:
        """As the port says."""
        await self._head()
        positions = await self._tables.snapshots()
        if not positions:
            return None
        parts = await self._tables.read_snapshot(positions[-1])
        if parts is None:
            raise Unavailable(f"snapshot {positions[-1]} was replaced by a newer one meanwhile: look again")
        head, state = unframe_snapshot(b"".join(parts))
        if head.cluster_id != self._cluster_id or head.position != positions[-1]:
            raise CorruptMetadata(f"snapshot {positions[-1]} is that of {head.cluster_id} at {head.position}")
        return Snapshot(head.position, head.entry_hash, state)

    async def _head(self) -> Page:
        """What `_page` checks, without entries."""
        try:
            return await self._page(self._applied + 1, 0)
        except BelowBoundary:
            return await self._tables.read(self._applied + 1, 0)

    async def write_snapshot(self, position: int, entry_hash: bytes, state: Sequence[bytes]) -> None:
        """As the port says. Whoever was first at a position wrote the same state."""
        await self._head()
        head = SnapshotHead(self._cluster_id, position, entry_hash)
        try:
            await self._tables.write_snapshot(position, list(_parts(frame_snapshot(head, state))))
        except OutcomeUnknown:
            pass  # what counts is what can be read
        parts = await self._tables.read_snapshot(position)
        if parts is None:
            raise OutcomeUnknown(f"snapshot {position} was written and is not there")
        if unframe_snapshot(b"".join(parts))[0] != head:
            raise CorruptMetadata(f"snapshot {position} is not the one that was written")
        await self._tables.flush()

    async def advance_boundary(self, position: int) -> int:
        """As the port says."""
        await self._head()
        return await self._tables.raise_boundary(position)

    async def boundary(self) -> int:
        """The boundary; 0 if nothing was ever trimmed."""
        return (await self._head()).boundary

    async def trim(self) -> int:
        """As the port says."""
        await self._head()
        deleted = 0
        while count := await self._tables.delete_entries():
            deleted += count
        for position in (await self._tables.snapshots())[:-SNAPSHOTS_KEPT]:
            await self._tables.delete_snapshot(position)
            deleted += 1
        return deleted

    async def close(self) -> None:
        """Closes the connections."""
        await self._tables.close()


def _parts(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces joined to a few MiB each."""
    found: list[bytes] = []
    size = 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            yield b"".join(found)
            found, size = [], 0
    if found:
        yield b"".join(found)
