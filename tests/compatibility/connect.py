"""Kafka Connect and MirrorMaker 2 as processes of their own, unmodified, from Maven; ended by their ids."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import free_port
from tests.compatibility import java, versions
from tests.compatibility.jvm import Running, Tools

START_S = 120
INTERNAL = ("config", "offset", "status")


def connect_tools() -> Tools:
    """The classes of Connect with the file connectors, and of MirrorMaker."""
    logger = java.fetch([f"org.slf4j:slf4j-simple:{versions.SLF4J}"])
    names = ("connect-runtime", "connect-file", "connect-mirror")
    return Tools(versions.KAFKA, f"{logger}{os.pathsep}{java.fetch(java.kafka(*names, version=versions.KAFKA))}")


class Worker:
    """One distributed worker: `with worker.running():`, then `worker.request("GET", "/connectors")`."""

    def __init__(self, tools: Tools, directory: Path, bootstrap: str, **settings: object) -> None:
        self._tools = tools
        self._properties = directory / "worker.properties"
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        properties: dict[str, object] = {
            "bootstrap.servers": bootstrap,
            "group.id": "connect",
            "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "org.apache.kafka.connect.storage.StringConverter",
            "offset.flush.interval.ms": 500,
            "listeners": f"http://127.0.0.1:{self.port}",
            "rest.advertised.host.name": "127.0.0.1",
            "offset.storage.partitions": 3,
            "status.storage.partitions": 2,
            **{f"{name}.storage.topic": f"connect-{name}" for name in INTERNAL},
            **{f"{name}.storage.replication.factor": 1 for name in INTERNAL},
            **{key.replace("_", "."): value for key, value in settings.items()},
        }
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))

    @contextmanager
    def running(self) -> "Iterator[Running]":
        """Started, and it answers."""
        with self._tools.running("main.org.apache.kafka.connect.cli.ConnectDistributed", self._properties) as process:
            self.wait(process, "its REST interface", lambda: self.request("GET", "/connectors") is not None)
            yield process

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer; `URLError` while nobody listens, `HTTPError` for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else {}

    def put(self, process: Running, name: str, config: Mapping[str, str]) -> None:
        """Create or change a connector, and wait until its tasks run."""

        def put() -> bool:
            self.request("PUT", f"/connectors/{name}/config", config)
            return True

        self.wait(process, f"{name} is taken", put)
        self.wait_until_runs(process, name)

    def wait_until_runs(self, process: Running, name: str) -> None:
        """Until the connector and all of its tasks run."""

        def runs() -> bool:
            status = self.request("GET", f"/connectors/{name}/status")
            states = [status["connector"]["state"], *(task["state"] for task in status["tasks"])]
            return len(states) > 1 and set(states) == {"RUNNING"}

        self.wait(process, f"{name} runs", runs)

    @staticmethod
    def wait(process: Running, what: str, done: Callable[[], bool]) -> None:
        """Until it is so. A worker that rebalances answers 404 and 409 meanwhile."""
        deadline = time.perf_counter() + START_S
        while True:
            assert process.process.poll() is None, process.err[-30:]
            try:
                if done():
                    return
            except urllib.error.HTTPError as error:
                assert error.code in (404, 409, 500), (what, error.read())
            except OSError:
                pass
            assert time.perf_counter() < deadline, (what, process.err[-30:])
            time.sleep(0.1)
