"""Python clients in processes of their own: `python -m benchmarks.clients CLIENT BOOTSTRAP TOPIC SECONDS`, JSON out.

`flood`         librdkafka, as many 1 KiB records as it takes, for SECONDS and until all are acknowledged
`round-trips`   librdkafka, one record produced, then polled by a consumer, again and again
`kafka-python`  kafka-python's producer, as `flood`

Each warms up for a fifth of the time; what happens then is not counted (`all_records` counts it).
"""

import json
import sys
import time
from random import Random
from typing import Any

RECORD_BYTES = 1024
RECORDS = [Random(seed).randbytes(RECORD_BYTES) for seed in range(64)]
WARMUP_SHARE = 0.2
WAITED_MS = 100  # far above what a round trip takes, far below `fetch.wait.max.ms` (500 ms)


def flood(bootstrap: str, topic: str, seconds: float) -> dict[str, Any]:
    """librdkafka with its defaults (acks=all, linger 5 ms): records acknowledged per second."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": 200_000})
    failed = 0

    def on_delivery(error: object, _: object) -> None:
        nonlocal failed
        failed += error is not None

    def send(for_s: float) -> tuple[int, float]:
        began, sent = time.perf_counter(), 0
        while time.perf_counter() - began < for_s:
            for record in RECORDS:
                while True:
                    try:
                        producer.produce(topic, record, on_delivery=on_delivery)
                        break
                    except BufferError:
                        producer.poll(0.05)
            producer.poll(0)
            sent += len(RECORDS)
        failed_to_flush = producer.flush(60)
        assert not failed_to_flush, f"{failed_to_flush} records are still unacknowledged after 60 s"
        return sent, time.perf_counter() - began

    warmup, _ = send(seconds * WARMUP_SHARE)
    records, took_s = send(seconds)
    assert not failed, f"{failed} records were refused"
    return {"records": records, "all_records": warmup + records, "seconds": took_s}


def kafka_python(bootstrap: str, topic: str, seconds: float) -> dict[str, Any]:
    """kafka-python with its defaults (acks=all since 3.0, linger 0): records acknowledged per second."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap)
    futures = []

    def send(for_s: float) -> tuple[int, float]:
        began, sent = time.perf_counter(), 0
        while time.perf_counter() - began < for_s:
            for record in RECORDS:
                futures.append(producer.send(topic, record))
            sent += len(RECORDS)
        producer.flush(60)
        return sent, time.perf_counter() - began

    warmup, _ = send(seconds * WARMUP_SHARE)
    records, took_s = send(seconds)
    assert all(future.succeeded() for future in futures), "records were refused"
    producer.close()
    return {"records": records, "all_records": warmup + records, "seconds": took_s}


def round_trips(bootstrap: str, topic: str, seconds: float) -> dict[str, Any]:
    """From produce() to the record in the hands of a consumer, one at a time, partition 0, both sides librdkafka."""
    from confluent_kafka import Consumer, Producer, TopicPartition

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"{topic}-round-trips", "enable.auto.commit": False}
    )
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
    consumer.assign([TopicPartition(topic, 0, end)])
    latencies_ms: list[float] = []
    began = time.perf_counter()
    counted_from = began + seconds * WARMUP_SHARE
    number, now = 0, began
    while now < counted_from + seconds:
        number += 1
        key = str(number).encode()
        sent = time.perf_counter()
        producer.produce(topic, RECORDS[number % len(RECORDS)], key, partition=0)
        while True:
            message = consumer.poll(10)
            assert message is not None, "a record did not arrive in 10 s"
            assert message.error() is None, message.error()
            if message.key() == key:
                break
        now = time.perf_counter()
        producer.poll(0)
        if sent >= counted_from:
            latencies_ms.append((now - sent) * 1e3)
    producer.flush(10)
    consumer.close()
    latencies_ms.sort()

    def percentile(share: float) -> float:
        return latencies_ms[min(len(latencies_ms) - 1, int(share * len(latencies_ms)))]

    return {
        "records": len(latencies_ms),
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
        "p999_ms": percentile(0.999),
        "max_ms": latencies_ms[-1],
        "waited": sum(latency > WAITED_MS for latency in latencies_ms),
    }


CLIENTS = {"flood": flood, "kafka-python": kafka_python, "round-trips": round_trips}


def main() -> None:
    """Run one client; the last line of its output is the result."""
    name, bootstrap, topic, seconds = sys.argv[1:]
    print(json.dumps(CLIENTS[name](bootstrap, topic, float(seconds))))


if __name__ == "__main__":
    main()
