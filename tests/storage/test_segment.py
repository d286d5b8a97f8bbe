"""Segments: round trips, every damage is found, and the bytes of the first release are read for ever.

Golden files are `tests/golden/segment/*.seg` with the report of each beside it. Never write one anew: a changed format
gets new files under new names, and the old ones must still be read.
"""

import asyncio
import json
import struct
from pathlib import Path

import msgpack
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.records import parse_header
from storage.memory import MemoryStore
from storage.producers import ProducerStates
from storage.seal import AbortedEntry, CorruptSegment, RangeMissing, SealedLog
from storage.segment import (
    FOOTER_SIZE,
    Segment,
    SegmentIndex,
    SegmentReport,
    decode_footer,
    decode_index,
    describe_segment,
    encode_segment,
    encode_segment_in_steps,
    encode_tail,
    read_index,
    read_producers,
)
from tests.storage.sealed import ScriptedStore, batch, batches, seal, writer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "segment"


def snapshot(end: int, *, transactional: bool = False, producers: int = 2) -> bytes:
    states = ProducerStates()
    for pid in range(producers):
        for number in range(7):
            content = batch(
                end - 7 * (producers - pid) + number,
                producer_id=4000 + pid,
                producer_epoch=1,
                base_sequence=number,
                transactional=transactional,
            )
            states.replay(parse_header(content), 1_700_000_000_000 + number)
    return states.snapshot(end)


def one_log() -> list[SealedLog]:
    return [seal(7, batches(1000, [1, 3, 2]))]


def everything() -> list[SealedLog]:
    """Several logs, big and small batches, several blocks, producers, open and aborted transactions, an empty range."""
    return [
        seal(9, batches(0, [2] * 30)),
        seal(
            2,
            batches(2**40, [1, 5, 2], timestamp=1_700_000_000_000),
            lso=2**40 + 1,
            producers=snapshot(2**40 + 8, transactional=True),
            aborted=[
                AbortedEntry(4000, 2**40 - 5, 2**40 + 5, 2**40 + 1),
                AbortedEntry(17, 2**40, 2**40 + 6, 2**40 + 1),
            ],
        ),
        seal(5, [batch(10, value_bytes=600_000, timestamp=5), *batches(11, [400] * 30, value_bytes=20)]),
        seal(2**32 - 1, [], base=50, end=60),
    ]


def stored(segment: Segment) -> bytes:
    return b"".join(segment.parts)


async def keep(segment: Segment) -> ScriptedStore:
    store = ScriptedStore()
    await store.put_if_absent(segment.key, segment.parts)
    return store


async def test_what_was_sealed_is_read_back() -> None:
    logs = everything()
    segment = encode_segment(writer(3, 1), logs)
    assert segment.key == "segments/1/000000000000abcd/3-1"
    assert segment.size == len(stored(segment))
    store = await keep(segment)
    index = await read_index(store, segment.key, segment.size)
    assert index.log_ids == [2, 5, 9, 2**32 - 1]
    assert index.cluster_id == "cluster-under-test"
    assert index.writer == writer(3, 1)
    data = stored(segment)
    for sealed in logs:
        log = index.log(sealed.log_id)
        range_ = log.range
        assert range_ in segment.ranges
        assert data[range_.position : range_.position + range_.length] == b"".join(sealed.batches)
        assert range_ == (
            sealed.log_id, 3, sealed.base, sealed.end, range_.position, sealed.size, sealed.max_timestamp,
            sealed.last_stable_offset, len(sealed.batches),
        )  # fmt: skip
        assert log.aborted == tuple(sealed.aborted)
        assert await read_producers(store, segment.key, segment.size, sealed.log_id) == (sealed.producers, sealed.end)
    with pytest.raises(CorruptSegment, match="does not name log 4"):
        index.log(4)


def test_blocks_are_about_half_a_megabyte_and_hold_whole_batches() -> None:
    contents = [batch(0, value_bytes=600_000), *batches(1, [100] * 900, value_bytes=10), batch(90_001, value_bytes=9)]
    segment = encode_segment(writer(), [seal(1, contents)])
    log = index_of(segment).log(1)
    lengths = [stop - start for start, stop in zip(log.positions, log.positions[1:], strict=False)]
    assert lengths[0] > 600_000 and all(450_000 < length <= 512 * 1024 for length in lengths[1:-1])
    data = stored(segment)
    for number, base in enumerate(log.bases):
        at = log.positions[number]
        assert int.from_bytes(data[at : at + 8], "big") == base


def index_of(segment: Segment) -> SegmentIndex:
    data = stored(segment)
    footer = decode_footer(segment.key, segment.size, data[-FOOTER_SIZE:])
    packed = data[footer.index_position : footer.index_position + footer.index_length]
    return decode_index(segment.key, segment.size, footer, packed)


async def test_encoding_in_steps_gives_the_same_bytes() -> None:
    segment = await encode_segment_in_steps(writer(), everything())
    assert stored(segment) == stored(encode_segment(writer(), everything()))


