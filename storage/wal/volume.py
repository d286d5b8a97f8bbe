"""The volume WAL: groups of batches in pre-written files of one directory.

This is the loop's side: sequences, space, callbacks. `writer.py` writes and syncs on the WAL thread and pulls its work
from the queue; `files.py` prepares files on another one. The loop is called back once per group, or once for several.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from storage.wal import mounts
from storage.wal.disk import LinuxDisk
from storage.wal.files import FileRing
from storage.wal.format import ENTRY, LONE_OVERHEAD, Superblock
from storage.wal.instances import create_instance, remove_instance
from storage.wal.port import Fenced, WalError
from storage.wal.worker import ThreadWorker
from storage.wal.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from protocol import Buffer
    from storage.wal.disk import Disk, DiskFile
    from storage.wal.port import OnDurable, OnFailed, OnRoom
    from storage.wal.worker import StartWorker, Worker

#: One with the last group, which stays; one that takes the largest batch; and the share of internal logs beside it.
_FILES_MIN = 3
_INTERNAL_SHARE = 20  # the last 1/20 of the space is for internal logs


class VolumeWal:
    """One open instance: `<root>/<wal_id hex>/`. Made by `create`; every method is for the event loop's thread."""

    kind = "volume"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        disk: Disk,
        root: str,
        path: str,
        lock: DiskFile,
        *,
        wal_id: bytes,
        node_id: int,
        fence_kind: str,
        warnings: list[str],
        file_bytes: int,
        bytes_max: int,
        message_bytes_max: int,
        on_durable: OnDurable,
        on_failed: OnFailed,
        on_room: OnRoom,
        start_worker: StartWorker,
    ) -> None:
        self.wal_id = wal_id
        self.path = path
        self.fence_kind = fence_kind  # "file" or "session" (DESIGN 4.3)
        self.warnings = warnings  # about the mount, for the log at start
        self.fenced = False
        self.appended = 0
        self.durable = (0, 0)  # sequence and group last reported
        self.batch_bytes_max = file_bytes - LONE_OVERHEAD  # the largest batch one file can hold
        self._loop = loop
        self._disk = disk
        self._root = root
        self._lock = lock
        self._node_id = node_id
        self._directory = disk.open_directory(path)
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_room = on_room
        self._queue: deque[tuple[bytes, Buffer]] = deque()
        self._ring = FileRing(
            disk,
            path,
            self._directory,
            file_bytes=file_bytes,
            files_max=bytes_max // file_bytes,
            changed=self._files_changed,
        )
        self._writer = Writer(
            wal_id,
            self._queue,
            self._ring,
            disk,
            fenced=self.look_for_fence,
            report=self._report,
        )
        self._writer_worker = start_worker("tidelog-wal-writer", self._writer)
        self._ring_worker = start_worker("tidelog-wal-files", self._ring)
        self._ring.wake = self._ring_worker.wake
        self._reported = False  # a call of `_deliver` is on its way
        self._wake_scheduled = False
        self._stopped = False
        self._ended: dict[Worker, asyncio.Event] = {}  # those that were told to stop
        self._failed = False
        self._first_file: asyncio.Future[None] = loop.create_future()
        self._group_base = 1  # number of the first group in `writer.group_ends`
        self._trimmed_sequence = 0
        # Space, see `_free`. Costs are sums over all batches ever appended.
        self._progress = self._writer.progress
        self._cost = 0
        self._message_cost_max = message_bytes_max + LONE_OVERHEAD
        self._internal_reserve = bytes_max // _INTERNAL_SHARE
        self._limit = self._limit_internal = 0
        self._largest = self._largest_next = 1  # costs: see `_forget_largest`
        self._largest_mark = 0
        self._refused: dict[bool, tuple[int, int]] = {}  # internal -> smallest refused (cost, largest batch)

    @classmethod
    async def create(
        cls,
        root: str | PathLike[str],
        *,
        cluster_id: str,
        node_id: int,
        wal_id: bytes,
        on_durable: OnDurable,
        on_failed: OnFailed,
        on_room: OnRoom,
        bytes_max: int,
        message_bytes_max: int,
        file_bytes: int = 64 << 20,
        wait: bool = True,
        fence_kind: str | None = None,
        disk: Disk | None = None,
        start_worker: StartWorker = ThreadWorker,
    ) -> VolumeWal:
        """Make a new instance directory; returns when its first file is ready, without `wait` before that.

        `bytes_max` bounds the disk, `message_bytes_max` is the largest batch that must fit. WalError for settings that
        contradict each other and for file systems that cannot hold a WAL; OSError when the first file cannot be made.
        `fence_kind` None: by the mount. `disk` and `start_worker` are for simulations.
        """
        root = os.path.abspath(os.fspath(root))
        if message_bytes_max > file_bytes - LONE_OVERHEAD:
            raise WalError(
                f"tidelog.wal.file.bytes={file_bytes} cannot hold a batch of message.max.bytes={message_bytes_max}: "
                f"it must be at least {message_bytes_max + LONE_OVERHEAD}"
            )
        if bytes_max < _FILES_MIN * file_bytes:
            raise WalError(
                f"tidelog.wal.bytes.max={bytes_max} must hold {_FILES_MIN} files of "
                f"tidelog.wal.file.bytes={file_bytes}: make it at least {_FILES_MIN * file_bytes}"
            )
        disk = disk or LinuxDisk()
        warnings: list[str] = []
        if fence_kind is None:
            fence_kind, warnings = mounts.detect(root)
        path, lock = create_instance(disk, root, Superblock(cluster_id, node_id, disk.boot_id(), wal_id))
        wal = cls(
            asyncio.get_running_loop(),
            disk,
            root,
            path,
            lock,
            wal_id=wal_id,
            node_id=node_id,
            fence_kind=fence_kind,
            warnings=warnings,
            file_bytes=file_bytes,
            bytes_max=bytes_max,
            message_bytes_max=message_bytes_max,
            on_durable=on_durable,
            on_failed=on_failed,
            on_room=on_room,
            start_worker=start_worker,
        )
        wal._writer_worker.start()
        wal._ring_worker.start()
        if wait:
            try:
                await wal.ready()
            except BaseException:
                await wal.remove()
                raise
        return wal

    async def ready(self) -> None:
        """Returns when the first file is ready; before that there is room for nothing.

        OSError when it cannot be made: trying goes on, see `look_for_space`, and the WAL is full until it succeeds.
        """
        if not self._ring.ready_through:
            await asyncio.shield(self._first_file)

    def append(self, log_id: int, leader_epoch: int, base_offset: int, batch: Buffer) -> int:
        """Queue one batch and return its sequence. Never blocks; without `has_room` it may wait for space."""
        size = len(batch)
        entry = ENTRY.pack(log_id, base_offset, size - 12, leader_epoch)
        assert batch[:16] == entry[4:], "the batch's own offset, length and epoch must be those of the append"
        cost = size + LONE_OVERHEAD
        self._cost += cost
        if cost > self._largest_next:
            self._remember_largest(cost)
        self._queue.append((entry, batch))
        self.appended = sequence = self.appended + 1
        if self._writer_worker.idle and not self._wake_scheduled:
            # At the end of this turn of the loop, so that everything appended in it becomes one group.
            self._wake_scheduled = True
            self._loop.call_soon(self._wake)
        return sequence

    def has_room(self, n_bytes: int, *, internal: bool, batches: int = 1) -> bool:
        """Whether `batches` batches of `n_bytes` bytes in all can be appended now without waiting for a file."""
        cost = n_bytes + batches * LONE_OVERHEAD
        largest = cost if batches == 1 else min(cost, self._message_cost_max)
        if largest <= self._largest:
            limit = self._limit_internal if internal else self._limit
        else:
            limit = self._limits(largest)[internal]
        if self._cost + cost <= limit and not self._failed:
            return True
        known = self._refused.get(internal)
        if known is None or cost < known[0]:
            self._refused[internal] = (cost, largest)
        if self._ring.unprepared:
            self._ring.hurry(cost)
        return False

    def group_below(self, sequence: int) -> int:
        """The highest group all of whose sequences are durable and lower than `sequence`; 0 when there is none."""
        assert sequence > self._trimmed_sequence, "the sequence was trimmed"
        return self._group_base - 1 + bisect_left(self._writer.group_ends, sequence)

    def trim(self, through_group: int) -> None:
        """Give back whole files, oldest first, whose groups are all <= `through_group`.

        The file that holds the last group stays: recovery proves by it that it saw everything.
        """
        left = self._writer.left
        freed = []
        while left and left[0].last_group <= through_group:
            freed.append(left.popleft())
        if not freed:
            return
        last = freed[-1].last_group
        count = last + 1 - self._group_base
        ends = self._writer.group_ends
        self._trimmed_sequence = ends[count - 1]
        del ends[:count]
        self._group_base = last + 1
        self._ring.free(freed)

    def look_for_space(self) -> None:
        """Something else on the disk was deleted: if a file could not be prepared, try again now."""
        self._ring_worker.wake()

    def look_for_fence(self) -> bool:
        """Look for the fence file now (one stat): an authoritative answer needs its absence. From any thread."""
        if not self.fenced and self.fence_kind == "file" and self._directory.has("fence"):
            self.fenced = True
        return self.fenced

    async def close(self) -> None:
        """Write what is queued, stop, and release the instance. Its files stay."""
        await self._stop()
        self._lock.close()

    async def remove(self) -> None:
        """Stop and delete the instance: only after a fact says that it is retired."""
        await self._stop()
        remove_instance(self._disk, self._root, self.path, self._node_id)
        self._lock.close()

    async def _stop(self) -> None:
        """Returns when nothing writes any more. Whoever waits may give up: the next one waits for the same end."""
        self._ring.stopping = True
        for worker in (self._writer_worker, self._ring_worker):
            ended = self._ended.get(worker)
            if ended is None:
                ended = self._ended[worker] = asyncio.Event()
                worker.stop(partial(self._call_loop, ended.set))
            await ended.wait()
        if self._stopped:
            return
        self._stopped = True
        self._deliver()
        self._writer.close()
        self._ring.close()
        self._directory.close()

    # Counters, for a scraper.

    @property
    def queue_depth(self) -> int:
        return self.appended - self.durable[0]

    @property
    def groups(self) -> int:
        return self._writer.progress.group

    @property
    def batches(self) -> int:
        return self._writer.batches

    @property
    def bytes(self) -> int:
        """Bytes written, group headers included."""
        return self._writer.bytes

    @property
    def sync_ns_sum(self) -> int:
        return self._writer.sync_ns_sum

    @property
    def sync_ns_max(self) -> int:
        return self._writer.sync_ns_max

    @property
    def sync_histogram(self) -> list[int]:
        """[i]: how many writes with sync took from 2**(i-1) to 2**i microseconds."""
        return self._writer.sync_histogram

    @property
    def files(self) -> int:
        """Files that hold groups or are ready."""
        return self._ring.numbered

    @property
    def free_bytes(self) -> int:
        """What may still be written before the WAL is full, files not prepared yet included."""
        ring = self._ring
        return max(0, self._free(1, 0) - (self._cost - self._progress.cost)) + ring.unprepared * ring.file_bytes

    @property
    def file_error(self) -> OSError | None:
        """Why no further file can be prepared at the moment."""
        return self._ring.error

    # Space. A request fits when the batches in flight and its own, each as a group of its own, fit behind the last
    # durable group. Real groups share headers and so never end later: next-fit is monotonous in the sizes.

    def _free(self, largest: int, reserve: int) -> int:
        """Bytes of prepared files that batches of at most `largest` each are sure to find without the last `reserve`.

        Cost counts one group header per batch.
        """
        file_bytes = self._ring.file_bytes
        here = file_bytes - self._progress.offset
        behind = (self._ring.ready_through - self._progress.file) * file_bytes - reserve
        if behind <= 0:
            return max(0, here + behind)
        whole, part = divmod(behind, file_bytes)
        waste = largest - 1  # at the end of each file but the last
        before = max(0, here - waste)
        free = max(here, before + whole * (file_bytes - waste) + part)
        return max(free, before + (whole - 1) * (file_bytes - waste) + file_bytes) if whole else free

    def _limits(self, largest: int) -> tuple[int, int]:
        """The cost up to which others' and internal batches may go."""
        ring = self._ring
        if ring.error is None:
            reserve = max(0, self._internal_reserve - ring.unprepared * ring.file_bytes)
        else:
            reserve = min(self._internal_reserve, ring.file_bytes // 2)
        durable = self._progress.cost
        return durable + self._free(largest, reserve), durable + self._free(largest, 0)

    def _refresh_room(self) -> None:
        self._limit, self._limit_internal = self._limits(self._largest)
        for internal, (cost, largest) in list(self._refused.items()):
            if not self._failed and self._cost + cost <= self._limits(max(largest, self._largest))[internal]:
                self._refused.clear()
                self._on_room()
                return

    def _remember_largest(self, cost: int) -> None:
        self._largest_next = cost
        if cost > self._largest:
            self._largest = cost
            self._limit, self._limit_internal = self._limits(cost)

    def _forget_largest(self, durable: int) -> None:
        """Once everything appended before the mark is durable, only what came after it counts."""
        if durable >= self._largest_mark:
            self._largest, self._largest_next = self._largest_next, 1
            self._largest_mark = self.appended

    # Between the threads.

    def _wake(self) -> None:
        self._wake_scheduled = False
        if self._writer_worker.idle:
            self._writer_worker.wake()

    def _report(self) -> None:
        """From the WAL thread: progress or failure is there. Calls coalesce until the loop has looked."""
        if not self._reported:
            self._reported = True
            self._call_loop(self._deliver)

    def _files_changed(self) -> None:
        """From the files' thread."""
        self._writer_worker.wake()  # it may have waited for this file
        self._call_loop(self._look_at_files)

    def _call_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to be told

    def _deliver(self) -> None:
        self._reported = False  # first: what is published from here on comes with a call of its own
        progress = self._writer.progress
        if progress is not self._progress and not self._failed:
            self._progress = progress
            self.durable = (progress.sequence, progress.group)
            self._forget_largest(progress.sequence)
            self._on_durable(progress.sequence, progress.group)
            self._refresh_room()
        self._fail(self._writer.failure)

    def _look_at_files(self) -> None:
        ring = self._ring
        if not self._first_file.done():
            if ring.ready_through:
                self._first_file.set_result(None)
            elif ring.error is not None:
                self._first_file.set_exception(ring.error)
                self._first_file.exception()  # retrieved: who does not wait for the file need not hear of it
        self._refresh_room()
        self._fail(ring.failure)

    def _fail(self, failure: BaseException | None) -> None:
        if failure is not None and not self._failed:
            self._failed = True
            self.fenced = self.fenced or isinstance(failure, Fenced)
            self._on_failed(failure)
