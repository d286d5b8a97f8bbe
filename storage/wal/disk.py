"""The disk as the volume WAL uses it: a port, and Linux behind it.

Everything blocks and is called from a thread of its own, but for `Directory.has`. Errors are `OSError`, `exists` and
`has` included: only "it is not there" counts as absence. A simulation brings its own `Disk`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol import Buffer

#: What a kernel or file system says that does not know RWF_DSYNC.
_REFUSALS = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class DiskFile(Protocol):
    """An open file. Positions and lengths in bytes."""

    def write(self, buffers: Sequence[Buffer], position: int) -> int:
        """Bytes written, perhaps not all; durable after `sync`."""

    def write_durably(self, buffers: Sequence[Buffer], position: int) -> int:
        """Bytes written, perhaps not all; they are durable when this returns."""

    def sync(self) -> None:
        """Make everything written durable, the size of the file included."""

    def read(self, position: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""

    def size(self) -> int: ...

    def close(self) -> None: ...


class Directory(Protocol):
    """An open directory: stays the same one when its path is renamed."""

    def has(self, name: str) -> bool:
        """Whether the name is there. An error when the directory itself was deleted."""

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Disk(Protocol):
    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none when it does not exist."""

    def exists(self, path: str) -> bool: ...

    def make_directory(self, path: str) -> None:
        """Create a directory and its parents, durably. One that exists is fine."""

    def remove_directory(self, path: str) -> None: ...

    def open_directory(self, path: str) -> Directory: ...

    def create(self, path: str) -> DiskFile:
        """A new empty file for reading and writing; an old one of this name is emptied."""

    def open(self, path: str) -> DiskFile:
        """An existing file, for reading."""

    def rename(self, old: str, new: str) -> None: ...

    def delete(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def lock(self, path: str) -> DiskFile | None:
        """Open an existing file and lock it against other holders; None: somebody has it. Closing unlocks."""

    def boot_id(self) -> str:
        """Names this run of the kernel."""

    def ticks_ns(self) -> int:
        """A steady clock for metrics, nanoseconds."""


class LinuxFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._dsync = True

    def write(self, buffers: Sequence[Buffer], position: int) -> int:
        return os.pwritev(self._descriptor, buffers, position)

    def write_durably(self, buffers: Sequence[Buffer], position: int) -> int:
        if self._dsync:
            try:
                return os.pwritev(self._descriptor, buffers, position, os.RWF_DSYNC)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._dsync = False
        written = os.pwritev(self._descriptor, buffers, position)
        os.fdatasync(self._descriptor)
        return written

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def read(self, position: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, position)
        if len(data) == length or not data:
            return data
        pieces = [data]
        while data:
            position += len(data)
            length -= len(data)
            data = os.pread(self._descriptor, length, position)
            pieces.append(data)
        return b"".join(pieces)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LinuxDirectory:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            if os.fstat(self._descriptor).st_nlink == 0:
                raise  # somebody deleted the directory: what is written into its files is lost
            return False
        return True

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LinuxDisk:
    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
        except FileNotFoundError:
            return False
        return True

    def make_directory(self, path: str) -> None:
        path = os.path.abspath(path)
        parent = os.path.dirname(path)
        if parent != path and not self.exists(parent):
            self.make_directory(parent)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        else:
            self.sync_directory(parent)

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def open_directory(self, path: str) -> LinuxDirectory:
        return LinuxDirectory(os.open(path, os.O_RDONLY | os.O_DIRECTORY))

    def create(self, path: str) -> LinuxFile:
        return LinuxFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))

    def open(self, path: str) -> LinuxFile:
        return LinuxFile(os.open(path, os.O_RDONLY))

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def delete(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: str) -> LinuxFile | None:
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return LinuxFile(descriptor)

    def boot_id(self) -> str:
        with open("/proc/sys/kernel/random/boot_id") as source:
            return source.read().strip()

    def ticks_ns(self) -> int:
        return time.perf_counter_ns()
