"""The files of one instance: pre-written, one ahead of use, and used again under a new number.

Overwriting is far cheaper than appending, and a file that is ready cannot run out of space. So every file is written
with zeros once and synced with its directory before its first group. A trimmed file gets the next number: the groups
that it still holds carry the old one and are invalid.
"""

from __future__ import annotations

import os.path
from collections import deque
from typing import TYPE_CHECKING

from storage.wal.format import file_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocol import Buffer
    from storage.wal.disk import Directory, Disk, DiskFile

_STEP_BYTES = 1 << 20
_STEPS_PER_SYNC = 4  # so that no single sync delays those of the groups for long
_AHEAD_MAX = 4
_PEAKS_KEPT = 8  # trims over which the ring's size is remembered
_RETRY_SECONDS_MIN = 0.1
_RETRY_SECONDS_MAX = 5.0
_UNFINISHED = "preparing"


class WalFile:
    """One numbered file. `last_group` is known when the writer has left it."""

    __slots__ = ("handle", "last_group", "number")

    def __init__(self, number: int, handle: DiskFile) -> None:
        self.number = number
        self.handle = handle
        self.last_group = 0


def write_all(write: Callable[[Sequence[Buffer], int], int], buffers: Sequence[Buffer], position: int) -> None:
    """Write all buffers from `position` on, going on after short writes."""
    left = sum(map(len, buffers))
    while True:
        written = write(buffers, position)
        left -= written
        if not left:
            return
        if written <= 0:
            raise OSError("a write wrote nothing")
        position += written
        rest: list[Buffer] = []
        for buffer in buffers:
            if written < len(buffer):
                rest.append(memoryview(buffer)[written:] if written else buffer)
            written = max(0, written - len(buffer))
        buffers = rest


class FileRing:
    """Prepares and recycles files, off the loop. `ready` is handed to the writer in number order.

    Files of the instance have the numbers `oldest` .. `ready_through`; those up to `taken` hold groups or soon will.
    A failure leaves `error` set until a later attempt succeeds; it never ends anything.
    """

    def __init__(
        self,
        disk: Disk,
        path: str,
        directory: Directory,
        *,
        file_bytes: int,
        files_max: int,
        changed: Callable[[], None],
    ) -> None:
        self.file_bytes = file_bytes
        self.files_max = files_max
        self.ready: deque[WalFile] = deque()
        self.ready_through = 0
        self.taken = 0
        self.oldest = 1
        self.error: OSError | None = None
        self.failure: Exception | None = None  # a bug of ours: the process must end
        self.stopping = False
        self.wake: Callable[[], None] = lambda: None  # the driver's
        self._disk = disk
        self._path = path
        self._directory = directory
        self._changed = changed
        self._ahead = 1
        self._freed: deque[WalFile] = deque()
        self._peaks: deque[int] = deque([2], maxlen=_PEAKS_KEPT)
        self._retry_seconds = _RETRY_SECONDS_MIN

    @property
    def numbered(self) -> int:
        """How many files hold groups or are ready to."""
        return self.ready_through - self.oldest + 1

    @property
    def unprepared(self) -> int:
        """How many files may still be prepared; 0 while preparing fails."""
        return self.files_max - self.numbered if self.error is None else 0

    def take(self) -> WalFile | None:
        """The next file for the writer. On its thread."""
        if not self.ready:
            return None
        file = self.ready.popleft()
        self.taken = file.number
        self.wake()
        return file

    def free(self, files: Sequence[WalFile]) -> None:
        """Take back the oldest files, all their groups trimmed. On the loop."""
        self._peaks.append(self.taken - self.oldest + 1)
        self._freed.extend(files)
        self.oldest = files[-1].number + 1
        self.wake()

    def hurry(self, n_bytes: int) -> None:
        """Somebody who wants so much must wait for files that could have been there: prepare more of them ahead."""
        if len(self.ready) >= self._ahead:
            needed = -(-n_bytes // self.file_bytes) + 1
            self._ahead = max(min(self._ahead + 1, _AHEAD_MAX), needed)
            self.wake()

    def step(self) -> float | None:
        """Prepare or recycle one file."""
        if self.stopping:
            return None
        try:
            if self._freed:
                self._take_back(self._freed[0])
                self._freed.popleft()
            elif len(self.ready) < self._ahead and self.numbered < self.files_max:
                self._prepare()
            else:
                return None
        except OSError as error:
            self.error = error
            self._changed()
            wait = self._retry_seconds
            self._retry_seconds = min(2 * wait, _RETRY_SECONDS_MAX)
            return wait
        except Exception as error:
            self.failure = error
            self.stopping = True
            self._changed()
            return None
        self.error = None
        self._retry_seconds = _RETRY_SECONDS_MIN
        self._changed()
        return 0.0

    def close(self) -> None:
        for file in (*self.ready, *self._freed):
            file.handle.close()

    def _take_back(self, file: WalFile) -> None:
        """Give a trimmed file the next number, or delete it when the ring is larger than it lately had to be."""
        path = os.path.join(self._path, file_name(file.number))
        if self._directory.has("fence"):
            file.handle.close()  # and keep it: somebody may be reading it
        elif self.numbered >= max(self._peaks) + self._ahead:
            self._disk.delete(path)
            self._directory.sync()  # one after the other: a crash must not leave a hole in the numbers
            file.handle.close()
        else:
            self._add(path, file)

    def _prepare(self) -> None:
        path = os.path.join(self._path, _UNFINISHED)
        handle = self._disk.create(path)
        try:
            zeros = bytes(min(_STEP_BYTES, self.file_bytes))
            for step, position in enumerate(range(0, self.file_bytes, _STEP_BYTES), 1):
                if self.stopping:
                    raise InterruptedError("stopping")
                write_all(handle.write, [zeros[: self.file_bytes - position]], position)
                if step % _STEPS_PER_SYNC == 0:
                    handle.sync()
            handle.sync()
            handle.write_durably([zeros[:512]], 0)  # finds out how this file system makes groups durable
            self._add(path, WalFile(0, handle))
        except BaseException:
            handle.close()
            try:
                self._disk.delete(path)  # a full disk gets its space back
            except OSError:
                pass
            raise

    def _add(self, path: str, file: WalFile) -> None:
        number = self.ready_through + 1
        self._disk.rename(path, os.path.join(self._path, file_name(number)))
        file.number = number  # before the sync: a second attempt begins at the new name
        self._directory.sync()
        self.ready.append(file)
        self.ready_through = number
