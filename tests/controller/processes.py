"""Controllers as processes over one store, in virtual time: started, crashed, started again; calls can be held back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from controller import commands as c
from controller import facts as f
from controller.client import ClusterController, LocalController
from controller.configs import PlainRules
from controller.election import Identity
from controller.object_log import ObjectLog
from controller.remote import LinkError, LinkTimeout, RemoteController, Target
from controller.runtime import ControllerSettings, Runtime
from controller.service import ControllerService
from storage.object_store import Body, ObjectInfo, ObjectStore, StoredObject
from tests.controller.builders import CLUSTER, LISTENERS, tokens, wal_id
from tests.controller.virtual import VirtualClock

SETTINGS = ControllerSettings(snapshot_entries=10_000)

Hook = Callable[[str, str], "asyncio.Future[None] | Exception | float | None"]


class HookedStore:
    """Asks `before(method, key)` and `after(method, key)` at every call: a future or seconds to wait, or an error."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.before: Hook = lambda method, key: None
        self.after: Hook = lambda method, key: None
        self.calls: list[tuple[str, str]] = []

    async def _call(self, method: str, key: str, work: Callable[[], Any]) -> Any:
        self.calls.append((method, key))
        await self._obey(self.before(method, key))
        result = await work()
        await self._obey(self.after(method, key))
        return result

    async def _obey(self, what: "asyncio.Future[None] | Exception | float | None") -> None:
        if isinstance(what, Exception):
            raise what
        if isinstance(what, float):
            await asyncio.sleep(what)
        elif what is not None:
            await what

    async def put(self, key: str, body: Body) -> str:
        return await self._call("put", key, lambda: self._store.put(key, body))

    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self._call("put_if_absent", key, lambda: self._store.put_if_absent(key, body))

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        return await self._call("put_if_match", key, lambda: self._store.put_if_match(key, body, etag))

    async def get(self, key: str) -> StoredObject:
        return await self._call("get", key, lambda: self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._call("get_range", key, lambda: self._store.get_range(key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._call("head", key, lambda: self._store.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._obey(self.before("list", prefix))
        async for info in self._store.list(prefix, start_after):
            yield info

    async def delete(self, key: str) -> None:
        await self._call("delete", key, lambda: self._store.delete(key))

    async def close(self) -> None:
        await self._store.close()


class Network:
    """Calls between processes in one loop. `cut` holds nodes that hang: what is sent to them is never answered."""

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}
        self.cut: set[int] = set()
        self.lose_answers = 0
        """So many calls are carried out and their answers lost."""
        self.calls: list[tuple[int, int, str]] = []
        """(from node, to node, lane)."""

    def link(self, asker: int) -> "_Link":
        return _Link(self, asker)


class _Link:
    def __init__(self, network: Network, asker: int) -> None:
        self._network = network
        self._asker = asker

    async def call(self, lane: str, target: Target, body: bytes, timeout_ms: int) -> bytes:
        network = self._network
        network.calls.append((self._asker, target.node_id, lane))
        process = network.processes.get(target.node_id)
        if process is None or process.task.done():
            raise LinkError("connection refused")
        if {self._asker, target.node_id} & network.cut:
            await asyncio.sleep(timeout_ms / 1000)
            raise LinkTimeout("no answer")
        answer = await ControllerService(process.runtime).answer(body)
        if process.task.done():
            raise LinkError("connection reset")
        if lane == "ask" and network.lose_answers:
            network.lose_answers -= 1
            raise LinkError("connection reset")
        return answer


class Process:
    """One process with the controller role and a broker of one WAL instance."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        store: ObjectStore,
        node_id: int,
        incarnation: int,
        *,
        locked: tuple[bytes, ...] = (),
        settings: ControllerSettings = SETTINGS,
        log: Callable[[ObjectStore, str], ObjectLog] = ObjectLog,
        runtime: type[Runtime] = Runtime,
        clock: VirtualClock | None = None,
        network: Network | None = None,
        eligible: bool = True,
    ) -> None:
        """`network`: it reaches controllers in other processes through it."""
        self.store = HookedStore(store)
        self.node_id = node_id
        self.incarnation = incarnation
        self.locked = locked
        self.clock = clock or VirtualClock()
        self.token = tokens(f"process {incarnation}")
        remote = None
        if network is not None:
            network.processes[node_id] = self
            remote = RemoteController(
                network.link(node_id),
                cluster_id=CLUSTER,
                node_id=node_id,
                incarnation=incarnation,
                listener="PLAINTEXT",
            )
        self.runtime = runtime(
            log=log(self.store, CLUSTER),
            store=self.store,
            cluster_id=CLUSTER,
            clock=self.clock,
            token=self.token,
            identity=Identity(node_id, incarnation, (wal_id(incarnation),), locked, eligible),
            rules=PlainRules(),
            settings=settings,
            remote=remote,
        )
        self.client: LocalController = (
            LocalController(self.runtime)
            if remote is None
            else ClusterController(self.runtime, remote, heartbeat_timeout_ms=1_000)
        )
        self.task = group.create_task(self.runtime.run())

    @property
    def state(self) -> Any:
        return self.client.state

    async def register(self) -> c.Registered:
        wals = (c.NewWal(wal_id(self.incarnation), "volume"),)
        command = c.RegisterBroker(
            self.token(16), self.node_id, self.incarnation, "boot", None, LISTENERS, wals, self.locked
        )
        return await self.client.ask(command)

    async def create(self, name: str, timeout_ms: int = 30_000) -> c.TopicResult:
        command = c.CreateTopics(self.token(16), (c.NewTopic(name),))
        return (await self.client.ask(command, timeout_ms)).results[0]

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


def facts_of(process: Process) -> list[f.Fact]:
    """Collects what a process applies from now on."""
    seen: list[f.Fact] = []
    process.client.subscribe(seen.extend)
    return seen
