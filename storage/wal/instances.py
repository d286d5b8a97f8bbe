"""Instance directories of a WAL root: lock them, scan them, fence them, remove them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike


class Superblock(NamedTuple):
    cluster_id: str
    node_id: int
    boot_id: str
    wal_id: bytes


class Extent(NamedTuple):
    """What one instance holds of one log under one leader epoch: offsets [base, end)."""

    log_id: int
    leader_epoch: int
    base: int
    end: int
    batches: int
    bytes: int


class Instance:
    """One instance directory, opened for reading: by its lock holder, or by a recoverer that fenced it."""

    wal_id: bytes
    superblock: Superblock
    path: str

    def same_boot(self) -> bool:
        """Whether the running kernel is the one that the instance was created under."""
        raise NotImplementedError

    def fence(self) -> None:
        """Stop the writer: what it has not reported durable when this returns, it never will. Repeatable."""
        raise NotImplementedError

    def scan(self, *, validated_group: int = 0, accept_loss: bool = False) -> ScanReport:
        """Find the valid prefix. Reads group headers and the last batch of every log."""
        raise NotImplementedError

    def batches(self, log_id: int) -> Iterator[tuple[int, int, bytes]]:
        """(leader epoch, base offset, batch) of one log in append order, checksums verified; after `scan`."""
        raise NotImplementedError


class LockedInstance(Instance):
    """An instance whose lock we hold: nobody else has it open, its writer is dead."""

    def remove(self) -> None:
        """Delete the instance: only after a fact says that it is retired or lost."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the lock and keep the files."""
        raise NotImplementedError


class Missing(NamedTuple):
    """Offsets of a log that may be lost: [base, end); end None: not known."""

    log_id: int
    leader_epoch: int
    base: int
    end: int | None


class Damage(NamedTuple):
    """The first invalid group although later ones were written: acknowledged bytes are damaged."""

    file: str
    position: int
    group: int
    reason: str
    missing: list[Missing]


class ScanReport(NamedTuple):
    entries: list[Extent]
    first_group: int
    last_group: int
    damage: Damage | None
    stale: str | None
    usable: bool


def lock_instances(root: str | PathLike[str], cluster_id: str, node_id: int) -> list[LockedInstance]:
    """Lock every instance directory of this node. InstanceLocked, ForeignCluster, UnknownFormat, Damaged."""
    raise NotImplementedError
