"""A whole world from one seed: brokers made by the product's own composition root, a bucket, clients, faults, a judge.

First everything starts, then faults happen while clients work, then all is healed and must serve again within a bound;
clients finish, every partition is read from its beginning, and the checker judges the history.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from broker.settings import Settings
from broker.settings_checks import build
from controller.entries import decode_entry
from controller.facts import Fact, SessionEnded
from controller.object_log import ENTRIES
from tests.simulation import bankers, tables
from tests.simulation.casting import add_clients
from tests.simulation.checker import Final, Loss, check
from tests.simulation.checker_tuned import may_be
from tests.simulation.client import Recorder, SimulatedClient
from tests.simulation.drawing import draw
from tests.simulation.faults import Faults, kinds_for
from tests.simulation.hosts import Host
from tests.simulation.losses import Losses
from tests.simulation.machines import LAYOUTS, Machine, SharedVolume, machines_of
from tests.simulation.network import Network
from tests.simulation.nodes import Node
from tests.simulation.operators import Admin, FinalReader
from tests.simulation.options import (
    BANKS,
    BROKERS,
    CLOCK_RATES,
    FAULTS_S,
    GROUP,
    METADATA,
    PARTS,
    PORT,
    Options,
    Result,
)
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, S, Scheduler
from tests.simulation.store import Bucket
from tests.simulation.surroundings import deterministic, listening, scaled
from tests.simulation.tuners import AUDITOR, TuneAuditor, in_effect
from tests.simulation.upgrade import NEWEST, Upgrade, begun_at, first_level

LIVE_WITHIN_S = 20
FINISH_S = 60
"""So long clients may take to end what they began, and the final reader to read everything."""

__all__ = ["Options", "Result", "World"]


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
        self.table_history = tables.Renamed(self.history)
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
        chance = self.scheduler.stream("tuned or not").random()
        self.tuned = chance < self.options.tuned and not self.options.upgrade
        self.wal, self.table, self._values = draw(self)
        self._metadata = self.options.metadata or self.scheduler.stream("metadata").choice(METADATA)
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
        # Trimmed, and applied by brokers only that were about to start: the controller has told.
        told = f"{incarnation:016x}"
        silenced = any("silent, their sessions end" in text and told in text for _, _, text in self.log)
        return "silence" if silenced else None

    def declared_losses(self) -> bool:
        """Whether a broker knows of anything that was declared lost."""
        return any(node.broker.controller.state.wal_table.losses for node in self.nodes if node.broker and node.ready)

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

    # The run

    def run(self) -> Result:
        """From the first event to the verdict."""
        level = first_level(self.seed) if self.options.upgrade else NEWEST
        with deterministic(), scaled(self._metadata), listening(self), begun_at(level):
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
            self._finish([self.add_client(tables.TableReader, "table-final", once=True, history=self.table_history)])
        if self.tuned:
            self._look_at_settings()
        self._judge(quiet_from_ns, store_quiet_from_ns)

    def _add_clients(self) -> None:
        add_clients(self)

    def _look_at_settings(self) -> None:
        """What operators set while the world went on is what every broker goes by."""
        nodes = len(self.nodes)
        self._finish([self.add_client(TuneAuditor, AUDITOR, nodes=nodes, wanted=may_be(self.history))])
        in_effect(self)

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

    # Logs

    def logged(self, record: logging.LogRecord) -> None:
        """One line of the product's log."""
        process = self.scheduler.current
        name = process.name if process is not None else "nobody"
        text = record.getMessage()
        self.log.append((self.scheduler.now_ns, name, f"{record.levelname} {record.name}: {text}"))
        if record.exc_info and record.levelno >= logging.ERROR:
            self.found(f"{name} logged a bug: {text}: {record.exc_info[1]!r}")
