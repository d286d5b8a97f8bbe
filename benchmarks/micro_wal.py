"""The volume WAL beside a bare loop of pwritev and fdatasync on a pre-written file, and the object WAL over a directory
and over an S3 server: `python -m benchmarks.micro_wal`.

Closed loop: so many batches in flight, each acknowledgement appends the next. The bare loop writes and syncs one batch
at a time and is what a broker without group commit could do at best.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from crc32c import crc32c

from broker.background import Tasks
from storage.object_store import open_store
from storage.wal.objects import ObjectWal
from storage.wal.volume import VolumeWal
from tests.support.s3_servers import ENVIRONMENT, versitygw, versitygw_possible

FILE_BYTES = 64 << 20


def make_batch(size: int) -> bytes:
    """A record batch v2 whose header and checksum hold; its records are noise."""
    body = struct.pack(">hiqqqhii", 0, 0, 0, 0, -1, -1, -1, 1) + os.urandom(size - 61)
    return struct.pack(">qiibI", 0, size - 12, 0, 2, crc32c(body)) + body


def bare_loop(root: str, size: int, seconds: float) -> tuple[float, list[float]]:
    """Batches per second and the time of each, in seconds."""
    path = os.path.join(root, "bare")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for position in range(0, FILE_BYTES, 1 << 20):
        os.pwrite(descriptor, bytes(1 << 20), position)
    os.fsync(descriptor)
    batch = make_batch(size)
    header = bytes(68)
    times = []
    position = 0
    begin = now = time.perf_counter()
    while now - begin < seconds:
        if position + len(header) + size > FILE_BYTES:
            position = 0
        position += os.pwritev(descriptor, [header, batch], position)
        os.fdatasync(descriptor)
        last, now = now, time.perf_counter()
        times.append(now - last)
    os.close(descriptor)
    os.unlink(path)
    return len(times) / (now - begin), times


async def closed_loop(root: str, size: int, in_flight: int, seconds: float) -> tuple[float, list[float], VolumeWal]:
    """The same through the WAL, everything trimmed as soon as it is durable."""
    waiting: deque[tuple[int, float]] = deque()
    times: list[float] = []
    batch = make_batch(size)
    begin = time.perf_counter()
    done = asyncio.get_running_loop().create_future()
    refused = 0

    def fill() -> None:
        nonlocal refused
        now = time.perf_counter()
        while len(waiting) < in_flight:
            if not wal.has_room(size, internal=False):
                refused += 1
                return
            waiting.append((wal.append(1, 0, 0, batch), now))

    def on_durable(sequence: int, group: int) -> None:
        now = time.perf_counter()
        while waiting and waiting[0][0] <= sequence:
            times.append(now - waiting.popleft()[1])
        wal.trim(group)
        if now - begin < seconds:
            fill()
        elif not waiting and not done.done():
            done.set_result(None)

    wal = await VolumeWal.create(
        root,
        cluster_id="benchmark",
        node_id=1,
        wal_id=os.urandom(16),
        on_durable=on_durable,
        on_failed=done.set_exception,
        on_room=lambda: fill(),
        bytes_max=16 * FILE_BYTES,
        message_bytes_max=1 << 20,
        file_bytes=FILE_BYTES,
    )
    # The first laps make the files; measured is the steady state.
    begin = time.perf_counter()
    fill()
    await done
    took = time.perf_counter() - begin
    await wal.remove()
    if refused:
        print(f"    (waited for a file {refused} times)")
    return len(times) / took, times, wal


async def object_loop(uri: str, size: int, in_flight: int, seconds: float) -> tuple[float, list[float], ObjectWal]:
    """The same through the object WAL with its default settings."""
    waiting: deque[tuple[int, float]] = deque()
    times: list[float] = []
    batch = make_batch(size)
    done = asyncio.get_running_loop().create_future()

    def fill() -> None:
        now = time.perf_counter()
        while len(waiting) < in_flight and wal.has_room(size, internal=False):
            waiting.append((wal.append(1, 0, 0, batch), now))

    def on_durable(sequence: int, group: int) -> None:
        now = time.perf_counter()
        while waiting and waiting[0][0] <= sequence:
            times.append(now - waiting.popleft()[1])
        wal.trim(group)
        if now - begin < seconds:
            fill()
        elif not waiting and not done.done():
            done.set_result(None)

    store = open_store(uri, token=os.urandom)
    async with Tasks() as tasks:
        wal = ObjectWal(
            store,
            tasks,
            wal_id=os.urandom(16),
            token=os.urandom,
            on_durable=on_durable,
            on_failed=done.set_exception,
            on_room=lambda: None,
            message_bytes_max=1 << 20,
        )
        begin = time.perf_counter()
        fill()
        await done
        took = time.perf_counter() - begin
        await wal.remove()
    await store.close()
    return len(times) / took, times, wal


def object_rows(name: str, uri: str, seconds: float) -> None:
    for size, in_flight in ((170, 1), (170, 320), (16_384, 20), (131_072, 200)):
        begin_cpu = time.process_time()
        rate, times, wal = asyncio.run(object_loop(uri, size, in_flight, seconds))
        cpu = (time.process_time() - begin_cpu) / len(times) * 1e6
        hourly = wal.puts / seconds * 3600
        extra = f"{wal.batches / wal.groups:6.1f} a PUT  {hourly:7,.0f} PUTs an hour  {cpu:5.1f} us CPU a batch"
        row(f"object WAL, {name}, {size} B, {in_flight} in flight", rate, size, times, extra)


def row(name: str, rate: float, size: int, times: list[float], extra: str = "") -> None:
    times.sort()
    p50, p99 = (times[int(len(times) * q)] * 1000 for q in (0.5, 0.99))
    print(f"{name:<46} {rate:>9,.0f}/s {rate * size / 1e6:>8.1f} MB/s  p50 {p50:6.3f}  p99 {p99:7.3f} ms {extra}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--directory", default=".")
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    root = tempfile.mkdtemp(prefix="micro-wal-", dir=arguments.directory)
    try:
        for size, in_flight in ((170, 1), (170, 20), (170, 320), (16_384, 1), (16_384, 20), (131_072, 20)):
            bare, bare_times = bare_loop(root, size, arguments.seconds / 2)
            row(f"bare, {size} B", bare, size, bare_times)
            begin_cpu = time.process_time()
            rate, times, wal = asyncio.run(closed_loop(root, size, in_flight, arguments.seconds))
            cpu = (time.process_time() - begin_cpu) / len(times) * 1e6
            extra = f"{rate / bare:5.1f}x  {wal.batches / wal.groups:5.1f} a group  {cpu:5.1f} us CPU a batch"
            row(f"volume WAL, {size} B, {in_flight} in flight", rate, size, times, extra)
        object_rows("files", f"file:{root}/bucket", arguments.seconds)
        if versitygw_possible():
            os.environ.update(ENVIRONMENT)
            with versitygw(Path(root)) as server:
                server.make_bucket("s3")
                object_rows("S3", server.uri("s3", "wal"), arguments.seconds)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
