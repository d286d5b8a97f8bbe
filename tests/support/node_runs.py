"""Runs of one node in the test's loop: started, killed and stopped over one WAL root and one object store."""

import asyncio
import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

import broker.bucket
import broker.earlier_instances
import broker.recovery
import broker.registration
import broker.shutdown
import controller.runtime
import storage.uploader
from broker.clock import SystemClock
from broker.node import Broker
from broker.settings_checks import build
from protocol import messages as m
from protocol.apis import ApiKey
from storage.memory import MemoryStore
from storage.object_store import ObjectStore
from tests.support.raw_client import RawClient

NEVER_MS = 10_000_000


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts that a test does not want to sit through."""
    monkeypatch.setattr(broker.bucket, "RETRY_S", 0.005)
    monkeypatch.setattr(broker.earlier_instances, "RETRY_S", 0.005)
    monkeypatch.setattr(broker.recovery, "RETRY_S", 0.005)
    monkeypatch.setattr(broker.shutdown, "RETRY_S", 0.005)
    monkeypatch.setattr(broker.registration, "RETRY_S", 0.005)
    monkeypatch.setattr(controller.runtime, "RETRY_MS", 2)
    monkeypatch.setattr(controller.runtime, "RETRY_MS_MAX", 10)
    monkeypatch.setattr(storage.uploader, "BACKOFF_MS_FIRST", 1)
    monkeypatch.setattr(storage.uploader, "BACKOFF_MS_MAX", 5)


class NodeRuns:
    """`async with NodeRuns(path) as runs: await runs.start()`. What still runs at the end is killed.

    `wrap` stands between every run and the store, `memory`; None: the store is that of the setting. Nothing is sealed
    by age unless the overrides say so.
    """

    def __init__(self, path: Path, **overrides: object) -> None:
        self.path = path
        self.memory = MemoryStore()
        self.wrap: Callable[[MemoryStore], ObjectStore] | None = lambda memory: memory
        self.overrides: dict[str, object] = {
            "listeners": "PLAINTEXT://127.0.0.1:0",
            "tidelog.http.listener": "",
            "tidelog.storage": "memory:",
            "tidelog.wal.dir": path / "wal",
            "tidelog.wal.file.bytes": 2 << 20,
            "tidelog.wal.bytes.max": 64 << 20,
            "tidelog.seal.ms": NEVER_MS,
            "group.initial.rebalance.delay.ms": 0,
            **{key.replace("_", "."): value for key, value in overrides.items()},
        }
        self.codes: list[int] = []
        self._stop = asyncio.Event()
        self._running: asyncio.Task[int] | None = None
        self._broker: Broker | None = None

    @property
    def broker(self) -> Broker:
        """The present run."""
        assert self._broker is not None
        return self._broker

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.broker.listeners[0].port

    def client(self) -> RawClient:
        """A connection to the present run."""
        return RawClient(self.port)

    def spawn(self) -> "asyncio.Task[bool]":
        """Begin a run; the task tells whether it came to serve."""
        assert self._running is None or self._running.done()
        settings = build({key: str(value) for key, value in self.overrides.items()})
        wrap = self.wrap
        opener = None if wrap is None else lambda _: wrap(self.memory)
        self._broker = Broker(settings, clock=SystemClock(), token=os.urandom, open_store=opener)
        self._stop = asyncio.Event()
        ready = asyncio.Event()
        self._running = asyncio.ensure_future(  # noqa: TID251
            self._broker.run(self._stop, lambda _: ready.set())
        )

        async def served() -> bool:
            assert self._running is not None
            waiting = asyncio.ensure_future(ready.wait())  # noqa: TID251
            await asyncio.wait({self._running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            return ready.is_set()

        return asyncio.ensure_future(served())  # noqa: TID251

    async def start(self, timeout_s: float = 20) -> Broker:
        """Begin a run and wait until it serves."""
        async with asyncio.timeout(timeout_s):
            assert await self.spawn(), f"ended before it served: {self._running}"
        return self.broker

    async def kill(self) -> None:
        """End the run as a crash would: nothing is said to anybody."""
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait({self._running})

    async def ended(self, timeout_s: float = 10) -> int:
        """The exit code of a run that ends."""
        assert self._running is not None
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self._running)

    async def stop(self, timeout_s: float = 20) -> int:
        """What SIGTERM does; the exit code."""
        self._stop.set()
        return await self.ended(timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running is not None and not self._running.done():
            await self.kill()

    # The state between runs

    @property
    def wal_dir(self) -> Path:
        """The WAL root."""
        return self.path / "wal"

    def instances(self) -> list[Path]:
        """Instance directories."""
        return sorted(path for path in self.wal_dir.iterdir() if len(path.name) == 32)

    def save(self) -> Callable[[], None]:
        """Remember disk and store; the result brings them back, as often as wanted."""
        objects, keys = copy.copy(self.memory._objects), copy.copy(self.memory._keys)
        saved = self.path / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(self.wal_dir, saved)

        def back() -> None:
            self.memory._objects, self.memory._keys = copy.copy(objects), copy.copy(keys)
            # A thread of a killed run may still be deleting in it.
            gone = self.path / f"gone-{os.urandom(4).hex()}"
            self.wal_dir.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            shutil.copytree(saved, self.wal_dir)

        return back

    # Clients

    async def create(self, name: str, partitions: int = 1, **configs: str) -> None:
        """A topic; config names with `_` for `.`."""
        topic = m.CreateTopicsRequest.CreatableTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=1,
            configs=[
                m.CreateTopicsRequest.CreatableTopicConfig(name=key.replace("_", "."), value=value)
                for key, value in configs.items()
            ],
        )
        async with self.client() as client:
            answer = await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic], timeout_ms=10_000))
        assert answer.topics[0].error_code == 0, answer

    async def produce(self, topic: str, *batches: Any, partition: int = 0) -> list[int]:
        """Base offsets of batches that were acknowledged one by one."""
        offsets = []
        async with self.client() as client:
            for batch in batches:
                answer = await client.produce(topic, batch, partition=partition)
                assert answer.error_code == 0, answer
                offsets.append(answer.base_offset)
        return offsets

    async def offsets(self, topic: str, partition: int = 0) -> tuple[int, int]:
        """(start, high watermark) as the log has it."""
        log = self.broker.logs.find[topic, partition]
        return log.start, log.hw
