"""Machines that are destroyed with their disks, and the operator who then declares lost what was on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.wals import LOST, RETIRED
from tests.simulation.scheduler import MS

if TYPE_CHECKING:
    from tests.simulation.cluster import World
    from tests.simulation.machines import Machine

WAL_ROOT = "/wal"
SHARE, SHARE_OF_BANKS = 0.12, 0.3
"""How many worlds lose a machine, of those where that loses anything: usual ones, and those with a bank."""


class Losses:
    """What a world lost for good. Clients and brokers go on all the time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.scheduler.stream("losses")
        self.destroyed: set[bytes] = set()
        """WAL instances that were on destroyed disks."""

    def plan(self, begin_ns: int, end_ns: int) -> None:
        """Draw whether a machine is destroyed between two times."""
        share = SHARE_OF_BANKS if self.world.bank else SHARE
        if self.world.wal != "objects" and self.rng.random() < share:
            self.world.scheduler.call_at_ns(self.rng.randint(begin_ns, end_ns), self.destroy)

    def destroy(self) -> None:
        """A machine that runs is gone; its brokers begin again on another one, which has an empty disk."""
        machines = [one for one in self.world.machines if one.up and one.shared is None]
        if self.world.quiet or not machines:
            return
        machine = self.rng.choice(machines)
        self.world.history.record("fault.destroy", host=machine.name)
        machine.crash()
        self.destroyed.update(_instances(machine))
        machine.replace_disk()
        self.world.scheduler.call_later_ns(self.rng.randint(300, 6_000) * MS, self._boot, machine)
        self._declare_later()

    def _boot(self, machine: Machine) -> None:
        if not self.world.over:
            machine.nodes[0].boot()

    def _declare_later(self) -> None:
        self.world.scheduler.call_later_ns(self.rng.randint(300, 3_000) * MS, self._declare)

    def _declare(self) -> None:
        """Ask any broker that serves; again until all is settled."""
        if self.world.over:
            return
        asked = [node for node in self.world.nodes if node.running and node.ready]
        if asked:
            node = self.rng.choice(asked)
            assert node.broker is not None and node.process is not None
            recovery, wals = node.broker.recovery, node.broker.controller.state.wals
            left = [one for one in sorted(self.destroyed) if one in wals and wals[one].state not in (LOST, RETIRED)]
            for wal_id in left:
                self.world.history.record("operator.declare_lost", node=node.node_id, wal=wal_id.hex())
                node.process.call(lambda wal_id=wal_id: recovery.declare_lost(wal_id, host_is_destroyed=True))
            if not left and node.broker.controller.reachable:
                return
        self._declare_later()


def _instances(machine: Machine) -> list[bytes]:
    """The WAL instances on its disk."""
    if not machine.disk.exists(WAL_ROOT):
        return []
    return [bytes.fromhex(name) for name in machine.disk.folder(WAL_ROOT).entries if not name.startswith(".")]
