"""The open volume WAL: groups, callbacks, space, trim, fences and failures."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.wal.files import FileRing
from storage.wal.format import BATCHES_MAX, LONE_OVERHEAD
from storage.wal.instances import lock_instances
from storage.wal.port import Fenced, Wal, WalError
from storage.wal.volume import VolumeWal
from storage.wal.writer import GROUP_BYTES_MAX
from tests.simulation.disk import SimulatedDisk
from tests.storage.wal.support import CLUSTER, FILE_BYTES, WAL_ID, make_batch, open_wal
from tests.support.waiting import until

ROOT = "/wal"


def recovered(root: str | Path, disk: SimulatedDisk | None = None) -> dict[int, list[int]]:
    """Base offsets by log of the one instance under the root."""
    [instance] = lock_instances(root, CLUSTER, 1, disk=disk)
    report = instance.scan()
    assert report.usable, report
    found = {extent.log_id: [base for _, base, _ in instance.batches(extent.log_id)] for extent in report.entries}
    instance.close()
    return found


async def test_is_a_wal(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    wal: Wal = opened.wal
    assert wal.kind == "volume" and wal.wal_id == WAL_ID
    await wal.close()


async def test_appends_are_durable_in_order_and_come_back(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    for turn in range(50):
        assert opened.append(turn % 3, records=2) == turn + 1
        if turn % 7 == 0:
            await asyncio.sleep(0)
    await opened.durable_through(50)
    sequences = [sequence for sequence, _ in opened.durable]
    groups = [group for _, group in opened.durable]
    assert sequences == sorted(set(sequences)) and groups == sorted(set(groups))
    assert opened.wal.durable == (50, opened.wal.groups) and opened.wal.queue_depth == 0
    assert sum(opened.wal.sync_histogram) == opened.wal.groups and opened.wal.sync_ns_max > 0
    await opened.wal.close()
    assert opened.failures == []
    bases = recovered(tmp_path)
    assert bases == {0: list(range(0, 34, 2)), 1: list(range(0, 34, 2)), 2: list(range(0, 32, 2))}


async def test_any_kind_of_buffer(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    opened.wal.append(1, 0, 0, bytearray(make_batch(0)))
    opened.wal.append(1, 0, 1, memoryview(b"xx" + make_batch(1))[2:])
    opened.wal.append(1, 0, 2, make_batch(2))
    await opened.durable_through(3)
    await opened.wal.close()
    assert recovered(tmp_path) == {1: [0, 1, 2]}


async def test_a_batch_that_is_not_what_the_caller_says_is_our_bug(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    with pytest.raises(AssertionError):
        opened.wal.append(1, 0, 7, make_batch(8))
    with pytest.raises(AssertionError):
        opened.wal.append(1, 1, 8, make_batch(8, epoch=2))
    with pytest.raises(AssertionError):
        opened.wal.append(1, 0, 8, make_batch(8) + b"x")
    await opened.wal.close()


async def test_everything_appended_in_one_turn_is_one_group() -> None:
    opened = await open_wal(ROOT, disk=SimulatedDisk())
    for _ in range(20):
        opened.append()
    await opened.settle()
    assert opened.durable == [(20, 1)]
    await opened.wal.close()


async def test_groups_are_bounded_by_count_and_bytes() -> None:
    file_bytes = 3 * GROUP_BYTES_MAX
    opened = await open_wal(
        ROOT, disk=SimulatedDisk(), file_bytes=file_bytes, bytes_max=6 * file_bytes, message_bytes_max=1 << 20
    )
    for _ in range(BATCHES_MAX + 1):
        opened.append(size=70)
    await opened.settle()
    assert opened.wal.durable == (BATCHES_MAX + 1, 2)
    for _ in range(9):
        opened.append(size=500_000)
    await opened.settle()
    assert opened.wal.durable == (BATCHES_MAX + 10, 4)
    opened.append(size=opened.wal.batch_bytes_max)  # larger than any group, and fills a file
    await opened.settle()
    assert opened.wal.durable == (BATCHES_MAX + 11, 5)
    await opened.wal.close()


async def test_group_below() -> None:
    opened = await open_wal(ROOT, disk=SimulatedDisk())
    assert opened.wal.group_below(1) == 0
    for count in (3, 1, 2):  # sequences 1-3, 4, 5-6
        for _ in range(count):
            opened.append()
        await opened.settle()
    assert [opened.wal.group_below(sequence) for sequence in range(1, 9)] == [0, 0, 0, 1, 2, 2, 3, 3]
    opened.writer.hold = True
    opened.append()
    await opened.settle()
    assert opened.wal.group_below(8) == 3  # the fourth is not durable
    opened.writer.release()
    await opened.settle()
    assert opened.wal.group_below(8) == 4
    await opened.wal.close()


async def test_trim_keeps_the_file_of_the_last_group_and_recycles_the_others() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    path = opened.wal.path
    per_file = FILE_BYTES // (10_000 + LONE_OVERHEAD)
    for _ in range(3 * per_file):
        opened.append(size=10_000)
        await opened.settle()
    assert opened.wal.durable == (3 * per_file, 3 * per_file)
    assert disk.names(path)[:4] == [f"{number:012d}.wal" for number in (1, 2, 3, 4)]
    opened.wal.trim(per_file - 1)  # not the whole first file
    await opened.settle()
    assert disk.names(path)[0] == "000000000001.wal"
    opened.wal.trim(3 * per_file)
    await opened.settle()
    assert disk.names(path)[0] == "000000000003.wal", "the last group's file stays"
    assert disk.names(path)[-2] == "000000000006.wal", "recycled under the next numbers"
    assert opened.wal.group_below(3 * per_file + 1) == 3 * per_file
    assert opened.wal.group_below(3 * per_file) == 3 * per_file - 1
    with pytest.raises(AssertionError):
        opened.wal.group_below(1)
    # Into the recycled files, whose old groups must not come back.
    for _ in range(per_file + 1):
        opened.append(size=10_000)
        await opened.settle()
    await opened.wal.close()
    disk.crash(1)
    assert recovered(ROOT, disk) == {1: list(range(2 * per_file, 4 * per_file + 1))}


async def test_who_gives_up_closing_leaves_the_lock_to_the_next() -> None:
    """The lock says that nothing is written any more."""
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    opened.append()
    stop, told = opened.preparer.stop, list[Callable[[], None]]()
    opened.preparer.stop = told.append  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(opened.wal.close())
        await until(lambda: bool(told))
        closing.cancel()
        again = group.create_task(opened.wal.close())
        await asyncio.wait([closing, again], timeout=0.01)
        assert closing.cancelled() and not again.done()
        stop(told[0])
    await opened.wal.close()
    assert opened.wal.durable == (1, 1) and recovered(ROOT, disk) == {1: [0]}


async def test_a_file_is_left_only_when_the_next_one_holds_a_durable_group() -> None:
    """Else it could be trimmed with the last group in it."""
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    left: list[int] = []

    def look(operation: str, path: str) -> None:
        if operation in {"write", "sync", "has"} and "preparing" not in path:
            left.append(len(opened.wal._writer.left))

    opened.append(size=30_000)
    opened.append(size=30_000)
    await opened.settle()
    disk.fault = look
    opened.append(size=30_000)
    await opened.settle()
    assert opened.wal.durable == (3, 2) and set(left) == {0}
    assert [file.number for file in opened.wal._writer.left] == [1]
    await opened.wal.close()


async def test_the_ring_shrinks_after_a_surge() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk, bytes_max=20 * FILE_BYTES)
    while opened.wal.has_room(30_000, internal=False):
        opened.append(size=30_000)
        await opened.settle()
    assert opened.wal.files == 20
    opened.wal.trim(opened.wal.durable[1])
    for _ in range(40):
        opened.append(size=30_000)
        await opened.settle()
        opened.wal.trim(opened.wal.durable[1])
        await opened.settle()
    assert opened.wal.files < 8
    assert opened.wal.free_bytes > 15 * FILE_BYTES
    await opened.wal.close()


@pytest.mark.parametrize("size", [61, 1000, 20_000, FILE_BYTES // 2])
@pytest.mark.parametrize("held", [False, True])
async def test_what_has_room_never_waits_for_a_file(size: int, held: bool) -> None:
    """However far the writer lags, what was accepted fits into files that are ready."""
    opened = await open_wal(ROOT, disk=SimulatedDisk(), bytes_max=4 * FILE_BYTES)
    opened.writer.hold = held
    await opened.settle()
    accepted = 0
    while opened.wal.has_room(size, internal=True):
        opened.append(size=size)
        accepted += 1
        if not held:
            await opened.settle()
    opened.preparer.hold = True  # no more files
    opened.writer.release()
    for _ in range(accepted):
        await opened.settle()
        if opened.wal.queue_depth == 0:
            break
    assert opened.wal.durable[0] == accepted > 0
    await opened.wal.close()


async def test_the_last_twentieth_is_for_internal_logs() -> None:
    opened = await open_wal(ROOT, disk=SimulatedDisk(), bytes_max=4 * FILE_BYTES)
    while opened.wal.has_room(1000, internal=False):
        opened.append(size=1000)
        await opened.settle()
    left = 0
    while opened.wal.has_room(1000, internal=True):
        opened.append(size=1000)
        await opened.settle()
        left += 1068
    assert 4 * FILE_BYTES / 20 - 1068 <= left <= 4 * FILE_BYTES / 20 + 2 * 1068
    assert opened.wal.files == 4
    await opened.wal.close()


async def test_a_full_wal_takes_again_after_trim_and_says_so_once() -> None:
    opened = await open_wal(ROOT, disk=SimulatedDisk(), bytes_max=3 * FILE_BYTES)
    while opened.wal.has_room(30_000, internal=False):
        opened.append(size=30_000)
        await opened.settle()
    opened.rooms = 0
    assert not opened.wal.has_room(30_000, internal=False)
    await opened.settle()
    assert opened.rooms == 0
    opened.wal.trim(opened.wal.durable[1])
    await opened.settle()
    assert opened.rooms == 1 and opened.wal.has_room(30_000, internal=False)
    await opened.wal.close()


async def test_the_largest_batch_always_gets_room_again() -> None:
    """Three files are enough for ever, whatever the sizes before."""
    opened = await open_wal(
        ROOT, disk=SimulatedDisk(), bytes_max=3 * FILE_BYTES, message_bytes_max=FILE_BYTES - LONE_OVERHEAD
    )
    for turn in range(60):
        size = (opened.wal.batch_bytes_max, 61, 30_000)[turn % 3]
        if not opened.wal.has_room(size, internal=False):
            opened.wal.trim(opened.wal.durable[1])
            await opened.settle()
            assert opened.wal.has_room(size, internal=False), turn
        opened.append(size=size)
        await opened.settle()
    await opened.wal.close()


async def test_room_for_a_request_of_many_batches() -> None:
    opened = await open_wal(ROOT, disk=SimulatedDisk(), message_bytes_max=1000)
    assert not opened.wal.has_room(7 * FILE_BYTES, internal=False, batches=500)
    await opened.settle()
    for _ in range(5):  # asking makes it prepare further ahead
        opened.wal.has_room(3 * FILE_BYTES, internal=False, batches=200)
        await opened.settle()
    assert opened.wal.has_room(3 * FILE_BYTES, internal=False, batches=200)
    await opened.wal.close()


async def test_a_disk_that_is_full_makes_a_full_wal_and_recovers() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk, bytes_max=20 * FILE_BYTES)
    await opened.settle()

    def full(operation: str, path: str) -> None:
        if operation == "write" and path.endswith("preparing"):
            raise OSError(errno.ENOSPC, "no space left on device")

    disk.fault = full
    while opened.wal.has_room(10_000, internal=False):
        opened.append(size=10_000)
        await opened.settle()
    assert opened.wal.file_error is not None and opened.wal.file_error.errno == errno.ENOSPC
    assert opened.wal.has_room(1000, internal=True), "internal logs keep a share of what is ready"
    assert "preparing" not in disk.names(opened.wal.path), "the space is given back"
    assert opened.failures == [] and opened.wal.queue_depth == 0
    opened.rooms = 0
    disk.fault = lambda operation, path: None
    await opened.until(lambda: opened.rooms)
    assert opened.wal.has_room(10_000, internal=False) and opened.wal.file_error is None
    await opened.wal.close()


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_directory"])
async def test_any_step_of_preparing_may_fail(operation: str) -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk, bytes_max=4 * FILE_BYTES)
    await opened.settle()
    failures = 0

    def fault(what: str, path: str) -> None:
        nonlocal failures
        if what == operation and failures < 5:
            failures += 1
            raise OSError(errno.EIO, "I/O error")

    opened.writer.hold = True  # only the files' side may fail
    disk.fault = fault
    assert not opened.wal.has_room(2 * FILE_BYTES, internal=False, batches=9)
    await opened.until(lambda: opened.rooms)
    assert failures == 5 and opened.failures == []
    opened.writer.release()
    for _ in range(20):
        opened.append(size=5000)
        await opened.settle()
    assert opened.wal.queue_depth == 0 and opened.failures == []
    await opened.wal.close()
    disk.crash(1)
    assert recovered(ROOT, disk) == {1: list(range(20))}


@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_a_failed_group_ends_everything(operation: str) -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    opened.append()
    await opened.settle()

    def fault(what: str, path: str) -> None:
        if what == operation and path.endswith(".wal"):
            raise OSError(errno.EIO, "I/O error")

    disk.fault = fault
    opened.append()
    opened.append()
    await opened.settle()
    disk.fault = lambda operation, path: None
    opened.append()
    await opened.settle()
    assert opened.durable == [(1, 1)]
    assert [error.errno for error in opened.failures if isinstance(error, OSError)] == [errno.EIO]
    assert not opened.wal.has_room(10, internal=True)
    await opened.wal.close()
    assert opened.durable == [(1, 1)]


async def test_short_writes_are_resumed() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    await opened.settle()
    lengths = iter([1, 50, 68, 69, 100, 3])
    disk.shorten = lambda length: min(length, next(lengths, length))
    for _ in range(5):
        opened.append()
    await opened.settle()
    assert opened.durable == [(5, 1)]
    await opened.wal.close()
    disk.crash(1)
    assert recovered(ROOT, disk) == {1: [0, 1, 2, 3, 4]}


async def test_a_write_that_writes_nothing_is_an_error() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    await opened.settle()
    disk.shorten = lambda length: 0
    opened.append()
    await opened.settle()
    assert opened.durable == [] and len(opened.failures) == 1
    await opened.wal.close()


async def test_a_fence_before_the_sync_stops_the_acknowledgement() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    opened.append()
    await opened.settle()
    disk.create(f"{opened.wal.path}/fence")
    opened.append()
    await opened.settle()
    assert opened.durable == [(1, 1)] and opened.wal.fenced
    assert isinstance(opened.failures[0], Fenced)
    await opened.wal.close()


async def test_a_fence_between_sync_and_look_stops_the_acknowledgement() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    await opened.settle()
    before = len(disk.operations)
    opened.append()
    while ("sync", f"{opened.wal.path}/000000000001.wal") not in disk.operations[before:]:
        await asyncio.sleep(0)
    disk.create(f"{opened.wal.path}/fence")
    await opened.settle()
    assert opened.durable == [] and isinstance(opened.failures[0], Fenced)
    await opened.wal.close()


async def test_a_fence_after_the_look_changes_nothing_for_that_group() -> None:
    """It was acknowledged before anybody can have read the files."""
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    await opened.settle()
    before = len(disk.operations)
    opened.append()
    while ("has", f"{opened.wal.path}/fence") not in disk.operations[before:]:
        await asyncio.sleep(0)
    disk.create(f"{opened.wal.path}/fence")
    await opened.settle()
    assert opened.durable == [(1, 1)] and opened.failures == []
    assert opened.wal.look_for_fence() and opened.wal.fenced
    await opened.wal.close()


async def test_a_shared_file_system_has_no_fence_file(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path, fence_kind="session")
    Path(opened.wal.path, "fence").touch()
    opened.append()
    await opened.durable_through(1)
    assert not opened.wal.look_for_fence() and opened.failures == []
    await opened.wal.close()


async def test_a_deleted_directory_ends_it(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    opened.append()
    await opened.durable_through(1)
    await until(lambda: opened.wal._ring.ready)  # else a file is made between the two steps of deleting
    for path in Path(opened.wal.path).iterdir():
        path.unlink()
    Path(opened.wal.path).rmdir()
    opened.append()
    await opened.until(lambda: opened.failures)
    assert opened.durable == [(1, 1)]
    await opened.wal.close()


async def test_without_rwf_dsync_it_uses_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.pwritev, []

    def refusing(descriptor: int, buffers: object, position: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(descriptor, buffers, position)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwritev", refusing)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    opened = await open_wal(tmp_path)
    opened.append()
    await opened.durable_through(1)
    assert len(synced) >= 2, "once to find out, once for the group"
    await opened.wal.close()
    assert recovered(tmp_path) == {1: [0]}


async def test_settings_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(WalError, match=r"message\.max\.bytes=65536.*at least 65604"):
        await open_wal(tmp_path, message_bytes_max=FILE_BYTES)
    with pytest.raises(WalError, match=r"bytes\.max=131072 must hold 3 files.*at least 196608"):
        await open_wal(tmp_path, bytes_max=2 * FILE_BYTES)
    assert list(tmp_path.iterdir()) == []


async def test_no_space_for_the_first_file_is_an_error_and_leaves_nothing() -> None:
    disk = SimulatedDisk()

    def full(operation: str, path: str) -> None:
        if operation == "write" and path.endswith("preparing"):
            raise OSError(errno.ENOSPC, "no space left on device")

    disk.fault = full
    with pytest.raises(OSError, match="no space"):
        await open_wal(ROOT, disk=disk)
    assert disk.names(ROOT) == []


async def test_a_disk_that_older_instances_fill_counts_as_full_until_they_are_gone() -> None:
    disk = SimulatedDisk()

    def full(operation: str, path: str) -> None:
        if operation == "write" and path.endswith("preparing"):
            raise OSError(errno.ENOSPC, "no space left on device")

    disk.fault = full
    opened = await open_wal(ROOT, disk=disk, wait=False)
    with pytest.raises(OSError, match="no space left"):
        await opened.wal.ready()
    assert opened.wal.file_error is not None and opened.wal.free_bytes == 0
    assert not opened.wal.has_room(1, internal=True)
    disk.fault = lambda operation, path: None
    opened.wal.look_for_space()
    await opened.settle()
    assert opened.rooms and opened.wal.file_error is None
    await opened.wal.ready()
    opened.append()
    await opened.durable_through(1)
    await opened.wal.close()


async def test_our_own_bug_while_preparing_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = await open_wal(ROOT, disk=SimulatedDisk())
    await opened.settle()

    def broken(ring: FileRing) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(FileRing, "_prepare", broken)
    opened.wal._ring.hurry(1)
    await opened.settle()
    assert [type(error) for error in opened.failures] == [AssertionError]
    await opened.wal.close()


async def test_close_writes_what_is_queued_and_remove_deletes(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    for _ in range(5):
        opened.append()
    await opened.wal.close()
    await opened.wal.close()
    assert opened.durable[-1][0] == 5
    assert recovered(tmp_path) == {1: [0, 1, 2, 3, 4]}
    second = await open_wal(tmp_path, wal_id=bytes(16))
    await second.wal.remove()
    assert [path.name for path in tmp_path.iterdir()] == [WAL_ID.hex()]


async def test_many_lone_appends_lose_no_wake_up(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    for sequence in range(1, 401):
        opened.append()
        await opened.durable_through(sequence)
    assert opened.wal.groups == 400
    await opened.wal.close()


async def test_create_while_the_loop_runs_other_things(tmp_path: Path) -> None:
    """The first file is prepared off the loop."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        ticking = group.create_task(tick())
        opened = await open_wal(tmp_path, file_bytes=8 << 20, bytes_max=24 << 20)
        ticking.cancel()
    assert ticks > 1 and isinstance(opened.wal, VolumeWal)
    await opened.wal.close()
