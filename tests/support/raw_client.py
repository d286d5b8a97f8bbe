"""A Kafka client of a few lines: our codecs on a socket, one connection, requests as the test says."""

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from protocol import Buffer
from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.framing import parse_response_header, request_frame
from protocol.records import NewRecord, build_batch


class RawClient:
    """`async with RawClient(port) as client`. Answers come in order; `send` and `receive` may be used apart."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def frame(self, api: ApiKey, version: int, message: Any, client_id: str | None = "raw") -> tuple[int, bytes]:
        """(correlation id, the request with length and header)."""
        number = next(self._ids)
        return number, request_frame(api, version, number, client_id, message.encode(version))

    def send(self, api: ApiKey, version: int, message: Any) -> int:
        """Send without waiting; the correlation id."""
        number, frame = self.frame(api, version, message)
        self.writer.write(frame)
        return number

    async def receive_frame(self, timeout: float = 5.0) -> bytes:
        """One frame without its length prefix. IncompleteReadError when the broker closed."""
        async with asyncio.timeout(timeout):
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            return await self.reader.readexactly(size)

    async def receive(self, api: ApiKey, version: int, timeout: float = 5.0) -> tuple[int, Any]:
        """(correlation id, message) of the next answer."""
        frame = await self.receive_frame(timeout)
        number, pos = parse_response_header(frame, api, version)
        return number, getattr(m, APIS[api].name + "Response").decode(frame, version, pos)

    async def ask(self, api: ApiKey, version: int, message: Any, timeout: float = 5.0) -> Any:
        """One request, its answer."""
        sent = self.send(api, version, message)
        number, answer = await self.receive(api, version, timeout)
        assert number == sent, (number, sent)
        return answer

    async def closed(self, timeout: float = 5.0) -> bool:
        """Whether the broker closed the connection (what it sent before is thrown away)."""
        try:
            async with asyncio.timeout(timeout):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    async def produce(
        self, topic: str, *batches: Buffer, partition: int = 0, version: int = 9, acks: int = -1, timeout_ms: int = 5000
    ) -> Any:
        """One batch; the partition's answer."""
        request = produce_request([(topic, partition, batch) for batch in batches], acks=acks, timeout_ms=timeout_ms)
        answer = await self.ask(ApiKey.PRODUCE, version, request)
        return answer.responses[0].partition_responses[0]

    async def fetch(
        self, topic: str, offset: int, *, partition: int = 0, version: int = 12, max_wait_ms: int = 0, **values: int
    ) -> Any:
        """One partition; its answer."""
        request = fetch_request([(topic, partition, offset)], max_wait_ms=max_wait_ms, **values)
        answer = await self.ask(ApiKey.FETCH, version, request)
        assert answer.error_code == 0
        return answer.responses[0].partitions[0]


def batch_of(*values: bytes, timestamp: int = 1_700_000_000_000, **options: Any) -> bytearray:
    """A batch of records with these values, no keys, timestamps one ms apart."""
    records: list[NewRecord] = [(timestamp + i, None, value, ()) for i, value in enumerate(values)]
    return build_batch(records, **options)


def produce_request(
    parts: Sequence[tuple[str | bytes, int, Buffer | None]],
    *,
    acks: int = -1,
    timeout_ms: int = 5000,
    transactional_id: str | None = None,
) -> Any:
    """A Produce request of these (topic or id, partition, records)."""
    topics: list[Any] = []
    for topic, partition, records in parts:
        name, topic_id = (topic, bytes(16)) if isinstance(topic, str) else ("", topic)
        data = m.ProduceRequest.PartitionProduceData(index=partition, records=records)
        if topics and (topics[-1].name, topics[-1].topic_id) == (name, topic_id):
            topics[-1].partition_data.append(data)
        else:
            topics.append(m.ProduceRequest.TopicProduceData(name=name, topic_id=topic_id, partition_data=[data]))
    return m.ProduceRequest(transactional_id=transactional_id, acks=acks, timeout_ms=timeout_ms, topic_data=topics)


def fetch_request(
    parts: Sequence[tuple[str | bytes, int, int]],
    *,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 50 << 20,
    partition_max_bytes: int = 1 << 20,
    isolation_level: int = 0,
    session_id: int = 0,
    session_epoch: int = -1,
    current_leader_epoch: int = -1,
    last_fetched_epoch: int = -1,
    forgotten: Sequence[tuple[str, int]] = (),
) -> Any:
    """A Fetch request of these (topic or id, partition, offset)."""
    topics: list[Any] = []
    for topic, partition, offset in parts:
        name, topic_id = (topic, bytes(16)) if isinstance(topic, str) else ("", topic)
        wanted = m.FetchRequest.FetchPartition(
            partition=partition,
            fetch_offset=offset,
            partition_max_bytes=partition_max_bytes,
            current_leader_epoch=current_leader_epoch,
            last_fetched_epoch=last_fetched_epoch,
        )
        if topics and (topics[-1].topic, topics[-1].topic_id) == (name, topic_id):
            topics[-1].partitions.append(wanted)
        else:
            topics.append(m.FetchRequest.FetchTopic(topic=name, topic_id=topic_id, partitions=[wanted]))
    return m.FetchRequest(
        max_wait_ms=max_wait_ms,
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        isolation_level=isolation_level,
        session_id=session_id,
        session_epoch=session_epoch,
        topics=topics,
        forgotten_topics_data=[
            m.FetchRequest.ForgottenTopic(topic=topic, partitions=[partition]) for topic, partition in forgotten
        ],
    )
