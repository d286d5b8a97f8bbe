import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.tail import BATCH_OVERHEAD_BYTES, Tail, TailMemory

sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(61, 90), st.integers(0, 20)), max_size=30)


def filled(batches: list[tuple[int, int, int]], start: int = 100) -> tuple[Tail, list[tuple[int, int, bytes, int]]]:
    """A tail of batches (records, bytes, timestamp) and the same as a list of (base, end, batch, timestamp)."""
    tail = Tail(start)
    model = []
    for number, (count, size, timestamp) in enumerate(batches):
        content = bytes([number]) * size
        model.append((tail.end, tail.end + count, content, timestamp))
        tail.append(tail.end, tail.end + count, content, number + 1, timestamp)
    return tail, model


@given(sizes, st.integers(0, 160), st.integers(0, 160), st.integers(0, 300), st.booleans())
def test_read_equals_a_loop_over_the_batches(batches, offset, limit, max_bytes, at_least_one) -> None:
    tail, model = filled(batches)
    offset, limit = 100 + offset, 100 + limit
    expected: list[bytes] = []
    for base, end, content, _ in model:
        if end <= offset:
            continue
        full = sum(map(len, expected)) + len(content) > max_bytes
        if base >= limit or (full and (expected or not at_least_one)):
            break
        expected.append(content)
    assert tail.read(offset, limit, max_bytes, at_least_one=at_least_one) == (expected, sum(map(len, expected)))


def test_a_trimmed_offset_is_the_callers_mistake() -> None:
    tail, _ = filled([(1, 70, 0)] * 3)
    with pytest.raises(AssertionError, match="offset 99 was trimmed"):
        tail.read(99, 200, 1000)
    with pytest.raises(AssertionError):
        tail.append(102, 103, b"overlaps", 4, 0)


@given(sizes, st.data())
def test_slices_and_sequences_for_sealing(batches, data) -> None:
    tail, model = filled(batches)
    bounds = [base for base, _, _, _ in model] + [tail.end]
    first, last = sorted(data.draw(st.tuples(st.sampled_from(bounds), st.sampled_from(bounds))))
    part = [content for base, _, content, _ in model if first <= base < last]
    assert tail.slice(first, last) == part
    assert tail.payload_between(first, last) == sum(map(len, part))
    newest = max((at for base, _, _, at in model if first <= base < last), default=-1)
    assert tail.max_timestamp_between(first, last) == newest
    expected = next((number + 1 for number, row in enumerate(model) if row[0] >= first), None)
    assert tail.first_sequence_from(first) == expected


@given(sizes, st.lists(st.tuples(st.integers(95, 200), st.integers(1, 7)), max_size=8))
def test_trimming_in_slices_keeps_numbers_and_counts(batches, trims) -> None:
    tail, model = filled(batches)
    numbers = {base: tail.number_of(base) for base, _, _, _ in model}
    for offset, max_batches in trims:
        gone = [row for row in model if row[1] <= offset][:max_batches]
        freed = tail.trim(offset, max_batches)
        assert freed == sum(len(content) + BATCH_OVERHEAD_BYTES for _, _, content, _ in gone)
        model = model[len(gone) :]
        assert len(tail) == len(model)
        assert tail.start == (model[0][0] if model else tail.end)
        assert tail.bytes == tail._memory.bytes == sum(len(row[2]) + BATCH_OVERHEAD_BYTES for row in model)
        assert tail.payload_bytes == sum(len(row[2]) for row in model)
        for base, _, content, _ in model:
            assert tail.number_of(base) == numbers[base]
            assert tail.read(base, base + 1, 1)[0] == [content]


@given(sizes, st.integers(-1, 21), st.integers(95, 200), st.integers(95, 200), st.integers(0, 5))
def test_search_by_timestamp_equals_a_loop(batches, timestamp, first, limit, trimmed) -> None:
    tail, model = filled(batches)
    tail.trim(tail.end, trimmed)
    seen = [row for row in model[trimmed:] if row[1] > first and row[0] < limit]
    found = next(((base, content) for base, _, content, at in seen if at >= timestamp), None)
    assert tail.first_batch_with_timestamp(timestamp, limit, first) == found
    newest = max((row[3] for row in seen), default=None)
    expected = next(((row[3], row[2]) for row in seen if row[3] == newest), None)
    assert tail.max_timestamp(limit, first) == expected


def test_the_search_steps_over_long_tails() -> None:
    tail = Tail(0)
    for offset in range(5000):
        tail.append(offset, offset + 1, b"x", offset, 1 if offset != 4321 else 9)
    assert tail.first_batch_with_timestamp(9, 5000) == (4321, b"x")
    assert tail.first_batch_with_timestamp(9, 4321) is None
    assert tail.first_batch_with_timestamp(10, 5000) is None


def test_offsets_may_jump_where_a_loss_was_declared() -> None:
    tail = Tail(10)
    tail.append(10, 12, b"a" * 70, 1, 0)
    tail.append(1000, 1001, b"b" * 70, 2, 0)
    assert tail.read(1000, 2000, 1000) == ([b"b" * 70], 70)
    assert tail.read(12, 2000, 1000)[0][-1] == b"b" * 70


def test_times_before_1970_are_no_times() -> None:
    """Neither are they to the blocks of a segment, and both must say the same."""
    tail = Tail(0)
    tail.append(0, 1, b"a" * 70, 1, -5)
    tail.append(1, 2, b"b" * 70, 2, 7)
    assert [tail.max_timestamp_between(*ends) for ends in ((0, 1), (0, 2), (2, 2))] == [-1, 7, -1]


def test_memory_counts_a_frame_once_from_its_first_view_to_its_last() -> None:
    memory = TailMemory()
    one, other = Tail(0, memory), Tail(0, memory)
    frame = bytearray(1_000_000)
    view = memoryview(frame)
    one.append(0, 1, view[:100], 1, 0)
    other.append(0, 1, view[100:200], 2, 0)
    other.append(1, 2, b"small", 3, 0)
    assert memory.bytes == 1_000_000 + 5 + 3 * BATCH_OVERHEAD_BYTES
    assert one.bytes == 100 + BATCH_OVERHEAD_BYTES
    one.trim(1, 10)
    assert memory.bytes == 1_000_000 + 5 + 2 * BATCH_OVERHEAD_BYTES
    other.trim(1, 10)
    assert memory.bytes == 5 + BATCH_OVERHEAD_BYTES
    other.trim(2, 10)
    assert memory.bytes == 0 and not memory._views


def test_the_count_is_not_below_what_a_tail_of_small_batches_takes() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tail = Tail(1 << 40)
        for number in range(20_000):
            base = (1 << 40) + number
            tail.append(base, base + 1, bytes(170), (1 << 33) + number, 1_700_000_000_000 + number)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= tail.bytes, f"{taken / 20_000:.0f} bytes a batch"
