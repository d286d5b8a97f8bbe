"""The simulated clients against a whole broker on a real event loop."""

import asyncio
import itertools
import random  # noqa: TID251
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.checker import Final, check
from tests.simulation.client import ClientSettings, SimulatedClient
from tests.simulation.consumers import Consumer, ConsumerLoad, GroupLoad, GroupMember
from tests.simulation.history import History
from tests.simulation.operators import Admin, FinalReader
from tests.simulation.producers import IdempotentProducer, PlainProducer, ProducerLoad
from tests.support.waiting import until
from tests.support.whole_broker import whole_broker

SETTINGS = ClientSettings(request_timeout_ms=2_000, retry_backoff_ms=10)
TOPICS = {"t": 2, "u": 1}
PARTS = [("t", 0), ("t", 1), ("u", 0)]
FAST = ProducerLoad(pause_ms=(1, 5))


@pytest.fixture
def history() -> Iterator[History]:
    ticks = itertools.count()
    yield History(lambda: next(ticks))


def kinds(history: History) -> Counter[str]:
    return Counter(event.kind for event in history)


async def test_all_clients_together(tmp_path: Path, history: History) -> None:
    numbers = itertools.count(1)
    async with whole_broker(tmp_path, tidelog_seal_ms=100, offsets_topic_num_partitions=2) as broker:
        common = ([("127.0.0.1", broker.listeners[0].port)], history, random.Random(1), numbers)
        admin = Admin("admin", *common, TOPICS, delete_from=["u"], pause_ms=(50, 150), settings=SETTINGS)
        clients: list[SimulatedClient] = [admin]
        for version in (9, 13):
            load = ProducerLoad(pause_ms=(1, 5), version=version)
            clients.append(IdempotentProducer(f"sure-{version}", *common, PARTS, load, SETTINGS))
        clients.append(PlainProducer("plain", *common, PARTS, FAST, SETTINGS))
        for version in (11, 16):
            clients.append(Consumer(f"reader-{version}", *common, PARTS, ConsumerLoad(version=version), SETTINGS))
        for number in range(2):
            group_load = GroupLoad(heartbeat_ms=100, commit_ms=50)
            member = GroupMember(
                f"member-{number}", *common, PARTS, settings=SETTINGS, group="g", group_load=group_load
            )
            clients.append(member)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(admin.run())
            await until(lambda: admin.created)
            for client in clients[1:]:
                tasks.create_task(client.run())
            await until(lambda: kinds(history)["produce.ok"] >= 150 and kinds(history)["commit.ok"] >= 4)
            for client in clients:
                client.stop()
        reader = FinalReader("final", *common, PARTS, groups=["g"], settings=SETTINGS)
        await reader.run()
    counts = kinds(history)
    assert counts["final.read"] == len(PARTS)
    assert counts["final.offsets"] == 1
    assert counts["client.end"] == len(clients) + 1
    assert counts["produce.unknown"] == counts["produce.fail"] == counts["produce.refused"] == 0
    assert check(history, Final()) == []
