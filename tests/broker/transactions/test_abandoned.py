"""Transactions that nobody would end are found wherever they are open, and aborted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from broker.transactions import abandoned
from broker.transactions.abandoned import Abandoned
from broker.transactions.model import EPOCH_MAX, TV2, Ending, Part
from controller.remote import LinkError


class Cluster:
    """Two nodes that lead three partitions of `t` in turn; `open_there`: producers by partition."""

    def __init__(self) -> None:
        self.leaders: dict[Part, int | None] = {("t", 0): 1, ("t", 1): 2, ("t", 2): 1}
        self.open_there: dict[Part, list[int]] = {}
        self.silent: set[Part] = set()
        self.down: set[int] = set()
        self.asked: list[tuple[int, list[Part]]] = []
        self.begun: list[tuple[object, Ending, int]] = []

    def state(self) -> Any:
        topics = {"t": SimpleNamespace(name="t", log_ids=[part for part in self.leaders if part[0] == "t"])}
        logs = {
            part: SimpleNamespace(leader_node=node, status="open" if node is not None else "recovering")
            for part, node in self.leaders.items()
        }
        return SimpleNamespace(topics={name: one for name, one in topics.items() if one.log_ids}, logs=logs)

    async def describe(self, node: int, parts: list[Part]) -> dict[Part, list[int]]:
        self.asked.append((node, parts))
        await asyncio.sleep(0)
        if node in self.down:
            raise LinkError("down")
        return {part: self.open_there.get(part, []) for part in parts if part not in self.silent}

    def begin(self, owner: object, ending: Ending, coordinator_epoch: int, done: Callable[[], None]) -> None:
        self.begun.append((owner, ending, coordinator_epoch))

    def search(self) -> Abandoned:
        return Abandoned(self.state, self.describe, self)  # type: ignore[arg-type]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(abandoned, "ROUND_MS", 1)
    monkeypatch.setattr(abandoned, "PARTITIONS_MAX", 1)
    return Cluster()


async def test_what_is_open_anywhere_is_aborted(cluster: Cluster) -> None:
    cluster.open_there = {("t", 0): [7, 8], ("t", 1): [9], ("t", 2): [7]}
    await cluster.search().end("me", {7: "seven", 9: "nine", 10: "ten"}, 3)
    assert cluster.begun == [
        ("me", Ending("seven", 7, EPOCH_MAX, False, frozenset({("t", 0), ("t", 2)}), TV2), 3),
        ("me", Ending("nine", 9, EPOCH_MAX, False, frozenset({("t", 1)}), TV2), 3),
    ]
    assert cluster.asked == [(1, [("t", 0)]), (1, [("t", 2)]), (2, [("t", 1)])]


async def test_who_does_not_answer_is_asked_again(cluster: Cluster) -> None:
    cluster.open_there = {("t", 0): [7], ("t", 1): [7]}
    cluster.down.add(2)
    cluster.silent.add(("t", 0))
    cluster.leaders["t", 2] = None
    searching = asyncio.ensure_future(cluster.search().end("me", {7: "seven"}, 3))  # noqa: TID251
    while len(cluster.asked) < 6:
        await asyncio.sleep(0)
    assert not searching.done()
    cluster.leaders = {("t", 0): 2, ("t", 1): 1}  # the third is gone
    cluster.down.clear(), cluster.silent.clear()
    await searching
    ((_, ending, _),) = cluster.begun
    assert ending.partitions == {("t", 0), ("t", 1)}


async def test_a_partition_without_a_leader_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(abandoned, "ROUNDS", 3)
    cluster.leaders["t", 1] = None
    cluster.open_there = {("t", 0): [7]}
    with caplog.at_level(logging.WARNING):
        await cluster.search().end("me", {7: "seven"}, 3)
    assert "1 partitions have no leader that answers, the first is t-1" in caplog.text
    assert len(cluster.begun) == 1 and len(cluster.asked) == 2
