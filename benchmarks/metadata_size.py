"""Size of the metadata after a month, and how soon a new controller has it: `python -m benchmarks.metadata_size`.

One log is driven through every seal of a month of 10 s seals with the controller's own choice of merges, by facts, to
see how many ranges the state holds of it at any time. Then clusters of 1,000, 10,000 and 100,000 partitions are made,
by facts too, whose logs have the ranges that such a log had at random moments of its last days. Each is written to a
bucket of files with the product's own code, and loaded from there in a new process, with 1,000 entries behind the
snapshot. `--results PATH` keeps the figures as JSON.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from controller import facts as f
from controller.entries import Entry, encode_entry, hash_of
from controller.jobs import MANIFEST, MERGE
from controller.log_index import LogState
from controller.merging import MergeRules, choose
from controller.object_log import ObjectLog
from controller.replica import Replica
from controller.state import ClusterState
from storage.object_store import open_store
from storage.seal import ManifestPointer, Range, SegmentObject

CLUSTER = "AAAAAAAAAAAAAAAAAAAAAA"
WAL = bytes(range(16))
NODE, INCARNATION = 1, 7
SEAL_MS = 10_000
MONTH = 30 * 86_400_000 // SEAL_MS
"""Seals of a log that is written to all the time."""
RULES = MergeRules()
SHARED = 3_000
"""Ranges in one sealed object."""
ENTRIES_BEHIND = 1_000
MIB = 1024 * 1024


class Row(NamedTuple):
    """What a benchmark keeps of a range: seals that it holds, and how often it was merged."""

    seals: int
    level: int


class Driver:
    """Facts go through the state as entries would have them."""

    def __init__(self, partitions: int, range_bytes: int) -> None:
        self.state = ClusterState(CLUSTER)
        self.now_ms = 1_700_000_000_000
        self.range_bytes = range_bytes
        self.seal = 0
        log_ids = tuple(range(partitions))
        self.apply(
            f.ControllerElected(1, NODE, INCARNATION),
            f.FormatLevel(f.FORMAT_LEVEL),
            f.BrokerRegistered(NODE, INCARNATION, "boot", None, (f.Listener("P", "PLAINTEXT", "h", 1),), 2, 0),
            f.WalRegistered(WAL, NODE, INCARNATION, "volume"),
            f.TopicCreated("t", bytes(16), False, log_ids, ()),
            *[f.LeaderNamed(log_id, NODE, INCARNATION, 0, WAL) for log_id in log_ids],
        )

    def apply(self, *facts: f.Fact) -> None:
        state = self.state
        state.apply_entry(state.position + 1, bytes(32), self.now_ms, (), facts)

    def commit(self, log_ids: list[int], seals: int = 1) -> None:
        """One seal with the next range of these logs, as large as `seals` of them."""
        self.seal += 1
        ranges = []
        for number, log_id in enumerate(log_ids):
            log = self.state.logs[log_id]
            size, end = seals * self.range_bytes, log.end + 100 * seals
            ranges.append(Range(log_id, 0, log.end, end, number * size, size, self.now_ms, end, seals))
        key = f"segments/{NODE}/{INCARNATION:016x}/{self.seal}-0"
        item = SegmentObject(key, len(ranges) * seals * self.range_bytes, tuple(ranges))
        self.apply(f.SealCommitted(INCARNATION, self.seal, (item,)))

    def merge(self, parts: list[f.MergePart]) -> None:
        """A job that replaces each part."""
        job = self.state.job_table.next_job
        self.apply(f.MergeJobOpened(job, NODE, INCARNATION, MERGE, tuple(parts)))
        outputs = []
        for part in parts:
            log = self.state.logs[part.log_id]
            first = log.find_part(part)
            assert first is not None
            inputs = [log.row(index).range for index in range(first, first + part.ranges)]
            size = sum(row.length for row in inputs)
            batches = sum(row.batch_count for row in inputs)
            item = Range(part.log_id, 0, part.base, part.end, 0, size, inputs[-1].max_timestamp, part.end, batches)
            outputs.append(f.Merged(size + 1_000, item))
        self.apply(f.RangesReplaced(job, tuple(outputs)))

    def move(self, part: f.MergePart) -> None:
        """A job that moves a part to the log's manifest."""
        job = self.state.job_table.next_job
        self.apply(f.MergeJobOpened(job, NODE, INCARNATION, MANIFEST, (part,)))
        log = self.state.logs[part.log_id]
        rows = [log.row(index) for index in range(part.ranges)]
        old = log.manifests[-1] if log.manifests else None
        if old is not None and old.rows + part.ranges > RULES.manifest_rows_max:
            old = None
        size = sum(row.range.length for row in rows)
        first = (part.base, rows[0].range.max_timestamp, rows[0].range.length)
        rows_before, bytes_before = 0, 0
        if old is not None:
            rows_before, bytes_before, first = old.rows, old.bytes, (old.base, old.oldest_ms, old.oldest_bytes)
        pointer = ManifestPointer(
            job,
            70 * (rows_before + part.ranges),
            0,
            rows_before + part.ranges,
            bytes_before + size,
            first[0],
            part.end,
            rows[-1].range.max_timestamp,
            *first[1:],
        )
        new = f.NewManifest(part.log_id, -1 if old is None else old.job, pointer)
        self.apply(f.ManifestsWritten(job, (new,)))


