"""Recovering WAL instances of this node's earlier runs, of other brokers on this machine, and those in the bucket that
the controller named us for (DESIGN 7.4); and what an operator decides about the rest.

Fence, scan, report the scan, replay what no segment holds, retire. Each step is a fact with a recovery number, so a
recovery that stops anywhere is simply done again. What cannot be recovered without losing acknowledged bytes is kept,
reported, and waits for the operator: nothing here decides to lose data.

A store or controller that is away is waited for. `RecoveryStopped` is the end of one instance's recovery; any other
error is the end of the process: no later seal could be committed.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from broker.background import Tasks
from broker.cold import ColdReads
from broker.replay import SEALS_IN_FLIGHT, Recovered, RecoveryStopped, Replay, Seals
from controller.client import ControllerClient
from controller.commands import DeclareLost, NameRecoverer, ReplayLog, ReportScan, RetireWal
from controller.describe import describe_loss
from controller.facts import ScannedLog
from controller.upkeep import encode_loss, loss_key
from controller.wals import ENDED, WalState
from protocol.errors import ErrorCode, KafkaError
from protocol.records import parse_header
from storage.clock import Clock
from storage.object_store import ObjectStore, PreconditionFailed, StoreError
from storage.producers import ProducerStates
from storage.seal import Recovery
from storage.uploader import Uploader
from storage.wal.instances import Instance, LockedInstance
from storage.wal.object_format import LANE, ObjectGroup
from storage.wal.object_recovery import ObjectInstance
from storage.wal.port import Damaged, WalError
from storage.wal.recovery import Damage, ScanReport

__all__ = ["SEALS_IN_FLIGHT", "Recovered", "RecoveryStopped", "WalRecovery"]

log = logging.getLogger(__name__)

SEAL_BYTES_MAX = 32 * 1024 * 1024
MEMORY_SHARE = 8
"""A seal takes at most this part of the memory for tails, which are empty meanwhile; one more is being made."""
MEMORY_SHARE_SERVING = 32
"""The same while clients are served, beside the tails."""
STEP_BYTES = 4 * 1024 * 1024
STEP_BATCHES = 4_000
"""What is replayed between two looks at whether to go on."""
RETRY_S = 0.5
AGAIN_S, AGAIN_S_MAX = 2.0, 60.0
"""Between attempts to recover an instance whose disk failed; doubled each time."""
BEGIN_AT_ONCE = 16
"""Producer states that are read at the same time where several logs are replayed together."""
BYTES_PER_MS = 50_000
"""What is assumed of a replay before one was measured."""


Recoverable = Instance | ObjectInstance


class SettledElsewhere(RecoveryStopped):
    """Another broker brought the instance to its end. The fact may not be applied here yet."""


class Waiting(NamedTuple):
    """An instance that only the operator can decide about, and why."""

    instance: Recoverable
    why: str
    disk: bool
    """Whether its disk failed: that may pass by itself."""


class WalRecovery:
    """Recovers locked instances, one after the other; keeps those that wait for the operator."""

    def __init__(
        self,
        *,
        node_id: int,
        incarnation: int,
        controller: ControllerClient,
        store: ObjectStore,
        cold: ColdReads,
        uploader: Uploader,
        clock: Clock,
        token: Callable[[int], bytes],
        tasks: Tasks,
        memory_bytes: int,
    ) -> None:
        """`memory_bytes`: what tails may take, `tidelog.tail.bytes.max`."""
        self._node_id = node_id
        self._incarnation = incarnation
        self._controller = controller
        self._store = store
        self._cold = cold
        self._uploader = uploader
        self._clock = clock
        self._token = token
        self._tasks = tasks
        self._memory_bytes = memory_bytes
        self._seal_bytes = min(SEAL_BYTES_MAX, memory_bytes // MEMORY_SHARE)
        self.waiting: dict[bytes, Waiting] = {}
        """Instances that only the operator can decide about, by `wal_id`."""
        self._recovering: set[bytes] = set()
        self._operations: dict[bytes, asyncio.Future[dict[str, Any]]] = {}
        self._trying: set[bytes] = set()
        self._settled: list[LockedInstance] = []
        self._replayed_bytes = 0
        self._replayed_ms = 0

    # At start

    async def recover_all(self, locked: Sequence[LockedInstance], named: Sequence[Recovery]) -> None:
        """Recover every locked instance that needs it; report those that wait for the operator and the missing ones.

        `remove_settled` deletes the files that are not needed any more.
        """
        numbers = {recovery.wal_id: recovery for recovery in named}
        for instance in locked:
            wal = self._controller.state.wals.get(instance.wal_id)
            if wal is None:
                await self._look_at_unknown(instance)
                continue
            if wal.closed:
                self._settle(instance)
                continue
            await self._recover_or_keep(instance, numbers.get(instance.wal_id))
        for wal in self.missing():
            if wal.node_id != self._node_id:
                continue  # its own node may well have it
            log.error(
                "WAL instance %s of node %d is not here; its logs wait for it. Bring the volume back, or give up "
                "what is not in the bucket: tidelog wal declare-lost %s",
                wal.wal_id.hex(),
                wal.node_id,
                wal.wal_id.hex(),
            )

    async def _look_at_unknown(self, instance: LockedInstance) -> None:
        """One that was never registered holds nothing and goes. One that holds groups was registered: it is not ours to
        throw away, whatever became of it.
        """
        try:
            scan = await asyncio.to_thread(instance.scan)
        except (WalError, OSError) as error:
            what = f"cannot be read ({error})"
        else:
            if not scan.groups and scan.damage is None:
                self._settle(instance)
                return
            what = f"holds groups up to {scan.last_group}"
        log.error(
            "WAL instance %s in %s %s, but the cluster does not know it: it was retired or given up so long ago that "
            "it is forgotten, or the metadata is older. Nothing of it is recovered; move it away to end this message",
            instance.wal_id.hex(),
            instance.path,
            what,
        )

    async def recover_for_another(self, instance: Recoverable, named: Recovery | None = None) -> None:
        """Recover an instance whose writer, another broker, is gone or stopped; its session has ended.

        Without its lock only what nobody but we was `named` for.
        """
        if self._controller.state.wal_table.is_closed(instance.wal_id):
            self._settle(instance)
            return
        self._seal_bytes = min(SEAL_BYTES_MAX, self._memory_bytes // MEMORY_SHARE_SERVING)
        await self._recover_or_keep(instance, named)

    def decided(self, wal_id: bytes) -> None:
        """An instance in the bucket that waited here found its end, or another recoverer: it is not our business."""
        waiting = self.waiting.get(wal_id)
        if waiting is not None and isinstance(waiting.instance, ObjectInstance) and wal_id not in self._operations:
            self._forget(wal_id)

    def _settle(self, instance: Recoverable) -> None:
        """Its end is a fact: whoever holds its lock may delete it; what lies in the bucket is collected."""
        if isinstance(instance, Recoverable) and not isinstance(instance, LockedInstance):
            instance.close()
        else:
            self._settled.append(instance)

    async def _recover_or_keep(self, instance: Recoverable, named: Recovery | None) -> None:
        self._recovering.add(instance.wal_id)
        try:
            recovered = await self._recover(instance, named)
        except RecoveryStopped as stopped:
            closed = self._controller.state.wal_table.is_closed(instance.wal_id)
            if closed or isinstance(stopped, SettledElsewhere):  # somebody else decided about it meanwhile
                self._settle(instance)
                return
            disk = isinstance(stopped.__cause__, OSError)
            self.waiting[instance.wal_id] = Waiting(instance, str(stopped), disk)
            log.error("WAL instance %s stays as it is: %s", instance.wal_id.hex(), stopped)
            if disk and instance.wal_id not in self._trying:
                self._trying.add(instance.wal_id)
                self._tasks.spawn(self._try_again(instance.wal_id), name=f"try WAL {instance.wal_id.hex()} again")
        else:
            self._settle(instance)
            log.info("recovered WAL instance %s: %s", instance.wal_id.hex(), recovered)
        finally:
            self._recovering.discard(instance.wal_id)

    async def _try_again(self, wal_id: bytes) -> None:
        """A disk that failed or was full may work later: try until it does, or until the operator has decided."""
        wait_s = AGAIN_S
        while (waiting := self.waiting.get(wal_id)) is not None and waiting.disk:
            await asyncio.sleep(wait_s)
            if wal_id in self.waiting and wal_id not in self._operations and not self._recovering:
                wait_s = min(2 * wait_s, AGAIN_S_MAX)
                await self._recover_or_keep(self.waiting.pop(wal_id).instance, None)
                await self.remove_settled()
        self._trying.discard(wal_id)

    async def remove_settled(self) -> None:
        """Delete the files of instances whose end is a fact. Nobody waits for this."""
        while self._settled:
            instance = self._settled.pop()
            removing = asyncio.get_running_loop().run_in_executor(None, instance.remove)
            try:
                await asyncio.shield(removing)
            except asyncio.CancelledError:
                await asyncio.wait([removing])  # whoever cancels us closes the instance
                raise
            except OSError as error:
                log.warning("%s is not needed any more and cannot be deleted: %s", instance.path, error)

    def estimated_seconds(self, n_bytes: int) -> float:
        """How long replaying so much would take, at the rate of the last recovery."""
        measured = self._replayed_bytes >= STEP_BYTES and self._replayed_ms > 0
        return n_bytes / (self._replayed_bytes / self._replayed_ms if measured else BYTES_PER_MS) / 1000

    def missing(self) -> list[WalState]:
        """Instances whose logs wait for them and that nobody has."""
        return [wal for wal in self._controller.state.wals.values() if self._is_missing(wal)]

    def _is_missing(self, wal: WalState) -> bool:
        return wal.state == ENDED and wal.wal_id not in self.waiting and wal.wal_id not in self._recovering

    def rows(self, *, settled: bool) -> list[dict[str, Any]]:
        """Every instance for the operator; with `settled`, also those that are retired or lost."""
        state = self._controller.state
        return [
            {
                "wal_id": wal.wal_id.hex(),
                "node_id": wal.node_id,
                "kind": wal.kind,
                "state": wal.state,
                "waits_for_operator": wal.wal_id in self.waiting or self._is_missing(wal),
                "logs": len(state.log_index.led_through.get(wal.wal_id, ())),
                "why": self.waiting[wal.wal_id].why if wal.wal_id in self.waiting else None,
            }
            for wal in state.wals.values()
            if settled or not wal.closed
        ]

    # What the operator decides

    def accept_loss(self, wal_id: bytes) -> "asyncio.Future[dict[str, Any]]":
        """The operator's decision about a damaged or stale instance: recover its valid prefix, declare the rest lost.

        The future tells the loss report; asking again while it is at work joins it. KeyError when no such instance
        waits for a decision. Errors of the future: RecoveryStopped, KafkaError.
        """
        return self._operate(wal_id, partial(self._accept_loss, self.waiting[wal_id].instance))

    def declare_lost(self, wal_id: bytes, *, host_is_destroyed: bool) -> "asyncio.Future[dict[str, Any]]":
        """The operator's decision about an instance that does not return.

        As `accept_loss`. KafkaError: POLICY_VIOLATION, too early; RESOURCE_NOT_FOUND, there is no such instance.
        """
        return self._operate(wal_id, partial(self._declare_lost, wal_id, host_is_destroyed))

    def _operate(
        self, wal_id: bytes, work: Callable[[], Awaitable[dict[str, Any]]]
    ) -> "asyncio.Future[dict[str, Any]]":
        """One decision at a time per instance; it goes on when whoever asked has left."""
        outcome = self._operations.get(wal_id)
        if outcome is None:
            outcome = self._operations[wal_id] = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._work(wal_id, work, outcome), name=f"decision about WAL {wal_id.hex()}")
        return outcome

    async def _work(
        self, wal_id: bytes, work: Callable[[], Awaitable[dict[str, Any]]], outcome: "asyncio.Future[dict[str, Any]]"
    ) -> None:
        try:
            report = await work()
        except (RecoveryStopped, KafkaError) as error:
            log.warning("WAL instance %s stays as it is: %s", wal_id.hex(), error)
            if not outcome.done():
                outcome.set_exception(error)
                outcome.exception()  # retrieved: nobody may be waiting any more
        else:
            if not outcome.done():
                outcome.set_result(report)
        finally:
            outcome.cancel()
            del self._operations[wal_id]

    async def _accept_loss(self, instance: Recoverable) -> dict[str, Any]:
        wal = self._known(instance.wal_id)
        last_group = wal.recovered_group
        if not wal.closed:  # else an earlier attempt came as far as the loss
            named = await self._name(instance.wal_id)
            try:
                scan = await self._scan(instance, accept_loss=True)
                plans = await self._report(instance.wal_id, named, scan, complete=False)
                await self._replay_all(instance, named, plans)
            except (WalError, OSError) as error:
                raise RecoveryStopped(str(error)) from error
            last_group = scan.last_group
        report = await self._declare(DeclareLost(self._token(16), instance.wal_id, True, last_group))
        self._forget(instance.wal_id)
        return report

    async def _declare_lost(self, wal_id: bytes, host_is_destroyed: bool) -> dict[str, Any]:
        wal = self._controller.state.wals.get(wal_id)
        if wal is not None and wal.incarnation == self._incarnation:
            raise KafkaError(ErrorCode.INVALID_REQUEST, "this broker writes the instance: it is not lost")
        if wal_id in self._recovering:
            raise KafkaError(ErrorCode.CONCURRENT_TRANSACTIONS, "this broker recovers the instance just now")
        report = await self._declare(DeclareLost(self._token(16), wal_id, host_is_destroyed))
        self._forget(wal_id)
        return report

    async def _declare(self, command: DeclareLost) -> dict[str, Any]:
        await self._controller.ask(command)
        loss = self._controller.state.wal_table.losses[command.wal_id]
        try:
            await self._store.put_if_absent(loss_key(loss.wal_id), encode_loss(loss))
        except PreconditionFailed:
            pass
        except StoreError as error:
            log.warning("the controller will store the loss report, it could not be stored now: %s", error)
        report = describe_loss(loss)
        log.error("declared lost: %s", json.dumps(report))
        return report

    def _forget(self, wal_id: bytes) -> None:
        waiting = self.waiting.pop(wal_id, None)
        if waiting is not None:
            self._settle(waiting.instance)
            self._tasks.spawn(self.remove_settled(), name="remove WAL instances")

    # One instance

    async def _recover(self, instance: Recoverable, named: Recovery | None) -> Recovered:
        """Recover one instance to its end and retire it. RecoveryStopped: nothing was lost, the operator decides."""
        named = named or await self._name(instance.wal_id)
        try:
            scan = await self._scan(instance, accept_loss=False)
            if scan.stale is not None:
                raise RecoveryStopped(f"{scan.stale}. {_advice(instance)}")
            plans = await self._report(instance.wal_id, named, scan, complete=scan.usable)
            if scan.damage is not None:
                raise RecoveryStopped(f"{_told(scan.damage)}. {_advice(instance)}")
            try:
                recovered = await self._replay_all(instance, named, plans)
            except Damaged:  # of a batch that the scan had no reason to look at; looking at all tells what is missing
                scan = await self._scan(instance, accept_loss=True)
                if scan.damage is None:
                    raise
                raise RecoveryStopped(f"{_told(scan.damage)}. {_advice(instance)}") from None
        except (WalError, OSError) as error:
            raise RecoveryStopped(f"{error}. {_advice(instance)}") from error
        if recovered.gaps:
            raise RecoveryStopped(f"{'; '.join(recovered.gaps)}. {_advice(instance)}")
        await self._ask(RetireWal(self._token(16), instance.wal_id, self._incarnation, named.number))
        return recovered

    async def _ask(self, command: Any) -> Any:
        """Ask until there is an answer: by its id the command is asked only once. RecoveryStopped: it was refused."""
        told = False
        while True:
            try:
                return await self._controller.ask(command)
            except KafkaError as error:
                if not error.retriable:
                    raise RecoveryStopped(error.message) from error
                if not told:
                    log.warning("recovery waits for the controller: %s", error.message)
                    told = True
                await asyncio.sleep(RETRY_S)

    async def _name(self, wal_id: bytes) -> Recovery:
        try:
            named: Recovery = await self._ask(NameRecoverer(self._token(16), wal_id, self._incarnation))
        except RecoveryStopped as stopped:
            refusal = stopped.__cause__
            if isinstance(refusal, KafkaError) and refusal.code is ErrorCode.INVALID_REQUEST:
                raise SettledElsewhere(str(stopped)) from refusal
            raise
        return named

    def _known(self, wal_id: bytes) -> WalState:
        wal = self._controller.state.wals.get(wal_id)
        if wal is None:
            raise RecoveryStopped(f"WAL {wal_id.hex()} was retired or given up so long ago that it is forgotten")
        return wal

    async def _scan(self, instance: Recoverable, *, accept_loss: bool) -> ScanReport:
        wal = self._known(instance.wal_id)
        if isinstance(instance, ObjectInstance):
            return await instance.fence_and_scan(
                validated_group=wal.acknowledged_group,
                committed_group=wal.committed.get(LANE, 0),
                accept_loss=accept_loss,
            )
        await asyncio.to_thread(instance.fence)
        return await asyncio.to_thread(
            instance.scan,
            validated_group=wal.acknowledged_group,
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
        plans: tuple[ReplayLog, ...] = (await self._ask(command)).logs
        return plans

    async def _replay_all(self, instance: Recoverable, named: Recovery, plans: Sequence[ReplayLog]) -> Recovered:
        """Upload and commit what the plans name, each log up to its first gap."""
        done = Recovered()
        began_ms = self._clock.boottime_ms()
        seals = Seals(self._uploader, named, self._seal_bytes)
        try:
            wanted = [plan for plan in plans if plan.scanned_end > plan.end]
            if isinstance(instance, ObjectInstance):
                await self._replay_together(instance, wanted, seals, done)
            else:
                for plan in wanted:
                    await self._replay(instance, plan, seals, done)
            await seals.finish()
        except (RecoveryStopped, WalError, OSError):
            await seals.settle()
            raise
        await self._controller.wait_applied(seals.position)
        self._replayed_bytes += done.bytes
        self._replayed_ms += self._clock.boottime_ms() - began_ms
        return done

    async def _replay(self, instance: Instance, plan: ReplayLog, seals: Seals, done: Recovered) -> None:
        replay = await self._begin(plan)
        batches = _wanted(instance.batches(plan.log_id), plan, done)
        done.logs += 1
        more = True
        while more:
            more = await asyncio.to_thread(self._take, replay, batches, min(seals.room - replay.memory, STEP_BYTES))
            if replay.batches and (not more or replay.memory >= seals.room):
                done.batches += len(replay.batches)
                done.bytes += replay.size
                await seals.add(replay.seal())
        replay.note_gap(done)

    async def _replay_together(
        self, instance: ObjectInstance, plans: Sequence[ReplayLog], seals: Seals, done: Recovered
    ) -> None:
        """All logs at once, object by object: each holds a little of many logs."""
        replays: dict[int, Replay] = {}
        for at in range(0, len(plans), BEGIN_AT_ONCE):
            begun = await asyncio.gather(*map(self._begin, plans[at : at + BEGIN_AT_ONCE]), return_exceptions=True)
            for replay in begun:
                if isinstance(replay, BaseException):
                    raise replay
                replays[replay.plan.log_id] = replay
        done.logs += len(replays)
        going_on = dict(replays)
        async for group in instance.groups():
            await asyncio.to_thread(self._take_group, group, going_on, done)
            if sum(replay.memory for replay in replays.values()) >= seals.room:
                await self._seal_all(replays.values(), seals, done)
        await self._seal_all(replays.values(), seals, done)
        for replay in replays.values():
            replay.note_gap(done)

    def _take_group(self, group: ObjectGroup, going_on: dict[int, Replay], done: Recovered) -> None:
        """In a thread: what continues a log in the epoch under recovery; a log ends at its gap."""
        now_ms = self._clock.now_ms()
        for entry, batch in group.batches:
            replay = going_on.get(entry.log_id)
            if replay is None:
                continue
            if entry.leader_epoch != replay.plan.epoch:
                done.dropped += 1
            elif entry.base_offset == replay.end < replay.plan.scanned_end:
                replay.take(bytes(batch), now_ms)
            elif entry.base_offset > replay.end:
                del going_on[entry.log_id]

    async def _seal_all(self, replays: Iterable[Replay], seals: Seals, done: Recovered) -> None:
        for replay in replays:
            if replay.batches:
                done.batches += len(replay.batches)
                done.bytes += replay.size
                await seals.add(replay.seal())
        await seals.flush()

    async def _begin(self, plan: ReplayLog) -> Replay:
        producers = ProducerStates()
        try:
            await self._cold.producers(plan.log_id, producers, self._clock.now_ms())
        except (KafkaError, ValueError) as error:
            why = f"log {plan.log_id}: its producer state in the bucket is unreadable: {error}"
            raise RecoveryStopped(why) from error
        return Replay(plan, producers, plan.end, plan.end)

    def _take(self, replay: Replay, batches: Iterator[bytes], most: int) -> bool:
        """In a thread: take batches until they take `most` bytes more; whether there may be more."""
        now_ms = self._clock.now_ms()
        until = replay.memory + most
        for number, batch in enumerate(batches, 1):
            replay.take(batch, now_ms)
            if replay.memory >= until or number >= STEP_BATCHES:
                return True
        return False


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


def _advice(instance: Recoverable) -> str:
    return (
        f"It is kept in {instance.path}. To take what is readable and give up the rest: "
        f"tidelog wal recover --accept-loss {instance.wal_id.hex()}"
    )


def _told(damage: Damage) -> str:
    """The damage, and which acknowledged offsets may be gone, as far as headers that can still be read say."""
    ranges = ", ".join(
        f"log {part.log_id} from offset {part.base}{'' if part.end is None else f' up to {part.end}'}"
        for part in damage.missing
    )
    return f"{damage}; " + (f"may be missing: {ranges}" if ranges else "what is missing cannot be told")
