"""Disks that are too small, and surgery on WAL files: groups found, bytes changed."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.wal.disk import LinuxDisk
from storage.wal.format import ENTRY, encode_header, file_name, group_prefix
from storage.wal.recovery import FoundGroup, Reader, Walk


@contextlib.contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of its own with room for `size` bytes; the test is skipped where nobody may mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tidelog-tests", str(directory)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a full disk needs a file system of its own, and there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"a full disk needs a file system of its own, which may not be mounted here: {mounted.stderr}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path, leave: int = 0) -> Path:
    """Take all space of a disk but `leave` bytes; delete the file that is returned to give it back."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    if leave:
        os.truncate(filler, filler.stat().st_size - leave)
    return filler


def instance(wal_dir: Path) -> Path:
    """The one instance directory that is there."""
    (found,) = [path for path in wal_dir.iterdir() if len(path.name) == 32]
    return found


def groups(path: Path) -> list[FoundGroup]:
    """The valid groups of an instance directory, in order."""
    reader = Reader(LinuxDisk(), str(path), bytes.fromhex(path.name))
    try:
        return list(Walk(reader, reader.numbers(), verify=True))
    finally:
        reader.close()


def overwrite(path: Path, number: int, position: int, data: bytes) -> None:
    """Put bytes into WAL file `number` of an instance directory."""
    with open(path / file_name(number), "r+b") as file:
        file.seek(position)
        file.write(data)


def flip_bit(path: Path, number: int, position: int) -> None:
    """Change one bit of WAL file `number`."""
    with open(path / file_name(number), "r+b") as file:
        file.seek(position)
        (old,) = file.read(1)
        file.seek(position)
        file.write(bytes([old ^ 1]))


def begin_of_group(path: Path, after: FoundGroup) -> bytes:
    """What a crash leaves when it strikes while the group after `after` is written: its header, no batches."""
    entries = [ENTRY.pack(entry.log_id, entry.base_offset, 500, entry.leader_epoch) for entry in after.header.entries]
    return encode_header(group_prefix(bytes.fromhex(path.name), after.file), after.header.group + 1, entries)
