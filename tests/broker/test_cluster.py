"""Three broker processes over one bucket under load: each of them is killed, restarted and stopped; nothing is lost or
doubled, and clients see what they retry by themselves."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.chaos.load import CommittingGroup, IdempotentLoad, check_all, create_topic
from tests.support.broker_process import BrokerProcess

PARTITIONS = 9


@contextlib.contextmanager
def three(path: Path, *, one_machine: bool) -> Iterator[dict[int, BrokerProcess]]:
    """Nodes 1 to 3; 1 was there first and controls."""
    with contextlib.ExitStack() as stack:
        nodes = {}
        for node_id in (1, 2, 3):
            nodes[node_id] = BrokerProcess(
                path / f"node-{node_id}",
                node_id=node_id,
                tidelog_storage=f"file:{path}/bucket",
                tidelog_wal_dir=path / ("wal" if one_machine else f"wal-{node_id}"),
                tidelog_wal_file_bytes=2 << 20,
                tidelog_session_timeout_ms=1500,
                tidelog_controller_lease_ms=700,
                tidelog_seal_ms=500,
            )
            stack.enter_context(nodes[node_id])
        yield nodes


def everybody(nodes: dict[int, BrokerProcess]) -> str:
    return ",".join(node.bootstrap for node in nodes.values())


def leaders(bootstrap: str) -> set[int]:
    """Who leads the partitions of the load's topic."""
    topics = AdminClient({"bootstrap.servers": bootstrap}).list_topics("load", timeout=10).topics
    return {partition.leader for partition in topics["load"].partitions.values()}


def run(nodes: dict[int, BrokerProcess], step: int) -> None:
    everywhere = everybody(nodes)
    create_topic(everywhere, PARTITIONS)
    assert leaders(everywhere) == {1, 2, 3}
    group = CommittingGroup(everywhere).start()
    load = IdempotentLoad(everywhere, PARTITIONS, records_per_s=6000).start()

    def go_on() -> None:
        load.wait_for(load.acknowledged + step)

    go_on()
    nodes[1].kill()  # the controller
    go_on()
    nodes[1].start()
    go_on()
    nodes[3].kill()
    go_on()
    nodes[3].start()
    go_on()
    assert nodes[2].stop() == 0
    go_on()
    assert nodes[1].stop() == 0
    go_on()
    nodes[1].start()
    nodes[2].start()
    go_on()
    sent = load.finish()
    group.finish()
    check_all(everywhere, sent)
    for node in nodes.values():
        assert node.stop() == 0
        assert "Traceback" not in node.log_tail(100_000), node.log_tail(100_000)


@pytest.mark.timeout(120)
def test_siblings_on_one_machine_under_load(tmp_path: Path) -> None:
    with three(tmp_path, one_machine=True) as nodes:
        run(nodes, 2_000)
    assert list((tmp_path / "wal").iterdir()) == []


@pytest.mark.timeout(120)
def test_three_machines_under_load(tmp_path: Path) -> None:
    with three(tmp_path, one_machine=False) as nodes:
        run(nodes, 200)
    assert [list((tmp_path / f"wal-{node_id}").iterdir()) for node_id in nodes] == [[], [], []]
