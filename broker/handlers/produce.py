"""Produce: v3 to v13, acks 0, 1 and all.

Every partition of a request is checked before the first append; "full" is decided before an offset is given. An answer
goes out when all that it reveals is validated, so acks=1 equals acks=all and a duplicate is answered when its original
is; acks=0 gets no answer, and an error closes the connection, as in Kafka.
v7: zstd. v8: record errors. v9: flexible. v10: the new leader travels with NOT_LEADER_OR_FOLLOWER (KIP-951).
v13: topics by id. v0 to v2 are shown by ApiVersions and answer UNSUPPORTED_VERSION.
A batch that opens a transaction in its log waits until the coordinator has said that the log is part of it (KIP-890,
`broker.transactions.verification`); v11: TRANSACTION_ABORTABLE. v12: the batch itself adds its partition.
A partition that comes several times: its last batch counts, and it has one answer, as in Kafka.
Not implemented: message sets of magic 0 and 1; `compression.type` other than `producer` is stored, not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker.connection import HOLD_FULL
from broker.handlers.batch_rules import ZSTD, InvalidRecords, check_rules
from broker.handlers.common import endpoints_of
from broker.log import Log, LogStatus
from broker.log_table import LeaderHint
from broker.transactions.verification import ABORTABLE_SINCE, IMPLICIT_SINCE, Part, Verification, produce_error, verify
from protocol.errors import ErrorCode, KafkaError
from protocol.fast import (
    OnePart,
    ProducePart,
    ProduceRequest,
    ProduceResult,
    encode_produce_response,
    parse_produce,
    parse_usual_produce,
    success_encoder,
)
from protocol.records import (
    SMALL_BYTES,
    BatchError,
    BatchHeader,
    NotOneBatch,
    check_batch,
    copy_with_offset_and_epoch,
    patch_offset_and_epoch,
    stamp_log_append_time,
)
from storage.tail import BATCH_OVERHEAD_BYTES

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.services import Services
    from broker.validation import Validation
    from protocol import Buffer
    from storage.producers import Duplicate
    from storage.wal.port import Wal

NO_RIGHT = ErrorCode.NOT_LEADER_OR_FOLLOWER, "this broker may have been replaced as leader"
SETTLE_MS = 1000
"""How long a request waits for a log that is about to move, or to open: then its client looks for the leader again."""

_BEFORE_THE_LOG = frozenset(
    (
        ErrorCode.CORRUPT_MESSAGE,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.MESSAGE_TOO_LARGE,
        ErrorCode.INVALID_TOPIC_EXCEPTION,
        ErrorCode.KAFKA_STORAGE_ERROR,
        ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
    )
)
_SENT_AGAIN = frozenset(
    (
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.NOT_ENOUGH_REPLICAS,
        ErrorCode.KAFKA_STORAGE_ERROR,
    )
)
_ACKS = (-1, 1)
_TRANSACTIONAL = 0x10
_SPECIAL = 0x30  # transactional or control
_ATTRIBUTES = 21  # where a batch has them, two bytes
_CODEC = 0x07
_ADMIN_CLIENT = "__admin_client"


class Checked(NamedTuple):
    """A partition of a request whose batch may be appended; `place` is its index in the request."""

    place: int
    log: Log
    header: BatchHeader
    start: int
    stop: int


def produce(
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
    usual = parse_usual_produce(buf, pos, end, version)
    if usual is not None and _append_usual(services, connection, buf, usual, version, correlation_id, owned):
        return
    request = parse_produce(buf, pos, end, version)
    Attempt(services, connection, buf, pos, end, version, correlation_id, owned).run(request, first=True)


def _append_usual(
    services: Services,
    connection: Connection,
    buf: bytearray,
    usual: OnePart,
    version: int,
    correlation_id: int,
    owned: bool,
) -> bool:
    """The usual request in one go: one partition, nothing special. False: nothing happened, take the long way."""
    acks, topic, partition, start, stop = usual
    logs = services.logs
    log = logs.find.get((topic, partition))
    if log is None or log.status is not LogStatus.OPEN or acks not in _ACKS:
        return False
    try:
        header = check_batch(buf, start, stop)
    except BatchError:
        return False
    now_ms = services.clock.now_ms()
    size = stop - start
    config = log.config
    attributes = header[5]
    if (
        header[0] != 0  # the base offset
        or attributes & _SPECIAL
        or attributes & _CODEC == ZSTD
        or log.internal
        or config.compacted
        or config.log_append_time
        or size > config.max_message_bytes
        or header[7] < now_ms - config.timestamp_before_max_ms
        or header[8] > now_ms + config.timestamp_after_max_ms
        or logs.space.waiting
        or connection.refused_batches
        or logs.memory.bytes + size + BATCH_OVERHEAD_BYTES > logs.client_bytes_max
        or not log.wal.has_room(size, internal=False)
    ):
        return False
    if header[9] >= 0:  # producer id
        try:
            if log.producers.check(header, now_ms) is not None:
                return False
        except KafkaError:
            return False
    base = log.end
    batch: Buffer
    if size <= SMALL_BYTES:
        batch = copy_with_offset_and_epoch(header, buf, start, stop, base, log.epoch)
    else:
        patch_offset_and_epoch(buf, start, base, log.epoch)
        batch = memoryview(buf)[start:stop] if owned else bytes(memoryview(buf)[start:stop])
    counters = services.counters
    counters.batches_in += 1
    counters.produce_bytes += size
    encode = log.answers.get(version)
    if encode is None:
        encode = log.answers[version] = success_encoder(version, topic, partition)
    payload = encode(correlation_id, base, -1, log.start, 0)
    log.append(header, batch, header[8], now_ms, connection.owe(1, counters.produce_latency, payload))
    return True


class Attempt:
    """One request until it is appended or refused. Short-lived, but for a request that waits for space or for a log
    that moves."""

    __slots__ = (
        "acks",
        "buf",
        "connection",
        "correlation_id",
        "end",
        "metered",
        "owned",
        "pos",
        "results",
        "services",
        "settling",
        "slot",
        "started_us",
        "until_ms",
        "verified",
        "version",
        "waits",
    )

    def __init__(
        self,
        services: Services,
        connection: Connection,
        buf: bytearray,
        pos: int,
        end: int,
        version: int,
        correlation_id: int,
        owned: bool,
    ) -> None:
        self.services = services
        self.connection = connection
        self.buf = buf
        self.pos = pos
        self.end = end
        self.version = version
        self.correlation_id = correlation_id
        self.owned = owned
        self.acks = -1
        self.results: list[ProduceResult | None] = []
        self.started_us = connection.started_us
        self.metered = connection.metered
        self.waits = False
        self.settling: Log | None = None
        self.slot = -1
        self.until_ms = -1
        """Boottime from when on logs that move are not waited for; -1 before the first one."""
        self.verified: dict[Log, Verification | KafkaError] = {}
        """What the coordinator was asked about, and what it refused."""

    def run(self, request: ProduceRequest, *, first: bool) -> None:
        """Check all, then append all, then answer or owe the answer."""
        acks, timeout_ms = request.acks, request.timeout_ms
        parts = _last_of_each(request.parts)
        self.acks = acks
        services = self.services
        now_ms = services.clock.now_ms()
        results: list[ProduceResult | None] = [None] * len(parts)
        self.results = results
        checked: list[Checked] = []
        size = 0
        transactional = False
        refused: tuple[ErrorCode, str] | None = None
        if not -1 <= acks <= 1:
            refused = ErrorCode.INVALID_REQUIRED_ACKS, f"acks {acks} is none of -1, 0 and 1"
        find = services.logs.find
        for index, part in enumerate(parts):
            topic, partition, start, stop = part
            log = find.get((topic, partition))
            try:
                if log is None or log.status is not LogStatus.OPEN:
                    if log is not None and log.settling and self._may_settle():
                        self._settle(log)
                        return
                    raise services.logs.refusal(topic, partition)
                header = check_batch(self.buf, start, stop)
                check_rules(log, header, self.buf, start, stop, now_ms, self.version)
                self._check_order(part, log, header, now_ms)
                if refused is not None:
                    raise KafkaError(*refused)
            except (KafkaError, BatchError) as error:
                if refused is not None and log is not None and not isinstance(error, NotOneBatch):
                    error, log = KafkaError(*refused), None
                results[index] = self._refusal(part, error, log)
                transactional = transactional or _looks_transactional(self.buf, start, stop)
            else:
                size += stop - start
                checked.append(Checked(index, log, header, start, stop))
                if header.attributes & _TRANSACTIONAL:
                    transactional = True
        if transactional and not self._may_be_transactional(request.transactional_id, parts, checked):
            return
        if checked:
            logs = services.logs
            wals = tuple(dict.fromkeys([item.log.wal for item in checked]))
            if (first and logs.space.waiting and logs.space.blocks(wals)) or not logs.has_room(
                size, len(checked), internal=False, wals=wals
            ):
                self._wait(size, checked, timeout_ms, wals)
                return
        self._append(parts, checked, now_ms)

    def _check_order(self, part: ProducePart, log: Log, header: BatchHeader, now_ms: int) -> None:
        """KafkaError: the log would take this for the first batch of a producer whose first one was refused."""
        refused = self.connection.refused_batches
        if (
            header.producer_id >= 0
            and refused
            and refused.precede(part, header)
            and not log.producers.knows(header.producer_id, now_ms)
        ):
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "a batch before this one was refused: send it first")

    def _append(self, parts: list[ProducePart], checked: list[Checked], now_ms: int) -> None:
        """Append what was checked; there is room. Nothing in here may fail but the producer's sequence."""
        needed: dict[Validation, int] = {}
        results = self.results
        counters = self.services.counters
        for item in checked:
            index, log, header, start, stop = item
            append_time = -1
            if header.producer_id >= 0:
                try:
                    if header.attributes & _TRANSACTIONAL:
                        duplicate = self._check_transactional(log, header, now_ms)
                    else:
                        duplicate = log.producers.check(header, now_ms)
                except KafkaError as error:
                    # A producer takes this refusal for final, and there may be a leader by now who knows better.
                    right = log.may_answer_authoritatively()
                    results[index] = self._refusal(parts[index], error if right else KafkaError(*NO_RIGHT), log)
                    continue
                self.connection.refused_batches.came(parts[index], header)
                if duplicate is not None:
                    counters.duplicates += 1
                    if duplicate.sequence > log.validation.validated:
                        needed[log.validation] = max(needed.get(log.validation, 0), duplicate.sequence)
                    topic, partition, _, _ = parts[index]
                    results[index] = ProduceResult(
                        topic, partition, 0, duplicate.base_offset, duplicate.timestamp, log.start
                    )
                    continue
            base = log.end
            max_timestamp = header.max_timestamp
            if log.config.log_append_time:
                append_time = max_timestamp = now_ms
                stamp_log_append_time(self.buf, start, stop - start, now_ms)
            patch_offset_and_epoch(self.buf, start, base, log.epoch)
            batch: Buffer
            if self.owned and stop - start > SMALL_BYTES:
                batch = memoryview(self.buf)[start:stop]
            else:
                batch = bytes(memoryview(self.buf)[start:stop])
            needed[log.validation] = log.append(header, batch, max_timestamp, now_ms)
            if header.attributes & _TRANSACTIONAL:
                log.verifications.end(header.producer_id)
            counters.batches_in += 1
            counters.produce_bytes += stop - start
            topic, partition, _, _ = parts[index]
            results[index] = ProduceResult(topic, partition, 0, base, append_time, log.start)
        self._answer(needed)

    def _answer(self, needed: dict[Validation, int]) -> None:
        results = [result for result in self.results if result is not None]
        assert len(results) == len(self.results)
        if not self.acks:
            if any(result.error_code for result in results):
                # The only way to tell a producer that expects no answer: it looks for the leader again.
                self.connection.close()
            return
        leaders = [result.current_leader[0] for result in results if result.current_leader is not None]
        endpoints = endpoints_of(self.services, self.connection.listener, leaders) if leaders else ()
        self._owe(encode_produce_response(self.version, self.correlation_id, results, endpoints=endpoints), needed)

    def _owe(self, payload: bytes, needed: dict[Validation, int]) -> None:
        latency = self.services.counters.produce_latency
        connection = self.connection
        if not needed:
            connection.answer(payload, latency)
            return
        reply = connection.owe(len(needed), latency, payload)
        for validation, sequence in needed.items():
            validation.when_reply(sequence, reply)

    def _refusal(self, part: ProducePart, error: KafkaError | BatchError, log: Log | None = None) -> ProduceResult:
        """`log`: where the batch would have gone. As in Kafka its start is told, unless the error comes before it."""
        self.services.counters.error(error.code)
        if error.code in _SENT_AGAIN:
            self.connection.refused_batches.note(part, self.buf)
        if error.code in _BEFORE_THE_LOG or isinstance(error, NotOneBatch):
            log = None
        leader = None
        if isinstance(error, LeaderHint) and error.leader_id >= 0:
            leader = (error.leader_id, error.leader_epoch)
        errors = error.errors if isinstance(error, InvalidRecords) else ()
        message = error.message if isinstance(error, KafkaError) else str(error)
        return ProduceResult(
            part[0],
            part[1],
            error.code,
            log_start_offset=-1 if log is None else log.start,
            record_errors=errors,
            error_message=message or None,
            current_leader=leader,
        )

    # Transactions

    def _may_be_transactional(
        self, transactional_id: str | None, parts: list[ProducePart], checked: list[Checked]
    ) -> bool:
        """Whether the request may go on now, with what is left in `checked`; it is answered or waits otherwise."""
        producers = {item.header[9:11] for item in checked if item.header.is_transactional}
        refused: tuple[ErrorCode, str] | None = None
        if transactional_id is None:
            refused = ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "transactional batches need a transactional id"
        elif len(producers) > 1 or any(producer_id < 0 for producer_id, _ in producers):
            refused = ErrorCode.INVALID_PRODUCER_ID_MAPPING, "Transactional records contained more than one producer ID"
        if refused is not None:
            self.results = [self._refusal(part, KafkaError(*refused)) for part in parts]
            self._answer({})
            return False
        asked: dict[Part, Log] = {}
        implicit = self.version >= IMPLICIT_SINCE
        now_ms = self.services.clock.now_ms()
        kept: list[Checked] = []
        for item in checked:
            index, log, header, _, _ = item
            known = self.verified.get(log)
            if header.is_transactional and not log.producers.in_transaction(header.producer_id, header.producer_epoch):
                if isinstance(known, KafkaError):
                    self.results[index] = self._refusal(parts[index], known)
                    continue
                if known is None:
                    self.verified[log] = log.verifications.begin(header, implicit, now_ms)
                    asked[log.topic, log.partition] = log
            kept.append(item)
        if not asked:
            checked[:] = kept
            return True
        assert transactional_id is not None
        self._park()
        self.services.tasks.spawn(self._verify(transactional_id, producers.pop(), asked), name="verify a transaction")
        return False

    async def _verify(self, transactional_id: str, producer: tuple[int, int], asked: dict[Part, Log]) -> None:
        services = self.services
        started_us = services.ticks_us()
        refused = await verify(
            services.transactions,
            transactional_id,
            producer,
            list(asked),
            implicit=self.version >= IMPLICIT_SINCE,
            boottime_ms=services.clock.boottime_ms,
            backoff_ms=services.settings.add_partitions_to_txn_retry_backoff_ms,
            backoff_ms_max=services.settings.add_partitions_to_txn_retry_backoff_max_ms,
        )
        services.counters.verified(services.ticks_us() - started_us, len(refused))
        for part, error in refused.items():
            self.verified[asked[part]] = produce_error(error, self.version)
        self._resume(expired=False, first=True)

    def _check_transactional(self, log: Log, header: BatchHeader, now_ms: int) -> Duplicate | None:
        """As `ProducerStates.check`; the first batch of a transaction in its log also needs to be verified still."""
        if log.producers.in_transaction(header.producer_id, header.producer_epoch):
            return self._check_producer(log, header, now_ms)
        verification = self.verified.get(log)
        assert not isinstance(verification, KafkaError)
        try:
            duplicate = self._check_producer(log, header, now_ms)
        except KafkaError as error:
            if error.code is not ErrorCode.INVALID_PRODUCER_EPOCH:
                log.verifications.check_held(header.producer_id, verification)
            raise
        if duplicate is None:
            log.verifications.check(header, verification, known=log.producers.knows(header.producer_id, now_ms))
        return duplicate

    def _check_producer(self, log: Log, header: BatchHeader, now_ms: int) -> Duplicate | None:
        """As `ProducerStates.check`, in words that the client knows."""
        try:
            return log.producers.check(header, now_ms)
        except KafkaError as error:
            if error.code is ErrorCode.TRANSACTION_ABORTABLE and self.version < ABORTABLE_SINCE:
                raise KafkaError(ErrorCode.INVALID_TXN_STATE, error.message) from None
            raise

    # Waiting for space

    def _wait(self, size: int, checked: list[Checked], timeout_ms: int, wals: tuple[Wal, ...]) -> None:
        """The WAL or the memory for tails is full."""
        self._park()
        self.services.logs.space.wait(size, len(checked), timeout_ms / 1000, self._retry, self._expire, wals)

    def _park(self) -> None:
        """The request waits and its connection takes no further ones."""
        self.waits = True
        if not self.owned:
            self.buf = bytearray(memoryview(self.buf)[self.pos : self.end])
            self.end -= self.pos
            self.pos = 0
            self.owned = True
        connection = self.connection
        connection.hold(HOLD_FULL)
        connection.hub.budget.take(len(self.buf))

    def _retry(self) -> None:
        self._resume(expired=False)

    def _expire(self) -> None:
        self._resume(expired=True)

    def _resume(self, *, expired: bool, first: bool = False) -> None:
        connection = self.connection
        self.waits = False
        connection.hub.budget.give(len(self.buf))
        if connection.closed:
            return
        request = parse_produce(self.buf, self.pos, self.end, self.version)
        connection.started_us = self.started_us
        connection.metered = self.metered
        try:
            if expired:
                full = KafkaError(ErrorCode.NOT_ENOUGH_REPLICAS, "the write-ahead log is full; try again")
                self.results = [
                    self._refusal(part, full) if result is None else result
                    for part, result in zip(_last_of_each(request.parts), self.results)
                ]
                self._answer({})
            else:
                self.run(request, first=first)
        except Exception:
            connection.broken()
            return
        finally:
            connection.metered = None
        if not self.waits:
            connection.release(HOLD_FULL)

    # Waiting for a log that is about to move, or to open

    def _may_settle(self) -> bool:
        return self.until_ms < 0 or self.services.clock.boottime_ms() < self.until_ms

    def _settle(self, log: Log) -> None:
        """Nothing of the request was appended yet: it is looked at again as a whole."""
        if self.until_ms < 0:
            self.until_ms = self.services.clock.boottime_ms() + SETTLE_MS
        self.services.counters.settle_waits += 1
        self._park()
        self.settling = log
        log.waiters[self] = None
        left_ms = self.until_ms - self.services.clock.boottime_ms()
        self.slot = self.services.wheel.add(left_ms, self._give_up)

    def wake(self) -> None:
        """The log moved, opened or closed; or only some of what was in flight is validated."""
        if self.settling is not None and not self.settling.settling:
            self._settled()

    def _give_up(self) -> None:
        self.until_ms = 0
        self._settled()

    def _settled(self) -> None:
        assert self.settling is not None
        self.settling.waiters.pop(self, None)
        self.settling = None
        self.services.wheel.remove(self.slot, self._give_up)
        self._resume(expired=False)


def _last_of_each(parts: list[ProducePart]) -> list[ProducePart]:
    """A partition that comes several times stands where it came first, with its last batch."""
    return parts if len(parts) < 2 else list({part[:2]: part for part in parts}.values())


def _looks_transactional(buf: bytearray, start: int, stop: int) -> bool:
    """Whether the first batch of a part that was refused says that it is transactional."""
    return 0 <= start <= stop - _ATTRIBUTES - 2 and bool(buf[start + _ATTRIBUTES + 1] & _TRANSACTIONAL)
