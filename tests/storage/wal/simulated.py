"""A disk in memory that forgets what was not synced, and a driver that runs the WAL's jobs on the event loop.

Same ports, same code above them, no threads: an integer seed decides what a crash leaves behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random  # noqa: TID251
from collections.abc import Callable, Sequence

from protocol import Buffer
from storage.wal.worker import Job

SECTOR = 512


class Crash(BaseException):
    """The machine is gone: every later call raises it again."""


class Inode:
    """A file: what the kernel shows, and what the disk holds."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.locked = False
        self.path = ""

    def write(self, position: int, data: bytes) -> None:
        if len(self.data) < position + len(data):
            self.data.extend(bytes(position + len(data) - len(self.data)))
        self.data[position : position + len(data)] = data
        if data:
            self.dirty.update(range(position // SECTOR, (position + len(data) - 1) // SECTOR + 1))

    def sync(self) -> None:
        for sector in self.dirty:
            self._persist(sector)
        self.durable[len(self.data) :] = b""
        self.dirty.clear()

    def _persist(self, sector: int) -> None:
        begin, end = sector * SECTOR, min((sector + 1) * SECTOR, len(self.data))
        if len(self.durable) < end:
            self.durable.extend(bytes(end - len(self.durable)))
        self.durable[begin:end] = self.data[begin:end]

    def crash(self, chance: random.Random) -> None:
        share = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        for sector in sorted(self.dirty):
            if chance.random() < share:
                self._persist(sector)
        self.data = bytearray(self.durable)
        self.dirty.clear()
        self.locked = False


class Folder:
    """A directory: its entries, and the changes that are not durable yet, in order."""

    def __init__(self) -> None:
        self.entries: dict[str, Inode | Folder] = {}
        self.durable: dict[str, Inode | Folder] = {}
        self.pending: list[list[tuple[str, Inode | Folder | None]]] = []

    def change(self, *changes: tuple[str, Inode | Folder | None]) -> None:
        self.pending.append(list(changes))
        self._apply(self.entries, self.pending[-1])

    def sync(self) -> None:
        for change in self.pending:
            self._apply(self.durable, change)
        self.pending.clear()

    def crash(self, chance: random.Random) -> None:
        for change in self.pending[: chance.randint(0, len(self.pending))]:
            self._apply(self.durable, change)
        self.pending.clear()
        self.entries = dict(self.durable)
        for entry in self.entries.values():
            entry.crash(chance)

    @staticmethod
    def _apply(entries: dict[str, Inode | Folder], change: list[tuple[str, Inode | Folder | None]]) -> None:
        for name, node in change:
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node


class SimulatedDisk:
    """`fault(operation, path)` may raise before an operation; `crash_at` counts down to the end of the machine."""

    def __init__(self) -> None:
        self.root = Folder()
        self.fault: Callable[[str, str], None] = lambda operation, path: None
        self.shorten: Callable[[int], int] = lambda length: length
        self.crash_at = -1
        self.boot = 1
        self.ticks = 0
        self.operations: list[tuple[str, str]] = []
        self.unreadable: dict[str, set[int]] = {}  # path -> bytes that cannot be read

    def crash(self, seed: int) -> None:
        """Lose what was not synced, or not all of it, and start again."""
        self.root.crash(random.Random(seed))
        self.crash_at = -1
        self.boot += 1

    def enter(self, operation: str, path: str) -> None:
        if self.crash_at == 0:
            raise Crash
        self.crash_at -= self.crash_at > 0
        self.operations.append((operation, path))
        self.fault(operation, path)

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

    def names(self, path: str) -> list[str]:
        self.enter("names", path)
        return sorted(self.folder(path).entries) if self.exists(path) else []

    def exists(self, path: str) -> bool:
        self.enter("exists", path)
        try:
            self.node(path)
        except FileNotFoundError:
            return False
        return True

    def make_directory(self, path: str) -> None:
        self.enter("make_directory", path)
        folder = self.root
        for part in path.strip("/").split("/"):
            if part not in folder.entries:
                folder.change((part, Folder()))
                folder.sync()
            node = folder.entries[part]
            assert isinstance(node, Folder)
            folder = node

    def remove_directory(self, path: str) -> None:
        self.enter("remove_directory", path)
        assert not self.folder(path).entries
        self.folder(os.path.dirname(path)).change((os.path.basename(path), None))

    def open_directory(self, path: str) -> SimulatedDirectory:
        self.enter("open_directory", path)
        return SimulatedDirectory(self, path, self.folder(path))

    def create(self, path: str) -> SimulatedFile:
        self.enter("create", path)
        folder = self.folder(os.path.dirname(path))
        inode = Inode()
        inode.path = path
        folder.change((os.path.basename(path), inode))
        return SimulatedFile(self, inode)

    def open(self, path: str) -> SimulatedFile:
        self.enter("open", path)
        return SimulatedFile(self, self.inode(path))

    def rename(self, old: str, new: str) -> None:
        self.enter("rename", new)
        node = self.node(old)
        assert os.path.dirname(old) == os.path.dirname(new)
        if isinstance(node, Inode):
            node.path = new
        if old != new:
            self.folder(os.path.dirname(old)).change((os.path.basename(old), None), (os.path.basename(new), node))

    def delete(self, path: str) -> None:
        self.enter("delete", path)
        self.node(path)
        self.folder(os.path.dirname(path)).change((os.path.basename(path), None))

    def sync_directory(self, path: str) -> None:
        self.enter("sync_directory", path)
        self.folder(path).sync()

    def lock(self, path: str) -> SimulatedFile | None:
        self.enter("lock", path)
        inode = self.inode(path)
        if inode.locked:
            return None
        inode.locked = True
        return SimulatedFile(self, inode, locked=True)

    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def ticks_ns(self) -> int:
        self.ticks += 100_000
        return self.ticks


class SimulatedDirectory:
    def __init__(self, disk: SimulatedDisk, path: str, folder: Folder) -> None:
        self._disk, self._path, self._folder = disk, path, folder

    def has(self, name: str) -> bool:
        self._disk.enter("has", f"{self._path}/{name}")
        return name in self._folder.entries

    def sync(self) -> None:
        self._disk.enter("sync_directory", self._path)
        self._folder.sync()

    def close(self) -> None:
        pass


class SimulatedFile:
    def __init__(self, disk: SimulatedDisk, inode: Inode, *, locked: bool = False) -> None:
        self._disk, self._inode, self._locked = disk, inode, locked

    def write(self, buffers: Sequence[Buffer], position: int) -> int:
        self._disk.enter("write", self._inode.path)
        data = b"".join(buffers)
        written = self._disk.shorten(len(data))
        self._inode.write(position, data[:written])
        return written

    def write_durably(self, buffers: Sequence[Buffer], position: int) -> int:
        written = self.write(buffers, position)
        self._disk.enter("sync", self._inode.path)
        self._inode.sync()
        return written

    def sync(self) -> None:
        self._disk.enter("sync", self._inode.path)
        self._inode.sync()

    def read(self, position: int, length: int) -> bytes:
        self._disk.enter("read", self._inode.path)
        if any(position <= byte < position + length for byte in self._disk.unreadable.get(self._inode.path, ())):
            raise OSError(errno.EIO, "I/O error", self._inode.path)
        return bytes(self._inode.data[position : position + length])

    def size(self) -> int:
        return len(self._inode.data)

    def close(self) -> None:
        if self._locked:
            self._inode.locked = self._locked = False


class LoopWorker:
    """Drives a job on the event loop, a step a turn. `hold` stops it between two steps."""

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self.idle = False
        self.hold = False
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._stopped: Callable[[], None] | None = None
        self._turn_due = False

    def start(self) -> None:
        self._call_soon()

    def wake(self) -> None:
        self.idle = False
        self._call_soon()

    def stop(self, stopped: Callable[[], None]) -> None:
        self._stopped = stopped
        self.hold = False
        self._call_soon()

    def release(self) -> None:
        self.hold = False
        self._call_soon()

    def _call_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.hold:
            return
        try:
            wait = self._job.step()
        except Crash:
            wait = None
        if wait == 0.0:
            self._call_soon()
        elif self._stopped is not None:
            self._stopped()
        elif wait is None:
            self.idle = True
        else:
            self._loop.call_later(wait / 100, self._call_soon)
