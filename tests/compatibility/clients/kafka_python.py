"""kafka-python."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.structs import OffsetAndMetadata, TopicPartition

from tests.compatibility.clients.base import Closing, In, Out, Partition, Sent, headers_of

name = "kafka-python"
TIMEOUT_S = 30


def spelled(options: Mapping[str, object] | None) -> dict[str, Any]:
    """`auto.offset.reset` is `auto_offset_reset` here."""
    return {key.replace(".", "_"): value for key, value in (options or {}).items()}


class Producer(Closing):
    def __init__(self, bootstrap: str, options: Mapping[str, object] | None) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, **spelled(options))

    def send(self, topic: str, records: Iterable[Out]) -> list[Sent]:
        futures = [
            self._producer.send(
                topic,
                value=one.value,
                key=one.key,
                partition=one.partition,
                timestamp_ms=one.timestamp_ms,
                headers=list(one.headers),
            )
            for one in records
        ]
        self._producer.flush(TIMEOUT_S)
        told = [future.get(TIMEOUT_S) for future in futures]
        return [Sent(one.partition, one.offset) for one in told]

    def close(self) -> None:
        self._producer.close(TIMEOUT_S)


class Consumer(Closing):
    def __init__(self, bootstrap: str, options: Mapping[str, object] | None) -> None:
        self._consumer = KafkaConsumer(bootstrap_servers=bootstrap, **spelled(options))

    def subscribe(self, *topics: str) -> None:
        self._consumer.subscribe(topics)

    def subscribe_pattern(self, start: str) -> None:
        self._consumer.subscribe(pattern=f"^{re.escape(start)}.*")

    def assign(self, where: Mapping[Partition, int | str]) -> None:
        self._consumer.assign([TopicPartition(*partition) for partition in where])
        for partition, offset in where.items():
            asked = TopicPartition(*partition)
            if offset == "beginning":
                self._consumer.seek_to_beginning(asked)
            elif offset == "end":
                self._consumer.seek_to_end(asked)
            else:
                self._consumer.seek(asked, offset)

    def poll(self, seconds: float = 0.1) -> list[In]:
        found = self._consumer.poll(timeout_ms=int(seconds * 1000))
        return [
            In(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, headers_of(one.headers))
            for batch in found.values()
            for one in batch
        ]

    def assignment(self) -> set[Partition]:
        return {(one.topic, one.partition) for one in self._consumer.assignment()}

    def position(self, partition: Partition) -> int:
        position: int = self._consumer.position(TopicPartition(*partition))
        return position

    def commit(self, offsets: Mapping[Partition, int] | None = None) -> None:
        if offsets is None:
            self._consumer.commit()
            return
        self._consumer.commit(
            {TopicPartition(*where): OffsetAndMetadata(offset, "", -1) for where, offset in offsets.items()}
        )

    def commit_async(self, done: Callable[[BaseException | None], None]) -> None:
        self._consumer.commit_async(
            callback=lambda _, answer: done(answer if isinstance(answer, BaseException) else None)
        )

    def committed(self, partition: Partition) -> int | None:
        offset: int | None = self._consumer.committed(TopicPartition(*partition))
        return offset

    def bounds(self, partition: Partition) -> tuple[int, int]:
        asked = TopicPartition(*partition)
        return self._consumer.beginning_offsets([asked])[asked], self._consumer.end_offsets([asked])[asked]

    def offset_for_time(self, partition: Partition, timestamp_ms: int) -> int | None:
        asked = TopicPartition(*partition)
        found = self._consumer.offsets_for_times({asked: timestamp_ms})[asked]
        return None if found is None else found.offset

    def close(self) -> None:
        self._consumer.close()


def producer(bootstrap: str, options: Mapping[str, object] | None = None) -> Producer:
    return Producer(bootstrap, options)


def consumer(bootstrap: str, options: Mapping[str, object] | None = None) -> Consumer:
    return Consumer(bootstrap, options)
