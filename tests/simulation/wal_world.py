"""One node's volume WAL on a simulated disk through kills, crashes, full disks, rot, old copies and rival recoverers.

The real `VolumeWal` and recovery; what runs beside them stands for the broker (appends, commits, recovery at start) and
for a sibling that recovers while the writer may be alive. `WalWorld(seed).run()` returns what went wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from storage.wal.format import file_name, file_number
from storage.wal.inspect import groups_of
from storage.wal.instances import Instance, LockedInstance, lock_instances, open_instance
from storage.wal.port import Damaged, InstanceLocked, WalError
from storage.wal.recovery import FoundGroup, ScanReport
from storage.wal.volume import VolumeWal
from tests.simulation.disk import PAGE, Image, ProcessDisk, SimulatedDisk
from tests.simulation.hosts import Host
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, S, Scheduler
from tests.simulation.worker import worker_starter
from tests.storage.wal.support import make_batch

ROOT = "/wal"
CLUSTER = "cluster"
FILE_BYTES = 32 << 10
SIZES = (61, 100, 400, 1_500, 6_000)


class Appended(NamedTuple):
    log_id: int
    epoch: int
    base: int
    batch: bytes


class Truth:
    """What one instance was given, and what others were told of it. Sequences count from 1."""

    def __init__(self, wal_id: bytes) -> None:
        self.wal_id = wal_id
        self.appended: list[Appended] = []
        self.sequences: dict[tuple[int, int], int] = {}  # by (log, base offset)
        self.reports: list[tuple[int, int]] = [(0, 0)]  # durable: (sequence, group)
        self.committed = (0, 0)
        self.fenced = False  # by a sibling, or soon
        self.taken_over: int | None = None  # last sequence that a sibling recovered
        self.restored = False  # the volume is an older copy
        self.vague = False  # it was spoilt so that nothing precise can be expected
        self.spoilt = False
        self.first_spoilt: FoundGroup | None = None  # of the groups that were valid before
        self.last_valid = 0  # the last of them
        self.last_whole = 0  # the last one that still is

    @property
    def acknowledged(self) -> tuple[int, int]:
        return self.reports[-1]

    def spoil(self, groups: list[FoundGroup], number: int, begin: int, length: int) -> None:
        """Bytes of a file change, which holds these groups until now."""
        self.vague |= self.spoilt
        self.spoilt = True
        self.last_valid = groups[-1].header.group if groups else 0
        for found in groups:
            if found.file == number and found.position < begin + length and begin < found.position + found.header.size:
                self.first_spoilt = self.first_spoilt or found
            else:
                self.last_whole = found.header.group


class Settings(NamedTuple):
    """Which kinds of trouble a world has, and how often."""

    lives: int = 4
    trouble: tuple[str, ...] = ("full", "errors", "errors", "slow", "stall", "short", "none")
    """Among what the trouble of each life is drawn; empty: none."""
    rot: float = 0.35
    rot_kinds: tuple[str, ...] = ("anywhere", "header", "header", "page", "file")
    copies: float = 0.25
    siblings: float = 0.4
    crashes: float = 0.55
    """Of lives: the others are killed."""
    killed_removals: float = 0.2
    """Of removals of settled instances."""


class WalWorld:
    def __init__(self, seed: int, settings: Settings = Settings()) -> None:  # noqa: B008
        self.settings = settings
        self.scheduler = Scheduler(seed)
        self.rng = self.scheduler.stream("world")
        self.host = Host(self.scheduler, Network(self.scheduler), "host")
        self.disk = SimulatedDisk(self.scheduler.stream("disk"), timeline=self.scheduler)
        self.host.on_crash.append(self.disk.crash)
        self.truths: dict[bytes, Truth] = {}
        self.findings: list[str] = []
        self.processes: list[Process] = []
        self.open: tuple[Process, Truth] | None = None
        self.image: Image | None = None
        self.quiet = False
        self.seen = dict.fromkeys(("recovered", "torn", "damage", "stale", "fenced", "failed", "full"), 0)

    def run(self) -> list[str]:
        """The first anomalies; empty when all is well."""
        for _ in range(self.settings.lives):
            self._life()
            if self.findings:
                break
        else:
            self._end_quietly()
        for process in self.processes:
            process.kill()
            process.bury()
        self.findings += self.disk.findings
        return self.findings

    def found(self, what: str) -> None:
        self.findings.append(f"{self.scheduler.now_ns / S:.6f} {what}")

    # The schedule

    def _life(self) -> None:
        """Start the node, let it work under some trouble, end it somehow, and spoil what it left, or not."""
        rng = self.rng
        process, view = self._process(self._node)
        if rng.random() < 0.25:
            view.kill_after(rng.randint(0, rng.choice((20, 80, 300))), process.kill)
        rounds = rng.randint(1, 3)
        trouble = rng.randrange(rounds) if self.settings.trouble else -1
        for turn in range(rounds):
            if turn == trouble:
                self._begin_trouble()
            self._pass(rng.choice((1, 5, 30, 200)) * rng.randint(MS // 2, MS))
            if rng.random() < 0.2:
                self.image = self.disk.snapshot()
            if rng.random() < 0.2:
                self._twin()
            if rng.random() < self.settings.siblings:
                self._sibling(process, view)
        self._end_trouble()
        if rng.random() < 0.5 and self.host.up:
            self._pass(rng.randint(1, 50) * MS)
        if rng.random() < 1 - self.settings.crashes:
            process.kill()
            self._pass(rng.randint(1, 50) * MS)  # a sibling may still be at work
        else:
            self._crash()
        if not self.findings:
            self._spoil()

    def _pass(self, ns: int) -> None:
        self.scheduler.run_until(self.scheduler.now_ns + ns)

    def _crash(self) -> None:
        self.host.crash()
        self.host.boot()

    def _begin_trouble(self) -> None:
        rng, disk = self.rng, self.disk
        match rng.choice(self.settings.trouble):
            case "full":
                disk.limit_bytes = disk.used_bytes + rng.randint(0, 5) * FILE_BYTES // 2
            case "errors":
                disk.sync_error_chance = rng.choice((0.02, 0.2))
                disk.directory_sync_error_chance = rng.choice((0.0, 0.1))
                disk.write_error_chance = rng.choice((0.0, 0.02))
            case "slow":
                disk.slowness = rng.choice((5.0, 50.0))
            case "stall":
                disk.stalled_until_ns = self.scheduler.now_ns + rng.randint(1, 200) * MS
            case "short":
                disk.short_write_chance = 0.3

    def _end_trouble(self) -> None:
        disk = self.disk
        self.seen["full"] += disk.limit_bytes is not None
        disk.limit_bytes, disk.slowness, disk.stalled_until_ns = None, 1.0, 0
        disk.sync_error_chance = disk.directory_sync_error_chance = 0.0
        disk.write_error_chance = disk.short_write_chance = 0.0

    def _spoil(self) -> None:
        """The volume rots, or comes back as an older copy."""
        rng = self.rng
        dice = rng.random()
        if dice < self.settings.rot:
            self._rot()
        elif dice < self.settings.rot + self.settings.copies and self.image is not None:
            self._crash()
            self.disk.restore(self.image)
            self.image = None
            for truth in self.truths.values():
                truth.restored = True

    def _rot(self) -> None:
        """A bit flips, a page cannot be read any more, or a file is gone."""
        rng, disk = self.rng, self.disk
        pristine = {truth.wal_id: self._groups(truth) for truth in self.truths.values()}
        places = [(wal_id, found) for wal_id, groups in pristine.items() for found in groups]
        kind = rng.choice(self.settings.rot_kinds)
        if kind == "anywhere" or not places:
            hit = disk.flip_bit()
            if hit is None:
                return
            name, begin, length = hit[0].removeprefix(f"{ROOT}/"), hit[1], 1
        else:
            # The last group of a file is followed by another file, or by nothing: look there more often.
            last = [(wal_id, found) for (wal_id, found), (_, after) in pairwise(places) if found.file != after.file]
            wal_id, found = rng.choice(last if last and rng.random() < 0.3 else places)
            begin, length = found.position, 1
            name = f"{wal_id.hex()}/{file_name(found.file)}"
            if kind == "header":
                begin += rng.randrange(found.header.header_size)
                disk.flip_at(f"{ROOT}/{name}", begin)
            elif kind == "page":
                disk.unreadable.setdefault(f"{ROOT}/{name}", set()).add(begin)
                begin, length = begin // PAGE * PAGE, PAGE
            else:
                disk.delete(f"{ROOT}/{name}")
                self.truths[wal_id].vague = True
        instance, _, file = name.partition("/")
        truth = None if instance.startswith(".") else self.truths.get(bytes.fromhex(instance))
        number = file_number(file)
        if truth is not None and number is not None:
            truth.spoil(pristine[truth.wal_id], number, begin, length)

    def _groups(self, truth: Truth) -> list[FoundGroup]:
        path = f"{ROOT}/{truth.wal_id.hex()}"
        return list(groups_of(path, disk=self.disk)) if self.disk.exists(path) else []

    def _end_quietly(self) -> None:
        """Without further trouble the node recovers and works."""
        self.quiet = True
        if not self.host.up:
            self.host.boot()
        process, _ = self._process(self._node)
        self._pass(20 * S)
        if not self.findings and (process.alive or process.result != "worked"):
            self.found(f"liveness: the node did not come to work: {process.result} {process.error!r}")

    def _process(self, main: Callable[[Process, ProcessDisk], Any]) -> tuple[Process, ProcessDisk]:
        process = Process(self.host, f"process-{len(self.processes)}", self._ended)
        self.processes.append(process)
        view = self.disk.for_process(process, boot_id=self.host.boot_id)
        process.spawn(lambda: main(process, view))
        return process, view

    def _ended(self, process: Process) -> None:
        if self.open is not None and self.open[0] is process:
            self.open = None
        for failure in process.failures:
            self.found(f"{failure}")
        if process.error is not None and not process.killed and not isinstance(process.error, OSError):
            self.found(f"{process.name} ended with {process.error!r}")

    # The node

    async def _node(self, process: Process, view: ProcessDisk) -> str:
        loop = asyncio.get_running_loop()
        locked = await loop.run_in_executor(None, partial(lock_instances, ROOT, CLUSTER, 1, disk=view))
        for instance in locked:
            if await loop.run_in_executor(None, self._recover, instance):
                if self.rng.random() < 0.8 or self.quiet:
                    if self.rng.random() < self.settings.killed_removals and not self.quiet:
                        view.kill_after(self.rng.randint(0, 8), process.kill)
                    await loop.run_in_executor(None, instance.remove)
                else:
                    instance.close()
            else:
                instance.close()
        return await self._work(process, view)

    async def _work(self, process: Process, view: ProcessDisk) -> str:
        truth = Truth(process.token(16))
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        wal = await VolumeWal.create(
            ROOT,
            cluster_id=CLUSTER,
            node_id=1,
            wal_id=truth.wal_id,
            on_durable=partial(self._durable, truth),
            on_failed=failed.set_result,
            on_room=lambda: None,
            bytes_max=self.rng.choice((3, 5)) * FILE_BYTES,
            message_bytes_max=SIZES[-1],
            file_bytes=FILE_BYTES,
            fence_kind="file",
            disk=view,
            start_worker=worker_starter(process, view, self.scheduler, process.random("worker")),
        )
        self.truths[truth.wal_id] = truth
        self.open = process, truth
        ends: dict[int, int] = {}
        turns = 0
        while not failed.done():
            turns += 1
            self._append(wal, truth, ends)
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.0005, 0.005)))
            if self.rng.random() < 0.1:
                self._commit(wal, truth)
            if self.quiet and turns > 300 and truth.acknowledged[0] > 50:
                await wal.close()
                if truth.acknowledged[0] != len(truth.appended):
                    self.found("a clean stop left something unwritten")
                return "worked"
        self.seen["fenced" if wal.fenced else "failed"] += 1
        if wal.fenced and not truth.fenced:
            self.found("fenced by nobody")
        return "failed"

    def _append(self, wal: VolumeWal, truth: Truth, ends: dict[int, int]) -> None:
        rng = self.rng
        for _ in range(rng.choice((0, 1, 1, 2, 6))):
            log_id, records, size = rng.randint(1, 3), rng.randint(1, 3), rng.choice(SIZES)
            if not wal.has_room(size, internal=False):
                break
            base = ends.get(log_id, 0)
            ends[log_id] = base + records
            epoch = 1 + len(truth.appended) // 40
            batch = make_batch(base, epoch=epoch, records=records, size=size, fill=rng.randint(1, 255))
            truth.appended.append(Appended(log_id, epoch, base, batch))
            truth.sequences[log_id, base] = len(truth.appended)
            if wal.append(log_id, epoch, base, batch) != len(truth.appended):
                self.found("a sequence was left out")

    def _durable(self, truth: Truth, sequence: int, group: int) -> None:
        if truth.taken_over is not None and sequence > truth.taken_over:
            self.found(f"acknowledged {sequence}, but a sibling took over at {truth.taken_over}")
        truth.reports.append((sequence, group))

    def _commit(self, wal: VolumeWal, truth: Truth) -> None:
        if wal.look_for_fence():
            return
        truth.committed = max(truth.committed, self.rng.choice(truth.reports[-20:]))
        wal.trim(truth.committed[1])

    # Others

    def _twin(self) -> None:
        """A second start of the same node, while the first one has its WAL open."""

        async def main(process: Process, view: ProcessDisk) -> None:
            opened = self.open
            try:
                locked = lock_instances(ROOT, CLUSTER, 1, disk=view)
            except InstanceLocked:
                return
            except WalError:
                if any(truth.restored or truth.spoilt for truth in self.truths.values()):
                    return
                raise
            for instance in locked:
                instance.close()
            if opened is None or not opened[0].alive:
                return
            wal_id = opened[1].wal_id
            if wal_id in [instance.wal_id for instance in locked]:
                self.found("two processes have one WAL open")
            elif not self.disk.exists(f"{ROOT}/{wal_id.hex()}/fence"):
                self.found("a second start was not refused")

        self._process(main)

    def _sibling(self, owner: Process, view: ProcessDisk) -> None:
        """Somebody else recovers the instance: the owner is stopped, or too slow for its session."""
        if self.open is None:
            return
        truth = self.open[1]
        if self.rng.random() < 0.6:
            for _ in range(self.rng.choice((0, 200))):  # until it has a write under way
                if view.waiting:
                    break
                self._pass(20_000)
            owner.pause()

        async def main(process: Process, view: ProcessDisk) -> None:
            loop = asyncio.get_running_loop()
            instance = await loop.run_in_executor(None, partial(open_instance, ROOT, truth.wal_id, disk=view))
            if instance is None:
                return
            truth.fenced = True
            await loop.run_in_executor(None, instance.fence)
            await loop.run_in_executor(None, partial(self._recover, instance, live=True))
            instance.close()

        self._process(main)
        self._pass(self.rng.choice((1, 20)) * MS)
        owner.resume()

    # Recovery, judged

    def _recover(self, instance: Instance, live: bool = False) -> bool:
        """Whether the instance is settled."""
        truth = self.truths.get(instance.wal_id)
        if truth is None:  # made, and its process was killed before it knew
            truth = self.truths[instance.wal_id] = Truth(instance.wal_id)
        if live and isinstance(instance, LockedInstance):
            live = False
        report = instance.scan(validated_group=truth.acknowledged[1], committed_group=truth.committed[1])
        self.seen["torn"] += report.torn is not None
        self.seen["damage"] += report.damage is not None
        self.seen["stale"] += report.stale is not None
        where = f"WAL {truth.wal_id.hex()[:6]}"
        if report.usable:
            try:
                first, last = self._read(instance, truth, report, where)
            except Damaged as error:
                return self._damaged(instance, truth, f"{where}: {error}")
            if last < truth.acknowledged[0] or first > truth.committed[0] + 1:
                self.found(
                    f"{where}: found {first} to {last}, acknowledged through {truth.acknowledged}, "
                    f"committed through {truth.committed}; nothing reported"
                )
            truth.taken_over = last if truth.taken_over is None else truth.taken_over
            self.seen["recovered"] += 1
            self._judge_kept(truth, report, where)
            return True
        if report.damage is not None:
            return self._damaged(instance, truth, f"{where}: {report.damage}")
        if not truth.restored and not truth.spoilt:
            self.found(f"{where}: {report.stale}, though this is the volume")
        hit = truth.first_spoilt
        if (
            hit is not None
            and hit.header.group < min(truth.last_whole, truth.acknowledged[1])
            and not (truth.restored or truth.vague)
        ):
            self.found(f"{where}: group {hit.header.group} was spoilt, and all that is told is: {report.stale}")
        self._accept_loss(instance, truth, where)
        return False

    def _damaged(self, instance: Instance, truth: Truth, what: str) -> bool:
        hit = truth.first_spoilt
        if not truth.spoilt or (hit is None and not (truth.restored or truth.vague)):
            self.found(f"{what}: nothing that is in use was spoilt")
        report = self._accept_loss(instance, truth, what)
        if hit is not None and not (truth.restored or truth.vague):
            damage = report.damage
            if damage is None or damage.group not in {0, hit.header.group}:  # 0: not known, an older file is gone
                self.found(f"{what}: group {hit.header.group} is the first one that was spoilt, not {damage}")
            elif hit.header.group == truth.last_valid and (damage.found is None or damage.found[1] <= truth.last_valid):
                self.found(f"{what}: only the last group was spoilt, which may be torn")
        return False

    def _accept_loss(self, instance: Instance, truth: Truth, where: str) -> ScanReport:
        """What an operator gets who goes on all the same is a valid beginning."""
        report = instance.scan(accept_loss=True)
        self._judge_kept(truth, report, where)
        self._read(instance, truth, report, where)
        return report

    def _judge_kept(self, truth: Truth, report: ScanReport, where: str) -> None:
        hit = truth.first_spoilt
        if hit is not None and not (truth.restored or truth.vague) and report.last_group >= hit.header.group:
            self.found(f"{where}: group {hit.header.group} was spoilt, and taken")

    def _read(self, instance: Instance, truth: Truth, report: ScanReport, where: str) -> tuple[int, int]:
        """Everything it hands out: first and last sequence, which must be one run of what was appended."""
        sequences = []
        for log_id in sorted({extent.log_id for extent in report.entries}):
            for epoch, base, batch in instance.batches(log_id):
                sequence = truth.sequences.get((log_id, base))
                if sequence is None or truth.appended[sequence - 1] != (log_id, epoch, base, batch):
                    self.found(f"{where}: log {log_id} holds something at {base} that was never appended")
                    return 0, 0
                sequences.append(sequence)
        if sorted(sequences) != list(range(min(sequences, default=1), max(sequences, default=0) + 1)):
            self.found(f"{where}: what is found has holes: {sorted(sequences)}")
        return min(sequences, default=1), max(sequences, default=0)
