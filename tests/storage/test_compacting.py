"""Passes over logs in a bucket: ranges are sealed, cleaned, replaced and cleaned again, and read back by the reader."""

import asyncio
from bisect import bisect_right
from struct import pack_into
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import Buffer
from protocol.records import HEADER_SIZE, batch_crc, build_batch, iterate_batches, parse_header
from storage.compacting import Compactor, Done, Place, RangesChanged, build_map, last_batches
from storage.merging import Inputs, Write, merge
from storage.producers import ProducerStates
from storage.reader import Reader
from storage.seal import CorruptSegment, RangeMissing, RangeRow, SealedLog
from storage.segment import describe_segment, encode_segment
from tests.storage.sealed import WRITER, ScriptedStore, rows_of, writer
from tests.storage.test_compaction import Log, Op, contents, ops

LOG = 7
NO_EXPIRY = 1 << 60


async def no_pace(size: int) -> None:
    return None


async def no_rest() -> None:
    return None


class Bucket:
    """The ranges of one log, as the metadata would have them."""

    def __init__(self) -> None:
        self.store = ScriptedStore()
        self.rows: list[RangeRow] = []
        self.start = self.clean_to = 0
        self.seals = self.jobs = 0
        self.states = ProducerStates()

    def row_at(self, offset: int) -> RangeRow | None:
        at = bisect_right(self.rows, offset, key=lambda row: row.range.end)
        return self.rows[at] if at < len(self.rows) else None

    @property
    def place(self) -> Place:
        return Place(self.store, WRITER.cluster_id, self.row_at, no_pace, no_rest)

    async def seal(self, log: Log, batches: list[bytes]) -> None:
        self.seals += 1
        base, end = parse_header(batches[0]).base_offset, parse_header(batches[-1]).next_offset
        for batch in batches:
            self.states.replay(parse_header(batch), 0, batch)
        sealed = SealedLog(
            LOG,
            4,
            base,
            end,
            list(batches),
            max(parse_header(batch).max_timestamp for batch in batches),
            min([first for _, first in self.states.open_transactions()], default=end),
            self.states.snapshot(end),
            [entry for entry in log.aborted if base <= entry.last_offset < end],
        )
        segment = encode_segment(writer(self.seals), [sealed])
        await self.store.put_if_absent(segment.key, segment.parts)
        self.rows += rows_of(segment, LOG)

    def replace(self, done: Done) -> None:
        first = self.rows.index(done.rows[0])
        assert tuple(self.rows[first : first + len(done.rows)]) == done.rows
        made = done.output
        assert (made.range.base, made.range.end) == (done.rows[0].range.base, done.rows[-1].range.end)
        assert made.range.max_timestamp <= max(row.range.max_timestamp for row in done.rows)
        self.rows[first : first + len(done.rows)] = [RangeRow(made.key, made.size, made.range)]

    async def compact(
        self, *, now_ms: int, retention_ms: int, room: int = 1 << 20, object_bytes: int = 4_000, stop_after: int = 99
    ) -> None:
        stable = self.rows[-1].range.last_stable_offset
        bound = max([row.range.end for row in self.rows if row.range.end <= stable], default=0)
        if bound <= self.clean_to:
            return
        dirty = sum(row.range.length for row in self.rows if row.range.end > self.clean_to)
        offsets, _ = await build_map(self.place, self.clean_to, bound, room, seed=1, dirty_bytes=dirty)
        compactor = Compactor(
            self.place,
            offsets,
            start=self.start,
            now_ms=now_ms,
            delete_retention_ms=retention_ms,
            last=await last_batches(self.place, self.rows[-1], 0, NO_EXPIRY),
            object_bytes_max=object_bytes,
        )
        written: list[Buffer] = []

        async def write(part: Buffer) -> None:
            written.append(part)

        def begin() -> tuple[int, Write]:
            written.clear()
            return self.jobs, write

        async for done in compactor.outputs(begin):
            self.jobs += 1
            await self.store.put_if_absent(done.output.key, [*written, *done.output.parts])
            if not stop_after:
                return
            stop_after -= 1
            self.replace(done)
            assert (await describe_segment(self.store, done.output.key)).problems == ()
        self.clean_to = offsets.latest + 1

    async def read(self, *, committed: bool = False) -> tuple[list[bytes], set[int]]:
        """All batches, and the offsets of aborted data, as a reader of either isolation level gets them."""
        found: list[bytes] = []
        hidden: set[int] = set()
        async with asyncio.TaskGroup() as tasks:
            reader = Reader(self.store, tasks, cache_bytes_max=1 << 22)
            offset = self.rows[0].range.base
            limit = self.rows[-1].range.last_stable_offset if committed else self.rows[-1].range.end
            while offset < limit:
                read = await reader.read(self.rows, offset, limit, 2_000, read_committed=committed)
                for buffer in read.buffers:
                    view = memoryview(bytes(buffer))
                    found += [bytes(view[at : at + header.size]) for at, header in iterate_batches(view)]
                for entry in read.aborted:
                    hidden |= {
                        at
                        for batch in found
                        if (header := parse_header(batch)).producer_id == entry.producer_id and header.is_transactional
                        for at in range(header.base_offset, header.next_offset)
                        if entry.first_offset <= at < entry.last_offset
                    }
                assert read.next_offset > offset
                offset = read.next_offset
        return found, hidden


