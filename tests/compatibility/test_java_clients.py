"""Kafka's Java clients of two versions with default settings, driven by `Clients.java`."""

from pathlib import Path

import pytest

from tests.compatibility import versions
from tests.compatibility.clients import confluent, poll_until
from tests.compatibility.jvm import Tools
from tests.compatibility.jvm import tools as tools_of
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility


@pytest.fixture(scope="module", params=[versions.KAFKA, versions.OLDER_KAFKA])
def clients(request: pytest.FixtureRequest) -> Tools:
    return tools_of(request.param, [Path(__file__).with_name("Clients.java")])


@pytest.mark.parametrize("scenario", ["produce", "consume", "group", "cooperative", "admin"])
def test_scenario(clients: Tools, broker: BrokerProcess, topic: str, scenario: str) -> None:
    told = clients.try_run("main.Clients", scenario, broker.bootstrap, topic, timeout_s=90)
    assert told.code == 0, told.err
    assert told.lines == ["passed"]


def test_default_rebalance_delay(clients: Tools, tmp_path: Path) -> None:
    """Groups with the broker's default `group.initial.rebalance.delay.ms` of 3 s."""
    with BrokerProcess(tmp_path / "data", group_initial_rebalance_delay_ms=3000) as broker:
        told = clients.try_run("main.Clients", "cooperative", broker.bootstrap, "delayed", timeout_s=90)
        assert told.code == 0, told.err


def test_default_producer_through_kills(clients: Tools, tmp_path: Path) -> None:
    """Idempotent by default: nothing fails, and every record stands in the log once and in order."""
    with BrokerProcess(tmp_path / "data") as broker:
        with clients.running("main.Clients", "load", broker.bootstrap, "load", 1000) as load:
            for _ in range(4):
                had = len(load.lines)
                load.wait_for(lambda lines, had=had: len(lines) > had + 4)
                broker.kill()
                broker.start()
            had = len(load.lines)
            load.wait_for(lambda lines: len(lines) > had + 4)
            assert load.process.stdin is not None
            load.process.stdin.write("end\n")
            load.process.stdin.flush()
            assert load.wait() == 0, load.err[-20:]
            assert load.lines[-1] == "passed"
            count = int(load.lines[-2].removeprefix("sent "))
        with confluent.consumer(broker.bootstrap) as reader:
            reader.assign({("load", 0): "beginning"})
            found = poll_until(reader, lambda records: len(records) >= count)
    assert [(one.offset, one.value) for one in found] == [(i, b"%d" % i) for i in range(count)]
