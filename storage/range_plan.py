"""Which ranges, blocks and ranged GETs a read needs. Pure.

A plan is made from rows of facts and from indexes, never from a log object, so that any broker can make one.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from storage.seal import AbortedEntry, RangeRow
from storage.segment import LogIndex

SMALL_RANGE_BYTES = 1024 * 1024
"""A range up to this size comes in one GET whatever part of it is asked for: a request costs more than the rest."""


def plan(rows: Sequence[RangeRow], offset: int, limit: int, max_bytes: int) -> list[RangeRow]:
    """The rows that hold about `max_bytes` of batches from `offset` on, below `limit`; at least one if any is there.

    `rows` are in offset order without overlap. A row that `offset` lies within counts with its rest, by offsets.
    """
    chosen: list[RangeRow] = []
    expected = 0
    for row in rows[bisect_right(rows, offset, key=_row_end) :]:
        base, end, length = row.range.base, row.range.end, row.range.length
        if base >= limit or (chosen and expected >= max_bytes):
            break
        chosen.append(row)
        expected += length if offset <= base else length * (end - offset) // (end - base)
    return chosen


def choose_blocks(log: LogIndex, offset: int, limit: int, max_bytes: int) -> range:
    """Numbers of the blocks from the one that may hold `offset` on, below `limit`, up to about `max_bytes`, at least
    one; empty if the range has no batches or begins at or above `limit`."""
    first = max(bisect_right(log.bases, offset) - 1, 0)
    last = bisect_left(log.bases, limit, first)
    if first >= last:
        return range(0)
    enough = bisect_left(log.positions, log.positions[first] + max_bytes, first + 1)
    return range(first, min(enough, last))


def complete(log: LogIndex, blocks: range) -> range:
    """The blocks worth fetching when `blocks` are wanted: all of them if the range is small."""
    return range(len(log.bases)) if blocks and log.range.length <= SMALL_RANGE_BYTES else blocks


def extents(log: LogIndex, missing: Iterable[int], max_bytes: int) -> list[range]:
    """Runs of adjacent blocks, each for one ranged GET of at most `max_bytes` (a bigger block comes alone).

    `missing` are block numbers in ascending order.
    """
    runs: list[range] = []
    for number in missing:
        if runs:
            run = runs[-1]
            if run.stop == number and log.positions[number + 1] - log.positions[run.start] <= max_bytes:
                runs[-1] = range(run.start, number + 1)
                continue
        runs.append(range(number, number + 1))
    return runs


def collect_aborted(entries: Iterable[AbortedEntry], offset: int, upper: int, into: list[AbortedEntry]) -> bool:
    """Adds the aborted transactions with data in [offset, upper) to `into`; whether these are all there are.

    `entries` go on in the order of their markers. They are all once an entry says that everything below `upper` was
    decided right after its marker (Kafka's `TransactionIndex.collectAbortedTxns`).
    """
    for entry in entries:
        if entry.last_offset >= offset and entry.first_offset < upper:
            into.append(entry)
        if entry.last_stable_offset >= upper:
            return True
    return False


def _row_end(row: RangeRow) -> int:
    return row.range.end
