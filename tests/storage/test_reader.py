import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage.range_plan
import storage.reader
import storage.segment
from protocol.records import iterate_batches
from storage.object_store import Unavailable
from storage.reader import Reader, ReadResult, parse_block
from storage.seal import AbortedEntry, CorruptSegment, RangeMissing, RangeRow, SealedLog
from storage.segment import encode_segment
from tests.storage.sealed import ScriptedStore, batch, batches, rows_of, seal, writer

EVERYTHING = 10**9
FOUR = 4 * len(batch(0))


@contextmanager
def small_blocks(block_bytes: int = 320, small_range_bytes: int = 0) -> Iterator[None]:
    """Blocks of a few batches, so that tests need no megabytes: four of `batches(.., [1] * n)`, 78 bytes each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.segment, "BLOCK_BYTES", block_bytes)
        patch.setattr(storage.segment, "INDEX_GUESS_BYTES", 100)
        patch.setattr(storage.reader, "BLOCK_BYTES", block_bytes)
        patch.setattr(storage.range_plan, "SMALL_RANGE_BYTES", small_range_bytes)
        yield


@pytest.fixture
def blocks_of_four() -> Iterator[None]:
    with small_blocks():
        yield


async def kept(store: ScriptedStore, seals: list[SealedLog], first_seal: int = 1) -> list[RangeRow]:
    """One object per sealed log, all of one log; its rows."""
    rows = []
    for number, sealed in enumerate(seals, first_seal):
        segment = encode_segment(writer(number), [sealed])
        await store.put_if_absent(segment.key, segment.parts)
        rows += rows_of(segment, sealed.log_id)
    store.ranges.clear()
    return rows


@asynccontextmanager
async def reading(store: ScriptedStore, **settings: int | str) -> AsyncIterator[Reader]:
    async with asyncio.TaskGroup() as tasks:
        yield Reader(store, tasks, **({"read_ahead_bytes_max": 0} | settings))  # type: ignore[arg-type]


def join(result: ReadResult) -> bytes:
    data = b"".join(result.buffers)
    assert len(data) == result.size
    return data


def offsets(result: ReadResult) -> list[int]:
    return [header.base_offset for _, header in iterate_batches(join(result))]


# Which batches a read returns


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[SealedLog], list[tuple[int, int, bytes, int]]]:
    """Ranges of one log with gaps, as compaction leaves them, and its batches as (base, end, bytes, max timestamp)."""
    seals: list[SealedLog] = []
    model: list[tuple[int, int, bytes, int]] = []
    offset = draw(st.integers(0, 5))
    for _ in range(draw(st.integers(1, 4))):
        base = offset
        contents = []
        for _ in range(draw(st.integers(0, 12))):
            offset += draw(st.sampled_from([0, 0, 0, 2]))
            count = draw(st.integers(1, 3))
            timestamp = draw(st.integers(0, 30))
            contents.append(batch(offset, count, timestamp=timestamp, value_bytes=draw(st.integers(0, 300))))
            model.append((offset, offset + count, contents[-1], timestamp + count - 1))
            offset += count
        offset += draw(st.sampled_from([0, 0, 3]))
        if not contents and offset == base:
            offset += 1
        seals.append(seal(1, contents, base=base, end=offset))
    return seals, model


@settings(max_examples=150)
@given(histories(), st.integers(0, 60), st.integers(0, 60), st.integers(0, 3000), st.booleans())
def test_a_read_equals_a_loop_over_the_batches(history, offset, length, max_bytes, at_least_one) -> None:
    seals, model = history
    offset = max(offset, seals[0].base)
    limit = min([base for base, _, _, _ in model if base >= offset + length] + [seals[-1].end])
    expected: list[bytes] = []
    for base, end, content, _ in model:
        if end <= offset:
            continue
        full = sum(map(len, expected)) + len(content) > max_bytes
        if base >= limit or (full and (expected or not at_least_one)):
            break
        expected.append(content)

    async def attempt() -> None:
        with small_blocks():
            store = ScriptedStore()
            rows = await kept(store, seals)
            async with reading(store) as reader:
                result = await reader.read(rows, offset, limit, max_bytes, at_least_one=at_least_one)
                # How many blocks come is planned from the sizes in the index: the first one may hold less to read.
                got = join(result)
                assert b"".join(expected).startswith(got)
                assert bool(got) == bool(expected)
                # Reading on from there gives the rest without a hole or a repetition.
                while at_least_one and result.next_offset < min(limit, seals[-1].end):
                    at = result.next_offset
                    result = await reader.read(rows, at, limit, max_bytes)
                    assert result.next_offset > at
                    got += join(result)
                if at_least_one:
                    assert got == b"".join(c for base, end, c, _ in model if end > offset and base < limit)

    asyncio.run(attempt())


@settings(max_examples=150)
@given(histories(), st.integers(0, 40), st.integers(0, 60), st.integers(0, 60))
def test_searches_by_timestamp_equal_a_loop(history, timestamp, first, limit) -> None:
    seals, model = history
    seen = [row for row in model if row[1] > first and row[0] < limit]
    since = next((row for row in seen if row[3] >= timestamp), None)
    newest = max(seen, key=lambda row: row[3], default=None)

    async def attempt() -> None:
        with small_blocks():
            store = ScriptedStore()
            rows = await kept(store, seals)
            async with reading(store) as reader:
                for found, expected in (
                    (await reader.find_timestamp(rows, timestamp, limit, first), since),
                    (await reader.find_max_timestamp(rows, limit, first), newest),
                ):
                    row = found and (found.base_offset, found.next_offset, bytes(found.batch), found.max_timestamp)
                    assert row == expected
                    assert found is None or found.leader_epoch == 3

    asyncio.run(attempt())


async def test_results_are_views_of_blocks(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 20))])
    async with reading(store) as reader:
        result = await reader.read(rows, 0, EVERYTHING, EVERYTHING)
        again = await reader.read(rows, 7, EVERYTHING, EVERYTHING)
        assert offsets(result) == list(range(20)) and offsets(again) == list(range(7, 20))
        assert len(result.buffers) == 5
        bases = {id(buffer.obj) for buffer in result.buffers}  # type: ignore[union-attr]
        assert {id(buffer.obj) for buffer in again.buffers} <= bases  # type: ignore[union-attr]


# How many requests that takes


async def test_a_small_object_comes_with_one_get() -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 20)), seal(1, batches(20, [1] * 20))])
    async with reading(store) as reader:
        assert offsets(await reader.read(rows, 5, EVERYTHING, EVERYTHING)) == list(range(5, 40))
        assert [length for _, _, length in store.ranges] == [row.size for row in rows]
        await reader.read(rows, 0, EVERYTHING, EVERYTHING)
        assert len(store.ranges) == 2 == reader.gets


async def test_adjacent_blocks_come_in_one_get_and_cached_ones_not_again(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 40))])  # four batches a block, ten blocks
    async with reading(store) as reader:
        await reader.read(rows, 9, 17, EVERYTHING)  # blocks 2, 3, 4
        assert len(store.ranges) == 3  # two of them for the index
        [log] = [reader.indexes.get(rows[0].key).log(1)]  # type: ignore[union-attr]
        assert store.ranges[-1] == (rows[0].key, log.positions[2], log.positions[5] - log.positions[2])
        await reader.read(rows, 0, EVERYTHING, EVERYTHING)
        assert store.ranges[3:] == [
            (rows[0].key, 0, log.positions[2]),
            (rows[0].key, log.positions[5], log.positions[10] - log.positions[5]),
        ]
        assert reader.bytes_fetched == sum(length for _, _, length in store.ranges)


async def test_a_small_range_is_fetched_whole() -> None:
    with small_blocks(small_range_bytes=10_000):
        store = ScriptedStore()
        rows = await kept(store, [seal(1, batches(0, [1] * 40))])
        async with reading(store) as reader:
            assert offsets(await reader.read(rows, 9, 10, 1)) == [9]
            gets = len(store.ranges)
            await reader.read(rows, 0, EVERYTHING, EVERYTHING)
            assert len(store.ranges) == gets


async def test_ranges_of_a_plan_are_fetched_side_by_side() -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(at, [1])) for at in range(40)])
    async with reading(store, parallel=7) as reader:
        assert offsets(await reader.read(rows, 0, EVERYTHING, EVERYTHING)) == list(range(40))
    assert store.running_max == 7


async def test_one_flight_serves_all_readers_and_outlives_a_cancelled_one(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 8))])
    async with reading(store) as reader, asyncio.TaskGroup() as tasks:
        await reader.find_timestamp(rows, 0, 8)  # the index is there
        reader.blocks.discard((rows[0].key, 0))
        store.ranges.clear()
        arrive = asyncio.Event()
        store.script["get_range"] = [arrive]
        readers = [tasks.create_task(reader.read(rows, 0, 4, EVERYTHING)) for _ in range(3)]
        await asyncio.sleep(0.001)
        readers[0].cancel()
        await asyncio.sleep(0.001)
        arrive.set()
        await asyncio.wait(readers)
        assert readers[0].cancelled()
        assert [offsets(task.result()) for task in readers[1:]] == [[0, 1, 2, 3]] * 2
        assert len(store.ranges) == 1


@pytest.mark.parametrize("gets_before", [0, 2])
async def test_waiters_survive_the_end_of_the_owner(gets_before: int, blocks_of_four: None) -> None:
    """It ends while the index is being fetched, or a block."""
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 8))])
    store.script["get_range"] = [None] * gets_before + [asyncio.Event()]

    async def own(readers: asyncio.Queue[Reader]) -> None:
        async with reading(store) as reader:
            await readers.put(reader)
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        readers: asyncio.Queue[Reader] = asyncio.Queue()
        owner = tasks.create_task(own(readers))
        reader = await readers.get()
        waiter = tasks.create_task(outcome(reader, rows))
        while store.calls["get_range"] <= gets_before:
            await asyncio.sleep(0)
        owner.cancel()
        assert isinstance(await waiter, Unavailable)


async def outcome(reader: Reader, rows: list[RangeRow]) -> object:
    try:
        return await reader.read(rows, 0, EVERYTHING, EVERYTHING)
    except Exception as error:
        return error


# Bounds


async def test_memory_stays_below_the_bound(blocks_of_four: None) -> None:
    class Watched(ScriptedStore):
        async def get_range(self, key: str, start: int, length: int) -> bytes:
            taken.append(reader.blocks.bytes + reader.blocks.reserved)
            return await super().get_range(key, start, length)

    taken: list[int] = []
    store = Watched()
    rows = await kept(store, [seal(1, batches(100 * at, [1] * 100)) for at in range(10)])
    bound = 20_000
    async with reading(store, cache_bytes_max=bound, read_ahead_bytes_max=8_000, parallel=4) as reader:
        async with asyncio.TaskGroup() as tasks:
            for start in range(0, 1000, 50):
                tasks.create_task(walk(reader, rows, start, 2_000))
        await asyncio.sleep(0)
    assert max(taken) <= bound and reader.blocks.bytes <= bound
    assert max(taken) > bound / 2


async def walk(reader: Reader, rows: list[RangeRow], start: int, max_bytes: int) -> list[int]:
    seen: list[int] = []
    at = start
    while at < rows[-1].range.end:
        result = await reader.read([row for row in rows if row.range.end > at], at, EVERYTHING, max_bytes)
        seen += offsets(result)
        at = result.next_offset
    assert seen == list(range(start, rows[-1].range.end))
    return seen


async def test_indexes_are_bounded_too() -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(at, [1])) for at in range(40)])
    async with reading(store, index_bytes_max=6_000) as reader:
        for row in rows:
            await reader.read([row], row.range.base, EVERYTHING, 1)
            assert reader.indexes.bytes <= 6_000
        assert 0 < len(reader.indexes) < 10


async def test_read_ahead_grows_while_it_is_used(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(500 * at, [1] * 500)) for at in range(2)])
    async with reading(store, read_ahead_bytes_max=40_000) as reader:
        at, waits, windows = 0, [], []
        while at < 1000:
            before = reader.blocks.misses
            result = await reader.read(rows, at, EVERYTHING, FOUR)
            waits.append(reader.blocks.misses - before)
            at = result.next_offset
            [stream] = reader._streams.values()
            windows.append(stream.window)
            for _ in range(100):
                await asyncio.sleep(0)
        assert windows[:3] == [0, 640, 1280]  # then more when half of what came ahead is used
        assert windows == sorted(windows) and windows[-1] == 10_000  # a quarter of the bound for one stream
        assert sum(waits[2:]) == 0, "what a sequential reader wants is there before it asks"
        assert reader.gets < 25, "250 blocks come many at a time"


async def test_random_reads_fetch_nothing_ahead(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 400))])
    async with reading(store, read_ahead_bytes_max=40_000) as reader:
        for at in (300, 20, 200, 100):
            await reader.read(rows, at, EVERYTHING, 100)
        assert reader.gets == 5 and reader.ahead_bytes == 0


async def test_what_nobody_came_for_is_the_first_to_go(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 4000))])
    async with reading(store, read_ahead_bytes_max=5_000, cache_bytes_max=1_000_000) as reader:
        for start in range(0, 4000, 100):  # forty readers who come twice and never again
            at = start
            for _ in range(3):
                at = (await reader.read(rows, at, EVERYTHING, FOUR)).next_offset
            for _ in range(50):
                await asyncio.sleep(0)
            assert reader.ahead_bytes <= 5_000
        assert reader.ahead_bytes == sum(reader._ahead.values()) > 0
        used = 40 * 3 * FOUR
        assert reader.blocks.bytes - reader.ahead_bytes < 4 * used


async def test_two_readers_at_one_place_keep_their_window(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 100))])
    async with reading(store, read_ahead_bytes_max=40_000) as reader:
        at = 0
        for _ in range(3):
            await reader.read(rows, at, EVERYTHING, FOUR)
            at = (await reader.read(rows, at, EVERYTHING, FOUR)).next_offset
        assert [stream.window for stream in reader._streams.values()] == [1280]


# Damage and absence


async def test_an_absent_object_is_told_by_its_key(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 8)), seal(1, batches(8, [1] * 8))])
    async with reading(store) as reader:
        await store.delete(rows[1].key)
        with pytest.raises(RangeMissing, match=rows[1].key):
            await reader.read(rows, 0, EVERYTHING, EVERYTHING)
        assert offsets(await reader.read(rows, 0, 8, EVERYTHING)) == list(range(8))
        await store.delete(rows[0].key)
        assert offsets(await reader.read(rows, 0, 8, EVERYTHING)) == list(range(8)), "cached blocks need no object"
        reader.blocks.discard((rows[0].key, 0))
        with pytest.raises(RangeMissing, match=rows[0].key):
            await reader.read(rows, 0, 8, EVERYTHING)


async def test_a_damaged_block_is_refused_and_its_neighbours_are_not(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 12))])  # three blocks
    data = bytearray((await store.get(rows[0].key)).data)
    data[500] ^= 1
    store.damage(rows[0].key, bytes(data))
    async with reading(store) as reader:
        for _ in range(2):
            with pytest.raises(CorruptSegment, match="checksum of the block at offset 4"):
                await reader.read(rows, 0, EVERYTHING, EVERYTHING)
        assert offsets(await reader.read(rows, 0, 4, EVERYTHING)) == [0, 1, 2, 3]
        assert offsets(await reader.read(rows, 8, 12, EVERYTHING)) == [8, 9, 10, 11]
        store.damage(rows[0].key, bytes(data[:-1]))
        with pytest.raises(CorruptSegment, match="bytes"):
            await Reader(store, reader._tasks).read(rows, 8, 12, EVERYTHING)


@pytest.mark.parametrize("whole", [True, False])
async def test_damage_in_any_byte_of_small_objects_is_found(whole: bool) -> None:
    with small_blocks():
        store = ScriptedStore()
        rows = await kept(store, [seal(1, batches(0, [1] * 12))])
        [row] = rows
        data = (await store.get(row.key)).data
        for at in range(0, len(data), 3):
            store.damage(row.key, data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(storage.segment, "INDEX_GUESS_BYTES", 65536 if whole else 100)
                async with reading(store) as reader:
                    with pytest.raises(CorruptSegment):
                        await reader.read(rows, 0, EVERYTHING, EVERYTHING)


def test_blocks_that_do_not_hold_whole_batches_are_refused_whatever_their_checksum() -> None:
    from crc32c import crc32c

    good = batch(0) + batch(1)
    assert list(parse_block("k", good, crc32c(good), 0).bases) == [0, 1]
    for bad, base in ((good[:-1], 0), (good[:70], 0), (good, 1), (b"", 0), (good + b"x", 0), (bytes(200), 0)):
        with pytest.raises(CorruptSegment):
            parse_block("k", bad, crc32c(bad), base)
    with pytest.raises(CorruptSegment, match="checksum"):
        parse_block("k", good, crc32c(good) ^ 1, 0)


async def test_metadata_and_index_must_say_the_same() -> None:
    store = ScriptedStore()
    [row] = await kept(store, [seal(1, batches(0, [1] * 8))])
    async with reading(store) as reader:
        for wrong in ({"end": 9}, {"base": 1}, {"position": 1}, {"length": 5}):
            with pytest.raises(CorruptSegment, match="the metadata says"):
                await reader.read([row._replace(range=row.range._replace(**wrong))], 1, EVERYTHING, 1)
        with pytest.raises(CorruptSegment, match="does not name log 2"):
            await reader.read([row._replace(range=row.range._replace(log_id=2))], 1, EVERYTHING, 1)
    async with reading(store, cluster_id="another") as reader:
        with pytest.raises(CorruptSegment, match="belongs to cluster cluster-under-test"):
            await reader.read([row], 1, EVERYTHING, 1)


async def test_what_the_store_refuses_reaches_the_reader_and_is_tried_anew(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 8))])
    async with reading(store) as reader:
        for answers in ([Unavailable("away")], [None, None, Unavailable("away")]):
            store.script["get_range"] = list(answers)
            with pytest.raises(Unavailable, match="away"):
                await reader.read(rows, 0, EVERYTHING, EVERYTHING)
        assert offsets(await reader.read(rows, 0, EVERYTHING, EVERYTHING)) == list(range(8))


async def test_read_ahead_does_not_speak_of_its_failures(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 8)), seal(1, batches(8, [1] * 8))])
    await store.delete(rows[1].key)
    async with reading(store, read_ahead_bytes_max=40_000) as reader:
        await reader.read(rows, 0, EVERYTHING, FOUR)
        await reader.read(rows, 4, EVERYTHING, FOUR)
        await asyncio.sleep(0.001)
        with pytest.raises(RangeMissing):
            await reader.read(rows, 8, EVERYTHING, FOUR)


# Aborted transactions


async def test_aborted_transactions_are_collected_forward_over_ranges() -> None:
    store = ScriptedStore()
    rows = await kept(
        store,
        [
            seal(1, batches(0, [1] * 10), lso=2),  # a transaction is open from 2 on, another from 5
            seal(1, batches(10, [1] * 10), lso=2),
            seal(1, batches(20, [1] * 10), lso=5, aborted=[AbortedEntry(7, 2, 25, 5)]),
            seal(1, batches(30, [1] * 10), lso=40, aborted=[AbortedEntry(8, 5, 33, 34), AbortedEntry(7, 34, 35, 36)]),
        ],
    )
    async with reading(store) as reader:

        async def aborted(offset: int, limit: int, given: list[RangeRow] = rows) -> tuple[list[int], bool]:
            result = await reader.read(given, offset, limit, EVERYTHING, read_committed=True)
            return [entry.producer_id for entry in result.aborted], result.aborted_complete

        assert await aborted(0, 2) == ([], True)
        assert await aborted(0, 4) == ([7], True)
        assert await aborted(0, 10) == ([7, 8], True)
        assert await aborted(26, 33) == ([8], True)
        assert await aborted(34, 40) == ([7], True)
        assert await aborted(36, 40) == ([], True)
        # The marker lies in the tail, or in ranges that these facts do not know.
        assert await aborted(0, 4, rows[:2]) == ([], False)
        assert await aborted(0, 10, rows[:3]) == ([7], False)
        result = await reader.read(rows, 0, 10, EVERYTHING)
        assert result.aborted == [] and result.aborted_complete
        nothing = await reader.read(rows, 40, 50, EVERYTHING, read_committed=True)
        assert (nothing.buffers, nothing.next_offset, nothing.aborted_complete) == ([], 40, True)


async def test_aborted_transactions_are_those_of_what_was_read(blocks_of_four: None) -> None:
    store = ScriptedStore()
    rows = await kept(store, [seal(1, batches(0, [1] * 40), aborted=[AbortedEntry(7, 20, 30, 31)])])
    async with reading(store) as reader:
        result = await reader.read(rows, 0, 40, FOUR, read_committed=True)
        assert (offsets(result), result.aborted, result.aborted_complete) == ([0, 1, 2, 3], [], True)


async def test_producers_of_the_newest_range() -> None:
    store = ScriptedStore()
    [row] = await kept(store, [seal(1, batches(0, [1] * 8), producers=b"state")])
    async with reading(store) as reader:
        assert await reader.producers(row) == (b"state", 8)
