"""The tables of a metadata log in PostgreSQL: one statement or transaction per method, nothing decided here.

One schema per cluster, named by its id. `entry` holds position, hash and bytes of each entry; `snapshot` and
`snapshot_part` the snapshots, in parts; `doubt` who applied an entry that the server does not hold; `cluster`, one row,
whose log it is, the version of these tables, the boundary, and the server that is known to hold the whole log.

At most three connections: one that writes entries, one that reads, one for snapshots and trimming, so that none waits
for a slower one. A connection that fails is dropped and made again by the next call. A call that takes too long ends by
closing its connection, never by a cancel request: PostgreSQL answers that, while it waits for a synchronous standby,
with a commit that the standby does not have.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

from controller.postgres_uri import address, options
from storage.object_store import Denied, OutcomeUnknown, StoreError, Unavailable

VERSION = 1
CONNECT_S = 5
CLOSE_S = 1
CALL_S = 5
BULK_S = 60
READ_STEP = 64
DELETES_AT_ONCE = 1_000
READ_ONLY = "25006"
"""The SQLSTATE of a primary that became a standby: another connection may find the new primary."""

SERVER = (
    "(SELECT system_identifier FROM pg_control_system()) || '/' ||"
    " ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
)
"""Which server this is, and the timeline that it writes: both change only when another one takes its place."""

CREATE = (
    "CREATE TABLE {schema}.cluster (one boolean PRIMARY KEY DEFAULT true CHECK (one), cluster_id text NOT NULL,"
    " version int NOT NULL, server text NOT NULL, boundary bigint NOT NULL DEFAULT 0, touched timestamptz)",
    "CREATE TABLE {schema}.entry (position bigint PRIMARY KEY CHECK (position > 0), hash bytea NOT NULL,"
    " body bytea NOT NULL)",
    "CREATE TABLE {schema}.snapshot (position bigint PRIMARY KEY CHECK (position > 0), parts int NOT NULL)",
    "CREATE TABLE {schema}.snapshot_part (position bigint NOT NULL, part int NOT NULL, body bytea NOT NULL,"
    " PRIMARY KEY (position, part))",
    "CREATE TABLE {schema}.doubt (who text PRIMARY KEY, position bigint NOT NULL, hash bytea NOT NULL)",
    "ALTER TABLE {schema}.entry ALTER body SET STORAGE EXTERNAL",
    "ALTER TABLE {schema}.snapshot_part ALTER body SET STORAGE EXTERNAL",
)

Connect = Callable[..., Awaitable[Any]]


class Doubt(NamedTuple):
    """`who` applied entry `position` with this hash, and did not find it on the server."""

    who: str
    position: int
    entry_hash: bytes


class Page(NamedTuple):
    """Entries as one snapshot of the database shows them.

    `server` is the one that answers, `trusted` the one that is known to hold the whole log. `before` is the hash of the
    entry before the first asked position, None if it is not there. `entries` are consecutive from that position on.
    """

    server: str
    trusted: str
    boundary: int
    before: bytes | None
    entries: list[bytes]


class Tables(Protocol):
    """What `PostgresLog` needs. Every method may raise `StoreError`; `OutcomeUnknown`: the write may have happened."""

    async def insert_entry(self, position: int, entry: bytes, entry_hash: bytes, previous: bytes | None) -> bool:
        """Inserts the entry; False: refused, and nothing changed.

        Refused if the position is taken or not above the boundary, if `previous` is not None and not the hash of the
        entry before it (unless that is the boundary, and may be gone), if anybody doubts, or if the server is not the
        trusted one.
        """
        ...

    async def read(self, position: int, limit: int) -> Page:
        """Up to `limit` entries from `position` on."""
        ...

    async def flush(self) -> None:
        """Returns when everything that this server has committed is as durable as a commit of now."""
        ...

    async def trust(self, old: str, new: str) -> bool:
        """Makes `new` the trusted server, if `old` is that still; whether it did."""
        ...

    async def doubt(self, doubt: Doubt) -> None:
        """Writes it down, in place of what `who` doubted before."""
        ...

    async def settle(self) -> list[Doubt]:
        """Forgets doubts about entries that are there after all; returns the others."""
        ...

    async def raise_boundary(self, position: int) -> int:
        """Moves the boundary up to `position`, never back; returns it."""
        ...

    async def snapshots(self) -> list[int]:
        """Positions of the snapshots, in order."""
        ...

    async def write_snapshot(self, position: int, parts: Sequence[bytes]) -> None:
        """Stores it whole, unless one is there."""
        ...

    async def read_snapshot(self, position: int) -> list[bytes] | None:
        """Its parts; None if it is gone."""
        ...

    async def delete_entries(self) -> int:
        """Deletes some entries at or below the boundary; how many."""
        ...

    async def delete_snapshot(self, position: int) -> None:
        """Deletes it whole."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class TablesError(Denied):
    """The database is not one that this process may use; the message says why and what to do."""


