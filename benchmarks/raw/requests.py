"""Whole Produce requests for `flood`, built once: one file per partition."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.framing import request_frame, response_frame
from protocol.records import build_batch

VERSION = 12  # the newest that names topics instead of their ids
CLIENT_ID = "flood"


def write_requests(
    directory: Path, topic: str, partitions: int, *, records: int, record_bytes: int, now_ms: int, seed: int = 1
) -> list[Path]:
    """Files with one Produce request each: one batch of `records` random records for one partition, acks=all.

    `now_ms` is the time of the records: retention would remove old ones at once.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for partition in range(partitions):
        random = Random(seed + partition)
        batch = build_batch([(now_ms, None, random.randbytes(record_bytes), ()) for _ in range(records)])
        data = m.ProduceRequest.PartitionProduceData(index=partition, records=batch)
        topic_data = m.ProduceRequest.TopicProduceData(name=topic, partition_data=[data])
        body = m.ProduceRequest(acks=-1, timeout_ms=30_000, topic_data=[topic_data]).encode(VERSION)
        path = directory / f"{topic}-{partition}.request"
        path.write_bytes(request_frame(ApiKey.PRODUCE, VERSION, 0, CLIENT_ID, body))
        paths.append(path)
    return paths


def error_offset(topic: str) -> int:
    """Where the error code of the answer to such a request begins, behind the length prefix."""
    fine, failed = (_answer(topic, code) for code in (0, -1))
    return next(_differences(fine, failed)) - 4


def _answer(topic: str, error_code: int) -> bytes:
    partition = m.ProduceResponse.PartitionProduceResponse(index=0, error_code=error_code)
    response = m.ProduceResponse.TopicProduceResponse(name=topic, partition_responses=[partition])
    body = m.ProduceResponse(responses=[response]).encode(VERSION)
    return response_frame(ApiKey.PRODUCE, VERSION, 0, body)


def _differences(a: bytes, b: bytes) -> Iterator[int]:
    return (at for at, (x, y) in enumerate(zip(a, b)) if x != y)
