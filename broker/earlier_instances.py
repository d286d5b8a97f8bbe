"""WAL instances that earlier runs of this node left on the disk: locked before anything else, released at the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from broker.bucket import CannotStart
from storage.wal.instances import LockedInstance, lock_instances
from storage.wal.port import InstanceLocked, WalError

if TYPE_CHECKING:
    from storage.wal.disk import Disk

RETRY_S = 0.5
LOCK_ATTEMPTS = 3


class EarlierInstances:
    """Those below `root`. `close` releases every lock that was or is still being taken."""

    def __init__(self, root: str, cluster_id: str, node_id: int, *, disk: Disk) -> None:
        self._root = root
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._disk = disk
        self._attempts: list[asyncio.Future[list[LockedInstance]]] = []

    async def lock(self) -> list[LockedInstance]:
        """All of them. One that is in use may be so for the moment in which a sibling looks. CannotStart."""
        while True:
            locking = asyncio.get_running_loop().run_in_executor(None, self._lock)
            self._attempts.append(locking)
            try:
                return await asyncio.shield(locking)
            except InstanceLocked as error:
                if len(self._attempts) == LOCK_ATTEMPTS:
                    raise CannotStart(str(error)) from None
            await asyncio.sleep(RETRY_S)

    def _lock(self) -> list[LockedInstance]:
        try:
            self._disk.make_directory(self._root)
            return lock_instances(self._root, self._cluster_id, self._node_id, disk=self._disk)
        except InstanceLocked:
            raise
        except (WalError, OSError) as error:
            raise CannotStart(str(error)) from None

    async def close(self) -> None:
        """Release the locks; the files stay."""
        for locking in self._attempts:
            with contextlib.suppress(CannotStart, InstanceLocked):
                for instance in await locking:
                    instance.close()