def schema_of(cluster_id: str) -> str:
    """The quoted name of a cluster's schema."""
    return '"tidelog_' + cluster_id.replace('"', "") + '"'


class _Lane:
    """One connection at a time, made when it is needed, given to one caller at a time.

    A call is given up after `attempt_s`, the next one after twice that time, and so on up to `call_s`, until one is
    answered: whoever waits for a lost packet is better off with a new connection, and a slow server gets its time.
    """

    def __init__(
        self, tables: "PostgresTables", call_s: float, attempt_s: float | None = None, *, writes_entries: bool = False
    ) -> None:
        self._tables = tables
        self._call_s = call_s
        self._attempt_s = call_s if attempt_s is None else attempt_s
        self._late = 0
        self._writes_entries = writes_entries
        self._turn = asyncio.Lock()
        self._connection: Any = None
        self._server = ""

    @asynccontextmanager
    async def __call__(self, *, writes: bool) -> AsyncIterator["_Session"]:
        async with self._turn:
            limit_s = min(self._call_s, self._attempt_s * (1 + self._late))
            if self._connection is None or self._connection.is_closed():
                try:
                    async with asyncio.timeout(min(limit_s, CONNECT_S)):
                        found = await self._tables.connect(self._call_s, self._writes_entries)
                    self._connection, self._server = found
                except Exception as error:
                    self._late += isinstance(error, TimeoutError)
                    raise translated(error, self._tables.where, connected=False, writes=False) from error
            connection, loop = self._connection, asyncio.get_running_loop()
            session = _Session(connection, self._server)
            connection.add_log_listener(session.heard)
            timer = loop.call_later(limit_s, session.give_up)
            try:
                yield session
                self._late = 0
                if session.warning:
                    raise OutcomeUnknown(f"{self._tables.where} warned: {session.warning}")
            except BaseException as error:
                if not _of_server(error) or connection.is_closed() or connection.is_in_transaction():
                    self.drop()
                if isinstance(error, StoreError) or not isinstance(error, Exception):
                    raise
                if session.late:
                    self._late += 1
                    error = TimeoutError(f"no answer within {limit_s:g} s")
                raise translated(error, self._tables.where, connected=True, writes=writes) from error
            finally:
                timer.cancel()
                connection.remove_log_listener(session.heard)

    async def close(self) -> None:
        """Says good-bye to the server, if it listens."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=CLOSE_S)
            except Exception:  # whatever it is: nobody needs the connection any more
                connection.terminate()

    def drop(self) -> None:
        """The next caller gets a new connection."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None


class _Session:
    """A connection for one call. `server` is what answered when it was made; `warning` what the server said beside;
    `late`: it took too long.
    """

    def __init__(self, connection: Any, server: str) -> None:
        self.connection = connection
        self.server = server
        self.warning = ""
        self.late = False

    def give_up(self) -> None:
        """Ends the call."""
        self.late = True
        self.connection.terminate()

    def heard(self, _: Any, message: Any) -> None:
        """A standby that was not waited for is told in a warning, and the call succeeds."""
        if message.severity == "WARNING":
            self.warning = message.message


