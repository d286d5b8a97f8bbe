"""Sealed tails -> segments in the bucket."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from protocol.errors import KafkaError
from storage.clock import Clock
from storage.object_store import NotFound, ObjectStore, OutcomeUnknown, PreconditionFailed, StoreError
from storage.seal import (
    CommitAndMove,
    CommitAnswer,
    CommitSeal,
    CommittedThrough,
    CorruptSegment,
    Move,
    RangeRow,
    Recovery,
    SealedLog,
    SegmentObject,
    Verdict,
    Writer,
)
from storage.segment import Segment, SegmentWriter, encode_segment_in_steps
from storage.tasks import TaskOwner

__all__ = ["Commit", "Uploader", "UploaderStopped", "plan_objects"]

Commit = Callable[[CommitSeal], Awaitable[CommitAnswer]]
"""Asks the controller. A retriable `KafkaError`, `StoreError`, `OSError` or `TimeoutError` is asked again, any other
`KafkaError` is final."""

OBJECT_BYTES_MAX = 64 * 1024 * 1024
OWN_OBJECT_BYTES = 8 * 1024 * 1024
BACKOFF_MS_FIRST = 100
BACKOFF_MS_MAX = 5_000

log = logging.getLogger(__name__)


class UploaderStopped(Exception):
    """An earlier seal can never be committed, so no later one can. The cause says why; the process has to end."""


def plan_objects(
    logs: Sequence[SealedLog], *, own_object_bytes: int = OWN_OBJECT_BYTES, object_bytes_max: int = OBJECT_BYTES_MAX
) -> list[list[SealedLog]]:
    """Which logs of a seal go into one object: busy ones alone, the rest together, in the order of log ids.

    A shared object holds at most `object_bytes_max` bytes of batches. A log alone may be bigger: its range is not cut.
    """
    alone: list[list[SealedLog]] = []
    shared: list[list[SealedLog]] = []
    room = 0
    for sealed in sorted(logs, key=lambda sealed: sealed.log_id):
        size = sealed.size
        if size >= own_object_bytes:
            alone.append([sealed])
        elif shared and size <= room:
            shared[-1].append(sealed)
            room -= size
        else:
            shared.append([sealed])
            room = object_bytes_max - size
    return alone + shared


class _Seal(NamedTuple):
    number: int
    objects: list[list[SealedLog]]
    committed_through: tuple[CommittedThrough, ...]
    recovery: Recovery | None
    verdict: "asyncio.Future[Verdict]"
    earlier: "asyncio.Event"  # set when the seal before it is decided
    decided: "asyncio.Event"


class Uploader:
    """Uploads many seals at a time and commits them strictly in seal order.

    The key of an object is (incarnation, seal, part): created if absent, never overwritten, never used for other bytes.
    So a PUT whose outcome is unknown is simply repeated with the same bytes, and one that finds the key taken has won
    before if the object ends as ours does. A commit is keyed by (incarnation, seal) and repeated until it is answered.

    While the store or the controller is away every seal keeps trying, for ever, with back-off; memory is bounded by the
    owner, who stops sealing while `in_flight_bytes` is too much. Beside the batches themselves, which belong to the
    tails, up to `parallel` objects hold copies of their small batches, one while the store is away. Batches stay
    frozen until the verdict.

    Tasks run in the owner's TaskGroup and end when their seal is decided.
    """

    def __init__(
        self,
        store: ObjectStore,
        writer: Writer,
        commit: Commit,
        tasks: TaskOwner,
        clock: Clock,
        *,
        parallel: int = 4,
        own_object_bytes: int = OWN_OBJECT_BYTES,
        object_bytes_max: int = OBJECT_BYTES_MAX,
        pace_bytes_per_s: int = 0,
    ) -> None:
        """`parallel`: PUTs at a time. `pace_bytes_per_s`: 0 is no limit. The first seal is number 1."""
        self._store = store
        self._writer = writer
        self._commit = commit
        self._tasks = tasks
        self._clock = clock
        self._slots = asyncio.Semaphore(parallel)
        self._away_turn = asyncio.Lock()
        self._own_object_bytes = own_object_bytes
        self._object_bytes_max = object_bytes_max
        self.pace_bytes_per_s = pace_bytes_per_s
        self._paced_until = 0.0  # loop time at which the next PUT may begin
        self._newest_decided = asyncio.Event()
        self._newest_decided.set()
        self._stopped: BaseException | None = None
        self._moves: dict[int, tuple[Move, ...]] = {}  # by the number of their seal, until the controller is asked
        self.last_seal = 0  # given out
        self.last_decided = 0
        self.in_flight = 0  # seals
        self.in_flight_bytes = 0  # of their batches
        self.away_since: int | None = None  # wall ms of the first failed attempt since the last success, store
        self.controller_away_since: int | None = None  # the same for commits
        self.objects_put = 0
        self.bytes_put = 0
        self.put_retries = 0
        self.commit_retries = 0

    def submit(
        self,
        logs: Sequence[SealedLog],
        committed_through: Sequence[CommittedThrough] = (),
        recovery: Recovery | None = None,
        moves: Sequence[Move] = (),
    ) -> "asyncio.Future[Verdict]":
        """Takes the next seal number, now; the future tells the verdict. Cancelling the future stops nothing.

        `moves`: logs that change their leader in the entry of the commit. `logs` may be empty (a seal that only says
        `committed_through`, or only moves) and holds a log at most once. The future fails
        with the `KafkaError` that refused the seal as a whole, with `CorruptSegment` if the store holds other bytes
        under our key, or, for every later seal, with `UploaderStopped`.
        """
        assert len({sealed.log_id for sealed in logs}) == len(logs), "a seal holds a log at most once"
        objects = plan_objects(logs, own_object_bytes=self._own_object_bytes, object_bytes_max=self._object_bytes_max)
        self.last_seal += 1
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        seal = _Seal(
            self.last_seal,
            objects,
            tuple(committed_through),
            recovery,
            verdict,
            self._newest_decided,
            asyncio.Event(),
        )
        self._newest_decided = seal.decided
        if moves:
            self._moves[seal.number] = tuple(moves)
        size = sum(sealed.size for sealed in logs)
        self.in_flight += 1
        self.in_flight_bytes += size
        self._tasks.create_task(self._run(seal, size))
        return verdict

    def withdraw_moves(self, seal: int) -> bool:
        """Take the moves out of a seal that was submitted with some. False: too late, the controller was asked."""
        return self._moves.pop(seal, None) is not None

    async def _run(self, seal: _Seal, size: int) -> None:
        """Uploads all parts, waits for its turn, commits."""
        try:
            verdict = await self._upload_and_commit(seal)
        except (KafkaError, CorruptSegment, UploaderStopped) as error:
            self._stopped = self._stopped or error
            if not seal.verdict.done():
                seal.verdict.set_exception(error)
        except asyncio.CancelledError:
            seal.verdict.cancel()
            raise
        else:
            self.last_decided = seal.number
            if not seal.verdict.done():
                seal.verdict.set_result(verdict)
        finally:
            self.in_flight -= 1
            self.in_flight_bytes -= size
            seal.decided.set()

    async def _upload_and_commit(self, seal: _Seal) -> Verdict:
        objects = await self._upload_all(seal)
        await seal.earlier.wait()
        answer = await self._ask(self._command(seal, objects))
        refused = frozenset(answer.refused)
        committed = tuple(
            RangeRow(object_.key, object_.size, range_)
            for object_ in objects
            for range_ in object_.ranges
            if range_.log_id not in refused
        )
        return Verdict(seal.number, committed, refused, answer.position)

    def _command(self, seal: _Seal, objects: tuple[SegmentObject, ...]) -> CommitSeal:
        command_id = self._writer.incarnation.to_bytes(8, "big") + seal.number.to_bytes(8, "big")
        who = (command_id, self._writer.node_id, self._writer.incarnation, seal.number)
        what = (objects, seal.committed_through, seal.recovery)
        moves = self._moves.pop(seal.number, ())
        return CommitAndMove(*who, *what, moves) if moves else CommitSeal(*who, *what)

    async def _upload_all(self, seal: _Seal) -> tuple[SegmentObject, ...]:
        try:
            async with asyncio.TaskGroup() as uploads:
                parts = [
                    uploads.create_task(self._upload(SegmentWriter(self._writer, seal.number, part), logs))
                    for part, logs in enumerate(seal.objects)
                ]
        except BaseExceptionGroup as group:
            ours, others = group.split((CorruptSegment, UploaderStopped))
            if others is None and ours is not None:
                raise ours.exceptions[0] from None
            raise
        return tuple(part.result() for part in parts)

    async def _upload(self, writer: SegmentWriter, logs: Sequence[SealedLog]) -> SegmentObject:
        """Encodes and stores one object, however long it takes."""
        async with self._slots:
            self._check_stopped(writer.seal)
            wait_ms = BACKOFF_MS_FIRST
            while (segment := await self._attempt(writer, logs)) is None:
                self.put_retries += 1
                await asyncio.sleep(wait_ms / 1000)
                self._check_stopped(writer.seal)
                wait_ms = min(2 * wait_ms, BACKOFF_MS_MAX)
        self.objects_put += 1
        self.bytes_put += segment.size
        return SegmentObject(segment.key, segment.size, segment.ranges)

    async def _attempt(self, writer: SegmentWriter, logs: Sequence[SealedLog]) -> Segment | None:
        """Encodes and puts once; None: to be repeated. Encoding again gives the same bytes.

        So nothing encoded is kept between attempts, and while the store is away one upload tries for all.
        """
        if self.away_since is not None:
            async with self._away_turn:
                if self.away_since is not None:
                    return await self._encode_and_put(writer, logs)
        return await self._encode_and_put(writer, logs)

    async def _encode_and_put(self, writer: SegmentWriter, logs: Sequence[SealedLog]) -> Segment | None:
        segment = await encode_segment_in_steps(writer, logs)
        return segment if await self._put(segment) else None

    async def _put(self, segment: Segment) -> bool:
        """One attempt; False: unknown or failed, to be repeated with the same bytes."""
        await self._pace(segment.size)
        try:
            try:
                await self._store.put_if_absent(segment.key, segment.parts)
            except PreconditionFailed:
                await self._verify_own(segment)
        except StoreError as error:
            if self.away_since is None:
                self.away_since = self._clock.now_ms()
                log.warning("cannot store segments, trying on: %s", error)
            return False
        if self.away_since is not None:
            log.info("storing segments again")
            self.away_since = None
        return True

    async def _verify_own(self, segment: Segment) -> None:
        """The key is taken, by an attempt of ours whose outcome we did not learn: its end must be our own bytes.

        The end holds a checksum of everything before it, and the store has verified what it received.
        """
        try:
            size = (await self._store.head(segment.key)).size
            end = b""
            if size == segment.size:
                end = await self._store.get_range(segment.key, size - len(segment.tail), len(segment.tail))
        except NotFound as error:  # an attempt of ours may still be arriving
            raise OutcomeUnknown(f"segment {segment.key} was refused as existing, but it does not exist") from error
        if end != segment.tail:
            raise CorruptSegment(segment.key, "other bytes lie under our key: end this process, keep the WAL")

    async def _pace(self, size: int) -> None:
        """Spreads PUTs so that they come to `pace_bytes_per_s` on average."""
        if not self.pace_bytes_per_s:
            return
        now = asyncio.get_running_loop().time()
        begin = max(self._paced_until, now)
        self._paced_until = begin + size / self.pace_bytes_per_s
        if begin > now:
            await asyncio.sleep(begin - now)

    async def _ask(self, command: CommitSeal) -> CommitAnswer:
        """The controller's answer, however long it takes."""
        wait_ms = BACKOFF_MS_FIRST
        while True:
            self._check_stopped(command.seal)
            try:
                answer = await self._commit(command)
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._note_controller_away(error)
            except (StoreError, OSError, TimeoutError) as error:
                self._note_controller_away(error)
            else:
                self.controller_away_since = None
                return answer
            self.commit_retries += 1
            await asyncio.sleep(wait_ms / 1000)
            wait_ms = min(2 * wait_ms, BACKOFF_MS_MAX)

    def _check_stopped(self, seal: int) -> None:
        if self._stopped is not None:
            raise UploaderStopped(f"seal {seal} cannot follow: {self._stopped}") from self._stopped

    def _note_controller_away(self, error: Exception) -> None:
        if self.controller_away_since is None:
            self.controller_away_since = self._clock.now_ms()
            log.warning("cannot commit seals, trying on: %s", error)
