"""Planned moves (DESIGN 7.5): what facts want of the logs this broker leads, and what it is about to be given.

Leaving, a batch of logs at a time:

1. Everything that memory holds is sealed and committed, earlier seals are decided, and a sync of the disk that is under
   way comes back; all that while appends go on, so that little is left.
2. The logs freeze: what is in flight becomes validated, new appends wait for a moment (`handlers.produce`).
3. A last seal takes what is left; its commit and the moves are one entry.

Disk and bucket have a moment for 2 and for the upload of 3. If that is not enough the logs take appends again and the
next attempt has twice as long: nobody else has heard of the move yet. Once the controller was asked no time thaws
the logs: only facts, that the seal is decided and the log still ours, do.

Arriving: what opening a log needs is read as soon as its move is wanted and after each of its commits, so that the log
opens from memory when the facts name this broker. No batch is read for a move.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from broker.log import Log, LogStatus
from broker.metrics import new_histogram
from controller import facts as f
from controller.commands import DrainAnswer, LeaveCluster
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.cold import ColdReads
    from broker.log_table import LogTable
    from broker.sealing import Sealing
    from broker.settings import Settings
    from broker.validation import Validation
    from controller.client import ControllerClient
    from storage.clock import Clock

log = logging.getLogger(__name__)

LOGS_PER_BATCH = 128
"""Logs that are frozen together: one commit for all of them, and the target opens them all before the last one serves.
No setting: neither costs anything that depends on the machine or the bucket. Twice as many would save a drain of a
thousand logs a few commits, and half as many would save a log a millisecond."""
AGAIN_S = 1.0
"""After a refusal, and while a broker that leaves waits for somebody to take its logs."""
FREEZE_S = 0.5
"""How long a frozen log waits for disk and bucket before the controller is asked, at first. With what asking and
opening take, a move is to keep producers for less than a second."""
FREEZE_S_MAX = 60.0
"""The same after attempts that were not enough: a disk or a bucket that always takes so long keeps no log for ever."""
WARM_PARALLEL = 8
"""Ends of objects that are read at the same time for logs to come: they wait for the bucket, not for this machine, and
`tidelog.read.parallel` bounds them with all other reads."""


class _Frozen(NamedTuple):
    log: Log
    target: int
    before: LogStatus
    bytes: int

    @property
    def validated(self) -> bool:
        """Whether nothing of the log is in flight."""
        return self.log.hw == self.log.end


class Moves:
    """`run` is the task that moves logs away, `warm_up` the one that reads ahead for those to come.

    `on_facts` is subscribed to the controller client after `LogTable.apply` and `Sealing.on_facts`.
    """

    def __init__(
        self,
        *,
        node_id: int,
        incarnation: int,
        settings: Settings,
        controller: ControllerClient,
        logs: LogTable,
        sealing: Sealing,
        cold: ColdReads,
        clock: Clock,
        token: Callable[[int], bytes],
    ) -> None:
        self._node_id = node_id
        self._incarnation = incarnation
        self._settings = settings
        self._controller = controller
        self._logs = logs
        self._sealing = sealing
        self._cold = cold
        self._clock = clock
        self._token = token
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._leaving = False
        self._freeze_s = FREEZE_S
        self._cold_logs: dict[int, None] = {}
        """Logs to come whose newest range was not read yet."""
        self._to_warm = asyncio.Event()
        self.frozen = 0
        """Logs that are frozen for a move just now."""
        self.moved = 0
        self.refused = 0
        self.put_off = 0
        """Attempts that were given up because the disk or the bucket was slow."""
        self.moved_bytes = 0
        """Bytes of batches in the last seals: they would have been uploaded without a move too."""
        self.durations = new_histogram()
        """From the freeze of a log to the fact that names its next leader."""

    def on_facts(self, facts: Sequence[f.Fact]) -> None:
        """Look whether something is to be done."""
        moves = self._controller.state.moves
        for fact in facts:
            match fact:
                case f.MovesRequested():
                    self._wake.set()
                    for log_id, node_id in fact.moves:
                        self._expect(log_id, node_id)
                case f.SealCommitted() if moves:
                    for item in fact.objects:
                        for part in item.ranges:
                            self._expect(part.log_id, moves.get(part.log_id, -1))
                case f.StateReloaded():
                    self._wake.set()
                    for log_id, node_id in moves.items():
                        self._expect(log_id, node_id)
                case f.LeaderNamed():
                    self._left.set()
                    if moves:
                        self._wake.set()
                case _:
                    pass

    def on_open(self, opened: Log) -> None:
        """Given to `LogTable.on_open`: a log whose move was wanted before it could be led may go now."""
        if opened.log_id in self._controller.state.moves:
            self._wake.set()

    # Leaving

    async def run(self) -> None:
        """Move what facts want to move, until cancelled."""
        while True:
            self._wake.clear()
            batch = self._choose()
            if not batch:
                await self._wake.wait()
            elif not await self._move(batch):
                await asyncio.sleep(AGAIN_S)

    def _choose(self) -> dict[Log, int]:
        """Logs to move now, with their targets; none once the process ends."""
        if self._leaving:
            return {}
        state = self._controller.state
        batch: dict[Log, int] = {}
        for log_id, node_id in state.moves.items():
            held = self._logs.by_log_id.get(log_id)
            target = state.brokers.get(node_id)
            if held is None or not held.serving or target is None or not target.alive:
                continue
            batch[held] = node_id
            if len(batch) == LOGS_PER_BATCH:
                break
        return batch

    async def _move(self, batch: dict[Log, int]) -> bool:
        """One batch; False: nothing of it moved."""
        await self._commit_most(batch)
        if not self._controller.reachable:
            return False
        frozen: list[_Frozen] = []
        seal = 0
        try:
            async with self._sealing.undisturbed():
                await self._sealing.landed(FREEZE_S)
                slow = await self._validate(batch, self._freeze_s)
                began_ms = self._clock.boottime_ms()
                frozen = self._freeze({each: to for each, to in batch.items() if each.validation not in slow})
                if not frozen and not slow:
                    return True  # all of them went elsewhere meanwhile
                slow |= await self._validate([one.log for one in frozen], self._freeze_s)
                for one in frozen:
                    if one.log.validation in slow:
                        self._thaw(one)
                frozen = [one for one in frozen if one.log.validation not in slow]
                self.frozen = len(frozen)
                if frozen:
                    seal = await self._sealing.begin_moves({one.log: one.target for one in frozen})
            left_s = self._freeze_s - (self._clock.boottime_ms() - began_ms) / 1000
            ready = await self._sealing.moved(seal, max(0.0, left_s))
        finally:
            self.frozen = 0
        self._note_pace(in_time=ready and not slow)
        return self._settle(frozen, self._clock.boottime_ms() - began_ms, refused=ready)

    def _note_pace(self, *, in_time: bool) -> None:
        """How long the next attempt may take."""
        if in_time:
            self._freeze_s = FREEZE_S
        else:
            self.put_off += 1
            self._freeze_s = min(2 * self._freeze_s, FREEZE_S_MAX)

    def _settle(self, frozen: Sequence[_Frozen], took_ms: int, *, refused: bool) -> bool:
        """Whether any log moved. What did not takes appends again: it was `refused`, or the attempt given up."""
        moved = 0
        known = self._controller.state.logs
        for one in frozen:
            if one.log.status is LogStatus.CLOSED:
                if one.log.log_id not in known:
                    continue  # deleted meanwhile
                moved += 1
                self.moved_bytes += one.bytes
                self.durations[(took_ms * 1000).bit_length()] += 1
            else:
                if refused:
                    self.refused += 1
                    log.warning("%r stays: its move to broker %d was refused", one.log, one.target)
                self._thaw(one)
        self.moved += moved
        if moved:
            log.info("%d logs moved, frozen for %d ms", moved, took_ms)
        return moved > 0

    async def _commit_most(self, batch: dict[Log, int]) -> None:
        """What memory holds goes to the bucket while the logs take appends."""
        async with asyncio.TaskGroup() as group:
            for each in batch:
                if each.committed_end < each.hw:
                    group.create_task(self._commit(each))

    async def _commit(self, each: Log) -> None:
        try:
            await self._sealing.commit_through(each, each.hw)
        except KafkaError:
            pass  # it is not ours any more

    def _freeze(self, batch: dict[Log, int]) -> list[_Frozen]:
        """As many of the batch as may be frozen together. What is wanted of them may have changed meanwhile."""
        moves = self._controller.state.moves
        frozen: list[_Frozen] = []
        left = self._settings.tidelog_move_bytes_max
        for each, target in batch.items():
            size = each.tail.payload_between(each.sealed_end, each.end)
            if not each.serving or moves.get(each.log_id) != target or (frozen and size > left):
                continue
            left -= size
            frozen.append(_Frozen(each, target, each.status, size))
            each.status = LogStatus.MOVING
        self.frozen = len(frozen)
        return frozen

    async def _validate(self, logs: Iterable[Log], patience_s: float) -> set[Validation]:
        """What is in flight of these logs is durable and may be acknowledged; those for which that took too long."""
        last: dict[Validation, int] = {}
        for each in logs:
            last[each.validation] = max(last.get(each.validation, 0), each.last_sequence)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                for validation, sequence in last.items():
                    validated = asyncio.Event()
                    validation.when_validated(sequence, validated.set)
                    await validated.wait()
        return {validation for validation, sequence in last.items() if validation.validated < sequence}

    def _thaw(self, one: _Frozen) -> None:
        """The move was refused, by facts that are applied, or nobody was asked yet: the log is ours as before."""
        if one.log.status is LogStatus.MOVING:
            one.log.status = LogStatus.FROZEN if self._leaving else one.before
            one.log.wake_all()

    async def leave(self) -> None:
        """This broker is about to stop: hand everything over; return when nothing is left that anybody would take."""
        while len(self._logs):
            self._left.clear()
            try:
                answer: DrainAnswer = await self._controller.ask(LeaveCluster(self._token(16), self._incarnation))
            except KafkaError as error:
                if error.code is ErrorCode.UNSUPPORTED_VERSION or not error.retriable:
                    log.info("leadership stays until the end of this process: %s", error.message)
                    return
                await asyncio.sleep(AGAIN_S)
                continue
            if not answer.moving:
                return
            await self._wait_until_left()

    async def _wait_until_left(self) -> None:
        """All logs went, or none for a while."""
        while len(self._logs):
            try:
                async with asyncio.timeout(AGAIN_S):
                    await self._left.wait()
            except TimeoutError:
                return
            self._left.clear()

    def stop(self) -> None:
        """Logs that stay are frozen from here on: the process ends."""
        self._leaving = True

    # Arriving

    def _expect(self, log_id: int, node_id: int) -> None:
        if node_id == self._node_id:
            self._cold_logs[log_id] = None
            self._to_warm.set()

    async def warm_up(self) -> None:
        """Read ahead for the logs to come, until cancelled."""
        while True:
            await self._to_warm.wait()
            self._to_warm.clear()
            async with asyncio.TaskGroup() as group:
                for _ in range(WARM_PARALLEL):
                    group.create_task(self._warm_some())

    async def _warm_some(self) -> None:
        while self._cold_logs:
            log_id = next(iter(self._cold_logs))
            del self._cold_logs[log_id]
            try:
                await self._cold.warm(log_id)
            except KafkaError:
                pass  # opening the log will tell
