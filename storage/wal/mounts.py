"""Which fence a file system allows (DESIGN 4.2), from the mount table."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from storage.wal.port import MountRefused

#: Several machines may have these mounted at once; their caches are coherent, so the fence file works.
_SHARED = {"9p", "afs", "beegfs", "ceph", "gfs2", "gpfs", "lustre", "ocfs2", "virtiofs"}
_COPY_ON_WRITE = {"bcachefs", "btrfs", "nilfs2", "zfs"}
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    point: str
    type: str
    source: str
    options: frozenset[str]  # of the mount and of the file system


def parse_mounts(text: str) -> list[Mount]:
    """Every line of a mountinfo text that is whole, in mount order."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) >= 6 and len(after) >= 2:
            options = {*before[5].split(","), *(after[2].split(",") if len(after) > 2 else ())}
            mounts.append(Mount(_unescape(before[4]), after[0], _unescape(after[1]), frozenset(options)))
    return mounts


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mount_of(mounts: list[Mount], path: str) -> Mount | None:
    """The mount that holds an absolute path: the longest mount point, of equal ones the last mounted."""
    best = None
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def fence_of(mount: Mount | None) -> tuple[str, list[str]]:
    """("file" or "session", warnings) for a WAL on this mount; MountRefused when none is safe there."""
    if mount is None:
        return "file", ["the mount table does not show what holds the WAL: it is taken for a local file system"]
    kind = mount.type
    where = f"tidelog.wal.dir lies on {kind} ({mount.source} at {mount.point})"
    if kind in {"nfs", "nfs4"}:
        return _nfs_fence(mount, where)
    if kind in {"cifs", "smb3", "smbfs", "smb2", "ncpfs"}:
        raise MountRefused(f"{where}: SMB cannot keep a WAL safe; use a local disk or NFS 4.1 or newer")
    if kind == "fuse" or kind.startswith("fuse."):
        raise MountRefused(f"{where}: FUSE file systems make no promise about syncs and locks; use a local disk")
    if kind in {"tmpfs", "ramfs"}:
        return "file", [f"{where}: it is memory; acknowledged records do not survive the machine"]
    if kind == "overlay":
        return "file", [f"{where}: it goes away with the container; mount a volume"]
    if kind in _SHARED:
        return "file", [f"{where}: it must never be mounted on another machine while this broker may be alive there"]
    if kind in _COPY_ON_WRITE:
        return "file", [f"{where}: copy-on-write, so a full file system ends the broker: overwriting needs space there"]
    return "file", []


def _nfs_fence(mount: Mount, where: str) -> tuple[str, list[str]]:
    version = next((option.partition("=")[2] for option in mount.options if option.startswith("vers=")), "")
    if version not in {"4.1", "4.2"}:
        raise MountRefused(f"{where} with vers={version or 'unknown'}: mount it with vers=4.1 or newer")
    soft = mount.options & {"soft", "softerr"}
    if soft:
        raise MountRefused(f"{where} mounted {min(soft)}: mount it hard, or writes get lost when the server is slow")
    return "session", []


def detect(path: str) -> tuple[str, list[str]]:
    """`fence_of` the file system that holds `path`, or will when it is created."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as source:
        mounts = parse_mounts(source.read())
    return fence_of(mount_of(mounts, os.path.realpath(path)))
