"""Machines and what runs on them: brokers with hosts of their own in the network, one kernel, one disk, one power plug.

Several brokers on one machine are as several pods on one node: they share its clocks, its boot id, its disk and their
WAL root. Several machines may share a network file system instead of having disks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.simulation.disk import ProcessDisk, SimulatedDisk
from tests.simulation.hosts import Host
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.nodes import Node
    from tests.simulation.scheduler import Scheduler


class SharedVolume:
    """A network file system: a machine's crash loses what that machine had not synced, names are never lost."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.disk = SimulatedDisk(scheduler.stream("shared volume"), timeline=scheduler)


class Machine:
    """One kernel. `nodes` are the brokers on it."""

    def __init__(self, scheduler: Scheduler, number: int, hosts: Sequence[Host], shared: SharedVolume | None) -> None:
        self.name = f"m{number}"
        self.hosts = list(hosts)
        self.nodes: list[Node] = []
        self.shared = shared
        self.disk = shared.disk if shared else SimulatedDisk(scheduler.stream(f"disk {number}"), timeline=scheduler)
        self.disks = [self.disk]
        """Those that it ever had."""
        self._scheduler = scheduler
        self._one_kernel()

    @property
    def up(self) -> bool:
        return self.hosts[0].up

    @property
    def suspended(self) -> bool:
        return self.hosts[0].suspended

    @property
    def boot_id(self) -> str:
        return self.hosts[0].boot_id

    def _one_kernel(self) -> None:
        """Every host of the machine has the clocks and the boot id of the first."""
        first, *others = self.hosts
        for host in others:
            host.boot_id, host.wall_offset_ms = first.boot_id, first.wall_offset_ms
            host.rate, host._uptime_ns = first.rate, first._uptime_ns

    def view(self, process: Process) -> ProcessDisk:
        """The disk as a process on this machine has it."""
        return self.disk.for_process(process, boot_id=self.boot_id)

    def crash(self) -> None:
        """Power is gone."""
        boot_id = self.boot_id
        for host in self.hosts:
            host.crash()
        if self.shared is None:
            self.disk.crash()
        else:
            self.disk.crash_of(boot_id)

    def replace_disk(self) -> None:
        """The machine is another one from now on: nothing is left of what was on its disk."""
        assert not self.up and self.shared is None
        stream = self._scheduler.stream(f"disk {self.name} {len(self.disks)}")
        self.disk = SimulatedDisk(stream, timeline=self._scheduler)
        self.disks.append(self.disk)

    def boot(self) -> None:
        """Power is back; nothing runs yet."""
        for host in self.hosts:
            host.boot()
        self._one_kernel()

    def suspend(self) -> None:
        """Nothing runs; CLOCK_BOOTTIME goes on, CLOCK_MONOTONIC does not."""
        for host in self.hosts:
            host.suspend()

    def resume(self) -> None:
        """Go on after `suspend`."""
        for host in self.hosts:
            host.resume()


LAYOUTS = {"apart": 4, "together": 3, "pairs": 2, "shared": 3}
"""How the brokers of a world are spread, and how often: a machine each; all on one; two on each; a machine each, over
one network file system."""


def machines_of(scheduler: Scheduler, layout: str, brokers: int) -> list[int]:
    """The machine of each broker, by number."""
    if layout == "together":
        return [0] * brokers
    if layout == "pairs":
        return [number // 2 for number in range(brokers)]
    return list(range(brokers))
