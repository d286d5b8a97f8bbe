"""What goes from the tails into the bucket, and when; and what the WAL gets back once facts say that it is there.

A log is sealed when its oldest unsealed batch is old enough, when what no seal holds takes too much memory, or when
somebody waits for it. A seal takes everything validated of the logs it takes, so its producer snapshots are exact.
Seals are committed in their order (`storage.uploader`); only applied facts free the WAL.

What this costs grows with the logs that are written to, not with those that there are: `Validation.grown` names them.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from broker.log import Log, LogStatus
from broker.log_table import LogTable, bytes_between
from broker.settings import Settings
from broker.validation import Validation
from controller.client import ControllerClient
from controller.commands import AdvanceLogStart
from controller.facts import Fact, LogStart, LogStartAdvanced, SealCommitted, StateReloaded
from protocol.errors import ErrorCode, KafkaError
from storage.clock import Clock
from storage.seal import CommittedThrough, Move, SealedLog, Verdict
from storage.uploader import Uploader
from storage.wal.port import Wal

log = logging.getLogger(__name__)

TICK_S = 0.05
SEALS_IN_FLIGHT_PER_UPLOAD = 2
PRESSURE_SOFT = 0.05
"""Share of the range bound up to which seals keep their pace."""
PRESSURE_SLOWEST = 64
"""How many times slower a log near the bound seals by age."""
AGE_SHARE = 0.5
"""When one log is due by age, logs of this share of their own age go along: fewer, larger objects."""
TAIL_SHARE = 4
"""Unsealed batches of all logs together start a seal at this part of the memory for tails, if not before."""
RANGES_SPARE = 32
"""Ranges (at most a quarter of the bound) that a full log still gets: for what it took before it was full."""
THAW_SHARE = 0.9
"""Of the bound: a full log takes records again once retention brought its ranges below."""
LOGS_PER_STEP = 256
"""A seal of many logs gives way to the event loop after so many."""


def seal_interval_ms(seal_ms: int, pressure: float) -> int:
    """How old a log's oldest batch may get: longer, the nearer the bounds on ranges are (`pressure`, 0.0 to 1.0)."""
    if pressure <= PRESSURE_SOFT:
        return seal_ms
    share = (min(pressure, 1.0) - PRESSURE_SOFT) / (1 - PRESSURE_SOFT)
    return int(seal_ms * PRESSURE_SLOWEST**share)


class _Unsealed(NamedTuple):
    """A log with validated batches that no seal holds. Times are boottime."""

    due_ms: int
    """When its age alone starts a seal."""
    along_ms: int
    """From when on it goes along with a seal that another log's age starts."""
    first_sequence: int
    """Append sequence of the oldest of these batches."""


class _Instance:
    """One WAL instance of this process, as sealing sees it."""

    __slots__ = ("closed_at", "through", "validation", "wal")

    def __init__(self, wal: Wal, validation: Validation) -> None:
        self.wal = wal
        self.validation = validation
        self.through = 0
        """The highest group that a seal said may go."""
        self.closed_at = 0
        """Append sequence at the last time a log was closed: what the WAL holds of it up to there is settled."""


