"""Objects as files below one directory, whole or absent, also across processes and after a power cut.

A body goes to a temporary file, which is synced; then `link` creates (it fails if the name exists), or `rename` under
a lock replaces; then the directory is synced. Ordinary keys are their own paths, so a bucket may be copied to another
store, or from there, with any tool. Directories are never removed: one that was synced once stays.
"""

import asyncio
import errno
import fcntl
import functools
import mmap
import os
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from xxhash import xxh3_128

from storage.object_store import (
    BLOCK_BYTES,
    Body,
    Denied,
    NotFound,
    ObjectInfo,
    OutcomeUnknown,
    PreconditionFailed,
    StoredObject,
    StoreError,
    Unavailable,
    Upload,
    body_blocks,
    check_key,
)
from storage.wal.files import write_all

T = TypeVar("T")

LOCK_NAME = ".tidelog-lock"
TEMPORARY_NAME = ".tidelog-tmp"
LIST_PAGE = 1000
THREADS = 4
WRITE_BYTES = 1024 * 1024
"""A body is written in pieces of this size, whole ones past the page cache."""

_Run = Callable[[Callable[[threading.Event], Any]], Awaitable[Any]]
"""Runs a call in a thread for writes."""

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FileSystemStore:
    """An `ObjectStore` below `root`, which is created when first written to. `token(n)` gives n random bytes.

    The etag is a hash of the content. Size, mtime and inode would be cheaper but not safe: mtime ticks in milliseconds
    and a freed inode is given out again at once, so the third content of a racing key can look like the first.
    The hash is no defence against forgery and need not be: who may write here may replace any object.
    A listing tells no etags, because it would have to read every object.

    Large objects are written past the page cache: they are read again late, in part or never, memory that the cache has
    to find for them costs several times as much as the write, and writing all of it back in one sync holds up those of
    a WAL on the same disk.
    """

    def __init__(self, root: str | Path, *, token: Callable[[int], bytes]) -> None:
        self._files = _Files(Path(os.path.abspath(root)), token)
        # Apart, so that slow writes never hold up reads.
        self._readers = ThreadPoolExecutor(THREADS, "object-read")
        self._writers = ThreadPoolExecutor(THREADS, "object-write")

    def __repr__(self) -> str:
        return repr(self._files)

    async def put(self, key: str, body: Body) -> str:
        return await self._write(functools.partial(self._files.replace, check_key(key), body, None))

    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self._write(functools.partial(self._files.create, check_key(key), body))

    def upload(self, key: str) -> Upload:
        return _FileUpload(self._write, self._files, check_key(key))

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        return await self._write(functools.partial(self._files.replace, check_key(key), body, etag))

    async def delete(self, key: str) -> None:
        await self._write(functools.partial(self._files.delete, check_key(key)))

    async def get(self, key: str) -> StoredObject:
        return await self._read(functools.partial(self._files.get, check_key(key)))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        assert start >= 0 and length > 0, (start, length)
        return await self._read(functools.partial(self._files.get_range, check_key(key), start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._read(functools.partial(self._files.head, check_key(key)))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        walk = self._files.walk(prefix, start_after)
        while page := await self._read(lambda: tuple(islice(walk, LIST_PAGE))):
            for info in page:
                yield info

    async def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False)

    async def _read(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, call)

    async def _write(self, call: Callable[[threading.Event], T]) -> T:
        """Runs `call` in a thread; when cancelled, returns only after the thread let go of the caller's buffers."""
        stop = threading.Event()
        done = asyncio.get_running_loop().run_in_executor(self._writers, call, stop)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            stop.set()
            while not done.done():
                try:
                    await asyncio.wait([done])
                except asyncio.CancelledError:
                    continue
            if not done.cancelled():
                done.exception()  # retrieved: nobody waits for it any more
            raise


class _Files:
    """The same operations, blocking, for threads. Keys are checked. `stop` ends the writing of a body early."""

    def __init__(self, root: Path, token: Callable[[int], bytes]) -> None:
        self._root = root
        self._token = token
        self._opening = threading.Lock()
        self._ready = False
        self._synced: set[Path] = set()  # directories whose entry is known to be durable

    def __repr__(self) -> str:
        return f"file:{self._root}"

    def create(self, key: str, body: Body, stop: threading.Event) -> str:
        with self._errors("write", key) as progress, self._temporary() as temporary:
            temporary.write(body, stop)
            return self._link(key, temporary, progress)

    def _link(self, key: str, temporary: "_Temporary", progress: "_Errors") -> str:
        """The object exists under its key, unless one does already."""
        path = self._path(key)
        etag = temporary.finish()
        self._make_directory(path.parent)
        try:
            os.link(temporary.path, path)
        except FileExistsError:
            if path.is_dir():
                raise
            raise PreconditionFailed(f"{self!r}: {key} exists") from None
        except OSError as error:
            if error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise StoreError(f"{self!r}: this file system has no hard links: use another one") from error
            raise
        progress.visible = True
        _sync_directory(path.parent)
        return etag

    def extend(self, key: str, growing: "list[_Temporary]", part: Body, stop: threading.Event) -> None:
        """One part more of an upload; `growing` holds its temporary file once there is one."""
        with self._errors("write", key):
            if not growing:
                growing.append(self._temporary().__enter__())
            growing[0].write(part, stop)

    def finish(self, key: str, growing: "list[_Temporary]", _stop: threading.Event) -> str:
        """The object of all parts."""
        with self._errors("write", key) as progress:
            return self._link(key, growing[0], progress)

    def discard(self, key: str, growing: "list[_Temporary]", _stop: threading.Event) -> None:
        """The temporary file goes."""
        with self._errors("write", key):
            while growing:
                growing.pop().__exit__()

    def replace(self, key: str, body: Body, expected: str | None, stop: threading.Event) -> str:
        path = self._path(key)
        with self._errors("write", key) as progress, self._temporary() as temporary:
            temporary.write(body, stop)
            etag = temporary.finish()
            self._make_directory(path.parent)
            with _Lock(self._root / LOCK_NAME):
                if expected is not None:
                    self._expect(key, path, expected)
                os.rename(temporary.path, path)
            progress.visible = True
            _sync_directory(path.parent)
            return etag

    def delete(self, key: str, _stop: threading.Event) -> None:
        path = self._path(key)
        with self._errors("delete", key) as progress:
            if not path.is_file():
                return
            with _Lock(self._root / LOCK_NAME):
                path.unlink(missing_ok=True)
            progress.visible = True
            _sync_directory(path.parent)

    def get(self, key: str) -> StoredObject:
        with self._errors("read", key), open(self._path(key), "rb") as file:
            data = file.read()
        return StoredObject(data, xxh3_128(data).hexdigest())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = b""
        with self._errors("read", key), open(self._path(key), "rb", buffering=0) as file:
            # One call gives at most 2 GiB, and a signal may cut it.
            while more := os.pread(file.fileno(), length - len(data), start + len(data)):
                data = data + more if data else more
        if len(data) != length:
            raise NotFound(f"{self!r}: {key} ends before byte {start + length}")
        return data

    def head(self, key: str) -> ObjectInfo:
        with self._errors("read", key), open(self._path(key), "rb", buffering=0) as file:
            return ObjectInfo(key, os.fstat(file.fileno()).st_size, _hash(file.fileno()))

    def walk(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """The listing of the port."""
        with self._errors("list", prefix):
            yield from self._walk(self._root, "", prefix, start_after)

    def _walk(self, directory: Path, parent: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """The objects of `directory`, whose keys begin with `parent`, in key order: a directory sorts as `name/`."""
        found = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    segment = unquote(entry.name)
                    if _file_name(segment) == entry.name:  # else it is not ours: no key leads to it
                        slash = "/" if entry.is_dir(follow_symlinks=False) else ""
                        found.append((parent + segment + slash, entry.name))
        except FileNotFoundError:
            return
        for key, name in sorted(found):
            if key.endswith("/"):
                wanted = key.startswith(prefix) or prefix.startswith(key)
                if wanted and (key > start_after or start_after.startswith(key)):
                    yield from self._walk(directory / name, key, prefix, start_after)
            elif key.startswith(prefix) and key > start_after:
                try:
                    yield ObjectInfo(key, os.stat(directory / name).st_size, "")
                except FileNotFoundError:
                    continue  # deleted meanwhile

    def _expect(self, key: str, path: Path, expected: str) -> None:
        try:
            with open(path, "rb", buffering=0) as file:
                etag = _hash(file.fileno())
        except _ABSENT:
            raise PreconditionFailed(f"{self!r}: {key} does not exist, so it has not etag {expected}") from None
        if etag != expected:
            raise PreconditionFailed(f"{self!r}: {key} has etag {etag}, not {expected}")

    def _path(self, key: str) -> Path:
        return self._root.joinpath(*map(_file_name, key.split("/")))

    def _temporary(self) -> "_Temporary":
        directory = self._root / TEMPORARY_NAME
        with self._opening:
            if not self._ready:
                directory.mkdir(parents=True, exist_ok=True)
                for path in directory.iterdir():
                    _remove_if_abandoned(path)
                _sync_directory(self._root.parent)
                self._ready = True
        return _Temporary(directory, self._token)

    def _make_directory(self, path: Path) -> None:
        """Makes `path` and the directories above it, each entry durable."""
        if path in self._synced and path.is_dir():
            return
        path.mkdir(parents=True, exist_ok=True)
        chain = [path, *path.parents]
        for directory in chain[: chain.index(self._root)]:
            _sync_directory(directory.parent)
        self._synced.add(path)

    def _errors(self, verb: str, key: str) -> "_Errors":
        return _Errors(self._root, verb, key)


class _FileUpload:
    """A temporary file that grows, part by part."""

    def __init__(self, run: _Run, files: _Files, key: str) -> None:
        self._run = run
        self._files = files
        self._key = key
        self._growing: list[_Temporary] = []

    async def write(self, part: Body) -> None:
        await self._run(functools.partial(self._files.extend, self._key, self._growing, part))

    async def create(self) -> str:
        etag: str = await self._run(functools.partial(self._files.finish, self._key, self._growing))
        await self.abort()
        return etag

    async def abort(self) -> None:
        try:
            await self._run(functools.partial(self._files.discard, self._key, self._growing))
        except StoreError:
            pass  # it costs its space until the store is opened again


class _Errors:
    """Turns the `OSError` of one operation into the port's error. `visible`: the change may already be seen."""

    def __init__(self, root: Path, verb: str, key: str) -> None:
        self.visible = False
        self._root = root
        self._verb = verb
        self._key = key

    def __enter__(self) -> "_Errors":
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise self._translate(error) from error

    def _translate(self, error: OSError) -> StoreError:
        if self._verb == "read" and isinstance(error, _ABSENT):
            return NotFound(f"file:{self._root}: {self._key} does not exist")
        what = f"file:{self._root}: cannot {self._verb} {self._key!r}: {error.strerror}"
        if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
            return StoreError(f"{what}: no key may be the parent of another key")
        if error.errno == errno.ENAMETOOLONG:
            return StoreError(f"{what}: a part of the key between slashes is too long for this file system")
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return Denied(f"{what}: give this user the right to read and write below {self._root}")
        if self.visible:
            return OutcomeUnknown(what)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return Unavailable(f"{what}: free space there")
        return Unavailable(what)


class _Temporary:
    """A file under a name of its own, written from its start to its end; gone at exit."""

    def __init__(self, directory: Path, token: Callable[[int], bytes]) -> None:
        self._directory = directory
        self._token = token
        self._may_be_direct = True
        self._digest = xxh3_128()
        self._position = 0
        # Direct writes need aligned memory; copied there, the bytes are hashed while the CPU's cache holds them. It is
        # not closed but let go: the trace of an error may hold a view of it still, and then it cannot be closed.
        self._room = memoryview(mmap.mmap(-1, WRITE_BYTES))
        self._filled = 0
        self._broken = False
        self.path = Path()

    def __enter__(self) -> "_Temporary":
        self._descriptor = self._make()
        return self

    def write(self, body: Body, stop: threading.Event) -> None:
        """More of the body. After an error the file is good for nothing."""
        if self._broken:
            raise OSError(errno.EIO, "an earlier part could not be written")
        self._broken = True
        for view in body_blocks(body):
            while view:
                part, view = view[: WRITE_BYTES - self._filled], view[WRITE_BYTES - self._filled :]
                self._room[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                if self._filled == WRITE_BYTES:
                    if stop.is_set():
                        raise OSError(errno.ECANCELED, "cancelled")
                    self._write_room()
        self._broken = False

    def finish(self) -> str:
        """Everything is synced; the etag."""
        if self._broken:
            raise OSError(errno.EIO, "a part could not be written")
        if self._filled:
            self._write_room()
        os.fsync(self._descriptor)
        return self._digest.hexdigest()

    def _write_room(self) -> None:
        piece = self._room[: self._filled]
        self._digest.update(piece)
        self._write_piece(piece, self._position)
        self._position += self._filled
        self._filled = 0

    def _write_piece(self, piece: memoryview, position: int) -> None:
        direct = self._may_be_direct and len(piece) == WRITE_BYTES
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, os.O_DIRECT if direct else 0)
            write_all(functools.partial(os.pwritev, self._descriptor), [piece], position)
        except OSError as error:
            # The file system does not take direct writes, or one was short and its rest is not aligned.
            if not direct or error.errno != errno.EINVAL:
                raise
            self._may_be_direct = False
            self._write_piece(piece, position)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _make(self) -> int:
        """Creates the file and locks it, so that whoever opens the store meanwhile knows that it is in use."""
        while True:
            self.path = self._directory / self._token(16).hex()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                os.close(descriptor)
                raise
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # taken for abandoned before it was locked


class _Lock:
    """Excludes all other replacing and deleting below one root, in every thread and process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _file_name(segment: str) -> str:
    """One segment of a key as a file name. A leading dot is ours, everything unusual is percent-encoded."""
    name = quote(segment, safe="=+,@:")
    return "%2E" + name[1:] if name.startswith(".") else name


def _hash(descriptor: int) -> str:
    """The etag of an open file."""
    digest = xxh3_128()
    position = 0
    while block := os.pread(descriptor, BLOCK_BYTES, position):
        digest.update(block)
        position += len(block)
    return digest.hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    """A temporary file that nobody has locked was left by a killed process."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
