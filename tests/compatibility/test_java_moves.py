"""Kafka's tools that move leaders: kafka-reassign-partitions.sh and kafka-leader-election.sh, on two brokers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.chaos.load import create_topic
from tests.compatibility.jvm import Shell
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

MOVE = "reassign.ReassignPartitionsCommand"
ELECT = "LeaderElectionCommand"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[str]:
    """The addresses of two brokers; topic `load` has two partitions."""
    places = {"tidelog_storage": f"file:{tmp_path}/bucket", "tidelog_balance": "false"}
    with (
        BrokerProcess(tmp_path / "node-1", node_id=1, **places) as first,
        BrokerProcess(tmp_path / "node-2", node_id=2, **places) as second,
    ):
        create_topic(first.bootstrap, 2)
        yield f"{first.bootstrap},{second.bootstrap}"
        for node in (first, second):
            assert node.stop() == 0


def leaders(where: str) -> list[int]:
    topic = AdminClient({"bootstrap.servers": where}).list_topics("load", timeout=10).topics["load"]
    return [topic.partitions[index].leader for index in range(2)]


def test_reassign_and_elect(tools: Shell, two: str, tmp_path: Path) -> None:
    where = ("--bootstrap-server", two)

    def plan(*nodes: int) -> str:
        file = tmp_path / "plan.json"
        parts = [{"topic": "load", "partition": index, "replicas": [node]} for index, node in enumerate(nodes)]
        file.write_text(json.dumps({"version": 1, "partitions": parts}))
        return str(file)

    before = leaders(two)
    assert sorted(before) == [1, 2]
    assert "No partition reassignments found." in tools.run(MOVE, *where, "--list").lines
    file = plan(*reversed(before))
    told = tools.run(MOVE, *where, "--execute", "--reassignment-json-file", file)
    assert "Successfully started partition reassignments for load-0,load-1" in told.lines
    verified = tools.run(MOVE, *where, "--verify", "--reassignment-json-file", file)
    assert "Reassignment of partition load-0 is completed." in verified.lines, verified.lines
    assert leaders(two) == before[::-1]
    told = tools.run(ELECT, *where, "--election-type", "preferred", "--all-topic-partitions")
    assert told.err == "" or "ERROR" not in told.err
    assert leaders(two) == before[::-1], "where an operator wanted them"
    one = ("--topic", "load", "--partition", 0)
    told = tools.run(ELECT, *where, "--election-type", "preferred", *one)
    assert "Valid replica already elected for partitions load-0" in told.out
    refused = tools.try_run(MOVE, *where, "--execute", "--reassignment-json-file", plan(9, 9))
    assert refused.code == 1 and "9" in refused.out + refused.err
    # The tool asks every broker of the plan to forget its throttles: one that does not exist it waits for.
    cancelled = tools.run(MOVE, *where, "--cancel", "--reassignment-json-file", plan(*before))
    assert "None of the specified partition moves are active." in cancelled.out, cancelled.out


def test_a_generated_plan(tools: Shell, two: str, tmp_path: Path) -> None:
    """What `--generate` proposes is what `--execute` takes; partitions of a file are elected as well."""
    where = ("--bootstrap-server", two)
    topics, file, parts = tmp_path / "topics.json", tmp_path / "plan.json", tmp_path / "parts.json"
    topics.write_text(json.dumps({"version": 1, "topics": [{"topic": "load"}]}))
    told = tools.run(MOVE, *where, "--generate", "--topics-to-move-json-file", topics, "--broker-list", 2)
    now, proposed = [json.loads(line) for line in told.lines if line.startswith("{")]
    assert [part["replicas"] for part in now["partitions"]] == [[node] for node in leaders(two)]
    assert [part["replicas"] for part in proposed["partitions"]] == [[2], [2]]
    file.write_text(json.dumps(proposed))
    tools.run(MOVE, *where, "--execute", "--reassignment-json-file", file, "--throttle", 10_000_000)
    verified = tools.run(MOVE, *where, "--verify", "--reassignment-json-file", file)
    assert verified.out.count("is completed.") == 2
    assert leaders(two) == [2, 2]
    file.write_text(json.dumps(now))
    tools.run(MOVE, *where, "--additional", "--execute", "--reassignment-json-file", file)
    assert (
        "Reassignment of partition load-1 is completed."
        in tools.run(MOVE, *where, "--verify", "--preserve-throttles", "--reassignment-json-file", file).lines
    )
    parts.write_text(json.dumps({"partitions": [{"topic": "load", "partition": index} for index in range(2)]}))
    for kind in ("preferred", "unclean"):
        told = tools.run(ELECT, *where, "--election-type", kind, "--path-to-json-file", parts)
        assert re.search(r"Valid replica already elected for partitions load-[01], load-[01]", told.out), kind
    unknown = tools.try_run(ELECT, *where, "--election-type", "preferred", "--topic", "none", "--partition", 0)
    assert unknown.code == 1 and "UnknownTopicOrPartition" in unknown.out + unknown.err
