"""`tidelog cluster format`: a broker of an earlier level, upgraded, its cluster raised, and the older one refused."""

import asyncio
import json
from pathlib import Path

import pytest

import broker.http.port
from broker.cli import main
from controller import facts
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of


@pytest.mark.parametrize("before", range(1, facts.FORMAT_LEVEL))
async def test_from_a_level_to_the_present_one_and_not_back(
    before: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch)
    now = facts.FORMAT_LEVEL
    monkeypatch.setattr(broker.http.port, "LATER_S", 0)

    async def level(*words: str) -> str:
        http = "http://{}:{}".format(*runs.broker.http_address or ())
        assert await asyncio.to_thread(main, ["cluster", "format", *words, "--http", http]) == 0
        return capsys.readouterr().out

    async with NodeRuns(tmp_path, tidelog_http_listener="127.0.0.1:0") as runs:
        with monkeypatch.context() as older:
            older.setattr(facts, "FORMAT_LEVEL", before)
            await runs.start()
            await runs.create("t")
            await runs.produce("t", batch_of(b"v"))
            assert f"format level {before}, the highest that every live broker understands" in await level()
            assert f"format level {before}" in await level("--raise")
            assert await runs.stop() == 0
        await runs.start()
        said = f"format level {before}; every live broker understands {now}: `tidelog cluster format --raise`"
        assert said in await level()
        assert await runs.stop() == 0
        with monkeypatch.context() as older:
            older.setattr(facts, "FORMAT_LEVEL", before)
            await runs.start()  # the way back, as long as nobody raised it
            await runs.produce("t", batch_of(b"w"))
            assert await runs.stop() == 0
        await runs.start()
        found = json.loads(await level("--raise", "--format", "json"))
        assert found == {"level": now, "possible": now, "brokers": [{"node_id": 1, "alive": True, "understands": now}]}
        assert await runs.offsets("t") == (0, 2)
        assert await runs.stop() == 0
        with monkeypatch.context() as older:
            older.setattr(facts, "FORMAT_LEVEL", before)
            runs.spawn()
            assert await runs.ended() == 1
        assert f"the cluster was raised to format level {now}, this version knows {before}: upgrade" in caplog.text
        assert [path.name for path in runs.instances()] == [], "nothing was left behind"
