"""Controllers over a faulty store, from one seed: crashes, restarts, lost replies, late and paused PUTs, deletions.

`World(seed).run()` returns what went wrong, or None. The same seed gives the same history.
"""

import asyncio
import random  # noqa: TID251
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from copy import copy
from typing import Any, TypeVar

from controller import commands as c
from controller import facts as f
from controller.object_log import ENTRIES, ObjectLog
from controller.runtime import ControllerSettings, Runtime
from protocol.errors import ErrorCode, KafkaError
from storage.memory import MemoryStore
from storage.object_store import Body, ObjectInfo, ObjectStore, OutcomeUnknown, StoredObject, Unavailable
from tests.controller.processes import Process
from tests.controller.virtual import run

T = TypeVar("T")

FAULTS_S = 60
QUIET_S = 60
SETTINGS = ControllerSettings(snapshot_entries=6, keep_entries=3)


class ChaosStore:
    """Every call takes time; some fail before, some after; some writes are paused or land long after they failed."""

    def __init__(self, store: ObjectStore, rng: random.Random, group: asyncio.TaskGroup) -> None:
        self._store = store
        self._random = rng
        self._group = group
        self.trouble = asyncio.Event()
        """Set while calls go wrong."""
        self.trouble.set()
        self._paused_until = 0.0

    def of_one_process(self) -> "ChaosStore":
        """The same store in the hands of a process, which is paused apart from others."""
        return copy(self)

    async def _travel(self) -> None:
        """The process makes the call, if it is not paused: then all that it has in its hands waits."""
        await asyncio.sleep(self._random.expovariate(100))
        while (left_s := self._paused_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left_s)

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        await self._travel()
        if self.trouble.is_set() and self._random.random() < 0.02:
            raise Unavailable("chaos")
        return await call()

    async def _write(self, key: str, call: Callable[[], Awaitable[T]]) -> T:
        await self._travel()
        dice = self._random.random() if self.trouble.is_set() else 1.0
        if key.startswith(ENTRIES) and dice < 0.05:
            self._paused_until = asyncio.get_running_loop().time() + self._random.uniform(2, 40)
            await self._travel()
        elif dice < 0.07:
            raise Unavailable("chaos")
        elif dice < 0.09:
            raise OutcomeUnknown("lost")
        elif dice < 0.14:
            self._group.create_task(self._later(call))
            raise OutcomeUnknown("late")
        result = await call()
        if self.trouble.is_set() and self._random.random() < 0.05:
            raise OutcomeUnknown("unheard")
        return result

    async def _later(self, call: Callable[[], Awaitable[Any]]) -> None:
        await asyncio.sleep(self._random.choice([0.05, 1, 20]) * self._random.random())
        await asyncio.gather(call(), return_exceptions=True)

    async def put(self, key: str, body: Body) -> str:
        return await self._write(key, lambda: self._store.put(key, body))

    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self._write(key, lambda: self._store.put_if_absent(key, body))

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        return await self._write(key, lambda: self._store.put_if_match(key, body, etag))

    async def get(self, key: str) -> StoredObject:
        return await self._read(lambda: self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._read(lambda: self._store.get_range(key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._read(lambda: self._store.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._read(lambda: asyncio.sleep(0))
        async for info in self._store.list(prefix, start_after):
            yield info

    async def delete(self, key: str) -> None:
        await self._write(key, lambda: self._store.delete(key))

    async def close(self) -> None:
        await self._store.close()


class Wrong(Exception):
    """A promise was broken; without words: the end of a good run."""


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, Wrong) else f"a process failed: {error!r}"


class World:
    """Two controllers with brokers, two clients. `log` and `runtime` may carry planted mistakes."""

    def __init__(
        self,
        seed: int,
        log: Callable[[ObjectStore, str], ObjectLog] = ObjectLog,
        runtime: type[Runtime] = Runtime,
    ) -> None:
        self.random = random.Random(seed)
        self.log = log
        self.runtime = runtime
        self.incarnations = 0
        self.truth: dict[int, bytes] = {}
        self.blocks: set[int] = set()
        self.topics: dict[str, bytes] = {}
        self.processes: dict[int, Process] = {}
        self.entries = 0

    def run(self) -> str | None:
        """What went wrong, or None."""

        async def main() -> str | None:
            try:
                async with asyncio.TaskGroup() as group:
                    await self._live(group)
                    raise Wrong("")
            except BaseExceptionGroup as found:
                return max((_words(error) for error in _leaves(found)), key=len) or None

        return run(main)

    async def _live(self, group: asyncio.TaskGroup) -> None:
        store = ChaosStore(MemoryStore(), self.random, group)
        for node_id in (1, 2):
            self._start(group, store, node_id)
        tasks = [group.create_task(work) for work in (self._client(0), self._client(1), self._crash(group, store))]
        tasks += [group.create_task(self._broker(group, store, node_id)) for node_id in (1, 2)]
        await asyncio.sleep(FAULTS_S)
        store.trouble.clear()
        await asyncio.sleep(QUIET_S)
        for task in tasks:
            task.cancel()
        self._start(group, store, 3)
        fresh = self.processes[3]
        await fresh.client.wait_ready()
        try:
            async with asyncio.timeout(10):
                await fresh.client.wait_applied(self.entries)
        except TimeoutError:
            raise Wrong(f"the log ends at {fresh.client.position}, {self.entries} was there before") from None
        self._check(fresh)

    def _start(self, group: asyncio.TaskGroup, store: ChaosStore, node_id: int) -> None:
        self.incarnations += 1
        process = Process(
            group,
            store.of_one_process(),
            node_id,
            node_id * 1000 + self.incarnations,
            settings=SETTINGS,
            log=self.log,
            runtime=self.runtime,
        )
        process.client.subscribe(lambda facts: self._watch(process, facts))
        self.processes[node_id] = process

    def _watch(self, process: Process, facts: Sequence[f.Fact]) -> None:
        state = process.state
        if state.position:
            self.entries = max(self.entries, state.position)
            if self.truth.setdefault(state.position, state.entry_hash) != state.entry_hash:
                raise Wrong(f"two processes hold different entries {state.position}")

    async def _crash(self, group: asyncio.TaskGroup, store: ChaosStore) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(3, 25))
            if store.trouble.is_set():
                await self._restart(group, store, self.random.choice([1, 2]))

    async def _restart(self, group: asyncio.TaskGroup, store: ChaosStore, node_id: int) -> None:
        await self.processes[node_id].kill()
        self._start(group, store, node_id)

    async def _broker(self, group: asyncio.TaskGroup, store: ChaosStore, node_id: int) -> None:
        """Registers, sends heartbeats to whoever claims to lead, restarts when its session was ended."""
        registered = 0
        while True:
            me = self.processes[node_id]
            leader = next((one for one in self.processes.values() if one.client.leads), me)
            try:
                if registered != me.incarnation:
                    wals = ()
                    listeners = (f.Listener("P", "PLAINTEXT", "h", 1),)
                    command = c.RegisterBroker(
                        me.token(16), node_id, me.incarnation, f"boot {me.incarnation}", None, listeners, wals
                    )
                    await leader.client.ask(command, 3_000)
                    registered = me.incarnation
                await leader.client.heartbeat(me.incarnation, me.client.position, {})
            except KafkaError as error:
                if error.code is ErrorCode.STALE_BROKER_EPOCH and me is self.processes[node_id]:
                    await self._restart(group, store, node_id)
            await asyncio.sleep(0.7)

    async def _client(self, number: int) -> None:
        """Takes producer ids and creates topics; asks again with the same command while the outcome is open."""
        count = 0
        while True:
            count += 1
            name = f"t-{number}-{count}"
            alive = [one.incarnation for one in self.processes.values()]
            if self.random.random() < 0.7:
                command: Any = c.AllocateProducerIds(self.random.randbytes(16), self.random.choice(alive))
            else:
                changes = (c.ConfigChange("owner", 0, name),)
                command = c.AlterConfigs(self.random.randbytes(16), (c.ConfigAlteration(4, name, False, changes),))
            for _ in range(4):
                process = self.random.choice(list(self.processes.values()))
                try:
                    answer = await process.client.ask(command, self.random.choice([300, 3_000]))
                except KafkaError as error:
                    if error.retriable:
                        continue
                    break
                self._told(name, answer)
                break
            await asyncio.sleep(self.random.uniform(0, 1.5))

    def _told(self, name: str, answer: Any) -> None:
        if isinstance(answer, c.ProducerIdBlock):
            if answer.first in self.blocks:
                raise Wrong(f"producer ids from {answer.first} were given twice")
            self.blocks.add(answer.first)
        elif answer.results[0].error_code == 0:
            self.topics[name] = b""

    def _check(self, fresh: Process) -> None:
        state = fresh.state
        if any(first >= state.next_producer_id for first in self.blocks):
            raise Wrong("producer ids were given that no fact knows")
        missing = [name for name in self.topics if (4, name) not in state.configs]
        if missing:
            raise Wrong(f"told and not there: {missing[0]}")
        if not any(process.client.leads for process in self.processes.values()):
            raise Wrong("nobody leads after the faults stopped")