def test_big_batches_are_not_copied_and_small_ones_come_in_few_parts() -> None:
    big = [memoryview(bytearray(batch(at, value_bytes=100_000))) for at in range(8)]
    small = batches(0, [1] * 3000)
    segment = encode_segment(writer(), [seal(1, big), seal(2, small)])  # type: ignore[arg-type]
    assert [part for part in segment.parts if isinstance(part, memoryview)] == big
    assert all(any(part is one for part in segment.parts) for one in big)
    assert len(segment.parts) < 12


def test_a_seal_that_contradicts_itself_is_our_mistake() -> None:
    for wrong in (
        [seal(1, batches(0, [1, 1])), seal(1, batches(0, [1]))],
        [seal(1, batches(0, [1, 1])[::-1], base=0, end=2)],
        [seal(1, batches(5, [1]), base=6, end=7)],
        [seal(1, batches(5, [3]), end=5)],
    ):
        with pytest.raises(AssertionError):
            encode_segment(writer(), wrong)
    wrong_time = seal(1, batches(0, [1]))
    wrong_time.max_timestamp += 1
    with pytest.raises(AssertionError, match="max timestamp"):
        encode_segment(writer(), [wrong_time])


async def test_the_index_comes_with_one_get_if_it_is_small_and_two_if_not() -> None:
    segment = encode_segment(writer(), everything())
    store = await keep(segment)
    await read_index(store, segment.key, segment.size)
    assert store.ranges == [(segment.key, segment.size - 65536, 65536)]
    many = encode_segment(writer(), [seal(log_id, batches(0, [1])) for log_id in range(2000)])
    store = await keep(many)
    index = await read_index(store, many.key, many.size)
    assert len(index.log_ids) == 2000 and len(store.ranges) == 2
    assert sum(length for _, _, length in store.ranges) == len(many.tail)


async def test_producer_states_are_read_alone_where_the_guess_does_not_reach_them() -> None:
    states = snapshot(100_000, producers=1500)
    logs = [seal(1, batches(99_999, [1]), producers=states), seal(2, batches(0, [1]), producers=snapshot(1))]
    segment = encode_segment(writer(), logs)
    store = await keep(segment)
    assert await read_producers(store, segment.key, segment.size, 1) == (states, 100_000)
    assert [length for _, _, length in store.ranges] == [65536, len(states)]


async def test_an_index_may_point_to_an_older_snapshot() -> None:
    older = encode_segment(writer(1), [seal(1, batches(0, [1]), producers=snapshot(1))])
    store = await keep(older)
    position, length, crc = index_of(older).log(1).producers[1:4]  # type: ignore[index]
    newer = pointing(writer(2).key, 1, [older.key, position, length, crc, 1])
    await store.put_if_absent(writer(2).key, newer)
    assert await read_producers(store, writer(2).key, len(newer), 1) == (snapshot(1), 1)
    await store.delete(older.key)
    with pytest.raises(RangeMissing, match=older.key):
        await read_producers(store, writer(2).key, len(newer), 1)
    older_bytes = bytearray(stored(older))
    older_bytes[position] ^= 1
    store.damage(older.key, bytes(older_bytes))
    with pytest.raises(CorruptSegment, match="producer states of log 1"):
        await read_producers(store, writer(2).key, len(newer), 1)
    store.damage(older.key, bytes(10))
    with pytest.raises(CorruptSegment, match="10 bytes"):
        await read_producers(store, writer(2).key, len(newer), 1)


def pointing(key: str, log_id: int, producers: list[object]) -> bytes:
    """An empty range [1, 1) whose producers lie elsewhere, as a later writer may make them."""
    entry = msgpack.packb([log_id, 3, 1, 1, 0, 0, -1, 1, 0, [], producers, []])
    return encode_tail([key, "cluster-under-test", [0, 1, 0xABCD, 2, 0], [log_id, entry]], 0)


