"""Costs of the storage data path, single process, files as bucket: `python -m benchmarks.micro_storage`. Seconds.

Prints CPU per call of the hot ones, and for work over 64 MiB segments the longest stretch for which the event loop was
held: that is what an acknowledgement behind it waits.
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

from protocol.records import BatchHeader, build_batch, parse_header
from storage.object_store import open_store
from storage.producers import ProducerStates
from storage.reader import Reader
from storage.seal import CommitAnswer, CommitSeal, RangeRow, SealedLog, Writer
from storage.segment import SegmentWriter, encode_segment_in_steps
from storage.tail import Tail, TailMemory
from storage.uploader import Uploader

MIB = 1024 * 1024
WRITER = Writer("bench", 1, 7)


def tell(name: str, figure: float, unit: str, more: str = "") -> None:
    print(f"{name:58} {figure:9.2f} {unit}{', ' if more else ''}{more}")


def timed(name: str, calls: int, run: Callable[[], object]) -> None:
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    tell(name, best / calls * 1e6, "us")


async def held(work: Awaitable[object]) -> tuple[float, str]:
    """Seconds the work took, and the longest time for which another task of the loop had to wait."""
    waited = used = 0.0
    done = False

    async def watch() -> None:
        nonlocal waited, used
        while not done:
            before, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0)
            waited = max(waited, time.perf_counter() - before)
            used = max(used, time.thread_time() - cpu)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        await asyncio.sleep(0)
        start = time.perf_counter()
        await work
        seconds = time.perf_counter() - start
        done = True
    return seconds, f"loop held at most {waited * 1e3:.2f} ms, {used * 1e3:.2f} of it its own CPU time"


def sealed(batch_bytes: int, total: int) -> SealedLog:
    value = b"v" * (batch_bytes - 72)
    batches: list[bytes | bytearray | memoryview] = []
    for base in range(total // batch_bytes):
        batches.append(bytes(build_batch([(base, None, value, ())], base_offset=base)))
    return SealedLog(1, 0, 0, len(batches), batches, len(batches) - 1, len(batches), b"", [])


class Clock:
    def now_ms(self) -> int:
        return 0

    def boottime_ms(self) -> int:
        return 0


async def commit(command: CommitSeal) -> CommitAnswer:
    return CommitAnswer((), command.seal)


def tail_costs() -> None:
    count = 100_000
    content = bytes(build_batch([(0, None, b"v" * 100, ())]))

    def append() -> None:
        tail = Tail(0, TailMemory())
        for base in range(count):
            tail.append(base, base + 1, content, base, base)

    timed("tail: append, 170 B", count, append)
    tail = Tail(0)
    for base in range(count):
        tail.append(base, base + 1, content, base, base)
    timed(
        "tail: read 1 MiB of 170 B batches out of 100,000",
        1000,
        lambda: [tail.read(5000, count, MIB) for _ in range(1000)],
    )
    timed(
        "tail: search by timestamp to the end of 100,000",
        10,
        lambda: [tail.first_batch_with_timestamp(count - 1, count) for _ in range(10)],
    )

    start = time.perf_counter()
    longest = 0.0
    while True:
        step = time.perf_counter()
        freed = tail.trim(count, 4000)
        longest = max(longest, time.perf_counter() - step)
        if not freed:
            break
    tell(
        "tail: trim 100,000 in slices of 4,000",
        (time.perf_counter() - start) / count * 1e6,
        "us",
        f"longest slice {longest * 1e3:.2f} ms",
    )


def producer_costs() -> None:
    count = 50_000
    headers = [BatchHeader(0, 49, 0, 2, 0, 0, 0, 0, 0, 5, 0, number, 1) for number in range(count)]

    def produce() -> None:
        states = ProducerStates()
        for base, header in enumerate(headers):
            states.check(header, 0)
            states.append(header, base, base, 0, base - 20)

    timed("producers: check and append, in sequence", count, produce)
    states = ProducerStates()
    for pid in range(1000):
        for number in range(5):
            base = pid * 5 + number
            states.append(BatchHeader(0, 49, 0, 2, 0, 0, 0, 0, 0, pid, 0, number, 1), base, 0, 0, 0)
    snapshot = states.snapshot(5000)
    for producer in states._producers.values():
        producer.packed = b""
    start = time.perf_counter()
    states.snapshot(5000)
    tell("producers: snapshot of 1,000 changed ones", (time.perf_counter() - start) * 1e3, "ms", f"{len(snapshot)} B")
    timed("producers: snapshot of 1,000 unchanged ones", 1, lambda: states.snapshot(5000))
    timed("producers: load 1,000", 1, lambda: ProducerStates().load(snapshot))
    timed("records: parse one header", count, lambda: [parse_header(build) for build in [bytes(100)] * count])


async def segment_costs(batch_bytes: int, directory: str) -> None:
    log = sealed(batch_bytes, 64 * MIB)
    name = f"64 MiB of {batch_bytes} B"
    gc.collect()
    gc.freeze()
    seconds, stall = await held(encode_segment_in_steps(SegmentWriter(WRITER, 1), [log]))
    tell(f"segment: encode {name}", seconds * 1e3, "ms", stall)

    store = open_store(f"file:{directory}/{batch_bytes}", token=os.urandom)
    rows: list[RangeRow] = []

    async def upload() -> None:
        async with asyncio.TaskGroup() as tasks:
            uploader = Uploader(store, WRITER, commit, tasks, Clock(), parallel=2)
            rows.extend((await uploader.submit([log])).committed)

    async def read_all(reader: Reader) -> None:
        at = 0
        while at < log.end:
            at = (await reader.read(rows, at, log.end, MIB)).next_offset
            await asyncio.sleep(0)

    seconds, stall = await held(upload())
    tell(f"uploader: {name}", seconds * 1e3, "ms", stall)
    async with asyncio.TaskGroup() as tasks:
        reader = Reader(store, tasks)
        for what in ("cold", "cached"):
            seconds, stall = await held(read_all(reader))
            more = f"{stall}, {reader.gets} GETs"
            tell(f"reader: {what}, {name}, 1 MiB a read", seconds * 1e3, "ms", more)
    await store.close()
    gc.unfreeze()


async def idle() -> None:
    seconds, stall = await held(asyncio.sleep(0.3))
    tell("nothing: what the machine does to an idle loop", seconds * 1e3, "ms", stall)


def main() -> None:
    sys.setswitchinterval(0.0005)  # as the broker does
    asyncio.run(idle())
    tail_costs()
    producer_costs()
    with tempfile.TemporaryDirectory() as directory:
        for batch_bytes in (170, 16_384, MIB):
            asyncio.run(segment_costs(batch_bytes, directory))


if __name__ == "__main__":
    main()
