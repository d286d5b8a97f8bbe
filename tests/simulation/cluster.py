"""A whole world from one seed: brokers made by the product's own composition root, a bucket, clients, faults, a judge.

First everything starts, then faults happen while clients work, then all is healed and must serve again within a bound;
clients finish, every partition is read from its beginning, and the checker judges the history.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

from broker import background, control_settings
from broker.settings import Settings, build
from controller.entries import decode_entry
from controller.facts import Fact, SessionEnded
from controller.object_log import ENTRIES
from controller.runtime import ControllerSettings
from storage import probe
from tests.simulation import bankers, tables
from tests.simulation.checker import Final, Loss, check
from tests.simulation.checker_owners import SESSION_MS
from tests.simulation.client import ClientSettings, Part, Recorder, SimulatedClient
from tests.simulation.consumers import Consumer, ConsumerLoad, GroupLoad, GroupMember
from tests.simulation.consumers_modern import ModernMember
from tests.simulation.faults import Faults, kinds_for
from tests.simulation.history import History
from tests.simulation.hosts import Host
from tests.simulation.losses import Losses
from tests.simulation.machines import LAYOUTS, Machine, SharedVolume, machines_of
from tests.simulation.movers import Drainer, Mover
from tests.simulation.network import Network
from tests.simulation.nodes import Node
from tests.simulation.operators import Admin, FinalReader
from tests.simulation.process import Process
from tests.simulation.producers import IdempotentProducer, PlainProducer, ProducerLoad
from tests.simulation.scheduler import MS, S, Scheduler
from tests.simulation.store import Bucket
from tests.simulation.upgrade import NEWEST, Upgrade, begun_at, first_level

PORT = 9092
TOPICS = {"orders": 2, "events": 1}
PARTS: list[Part] = [(topic, number) for topic, count in TOPICS.items() for number in range(count)]
OFFSETS_PARTS: list[Part] = [("__consumer_offsets", number) for number in range(2)]
GROUP = "readers"
LOADS = (
    ((8, 200), (50, 400)),
    ((8, 200), (10, 150)),
    ((8, 4_000), (50, 400)),
    ((2_000, 30_000), (50, 300)),  # fills the tails and the WAL while the store is away
)
"""(bytes per value, ms between batches) of the idempotent producers."""
BROKERS = (1, 2, 3, 3, 3)
BANKS = 0.15
"""Of how many worlds the clients are those of a bank."""
METADATA = ((1_000, 1_000), (1_000, 1_000), (40, 20), (12, 4))
CLOCK_RATES = ((1.0, 1.0, 0.998, 1.002), (1.0, 1.0, 0.998, 1.002), (0.955, 1.0, 1.045))
"""Among what the rates of the machines' clocks are drawn; 10 % apart at most."""
FAULTS_S = (8, 12, 20)
"""Among what the time in which faults happen is drawn; they are as many in every one."""
LIVE_WITHIN_S = 20
FINISH_S = 60
"""So long clients may take to end what they began, and the final reader to read everything."""


WAL_KINDS = {"volume": 3, "objects": 1, "both": 1}
"""Where acknowledged records lie, and how often: on disks; in the bucket, without any disk; one topic in either."""

GROUPS = ("classic", "classic", "consumer", "mixed")
"""Among what the protocol of the group's members is drawn."""


