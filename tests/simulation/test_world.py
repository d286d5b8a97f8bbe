"""Whole worlds: every seed runs clean, and a seed is one run whatever the interpreter's hash seed is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.simulation.cluster import Options, World
from tests.simulation.many import Ran, Wanted, run_all

SEEDS = int(os.environ.get("TIDELOG_SEEDS", "300"))
BATCH = 10
HASHED = 30
ROOT = Path(__file__).parents[2]


class Runs:
    """Every seed is run once, by as many processes as there are CPUs."""

    def __init__(self) -> None:
        self._coming = run_all(Wanted(Options(bank=None), digest=True), range(SEEDS), os.cpu_count() or 1)
        self._came: list[Ran] = []

    def batch(self, first: int, count: int) -> list[Ran]:
        """What came of `count` seeds."""
        self._came += islice(self._coming, max(0, first + count - len(self._came)))
        return self._came[first : first + count]

    def close(self) -> None:
        self._coming.close()


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_worlds_run_clean(runs: Runs, first: int) -> None:
    found = {ran.seed: ran.findings for ran in runs.batch(first, BATCH) if ran.findings}
    told = "\n".join(f"seed {seed}: {finding}" for seed, findings in found.items() for finding in findings[:5])
    assert not found, f"{told}\nreplay: python -m tests.simulation --seed {next(iter(found))} --history"


def test_a_world_without_faults_makes_progress() -> None:
    result = World(1, Options(brokers=1, faults={}, faults_s=10)).run()
    assert not result.findings
    assert result.counters["produce.ok"] > 100 and result.counters["poll.ok"] > 100
    assert result.counters["commit.ok"] > 10 and result.counters["final.read"] == 3
    assert "produce.unknown" not in result.counters and "produce.refused" not in result.counters


def test_one_position_of_the_metadata_log_has_one_entry() -> None:
    world = World(0)
    for who, entry in (("b1", b"one"), ("b2", b"one"), ("b3", b"other")):
        world.applied(who, 7, entry, [])
    assert [finding.partition(" ")[2] for finding in world.findings] == [
        "b3 and b1 applied different entries at position 7"
    ]


@pytest.mark.timeout(600)
def test_a_seed_is_one_run_under_every_hash_seed(runs: Runs) -> None:
    """In this interpreter twice, and in others."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", f"0-{HASHED - 1}", "--digest"]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    elsewhere = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    here = runs.batch(0, HASHED)
    assert "".join(f"{ran.seed} {ran.digest}\n" for ran in here) == elsewhere
    result, again = (World(0, Options(bank=None)).run() for _ in range(2))
    assert result.digest == here[0].digest
    first, second = (list(map(str, one.history)) for one in (result, again))
    assert [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]][:1] == []
    assert first == second
