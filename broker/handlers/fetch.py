"""Fetch: v4 to v18, for consumers.

v4: isolation level. v5: log start offset. v7: sessions (KIP-227). v9: leader epochs. v12: flexible, diverging epochs.
v13: topics by id. v16: the new leader travels with its errors (KIP-951). Followers' fields are read over.
Reads stop at the high watermark, or at the last stable offset. Batches come from memory; what is only in the bucket is
read by a task of its own, and data from memory does not wait for it longer than `HOT_WAIT_MS`.
A long poll is one waiter in the logs it asks for. Looking and registering are one step of the loop, and so are a new
high watermark and the wake-ups that it causes: none is lost.
OFFSET_OUT_OF_RANGE is authoritative: without the right to say so the answer is NOT_LEADER_OR_FOLLOWER.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker.fetch_sessions import NO_SESSION, SessionPart, Turn, changed, note, served
from broker.handlers.common import check_leader_epoch, endpoints_of, not_sure
from broker.log_table import LeaderHint
from protocol.errors import ErrorCode, KafkaError
from protocol.fast import FetchRequest, FetchResult, coalesce, encode_fetch_response, parse_fetch
from protocol.records import build_empty_batches, parse_header
from storage.range_plan import collect_aborted

if TYPE_CHECKING:
    from broker.connection import Connection, Reply
    from broker.log import Log
    from broker.services import Services
    from protocol import Buffer
    from storage.seal import AbortedEntry

READ_COMMITTED = 1
NO_SUCH_PARTITION = (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, ErrorCode.UNKNOWN_TOPIC_ID)
LEADERS_SINCE = 16
"""The version from which on the new leader is told. Earlier ones have the field, but not where that leader is: clients
would look for a broker that they may not know."""
HOT_WAIT_MS = 20
"""How long data from memory waits for parts of the same request that come from the bucket."""
COLD_WAIT_MS = 5_000
"""How long a request waits for the bucket when it has nothing else to say; the read goes on without it."""
COLD_BYTES_MAX = 4 * 1024 * 1024
"""Read from the bucket for one request; the rest waits for the next."""
COLD_PARALLEL = 32
"""Requests that read from the bucket at the same time."""
CROWDED_BYTES = 64 * 1024
"""The most one fetch answers while clients leave too much unread."""
WAIT_MS_MAX = 300_000


def fetch(
    services: Services,
    connection: Connection,
    buf: bytearray,
    pos: int,
    end: int,
    version: int,
    correlation_id: int,
    owned: bool,
) -> None:
    """Handle the request whose body is `buf[pos:end]`; ProtocolError if it is none."""
    request = parse_fetch(buf, pos, end, version)
    turn = services.fetch_sessions.begin(
        request.session_id,
        request.session_epoch,
        request.parts,
        request.forgotten,
        by_id=version >= 13,
        now_ms=services.clock.boottime_ms(),
    )
    if turn.error_code:
        services.counters.error(turn.error_code)
        _, pieces = encode_fetch_response(version, correlation_id, [], error_code=turn.error_code)
        connection.answer(b"".join(pieces), services.counters.fetch_latency)
        return
    Poll(services, connection, request, turn, version, correlation_id).start()


class Cold:
    """What was read from the bucket for one partition, or why it could not be."""

    __slots__ = ("aborted", "buffers", "error", "offset", "size")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.buffers: list[Buffer] = []
        self.size = 0
        self.aborted: list[tuple[int, int]] = []
        self.error: tuple[ErrorCode, str] | None = None
        """Not the exception itself: through its traceback it would keep this and all that was read alive."""


class Poll:
    """One fetch until it is answered."""

    __slots__ = (
        "cold",
        "cold_done",
        "connection",
        "correlation_id",
        "deferred",
        "done",
        "expired",
        "failed",
        "logs",
        "max_bytes",
        "metered",
        "reading",
        "reply",
        "request",
        "results",
        "services",
        "size",
        "slot",
        "started_us",
        "time_limit",
        "turn",
        "unread",
        "version",
    )

    def __init__(
        self,
        services: Services,
        connection: Connection,
        request: FetchRequest,
        turn: Turn,
        version: int,
        correlation_id: int,
    ) -> None:
        self.services = services
        self.connection = connection
        self.request = request
        self.turn = turn
        self.version = version
        self.correlation_id = correlation_id
        self.started_us = connection.started_us
        self.metered = connection.metered
        self.max_bytes = min(request.max_bytes, services.settings.fetch_max_bytes)
        if connection.hub.unsent_bytes > connection.hub.budget.limit:
            self.max_bytes = min(self.max_bytes, CROWDED_BYTES)
        self.reply: Reply | None = None
        self.done = False
        self.expired = request.max_wait_ms <= 0 or not turn.parts
        self.deferred = False
        self.slot = -1
        self.logs: list[Log] = []
        self.results: list[tuple[SessionPart, FetchResult]] = []
        self.size = 0
        self.failed = False
        self.unread: list[tuple[SessionPart, Log]] = []
        self.cold: dict[SessionPart, Cold] | None = None
        self.cold_done = False
        self.reading = False
        self.time_limit: asyncio.Timeout | None = None

    def start(self) -> None:
        """Answer at once, or wait. Nothing happens between the look and the registration: this does not give way."""
        if self.connection.may_fill():
            self._collect()
            if self._enough():
                self._answer()
                return
            self._park()
            self._go_on()
        else:
            self._park()
            self.wake()

    def wake(self) -> None:
        """One of the logs grew, moved or closed."""
        if self.done or self.deferred:
            return
        if self.connection.closed:
            self.drop()
            return
        try:
            self._look()
        except Exception:
            # Others are woken in the same step: a bug met by this request stays with it.
            self.drop()
            self.connection.broken()

    def _look(self) -> None:
        assert self.reply is not None
        if self.reading:
            self._hurry()
            return
        if not self.connection.may_fill(self.reply):
            self.deferred = True
            self.connection.defer(self._undefer)
            return
        self._collect()
        if self._enough():
            self._answer()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """It was not enough: wait for more, or for what is in the bucket."""
        self.results = []  # they would keep batches in memory
        if self.unread and not self.cold_done:
            self._read_cold()

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        if not self.done:
            self.done = True
            self._leave()

    def _undefer(self) -> None:
        self.deferred = False
        self.wake()

    def expire(self) -> None:
        """No time is left: answer with what there is."""
        self.expired = True
        self.wake()

    def _enough(self) -> bool:
        """As Kafka: enough bytes, an error, or no time left. What the bucket has is waited for before."""
        if self.failed or self.size >= self.max_bytes:
            return True
        if self.unread and not self.cold_done:
            return False
        return self.expired or self.size >= self.request.min_bytes

    def _park(self) -> None:
        """Wait: owe the answer, register everywhere, set the deadline."""
        connection, services = self.connection, self.services
        self.reply = connection.owe(1, services.counters.fetch_latency)
        self.reply.started_us = self.started_us
        connection.polls[self] = None
        services.counters.fetch_waits += 1
        find = services.logs.find
        for part in self.turn.parts:
            log = find.get((part.topic, part.partition))
            if log is not None:
                log.waiters[self] = None
                self.logs.append(log)
        if not self.expired:
            self.slot = services.wheel.add(min(self.request.max_wait_ms, WAIT_MS_MAX), self.expire)

    def _leave(self) -> None:
        for log in self.logs:
            log.waiters.pop(self, None)
        self.logs.clear()
        self.connection.polls.pop(self, None)
        if self.slot >= 0:
            self.services.wheel.remove(self.slot, self.expire)
            self.slot = -1

    # Reading

    def _collect(self) -> None:
        """One pass over the partitions, in order, until the bytes are used up."""
        self.results = results = []
        self.size = 0
        self.failed = False
        self.unread = []
        committed = self.request.isolation_level == READ_COMMITTED
        incremental = self.turn.incremental
        find = self.services.logs.find
        for part in self.turn.parts:
            log = find.get((part.topic, part.partition))
            try:
                if log is None or not log.serving:
                    raise self.services.logs.refusal(part.topic, part.partition)
                if (
                    incremental
                    and part.offset == log.hw == part.high_watermark
                    and part.log_start_offset == log.start
                    and part.leader_epoch in (-1, log.epoch)
                    and part.last_epoch < 0
                ):
                    continue  # nothing new, nothing to say
                result = self._read(part, log, committed)
            except KafkaError as error:
                result = self._refusal(part, error)
            results.append((part, result))
            if result.size > 0:
                self.size += result.size

    def _read(self, part: SessionPart, log: Log, committed: bool) -> FetchResult:
        """What memory has of one partition, or what was read from the bucket before."""
        if part.leader_epoch >= 0:
            check_leader_epoch(log, part.leader_epoch)
        offset = part.offset
        start, tail = log.start, log.tail
        limit = log.lso if committed else log.hw
        if part.last_epoch >= 0:
            diverging = _diverging(log, part)
            if diverging is not None:
                self.failed = True
                return FetchResult(
                    part.topic, part.partition, 0, log.hw, log.lso, start, (), 0, diverging_epoch=diverging
                )
        records: list[Buffer] = []
        size = 0
        aborted: list[tuple[int, int]] | None = [] if committed else None
        if start <= offset < limit:
            room = min(part.max_bytes, self.max_bytes - self.size)
            if offset >= tail.start:
                records, size = tail.read(offset, limit, room, at_least_one=not self.size)
                if committed and records:
                    aborted = _aborted(log, offset, parse_header(records[-1]).next_offset)
            else:
                cold = None if self.cold is None else self.cold.get(part)
                if cold is None or cold.offset != offset:
                    self.unread.append((part, log))
                elif cold.error is not None:
                    raise KafkaError(*cold.error)
                elif not self.size or cold.size <= self.max_bytes - self.size:
                    records, size = cold.buffers, cold.size
                    if committed:
                        aborted = cold.aborted
        elif offset < start or offset > log.end:
            raise _out_of_range(log, offset)
        return FetchResult(part.topic, part.partition, 0, log.hw, log.lso, start, records, size, aborted)

    def _refusal(self, part: SessionPart, error: KafkaError) -> FetchResult:
        self.failed = True
        leader = None
        if isinstance(error, LeaderHint) and error.leader_id >= 0 and self.version >= LEADERS_SINCE:
            leader = (error.leader_id, error.leader_epoch)
        # Kafka leaves the list out only where it came as far as the log.
        aborted = () if error.code in NO_SUCH_PARTITION else None
        return FetchResult(part.topic, part.partition, error.code, size=0, aborted=aborted, current_leader=leader)

    # What is only in the bucket

    def _hurry(self) -> None:
        """Memory may have enough by now: then the bucket is not waited for much longer."""
        if self.time_limit is None:
            return
        self._collect()
        if self.failed or self.size >= self.request.min_bytes:
            soon = asyncio.get_running_loop().time() + HOT_WAIT_MS / 1000
            limit = self.time_limit.when()
            if limit is not None and limit > soon:
                self.time_limit.reschedule(soon)
        self.results = []

    def _read_cold(self) -> None:
        self.reading = True
        self.services.counters.fetch_cold += 1
        self.services.tasks.spawn(self._cold_task(), name="read from the bucket")

    async def _cold_task(self) -> None:
        wait_ms = HOT_WAIT_MS if self.size >= max(1, self.request.min_bytes) else COLD_WAIT_MS
        self.cold = {}
        try:
            async with asyncio.timeout(wait_ms / 1000) as self.time_limit, self.services.cold_fetches:
                await self._read_parts(list(self.unread))
        except TimeoutError:
            self.expired = True  # the rest comes with the next request: its blocks go on arriving in the cache
        except Exception:
            if not self.done:
                self.drop()
                self.connection.broken()
            return
        self.time_limit = None
        self.reading = False
        self.cold_done = True
        self.wake()

    async def _read_parts(self, unread: list[tuple[SessionPart, Log]]) -> None:
        left = min(max(self.max_bytes - self.size, 1), COLD_BYTES_MAX)
        reads = []
        for part, log in unread:
            if left <= 0:
                break
            reads.append((part, log, min(part.max_bytes, left)))
            left -= max(part.max_bytes, 1)
        async with asyncio.TaskGroup() as group:
            for part, log, max_bytes in reads:
                group.create_task(self._read_part(part, log, max_bytes))

    async def _read_part(self, part: SessionPart, log: Log, max_bytes: int) -> None:
        committed = self.request.isolation_level == READ_COMMITTED
        cold = Cold(part.offset)
        stable = limit_of(log, committed)
        limit = min(stable, log.committed_end)
        # What is in memory now may be in the bucket alone when the bucket has answered, in ranges it was not asked for.
        in_memory = _aborted(log, part.offset, stable) if committed else []
        try:
            read = await self.services.cold.read(
                log.log_id, part.offset, limit, max(max_bytes, 1), read_committed=committed
            )
            cold.buffers, cold.size = read.buffers, read.size
            if committed and read.buffers:
                known = {(entry.producer_id, entry.first_offset): None for entry in read.aborted}
                known.update((entry, None) for entry in in_memory if entry[1] < read.next_offset)
                cold.aborted = list(known)
            if not read.buffers:
                # Nothing is left between here and the tail, as far as was asked: offsets of a declared loss.
                cold.buffers, cold.size = _across(log, part.offset, limit, limit_of(log, committed), max(max_bytes, 1))
                if committed and cold.buffers:
                    cold.aborted = _aborted(log, log.tail.start, parse_header(cold.buffers[-1]).next_offset)
        except KafkaError as error:
            cold.error = error.code, error.message
        assert self.cold is not None
        self.cold[part] = cold

    # Answering

    def _answer(self) -> None:
        self.done = True
        self._leave()
        if self.metered is not None and self.metered.empties_fetch(self.size):
            self._answer_nothing()
            return
        services, turn = self.services, self.turn
        session = turn.session
        session_id = NO_SESSION
        results: list[FetchResult] = []
        if session is not None:
            session_id = session.id
            for part, result in self.results:
                if changed(part, result):
                    results.append(result)
                if result.size > 0:
                    served(session, part)
        else:
            results = [result for _, result in self.results]
            if turn.opens and self.version >= 7:
                for part, result in self.results:
                    note(part, result)
                session_id = services.fetch_sessions.open(
                    turn, by_id=self.version >= 13, now_ms=services.clock.boottime_ms()
                )
        leaders: list[int] = []
        if self.failed:
            for result in results:
                if result.error_code:
                    services.counters.error(result.error_code)
                if result.current_leader is not None:
                    leaders.append(result.current_leader[0])
        size, pieces = encode_fetch_response(
            self.version,
            self.correlation_id,
            results,
            session_id=session_id,
            endpoints=endpoints_of(services, self.connection.listener, leaders) if leaders else (),
        )
        services.counters.fetch_bytes += self.size
        self._send(coalesce(size, pieces))

    def _answer_nothing(self) -> None:
        """The client took more than its share: it asks again later. Nothing was told, so its session stays as it is,
        and none is opened (KIP-219).
        """
        session = self.turn.session
        session_id = NO_SESSION if session is None else session.id
        size, pieces = encode_fetch_response(self.version, self.correlation_id, (), session_id=session_id)
        self._send(coalesce(size, pieces))

    def _send(self, pieces: list[Buffer]) -> None:
        if self.reply is None:
            self.connection.answer(pieces, self.services.counters.fetch_latency)
        else:
            self.reply.fill(pieces)
        self.results = []
        self.cold = None


def limit_of(log: Log, committed: bool) -> int:
    """Where reads of this isolation level stop."""
    return log.lso if committed else log.hw


def _across(log: Log, offset: int, read_to: int, limit: int, max_bytes: int) -> tuple[list[Buffer], int]:
    """What leads a reader across offsets up to `read_to` that nothing holds: what follows them in the tail; or, as
    nothing does, batches without records. Clients go on at the end of what they got, and without anything would stay
    for ever.

    While the bucket was asked more may have been committed and have left the tail: then that is for the next fetch.
    """
    tail = log.tail
    if tail.start <= read_to and tail.start < limit:
        buffers, size = tail.read(tail.start, limit, max_bytes)
        if buffers:
            return buffers, size
    empty = build_empty_batches(offset, read_to, log.epoch_at(offset))
    return ([empty] if empty else []), len(empty)


def _out_of_range(log: Log, offset: int) -> KafkaError:
    if not log.may_answer_authoritatively():
        return not_sure(log)
    return KafkaError(
        ErrorCode.OFFSET_OUT_OF_RANGE,
        f"offset {offset} of {log.topic}-{log.partition} is outside {log.start} to {log.end}",
    )


def _diverging(log: Log, part: SessionPart) -> tuple[int, int] | None:
    """(epoch, end offset) where the reader's history leaves ours; None if it does not (KIP-595)."""
    epoch, end = log.end_of_epoch(part.last_epoch)
    if epoch < 0 or part.offset < log.start:
        raise _out_of_range(log, part.offset)
    if epoch < part.last_epoch or end < part.offset:
        return epoch, end
    return None


def _aborted(log: Log, offset: int, upper: int) -> list[tuple[int, int]]:
    """Aborted transactions with data in [offset, upper) whose marker is in memory: (producer id, first offset).

    `upper` is at most the last stable offset; a marker may lie beyond it, where a later transaction is still open.
    """
    found: list[AbortedEntry] = []
    collect_aborted(log.producers.aborted_since(max(offset, 0)), offset, upper, found)
    return [(entry.producer_id, entry.first_offset) for entry in found]
