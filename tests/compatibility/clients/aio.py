"""aiokafka, on an event loop in a thread of its own, so that its background work goes on between calls."""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.compatibility.clients.base import Closing, In, Out, Partition, Sent, headers_of

name = "aiokafka"
TIMEOUT_S = 30
T = TypeVar("T")
_SPELLED = {"batch.size": "max_batch_size"}


class Loop:
    """One loop in a thread; ends with the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run over there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT_S)


_loops: list[Loop] = []


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run on the library's loop, which is started when first needed."""
    if not _loops:
        _loops.append(Loop())
    return _loops[0].run(work)


def spelled(options: Mapping[str, object] | None) -> dict[str, Any]:
    """`auto.offset.reset` is `auto_offset_reset` here."""
    return {_SPELLED.get(key, key.replace(".", "_")): value for key, value in (options or {}).items()}


class Producer(Closing):
    def __init__(self, bootstrap: str, options: Mapping[str, object] | None) -> None:
        async def start() -> AIOKafkaProducer:
            made = AIOKafkaProducer(bootstrap_servers=bootstrap, **spelled(options))
            await made.start()
            return made

        self._producer = run(start())

    def send(self, topic: str, records: Iterable[Out]) -> list[Sent]:
        async def work() -> list[Sent]:
            futures = [
                await self._producer.send(
                    topic,
                    value=one.value,
                    key=one.key,
                    partition=one.partition,
                    timestamp_ms=one.timestamp_ms,
                    headers=list(one.headers),
                )
                for one in records
            ]
            await self._producer.flush()
            told = [await future for future in futures]
            # With acks=0 there is no answer and nothing to tell.
            return [Sent(-1, -1) if one is None else Sent(one.partition, one.offset) for one in told]

        return run(work())

    def close(self) -> None:
        run(self._producer.stop())


class Consumer(Closing):
    def __init__(self, bootstrap: str, options: Mapping[str, object] | None) -> None:
        async def start() -> AIOKafkaConsumer:
            made = AIOKafkaConsumer(bootstrap_servers=bootstrap, **spelled(options))
            await made.start()
            return made

        self._consumer = run(start())

    def subscribe(self, *topics: str) -> None:
        async def work() -> None:
            self._consumer.subscribe(topics)

        run(work())

    def subscribe_pattern(self, start: str) -> None:
        async def work() -> None:
            self._consumer.subscribe(pattern=f"^{re.escape(start)}.*")

        run(work())

    def assign(self, where: Mapping[Partition, int | str]) -> None:
        async def work() -> None:
            self._consumer.assign([TopicPartition(*partition) for partition in where])
            for partition, offset in where.items():
                if isinstance(offset, int):
                    self._consumer.seek(TopicPartition(*partition), offset)
            # All at once: each call waits for the fetch that is under way on the same connection.
            for name, seek in (
                ("beginning", self._consumer.seek_to_beginning),
                ("end", self._consumer.seek_to_end),
            ):
                if asked := [TopicPartition(*partition) for partition, offset in where.items() if offset == name]:
                    await seek(*asked)

        run(work())

    def poll(self, seconds: float = 0.1) -> list[In]:
        found = run(self._consumer.getmany(timeout_ms=int(seconds * 1000)))
        return [
            In(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, headers_of(one.headers))
            for batch in found.values()
            for one in batch
        ]

    def assignment(self) -> set[Partition]:
        return {(one.topic, one.partition) for one in self._consumer.assignment()}

    def position(self, partition: Partition) -> int:
        return run(self._consumer.position(TopicPartition(*partition)))

    def commit(self, offsets: Mapping[Partition, int] | None = None) -> None:
        if offsets is None:
            run(self._consumer.commit())
        else:
            run(self._consumer.commit({TopicPartition(*where): offset for where, offset in offsets.items()}))

    def commit_async(self, done: Callable[[BaseException | None], None]) -> None:
        async def work() -> None:
            try:
                await self._consumer.commit()
            except Exception as error:
                done(error)
            else:
                done(None)

        assert _loops
        asyncio.run_coroutine_threadsafe(work(), _loops[0].loop)

    def committed(self, partition: Partition) -> int | None:
        return run(self._consumer.committed(TopicPartition(*partition)))

    def bounds(self, partition: Partition) -> tuple[int, int]:
        asked = TopicPartition(*partition)
        return run(self._consumer.beginning_offsets([asked]))[asked], run(self._consumer.end_offsets([asked]))[asked]

    def offset_for_time(self, partition: Partition, timestamp_ms: int) -> int | None:
        asked = TopicPartition(*partition)
        found = run(self._consumer.offsets_for_times({asked: timestamp_ms}))[asked]
        return None if found is None else found.offset

    def close(self) -> None:
        run(self._consumer.stop())


def producer(bootstrap: str, options: Mapping[str, object] | None = None) -> Producer:
    return Producer(bootstrap, options)


def consumer(bootstrap: str, options: Mapping[str, object] | None = None) -> Consumer:
    return Consumer(bootstrap, options)
