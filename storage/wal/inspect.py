"""What the bytes of an instance say, in a directory or in the bucket, every checksum verified. Only reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from storage.object_store import NotFound
from storage.wal.disk import LinuxDisk
from storage.wal.format import file_name
from storage.wal.instances import Instance, read_superblock
from storage.wal.object_format import FENCE, PREFIX, check_name, parse_group, parse_key, parse_object_header
from storage.wal.port import WalError
from storage.wal.recovery import FoundGroup, Reader, Walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from storage.object_store import ObjectStore
    from storage.wal.disk import Disk
    from storage.wal.format import Superblock
    from storage.wal.recovery import Extent

_CHUNK = 1 << 20


class FileReport(NamedTuple):
    """One file: its valid groups end at byte `end`; `rest` is "zeros", "old bytes" (recycled or torn) or ""."""

    name: str
    size: int
    groups: int
    batches: int
    first_group: int
    last_group: int
    end: int
    rest: str


class InstanceReport(NamedTuple):
    """A whole instance; `problems` is empty when every checksum holds and nothing is missing."""

    path: str
    superblock: Superblock | None
    fenced: bool
    files: list[FileReport]
    logs: list[Extent]
    first_group: int
    last_group: int
    torn: str | None
    problems: list[str]


def describe_instance(path: str | PathLike[str], *, disk: Disk | None = None) -> InstanceReport:
    """Read an instance directory and verify every checksum. OSError when it cannot be read at all."""
    disk = disk or LinuxDisk()
    path = os.path.abspath(os.fspath(path))
    try:
        superblock = read_superblock(disk, path, copy_ok=True)
    except WalError as error:
        return InstanceReport(path, None, False, [], [], 0, 0, None, [str(error)])
    reader = Reader(disk, path, superblock.wal_id)
    instance = Instance(disk, path, superblock)
    try:
        report = instance.scan(accept_loss=True)
        numbers = reader.numbers()
        walk = Walk(reader, numbers, verify=True)
        groups: dict[int, list[FoundGroup]] = {number: [] for number in numbers}
        for found in walk:
            groups[found.file].append(found)
        files = [_file(reader, number, groups[number], walk) for number in numbers]
        problems = [str(report.damage)] if report.damage else []
        problems += [
            f"{file_name(file)}: the disk cannot read byte {at}" for file, at in sorted(set(reader.unreadable))
        ]
        return InstanceReport(
            path,
            superblock,
            instance.fenced(),
            files,
            report.entries,
            report.first_group,
            report.last_group,
            report.torn,
            problems,
        )
    finally:
        instance.close()
        reader.close()


def groups_of(path: str | PathLike[str], *, disk: Disk | None = None) -> Iterator[FoundGroup]:
    """Every group of the valid prefix with its entries. WalError when the superblock cannot be read."""
    disk = disk or LinuxDisk()
    path = os.path.abspath(os.fspath(path))
    reader = Reader(disk, path, read_superblock(disk, path, copy_ok=True).wal_id)
    try:
        yield from Walk(reader, reader.numbers(), verify=True)
    finally:
        reader.close()


def _file(reader: Reader, number: int, groups: list[FoundGroup], walk: Walk) -> FileReport:
    end = walk.ends[number].position if number in walk.ends else 0
    return FileReport(
        file_name(number),
        reader.size(number),
        len(groups),
        sum(len(found.header.entries) for found in groups),
        groups[0].header.group if groups else 0,
        groups[-1].header.group if groups else 0,
        end,
        _rest(reader, number, end),
    )


def _rest(reader: Reader, number: int, position: int) -> str:
    size = reader.size(number)
    kind = "zeros" if position < size else ""
    while position < size:
        data = reader.read(number, position, _CHUNK)
        if data.count(0) != len(data):
            return "old bytes"
        position += max(1, len(data))
    return kind


class ObjectReport(NamedTuple):
    """One object of an instance in the bucket. `what` is "group", "fence" or "unreadable"."""

    lane: int
    sequence: int
    what: str
    size: int
    batches: int
    logs: int


class ObjectWalReport(NamedTuple):
    """An instance in the bucket. Numbers are missing below a fence or in between only where objects were deleted."""

    objects: list[ObjectReport]
    problems: list[str]


async def describe_object_wal(store: ObjectStore, wal_id: bytes) -> ObjectWalReport:
    """Read every object of an instance and verify every checksum. StoreError when the store does not answer."""
    objects: list[ObjectReport] = []
    problems: list[str] = []
    async for info in store.list(f"{PREFIX}{wal_id.hex()}/"):
        name = parse_key(info.key)
        if name is None:
            problems.append(f"{info.key} is no object of a WAL")
            continue
        try:
            data = (await store.get(info.key)).data
        except NotFound:
            continue  # deleted a moment ago
        try:
            header = parse_object_header(data)
            check_name(header, name)
            found = [] if header.what == FENCE else parse_group(data, name).batches
        except WalError as error:
            problems.append(f"{info.key} {error}")
            objects.append(ObjectReport(name.lane, name.sequence, "unreadable", len(data), 0, 0))
            continue
        logs = len({entry.log_id for entry, _ in found})
        what = "fence" if header.what == FENCE else "group"
        objects.append(ObjectReport(name.lane, name.sequence, what, len(data), len(found), logs))
    return ObjectWalReport(objects, problems)
