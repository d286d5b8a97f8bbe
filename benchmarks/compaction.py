"""What a pass of compaction costs: CPU for each GB, the longest it holds the event loop, the memory it takes.

    python -m benchmarks.compaction [MiB]

A log in a file-system bucket, sealed in objects of 32 MiB; every key is written four times. Prints a row per kind of
records, as Markdown.
"""

import asyncio
import itertools
import os
import resource
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from broker.outputs import OutputWriter, Pacer, StreamedOutput
from protocol.records import Codec, build_batch, parse_header
from storage.compacting import Compactor, Place, build_map
from storage.compaction import LastBatches
from storage.filesystem import FileSystemStore
from storage.merging import Write
from storage.seal import RangeRow, SealedLog, Writer, merged_key
from storage.segment import SegmentWriter, encode_segment

LOG = 1
SEAL_BYTES = 32 << 20
OBJECT_BYTES = 64 << 20
MAP_BYTES = 128 << 20
VERSIONS = 4
BATCH_BYTES = 16 << 10
WRITER = Writer("benchmark", 1, 1)


class Kind(NamedTuple):
    """Records of one size and codec."""

    name: str
    value_bytes: int
    codec: Codec


KINDS = (
    Kind("100 B", 80, Codec.NONE),
    Kind("100 B, lz4", 80, Codec.LZ4),
    Kind("1 KiB", 1_000, Codec.NONE),
    Kind("1 KiB, zstd", 1_000, Codec.ZSTD),
    Kind("10 KiB", 10_000, Codec.NONE),
)


def batches(kind: Kind, size: int) -> Iterator[tuple[bytes, int]]:
    """(batch, bytes before it was compressed) until `size` bytes were written."""
    per_batch = max(BATCH_BYTES // (kind.value_bytes + 20), 1)
    records = size // (kind.value_bytes + 20)
    keys = max(records // VERSIONS, 1)
    value = bytes(range(256)) * (kind.value_bytes // 256 + 1)
    for base in range(0, records, per_batch):
        made = [
            (1_000 + at, b"key %d" % (at * 7919 % keys), value[at % 100 :][: kind.value_bytes], ())
            for at in range(base, min(base + per_batch, records))
        ]
        plain = sum(len(record[2] or b"") + 20 for record in made)
        yield bytes(build_batch(made, base_offset=base, leader_epoch=1, codec=kind.codec)), plain


class Bucket:
    """A log in a bucket, as the metadata would have it."""

    def __init__(self, root: Path) -> None:
        self.store = FileSystemStore(root, token=os.urandom)
        self.rows: list[RangeRow] = []
        self.plain_bytes = 0

    async def fill(self, kind: Kind, size: int) -> None:
        """Seal records of about `size` bytes before compression."""
        held: list[bytes] = []
        held_bytes = 0
        for batch, plain in batches(kind, size):
            held.append(batch)
            held_bytes += len(batch)
            self.plain_bytes += plain
            if held_bytes >= SEAL_BYTES:
                await self._seal(held)
                held, held_bytes = [], 0
        if held:
            await self._seal(held)

    async def _seal(self, held: list[bytes]) -> None:
        base, end = parse_header(held[0]).base_offset, parse_header(held[-1]).next_offset
        newest = max(parse_header(batch).max_timestamp for batch in held)
        sealed = SealedLog(LOG, 1, base, end, list(held), newest, end, b"", [])
        segment = encode_segment(SegmentWriter(WRITER, len(self.rows) + 1), [sealed])
        await self.store.put_if_absent(segment.key, segment.parts)
        self.rows.append(RangeRow(segment.key, segment.size, segment.ranges[0]))

    def row_at(self, offset: int) -> RangeRow | None:
        """The range that holds an offset."""
        at = bisect_right(self.rows, offset, key=lambda row: row.range.end)
        return self.rows[at] if at < len(self.rows) else None


def filled(root: str, kind: Kind, size: int) -> tuple[list[RangeRow], int]:
    """In a process of its own: a bucket with such records."""
    bucket = Bucket(Path(root))
    asyncio.run(bucket.fill(kind, size))
    return bucket.rows, bucket.plain_bytes


async def watch(gaps: list[float]) -> None:
    """How long the loop is held at a time."""
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
        await asyncio.sleep(0.0005)
        last = time.perf_counter()


async def measure(kind: Kind, size: int) -> str:
    """One row."""
    with tempfile.TemporaryDirectory() as root:
        bucket = Bucket(Path(root))
        with ProcessPoolExecutor(1, get_context("spawn")) as others:  # what filling takes is not to be counted
            bucket.rows, bucket.plain_bytes = others.submit(filled, root, kind, size).result()
        stored = sum(row.range.length for row in bucket.rows)
        gaps: list[float] = []
        watching = asyncio.ensure_future(watch(gaps))
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        async def pace(size: int) -> None:
            return None

        place = Place(bucket.store, WRITER.cluster_id, bucket.row_at, pace, lambda: asyncio.sleep(0))
        began, wall = time.process_time(), time.perf_counter()
        end = bucket.rows[-1].range.end
        offsets, _ = await build_map(place, 0, end, MAP_BYTES, seed=1, dirty_bytes=stored)
        mapped = time.process_time() - began
        compactor = Compactor(
            place,
            offsets,
            start=0,
            now_ms=0,
            delete_retention_ms=0,
            last=LastBatches(),
            object_bytes_max=OBJECT_BYTES,
        )
        written = 0
        writer, numbers = OutputWriter(bucket.store, Pacer(0, lambda: False)), itertools.count()
        output: StreamedOutput | None = None

        def begin() -> tuple[int, Write]:
            nonlocal output
            number = next(numbers)
            output = writer.output(merged_key(number, LOG))
            return number, output.write

        async for done in compactor.outputs(begin):
            assert output is not None
            await output.finish(done.output.parts)
            written += done.output.size
        spent, took = time.process_time() - began, time.perf_counter() - wall
        watching.cancel()
        more_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
    gaps.sort()
    gb = bucket.plain_bytes / 1e9
    return (
        f"| {kind.name} | {bucket.plain_bytes / 2**20:.0f} | {stored / 2**20:.0f} | {written / 2**20:.0f} | "
        f"{mapped / gb:.1f} | {(spent - mapped) / gb:.1f} | {stored / 2**20 / took:.0f} | "
        f"{gaps[len(gaps) * 99 // 100] * 1000:.1f} | {gaps[-1] * 1000:.1f} | {max(more_mb, 0):.0f} |"
    )


def main() -> None:
    """Measure every kind."""
    size = int(sys.argv[1]) << 20 if len(sys.argv) > 1 else 128 << 20
    print("| records | MiB | stored | left | map, CPU-s/GB | clean, CPU-s/GB | MiB/s | loop held, ms: p99 | max | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        print(asyncio.run(measure(kind, size)), flush=True)


if __name__ == "__main__":
    main()
