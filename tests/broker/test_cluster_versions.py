"""Brokers of two versions in one cluster, under load: upgraded, put back, upgraded, raised; the old one is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from controller.facts import FORMAT_LEVEL
from tests.broker.test_cluster import Run, three
from tests.support.broker_process import ROOT, BrokerProcess

BEFORE = FORMAT_LEVEL - 1
OLDER, NEWER = "tests.support.older_broker", "broker"


def restart(node: BrokerProcess, module: str) -> None:
    assert node.stop() == 0, node.log_tail()
    node.command = [sys.executable, "-m", module]
    node.start()


def cluster_format(node: BrokerProcess, *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "broker", "cluster", "format", *words, "--format", "json", "--http", node.http]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.chaos
@pytest.mark.timeout(600)  # a dozen starts; each step has a limit of its own
def test_a_rolling_upgrade_and_back_under_load(tmp_path: Path) -> None:
    with three(tmp_path, one_machine=True, module=OLDER) as nodes:
        run = Run(nodes, 300)
        for node_id in (1, 2):  # the first one controls: the newer version leads older brokers, and follows one
            restart(nodes[node_id], NEWER)
            run.go_on()
        assert cluster_format(nodes[2])["level"] == BEFORE
        assert cluster_format(nodes[2], "--raise")["level"] == BEFORE, "broker 3 does not understand more"
        restart(nodes[1], OLDER)
        run.go_on()
        nodes[2].kill()  # the newer one, by surprise: the older ones recover it and go on
        run.go_on()
        nodes[2].start()
        for node_id in (1, 3):
            restart(nodes[node_id], NEWER)
            run.go_on()
        found = cluster_format(nodes[3])
        assert (found["level"], found["possible"]) == (BEFORE, FORMAT_LEVEL)
        assert cluster_format(nodes[3], "--raise")["level"] == FORMAT_LEVEL
        run.go_on()

        assert nodes[2].stop() == 0
        nodes[2].command = [sys.executable, "-m", OLDER]
        nodes[2].spawn()
        assert nodes[2].wait() == 1
        assert "upgrade" in nodes[2].log_tail(5)
        nodes[2].command = [sys.executable, "-m", NEWER]
        nodes[2].start()
        run.finish()
