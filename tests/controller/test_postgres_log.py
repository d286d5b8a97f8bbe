"""The engine in PostgreSQL, on a real server: the contract, faults of server and network, servers that lost the end."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

import controller.postgres_log as log_module
import controller.postgres_tables as tables_module
from controller.entries import CorruptMetadata, decode_entry, hash_of
from controller.metadata_log import BelowBoundary, MetadataLog
from controller.postgres_log import EndLost, PostgresLog
from controller.postgres_tables import Doubt, PostgresTables, TablesError, schema_of
from controller.postgres_uri import check_uri
from controller.state import ClusterState
from storage.object_store import Denied, OutcomeUnknown, StoreError, Unavailable
from tests.controller import golden
from tests.controller.builders import CLUSTER
from tests.controller.log_contract import HASH, LogContract
from tests.support.disturbed_link import NONE, DisturbedLink, Trouble
from tests.support.postgres_server import PASSWORD, USER, PostgresServer

T = TypeVar("T")

CLUSTERS = (f"{number:022d}" for number in itertools.count(1))


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as made:
        yield made


class Cluster:
    """A new cluster's log on a server; `log(who)` is one process's view of it."""

    def __init__(self, server: PostgresServer, cluster_id: str = "") -> None:
        self.server = server
        self.cluster_id = cluster_id or next(CLUSTERS)
        self.schema = schema_of(self.cluster_id)
        self._open: list[PostgresTables] = []

    def tables(self, *, server: PostgresServer | None = None, port: int | None = None) -> PostgresTables:
        made = PostgresTables((server or self.server).uri(port=port), self.cluster_id)
        self._open.append(made)
        return made

    def log(
        self, who: str = "broker 1", *, server: PostgresServer | None = None, port: int | None = None
    ) -> PostgresLog:
        return PostgresLog(self.tables(server=server, port=port), self.cluster_id, who)

    async def close(self) -> None:
        for one in self._open:
            await one.close()


@asynccontextmanager
async def new_cluster(server: PostgresServer, *, create: bool = True) -> AsyncIterator[Cluster]:
    made = Cluster(server)
    try:
        if create:
            await made.tables().create()
        yield made
    finally:
        await made.close()


@pytest.fixture
async def cluster(server: PostgresServer) -> AsyncIterator[Cluster]:
    async with new_cluster(server) as made:
        yield made


async def write(log: PostgresLog, first: int, last: int, words: str = "entry") -> None:
    """Entries as a controller appends and applies them."""
    for position in range(first, last + 1):
        data = f"{words} {position}".encode()
        assert await until_known(lambda: log.append(position, data)) == data  # noqa: B023
        log.applied(position, hash_of(data))


async def until_known(attempt: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await attempt()
        except EndLost:
            raise
        except (Unavailable, OutcomeUnknown):
            await asyncio.sleep(0.02)


class TestPostgresLog(LogContract):
    @pytest.fixture
    def logs(self, cluster: Cluster) -> tuple[MetadataLog, MetadataLog]:
        return cluster.log("broker 1"), cluster.log("broker 2")


# Faults of the network


async def test_an_append_whose_answer_is_cut_off_ends_known(server: PostgresServer, cluster: Cluster) -> None:
    async with DisturbedLink("127.0.0.1", server.port) as proxy:
        log = cluster.log(port=proxy.port)
        await write(log, 1, 2)
        await proxy.set(Trouble(swallow_answer_to=b"mine 3"))
        with pytest.raises(OutcomeUnknown, match="connection was lost while it wrote"):
            await log.append(3, b"mine 3")
        assert await cluster.log("broker 2").append(3, b"theirs") == b"mine 3", "it was applied"
        assert await log.append(3, b"mine 3") == b"mine 3", "the same bytes again: won"
        assert await log.read_from(1, 9) == [b"entry 1", b"entry 2", b"mine 3"]


async def test_an_append_that_does_not_arrive_can_be_lost_to_another(server: PostgresServer, cluster: Cluster) -> None:
    async with DisturbedLink("127.0.0.1", server.port) as proxy:
        log = cluster.log(port=proxy.port)
        await write(log, 1, 1)
        await proxy.set(Trouble(hold_up=True))
        pending = asyncio.ensure_future(log.append(2, b"mine"))  # noqa: TID251
        await asyncio.sleep(0.05)
        proxy.reset()
        with pytest.raises(OutcomeUnknown):
            await pending
        await proxy.set(NONE)
        assert await cluster.log("broker 2").append(2, b"theirs") == b"theirs"
        assert await log.append(2, b"mine") == b"theirs"


async def test_a_lost_packet_holds_a_call_no_longer_than_its_attempt_may_take(
    server: PostgresServer, cluster: Cluster
) -> None:
    """A lease ends before the longest call does: a new connection is tried long before."""
    async with DisturbedLink("127.0.0.1", server.port) as proxy:
        tables = PostgresTables(server.uri(port=proxy.port), cluster.cluster_id, attempt_ms=200)
        log = PostgresLog(tables, cluster.cluster_id, "broker 1")
        try:
            assert await log.append(1, b"one") == b"one"
            await proxy.set(Trouble(hold_down=True))
            with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.2 s"):
                await log.append(2, b"two")
            for _ in range(2):  # longer each time: now they are connections that are not answered
                with pytest.raises(Unavailable):
                    await log.read_from(1, 1)
            await proxy.set(NONE)
            assert await log.append(2, b"two") == b"two"
            await proxy.set(Trouble(hold_down=True))
            with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.2 s"):
                await log.append(3, b"three")
        finally:
            await log.close()


async def test_a_server_that_hangs_fails_every_call_in_time(
    server: PostgresServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "CALL_S", 0.2)
    monkeypatch.setattr(tables_module, "BULK_S", 0.2)
    monkeypatch.setattr(tables_module, "CONNECT_S", 0.2)
    async with DisturbedLink("127.0.0.1", server.port) as proxy:
        log = cluster.log(port=proxy.port)
        await write(log, 1, 3)
        await log.write_snapshot(3, HASH, [b"state"])
        await proxy.set(Trouble(hold_down=True))
        with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.2 s"):
            await log.append(4, b"four")
        for call in (
            lambda: log.append(4, b"four"),
            lambda: log.read_from(1, 1),
            lambda: log.newest_snapshot(),
            lambda: log.write_snapshot(3, HASH, [b"state"]),
            lambda: log.advance_boundary(1),
            lambda: log.trim(),
        ):
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await call()
        await proxy.set(NONE)
        assert await until_known(lambda: log.append(4, b"four")) == b"four"
        assert await log.read_from(3, 9) == [b"entry 3", b"four"]


async def test_connections_are_few_and_made_again(server: PostgresServer, cluster: Cluster) -> None:
    async with DisturbedLink("127.0.0.1", server.port) as proxy:
        log = cluster.log(port=proxy.port)
        await write(log, 1, 3)
        calls = [log.read_from(1, 3) for _ in range(20)]
        assert await asyncio.gather(*calls) == [[b"entry 1", b"entry 2", b"entry 3"]] * 20
        await log.write_snapshot(3, HASH, [b"state"])
        await log.trim()
        assert proxy.connections == 3
        proxy.reset()
        await write(log, 4, 5)
        assert proxy.connections == 5


async def test_nobody_listens() -> None:
    log = PostgresLog(PostgresTables("postgresql://x@127.0.0.1:1/db", "c"), "c", "broker 1")
    with pytest.raises(Unavailable, match=r"PostgreSQL at 127\.0\.0\.1:1 was not reached"):
        await log.read_from(1, 1)


# Faults of the server


async def test_a_server_killed_in_the_middle_of_writes_loses_and_doubles_nothing() -> None:
    with PostgresServer() as server:
        async with new_cluster(server) as cluster:
            log = cluster.log()

            async def kill() -> None:
                for _ in range(2):
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                stopped.set()

            stopped = asyncio.Event()
            position = 0
            async with asyncio.TaskGroup() as group:
                group.create_task(kill())
                while not stopped.is_set():
                    position += 1
                    await write(log, position, position)
            expected = [b"entry %d" % number for number in range(1, position + 1)]
            assert position > 5 and await cluster.log("broker 2").read_from(1, position + 10) == expected


async def test_a_transaction_of_the_dead_blocks_nobody_for_long(
    server: PostgresServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that somebody inserted and did not commit: whoever wants the position waits, up to the lock time-out."""
    monkeypatch.setattr(tables_module, "CALL_S", 0.4)
    holder = await server.connect()
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(f"INSERT INTO {cluster.schema}.entry VALUES (1, '', 'theirs')")
        log = cluster.log()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await log.append(1, b"mine")
        await transaction.rollback()
        assert await until_known(lambda: log.append(1, b"mine")) == b"mine"
    finally:
        await holder.close()


