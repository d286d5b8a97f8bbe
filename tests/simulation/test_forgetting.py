"""Worlds whose controllers forget every closed incarnation as soon as they may."""

from __future__ import annotations

import pytest

from controller import collector, state
from controller.facts import ClosedForgotten
from controller.state import ClusterState
from tests.simulation.cluster import Options, World

SEEDS = range(10)
SEARCHED_MS = 400


def test_forgetting_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: set[int] = set()

    def counted(applying: ClusterState, fact: ClosedForgotten) -> None:
        forgotten.update(fact.incarnations)
        ClusterState._closed_forgotten(applying, fact)

    monkeypatch.setattr(collector, "CLOSED_KEPT", 0)
    monkeypatch.setitem(state._APPLY, ClosedForgotten, counted)
    for seed in SEEDS:
        result = World(seed, Options(settings={"tidelog.orphan.check.interval.ms": str(SEARCHED_MS)})).run()
        assert not result.findings, f"seed {seed}: {result.findings[:3]}"
    assert len(forgotten) >= len(SEEDS)
