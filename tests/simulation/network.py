"""A simulated network: streams between hosts as asyncio shows them, with delays, resets, partitions and dead hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import Scheduler

if TYPE_CHECKING:
    from tests.simulation.process import Host, Process

Address = tuple[str, int]
"""(host name, port)."""


class Network:
    """All links of a world. Faults are between two hosts, by name, and last until they are healed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.hosts: dict[str, Host] = {}

    # Faults

    def block(self, source: str, target: str) -> None:
        """Nothing gets from one host to another; the other way is open."""
        raise NotImplementedError

    def partition(self, one: str, other: str) -> None:
        """Nothing gets through between two hosts."""
        raise NotImplementedError

    def cut_off(self, name: str) -> None:
        """Nothing gets to or from a host."""
        raise NotImplementedError

    def slow(self, source: str, target: str, delay_ns: int) -> None:
        """Everything takes so much longer from one host to another."""
        raise NotImplementedError

    def reset(self, one: str, other: str) -> None:
        """Every connection between two hosts is reset."""
        raise NotImplementedError

    def heal(self) -> None:
        """No fault is left; what waited arrives."""
        raise NotImplementedError

    # What processes and hosts use

    def listen(
        self,
        process: Process,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str | None,
        port: int,
        *,
        start_serving: bool,
    ) -> Any:
        """A server as asyncio's `create_server` returns it. OSError: the port is taken."""
        raise NotImplementedError

    async def connect(
        self, process: Process, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """As asyncio's `create_connection`. ConnectionRefusedError, ConnectionResetError, TimeoutError."""
        raise NotImplementedError

    def process_died(self, process: Process) -> None:
        """The kernel closes what the process had open."""
        raise NotImplementedError

    def host_crashed(self, host: Host) -> None:
        """Its connections are forgotten on its side; nobody tells the others."""
        raise NotImplementedError
