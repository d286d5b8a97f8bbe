"""Simulated producers: idempotent ones that retry until everything is acknowledged, and plain ones."""

import asyncio
import random  # noqa: TID251
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from protocol.records import NewRecord, build_batch
from tests.simulation.client import (
    NO_TOPIC_ID,
    Address,
    ClientSettings,
    Connection,
    Disconnected,
    Part,
    Recorder,
    SimulatedClient,
    encode_value,
    error_name,
    sleep_ms,
)

TIMESTAMP_MS = 1_700_000_000_000
IN_FLIGHT = 5
SEQUENCE_REFUSED = {
    ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
    ErrorCode.INVALID_PRODUCER_EPOCH,
    ErrorCode.UNKNOWN_PRODUCER_ID,
}
NOT_WRITTEN = (
    RETRIABLE
    - {ErrorCode.REQUEST_TIMED_OUT, ErrorCode.KAFKA_STORAGE_ERROR, ErrorCode.NETWORK_EXCEPTION}
    - {ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND}
)
"""Errors that say for certain that nothing was appended, and nothing will be."""


@dataclass(frozen=True)
class ProducerLoad:
    """What a producer sends: records per batch, bytes per value, ms between batches; bounds included."""

    records: tuple[int, int] = (1, 4)
    value_bytes: tuple[int, int] = (8, 200)
    pause_ms: tuple[int, int] = (50, 400)
    bursts: float = 0.0
    """How often a batch follows at once instead."""
    version: int = 9
    """Of Produce; from 13 on topics go by id."""
    acks: int = -1
    retry_unknown: float = 0.5
    """Plain producers: how often a batch of unknown outcome is sent again, as another attempt with the same values."""


@dataclass(eq=False)
class Batch:
    """Values on their way to one partition. The bytes never change between attempts."""

    part: Part
    values: tuple[int, ...]
    data: bytes
    request: int
    sequence: int = -1
    sent: bool = False
    """Whether it is in flight, or was when trouble began."""
    attempts: int = 0


class Producer(SimulatedClient):
    """What producers share: making batches and requests."""

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[Address],
        history: Recorder,
        rng: random.Random,
        numbers: Iterator[int],
        parts: Sequence[Part],
        load: ProducerLoad | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        super().__init__(name, bootstrap, history, rng, numbers, settings)
        self.parts = list(parts)
        self.load = load or ProducerLoad()

    def make_batch(self, part: Part, values: tuple[int, ...], **fields: Any) -> Batch:
        """A batch of these values; `fields` are those of an idempotent one."""
        low, high = self.load.value_bytes
        records: list[NewRecord] = [
            (TIMESTAMP_MS, None, encode_value(value, self.rng.randint(low, high)), ()) for value in values
        ]
        data = bytes(build_batch(records, **fields))
        return Batch(part, values, data, next(self.numbers), fields.get("base_sequence", -1))

    def new_values(self) -> tuple[int, ...]:
        """Values that nobody sent before."""
        return tuple(next(self.numbers) for _ in range(self.rng.randint(*self.load.records)))

    def pause_ms(self) -> int:
        """How long to wait before the next batch."""
        if self.load.bursts and self.rng.random() < self.load.bursts:
            return self.rng.randint(0, 20)
        return self.rng.randint(*self.load.pause_ms)

    def request_of(self, batches: Sequence[Batch]) -> Any:
        """A Produce request of batches for different partitions."""
        by_topic: dict[str, list[Any]] = defaultdict(list)
        for batch in batches:
            data = m.ProduceRequest.PartitionProduceData(index=batch.part[1], records=batch.data)
            by_topic[batch.part[0]].append(data)
        by_id = self.load.version >= 13
        topics = [
            m.ProduceRequest.TopicProduceData(
                name="" if by_id else name,
                topic_id=self.topic_ids.get(name, NO_TOPIC_ID) if by_id else NO_TOPIC_ID,
                partition_data=data,
            )
            for name, data in by_topic.items()
        ]
        timeout_ms = self.settings.request_timeout_ms
        return m.ProduceRequest(acks=self.load.acks, timeout_ms=timeout_ms, topic_data=topics)

    def answers_by_part(self, answer: Any) -> dict[Part, Any]:
        """The partitions of a Produce answer, whether it names topics or ids."""
        names = {topic_id: name for name, topic_id in self.topic_ids.items()}
        return {
            (topic.name or names[topic.topic_id], one.index): one
            for topic in answer.responses
            for one in topic.partition_responses
        }

    def told(self, kind: str, batch: Batch, **fields: Any) -> None:
        """Record what became of a batch."""
        topic, partition = batch.part
        self.history.record(kind, client=self.name, request=batch.request, topic=topic, partition=partition, **fields)


