"""The produce and fetch side of a broker in this process: real sockets, real volume WAL, facts by hand."""

import asyncio
import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from broker.background import Tasks
from broker.clock import SystemClock
from broker.cold import ColdReads
from broker.configs import TopicDefaults
from broker.dispatch import HANDLERS
from broker.fetch_sessions import FetchSessions
from broker.handlers.fetch import COLD_PARALLEL
from broker.handlers.init_producer_id import ProducerIds
from broker.log import Log
from broker.log_table import LogTable
from broker.metrics import Counters, Metrics
from broker.quotas import ClientQuotas
from broker.server import Server
from broker.services import Services
from broker.settings import Listener, Settings
from broker.validation import FileFence, Validation
from broker.wheel import Wheel
from controller import facts as f
from controller.client import Grant, Session
from storage.manifest import Manifests
from storage.memory import MemoryStore
from storage.reader import Reader
from storage.seal import SealedLog, SegmentObject, Writer
from storage.segment import SegmentWriter, encode_segment
from storage.wal.volume import VolumeWal
from tests.support.facts_controller import FactsController

NODE, INCARNATION, WAL_ID = 1, 77, bytes(range(16))
OTHER_NODE, OTHER_INCARNATION, OTHER_WAL = 2, 88, bytes(range(16, 32))
MIB = 1 << 20


def topic_id_of(name: str) -> bytes:
    """The id that `HotBroker.create_topic` gives."""
    return name.encode().ljust(16, b".")[:16]


class Gate:
    """`VolumeWal.on_durable` that a test may hold back."""

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self.closed = False
        self.last = (0, 0)

    def __call__(self, sequence: int, group: int) -> None:
        self.last = (sequence, group)
        if not self.closed:
            self.validation.on_durable(sequence, group)

    def open(self) -> None:
        self.closed = False
        if self.last[0] > self.validation.durable:
            self.validation.on_durable(*self.last)


