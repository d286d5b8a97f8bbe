"""Leadership that moves about in simulated worlds: they run clean, and every planted bug of moves is caught."""

import pytest

from tests.simulation.cluster import Options, World
from tests.simulation.plants import MOVE_PLANTS

SEEDS = 20


def test_worlds_in_which_leadership_moves_about_run_clean() -> None:
    reassigned = 0
    for seed in range(4):
        result = World(seed, Options(brokers=3, faults_s=8, faults={}, moves=1.0)).run()
        assert not result.findings, (seed, result.findings)
        reassigned += result.counters.get("mover.reassign.answer", 0)
    assert reassigned > 20


@pytest.mark.parametrize("name", MOVE_PLANTS)
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant = MOVE_PLANTS[name]
    for seed in range(plant.first, plant.first + SEEDS):
        with plant.planted():
            findings = World(seed, plant.options).run().findings
        if findings and not World(seed, plant.options).run().findings:
            with capsys.disabled():
                print(f"\n{name}: caught by seed {seed}: {findings[0].splitlines()[0]}", end="")
            return
    pytest.fail(f"{name} survives {SEEDS} seeds")
