"""A cluster of processes is restarted broker by broker, and a broker is drained, under real clients with their default
retries: none of them sees an error."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.broker.test_cluster import PARTITIONS, everybody, leaders, three
from tests.chaos.load import CommittingGroup, IdempotentLoad, check_all, create_topic
from tests.support.broker_process import ROOT, BrokerProcess
from tests.support.python_clients import PythonClients


def tidelog(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "broker", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def described(node: BrokerProcess, node_id: int) -> dict[str, object]:
    with urllib.request.urlopen(f"{node.http}/v1/brokers/{node_id}", timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
        return found


@pytest.mark.timeout(180)
def test_a_rolling_restart_and_a_drain_show_no_errors(tmp_path: Path) -> None:
    with three(tmp_path, one_machine=True, offsets_topic_num_partitions=6) as nodes:
        everywhere = everybody(nodes)
        create_topic(everywhere, PARTITIONS)
        create_topic(everywhere, 1, "python")
        group = CommittingGroup(everywhere).start()
        clients = PythonClients(everywhere, "python")
        load = IdempotentLoad(
            everywhere, PARTITIONS, records_per_s=2000, options={"message.timeout.ms": 30_000}
        ).start()
        load.wait_for(1_000)
        for leaving in (2, 3, 1):
            assert nodes[leaving].stop() == 0
            assert "logs moved, frozen for" in nodes[leaving].log_tail(200)
            load.wait_for(load.acknowledged + 500)
            nodes[leaving].start()
            load.wait_for(load.acknowledged + 500)
        drained = tidelog("broker", "drain", "2", "--http", nodes[1].http)
        assert (drained.returncode, drained.stdout) == (0, "broker 2 is drained and leads nothing\n"), drained.stderr
        assert 2 not in leaders(everywhere)
        load.wait_for(load.acknowledged + 500)
        drained_twice = tidelog("broker", "drain", "2", "--no-wait", "--http", nodes[3].http)
        assert drained_twice.returncode == 0
        listed = tidelog("broker", "list", "-b", everywhere, "--http", nodes[3].http, "--format", "json")
        assert [broker["drained"] for broker in json.loads(listed.stdout)] == ["", "yes", ""], listed.stderr
        undone = tidelog("broker", "drain", "2", "--undo", "--http", nodes[3].http)
        assert (undone.returncode, undone.stdout) == (0, "broker 2 gets partitions again\n")
        assert described(nodes[1], 2)["drained"] is False
        unknown = tidelog("broker", "drain", "9", "--http", nodes[3].http)
        assert unknown.returncode == 1 and "no broker with node.id 9" in unknown.stderr
        sent = load.finish()
        assert clients.finish() > 100
        group.finish()
        check_all(everywhere, sent)
        for node in nodes.values():
            assert node.stop() == 0
            assert "Traceback" not in node.log_tail(100_000), node.log_tail(100_000)
