"""What a broker counts of itself: every value can be read in every phase, and means what its help says."""

import asyncio
import math
import shutil
from pathlib import Path

import pytest

from broker.metrics import Metrics
from protocol.errors import ErrorCode
from tests.support.faulty_store import FaultyStore, Mishap
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import batch_of
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def read(metrics: Metrics) -> dict[str, float]:
    """Values of the metrics without labels; histograms by their number of observations."""
    values: dict[str, float] = {}
    for family in metrics.read():
        assert family.name.startswith("tidelog_") and family.help.endswith("."), family
        if family.histogram is not None:
            values[family.name] = sum(family.histogram.values())
        for sample in family.samples:
            assert math.isfinite(sample.value), family
            if not sample.labels:
                values[family.name] = sample.value
    return values


async def test_the_first_metrics_are_there_before_anything_else(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path) as runs:
        store = FaultyStore(runs.memory, lambda _: Mishap.UNAVAILABLE)
        runs.wrap = lambda _: store
        serving = runs.spawn()
        await until(lambda: len(store.calls) > 2)
        values = read(runs.broker.metrics)
        assert values["tidelog_ready"] == 0 and values["tidelog_memory_peak_bytes"] > 1 << 20
        assert await runs.stop() == 1 and not await serving


async def test_values_follow_what_happens(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path) as runs:
        stores: list[FaultyStore] = []

        def wrap(memory: object) -> FaultyStore:
            stores.append(FaultyStore(runs.memory))
            return stores[-1]

        runs.wrap = wrap
        run = await runs.start()
        before = read(run.metrics)
        assert before["tidelog_ready"] == before["tidelog_controller"] == before["tidelog_metadata_reachable"] == 1
        assert before["tidelog_wal_file_error"] == before["tidelog_store_away"] == before["tidelog_wal_missing"] == 0
        await runs.create("t", 3)
        await runs.produce("t", batch_of(bytes(1000)), batch_of(b"x"))
        held = read(run.metrics)
        assert held["tidelog_batches_in"] == held["tidelog_wal_appended"] == held["tidelog_wal_validated"] == 2
        assert held["tidelog_topics"] == 1 and held["tidelog_partitions"] == held["tidelog_logs"] == 3
        assert held["tidelog_produce_seconds"] == 2 and held["tidelog_wal_write_seconds"] == held["tidelog_wal_groups"]
        assert 1500 < held["tidelog_tail_bytes"] < 2500 and held["tidelog_tail_kept_bytes"] == 0
        assert 0 < held["tidelog_recovery_seconds"] < 1
        assert held["tidelog_connections_opened"] == 2 and held["tidelog_wal_bytes"] > 1000
        stores[-1].plan = lambda name: Mishap.UNAVAILABLE if name == "put_if_absent" else Mishap.NONE
        log = run.logs.find["t", 0]
        sealing = asyncio.ensure_future(run.sealing.commit_through(log, 2))  # noqa: TID251
        await until(lambda: read(run.metrics)["tidelog_store_away"])
        flying = read(run.metrics)
        assert flying["tidelog_seals"] == flying["tidelog_seals_in_flight"] == 1
        assert flying["tidelog_unsealed_logs"] == flying["tidelog_objects_put"] == 0
        stores[-1].plan = lambda name: Mishap.NONE
        await sealing
        await until(lambda: not read(run.metrics)["tidelog_seals_in_flight"])
        sealed = read(run.metrics)
        assert sealed["tidelog_store_away"] == 0
        assert sealed["tidelog_objects_put"] == 1 and sealed["tidelog_upload_retries"] > 0
        assert sealed["tidelog_tail_kept_bytes"] == sealed["tidelog_tail_bytes"]
        assert sealed["tidelog_recovery_seconds"] == 0
        async with runs.client() as client:
            assert (await client.fetch("t", 99)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        (errors,) = [family for family in run.metrics.read() if family.name == "tidelog_errors"]
        assert [(sample.labels, sample.value) for sample in errors.samples] == [
            ((("error", "OFFSET_OUT_OF_RANGE"),), 1)
        ]
        assert await runs.stop() == 0
        assert read(run.metrics)["tidelog_ready"] == 0


async def test_a_lost_wal_and_what_waits_for_it(tmp_path: Path) -> None:
    async with NodeRuns(tmp_path, tidelog_session_timeout_ms=300, tidelog_controller_lease_ms=200) as runs:
        await runs.start()
        await runs.create("t")
        await runs.produce("t", batch_of(b"x"))
        await runs.kill()
        (gone,) = runs.instances()
        shutil.rmtree(gone)
        run = await runs.start()
        assert read(run.metrics)["tidelog_wal_missing"] == 1
        await run.recovery.declare_lost(bytes.fromhex(gone.name), host_is_destroyed=True)
        assert read(run.metrics)["tidelog_wal_missing"] == 0
