from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from storage.range_plan import SMALL_RANGE_BYTES, choose_blocks, collect_aborted, complete, extents, plan
from storage.seal import AbortedEntry, Range, RangeRow
from storage.segment import LogIndex


def rows(*ranges: tuple[int, int, int]) -> list[RangeRow]:
    """Rows of (base, end, length)."""
    return [
        RangeRow(f"s/{at}", length, Range(1, 0, a, b, 0, length, 0, b, 1)) for at, (a, b, length) in enumerate(ranges)
    ]


def log(*blocks: tuple[int, int], position: int = 50, end: int = 1000) -> LogIndex:
    """An index entry of blocks (base, length)."""
    positions = array("q", [position])
    for _, length in blocks:
        positions.append(positions[-1] + length)
    bases = array("q", [base for base, _ in blocks])
    range_ = Range(1, 0, bases[0] if blocks else 0, end, position, positions[-1] - position, 0, end, len(blocks))
    return LogIndex(range_, bases, positions, array("q", [0] * len(bases)), array("I", [0] * len(bases)), None, ())


def keys(chosen: list[RangeRow]) -> list[str]:
    return [row.key for row in chosen]


THREE = rows((10, 20, 100), (20, 30, 100), (30, 40, 100))


def test_a_plan_begins_at_the_row_that_holds_the_offset() -> None:
    assert keys(plan(THREE, 10, 40, 1)) == ["s/0"]
    assert keys(plan(THREE, 19, 40, 1)) == ["s/0"]
    assert keys(plan(THREE, 20, 40, 1)) == ["s/1"]
    assert keys(plan(THREE, 0, 40, 1)) == ["s/0"]
    assert plan(THREE, 40, 100, 1) == []
    assert plan([], 0, 100, 1) == []


def test_a_plan_takes_rows_until_there_are_bytes_enough() -> None:
    assert keys(plan(THREE, 10, 40, 100)) == ["s/0"]
    assert keys(plan(THREE, 10, 40, 101)) == ["s/0", "s/1"]
    assert keys(plan(THREE, 10, 40, 10_000)) == ["s/0", "s/1", "s/2"]
    # Of the first row only a fifth is expected.
    assert keys(plan(THREE, 18, 40, 100)) == ["s/0", "s/1"]
    assert keys(plan(THREE, 18, 40, 20)) == ["s/0"]


def test_a_plan_ends_below_the_limit() -> None:
    assert keys(plan(THREE, 10, 20, 10_000)) == ["s/0"]
    assert keys(plan(THREE, 10, 21, 10_000)) == ["s/0", "s/1"]
    assert plan(THREE, 10, 10, 10_000) == []


def test_blocks_from_the_one_holding_the_offset_until_there_are_bytes_enough() -> None:
    index = log((10, 100), (20, 100), (40, 300), (50, 100))
    assert choose_blocks(index, 10, 1000, 1) == range(1)
    assert choose_blocks(index, 19, 1000, 100) == range(1)
    assert choose_blocks(index, 19, 1000, 101) == range(2)
    assert choose_blocks(index, 20, 1000, 400) == range(1, 3)
    assert choose_blocks(index, 45, 1000, 0) == range(2, 3)
    assert choose_blocks(index, 45, 1000, 10_000) == range(2, 4)
    assert choose_blocks(index, 5, 1000, 1) == range(1)


def test_blocks_end_below_the_limit() -> None:
    index = log((10, 100), (20, 100), (40, 300))
    assert choose_blocks(index, 10, 20, 10_000) == range(1)
    assert choose_blocks(index, 10, 21, 10_000) == range(2)
    assert choose_blocks(index, 10, 10, 10_000) == range(0)
    assert choose_blocks(log(), 10, 20, 10_000) == range(0)


def test_a_small_range_is_fetched_whole() -> None:
    assert complete(log((10, 100), (20, 100), (40, 300)), range(1, 2)) == range(3)
    assert complete(log((10, SMALL_RANGE_BYTES), (20, 1)), range(1, 2)) == range(1, 2)
    assert complete(log((10, 100)), range(0)) == range(0)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20).flatmap(
        lambda lengths: st.tuples(st.just(lengths), st.sets(st.integers(0, len(lengths) - 1)))
    ),
    st.integers(1, 120),
)
def test_extents_cover_what_is_missing_in_few_adjacent_runs(blocks: tuple[list[int], set[int]], max_bytes: int) -> None:
    lengths, missing = blocks
    index = log(*[(at, length) for at, length in enumerate(lengths)])
    runs = extents(index, sorted(missing), max_bytes)
    assert [number for run in runs for number in run] == sorted(missing)
    for run in runs:
        assert len(run) == 1 or sum(lengths[run.start : run.stop]) <= max_bytes
    for one, two in pairwise(runs):
        assert one.stop != two.start or sum(lengths[one.start : two.start + 1]) > max_bytes


ENTRIES = [
    AbortedEntry(1, 0, 10, 3),
    AbortedEntry(2, 3, 12, 13),
    AbortedEntry(1, 20, 25, 26),
]


def test_aborted_entries_are_collected_until_all_below_was_decided() -> None:
    for offset, upper, expected, complete_ in (
        (0, 2, [0], True),  # the first entry says that everything below 3 was decided
        (0, 10, [0, 1], True),
        (11, 13, [1], True),
        (13, 20, [], True),
        (13, 21, [2], True),
        (13, 26, [2], True),
        (0, 30, [0, 1, 2], False),
        (26, 30, [], False),
    ):
        found: list[AbortedEntry] = []
        assert collect_aborted(ENTRIES, offset, upper, found) is complete_
        assert found == [ENTRIES[at] for at in expected], (offset, upper)


@given(st.data())
def test_collecting_finds_every_aborted_transaction_with_data_in_reach(data: st.DataObject) -> None:
    """A random history of transactions, cut into segments anywhere: nothing aborted is missed."""
    open_: dict[int, int] = {}
    entries: list[AbortedEntry] = []
    for offset in range(data.draw(st.integers(1, 30))):
        pid = data.draw(st.integers(0, 3))
        if pid in open_ and data.draw(st.booleans()):
            first = open_.pop(pid)
            if data.draw(st.booleans()):
                entries.append(AbortedEntry(pid, first, offset, min(open_.values(), default=offset + 1)))
        else:
            open_.setdefault(pid, offset)
    upper = data.draw(st.integers(0, min(open_.values(), default=30)))
    start = data.draw(st.integers(0, upper))
    found: list[AbortedEntry] = []
    collect_aborted(entries, start, upper, found)
    must = [entry for entry in entries if entry.first_offset < upper and entry.last_offset >= start]
    assert found == must
