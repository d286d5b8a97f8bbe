"""Logs: who leads them, where they begin and end, their epochs, and their committed ranges, packed.

Ranges of a log are fixed-size rows in one `bytearray`, in offset order and without overlap. There may be gaps only
where a loss was declared. A row is 48 bytes: 100,000 logs with 64 ranges each are about 310 MB.

The newest range holds the producer state of its log. When the start passes it, a row without bytes stays in its place,
the *state row*, and keeps the object named until the next range brings a newer state: else a retry of a batch that was
deleted would be taken for a new one.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controller.facts import NO_NODE, NO_UUID
from storage.seal import Range

OPEN, RECOVERING = "open", "recovering"

_ROW = struct.Struct("<qqqIIIIII")  # base, end, max timestamp, LSO lag, epoch, object, position, length, batches
ROW_BYTES = _ROW.size
_END = struct.Struct("<q")
_LAG_MAX = 2**32 - 1


class PackedRange(NamedTuple):
    """A row: a range and the number of its object."""

    object: int
    range: Range


def pack_row(number: int, item: Range) -> bytes:
    """The row of a range in object `number`.

    The LSO is kept as its distance from the end. A distance that does not fit reads back as LSO 0: too low hides
    records from read_committed readers of other brokers for a while, too high would show aborted ones.
    """
    lag = min(item.end - item.last_stable_offset, _LAG_MAX)
    return _ROW.pack(
        item.base,
        item.end,
        item.max_timestamp,
        lag,
        item.leader_epoch,
        number,
        item.position,
        item.length,
        item.batch_count,
    )


def unpack_row(log_id: int, rows: bytearray | bytes, index: int) -> PackedRange:
    """The row at `index`."""
    fields = _ROW.unpack_from(rows, index * ROW_BYTES)
    base, end, max_timestamp, lag, epoch, number, position, length, batches = fields
    stable = 0 if lag == _LAG_MAX else end - lag
    return PackedRange(number, Range(log_id, epoch, base, end, position, length, max_timestamp, stable, batches))


@dataclass(slots=True)
class LogState:
    """One log. `end` is its committed end; `size` the bytes of its ranges.

    `epochs` are (epoch, start offset) with both growing; an epoch that got no batch is dropped when the next begins.
    `status` `open` with `leader_node` -1 is a log without leader. While `recovering`, `epoch` and `wal_id` are those
    under recovery.
    """

    log_id: int
    topic: str
    partition: int
    leader_node: int = NO_NODE
    leader_incarnation: int = 0
    epoch: int = -1
    wal_id: bytes = NO_UUID
    start: int = 0
    end: int = 0
    status: str = OPEN
    size: int = 0
    epochs: list[tuple[int, int]] = field(default_factory=list)
    rows: bytearray = field(default_factory=bytearray)

    @property
    def range_count(self) -> int:
        """How many committed ranges the log has."""
        return len(self.rows) // ROW_BYTES

    def row(self, index: int) -> PackedRange:
        """The committed range at `index`, negative from the end."""
        count = self.range_count
        if not -count <= index < count:
            raise IndexError(index)
        return unpack_row(self.log_id, self.rows, index % count)

    def row_end(self, index: int) -> int:
        """End offset of the range at `index` (not negative)."""
        return int(_END.unpack_from(self.rows, index * ROW_BYTES + 8)[0])

    def first_row_beyond(self, offset: int) -> int:
        """Index of the first range whose end is above `offset`; `range_count` if none."""
        return bisect_right(range(self.range_count), offset, key=self.row_end)

    def append_row(self, number: int, item: Range) -> list[int]:
        """Commits a range: it must begin at the end. Returns the number of the object whose state row it replaces."""
        assert item.base == self.end < item.end, f"log {self.log_id}: range {item.base} at end {self.end}"
        replaced = self.drop_rows(1) if self.has_state_row else []
        self.rows += pack_row(number, item)
        self.end = item.end
        self.size += item.length
        return replaced

    @property
    def has_state_row(self) -> bool:
        """Whether all that is left is the row that keeps the producer state."""
        if len(self.rows) != ROW_BYTES:
            return False
        item = self.row(0).range
        return item.base == item.end

    def drop_but_state(self) -> list[int]:
        """Removes all ranges but for the state row of the newest; returns the numbers of the objects of the others."""
        numbers = self.drop_rows(self.range_count - 1)
        if not self.has_state_row:
            newest = self.row(-1)
            item = newest.range
            self.size -= item.length
            empty = item._replace(base=item.end, length=0, max_timestamp=-1, batch_count=0)
            self.rows[:] = pack_row(newest.object, empty)
        return numbers

    def drop_rows(self, count: int) -> list[int]:
        """Removes the first `count` ranges; returns the numbers of their objects, one per range."""
        numbers = []
        for index in range(count):
            item = unpack_row(self.log_id, self.rows, index)
            numbers.append(item.object)
            self.size -= item.range.length
        del self.rows[: count * ROW_BYTES]
        return numbers

    def begin_epoch(self, epoch: int) -> None:
        """A new leader epoch begins at the end."""
        assert epoch > self.epoch, f"log {self.log_id}: epoch {epoch} after {self.epoch}"
        self.epoch = epoch
        if self.epochs and self.epochs[-1][1] >= self.end:
            self.epochs.pop()
        self.epochs.append((epoch, self.end))

    def advance_start(self, start: int) -> None:
        """Offsets below `start` are gone; epochs that end at or below it are forgotten."""
        assert self.start <= start <= self.end
        self.start = start
        gone = bisect_right(self.epochs, start, key=lambda item: item[1])
        if gone:
            self.epochs[:gone] = [(self.epochs[gone - 1][0], start)]


@dataclass(slots=True)
class LogIndex:
    """`logs` by id. `led_through`: per WAL instance the logs whose present epoch is bound to it.

    Logs without leader are those "led through" the zero uuid.
    """

    logs: dict[int, LogState] = field(default_factory=dict)
    led_through: dict[bytes, set[int]] = field(default_factory=dict)
    next_log_id: int = 0
    range_total: int = 0

    def create(self, log_id: int, topic: str, partition: int) -> LogState:
        """A new, empty log without leader."""
        assert log_id >= self.next_log_id, f"log id {log_id} was used before"
        self.next_log_id = log_id + 1
        log = self.logs[log_id] = LogState(log_id, topic, partition)
        self._bind(log, NO_UUID)
        return log

    def _bind(self, log: LogState, wal_id: bytes) -> None:
        bound = self.led_through.get(log.wal_id)
        if bound is not None:
            bound.discard(log.log_id)
            if not bound:
                del self.led_through[log.wal_id]
        log.wal_id = wal_id
        self.led_through.setdefault(wal_id, set()).add(log.log_id)

    def through(self, wal_id: bytes) -> list[int]:
        """Ids of the logs bound to the instance, ascending."""
        return sorted(self.led_through.get(wal_id, ()))

    def name_leader(self, log_id: int, node_id: int, incarnation: int, epoch: int, wal_id: bytes) -> LogState:
        """The log is open under a new leader and epoch."""
        log = self.logs[log_id]
        log.begin_epoch(epoch)
        log.leader_node, log.leader_incarnation, log.status = node_id, incarnation, OPEN
        self._bind(log, wal_id)
        return log

    def recover(self, wal_id: bytes) -> None:
        """The leader's session ended: its logs through the instance are recovering."""
        for log_id in self.led_through.get(wal_id, ()):
            log = self.logs[log_id]
            log.leader_node, log.leader_incarnation, log.status = NO_NODE, 0, RECOVERING

    def release(self, wal_id: bytes) -> None:
        """The instance is done with: its logs are open, without leader."""
        for log_id in self.through(wal_id):
            self.leave(self.logs[log_id])

    def leave(self, log: LogState) -> None:
        """The log is open and has no leader; its epoch stays."""
        log.leader_node, log.leader_incarnation, log.status = NO_NODE, 0, OPEN
        self._bind(log, NO_UUID)

    def remove(self, log_id: int) -> list[int]:
        """Deletes the log; returns the numbers of its ranges' objects, one per range."""
        log = self.logs[log_id]
        self.range_total -= log.range_count
        numbers = log.drop_rows(log.range_count)
        self._bind(log, NO_UUID)
        leaderless = self.led_through[NO_UUID]
        leaderless.discard(log_id)
        if not leaderless:
            del self.led_through[NO_UUID]
        del self.logs[log_id]
        return numbers

    def commit(self, number: int, item: Range) -> list[int]:
        """A range becomes part of its log. Returns the number of the object that it makes superfluous, if any."""
        replaced = self.logs[item.log_id].append_row(number, item)
        self.range_total += 1 - len(replaced)
        return replaced

    def advance_start(self, log_id: int, start: int, *, keep_state: bool) -> list[int]:
        """Moves the start; returns the numbers of the objects of the ranges that fell below it, one per range.

        `keep_state`: if all do, the newest one stays as state row.
        """
        log = self.logs[log_id]
        log.advance_start(start)
        count = log.first_row_beyond(start)
        if keep_state and count and count == log.range_count:
            numbers = log.drop_but_state()
        else:
            numbers = log.drop_rows(count)
        self.range_total -= len(numbers)
        return numbers

    def rows(self) -> Iterator[list[Any]]:
        """Snapshot rows: all but topic and partition, which follow from the topics."""
        for x in self.logs.values():
            yield [
                *[x.log_id, x.leader_node, x.leader_incarnation, x.epoch, x.wal_id, x.start, x.end, x.status],
                *[x.size, x.epochs, bytes(x.rows)],
            ]

    def load(self, row: tuple[Any, ...], topic: str, partition: int) -> None:
        """Adds a log from its snapshot row."""
        log_id, node, incarnation, epoch, wal_id, start, end, status, size, epochs, rows = row
        log = LogState(log_id, topic, partition, node, incarnation, epoch, wal_id, start, end, status, size)
        log.epochs, log.rows = list(epochs), bytearray(rows)
        self.logs[log_id] = log
        self.led_through.setdefault(wal_id, set()).add(log_id)
        self.range_total += log.range_count
