"""The WAL thread's work: take everything queued as one group, write and sync it, look for the fence, report.

Group n is written only after group n - 1 is synced. Any error ends it: after that nothing is reported durable.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from storage.wal.files import write_all
from storage.wal.format import BATCHES_MAX, ENTRY_SIZE, LONE_OVERHEAD, encode_header, group_prefix
from storage.wal.port import Fenced

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol import Buffer
    from storage.wal.disk import Disk
    from storage.wal.files import FileRing, WalFile

#: A group grows to this, unless one batch alone is larger.
GROUP_BYTES_MAX = 4 << 20
_HISTOGRAM_BUCKETS = 25


class Progress(NamedTuple):
    """What is durable: everything up to `sequence`, which is in `group`.

    `cost` is what all of it would take as groups of one batch each. The last group ends at `offset` of the file with
    number `file`.
    """

    sequence: int
    group: int
    cost: int
    file: int
    offset: int


class Writer:
    """Both halves of a group's way are a `step`: write and sync; then look for the fence and report.

    The loop reads `progress`, `failure` and the counters, and pops from `left`; every one of them is replaced or
    appended to in one operation, so no lock is needed.
    """

    def __init__(
        self,
        wal_id: bytes,
        queue: deque[tuple[bytes, Buffer]],
        ring: FileRing,
        disk: Disk,
        *,
        fenced: Callable[[], bool],
        report: Callable[[], None],
    ) -> None:
        self.progress = Progress(0, 0, 0, 0, ring.file_bytes)
        self.failure: BaseException | None = None
        self.left: deque[WalFile] = deque()  # files whose groups are complete, a later file holding a durable group
        self.group_ends = array("q")  # last sequence of each group; the loop drops trimmed ones from the front
        self.batches = 0
        self.bytes = 0
        self.sync_ns_sum = 0
        self.sync_ns_max = 0
        self.sync_histogram = [
            0
        ] * _HISTOGRAM_BUCKETS  # [i]: syncs that took less than 2**i microseconds, and not 2**(i-1)
        self._wal_id = wal_id
        self._queue = queue
        self._ring = ring
        self._disk = disk
        self._fenced = fenced
        self._report = report
        self._file: WalFile | None = None
        self._previous: WalFile | None = None  # left by the group that is under way
        self._prefix = b""
        self._offset = ring.file_bytes
        self._written: Progress | None = None

    def step(self) -> float | None:
        if self.failure is not None:
            return None
        try:
            if self._written is not None:
                self._publish(self._written)
            elif not self._write_group():
                return None
        except BaseException as error:
            self.failure = error
            self._report()
            return None
        return 0.0

    def _write_group(self) -> bool:
        """False: nothing is queued, or no file is ready for it."""
        queue = self._queue
        if not queue:
            return False
        if self._offset + LONE_OVERHEAD + len(queue[0][1]) > self._ring.file_bytes and not self._next_file():
            return False
        file = self._file
        assert file is not None
        entries: list[bytes] = []
        buffers: list[Buffer] = [b""]
        size = LONE_OVERHEAD - ENTRY_SIZE
        # The first batch was found to fit; the others must.
        limit = max(GROUP_BYTES_MAX, size + ENTRY_SIZE + len(queue[0][1]))
        limit = min(limit, self._ring.file_bytes - self._offset)
        while queue and len(entries) < BATCHES_MAX:
            entry, batch = queue[0]
            grown = size + ENTRY_SIZE + len(batch)
            if grown > limit:
                break
            queue.popleft()
            entries.append(entry)
            buffers.append(batch)
            size = grown
        done = self.progress
        count = len(entries)
        buffers[0] = encode_header(self._prefix, done.group + 1, entries)
        started = self._disk.ticks_ns()
        write_all(file.handle.write_durably, buffers, self._offset)
        took = self._disk.ticks_ns() - started
        self._offset += size
        cost = size + (count - 1) * (LONE_OVERHEAD - ENTRY_SIZE)
        self._written = Progress(done.sequence + count, done.group + 1, done.cost + cost, file.number, self._offset)
        self._count(count, size, took)
        return True

    def _next_file(self) -> bool:
        file = self._ring.take()
        if file is None:
            return False
        self._previous = self._file
        if self._previous is not None:
            self._previous.last_group = self.progress.group
        self._file = file
        self._offset = 0
        self._prefix = group_prefix(self._wal_id, file.number)
        return True

    def _publish(self, written: Progress) -> None:
        if self._fenced():
            raise Fenced("another process recovers this WAL: what it was not told of is no longer ours to acknowledge")
        self._written = None
        self.group_ends.append(written.sequence)
        self.progress = written
        if self._previous is not None:
            self.left.append(self._previous)
            self._previous = None
        self._report()

    def _count(self, batches: int, size: int, took_ns: int) -> None:
        self.batches += batches
        self.bytes += size
        self.sync_ns_sum += took_ns
        self.sync_ns_max = max(self.sync_ns_max, took_ns)
        self.sync_histogram[min((took_ns // 1000).bit_length(), _HISTOGRAM_BUCKETS - 1)] += 1

    def close(self) -> None:
        for file in (*self.left, self._previous, self._file):
            if file is not None:
                file.handle.close()
