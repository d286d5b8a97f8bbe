"""One host's disk in memory: it forgets what was not synced, fills up, fails, rots and comes back as an older copy.

`SimulatedDisk` is the hardware; `for_process` gives the `storage.wal.disk.Disk` that one process sees. Used directly it
is the `Disk` of a test that knows no processes.
"""

from __future__ import annotations

import errno
import os
import random  # noqa: TID251
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from protocol import Buffer
from tests.simulation.volume import Folder, Inode, files_below

PAGE = 4096
"""What cannot be read when a byte of it cannot."""
_US, _MS = 1_000, 1_000_000
_NS_PER_KIB = 1_000
SLOWEST_NS = 2_500 * _MS
"""What no sync takes longer than, but on a disk that hangs."""
_CUT_AFTER_MAX = 12
"""So many disk operations of what a thread is at may still happen when its process is killed."""


class Timeline(Protocol):
    """The part of a `Scheduler` that simulated hardware uses."""

    @property
    def now_ns(self) -> int: ...

    def call_at_ns(self, when_ns: int, callback: Callable[..., object], *args: Any, owner: Any = None) -> object:
        """Call at a virtual time; not before its owner goes on if it is paused then, never if it is dead."""


class Owner(Protocol):
    """The part of a `Process` that simulated hardware uses."""

    name: str
    alive: bool
    on_death: list[Callable[[], None]]

    def running(self, loop: None) -> AbstractContextManager[None]:
        """Code of this process runs, in a thread beside its loop."""


class Dead(BaseException):
    """The process or its machine is gone: what raises it once raises it at every later call."""


class Image(NamedTuple):
    """What a volume held at one moment, as a snapshot of the storage service would: un-synced sectors may miss."""

    root: Folder


class Io(NamedTuple):
    """One write or sync (`data` None) that a thread waits for, from `begin_ns` to `end_ns` after its step began.

    `failed`: the thread was told that its sync failed.
    """

    begin_ns: int
    end_ns: int
    inode: Inode
    position: int
    data: bytes | None
    buffers: Sequence[Buffer] = ()
    failed: bool = False