@given(
    parts=st.lists(st.tuples(ops, st.integers(1, 5)), min_size=1, max_size=4),
    retention_ms=st.sampled_from([0, 10_000]),
    room=st.sampled_from([200, 1 << 20]),
    object_bytes=st.sampled_from([300, 4_000]),
    stops=st.lists(st.sampled_from([0, 1, 99, 99]), min_size=4, max_size=4),
)
@settings(max_examples=150, deadline=None)
async def test_passes_over_a_bucket(
    parts: list[tuple[list[Op], int]], retention_ms: int, room: int, object_bytes: int, stops: list[int]
) -> None:
    """Appends, seals and passes, some of which end in the middle, as when their broker dies."""
    log, bucket = Log(), Bucket()
    now_ms = 0
    for (part, cut), stop in zip(parts, stops):
        before = len(log.batches)
        for op in part:
            log.add(op)
        fresh = log.batches[before:]
        for at in range(0, len(fresh), cut):
            await bucket.seal(log, fresh[at : at + cut])
        if not bucket.rows:
            continue
        now_ms += 6_000
        await bucket.compact(
            now_ms=now_ms, retention_ms=retention_ms, room=room, object_bytes=object_bytes, stop_after=stop
        )
        assert bucket.rows[0].range.base == 0 and bucket.rows[-1].range.end == log.end
        found, _ = await bucket.read()
        original, left = contents(log.batches), contents(found)
        last: dict[bytes, int] = {}
        for offset, record in original.items():
            if offset not in log.dropped and record.key is not None and offset < log.lso:
                last[record.key] = offset
        for offset, record in left.items():
            assert record == original[offset]
        for key, offset in last.items():
            if original[offset].value is not None:
                assert offset in left, key
            elif offset not in left:
                older = [at for at, other in left.items() if other.key == key and at < offset]
                assert not [at for at in older if at not in log.dropped], "nothing comes to life again"
        for offset in original:
            if offset >= log.lso:
                assert offset in left, "what is not decided stays"
        stable = bucket.rows[-1].range.last_stable_offset
        committed, hidden = await bucket.read(committed=True)
        for offset in contents(committed):
            if offset < stable:
                assert (offset in log.dropped) == (offset in hidden), offset


def keyed(base: int, count: int, keys: int, *, size: int = 100, codec: int = 0) -> bytes:
    made = [(1_000 + base + at, b"key %d" % ((base + at) % keys), bytes(size), ()) for at in range(count)]
    return bytes(build_batch(made, base_offset=base, leader_epoch=4, codec=codec))


async def grown(seals: int, batches: int, keys: int, *, size: int = 100, codec: int = 0) -> Bucket:
    log, bucket = Log(), Bucket()
    for number in range(seals):
        base = number * batches * 10
        await bucket.seal(log, [keyed(base + 10 * at, 10, keys, size=size, codec=codec) for at in range(batches)])
    return bucket


