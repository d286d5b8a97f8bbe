"""Every planted bug is caught within a bounded number of seeds, in worlds that run clean without it."""

import pytest

from tests.simulation.cluster import World
from tests.simulation.plants import CLUSTER_PLANTS, PLANTS

SEEDS = 40


@pytest.mark.parametrize("name", [*PLANTS, *CLUSTER_PLANTS])
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant = (PLANTS | CLUSTER_PLANTS)[name]
    for seed in range(plant.first, plant.first + SEEDS):
        with plant.planted():
            findings = World(seed, plant.options).run().findings
        if findings and not World(seed, plant.options).run().findings:
            with capsys.disabled():
                print(f"\n{name}: caught by seed {seed}: {findings[0].splitlines()[0]}", end="")
            return
    pytest.fail(f"{name} survives {SEEDS} seeds")