async def test_an_administrator_who_ends_connections_is_an_outage_of_a_moment(
    server: PostgresServer, cluster: Cluster
) -> None:
    log = cluster.log()
    await write(log, 1, 3)
    await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidelog'")
    await write(log, 4, 6)
    assert len(await log.read_from(1, 9)) == 6


async def test_a_server_that_only_reads_is_waited_for(server: PostgresServer, cluster: Cluster) -> None:
    log = cluster.log()
    await write(log, 1, 1)
    await server.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        while await server.value("SHOW default_transaction_read_only") != "on":  # a reload takes its time
            await asyncio.sleep(0.02)
        await server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidelog'"
        )
        fresh = cluster.log("broker 2")
        for one in (log, fresh):
            for _ in range(50):
                with pytest.raises((Unavailable, OutcomeUnknown)) as refused:
                    await one.append(2, b"two")
                if "standby or read-only" in str(refused.value):
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError(refused.value)
    finally:
        await server.execute(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )
    assert await until_known(lambda: log.append(2, b"two")) == b"two"


# What a paused writer cannot break


async def test_a_paused_writer_below_the_boundary_is_told(cluster: Cluster) -> None:
    log, paused = cluster.log(), cluster.log("broker 2")
    await write(log, 1, 10)
    await log.write_snapshot(10, HASH, [b"state"])
    await log.advance_boundary(8)
    await log.trim()
    paused.applied(4, hash_of(b"entry 4"))
    with pytest.raises(BelowBoundary):
        await paused.append(5, b"late")
    with pytest.raises(BelowBoundary):
        await paused.read_from(5, 10)
    assert await cluster.log("broker 3").read_from(9, 10) == [b"entry 9", b"entry 10"]
    assert await log.trim() == 0, "nothing was left there"


