"""What a controller does beside deciding: snapshots, retention, deleting objects, freeing names, loss reports, balance.

Everything that becomes true here becomes so by commands like any other. Nothing here is urgent: errors of the store end
the round, the next round tries again.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from controller.balancing import Balancing
from controller.collector import (
    SEGMENTS,
    Grace,
    abandoned,
    forgettable,
    forgettable_losses,
    is_orphan,
    is_wal_orphan,
    too_many_closed,
)
from controller.commands import (
    DrainBroker,
    ForgetClosed,
    ForgetLosses,
    ForgetObjects,
    FreeNames,
    RecoverInstances,
    RetireAbandoned,
    SweepLogStarts,
)
from controller.compaction_upkeep import CompactionUpkeep
from controller.decide.moves import is_leaving
from controller.decide.takeover import take_over
from controller.describe import describe_loss
from controller.facts import LogStart
from controller.merge_upkeep import MergeUpkeep
from controller.retention import InManifest, sweep
from controller.wals import Loss
from protocol.errors import KafkaError
from storage.clock import Clock
from storage.object_store import ObjectStore, OutcomeUnknown, PreconditionFailed, StoreError
from storage.wal.object_format import PREFIX as WAL_OBJECTS

if TYPE_CHECKING:
    from controller.runtime import Runtime

COMMAND_TIMEOUT_MS = 30_000
LOSSES = "reports/losses/"
DELETES_AT_ONCE = 16
DELETES_PER_ROUND = 1_000
LOGS_PER_STEP = 200
FORGOTTEN_PER_COMMAND = 1_000
STARTS_PER_COMMAND = 1_000
TICK_MS = 1_000
DRAIN_ROUND_MS = 5_000
TAKEOVER_ROUND_MS = 5_000
TINY_SNAPSHOT = 8
"""Beyond the entry count, a snapshot is taken once the entries since weigh an eighth of the last one."""

_log = logging.getLogger(__name__)


class Upkeep:
    """The slow work of one controller; idle while another leads."""

    def __init__(self, runtime: "Runtime", store: ObjectStore, clock: Clock, token: Callable[[int], bytes]) -> None:
        self._runtime = runtime
        self._store = store
        self._clock = clock
        self._token = token
        self.balancing = Balancing(runtime, clock, token)
        self._grace = Grace(runtime.settings.delete_grace_ms)
        settings = runtime.settings
        self.compaction = CompactionUpkeep(runtime, store, clock, token, self._ask)
        self._merging = MergeUpkeep(
            runtime,
            store,
            clock,
            token,
            self._ask,
            settings.merging,
            settings.merge_check_ms,
            self.compaction.is_compacted,
        )
        self._snapshot: tuple[int, bytes, list[bytes]] | None = None
        self._snapshot_ready = asyncio.Event()
        self._reported: set[bytes] = set()
        self._searched: set[int] = set()

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What to run while the runtime runs."""
        settings = self._runtime.settings
        grace_round_ms = max(TICK_MS, min(60_000, settings.delete_grace_ms // 4))
        return [
            self._write_snapshots(),
            self._rounds(settings.retention_check_ms, self.retention_round),
            self._rounds(grace_round_ms, self.housekeeping_round),
            self._rounds(settings.orphan_check_ms, self.orphan_round),
            self.balancing.run(),
            self._rounds(settings.merge_check_ms, self._merging.merge_round),
            self.compaction.run(),
            self._rounds(DRAIN_ROUND_MS, self.drain_round),
            self._rounds(TAKEOVER_ROUND_MS, self.takeover_round),
        ]

    async def _ask(self, command: Any) -> None:
        try:
            await self._runtime.ask(command, COMMAND_TIMEOUT_MS)
        except KafkaError as error:
            _log.info("%s was not done this time: %s", type(command).__name__, error)

    async def _rounds(self, every_ms: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(every_ms / 1000)
            if not self._runtime.leads:
                continue
            try:
                await work()
            except StoreError as error:
                _log.info("%s ended early: %s", work.__name__, error)

    # Snapshots

    def snapshot_is_due(self) -> bool:
        """Whether enough was written since the last snapshot, compared with what a snapshot costs."""
        replica, settings = self._runtime.replica, self._runtime.settings
        if self._snapshot is not None:
            return False
        if replica.bytes_since_snapshot >= settings.snapshot_bytes:
            return True
        return (
            replica.entries_since_snapshot >= settings.snapshot_entries
            and replica.bytes_since_snapshot * TINY_SNAPSHOT >= replica.snapshot_bytes
        )

    async def encode_snapshot(self, step_ms: int) -> None:
        """Encodes the state, giving way every `step_ms`; the caller sees to it that the state stays as it is."""
        replica = self._runtime.replica
        state = replica.state
        loop = asyncio.get_running_loop()
        chunks: list[bytes] = []
        until = loop.time() + step_ms / 1000
        for chunk in state.encode_chunks():
            chunks.append(chunk)
            if loop.time() >= until:
                await asyncio.sleep(0)
                until = loop.time() + step_ms / 1000
        replica.bytes_since_snapshot = replica.entries_since_snapshot = 0
        replica.snapshot_bytes = sum(map(len, chunks))
        self._snapshot = (state.position, state.entry_hash, chunks)
        self._snapshot_ready.set()

    async def _write_snapshots(self) -> None:
        log = self._runtime.replica.log
        while True:
            await self._snapshot_ready.wait()
            self._snapshot_ready.clear()
            assert self._snapshot is not None
            position, entry_hash, chunks = self._snapshot
            try:
                await log.write_snapshot(position, entry_hash, chunks)
                await log.advance_boundary(position - self._runtime.settings.keep_entries)
                await log.trim()
            except StoreError as error:
                _log.info("the snapshot at %d was not finished, the next one will be: %s", position, error)
            self._snapshot = None

    # Retention

    async def retention_round(self) -> None:
        """Moves the starts of all logs as their topics' limits say, a slice at a time."""
        state = self._runtime.replica.state
        steps = sweep(state, list(state.logs), self._runtime.rules, self._clock.now_ms())
        async for starts in self._sliced(steps):
            await self._ask(SweepLogStarts(self._token(16), tuple(starts)))

    async def _sliced(self, steps: Iterator[LogStart | InManifest | None]) -> Any:
        found: list[LogStart] = []
        while step := list(islice(steps, LOGS_PER_STEP)):
            for item in step:
                start = await self._merging.start_of(item) if isinstance(item, InManifest) else item
                if start is not None:
                    found.append(start)
            if len(found) >= STARTS_PER_COMMAND:
                yield found
                found = []
            await asyncio.sleep(0)
        if found:
            yield found

    # Drained brokers

    async def drain_round(self) -> None:
        """Logs that a drained broker still leads get a target, once there is one."""
        state = self._runtime.replica.state
        for node_id in sorted(state.drained):
            if is_leaving(state, node_id) and any(
                broker.node_id not in state.drained for broker in state.broker_table.alive()
            ):
                await self._ask(DrainBroker(self._token(16), node_id))

    # WAL instances in the bucket

    async def takeover_round(self) -> None:
        """Instances that got no recoverer when their session ended, because nobody could be named, get one."""
        if take_over(self._runtime.replica.state):
            await self._ask(RecoverInstances(self._token(16)))

    # Objects, names, losses

    async def housekeeping_round(self) -> None:
        """Deletes doomed objects after their grace, frees names of deleted topics, stores loss reports, and retires or
        forgets what nobody waits for.
        """
        state = self._runtime.replica.state
        names = tuple(state.topic_table.deleted)
        if names:
            await self._ask(FreeNames(self._token(16), names))
        await self._report_losses()
        forgotten = [one for one in forgettable_losses(state) if one in self._reported]
        if forgotten:
            await self._ask(ForgetLosses(self._token(16), tuple(forgotten[:FORGOTTEN_PER_COMMAND])))
            self._reported.intersection_update(state.wal_table.losses)
        empty = abandoned(state, self._clock.now_ms())
        if empty:
            await self._ask(RetireAbandoned(self._token(16), tuple(empty[:FORGOTTEN_PER_COMMAND])))
        await self._forget(too_many_closed(state))
        keys = self._grace.due(state.objects.doomed, self._clock.boottime_ms(), DELETES_PER_ROUND)
        await self._delete(keys)
        if keys:
            await self._ask(ForgetObjects(self._token(16), tuple(keys)))

    async def orphan_round(self) -> None:
        """Deletes segments, manifests and WAL objects that nothing names and nothing ever will.

        Closed incarnations for which two rounds searched the bucket are forgotten: whatever a dead process had on its
        way has arrived by then, and what arrives later costs its space and no more.
        """
        searched = set(forgettable(self._runtime.replica.state, self._clock.now_ms()))
        found = [key for key in await self._merging.find_void() if is_orphan(self._runtime.replica.state, key)]
        async for info in self._store.list(SEGMENTS):
            if is_orphan(self._runtime.replica.state, info.key):
                found.append(info.key)
            if len(found) >= DELETES_PER_ROUND:
                await self._delete(found)
                found = []
        async for info in self._store.list(WAL_OBJECTS):
            if is_wal_orphan(self._runtime.replica.state, info, self._clock.now_ms()):
                found.append(info.key)
            if len(found) >= DELETES_PER_ROUND:
                await self._delete(found)
                found = []
        await self._delete(found)
        await self._forget(sorted(searched & self._searched))
        self._searched = searched

    async def _forget(self, incarnations: list[int]) -> None:
        for at in range(0, len(incarnations), FORGOTTEN_PER_COMMAND):
            chunk = tuple(incarnations[at : at + FORGOTTEN_PER_COMMAND])
            await self._ask(ForgetClosed(self._token(16), chunk))

    async def _delete(self, keys: list[str]) -> None:
        for at in range(0, len(keys), DELETES_AT_ONCE):
            await asyncio.gather(*[self._store.delete(key) for key in keys[at : at + DELETES_AT_ONCE]])

    async def _report_losses(self) -> None:
        for loss in list(self._runtime.replica.state.wal_table.losses.values()):
            if loss.wal_id in self._reported:
                continue
            try:
                await self._store.put_if_absent(loss_key(loss.wal_id), encode_loss(loss))
            except PreconditionFailed:
                pass
            except OutcomeUnknown:
                continue
            self._reported.add(loss.wal_id)


def loss_key(wal_id: bytes) -> str:
    """Where the report of a declared loss lies."""
    return f"{LOSSES}{wal_id.hex()}.json"


def encode_loss(loss: Loss) -> bytes:
    """The report as JSON, for people."""
    return json.dumps(describe_loss(loss), indent=2).encode() + b"\n"
