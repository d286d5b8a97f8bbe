"""The HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever restarts us, operator commands.

Nothing here is on the path of a record. Operator commands are below `/v1/`; they answer JSON, errors as
`{"error": text}` with 404 (no such instance), 409 (refused) or 503 (try again).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from broker.metrics import Family, Metrics
from broker.operators import Drains, Operators
from broker.recovery import RecoveryStopped, WalRecovery
from protocol.errors import ErrorCode, KafkaError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BODY_BYTES_MAX = 64 * 1024
OPERATION_S = 60
"""How long a request waits for the end of an operator's decision, which goes on without it."""
SHUTDOWN_S = 1


class _Scrape(Collector):
    """Turns the registered read functions into what the Prometheus library prints."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for family in self._metrics.read():
            if family.histogram is not None:
                yield _histogram(family)
                continue
            names = [name for name, _ in family.samples[0].labels] if family.samples else []
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            printed = kind(family.name, family.help, labels=names)
            for sample in family.samples:
                printed.add_metric([value for _, value in sample.labels], sample.value)
            yield printed


def _histogram(family: Family) -> HistogramMetricFamily:
    assert family.histogram is not None
    total, seconds = 0, 0.0
    buckets = []
    for bound, count in sorted(family.histogram.items()):
        total += count
        seconds += count * bound * 0.75  # buckets double: the middle of each is three quarters of its bound
        buckets.append((f"{bound:g}", total))
    buckets.append(("+Inf", total))
    printed = HistogramMetricFamily(family.name, family.help)
    printed.add_metric([], buckets, sum_value=seconds)
    return printed


class HttpServer:
    """Runs on the broker's event loop; `start` serves on a bound socket, `stop` closes it.

    `operators` gives None until the broker has registered; operator commands answer 503 before.
    """

    def __init__(self, metrics: Metrics, ready: Callable[[], bool], operators: Callable[[], Operators | None]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Scrape(metrics))
        self._ready = ready
        self._operators = operators
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/v1/wal", self._list_wals),
                web.post("/v1/wal/{wal_id}/recover", self._recover),
                web.post("/v1/wal/{wal_id}/declare-lost", self._declare_lost),
                web.get("/v1/cluster/format", self._format_level),
                web.post("/v1/cluster/format", self._raise_format_level),
                web.get("/v1/brokers", self._list_brokers),
                web.get("/v1/brokers/{node_id}", self._describe_broker),
                web.post("/v1/brokers/{node_id}/drain", self._drain),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)

    async def start(self, listening: socket.socket) -> None:
        """Serve on a socket that is bound."""
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        """Close the port and its connections."""
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self._ready() else web.Response(status=503, text="not ready\n")

    async def _list_wals(self, request: web.Request) -> web.Response:
        operators = self._operators()
        if operators is None:
            return _not_registered()
        return web.json_response(operators.recovery.rows(settled=request.query.get("all") == "true"))

    async def _recover(self, request: web.Request) -> web.Response:
        if request.query.get("accept_loss") != "true":
            return _error(409, "recovering a damaged instance loses records: say accept_loss=true")
        return await self._operate(request, lambda recovery, wal_id: recovery.accept_loss(wal_id))

    async def _declare_lost(self, request: web.Request) -> web.Response:
        destroyed = request.query.get("host_is_destroyed") == "true"
        return await self._operate(
            request, lambda recovery, wal_id: recovery.declare_lost(wal_id, host_is_destroyed=destroyed)
        )

    async def _operate(
        self, request: web.Request, work: "Callable[[WalRecovery, bytes], asyncio.Future[dict[str, Any]]]"
    ) -> web.Response:
        operators = self._operators()
        if operators is None:
            return _not_registered()
        try:
            wal_id = bytes.fromhex(request.match_info["wal_id"])
        except ValueError:
            return _error(404, "a WAL instance is named by 32 hex digits")
        try:
            outcome = work(operators.recovery, wal_id)
            await asyncio.wait([outcome], timeout=OPERATION_S)
            if not outcome.done():
                return _error(503, f"still at work after {OPERATION_S} s: ask again to hear how it ends")
            return web.json_response(outcome.result())
        except KeyError:
            return _error(404, f"no WAL instance {wal_id.hex()} waits for this here")
        except RecoveryStopped as stopped:
            return _error(409, str(stopped))
        except KafkaError as error:
            return _refusal(error)

    async def _format_level(self, _: web.Request) -> web.Response:
        operators = self._operators()
        return _not_registered() if operators is None else web.json_response(operators.format_levels.describe())

    async def _raise_format_level(self, _: web.Request) -> web.Response:
        operators = self._operators()
        if operators is None:
            return _not_registered()
        try:
            return web.json_response(await operators.format_levels.raise_level())
        except KafkaError as error:
            return _refusal(error)

    async def _list_brokers(self, _: web.Request) -> web.Response:
        operators = self._operators()
        return _not_registered() if operators is None else web.json_response(operators.drains.describe_all())

    async def _describe_broker(self, request: web.Request) -> web.Response:
        async def describe(drains: Drains, node_id: int) -> dict[str, Any]:
            return drains.describe(node_id)

        return await self._about_broker(request, describe)

    async def _drain(self, request: web.Request) -> web.Response:
        undo = request.query.get("undo") == "true"
        return await self._about_broker(request, lambda drains, node_id: drains.drain(node_id, undo=undo))

    async def _about_broker(
        self, request: web.Request, work: Callable[[Drains, int], Awaitable[dict[str, Any]]]
    ) -> web.Response:
        operators = self._operators()
        if operators is None:
            return _not_registered()
        text = request.match_info["node_id"]
        if not text.isascii() or not text.isdecimal():
            return _error(404, "a broker is named by its node.id")
        try:
            return web.json_response(await work(operators.drains, int(text)))
        except KafkaError as error:
            return _refusal(error)


def _not_registered() -> web.Response:
    return _error(503, "the broker has not registered yet")


def _refusal(error: KafkaError) -> web.Response:
    status = 404 if error.code is ErrorCode.RESOURCE_NOT_FOUND else 503 if error.retriable else 409
    return _error(status, error.message)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
