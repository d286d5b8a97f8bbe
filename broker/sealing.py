"""What goes from the tails into the bucket, and when; and what the WAL gets back once facts say that it is there.

A log is sealed when its oldest unsealed batch is old enough, or it or all tails together hold enough. A seal takes
everything validated of the logs it takes, so its producer snapshots are exact. Seals are committed in their order
(`storage.uploader`); only applied facts free the WAL.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from broker.log import Log
from broker.log_table import LogTable
from broker.settings import Settings
from controller.client import ControllerClient
from controller.commands import AdvanceLogStart
from controller.facts import Fact, LogStart, SealCommitted
from protocol.errors import ErrorCode, KafkaError
from storage.clock import Clock
from storage.seal import CommittedThrough, SealedLog, Verdict
from storage.uploader import Uploader
from storage.wal.port import Wal

TICK_S = 0.05
SEALS_IN_FLIGHT_PER_UPLOAD = 2
PRESSURE_SOFT = 0.05
"""Share of the range bound up to which seals keep their pace."""
PRESSURE_SLOWEST = 64
"""How many times slower a log near the bound seals by age."""
AGE_SHARE = 0.5
"""When one log is due by age, logs of this share of its age go along: fewer, larger objects."""


def seal_interval_ms(seal_ms: int, pressure: float) -> int:
    """How old a log's oldest batch may get: longer, the nearer the bounds on ranges are (`pressure`, 0.0 to 1.0)."""
    if pressure <= PRESSURE_SOFT:
        return seal_ms
    share = (min(pressure, 1.0) - PRESSURE_SOFT) / (1 - PRESSURE_SOFT)
    return int(seal_ms * PRESSURE_SLOWEST**share)


class _Progress:
    """Where sealing is in one log: everything below `sealed_end` is in a seal; the rest is there since `since_ms`."""

    __slots__ = ("log", "sealed_end", "since_ms")

    def __init__(self, log: Log) -> None:
        self.log = log
        self.sealed_end = log.committed_end
        self.since_ms: int | None = None

    @property
    def unsealed_bytes(self) -> int:
        """Payload that is validated and in no seal."""
        return self.log.tail.payload_between(self.sealed_end, self.log.hw)


