"""Recovering WAL instances of this node's earlier runs (DESIGN 7.4), and what an operator decides about the others.

Fence, scan, report the scan, replay what no segment holds, retire. Each step is a fact with a recovery number, so a
recovery that stops anywhere is simply done again. What cannot be recovered without losing acknowledged bytes is kept,
reported, and waits for the operator: nothing here decides to lose data.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from broker.cold import ColdReads
from controller.client import ControllerClient
from controller.commands import DeclareLost, LossReport, NameRecoverer, ReplayLog, ReportScan, RetireWal
from controller.facts import ScannedLog
from protocol.errors import KafkaError
from protocol.records import parse_header
from storage.clock import Clock
from storage.object_store import ObjectStore, StoreError
from storage.producers import ProducerStates
from storage.seal import Recovery, SealedLog
from storage.uploader import Uploader
from storage.wal.instances import Instance, LockedInstance
from storage.wal.port import WalError
from storage.wal.recovery import Damage, ScanReport

log = logging.getLogger(__name__)

SEAL_BYTES = 32 * 1024 * 1024
LOSS_REPORTS = "reports/losses/"
RETRY_S = 0.5

_T = TypeVar("_T")


class RecoveryStopped(Exception):
    """The instance cannot be recovered as it is; the message says why and what the operator can do."""


@dataclass(slots=True)
class Recovered:
    """What one recovery did, in batches and bytes."""

    logs: int = 0
    batches: int = 0
    bytes: int = 0
    dropped: int = 0
    """Batches of another epoch than the one under recovery: never acknowledged."""


@dataclass(slots=True)
class _Replay:
    """One log on its way from the WAL into seals."""

    plan: ReplayLog
    producers: ProducerStates
    end: int
    base: int
    batches: list[bytes] = field(default_factory=list)
    size: int = 0
    max_timestamp: int = -1

    def take(self, batch: bytes, now_ms: int) -> None:
        """The next batch of the log; applies producer state, which refuses nothing here."""
        header = parse_header(batch)
        self.producers.replay(header, now_ms, batch)
        self.batches.append(batch)
        self.size += len(batch)
        self.end = header.next_offset
        self.max_timestamp = max(self.max_timestamp, header.max_timestamp)

    def seal(self) -> SealedLog:
        """What was taken since the last seal."""
        sealed = SealedLog(
            log_id=self.plan.log_id,
            leader_epoch=self.plan.epoch,
            base=self.base,
            end=self.end,
            batches=list(self.batches),
            max_timestamp=self.max_timestamp,
            last_stable_offset=self.producers.last_stable_offset(self.end),
            producers=self.producers.snapshot(self.end),
            aborted=self.producers.aborted(self.base, self.end),
        )
        self.base, self.size, self.max_timestamp = self.end, 0, -1
        self.batches.clear()
        return sealed


class WalRecovery:
    """Recovers the locked instances of this node, one after the other; keeps those that wait for the operator."""

    def __init__(
        self,
        *,
        incarnation: int,
        controller: ControllerClient,
        store: ObjectStore,
        cold: ColdReads,
        uploader: Uploader,
        clock: Clock,
        token: Callable[[int], bytes],
    ) -> None:
        self._incarnation = incarnation
        self._controller = controller
        self._store = store
        self._cold = cold
        self._uploader = uploader
        self._clock = clock
        self._token = token
        self.waiting: dict[bytes, LockedInstance] = {}
        """Instances that only the operator can decide about, by `wal_id`."""

    async def recover_all(self, locked: Sequence[LockedInstance], named: Sequence[Recovery]) -> None:
        """Recover every locked instance that needs it and remove those that are settled; report the missing ones."""
        numbers = {recovery.wal_id: recovery for recovery in named}
        for instance in locked:
            wal = self._controller.state.wals.get(instance.wal_id)
            if wal is None or wal.closed:  # never registered, so nothing was acknowledged through it; or settled
                await asyncio.to_thread(instance.remove)
                continue
            try:
                recovered = await self.recover(instance, numbers.get(instance.wal_id))
            except RecoveryStopped as stopped:
                self.waiting[instance.wal_id] = instance
                log.error("WAL instance %s stays as it is: %s", instance.wal_id.hex(), stopped)
            else:
                log.info("recovered WAL instance %s: %s", instance.wal_id.hex(), recovered)
        self._report_missing({instance.wal_id for instance in locked})

    def _report_missing(self, found: set[bytes]) -> None:
        for wal in self._controller.state.wals.values():
            if not wal.closed and wal.wal_id not in found and wal.incarnation != self._incarnation:
                log.error(
                    "WAL instance %s of node %d is not here; its logs wait for it. Bring the volume back, or give up "
                    "what is not in the bucket: tidelog wal declare-lost %s",
                    wal.wal_id.hex(),
                    wal.node_id,
                    wal.wal_id.hex(),
                )

    async def recover(self, instance: LockedInstance, named: Recovery | None = None) -> Recovered:
        """Recover one instance to its end and delete it. RecoveryStopped: nothing was lost, the operator decides."""
        named = named or await self._name(instance.wal_id)
        try:
            scan = await self._scan(instance, accept_loss=False)
            if scan.stale is not None:
                raise RecoveryStopped(f"{scan.stale}. {_advice(instance)}")
            plans = await self._report(instance.wal_id, named, scan, complete=scan.usable)
            if scan.damage is not None:
                raise RecoveryStopped(f"{scan.damage}; {_missing(scan.damage)}. {_advice(instance)}")
            recovered = await self._replay_all(instance, named, plans)
        except (WalError, OSError) as error:
            raise RecoveryStopped(f"{error}. {_advice(instance)}") from error
        retire = RetireWal(self._token(16), instance.wal_id, self._incarnation, named.number)
        await self._patiently(lambda: self._controller.ask(retire))
        await asyncio.to_thread(instance.remove)
        return recovered

    async def accept_loss(self, wal_id: bytes) -> dict[str, Any]:
        """The operator's decision about a damaged or stale instance: recover its valid prefix, declare the rest lost.

        Answers the loss report. KeyError when no such instance waits for a decision.
        """
        instance = self.waiting[wal_id]
        named = await self._name(wal_id)
        scan = await self._scan(instance, accept_loss=True)
        plans = await self._report(wal_id, named, scan, complete=False)
        await self._replay_all(instance, named, plans)
        report = await self._declare(DeclareLost(self._token(16), wal_id, True, scan.last_group))
        del self.waiting[wal_id]
        await asyncio.to_thread(instance.remove)
        return report

    async def declare_lost(self, wal_id: bytes, *, host_is_destroyed: bool) -> dict[str, Any]:
        """The operator's decision about an instance that does not return. KafkaError POLICY_VIOLATION: too early."""
        report = await self._declare(DeclareLost(self._token(16), wal_id, host_is_destroyed))
        instance = self.waiting.pop(wal_id, None)
        if instance is not None:
            await asyncio.to_thread(instance.remove)
        return report

    async def _declare(self, command: DeclareLost) -> dict[str, Any]:
        report = loss_report(await self._controller.ask(command))
        try:
            await self._store.put(f"{LOSS_REPORTS}{command.wal_id.hex()}.json", json.dumps(report, indent=2).encode())
        except StoreError as error:
            log.warning("the controller will store the loss report, it could not be stored now: %s", error)
        log.error("declared lost: %s", json.dumps(report))
        return report

    async def _name(self, wal_id: bytes) -> Recovery:
        command = NameRecoverer(self._token(16), wal_id, self._incarnation)
        return await self._patiently(lambda: self._controller.ask(command))

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat one command while the controller cannot write: by its id it is asked only once."""
        told = False
        while True:
            try:
                return await ask()
            except KafkaError as error:
                if not error.retriable:
                    raise
                if not told:
                    log.warning("recovery waits for the controller: %s", error.message)
                    told = True
                await asyncio.sleep(RETRY_S)

    async def _scan(self, instance: Instance, *, accept_loss: bool) -> ScanReport:
        wal = self._controller.state.wals[instance.wal_id]
        await asyncio.to_thread(instance.fence)
        return await asyncio.to_thread(
            instance.scan,
            validated_group=wal.validated_group,
            committed_group=wal.committed.get(0, 0),
            accept_loss=accept_loss,
        )

    async def _report(
        self, wal_id: bytes, named: Recovery, scan: ScanReport, *, complete: bool
    ) -> tuple[ReplayLog, ...]:
        logs = self._controller.state.logs
        found = tuple(
            ScannedLog(extent.log_id, extent.base, extent.end)
            for extent in scan.entries
            if extent.log_id in logs and logs[extent.log_id].epoch == extent.leader_epoch
        )
        command = ReportScan(
            self._token(16), wal_id, self._incarnation, named.number, found, scan.last_group, complete=complete
        )
        return (await self._patiently(lambda: self._controller.ask(command))).logs

    async def _replay_all(self, instance: Instance, named: Recovery, plans: Sequence[ReplayLog]) -> Recovered:
        """Upload and commit what the plans name; several logs share a seal while they are small."""
        done = Recovered()
        sealed: list[SealedLog] = []
        size = 0
        for plan in plans:
            if plan.scanned_end <= plan.end:
                continue
            replay = await self._begin(plan)
            done.logs += 1
            batches = _wanted(instance.batches(plan.log_id), plan, done)
            while True:
                more = await asyncio.to_thread(self._take, replay, batches, SEAL_BYTES - size)
                size += replay.size
                if replay.batches:
                    done.batches += len(replay.batches)
                    done.bytes += replay.size
                    sealed.append(replay.seal())
                if not more:
                    break
                await self._commit(sealed, named)
                sealed, size = [], 0
            if replay.end != plan.scanned_end:
                raise RecoveryStopped(
                    f"log {plan.log_id} has a gap at offset {replay.end} of {plan.scanned_end}. {_advice(instance)}"
                )
        if sealed:
            await self._commit(sealed, named)
        return done

    async def _begin(self, plan: ReplayLog) -> _Replay:
        producers = ProducerStates()
        await self._cold.producers(plan.log_id, producers, self._clock.now_ms())
        return _Replay(plan, producers, plan.end, plan.end)

    def _take(self, replay: _Replay, batches: Iterator[bytes], most: int) -> bool:
        """In a thread: take batches until `most` bytes; whether there may be more."""
        now_ms = self._clock.now_ms()
        for batch in batches:
            replay.take(batch, now_ms)
            if replay.size >= most:
                return True
        return False

    async def _commit(self, sealed: list[SealedLog], named: Recovery) -> None:
        verdict = await self._uploader.submit(sealed, recovery=named)
        if verdict.refused:
            raise RecoveryStopped(f"another recovery took over: ranges of logs {sorted(verdict.refused)} were refused")
        await self._controller.wait_applied(verdict.position)


def _wanted(batches: Iterator[tuple[int, int, bytes]], plan: ReplayLog, done: Recovered) -> Iterator[bytes]:
    """The batches that continue the log in the epoch under recovery; ends at a gap and at the scanned end."""
    end = plan.end
    for epoch, base, batch in batches:
        if epoch != plan.epoch:
            done.dropped += 1
        elif base == end and end < plan.scanned_end:
            end = parse_header(batch).next_offset
            yield batch
        elif base > end:
            return


def loss_report(report: LossReport) -> dict[str, Any]:
    """The report as it is stored in the bucket and shown to the operator."""
    return {
        "wal_id": report.wal_id.hex(),
        "node_id": report.node_id,
        "incarnation": f"{report.incarnation:016x}",
        "declared_ms": report.now_ms,
        "validated_group": report.validated_group,
        "recovered_group": report.recovered_group,
        "logs": [
            {
                "log_id": lost.log_id,
                "topic": lost.topic,
                "partition": lost.partition,
                "lost_from_offset": lost.from_offset,
                "continues_at_offset": lost.to_offset,
            }
            for lost in report.logs
        ],
    }


def _advice(instance: Instance) -> str:
    return (
        f"Its files are kept in {instance.path}. To take what is readable and give up the rest: "
        f"tidelog wal recover --accept-loss {instance.wal_id.hex()}"
    )


def _missing(damage: Damage) -> str:
    """Which acknowledged offsets may be gone, as far as headers that can still be read say."""
    ranges = ", ".join(
        f"log {part.log_id} from offset {part.base}{'' if part.end is None else f' up to {part.end}'}"
        for part in damage.missing
    )
    return f"may be missing: {ranges}" if ranges else "what is missing cannot be told"