# Servers that are not to be trusted


async def test_settings_that_lose_what_was_acknowledged_are_refused() -> None:
    for setting, words in (
        ({"fsync": "off"}, "runs with fsync=off"),
        ({"synchronous_commit": "off"}, "runs with synchronous_commit=off"),
        ({"synchronous_commit": "local"}, "runs with synchronous_commit=local"),
    ):
        with PostgresServer(setting) as server:
            async with new_cluster(server, create=False) as cluster:
                with pytest.raises(TablesError, match=words):
                    await cluster.tables().create()


async def test_a_password_that_is_wrong_a_user_who_may_not_a_database_that_is_not_there(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(uri: str) -> None:
        tables = PostgresTables(uri, "c")
        try:
            await tables.create()
        finally:
            await tables.close()

    await server.execute("CREATE ROLE weak LOGIN PASSWORD 'weak'")
    with pytest.raises(Denied, match=r"nowhere.*check user, password, database"):
        await create(server.uri().replace("/postgres", "/nowhere"))
    with pytest.raises(StoreError, match=r"refuses|not reached"):
        await create(server.uri(sslmode="require"))
    monkeypatch.setenv("PGPASSWORD", "weak")
    with pytest.raises(Denied, match="password authentication failed"):
        await create(server.uri())
    with pytest.raises(Denied, match="permission denied for database"):
        await create(server.uri().replace(USER, "weak"))


async def test_a_user_without_special_rights_is_enough(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'", "GRANT CREATE ON DATABASE postgres TO plain")
    monkeypatch.setenv("PGPASSWORD", "plain")
    tables = PostgresTables(server.uri().replace(USER, "plain"), "p" * 22)
    try:
        await tables.create()
        log = PostgresLog(tables, "p" * 22, "broker 1")
        await write(log, 1, 3)
        await log.write_snapshot(3, HASH, [b"state"])
        await log.advance_boundary(1)
        assert await log.trim() == 1
    finally:
        await tables.close()


async def test_the_password_may_come_from_a_file(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    path = tmp_path / "pgpass"
    path.touch(mode=0o600)
    path.write_text(f"127.0.0.1:{server.port}:*:{USER}:{PASSWORD}\n")
    tables = PostgresTables(server.uri(passfile=str(path)), "f" * 22)
    try:
        assert not await tables.exists()
    finally:
        await tables.close()


async def test_tables_of_another_cluster_or_a_newer_version(server: PostgresServer, cluster: Cluster) -> None:
    await cluster.tables().create()  # a second time: nothing happens
    log = cluster.log()
    await write(log, 1, 1)
    await server.execute(f"UPDATE {cluster.schema}.cluster SET version = 2")
    with pytest.raises(TablesError, match=r"of version 2, this version of tidelog reads 1: upgrade"):
        await cluster.log().read_from(1, 1)
    await server.execute(f"UPDATE {cluster.schema}.cluster SET version = 1, cluster_id = 'other'")
    with pytest.raises(TablesError, match="belongs to cluster other, this is cluster"):
        await cluster.log().append(2, b"x")
    await server.execute(f"DELETE FROM {cluster.schema}.cluster")
    with pytest.raises(TablesError, match="belongs to nobody"):
        await cluster.log().read_from(1, 1)
    await server.execute(f"DROP SCHEMA {cluster.schema} CASCADE")
    with pytest.raises(TablesError, match="does not hold this cluster's tables"):
        await log.read_from(1, 1)
    with pytest.raises(TablesError, match="does not hold this cluster's tables"):
        await log.append(2, b"x")


async def test_damaged_snapshots_are_named(server: PostgresServer, cluster: Cluster) -> None:
    log = cluster.log()
    await log.write_snapshot(3, HASH, [b"state"])
    await server.execute(f"UPDATE {cluster.schema}.snapshot_part SET body = set_byte(body, 20, 0)")
    with pytest.raises(CorruptMetadata):
        await log.newest_snapshot()
    await server.execute(f"DELETE FROM {cluster.schema}.snapshot_part")
    with pytest.raises(Unavailable, match="look again"):
        await log.newest_snapshot()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket", "is either empty or postgresql://"),
        ("postgresql://user:secret@host/db", "holds a password"),
        ("postgresql://user@host/db?password=secret", "holds a password"),
        ("postgresql://user@host", "names no database"),
    ],
)
def test_uris_that_cannot_be_used(uri: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        check_uri(uri)
    assert "secret" not in str(refused.value)


async def test_tables_of_the_first_version_are_read_for_ever(server: PostgresServer) -> None:
    cluster = Cluster(server, CLUSTER)
    await server.execute((golden.FILES / "postgres-1.sql").read_text())
    tables, log = cluster.tables(), cluster.log()
    try:
        page = await tables.read(12, 5)
        assert (page.trusted, page.boundary, page.before) == ("7/1", 11, None)
        assert [decode_entry(data) for data in page.entries] == [golden.entry()]
        assert await tables.doubts() == [Doubt("broker 2", 12, hash_of(page.entries[0]))]
        with pytest.raises(EndLost, match="no broker that knows the end"):
            await log.newest_snapshot()
        await tables.accept()
        snapshot = await log.newest_snapshot()
        assert snapshot is not None and ClusterState.decode(bytes(snapshot.state)) == golden.cluster().state
        assert await log.append(13, b"next") == b"next"
        assert await log.read_from(12, 9) == [*page.entries, b"next"]
    finally:
        await cluster.close()
        await server.execute(f"DROP SCHEMA {cluster.schema} CASCADE")


# Failover


async def promoted(primary: PostgresServer, standby: PostgresServer) -> None:
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.promote)


async def caught_up(primary: PostgresServer, standby: PostgresServer) -> None:
    wanted = await primary.value("SELECT pg_current_wal_lsn()::text")
    while not await standby.value("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", wanted):
        await asyncio.sleep(0.02)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who did not write the last entry waits for nobody before it vouches."""
    monkeypatch.setattr(log_module, "PATIENCE_S", 0)


async def test_who_wrote_the_last_entry_vouches_at_once_and_others_after_a_while(
    server: PostgresServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = cluster.log(), cluster.log("broker 2")
    await write(log, 1, 3)
    other.applied(3, hash_of(b"entry 3"))
    for trusted, patience_s in (("another/1", 1000), ("another/2", 0.2)):
        monkeypatch.setattr(log_module, "PATIENCE_S", patience_s)
        await server.execute(f"UPDATE {cluster.schema}.cluster SET server = '{trusted}'")
        with pytest.raises(EndLost, match="others look whether it has all they know"):
            await other.read_from(4, 1)
        if patience_s > 1:
            assert await log.read_from(4, 1) == []
            assert await other.read_from(4, 1) == []
    deadline = asyncio.get_running_loop().time() + 10
    while asyncio.get_running_loop().time() < deadline:
        try:
            assert await other.read_from(4, 1) == []
            break
        except EndLost:
            await asyncio.sleep(0.02)
    assert await cluster.log("broker 3").read_from(3, 9) == [b"entry 3"]


@pytest.mark.usefixtures("no_patience")
async def test_a_standby_that_has_everything_takes_over() -> None:
    with PostgresServer() as primary:
        async with new_cluster(primary) as cluster:
            first, second = cluster.log("broker 1"), cluster.log("broker 2")
            await write(first, 1, 5)
            with PostgresServer(standby_of=primary) as standby:
                with pytest.raises(Unavailable, match="primary"):
                    await cluster.log(server=standby).read_from(1, 1)
                await caught_up(primary, standby)
                await promoted(primary, standby)
                fresh, second = cluster.log("broker 3", server=standby), cluster.log("broker 2", server=standby)
                with pytest.raises(EndLost, match="no broker that knows the end"):
                    await fresh.read_from(1, 1)
                with pytest.raises(EndLost, match="no broker that knows the end"):
                    await fresh.newest_snapshot()
                second.applied(5, hash_of(b"entry 5"))
                assert await second.read_from(6, 1) == []
                assert len(await fresh.read_from(1, 9)) == 5, "somebody who knows the end has vouched"
                await write(second, 6, 8)


@pytest.mark.usefixtures("no_patience")
async def test_a_standby_that_lost_the_end_is_refused_by_everybody_until_an_operator_decides() -> None:
    with PostgresServer() as primary:
        async with new_cluster(primary) as cluster:
            first = cluster.log("broker 1")
            await write(first, 1, 5)
            with PostgresServer(standby_of=primary) as standby:
                await caught_up(primary, standby)
                standby.settings = standby.settings | {"primary_conninfo": ""}
                await asyncio.to_thread(standby.restart)
                await write(first, 6, 8)
                await promoted(primary, standby)

                first = cluster.log("broker 1", server=standby)
                first.applied(8, hash_of(b"entry 8"))
                behind = cluster.log("broker 2", server=standby)
                behind.applied(4, hash_of(b"entry 4"))
                fresh = cluster.log("broker 3", server=standby)
                lost = "broker 1 applied entry 8 of the metadata log, and PostgreSQL does not hold it"
                for call in (
                    lambda: first.append(9, b"nine"),
                    lambda: first.read_from(9, 1),
                    lambda: first.newest_snapshot(),
                    lambda: first.write_snapshot(8, HASH, [b"state"]),
                    lambda: first.advance_boundary(1),
                    lambda: first.trim(),
                ):
                    with pytest.raises(EndLost, match=lost):
                        await call()
                assert await behind.read_from(5, 9) == [b"entry 5"], "what it knows is there"
                behind.applied(5, hash_of(b"entry 5"))
                with pytest.raises(EndLost, match=lost):
                    await behind.append(6, b"another history")
                with pytest.raises(EndLost, match=lost):
                    await fresh.append(6, b"another history")

                await cluster.tables(server=standby).accept()
                await write(behind, 6, 9, "another history")
                with pytest.raises(EndLost, match=lost):
                    await first.read_from(9, 1)
                await write(behind, 10, 10, "another history")


async def test_another_entry_in_the_place_of_ours_is_no_better_than_none(
    server: PostgresServer, cluster: Cluster
) -> None:
    """The tables brought back from a backup, on the same server."""
    log = cluster.log()
    await write(log, 1, 5)
    await server.execute(f"DELETE FROM {cluster.schema}.entry WHERE position > 3")
    other = cluster.log("broker 2")
    other.applied(3, hash_of(b"entry 3"))
    await write(other, 4, 6, "another history")
    with pytest.raises(EndLost, match="broker 1 applied entry 5"):
        await log.append(6, b"entry 6")
    with pytest.raises(EndLost, match="broker 1 applied entry 5"):
        await log.read_from(2, 9)
    with pytest.raises(EndLost, match="broker 1 applied entry 5"):
        await other.append(7, b"x")


async def test_the_right_server_is_believed_again(server: PostgresServer, cluster: Cluster) -> None:
    log, other = cluster.log(), cluster.log("broker 2")
    await write(log, 1, 5)
    other.applied(5, hash_of(b"entry 5"))
    await server.execute(
        f"CREATE TABLE {cluster.schema}.kept AS TABLE {cluster.schema}.entry",
        f"DELETE FROM {cluster.schema}.entry WHERE position > 3",
    )
    for one in (log, other):
        with pytest.raises(EndLost):
            await one.read_from(6, 1)
    await server.execute(
        f"INSERT INTO {cluster.schema}.entry TABLE {cluster.schema}.kept ON CONFLICT DO NOTHING",
        f"DROP TABLE {cluster.schema}.kept",
    )
    await until_known(lambda: log.read_from(6, 1))
    await write(log, 6, 7)
    assert await other.read_from(6, 9) == [b"entry 6", b"entry 7"]


@pytest.mark.usefixtures("no_patience")
async def test_an_entry_that_the_standby_does_not_have_is_not_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronous replication, the standby away: PostgreSQL holds the commit back; a cancelled wait is no success."""
    monkeypatch.setattr(tables_module, "CALL_S", 0.5)
    with PostgresServer() as primary:
        async with new_cluster(primary) as cluster:
            log = cluster.log()
            await write(log, 1, 2)
            with PostgresServer(standby_of=primary) as standby:
                await primary.execute(
                    "ALTER SYSTEM SET synchronous_standby_names = 'standby'", "SELECT pg_reload_conf()"
                )
                await caught_up(primary, standby)
                await write(log, 3, 4)
                await asyncio.to_thread(standby.kill)
                with pytest.raises(OutcomeUnknown, match="no answer"):
                    await log.append(5, b"entry 5")
                assert len(await cluster.log("broker 2").read_from(1, 9)) == 4, "nobody sees it before it is durable"
                cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                await primary.execute("SET synchronous_commit = local", cancel)
                with pytest.raises(OutcomeUnknown):
                    await log.append(5, b"entry 5")
                await asyncio.to_thread(standby.start)
                await write(log, 5, 6)
                await caught_up(primary, standby)
                await promoted(primary, standby)
                after = cluster.log(server=standby)
                after.applied(6, hash_of(b"entry 6"))
                assert len(await after.read_from(1, 9)) == 6
