"""What one call of the hot protocol functions costs, in microseconds of CPU: `python benchmarks/micro_protocol.py`.

The compiled codecs do the same work beside it. Best of a few rounds; a call through a lambda costs about 0.05 of it.
"""

import time
import timeit
from collections.abc import Callable

from protocol import fast, records
from protocol import messages as m
from protocol.framing import response_frame

ROUNDS = 7
SECONDS_PER_ROUND = 0.05


def microseconds(call: Callable[[], object]) -> float:
    """The best round's CPU time per call."""
    timer = timeit.Timer(call, timer=time.process_time)
    once = timer.timeit(200) / 200
    number = max(20, int(SECONDS_PER_ROUND / once))
    return min(timer.repeat(ROUNDS, number)) / number * 1e6


def show(what: str, by_hand: Callable[[], object], compiled: Callable[[], object] | None = None) -> None:
    hand = microseconds(by_hand)
    if compiled is None:
        print(f"{what:50} {hand:8.2f}")
        return
    other = microseconds(compiled)
    print(f"{what:50} {hand:8.2f} {other:10.2f} {other / hand:6.1f}x")


def batch_of(size: int) -> bytearray:
    """A batch of records of 1,000 bytes, or of one record, about `size` bytes long."""
    value = min(size, 1000)
    return records.build_batch([(1_700_000_000_000, None, bytes(value), ())] * (size // value))


def produce_body(version: int, batch: bytearray, partitions: int = 1) -> bytes:
    parts = [m.ProduceRequest.PartitionProduceData(index=i, records=bytes(batch)) for i in range(partitions)]
    topic = m.ProduceRequest.TopicProduceData(partition_data=parts)
    if version >= 13:
        topic.topic_id = bytes(range(16))
    else:
        topic.name = "some-topic"
    encoded: bytes = m.ProduceRequest(acks=-1, timeout_ms=30_000, topic_data=[topic]).encode(version)
    return encoded


def produce() -> None:
    for version, size, partitions in ((8, 100, 1), (9, 100, 1), (13, 100, 1), (13, 16_000, 1), (13, 16_000, 10)):
        body = produce_body(version, batch_of(size), partitions)
        frame = bytearray(body)
        show(
            f"parse_produce v{version}, {partitions} x {size} B",
            lambda v=version, f=frame: fast.parse_produce(f, 0, len(f), v),
            lambda v=version, f=frame: m.ProduceRequest.decode(f, v),
        )
    for version in (9, 13):
        topic = bytes(range(16)) if version >= 13 else "some-topic"
        result = fast.ProduceResult(topic, 3, 0, 123_456, -1, 0)
        response = m.ProduceResponse
        part = response.PartitionProduceResponse(index=3, base_offset=123_456, log_start_offset=0)
        group = response.TopicProduceResponse(partition_responses=[part])
        group.topic_id, group.name = (topic, "") if isinstance(topic, bytes) else (bytes(16), topic)
        message = response(responses=[group])
        success = fast.success_encoder(version, topic, 3)
        show(
            f"encode_produce_response v{version}, 1 partition",
            lambda v=version, r=result: fast.encode_produce_response(v, 7, [r]),
            lambda v=version, x=message: response_frame(0, v, 7, x.encode(v)),
        )
        show(f"success_encoder v{version}, prepared", lambda s=success: s(7, 123_456, -1, 0, 0))


def batches() -> None:
    for size in (100, 16_000, 128_000, 1_000_000):
        frame = bytearray(64) + batch_of(size)
        end = len(frame)
        show(f"check_batch, {size} B", lambda f=frame, e=end: records.check_batch(f, 64, e))
    frame = batch_of(100)
    show("patch_offset_and_epoch", lambda: records.patch_offset_and_epoch(frame, 0, 1 << 40, 5))
    many = records.build_batch([(1_700_000_000_000 + i, b"key", bytes(100), ()) for i in range(1000)])
    show("records, 1,000 x 100 B", lambda: list(records.records(many, max_size=1 << 20)))
    show("first_since, 1,000 x 100 B", lambda: records.first_since(many, 1 << 60, max_size=1 << 20))


def fetch() -> None:
    for version, partitions in ((11, 1), (12, 1), (17, 1), (17, 100)):
        topic = m.FetchRequest.FetchTopic(
            partitions=[
                m.FetchRequest.FetchPartition(partition=i, partition_max_bytes=1 << 20) for i in range(partitions)
            ]
        )
        if version >= 13:
            topic.topic_id = bytes(range(16))
        else:
            topic.topic = "some-topic"
        frame = bytearray(m.FetchRequest(max_wait_ms=500, min_bytes=1, topics=[topic]).encode(version))
        show(
            f"parse_fetch v{version}, {partitions} partitions",
            lambda v=version, f=frame: fast.parse_fetch(f, 0, len(f), v),
            lambda v=version, f=frame: m.FetchRequest.decode(f, v),
        )
    topic_id = bytes(range(16))
    for count, size in ((0, 0), (1, 100), (64, 16_000), (6000, 170)):
        parts = [bytes(size)] * count
        result = fast.FetchResult(topic_id, 0, 0, 100, 100, 0, parts, count * size)

        def by_hand(result: fast.FetchResult = result) -> object:
            return fast.coalesce(*fast.encode_fetch_response(17, 7, [result]))

        def compiled(parts: list[bytes] = parts) -> object:
            response = m.FetchResponse
            part = response.PartitionData(
                partition_index=0,
                high_watermark=100,
                last_stable_offset=100,
                log_start_offset=0,
                records=b"".join(parts),
            )
            part.aborted_transactions = None
            group = response.FetchableTopicResponse(topic_id=topic_id, partitions=[part])
            return response_frame(1, 17, 7, response(responses=[group]).encode(17))

        show(f"encode_fetch_response v17 + coalesce, {count} x {size} B", by_hand, compiled)


def metadata() -> None:
    parts = [fast.MetadataPartition(0, i, 1, 5, [1], [1]) for i in range(100)]
    broker = fast.MetadataBroker(1, "localhost", 9092)
    topic_id = bytes(range(16))
    show("encode_metadata_topic v12, 100 partitions", lambda: fast.encode_metadata_topic(12, "topic", topic_id, parts))
    fragments = [fast.encode_metadata_topic(12, "topic", topic_id, parts)] * 100

    show(
        "encode_metadata_response v12, 100 such topics",
        lambda: fast.encode_metadata_response(12, 0, [broker], "cluster", 1, fragments),
    )
    body = bytearray(m.MetadataRequest(topics=[m.MetadataRequest.MetadataRequestTopic(name="topic")]).encode(12))
    show(
        "parse_metadata v12, 1 topic",
        lambda: fast.parse_metadata(body, 0, len(body), 12),
        lambda: m.MetadataRequest.decode(body, 12),
    )


def main() -> None:
    print(f"{'us per call':50} {'by hand':>8} {'compiled':>10}")
    for part in (produce, batches, fetch, metadata):
        part()


if __name__ == "__main__":
    main()
