"""Transactions whose end may be lost: those that no coordinator knows of are aborted, the others are left alone."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from broker.background import Tasks
from broker.log import LogStatus
from broker.transactions.coordinator import TRANSACTION_TOPIC
from broker.transactions.model import Part
from broker.transactions.undecided import Undecided
from controller.remote import LinkError
from protocol.errors import ErrorCode, KafkaError
from protocol.records import BatchHeader
from storage.producers import ProducerStates
from tests.support.waiting import until

HOLE_END = 1000


class Led:
    """A log behind a hole, with transactions of the producers 7 and 8 open from before it, and of 9 from behind it."""

    topic, partition = "t", 0

    def __init__(self) -> None:
        self.status = LogStatus.OPEN
        self.end = HOLE_END
        self.producers = ProducerStates(hole_end=HOLE_END)
        self.refused = 0
        self.markers: list[tuple[int, int, int, bool]] = []
        for producer_id, base in ((7, 0), (8, 1), (9, HOLE_END)):
            header = BatchHeader(base, 49, 0, 2, 0, 0x10, 0, 5, 5, producer_id, 3, 0, 1)
            self.producers.append(header, base, 0, 1, base)

    def append_marker(
        self, producer_id: int, epoch: int, coordinator_epoch: int, *, commit: bool, transaction_version: int
    ) -> int:
        if self.refused:
            self.refused -= 1
            raise KafkaError(ErrorCode.NOT_ENOUGH_REPLICAS, "full")
        self.producers.check_marker(producer_id, epoch, coordinator_epoch, transaction_version)
        self.markers.append((producer_id, epoch, coordinator_epoch, commit))
        self.producers.complete(
            producer_id, epoch, coordinator_epoch, self.end, 1, timestamp=1, abort=not commit, durable_end=self.end
        )
        self.end += 1
        return self.end


class Cluster:
    """Two coordinators, the nodes 1 and 2."""

    def __init__(self, tasks: Tasks) -> None:
        self.leaders = [1, 2]
        self.under_way: dict[int, dict[int, set[Part]]] = {1: {}, 2: {}}
        self.down: set[int] = set()
        self.asked: list[int] = []
        self.led = Led()
        self.undecided = Undecided(self.state, self.ask, tasks, 1)
        self._callback: Any = None
        self.undecided.follow(self)  # type: ignore[arg-type]

    def on_open(self, callback: Any) -> None:
        self._callback = callback

    def open(self) -> None:
        self._callback(self.led)

    def state(self) -> Any:
        logs = [
            SimpleNamespace(
                status="open" if node >= 0 else "recovering", leader_node=node, leader_incarnation=1, epoch=1
            )
            for node in self.leaders
        ]
        topics = {TRANSACTION_TOPIC: SimpleNamespace(log_ids=[0, 1])}
        return SimpleNamespace(topics=topics, logs=logs)

    async def ask(self, node: int, producer_ids: frozenset[int]) -> dict[int, set[Part]]:
        self.asked.append(node)
        await asyncio.sleep(0)
        if node in self.down:
            raise LinkError("down")
        return {one: parts for one, parts in self.under_way[node].items() if one in producer_ids}


async def test_what_no_coordinator_knows_of_is_aborted(caplog: pytest.LogCaptureFixture) -> None:
    async with Tasks() as tasks:
        cluster = Cluster(tasks)
        caplog.set_level(logging.WARNING)
        cluster.under_way[2] = {7: {("t", 0)}, 8: {("t", 1)}, 9: set()}
        cluster.open()
        assert "7 from 0, 8 from 1" in caplog.text
        await until(lambda: bool(cluster.led.markers))
        assert cluster.led.markers == [(8, 3, 0, False)]
        assert "producer 8 has open from offset 1 is aborted" in caplog.text
        # Its coordinator ends the other one, or is done with it one day.
        await until(lambda: len(cluster.asked) > 8)
        assert cluster.led.markers == [(8, 3, 0, False)]
        cluster.under_way[2] = {}
        await until(lambda: len(cluster.led.markers) == 2)
        assert cluster.led.markers[1] == (7, 3, 0, False)
        assert dict(cluster.led.producers.open_transactions()) == {9: HOLE_END}


async def test_nothing_is_concluded_from_silence() -> None:
    async with Tasks() as tasks:
        cluster = Cluster(tasks)
        cluster.down = {2}
        cluster.open()
        await until(lambda: cluster.asked.count(2) > 3)
        assert not cluster.led.markers
        cluster.down, cluster.leaders = set(), [1, -1]
        asked = len(cluster.asked)
        await asyncio.sleep(0.02)
        assert len(cluster.asked) <= asked + 2
        assert not cluster.led.markers
        cluster.leaders, cluster.led.refused = [1, 1], 2
        await until(lambda: len(cluster.led.markers) == 2)


async def test_a_log_that_is_led_elsewhere_is_let_go() -> None:
    async with Tasks() as tasks:
        cluster = Cluster(tasks)
        cluster.down = {1}
        cluster.open()
        await until(lambda: bool(cluster.asked))
        cluster.led.status = LogStatus.CLOSED
        asked = len(cluster.asked)
        await asyncio.sleep(0.02)
        assert len(cluster.asked) <= asked + 1
        cluster.led, cluster.down = Led(), set()
        cluster.open()
        await until(lambda: len(cluster.led.markers) == 2)
