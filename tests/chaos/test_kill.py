"""The real process is killed under idempotent load; nothing acknowledged is lost, doubled or reordered.

The instants are drawn from a seed, by the count of acknowledged records, and printed; `CHAOS_SEED` repeats a run.
"""

from pathlib import Path

import pytest

from tests.chaos.load import CommittingGroup, IdempotentLoad, check_all, create_topic, seeded
from tests.support.broker_process import BrokerProcess

PARTITIONS = 3


def run_kills(data_dir: Path, kills: int, **overrides: object) -> None:
    """Kill and restart `kills` times under load; then read everything back."""
    instants = seeded()
    broker = BrokerProcess(data_dir, tidelog_seal_ms=300, **overrides)
    with broker:
        create_topic(broker.bootstrap, PARTITIONS)
        group = CommittingGroup(broker.bootstrap).start()
        load = IdempotentLoad(broker.bootstrap, PARTITIONS).start()
        for _ in range(kills):
            load.wait_for(load.acknowledged + instants.randrange(1, 20_000))
            broker.kill()
            broker.start()
        load.wait_for(load.acknowledged + 1000)
        sent = load.finish()
        group.finish()
        check_all(broker.bootstrap, sent)
        assert group.resumed > 0
        assert broker.stop() == 0


@pytest.mark.timeout(300)
def test_kills_under_load(tmp_path: Path) -> None:
    run_kills(tmp_path / "data", 6)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_thirty_kills_under_load(tmp_path: Path) -> None:
    run_kills(tmp_path / "data", 30)
