"""What a volume holds: files and directories as the kernel shows them, and as the disk has them."""

from __future__ import annotations

import random  # noqa: TID251
from collections.abc import Iterator
from typing import Protocol

SECTOR = 512
"""What is written whole or not at all."""


class Holder(Protocol):
    """Who may have a lock: an open file."""

    @property
    def open(self) -> bool: ...


class Inode:
    """A file: what the kernel shows, and what the disk holds. `dirty`: ranges of whole sectors that may differ."""

    def __init__(self, content: bytes | bytearray = b"") -> None:
        self.data = bytearray(content)
        self.durable = bytearray(content)
        self.dirty: list[tuple[int, int]] = []
        self.emptied = False  # and that is not durable yet
        self.holder: Holder | None = None  # of the lock
        self.path = ""
        self.made_under = ""  # boot id of the kernel whose memory holds what is not durable

    def write(self, position: int, data: bytes) -> None:
        if not data:
            return
        end = position + len(data)
        _put(self.data, position, data)
        begin, end = position // SECTOR * SECTOR, -(-end // SECTOR) * SECTOR
        if self.dirty and self.dirty[-1][1] == begin:
            begin = self.dirty.pop()[0]
        self.dirty.append((begin, end))

    def truncate(self) -> None:
        self.emptied = bool(self.durable)
        self.data = bytearray()
        self.dirty.clear()

    def sync(self) -> None:
        if self.emptied:
            self.durable.clear()
        for begin, end in self.dirty:
            self._persist(self.durable, begin, end)
        del self.durable[len(self.data) :]
        self._clean()

    def fail_to_sync(self, chance: random.Random) -> None:
        """As Linux does after a write-back error: some sectors got there, and nobody will write the others again."""
        self.durable = self._left(chance)
        self._clean()

    def forget(self, chance: random.Random) -> None:
        """The kernel that wrote it lost power; others may have the file open."""
        self.durable = self._left(chance)
        self.data = bytearray(self.durable)
        self._clean()

    def left(self, chance: random.Random) -> Inode:
        """The file as it may be found after power was lost now."""
        return Inode(self._left(chance))

    def _left(self, chance: random.Random) -> bytearray:
        found = bytearray() if self.emptied and chance.random() < 0.5 else bytearray(self.durable)
        share = chance.randrange(5)
        for begin, end in self.dirty:
            for first, last in _runs(_some_bits(chance, (end - begin) // SECTOR, share)):
                self._persist(found, begin + first * SECTOR, begin + last * SECTOR)
        return found

    def _persist(self, target: bytearray, begin: int, end: int) -> None:
        end = min(end, len(self.data))
        _put(target, begin, memoryview(self.data)[begin:end])

    def _clean(self) -> None:
        self.dirty.clear()
        self.emptied = False


def _put(target: bytearray, begin: int, data: bytes | memoryview) -> None:
    """Write into a file that may be shorter. Assigning to a slice of a bytearray would copy `data` twice."""
    size, end = len(target), begin + len(data)
    if end <= size:
        memoryview(target)[begin:end] = data
    elif begin < size:
        target[begin:] = data
    else:
        target.extend(bytes(begin - size))
        target += data


def _some_bits(chance: random.Random, count: int, quarters: int) -> int:
    """`count` bits, about so many quarters of them set."""
    if quarters in {0, 4}:
        return (1 << count) - 1 if quarters else 0
    bits = chance.getrandbits(count)
    if quarters == 1:
        return bits & chance.getrandbits(count)
    return bits | chance.getrandbits(count) if quarters == 3 else bits


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """The ranges of set bits."""
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        bits >>= ones
        at += zeros
        yield at, at + ones
        at += ones


class Folder:
    """A directory: its entries, and the changes that are not durable yet, in order."""

    def __init__(self) -> None:
        self.entries: dict[str, Inode | Folder] = {}
        self.durable: dict[str, Inode | Folder] = {}
        self.pending: list[list[tuple[str, Inode | Folder | None]]] = []
        self.removed = False

    def change(self, *changes: tuple[str, Inode | Folder | None]) -> None:
        """One change that happens whole or not at all."""
        self.pending.append(list(changes))
        self._apply(self.entries, self.pending[-1])

    def sync(self) -> None:
        for change in self.pending:
            self._apply(self.durable, change)
        self.pending.clear()

    def left(self, chance: random.Random) -> Folder:
        """The directory as it may be found after power was lost now: mostly changes get to the disk in their order."""
        found = Folder()
        entries = dict(self.durable)
        if chance.random() < 0.75:
            kept = self.pending[: chance.randint(0, len(self.pending))]
        else:
            kept = [change for change in self.pending if chance.random() < 0.5]
        for change in kept:
            self._apply(entries, change)
        for name, node in sorted(entries.items()):
            found.entries[name] = node.left(chance)
        found.durable = dict(found.entries)
        return found

    @staticmethod
    def _apply(entries: dict[str, Inode | Folder], change: list[tuple[str, Inode | Folder | None]]) -> None:
        for name, node in change:
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node


def files_below(folder: Folder, path: str = "") -> Iterator[tuple[str, Inode]]:
    """Every file below a directory, with its path."""
    for name, node in sorted(folder.entries.items()):
        if isinstance(node, Folder):
            yield from files_below(node, f"{path}/{name}")
        else:
            yield f"{path}/{name}", node
