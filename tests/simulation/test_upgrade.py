"""Simulated clusters that the version before began: upgraded broker by broker under faults, then raised."""

from tests.simulation.cluster import Options, World
from tests.simulation.faults import kinds_for
from tests.simulation.upgrade import NEWEST

SEEDS = 4
STILL = {"pause", "long_pause", "suspend", "pause_controller", "zombie", "hang_and_crash"}
"""A broker that stands still while it is told to stop leaves only when it goes on, long after the faults perhaps."""


def test_worlds_that_are_upgraded_run_clean() -> None:
    kinds = {kind: weight for kind, weight in kinds_for(3).items() if kind not in STILL}
    raised = 0
    for seed in range(SEEDS):
        world = World(seed, Options(brokers=3, faults=kinds, upgrade=True))
        result = world.run()
        assert not result.findings, (seed, result.findings)
        raised += world.upgrade.level == NEWEST
    assert raised >= SEEDS // 2
