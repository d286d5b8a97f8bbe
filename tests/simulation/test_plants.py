"""Every planted bug is caught within a bounded number of seeds, in worlds that run clean without it."""

import pytest

from tests.simulation.cluster import Options, World
from tests.simulation.faults import KINDS
from tests.simulation.plants import FOCUS, PLANTS

SEEDS = 40


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(faults=FOCUS.get(name, dict(KINDS)), faults_s=12)
    for seed in range(SEEDS):
        with PLANTS[name]():
            findings = World(seed, options).run().findings
        if findings and not World(seed, options).run().findings:
            with capsys.disabled():
                print(f"\n{name}: caught after {seed + 1} seeds: {findings[0].splitlines()[0]}", end="")
            return
    pytest.fail(f"{name} survives {SEEDS} seeds")