@pytest.mark.parametrize("codec", range(5))
async def test_only_the_last_values_are_left(codec: int) -> None:
    bucket = await grown(8, 20, 37, codec=codec, size=2_000)
    await bucket.compact(now_ms=0, retention_ms=0, object_bytes=1 << 20)
    found, _ = await bucket.read()
    assert sorted(contents(found)) == list(range(1_600 - 37, 1_600))
    assert bucket.clean_to == 1_600 and sum(row.range.length for row in bucket.rows) < 37 * 2_500 + 1_000
    assert all(parse_header(batch).codec == codec for batch in found)


async def test_what_has_not_changed_is_not_written_again() -> None:
    bucket = await grown(6, 5, 10_000)
    rows = list(bucket.rows)
    await bucket.compact(now_ms=0, retention_ms=0)
    assert bucket.rows == rows and bucket.clean_to == 300 and bucket.jobs == 0


async def test_a_batch_without_records_is_not_the_newest() -> None:
    """It keeps its max timestamp for its producer's sake, but no record has that."""
    log, bucket = Log(), Bucket()
    identity: dict[str, Any] = {"producer_id": 5, "producer_epoch": 0, "base_sequence": 0}
    old = bytes(build_batch([(9_000, b"k", b"1", ())], leader_epoch=4, **identity))
    await bucket.seal(log, [old])
    await bucket.seal(log, [keyed(1, 3, 3), bytes(build_batch([(8, b"k", b"2", ())], base_offset=4, leader_epoch=4))])
    await bucket.compact(now_ms=0, retention_ms=0)
    found, _ = await bucket.read()
    assert [parse_header(batch).record_count for batch in found] == [0, 3, 1]
    async with asyncio.TaskGroup() as tasks:
        reader = Reader(bucket.store, tasks, cache_bytes_max=1 << 22)
        newest = await reader.find_max_timestamp(bucket.rows, 5)
        assert newest is not None and (newest.base_offset, newest.max_timestamp) == (1, 1_003)
        assert (await reader.find_timestamp(bucket.rows, 8_999, 5, 1)) is None


async def test_several_passes_when_the_map_is_small() -> None:
    bucket = await grown(10, 10, 200)
    passes = 0
    while bucket.clean_to < 1_000:
        before = bucket.clean_to
        await bucket.compact(now_ms=0, retention_ms=0, room=100 * 30, object_bytes=1 << 20)
        assert bucket.clean_to >= min(before + 75, 1_000)
        passes += 1
    assert passes > 5
    found, _ = await bucket.read()
    assert sorted(contents(found)) == list(range(800, 1_000))


async def test_damage_and_what_is_gone_are_told() -> None:
    bucket = await grown(3, 5, 10)
    key = bucket.rows[1].key
    data = bytearray((await bucket.store.get(key)).data)
    data[100] ^= 1
    bucket.store.damage(key, bytes(data))
    with pytest.raises(CorruptSegment):
        await bucket.compact(now_ms=0, retention_ms=0)
    await bucket.store.delete(key)
    with pytest.raises(RangeMissing):
        await bucket.compact(now_ms=0, retention_ms=0)


async def test_an_output_begins_where_something_goes() -> None:
    """What its first range holds before that is read again: whole blocks, and the batches of the block at hand."""
    log, bucket = Log(), Bucket()
    await bucket.seal(log, [keyed(10 * at, 10, 10_000, size=20_000) for at in range(20)])
    await bucket.seal(log, [keyed(200, 10, 5)])
    await bucket.compact(now_ms=0, retention_ms=0, object_bytes=1 << 30)
    found, _ = await bucket.read()
    assert sorted(contents(found)) == [*range(5, 200), *range(205, 210)] and len(bucket.rows) == 1
    late = Bucket()
    await late.seal(log, [keyed(10 * at, 10, 10_000, size=20_000) for at in range(20)])
    await late.seal(log, [bytes(build_batch([(1, b"key 195", b"", ())], base_offset=200, leader_epoch=4))])
    await late.compact(now_ms=0, retention_ms=0, object_bytes=1 << 30)
    found, _ = await late.read()
    assert sorted(contents(found)) == [*range(195), *range(196, 201)] and len(late.rows) == 1


async def merge_all(bucket: Bucket) -> None:
    """All ranges become one, as a job that is done meanwhile would have it."""
    written: list[Buffer] = []

    async def write(part: Buffer) -> None:
        written.append(part)

    inputs = Inputs(bucket.store, WRITER.cluster_id, bucket.rows, no_pace)
    made = await merge(inputs, WRITER.cluster_id, 99, bucket.rows, write)
    await bucket.store.put_if_absent(made.key, [*written, *made.parts])
    bucket.rows = [RangeRow(made.key, made.size, made.range)]


