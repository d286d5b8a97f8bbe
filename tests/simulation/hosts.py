"""Machines of a simulated world, and the clocks that their processes read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.clock import SystemClock
from tests.simulation.scheduler import MS, US, Scheduler

if TYPE_CHECKING:
    from storage.wal.disk import Disk
    from tests.simulation.network import Network
    from tests.simulation.process import Process

EPOCH_MS = 1_700_000_000_000


class Host:
    """A machine: its processes, its clocks and its disk. `on_crash` callbacks lose what is not durable."""

    def __init__(self, scheduler: Scheduler, network: Network, name: str, *, rate: float = 1.0) -> None:
        """`rate`: how fast its clocks go, 1.0 is right."""
        self.scheduler = scheduler
        self.network = network
        self.name = name
        self.rate = rate
        self.rng = scheduler.stream(f"host {name}")
        self.up = True
        self.suspended = False
        self.boots = 0
        self.boot_id = ""
        self.disk: Disk | None = None
        self.processes: list[Process] = []
        self.on_crash: list[Callable[[], None]] = []
        self.wall_offset_ms = self.rng.randint(-200, 200)
        self._uptime_ns = 0
        self._booted_ns = 0
        self._awake_from_ns = 0  # boot, later by what it was suspended
        self._suspended_ns = 0
        self._boot(self.rng.randint(0, 5_000) * MS)
        network.hosts[name] = self

    def _boot(self, uptime_ns: int) -> None:
        self.boots += 1
        self.boot_id = f"{self.name}-boot-{self.boots}"
        self._uptime_ns = uptime_ns
        self._booted_ns = self._awake_from_ns = self.scheduler.now_ns

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME: suspended time counts."""
        return self._uptime_ns + int((self.scheduler.now_ns - self._booted_ns) * self.rate)

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC: suspended time does not count."""
        now_ns = self._suspended_ns if self.suspended else self.scheduler.now_ns
        return self._uptime_ns + int((now_ns - self._awake_from_ns) * self.rate)

    def until_ns(self, monotonic_ns: int) -> int:
        """When, in virtual time, this host's monotonic clock will show a value, if it is not suspended."""
        return self.scheduler.now_ns + max(0, int((monotonic_ns - self.monotonic_ns()) / self.rate) + 1)

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return EPOCH_MS + self.wall_offset_ms + int(self.scheduler.now_ns * self.rate) // MS

    def crash(self) -> None:
        """Power is gone: every process is dead, memory is empty, un-synced pages are lost or not."""
        assert self.up
        self.up = False
        self.suspended = False
        for process in list(self.processes):
            process.kill()
        for callback in self.on_crash:
            callback()

    def boot(self) -> None:
        """Power is back; nothing runs yet."""
        assert not self.up
        self.up = True
        self._boot(self.rng.randint(0, 2_000) * MS)
        self.network.host_back()

    def suspend(self) -> None:
        """Nothing of this host runs; CLOCK_BOOTTIME goes on, CLOCK_MONOTONIC does not."""
        assert self.up and not self.suspended
        self.suspended = True
        self._suspended_ns = self.scheduler.now_ns

    def resume(self) -> None:
        """Go on after `suspend`."""
        assert self.suspended
        slept_ns = self.scheduler.now_ns - self._suspended_ns
        self._awake_from_ns += slept_ns
        self.suspended = False
        self.network.host_back()
        for process in self.processes:
            process.loop.put_off(slept_ns)
            process.release()


class SimulatedClock(SystemClock):
    """The product's clock on those of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def now_ms(self) -> int:
        return self._host.now_ms()

    def boottime_ms(self) -> int:
        return self._host.boottime_ns() // MS

    def ticks_us(self) -> int:
        return self._host.monotonic_ns() // US