class HotBroker:
    """`async with HotBroker(path) as broker`: listening on `broker.port`, leading the topics it creates."""

    def __init__(self, path: Path, clock: Any = None, handlers: Any = None, **settings: object) -> None:
        values: dict[str, Any] = {
            "node_id": NODE,
            "tidelog_wal_file_bytes": 2 * MIB,
            "tidelog_wal_bytes_max": 32 * MIB,
            **settings,
        }
        self.settings = Settings(**values)
        self.path = path
        self.clock = clock or SystemClock()
        self.handlers = handlers or HANDLERS
        self.store: Any = MemoryStore()
        self.controller = FactsController()
        self.session = Session()
        self.validation = Validation()
        self.gate = Gate(self.validation)
        self.failures: list[BaseException] = []
        self._log_ids = itertools.count()
        self._seals = itertools.count(1)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)
        if error is None:
            assert not self.failures, self.failures
            assert self.server.hub.budget.used == 0, f"{self.server.hub.budget.used} bytes were never given back"
            assert self.server.hub.unsent_bytes == 0

    async def _start(self) -> None:
        settings, clock = self.settings, self.clock
        tasks = await self._stack.enter_async_context(Tasks())
        readers = await self._stack.enter_async_context(asyncio.TaskGroup())
        counters = Counters()
        reader = Reader(self.store, readers, cache_bytes_max=8 * MIB)
        controller = cast(Any, self.controller)
        cold = ColdReads(reader, Manifests(self.store, readers), controller)
        defaults = TopicDefaults(settings)
        self.logs = LogTable(settings, controller, clock, defaults, cold, tasks, counters, incarnation=INCARNATION)
        self.wal = await VolumeWal.create(
            self.path,
            cluster_id="test-cluster",
            node_id=NODE,
            wal_id=WAL_ID,
            on_durable=self.gate,
            on_failed=self.failures.append,
            on_room=self.logs.room,
            bytes_max=settings.tidelog_wal_bytes_max,
            message_bytes_max=settings.message_max_bytes,
            file_bytes=settings.tidelog_wal_file_bytes,
            fence_kind="file",
        )
        self._stack.push_async_callback(self.wal.close)
        self.validation.attach(FileFence(self.wal, self.session, clock, lambda: self.controller.reachable))
        self.logs.attach(self.wal, self.validation)
        self.controller.subscribe(self.logs.apply)
        self.session.granted(clock.boottime_ms(), Grant(3_600_000, 1000))
        numbers = itertools.count(1)

        def token(n: int) -> bytes:
            return next(numbers).to_bytes(n, "big")

        unused: dict[str, Any] = {field.name: None for field in dataclasses.fields(Services)}
        used: dict[str, Any] = {
            "settings": settings,
            "clock": clock,
            "ticks_us": SystemClock().ticks_us,
            "token": token,
            "controller": controller,
            "session": self.session,
            "logs": self.logs,
            "cold": cold,
            "reader": reader,
            "topic_defaults": defaults,
            "fetch_sessions": FetchSessions(
                settings.max_incremental_fetch_session_cache_slots, lambda: next(numbers) + 1_000_000
            ),
            "producer_ids": ProducerIds(
                controller, lambda n: next(numbers).to_bytes(n, "big"), incarnation=INCARNATION
            ),
            "wheel": Wheel(),
            "quotas": ClientQuotas(settings, clock, SystemClock().ticks_us, counters, lambda: self.controller.state),
            "cold_fetches": asyncio.Semaphore(COLD_PARALLEL),
            "counters": counters,
            "metrics": Metrics(),
            "tasks": tasks,
            "handlers": self.handlers,
            "extra": {},
        }
        self.services = Services(**{**unused, **used})
        self.server = Server(self.services)
        bound = await self.server.bind([Listener("PLAINTEXT", "PLAINTEXT", "127.0.0.1", 0)])
        await self.server.serve()
        self._stack.push_async_callback(self.server.close)
        self.port = bound[0].port
        told = (f.Listener("PLAINTEXT", "PLAINTEXT", "127.0.0.1", self.port),)
        self.controller.apply(
            f.BrokerRegistered(NODE, INCARNATION, "boot", None, told, 1, 0),
            f.WalRegistered(WAL_ID, NODE, INCARNATION, "volume"),
            f.BrokerRegistered(
                OTHER_NODE,
                OTHER_INCARNATION,
                "boot",
                "rack-b",
                (f.Listener("PLAINTEXT", "PLAINTEXT", "other", 9),),
                1,
                0,
            ),
            f.WalRegistered(OTHER_WAL, OTHER_NODE, OTHER_INCARNATION, "volume"),
        )

    # Facts

    def create_topic(
        self, name: str, partitions: int = 1, *, internal: bool = False, lead: bool = True, **configs: str
    ) -> list[Log]:
        """A topic that this broker leads (the other one if not `lead`); config names with `_` for `.`."""
        ids = tuple(next(self._log_ids) for _ in range(partitions))
        pairs = tuple((key.replace("_", "."), value) for key, value in configs.items())
        leader = (NODE, INCARNATION, 0, WAL_ID) if lead else (OTHER_NODE, OTHER_INCARNATION, 0, OTHER_WAL)
        self.controller.apply(
            f.TopicCreated(name, topic_id_of(name), internal, ids, pairs),
            *(f.LeaderNamed(log_id, *leader) for log_id in ids),
        )
        return [self.logs.by_log_id[log_id] for log_id in ids] if lead else []

    def log(self, topic: str, partition: int = 0) -> Log:
        return self.logs.find[topic, partition]

    async def commit(self, logs: Sequence[Log], *, fact: bool = True, sealed: SealedLog | None = None) -> str:
        """Put what is validated and not committed of these logs into the bucket (or `sealed`); the object's key."""
        seal = next(self._seals)
        taken = [
            SealedLog(
                log_id=log.log_id,
                leader_epoch=log.epoch,
                base=log.committed_end,
                end=log.hw,
                batches=log.tail.slice(log.committed_end, log.hw),
                max_timestamp=log.tail.max_timestamp_between(log.committed_end, log.hw),
                last_stable_offset=log.lso,
                producers=log.producers.snapshot(log.hw),
                aborted=log.producers.aborted(log.committed_end, log.hw),
            )
            for log in logs
            if sealed is None
        ] or [sealed]
        segment = encode_segment(SegmentWriter(Writer("test-cluster", NODE, INCARNATION), seal), taken)
        await self.store.put_if_absent(segment.key, segment.parts)
        if fact:
            item = SegmentObject(segment.key, segment.size, segment.ranges)
            self.controller.apply(f.SealCommitted(INCARNATION, seal, (item,)))
        return segment.key

    def forget_tails(self) -> None:
        """Drop everything committed from memory."""
        while self.logs._trim_slice(0):
            pass
