"""The file-system store: what is durable when, what a killed process leaves, and what errors say."""

import asyncio
import errno
import fcntl
import os
import secrets
import sys
import threading
import time
from pathlib import Path

import pytest

from storage.filesystem import LOCK_NAME, TEMPORARY_NAME, WRITE_BYTES, FileSystemStore
from storage.object_store import (
    Denied,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "new" / "bucket"


@pytest.fixture
def store(root: Path) -> FileSystemStore:
    return FileSystemStore(root, token=secrets.token_bytes)


async def test_ordinary_keys_are_their_own_paths(store: FileSystemStore, root: Path) -> None:
    """So that a bucket can be copied to another kind of store with any tool."""
    for key in ("cluster.json", "segments/1/00ff/12-0", "metadata/00000000000000000017", "a/b=c/d+e,f@g:h_~"):
        await store.put_if_absent(key, key.encode())
        assert (root / key).read_bytes() == key.encode()
    await store.close()


async def test_reading_creates_nothing(store: FileSystemStore, root: Path) -> None:
    assert [info async for info in store.list("")] == []
    with pytest.raises(NotFound):
        await store.get("key")
    await store.delete("key")
    assert not root.exists()
    await store.close()


async def test_a_foreign_file_is_not_an_object(store: FileSystemStore, root: Path) -> None:
    await store.put("dir/key", b"value")
    (root / "dir" / "not ours").write_bytes(b"")
    (root / ".hidden").write_bytes(b"")
    assert [info.key async for info in store.list("")] == ["dir/key"]
    await store.close()


async def test_no_key_is_the_parent_of_another(store: FileSystemStore) -> None:
    await store.put_if_absent("a", b"1")
    await store.put_if_absent("b/c", b"2")
    for key in ("a/x", "a/x/y", "b"):
        for call in (store.put_if_absent(key, b"3"), store.put(key, b"3")):
            with pytest.raises(StoreError, match="parent of another key") as caught:
                await call
            assert type(caught.value) is StoreError
        with pytest.raises(PreconditionFailed if key == "b" else StoreError):
            await store.put_if_match(key, b"3", "etag")
        for read in (store.get(key), store.head(key), store.get_range(key, 0, 1)):
            with pytest.raises(NotFound):
                await read
    assert [info.key async for info in store.list("")] == ["a", "b/c"]
    await store.close()


async def test_everything_is_synced_before_it_counts(
    store: FileSystemStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body before its name, and every new name afterwards; then the call returns."""
    await store.put("warm", b"")
    steps: list[tuple[str, str]] = []
    real_fsync, real_link, real_rename = os.fsync, os.link, os.rename

    def name(path: object) -> str:
        relative = os.path.relpath(str(path), root)
        return "temporary" if relative.startswith(TEMPORARY_NAME) else relative

    def fsync(descriptor: int) -> None:
        steps.append(("sync", name(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real_fsync(descriptor)

    def link(source: Path, target: Path) -> None:
        steps.append(("link", name(target)))
        real_link(source, target)

    def rename(source: Path, target: Path) -> None:
        steps.append(("rename", name(target)))
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "rename", rename)
    etag = await store.put_if_absent("a/b/key", b"first")
    new_directories = [("sync", "a"), ("sync", ".")]
    assert steps == [("sync", "temporary"), *new_directories, ("link", "a/b/key"), ("sync", "a/b")]
    steps.clear()
    await store.put_if_match("a/b/key", b"second", etag)
    assert steps == [("sync", "temporary"), ("rename", "a/b/key"), ("sync", "a/b")]
    steps.clear()
    await store.delete("a/b/key")
    assert steps == [("sync", "a/b")]
    await store.close()


@pytest.mark.parametrize(
    ("function", "number", "kind", "says"),
    [
        ("fsync", errno.ENOSPC, Unavailable, "free space"),
        ("fsync", errno.EDQUOT, Unavailable, "free space"),
        ("fsync", errno.EIO, Unavailable, "cannot write 'key'"),
        ("link", errno.ENOSPC, Unavailable, "free space"),
        ("link", errno.EACCES, Denied, "right to read and write"),
        ("link", errno.EPERM, StoreError, "no hard links"),
        ("open", errno.EROFS, Denied, "right to read and write"),
        ("open", errno.EMFILE, Unavailable, "Too many open files"),
    ],
)
async def test_trouble_before_the_name_is_there(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch, function: str, number: int, kind: type, says: str
) -> None:
    await store.put("warm", b"")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(kind, match=says):
            await store.put_if_absent("key", b"value")
    assert [info.key async for info in store.list("")] == ["warm"]
    await store.put_if_absent("key", b"value")
    await store.close()


@pytest.mark.parametrize("trouble", ["none", "no direct writes", "direct writes fail", "short writes"])
async def test_a_large_body_goes_past_the_page_cache_where_that_works(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Its whole pieces do, the rest does not; a file system that refuses gets everything through its cache."""
    writes: list[tuple[bool, int, int]] = []
    real_fcntl, real_pwritev = fcntl.fcntl, os.pwritev

    def refusing(descriptor: int, command: int, argument: int = 0) -> int:
        if trouble == "no direct writes" and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_fcntl(descriptor, command, argument)

    def pwritev(descriptor: int, buffers: list[memoryview], position: int) -> int:
        direct = bool(real_fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        if direct and trouble == "direct writes fail":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        views = [buffers[0][:100_001]] if trouble == "short writes" else buffers
        if direct and (position % 512 or len(views[0]) % 512):  # ext4 says so, others may not
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        writes.append((direct, position, len(views[0])))
        return real_pwritev(descriptor, views, position)

    await store.put("warm", b"")
    body = [secrets.token_bytes(MIB // 3) for _ in range(10)]
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refusing)
        patch.setattr(os, "pwritev", pwritev)
        etag = await store.put_if_absent("key", body)
    rest = len(b"".join(body)) % WRITE_BYTES
    direct = trouble == "none"
    if trouble != "short writes":
        assert writes == [*((direct, n * MIB, WRITE_BYTES) for n in range(3)), (False, 3 * MIB, rest)]
    assert await store.get("key") == (b"".join(body), etag)
    assert (await store.head("key")).etag == etag
    await store.close()


@pytest.mark.parametrize("first_write", [WRITE_BYTES, 200 * 512])
async def test_trouble_in_the_middle_of_a_large_body_leaves_nothing(
    store: FileSystemStore, root: Path, monkeypatch: pytest.MonkeyPatch, first_write: int
) -> None:
    """Also after a write that was cut short, whose rest the error still holds."""
    real_pwritev = os.pwritev

    def full(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if position:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_pwritev(descriptor, [buffers[0][:first_write]], position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(Unavailable, match="free space"):
            await store.put_if_absent("key", [bytes(WRITE_BYTES), b"more"])
    assert [info async for info in store.list("")] == []
    assert list((root / TEMPORARY_NAME).iterdir()) == []
    await store.close()


async def test_trouble_after_the_name_is_there_is_an_unknown_outcome(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("warm", b"")

    def fail(_path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("storage.filesystem._sync_directory", fail)
        for call in (store.put_if_absent("new", b""), store.put("warm", b"x"), store.delete("warm")):
            with pytest.raises(OutcomeUnknown):
                await call
    await store.close()


async def test_what_a_killed_process_was_writing_is_removed(store: FileSystemStore, root: Path) -> None:
    """Unlocked temporary files are litter; a locked one belongs to a process that is alive."""
    directory = root / TEMPORARY_NAME
    directory.mkdir(parents=True)
    (directory / "dead").write_bytes(b"half a body")
    alive = os.open(directory / "alive", os.O_CREAT | os.O_RDWR)
    fcntl.flock(alive, fcntl.LOCK_EX)
    await store.put_if_absent("key", b"value")
    assert [path.name for path in directory.iterdir()] == ["alive"]
    os.close(alive)
    await store.close()


WRITER = """
import asyncio, itertools, secrets, sys
from storage.filesystem import FileSystemStore

async def main():
    store = FileSystemStore(sys.argv[1], token=secrets.token_bytes)
    for n in itertools.count(int(sys.argv[2])):
        await store.put_if_absent(f"part-{n % 3}/{n:06}", bytes([n % 256]) * 1_000_000)
        print(n, flush=True)

asyncio.run(main())
"""


async def test_killed_writers_leave_whole_objects(store: FileSystemStore, root: Path) -> None:
    """Killed at an instant that no one chose: acknowledged objects are there, the others whole or absent."""
    begin = 0
    for acknowledged in (1, 4, 9):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, str(root), str(begin)), stdout=-1, cwd=Path(__file__).parents[2]
        )
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(acknowledged)]
        process.kill()
        lines += (await process.stdout.read()).splitlines()
        await process.wait()
        keys = {info.key: info.size async for info in store.list("")}
        for n in range(begin + len(lines)):
            assert keys.pop(f"part-{n % 3}/{n:06}") == 1_000_000
        begin += len(lines) + len(keys)  # at most one more, whole
        assert len(keys) <= 1 and set(keys.values()) <= {1_000_000}
    assert (await store.get(f"part-{(begin - 1) % 3}/{begin - 1:06}")).data == bytes([(begin - 1) % 256]) * 1_000_000
    await store.close()


async def test_after_a_cancelled_write_the_buffers_are_free(store: FileSystemStore) -> None:
    body = [bytearray(b"a" * MIB) for _ in range(16)]
    for attempt in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001 * attempt):
                await store.put_if_absent(f"key-{attempt}", body)
                await asyncio.sleep(1)
        for part in body:
            part[:] = b"b" * MIB
        try:
            assert set((await store.get(f"key-{attempt}")).data) == {ord("a")}
        except NotFound:
            pass
        for part in body:
            part[:] = b"a" * MIB
    await store.close()


async def test_cancelling_twice_does_not_free_the_buffers_early(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("warm", b"")
    writing = threading.Event()
    real_fsync = os.fsync

    def slow(descriptor: int) -> None:
        writing.set()
        time.sleep(0.1)
        real_fsync(descriptor)
        writing.clear()

    monkeypatch.setattr(os, "fsync", slow)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(store.put("key", b"value"))
        while not writing.is_set():
            await asyncio.sleep(0.001)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
    assert task.cancelled() and not writing.is_set()
    await store.close()


async def test_slow_writes_hold_up_neither_the_loop_nor_reads(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("key", b"value")
    real_fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.2)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    async with asyncio.TaskGroup() as group:
        writes = [group.create_task(store.put(f"slow-{n}", b"")) for n in range(8)]
        await asyncio.sleep(0)
        assert (await store.get("key")).data == b"value"
        assert not any(write.done() for write in writes)
    await store.close()


async def test_replacing_waits_for_other_processes(store: FileSystemStore, root: Path) -> None:
    etag = await store.put_if_absent("key", b"first")
    await store.put("other", b"")
    lock = os.open(root / LOCK_NAME, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    async with asyncio.TaskGroup() as group:
        replacing = group.create_task(store.put_if_match("key", b"second", etag))
        await store.put_if_absent("new", b"creating needs no lock")
        assert (await store.get("key")).data == b"first"
        assert not replacing.done()
        os.close(lock)
    assert (await store.get("key")).data == b"second"
    await store.close()
