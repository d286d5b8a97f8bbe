"""Worlds in which nearly every merged object is stored part by part."""

from __future__ import annotations

import pytest

import broker.outputs
from tests.simulation.cluster import Options, World
from tests.simulation.store import SimulatedUpload

SEEDS = range(6)


def test_outputs_in_parts_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    created = 0
    create = SimulatedUpload.create

    async def counted(upload: SimulatedUpload) -> str:
        nonlocal created
        created += 1
        return await create(upload)

    monkeypatch.setattr(broker.outputs, "UPLOAD_PART_BYTES", 3_000)
    monkeypatch.setattr(SimulatedUpload, "create", counted)
    for seed in SEEDS:
        result = World(seed, Options(settings={"tidelog.merge.enable": "true"})).run()
        assert not result.findings, f"seed {seed}: {result.findings[:3]}"
    assert created >= 20
