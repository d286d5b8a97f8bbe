"""(topic, partition) and (topic id, partition) -> Log; memory of all tails together; who leads what, from facts."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from broker.log import Log, LogConfig, LogStatus
from broker.space import SpaceQueue
from broker.validation import assign_last_stable_offset
from controller import facts as f
from protocol.errors import ErrorCode, KafkaError
from storage.producers import ProducerStates
from storage.tail import BATCH_OVERHEAD_BYTES, Tail, TailMemory

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.cold import ColdReads
    from broker.configs import TopicDefaults
    from broker.metrics import Counters
    from broker.settings import Settings
    from broker.validation import Validation
    from controller.client import ControllerClient
    from controller.log_index import LogState
    from storage.clock import Clock
    from storage.wal.port import Wal

log = logging.getLogger(__name__)

TRIM_BATCHES = 2000
"""Freeing is a stall too: so many batches per turn of the loop."""
LOAD_PARALLEL = 16
LOAD_AGAIN_S, LOAD_AGAIN_S_MAX = 5.0, 300.0
"""A log whose producer state cannot be read is tried again: the object may come back. Doubled each time."""
INTERNAL_SHARE = 20
"""One part in so many of the memory for tails is kept for internal logs."""
TOPIC_RESOURCE = 2
EXPIRED_PER_STEP = 5000
"""Producers looked at between two turns of the event loop."""


class LeaderHint(KafkaError):
    """NOT_LEADER_OR_FOLLOWER and the like, with what is known of the leader (KIP-951); -1 when nobody leads."""

    def __init__(self, code: ErrorCode, message: str, leader_id: int = -1, leader_epoch: int = -1) -> None:
        super().__init__(code, message)
        self.leader_id = leader_id
        self.leader_epoch = leader_epoch


class LogTable:
    """The logs this broker leads. `apply` is subscribed to the controller client's facts."""

    def __init__(
        self,
        settings: Settings,
        controller: ControllerClient,
        clock: Clock,
        topic_defaults: TopicDefaults,
        cold: ColdReads,
        tasks: Tasks,
        counters: Counters,
        *,
        incarnation: int,
    ) -> None:
        self.find: dict[tuple[str | bytes, int], Log] = {}
        """By (name, partition) and by (16-byte topic id, partition). Logs that are being opened are there already."""
        self.by_log_id: dict[int, Log] = {}
        self.clock = clock
        self.node_id = settings.node_id
        self.cold = cold
        self.memory = TailMemory()
        """What the tails keep alive together."""
        self.space = SpaceQueue(
            lambda n_bytes, n_batches, wals: self.has_room(n_bytes, n_batches, internal=False, wals=wals), counters
        )
        self._settings = settings
        self._controller = controller
        self._defaults = topic_defaults
        self._tasks = tasks
        self._incarnation = incarnation
        self._wals: dict[bytes, tuple[Wal, Validation]] = {}
        self._on_open: list[Callable[[Log], None]] = []
        self._on_close: list[Callable[[Log], None]] = []
        self._before_marker: list[Callable[[Log], None]] = []
        self._on_marker: list[Callable[[Log, int, bool], None]] = []
        self._to_load: deque[tuple[Log, float]] = deque()  # with the wait before another attempt
        self._loaders = 0
        self._loading: set[asyncio.Task[None]] = set()
        self._kept: deque[tuple[Log, int]] = deque()
        self._kept_bytes = 0
        self._trimming = False
        self.replayed_bytes = 0
        """Bytes of batches read from the bucket because logs opened here; none while ranges carry their snapshots."""
        self.client_bytes_max = settings.tidelog_tail_bytes_max - settings.tidelog_tail_bytes_max // INTERNAL_SHARE
        """What clients may fill of the memory for tails; the rest is for internal logs."""

    def __len__(self) -> int:
        return len(self.by_log_id)

    @property
    def logs(self) -> Iterable[Log]:
        """Every log of the table, by log id."""
        return self.by_log_id.values()

    @property
    def kept_bytes(self) -> int:
        """Memory of committed batches that stay for readers near the end."""
        return self._kept_bytes

    # Set-up

    def attach(self, wal: Wal, validation: Validation) -> None:
        """A WAL instance of ours: logs that are led through it open on it."""
        self._wals[wal.wal_id] = (wal, validation)

    def on_open(self, callback: Callable[[Log], None]) -> None:
        """Called when a log begins to serve (coordinators load their partition)."""
        self._on_open.append(callback)

    def on_close(self, callback: Callable[[Log], None]) -> None:
        """Called when a log is not ours any more."""
        self._on_close.append(callback)

    def before_marker(self, callback: Callable[[Log], None]) -> None:
        """Called before a transaction's marker is appended; a KafkaError that it raises refuses the marker."""
        self._before_marker.append(callback)

    def on_marker(self, callback: Callable[[Log, int, bool], None]) -> None:
        """Called with (log, producer id, whether it commits) once a marker is appended, before it is durable."""
        self._on_marker.append(callback)

    def check_marker(self, of: Log) -> None:
        """Ask everybody who may refuse one."""
        for callback in self._before_marker:
            callback(of)

    def marked(self, of: Log, producer_id: int, commit: bool) -> None:
        """Tell everybody who listens."""
        for callback in self._on_marker:
            callback(of, producer_id, commit)

    # Facts

    def open_all(self) -> None:
        """Open and close logs so that the table is as the state says (at start, after a reload)."""
        state = self._controller.state
        for held in list(self.by_log_id.values()):
            known = state.logs.get(held.log_id)
            if known is None or not self._ours(known) or known.epoch != held.epoch:
                self._close(held)
        for known in state.logs.values():
            if self._ours(known) and known.log_id not in self.by_log_id:
                self._open(known)

    def apply(self, facts: Sequence[f.Fact]) -> None:
        """The listener given to `ControllerClient.subscribe`: the state holds the facts already."""
        state = self._controller.state
        for fact in facts:
            match fact:
                case f.SealCommitted():
                    for item in fact.objects:
                        for part in item.ranges:
                            self._committed(part.log_id)
                case f.LeaderNamed():
                    held, known = self.by_log_id.get(fact.log_id), state.logs.get(fact.log_id)
                    if held is not None and held.epoch != fact.epoch:
                        self._close(held)
                    if known is not None and known.epoch == fact.epoch and self._ours(known):
                        self._open(known)
                case f.LogStartAdvanced():
                    for moved in fact.starts:
                        self._start_moved(moved.log_id)
                case f.TopicDeleted():
                    for held in [held for held in self.by_log_id.values() if held.topic_id == fact.topic_id]:
                        self._close(held)
                case f.ConfigsChanged() if fact.resource_type == TOPIC_RESOURCE:
                    self._configure(fact.resource_name)
                case f.SessionEnded() if fact.incarnation == self._incarnation:
                    for held in list(self.by_log_id.values()):
                        self._close(held)
                case f.StateReloaded():
                    self.open_all()
                    for held in list(self.by_log_id.values()):
                        self._committed(held.log_id)
                        self._start_moved(held.log_id)
                    for topic in state.topics:
                        self._configure(topic)
                case _:
                    pass

    async def expire_producers(self) -> None:
        """Forget silent producers, every so often, as long as it runs."""
        settings = self._settings
        while True:
            await asyncio.sleep(settings.producer_id_expiration_check_interval_ms / 1000)
            for log_id in list(self.by_log_id):
                held = self.by_log_id.get(log_id)
                if held is not None:
                    await self._expire_producers_of(held)
                    await asyncio.sleep(0)

    async def _expire_producers_of(self, held: Log) -> None:
        now_ms = self.clock.now_ms()
        held.expire_verifications(now_ms - held.producers.expiration_ms)
        ids = held.producers.ids()
        for start in range(0, len(ids), EXPIRED_PER_STEP):
            held.producers.expire(now_ms, held.hw, ids[start : start + EXPIRED_PER_STEP])
            if len(ids) > EXPIRED_PER_STEP:
                await asyncio.sleep(0)

    def _ours(self, known: LogState) -> bool:
        return known.leader_incarnation == self._incarnation and known.status == "open" and known.leader_node >= 0

    def _open(self, known: LogState) -> None:
        if known.log_id in self.by_log_id:
            return
        topic = self._controller.state.topics[known.topic]
        wal, validation = self._wals[known.wal_id]
        opened = Log(
            self,
            log_id=known.log_id,
            topic=topic.name,
            topic_id=topic.topic_id,
            partition=known.partition,
            internal=topic.internal,
            epoch=known.epoch,
            epochs=list(known.epochs),
            start=known.start,
            end=known.end,
            config=self.config_of(topic.configs, wal),
            tail=Tail(known.end, self.memory),
            producers=self._no_producers(known.log_id),
            wal=wal,
            validation=validation,
        )
        self.by_log_id[opened.log_id] = opened
        self.find[opened.topic, opened.partition] = opened
        self.find[opened.topic_id, opened.partition] = opened
        if self._controller.state.newest_range(opened.log_id) is None:
            self._opened(opened)
            return
        self._load(opened, LOAD_AGAIN_S)

    def _load(self, opening: Log, again_s: float) -> None:
        self._to_load.append((opening, again_s))
        if self._loaders < LOAD_PARALLEL:
            self._loaders += 1
            loader = self._tasks.spawn(self._load_waiting(), name="load producer states")
            self._loading.add(loader)
            loader.add_done_callback(self._loading.discard)

    async def wait_opened(self) -> None:
        """Return when no log waits for its producer state any more."""
        while self._loading:
            await asyncio.wait(self._loading)

    async def _load_waiting(self) -> None:
        """Read the producer state of logs that open, until none waits."""
        try:
            while self._to_load:
                opening, again_s = self._to_load.popleft()
                if opening.status is not LogStatus.OPENING:
                    continue
                try:
                    self.replayed_bytes += await self.cold.producers(
                        opening.log_id, opening.producers, self.clock.now_ms()
                    )
                except (KafkaError, ValueError) as error:
                    log.error("%r cannot open, its producer state is unreadable: %s", opening, error)
                    self._tasks.spawn(self._load_later(opening, again_s), name="load a producer state again")
                    continue
                if opening.status is LogStatus.OPENING:
                    self._opened(opening)
        finally:
            self._loaders -= 1

    async def _load_later(self, opening: Log, again_s: float) -> None:
        await asyncio.sleep(again_s)
        if opening.status is LogStatus.OPENING:
            opening.producers = self._no_producers(opening.log_id)
            self._load(opening, min(2 * again_s, LOAD_AGAIN_S_MAX))

    def _no_producers(self, log_id: int) -> ProducerStates:
        hole_end = self._controller.state.wal_table.newest_hole(log_id)
        return ProducerStates(self._settings.producer_id_expiration_ms, hole_end)

    def _opened(self, opened: Log) -> None:
        opened.status = LogStatus.OPEN
        assign_last_stable_offset(opened)
        for callback in self._on_open:
            callback(opened)
        opened.wake_all()

    def _close(self, closed: Log) -> None:
        was_open = closed.status is not LogStatus.OPENING
        self._kept_bytes -= bytes_between(closed.tail, closed.tail.start, closed.committed_end)
        closed.status = LogStatus.CLOSED
        del self.by_log_id[closed.log_id]
        for key in ((closed.topic, closed.partition), (closed.topic_id, closed.partition)):
            if self.find.get(key) is closed:
                del self.find[key]
        self._kept.append((closed, closed.end))
        closed.wake_all()
        if was_open:
            for callback in self._on_close:
                callback(closed)
        self._trim_later()

    def _configure(self, topic_name: str) -> None:
        topic = self._controller.state.topics.get(topic_name)
        if topic is None:
            return
        for log_id in topic.log_ids:
            held = self.by_log_id.get(log_id)
            if held is not None:
                held.config = self.config_of(topic.configs, held.wal)

    def reconfigure(self) -> None:
        """The broker's own configs changed, which are the defaults of topics."""
        for topic_name in self._controller.state.topics:
            self._configure(topic_name)
        for held in self.by_log_id.values():
            held.producers.expiration_ms = self._settings.producer_id_expiration_ms
        self._trim_later()

    def config_of(self, configs: dict[str, str], wal: Wal) -> LogConfig:
        """What the topic's configs mean for its logs; no batch may be larger than what one WAL file can hold."""
        number, value = self._defaults.number, self._defaults.value
        return LogConfig(
            max_message_bytes=min(number(configs, "max.message.bytes"), wal.batch_bytes_max),
            log_append_time=value(configs, "message.timestamp.type") == "LogAppendTime",
            timestamp_before_max_ms=number(configs, "message.timestamp.before.max.ms"),
            timestamp_after_max_ms=number(configs, "message.timestamp.after.max.ms"),
            compacted="compact" in value(configs, "cleanup.policy"),
        )

    def _committed(self, log_id: int) -> None:
        """The bucket has more of a log: what it has may leave memory."""
        held, known = self.by_log_id.get(log_id), self._controller.state.logs.get(log_id)
        if held is None or known is None or known.end <= held.committed_end:
            return
        before = held.committed_end
        held.committed_end = known.end
        self._kept.append((held, known.end))
        self._kept_bytes += bytes_between(held.tail, before, known.end)
        self._trim_later()

    def _start_moved(self, log_id: int) -> None:
        held, known = self.by_log_id.get(log_id), self._controller.state.logs.get(log_id)
        if held is not None and known is not None and known.start > held.start:
            held.start = known.start
            held.epochs = list(known.epochs)
            if held.status is not LogStatus.OPENING:
                assign_last_stable_offset(held)
            held.wake_all()

    # Answers for logs that are not here

    def refusal(self, topic: str | bytes, partition: int) -> KafkaError:
        """Why `find` has no such log, or one that does not serve: unknown topic, unknown topic id, another leader."""
        state = self._controller.state
        known = state.topics.get(topic) if isinstance(topic, str) else state.topic_by_id.get(topic)
        if known is None:
            if isinstance(topic, str):
                return KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {topic} does not exist")
            return KafkaError(ErrorCode.UNKNOWN_TOPIC_ID, f"topic id {topic.hex()} does not exist")
        if not 0 <= partition < len(known.log_ids):
            return KafkaError(
                ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {known.name} has {len(known.log_ids)} partitions"
            )
        found = state.logs[known.log_ids[partition]]
        return LeaderHint(
            ErrorCode.NOT_LEADER_OR_FOLLOWER,
            f"this broker does not lead {known.name}-{partition} now",
            found.leader_node,
            found.epoch,
        )

    # Space

    def has_room(self, n_bytes: int, n_batches: int, *, internal: bool, wals: tuple[Wal, ...] = ()) -> bool:
        """Whether the tails and these WAL instances (none: all) take so much more; asked before an offset is assigned.

        A request that goes through several of them needs the room in each.
        """
        limit = self._settings.tidelog_tail_bytes_max if internal else self.client_bytes_max
        excess = self.memory.bytes + n_bytes + n_batches * BATCH_OVERHEAD_BYTES - limit
        # A request larger than all of it is taken when nothing else is there: else it could never be served.
        if excess > 0 and not self._free_kept(excess) and self.memory.bytes > 0:
            return False
        if not wals:
            wals = tuple(wal for wal, _ in self._wals.values())
        return all(wal.has_room(n_bytes, internal=internal, batches=n_batches) for wal in wals)

    def room(self) -> None:
        """Space came back (given to the WAL as `on_room`): serve requests that wait for it."""
        self.space.serve()

    def _free_kept(self, wanted: int) -> bool:
        """Memory is wanted now: take it from committed batches, one slice; False if that is not enough."""
        before = self.memory.bytes
        self._trim_slice(0)
        return before - self.memory.bytes >= wanted

    def _trim_later(self) -> None:
        """Trim down to what may be kept, a slice per turn of the loop."""
        if not self._trimming and self._kept:
            self._trimming = True
            asyncio.get_running_loop().call_soon(self._trim_step)

    def _trim_step(self) -> None:
        self._trimming = False
        if self._trim_slice(self._settings.tidelog_tail_keep_bytes):
            self._trim_later()
        if len(self.space):
            self.space.serve()

    def _trim_slice(self, keep_bytes: int) -> bool:
        """Free at most `TRIM_BATCHES` batches, oldest commits first; whether there is more to free."""
        kept = self._kept
        budget = TRIM_BATCHES
        while kept and budget > 0:
            holder, end = kept[0]
            closed = holder.status is LogStatus.CLOSED
            if not closed and self._kept_bytes <= keep_bytes:
                return False
            number = holder.tail.first_number
            freed = holder.tail.trim(end, budget)
            holder.producers.forget_aborted(holder.tail.start)
            budget -= holder.tail.first_number - number
            if not closed:
                self._kept_bytes -= freed
            if budget > 0:
                kept.popleft()
        return bool(kept)


def bytes_between(tail: Tail, from_offset: int, to_offset: int) -> int:
    """Payload and overhead of the batches of [from_offset, to_offset) that are in memory."""
    from_offset = max(from_offset, tail.start)
    if to_offset <= from_offset:
        return 0
    batches = tail.number_of(to_offset) - tail.number_of(from_offset)
    return tail.payload_between(from_offset, to_offset) + batches * BATCH_OVERHEAD_BYTES
