"""Merge outputs: the batches of their inputs byte for byte, their state and their aborted transactions; manifests.

The golden files of segments in `test_segment` have one of each.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import Buffer
from protocol.records import parse_header
from storage.manifest import ManifestRow, Manifests, decode_manifest, encode_manifest, point_to, range_row
from storage.merging import Inputs, MergedObject, merge
from storage.producers import ProducerStates
from storage.reader import Reader
from storage.seal import AbortedEntry, CorruptSegment, Range, RangeMissing, RangeRow, SealedLog, manifest_key
from storage.segment import Segment, describe_segment, encode_segment, read_producers
from tests.storage.sealed import WRITER, ScriptedStore, batch, batches, rows_of, seal, writer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "manifest"
CLUSTER = WRITER.cluster_id


async def no_pace(size: int) -> None:
    return None


def snapshot(end: int, producer_id: int) -> bytes:
    states = ProducerStates()
    states.replay(parse_header(batch(end - 1, producer_id=producer_id, producer_epoch=0, base_sequence=0)), 1_000)
    return states.snapshot(end)


async def stored(store: ScriptedStore, *seals: list[SealedLog]) -> list[Segment]:
    segments = [encode_segment(writer(number), logs) for number, logs in enumerate(seals, 1)]
    for segment in segments:
        await store.put_if_absent(segment.key, segment.parts)
    return segments


async def put(store: ScriptedStore, made: MergedObject) -> RangeRow:
    await store.put_if_absent(made.key, made.parts)
    return RangeRow(made.key, made.size, made.range)


async def whole(source: Inputs, cluster_id: str, job: int, rows: Sequence[RangeRow]) -> MergedObject:
    """A merge whose output is held in memory."""
    blocks: list[Buffer] = []

    async def write(block: Buffer) -> None:
        blocks.append(block)

    made = await merge(source, cluster_id, job, rows, write)
    return made._replace(parts=[*blocks, *made.parts])


def inputs(store: ScriptedStore, rows: list[RangeRow]) -> Inputs:
    return Inputs(store, CLUSTER, rows, no_pace)


async def bytes_of(store: ScriptedStore, rows: list[RangeRow]) -> bytes:
    """All batches of the rows, as the reader gives them."""
    found = b""
    async with asyncio.TaskGroup() as tasks:
        reader = Reader(store, tasks, cache_bytes_max=1 << 22)
        offset, end = rows[0].range.base, rows[-1].range.end
        while offset < end:
            read = await reader.read(rows, offset, end, 1 << 20)
            found += b"".join(bytes(buffer) for buffer in read.buffers)
            assert read.next_offset > offset
            offset = read.next_offset
    return found


@given(
    seals=st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 100, 90_000, 300_000])), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
    ),
    again=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
async def test_a_merge_changes_no_byte(seals: list[list[tuple[int, int]]], again: int) -> None:
    """Merged once, and the output with the last inputs once more."""
    store = ScriptedStore()
    sealed = []
    content = b""
    offset = 10
    for number, sizes in enumerate(seals):
        made = []
        for count, size in sizes:
            made.append(batch(offset, count, timestamp=1_000 * number + offset, value_bytes=size))
            offset += count
        content += b"".join(made)
        aborted = [AbortedEntry(number, offset - 1, offset - 1, offset)]
        log = seal(7, made, producers=snapshot(offset, number), aborted=aborted)
        sealed.append([seal(3, batches(5 + number, [1])), log, seal(9, batches(0, [2]))])
    segments = await stored(store, *sealed)
    rows = [row for segment in segments for row in rows_of(segment, 7)]
    again = min(again, len(rows))
    first = await whole(inputs(store, rows[:again]), CLUSTER, 1, rows[:again])
    rows = [await put(store, first), *rows[again:]]
    made_again = await whole(inputs(store, rows), CLUSTER, 2, rows)
    output = await put(store, made_again)
    assert await bytes_of(store, [output]) == content
    found = output.range
    assert (found.base, found.end, found.length) == (10, offset, len(content))
    assert found.batch_count == sum(map(len, seals))
    assert (await read_producers(store, output.key, output.size, 7)) == (snapshot(offset, len(seals) - 1), offset)
    report = await describe_segment(store, output.key)
    assert report.problems == () and report.writer is None
    assert [entry.producer_id for entry in report.logs[0].aborted] == list(range(len(seals)))


async def test_neighbouring_logs_share_their_reads() -> None:
    """A job of many small logs in few objects costs a GET for each object, not for each log."""
    store = ScriptedStore()
    logs = range(100)
    segments = await stored(
        store, *([seal(log, batches(10 * n, [10], value_bytes=500)) for log in logs] for n in range(4))
    )
    parts = [[row for segment in segments for row in rows_of(segment, log)] for log in logs]
    source = inputs(store, [row for rows in parts for row in rows])
    for rows in parts:
        made = await whole(source, CLUSTER, 1, rows)
        assert made.range.length == sum(row.range.length for row in rows)
    assert store.calls["get_range"] <= 4 * 2


async def test_what_is_damaged_or_gone_is_told() -> None:
    store = ScriptedStore()
    segments = await stored(store, *([seal(7, batches(10 * n, [5, 5]))] for n in range(3)))
    rows = [row for segment in segments for row in rows_of(segment, 7)]
    data = bytearray((await store.get(segments[1].key)).data)
    data[80] ^= 1
    store.damage(segments[1].key, bytes(data))
    with pytest.raises(CorruptSegment, match="checksum of the block at offset 10"):
        await whole(inputs(store, rows), CLUSTER, 1, rows)
    wrong = [rows[0], rows[0]._replace(range=rows[0].range._replace(base=1))]
    with pytest.raises(CorruptSegment, match="the metadata says"):
        await whole(inputs(store, wrong), CLUSTER, 1, wrong)
    with pytest.raises(CorruptSegment, match="belongs to cluster"):
        await whole(Inputs(store, "another", rows, no_pace), "another", 1, rows)
    await store.delete(segments[0].key)
    with pytest.raises(RangeMissing):
        await whole(inputs(store, rows), CLUSTER, 1, rows)


async def test_a_state_row_keeps_nothing_but_the_state() -> None:
    store = ScriptedStore()
    (segment,) = await stored(store, [seal(7, batches(0, [5]), producers=snapshot(5, 4)), seal(8, batches(0, [5]))])
    (row,) = rows_of(segment, 7)
    row = row._replace(range=row.range._replace(base=5, length=0, max_timestamp=-1, batch_count=0))
    made = await whole(inputs(store, [row]), CLUSTER, 1, [row])
    output = await put(store, made)
    assert (output.range.base, output.range.end, output.range.length, output.range.batch_count) == (5, 5, 0, 0)
    assert await read_producers(store, output.key, output.size, 7) == (snapshot(5, 4), 5)
    again = await whole(inputs(store, [output]), CLUSTER, 2, [output])
    assert again.range == output.range


# Manifests


def manifest_rows(count: int = 5) -> list[ManifestRow]:
    stamps = [5, 9, -1, 7, 2**40]
    return [
        ManifestRow(n, 1_000 + n, Range(7, n, 10 * n, 10 * n + 10 - n % 2, 0, 900, stamps[n % 5], 10 * n, 3), 50 + n)
        for n in range(count)
    ]


def test_a_manifest_is_exact() -> None:
    rows = manifest_rows()
    data = encode_manifest(CLUSTER, 12, 7, rows)
    manifest = decode_manifest("key", CLUSTER, 12, 7, data)
    assert manifest.rows(0) == rows and manifest.rows(3) == rows[3:] and manifest.rows(1, 2) == rows[1:2]
    assert [manifest.first_beyond(offset) for offset in (0, 9, 10, 18, 19, 49, 50)] == [0, 0, 1, 1, 2, 4, 5]
    assert [manifest.first_since(stamp) for stamp in (0, 5, 6, 9, 10, 2**40, 2**41)] == [0, 0, 1, 1, 4, 4, 5]
    assert range_row(7, rows[1]) == RangeRow("merged/0000000001/7", 1_001, rows[1].range)
    pointer = point_to(12, len(data), rows, 2)
    assert pointer == (12, len(data), 2, 3, 2_700, 20, 50, 2**40, 52, 900)
    assert point_to(12, 1, rows[:1], 0, 99).max_timestamp == 99


def test_damaged_manifests_are_refused() -> None:
    data = encode_manifest(CLUSTER, 12, 7, manifest_rows())
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(CorruptSegment):
            decode_manifest("key", CLUSTER, 12, 7, bad)
        with pytest.raises(CorruptSegment):
            decode_manifest("key", CLUSTER, 12, 7, data[:at])
    for wrong in ((CLUSTER, 13, 7), (CLUSTER, 12, 8), ("another", 12, 7)):
        with pytest.raises(CorruptSegment):
            decode_manifest("key", *wrong, data)
    with pytest.raises(CorruptSegment, match="row 1 is"):
        decode_manifest("key", None, 12, 7, encode_manifest(CLUSTER, 12, 7, manifest_rows()[1::-1]))


async def test_manifests_are_read_once_and_kept() -> None:
    store = ScriptedStore()
    rows = manifest_rows()
    data = encode_manifest(CLUSTER, 12, 7, rows)
    await store.put_if_absent(manifest_key(12, 7), data)
    pointer = point_to(12, len(data), rows)
    async with asyncio.TaskGroup() as tasks:
        manifests = Manifests(store, tasks, cluster_id=CLUSTER)
        found = await asyncio.gather(*[manifests.get(7, pointer) for _ in range(3)])
        assert found[0] is found[1] is found[2]
        with pytest.raises(CorruptSegment, match="the metadata says"):
            await Manifests(store, tasks).get(7, pointer._replace(rows=4))
        with pytest.raises(RangeMissing):
            await Manifests(store, tasks).get(8, pointer)


def test_the_format_of_this_release_is_that_of_its_golden_file() -> None:
    """Never write it anew: a changed format gets new files, and this one must still be read."""
    data = encode_manifest(CLUSTER, 12, 7, manifest_rows())
    assert (GOLDEN / "five-rows.bin").read_bytes() == data
    assert decode_manifest("key", CLUSTER, 12, 7, data).rows(0) == manifest_rows()
