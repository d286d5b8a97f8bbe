"""Worlds in which leadership moves about run clean."""

from tests.simulation.cluster import Options, World


def test_worlds_in_which_leadership_moves_about_run_clean() -> None:
    reassigned = 0
    for seed in range(4):
        result = World(seed, Options(brokers=3, faults_s=8, faults={}, moves=1.0)).run()
        assert not result.findings, (seed, result.findings)
        reassigned += result.counters.get("mover.reassign.answer", 0)
    assert reassigned > 20
