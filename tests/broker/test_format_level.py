"""`tidelog cluster format`: a broker that knows level 1, upgraded, its cluster raised, and the older one refused."""

import asyncio
import json
from pathlib import Path

import pytest

import broker.node
from broker.cli import main
from controller import facts
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of


async def test_from_level_1_to_2_and_not_back(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(broker.node, "HTTP_LATER_S", 0)

    async def level(*words: str) -> str:
        http = "http://{}:{}".format(*runs.broker.http_address or ())
        assert await asyncio.to_thread(main, ["cluster", "format", *words, "--http", http]) == 0
        return capsys.readouterr().out

    async with NodeRuns(tmp_path, tidelog_http_listener="127.0.0.1:0") as runs:
        with monkeypatch.context() as older:
            older.setattr(facts, "FORMAT_LEVEL", 1)
            await runs.start()
            await runs.create("t")
            await runs.produce("t", batch_of(b"v"))
            assert "format level 1, the highest that every live broker understands" in await level()
            assert "format level 1" in await level("--raise")
            assert await runs.stop() == 0
        await runs.start()
        assert "format level 1; every live broker understands 2: `tidelog cluster format --raise`" in await level()
        assert await runs.stop() == 0
        with monkeypatch.context() as older:
            older.setattr(facts, "FORMAT_LEVEL", 1)
            await runs.start()  # the way back, as long as nobody raised it
            await runs.produce("t", batch_of(b"w"))
            assert await runs.stop() == 0
        await runs.start()
        found = json.loads(await level("--raise", "--format", "json"))
        assert found == {"level": 2, "possible": 2, "brokers": [{"node_id": 1, "alive": True, "understands": 2}]}
        assert await runs.offsets("t") == (0, 2)
        assert await runs.stop() == 0
        with monkeypatch.context() as older:
            older.setattr(facts, "FORMAT_LEVEL", 1)
            runs.spawn()
            assert await runs.ended() == 1
        assert "the cluster was raised to format level 2, this version knows 1: upgrade" in caplog.text
        assert [path.name for path in runs.instances()] == [], "nothing was left behind"
