"""The HTTP port: metrics as Prometheus reads them, probes, operator commands and their errors."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

import broker.http.port
import broker.http.server
from broker.http.server import HttpServer
from broker.metrics import Metrics, new_histogram
from broker.operators import Drains, FormatLevels, Operators
from broker.recovery import RecoveryStopped, WalRecovery
from protocol.errors import ErrorCode, KafkaError
from tests.support.node_runs import NodeRuns
from tests.support.raw_client import batch_of

WAL = "ab" * 16


class HandRecovery:
    """Decisions end as the test says."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.asked: list[tuple[bytes, bool | None]] = []

    def rows(self, *, settled: bool) -> list[dict[str, Any]]:
        return [{"settled": settled}]

    def accept_loss(self, wal_id: bytes) -> "asyncio.Future[dict[str, Any]]":
        self.asked.append((wal_id, None))
        if wal_id != bytes.fromhex(WAL):
            raise KeyError(wal_id)
        return self.outcome

    def declare_lost(self, wal_id: bytes, *, host_is_destroyed: bool) -> "asyncio.Future[dict[str, Any]]":
        self.asked.append((wal_id, host_is_destroyed))
        return self.outcome


class HandLevels:
    """A cluster that can be raised to level 2, or refuses."""

    level = 1
    error: KafkaError | None = None

    def describe(self) -> dict[str, Any]:
        return {"level": self.level}

    async def raise_level(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.level = 2
        return self.describe()


class HandDrains:
    """Broker 7 can be drained, the others are unknown."""

    drained = False

    def describe(self, node_id: int) -> dict[str, Any]:
        if node_id != 7:
            raise KafkaError(ErrorCode.RESOURCE_NOT_FOUND, f"no broker {node_id}")
        return {"node_id": 7, "drained": self.drained}

    def describe_all(self) -> dict[str, Any]:
        return {"cluster_id": "c", "brokers": [self.describe(7)]}

    async def drain(self, node_id: int, *, undo: bool) -> dict[str, Any]:
        self.describe(node_id)
        self.drained = not undo
        return self.describe(node_id)


class Served:
    """A server over hand-made parts, and a client."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ready = False
        self.recovery: HandRecovery | None = None
        self.levels = HandLevels()
        self.drains = HandDrains()
        self.server = HttpServer(self.metrics, lambda: self.ready, self.operators)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self.listening.getsockname())

    def operators(self) -> Operators | None:
        if self.recovery is None:
            return None
        return Operators(cast(WalRecovery, self.recovery), cast(FormatLevels, self.levels), cast(Drains, self.drains))

    async def ask(self, method: str, path: str) -> tuple[int, str]:
        async with self.session.request(method, self.url + path) as response:
            return response.status, await response.text()

    async def operate(self, path: str) -> tuple[int, Any]:
        async with self.session.post(self.url + path) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    await made.server.start(made.listening)
    async with aiohttp.ClientSession() as made.session:
        yield made
        began = asyncio.get_running_loop().time()
        await made.server.stop()  # the client's connection is open
        assert asyncio.get_running_loop().time() - began < 3


async def test_probes(served: Served) -> None:
    assert await served.ask("GET", "/livez") == (200, "ok\n")
    assert await served.ask("GET", "/readyz") == (503, "not ready\n")
    served.ready = True
    assert await served.ask("GET", "/readyz") == (200, "ok\n")
    assert (await served.ask("GET", "/nothing"))[0] == 404
    assert (await served.ask("POST", "/livez"))[0] == 405
    assert (await served.ask("GET", f"/v1/wal/{WAL}/recover"))[0] == 405


async def test_metrics_are_printed_as_registered(served: Served) -> None:
    assert (await served.ask("GET", "/metrics"))[0] == 200, "none is fine"
    buckets = new_histogram()
    buckets[0], buckets[10], buckets[39] = 2, 3, 1
    served.metrics.counter("tidelog_things", "Things.", lambda: 7)
    served.metrics.counter("tidelog_kinds", "By kind.", lambda: [({"kind": 'a"b\n'}, 1), ({"kind": "c"}, 2)])
    served.metrics.counter("tidelog_none", "Nothing yet.", list)
    served.metrics.gauge("tidelog_level", "Up and down.", lambda: True)
    served.metrics.histogram("tidelog_seconds", "How long.", buckets)
    async with served.session.get(served.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    assert {name: (family.type, family.documentation) for name, family in families.items()} == {
        "tidelog_things": ("counter", "Things."),
        "tidelog_kinds": ("counter", "By kind."),
        "tidelog_none": ("counter", "Nothing yet."),
        "tidelog_level": ("gauge", "Up and down."),
        "tidelog_seconds": ("histogram", "How long."),
    }
    assert [(one.labels, one.value) for one in families["tidelog_kinds"].samples] == [
        ({"kind": 'a"b\n'}, 1),
        ({"kind": "c"}, 2),
    ]
    assert families["tidelog_level"].samples[0].value == 1
    samples = families["tidelog_seconds"].samples
    counts = [one.value for one in samples if one.name.endswith("_bucket")]
    bounds = [float(one.labels["le"]) for one in samples if one.name.endswith("_bucket")]
    assert counts == sorted(counts) and counts[-1] == 6 and counts[10] == 5
    assert bounds == sorted(bounds) and bounds[10] == pytest.approx(0.001024) and bounds[-1] == float("inf")
    assert next(one.value for one in samples if one.name.endswith("_count")) == 6


async def test_operator_commands_before_the_broker_registered(served: Served) -> None:
    for method, path in (
        ("GET", "/v1/wal"),
        ("POST", f"/v1/wal/{WAL}/recover?accept_loss=true"),
        ("POST", f"/v1/wal/{WAL}/declare-lost"),
        ("GET", "/v1/cluster/format"),
        ("POST", "/v1/cluster/format"),
    ):
        assert await served.ask(method, path) == (503, '{"error": "the broker has not registered yet"}')


async def test_operator_commands_and_what_they_pass_on(served: Served) -> None:
    served.recovery = recovery = HandRecovery()
    assert await served.ask("GET", "/v1/wal") == (200, '[{"settled": false}]')
    assert await served.ask("GET", "/v1/wal?all=true") == (200, '[{"settled": true}]')
    status, answer = await served.operate(f"/v1/wal/{WAL}/recover")
    assert status == 409 and "say accept_loss=true" in answer["error"] and not recovery.asked
    recovery.outcome.set_result({"logs": []})
    assert await served.operate(f"/v1/wal/{WAL}/recover?accept_loss=true") == (200, {"logs": []})
    assert await served.operate(f"/v1/wal/{WAL}/declare-lost") == (200, {"logs": []})
    assert await served.operate(f"/v1/wal/{WAL}/declare-lost?host_is_destroyed=true") == (200, {"logs": []})
    wal_id = bytes.fromhex(WAL)
    assert recovery.asked == [(wal_id, None), (wal_id, False), (wal_id, True)]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RecoveryStopped("log 3 has a gap"), 409, "log 3 has a gap"),
        (KafkaError(ErrorCode.POLICY_VIOLATION, "try again in 30 min"), 409, "try again in 30 min"),
        (KafkaError(ErrorCode.RESOURCE_NOT_FOUND, "is not registered"), 404, "is not registered"),
        (KafkaError(ErrorCode.REQUEST_TIMED_OUT, "is the store reachable?"), 503, "is the store reachable?"),
        (KafkaError(ErrorCode.CONCURRENT_TRANSACTIONS, "just now"), 503, "just now"),
    ],
)
async def test_refusals_of_operator_commands(served: Served, error: Exception, status: int, words: str) -> None:
    served.recovery = recovery = HandRecovery()
    recovery.outcome.set_exception(error)
    assert await served.operate(f"/v1/wal/{WAL}/recover?accept_loss=true") == (status, {"error": words})
    assert await served.operate(f"/v1/wal/{WAL}/declare-lost") == (status, {"error": words})


@pytest.mark.parametrize("wal_id", ["nothing", "ab", "cd" * 16])
async def test_instances_that_do_not_wait_here(served: Served, wal_id: str) -> None:
    served.recovery = HandRecovery()
    status, answer = await served.operate(f"/v1/wal/{wal_id}/recover?accept_loss=true")
    assert status == 404 and answer["error"]


async def test_a_decision_that_takes_long_goes_on_without_whoever_asked(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker.http.server, "OPERATION_S", 0.02)
    served.recovery = recovery = HandRecovery()
    status, answer = await served.operate(f"/v1/wal/{WAL}/recover?accept_loss=true")
    assert status == 503 and "ask again to hear how it ends" in answer["error"]
    assert not recovery.outcome.done()
    recovery.outcome.set_result({"logs": [1]})
    assert await served.operate(f"/v1/wal/{WAL}/recover?accept_loss=true") == (200, {"logs": [1]})


async def test_the_format_level_is_shown_and_raised(served: Served) -> None:
    served.recovery = HandRecovery()
    assert await served.ask("GET", "/v1/cluster/format") == (200, '{"level": 1}')
    assert await served.operate("/v1/cluster/format") == (200, {"level": 2})
    assert await served.ask("GET", "/v1/cluster/format") == (200, '{"level": 2}')
    served.levels.error = KafkaError(ErrorCode.UNSUPPORTED_VERSION, "brokers [3] do not understand")
    assert await served.operate("/v1/cluster/format") == (409, {"error": "brokers [3] do not understand"})


async def test_a_real_broker_has_every_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.http.port, "LATER_S", 0)
    async with NodeRuns(tmp_path, tidelog_http_listener="[::1]:0" if socket.has_ipv6 else "127.0.0.1:0") as runs:
        await runs.start()
        await runs.create("t")
        await runs.produce("t", batch_of(b"a"), batch_of(b"b"))
        async with runs.client() as client:
            await client.fetch("t", 0)
            await client.fetch("t", 99)
        host, port = runs.broker.http_address or ("", 0)
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as response:
            families = {family.name: family for family in text_string_to_metric_families(await response.text())}
        assert set(families) == {family.name for family in runs.broker.metrics.read()}
        assert all(family.documentation for family in families.values())
        value = {name: family.samples[0].value for name, family in families.items() if family.samples}
        assert value["tidelog_batches_in"] == 2 and value["tidelog_ready"] == 1 and value["tidelog_logs"] == 1
        by_api = {one.labels["api"]: one.value for one in families["tidelog_requests"].samples}
        assert (by_api["Produce"], by_api["Fetch"]) == (2, 2)
        assert families["tidelog_errors"].samples[0].labels == {"error": "OFFSET_OUT_OF_RANGE"}
        assert await runs.stop() == 0


async def test_a_broker_is_drained_and_taken_back(served: Served) -> None:
    assert (await served.ask("POST", "/v1/brokers/7/drain"))[0] == 503, "not registered yet"
    assert (await served.ask("GET", "/v1/brokers"))[0] == 503
    served.recovery = HandRecovery()
    assert await served.ask("GET", "/v1/brokers/7") == (200, '{"node_id": 7, "drained": false}')
    assert await served.ask("POST", "/v1/brokers/7/drain") == (200, '{"node_id": 7, "drained": true}')
    assert (await served.ask("GET", "/v1/brokers"))[1].endswith('"brokers": [{"node_id": 7, "drained": true}]}')
    assert await served.ask("POST", "/v1/brokers/7/drain?undo=true") == (200, '{"node_id": 7, "drained": false}')
    for path in ("/v1/brokers/8", "/v1/brokers/x", "/v1/brokers/-1"):
        assert (await served.ask("GET", path))[0] == 404
