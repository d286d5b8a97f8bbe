"""The volume WAL: groups of batches in pre-written files of one directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from protocol import Buffer
    from storage.wal.port import OnDurable, OnFailed, OnRoom


class VolumeWal:
    """One open instance: `<root>/<wal_id hex>/`."""

    kind = "volume"
    wal_id: bytes
    path: str
    fence_kind: str  # "file" or "session" (DESIGN 4.3)
    warnings: list[str]  # about the mount, for the log at start
    fenced: bool
    appended: int
    durable: tuple[int, int]  # sequence and group last reported
    batch_bytes_max: int  # the largest batch one file can hold

    @classmethod
    async def create(
        cls,
        root: str | PathLike[str],
        *,
        cluster_id: str,
        node_id: int,
        wal_id: bytes,
        on_durable: OnDurable,
        on_failed: OnFailed,
        on_room: OnRoom,
        bytes_max: int,
        message_bytes_max: int,
        file_bytes: int = 64 << 20,
    ) -> VolumeWal:
        """Make a new instance directory; returns when its first file is ready."""
        raise NotImplementedError

    def append(self, log_id: int, leader_epoch: int, base_offset: int, batch: Buffer) -> int:
        raise NotImplementedError

    def has_room(self, n_bytes: int, *, internal: bool, batches: int = 1) -> bool:
        raise NotImplementedError

    def group_below(self, sequence: int) -> int:
        raise NotImplementedError

    def trim(self, through_group: int) -> None:
        raise NotImplementedError

    def look_for_fence(self) -> bool:
        """Look for the fence file now (one stat): an authoritative answer needs its absence."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def remove(self) -> None:
        """Close and delete the instance: only after a fact says that it is retired."""
        raise NotImplementedError
