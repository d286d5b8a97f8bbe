"""Every planted bug is caught within a bounded number of seeds, in worlds that run clean without it."""

import pytest

from tests.simulation.cluster import Options, World
from tests.simulation.faults import KINDS
from tests.simulation.plants import FOCUS, PLANTS

SEEDS = 40
FIRST = {"torn_tail_taken_for_damage": 12, "group_rewrite_forgets": 4, "wal_trimmed_before_the_commit": 3}
"""Where the search begins: from seed 0 these would cost many worlds each time."""


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(faults=FOCUS.get(name, dict(KINDS)), faults_s=12)
    first = FIRST.get(name, 0)
    for seed in range(first, first + SEEDS):
        with PLANTS[name]():
            findings = World(seed, options).run().findings
        if findings and not World(seed, options).run().findings:
            with capsys.disabled():
                print(f"\n{name}: caught by seed {seed}: {findings[0].splitlines()[0]}", end="")
            return
    pytest.fail(f"{name} survives {SEEDS} seeds")
