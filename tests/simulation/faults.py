"""What goes wrong in a world, and when: drawn from the seed. Every fault ends by itself, at the latest in `heal`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from storage.wal.format import file_name
from tests.simulation.scheduler import MS, S
from tests.simulation.store import StoreFaults

if TYPE_CHECKING:
    from tests.simulation.cluster import Node, World

KINDS: dict[str, int] = {
    "kill": 4,
    "kill_at_disk": 3,
    "stop": 2,
    "crash": 3,
    "pause": 2,
    "long_pause": 2,
    "suspend": 1,
    "outage": 2,
    "store_errors": 3,
    "slow_store": 1,
    "reset": 2,
    "partition": 2,
    "slow_network": 1,
    "disk_full": 2,
    "disk_errors": 1,
    "slow_disk": 1,
    "hang_and_crash": 2,
    "rot": 1,
    "client_kill": 1,
    "client_pause": 1,
}
"""Kind -> how often, relative to the others."""
COUNTS = (1, 2, 4, 6, 8, 12)


class Faults:
    """The faults of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.scheduler.stream("faults")
        self.rotten: set[bytes] = set()
        """WAL instances whose bytes were damaged."""
        self._undo: dict[int, Callable[[], None]] = {}
        self._begun = 0

    def plan(self, begin_ns: int, end_ns: int, kinds: dict[str, int]) -> None:
        """Draw what happens between two times."""
        for _ in range(self.rng.choice(COUNTS)):
            (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
            self.world.scheduler.call_at_ns(self.rng.randint(begin_ns, end_ns), getattr(self, f"_{kind}"))

    def heal(self) -> None:
        """Whatever is still broken is well again."""
        for node in self.world.nodes:
            node.defuse()
        while self._undo:
            _, undo = self._undo.popitem()
            undo()

    def _record(self, kind: str, **fields: Any) -> None:
        self.world.history.record(f"fault.{kind}", **fields)

    def _for(self, shortest_ms: int, longest_ms: int, undo: Callable[[], None]) -> None:
        """Undo the fault after a time drawn from these bounds."""
        self._begun += 1
        number = self._begun
        self._undo[number] = undo

        def end() -> None:
            undo = self._undo.pop(number, None)
            if undo is not None:
                undo()

        self.world.scheduler.call_later_ns(self.rng.randint(shortest_ms, longest_ms) * MS, end)

    def _excuse(self, node: Node, kind: str) -> Callable[[], None]:
        """While this lasts, a broker may end because of `kind`; returns what ends it."""
        node.excuse(kind)
        return lambda: node.no_excuse(kind)

    def _node(self) -> Node | None:
        """A broker that runs on a host that runs."""
        nodes = [node for node in self.world.nodes if node.running]
        return self.rng.choice(nodes) if nodes else None

    # Processes and hosts

    def _kill(self) -> None:
        if (node := self._node()) is not None:
            callbacks = self._callbacks()
            self._record("kill", node=node.node_id, callbacks=callbacks)
            node.after(callbacks, node.kill)

    def _kill_at_disk(self) -> None:
        if (node := self._node()) is not None:
            operations = self.rng.choice([self.rng.randint(0, 8), self.rng.randint(0, 60)])
            self._record("kill_at_disk", node=node.node_id, operations=operations)
            node.kill_at_disk(operations)

    def _stop(self) -> None:
        if (node := self._node()) is not None:
            self._record("stop", node=node.node_id)
            node.stop()

    def _crash(self) -> None:
        if (node := self._node()) is not None:
            callbacks = self._callbacks()
            self._record("crash", host=node.host.name, callbacks=callbacks)

            def crash() -> None:
                node.crash()
                self._for(300, 8_000, node.boot)

            node.after(callbacks, crash)

    def _callbacks(self) -> int:
        """How much of its program a broker still runs: hits the middle of something, not only the pauses between."""
        return self.rng.choice([0, self.rng.randint(0, 30), self.rng.randint(0, 300)])

    def _pause_for(self, shortest_ms: int, longest_ms: int) -> None:
        node = self._node()
        if node is None or node.process is None or node.process.paused:
            return
        process = node.process
        self._record("pause", node=node.node_id)
        process.pause()
        excused = self._excuse(node, "asleep")

        def resume() -> None:
            self._record("resume", node=node.node_id)
            process.resume()
            excused()

        self._for(shortest_ms, longest_ms, resume)

    def _pause(self) -> None:
        self._pause_for(50, self.world.session_ms // 2)

    def _long_pause(self) -> None:
        self._pause_for(self.world.session_ms, 3 * self.world.session_ms)

    def _suspend(self) -> None:
        node = self._node()
        if node is None or node.host.suspended:
            return
        host, boot = node.host, node.host.boot_id
        self._record("suspend", host=host.name)
        host.suspend()
        excused = self._excuse(node, "asleep")

        def resume() -> None:
            if host.suspended and host.boot_id == boot:
                self._record("wake", host=host.name)
                host.resume()
            excused()

        self._for(100, 3 * self.world.session_ms, resume)

    # The store

    def _outage(self) -> None:
        self._record("outage")
        self.world.bucket.outage()
        excuses = [self._excuse(node, "store") for node in self.world.nodes]

        def end() -> None:
            self._record("outage_over")
            self.world.bucket.end_outage()
            for excused in excuses:
                excused()

        self._for(500, 15_000, end)

    def _store_faults(self, kind: str, faults: StoreFaults) -> None:
        self._record(kind)
        self.world.bucket.faults = faults
        excuses = [self._excuse(node, "store") for node in self.world.nodes]

        def end() -> None:
            self._record(f"{kind}_over")
            self.world.bucket.faults = StoreFaults()
            for excused in excuses:
                excused()

        self._for(1_000, 15_000, end)

    def _store_errors(self) -> None:
        chance = self.rng.choice([0.02, 0.1, 0.3])

        def some() -> float:
            return chance if self.rng.random() < 0.6 else 0.0

        faults = StoreFaults(
            unavailable=some(), lost=some(), unheard=some(), late=some(), hang=some() / 4, cut=some(), slow=some()
        )
        self._store_faults("store_errors", faults)

    def _slow_store(self) -> None:
        self._store_faults("slow_store", StoreFaults(slow=1.0, slow_factor=self.rng.choice([10, 50])))

    # The network

    def _link(self) -> tuple[str, str]:
        """A client's host and a broker's."""
        return self.rng.choice(self.world.client_hosts).name, self.rng.choice(self.world.nodes).host.name

    def _reset(self) -> None:
        one, other = self._link()
        self._record("reset", one=one, other=other)
        self.world.network.reset(one, other)

    def _partition(self) -> None:
        one, other = self._link()
        links = [(one, other), (other, one)]
        if self.rng.random() < 0.5:
            links = [self.rng.choice(links)]
        self._record("partition", links=links)
        for source, target in links:
            self.world.network.block(source, target)

        def heal() -> None:
            self._record("partition_over", links=links)
            self.world.network.heal(*links)

        self._for(200, 12_000, heal)

    def _slow_network(self) -> None:
        one, other = self._link()
        self._record("slow_network", one=one, other=other)
        for source, target in ((one, other), (other, one)):
            self.world.network.slow(source, target, self.rng.randint(5, 400) * MS)
        self._for(1_000, 10_000, lambda: self.world.network.heal((one, other), (other, one)))

    # Disks

    def _disk_full(self) -> None:
        node = self.rng.choice(self.world.nodes)
        disk = node.disk
        self._record("disk_full", host=node.host.name)
        disk.limit_bytes = disk.used_bytes + self.rng.choice([0, 0, 100_000, 1_200_000])
        excused = self._excuse(node, "disk")

        def end() -> None:
            self._record("disk_full_over", host=node.host.name)
            disk.limit_bytes = None
            excused()

        self._for(1_000, 12_000, end)

    def _disk_errors(self) -> None:
        node = self.rng.choice(self.world.nodes)
        disk = node.disk
        self._record("disk_errors", host=node.host.name)
        disk.sync_error_chance = self.rng.choice([0.02, 0.2])
        disk.write_error_chance = self.rng.choice([0.0, 0.02])
        disk.short_write_chance = self.rng.choice([0.0, 0.3])
        excused = self._excuse(node, "disk")

        def end() -> None:
            self._record("disk_errors_over", host=node.host.name)
            disk.sync_error_chance = disk.write_error_chance = disk.short_write_chance = 0.0
            excused()

        self._for(500, 5_000, end)

    def _slow_disk(self) -> None:
        node = self.rng.choice(self.world.nodes)
        disk = node.disk
        self._record("slow_disk", host=node.host.name)
        if self.rng.random() < 0.5:
            disk.slowness = self.rng.choice([5.0, 50.0])
        else:
            disk.stalled_until_ns = self.world.scheduler.now_ns + self.rng.randint(S // 2, 8 * S)
        excused = self._excuse(node, "slow")

        def end() -> None:
            disk.slowness, disk.stalled_until_ns = 1.0, 0
            excused()

        self._for(1_000, 8_000, end)

    def _hang_and_crash(self) -> None:
        """Nothing gets durable any more, clients lose patience or their connections, then the power goes."""
        if (node := self._node()) is None:
            return
        scheduler, disk = self.world.scheduler, node.disk
        hangs_ns = self.rng.randint(200, 6_000) * MS
        self._record("hang", host=node.host.name)
        disk.stalled_until_ns = scheduler.now_ns + hangs_ns
        for _ in range(self.rng.randint(0, 3)):
            scheduler.call_later_ns(self.rng.randint(0, hangs_ns), self._reset)

        def crash() -> None:
            if node.host.up and not self.world.quiet:
                self._record("crash", host=node.host.name)
                node.crash()
                self._for(300, 4_000, node.boot)

        scheduler.call_later_ns(self.rng.randint(hangs_ns // 2, hangs_ns), crash)

    def _rot(self) -> None:
        """A bit that the WAL holds durably flips, once a later group is durable too, and the power goes.

        Without a later group nothing tells it from a torn tail.
        """
        node = self._node()
        wal = None if node is None or node.broker is None or not node.ready else node.broker.wals.volume
        if node is None or wal is None or self.world.quiet:
            return
        written = wal._progress
        process = node.process
        self._record("rot", host=node.host.name)

        def flip() -> None:
            if self.world.quiet or node.process is not process:
                return
            now = wal._progress
            if now.file != written.file:
                return
            if now.group <= written.group:
                self.world.scheduler.call_later_ns(20 * MS, flip)
                return
            position = self.rng.randrange(written.offset)
            inode = node.disk.inode(f"{wal.path}/{file_name(written.file)}")
            bit = 1 << self.rng.randrange(8)
            inode.durable[position] ^= bit
            inode.data[position] ^= bit
            self.rotten.add(wal.wal_id)
            self._record("crash", host=node.host.name, flipped=position)
            node.crash()
            self._for(300, 2_000, node.boot)

        if written.offset and written.file:
            flip()

    # Clients

    def _client_kill(self) -> None:
        names = [name for name, process in self.world.clients.items() if process.alive]
        if names:
            name = self.rng.choice(names)
            self._record("client_kill", client=name)
            self.world.kill_client(name)

    def _client_pause(self) -> None:
        processes = [process for process in self.world.clients.values() if process.alive and not process.paused]
        if processes:
            process = self.rng.choice(processes)
            self._record("client_pause", client=process.name)
            process.pause()
            self._for(200, 10_000, process.resume)
