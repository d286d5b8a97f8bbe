"""A lost broker is replaced, and a partition moved, within their bounds, with default settings and in virtual time.

`availability.py` makes the worlds, and measures many more when it is run by itself.
"""

from __future__ import annotations

import pytest

from tests.simulation.availability import WORLDS, measure, percentile, told

BOUND_S = {"fail-over": 10.0, "moves": 1.0}
SHARE = {"fail-over": 0.99, "moves": 1.0}
"""How many of all times are within the bound."""
SEEDS = {"fail-over": 24, "moves": 10}


@pytest.mark.parametrize("kind", WORLDS)
def test_partitions_are_back_in_time(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    what, _, _ = kind.partition(",")
    took: list[float] = []
    for seed in range(SEEDS[what]):
        measured = measure(kind, seed)
        assert measured.findings == [], f"{kind}, seed {seed}"
        took += measured.took_s
    with capsys.disabled():
        print(f"\n{kind}: {told(took)}", end="")
    assert len(took) >= SEEDS[what]
    assert percentile(took, SHARE[what]) < BOUND_S[what], sorted(took)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (100.0, 198.0, 200.0)
    assert percentile([3.0], 0.5) == 3.0
