"""Every planted bug is caught within a bounded number of seeds, in worlds that run clean without it."""

import pytest

from tests.simulation.plants import CLUSTER_PLANTS, MOVE_PLANTS, PLANTS

SEEDS = 40


@pytest.mark.parametrize("name", [*PLANTS, *CLUSTER_PLANTS, *MOVE_PLANTS])
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    caught = (PLANTS | CLUSTER_PLANTS | MOVE_PLANTS)[name].caught_by(SEEDS)
    assert caught is not None, f"{name} survives {SEEDS} seeds"
    with capsys.disabled():
        print(f"\n{name}: caught by seed {caught[0]}: {caught[1]}", end="")