async def test_ranges_that_are_merged_meanwhile_end_a_pass() -> None:
    """Seen twice, an aborted transaction would be taken for a committed one, and hide what came before it."""
    log, bucket = Log(), Bucket()
    for op in [
        Op(-1, False, ((b"k", b"first"),), 0, False, None),
        Op(1, True, ((b"k", b"aborted"),), 0, False, None),
        Op(1, True, (), 0, False, False),
        Op(-1, False, ((b"other", b"v"),), 0, False, None),
    ]:
        log.add(op)
    await bucket.seal(log, log.batches[:3])
    await bucket.seal(log, log.batches[3:])

    def row_at(offset: int) -> RangeRow | None:
        return merged.row_at(offset) if offset else bucket.row_at(offset)

    merged = Bucket()
    merged.store, merged.rows = bucket.store, list(bucket.rows)
    await merge_all(merged)
    with pytest.raises(RangesChanged):
        await build_map(bucket.place._replace(row_at=row_at), 0, 4, 1 << 20, seed=1, dirty_bytes=100)


async def test_what_nobody_can_read_stays_and_hides_nothing() -> None:
    log, bucket = Log(), Bucket()
    good = [bytes(build_batch([(5, b"k", b"old", ())], leader_epoch=4)), keyed(1, 3, 3)]
    broken = bytearray(build_batch([(5, b"k", b"new", ()), (5, b"key 1", b"", ())], base_offset=4, leader_epoch=4))
    broken[-8] = 0x7E  # the length of the second key: the first record can be read
    packed = build_batch([(5, b"k", bytes(100), ())], base_offset=6, leader_epoch=4, codec=4)
    packed = bytearray(packed[:HEADER_SIZE] + bytes(4) + packed[HEADER_SIZE + 4 :])
    for one in (broken, packed):
        pack_into(">I", one, 17, batch_crc(one, 0, len(one)))
    await bucket.seal(log, good)
    await bucket.seal(log, [bytes(broken), bytes(packed)])
    await bucket.seal(log, [bytes(build_batch([(5, b"key 2", b"new", ())], base_offset=7, leader_epoch=4))])
    await bucket.compact(now_ms=0, retention_ms=0, object_bytes=1 << 20)
    found, _ = await bucket.read()
    assert bucket.clean_to == 8 and bytes(broken) in found and bytes(packed) in found
    readable = [batch for batch in found if parse_header(batch).base_offset not in (4, 6)]
    assert sorted(contents(readable)) == [0, 1, 3, 7], "only what was superseded by what can be read"


async def peak_of(bucket: Bucket, room: int, object_bytes: int) -> int:
    """The most memory that a pass takes whose outputs go elsewhere."""
    import tracemalloc

    async def drop(part: Buffer) -> None:
        return None

    bound = bucket.rows[-1].range.end
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        offsets, _ = await build_map(bucket.place, 0, bound, room, seed=1, dirty_bytes=1 << 26)
        last = await last_batches(bucket.place, bucket.rows[-1], 0, NO_EXPIRY)
        compactor = Compactor(
            bucket.place,
            offsets,
            start=0,
            now_ms=0,
            delete_retention_ms=0,
            last=last,
            object_bytes_max=object_bytes,
        )
        async for _ in compactor.outputs(lambda: (0, drop)):
            pass
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("object_bytes", [1 << 20, 1 << 30])
async def test_memory_is_that_of_the_map_and_some_blocks(object_bytes: int) -> None:
    """64 MiB in ranges of 4 MiB, a map of 1 MiB, and outputs of 1 MiB or of any size."""
    bucket = await grown(16, 40, 1 << 30, size=10_000)
    assert sum(row.range.length for row in bucket.rows) > 60 << 20
    newer = [(1, b"key %d" % at, b"", ()) for at in range(0, 6_400, 300)]
    await bucket.seal(Log(), [bytes(build_batch(newer, base_offset=6_400, leader_epoch=4))])
    assert await peak_of(bucket, 1 << 20, object_bytes) < 8 << 20
