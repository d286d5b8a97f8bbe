"""A broker of a simulated cluster over all its runs, and whether it may end as it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from broker.bucket import CannotStart
from broker.node import Broker
from controller.sessions import with_margin
from tests.simulation.disk import ProcessDisk
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, S
from tests.simulation.worker import worker_starter

if TYPE_CHECKING:
    from tests.simulation.cluster import World
    from tests.simulation.hosts import Host
    from tests.simulation.machines import Machine

NOTICED_NS = 3 * S
"""Beside what leases and sessions take: how long after a disturbance the silence that it caused may be noticed."""
HANGS_NS = 13 * S
"""A call that the store has not answered may hang for so long after the store is well again."""


class Trouble(NamedTuple):
    """Something that may have kept a broker from being heard. `end_ns` None: it goes on."""

    kind: str
    begin_ns: int
    end_ns: int | None


class Node:
    """One broker: its host in the network, and the process that runs now, started again whenever it ends."""

    def __init__(self, world: World, node_id: int, host: Host) -> None:
        self.world = world
        self.node_id = node_id
        self.host = host
        self.machine: Machine
        self.rng = world.scheduler.stream(f"node {node_id}")
        self.process: Process | None = None
        self.broker: Broker | None = None
        self.ready = False
        self.runs = 0
        self.troubles: dict[int, Trouble] = {}
        self._view: ProcessDisk | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False
        self._told_ns = 0
        self._excuses: set[str] = set()

    def __repr__(self) -> str:
        return f"b{self.node_id}"

    @property
    def running(self) -> bool:
        """A process is there and nothing keeps it from running."""
        return self.process is not None and not self.process.stopped

    @property
    def leads(self) -> bool:
        """Whether it takes itself for the controller."""
        return self.broker is not None and self.ready and self.broker.runtime.leads

    def start(self) -> None:
        """Start a process, unless one is there or the host is down."""
        if self.process is not None or not self.host.up or self.world.over:
            return
        self.runs += 1
        self.world.history.record("broker.start", node=self.node_id, run=self.runs)
        self._stopping = False
        self._excuses = {trouble.kind for trouble in self.troubles.values() if trouble.end_ns is None}
        process = self.process = Process(self.host, f"broker-{self.node_id}.{self.runs}", self._ended)
        self.world.processes.append(process)
        disk = self._view = self.machine.view(process)
        starter = worker_starter(process, disk, self.world.scheduler, self.world.scheduler.stream(f"{process.name} io"))

        async def main() -> int:
            self._stop = asyncio.Event()
            self.broker = Broker(
                self.world.settings(self),
                clock=process.clock,
                token=process.token,
                open_store=self.world.bucket.opener(process, self.host.name),
                disk=disk,
                start_worker=starter,
                fence_kind="session" if self.machine.shared else "file",
            )
            return await self.broker.run(self._stop, self._is_ready)

        process.spawn(main)

    def _is_ready(self, broker: Broker) -> None:
        self.ready = True
        self.world.history.record("broker.ready", node=self.node_id, run=self.runs)
        state, host = broker.controller.state, self.host.name
        self.world.applied(host, state.position, state.entry_hash, [])
        broker.controller.subscribe(lambda facts: self.world.applied(host, state.position, state.entry_hash, facts))

    def _ended(self, process: Process) -> None:
        assert self.process is process
        if process.killed:
            how = "killed"
        else:
            how = str(process.result) if process.error is None else type(process.error).__name__
            self._judge_end(process)
        if self.leads:
            self.world.led_until_ns = self.world.scheduler.now_ns
        self.process = self.broker = self._view = None
        self.ready = False
        self.world.history.record("broker.end", node=self.node_id, run=self.runs, how=how)
        if not self.world.over:
            self.world.scheduler.call_later_ns(self.rng.randint(20, 1_500) * MS, self.start)

    # Why it may end

    def _judge_end(self, process: Process) -> None:
        """A broker ends when it is told to, or for a reason that a fault gave it."""
        if process.error is not None and not isinstance(process.error, CannotStart):
            self.world.found(f"{process.name} raised {process.error!r}")
        elif process.result == 0:
            if not self._stopping:
                self.world.found(f"{process.name} ended though nobody told it to")
        elif not self._is_explained(process):
            self.world.found(f"{process.name} ended by itself: {process.error or self.world.last_words(process)}")

    def _is_explained(self, process: Process) -> bool:
        if "disk" in self._excuses:
            return True
        if self._stopping and (self._excuses or not self.ready or self._nobody_could_be_told()):
            return True
        if process.error is not None:  # its WAL is locked: by a sibling that was stopped while it looked
            siblings = [node for node in self.world.nodes if node.machine.disk is self.machine.disk]
            return any("asleep" in node._excuses for node in siblings)
        assert self.broker is not None
        return self.world.how_session_ended(self.broker.incarnation) == "silence" and self._may_have_been_silent()

    def _nobody_could_be_told(self) -> bool:
        """Whether there may have been no controller in all the time that a clean stop may take."""
        world = self.world
        takes_over_ns = with_margin(world.lease_ms) * MS + NOTICED_NS
        assert self.broker is not None
        if self.broker.settings.tidelog_shutdown_timeout_ms * MS > takes_over_ns:
            return False
        since_ns = self._told_ns - takes_over_ns
        troubles = [trouble for node in world.nodes for trouble in node.troubles.values() if trouble.kind != "disk"]
        return world.led_until_ns >= since_ns or any(
            trouble.end_ns is None or trouble.end_ns >= since_ns for trouble in troubles
        )

    def _may_have_been_silent(self) -> bool:
        """Whether something kept the broker, or its word, from the controller for some of the last session."""
        world = self.world
        slowest = min(machine.hosts[0].rate for machine in world.machines)
        bound_ns = int(with_margin(world.session_ms + world.lease_ms) / slowest) * MS + NOTICED_NS
        now_ns = world.scheduler.now_ns
        for trouble in self.troubles.values():
            lasts_ns = bound_ns + (HANGS_NS if trouble.kind == "store" else 0)
            if trouble.kind != "disk" and (trouble.end_ns is None or now_ns <= trouble.end_ns + lasts_ns):
                return True
        return False

    def trouble(self, kind: str) -> Callable[[], None]:
        """Something begins that the broker may end of, at once or later; returns what ends it."""
        number = len(self.troubles)
        self.troubles[number] = Trouble(kind, self.world.scheduler.now_ns, None)
        self._excuses.add(kind)

        def end() -> None:
            self.troubles[number] = self.troubles[number]._replace(end_ns=self.world.scheduler.now_ns)

        return end

    def may_end_of(self, kind: str) -> bool:
        """Whether the process that runs has met such a thing."""
        return kind in self._excuses

    # What may happen to it

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()

    def after(self, callbacks: int, callback: Callable[[], None]) -> None:
        """Do something to the process when it has run so many callbacks more; not to a later one."""
        assert self.process is not None
        self.process.loop.call_after(callbacks, callback)

    def kill_at_disk(self, operations: int) -> None:
        """SIGKILL in the middle of what it does with its disk."""
        assert self._view is not None and self.process is not None
        self._view.kill_after(operations, self.process.kill)

    def at_write(self, callback: Callable[[], None]) -> None:
        """Call when its WAL's writer next has a group on its way to the disk, none of which has landed."""
        assert self._view is not None
        self._view.at_write = callback

    def defuse(self) -> None:
        """What was to happen in the middle of something does not happen any more."""
        if self.process is not None and self._view is not None:
            self.process.loop.call_after(0, lambda: None)
            self._view.kill_after(-1, lambda: None)
            self._view.at_write = None

    def stop(self) -> None:
        """SIGTERM."""
        if self.process is not None and self._stop is not None:
            self._stopping = True
            self._told_ns = self.world.scheduler.now_ns
            self.process.call(self._stop.set)

    def crash(self) -> None:
        """Its machine loses power."""
        if self.machine.up:
            self.machine.crash()

    def boot(self) -> None:
        """And gets it back."""
        if not self.machine.up:
            self.machine.boot()
            self.world.history.record("host.boot", host=self.machine.name)
            for node in self.machine.nodes:
                node.start()
