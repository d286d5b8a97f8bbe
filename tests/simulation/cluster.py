"""A whole world from one seed: brokers made by the product's own composition root, a bucket, clients, faults, a judge.

First everything starts, then faults happen while clients work, then all is healed and must serve again within a bound;
clients finish, every partition is read from its beginning, and the checker judges the history.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from broker.bucket import CannotStart
from broker.node import Broker
from broker.settings import Settings, build
from tests.simulation.checker import Final, Loss, check
from tests.simulation.client import Part, SimulatedClient
from tests.simulation.consumers import Consumer, ConsumerLoad, GroupLoad, GroupMember
from tests.simulation.disk import ProcessDisk, SimulatedDisk
from tests.simulation.faults import KINDS, Faults
from tests.simulation.history import History
from tests.simulation.network import Network
from tests.simulation.operators import Admin, FinalReader
from tests.simulation.process import Host, Process
from tests.simulation.producers import IdempotentProducer, PlainProducer, ProducerLoad
from tests.simulation.scheduler import MS, S, Scheduler
from tests.simulation.store import Bucket
from tests.simulation.worker import worker_starter

PORT = 9092
TOPICS = {"orders": 2, "events": 1}
PARTS: list[Part] = [(topic, number) for topic, count in TOPICS.items() for number in range(count)]
GROUP = "readers"
LOADS = (
    ((8, 200), (50, 400)),
    ((8, 200), (10, 150)),
    ((8, 4_000), (50, 400)),
    ((2_000, 30_000), (50, 300)),  # fills the tails and the WAL while the store is away
)
"""(bytes per value, ms between batches) of the idempotent producers."""
LIVE_WITHIN_S = 15
FINISH_S = 60
"""So long clients may take to end what they began, and the final reader to read everything."""


@dataclass(frozen=True)
class Options:
    """What does not come from the seed."""

    brokers: int = 1
    faults_s: int = 20
    faults: dict[str, int] = field(default_factory=lambda: dict(KINDS))
    """Kinds and weights; empty: a world without faults."""
    log_level: int = logging.WARNING


@dataclass
class Result:
    """What came of a run."""

    seed: int
    findings: list[str]
    history: History
    counters: dict[str, int]

    @property
    def digest(self) -> str:
        """A hash of the history."""
        return self.history.digest()


class Node:
    """One broker of the cluster: its host, its disk, and the process that runs now, started again whenever it ends."""

    def __init__(self, world: World, node_id: int) -> None:
        self.world = world
        self.node_id = node_id
        self.rng = world.scheduler.stream(f"node {node_id}")
        self.host = Host(world.scheduler, world.network, f"b{node_id}", rate=self.rng.choice([1.0, 1.0, 0.998, 1.002]))
        self.disk = SimulatedDisk(world.scheduler.stream(f"disk {node_id}"), timeline=world.scheduler)
        self.host.on_crash.append(self.disk.crash)
        self.process: Process | None = None
        self.broker: Broker | None = None
        self.ready = False
        self.runs = 0
        self._view: ProcessDisk | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = False
        self._active: list[str] = []
        self._excuses: list[str] = []

    @property
    def running(self) -> bool:
        """A process is there and nothing keeps it from running."""
        return self.process is not None and not self.process.stopped

    def start(self) -> None:
        """Start a process, unless one is there or the host is down."""
        if self.process is not None or not self.host.up or self.world.over:
            return
        self.runs += 1
        self.world.history.record("broker.start", node=self.node_id, run=self.runs)
        self._stopping = False
        self._excuses = list(self._active)
        process = self.process = Process(self.host, f"broker-{self.node_id}.{self.runs}", self._ended)
        self.world.processes.append(process)
        disk = self._view = self.disk.for_process(process, boot_id=self.host.boot_id)
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
                fence_kind="file",
            )
            return await self.broker.run(self._stop, self._is_ready)

        process.spawn(main)

    def _is_ready(self, broker: Broker) -> None:
        self.ready = True
        self.world.history.record("broker.ready", node=self.node_id, run=self.runs)

    def _ended(self, process: Process) -> None:
        assert self.process is process
        if process.killed:
            how = "killed"
        else:
            how = str(process.result) if process.error is None else type(process.error).__name__
            self._judge_end(process)
        self.process = self.broker = self._view = None
        self.ready = False
        self.world.history.record("broker.end", node=self.node_id, run=self.runs, how=how)
        if not self.world.over:
            self.world.scheduler.call_later_ns(self.rng.randint(20, 1_500) * MS, self.start)

    def _judge_end(self, process: Process) -> None:
        """A broker ends when it is told to, or for a reason that a fault gave it."""
        if process.error is not None and not isinstance(process.error, CannotStart):
            self.world.found(f"{process.name} raised {process.error!r}")
        elif process.result == 0:
            if not self._stopping:
                self.world.found(f"{process.name} ended though nobody told it to")
        elif not (
            "disk" in self._excuses
            or (self._stopping and (self._excuses or not self.ready))
            or ("asleep" in self._excuses and process.error is None)  # its session was ended meanwhile
        ):
            self.world.found(f"{process.name} ended by itself: {process.error or self.world.last_words(process)}")

    def excuse(self, kind: str) -> None:
        """From now on something goes on that a broker may end of."""
        self._active.append(kind)
        self._excuses.append(kind)

    def may_end_of(self, kind: str) -> bool:
        """Whether the process that runs has met such a thing."""
        return kind in self._excuses

    def no_excuse(self, kind: str) -> None:
        """It is over; the process that met it may still end of it."""
        self._active.remove(kind)

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

    def defuse(self) -> None:
        """What was to happen in the middle of something does not happen any more."""
        if self.process is not None and self._view is not None:
            self.process.loop.call_after(0, lambda: None)
            self._view.kill_after(-1, lambda: None)

    def stop(self) -> None:
        """SIGTERM."""
        if self.process is not None and self._stop is not None:
            self._stopping = True
            self.process.call(self._stop.set)

    def crash(self) -> None:
        """The host loses power."""
        if self.host.up:
            self.host.crash()

    def boot(self) -> None:
        """And gets it back."""
        if not self.host.up:
            self.host.boot()
            self.world.history.record("host.boot", host=self.host.name)
            self.start()


class World:
    """One run. `run` may be called once."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.options = options or Options()
        self.seed = seed
        self.scheduler = Scheduler(seed)
        self.history = self.scheduler.history
        self.rng = self.scheduler.stream("world")
        self.network = Network(self.scheduler)
        self.bucket = Bucket(self.scheduler, self.scheduler.stream("bucket"), record=self.history.record)
        self.findings: list[str] = []
        self.processes: list[Process] = []
        self.log: list[tuple[int, str, str]] = []
        self.over = False
        self.quiet = False
        """No further fault begins."""
        self.session_ms = self.rng.choice([2_000, 6_000])
        self._values = self._draw_settings()
        self.nodes = [Node(self, number + 1) for number in range(self.options.brokers)]
        self.client_hosts = [Host(self.scheduler, self.network, f"c{number + 1}") for number in range(2)]
        self.clients: dict[str, Process] = {}
        self._cast: dict[str, SimulatedClient] = {}
        self._numbers = itertools.count(1)
        self.faults = Faults(self)

    # Settings

    def _draw_settings(self) -> dict[str, str]:
        choice = self.rng.choice
        values: dict[str, Any] = {
            "tidelog.http.listener": "",
            "tidelog.storage": "memory:",
            "tidelog.wal.dir": "/wal",
            "tidelog.wal.file.bytes": 1 << 20,
            "tidelog.wal.bytes.max": 4 << 20,
            "message.max.bytes": 128 << 10,
            "socket.request.max.bytes": 1 << 20,
            "queued.max.request.bytes": 4 << 20,
            "tidelog.tail.bytes.max": choice([1 << 20, 8 << 20]),
            "tidelog.tail.keep.bytes": choice([0, 16 << 10, 512 << 10]),
            "tidelog.seal.bytes": choice([64 << 10, 1 << 20]),
            "tidelog.seal.ms": choice([200, 1_000, 4_000]),
            "tidelog.read.cache.bytes": 1 << 20,
            "tidelog.session.timeout.ms": self.session_ms,
            "tidelog.controller.lease.ms": self.session_ms // 2,
            "tidelog.delete.grace.ms": choice([0, 2_000]),
            "tidelog.orphan.check.interval.ms": choice([3_000, 3_600_000]),
            "tidelog.shutdown.timeout.ms": choice([2_000, 30_000]),
            "log.retention.check.interval.ms": 2_000,
            "offsets.topic.num.partitions": 2,
            "group.initial.rebalance.delay.ms": choice([0, 300]),
            "group.min.session.timeout.ms": 1_000,
            "auto.create.topics.enable": False,
        }
        return {key: str(value) for key, value in values.items()}

    def settings(self, node: Node) -> Settings:
        """The settings of one broker."""
        own = {"node.id": str(node.node_id), "listeners": f"PLAINTEXT://{node.host.name}:{PORT}"}
        return build(self._values | own)

    # Findings

    def found(self, what: str) -> None:
        """Something that must not happen happened."""
        self.findings.append(f"{self.scheduler.now_ns / S:.6f} {what}")
        self.history.record("finding", what=what)

    def last_words(self, process: Process) -> str:
        """The last line that a process logged."""
        return next((text for _, name, text in reversed(self.log) if name == process.name), "")

    # Clients

    def add_client(
        self, make: Callable[..., SimulatedClient], name: str, *args: Any, **options: Any
    ) -> SimulatedClient:
        """Start a client in a process of its own."""
        bootstrap = [(node.host.name, PORT) for node in self.nodes]
        rng = self.scheduler.stream(f"client {name}")
        client = make(name, bootstrap, self.history, rng, self._numbers, *args, **options)
        process = Process(rng.choice(self.client_hosts), name)
        self.processes.append(process)
        self.clients[name] = process
        self._cast[name] = client
        process.spawn(client.run)
        return client

    def kill_client(self, name: str) -> None:
        """SIGKILL; nobody starts it again."""
        self.clients[name].kill()

    def _add_clients(self) -> None:
        rng = self.scheduler.stream("cast")
        self.add_client(Admin, "admin", TOPICS, delete_from=["events"] if rng.random() < 0.5 else [])
        sizes, pauses = rng.choice(LOADS)
        busy, rare = (PARTS[:2], PARTS[2:]) if rng.random() < 0.4 else (PARTS, PARTS)
        for number in range(2):
            load = ProducerLoad(version=rng.choice([9, 13]), value_bytes=sizes, pause_ms=pauses)
            self.add_client(IdempotentProducer, f"sure-{number}", busy, load)
        polls = ConsumerLoad(version=rng.choice([11, 12, 13, 16]), pause_ms=(20, 300))
        load = ProducerLoad(version=rng.choice([8, 12]), value_bytes=sizes)
        if rare != busy:  # a partition whose readers have nothing else to be woken by
            polls = replace(polls, max_wait_ms=3_000, pause_ms=(0, 20))
            load = replace(load, pause_ms=(300, 1_500), bursts=0.3)
        self.add_client(PlainProducer, "plain", rare, load)
        self.add_client(Consumer, "reader", rare, polls)
        for number in range(2):
            polls = ConsumerLoad(max_wait_ms=300, pause_ms=(50, 300))
            group_load = GroupLoad(session_timeout_ms=rng.choice([2_000, 6_000]))
            self.add_client(GroupMember, f"member-{number}", PARTS, polls, group=GROUP, group_load=group_load)

    # The run

    def run(self) -> Result:
        """From the first event to the verdict."""
        with _deterministic(), self._listening():
            try:
                self._live()
            finally:
                self.over = True
                for process in self.processes:
                    process.kill()
                for process in self.processes:
                    process.bury()
        counters: dict[str, int] = {"events": self.scheduler.events_run, "virtual_ms": self.scheduler.now_ns // MS}
        for event in self.history:
            counters[event.kind] = counters.get(event.kind, 0) + 1
        return Result(self.seed, self.findings, self.history, counters)

    def _live(self) -> None:
        scheduler, options = self.scheduler, self.options
        for node in self.nodes:
            scheduler.call_later_ns(self.rng.randint(0, 300) * MS, node.start)
        scheduler.call_later_ns(self.rng.randint(0, 500) * MS, self._add_clients)
        if options.faults:
            self.faults.plan(2 * S, options.faults_s * S, options.faults)
        scheduler.call_later_ns(S, self._operate)
        scheduler.run_until(options.faults_s * S)
        self.quiet = True
        self.faults.heal()
        quiet_from_ns = scheduler.now_ns
        self.history.record("quiet")
        scheduler.run_until(quiet_from_ns + LIVE_WITHIN_S * S, self._everybody_serves)
        scheduler.run_until(scheduler.now_ns + 2 * S)
        self._finish(list(self._cast.values()))
        if self.rng.random() < 0.3:
            self._restart_all()
        self._finish([self.add_client(FinalReader, "final", PARTS, groups=[GROUP])])
        self._judge(quiet_from_ns)

    def _everybody_serves(self) -> bool:
        return all(node.ready for node in self.nodes)

    def _operate(self) -> None:
        """The operator: gives up what damaged WAL instances do not hold any more, some time after they are reported.

        One that could not be read or fenced because the disk failed needs no operator.
        """
        for node in self.nodes:
            broker, process = node.broker, node.process
            if broker is None or process is None or not node.running or not node.ready:
                continue
            for wal_id, waiting in broker.recovery.waiting.items():
                if waiting.disk and node.may_end_of("disk"):
                    continue  # it is tried again without anybody's help
                if wal_id not in self.faults.rotten:
                    self.found(f"{node.host.name} waits for the operator though no byte was damaged: {waiting.why}")
                self.history.record("operator.accept_loss", wal=wal_id.hex())
                process.call(partial(broker.recovery.accept_loss, wal_id))
        if not self.over:
            self.scheduler.call_later_ns(self.rng.randint(500, 2_000) * MS, self._operate)

    def _losses(self) -> list[Loss]:
        """What was declared lost, as the newest state of the cluster has it."""
        states = [node.broker.controller.state for node in self.nodes if node.broker is not None and node.ready]
        newest = max(states, key=lambda state: state.position, default=None)
        losses = [] if newest is None else newest.wal_table.losses.values()
        return [Loss(*log[1:]) for loss in losses for log in loss.logs]

    def _finish(self, clients: Sequence[SimulatedClient]) -> None:
        """Clients end what they began; it is a finding when one cannot."""
        for client in clients:
            client.stop()
        waiting = [self.clients[client.name] for client in clients]

        def ended() -> bool:
            return not any(process.alive for process in waiting)

        if not self.scheduler.run_until(self.scheduler.now_ns + FINISH_S * S, ended):
            for process in waiting:
                if process.alive:
                    self.found(f"{process.name} does not come to an end")

    def _restart_all(self) -> None:
        """Every broker is told to stop, and starts again: what the final reader gets comes from the bucket."""
        for node in self.nodes:
            self.history.record("stop", node=node.node_id)
            node.stop()
        self.scheduler.run_until(self.scheduler.now_ns + 3 * S)

    def _judge(self, quiet_from_ns: int) -> None:
        for process in self.processes:
            self.findings += [f"{failure.at_ns / S:.6f} {failure}" for failure in process.failures]
            if process.name in self.clients and process.error is not None:
                self.findings.append(f"{process.name} raised {process.error!r}")
        self.findings += [f"bucket: {what}" for what in self.bucket.findings]
        for node in self.nodes:
            self.findings += [f"disk of {node.host.name}: {what}" for what in node.disk.findings]
        decided = [event.at_ns for event in self.history if event.kind == "operator.accept_loss"]
        quiet_from_ns = max([quiet_from_ns, *decided])  # whatever waited for the operator
        final = Final(losses=self._losses(), quiet_from_ns=quiet_from_ns, live_within_ns=LIVE_WITHIN_S * S)
        self.findings += [str(finding) for finding in check(self.history, final)]

    # Logs

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """What the product logs goes to `log`; an error of the product itself is a finding."""
        handler = _LogHandler(self)
        loggers = [logging.getLogger(name) for name in ("broker", "controller", "storage", "protocol", "asyncio")]
        before = [(logger.level, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(self.options.log_level)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
                logger.propagate = propagate

    def logged(self, record: logging.LogRecord) -> None:
        """One line of the product's log."""
        process = self.scheduler.current
        name = process.name if process is not None else "nobody"
        text = record.getMessage()
        self.log.append((self.scheduler.now_ns, name, f"{record.levelname} {record.name}: {text}"))
        if record.exc_info and record.levelno >= logging.ERROR:
            self.found(f"{name} logged a bug: {text}: {record.exc_info[1]!r}")


class _LogHandler(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.logged(record)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Garbage is collected when the run says so, not when the interpreter feels like it.

    What an earlier run left behind must not be finalized in the midst of this one: a `finally` would find this one's
    loop running. Worlds are cycles of 20 MB, so each goes before the next one begins; what was there before the first
    one is not looked at again.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    try:
        yield
    finally:
        gc.collect(1)
        if enabled:
            gc.enable()
