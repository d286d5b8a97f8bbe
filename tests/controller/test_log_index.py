"""Packed ranges and epochs of one log, against a plain list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.facts import NO_UUID
from controller.log_index import (
    BATCHES_MAX,
    LEVEL_MAX,
    ROW_BYTES,
    LogIndex,
    LogState,
    PackedRange,
    pack_merged_row,
    pack_row,
    unpack_row,
)
from storage.seal import Range

ranges = st.builds(
    lambda epoch, base, count, position, length, timestamp, lag, batches: Range(
        7, epoch, base, base + count, position, length, timestamp, max(0, base + count - lag), batches
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**62),
    st.integers(1, 2**40),
    st.integers(0, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.integers(-1, 2**62),
    st.integers(0, 2**32 - 2),
    st.integers(0, BATCHES_MAX),
)


@given(st.integers(0, 2**32 - 1), ranges)
def test_a_row_is_exact(number: int, item: Range) -> None:
    row = pack_row(number, item)
    assert len(row) == ROW_BYTES == 48
    assert unpack_row(7, row, 0) == PackedRange(number, item)


@given(ranges, st.integers(0, 2**32 - 1), st.integers(1, LEVEL_MAX), st.integers(0, 2**20), st.integers(0, 2**62))
def test_a_merged_row_is_exact(item: Range, job: int, level: int, tail: int, committed_ms: int) -> None:
    item = item._replace(position=0)
    row = pack_merged_row(job, item, item.length + tail, level, committed_ms)
    stamp = committed_ms if item.max_timestamp < 0 else -1
    assert len(row) == ROW_BYTES
    assert unpack_row(7, row, 0) == PackedRange(job, item, level, item.length + tail, stamp)


def test_a_part_is_found_while_it_is_the_same() -> None:
    log = LogState(7, "t", 0)
    for number in range(6):
        if number == 4:
            log.end += 5  # a declared loss
        log.append_row(number, Range(7, 0, log.end, log.end + 10, 0, 100, -1, log.end + 10, 1))
    part = log.part(1, 3)
    assert (part.log_id, part.base, part.end, part.ranges) == (7, 10, 40, 3)
    assert log.find_part(part) == 1
    assert log.find_part(log.part(3, 2)) is None, "a gap lies between"
    for wrong in (part._replace(base=11), part._replace(end=41), part._replace(ranges=9), part._replace(ranges=0)):
        assert log.find_part(wrong) is None
    log.drop_rows(1)
    assert log.find_part(part) == 0
    merged = Range(7, 0, 10, 40, 0, 300, -1, 40, 3)
    removed = log.replace_rows(0, 3, pack_merged_row(9, merged, 350, 1, 5))
    assert [row.object for row in removed] == [1, 2, 3]
    assert log.find_part(part) is None, "the same offsets, but not the same ranges"
    assert [log.row_level(index) for index in range(log.range_count)] == [1, 0, 0]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=12), st.data())
def test_ranges_are_found_by_offset(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    log = LogState(7, "t", 0)
    model: list[Range] = []
    for count, gap in steps:
        log.end += gap  # a declared loss
        item = Range(7, 0, log.end, log.end + count, 0, count, -1, log.end + count, 1)
        log.append_row(len(model), item)
        model.append(item)
    for offset in range(log.end + 2):
        expected = next((index for index, item in enumerate(model) if item.end > offset), len(model))
        assert log.first_row_beyond(offset) == expected
    assert log.size == sum(item.length for item in model)
    drop = data.draw(st.integers(0, len(model)))
    assert [row.object for row in log.drop_rows(drop)] == list(range(drop))
    assert [log.row(index).range for index in range(log.range_count)] == model[drop:]
    assert log.size == sum(item.length for item in model[drop:])


def test_rows_outside_do_not_exist() -> None:
    log = LogState(7, "t", 0)
    log.append_row(0, Range(7, 0, 0, 5, 0, 1, -1, 5, 1))
    assert log.row(-1) == log.row(0)
    for index in (1, -2):
        with pytest.raises(IndexError):
            log.row(index)


def test_a_range_begins_at_the_end() -> None:
    log = LogState(7, "t", 0)
    for base, end in ((1, 2), (0, 0)):
        with pytest.raises(AssertionError):
            log.append_row(0, Range(7, 0, base, end, 0, 1, -1, end, 1))


def test_epochs() -> None:
    log = LogState(7, "t", 0)
    log.begin_epoch(0)
    log.begin_epoch(1)
    assert log.epochs == [(1, 0)], "no batch, no epoch"
    log.end = 10
    log.begin_epoch(4)
    log.end = 20
    log.begin_epoch(5)
    assert log.epochs == [(1, 0), (4, 10), (5, 20)]
    with pytest.raises(AssertionError):
        log.begin_epoch(5)
    log.advance_start(5)
    assert log.epochs == [(1, 5), (4, 10), (5, 20)]
    log.advance_start(10)
    assert log.epochs == [(4, 10), (5, 20)]
    log.advance_start(20)
    assert log.epochs == [(5, 20)]
    with pytest.raises(AssertionError):
        log.advance_start(21)


def test_logs_are_bound_to_instances() -> None:
    index = LogIndex()
    for log_id in (3, 5):
        index.create(log_id, "t", 0)
    with pytest.raises(AssertionError):
        index.create(4, "t", 1)
    wal = b"w" * 16
    index.name_leader(3, 1, 100, 0, wal)
    assert (index.through(wal), index.through(NO_UUID)) == ([3], [5])
    index.recover(wal)
    assert index.logs[3].status == "recovering"
    index.release(wal)
    assert (index.through(wal), index.through(NO_UUID)) == ([], [3, 5])
    assert index.remove(3) == ([], []) and index.remove(5) == ([], [])
    assert index.led_through == {} and index.next_log_id == 6
