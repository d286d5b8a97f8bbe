"""Whole worlds: every seed runs clean, and a seed is one run whatever the interpreter's hash seed is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.cluster import Options, World

SEEDS = 300
BATCH = 10
HASHED = 30
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_worlds_run_clean(first: int) -> None:
    found = {}
    for seed in range(first, first + BATCH):
        result = World(seed).run()
        if result.findings:
            found[seed] = result.findings
    told = "\n".join(f"seed {seed}: {finding}" for seed, findings in found.items() for finding in findings[:5])
    assert not found, f"{told}\nreplay: python -m tests.simulation --seed {next(iter(found))} --history"


def test_a_world_without_faults_makes_progress() -> None:
    result = World(1, Options(brokers=1, faults={}, faults_s=10)).run()
    assert not result.findings
    assert result.counters["produce.ok"] > 100 and result.counters["poll.ok"] > 100
    assert result.counters["commit.ok"] > 10 and result.counters["final.read"] == 3
    assert "produce.unknown" not in result.counters and "produce.refused" not in result.counters


def test_a_seed_is_one_run_under_every_hash_seed() -> None:
    """In this interpreter twice, and in another one."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", f"0-{HASHED - 1}", "--digest"]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    elsewhere = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "".join(f"{seed} {World(seed).run().digest}\n" for seed in range(HASHED)) == elsewhere
    first, again = (list(map(str, World(0).run().history)) for _ in range(2))
    assert [pair for pair in zip(first, again, strict=False) if pair[0] != pair[1]][:1] == []
    assert first == again
