"""Kafka's Java consumer with `group.protocol=consumer`, driven by `ConsumerGroups.java`; the tool that shows groups."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compatibility import versions
from tests.compatibility.admin import create_topic
from tests.compatibility.clients.members import wait_until
from tests.compatibility.health import check
from tests.compatibility.jvm import Tools
from tests.compatibility.jvm import tools as tools_of
from tests.compatibility.test_consumer_groups import QUICK, join
from tests.compatibility.test_java_tools import GROUPS, cells
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("groups") / "data", **QUICK) as running:
        yield running
        check(running)
        assert running.stop() == 0, running.log_tail()


@pytest.fixture(scope="module")
def java() -> Tools:
    return tools_of(versions.KAFKA, [Path(__file__).with_name("ConsumerGroups.java")])


@pytest.mark.parametrize("scenario", ["group", "expressions", "static", "mixed", "admin"])
def test_scenario(java: Tools, broker: BrokerProcess, topic: str, scenario: str) -> None:
    told = java.try_run("main.ConsumerGroups", scenario, broker.bootstrap, topic, timeout_s=150)
    assert told.code == 0, told.err
    assert told.lines == ["passed"]


def test_through_kills(java: Tools, tmp_path: Path, topic: str) -> None:
    """Nobody misses a record, and the group is what it was."""
    with BrokerProcess(tmp_path / "data", **QUICK) as broker:
        create_topic(broker, topic, 4)
        with java.running("main.ConsumerGroups", "through_kills", broker.bootstrap, topic) as running:
            running.wait_for(lambda lines: "ready" in lines)
            for _ in range(3):
                had = len(running.lines)
                running.wait_for(lambda lines, had=had: len(lines) > had + 1)
                broker.kill()
                broker.start()
            had = len(running.lines)
            running.wait_for(lambda lines: len(lines) > had + 1)
            assert running.process.stdin is not None
            running.process.stdin.write("end\n")
            running.process.stdin.flush()
            assert running.wait() == 0, running.err[-20:]
            assert running.lines[-1] == "passed"


def test_the_tool_shows_groups(java: Tools, broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 4)
    member = join(broker, topic, client_id="reader")
    wait_until(lambda: len(member.assigned) == 4, [member])

    def command(*arguments: object) -> list[str]:
        return java.run(GROUPS, "--bootstrap-server", broker.bootstrap, *arguments).lines

    ((name, kind),) = [row for row in cells(command("--list", "--type")) if row[0] == topic]
    assert (name, kind) == (topic, "Consumer")
    assert topic not in command("--list", "--type", "classic")
    header, row = cells(command("--describe", "--group", topic, "--members", "--verbose"))
    told = dict(zip(header, row))
    assert (told["GROUP"], told["CLIENT-ID"], told["#PARTITIONS"]) == (topic, "reader", "4")
    assert told["CURRENT-EPOCH"] == told["TARGET-EPOCH"], told
    assert told["CURRENT-ASSIGNMENT"] == told["TARGET-ASSIGNMENT"] == f"{topic}:0,1,2,3", told
    header, row = cells(command("--describe", "--group", topic, "--state"))
    assert row[-2:] == ["Stable", "1"]
    assert "uniform" in row
    member.close()
    assert "was successful" in command("--delete", "--group", topic)[0]
