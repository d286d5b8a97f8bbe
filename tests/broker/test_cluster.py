"""Three broker processes over one bucket under load: each of them is killed, restarted and stopped; nothing is lost or
doubled, and clients see what they retry by themselves."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.chaos.load import CommittingGroup, IdempotentLoad, check_all, create_topic
from tests.support.broker_process import BrokerProcess

PARTITIONS = 9


@contextlib.contextmanager
def three(
    path: Path,
    *,
    one_machine: bool,
    module: str = "broker",
    make: Callable[..., BrokerProcess] = BrokerProcess,
    **overrides: object,
) -> Iterator[dict[int, BrokerProcess]]:
    """Nodes 1 to 3; 1 was there first and controls. `make(directory, **overrides)`: one of them."""
    with contextlib.ExitStack() as stack:
        nodes = {}
        for node_id in (1, 2, 3):
            nodes[node_id] = make(
                path / f"node-{node_id}",
                node_id=node_id,
                tidelog_storage=f"file:{path}/bucket",
                tidelog_wal_dir=path / ("wal" if one_machine else f"wal-{node_id}"),
                tidelog_wal_file_bytes=2 << 20,
                tidelog_seal_ms=500,
                **overrides,
            )
            nodes[node_id].command = [sys.executable, "-m", module]
            stack.enter_context(nodes[node_id])
        yield nodes


def everybody(nodes: dict[int, BrokerProcess]) -> str:
    return ",".join(node.bootstrap for node in nodes.values())


def leaders(bootstrap: str) -> set[int]:
    """Who leads the partitions of the load's topic."""
    topics = AdminClient({"bootstrap.servers": bootstrap}).list_topics("load", timeout=10).topics
    return {partition.leader for partition in topics["load"].partitions.values()}


class Run:
    """A load over all nodes, judged at the end."""

    def __init__(self, nodes: dict[int, BrokerProcess], step: int) -> None:
        self._nodes = nodes
        self._step = step
        self.everywhere = everybody(nodes)
        create_topic(self.everywhere, PARTITIONS)
        assert leaders(self.everywhere) == {1, 2, 3}
        self._group = CommittingGroup(self.everywhere).start()
        self._load = IdempotentLoad(self.everywhere, PARTITIONS, records_per_s=6000).start()
        self.go_on()

    def go_on(self) -> None:
        """Return when further records are acknowledged."""
        self._load.wait_for(self._load.acknowledged + self._step)

    def finish(self) -> None:
        """Everything is there once and in order; everybody stops cleanly."""
        self.go_on()
        sent = self._load.finish()
        self._group.finish()
        check_all(self.everywhere, sent)
        for node in self._nodes.values():
            assert node.stop() == 0
            assert "Traceback" not in node.log_tail(100_000), node.log_tail(100_000)


@pytest.mark.timeout(120)
def test_siblings_on_one_machine_under_load(tmp_path: Path) -> None:
    with three(tmp_path, one_machine=True) as nodes:
        run = Run(nodes, 1_000)
        for lost in (1, 3):
            nodes[lost].kill()
            run.go_on()
            nodes[lost].start()
        for leaving in (2, 1):
            assert nodes[leaving].stop() == 0
            run.go_on()
        nodes[1].start()
        nodes[2].start()
        run.finish()
    assert list((tmp_path / "wal").iterdir()) == []


@pytest.mark.timeout(120)
def test_three_machines_under_load(tmp_path: Path) -> None:
    with three(tmp_path, one_machine=False) as nodes:
        run = Run(nodes, 100)
        for lost in (1, 3):
            nodes[lost].kill()
            run.go_on()
            nodes[lost].start()
        run.finish()
    assert [list((tmp_path / f"wal-{node_id}").iterdir()) for node_id in nodes] == [[], [], []]


@pytest.mark.timeout(120)
def test_a_broker_that_is_stopped_beyond_its_session(tmp_path: Path) -> None:
    """Its siblings recover what it holds locked; it acknowledges nothing any more when it goes on, and ends."""
    times = {"tidelog_session_timeout_ms": 2_000, "tidelog_controller_lease_ms": 1_000}
    with three(tmp_path, one_machine=True, **times) as nodes:
        everywhere = everybody(nodes)
        create_topic(everywhere, PARTITIONS)
        load = IdempotentLoad(everywhere, PARTITIONS, records_per_s=2000).start()
        load.wait_for(2_000)
        nodes[1].signal(signal.SIGSTOP)
        while leaders(f"{nodes[2].bootstrap},{nodes[3].bootstrap}") != {2, 3}:
            load.wait_for(load.acknowledged + 500)
        assert leaders(f"{nodes[2].bootstrap},{nodes[3].bootstrap}") == {2, 3}
        nodes[1].signal(signal.SIGCONT)
        assert nodes[1].wait() == 1
        assert "another process recovers this WAL" in nodes[1].log_tail()
        nodes[1].start()
        sent = load.finish()
        check_all(everywhere, sent)