class ProcessDisk:
    """A `storage.wal.disk.Disk`: what one process does with its host's disk. Inert once the process is dead.

    A worker that sets `queue` gets what is written and synced in it instead of its happening at once. `busy_ns`
    counts what operations take, from when somebody set it to 0. `waiting`: a worker waits for the disk. `at_write` is
    called once, when a worker has given the disk a group of which nothing has landed yet.
    """

    def __init__(self, disk: SimulatedDisk, process: Owner | None, boot_id: str) -> None:
        self.queue: list[Io] | None = None
        self.busy_ns = 0
        self.waiting = False
        self.at_write: Callable[[], None] | None = None
        self.dead = False
        self.owed: dict[Callable[[], object], None] = {}  # what threads of the process are at
        self.disk = disk
        self._boot_id = boot_id
        self._left = -1  # operations until the process is killed
        self._kill: Callable[[], None] | None = None
        if process is not None:
            process.on_death.append(self._died)

    def kill_after(self, operations: int, kill: Callable[[], None]) -> None:
        """Call `kill` in the middle of whatever the process does with its disk then."""
        self._left = operations
        self._kill = kill

    def _died(self) -> None:
        """Threads are cut off in the middle of their work; what they did until then stays in the kernel's memory."""
        rng = self.disk.rng
        owed, self.owed = self.owed, {}
        for step in owed:
            self._left, self._kill = rng.randint(0, _CUT_AFTER_MAX), None
            if not self.dead and rng.random() < 0.7:
                try:
                    step()
                except Dead:
                    pass
            self.dead = False
        self.dead = True

    def enter(self, operation: str, path: str, cost_ns: int) -> None:
        """Every operation begins here. May raise what `SimulatedDisk.enter` does."""
        if self.dead:
            raise Dead
        if self._left >= 0:
            if self._left == 0:
                self._left = -1
                self.dead = True
                if self._kill is not None:
                    self._kill()
                raise Dead
            self._left -= 1
        self.disk.enter(operation, path)
        self.busy_ns += cost_ns

    def names(self, path: str) -> list[str]:
        self.enter("names", path, 20 * _US)
        try:
            return sorted(self.disk.folder(path).entries)
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        self.enter("exists", path, 5 * _US)
        try:
            self.disk.node(path)
        except FileNotFoundError:
            return False
        return True

    def make_directory(self, path: str) -> None:
        self.enter("make_directory", path, self.disk.sync_ns())
        folder = self.disk.root
        for part in path.strip("/").split("/"):
            if part not in folder.entries:
                folder.change((part, Folder()))
                folder.sync()
            node = folder.entries[part]
            assert isinstance(node, Folder)
            folder = node

    def remove_directory(self, path: str) -> None:
        self.enter("remove_directory", path, 20 * _US)
        folder = self.disk.folder(path)
        if folder.entries:
            raise OSError(errno.ENOTEMPTY, "the directory is not empty", path)
        folder.removed = True
        self.disk.folder(os.path.dirname(path)).change((os.path.basename(path), None))

    def open_directory(self, path: str) -> SimulatedDirectory:
        self.enter("open_directory", path, 5 * _US)
        return SimulatedDirectory(self, path, self.disk.folder(path))

    def create(self, path: str) -> SimulatedFile:
        self.enter("create", path, 30 * _US)
        folder = self.disk.folder(os.path.dirname(path))
        inode = folder.entries.get(os.path.basename(path))
        if inode is None:
            inode = Inode()
            folder.change((os.path.basename(path), inode))
        assert isinstance(inode, Inode)
        inode.truncate()
        inode.path = path
        inode.made_under = self._boot_id
        return SimulatedFile(self, inode)

    def open(self, path: str) -> SimulatedFile:
        self.enter("open", path, 10 * _US)
        return SimulatedFile(self, self.disk.inode(path))

    def rename(self, old: str, new: str) -> None:
        self.enter("rename", new, 30 * _US)
        node = self.disk.node(old)
        assert os.path.dirname(old) == os.path.dirname(new)
        if isinstance(node, Inode):
            node.path = new
        if old != new:
            folder = self.disk.folder(os.path.dirname(old))
            folder.change((os.path.basename(old), None), (os.path.basename(new), node))

    def delete(self, path: str) -> None:
        self.enter("delete", path, 30 * _US)
        self.disk.inode(path)
        self.disk.folder(os.path.dirname(path)).change((os.path.basename(path), None))

    def sync_directory(self, path: str) -> None:
        self.enter("sync_directory", path, self.disk.sync_ns())
        folder = self.disk.folder(path)
        self.disk.may_fail_to_sync(path, self.disk.directory_sync_error_chance)
        folder.sync()

    def lock(self, path: str) -> SimulatedFile | None:
        self.enter("lock", path, 10 * _US)
        inode = self.disk.inode(path)
        if inode.holder is not None and inode.holder.open:
            return None
        inode.holder = SimulatedFile(self, inode)
        return inode.holder

    def boot_id(self) -> str:
        return self._boot_id

    def ticks_ns(self) -> int:
        return self.disk.now_ns() + self.busy_ns


class SimulatedDirectory:
    def __init__(self, view: ProcessDisk, path: str, folder: Folder) -> None:
        self._view, self._path, self._folder = view, path, folder

    def has(self, name: str) -> bool:
        path = f"{self._path}/{name}"
        self._view.enter("has", path, 3 * _US)
        if self._folder.removed:
            raise FileNotFoundError(errno.ENOENT, "the directory was deleted", path)
        return name in self._folder.entries

    def sync(self) -> None:
        self._view.enter("sync_directory", self._path, self._view.disk.sync_ns())
        self._view.disk.may_fail_to_sync(self._path, self._view.disk.directory_sync_error_chance)
        self._folder.sync()

    def close(self) -> None:
        pass


