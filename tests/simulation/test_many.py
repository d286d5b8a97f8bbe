"""Seeds that several processes run come back in their order, and are the same runs."""

import pytest

from tests.simulation import many
from tests.simulation.cluster import Options


def test_processes_share_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "SEEDS_PER_PROCESS", 2)
    wanted = many.Wanted(Options(faults_s=3), plant=None, digest=True, history=True)
    apart, together = (list(many.run_all(wanted, range(3, 7), jobs)) for jobs in (2, 1))
    assert [ran.seed for ran in apart] == [3, 4, 5, 6]
    assert [ran._replace(cpu_s=0) for ran in apart] == [ran._replace(cpu_s=0) for ran in together]
    assert all(ran.digest and ran.told for ran in apart)