class Sealing:
    """Owns the decision to seal, and gives WAL space back. `run` is its task."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        token: Callable[[int], bytes],
        incarnation: int,
        controller: ControllerClient,
        logs: LogTable,
        wal: Wal,
        uploader: Uploader,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """`on_failed`: a seal can never be committed, so the process has to end."""
        self._settings = settings
        self._clock = clock
        self._token = token
        self._incarnation = incarnation
        self._controller = controller
        self._logs = logs
        self._wal = wal
        self._uploader = uploader
        self._on_failed = on_failed
        self._progress: dict[int, _Progress] = {}
        self._waiting: list[tuple[Log, int, asyncio.Future[None]]] = []
        self._in_flight = 0
        self.seals = self.sealed_bytes = self.refused_ranges = 0

    @property
    def in_flight(self) -> int:
        """Seals that are not decided yet."""
        return self._in_flight

    async def run(self) -> None:
        """Seal what is due, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.seal_due()

    # What to seal

    def seal_due(self) -> None:
        """Submit one seal of every log that is due by age or size; nothing when too many seals are in flight."""
        if self._in_flight >= SEALS_IN_FLIGHT_PER_UPLOAD * self._settings.tidelog_upload_parallel:
            return
        now = self._clock.boottime_ms()
        waiting = self._with_unsealed(now)
        due = [progress for progress in waiting if self._is_due(progress, now)]
        if due:
            interval = self._settings.tidelog_seal_ms * AGE_SHARE
            due += [p for p in waiting if p not in due and p.since_ms is not None and now - p.since_ms >= interval]
        if len(self._logs.space):  # somebody waits for space, which only commits give back
            due = waiting
        total = sum(progress.unsealed_bytes for progress in waiting)
        if total >= min(self._settings.tidelog_seal_bytes, self._settings.tidelog_tail_bytes_max // 4):
            left = total - sum(progress.unsealed_bytes for progress in due)
            for progress in sorted(waiting, key=lambda p: p.unsealed_bytes, reverse=True):
                if left <= total // 2:
                    break
                if progress not in due:
                    due.append(progress)
                    left -= progress.unsealed_bytes
        if due:
            self._submit(due)

    def _with_unsealed(self, now: int) -> list[_Progress]:
        found = []
        if len(self._progress) > len(self._logs.by_log_id):  # deleted or moved: nothing of them is sealed any more
            self._progress = {key: p for key, p in self._progress.items() if self._logs.by_log_id.get(key) is p.log}
        for log_id, log in self._logs.by_log_id.items():
            progress = self._progress.get(log_id)
            if progress is None or progress.log is not log:
                progress = self._progress[log_id] = _Progress(log)
            if log.hw > progress.sealed_end:
                if progress.since_ms is None:
                    progress.since_ms = now
                found.append(progress)
        return found

    def _is_due(self, progress: _Progress, now: int) -> bool:
        if progress.unsealed_bytes >= self._settings.tidelog_seal_bytes:
            return True
        pressure = max(
            self._controller.state.range_pressure(progress.log.log_id),
            self._controller.state.logs[progress.log.log_id].range_count / self._settings.tidelog_log_ranges_max,
        )
        assert progress.since_ms is not None
        return now - progress.since_ms >= seal_interval_ms(self._settings.tidelog_seal_ms, pressure)

    def _submit(self, due: Sequence[_Progress]) -> None:
        sealed = [self._take(progress) for progress in due]
        group = self._committed_through()
        self._in_flight += 1
        self.seals += 1
        self.sealed_bytes += sum(log.size for log in sealed)
        verdict = self._uploader.submit(sealed, (CommittedThrough(self._wal.wal_id, group),))
        verdict.add_done_callback(self._decided)

    def _take(self, progress: _Progress) -> SealedLog:
        """Everything validated of one log, with the state exactly at its end."""
        log, base, end = progress.log, progress.sealed_end, progress.log.hw
        progress.sealed_end, progress.since_ms = end, None
        return SealedLog(
            log_id=log.log_id,
            leader_epoch=log.epoch,
            base=base,
            end=end,
            batches=log.tail.slice(base, end),
            max_timestamp=log.tail.max_timestamp_between(base, end),
            last_stable_offset=log.lso,
            producers=log.producers.snapshot(end),
            aborted=log.producers.aborted(base, end),
            size=log.tail.payload_between(base, end),
        )

    def _committed_through(self) -> int:
        """The highest group all of whose batches are in seals: once those are committed the WAL needs it no more."""
        first = self._wal.appended + 1
        for progress in self._progress.values():
            sequence = progress.log.tail.first_sequence_from(progress.sealed_end)
            if sequence is not None and 0 < sequence < first:
                first = sequence
        return self._wal.group_below(first)

    def _decided(self, verdict: "asyncio.Future[Verdict]") -> None:
        self._in_flight -= 1
        if verdict.cancelled():
            return
        error = verdict.exception()
        if error is None:
            self.refused_ranges += len(verdict.result().refused)
        else:
            self._on_failed(error)

    # What comes back

    def on_facts(self, facts: Sequence[Fact]) -> None:
        """Subscribed to the controller client after `LogTable.apply`: committed ends of logs are already new."""
        for fact in facts:
            if isinstance(fact, SealCommitted) and fact.incarnation == self._incarnation:
                self._on_commit(fact)

    def _on_commit(self, fact: SealCommitted) -> None:
        for through in fact.committed_through:
            if through.wal_id == self._wal.wal_id:
                self._wal.trim(through.group)
        self._wake_waiting()

    def on_close(self, _: Log) -> None:
        """Given to `LogTable.on_close`: nobody waits for a log that is not ours any more."""
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        still = []
        for log, offset, future in self._waiting:
            if log.committed_end < offset and self._logs.by_log_id.get(log.log_id) is log:
                still.append((log, offset, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = still

    # What others ask for

    async def advance_start(self, log: Log, offset: int) -> int:
        """Move the start of a log forward, sealing first when `offset` is in the tail; the start afterwards.

        `offset` is at or below the high watermark. KafkaError NOT_LEADER_OR_FOLLOWER if the log is lost on the way.
        """
        await self.commit_through(log, offset)
        command = AdvanceLogStart(self._token(16), (LogStart(log.log_id, offset),))
        return (await self._controller.ask(command)).starts[0].start

    async def commit_through(self, log: Log, offset: int) -> None:
        """Wait until everything below `offset` (at most the high watermark) is in the bucket."""
        assert offset <= log.hw
        while log.committed_end < offset:
            progress = next((p for p in self._with_unsealed(self._clock.boottime_ms()) if p.log is log), None)
            if progress is not None and progress.sealed_end < offset:
                self._submit([progress])
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((log, offset, waiter))
            await waiter
            if self._logs.by_log_id.get(log.log_id) is not log:
                raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "the log moved while it was sealed")

    async def drain(self, logs: Iterable[Log]) -> None:
        """Commit everything of frozen logs: the last step before a clean stop."""
        frozen = list(logs)
        for log in frozen:
            while log.hw < log.end:
                await asyncio.sleep(TICK_S)
        due = [progress for progress in self._with_unsealed(self._clock.boottime_ms()) if progress.log in frozen]
        if due:
            self._submit(due)
        for log in frozen:
            await self.commit_through(log, log.hw)
