"""What goes wrong in a world, and when: drawn from the seed. Every fault ends by itself, at the latest in `heal`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from storage.wal.format import file_name
from tests.simulation.scheduler import MS, S
from tests.simulation.staged import STAGED
from tests.simulation.store import StoreFaults

if TYPE_CHECKING:
    from tests.simulation.cluster import World
    from tests.simulation.machines import Machine
    from tests.simulation.nodes import Node

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
CLUSTER_KINDS: dict[str, int] = {
    "kill_controller": 2,
    "stop_controller": 1,
    "pause_controller": 2,
    "part_brokers": 3,
    "part_from_bucket": 2,
    "island": 3,
    "slow_brokers": 2,
    "reset_brokers": 1,
    "zombie": 4,
    "last_word": 1,
    "lost_volume": 1,
    "older_copy": 1,
    "long_sleep": 1,
    "usurped": 1,
    "stopped_appending": 1,
    "unheard_and_kill": 1,
}
"""What several brokers may meet beside that."""
COUNTS = (1, 2, 4, 6, 8, 12)
Link = tuple[str, str]
"""(from host, to host)."""


def kinds_for(brokers: int) -> dict[str, int]:
    """What may happen to a cluster of so many brokers, where nothing else is asked for."""
    return KINDS | CLUSTER_KINDS if brokers > 1 else dict(KINDS)


class Faults:
    """The faults of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.scheduler.stream("faults")
        self.rotten: set[bytes] = set()
        """WAL instances whose bytes were damaged, or of which an older copy came back."""
        self.lost: set[bytes] = set()
        """WAL instances that will not come back."""
        self._undo: dict[int, Callable[[], None]] = {}
        self._begun = 0
        self._blocks: Counter[Link] = Counter()

    def plan(self, begin_ns: int, end_ns: int, kinds: dict[str, int]) -> None:
        """Draw what happens between two times."""
        for _ in range(self.rng.choice(COUNTS)):
            (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
            begin = partial(STAGED[kind], self) if kind in STAGED else getattr(self, f"_{kind}")
            self.world.scheduler.call_at_ns(self.rng.randint(begin_ns, end_ns), begin)

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

    def _trouble(self, nodes: Iterable[Node], kind: str) -> Callable[[], None]:
        """While this lasts, and for a while, these brokers may end because of `kind`; returns what ends it."""
        ends = [node.trouble(kind) for node in nodes]

        def end() -> None:
            for one in ends:
                one()

        return end

    def _controller(self) -> Node | None:
        """The broker that controls, if it runs."""
        return next((node for node in self.world.nodes if node.running and node.leads), None)

    def _node(self) -> Node | None:
        """A broker that runs on a host that runs."""
        nodes = [node for node in self.world.nodes if node.running]
        return self.rng.choice(nodes) if nodes else None

    # Processes and machines

    def _kill(self) -> None:
        self._kill_one(self._node())

    def _kill_controller(self) -> None:
        self._kill_one(self._controller())

    def _kill_one(self, node: Node | None) -> None:
        if node is not None:
            callbacks = self._callbacks()
            self._record("kill", node=node.node_id, callbacks=callbacks)
            node.after(callbacks, node.kill)

    def _kill_at_disk(self) -> None:
        if (node := self._node()) is not None:
            operations = self.rng.choice([self.rng.randint(0, 8), self.rng.randint(0, 60)])
            self._record("kill_at_disk", node=node.node_id, operations=operations)
            node.kill_at_disk(operations)

    def _stop(self) -> None:
        self._stop_one(self._node())

    def _stop_controller(self) -> None:
        self._stop_one(self._controller())

    def _stop_one(self, node: Node | None) -> None:
        if node is not None:
            self._record("stop", node=node.node_id)
            node.stop()

    def _crash(self) -> None:
        if (node := self._node()) is not None:
            callbacks = self._callbacks()
            self._record("crash", host=node.machine.name, callbacks=callbacks)

            def crash() -> None:
                node.crash()
                self._for(300, 8_000, node.boot)

            node.after(callbacks, crash)

    def _callbacks(self) -> int:
        """How much of its program a broker still runs: hits the middle of something, not only the pauses between."""
        return self.rng.choice([0, self.rng.randint(0, 30), self.rng.randint(0, 300)])

    def _pause_for(self, node: Node | None, shortest_ms: int, longest_ms: int) -> None:
        if node is None or node.process is None or node.process.stopped:
            return
        process = node.process
        self._record("pause", node=node.node_id)
        process.pause()
        over = self._trouble([node], "asleep")

        def resume() -> None:
            self._record("resume", node=node.node_id)
            process.resume()
            over()

        self._for(shortest_ms, longest_ms, resume)

    def _pause(self) -> None:
        self._pause_for(self._node(), 50, self.world.session_ms // 2)

    def _long_pause(self) -> None:
        self._pause_for(self._node(), self.world.session_ms, 3 * self.world.session_ms)

    def _pause_controller(self) -> None:
        self._pause_for(self._controller(), self.world.lease_ms // 2, 3 * self.world.session_ms)

    def _suspend(self) -> None:
        node = self._node()
        if node is None:
            return
        machine, boot = node.machine, node.machine.boot_id
        self._record("suspend", host=machine.name)
        machine.suspend()
        over = self._trouble(machine.nodes, "asleep")

        def resume() -> None:
            if machine.suspended and machine.boot_id == boot:
                self._record("wake", host=machine.name)
                machine.resume()
            over()

        self._for(100, 3 * self.world.session_ms, resume)

    def _zombie(self, *, writing: bool | None = None) -> None:
        """A broker is stopped, half of the times with a group on its way to the disk, until others may have taken
        over, and then goes on; half of the times it hears nothing of the others for a while."""
        node = self._node()
        if node is None or node.process is None:
            return
        process, world = node.process, self.world
        if writing is None:
            writing = self.rng.random() < 0.5

        def stop() -> None:
            if not process.alive or process.stopped or world.quiet:
                return
            self._record("pause", node=node.node_id, writing=writing)
            process.pause()
            over = self._trouble([node], "asleep")
            cut_off = self.rng.random() < 0.5

            def resume() -> None:
                if cut_off and not world.quiet:
                    heal = self._cut_off([node], both_ways=True, bucket="unreachable")
                    self._for(300, 4_000, heal)
                self._record("resume", node=node.node_id)
                process.resume()
                over()

            gone_ms = world.session_ms * 5 // 4 + world.lease_ms
            self._for(gone_ms, gone_ms + 4_000, resume)

        if writing:
            node.at_write(stop)
        else:
            stop()

    # The store

    def _outage(self) -> None:
        self._record("outage")
        self.world.bucket.outage()
        over = self._trouble(self.world.nodes, "store")

        def end() -> None:
            self._record("outage_over")
            self.world.bucket.end_outage()
            over()

        self._for(500, 15_000, end)

    def _outage_and_kill(self) -> None:
        """The bucket is away for long, and towards the end of it a broker dies: what it holds is in its WAL alone."""
        self._outage()
        self.world.scheduler.call_later_ns(self.rng.randint(4_000, 8_000) * MS, self._kill)

    def _store_faults(self, kind: str, faults: StoreFaults) -> None:
        self._record(kind)
        self.world.bucket.faults = faults
        over = self._trouble(self.world.nodes, "store")

        def end() -> None:
            self._record(f"{kind}_over")
            self.world.bucket.faults = StoreFaults()
            over()

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

    def _block(self, links: Iterable[Link]) -> Callable[[], None]:
        """Nothing passes these links; returns what opens them again, unless another fault holds them closed."""
        links = list(links)
        network = self.world.network
        for link in links:
            self._blocks[link] += 1
            network.block(*link)

        def heal() -> None:
            self._blocks.subtract(links)
            opened = [link for link in links if not self._blocks[link]]
            if opened:
                network.heal(*opened)

        return heal

    def _link(self) -> Link:
        """A client's host and a broker's."""
        return self.rng.choice(self.world.client_hosts).name, self.rng.choice(self.world.nodes).host.name

    def _brokers(self) -> tuple[Node, Node] | None:
        """Two of them."""
        if len(self.world.nodes) < 2:
            return None
        one, other = self.rng.sample(self.world.nodes, 2)
        return one, other

    def _reset(self) -> None:
        one, other = self._link()
        self._record("reset", one=one, other=other)
        self.world.network.reset(one, other)

    def _reset_brokers(self) -> None:
        if (two := self._brokers()) is not None:
            one, other = (node.host.name for node in two)
            self._record("reset", one=one, other=other)
            self.world.network.reset(one, other)

    def _ways(self, one: str, other: str) -> list[Link]:
        """Both directions, or one of them."""
        links = [(one, other), (other, one)]
        return links if self.rng.random() < 0.5 else [self.rng.choice(links)]

    def _part(self, links: list[Link], nodes: Iterable[Node], longest_ms: int) -> None:
        self._record("partition", links=links)
        heal, over = self._block(links), self._trouble(nodes, "network")

        def end() -> None:
            self._record("partition_over", links=links)
            heal()
            over()

        self._for(200, longest_ms, end)

    def _partition(self) -> None:
        self._part(self._ways(*self._link()), [], 12_000)

    def _part_brokers(self) -> None:
        if (two := self._brokers()) is not None:
            self._part(self._ways(*(node.host.name for node in two)), two, 3 * self.world.session_ms)

    def _slow_links(self, one: str, other: str, nodes: Iterable[Node], slowest_ms: int) -> None:
        self._record("slow_network", one=one, other=other)
        for source, target in ((one, other), (other, one)):
            self.world.network.slow(source, target, self.rng.randint(5, slowest_ms) * MS)
        over = self._trouble(nodes, "network")

        def end() -> None:
            self.world.network.slow(one, other, 0)
            self.world.network.slow(other, one, 0)
            over()

        self._for(1_000, 10_000, end)

    def _slow_network(self) -> None:
        self._slow_links(*self._link(), [], 400)

    def _slow_brokers(self) -> None:
        if (two := self._brokers()) is not None:
            self._slow_links(*(node.host.name for node in two), two, self.rng.choice([100, self.world.session_ms]))

    def _part_from_bucket(self) -> None:
        if (node := self._node()) is not None:
            how = self.rng.choice(["unreachable", "deaf"])
            self._record("part_from_bucket", node=node.node_id, how=how)
            self._for(200, 3 * self.world.session_ms, self._cut_off([node], both_ways=True, bucket=how, peers=False))

    def _last_word(self) -> None:
        """A broker is cut off until the controller ends its session; while a slow store takes that, its word gets
        through, and the answer; then it is cut off again."""
        node, world = self._node(), self.world
        if node is None or not node.ready or node.broker is None or node.leads or len(world.nodes) < 2:
            return
        if world.bucket.slowness > 1:
            return  # one at a time
        broker, began_ns = node.broker, world.scheduler.now_ns
        self._record("last_word", node=node.node_id)
        heal = self._cut_off([node], both_ways=True, bucket="unreachable")
        world.bucket.slowness, slow = 20.0, self._trouble(world.nodes, "store")
        deadline_ms = broker.session.deadline_ms

        said, name = len(world.log), f"{broker.incarnation:016x}"

        def ending() -> bool:
            return any("their sessions end" in text and name in text for _, _, text in world.log[said:])

        def watch(heard: Callable[[], None] | None) -> None:
            over = world.quiet or node.broker is not broker or world.scheduler.now_ns > began_ns + 20 * S
            if heard is None and not over:
                if ending():
                    heal()
                    heard = self._trouble([node], "network")
            elif over or broker.session.deadline_ms > deadline_ms:
                (heard or heal)()
                world.bucket.slowness = 1.0
                slow()
                if not over:
                    self._for(1_000, 2 * world.session_ms, self._cut_off([node], both_ways=True, bucket="unreachable"))
                return
            world.scheduler.call_later_ns(2 * MS, watch, heard)

        watch(None)

    def _island(self) -> None:
        """One broker or some of them lose the others, and mostly the bucket; clients reach everybody."""
        nodes, rng = self.world.nodes, self.rng
        if len(nodes) < 2:
            return
        island = rng.sample(nodes, rng.randint(1, len(nodes) - 1))
        controller = self._controller()
        if controller is not None and controller not in island and rng.random() < 0.5:
            island[0] = controller
        bucket = rng.choice(["unreachable", "unreachable", "deaf", ""])
        both_ways = rng.random() < 0.7
        self._record("island", nodes=[node.node_id for node in island], bucket=bucket, both_ways=both_ways)
        self._for(200, 3 * self.world.session_ms, self._cut_off(island, both_ways=both_ways, bucket=bucket))

    def _cut_off(self, island: list[Node], *, both_ways: bool, bucket: str, peers: bool = True) -> Callable[[], None]:
        """These brokers lose the others and, as `bucket` says, the bucket; returns what ends it.

        `bucket`: "unreachable", "deaf" (no answer arrives) or "".
        """
        rest = [node for node in self.world.nodes if node not in island]
        links = [(one.host.name, other.host.name) for one in island for other in rest] if peers else []
        if not both_ways and self.rng.random() < 0.5:
            links = [(other, one) for one, other in links]
        elif both_ways:
            links += [(other, one) for one, other in links]
        heal, over = self._block(links), self._trouble(self.world.nodes if peers else island, "network")
        away = self._trouble(island if bucket else [], "store")
        hosts = [node.host.name for node in island]
        lost = {"unreachable": self.world.bucket.unreachable, "deaf": self.world.bucket.deaf}.get(bucket)
        if lost is not None:
            lost.update(hosts)

        def end() -> None:
            self._record("cut_off_over", hosts=hosts)
            heal()
            over()
            away()
            if lost is not None:
                lost.subtract(hosts)

        return end

    # Disks

    def _machine(self) -> tuple[Machine, list[Node]]:
        """One of them, and the brokers that use its disk."""
        machine = self.rng.choice(self.world.machines)
        return machine, [node for node in self.world.nodes if node.machine.disk is machine.disk]

    def _disk_full(self) -> None:
        machine, nodes = self._machine()
        disk = machine.disk
        self._record("disk_full", host=machine.name)
        disk.limit_bytes = disk.used_bytes + self.rng.choice([0, 0, 100_000, 1_200_000])
        over = self._trouble(nodes, "disk")

        def end() -> None:
            self._record("disk_full_over", host=machine.name)
            disk.limit_bytes = None
            over()

        self._for(1_000, 12_000, end)

    def _disk_errors(self) -> None:
        machine, nodes = self._machine()
        disk = machine.disk
        self._record("disk_errors", host=machine.name)
        disk.sync_error_chance = self.rng.choice([0.02, 0.2])
        disk.write_error_chance = self.rng.choice([0.0, 0.02])
        disk.short_write_chance = self.rng.choice([0.0, 0.3])
        over = self._trouble(nodes, "disk")

        def end() -> None:
            self._record("disk_errors_over", host=machine.name)
            disk.sync_error_chance = disk.write_error_chance = disk.short_write_chance = 0.0
            over()

        self._for(500, 5_000, end)

    def _slow_disk(self) -> None:
        machine, nodes = self._machine()
        disk = machine.disk
        self._record("slow_disk", host=machine.name)
        if self.rng.random() < 0.5:
            disk.slowness = self.rng.choice([5.0, 50.0])
        else:
            disk.stalled_until_ns = self.world.scheduler.now_ns + self.rng.randint(S // 2, 8 * S)
        over = self._trouble(nodes, "slow")

        def end() -> None:
            disk.slowness, disk.stalled_until_ns = 1.0, 0
            over()

        self._for(1_000, 8_000, end)

    def _hang_and_crash(self) -> None:
        """Nothing gets durable any more, clients lose patience or their connections, then the power goes."""
        if (node := self._node()) is None:
            return
        scheduler, disk = self.world.scheduler, node.machine.disk
        hangs_ns = self.rng.randint(200, 6_000) * MS
        self._record("hang", host=node.machine.name)
        disk.stalled_until_ns = scheduler.now_ns + hangs_ns
        for _ in range(self.rng.randint(0, 3)):
            scheduler.call_later_ns(self.rng.randint(0, hangs_ns), self._reset)

        def crash() -> None:
            if node.machine.up and not self.world.quiet:
                self._record("crash", host=node.machine.name)
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
        self._record("rot", host=node.machine.name)

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
            inode = node.machine.disk.inode(f"{wal.path}/{file_name(written.file)}")
            bit = 1 << self.rng.randrange(8)
            inode.durable[position] ^= bit
            inode.data[position] ^= bit
            self.rotten.add(wal.wal_id)
            self._record("crash", host=node.machine.name, flipped=position)
            node.crash()
            self._for(300, 2_000, node.boot)

        if written.offset and written.file:
            flip()

    def _destroy(self) -> None:
        self.world.losses.destroy()

    # Clients

    def _client_kill(self) -> None:
        names = [name for name, process in self.world.clients.items() if process.alive and self.world.may_go(name)]
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