async def test_every_damaged_byte_of_index_and_footer_is_found() -> None:
    segment = encode_segment(writer(), [*one_log(), seal(8, batches(0, [1]), producers=snapshot(1))])
    data = stored(segment)
    for at in range(len(data) - len(segment.tail), len(data)):
        for flip in (0x01, 0x80, 0xFF):
            store = MemoryStore()
            store._store(segment.key, data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            with pytest.raises(CorruptSegment):
                await read_index(store, segment.key, segment.size)


async def test_every_cut_is_found() -> None:
    segment = encode_segment(writer(), one_log())
    data = stored(segment)
    for size in range(len(data)):
        store = MemoryStore()
        store._store(segment.key, data[:size])
        with pytest.raises(CorruptSegment):  # as the metadata knows it
            await read_index(store, segment.key, segment.size)
        with pytest.raises(CorruptSegment):  # as somebody sees it who knows no better
            await read_index(store, segment.key, size)
    store = MemoryStore()
    store._store(segment.key, data + b"x")
    with pytest.raises(CorruptSegment):
        await read_index(store, segment.key, segment.size + 1)


async def test_an_absent_object_is_not_a_damaged_one() -> None:
    with pytest.raises(RangeMissing):
        await read_index(MemoryStore(), "segments/1/0/1-0", 4711)
    with pytest.raises(RangeMissing):
        await describe_segment(MemoryStore(), "segments/1/0/1-0")


async def test_the_right_bytes_under_another_key_are_refused() -> None:
    segment = encode_segment(writer(), one_log())
    store = MemoryStore()
    await store.put("segments/1/0/9-9", segment.parts)
    with pytest.raises(CorruptSegment, match="these are the bytes of object segments/1/000000000000abcd/1-0"):
        await read_index(store, "segments/1/0/9-9", segment.size)


async def test_other_versions_and_flags_are_refused_by_name() -> None:
    segment = encode_segment(writer(), one_log())
    data = bytearray(stored(segment))
    for offset, code, value in ((24, ">H", 2), (20, ">I", 1), (26, ">H", 1)):
        changed = bytearray(data)
        start = len(data) - FOOTER_SIZE
        struct.pack_into(code, changed, start + offset, value)
        struct.pack_into(">I", changed, start + 28, crc32c(bytes(changed[start : start + 28])))
        store = MemoryStore()
        store._store(segment.key, changed)
        with pytest.raises(CorruptSegment, match="this version reads 1: upgrade"):
            await read_index(store, segment.key, segment.size)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_an_index_of_garbage_with_a_right_checksum_is_refused(garbage: bytes) -> None:
    async def attempt() -> None:
        key = writer().key
        short = msgpack.packb([5, 1, 2, 3, 0, 9, 4, 5, 1, [0, 9, 1, 2], [], []])
        for tail in (
            encode_tail(garbage, 0),  # type: ignore[arg-type]
            encode_tail([key, "c", [0, 1, 2, 3, 4], [5, garbage]], 0),
            encode_tail([key, "c", [0, 1, 2, 3, 4], [5, short]], 0),
        ):
            store = MemoryStore()
            store._store(key, tail)
            with pytest.raises(CorruptSegment):
                (await read_index(store, key, len(tail))).log(5)

    asyncio.run(attempt())


async def test_a_sound_segment_is_described_without_problems() -> None:
    segment = encode_segment(writer(), everything())
    report = await describe_segment(await keep(segment), segment.key)
    assert report.problems == ()
    assert report.writer == writer() and report.size == segment.size and report.index_bytes == len(segment.tail)
    two, five, nine, empty = report.logs
    assert (two.records, two.producers, len(two.open_transactions), len(two.aborted)) == (8, 2, 2, 2)
    assert (five.blocks, five.records) == (2, 12_001)
    assert (nine.blocks, nine.records, nine.range.batch_count) == (1, 60, 30)
    assert (empty.blocks, empty.records, empty.range.end) == (0, 0, 60)


async def test_damaged_batches_and_states_are_described_one_by_one() -> None:
    segment = encode_segment(writer(), everything())
    data = stored(segment)
    end = segment.size - len(segment.tail)
    for at in [*range(400), *range(1000, end, 13_001), *range(end - 200, end)]:
        store = MemoryStore()
        store._store(segment.key, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        report = await describe_segment(store, segment.key)
        assert len(report.logs) == 4
        owner = next((r.log_id for r in segment.ranges if r.position <= at < r.position + r.length), 2)
        assert report.problems and all(f"log {owner}" in problem for problem in report.problems), (at, report.problems)
    cut = MemoryStore()
    cut._store(segment.key, data[:-1])
    assert (await describe_segment(cut, segment.key)).problems


async def test_an_index_that_lies_about_its_batches_is_described() -> None:
    contents = batches(0, [1, 2, 3])
    sealed = seal(1, contents)
    honest = encode_segment(writer(), [sealed])
    for change in ({"batch_count": 7}, {"max_timestamp": 1}, {"end": 5}):
        range_ = honest.ranges[0]._replace(**change)
        blocks = [0, range_.length, 1202, index_of(honest).log(1).crcs[0]]
        entry = msgpack.packb([*range_, blocks, [], []])
        tail = encode_tail([honest.key, "c", [0, 1, 2, 3, 4], [1, entry]], range_.length)
        store = MemoryStore()
        store._store(honest.key, [*contents, tail])
        assert (await describe_segment(store, honest.key)).problems, change


# Golden files


GOLDEN_SEGMENTS = {"one-log": one_log, "everything": everything}


def as_json(report: SegmentReport) -> str:
    def plain(value: object) -> object:
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return {name: plain(item) for name, item in value._asdict().items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return json.dumps(plain(report), indent=1) + "\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.seg")))
async def test_segments_of_earlier_releases_are_read(name: str) -> None:
    data = (GOLDEN / f"{name}.seg").read_bytes()
    expected = (GOLDEN / f"{name}.json").read_text()
    store = MemoryStore()
    key = json.loads(expected)["key"]
    store._store(key, data)
    report = await describe_segment(store, key)
    assert as_json(report) == expected and report.problems == ()


@pytest.mark.parametrize("name", sorted(GOLDEN_SEGMENTS))
def test_the_format_of_this_release_is_that_of_its_golden_files(name: str) -> None:
    segment = encode_segment(writer(), GOLDEN_SEGMENTS[name]())
    assert stored(segment) == (GOLDEN / f"{name}.seg").read_bytes()
