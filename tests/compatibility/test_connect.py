"""Kafka Connect, distributed, unmodified: file connectors through REST, with workers and brokers that are killed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compatibility.clients import confluent, poll_until
from tests.compatibility.clients.base import In
from tests.compatibility.connect import START_S, Worker, connect_tools
from tests.compatibility.jvm import Running, Tools
from tests.support.broker_process import BrokerProcess

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tools() -> Tools:
    return connect_tools()


def source(path: Path, topic: str) -> dict[str, str]:
    return {
        "connector.class": "org.apache.kafka.connect.file.FileStreamSourceConnector",
        "tasks.max": "1",
        "file": str(path),
        "topic": topic,
    }


def sink(path: Path, topic: str) -> dict[str, str]:
    return {
        "connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector",
        "tasks.max": "1",
        "file": str(path),
        "topics": topic,
    }


class Files:
    """What goes in and what has come out."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "in.txt"
        self.sink = directory / "out.txt"
        self.written = 0
        self.source.touch()

    def write(self, count: int) -> None:
        with self.source.open("a") as file:
            file.writelines(f"line {number}\n" for number in range(self.written, self.written + count))
        self.written += count

    def lines(self) -> list[str]:
        return self.sink.read_text().splitlines() if self.sink.exists() else []

    @property
    def expected(self) -> list[str]:
        return [f"line {number}" for number in range(self.written)]

    def wait(self, worker: Worker, process: Running) -> None:
        """Until everything has come out at least once."""
        worker.wait(process, "all lines", lambda: set(self.expected) <= set(self.lines()))


def test_file_to_file_through_a_restart(
    tools: Tools, make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    """A clean restart of the worker, and one of the broker: every line once, in order."""
    broker = make_broker()
    files = Files(tmp_path)
    worker = Worker(tools, tmp_path / "connect", broker.bootstrap)
    with worker.running() as process:
        worker.put(process, "in", source(files.source, "lines"))
        worker.put(process, "out", sink(files.sink, "lines"))
        files.write(1000)
        files.wait(worker, process)
        assert broker.stop() == 0
        files.write(1000)
        broker.start()
        files.wait(worker, process)
        assert files.lines() == files.expected
        assert process.end() in (0, 143)
    with worker.running() as process:
        for name in ("in", "out"):
            worker.wait_until_runs(process, name)
        files.write(1000)
        files.wait(worker, process)
        assert files.lines() == files.expected
        offsets = worker.request("GET", "/connectors/out/offsets")["offsets"]
        assert [one["partition"]["kafka_topic"] for one in offsets] == ["lines"]
        for name in ("in", "out"):
            worker.request("DELETE", f"/connectors/{name}")
        worker.wait(process, "no connectors", lambda: worker.request("GET", "/connectors") == [])


def test_kills_lose_nothing(tools: Tools, make_broker: Callable[..., BrokerProcess], tmp_path: Path) -> None:
    """SIGKILL of the broker, then of the worker: at least once, as Connect promises, in order but for repeats."""
    broker = make_broker()
    files = Files(tmp_path)
    worker = Worker(tools, tmp_path / "connect", broker.bootstrap)
    with worker.running() as process:
        worker.put(process, "in", source(files.source, "lines"))
        worker.put(process, "out", sink(files.sink, "lines"))
        files.write(2000)
        broker.kill()
        broker.start()
        files.wait(worker, process)
        files.write(2000)
        process.kill()
    with worker.running() as process:
        files.wait(worker, process)
    first_seen = list(dict.fromkeys(files.lines()))
    assert first_seen == files.expected


def test_an_exactly_once_source_repeats_nothing(
    tools: Tools, make_broker: Callable[..., BrokerProcess], tmp_path: Path
) -> None:
    """SIGKILL of the worker, then of the broker: offsets and records are of one transaction."""
    broker = make_broker()
    files = Files(tmp_path)
    worker = Worker(tools, tmp_path / "connect", broker.bootstrap, exactly_once_source_support="enabled")
    config = {**source(files.source, "lines"), "exactly.once.support": "required", "transaction.boundary": "poll"}
    with confluent.consumer(broker.bootstrap, {"isolation.level": "read_committed"}) as reader:
        found: list[In] = []

        def wait(count: int) -> None:
            found.extend(poll_until(reader, lambda seen: len(found) + len(seen) >= count, START_S))

        with worker.running() as process:
            worker.put(process, "in", config)
            files.write(1000)
            reader.assign({("lines", 0): "beginning"})
            wait(500)
            process.kill()
        files.write(1000)
        with worker.running() as process:
            worker.wait_until_runs(process, "in")
            wait(1500)
            broker.kill()
            files.write(1000)
            broker.start()
            wait(3000)
    assert [one.value for one in found] == [line.encode() for line in files.expected]
