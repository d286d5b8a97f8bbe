"""One partition of `__consumer_offsets` on its leader: the shell around `Shard`. What it has in common with other
coordinators is `broker.coordination.runtime`; here are timers, commits that are appended together, and retention.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from broker.coordination import runtime as shared
from broker.coordination.runtime import (
    CoordinatorLog,
    PartitionRuntime,
    Producer,
    Refusal,
    coordinator_error,
)
from broker.groups.assignors import Input, assign
from broker.groups.consumer_model import ComputeAssignment, Partitions, ResolveRegexes, TimesOf
from broker.groups.model import (
    CancelTimer,
    Change,
    Commit,
    CommitAnswer,
    GroupConfig,
    OffsetCommitted,
    Outcome,
    PendingOffset,
    Reply,
    SetTimer,
    TimerKey,
    TxnCommit,
)
from broker.groups.records import decode, encode
from broker.groups.regexes import resolve
from broker.groups.shard import Shard
from broker.groups.state import StateKey
from broker.groups.timers import Timers
from broker.groups.topics import Topics
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.transactions.verification import Verification
    from storage.clock import Clock

log = logging.getLogger(__name__)


TARGETS_PER_SLICE = 100
"""Members whose targets are written between two turns of the event loop: a few milliseconds."""

_Result = TypeVar("_Result")


async def in_slices(steps: Generator[None, None, _Result]) -> _Result:
    """Run a generator to its end, with a turn of the event loop at each stop."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
        await asyncio.sleep(0)