@dataclass(frozen=True)
class Options:
    """What does not come from the seed."""

    brokers: int | None = None
    """None: drawn, mostly several."""
    layout: str | None = None
    """One of `machines.LAYOUTS`; None: drawn."""
    session_ms: int | None = None
    """None: drawn."""
    clock_rates: tuple[float, ...] | None = None
    """Among what the rates of the machines' clocks are drawn; None: drawn from `CLOCK_RATES`."""
    faults_s: int | None = None
    """None: drawn."""
    faults: dict[str, int] | None = None
    """Kinds and weights; None: all that such a cluster may meet; empty: a world without faults."""
    late_s: int | None = None
    """When the last broker starts for the first time; None: with the others."""
    load: int | None = None
    """Which of `LOADS`; None: drawn."""
    metadata: tuple[int, int] | None = None
    """After how many entries of the metadata log a snapshot is taken, and how many of those before it stay; None:
    drawn from `METADATA`."""
    bank: bool | None = False
    """Transactional clients, those of `bankers`, instead of the usual ones; None: drawn."""
    rereaders: int = 0
    """So many more consumers read everything again and again, a little at a time."""
    wal: str | None = None
    """One of `WAL_KINDS`; None: drawn."""
    settings: dict[str, str] | None = None
    """Of every broker, in the place of what the seed draws."""
    log_level: int = logging.WARNING
    moves: float = 0.5
    """How likely it is in a world of several brokers that an operator moves leadership about, and drains brokers."""
    tables: float = 0.3
    """How likely it is that there is a compacted topic too."""
    groups: str | None = None
    """One of `GROUPS`; None: drawn."""
    upgrade: bool = False
    """The version before began the cluster, and an operator upgrades it."""


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
        self._table_history = tables.Renamed(self.history)
        self.findings: list[str] = []
        self._entries: dict[int, tuple[bytes, str]] = {}
        """By position: the hash of the metadata entry there, and who applied it first."""
        self._forked: int | None = None
        self._ends: dict[int, str] = {}
        """Why sessions ended, by incarnation: entries that said so may be trimmed."""
        self.processes: list[Process] = []
        self.log: list[tuple[int, str, str]] = []
        self.over = False
        self.quiet = False
        """No further fault begins."""
        self.led_until_ns = -1
        """When a controller last ended."""
        self.session_ms = self.rng.choice([2_000, 6_000])
        self.session_ms = self.options.session_ms or self.session_ms
        self.faults_s = self.options.faults_s or self.scheduler.stream("faulty time").choice(FAULTS_S)
        self.lease_ms = self.session_ms // 2
        chance = self.scheduler.stream("bank or not").random()
        self.bank = chance < BANKS if self.options.bank is None else self.options.bank
        self._values = self._draw_settings()
        self.machines: list[Machine] = []
        self.nodes: list[Node] = []
        self._build_cluster()
        self.client_hosts = [Host(self.scheduler, self.network, f"c{number + 1}") for number in range(2)]
        self.clients: dict[str, Process] = {}
        self._cast: dict[str, SimulatedClient] = {}
        self._numbers = itertools.count(1)
        self.faults = Faults(self)
        self.losses = Losses(self)

    def _build_cluster(self) -> None:
        """The brokers and their machines."""
        rng = self.scheduler.stream("cluster")
        brokers = self.options.brokers or rng.choice(BROKERS)
        layout = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))[0] if brokers > 1 else "apart"
        layout = self.options.layout or layout
        shared = SharedVolume(self.scheduler) if layout == "shared" else None
        rates = rng.choice(CLOCK_RATES)
        rates = self.options.clock_rates or rates
        places = machines_of(self.scheduler, layout, brokers)
        for number in sorted(set(places)):
            rate = rng.choice(rates)
            here = [node_id for node_id, place in enumerate(places, 1) if place == number]
            hosts = [Host(self.scheduler, self.network, f"b{node_id}", rate=rate) for node_id in here]
            machine = Machine(self.scheduler, number + 1, hosts, shared)
            self.machines.append(machine)
            for node_id, host in zip(here, hosts, strict=True):
                node = Node(self, node_id, host)
                node.machine = machine
                machine.nodes.append(node)
                self.nodes.append(node)

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
            "tidelog.controller.lease.ms": self.lease_ms,
            "tidelog.delete.grace.ms": choice([0, 2_000]),
            "tidelog.orphan.check.interval.ms": choice([3_000, 3_600_000]),
            "tidelog.shutdown.timeout.ms": choice([2_000, 30_000]),
            "log.retention.check.interval.ms": 2_000,
            "offsets.topic.num.partitions": len(OFFSETS_PARTS),
            "transaction.state.log.num.partitions": len(bankers.STATE_PARTS),
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
            "group.initial.rebalance.delay.ms": choice([0, 300]),
            "group.min.session.timeout.ms": 1_000,
            "group.consumer.min.session.timeout.ms": 1_000,
            "group.consumer.session.timeout.ms": SESSION_MS,
            "group.consumer.min.heartbeat.interval.ms": 100,
            "group.consumer.heartbeat.interval.ms": 400,
            "group.consumer.assignment.interval.ms": 200,
            "auto.create.topics.enable": False,
            "tidelog.balance.interval.ms": choice([400, 2_000, 30_000]),
            "tidelog.balance.moves.max": choice([2, 10]),
        }
        rng = self.scheduler.stream("object wal")
        self.wal = self.options.wal or rng.choices(list(WAL_KINDS), list(WAL_KINDS.values()))[0]
        if self.wal != "volume":
            values["tidelog.wal.objects.bytes.max"] = 4 << 20
            values["tidelog.wal.objects.group.bytes"] = rng.choice([64 << 10, 4 << 20])
            values["tidelog.wal.objects.interval.ms"] = rng.choice([100, 250, 250])
            values["tidelog.wal.objects.in.flight.max"] = rng.choice([1, 3, 8])
        if self.wal == "objects":
            values["tidelog.wal"] = "objects"
            del values["tidelog.wal.dir"]
        rng = self.scheduler.stream("tables")
        self.table: dict[str, str] | None = None
        if rng.random() < self.options.tables and not self.bank:
            self.table, cleaner = tables.draw(rng)
            values |= cleaner
        return {key: str(value) for key, value in (values | self._draw_merging()).items()}

    def _draw_merging(self) -> dict[str, Any]:
        """Thresholds so low that logs of a few seconds are merged through several levels and into manifests."""
        choice = self.scheduler.stream("merging").choice
        head = choice([4, 6])
        return {
            "tidelog.merge.enable": choice([True, True, True, False]),
            "tidelog.merge.fan.out": choice([2, 3]),
            "tidelog.merge.object.bytes": choice([64 << 10, 1 << 20]),
            "tidelog.merge.shared.ms": choice([500, 5_000]),
            "tidelog.merge.check.interval.ms": choice([100, 1_000]),
            "tidelog.merge.bytes.per.second": choice([0, 256 << 10]),
            "tidelog.log.ranges.head.max": head,
            "tidelog.manifest.ranges.max": choice([4, 16]),
        }

    def settings(self, node: Node) -> Settings:
        """The settings of one broker."""
        own = {"node.id": str(node.node_id), "listeners": f"PLAINTEXT://{node.host.name}:{PORT}"}
        return build(self._values | (self.options.settings or {}) | own)

    # Findings

    def found(self, what: str) -> None:
        """Something that must not happen happened."""
        self.findings.append(f"{self.scheduler.now_ns / S:.6f} {what}")
        self.history.record("finding", what=what)

    def applied(self, who: str, position: int, entry_hash: bytes, facts: Sequence[Fact]) -> None:
        """A broker's state is that after an entry of the metadata log. There is one log: one entry at a position."""
        self._ends.update({fact.incarnation: fact.reason for fact in facts if isinstance(fact, SessionEnded)})
        first = self._entries.setdefault(position, (entry_hash, who))
        if first[0] != entry_hash and self._forked is None:
            self._forked = position
            self.found(f"{who} and {first[1]} applied different entries at position {position}")

    def how_session_ended(self, incarnation: int) -> str | None:
        """The reason that the metadata log gives; None: it has not ended."""
        if incarnation in self._ends:
            return self._ends[incarnation]
        for key, data in self.bucket.objects.items():
            if key.startswith(ENTRIES):
                for fact in decode_entry(data).facts:
                    if isinstance(fact, SessionEnded) and fact.incarnation == incarnation:
                        return fact.reason
        return None

    def last_words(self, process: Process) -> str:
        """The last line that a process logged."""
        return next((text for _, name, text in reversed(self.log) if name == process.name), "")

    # Clients

    def add_client(
        self,
        make: Callable[..., SimulatedClient],
        name: str,
        *args: Any,
        history: Recorder | None = None,
        **options: Any,
    ) -> SimulatedClient:
        """Start a client in a process of its own."""
        bootstrap = [(node.host.name, PORT) for node in self.nodes]
        rng = self.scheduler.stream(f"client {name}")
        client = make(name, bootstrap, history or self.history, rng, self._numbers, *args, **options)
        process = Process(rng.choice(self.client_hosts), name)
        self.processes.append(process)
        self.clients[name] = process
        self._cast[name] = client
        process.spawn(client.run)
        return client

    def may_go(self, name: str) -> bool:
        """Whether the others can do without this client: somebody has to create the topics."""
        client = self._cast[name]
        return not isinstance(client, Admin) or client.created

    def kill_client(self, name: str) -> None:
        """SIGKILL; nobody starts it again."""
        self.clients[name].kill()

    def _add_clients(self) -> None:
        if self.bank:
            bankers.add_clients(self)
            return
        rng = self.scheduler.stream("cast")
        configs = {"orders": {"tidelog.wal": "objects"}} if self.wal == "both" else {}
        settings = ClientSettings(request_timeout_ms=rng.choice([3_000, 8_000]))
        looks = rng.choice([(1_000, 4_000), (100, 600)])
        delete_from = ["events"] if rng.random() < 0.5 else []
        self.add_client(
            Admin, "admin", TOPICS, configs=configs, delete_from=delete_from, pause_ms=looks, settings=settings
        )
        sizes, pauses = rng.choice(LOADS if self.options.load is None else LOADS[self.options.load :][:1])
        busy, rare = (PARTS[:2], PARTS[2:]) if rng.random() < 0.4 else (PARTS, PARTS)
        for number in range(2):
            load = ProducerLoad(version=rng.choice([9, 13]), value_bytes=sizes, pause_ms=pauses)
            self.add_client(IdempotentProducer, f"sure-{number}", busy, load, settings)
        polls = ConsumerLoad(version=rng.choice([11, 12, 13, 16]), pause_ms=(20, 300))
        load = ProducerLoad(version=rng.choice([8, 12]), value_bytes=sizes)
        if rare != busy:  # a partition whose readers have nothing else to be woken by
            polls = replace(polls, max_wait_ms=3_000, pause_ms=(0, 20))
            load = replace(load, pause_ms=(300, 1_500), bursts=0.3)
        self.add_client(PlainProducer, "plain", rare, load, settings)
        self.add_client(Consumer, "reader", rare, polls, settings=settings)
        for number in range(self.options.rereaders):
            small = ConsumerLoad(max_bytes=2_000, pause_ms=(0, 50), again=0.3)
            self.add_client(Consumer, f"rereader-{number}", PARTS, small, settings=settings)
        if len(self.nodes) > 1 and self.scheduler.stream("moves").random() < self.options.moves:
            nodes = [node.node_id for node in self.nodes]
            self.add_client(Mover, "mover", [*PARTS, *OFFSETS_PARTS], nodes)
            Drainer(self).later()
        if self.table is not None:
            self._add_table_clients(self.table)
        groups = self.options.groups or self.scheduler.stream("group protocol").choice(GROUPS)
        for number in range(2):
            polls = ConsumerLoad(max_wait_ms=300, pause_ms=(50, 300))
            group_load = GroupLoad(session_timeout_ms=rng.choice([2_000, 6_000]))
            modern = not self.options.upgrade and (groups == "consumer" or (groups == "mixed" and number == 1))
            member = ModernMember if modern else GroupMember
            self.add_client(
                member, f"member-{number}", PARTS, polls, group=GROUP, group_load=group_load, settings=settings
            )

    def _add_table_clients(self, configs: dict[str, str]) -> None:
        """Those of the compacted topic."""
        rng = self.scheduler.stream("table clients")
        names = {tables.TABLE: 1}
        self.add_client(Admin, "table-admin", names, configs={tables.TABLE: configs}, history=self._table_history)
        for number in range(2):
            load = ProducerLoad(records=(1, 6), value_bytes=(8, 300), pause_ms=rng.choice([(20, 200), (100, 800)]))
            options = {"history": self._table_history}
            self.add_client(tables.TableProducer, f"table-{number}", [tables.PART], load, **options)
        self.add_client(tables.TableReader, "table-reader", history=self._table_history)

    # The run

    def run(self) -> Result:
        """From the first event to the verdict."""
        level = first_level(self.seed) if self.options.upgrade else NEWEST
        with _deterministic(), self._scaled(), self._listening(), begun_at(level):
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
            late_s = options.late_s if node is self.nodes[-1] else None
            scheduler.call_later_ns(self.rng.randint(0, 300) * MS + (late_s or 0) * S, node.start)
        scheduler.call_later_ns(self.rng.randint(0, 500) * MS, self._add_clients)
        kinds = kinds_for(len(self.nodes)) if options.faults is None else options.faults
        if kinds:
            self.faults.plan(2 * S, self.faults_s * S, kinds)
        if options.faults is None:
            self.losses.plan(2 * S, self.faults_s * S)
        scheduler.call_later_ns(S, self._operate)
        if options.upgrade:
            self.upgrade = Upgrade(self)
            scheduler.call_later_ns(3 * S, self.upgrade.later)
        scheduler.run_until(self.faults_s * S)
        self.quiet = True
        self.faults.heal()
        quiet_from_ns = scheduler.now_ns
        store_quiet_from_ns = self.bucket.answered_ns
        self.history.record("quiet")
        scheduler.run_until(quiet_from_ns + LIVE_WITHIN_S * S, self._everybody_serves)
        scheduler.run_until(scheduler.now_ns + 2 * S)
        self._finish(list(self._cast.values()))
        if self.rng.random() < 0.3:
            self._restart_all()
        if self.bank:
            self._finish([self.add_client(bankers.Clerk, "final", bankers.REQUEST_PARTS, groups=[bankers.GROUP])])
            self._finish([self.add_client(bankers.FinalAuditor, "audit", bankers.ACCOUNT_PARTS)])
        else:
            self._finish([self.add_client(FinalReader, "final", PARTS, groups=[GROUP])])
        if self.table is not None:
            self._finish([self.add_client(tables.TableReader, "table-final", once=True, history=self._table_history)])
        self._judge(quiet_from_ns, store_quiet_from_ns)

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
            for wal in broker.recovery.missing():
                if wal.wal_id in self.faults.lost:
                    self.history.record("operator.accept_loss", wal=wal.wal_id.hex())
                    process.call(partial(broker.recovery.declare_lost, wal.wal_id, host_is_destroyed=True))
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

    def _judge(self, quiet_from_ns: int, store_quiet_from_ns: int) -> None:
        for process in self.processes:
            self.findings += [f"{failure.at_ns / S:.6f} {failure}" for failure in process.failures]
            if process.name in self.clients and process.error is not None:
                self.findings.append(f"{process.name} raised {process.error!r}")
        self.findings += [f"bucket: {what}" for what in self.bucket.findings]
        for disk in dict.fromkeys(disk for machine in self.machines for disk in machine.disks):
            self.findings += [f"disk: {what}" for what in disk.findings]
        decisions = ("operator.accept_loss", "operator.declare_lost")
        decided = [event.at_ns for event in self.history if event.kind in decisions]
        quiet_from_ns = max([quiet_from_ns, *decided])  # whatever waited for the operator
        final = Final(
            losses=self._losses(),
            quiet_from_ns=quiet_from_ns,
            store_quiet_from_ns=store_quiet_from_ns,
            live_within_ns=LIVE_WITHIN_S * S,
        )
        self.findings += [str(finding) for finding in check(self.history, final)]
        if self.table is not None:
            retention_ms = int(self.table["delete.retention.ms"])
            self.findings += [str(finding) for finding in tables.judge(self.history, final.losses, retention_ms)]

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        """Numbers of the product that only cost CPU here, or that a world would never reach."""
        entries, keep = self.options.metadata or self.scheduler.stream("metadata").choice(METADATA)
        settings = partial(ControllerSettings, snapshot_entries=entries, keep_entries=keep)
        with (
            patch.object(probe, "RACERS", 4),  # a start writes 100 objects of the probe's races
            patch.object(probe, "RACES", 1),
            patch.object(background, "COLLECT_EVERY_S", 3_600.0),  # all goes at the end of the world
            patch.object(control_settings, "ControllerSettings", settings),
        ):
            yield

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


@cache
def _freeze_once() -> None:
    gc.freeze()


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
    _freeze_once()
    try:
        yield
    finally:
        gc.collect(1)
        if enabled:
            gc.enable()