class PostgresTables:
    """`Tables` in a real server, through asyncpg."""

    def __init__(
        self, uri: str, cluster_id: str, *, connect: Connect | None = None, attempt_ms: int | None = None
    ) -> None:
        """`uri`: see `postgres_uri`. `connect` None: asyncpg's. `attempt_ms`: how long the first attempt to write or
        read entries may take; None: as long as any.
        """
        attempt_s = None if attempt_ms is None else attempt_ms / 1000
        self._uri = uri
        self._cluster_id = cluster_id
        self._schema = schema_of(cluster_id)
        self._connect = connect
        self.where = f"PostgreSQL at {address(uri)}"
        self._write = _Lane(self, CALL_S, attempt_s, writes_entries=True)
        self._read = _Lane(self, CALL_S, attempt_s)
        self._bulk = _Lane(self, BULK_S)

    async def close(self) -> None:
        """See `Tables`."""
        await asyncio.gather(*[lane.close() for lane in (self._write, self._read, self._bulk)])

    # Connections

    async def connect(self, call_s: float, writes_entries: bool) -> tuple[Any, str]:
        """A connection to a server that may hold the log, and which server that is."""
        connection = await self._open(call_s, writes_entries)
        try:
            async with asyncio.timeout(CONNECT_S):
                return connection, await self._greet(connection)
        except BaseException:
            connection.terminate()
            raise

    async def _open(self, call_s: float, writes_entries: bool) -> Any:
        # What writes entries has no statement time-out: that would cancel the wait for a synchronous standby.
        timeout_ms = str(int(call_s * 1000))
        settings = {
            "application_name": "tidelog",
            "default_transaction_isolation": "read committed",
            "search_path": "pg_catalog",
            "statement_timeout": "0" if writes_entries else timeout_ms,
            "lock_timeout": timeout_ms,
            "idle_in_transaction_session_timeout": timeout_ms,
        }
        more = {} if "target_session_attrs" in options(self._uri) else {"target_session_attrs": "primary"}
        connect = self._connect or _asyncpg().connect
        return await connect(self._uri, timeout=CONNECT_S, server_settings=settings, **more)

    async def _greet(self, connection: Any) -> str:
        row = await connection.fetchrow(
            "SELECT current_setting('transaction_read_only') AS read_only,"
            " current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync,"
            f" CASE WHEN NOT pg_is_in_recovery() THEN {SERVER} END AS server,"
            " to_regclass($1) IS NOT NULL AS there",
            f"{self._schema}.cluster",
        )
        if row["server"] is None or row["read_only"] == "on":
            raise Unavailable(f"{self.where} is a standby or read-only: waiting for the primary")
        if row["fsync"] != "on":
            raise TablesError(f"{self.where} runs with fsync=off: it may lose what it acknowledged; set fsync=on")
        if row["synchronous_commit"] not in ("on", "remote_apply"):
            raise TablesError(
                f"{self.where} runs with synchronous_commit={row['synchronous_commit']} for this user: it may lose "
                "what it acknowledged; set synchronous_commit=on (or remote_apply)"
            )
        if row["there"]:
            await self._check_owner(connection)
        server: str = row["server"]
        return server

    async def _check_owner(self, connection: Any) -> None:
        row = await connection.fetchrow(f"SELECT cluster_id, version FROM {self._schema}.cluster")
        if row is None or row["cluster_id"] != self._cluster_id:
            found = "nobody" if row is None else f"cluster {row['cluster_id']}"
            raise TablesError(
                f"{self.where}: schema {self._schema} belongs to {found}, this is cluster {self._cluster_id}: point "
                "tidelog.metadata to its own database"
            )
        if row["version"] != VERSION:
            raise TablesError(
                f"{self.where}: the tables in {self._schema} are of version {row['version']}, this version of tidelog "
                f"reads {VERSION}: upgrade"
            )

    # The cluster

    async def create(self) -> None:
        """Makes the tables of a new cluster; nothing if they are there."""
        async with self._write(writes=True) as session, session.connection.transaction():
            await session.connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}")
            if await session.connection.fetchval("SELECT to_regclass($1)", f"{self._schema}.cluster") is None:
                for statement in CREATE:
                    await session.connection.execute(statement.format(schema=self._schema))
                await session.connection.execute(
                    f"INSERT INTO {self._schema}.cluster (cluster_id, version, server) VALUES ($1, $2, {SERVER})",
                    self._cluster_id,
                    VERSION,
                )

    async def exists(self) -> bool:
        """Whether the tables are there."""
        async with self._read(writes=False) as session:
            found = await session.connection.fetchval("SELECT to_regclass($1)", f"{self._schema}.cluster")
            return found is not None

    async def discard(self) -> None:
        """Drops the tables of a cluster that never was."""
        async with self._write(writes=True) as session:
            await session.connection.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE")

    # Entries

    async def insert_entry(self, position: int, entry: bytes, entry_hash: bytes, previous: bytes | None) -> bool:
        """See `Tables`."""
        query = (
            f"INSERT INTO {self._schema}.entry (position, hash, body)"
            f" SELECT $1::bigint, $2::bytea, $3::bytea FROM {self._schema}.cluster c"
            " WHERE c.server = $5::text AND $1 > c.boundary AND ($4::bytea IS NULL OR $1 - 1 = c.boundary"
            f" OR EXISTS (SELECT FROM {self._schema}.entry WHERE position = $1 - 1 AND hash = $4))"
            f" AND NOT EXISTS (SELECT FROM {self._schema}.doubt) ON CONFLICT DO NOTHING"
        )
        async with self._write(writes=True) as session:
            told = await session.connection.execute(query, position, entry_hash, entry, previous, session.server)
        return bool(told == "INSERT 0 1")

    async def read(self, position: int, limit: int) -> Page:
        """See `Tables`."""
        page = await self._read_step(position, min(limit, READ_STEP))
        while len(page.entries) % READ_STEP == 0 and 0 < len(page.entries) < limit:
            step = min(READ_STEP, limit - len(page.entries))
            more = await self._read_step(position + len(page.entries), step)
            if not more.entries:
                break
            page.entries.extend(more.entries)
            page = page._replace(boundary=more.boundary)
        return page

    async def _read_step(self, position: int, limit: int) -> Page:
        query = (
            "SELECT c.server, c.boundary, e.position, e.hash, CASE WHEN e.position >= $1 THEN e.body END AS body"
            f" FROM {self._schema}.cluster c LEFT JOIN {self._schema}.entry e"
            " ON e.position >= $1::bigint - 1 AND e.position < $1 + $2::bigint ORDER BY e.position"
        )
        async with self._read(writes=False) as session:
            rows = await session.connection.fetch(query, position, limit)
            server = session.server
        if not rows:
            raise TablesError(f"{self.where}: the row of the cluster is gone from {self._schema}: restore the database")
        before: bytes | None = None
        entries: list[bytes] = []
        for row in rows:
            if row["position"] == position - 1:
                before = row["hash"]
            elif row["position"] == position + len(entries):
                entries.append(row["body"])
        return Page(server, rows[0]["server"], rows[0]["boundary"], before, entries)

    async def scan(self, after: int) -> list[tuple[int, bytes, bytes]]:
        """Position, hash and bytes of some entries behind `after`, also of those that nobody reads any more."""
        query = f"SELECT position, hash, body FROM {self._schema}.entry WHERE position > $1 ORDER BY position LIMIT $2"
        async with self._read(writes=False) as session:
            return [tuple(row) for row in await session.connection.fetch(query, after, READ_STEP)]

    async def last_position(self) -> int:
        """The newest entry; 0: there is none."""
        async with self._read(writes=False) as session:
            found: int = await session.connection.fetchval(
                f"SELECT coalesce(max(position), 0) FROM {self._schema}.entry"
            )
        return found

    async def flush(self) -> None:
        """See `Tables`. A commit waits for everything that was written before it, on the standby too."""
        async with self._write(writes=True) as session:
            await session.connection.execute(f"UPDATE {self._schema}.cluster SET touched = now()")

    # What became of the server

    async def trust(self, old: str, new: str) -> bool:
        """See `Tables`."""
        async with self._write(writes=True) as session:
            told = await session.connection.execute(
                f"UPDATE {self._schema}.cluster SET server = $2 WHERE server = $1", old, new
            )
        return bool(told == "UPDATE 1")

    async def doubt(self, doubt: Doubt) -> None:
        """See `Tables`."""
        query = (
            f"INSERT INTO {self._schema}.doubt (who, position, hash) VALUES ($1, $2, $3)"
            " ON CONFLICT (who) DO UPDATE SET position = excluded.position, hash = excluded.hash"
        )
        async with self._write(writes=True) as session:
            await session.connection.execute(query, *doubt)

    async def settle(self) -> list[Doubt]:
        """See `Tables`."""
        query = (
            f"DELETE FROM {self._schema}.doubt d USING {self._schema}.entry e"
            " WHERE e.position = d.position AND e.hash = d.hash"
        )
        async with self._write(writes=True) as session:
            await session.connection.execute(query)
        return await self.doubts()

    async def doubts(self) -> list[Doubt]:
        """Who applied what the server does not hold."""
        async with self._read(writes=False) as session:
            rows = await session.connection.fetch(f"SELECT who, position, hash FROM {self._schema}.doubt ORDER BY who")
        return [Doubt(*row) for row in rows]

    async def accept(self) -> None:
        """An operator's word: this server is the right one, and what others applied and it does not hold is lost."""
        async with self._write(writes=True) as session, session.connection.transaction():
            await session.connection.execute(f"UPDATE {self._schema}.cluster SET server = {SERVER}")
            await session.connection.execute(f"DELETE FROM {self._schema}.doubt")

    # Boundary, snapshots, trimming

    async def raise_boundary(self, position: int) -> int:
        """See `Tables`."""
        query = f"UPDATE {self._schema}.cluster SET boundary = greatest(boundary, $1) RETURNING boundary"
        async with self._bulk(writes=True) as session:
            boundary: int = await session.connection.fetchval(query, position)
        return boundary

    async def snapshots(self) -> list[int]:
        """See `Tables`."""
        async with self._read(writes=False) as session:
            rows = await session.connection.fetch(f"SELECT position FROM {self._schema}.snapshot ORDER BY position")
        return [row["position"] for row in rows]

    async def write_snapshot(self, position: int, parts: Sequence[bytes]) -> None:
        """See `Tables`."""
        async with self._bulk(writes=True) as session, session.connection.transaction():
            told = await session.connection.execute(
                f"INSERT INTO {self._schema}.snapshot (position, parts) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                position,
                len(parts),
            )
            if told != "INSERT 0 1":
                return
            insert = f"INSERT INTO {self._schema}.snapshot_part (position, part, body) VALUES ($1, $2, $3)"
            for part, body in enumerate(parts):
                await session.connection.execute(insert, position, part, body)

    async def read_snapshot(self, position: int) -> list[bytes] | None:
        """See `Tables`."""
        query = f"SELECT body FROM {self._schema}.snapshot_part WHERE position = $1 AND part = $2"
        async with self._bulk(writes=False) as session:
            parts = await session.connection.fetchval(
                f"SELECT parts FROM {self._schema}.snapshot WHERE position = $1", position
            )
            if parts is None:
                return None
            found = [await session.connection.fetchval(query, position, part) for part in range(parts)]
        return None if any(part is None for part in found) else found

    async def delete_entries(self) -> int:
        """See `Tables`."""
        query = (
            f"DELETE FROM {self._schema}.entry WHERE position IN (SELECT position FROM {self._schema}.entry"
            f" WHERE position <= (SELECT boundary FROM {self._schema}.cluster) ORDER BY position LIMIT $1)"
        )
        async with self._bulk(writes=True) as session:
            told: str = await session.connection.execute(query, DELETES_AT_ONCE)
        return int(told.rpartition(" ")[2])

    async def delete_snapshot(self, position: int) -> None:
        """See `Tables`."""
        async with self._bulk(writes=True) as session, session.connection.transaction():
            await session.connection.execute(f"DELETE FROM {self._schema}.snapshot WHERE position = $1", position)
            await session.connection.execute(f"DELETE FROM {self._schema}.snapshot_part WHERE position = $1", position)