@dataclass
class Session:
    """A producer id, and the next sequence of each partition."""

    producer_id: int = -1
    epoch: int = -1
    sequences: dict[Part, int] = field(default_factory=lambda: defaultdict(int))


class IdempotentProducer(Producer):
    """acks=all, sequences, up to five requests in flight, one batch per partition in each.

    After a disconnect or a retriable error nothing new is sent until everything in flight is decided; then what has no
    outcome goes again, the identical bytes, in order. It goes on until everything is acknowledged. A sequence that is
    refused although everything before it was acknowledged is recorded as `produce.refused`; then a new session begins
    and what was in flight stays unknown.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.session = Session()
        self.pending: dict[Part, deque[Batch]] = {part: deque() for part in self.parts}
        """What has no outcome yet, by sequence."""
        self._in_flight = 0
        self._trouble = False
        self._refused = False
        self._changed = asyncio.Event()

    async def main(self) -> None:
        await self._open_session()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._make())
            await self._send(tasks)

    async def _open_session(self) -> None:
        while True:
            answer = await self.ask_any(
                ApiKey.INIT_PRODUCER_ID,
                4,
                m.InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000),
            )
            if not answer.error_code:
                self.session = Session(answer.producer_id, answer.producer_epoch)
                return
            await self.back_off()

    async def _make(self) -> None:
        """New batches at the load's pace, while not too many wait."""
        while not self.stopping:
            part = self.parts[self.rng.randrange(len(self.parts))]
            if len(self.pending[part]) < 2 * IN_FLIGHT and self.session.producer_id >= 0:
                values = self.new_values()
                sequence = self.session.sequences[part]
                self.session.sequences[part] = sequence + len(values)
                batch = self.make_batch(
                    part,
                    values,
                    producer_id=self.session.producer_id,
                    producer_epoch=self.session.epoch,
                    base_sequence=sequence,
                )
                self.pending[part].append(batch)
                self._changed.set()
            await sleep_ms(self.pause_ms())
        self._changed.set()

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        while not self.stopping or any(self.pending.values()):
            self._changed.clear()
            if self._trouble:
                if not self._in_flight:
                    await self._begin_again()
                    continue
            elif self._in_flight < IN_FLIGHT:
                await self._send_one(tasks)
                if not self._changed.is_set() and self._in_flight < IN_FLIGHT and self._unsent():
                    continue
            if not self.stopping or self._in_flight:
                await self._changed.wait()

    def _unsent(self) -> list[Batch]:
        """The first batch of every partition that is not in flight."""
        found = (next((batch for batch in queue if not batch.sent), None) for queue in self.pending.values())
        return [batch for batch in found if batch is not None]

    async def _begin_again(self) -> None:
        """Everything that was in flight is decided: what is left goes again, in order."""
        if self._refused:
            for queue in self.pending.values():
                for batch in queue:
                    if batch.attempts:
                        self.told("produce.unknown", batch, error="the session was given up")
                queue.clear()
            self.session = Session()
            await self._open_session()
            self._refused = False
        for queue in self.pending.values():
            for batch in queue:
                batch.sent = False
        await self.back_off()
        await self.refresh(topic for topic, _ in self.parts)
        self._trouble = False

    async def _send_one(self, tasks: asyncio.TaskGroup) -> None:
        """One request with the next batches of the partitions of one leader."""
        unsent = self._unsent()
        if not unsent:
            return
        address = self.address_of(unsent[0].part)
        if address is None:
            await self.refresh([unsent[0].part[0]])
            if self.address_of(unsent[0].part) is None:
                await self.back_off()
            self._changed.set()
            return
        try:
            connection = await self.connection(address)
        except Disconnected:
            await self.back_off(address)
            await self.refresh(topic for topic, _ in self.parts)
            self._changed.set()
            return
        if self._trouble:
            return
        batches = [batch for batch in self._unsent() if self.address_of(batch.part) == address]
        if len(batches) > 1 and self.rng.random() < 0.5:
            batches = batches[:1]
        for batch in batches:
            if not batch.attempts:
                self.told(
                    "produce.invoke",
                    batch,
                    values=batch.values,
                    acks=-1,
                    producer=(self.session.producer_id, self.session.epoch),
                    sequence=batch.sequence,
                )
            batch.sent = True
            batch.attempts += 1
        future = connection.ask(ApiKey.PRODUCE, self.load.version, self.request_of(batches), self.name)
        self._in_flight += 1
        node = self.leaders[batches[0].part].node_id
        tasks.create_task(self._wait(connection, future, batches, node))

    async def _wait(self, connection: Connection, future: asyncio.Future[Any], batches: list[Batch], node: int) -> None:
        try:
            answers = self.answers_by_part(await self.answer(connection, future))
        except Disconnected:
            self._trouble = True
        else:
            for batch in batches:
                self._decided(batch, answers[batch.part], node)
        self._in_flight -= 1
        self._changed.set()

    def _decided(self, batch: Batch, answer: Any, node: int) -> None:
        queue = self.pending[batch.part]
        code = answer.error_code
        if not code:
            self.told("produce.ok", batch, offset=answer.base_offset, node=node)
            queue.remove(batch)
            return
        self._trouble = True
        if code in RETRIABLE:
            if code in (ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION):
                self.leaders.pop(batch.part, None)
            return
        if code in SEQUENCE_REFUSED and queue[0] is not batch:
            return  # an earlier one did not get through: this one only came too early
        self.told("produce.refused", batch, error=error_name(code), sequence=batch.sequence, attempts=batch.attempts)
        if batch.attempts == 1:
            self.told("produce.fail", batch, error=error_name(code))
            queue.remove(batch)
        self._refused = True