def rows_of(log: LogState, range_bytes: int) -> list[Row]:
    return [Row(log.row_length(index) // range_bytes, log.row_level(index)) for index in range(log.range_count)]


def drive_one(range_bytes: int, sampled: random.Random) -> tuple[dict[str, Any], list[list[Row]]]:
    """A month of one log: figures, and what it looked like at moments of the last tenth."""
    driver = Driver(1, range_bytes)
    log = driver.state.logs[0]
    most = jobs = written = 0
    shapes = []
    start = time.process_time()
    for seal in range(MONTH):
        driver.now_ms += SEAL_MS
        driver.commit([0])
        while (choice := choose(driver.state, log, driver.now_ms, RULES)) is not None:
            jobs += 1
            if choice.kind == MERGE:
                written += choice.bytes
                driver.merge([choice.part])
            else:
                driver.move(choice.part)
        most = max(most, log.range_count)
        if seal > MONTH * 9 // 10 and sampled.random() < 0.002:
            shapes.append(rows_of(log, range_bytes))
    return {
        "range_bytes": range_bytes,
        "seals": MONTH,
        "ranges_at_most": most,
        "ranges_at_the_end": log.range_count,
        "manifests": len(log.manifests),
        "ranges_in_manifests": sum(pointer.rows for pointer in log.manifests),
        "jobs": jobs,
        "written_again": round(written / (MONTH * range_bytes), 2),
        "cpu_s": round(time.process_time() - start, 1),
    }, shapes


def make_cluster(partitions: int, shapes: list[list[Row]], sampled: random.Random) -> Driver:
    """A cluster whose logs look like that: ranges are committed and merged up to their level, oldest first."""
    range_bytes = 100
    driver = Driver(partitions, range_bytes)
    of_log = [sampled.choice(shapes) for _ in range(partitions)]
    for index in range(max(map(len, shapes))):
        by_row: dict[Row, list[int]] = {}
        for log_id, shape in enumerate(of_log):
            if index < len(shape):
                by_row.setdefault(shape[index], []).append(log_id)
        for row, log_ids in sorted(by_row.items()):
            for at in range(0, len(log_ids), SHARED):
                some = log_ids[at : at + SHARED]
                driver.now_ms += 1
                driver.commit(some, row.seals)
                for _ in range(row.level):
                    driver.merge([log.part(log.range_count - 1, 1) for log in map(driver.state.logs.__getitem__, some)])
    driver.apply(f.ObjectsDeleted(tuple(driver.state.objects.doomed)))
    return driver


def rss() -> int:
    """Resident bytes of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def write(driver: Driver, path: str) -> dict[str, Any]:
    """Puts the snapshot and the entries behind it into a bucket of files."""
    store = open_store(f"file:{path}", token=os.urandom)
    log = ObjectLog(store, CLUSTER)
    state = driver.state
    start = time.perf_counter()
    chunks = list(state.encode_chunks())
    encode_s = time.perf_counter() - start
    await log.write_snapshot(state.position, state.entry_hash, chunks)
    previous, position = state.entry_hash, state.position
    log_ids = sorted(state.logs)
    for number in range(ENTRIES_BEHIND):
        driver.seal += 1
        some = [log_ids[(number * 10 + at) % len(log_ids)] for at in range(10)]
        ranges = []
        for at, log_id in enumerate(some):
            known = state.logs[log_id]
            ranges.append(Range(log_id, 0, known.end, known.end + 1, at * 100, 100, driver.now_ms, known.end + 1, 1))
        key = f"segments/{NODE}/{INCARNATION:016x}/{driver.seal}-0"
        fact = f.SealCommitted(INCARNATION, driver.seal, (SegmentObject(key, 10_000, tuple(ranges)),))
        position += 1
        entry = Entry(CLUSTER, position, previous, 1, os.urandom(16), driver.now_ms, (), (fact,))
        data = encode_entry(entry)
        await log.append(position, data)
        previous = hash_of(data)
        state.apply_entry(position, previous, driver.now_ms, (), (fact,))
    await store.close()
    return {"snapshot_bytes": sum(map(len, chunks)), "encode_s": round(encode_s, 2)}


def load(path: str) -> None:
    """In a process of its own: load what is there, as a new controller does; prints figures as JSON."""
    gc.collect()
    before = rss()

    async def work() -> tuple[float, float, ClusterState]:
        store = open_store(f"file:{path}", token=os.urandom)
        replica = Replica(ObjectLog(store, CLUSTER), CLUSTER)
        start, cpu = time.perf_counter(), time.process_time()
        await replica.load()
        while await replica.catch_up():
            pass
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        await store.close()
        return seconds, cpu_s, replica.state

    seconds, cpu_s, state = asyncio.run(work())
    gc.collect()
    figures = {
        "ready_s": round(seconds, 2),
        "ready_cpu_s": round(cpu_s, 2),
        "state_bytes": rss() - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "ranges": state.log_index.range_total,
        "objects": len(state.objects.named),
        "position": state.position,
    }
    print(json.dumps(figures))


def measure(partitions: int, shapes: list[list[Row]], seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    driver = make_cluster(partitions, shapes, random.Random(seed))
    made_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="tidelog-metadata-") as path:
        written = asyncio.run(write(driver, path))
        del driver
        gc.collect()
        command = [sys.executable, "-m", "benchmarks.metadata_size", "--load", path]
        loaded = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return {"partitions": partitions, **written, **loaded, "made_s": round(made_s, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--partitions", default="1000,10000,100000")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
        return
    logs = []
    shapes: list[list[Row]] = []
    for range_bytes in (1_000, 1 * MIB, 48 * MIB):
        figures, found = drive_one(range_bytes, random.Random(arguments.seed))
        shapes = shapes or found
        logs.append(figures)
        print(json.dumps(figures), flush=True)
    clusters = []
    for partitions in map(int, arguments.partitions.split(",")):
        clusters.append(measure(partitions, shapes, arguments.seed))
        print(json.dumps(clusters[-1]), flush=True)
    if arguments.results:
        arguments.results.write_text(json.dumps({"logs": logs, "clusters": clusters}, indent=1) + "\n")


if __name__ == "__main__":
    main()
