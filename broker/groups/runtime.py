"""One partition of `__consumer_offsets` on its leader: decide, append, apply, answer once validated.

The shell around `Shard`. It owns what the core may not have: the log, futures, timers, tasks. Three rules:

- The append comes first. Refused, nothing of the outcome happens, and the command is answered with Kafka's
  coordinator error.
- An answer waits until the last append that concerns its group is validated, so that it never reveals what a failover
  could take back; then the right to give authoritative answers is checked.
- The log is kept compacted: when what was appended since the last rewrite exceeds max(1 MiB, twice that rewrite), all
  live state is appended again and then the log start moves to where that began. So loading is bounded. Every prefix
  of the log loads to the right state: a rewrite only repeats what is in force, and the start moves after it is
  durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from struct import error as StructError
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from broker.groups.model import (
    CancelTimer,
    Change,
    Commit,
    CommitAnswer,
    GroupConfig,
    Outcome,
    Refusal,
    Reply,
    SetTimer,
    TimerKey,
)
from broker.groups.records import decode, encode
from broker.groups.shard import Shard, StateKey, coordinator_error
from broker.groups.timers import Timers
from protocol.errors import ErrorCode, KafkaError, ProtocolError
from protocol.records import NewRecord, Record, build_batch, iterate_batches, records
from storage.object_store import StoreError

if TYPE_CHECKING:
    from broker.background import Tasks
    from protocol import Buffer
    from storage.clock import Clock

log = logging.getLogger(__name__)

REWRITE_BYTES_MIN = 1024 * 1024
REWRITE_FACTOR = 2
SLICE_RECORDS = 256
"""Records read, expired or rewritten between two turns of the event loop."""
RETRY_MS = 1000
_RECORD_OVERHEAD_BYTES = 32
_BATCH_OVERHEAD_BYTES = 64
_DECOMPRESSED_BYTES_MAX = 64 * 1024 * 1024


class GroupValidation(Protocol):
    """What the shell needs of `broker.validation.Validation`."""

    validated: int

    def when_validated(self, sequence: int, callback: Callable[[], None]) -> None: ...

    def may_answer_authoritatively(self) -> bool: ...


class GroupLog(Protocol):
    """What the shell needs of `broker.log.Log`, the log of one partition of `__consumer_offsets`."""

    log_id: int
    partition: int
    start: int
    hw: int
    end: int

    @property
    def validation(self) -> GroupValidation: ...

    def append_own(self, batch: bytearray) -> int:
        """Append one batch; its append sequence. KafkaError when this broker does not lead the log or it is full."""
        ...

    def read_all(self, from_offset: int) -> AsyncIterator[Buffer]:
        """Batches from the one that holds `from_offset` up to the high watermark."""
        ...


class _Waiting(NamedTuple):
    future: asyncio.Future[Any]
    refusal: Refusal


class _Encoded(NamedTuple):
    change: Change
    record: NewRecord
    size: int


class ShardRuntime:
    """State of one led partition: loading, then active, then closed for good."""

    def __init__(
        self,
        group_log: GroupLog,
        config: GroupConfig,
        clock: Clock,
        tasks: Tasks,
        *,
        batch_bytes_max: int,
        advance_start: Callable[[GroupLog, int], Awaitable[None]],
        topic_exists: Callable[[str, bytes], bool],
    ) -> None:
        """`batch_bytes_max`: the largest batch the log takes. `topic_exists(name, topic id or zero)`: by the facts
        applied here, which are no older than our leadership."""
        self.log = group_log
        self.config = config
        self.clock = clock
        self.tasks = tasks
        self.batch_bytes_max = batch_bytes_max
        self.advance_start = advance_start
        self.topic_exists = topic_exists
        self.shard = Shard(config)
        self.active = False
        self.closed = False
        self.rewriting = False
        self.rewrites = 0
        self.bytes_since_rewrite = 0
        self.rewrite_bytes = 0
        """Size of the last rewrite; after loading: what one would take, about."""
        self._loop = asyncio.get_running_loop()
        self._timers = Timers(self._loop, self._timer_fired)
        self._waiting: dict[int, _Waiting] = {}
        self._decided: set[int] = set()
        """Waiters whose answer waits to be validated."""
        self._next_waiter = 1
        self._commits: list[Commit] = []
        self._group_sequences: dict[str, int] = {}
        """Group -> append sequence of its last change, while that is not validated."""
        self._last_sequence = 0
        self._knows_all_records = True
        self._own_tasks = [tasks.spawn(self._load(), name=f"load groups {group_log.partition}")]

    def resign(self) -> None:
        """Decide nothing more: whoever waits for a decision looks for the new coordinator. Answers that only wait to be
        validated still come, if they are."""
        self._flush_commits()
        self.closed = True
        self.active = False
        self._timers.close()
        for task in self._own_tasks:
            task.cancel()
        for waiter in [waiter for waiter in self._waiting if waiter not in self._decided]:
            self._finish(waiter, None, ErrorCode.NOT_COORDINATOR)

    def close(self) -> None:
        """Not ours any more: nothing that still waits can be told."""
        self.resign()
        for waiter in list(self._waiting):
            self._finish(waiter, None, ErrorCode.NOT_COORDINATOR)

    # -- commands

    def submit(
        self, group_ids: Sequence[str], decide: Callable[[int], Outcome], refusal: Refusal
    ) -> asyncio.Future[Any]:
        """Decide with a waiter number, persist, apply. The future gets the answer, or `refusal(error)`."""
        waiter, future = self._wait(refusal)
        if not self.active:
            self._finish(waiter, None, self._inactive_error)
            return future
        self._flush_commits()
        try:
            self._execute(decide(waiter), group_ids)
        except KafkaError as error:
            self._finish(waiter, None, coordinator_error(error))
        return future

    def commit(self, commit: Callable[[int], Commit], refusal: Refusal) -> asyncio.Future[CommitAnswer]:
        """Commits of one turn of the event loop are appended as one batch."""
        waiter, future = self._wait(refusal)
        if not self.active:
            self._finish(waiter, None, self._inactive_error)
            return future
        if not self._commits:
            self._loop.call_soon(self._flush_commits)
        self._commits.append(commit(waiter))
        return future

    def look(self, group_ids: Sequence[str] | None, look: Callable[[], Any], refusal: Refusal) -> asyncio.Future[Any]:
        """Answer what `look` returns now, once it cannot be taken back. `group_ids` None: it concerns all groups."""
        waiter, future = self._wait(refusal)
        if not self.active:
            self._finish(waiter, None, self._inactive_error)
            return future
        self._flush_commits()
        sequence = self._last_sequence if group_ids is None else self._sequence_of(group_ids)
        self._answer(waiter, look(), sequence)
        return future

    def forget_deleted_topics(self) -> None:
        """Offsets of topics that are gone go too, so that a new topic of the same name begins without any."""
        if self.active:
            self._own(self._forget_deleted_topics(), "forget offsets of deleted topics")

    def expire(self) -> None:
        """Look once for offsets and groups whose retention is over."""
        if self.active:
            self._own(self._expire(), "expire offsets")

    # -- answers

    @property
    def _inactive_error(self) -> ErrorCode:
        return ErrorCode.NOT_COORDINATOR if self.closed else ErrorCode.COORDINATOR_LOAD_IN_PROGRESS

    def _wait(self, refusal: Refusal) -> tuple[int, asyncio.Future[Any]]:
        waiter = self._next_waiter
        self._next_waiter += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[waiter] = _Waiting(future, refusal)
        return waiter, future

    def _answer(self, waiter: int, answer: Any, sequence: int) -> None:
        if sequence <= self.log.validation.validated:
            self._finish(waiter, answer, ErrorCode.NONE)
        elif waiter in self._waiting:
            self._decided.add(waiter)
            self.log.validation.when_validated(sequence, lambda: self._finish(waiter, answer, ErrorCode.NONE))

    def _finish(self, waiter: int, answer: Any, error: ErrorCode) -> None:
        waiting = self._waiting.pop(waiter, None)
        self._decided.discard(waiter)
        if waiting is None or waiting.future.done():
            return
        if error is ErrorCode.NONE and not self.log.validation.may_answer_authoritatively():
            error = ErrorCode.NOT_COORDINATOR
        waiting.future.set_result(answer if error is ErrorCode.NONE else waiting.refusal(error))

    def _sequence_of(self, group_ids: Iterable[str]) -> int:
        return max((self._group_sequences.get(group_id, 0) for group_id in group_ids), default=0)

    # -- decide, persist, apply

    def _execute(self, outcome: Outcome, group_ids: Sequence[str]) -> None:
        """KafkaError: refused, and nothing happened; or, if the changes did not fit one batch, only the first ones."""
        batches = self._batches(outcome.changes)
        if len(batches) > 1 and outcome.group is not None:
            raise KafkaError(ErrorCode.RECORD_LIST_TOO_LARGE, "a group's state is larger than a batch may be")
        for batch in batches[:-1]:
            self._append(batch)
            self.shard.apply(Outcome([one.change for one in batch]))
        if batches:
            self._append(batches[-1])
        self.shard.apply(Outcome([one.change for one in batches[-1]] if batches else [], outcome.group))
        for effect in outcome.effects:
            match effect:
                case Reply(waiter, answer):
                    self._answer(waiter, answer, self._sequence_of(group_ids))
                case SetTimer(key, delay_ms):
                    self._timers.set(key, delay_ms)
                case CancelTimer(key):
                    self._timers.cancel(key)

    def _batches(self, changes: Sequence[Change]) -> list[list[_Encoded]]:
        """The changes as records, as many to a batch as the log takes."""
        now_ms = self.clock.now_ms()
        batches: list[list[_Encoded]] = []
        limit = self.batch_bytes_max - _BATCH_OVERHEAD_BYTES
        room = 0
        for change in changes:
            try:
                key, value = encode(change)
            except (StructError, ProtocolError) as error:
                raise KafkaError(ErrorCode.INVALID_REQUEST, f"cannot be stored: {error}") from error
            size = len(key) + len(value or b"") + _RECORD_OVERHEAD_BYTES
            if size > limit:
                raise KafkaError(ErrorCode.RECORD_LIST_TOO_LARGE, f"a record of {size} bytes")
            if size > room:
                batches.append([])
                room = limit
            batches[-1].append(_Encoded(change, (now_ms, key, value, ()), size))
            room -= size
        return batches

    def _append(self, encoded: Sequence[_Encoded]) -> None:
        batch = build_batch([one.record for one in encoded])
        sequence = self.log.append_own(batch)
        self._last_sequence = sequence
        self.bytes_since_rewrite += len(batch)
        changed = dict.fromkeys(one.change.group_id for one in encoded)
        for group_id in changed:
            self._group_sequences[group_id] = sequence
        self.log.validation.when_validated(sequence, lambda: self._validated(sequence, changed))
        self._rewrite_if_due()

    def _validated(self, sequence: int, group_ids: Iterable[str]) -> None:
        for group_id in group_ids:
            if self._group_sequences.get(group_id) == sequence:
                del self._group_sequences[group_id]

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
                    self._finish(commit.waiter, None, error)
                else:
                    self._execute(outcome, (commit.group_id,))

    def _timer_fired(self, key: TimerKey) -> None:
        if not self.active:
            self._timers.set(key, RETRY_MS)
            return
        self._flush_commits()
        try:
            self._execute(self.shard.timer(key, self.clock.now_ms()), (key[1],))
        except KafkaError:
            self._timers.set(key, RETRY_MS)

    # -- loading

    async def _load(self) -> None:
        while True:
            shard = Shard(self.config)
            try:
                size, count = await self._replay(shard)
                break
            except (KafkaError, StoreError, ProtocolError) as error:
                log.error("group partition %d cannot be loaded yet: %s", self.log.partition, error)
                await asyncio.sleep(RETRY_MS / 1000)
        self.shard = shard
        live = shard.offsets.count + sum(group.saved is not None for group in shard.groups.values())
        self.bytes_since_rewrite = size
        self.rewrite_bytes = size * live // max(count, 1)
        now_ms = self.clock.now_ms()
        for number, group_id in enumerate(list(shard.groups), 1):
            for effect in self._loaded_effects(group_id, now_ms):
                self._timers.set(effect.key, effect.delay_ms)
            if number % SLICE_RECORDS == 0:
                await asyncio.sleep(0)
        self.active = True
        self.forget_deleted_topics()
        self._rewrite_if_due()

    def _loaded_effects(self, group_id: str, now_ms: int) -> list[SetTimer]:
        outcome = self.shard.loaded(group_id, now_ms)
        assert not outcome.changes, "nobody of a loaded group waits, so no generation can end"
        self.shard.apply(outcome)
        return [effect for effect in outcome.effects if isinstance(effect, SetTimer)]

    async def _replay(self, shard: Shard) -> tuple[int, int]:
        """Read the log into `shard`; (bytes, records) read."""
        size = count = 0
        async for buffer in self.log.read_all(self.log.start):
            for position, header in iterate_batches(buffer):
                size += header.size
                if header.is_control:
                    continue
                batch = memoryview(buffer)[position : position + header.size]
                for record in records(batch, max_size=_DECOMPRESSED_BYTES_MAX):
                    self._replay_one(shard, record)
                    count += 1
                    if count % SLICE_RECORDS == 0:
                        await asyncio.sleep(0)
        return size, count

    def _replay_one(self, shard: Shard, record: Record) -> None:
        change = decode(record.key, record.value)
        if change is not None:
            shard.replay(change)
        elif self._knows_all_records:
            # A rewrite would lose it.
            self._knows_all_records = False
            log.warning("group partition %d holds records of a newer version: not rewritten", self.log.partition)

    # -- what happens by itself

    def _own(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self._own_tasks = [task for task in self._own_tasks if not task.done()]
        self._own_tasks.append(self.tasks.spawn(work, name=f"{name} {self.log.partition}"))

    async def _expire(self) -> None:
        await self._sweep(lambda group_id: self.shard.expire(group_id, self.clock.now_ms()))

    async def _forget_deleted_topics(self) -> None:
        """Also after loading: topics may have been deleted while nobody coordinated. A commit names a topic that its
        coordinator knew, and we have applied every fact before our own leadership: an unknown topic was deleted."""
        while not await self._sweep(lambda group_id: self.shard.forget_topics(group_id, self.topic_exists)):
            await asyncio.sleep(RETRY_MS / 1000)

    async def _sweep(self, decide: Callable[[str], Outcome]) -> bool:
        """Persist what `decide` removes from each group, in slices; false if the log refused."""
        changes: list[Change] = []
        for number, group_id in enumerate(list(self.shard.groups), 1):
            if number % SLICE_RECORDS == 0:
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

    # -- rewriting

    def _rewrite_if_due(self) -> None:
        limit = max(REWRITE_BYTES_MIN, REWRITE_FACTOR * self.rewrite_bytes)
        if self.active and not self.rewriting and self._knows_all_records and self.bytes_since_rewrite > limit:
            self.rewriting = True
            self._own(self._rewrite(), "rewrite groups")

    async def _rewrite(self) -> None:
        begin = self.log.end
        self.bytes_since_rewrite = 0
        size = 0
        keys: list[StateKey] = []
        for group_id in dict.fromkeys([*self.shard.groups, *self.shard.offsets.by_group]):
            keys += self.shard.keys(group_id)
            while len(keys) >= SLICE_RECORDS:
                size += await self._rewrite_slice(keys[:SLICE_RECORDS])
                del keys[:SLICE_RECORDS]
        size += await self._rewrite_slice(keys)
        await self._until_validated(self._last_sequence)
        while True:
            try:
                await self.advance_start(self.log, begin)
                break
            except (KafkaError, StoreError) as error:
                log.info("group partition %d cannot move its start now: %s", self.log.partition, error)
                await asyncio.sleep(RETRY_MS / 1000)
        self.rewrite_bytes = size
        self.bytes_since_rewrite -= size
        self.rewriting = False
        self.rewrites += 1
        self._rewrite_if_due()

    async def _rewrite_slice(self, keys: Sequence[StateKey]) -> int:
        """Append what is in force under `keys` at this moment; bytes appended."""
        while True:
            self._flush_commits()
            before = self.bytes_since_rewrite
            try:
                for batch in self._batches(self.shard.live(keys)):
                    self._append(batch)
            except KafkaError as error:
                log.info("group partition %d waits to be rewritten: %s", self.log.partition, error)
                await asyncio.sleep(RETRY_MS / 1000)
                continue
            await asyncio.sleep(0)
            return self.bytes_since_rewrite - before

    async def _until_validated(self, sequence: int) -> None:
        future: asyncio.Future[None] = self._loop.create_future()

        def validated() -> None:
            if not future.done():
                future.set_result(None)

        self.log.validation.when_validated(sequence, validated)
        await future
