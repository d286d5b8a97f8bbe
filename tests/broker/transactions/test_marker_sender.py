"""Markers reach every partition's leader, once it can be reached, and nobody's when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from broker.background import Tasks
from broker.transactions import marker_sender
from broker.transactions.marker_sender import MarkerSender, Wanted
from broker.transactions.markers import Marker
from broker.transactions.model import Ending, Part
from controller import facts as f
from controller.remote import LinkError
from protocol.errors import ErrorCode

NONE = ErrorCode.NONE


class Cluster:
    """Topics with leaders, and what the brokers were told. `node_of[part]` None: nobody leads."""

    def __init__(self) -> None:
        self.node_of: dict[Part, int | None] = {("t", n): n % 2 + 1 for n in range(4)}
        self.told: list[tuple[int, Wanted]] = []
        self.written: dict[Part, list[Marker]] = {}
        self.errors: dict[Part, ErrorCode] = {}
        self.down: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    def state(self) -> Any:
        topics: dict[str, Any] = {}
        logs: dict[Part, Any] = {}
        for (topic, partition), node in self.node_of.items():
            known = topics.setdefault(topic, SimpleNamespace(log_ids=[]))
            known.log_ids.append((topic, partition))
            logs[topic, partition] = SimpleNamespace(
                leader_node=node, status="open" if node is not None else "recovering"
            )
        return SimpleNamespace(topics=topics, logs=logs)

    async def send(self, node: int, wanted: Wanted) -> list[dict[Part, ErrorCode]]:
        self.told.append((node, wanted))
        await self.gate.wait()
        if node in self.down:
            raise LinkError("down")
        results = []
        for marker, parts in wanted:
            result = {}
            for part in parts:
                error = self.errors.get(part, NONE)
                if self.node_of.get(part) != node:
                    error = ErrorCode.NOT_LEADER_OR_FOLLOWER
                if error is NONE:
                    self.written.setdefault(part, []).append(marker)
                result[part] = error
            results.append(result)
        return results


def ending(name: str, *partitions: int, producer_id: int = 7, commit: bool = True) -> Ending:
    return Ending(name, producer_id, 3, commit, frozenset(("t", n) for n in partitions), 2)


async def turns(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest_asyncio.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as owner:
        yield owner


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def sender(cluster: Cluster, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> MarkerSender:
    monkeypatch.setattr(marker_sender, "BACKOFF_MS", 1)
    monkeypatch.setattr(marker_sender, "BACKOFF_MS_MAX", 5)
    return MarkerSender(cluster.state, cluster.send, tasks)


async def test_every_leader_is_told(cluster: Cluster, sender: MarkerSender) -> None:
    done: list[str] = []
    sender.begin("owner", ending("a", 0, 1, 2), 9, lambda: done.append("a"))
    await turns(lambda: bool(done))
    assert cluster.written == {("t", n): [Marker(7, 3, 9, True, 2)] for n in (0, 1, 2)}
    assert len(sender) == 0 and sender.waiting == 0 and sender.written == 3


async def test_transactions_that_end_together_share_requests(cluster: Cluster, sender: MarkerSender) -> None:
    done: list[str] = []
    cluster.gate.clear()
    for number in range(50):
        name = f"tx-{number}"
        sender.begin("owner", ending(name, 0, 1, producer_id=number), 1, lambda name=name: done.append(name))
        if number == 10:
            await asyncio.sleep(0.01)  # what ends now is on its way
    cluster.gate.set()
    await turns(lambda: len(done) == 50)
    assert len(cluster.told) == 4, "two requests to each of two brokers"


async def test_a_request_is_bounded(cluster: Cluster, sender: MarkerSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marker_sender, "PARTITIONS_MAX", 10)
    done: list[int] = []
    for number in range(25):
        sender.begin("owner", ending(f"{number}", 0, producer_id=number), 1, lambda number=number: done.append(number))
    await turns(lambda: len(done) == 25)
    assert [sum(len(parts) for _, parts in wanted) for _, wanted in cluster.told] == [10, 10, 5]


@pytest.mark.parametrize(
    "error",
    [
        ErrorCode.NOT_ENOUGH_REPLICAS,
        ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.REQUEST_TIMED_OUT,
    ],
)
async def test_what_was_not_written_is_sent_again(cluster: Cluster, sender: MarkerSender, error: ErrorCode) -> None:
    done: list[str] = []
    cluster.errors["t", 1] = error
    sender.begin("owner", ending("a", 0, 1), 1, lambda: done.append("a"))
    await turns(lambda: sender.retries > 3)
    assert not done and sender.waiting == 1
    cluster.errors.clear()
    await turns(lambda: bool(done))
    assert len(cluster.written["t", 0]) == 1, "what was written is not sent again"


async def test_a_broker_that_is_away(cluster: Cluster, sender: MarkerSender) -> None:
    done: list[str] = []
    cluster.down = {2}
    sender.begin("owner", ending("a", 0, 1), 1, lambda: done.append("a"))
    await turns(lambda: sender.retries > 3)
    assert not done
    cluster.node_of["t", 1] = None
    await asyncio.sleep(0.02)
    assert not done, "nobody leads it"
    cluster.node_of["t", 1] = 1
    await turns(lambda: bool(done))
    assert cluster.told[-1][0] == 1


async def test_leaders_are_looked_up_when_facts_come(
    cluster: Cluster, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marker_sender, "BACKOFF_MS", 3_600_000)
    monkeypatch.setattr(marker_sender, "BACKOFF_MS_MAX", 3_600_000)
    sender = MarkerSender(cluster.state, cluster.send, tasks)
    done: list[str] = []
    cluster.node_of["t", 0] = None
    sender.begin("owner", ending("a", 0), 1, lambda: done.append("a"))
    cluster.node_of["t", 0] = 1
    sender.on_facts([f.LeaseExtended()])
    await asyncio.sleep(0)
    assert not cluster.told
    sender.on_facts([f.TopicDeleted(bytes(16))])
    await turns(lambda: bool(done))


async def test_deleted_topics_need_no_marker(cluster: Cluster, sender: MarkerSender) -> None:
    done: list[str] = []
    everywhere = ending("a", 0)._replace(partitions=frozenset({("gone", 0), ("t", 99)}))
    sender.begin("owner", everywhere, 1, lambda: done.append("a"))
    assert done == ["a"] and not cluster.told
    sender.begin("owner", ending("b"), 1, lambda: done.append("b"))
    assert done == ["a", "b"], "an abort of nothing"
    cluster.node_of["t", 0] = None
    sender.begin("owner", ending("c", 0), 1, lambda: done.append("c"))
    cluster.node_of.clear()
    await turns(lambda: "c" in done)


async def test_a_fenced_coordinator_gives_up(
    cluster: Cluster, sender: MarkerSender, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    cluster.errors["t", 0] = ErrorCode.TRANSACTION_COORDINATOR_FENCED
    sender.begin("owner", ending("a", 0), 1, lambda: done.append("a"))
    await turns(lambda: len(sender) == 0)
    assert not done and "there is a newer coordinator" in caplog.text


async def test_a_coordinator_that_lost_its_state_does_not_wait_for_ever(
    cluster: Cluster, sender: MarkerSender, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    cluster.errors["t", 0] = ErrorCode.INVALID_PRODUCER_EPOCH
    sender.begin("owner", ending("a", 0, 1), 1, lambda: done.append("a"))
    await turns(lambda: len(sender) == 0)
    assert done == ["a"] and ("t", 1) in cluster.written and "was its state lost?" in caplog.text


async def test_dropped_work_is_not_finished(cluster: Cluster, sender: MarkerSender) -> None:
    done: list[str] = []
    cluster.gate.clear()
    sender.begin("mine", ending("a", 0), 1, lambda: done.append("a"))
    sender.begin("other", ending("b", 0, producer_id=8), 1, lambda: done.append("b"))
    await turns(lambda: bool(cluster.told))
    sender.drop("mine")
    cluster.gate.set()
    await turns(lambda: bool(done))
    await asyncio.sleep(0.01)
    assert done == ["b"] and len(sender) == 0


async def test_who_begins_again_is_told_once(cluster: Cluster, sender: MarkerSender) -> None:
    """The same transaction, loaded again by the same broker, while the first request is on its way."""
    done: list[int] = []
    cluster.gate.clear()
    sender.begin("owner", ending("a", 0), 1, lambda: done.append(1))
    await turns(lambda: bool(cluster.told))
    sender.begin("owner", ending("a", 0), 2, lambda: done.append(2))
    cluster.gate.set()
    await turns(lambda: bool(done))
    await asyncio.sleep(0.01)
    assert done == [2]
    assert [marker.coordinator_epoch for marker in cluster.written["t", 0]] == [1, 2]
