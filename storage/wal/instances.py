"""Instance directories of a WAL root: create, lock, scan, fence and remove them.

A directory is made under a name of its own and renamed when its superblock is durable, so one that carries an
instance's name always has a whole superblock: a broken one is damage, and what a crash left half-made or half-removed
is told by its name and holds nothing that was ever acknowledged.

All of it blocks: call it from a thread, but at start.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from storage.wal.disk import LinuxDisk
from storage.wal.files import write_all
from storage.wal.format import Superblock, encode_superblock, parse_superblock
from storage.wal.port import Damaged, ForeignCluster, InstanceLocked, UnknownFormat
from storage.wal.recovery import Scanner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from storage.wal.disk import Disk, DiskFile
    from storage.wal.recovery import ScanReport

_SUPERBLOCK = "superblock"
_FENCE = "fence"
_INSTANCE = re.compile(r"[0-9a-f]{32}")


def create_instance(disk: Disk, root: str, superblock: Superblock) -> tuple[str, DiskFile]:
    """Make and lock a new instance directory; its path and its lock."""
    name = superblock.wal_id.hex()
    # The node id is in the name because a start cleans up after its own node only: another's may be at work.
    draft = os.path.join(root, f".creating-{superblock.node_id}-{name}")
    path = os.path.join(root, name)
    disk.make_directory(root)
    disk.make_directory(draft)
    file = disk.create(os.path.join(draft, _SUPERBLOCK))
    try:
        write_all(file.write, [encode_superblock(superblock)], 0)
        file.sync()
    finally:
        file.close()
    lock = disk.lock(os.path.join(draft, _SUPERBLOCK))
    if lock is None:
        raise InstanceLocked(f"another process took {draft} while it was made: start one broker per node id")
    try:
        disk.sync_directory(draft)
        disk.rename(draft, path)
        disk.sync_directory(root)
    except BaseException:
        lock.close()
        raise
    return path, lock


def remove_instance(disk: Disk, root: str, path: str, node_id: int) -> None:
    """Delete an instance directory; a crash half-way leaves a name that the node's next start deletes."""
    doomed = os.path.join(root, f".removing-{node_id}-{os.path.basename(path)}")
    disk.rename(path, doomed)
    disk.sync_directory(root)
    _delete(disk, doomed)


def _delete(disk: Disk, path: str) -> None:
    for name in sorted(disk.names(path), key=lambda name: name == _SUPERBLOCK):  # the lock's file goes last
        disk.delete(os.path.join(path, name))
    disk.remove_directory(path)


def _clean(disk: Disk, root: str, node_id: int) -> None:
    """Delete what a crash left half-made or half-removed, unless somebody who works on it has it locked."""
    leftover = re.compile(rf"\.(?:creating|removing)-{node_id}-[0-9a-f]{{32}}")
    for name in disk.names(root):
        if not leftover.fullmatch(name):
            continue
        path = os.path.join(root, name)
        lock = None
        try:
            if disk.exists(os.path.join(path, _SUPERBLOCK)):
                lock = disk.lock(os.path.join(path, _SUPERBLOCK))
                if lock is None:
                    continue
            disk.sync_directory(root)  # the name may not be durable yet: a crash must not bring back a half-empty WAL
            _delete(disk, path)
        except OSError:
            continue  # it costs a little space, no more
        finally:
            if lock is not None:
                lock.close()


def read_superblock(disk: Disk, path: str, *, copy_ok: bool = False) -> Superblock:
    """The superblock of an instance directory. UnknownFormat, Damaged, or OSError when it cannot be read."""
    try:
        file = disk.open(os.path.join(path, _SUPERBLOCK))
    except FileNotFoundError:
        raise Damaged(f"{path} has no superblock: restore it, or move the directory away if it is not a WAL") from None
    try:
        superblock = parse_superblock(file.read(0, 1 << 16))
    except Damaged as error:
        raise Damaged(f"{path}/{_SUPERBLOCK}: {error}; nothing in this directory was touched") from None
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}/{_SUPERBLOCK}: {error}") from None
    finally:
        file.close()
    if superblock.wal_id.hex() != os.path.basename(path) and not copy_ok:
        raise Damaged(f"{path} holds the superblock of WAL {superblock.wal_id.hex()}: it is a copy; never copy a WAL")
    return superblock


