"""Logs: who leads them, where they begin and end, their epochs, and their committed ranges, packed.

Ranges of a log are fixed-size rows in one `bytearray`, in offset order and without overlap. There may be gaps only
where a loss was declared. A row is 48 bytes: 100,000 logs with 64 ranges each are about 310 MB.

The newest range holds the producer state of its log. When the start passes it, a row without bytes stays in its place,
the *state row*, and keeps the object named until the next range brings a newer state: else a retry of a batch that was
deleted would be taken for a new one.

Merging replaces neighbouring rows by one of the next level, and moves old rows to manifests in the bucket, of which the
state keeps pointers.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from controller.facts import NO_NODE, NO_UUID, ManifestUnpacked, MergePart, NewManifest
from storage.seal import ManifestPointer, Range

OPEN, RECOVERING = "open", "recovering"

_ROW = struct.Struct(
    "<qqqIIIIII"
)  # base, end, max timestamp, LSO lag, epoch, object, position, length, level and batches
ROW_BYTES = _ROW.size
_INT64 = struct.Struct("<q")
_UINT32 = struct.Struct("<I")
_END_POSITION, _LENGTH_POSITION, _LEVEL_POSITION = 8, 40, 44
_LAG_MAX = 2**32 - 1
_LEVEL_SHIFT = 28
LEVEL_MAX = 15
BATCHES_MAX = 2**_LEVEL_SHIFT - 1
"""The most batches of one range; the four bits above them in a row are its level."""


class PackedRange(NamedTuple):
    """A row. Level 0: a range in the sealed object with number `object`. Above: a range that merge job `object` made,
    alone in an object of `size` bytes; without timestamps it counts for retention from `committed_ms`.
    """

    object: int
    range: Range
    level: int = 0
    size: int = 0
    committed_ms: int = -1


def pack_row(number: int, item: Range) -> bytes:
    """The row of a range in sealed object `number`.

    The LSO is kept as its distance from the end. A distance that does not fit reads back as LSO 0: too low hides
    records from read_committed readers of other brokers for a while, too high would show aborted ones.
    """
    return _pack(number, item, item.max_timestamp, item.position, 0)


def pack_merged_row(job: int, item: Range, size: int, level: int, committed_ms: int) -> bytes:
    """The row of a range that merge job `job` made. It begins its object, so what the object holds beside it is kept in
    the place of its position; and in that of the timestamp, if there is none, when it was committed, as -2 - that."""
    assert item.position == 0 < level <= LEVEL_MAX
    timestamp = item.max_timestamp if item.max_timestamp >= 0 else -2 - max(committed_ms, 0)
    return _pack(job, item, timestamp, size - item.length, level)


def _pack(number: int, item: Range, timestamp: int, position: int, level: int) -> bytes:
    assert item.batch_count <= BATCHES_MAX
    lag = min(item.end - item.last_stable_offset, _LAG_MAX)
    batches = level << _LEVEL_SHIFT | item.batch_count
    return _ROW.pack(item.base, item.end, timestamp, lag, item.leader_epoch, number, position, item.length, batches)


def unpack_row(log_id: int, rows: bytearray | bytes, index: int) -> PackedRange:
    """The row at `index`."""
    fields = _ROW.unpack_from(rows, index * ROW_BYTES)
    base, end, max_timestamp, lag, epoch, number, position, length, batches = fields
    stable = 0 if lag == _LAG_MAX else end - lag
    level = batches >> _LEVEL_SHIFT
    if not level:
        return PackedRange(number, Range(log_id, epoch, base, end, position, length, max_timestamp, stable, batches))
    committed_ms = -1
    if max_timestamp < -1:
        committed_ms, max_timestamp = -2 - max_timestamp, -1
    item = Range(log_id, epoch, base, end, 0, length, max_timestamp, stable, batches & BATCHES_MAX)
    return PackedRange(number, item, level, length + position, committed_ms)


@dataclass(slots=True)
class LogState:
    """One log. `end` is its committed end; `size` the bytes of its ranges, those in manifests included.

    `manifests` hold the oldest ranges, in offset order; `rows` those that follow.

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
    manifests: list[ManifestPointer] = field(default_factory=list)

    @property
    def range_count(self) -> int:
        """How many committed ranges the state has of the log: all but those in manifests."""
        return len(self.rows) // ROW_BYTES

    def row(self, index: int) -> PackedRange:
        """The committed range at `index`, negative from the end."""
        count = self.range_count
        if not -count <= index < count:
            raise IndexError(index)
        return unpack_row(self.log_id, self.rows, index % count)

    def row_end(self, index: int) -> int:
        """End offset of the range at `index` (not negative)."""
        return int(_INT64.unpack_from(self.rows, index * ROW_BYTES + _END_POSITION)[0])

    def row_base(self, index: int) -> int:
        """Base offset of the range at `index` (not negative)."""
        return int(_INT64.unpack_from(self.rows, index * ROW_BYTES)[0])

    def row_level(self, index: int) -> int:
        """Level of the range at `index` (not negative)."""
        return int(_UINT32.unpack_from(self.rows, index * ROW_BYTES + _LEVEL_POSITION)[0]) >> _LEVEL_SHIFT

    def row_length(self, index: int) -> int:
        """Bytes of the range at `index` (not negative)."""
        return int(_UINT32.unpack_from(self.rows, index * ROW_BYTES + _LENGTH_POSITION)[0])

    def part(self, first: int, count: int) -> MergePart:
        """The part of a merge job that the `count` ranges from `first` on are."""
        packed = self.rows[first * ROW_BYTES : (first + count) * ROW_BYTES]
        return MergePart(self.log_id, self.row_base(first), self.row_end(first + count - 1), count, crc32(packed))

    def find_part(self, part: MergePart) -> int | None:
        """Index of the first range of a part; None unless all its ranges are there, unchanged and without a gap."""
        first = bisect_left(range(self.range_count), part.base, key=self.row_base)
        if part.ranges < 1 or first + part.ranges > self.range_count or self.part(first, part.ranges) != part:
            return None
        for index in range(first + 1, first + part.ranges):
            if self.row_base(index) != self.row_end(index - 1):
                return None
        return first

    def replace_rows(self, first: int, count: int, packed: bytes) -> list[PackedRange]:
        """Puts packed rows, perhaps none, in the place of others; returns those. `size` is the caller's to keep."""
        removed = [unpack_row(self.log_id, self.rows, index) for index in range(first, first + count)]
        self.rows[first * ROW_BYTES : (first + count) * ROW_BYTES] = packed
        return removed

    def first_row_beyond(self, offset: int) -> int:
        """Index of the first range whose end is above `offset`; `range_count` if none."""
        return bisect_right(range(self.range_count), offset, key=self.row_end)

    def append_row(self, number: int, item: Range) -> list[PackedRange]:
        """Commits a range: it must begin at the end. Returns the state row that it replaces, if there is one."""
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

    def drop_but_state(self) -> list[PackedRange]:
        """Removes all ranges but for the state row of the newest; returns the others."""
        removed = self.drop_rows(self.range_count - 1)
        if not self.has_state_row:
            newest = self.row(-1)
            item = newest.range
            self.size -= item.length
            empty = item._replace(base=item.end, length=0, max_timestamp=-1, batch_count=0)
            if newest.level:
                self.rows[:] = pack_merged_row(newest.object, empty, newest.size, newest.level, 0)
            else:
                self.rows[:] = pack_row(newest.object, empty)
        return removed

    def manifest_at(self, offset: int) -> ManifestPointer | None:
        """The first manifest that ends above `offset`."""
        index = bisect_right(self.manifests, offset, key=lambda pointer: pointer.end)
        return self.manifests[index] if index < len(self.manifests) else None

    def drop_manifests(self, offset: int) -> list[ManifestPointer]:
        """Removes the manifests that end at or below `offset`; returns them."""
        count = bisect_right(self.manifests, offset, key=lambda pointer: pointer.end)
        removed = self.manifests[:count]
        del self.manifests[:count]
        self.size -= sum(pointer.bytes for pointer in removed)
        return removed

    def drop_rows(self, count: int) -> list[PackedRange]:
        """Removes the first `count` ranges; returns them."""
        removed = self.replace_rows(0, count, b"")
        self.size -= sum(row.range.length for row in removed)
        return removed

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

    def remove(self, log_id: int) -> tuple[list[PackedRange], list[ManifestPointer]]:
        """Deletes the log; returns its ranges and its manifests."""
        log = self.logs[log_id]
        self.range_total -= log.range_count
        rows = log.drop_rows(log.range_count)
        self._bind(log, NO_UUID)
        leaderless = self.led_through[NO_UUID]
        leaderless.discard(log_id)
        if not leaderless:
            del self.led_through[NO_UUID]
        del self.logs[log_id]
        return rows, log.manifests

    def commit(self, number: int, item: Range) -> list[PackedRange]:
        """A range becomes part of its log. Returns the row that it makes superfluous, if any."""
        replaced = self.logs[item.log_id].append_row(number, item)
        self.range_total += 1 - len(replaced)
        return replaced

    def advance_start(
        self, log_id: int, start: int, *, keep_state: bool
    ) -> tuple[list[PackedRange], list[ManifestPointer]]:
        """Moves the start; returns the ranges and the manifests that fell below it.

        `keep_state`: if all ranges do, the newest one stays as state row.
        """
        log = self.logs[log_id]
        log.advance_start(start)
        manifests = log.drop_manifests(start)
        count = log.first_row_beyond(start)
        if keep_state and count and count == log.range_count:
            rows = log.drop_but_state()
        else:
            rows = log.drop_rows(count)
        self.range_total -= len(rows)
        return rows, manifests

    def merge(self, log_id: int, part: MergePart, packed: bytes) -> list[PackedRange]:
        """One row stands in the place of a part's; returns those."""
        log = self.logs[log_id]
        first = log.find_part(part)
        assert first is not None, f"log {log_id}: {part} is not there"
        self.range_total -= part.ranges - 1
        return log.replace_rows(first, part.ranges, packed)

    def move_to_manifest(self, new: NewManifest, part: MergePart) -> ManifestPointer | None:
        """The first ranges move to a manifest; returns the one that it replaces."""
        log = self.logs[new.log_id]
        assert log.find_part(part) == 0
        self.range_total -= part.ranges
        log.replace_rows(0, part.ranges, b"")
        replaced = log.manifests.pop() if new.replaces >= 0 else None
        assert replaced is None or replaced.job == new.replaces
        log.manifests.append(new.pointer)
        return replaced

    def unpack_manifest(self, fact: ManifestUnpacked) -> ManifestPointer:
        """The rows of the last manifest are in the state again; returns that. Their level is the highest one: nobody
        knows it any more, and they are not to be merged with what is younger."""
        log = self.logs[fact.log_id]
        pointer = log.manifests.pop()
        assert pointer.job == fact.job
        packed = b"".join(pack_merged_row(row.job, row.range, row.size, LEVEL_MAX, row.newest_ms) for row in fact.rows)
        log.replace_rows(0, 0, packed)
        self.range_total += len(fact.rows)
        return pointer

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

    def manifest_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the manifests."""
        for log in self.logs.values():
            if log.manifests:
                yield [log.log_id, log.manifests]

    def load_manifests(self, row: tuple[Any, ...]) -> None:
        """Adds the manifests of a log from their snapshot row."""
        log_id, pointers = row
        self.logs[log_id].manifests = [ManifestPointer(*pointer) for pointer in pointers]