class SimulatedFile:
    def __init__(self, view: ProcessDisk, inode: Inode) -> None:
        self._view, self._inode = view, inode
        self._closed = False

    @property
    def open(self) -> bool:
        """Whether its process lives and has not closed it."""
        return not self._closed and not self._view.dead

    def _enter(self, operation: str, cost_ns: int) -> None:
        assert not self._closed, f"{operation} of {self._inode.path} after it was closed"
        self._view.enter(operation, self._inode.path, cost_ns)

    def write(self, buffers: Sequence[Buffer], position: int) -> int:
        begin_ns = self._view.busy_ns
        data = b"".join(buffers)
        self._enter("write", 10 * _US + len(data) * _NS_PER_KIB // 1024)
        written = self._view.disk.admit(self._inode, position, len(data))
        if written < len(data):
            data = data[:written]
        if self._view.queue is None:
            self._inode.write(position, data)
        else:
            self._view.queue.append(Io(begin_ns, self._view.busy_ns, self._inode, position, data, buffers))
        return written

    def write_durably(self, buffers: Sequence[Buffer], position: int) -> int:
        written = self.write(buffers, position)
        self.sync()
        return written

    def sync(self) -> None:
        view = self._view
        self._enter("sync", view.disk.sync_ns())
        try:
            view.disk.may_fail_to_sync(self._inode.path, view.disk.sync_error_chance)
        except OSError:
            self._synced(failed=True)
            raise
        self._synced(failed=False)

    def _synced(self, *, failed: bool) -> None:
        view = self._view
        if view.queue is not None:
            view.queue.append(Io(view.busy_ns, view.busy_ns, self._inode, 0, None, failed=failed))
        elif failed:
            self._inode.fail_to_sync(view.disk.rng)
        else:
            self._inode.sync()

    def read(self, position: int, length: int) -> bytes:
        self._enter("read", 20 * _US + length * _NS_PER_KIB // 1024)
        lost = self._view.disk.unreadable.get(self._inode.path, ())
        if any(position // PAGE <= byte // PAGE <= (position + length - 1) // PAGE for byte in lost):
            raise OSError(errno.EIO, "I/O error", self._inode.path)
        return bytes(memoryview(self._inode.data)[position : position + length])

    def size(self) -> int:
        return len(self._inode.data)

    def close(self) -> None:
        self._closed = True


class SimulatedDisk(ProcessDisk):
    """The disk of one host, which survives its crashes. Knobs, to be turned at any time:

    - `limit_bytes` (None: endless): what all files together may hold, ENOSPC beyond it
    - `sync_error_chance`, `directory_sync_error_chance`, `write_error_chance` (EIO), `short_write_chance`: per call
    - `slowness`: a factor; `stalled_until_ns`: nothing ends before
    - `gone`: every call fails with EIO
    - `unreadable`: path -> bytes that cannot be read, nor can the page around them
    - `fault(operation, path)` may raise before an operation, `shorten(length)` shortens a write
    - `crash_at` counts down the operations to the end of the machine

    `findings` tells what the product did wrong with the port.
    """

    def __init__(self, rng: random.Random | None = None, *, timeline: Timeline | None = None) -> None:
        super().__init__(self, None, "boot-1")
        self.rng = rng or random.Random(0)
        self.root = Folder()
        self.boot = 1
        self.limit_bytes: int | None = None
        self.sync_error_chance = 0.0
        self.directory_sync_error_chance = 0.0
        self.write_error_chance = 0.0
        self.short_write_chance = 0.0
        self.slowness = 1.0
        self.stalled_until_ns = 0
        self.gone = False
        self.unreadable: dict[str, set[int]] = {}
        self.fault: Callable[[str, str], None] = lambda operation, path: None
        self.shorten: Callable[[int], int] | None = None
        self.crash_at = -1
        self.operations: list[tuple[str, str]] = []  # only without a timeline
        self.findings: list[str] = []
        self._timeline = timeline
        self._ticks = 0
        self._views: list[ProcessDisk] = []

    def for_process(self, process: Owner, *, boot_id: str) -> ProcessDisk:
        """The `Disk` that a process uses. Its locks fall when the process dies."""
        view = ProcessDisk(self, process, boot_id)
        self._views = [*(view for view in self._views if not view.dead), view]
        return view

    # Time

    def now_ns(self) -> int:
        if self._timeline is not None:
            return self._timeline.now_ns
        self._ticks += 100_000
        return self._ticks

    def sync_ns(self, count: int = 1) -> int:
        """What the next sync takes, or so many: mostly a fraction of a millisecond, sometimes much."""
        if self._timeline is None:
            return 0
        dice = self.rng.random()
        if dice < 0.97:
            took = 100 * _US + int(1_500 * _US * dice * dice)
        else:
            took = self.rng.randint(2 * _MS, 60 * _MS) if dice < 0.998 else self.rng.randint(60 * _MS, 1_500 * _MS)
        return max(min(int(took * self.slowness), SLOWEST_NS) * count, self.stalled_until_ns - self._timeline.now_ns)

    # Faults

    def enter(self, operation: str, path: str, cost_ns: int = 0) -> None:
        """Count one operation of anybody, and raise what must be raised."""
        if self.crash_at == 0:
            raise Dead
        self.crash_at -= self.crash_at > 0
        if self._timeline is None:
            self.operations.append((operation, path))
        if self.gone:
            raise OSError(errno.EIO, "the volume is gone", path)
        self.fault(operation, path)

    def admit(self, inode: Inode, position: int, length: int) -> int:
        """How much of a write the disk takes; ENOSPC or EIO."""
        if self.write_error_chance and self.rng.random() < self.write_error_chance:
            raise OSError(errno.EIO, "I/O error", inode.path)
        grown = position + length - len(inode.data)
        if self.limit_bytes is not None and grown > 0:
            room = max(0, self.limit_bytes - self.used_bytes)
            if room < grown:
                length -= grown - room
                if length <= 0:
                    raise OSError(errno.ENOSPC, "no space left on device", inode.path)
        if self.shorten is not None:
            return self.shorten(length)
        if self.short_write_chance and self.rng.random() < self.short_write_chance:
            return self.rng.randint(1, length)
        return length

    def may_fail_to_sync(self, path: str, chance: float) -> None:
        if chance and self.rng.random() < chance:
            raise OSError(errno.EIO, "I/O error", path)

    @property
    def used_bytes(self) -> int:
        """What all files together hold."""
        return sum(len(inode.data) for _, inode in files_below(self.root))

    def flip_bit(self, suffix: str = ".wal") -> tuple[str, int] | None:
        """Rot: one bit of a durable byte of some file flips. (path, position), None: nothing is written there."""
        found = self._cold_byte(suffix)
        if found is None:
            return None
        path, _, position = found
        self.flip_at(path, position)
        return path, position

    def flip_at(self, path: str, position: int) -> None:
        """A bit of this byte flips, on the disk and in memory."""
        inode, bit = self.inode(path), 1 << self.rng.randrange(8)
        inode.durable[position] ^= bit
        inode.data[position] ^= bit

    def spoil_sector(self, suffix: str = ".wal") -> tuple[str, int] | None:
        """Some written sector cannot be read from now on, until the volume is replaced. As `flip_bit`."""
        found = self._cold_byte(suffix)
        if found is None:
            return None
        path, _, position = found
        self.unreadable.setdefault(path, set()).add(position)
        return path, position

    def _cold_byte(self, suffix: str) -> tuple[str, Inode, int] | None:
        """A byte that was written and synced, not behind the last one of its file that is not zero."""
        files = [(path, inode) for path, inode in files_below(self.root) if path.endswith(suffix)]
        for path, inode in self.rng.sample(files, len(files)):
            end = min(len(inode.durable.rstrip(b"\0")), len(inode.data))
            for _ in range(8 if end else 0):
                position = self.rng.randrange(end)
                if not any(begin <= position < last for begin, last in inode.dirty):
                    return path, inode, position
        return None

    # Crashes and copies

    def crash(self, seed: int | None = None) -> None:
        """The host lost power; all its processes were killed before. Un-synced sectors and names may be gone."""
        self._replace(self.root.left(self.rng if seed is None else random.Random(seed)))
        self.crash_at = -1
        self.boot += 1
        self._boot_id = f"boot-{self.boot}"

    def crash_of(self, boot_id: str) -> None:
        """One of several machines that share this file system lost power: its files may miss what was not synced."""
        for _, inode in files_below(self.root):
            if inode.made_under == boot_id:
                inode.forget(self.rng)

    def snapshot(self) -> Image:
        """A copy of the volume, made by the storage service under a running host."""
        return Image(self.root.left(self.rng))

    def restore(self, image: Image | None) -> None:
        """The volume comes back as it was then; None: as an empty one. No process may have it open."""
        assert all(view.dead for view in self._views)
        self._replace(Folder() if image is None else image.root.left(self.rng))
        self.unreadable.clear()

    def move(self, other: SimulatedDisk) -> None:
        """Attach this volume as the other's; this one is empty then. Both hosts are down."""
        other.restore(Image(self.root))
        self.restore(None)

    def _replace(self, root: Folder) -> None:
        self.root = root
        for path, inode in files_below(root):
            inode.path = path

    # Looking at it from outside

    def node(self, path: str) -> Inode | Folder:
        node: Inode | Folder = self.root
        for part in path.strip("/").split("/"):
            if not isinstance(node, Folder) or part not in node.entries:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            node = node.entries[part]
        return node

    def folder(self, path: str) -> Folder:
        node = self.node(path) if path.strip("/") else self.root
        assert isinstance(node, Folder)
        return node

    def inode(self, path: str) -> Inode:
        node = self.node(path)
        assert isinstance(node, Inode)
        return node