class Instance:
    """One instance directory, opened for reading: by its lock holder, or by a recoverer that fenced it."""

    def __init__(self, disk: Disk, path: str, superblock: Superblock) -> None:
        self.path = path
        self.superblock = superblock
        self.wal_id = superblock.wal_id
        self._disk = disk
        self._scanner = Scanner(disk, path, superblock.wal_id)

    def same_boot(self) -> bool:
        """Whether the running kernel is the one that the instance was created under."""
        return self.superblock.boot_id == self._disk.boot_id()

    def fence(self) -> None:
        """Stop the writer: whatever it ever reports durable is in the files when this returns. Repeatable."""
        file = self._disk.create(os.path.join(self.path, _FENCE))
        try:
            file.sync()
        finally:
            file.close()
        self._disk.sync_directory(self.path)

    def fenced(self) -> bool:
        return self._disk.exists(os.path.join(self.path, _FENCE))

    def scan(
        self, *, validated_group: int = 0, committed_group: int | None = None, accept_loss: bool = False
    ) -> ScanReport:
        """Find the valid prefix. Reads group headers, the last group, and the last batch of every log and epoch.

        `validated_group`: the last one the controller knows to be validated; ending below it is a stale copy.
        `committed_group`: everything up to it is committed, so the files must begin at the next group or before.
        Damage and stale copies are reported, not raised: `usable` tells. `accept_loss` reads every checksum and makes
        the valid prefix usable all the same.
        """
        return self._scanner.scan(validated_group, committed_group, accept_loss=accept_loss)

    def batches(self, log_id: int) -> Iterator[tuple[int, int, bytes]]:
        """(leader epoch, base offset, batch) of one log in append order, checksums verified; after `scan`.

        Damaged when a batch is not what was written: a scan that verifies every checksum then reports it.
        """
        return self._scanner.batches(log_id)

    def close(self) -> None:
        self._scanner.close()


class LockedInstance(Instance):
    """An instance whose lock we hold: nobody else has it open, its writer is dead."""

    def __init__(self, disk: Disk, root: str, path: str, superblock: Superblock, lock: DiskFile) -> None:
        super().__init__(disk, path, superblock)
        self.lock = lock
        self._root = root

    def remove(self) -> None:
        """Delete the instance: only after a fact says that it is retired or lost."""
        self._scanner.close()
        remove_instance(self._disk, self._root, self.path, self.superblock.node_id)
        self.lock.close()

    def close(self) -> None:
        """Release the lock and keep the files."""
        super().close()
        self.lock.close()


def instance_ids(disk: Disk, root: str | PathLike[str]) -> list[bytes]:
    """The instances that lie under the root, by their directories' names."""
    return [bytes.fromhex(name) for name in disk.names(os.fspath(root)) if _INSTANCE.fullmatch(name)]


def _paths(disk: Disk, root: str) -> list[str]:
    return [os.path.join(root, name) for name in disk.names(root) if _INSTANCE.fullmatch(name)]


def lock_instances(
    root: str | PathLike[str], cluster_id: str, node_id: int, *, disk: Disk | None = None
) -> list[LockedInstance]:
    """Lock every instance directory of this node, but those that another process locked and fenced: it recovers them.

    InstanceLocked when another process has one of them open otherwise, ForeignCluster when one belongs to another
    cluster, UnknownFormat and Damaged when a superblock cannot be read: nothing stays locked then. Other nodes' are
    left alone.
    """
    disk = disk or LinuxDisk()
    root = os.path.abspath(os.fspath(root))
    _clean(disk, root, node_id)
    locked: list[LockedInstance] = []
    try:
        for path in _paths(disk, root):
            try:
                superblock = read_superblock(disk, path)
            except Damaged:
                if not disk.exists(path):
                    continue  # its owner has just removed it
                raise
            if superblock.node_id != node_id:
                continue
            if superblock.cluster_id != cluster_id:
                raise ForeignCluster(
                    f"{path} belongs to cluster {superblock.cluster_id}, this broker to {cluster_id}: "
                    "set tidelog.wal.dir or tidelog.storage to the other's"
                )
            try:
                lock = disk.lock(os.path.join(path, _SUPERBLOCK))
            except FileNotFoundError:
                continue  # whoever recovered it has just removed it
            if lock is None:
                if disk.exists(os.path.join(path, _FENCE)):
                    continue
                raise InstanceLocked(
                    f"{path} is in use by another process: a broker with node.id={node_id} runs here already"
                )
            locked.append(LockedInstance(disk, root, path, superblock, lock))
    except BaseException:
        for instance in locked:
            instance.close()
        raise
    return locked


def open_instance(root: str | PathLike[str], wal_id: bytes, *, disk: Disk | None = None) -> Instance | None:
    """An instance by its id, for a recoverer: with its lock when nobody has it, else without. None: not here.

    Without the lock its writer may be alive: `fence` it before `scan`, and it is not ours to remove.
    """
    disk = disk or LinuxDisk()
    root = os.path.abspath(os.fspath(root))
    path = os.path.join(root, wal_id.hex())
    if not disk.exists(path):
        return None
    superblock = read_superblock(disk, path)
    lock = disk.lock(os.path.join(path, _SUPERBLOCK))
    return LockedInstance(disk, root, path, superblock, lock) if lock else Instance(disk, path, superblock)
