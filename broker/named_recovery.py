"""Recovering instances that lie in the bucket: the controller names a broker for each, and any broker can do it.

Acts on facts alone: whoever is named has the right to commit under its number until a successor is named. One instance
at a time; the controller spreads several over the brokers.
"""

import asyncio
from collections.abc import Callable, Sequence

from broker.recovery import WalRecovery
from controller.client import ControllerClient
from controller.facts import Fact, RecoveryNamed, StateReloaded, WalLost, WalRetired
from controller.wals import RECOVERING, WalState
from storage.object_store import ObjectStore
from storage.seal import Recovery
from storage.wal.object_recovery import ObjectInstance

KIND = "objects"


class NamedRecoveries:
    """`on_facts` is subscribed to the controller client's facts; `run` is the task that recovers."""

    def __init__(
        self,
        *,
        node_id: int,
        incarnation: int,
        store: ObjectStore,
        controller: ControllerClient,
        recovery: WalRecovery,
        token: Callable[[int], bytes],
    ) -> None:
        self._node_id = node_id
        self._incarnation = incarnation
        self._store = store
        self._controller = controller
        self._recovery = recovery
        self._token = token
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tried: set[Recovery] = set()
        self.recovered = 0
        """Instances."""

    def on_facts(self, facts: Sequence[Fact]) -> None:
        """We may have been named, or an instance that waits for its operator may have found its end."""
        for fact in facts:
            if isinstance(fact, StateReloaded) or (
                isinstance(fact, RecoveryNamed) and fact.incarnation == self._incarnation
            ):
                self._wake.set()
            elif isinstance(fact, RecoveryNamed | WalRetired | WalLost):
                self._recovery.decided(fact.wal_id)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            for wal in self._ours():
                await self._recover(wal)
            await self._wake.wait()

    async def wait_own(self) -> None:
        """Return when what this node wrote in earlier runs, and was named to recover itself, was tried."""
        while any(wal.node_id == self._node_id for wal in self._ours()):
            self._changed.clear()
            await self._changed.wait()

    def _ours(self) -> list[WalState]:
        return [
            wal
            for wal in self._controller.state.wals.values()
            if wal.state == RECOVERING
            and wal.recoverer == self._incarnation
            and wal.kind == KIND
            and Recovery(wal.wal_id, wal.recovery_number) not in self._tried
        ]

    async def _recover(self, wal: WalState) -> None:
        named = Recovery(wal.wal_id, wal.recovery_number)
        instance = ObjectInstance(self._store, wal.wal_id, token=self._token)
        await self._recovery.recover_for_another(instance, named)
        self._tried.add(named)
        self.recovered += 1
        self._changed.set()
