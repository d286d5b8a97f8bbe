"""The simulated disk keeps what real ones keep, loses what they may lose, and serves processes as a kernel does."""

from __future__ import annotations

import asyncio
import errno
import gc
import random  # noqa: TID251
from collections.abc import Callable, Iterator

import pytest

from storage.wal.disk import Disk
from tests.simulation.disk import Dead, ProcessDisk, SimulatedDisk
from tests.simulation.hosts import Host
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import MS, US, S, Scheduler
from tests.simulation.volume import SECTOR
from tests.simulation.worker import worker_starter


class Bench:
    """One host with its disk."""

    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        self.host = Host(self.scheduler, Network(self.scheduler), "host")
        self.disk = SimulatedDisk(self.scheduler.stream("disk"), timeline=self.scheduler)
        self.host.on_crash.append(self.disk.crash)
        self.processes: list[Process] = []

    def process(self) -> tuple[Process, ProcessDisk]:
        process = Process(self.host, f"process {len(self.processes)}")
        self.processes.append(process)
        return process, self.disk.for_process(process, boot_id=self.host.boot_id)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.bury()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.end()
    gc.collect()  # what was left in the middle must go silently: warnings are errors


def filled(disk: Disk, path: str, content: bytes) -> None:
    file = disk.create(path)
    file.write([content], 0)
    file.sync()
    file.close()
    disk.sync_directory(path.rpartition("/")[0] or "/")


