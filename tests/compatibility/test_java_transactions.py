"""Kafka's Java transactional producers: 4.x uses the second generation of the protocol, 3.9 the first."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compatibility import versions
from tests.compatibility.clients import confluent, poll_until
from tests.compatibility.clients.base import Out
from tests.compatibility.jvm import Tools
from tests.compatibility.jvm import tools as tools_of
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility

COUNT = 400


@pytest.fixture(scope="module", params=[versions.KAFKA, versions.OLDER_KAFKA])
def clients(request: pytest.FixtureRequest) -> Tools:
    return tools_of(request.param, [Path(__file__).with_name("Transactions.java")])


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    settings = {"transaction_abort_timed_out_transaction_cleanup_interval_ms": 100}
    with BrokerProcess(tmp_path_factory.mktemp("transactions") / "data", **settings) as running:
        yield running
        assert running.stop() == 0, running.log_tail()


@pytest.mark.parametrize("scenario", ["atomic", "fence", "timeout", "admin"])
def test_scenario(clients: Tools, broker: BrokerProcess, topic: str, scenario: str) -> None:
    told = clients.try_run("main.Transactions", scenario, broker.bootstrap, topic, timeout_s=90)
    assert told.code == 0, told.err
    assert told.lines[-1] == "passed"


def write(broker: BrokerProcess, topic: str) -> None:
    with confluent.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % number, partition=0) for number in range(COUNT)])


def copied(broker: BrokerProcess, topic: str, isolation: str = "read_committed") -> list[int]:
    options = {"isolation.level": isolation}
    with confluent.consumer(broker.bootstrap, options) as reader:
        reader.assign({(f"{topic}-out", 0): "beginning"})
        return [int(one.value or b"") for one in poll_until(reader, lambda records: len(records) >= COUNT)]


def test_consume_process_produce(clients: Tools, broker: BrokerProcess, topic: str) -> None:
    """Each record is copied once although a part of the transactions is aborted."""
    write(broker, topic)
    told = clients.try_run("main.Transactions", "copy", broker.bootstrap, topic, COUNT, timeout_s=90)
    assert told.code == 0, told.err
    assert copied(broker, topic) == list(range(COUNT))


def test_a_copy_goes_on_where_a_killed_one_was(clients: Tools, broker: BrokerProcess, topic: str) -> None:
    """The client is killed in the middle of transactions, its successor fences what it left."""
    write(broker, topic)
    for wanted in (50, 150, 250):
        with clients.running("main.Transactions", "copy", broker.bootstrap, topic, COUNT) as copy:
            copy.wait_for(lambda lines, wanted=wanted: any(int(line.split()[-1]) >= wanted for line in progress(lines)))
            copy.kill()
    told = clients.try_run("main.Transactions", "copy", broker.bootstrap, topic, COUNT, timeout_s=90)
    assert told.code == 0, told.err
    assert copied(broker, topic) == list(range(COUNT))


def progress(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("copied ")]


def test_a_copy_through_kills_of_the_broker(clients: Tools, tmp_path: Path) -> None:
    """The coordinators of transactions and groups and all leaders die in the middle of transactions."""
    with BrokerProcess(tmp_path / "data") as broker:
        write(broker, "t")
        with clients.running("main.Transactions", "copy", broker.bootstrap, "t", COUNT) as copy:
            for _ in range(3):
                had = len(progress(copy.lines))
                copy.wait_for(lambda lines, had=had: len(progress(lines)) > had + 4)
                broker.kill()
                broker.start()
            assert copy.wait(120) == 0, copy.err[-20:]
        assert copied(broker, "t") == list(range(COUNT))


def test_the_stock_tool(clients: Tools, broker: BrokerProcess, topic: str) -> None:
    """It lists, describes and, by itself, ends a transaction that hangs."""
    name = f"{topic}-tx"

    def tool(*arguments: object) -> list[str]:
        return clients.run("TransactionsCommand", "--bootstrap-server", broker.bootstrap, *arguments).lines

    with clients.running("main.Transactions", "hang", broker.bootstrap, topic) as hanging:
        hanging.wait_for(lambda lines: "open" in lines)
        hanging.kill()
    assert any(line.split()[0] == name and "Ongoing" in line for line in tool("list"))
    described = tool("describe", "--transactional-id", name)
    assert any("Ongoing" in line and f"{topic}-0" in line for line in described)
    producers = tool("describe-producers", "--topic", topic, "--partition", 0)
    assert len(producers) == 2 and producers[1].split()[-1] == "0", "one that is open from offset 0"
    with confluent.consumer(broker.bootstrap, {"isolation.level": "read_committed"}) as reader:
        reader.assign({(topic, 0): "beginning"})
        assert reader.poll(0.5) == []
        assert tool("abort", "--topic", topic, "--partition", 0, "--start-offset", 0) == []
        with confluent.producer(broker.bootstrap) as producer:
            producer.send(topic, [Out(b"after", partition=0)])
        (one,) = poll_until(reader, lambda records: len(records) >= 1)
        assert one.value == b"after"
