"""Three broker processes with their metadata log in PostgreSQL, under load: brokers and server are killed in turn."""

from pathlib import Path

import pytest

from tests.broker.test_cluster import Run, three
from tests.support.postgres_server import PostgresServer


@pytest.mark.timeout(180)
def test_brokers_and_the_server_are_killed_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PostgresServer() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        with three(tmp_path, one_machine=True, tidelog_metadata=server.uri()) as nodes:
            run = Run(nodes, 300)
            nodes[1].kill()
            run.go_on()
            server.kill()
            run.go_on()
            server.start()
            nodes[1].start()
            server.restart()
            run.finish()
    assert list((tmp_path / "wal").iterdir()) == []
    assert not (tmp_path / "bucket" / "meta").exists()
