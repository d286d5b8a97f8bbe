"""Other brokers on this machine: their WAL instances lie under the same root, and a lock that can be taken proves that
the process that made it is gone (DESIGN 7.3, 7.4).

A survivor that finds one ends that session at once, without waiting for its silence, and recovers the instance. Of
several survivors the lock chooses one; each recovers one instance at a time, so that several are spread over them.
"""

import asyncio
import logging
from collections.abc import Callable

from broker.recovery import RecoveryStopped, WalRecovery
from controller.client import ClusterController
from controller.commands import EndSession, NameRecoverer
from controller.wals import ACTIVE, ENDED, RECOVERING, WalState
from protocol.errors import ErrorCode, KafkaError
from storage.wal.disk import Disk
from storage.wal.instances import Instance, LockedInstance, instance_ids, open_instance
from storage.wal.port import WalError

log = logging.getLogger(__name__)


class Siblings:
    """Looks every `interval_ms`. `run` is its task; `close` releases what it still holds."""

    def __init__(
        self,
        *,
        root: str,
        disk: Disk,
        incarnation: int,
        controller: ClusterController,
        recovery: WalRecovery,
        token: Callable[[int], bytes],
        interval_ms: int,
        shared: bool = False,
    ) -> None:
        """`shared`: other machines use the root too, and what is acknowledged there needs the session (DESIGN 4.3)."""
        self._root = root
        self._disk = disk
        self._incarnation = incarnation
        self._controller = controller
        self._recovery = recovery
        self._token = token
        self._interval_ms = interval_ms
        self._shared = shared
        self._held: dict[bytes, Instance] = {}
        self._told: set[bytes] = set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for wal_id in await asyncio.to_thread(self._names):
                wal = self._controller.state.wals.get(wal_id)
                if wal is not None and self._concerns_us(wal):
                    await self._look_at(wal_id)
            await self._recovery.remove_settled()
            for wal_id in [one for one in self._held if self._controller.state.wal_table.is_closed(one)]:
                self._release(self._held[wal_id])  # what could not be removed is tried again
            await asyncio.sleep(self._interval_ms / 1000)

    def _names(self) -> list[bytes]:
        try:
            return instance_ids(self._disk, self._root)
        except OSError:
            return []  # our own WAL will say what there is to say

    def _concerns_us(self, wal: WalState) -> bool:
        """Whether its writer may be gone and nobody recovers it. What another boot left waits for a fact."""
        if wal.incarnation == self._incarnation or wal.wal_id in self._held:
            return False
        table = self._controller.state.broker_table
        if wal.state == ACTIVE:
            writer = table.incarnations.get(wal.incarnation)
            return writer is not None and writer.boot_id == self._disk.boot_id()
        return wal.state != RECOVERING

    async def _look_at(self, wal_id: bytes) -> None:
        opening = asyncio.get_running_loop().run_in_executor(None, self._open, wal_id)
        try:
            instance = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            self._keep(opening.result())
            raise
        if instance is None:
            return
        self._keep(instance)
        try:
            if not await self._take_over(instance):
                self._release(instance)
        except (WalError, OSError, RecoveryStopped) as error:
            self._release(instance)
            if wal_id not in self._told:
                self._told.add(wal_id)
                log.error("WAL instance %s of another broker cannot be recovered here: %s", wal_id.hex(), error)

    def _open(self, wal_id: bytes) -> Instance | None:
        """The instance, with its lock if that can be taken."""
        try:
            return open_instance(self._root, wal_id, disk=self._disk)
        except (WalError, OSError):
            return None  # just removed; or damaged, which its own node tells

    def _keep(self, instance: Instance | None) -> None:
        if instance is not None:
            self._held[instance.wal_id] = instance

    def _release(self, instance: Instance) -> None:
        instance.close()
        del self._held[instance.wal_id]

    async def _take_over(self, instance: Instance) -> bool:
        """Whether it is ours now; False: its writer is alive, another one recovers it, or it is forgotten."""
        wal = self._controller.state.wals.get(instance.wal_id)
        if wal is None:
            return False
        if not isinstance(instance, LockedInstance):
            return await self._recover_beside_its_writer(instance, wal)
        if wal.state == ACTIVE and not instance.same_boot():  # its writer may be a machine that shares the directory
            return False
        # At once, however long the controller takes: who restarts under the writer's node id sees by the fence that
        # this is no second broker of that id.
        await asyncio.to_thread(instance.fence)
        if wal.state == ACTIVE:
            log.warning("the process of node %d on this machine is gone: recovering its WAL", wal.node_id)
            self._controller.proved_dead(instance.wal_id)
            await self._end_session(wal)
        await self._recovery.recover_for_another(instance)
        return True

    async def _recover_beside_its_writer(self, instance: Instance, wal: WalState) -> bool:
        """A process that was stopped until its session had ended holds its lock still: the fence is what stops it, and
        where the directory is shared the end of the session alone."""
        if wal.state != ENDED or not (self._shared or instance.same_boot()):
            return False
        command = NameRecoverer(self._token(16), wal.wal_id, self._incarnation)
        try:
            named = await self._controller.ask(command)
        except KafkaError:
            return False
        log.warning("the process of node %d is stopped: recovering its WAL", wal.node_id)
        await self._recovery.recover_for_another(instance, named)
        return True

    async def _end_session(self, wal: WalState) -> None:
        command = EndSession(self._token(16), wal.incarnation, self._incarnation, wal.wal_id)
        while self._is_active(wal.wal_id):
            try:
                await self._controller.ask(command)
            except KafkaError as error:
                if not error.retriable and error.code is not ErrorCode.BROKER_ID_NOT_REGISTERED:
                    raise RecoveryStopped(error.message) from error
                await asyncio.sleep(self._interval_ms / 1000)
            else:
                return

    def _is_active(self, wal_id: bytes) -> bool:
        wal = self._controller.state.wals.get(wal_id)
        return wal is not None and wal.state == ACTIVE

    async def close(self) -> None:
        """Release every lock; the files stay."""
        for instance in self._held.values():
            instance.close()
        self._held.clear()