def content_of(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    data = file.read(0, file.size())
    file.close()
    return data


@pytest.mark.parametrize("seed", range(40))
def test_synced_bytes_survive_and_others_are_old_or_new_by_sector(seed: int) -> None:
    chance = random.Random(seed)
    disk = SimulatedDisk()
    filled(disk, "/file", b"\1" * 20 * SECTOR)
    synced, written = bytearray(b"\1" * 20 * SECTOR), bytearray(b"\1" * 20 * SECTOR)
    file = disk.open("/file")
    for fill in range(2, 12):
        begin = chance.randrange(25 * SECTOR)
        data = bytes([fill]) * chance.choice([1, 300, SECTOR, 5 * SECTOR])
        file.write([data[:7], data[7:]], begin)
        written.extend(bytes(max(0, begin + len(data) - len(written))))
        written[begin : begin + len(data)] = data
        if chance.random() < 0.3:
            file.sync()
            synced = bytearray(written)
    assert content_of(disk, "/file") == written
    disk.crash(seed)
    found = content_of(disk, "/file")
    assert len(synced) <= len(found) <= len(written)
    for begin in range(0, len(written), SECTOR):
        sector = slice(begin, begin + SECTOR)
        old = bytes(synced[sector]).ljust(len(found[sector]), b"\0")
        assert found[sector] in {old, bytes(written[sector])[: len(found[sector])]}, begin


def test_a_crash_may_keep_nothing_everything_and_anything_between() -> None:
    kept = set()
    for seed in range(60):
        disk = SimulatedDisk()
        filled(disk, "/file", bytes(8 * SECTOR))
        disk.open("/file").write([b"\1" * 8 * SECTOR], 0)
        disk.crash(seed)
        kept.add(bytes(content_of(disk, "/file")[::SECTOR]))
    assert {bytes(8), b"\1" * 8} < kept and len(kept) > 10
    assert any(b"\0\1" in found and b"\1\0" in found for found in kept), "not only a prefix"


def test_names_are_durable_when_their_directory_was_synced() -> None:
    found = set()
    for seed in range(60):
        disk = SimulatedDisk()
        disk.make_directory("/d")
        filled(disk, "/d/old", b"content")
        disk.rename("/d/old", "/d/new")
        disk.create("/d/created").sync()
        disk.crash(seed)
        names = disk.names("/d")
        found.add(tuple(names))
        assert content_of(disk, "/d/new" if "new" in names else "/d/old") == b"content"
        disk.sync_directory("/d")
        disk.crash(seed + 1)
        assert disk.names("/d") == names
    assert found == {("old",), ("new",), ("created", "new"), ("created", "old")}


def test_a_truncated_file_may_come_back() -> None:
    found = set()
    for seed in range(30):
        disk = SimulatedDisk()
        filled(disk, "/file", b"old")
        disk.create("/file").write([b"newer"], 0)
        assert content_of(disk, "/file") == b"newer"
        disk.crash(seed)
        found.add(content_of(disk, "/file"))
    assert found == {b"old", b"", b"newer"}


def test_a_killed_process_loses_nothing_that_it_wrote(bench: Bench) -> None:
    process, disk = bench.process()
    disk.create("/file").write([b"written"], 0)
    process.kill()
    _, other = bench.process()
    assert content_of(other, "/file") == b"written"
    assert other.names("/") == ["file"]


def test_a_lock_falls_with_its_process(bench: Bench) -> None:
    first, disk = bench.process()
    _, other = bench.process()
    filled(disk, "/file", b"")
    assert disk.lock("/file") is not None
    assert disk.lock("/file") is None and other.lock("/file") is None
    first.pause()
    assert other.lock("/file") is None, "a stopped process keeps it"
    first.kill()
    held = other.lock("/file")
    assert held is not None
    held.close()
    assert other.lock("/file") is not None


def test_a_dead_process_cannot_touch_the_disk(bench: Bench) -> None:
    process, disk = bench.process()
    file, directory = disk.create("/file"), disk.open_directory("/")
    process.kill()
    calls: list[Callable[[], object]] = [
        lambda: file.write([b"x"], 0),
        file.sync,
        lambda: file.read(0, 1),
        lambda: directory.has("file"),
        lambda: disk.delete("/file"),
        lambda: disk.names("/"),
    ]
    for call in calls:
        with pytest.raises(Dead):
            call()
    file.close()
    _, other = bench.process()
    assert content_of(other, "/file") == b""


def test_killed_in_the_middle(bench: Bench) -> None:
    process, disk = bench.process()
    disk.kill_after(3, process.kill)
    with pytest.raises(Dead):
        for number in range(9):
            disk.create(f"/{number}")
    assert not process.alive
    _, other = bench.process()
    assert other.names("/") == ["0", "1", "2"]


def test_a_full_disk_takes_what_fits() -> None:
    disk = SimulatedDisk()
    filled(disk, "/old", bytes(1000))
    disk.limit_bytes = 1500
    file = disk.create("/new")
    assert file.write([bytes(400), bytes(400)], 0) == 500
    with pytest.raises(OSError) as raised:
        file.write([bytes(300)], 500)
    assert raised.value.errno == errno.ENOSPC
    assert file.write([bytes(500)], 0) == 500, "what is there may be overwritten"
    disk.delete("/old")
    assert file.write([bytes(300)], 500) == 300
    disk.limit_bytes = None
    assert file.write([bytes(9000)], 800) == 9000


def test_a_failed_sync_leaves_the_cache_ahead_of_the_disk() -> None:
    """As Linux does: the pages are clean afterwards, and a later sync says that all is well."""
    lost = 0
    for seed in range(20):
        disk = SimulatedDisk(random.Random(seed))
        filled(disk, "/file", bytes(8 * SECTOR))
        file = disk.open("/file")
        disk.sync_error_chance = 1.0
        with pytest.raises(OSError):
            file.write_durably([b"\1" * 8 * SECTOR], 0)
        disk.sync_error_chance = 0.0
        file.sync()
        assert content_of(disk, "/file") == b"\1" * 8 * SECTOR
        disk.crash(seed)
        lost += content_of(disk, "/file") != b"\1" * 8 * SECTOR
    assert 10 < lost < 20


def test_errors_and_short_writes() -> None:
    disk = SimulatedDisk()
    file = disk.create("/file")
    disk.short_write_chance = 1.0
    assert {file.write([bytes(10)], 0) for _ in range(50)} == set(range(1, 11))
    disk.write_error_chance = 1.0
    with pytest.raises(OSError):
        file.write([bytes(10)], 0)
    disk.gone = True
    with pytest.raises(OSError) as raised:
        disk.names("/")
    assert raised.value.errno == errno.EIO


def test_rot_hits_cold_bytes() -> None:
    disk = SimulatedDisk()
    assert disk.flip_bit() is None
    filled(disk, "/a.wal", b"\1" * 3 * SECTOR + bytes(50 * SECTOR))
    filled(disk, "/other", b"\1" * SECTOR)
    disk.open("/a.wal").write([b"\1" * SECTOR], 0)
    before = content_of(disk, "/a.wal")
    for turn in range(20):
        hit = disk.flip_bit()
        assert hit is not None
        path, position = hit
        assert path == "/a.wal" and (SECTOR if turn < 15 else 0) <= position < 3 * SECTOR
        after = content_of(disk, "/a.wal")
        assert [at for at, (x, y) in enumerate(zip(before, after)) if x != y] == [position]
        if turn >= 14:
            disk.crash(turn)
        before = content_of(disk, "/a.wal")
        assert before[position] == after[position]
    spoilt = disk.spoil_sector()
    assert spoilt is not None
    with pytest.raises(OSError):
        content_of(disk, spoilt[0])


def test_snapshots_and_moves(bench: Bench) -> None:
    process, disk = bench.process()
    filled(disk, "/file", b"first")
    image = bench.disk.snapshot()
    filled(disk, "/file", b"second")
    disk.create("/unsynced")
    bench.host.crash()
    assert not process.alive
    other = SimulatedDisk()
    bench.disk.move(other)
    assert content_of(other, "/file") == b"second" and bench.disk.names("/") == []
    bench.disk.restore(image)
    assert content_of(bench.disk, "/file") == b"first" and bench.disk.names("/") == ["file"]
    bench.disk.restore(None)
    assert bench.disk.names("/") == []


def test_a_deleted_directory_says_so() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/a/b")
    directory = disk.open_directory("/a/b")
    assert not directory.has("fence")
    filled(disk, "/a/b/x", b"")
    with pytest.raises(OSError):
        disk.remove_directory("/a/b")
    disk.delete("/a/b/x")
    disk.remove_directory("/a/b")
    with pytest.raises(FileNotFoundError):
        directory.has("fence")


# Workers


class Writing:
    """A job as the WAL's writer is: write durably, then report what was written."""

    def __init__(self, disk: Disk, scheduler: Scheduler) -> None:
        self.file = disk.open("/file")
        self.scheduler = scheduler
        self.queue: list[bytes] = []
        self.written = b""
        self.end = 0
        self.reports: list[tuple[int, bytes]] = []

    def step(self) -> float | None:
        if self.written:
            self.reports.append((self.scheduler.now_ns, self.written))
            self.written = b""
        elif self.queue:
            self.written = self.queue.pop(0)
            self.end += self.file.write_durably([self.written], self.end)
        else:
            return None
        return 0.0


class Writer:
    """A process whose writer has one group to write when its loop wakes it."""

    def __init__(self, bench: Bench, size: int = 20 * SECTOR) -> None:
        self.bench = bench
        self.process, disk = bench.process()
        filled(disk, "/file", bytes(4 * size))
        self.job = Writing(disk, bench.scheduler)
        start = worker_starter(self.process, disk, bench.scheduler, bench.scheduler.stream("worker"))
        self.worker = start("tidelog-wal-writer", self.job)
        self.worker.start()
        self.run(1 * MS)
        assert self.worker.idle
        self.group = b"\1" * size
        self.job.queue.append(self.group)
        self.worker.wake()

    def run(self, ns: int) -> None:
        self.bench.scheduler.run_until(self.bench.scheduler.now_ns + ns)


def test_the_loop_goes_on_between_a_write_and_its_report(bench: Bench) -> None:
    writer = Writer(bench)
    began_ns = bench.scheduler.now_ns
    turns = []

    async def main() -> None:
        while not writer.job.reports:
            turns.append(bench.scheduler.now_ns)
            await asyncio.sleep(0)

    writer.process.spawn(main)
    writer.run(3 * S)
    [(reported_ns, group)] = writer.job.reports
    assert reported_ns - began_ns > 100 * US and len(turns) > 3 and group == writer.group
    assert writer.worker.idle and bench.disk.inode("/file").durable.startswith(group)


def test_a_crash_before_the_report_tears_the_group_and_one_after_it_does_not() -> None:
    found = set()
    for seed in range(150):
        bench = Bench(seed)
        writer = Writer(bench)
        writer.run(random.Random(seed).randint(0, 400 * US))
        told = bool(writer.job.reports)
        bench.host.crash()
        left = content_of(bench.disk, "/file")[: len(writer.group)]
        sectors = left.count(b"\1") // SECTOR
        assert not told or left == writer.group
        found.add((told, (sectors > 0) + (sectors == 20)))
        bench.end()
    assert found == {(False, 0), (False, 1), (False, 2), (True, 2)}


def test_a_kill_before_the_report_leaves_nothing_a_part_or_everything() -> None:
    found = set()
    for seed in range(150):
        bench = Bench(seed)
        writer = Writer(bench, size=200 * SECTOR)
        writer.run(random.Random(seed).randint(0, 250 * US))
        writer.process.kill()
        written = content_of(bench.disk, "/file")[: len(writer.group)].count(b"\1") // SECTOR
        found.add((written > 0) + (written == 200))
        bench.end()
    assert found == {0, 1, 2}


def test_a_stopped_process_reports_when_it_goes_on(bench: Bench) -> None:
    writer = Writer(bench)
    writer.process.pause()
    writer.run(5 * S)
    assert len(writer.job.reports) == 0
    writer.process.resume()
    writer.run(5 * S)
    assert len(writer.job.reports) == 1


def test_a_stalled_disk_stops_nothing_but_the_writer(bench: Bench) -> None:
    bench.disk.stalled_until_ns = 7 * S
    writer = Writer(bench)
    writer.run(6 * S)
    assert writer.job.reports == []
    writer.run(2 * S)
    assert writer.job.reports


def test_a_buffer_that_changes_while_it_is_written_is_found(bench: Bench) -> None:
    writer = Writer(bench)
    writer.job.queue[0] = buffer = bytearray(writer.group)  # type: ignore[call-overload]
    writer.run(70 * US)
    assert writer.job.written and not writer.job.reports
    buffer[5] = 0
    writer.run(3 * S)
    assert bench.disk.findings == ["process 0: a buffer changed while it was written"]


class Naming:
    """A job of several disk operations a step, as preparing a file is."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.done = 0

    def step(self) -> float | None:
        if self.done == 3:
            return None
        for number in range(4):
            self.disk.create(f"/{self.done}.{number}")
        self.done += 1
        return 0.0 if self.done < 3 else 0.5


def test_other_jobs_are_cut_off_between_two_operations() -> None:
    found = set()
    for seed in range(120):
        bench = Bench(seed)
        process, disk = bench.process()
        job = Naming(disk)
        worker = worker_starter(process, disk, bench.scheduler, bench.scheduler.stream("worker"))("files", job)
        worker.start()
        bench.scheduler.run_until(random.Random(seed).randint(0, 9 * MS))
        process.kill()
        found.add(len(bench.disk.names("/")))
        bench.end()
    assert len(found - {0, 4, 8, 12}) > 5


def test_a_worker_rests_wakes_and_stops(bench: Bench) -> None:
    process, disk = bench.process()
    job = Naming(disk)
    worker = worker_starter(process, disk, bench.scheduler, bench.scheduler.stream("worker"))("files", job)
    stopped: list[int] = []
    worker.start()
    rests = []
    for until_ns in (400 * MS, 2 * S):
        bench.scheduler.run_until(until_ns)
        rests.append((job.done, worker.idle))
    assert rests == [(3, False), (3, True)], "it looks again after half a second"
    worker.stop(lambda: stopped.append(1))
    bench.scheduler.run_until(4 * S)
    assert stopped == [1]
    worker.wake()
    bench.scheduler.run_until(6 * S)
    assert stopped == [1]


def test_one_seed_is_one_run() -> None:
    def run(seed: int) -> tuple[object, ...]:
        bench = Bench(seed)
        writer = Writer(bench)
        writer.job.queue.extend([writer.group] * 2)
        writer.run(2 * MS)
        bench.host.crash()
        found = writer.job.reports, content_of(bench.disk, "/file"), bench.disk.flip_bit()
        bench.end()
        return found

    assert run(5) == run(5)
    assert len({str(run(seed)) for seed in range(5)}) == 5
