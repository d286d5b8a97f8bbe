"""The tables of a metadata log in PostgreSQL as `controller.describe` reads them."""

from collections.abc import AsyncIterator

from controller.entries import hash_of
from controller.postgres_tables import PostgresTables


class PostgresBytes:
    """A `LogBytes`. Reads what is there, whoever is trusted; never modifies."""

    def __init__(self, tables: PostgresTables, cluster_id: str) -> None:
        self._tables = tables
        self._cluster_id = cluster_id

    async def boundary(self) -> tuple[int, str]:
        """See `LogBytes`. The tables were found to be this cluster's when the connection was made."""
        return (await self._tables.read(1, 0)).boundary, self._cluster_id

    async def snapshots(self) -> AsyncIterator[tuple[str, bytes]]:
        """See `LogBytes`."""
        for position in await self._tables.snapshots():
            parts = await self._tables.read_snapshot(position)
            if parts is not None:
                yield f"snapshot {position}", b"".join(parts)

    async def entries(self) -> AsyncIterator[tuple[int, str, bytes]]:
        """See `LogBytes`."""
        last = 0
        while rows := await self._tables.scan(last):
            for last, digest, body in rows:
                name = f"entry {last}" if digest == hash_of(body) else f"entry {last} (its hash does not match)"
                yield last, name, body

    async def notes(self) -> list[str]:
        """See `LogBytes`: which server is trusted, and who doubts."""
        page = await self._tables.read(1, 0)
        lines = [f"server       {page.server}" + ("" if page.server == page.trusted else f", trusted: {page.trusted}")]
        return lines + [f"doubt        {one.who} applied entry {one.position}" for one in await self._tables.doubts()]
