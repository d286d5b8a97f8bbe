"""confluent-kafka, which is librdkafka."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka import Consumer as LibraryConsumer
from confluent_kafka import Producer as LibraryProducer

from tests.compatibility.clients.base import Closing, In, Out, Partition, Sent, headers_of

name = "confluent-kafka"
TIMEOUT_S = 30
_OFFSETS = {"beginning": OFFSET_BEGINNING, "end": OFFSET_END}


class Producer(Closing):
    def __init__(self, bootstrap: str, options: Mapping[str, object] | None) -> None:
        self._producer = LibraryProducer({"bootstrap.servers": bootstrap, **(options or {})})

    def send(self, topic: str, records: Iterable[Out]) -> list[Sent]:
        sent: dict[int, Sent] = {}
        errors: list[KafkaError] = []

        def told(index: int) -> Callable[[KafkaError | None, Message], None]:
            def done(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    errors.append(error)
                else:
                    offset = message.offset()
                    sent[index] = Sent(message.partition(), -1 if offset is None or offset < 0 else offset)

            return done

        count = 0
        for count, one in enumerate(records, 1):
            more: dict[str, Any] = {}
            if one.partition is not None:
                more["partition"] = one.partition
            if one.timestamp_ms is not None:
                more["timestamp"] = one.timestamp_ms
            if one.headers:
                more["headers"] = list(one.headers)
            self._producer.produce(topic, value=one.value, key=one.key, on_delivery=told(count - 1), **more)
            self._producer.poll(0)
        left = self._producer.flush(TIMEOUT_S)
        if errors:
            raise KafkaException(errors[0])
        assert left == 0, f"{left} records were not delivered in {TIMEOUT_S} s"
        return [sent[index] for index in range(count)]

    def close(self) -> None:
        self._producer.flush(TIMEOUT_S)


class Consumer(Closing):
    def __init__(self, bootstrap: str, options: Mapping[str, object] | None) -> None:
        # librdkafka wants a group id even where no group is used.
        self._async: list[Callable[[BaseException | None], None]] = []
        config = {"group.id": "none", "on_commit": self._committed, **(options or {})}
        self._consumer = LibraryConsumer({"bootstrap.servers": bootstrap, **config})

    def _committed(self, error: KafkaError | None, _: object) -> None:
        if self._async:
            self._async.pop(0)(None if error is None else KafkaException(error))

    def subscribe(self, *topics: str) -> None:
        self._consumer.subscribe(list(topics))

    def subscribe_pattern(self, start: str) -> None:
        self._consumer.subscribe([f"^{re.escape(start)}.*"])

    def assign(self, where: Mapping[Partition, int | str]) -> None:
        self._consumer.assign(
            [
                TopicPartition(*partition, _OFFSETS[offset] if isinstance(offset, str) else offset)
                for partition, offset in where.items()
            ]
        )

    def poll(self, seconds: float = 0.1) -> list[In]:
        # Waits for the first record only: `consume` would wait until it has as many as asked for.
        first = self._consumer.poll(seconds)
        if first is None:
            return []
        found = []
        for one in [first, *self._consumer.consume(500, 0)]:
            error = one.error()
            if error is not None:
                raise KafkaException(error)
            found.append(
                In(
                    one.topic(),
                    one.partition(),
                    one.offset(),
                    one.timestamp()[1],
                    one.key(),
                    one.value(),
                    headers_of(one.headers()),
                )
            )
        return found

    def assignment(self) -> set[Partition]:
        return {(one.topic, one.partition) for one in self._consumer.assignment()}

    def position(self, partition: Partition) -> int:
        offset: int = self._consumer.position([TopicPartition(*partition)])[0].offset
        return offset

    def commit(self, offsets: Mapping[Partition, int] | None = None) -> None:
        if offsets is None:
            self._consumer.commit(asynchronous=False)
            return
        told = self._consumer.commit(
            offsets=[TopicPartition(*where, offset) for where, offset in offsets.items()], asynchronous=False
        )
        for one in told:
            if one.error is not None:
                raise KafkaException(one.error)

    def commit_async(self, done: Callable[[BaseException | None], None]) -> None:
        self._async.append(done)
        self._consumer.commit(asynchronous=True)

    def committed(self, partition: Partition) -> int | None:
        (found,) = self._consumer.committed([TopicPartition(*partition)], TIMEOUT_S)
        if found.error is not None:
            raise KafkaException(found.error)
        return None if found.offset < 0 else found.offset

    def bounds(self, partition: Partition) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), TIMEOUT_S)
        return low, high

    def offset_for_time(self, partition: Partition, timestamp_ms: int) -> int | None:
        (found,) = self._consumer.offsets_for_times([TopicPartition(*partition, timestamp_ms)], TIMEOUT_S)
        return None if found.offset < 0 else found.offset

    def close(self) -> None:
        self._consumer.close()


def producer(bootstrap: str, options: Mapping[str, object] | None = None) -> Producer:
    return Producer(bootstrap, options)


def consumer(bootstrap: str, options: Mapping[str, object] | None = None) -> Consumer:
    return Consumer(bootstrap, options)