class ShardRuntime(PartitionRuntime[Change]):
    """State of one led partition: loading, then active, then closed for good."""

    def __init__(
        self,
        group_log: CoordinatorLog,
        config: GroupConfig,
        clock: Clock,
        tasks: Tasks,
        *,
        batch_bytes_max: int,
        advance_start: Callable[[CoordinatorLog, int], Awaitable[None]],
        topic_exists: Callable[[str, bytes], bool],
        topics: Topics,
        times_of: TimesOf,
    ) -> None:
        """`topic_exists(name, topic id or zero)`: by the facts applied here, which are no older than our leadership; as
        are `topics`. `times_of(group id)`: what the configs of the group say."""
        self.topics = topics
        self.times_of = times_of
        self.config = config
        super().__init__(group_log, clock, tasks, batch_bytes_max=batch_bytes_max, advance_start=advance_start)
        self.topic_exists = topic_exists
        self.shard = self.new_state()
        self._timers = Timers(self._loop, self._timer_fired)
        self._commits: list[Commit] = []

    def resign(self) -> None:
        super().resign()
        self._timers.close()

    # -- what the log holds

    def new_state(self) -> Shard:
        return Shard(self.config, self.topics, self.times_of)

    def replay(self, state: Shard, change: Change) -> None:
        state.replay(change)

    def adopt(self, state: Shard) -> int:
        self.shard = state
        return state.records_in_force

    async def loaded(self) -> None:
        now_ms = self.clock.now_ms()
        for number, group_id in enumerate(list(self.shard.groups), 1):
            for effect in self._loaded_effects(group_id, now_ms):
                self._timers.set(effect.key, effect.delay_ms)
            if number % shared.SLICE_RECORDS == 0:
                await asyncio.sleep(0)

    def activated(self) -> None:
        self.forget_deleted_topics()

    def encode(self, change: Change) -> tuple[bytes, bytes | None]:
        return encode(change)

    def decode(self, key: bytes | None, value: bytes | None, producer: Producer | None) -> Change | None:
        change = decode(key, value)
        if producer is None or not isinstance(change, OffsetCommitted):
            return change
        return PendingOffset(*producer, change.group_id, change.topic, change.partition, change.value)

    def owner(self, change: Change) -> str:
        return change.group_id

    def producer(self, change: Change) -> Producer | None:
        return Producer(change.producer_id, change.producer_epoch) if isinstance(change, PendingOffset) else None

    def replay_marker(self, state: Shard, producer_id: int, committed: bool) -> None:
        state.end_transaction(producer_id, committed=committed)

    def live_slices(self) -> Iterator[Callable[[], list[Change]]]:
        keys: list[StateKey] = []
        for group_id in dict.fromkeys([*self.shard.groups, *self.shard.offsets.by_group]):
            keys += self.shard.keys(group_id)
            while len(keys) >= shared.SLICE_RECORDS:
                yield partial(self.shard.live, keys[: shared.SLICE_RECORDS])
                del keys[: shared.SLICE_RECORDS]
        yield partial(self.shard.live, keys)

    def decide_waiting(self) -> None:
        self._flush_commits()

    # -- commands

    def submit(
        self, group_ids: Sequence[str], decide: Callable[[int], Outcome], refusal: Refusal
    ) -> asyncio.Future[Any]:
        """Decide with a waiter number, persist, apply. The future gets the answer, or `refusal(error)`."""
        waiter, future = self.wait(refusal)
        if not self.active:
            self.finish(waiter, None, self.inactive_error)
            return future
        self._flush_commits()
        try:
            self._execute(decide(waiter), group_ids)
        except KafkaError as error:
            self.finish(waiter, None, coordinator_error(error))
        return future

    def commit(self, commit: Callable[[int], Commit], refusal: Refusal) -> asyncio.Future[CommitAnswer]:
        """Commits of one turn of the event loop are appended as one batch."""
        waiter, future = self.wait(refusal)
        if not self.active:
            self.finish(waiter, None, self.inactive_error)
            return future
        if not self._commits:
            self._loop.call_soon(self._flush_commits)
        self._commits.append(commit(waiter))
        return future

    def txn_commit(
        self, command: TxnCommit, verification: Verification | None, refusal: Refusal
    ) -> asyncio.Future[CommitAnswer]:
        """`verification`: what the transaction's coordinator was asked under; None: the transaction was open here."""
        producer = command.producer_id, command.producer_epoch

        def decide(waiter: int) -> Outcome:
            if not self.log.producers.in_transaction(*producer):
                self.log.verifications.check_held(command.producer_id, verification)
            commit = command.commit._replace(waiter=waiter)
            return self.shard.txn_commit(command._replace(commit=commit), self.clock.now_ms())

        return self.submit((command.commit.group_id,), decide, refusal)

    def marked(self, producer_id: int, committed: bool) -> None:
        """The log has a marker of the producer now; answers about its groups wait until that is validated."""
        self._flush_commits()
        groups = self.shard.offsets.pending.groups_of(producer_id)
        self.shard.end_transaction(producer_id, committed=committed)
        self.appended(self.log.last_sequence, dict.fromkeys(sorted(groups)))

    def forget_deleted_topics(self) -> None:
        """Offsets of topics that are gone go too, so that a new topic of the same name begins without any."""
        if self.active:
            self.own(self._forget_deleted_topics(), "forget offsets of deleted topics")

    def expire(self) -> None:
        """Look once for offsets and groups whose retention is over."""
        if self.active:
            self.own(self._expire(), "expire offsets")

    # -- decide, persist, apply

    def _execute(self, outcome: Outcome, group_ids: Sequence[str]) -> None:
        """KafkaError: refused, and nothing happened; or, if the changes did not fit one batch, only the first ones."""
        batches = self.batches(outcome.changes)
        if len(batches) > 1 and (outcome.group is not None or outcome.whole):
            raise KafkaError(ErrorCode.RECORD_LIST_TOO_LARGE, "a group's state is larger than a batch may be")
        for batch in batches[:-1]:
            self.append(batch)
            self.shard.apply(Outcome(batch.changes))
        if batches:
            self.append(batches[-1])
        self.shard.apply(Outcome(batches[-1].changes if batches else [], outcome.group, notes=outcome.notes))
        for effect in outcome.effects:
            match effect:
                case Reply(waiter, answer):
                    self.answer(waiter, answer, self.sequence_of(group_ids))
                case SetTimer(key, delay_ms, keep):
                    self._timers.set(key, delay_ms, keep=keep)
                case CancelTimer(key):
                    self._timers.cancel(key)
                case ComputeAssignment(group_id, epoch):
                    self.own(self._assign(group_id, epoch), f"assign partitions of group {group_id}")
                case ResolveRegexes(group_id, regexes):
                    self.own(self._resolve(group_id, regexes), f"resolve expressions of group {group_id}")

    def _flush_commits(self) -> None:
        """Offset commits do not depend on one another: all are decided on the same state, and persisted together."""
        if not self._commits or not self.active:
            return
        commits, self._commits = self._commits, []
        now_ms = self.clock.now_ms()
        decided = [(commit, self.shard.commit(commit, now_ms)) for commit in commits]
        together = Outcome(
            [change for _, outcome in decided for change in outcome.changes],
            None,
            [effect for _, outcome in decided for effect in outcome.effects],
        )
        try:
            self._execute(together, list(dict.fromkeys(commit.group_id for commit in commits)))
        except KafkaError as refused:
            error = coordinator_error(refused)
            for commit, outcome in decided:
                if outcome.changes:
                    self.finish(commit.waiter, None, error)
                else:
                    self._execute(outcome, (commit.group_id,))

    def _timer_fired(self, key: TimerKey) -> None:
        if not self.active:
            self._timers.set(key, shared.RETRY_MS)
            return
        self._flush_commits()
        try:
            self._execute(self.shard.timer(key, self.clock.now_ms()), (key[1],))
        except KafkaError:
            self._timers.set(key, shared.RETRY_MS)

    def _loaded_effects(self, group_id: str, now_ms: int) -> list[SetTimer]:
        outcome = self.shard.loaded(group_id, now_ms)
        assert not outcome.changes, "nobody of a loaded group waits, so no generation can end"
        self.shard.apply(outcome)
        return [effect for effect in outcome.effects if isinstance(effect, SetTimer)]

    # -- what is computed beside the requests

    async def _assign(self, group_id: str, epoch: int) -> None:
        """Compute a group's assignment in slices, and put it into effect in parts; the epoch goes last."""
        given = self.shard.assignor_input(group_id, epoch)
        if given is None:
            return
        targets = await in_slices(assign(given))
        names = list(targets)
        try:
            for start in range(0, len(names), TARGETS_PER_SLICE):
                part = {name: targets[name] for name in names[start : start + TARGETS_PER_SLICE]}
                self._put_assignment(group_id, epoch, given, part, last=False)
                await asyncio.sleep(0)
            self._put_assignment(group_id, epoch, given, {}, last=True)
        except KafkaError as error:
            log.info("%s cannot keep the assignment of group %s now: %s", self, group_id, error)
            self.shard.assignment_failed(group_id)

    def _put_assignment(
        self, group_id: str, epoch: int, given: Input, part: Mapping[str, Partitions], *, last: bool
    ) -> None:
        self._flush_commits()
        now_ms = self.clock.now_ms()
        self._execute(self.shard.assigned(group_id, epoch, given, part, now_ms, last=last), (group_id,))

    async def _resolve(self, group_id: str, regexes: Sequence[str]) -> None:
        """Match the names of all topics in slices. Topics that come meanwhile have a later version."""
        version = self.topics.version
        resolved = await in_slices(resolve(regexes, self.topics.names()))
        self._flush_commits()
        try:
            outcome = self.shard.regexes_resolved(group_id, resolved, version, self.clock.now_ms())
            self._execute(outcome, (group_id,))
        except KafkaError as error:
            log.info("%s cannot keep the expressions of group %s now: %s", self, group_id, error)
            self.shard.apply(self.shard.regexes_resolved(group_id, None, version, self.clock.now_ms()))

    # -- what happens by itself

    async def _expire(self) -> None:
        await self._sweep(lambda group_id: self.shard.expire(group_id, self.clock.now_ms()))

    async def _forget_deleted_topics(self) -> None:
        """Also after loading: topics may have been deleted while nobody coordinated. A commit names a topic that its
        coordinator knew, and we have applied every fact before our own leadership: an unknown topic was deleted."""
        while not await self._sweep(lambda group_id: self.shard.forget_topics(group_id, self.topic_exists)):
            await asyncio.sleep(shared.RETRY_MS / 1000)

    async def _sweep(self, decide: Callable[[str], Outcome]) -> bool:
        """Persist what `decide` removes from each group, in slices; false if the log refused."""
        changes: list[Change] = []
        for number, group_id in enumerate(list(self.shard.groups), 1):
            if number % shared.SLICE_RECORDS == 0:
                if not self._removed(changes):
                    return False
                changes = []
                await asyncio.sleep(0)
            if not changes:
                self._flush_commits()
            changes += decide(group_id).changes
        return self._removed(changes)

    def _removed(self, changes: Sequence[Change]) -> bool:
        try:
            self._execute(Outcome(list(changes)), ())
        except KafkaError as error:
            log.info("group partition %d cannot remove what is over now: %s", self.log.partition, error)
            return False
        return True
