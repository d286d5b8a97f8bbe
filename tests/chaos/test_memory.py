"""Full, and everybody wants more: the process's memory stays inside its configured bounds."""

import asyncio
import contextlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.chaos.load import create_topic
from tests.chaos.outage import REFUSE, Background, StoreUnderFaults, Watch, broker_over, wait_until
from tests.support.raw_client import RawClient, batch_of, fetch_request, produce_request
from tests.support.s3_servers import S3Server

MIB = 1 << 20
TAIL_BYTES_MAX = 16 * MIB
REQUEST_BYTES_MAX = 8 * MIB
ALLOWANCE_BYTES = 32 * MIB
"""What a process takes beside its bounds: connections and their scratch, caches of the allocator, code used first."""
BIG = 900_000
REFUSED = 200


async def produce_until_refused(port: int, size: int, timeout_ms: int, seen: Counter[str]) -> None:
    """Pipelined requests on one connection, until one finds no space."""
    batch = batch_of(os.urandom(size))
    async with RawClient(port) as client:
        refused, waiting = False, 0
        while not refused or waiting:
            while not refused and waiting < 16:
                client.send(ApiKey.PRODUCE, 9, produce_request([("load", 0, batch)], timeout_ms=timeout_ms))
                waiting += 1
            _, answer = await client.receive(ApiKey.PRODUCE, 9, 60)
            waiting -= 1
            code = answer.responses[0].partition_responses[0].error_code
            seen[ErrorCode(code).name] += 1
            refused = refused or code != 0


async def produce_big(port: int, requests: int, acks: int, seen: Counter[str]) -> None:
    """Large requests, all sent before the first answer is read."""
    batch = batch_of(os.urandom(BIG))
    async with RawClient(port) as client:

        async def send() -> None:
            for _ in range(requests):
                client.send(ApiKey.PRODUCE, 9, produce_request([("load", 1, batch)], acks=acks, timeout_ms=200))
                await client.writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for _ in range(requests):
                _, answer = await client.receive(ApiKey.PRODUCE, 9, 60)
                seen[ErrorCode(answer.responses[0].partition_responses[0].error_code).name] += 1


async def never_read(port: int, stop: asyncio.Event) -> None:
    """Asks for megabytes and does not take them."""
    client = RawClient(port)
    client.reader, client.writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        for _ in range(8):
            client.send(ApiKey.FETCH, 12, fetch_request([("load", 0, 0)], max_bytes=MIB))
        await stop.wait()
    finally:
        client.writer.transport.abort()


async def press(port: int, seen: Counter[str]) -> None:
    """Everything at once, on a broker that becomes full."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(produce_until_refused(port, 1000, 200, seen) for _ in range(4)))
        readers = [group.create_task(never_read(port, stop)) for _ in range(24)]
        await asyncio.gather(
            *(produce_big(port, 2, -1, seen) for _ in range(24)),
            *(produce_big(port, REFUSED // 4, 5, seen) for _ in range(4)),
        )
        stop.set()
        await asyncio.gather(*readers)


@pytest.mark.timeout(120)
def test_memory_stays_inside_its_bounds(moto_server: S3Server, tmp_path: Path) -> None:
    """Offered are 24 MB that wait, 180 MB that are refused and 190 MB that nobody reads, beside full tails."""
    overrides = {
        "tidelog_tail_bytes_max": TAIL_BYTES_MAX,
        "tidelog_tail_keep_bytes": 0,
        "tidelog_read_cache_bytes": MIB,
        "queued_max_request_bytes": REQUEST_BYTES_MAX,
        "tidelog_seal_ms": 300,
    }
    seen: Counter[str] = Counter()
    with (
        StoreUnderFaults(moto_server) as store,
        broker_over(store, tmp_path / "data", **overrides) as broker,
        contextlib.closing(Background("clients")) as clients,
    ):
        create_topic(broker.bootstrap, 2)
        with Watch(broker) as watch:
            store.away(REFUSE)
            clients.call(press(broker.port, seen), 90)
            assert watch.last["tail_bytes"] > TAIL_BYTES_MAX // 2
            store.back()
            wait_until(lambda: watch.last["tail_bytes"] == 0, 60, "upload of everything")
        watch.check()
        print(f"answers: {json.dumps(seen)}")
        peaks = ("tail_bytes", "request_bytes_peak", "unsent_bytes")
        print({name: f"{watch.peak[name] / MIB:.1f} MiB" for name in peaks})
        print(f"memory: {watch.rss_before / MIB:.0f} MiB, {watch.rss / MIB:.0f} at most")
        assert seen.keys() == {"NONE", "NOT_ENOUGH_REPLICAS", "INVALID_REQUIRED_ACKS"}
        assert watch.peak["tail_bytes"] <= TAIL_BYTES_MAX
        # Reading pauses beyond the bound, so one request more may be there.
        assert watch.peak["request_bytes_peak"] <= REQUEST_BYTES_MAX + MIB
        # Tails, and what uploads copy of them; requests; answers nobody reads, as much again.
        bound = 2 * TAIL_BYTES_MAX + 2 * REQUEST_BYTES_MAX
        assert watch.rss <= watch.rss_before + bound + ALLOWANCE_BYTES
        assert broker.stop() == 0
