"""A coordinator on logs in memory, on the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from broker.background import Tasks
from broker.coordination.runtime import CoordinatorLog
from broker.groups.coordinator import OFFSETS_TOPIC, GroupCoordinators
from broker.settings import Settings
from tests.support.memory_log import MemoryLog


class FakeClock:
    def __init__(self) -> None:
        self.wall_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.wall_ms

    def boottime_ms(self) -> int:
        return self.wall_ms


class FakeTopic:
    def __init__(self, name: str, topic_id: bytes, partitions: int, first_log_id: int) -> None:
        self.name = name
        self.topic_id = topic_id
        self.internal = name.startswith("__")
        self.log_ids = list(range(first_log_id, first_log_id + partitions))


class FakeLeadership:
    def __init__(self) -> None:
        self.leader_node = 1
        self.status = "open"


class FakeAddress:
    def __init__(self, name: str, host: str, port: int) -> None:
        self.name, self.host, self.port = name, host, port


class FakeBroker:
    def __init__(self) -> None:
        self.node_id = 1
        self.alive = True
        self.listeners = [FakeAddress("PLAINTEXT", "localhost", 9092), FakeAddress("OTHER", "elsewhere", 9093)]


class FakeState:
    def __init__(self) -> None:
        self.topics: dict[str, FakeTopic] = {}
        self.topic_by_id: dict[bytes, FakeTopic] = {}
        self.logs: dict[int, FakeLeadership] = {}
        self.brokers = {1: FakeBroker()}
        self.created = 0
        self.format_level = 3
        self.position = 1
        self.configs: dict[tuple[int, str], dict[str, str]] = {}
        self.features: dict[str, int] = {"group.version": 1}

    def add(self, name: str, partitions: int) -> FakeTopic:
        self.created = number = self.created + 1
        self.position += 1
        topic = FakeTopic(name, bytes([number]) * 16, partitions, 1000 * number)
        self.topics[name] = self.topic_by_id[topic.topic_id] = topic
        self.logs.update({log_id: FakeLeadership() for log_id in topic.log_ids})
        return topic

    def remove(self, name: str) -> bytes:
        topic = self.topics.pop(name)
        del self.topic_by_id[topic.topic_id]
        return topic.topic_id


class FakeController:
    def __init__(self) -> None:
        self.state = FakeState()
        self.asked: list[Any] = []
        self.refuse: Exception | None = None

    def subscribe(self, listener: Any) -> Any:
        return lambda: None

    async def ask(self, command: Any) -> Any:
        self.asked.append(command)
        await asyncio.sleep(0)
        if self.refuse is not None:
            raise self.refuse
        if command.name not in self.state.topics:
            self.state.add(command.name, command.partitions)


class Bench:
    """One coordinator; `log(partition)` opens a partition and returns its log."""

    def __init__(self, tasks: Tasks, **overrides: Any) -> None:
        self.clock = FakeClock()
        self.controller = FakeController()
        self.controller.state.add("t", 4)
        self.tokens = 0
        self.moved: list[tuple[CoordinatorLog, int]] = []
        self.move_error: Exception | None = None
        self.tasks = tasks
        self.groups = self.coordinators(**overrides)

    def coordinators(self, **overrides: Any) -> GroupCoordinators:
        settings = Settings(**{"offsets_topic_num_partitions": 1, "group_initial_rebalance_delay_ms": 0, **overrides})
        return GroupCoordinators(settings, self.controller, self.clock, self.token, self.tasks, self.advance_start)  # type: ignore[arg-type]

    def token(self, count: int) -> bytes:
        self.tokens += 1
        return self.tokens.to_bytes(count, "big")

    async def advance_start(self, log: CoordinatorLog, offset: int) -> None:
        await asyncio.sleep(0)
        if self.move_error is not None:
            raise self.move_error
        self.moved.append((log, offset))
        log.start = offset

    async def open(self, log: MemoryLog | None = None) -> MemoryLog:
        """Lead a partition (0 if not said) and wait until it is loaded."""
        log = log or MemoryLog()
        if OFFSETS_TOPIC not in self.controller.state.topics:
            self.controller.state.add(OFFSETS_TOPIC, self.groups.settings.offsets_topic_num_partitions)
        self.groups.open(log.partition, log)
        while not self.groups.partitions[log.partition].active:
            await asyncio.sleep(0)
        return log


@pytest_asyncio.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as owner:
        yield owner


@pytest_asyncio.fixture
async def bench(tasks: Tasks) -> AsyncIterator[Bench]:
    made = Bench(tasks)
    yield made
    made.groups.stop()
