"""What the bytes of an instance directory say, every checksum verified. Only reads, takes no lock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from storage.wal.disk import LinuxDisk
from storage.wal.format import file_name
from storage.wal.instances import Instance, read_superblock
from storage.wal.port import WalError
from storage.wal.recovery import FoundGroup, Reader, Walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

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