def translated(error: Exception, where: str, *, connected: bool, writes: bool) -> StoreError:
    """What went wrong in our words."""
    if isinstance(error, StoreError):
        return error
    what = str(error).strip() or type(error).__name__
    code = getattr(error, "sqlstate", None) or ""
    if code[:2] == "28" or code in ("42501", "3D000"):
        return TablesError(f"{where} refuses: {what}; check user, password, database and privileges")
    if code in ("42P01", "3F000"):
        return TablesError(f"{where} does not hold this cluster's tables: {what}; is it the right database?")
    if isinstance(error, ValueError):
        return TablesError(f"{where} cannot be asked: {what}; check tidelog.metadata")
    happened = "was not reached" if not connected else "failed"
    if writes and not _of_server(error):
        return OutcomeUnknown(f"{where}: the connection was lost while it wrote: {what}")
    return Unavailable(f"{where} {happened}: {what}")


def _of_server(error: BaseException) -> bool:
    """Whether the server itself refused the statement: then nothing of it happened, and the connection is good."""
    code = getattr(error, "sqlstate", None) or ""
    return bool(code) and code[:2] != "08" and code[:3] != "57P" and code not in ("XX000", READ_ONLY)


def _asyncpg() -> Any:
    import asyncpg  # only those who use it pay for loading it

    return asyncpg
