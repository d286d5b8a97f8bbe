"""Sealing between real neighbours: log table, validation, cluster state and its decisions; WAL and uploads by hand."""

import asyncio
import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from broker.configs import TopicDefaults
from broker.log import Log, LogStatus
from broker.log_table import LogTable
from broker.metrics import Counters
from broker.sealing import Sealing
from broker.settings import Settings
from broker.validation import Validation
from controller import commands as c
from controller import facts as f
from controller.configs import PlainRules
from controller.decide import Context
from controller.decide.moves import commit_and_move
from protocol import Buffer
from storage.seal import CommitAndMove, CommittedThrough, Move, Range, Recovery, SealedLog, SegmentObject, Verdict
from tests.support.facts_controller import FactsController
from tests.support.manual_clock import ManualClock
from tests.support.raw_client import batch_of

NODE, INCARNATION, WAL_ID = 1, 77, bytes(range(16))


class HandWal:
    """Batches become groups, and groups are reported, when the test says so. `on_trim(group)` sees every trim."""

    kind = "volume"
    fenced = False
    batch_bytes_max = 1 << 30

    def __init__(self, on_trim: Callable[[int], None]) -> None:
        self.wal_id = WAL_ID
        self.appended = 0
        self.group_ends: list[int] = []
        self.trimmed = 0
        self.room = True
        self._on_trim = on_trim

    def append(self, log_id: int, leader_epoch: int, base_offset: int, batch: Buffer) -> int:
        self.appended += 1
        return self.appended

    def has_room(self, n_bytes: int, *, internal: bool, batches: int = 1) -> bool:
        return self.room

    def write_group(self, batches: int) -> None:
        """The next so many queued batches are durable as one group."""
        written = self.group_ends[-1] if self.group_ends else 0
        count = min(batches, self.appended - written)
        if count:
            self.group_ends.append(written + count)

    def group_of(self, sequence: int) -> int:
        """0: not durable yet."""
        at = bisect_left(self.group_ends, sequence)
        return at + 1 if at < len(self.group_ends) else 0

    def group_below(self, sequence: int) -> int:
        return bisect_left(self.group_ends, sequence)

    def trim(self, through_group: int) -> None:
        self._on_trim(through_group)
        self.trimmed = max(self.trimmed, through_group)


class Flight(NamedTuple):
    """One seal on its way."""

    number: int
    logs: list[SealedLog]
    through: tuple[CommittedThrough, ...]
    verdict: "asyncio.Future[Verdict]"
    moves: tuple[Move, ...] = ()


class HandUploader:
    """Seals wait until the test commits them, in order; the controller's own rules judge the ranges."""

    def __init__(self, controller: FactsController) -> None:
        self._controller = controller
        self.last_seal = 0
        self.flights: deque[Flight] = deque()
        self.submitted: list[Flight] = []
        self.asked = False
        """Whether the controller was asked to commit what is in flight."""

    def submit(
        self,
        logs: Sequence[SealedLog],
        committed_through: Sequence[CommittedThrough] = (),
        recovery: Recovery | None = None,
        moves: Sequence[Move] = (),
    ) -> "asyncio.Future[Verdict]":
        self.last_seal += 1
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        flight = Flight(self.last_seal, list(logs), tuple(committed_through), verdict, tuple(moves))
        self.flights.append(flight)
        self.submitted.append(flight)
        return verdict

    def withdraw_moves(self, seal: int) -> bool:
        """As long as the seal is not decided: the test says when the controller is asked."""
        for index, flight in enumerate(self.flights):
            if flight.number == seal and flight.moves and not self.asked:
                self.flights[index] = flight._replace(moves=())
                return True
        return False

    def commit(self, *, refuse: Sequence[int] = (), quietly: bool = False) -> Flight:
        """Decide the oldest seal. `refuse`: log ids against the rules; `quietly`: listeners do not hear of it."""
        flight = self.flights.popleft()
        ranges, position = [], 0
        for log in flight.logs:
            epoch = -7 if log.log_id in refuse else log.leader_epoch
            stable = log.last_stable_offset
            ranges.append(
                Range(
                    log.log_id,
                    epoch,
                    log.base,
                    log.end,
                    position,
                    log.size,
                    log.max_timestamp,
                    stable,
                    len(log.batches),
                )
            )
            position += log.size
        objects = (SegmentObject(f"segments/1/{flight.number}-0", position, tuple(ranges)),) if ranges else ()
        command = CommitAndMove(
            bytes(16), NODE, INCARNATION, flight.number, objects, flight.through, moves=flight.moves
        )
        decision = commit_and_move(self._controller.state, command, Context(0, bytes, PlainRules()))
        if quietly:
            self._controller.state.apply_entry(self._controller.position + 1, bytes(32), 0, (), decision.facts)
        else:
            self._controller.apply(*decision.facts)
        answer = decision.answer
        flight.verdict.set_result(Verdict(flight.number, (), frozenset(answer.refused), answer.position))
        return flight