class PlainProducer(Producer):
    """No sequences, one request at a time. What may have been written is not sent again, or as another attempt with
    the same values: then there may be as many copies as attempts."""

    async def main(self) -> None:
        while not self.stopping:
            part = self.parts[self.rng.randrange(len(self.parts))]
            batch = self.make_batch(part, self.new_values())
            while not await self._attempt(batch) and not self.stopping:
                batch = Batch(batch.part, batch.values, batch.data, next(self.numbers))
            await sleep_ms(self.pause_ms())

    async def _attempt(self, batch: Batch) -> bool:
        """Send once and record the outcome; whether that is the end of it."""
        address = await self.leader_address(batch.part)
        try:
            connection = await self.connection(address)
        except Disconnected:
            self.leaders.pop(batch.part, None)
            await self.back_off(address)
            return False
        node = self.leaders[batch.part].node_id
        acks = self.load.acks
        self.told("produce.invoke", batch, values=batch.values, acks=acks, producer=None, sequence=-1)
        request = self.request_of([batch])
        if not acks:
            connection.tell(ApiKey.PRODUCE, self.load.version, request, self.name)
            self.told("produce.unknown", batch, error="acks=0")
            return True
        try:
            future = connection.ask(ApiKey.PRODUCE, self.load.version, request, self.name)
            answer = self.answers_by_part(await self.answer(connection, future))[batch.part]
        except Disconnected as error:
            self.told("produce.unknown", batch, error=str(error))
            await self.back_off(address)
            return self.rng.random() >= self.load.retry_unknown
        if not answer.error_code:
            self.told("produce.ok", batch, offset=answer.base_offset, node=node)
            return True
        certain = answer.error_code in NOT_WRITTEN
        self.told("produce.fail" if certain else "produce.unknown", batch, error=error_name(answer.error_code))
        if answer.error_code not in RETRIABLE:
            self.told("produce.refused", batch, error=error_name(answer.error_code), sequence=-1, attempts=1)
            return True
        self.leaders.pop(batch.part, None)
        await self.back_off()
        return not certain and self.rng.random() >= self.load.retry_unknown
