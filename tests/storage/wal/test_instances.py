"""Instance directories: locks, foreign ones, what crashes leave behind."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from storage.wal.disk import LinuxDisk
from storage.wal.format import Superblock
from storage.wal.instances import (
    Instance,
    LockedInstance,
    create_instance,
    lock_instances,
    open_instance,
)
from storage.wal.port import Damaged, ForeignCluster, InstanceLocked, UnknownFormat
from tests.simulation.disk import Dead, SimulatedDisk
from tests.storage.wal.support import CLUSTER, WAL_ID, open_wal

OTHER = bytes(range(16, 32))


async def test_an_open_wal_is_locked(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    with pytest.raises(InstanceLocked, match=f"{WAL_ID.hex()} is in use"):
        lock_instances(tmp_path, CLUSTER, 1)
    script = (
        "import sys; from storage.wal.instances import lock_instances, InstanceLocked\n"
        "try: lock_instances(sys.argv[1], sys.argv[2], 1)\n"
        "except InstanceLocked: sys.exit(7)"
    )

    async def another_process() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path), CLUSTER)
        return await process.wait()

    assert await another_process() == 7
    await opened.wal.close()
    assert await another_process() == 0


async def test_nothing_stays_locked_after_a_refusal(tmp_path: Path) -> None:
    await (await open_wal(tmp_path)).wal.close()
    second = await open_wal(tmp_path, wal_id=OTHER)  # later in the listing
    with pytest.raises(InstanceLocked):
        lock_instances(tmp_path, CLUSTER, 1)
    await second.wal.close()
    instances = lock_instances(tmp_path, CLUSTER, 1)
    assert [instance.wal_id for instance in instances] == [WAL_ID, OTHER]
    assert all(instance.same_boot() for instance in instances)
    for instance in instances:
        instance.close()


async def test_other_nodes_instances_are_left_alone(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    assert lock_instances(tmp_path, CLUSTER, 2) == []
    assert lock_instances(tmp_path / "absent", CLUSTER, 1) == []
    await opened.wal.close()


async def test_a_foreign_cluster_is_refused(tmp_path: Path) -> None:
    await (await open_wal(tmp_path)).wal.close()
    with pytest.raises(ForeignCluster, match="belongs to cluster test-cluster-000000000, this broker to another"):
        lock_instances(tmp_path, "another", 1)


async def test_another_format_and_a_broken_superblock_are_refused(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    await opened.wal.close()
    superblock = Path(opened.wal.path, "superblock")
    whole = superblock.read_bytes()
    superblock.write_bytes(b"tidelog-wal 9 x\n")
    with pytest.raises(UnknownFormat, match="superblock: WAL format 9"):
        lock_instances(tmp_path, CLUSTER, 1)
    superblock.write_bytes(whole[:-5])
    with pytest.raises(Damaged, match=r"cut off.*nothing in this directory was touched"):
        lock_instances(tmp_path, CLUSTER, 1)
    superblock.unlink()
    with pytest.raises(Damaged, match="no superblock"):
        lock_instances(tmp_path, CLUSTER, 1)
    superblock.write_bytes(whole)
    [instance] = lock_instances(tmp_path, CLUSTER, 1)
    instance.close()


async def test_a_copied_directory_is_refused(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    await opened.wal.close()
    shutil.copytree(opened.wal.path, tmp_path / OTHER.hex())
    with pytest.raises(Damaged, match="it is a copy"):
        lock_instances(tmp_path, CLUSTER, 1)


async def test_another_boot() -> None:
    disk = SimulatedDisk()
    await open_wal("/wal", disk=disk)
    disk.crash(1)
    [instance] = lock_instances("/wal", CLUSTER, 1, disk=disk)
    assert not instance.same_boot() and instance.superblock.node_id == 1
    instance.close()


async def test_fence_is_repeatable_and_stays(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    await opened.wal.close()
    [instance] = lock_instances(tmp_path, CLUSTER, 1)
    assert not instance.fenced()
    instance.fence()
    instance.fence()
    assert instance.fenced() and Path(opened.wal.path, "fence").exists()
    instance.close()


async def test_a_recoverer_may_open_without_the_lock(tmp_path: Path) -> None:
    opened = await open_wal(tmp_path)
    opened.append()
    await opened.durable_through(1)
    instance = open_instance(tmp_path, WAL_ID)
    assert instance is not None and type(instance) is Instance
    instance.fence()
    assert instance.scan().last_group == 1
    opened.append()
    await opened.until(lambda: opened.failures)
    assert opened.durable == [(1, 1)], "fenced: not acknowledged"
    await opened.wal.close()
    instance.close()
    locked = open_instance(tmp_path, WAL_ID)
    assert isinstance(locked, LockedInstance)
    locked.remove()
    assert open_instance(tmp_path, WAL_ID) is None


async def test_remove_deletes_only_that_instance(tmp_path: Path) -> None:
    await (await open_wal(tmp_path)).wal.close()
    await (await open_wal(tmp_path, wal_id=OTHER)).wal.close()
    first, second = lock_instances(tmp_path, CLUSTER, 1)
    first.remove()
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == [OTHER.hex()]


def superblock(node_id: int = 1) -> Superblock:
    return Superblock(CLUSTER, node_id, "boot", WAL_ID)


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_anywhere_in_creation_leaves_a_whole_instance_or_none(seed: int) -> None:
    for step in range(100):
        disk = SimulatedDisk()
        disk.crash_at = step
        try:
            create_instance(disk, "/wal", superblock())
        except Dead:
            disk.crash(1000 * seed + step)
        else:
            break
        instances = lock_instances("/wal", CLUSTER, 1, disk=disk)
        assert [instance.superblock for instance in instances] in ([], [superblock()])
        assert len(disk.names("/wal")) == len(instances), "what is half-made is cleaned up"
    else:
        raise AssertionError("creation never ended")


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_anywhere_in_removal_leaves_a_whole_instance_or_none(seed: int) -> None:
    for step in range(100):
        disk = SimulatedDisk()
        _, lock = create_instance(disk, "/wal", superblock())
        lock.close()
        for name in ("000000000001.wal", "000000000002.wal", "fence"):
            disk.create(f"/wal/{WAL_ID.hex()}/{name}")
        disk.sync_directory(f"/wal/{WAL_ID.hex()}")
        [instance] = lock_instances("/wal", CLUSTER, 1, disk=disk)
        disk.crash_at = step
        try:
            instance.remove()
        except Dead:
            disk.crash(1000 * seed + step)
        else:
            break
        found = lock_instances("/wal", CLUSTER, 1, disk=disk)
        assert len(disk.names("/wal")) == len(found)
        assert not found or len(disk.names(found[0].path)) == 4
    else:
        raise AssertionError("removal never ended")


def test_a_crash_while_a_removal_is_completed_brings_nothing_back() -> None:
    """The name of what is half-removed must be durable before its files go."""
    for seed in range(40):
        disk = SimulatedDisk()
        _, lock = create_instance(disk, "/wal", superblock())
        lock.close()
        disk.rename(f"/wal/{WAL_ID.hex()}", f"/wal/.removing-1-{WAL_ID.hex()}")  # and killed
        assert lock_instances("/wal", CLUSTER, 1, disk=disk) == []
        disk.crash(seed)
        assert lock_instances("/wal", CLUSTER, 1, disk=disk) == []


def test_leftovers_of_other_nodes_and_locked_ones_stay(tmp_path: Path) -> None:
    disk = LinuxDisk()
    for name in (f".creating-2-{WAL_ID.hex()}", f".removing-1-{WAL_ID.hex()}", f".creating-1-{OTHER.hex()}", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / f".removing-1-{WAL_ID.hex()}" / "superblock").touch()
    lock = disk.lock(str(tmp_path / f".removing-1-{WAL_ID.hex()}" / "superblock"))
    assert lock is not None
    assert lock_instances(tmp_path, CLUSTER, 1) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".creating-2-{WAL_ID.hex()}",
        f".removing-1-{WAL_ID.hex()}",
        "notes",
    ]
    lock.close()
    assert lock_instances(tmp_path, CLUSTER, 1) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".creating-2-{WAL_ID.hex()}", "notes"]
