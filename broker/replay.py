"""From batches of a WAL to committed segments: one log at a time, and several logs in seals they share."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from controller.commands import ReplayLog
from protocol.records import parse_header
from storage.producers import ProducerStates
from storage.seal import Recovery, SealedLog, Verdict
from storage.tail import BATCH_OVERHEAD_BYTES
from storage.uploader import Uploader

SEALS_IN_FLIGHT = 4


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
    gaps: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        dropped = f", {self.dropped} of other epochs dropped" if self.dropped else ""
        return f"{self.batches} batches ({self.bytes} bytes) of {self.logs} logs{dropped}"


@dataclass(slots=True)
class Replay:
    """One log on its way from the WAL into seals."""

    plan: ReplayLog
    producers: ProducerStates
    end: int
    base: int
    batches: list[bytes] = field(default_factory=list)
    size: int = 0
    max_timestamp: int = -1

    @property
    def memory(self) -> int:
        """What the batches taken since the last seal keep alive."""
        return self.size + BATCH_OVERHEAD_BYTES * len(self.batches)

    def take(self, batch: bytes, now_ms: int) -> None:
        """The next batch of the log; applies producer state, which refuses nothing here."""
        header = parse_header(batch)
        self.producers.replay(header, now_ms, batch)
        self.batches.append(batch)
        self.size += len(batch)
        self.end = header.next_offset
        self.max_timestamp = max(self.max_timestamp, header.max_timestamp)

    def note_gap(self, done: Recovered) -> None:
        """At the end: whether everything was there that the scan had found."""
        if self.end != self.plan.scanned_end:
            done.gaps.append(f"log {self.plan.log_id} has a gap at offset {self.end} of {self.plan.scanned_end}")

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
            size=self.size,
        )
        self.base, self.size, self.max_timestamp = self.end, 0, -1
        self.batches.clear()
        return sealed


class Seals:
    """Seals of one recovery: several logs share one while they are small, a few are in flight at a time."""

    def __init__(self, uploader: Uploader, named: Recovery, seal_bytes: int) -> None:
        self._uploader = uploader
        self._named = named
        self._seal_bytes = seal_bytes
        self._sealed: list[SealedLog] = []
        self._memory = 0
        self._flights: deque[asyncio.Future[Verdict]] = deque()
        self.position = 0
        """Metadata entry of the last commit."""

    @property
    def room(self) -> int:
        """Bytes, overhead included, that the seal being made still takes."""
        return self._seal_bytes - self._memory

    async def add(self, sealed: SealedLog) -> None:
        """Put it into the seal being made; submit that when it is full. RecoveryStopped: a commit was refused."""
        self._sealed.append(sealed)
        self._memory += sealed.size + BATCH_OVERHEAD_BYTES * len(sealed.batches)
        if self.room <= 0:
            await self._submit()

    async def flush(self) -> None:
        """What was added goes on its way: a seal holds a log at most once, and more of the same logs is to come."""
        if self._sealed:
            await self._submit()

    async def finish(self) -> None:
        """Everything added is committed when this returns."""
        await self.flush()
        await self.settle()

    async def settle(self) -> None:
        """Wait for what is in flight, so that a later attempt does not meet it."""
        refused: RecoveryStopped | None = None
        while self._flights:
            try:
                await self._decided(self._flights.popleft())
            except RecoveryStopped as stopped:
                refused = refused or stopped
        if refused is not None:
            raise refused

    async def _submit(self) -> None:
        while len(self._flights) >= SEALS_IN_FLIGHT:
            await self._decided(self._flights.popleft())
        self._flights.append(self._uploader.submit(self._sealed, recovery=self._named))
        self._sealed, self._memory = [], 0

    async def _decided(self, flight: "asyncio.Future[Verdict]") -> None:
        verdict = await flight
        self.position = verdict.position
        if verdict.refused:
            raise RecoveryStopped(f"another recovery took over: ranges of logs {sorted(verdict.refused)} were refused")