class AnsweringController(FactsController):
    """Moves log starts when asked."""

    async def ask(self, command: Any, timeout_ms: int = 30_000) -> Any:
        if isinstance(command, c.AdvanceLogStart):
            self.asked.append(command)
            self.apply(f.LogStartAdvanced(command.starts))
            return c.LogStarts(command.starts)
        return await super().ask(command, timeout_ms)

    def reload(self) -> None:
        """What listeners hear when the state was replaced as a whole."""
        for listener in list(self._listeners):
            listener((f.StateReloaded(),))


class AlwaysRight:
    def may_acknowledge(self) -> bool:
        return True

    def may_answer(self) -> bool:
        return True


class Bench:
    """To be made on a running loop; topics are made of facts."""

    def __init__(self, **settings: Any) -> None:
        values = {"tidelog_seal_ms": 1000, "tidelog_upload_parallel": 2, **settings}
        self.settings = Settings(node_id=NODE, **values)
        self.clock = ManualClock()
        self.controller = AnsweringController()
        self.wal = HandWal(self._check_trim)
        self.validation = Validation()
        self.validation.attach(AlwaysRight())
        self.uploader = HandUploader(self.controller)
        self.failures: list[BaseException] = []
        self.appended: list[tuple[Log, int, int]] = []
        """(log, base, end) by append sequence, from 1 on."""
        controller = cast(Any, self.controller)
        self.logs = LogTable(
            self.settings,
            controller,
            self.clock,
            TopicDefaults(self.settings),
            cast(Any, None),
            cast(Any, None),
            Counters(),
            incarnation=INCARNATION,
        )
        self.logs.attach(cast(Any, self.wal), self.validation)
        self.sealing = Sealing(
            settings=self.settings,
            clock=self.clock,
            token=bytes,
            incarnation=INCARNATION,
            controller=controller,
            logs=self.logs,
            wals=[(cast(Any, self.wal), self.validation)],
            uploader=cast(Any, self.uploader),
            on_failed=self.failures.append,
        )
        self.controller.subscribe(self.logs.apply)
        self.controller.subscribe(self.sealing.on_facts)
        self.logs.on_close(self.sealing.on_close)
        self._topics = itertools.count()
        self._log_ids = itertools.count()
        listener = (f.Listener("PLAINTEXT", "PLAINTEXT", "here", 1),)
        self.controller.apply(
            f.BrokerRegistered(NODE, INCARNATION, "boot", None, listener, 1, 0),
            f.WalRegistered(WAL_ID, NODE, INCARNATION, "volume"),
        )

    def create(self, partitions: int = 1) -> list[Log]:
        """A new topic that this broker leads."""
        number = next(self._topics)
        ids = tuple(next(self._log_ids) for _ in range(partitions))
        self.controller.apply(
            f.TopicCreated(f"t{number}", number.to_bytes(16, "big"), False, ids, ()),
            *(f.LeaderNamed(log_id, NODE, INCARNATION, 0, WAL_ID) for log_id in ids),
        )
        return [self.logs.by_log_id[log_id] for log_id in ids]

    def delete(self, log: Log) -> None:
        """Delete the topic of the log."""
        self.controller.apply(f.TopicDeleted(log.topic_id))

    def append(self, log: Log, records: int = 1, value: bytes = b"x", **options: Any) -> int:
        """One batch; its append sequence."""
        base = log.end
        sequence = log.append_own(batch_of(*[value] * records, **options))
        self.appended.append((log, base, log.end))
        return sequence

    def write(self, batches: int = 1 << 30) -> None:
        """Make queued batches durable as one group and report it."""
        self.wal.write_group(batches)
        self.report()

    def report(self) -> None:
        """Tell validation what is durable."""
        if self.wal.group_ends:
            self.validation.on_durable(self.wal.group_ends[-1], len(self.wal.group_ends))

    async def tick(self, ms: int = 0) -> None:
        """So much later the sealing task looks."""
        self.clock.advance(ms)
        await self.sealing.seal_due()

    async def settle(self) -> None:
        """Let futures call back."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def commit(self, **how: Any) -> Flight:
        """Commit the oldest seal."""
        flight = self.uploader.commit(**how)
        await self.settle()
        return flight

    def in_group(self, group: int) -> list[tuple[Log, int, int]]:
        """The batches of a group."""
        first = self.wal.group_ends[group - 2] if group > 1 else 0
        return self.appended[first : self.wal.group_ends[group - 1]]

    def _check_trim(self, group: int) -> None:
        """What the WAL gives up is in the bucket by facts, or belongs to a log that is not ours any more."""
        for number in range(self.wal.trimmed + 1, group + 1):
            for log, _, end in self.in_group(number):
                known = self.controller.state.logs.get(log.log_id)
                assert log.status is LogStatus.CLOSED or (known is not None and end <= known.end), (group, log, end)