class Sealing:
    """Owns the decision to seal, and gives WAL space back. `run` is its task, and the only one that makes seals.

    Ages count from the moment a batch was seen to be validated, at most `TICK_S` after it was. Without anything new
    it looks again when the age of a log asks for it: an idle broker sleeps.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        token: Callable[[int], bytes],
        incarnation: int,
        controller: ControllerClient,
        logs: LogTable,
        wals: Sequence[tuple[Wal, Validation]],
        uploader: Uploader,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """`wals`: each instance with its validation. `on_failed`: a seal can never be committed: end the process."""
        self._settings = settings
        self._clock = clock
        self._token = token
        self._incarnation = incarnation
        self._controller = controller
        self._logs = logs
        self._instances = {wal.wal_id: _Instance(wal, validation) for wal, validation in wals}
        self._uploader = uploader
        self._on_failed = on_failed
        self._unsealed: dict[Log, _Unsealed] = {}
        self._due_ms: int | None = None
        """The earliest `due_ms` of all unsealed logs."""
        self._wanted: dict[Log, None] = {}
        """Logs that somebody waits for."""
        self._waiting: dict[Log, list[asyncio.Future[None]]] = {}
        self._flights: dict[int, list[Log]] = {}
        """Seal number -> the logs it took, until it is decided."""
        self._deciding: dict[int, asyncio.Future[None]] = {}
        """Seal number -> who waits until facts have told what became of its moves."""
        self._turn = asyncio.Lock()
        """One seal is made at a time: what it says of the WAL holds for all that was taken before."""
        self._flying_bytes = 0
        """Memory of their batches."""
        self._full: dict[Log, None] = {}
        """Logs that take no records because of their number of ranges."""
        self._draining = False
        self._over = False
        self._landed = asyncio.Event()
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        for one in self._instances.values():
            one.validation.on_grown = self._look_soon
        logs.space.on_wait.append(self._look_soon)
        self.seals = self.sealed_bytes = self.refused_ranges = 0

    @property
    def in_flight(self) -> int:
        """Seals that are not decided yet."""
        return len(self._flights)

    @property
    def unsealed_logs(self) -> int:
        """Logs with validated batches that no seal holds."""
        return len(self._unsealed)

    async def run(self) -> None:
        """Seal what is due, until cancelled."""
        try:
            while True:
                self._wake.clear()
                self._look_in(None)
                await self.seal_due()
                # At the limit of seals in flight there is nothing to do before one of them is decided.
                if self._due_ms is not None and self._may_begin():
                    self._look_in(max(TICK_S, (self._due_ms - self._clock.boottime_ms()) / 1000))
                await self._wake.wait()
        finally:
            self._look_in(None)

    def _look_soon(self) -> None:
        """There may be something to seal; what comes within a tick is looked at together."""
        self._look_in(TICK_S)

    def _look_in(self, seconds: float | None) -> None:
        """Look again after so long, unless it happens sooner anyway; None: not by the clock."""
        loop = asyncio.get_running_loop()
        if self._alarm is not None:
            if seconds is not None and self._alarm.when() <= loop.time() + seconds:
                return
            self._alarm.cancel()
            self._alarm = None
        if seconds is not None:
            self._alarm = loop.call_later(seconds, self._wake.set)

    def _may_begin(self) -> bool:
        return self.in_flight < SEALS_IN_FLIGHT_PER_UPLOAD * self._settings.tidelog_upload_parallel

    # What to seal

    async def seal_due(self) -> None:
        """Submit one seal of every log that is due; nothing when too many seals are in flight."""
        async with self._turn:
            await self._seal_due(self._clock.boottime_ms())

    async def _seal_due(self, now: int) -> None:
        self._note_grown(now)
        if self._over or not self._may_begin():
            return
        due = self._choose(now) if self._unsealed else []
        # Without this the batches of a deleted topic would fill the WAL for as long as nothing else can be written.
        settled = [one for one in self._instances.values() if 0 < one.closed_at <= one.validation.validated]
        for one in settled:
            one.closed_at = 0
        if due or settled:
            await self._seal(due)

    def _note_grown(self, now: int) -> None:
        """Take over which logs got validated batches."""
        for one in self._instances.values():
            if one.validation.grown:
                grown, one.validation.grown = one.validation.grown, {}
                self._note(grown, now)

    def _note(self, grown: Iterable[Log], now: int) -> None:
        for grew in grown:
            if grew in self._unsealed or grew.hw <= grew.sealed_end or grew.status is LogStatus.CLOSED:
                continue
            sequence = grew.tail.first_sequence_from(grew.sealed_end)
            assert sequence is not None, f"{grew!r} has validated batches that its tail does not hold"
            self._freeze_if_full(grew)
            interval = seal_interval_ms(self._settings.tidelog_seal_ms, self._pressure(grew))
            noted = self._unsealed[grew] = _Unsealed(now + interval, now + int(interval * AGE_SHARE), sequence)
            if self._due_ms is None or noted.due_ms < self._due_ms:
                self._due_ms = noted.due_ms

    def _range_count(self, of: Log) -> int:
        known = self._controller.state.logs.get(of.log_id)
        return 0 if known is None else known.range_count

    def _pressure(self, of: Log) -> float:
        own = self._range_count(of) / self._settings.tidelog_log_ranges_max
        return max(own, self._controller.state.range_pressure(of.log_id))

    def _freeze_if_full(self, of: Log) -> None:
        """A log at its bound stops by itself: the controller refuses a whole seal for it, and so would stop all."""
        most, count = self._settings.tidelog_log_ranges_max, self._range_count(of)
        if count >= most - min(RANGES_SPARE, most // 4) and of.status is LogStatus.OPEN:
            of.freeze()
            self._full[of] = None
            log.error(
                "%s-%d takes no records until retention frees ranges: it has %d of tidelog.log.ranges.max=%d",
                of.topic,
                of.partition,
                count,
                most,
            )

    def _thaw(self) -> None:
        below = int(self._settings.tidelog_log_ranges_max * THAW_SHARE)
        below -= min(RANGES_SPARE, self._settings.tidelog_log_ranges_max // 4)
        for each in [each for each in self._full if self._range_count(each) < below]:
            if each.status is LogStatus.MOVING:
                continue  # if it stays, it is looked at again when a start moves
            del self._full[each]
            if each.status is LogStatus.FROZEN and not self._draining:
                each.status = LogStatus.OPEN
                log.info("%s-%d takes records again", each.topic, each.partition)

    def _choose(self, now: int) -> list[Log]:
        """The logs to seal now."""
        unsealed = self._unsealed
        if len(self._logs.space):  # somebody waits for space, which only commits give back
            return list(unsealed)
        due = {wanted: None for wanted in self._wanted if wanted in unsealed}
        if self._due_ms is not None and now >= self._due_ms:
            due.update((aged, None) for aged, noted in unsealed.items() if now >= noted.along_ms)
        most = min(self._settings.tidelog_seal_bytes, self._settings.tidelog_tail_bytes_max // TAIL_SHARE)
        # Cheap, and never too low: the sizes of all unsealed logs are added up only when it may matter.
        if self._logs.memory.bytes - self._logs.kept_bytes - self._flying_bytes >= most:
            self._add_largest(due, most)
        return list(due)

    def _add_largest(self, due: dict[Log, None], most: int) -> None:
        """If all unsealed batches take `most` bytes, add the largest logs until at most half of it is left."""
        sizes = {each: bytes_between(each.tail, each.sealed_end, each.hw) for each in self._unsealed}
        left = total = sum(sizes.values())
        if total < most:
            return
        left -= sum(sizes[each] for each in due)
        for each in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if left <= total // 2:
                break
            if each not in due:
                due[each] = None
                left -= sizes[each]

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Within it no seal begins but the one of `begin_moves`: none gets in front of that one."""
        async with self._turn:
            yield

    async def landed(self, patience_s: float) -> None:
        """Every seal in flight is decided, or that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._all_landed()

    async def _all_landed(self) -> None:
        while self._flights:
            self._landed.clear()
            await self._landed.wait()

    async def begin_moves(self, targets: Mapping[Log, int]) -> int:
        """Within `undisturbed`: submit the last seal of these logs, all of them `MOVING` and validated to their ends,
        with their moves to these nodes; its number for `moved`. After a drain nothing is moved: 0.
        """
        assert self._turn.locked()
        if self._over:
            return 0
        self._note_grown(self._clock.boottime_ms())
        await self._seal([each for each in targets if each in self._unsealed], targets)
        return self._uploader.last_seal

    async def moved(self, seal: int, patience_s: float) -> bool:
        """Wait until the moves of a seal are decided and the facts of that applied here. False: it was not ready to be
        committed in time, and goes on without its moves.

        A log that is not closed by then was not moved, and is ours as before. Once the controller was asked nothing but
        its answer ends this: it may have moved the logs already.
        """
        decided = self._deciding.get(seal)
        if decided is None:
            return True
        await asyncio.wait([decided], timeout=patience_s)
        if not decided.done() and self._uploader.withdraw_moves(seal):
            self._deciding.pop(seal, None)
            return False
        await decided
        return True

    async def _seal(
        self,
        due: Sequence[Log],
        targets: Mapping[Log, int] | None = None,
    ) -> None:
        """Make one seal of these logs; it holds what is validated when each is taken. It may hold nothing, and only
        say what the WAL needs no more, or which logs move."""
        taken: list[Log] = []
        sealed: list[SealedLog] = []
        memory = 0
        for number, each in enumerate(due, 1):
            if each in self._unsealed:  # it may have been closed meanwhile
                memory += bytes_between(each.tail, each.sealed_end, each.hw)
                taken.append(each)
                sealed.append(self._take(each))
            if number % LOGS_PER_STEP == 0:
                await asyncio.sleep(0)
        through = self._committed_through()
        self._due_ms = min((noted.due_ms for noted in self._unsealed.values()), default=None)
        if not sealed and not through and targets is None:
            return
        moves = [
            Move(each.log_id, each.epoch, each.end, node_id)
            for each, node_id in (targets or {}).items()
            if each.status is LogStatus.MOVING
        ]
        verdict = self._uploader.submit(sealed, through, moves=moves)
        seal = self._uploader.last_seal
        if targets is not None:
            self._deciding[seal] = asyncio.get_running_loop().create_future()
        self._flights[seal] = taken
        self._flying_bytes += memory
        self.seals += 1
        self.sealed_bytes += sum(each.size for each in sealed)
        verdict.add_done_callback(lambda done: self._decided(seal, memory, done))

    def _take(self, taken: Log) -> SealedLog:
        """Everything validated of one log, with the state exactly at its end."""
        base, end = taken.sealed_end, taken.hw
        taken.sealed_end = end
        del self._unsealed[taken]
        self._wanted.pop(taken, None)
        return SealedLog(
            log_id=taken.log_id,
            leader_epoch=taken.epoch,
            base=base,
            end=end,
            batches=taken.tail.slice(base, end),
            max_timestamp=taken.tail.max_timestamp_between(base, end),
            last_stable_offset=taken.lso,
            producers=taken.producers.snapshot(end),
            aborted=taken.producers.aborted(base, end),
            size=taken.tail.payload_between(base, end),
        )

    def _committed_through(self) -> list[CommittedThrough]:
        """Per instance the highest group all of whose batches are in seals, if it is a higher one than seals said yet.

        Once those are committed the WAL needs it no more. A batch of a log that is not ours any more counts as settled:
        the facts refused it for good.
        """
        self._note_grown(self._clock.boottime_ms())
        firsts = {wal_id: one.validation.validated + 1 for wal_id, one in self._instances.items()}
        for each, noted in self._unsealed.items():
            wal_id = each.wal.wal_id
            if noted.first_sequence < firsts[wal_id]:
                firsts[wal_id] = noted.first_sequence
        found = []
        for wal_id, one in self._instances.items():
            group = one.wal.group_below(firsts[wal_id])
            if group > one.through:
                one.through = group
                found.append(CommittedThrough(wal_id, group))
        return found

    def _decided(self, seal: int, memory: int, verdict: "asyncio.Future[Verdict]") -> None:
        self._flights.pop(seal, None)
        self._flying_bytes -= memory
        self._wake.set()
        self._landed.set()
        if not verdict.cancelled():
            error = verdict.exception()
            if error is not None:
                self._on_failed(error)

    # What comes back

    def on_facts(self, facts: Sequence[Fact]) -> None:
        """Subscribed to the controller client after `LogTable.apply`: committed ends of logs are already new."""
        for fact in facts:
            if isinstance(fact, SealCommitted) and fact.incarnation == self._incarnation:
                self._on_commit(fact)
            elif isinstance(fact, StateReloaded):
                self._on_reload()
            if self._full and isinstance(fact, LogStartAdvanced | StateReloaded):
                self._thaw()

    def _on_commit(self, fact: SealCommitted) -> None:
        taken = self._flights.get(fact.seal, ())
        self.refused_ranges += len(fact.refused)
        if fact.refused:
            refused = set(fact.refused)
            wrongly = [each for each in taken if each.log_id in refused and each.status is not LogStatus.CLOSED]
            if wrongly:  # nothing of these logs could ever be committed again: only a recovery finds out what is true
                self._on_failed(RuntimeError(f"the controller refused what this broker leads: {wrongly[:3]}"))
                return
        self._trim(fact.committed_through)
        for each in taken:
            self._wake_waiting(each)
        self._decide_moves(fact.seal)

    def _on_reload(self) -> None:
        """The state was replaced: commits may have been among what was skipped."""
        for wal_id in self._instances:
            wal = self._controller.state.wals.get(wal_id)
            if wal is not None:
                self._trim([CommittedThrough(wal_id, group, lane) for lane, group in wal.committed.items()])
        for each in list(self._waiting):
            self._wake_waiting(each)
        own = self._controller.state.broker_table.incarnations.get(self._incarnation)
        if own is not None:
            self._decide_moves(own.last_seal)

    def _decide_moves(self, seal: int) -> None:
        """Seals up to this one are decided; what moved is closed already."""
        for number in [number for number in self._deciding if number <= seal]:
            decided = self._deciding.pop(number)
            if not decided.done():
                decided.set_result(None)

    def _trim(self, committed: Iterable[CommittedThrough]) -> None:
        for through in committed:
            own = self._instances.get(through.wal_id)
            if own is not None:
                own.wal.trim(through.group)

    def on_close(self, closed: Log) -> None:
        """Given to `LogTable.on_close`: the log is not ours any more, nothing of it is sealed and nobody waits."""
        self._unsealed.pop(closed, None)
        self._wanted.pop(closed, None)
        self._full.pop(closed, None)
        self._instances[closed.wal.wal_id].closed_at = closed.wal.appended
        self._look_soon()
        self._wake_waiting(closed)

    def _wake_waiting(self, about: Log) -> None:
        for waiter in self._waiting.pop(about, ()):
            if not waiter.done():
                waiter.set_result(None)

    # What others ask for

    async def advance_start(self, of: Log, offset: int) -> int:
        """Move the start of a log forward, sealing first when `offset` is in the tail; the start afterwards.

        `offset` is at or below the high watermark. KafkaError NOT_LEADER_OR_FOLLOWER if the log is lost on the way.
        """
        await self.commit_through(of, offset)
        command = AdvanceLogStart(self._token(16), (LogStart(of.log_id, offset),))
        return (await self._controller.ask(command)).starts[0].start

    async def commit_through(self, of: Log, offset: int) -> None:
        """Wait until everything below `offset` (at most the high watermark) is in the bucket.

        Logs that are waited for at the same time share a seal. KafkaError NOT_LEADER_OR_FOLLOWER as above.
        """
        assert offset <= of.hw
        while of.committed_end < offset:
            if of.status is LogStatus.CLOSED:
                raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "the log moved while it was sealed")
            if of.sealed_end < offset:
                self._wanted[of] = None
                self._wake.set()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiters = self._waiting.setdefault(of, [])
            waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in waiters:
                    waiters.remove(waiter)
                if not waiters and self._waiting.get(of) is waiters:
                    del self._waiting[of]

    async def drain(self) -> None:
        """Commit everything of all logs, which are frozen: the last step before a clean stop. Nothing is sealed after
        it: what is asked for after the end of the session is refused.
        """
        self._draining = True
        for one in self._instances.values():
            validated = asyncio.Event()
            one.validation.when_validated(one.wal.appended, validated.set)
            await validated.wait()
        behind = [each for each in self._logs.logs if each.committed_end < each.hw]
        self._wanted.update((each, None) for each in behind if each.sealed_end < each.hw)
        for each in behind:
            try:
                await self.commit_through(each, each.hw)
            except KafkaError:
                if each.status is not LogStatus.CLOSED:
                    raise
        self._over = True
        await self._all_landed()
