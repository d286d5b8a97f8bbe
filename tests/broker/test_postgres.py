"""Whole brokers with their metadata log in PostgreSQL: started, killed, restarted; what is refused; PostgreSQL away."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import controller.postgres_tables as tables_module
from broker.bucket import CannotStart
from broker.cli import main
from controller.cluster_file import KEY
from tests.support.node_runs import NodeRuns, hurry
from tests.support.postgres_server import PASSWORD, PostgresServer
from tests.support.raw_client import batch_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as made:
        yield made


async def test_killed_restarted_stopped(server: PostgresServer, tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, tidelog_metadata=server.uri()) as runs:
        await runs.start()
        await runs.create("t")
        assert await runs.produce("t", *[batch_of(b"v") for _ in range(5)]) == [0, 1, 2, 3, 4]
        await runs.kill()
        await runs.start()
        assert await runs.offsets("t") == (0, 5)
        assert await runs.produce("t", batch_of(b"w")) == [5]
        assert await runs.stop() == 0
        keys = [info.key async for info in runs.memory.list("")]
        assert not [key for key in keys if key.startswith("meta/")], "nothing of the log is in the bucket"
        assert json.loads((await runs.memory.get(KEY)).data) == {
            "cluster_id": runs.broker.cluster_id,
            "format": 2,
            "metadata": "postgresql",
        }
        await runs.start()
        assert await runs.offsets("t") == (0, 6)
        assert await runs.stop() == 0


async def test_two_clusters_share_a_database_and_nothing_else(server: PostgresServer, tmp_path: Path) -> None:
    async with (
        NodeRuns(tmp_path / "a", tidelog_metadata=server.uri()) as one,
        NodeRuns(tmp_path / "b", tidelog_metadata=server.uri()) as other,
    ):
        for runs in (one, other):
            await runs.start()
        await one.create("t")
        assert "t" in one.broker.controller.state.topics and not other.broker.controller.state.topics
        assert one.broker.cluster_id != other.broker.cluster_id


async def cannot_start(runs: NodeRuns) -> str:
    with pytest.raises(CannotStart) as refused:
        runs.spawn()
        await runs.ended()
    return str(refused.value)


async def test_a_log_stays_where_it_is(server: PostgresServer, tmp_path: Path) -> None:
    async with NodeRuns(tmp_path / "a") as bucket, NodeRuns(tmp_path / "b", tidelog_metadata=server.uri()) as tables:
        for runs in (bucket, tables):
            await runs.start()
            assert await runs.stop() == 0
        bucket.overrides["tidelog.metadata"] = server.uri()
        assert "is in its bucket and does not move: remove tidelog.metadata" in await cannot_start(bucket)
        tables.overrides["tidelog.metadata"] = ""
        assert "is in PostgreSQL: set tidelog.metadata" in await cannot_start(tables)
        tables.overrides["tidelog.metadata"] = server.uri().replace("/postgres", "/template1")
        assert "holds no metadata log of cluster" in await cannot_start(tables)
        tables.overrides["tidelog.metadata"] = server.uri().replace("/postgres", "/nowhere")
        assert 'database "nowhere" does not exist' in await cannot_start(tables)


async def test_without_postgresql_a_start_waits_and_a_broker_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the object store's absence allows: the volume's own fence lets producers go on, commands wait."""
    monkeypatch.setattr(tables_module, "CALL_S", 0.5)
    with PostgresServer() as server:
        async with NodeRuns(
            tmp_path,
            tidelog_metadata=server.uri(),
            tidelog_session_timeout_ms=900,
            tidelog_controller_lease_ms=600,
        ) as runs:
            server.stop()
            starting = runs.spawn()
            while "waiting for" not in caplog.text:
                await asyncio.sleep(0.01)
            assert not starting.done()
            await asyncio.to_thread(server.start)
            assert await starting
            await runs.create("t")
            await runs.produce("t", batch_of(b"a"))

            await asyncio.to_thread(server.kill)
            while runs.broker.controller.reachable or runs.broker.session.stands(runs.broker.clock.boottime_ms()):
                await asyncio.sleep(0.01)
            assert await runs.produce("t", *[batch_of(b"island") for _ in range(5)]) == [1, 2, 3, 4, 5]
            await asyncio.to_thread(server.start)
            while not runs.broker.session.stands(runs.broker.clock.boottime_ms()):
                await asyncio.sleep(0.01)
            await runs.create("u")
            assert await runs.stop() == 0


async def test_a_lost_end_stops_a_broker_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables_module, "CALL_S", 0.5)
    with PostgresServer() as server:
        async with NodeRuns(
            tmp_path,
            tidelog_storage=f"file:{tmp_path}/bucket",
            tidelog_metadata=server.uri(),
            tidelog_session_timeout_ms=900,
            tidelog_controller_lease_ms=600,
        ) as runs:
            runs.wrap = None
            await runs.start()
            await runs.create("t")
            schema = f'"tidelog_{runs.broker.cluster_id}"'
            newest = f"SELECT max(position) FROM {schema}.entry"
            await server.execute(f"DELETE FROM {schema}.entry WHERE position = ({newest})")
            while not await server.value(f"SELECT count(*) FROM {schema}.doubt"):
                await asyncio.sleep(0.01)
            while runs.broker.controller.reachable:
                await asyncio.sleep(0.01)
            before = await server.value(newest)
            assert await runs.produce("t", batch_of(b"a")) == [0], "an island: its WAL has a fence of its own"
            assert await server.value(newest) == before
            await runs.kill()

            words = ["cluster", "accept-server", f"file:{tmp_path}/bucket", "--metadata", server.uri()]
            assert await asyncio.to_thread(main, words) == 1
            told = capsys.readouterr()
            assert "broker 1 applied entry" in told.out and "--accept-loss" in told.err
            assert await asyncio.to_thread(main, [*words, "--accept-loss"]) == 0
            await runs.start()
            assert await runs.stop() == 0


async def test_inspecting_it(server: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with NodeRuns(tmp_path, tidelog_storage=f"file:{tmp_path}/bucket", tidelog_metadata=server.uri()) as runs:
        runs.wrap = None
        await runs.start()
        await runs.create("t", 3)
        assert await runs.stop() == 0
        inspect = ["inspect", "metadata", f"file:{tmp_path}/bucket"]
        assert await asyncio.to_thread(main, inspect) == 1
        assert "is in PostgreSQL: say --metadata postgresql://" in capsys.readouterr().err
        inspect += ["--metadata", server.uri()]
        assert await asyncio.to_thread(main, inspect) == 0
        out = capsys.readouterr().out
        assert "1 topics, 3 partitions" in out and "boundary 0" in out
        schema = f'"tidelog_{runs.broker.cluster_id}"'
        await server.execute(f"UPDATE {schema}.entry SET body = set_byte(body, 30, 0) WHERE position = 3")
        assert await asyncio.to_thread(main, inspect) == 1
        assert "PROBLEM: entry 3 (its hash does not match): CorruptMetadata" in capsys.readouterr().out
