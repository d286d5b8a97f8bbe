"""One broker's object WAL in a bucket that loses, delays and repeats writes, through zombies, rivals and recoverers.

The real `ObjectWal`, `ObjectInstance`, collector rules and decisions of the controller; what runs beside them stands
for brokers (appends, commits, replay) and for the one who ends sessions. `ObjectWalWorld(seed).run()` returns what went
wrong. In half of the worlds nobody checks a session before acknowledging: the fence alone must be enough, and stays. In
the others the session is checked, and fences are collected as soon as their instance is closed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NamedTuple

from broker.background import Tasks
from controller import collector
from controller import facts as f
from controller.collector import FENCE_MS
from controller.commands import EndSilentSessions, ReportScan, RetireWal
from controller.configs import PlainRules
from controller.decide import Context, decide
from controller.state import ClusterState
from controller.wals import RECOVERING
from protocol.errors import KafkaError
from storage.seal import CommitSeal, CommittedThrough, Range, Recovery, SegmentObject
from storage.wal.object_format import LANE
from storage.wal.object_recovery import ObjectInstance
from storage.wal.objects import ObjectWal, ObjectWalSettings
from storage.wal.port import Damaged
from tests.simulation.hosts import Host
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, S, Scheduler
from tests.simulation.store import Bucket, StoreFaults, at_once
from tests.storage.wal.support import make_batch

LOGS = 3
SIZES = (61, 100, 400, 1_500)
RECOVERERS = (2, 3, 4)
SESSION_NS = 1 * S


class Appended(NamedTuple):
    log_id: int
    base: int
    end: int
    batch: bytes


class Truth:
    """What one instance was given, and what others were told of it. Sequences count from 1."""

    def __init__(self, wal_id: bytes, incarnation: int, epoch: int, ends: dict[int, int]) -> None:
        self.wal_id = wal_id
        self.incarnation = incarnation
        self.epoch = epoch
        self.ends = ends
        self.appended: list[Appended] = []
        self.acknowledged = (0, 0)  # sequence and group
        self.asked = 0  # sequence up to which a commit was asked for
        self.seal = 0
        self.session_until_ns = 1 << 62
        self.recovered: dict[int, int] | None = None  # end by log, once its recovery is over


class ObjectWalWorld:
    def __init__(self, seed: int) -> None:
        self.scheduler = Scheduler(seed)
        self.rng = self.scheduler.stream("world")
        self.checks_session = self.rng.random() < 0.5
        self.bucket = Bucket(self.scheduler, self.scheduler.stream("bucket"))
        self.host = Host(self.scheduler, Network(self.scheduler), "host")
        self.state = ClusterState("cluster")
        self.findings: list[str] = []
        self.processes: list[Process] = []
        self.recoverers: dict[int, Process] = {}
        self.truths: dict[bytes, Truth] = {}
        self.numbers = iter(range(1_000, 1 << 30))
        self.seen = dict.fromkeys(("recovered", "fenced", "successors", "zombies", "collected"), 0)
        self._set_up()

    def run(self) -> list[str]:
        """The first anomalies; empty when all is well."""
        for _ in range(self.rng.choice((1, 2, 3))):
            self._life()
            if self.findings:
                break
        for process in self.processes:
            process.kill()
            process.bury()
        self.findings += self.bucket.findings
        return self.findings

    def found(self, what: str) -> None:
        self.findings.append(f"{self.scheduler.now_ns / S:.6f} {what}")

    # The controller

    def _set_up(self) -> None:
        self._apply([f.FormatLevel(f.FORMAT_LEVEL)])
        ids = tuple(range(LOGS))
        self._apply([f.TopicCreated("t", bytes(15) + b"t", False, ids, (("tidelog.wal", "objects"),))])
        for node_id in RECOVERERS:
            self._register(node_id, node_id)

    def _register(self, node_id: int, incarnation: int) -> bytes:
        wal_id = incarnation.to_bytes(16, "big")
        listener = (f.Listener("PLAINTEXT", "PLAINTEXT", "here", 1),)
        self._apply(
            [
                f.BrokerRegistered(node_id, incarnation, "boot", None, listener, f.FORMAT_LEVEL, 0),
                f.WalRegistered(wal_id, node_id, incarnation, "objects"),
            ]
        )
        self.truths[wal_id] = Truth(wal_id, incarnation, 0, {})
        return wal_id

    def _apply(self, facts: Any) -> None:
        self.state.apply_entry(self.state.position + 1, bytes(32), self.scheduler.now_ns // MS, (), facts)
        for fact in facts:
            if isinstance(fact, f.RecoveryNamed):
                self._start_recoverer(fact)

    def _ask(self, command: Any) -> Any:
        context = Context(self.scheduler.now_ns // MS, lambda n: next(self.numbers).to_bytes(n, "big"), PlainRules())
        decision = decide(self.state, command, context)
        if decision.facts:
            self._apply(decision.facts)
        return decision.answer

    def _id(self) -> bytes:
        return next(self.numbers).to_bytes(16, "big")

    # The schedule

    def _life(self) -> None:
        """A writer works under some trouble, loses its session, perhaps goes on as a zombie; somebody recovers it."""
        rng = self.rng
        if self.state.brokers.get(1) is not None:
            assert not self.state.brokers[1].alive
        incarnation = 1_000 + next(self.numbers)
        wal_id = self._register(1, incarnation)
        epoch = self.state.logs[0].epoch + 1
        ends = {log_id: self.state.logs[log_id].end for log_id in range(LOGS)}
        truth = self.truths[wal_id] = Truth(wal_id, incarnation, epoch, ends)
        self._apply([f.LeaderNamed(log_id, 1, incarnation, epoch, wal_id) for log_id in range(LOGS)])
        self.bucket.faults = StoreFaults.some(rng) if rng.random() < 0.8 else StoreFaults()
        self.bucket.faults.late_ns_max = rng.choice((1, 5, 20)) * S
        if rng.random() < 0.3:
            self.bucket.faults.slow, self.bucket.faults.slow_factor = 0.2, rng.choice((5, 30))
        process = self._process(partial(self._writer, truth), "writer")
        for _ in range(rng.randint(1, 4)):
            self._pass(rng.randint(100, 2_000) * MS)
            self._commit(truth)
            if rng.random() < 0.3:
                self._validate(truth)
        match rng.choice(("kill", "pause", "cut off", "works on", "works on")):
            case "kill":
                process.kill()
            case "pause":
                process.pause()
            case "cut off":
                self.bucket.outage(("host",))
            case _:
                self.seen["zombies"] += 1
        if self.checks_session:
            truth.session_until_ns = self.scheduler.now_ns + SESSION_NS
            self._pass(SESSION_NS + rng.randint(1, 100) * MS)
        self._commit(truth)
        self._ask(EndSilentSessions(self._id(), (incarnation,)))
        for _ in range(rng.choice((0, 0, 1, 2))):
            self._pass(rng.randint(1, 200) * MS)
            self._collect()
            self._lose_recoverer(truth)
        self._collect()
        self._pass(rng.randint(1, 500) * MS)
        process.resume()
        self.bucket.end_outage()
        self._wait(truth)
        self._pass(rng.randint(100, 3_000) * MS)
        self._collect()
        self._commit(truth)
        self._pass(rng.randint(100, 8_000) * MS)  # the zombie, and whatever is still on its way
        process.kill()

    def _pass(self, ns: int) -> None:
        self.scheduler.run_until(self.scheduler.now_ns + ns)
        for process in self.processes:
            for failure in process.failures:
                self.found(str(failure))
            process.failures.clear()

    def _wait(self, truth: Truth) -> None:
        """When faults end, a recovery ends too."""
        for seconds in (8, 60):
            if truth.recovered is None:
                self.scheduler.run_until(self.scheduler.now_ns + seconds * S, lambda: truth.recovered is not None)
            self.bucket.faults = StoreFaults()
        if truth.recovered is None:
            self.found("liveness: the recovery does not end")
            truth.recovered = {}

    def _process(self, main: Any, name: str) -> Process:
        process = Process(self.host, f"{name}-{len(self.processes)}", self._ended)
        self.processes.append(process)
        process.spawn(partial(main, process))
        return process

    def _ended(self, process: Process) -> None:
        if process.error is not None and not process.killed:
            self.found(f"{process.name} ended with {process.error!r}")

    def _collect(self) -> None:
        later_ms = FENCE_MS + 1 if self.checks_session else 0
        for info in self.bucket.page("wal/", "", None)[0]:
            if collector.is_wal_orphan(self.state, info, self.scheduler.now_ns // MS + later_ms):
                self.seen["collected"] += 1
                at_once(self.bucket.memory.delete(info.key))

    # The writer

    async def _writer(self, truth: Truth, process: Process) -> None:
        rng = process.random("writer")
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        def fail(error: BaseException) -> None:
            if not failed.done():
                failed.set_result(error)

        async with Tasks() as tasks:
            wal = ObjectWal(
                self.bucket.opener(process, "host")("simulated:"),
                tasks,
                wal_id=truth.wal_id,
                token=process.token,
                on_durable=partial(self._durable, truth),
                on_failed=fail,
                on_room=lambda: None,
                message_bytes_max=SIZES[-1],
                settings=ObjectWalSettings(
                    interval_ms=rng.choice((10, 50)),
                    busy_interval_ms=10,
                    group_bytes=rng.choice((600, 4_000)),
                    in_flight_max=rng.choice((1, 3, 8)),
                    bytes_max=rng.choice((40_000, 1 << 20)),
                ),
            )
            while not failed.done():
                for _ in range(rng.choice((0, 1, 1, 2, 6))):
                    self._append(wal, truth, rng)
                await asyncio.sleep(rng.choice((0.0, 0.002, 0.02, 0.1)))
                committed = self.state.wals[truth.wal_id].committed.get(LANE, 0)
                if committed and rng.random() < 0.5:
                    wal.trim(committed)
            self.seen["fenced"] += wal.fenced
            if not wal.fenced:
                self.found(f"the writer failed: {failed.result()!r}")

    def _append(self, wal: ObjectWal, truth: Truth, rng: Any) -> None:
        log_id, records, size = rng.randrange(LOGS), rng.randint(1, 3), rng.choice(SIZES)
        if not wal.has_room(size, internal=False):
            return
        base = truth.ends[log_id]
        truth.ends[log_id] = end = base + records
        batch = make_batch(base, epoch=truth.epoch, records=records, size=size, fill=rng.randint(1, 255))
        truth.appended.append(Appended(log_id, base, end, batch))
        if wal.append(log_id, truth.epoch, base, batch) != len(truth.appended):
            self.found("a sequence was left out")

    def _durable(self, truth: Truth, sequence: int, group: int) -> None:
        if self.checks_session and self.scheduler.now_ns >= truth.session_until_ns:
            return  # durable, and told to nobody
        truth.acknowledged = (sequence, group)
        if truth.recovered is None:
            return
        for log_id, base, end, _ in truth.appended[:sequence]:
            if end > truth.recovered.get(log_id, 0):
                self.found(f"acknowledged log {log_id} [{base}, {end}), recovery ended at {truth.recovered}")
                return

    def _validate(self, truth: Truth) -> None:
        self._apply([f.LeaseExtended((f.WalGroup(truth.wal_id, truth.acknowledged[1]),))])

    def _commit(self, truth: Truth) -> None:
        """The writer seals what it acknowledged, and asks for the commit, now or soon; it may be late for it."""
        sequence, group = truth.acknowledged
        if sequence <= truth.asked or self.rng.random() < 0.3:
            return
        ranges: dict[int, Range] = {}
        for log_id, base, end, batch in truth.appended[truth.asked : sequence]:
            begin = ranges[log_id].base if log_id in ranges else base
            ranges[log_id] = Range(log_id, truth.epoch, begin, end, 0, len(batch), 0, end, 1)
        truth.asked = sequence
        truth.seal += 1
        key = f"segments/1/{truth.incarnation:016x}/{truth.seal}-0"
        command = CommitSeal(
            self._id(),
            1,
            truth.incarnation,
            truth.seal,
            (SegmentObject(key, 1, tuple(ranges[log_id] for log_id in sorted(ranges))),),
            (CommittedThrough(truth.wal_id, group),),
        )
        self.scheduler.call_later_ns(self.rng.choice((1, 30, 300, 3_000)) * MS, self._commit_arrives, command)

    def _commit_arrives(self, command: CommitSeal) -> None:
        try:
            self._ask(command)
        except KafkaError:
            pass

    # Recoverers

    def _start_recoverer(self, named: f.RecoveryNamed) -> None:
        truth_id, number = named.wal_id, named.number
        self.recoverers[named.incarnation] = self._process(
            lambda process: self._recover(process, named.incarnation, truth_id, number), "recoverer"
        )

    def _lose_recoverer(self, truth: Truth) -> None:
        """It dies or stops; somebody is named after it, while it may go on."""
        wal = self.state.wals[truth.wal_id]
        if wal.state != RECOVERING:
            return
        process = self.recoverers[wal.recoverer]
        if self.rng.random() < 0.5:
            process.kill()
        elif self.rng.random() < 0.5:
            process.pause()
            self.scheduler.call_later_ns(self.rng.randint(50, 3_000) * MS, process.resume)
        node_id, incarnation = wal.recoverer_node, wal.recoverer
        self.seen["successors"] += 1
        self._ask(EndSilentSessions(self._id(), (incarnation,)))
        self._register(node_id, 100 * next(self.numbers) + node_id)

    async def _recover(self, process: Process, incarnation: int, wal_id: bytes, number: int) -> None:
        store = self.bucket.opener(process, "recoverer")("simulated:")
        instance = ObjectInstance(
            store, wal_id, token=process.token, cache_bytes=process.random("cache").choice((0, 1 << 20))
        )
        wal = self.state.wals[wal_id]
        report = await instance.fence_and_scan(
            validated_group=wal.validated_group, committed_group=wal.committed.get(LANE, 0)
        )
        if (wal.state, wal.recoverer, wal.recovery_number) != (RECOVERING, incarnation, number):
            return  # another one was named: what this one found counts for nobody
        if not report.usable:
            self.found(f"recovery {number} refused: {report.damage or report.stale}")
            return
        found = tuple(f.ScannedLog(extent.log_id, extent.base, extent.end) for extent in report.entries)
        try:
            plans = self._ask(ReportScan(self._id(), wal_id, incarnation, number, found, report.last_group)).logs
        except KafkaError as error:
            self.found(f"the scan was refused: {error.message}")
            return
        read: dict[int, list[tuple[int, bytes]]] = {}
        try:
            async for group in instance.groups():
                for entry, batch in group.batches:
                    read.setdefault(entry.log_id, []).append((entry.base_offset, bytes(batch)))
        except Damaged as error:  # collected, if somebody else was faster
            if wal.recovery_number == number and not wal.closed:
                self.found(f"recovery {number}: {error}")
            return
        if (wal.state, wal.recoverer, wal.recovery_number) != (RECOVERING, incarnation, number):
            return
        self._judge_read(wal_id, read)
        if plans:
            ranges = tuple(Range(one.log_id, one.epoch, one.end, one.scanned_end, 0, 1, 0, one.end, 1) for one in plans)
            seal = self.state.broker_table.incarnations[incarnation].last_seal + 1
            key = f"segments/2/{incarnation:016x}/{seal}-0"
            answer = self._ask(
                CommitSeal(
                    self._id(),
                    2,
                    incarnation,
                    seal,
                    (SegmentObject(key, 1, ranges),),
                    recovery=Recovery(wal_id, number),
                )
            )
            if answer.refused:
                self.found(f"the controller refused what recovery {number} found of logs {answer.refused}")
        self._ask(RetireWal(self._id(), wal_id, incarnation, number))
        self.seen["recovered"] += 1
        truth = self.truths[wal_id]
        truth.recovered = {log_id: self.state.logs[log_id].end for log_id in range(LOGS)}
        for log_id, base, end, _ in truth.appended[: truth.acknowledged[0]]:
            if end > truth.recovered[log_id]:
                self.found(f"log {log_id} [{base}, {end}) was acknowledged, recovery found {truth.recovered}")
                return

    def _judge_read(self, wal_id: bytes, read: dict[int, list[tuple[int, bytes]]]) -> None:
        """Everything that is handed out is a run of what was appended."""
        truth = self.truths[wal_id]
        known = {(item.log_id, item.base): item for item in truth.appended}
        for log_id, batches in read.items():
            after: int | None = None
            for base, batch in batches:
                item = known.get((log_id, base))
                if item is None or item.batch != batch:
                    self.found(f"log {log_id} holds something at {base} that was never appended")
                    return
                if after is not None and base != after:
                    self.found(f"log {log_id} has a hole before {base}, it was read up to {after}")
                    return
                after = item.end
