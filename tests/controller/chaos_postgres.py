"""Controllers over a simulated PostgreSQL, from one seed: cut connections, statements that end late, failovers.

`Database` behaves as the real one does where it matters: a statement decides on what it saw when it began and inserts
later, a connection that is lost may have written, a failover changes the server and may lose the end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from controller.object_log import ObjectLog
from controller.postgres_log import PostgresLog
from controller.postgres_tables import Doubt, Page
from controller.runtime import Runtime
from storage.object_store import ObjectStore, OutcomeUnknown, Unavailable
from tests.controller.chaos import FAULTS_S, QUIET_S, ChaosStore, World, Wrong

T = TypeVar("T")


class Database:
    """The tables. `server` is the one that answers, `trusted` what the row of the cluster says."""

    def __init__(self) -> None:
        self.server = self.trusted = "1/1"
        self.boundary = 0
        self.entries: dict[int, tuple[bytes, bytes]] = {}
        self.snapshots: dict[int, list[bytes]] = {}
        self.doubts: dict[str, Doubt] = {}
        self._history: list[Callable[[], None]] = []

    def insert(self, position: int, entry_hash: bytes, entry: bytes) -> None:
        """Commits an entry; what was before can be brought back."""
        boundary, entries, snapshots = self.boundary, dict(self.entries), dict(self.snapshots)
        trusted, doubts = self.trusted, dict(self.doubts)

        def back() -> None:
            self.boundary, self.entries, self.snapshots = boundary, entries, snapshots
            self.trusted, self.doubts = trusted, doubts

        self._history.append(back)
        self.entries[position] = (entry_hash, entry)

    def fail_over(self, lost: int) -> None:
        """Another server, as the first one was before the last `lost` entries."""
        self.server = f"1/{int(self.server.partition('/')[2]) + 1}"
        if lost:
            self._history[-lost]()


class SimulatedTables:
    """`Tables` of one process."""

    def __init__(self, world: "PostgresWorld") -> None:
        self._world = world
        self._database = world.database

    async def _call(self, call: Callable[[], Awaitable[T]], *, writes: bool) -> T:
        rng, faulty = self._world.random, self._world.faulty
        await asyncio.sleep(rng.expovariate(300))
        dice = rng.random() if faulty else 1.0
        if dice < 0.03:
            raise Unavailable("not reached")
        if writes and dice < 0.06:
            raise OutcomeUnknown("cut before it arrived")
        if writes and dice < 0.12:
            self._world.group.create_task(self._later(call))
            raise OutcomeUnknown("cut while it ran")
        result = await call()
        if writes and dice < 0.17:
            raise OutcomeUnknown("cut before the answer")
        return result

    async def _later(self, call: Callable[[], Awaitable[T]]) -> None:
        await asyncio.sleep(self._world.random.choice([0.05, 1, 10]) * self._world.random.random())
        await asyncio.gather(call(), return_exceptions=True)

    async def insert_entry(self, position: int, entry: bytes, entry_hash: bytes, previous: bytes | None) -> bool:
        server = self._database.server

        async def insert() -> bool:
            held = self._database
            before = held.entries.get(position - 1, (None, b""))[0]
            follows = previous is None or position - 1 == held.boundary or before == previous
            allowed = held.trusted == server == held.server and position > held.boundary and follows and not held.doubts
            if self._world.faulty and self._world.random.random() < 0.05:
                await asyncio.sleep(self._world.random.uniform(0.1, 20))  # the backend does not run
            if held.server != server:
                raise Unavailable("terminated")  # with its server
            if not allowed or position in held.entries:
                return False
            held.insert(position, entry_hash, entry)
            return True

        return await self._call(insert, writes=True)

    async def read(self, position: int, limit: int) -> Page:
        async def read() -> Page:
            held = self._database
            found: list[bytes] = []
            while len(found) < limit and position + len(found) in held.entries:
                found.append(held.entries[position + len(found)][1])
            before = held.entries.get(position - 1, (None, b""))[0]
            return Page(held.server, held.trusted, held.boundary, before, found)

        return await self._call(read, writes=False)

    async def flush(self) -> None:
        await self._write(lambda: None)

    async def _write(self, change: Callable[[], T]) -> T:
        async def write() -> T:
            return change()

        return await self._call(write, writes=True)

    async def trust(self, old: str, new: str) -> bool:
        def change() -> bool:
            if self._database.trusted != old or self._database.server != new:
                return False
            self._database.trusted = new
            return True

        return await self._write(change)

    async def doubt(self, doubt: Doubt) -> None:
        await self._write(lambda: self._database.doubts.update({doubt.who: doubt}))

    async def settle(self) -> list[Doubt]:
        def change() -> list[Doubt]:
            held = self._database
            for who, one in list(held.doubts.items()):
                if held.entries.get(one.position, (None, b""))[0] == one.entry_hash:
                    del held.doubts[who]
            return list(held.doubts.values())

        return await self._write(change)

    async def raise_boundary(self, position: int) -> int:
        def change() -> int:
            self._database.boundary = max(position, self._database.boundary)
            return self._database.boundary

        return await self._write(change)

    async def snapshots(self) -> list[int]:
        async def read() -> list[int]:
            return sorted(self._database.snapshots)

        return await self._call(read, writes=False)

    async def write_snapshot(self, position: int, parts: Sequence[bytes]) -> None:
        await self._write(lambda: self._database.snapshots.setdefault(position, list(parts)))

    async def read_snapshot(self, position: int) -> list[bytes] | None:
        async def read() -> list[bytes] | None:
            return self._database.snapshots.get(position)

        return await self._call(read, writes=False)

    async def delete_entries(self) -> int:
        def change() -> int:
            held = self._database
            gone = [position for position in held.entries if position <= held.boundary]
            for position in gone:
                del held.entries[position]
            return len(gone)

        return await self._write(change)

    async def delete_snapshot(self, position: int) -> None:
        await self._write(lambda: self._database.snapshots.pop(position, None))

    async def close(self) -> None:
        pass


class PostgresWorld(World):
    """`World` over a `Database` that fails over now and then. `loses`: once, with the end of the log; then nobody may
    go on at all, which is all that is judged afterwards."""

    def __init__(
        self, seed: int, log: type[PostgresLog] = PostgresLog, runtime: type[Runtime] = Runtime, *, loses: bool = False
    ) -> None:
        super().__init__(seed, self._open, runtime)  # type: ignore[arg-type]
        self.database = Database()
        self._engine = log
        self._loses = loses
        self._lost = False
        self._chaos: ChaosStore | None = None
        self.group: asyncio.TaskGroup

    @property
    def faulty(self) -> bool:
        return self._chaos is not None and self._chaos.trouble.is_set()

    def _open(self, _: ObjectStore, cluster_id: str) -> ObjectLog:
        return self._engine(SimulatedTables(self), cluster_id, f"process {self.incarnations}")  # type: ignore[return-value]

    async def _live(self, group: asyncio.TaskGroup) -> None:
        self.group = group
        tasks = [group.create_task(self._fail_over()), group.create_task(self._end())]
        await super()._live(group)
        for task in tasks:
            task.cancel()

    async def _end(self) -> None:
        """Whoever refuses to go on does so for ever: nobody is waited for."""
        await asyncio.sleep(FAULTS_S + QUIET_S)
        if self._lost:
            raise Wrong("")

    def _start(self, group: asyncio.TaskGroup, store: ChaosStore, node_id: int) -> None:
        self._chaos = store
        super()._start(group, store, node_id)

    async def _fail_over(self) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(10, 25))
            if self._loses and not self._lost and len(self.database.entries) > 10:
                self._lost = True
                self.database.fail_over(self.random.randint(1, 4))
            elif self.faulty and not self._lost:
                self.database.fail_over(0)
                await asyncio.sleep(self.random.uniform(5, 15))
                if not self.database.doubts:
                    self.database.trusted = self.database.server  # an operator, who knows that nothing was lost
