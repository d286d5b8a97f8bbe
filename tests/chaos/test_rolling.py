"""Every broker of a cluster is restarted, one after the other, under three client libraries with default settings: what
they retry by themselves they may see, an application sees nothing."""

import asyncio
import gc
import itertools
import socket
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, Producer
from kafka import KafkaConsumer, KafkaProducer

from tests.broker.test_cluster import everybody, three
from tests.chaos.load import create_topic
from tests.chaos.outage import wait_until
from tests.support.broker_process import BrokerProcess

PARTITIONS = 9
PAUSE_S = 0.005
ROUNDS = 2


class Application:
    """Sends and reads, each in a thread. `acked`, `seen`: (partition, offset) -> value; `errors`: what was raised."""

    name = ""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.topic = f"topic-{self.name}"
        create_topic(bootstrap, PARTITIONS, self.topic)
        self.sent = 0
        self.acked: dict[tuple[int, int], bytes] = {}
        self.seen: dict[tuple[int, int], bytes] = {}
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in (self.send, self.read)
        ]
        for thread in self._threads:
            thread.start()

    def send(self) -> None:
        """Until `_stop` is set."""
        raise NotImplementedError

    def read(self) -> None:
        """Until `_end` is set."""
        raise NotImplementedError

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # whatever an application would see
            self.errors.append(f"{self.name}, {work.__name__}: {traceback.format_exc()}")

    def values(self) -> Iterator[tuple[int, bytes]]:
        """(partition, value) to send, at a rate, until it is enough."""
        for number in itertools.count():
            if self._stop.wait(PAUSE_S):
                return
            self.sent += 1
            yield number % PARTITIONS, f"{self.name} {number}".encode()

    def finish(self) -> None:
        """Everything was acknowledged and read, and nobody saw an error."""
        self._stop.set()
        self._threads[0].join(60)
        wait_until(lambda: self.errors or len(self.acked) >= self.sent, 60, f"{self.name}: all acknowledgements")
        wait_until(lambda: self.errors or self.acked.keys() <= self.seen.keys(), 60, f"{self.name}: all records")
        self._end.set()
        self._threads[1].join(60)
        assert not self.errors, "\n".join(self.errors[:3])
        assert not any(thread.is_alive() for thread in self._threads)
        assert {key: self.seen[key] for key in self.acked} == self.acked
        values: dict[int, list[int]] = defaultdict(list)
        for (partition, _), value in sorted(self.seen.items()):
            values[partition].append(int(value.split()[1]))
        for partition, numbers in values.items():
            first = list(dict.fromkeys(numbers))  # only idempotent producers promise each record once
            assert first == sorted(first), f"{self.name}: partition {partition} is out of order"


class Confluent(Application):
    name = "confluent"

    def send(self) -> None:
        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self.errors.append(f"confluent: {error}")
            else:
                self.acked[message.partition(), message.offset()] = message.value()

        producer = Producer({"bootstrap.servers": self.bootstrap})
        for partition, value in self.values():
            producer.produce(self.topic, value, partition=partition, on_delivery=delivered)
            producer.poll(0)
        assert producer.flush(60) == 0

    def read(self) -> None:
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": self.name, "auto.offset.reset": "earliest"}
        )
        consumer.subscribe([self.topic])
        try:
            while not self._end.is_set():
                for message in consumer.consume(500, timeout=0.2):
                    if message.error() is not None:
                        self.errors.append(f"confluent: {message.error()}")
                    else:
                        self.seen[message.partition(), message.offset()] = message.value()
        finally:
            consumer.close()


class KafkaPython(Application):
    name = "kafka-python"

    def send(self) -> None:
        producer = KafkaProducer(bootstrap_servers=self.bootstrap)
        for partition, value in self.values():
            future = producer.send(self.topic, value, partition=partition)
            future.add_callback(lambda done, value=value: self._acked(done.partition, done.offset, value))
            future.add_errback(lambda error: self.errors.append(f"kafka-python: {error!r}"))
        producer.flush(60)
        producer.close()

    def _acked(self, partition: int, offset: int, value: bytes) -> None:
        self.acked[partition, offset] = value

    def read(self) -> None:
        consumer = KafkaConsumer(
            self.topic, bootstrap_servers=self.bootstrap, group_id=self.name, auto_offset_reset="earliest"
        )
        while not self._end.is_set():
            for records in consumer.poll(200).values():
                for record in records:
                    self.seen[record.partition, record.offset] = record.value
        consumer.close()


class Aiokafka(Application):
    name = "aiokafka"

    def send(self) -> None:
        asyncio.run(self._send())

    def read(self) -> None:
        asyncio.run(self._read())

    async def _send(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap)
        await producer.start()
        waiting: dict[asyncio.Future[Any], bytes] = {}
        try:
            while not self._stop.is_set():
                partition = self.sent % PARTITIONS
                value = f"aiokafka {self.sent}".encode()
                self.sent += 1
                waiting[await producer.send(self.topic, value, partition=partition)] = value
                await asyncio.sleep(PAUSE_S)
                self._settle(waiting)
            await producer.flush()
            if waiting:
                await asyncio.wait(waiting, timeout=60)
            self._settle(waiting)
        finally:
            await producer.stop()

    def _settle(self, waiting: "dict[asyncio.Future[Any], bytes]") -> None:
        for future in [future for future in waiting if future.done()]:
            value = waiting.pop(future)
            if future.exception() is not None:
                self.errors.append(f"aiokafka: {future.exception()!r}")
            else:
                self.acked[future.result().partition, future.result().offset] = value

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            self.topic, bootstrap_servers=self.bootstrap, group_id=self.name, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            while not self._end.is_set():
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        self.seen[record.partition, record.offset] = record.value
        finally:
            await consumer.stop()


def restart(node: BrokerProcess, applications: list[Application]) -> None:
    """A clean stop and a start; then everybody got on."""
    assert node.stop() == 0, node.log_tail()
    node.start()
    before = [len(one.acked) for one in applications]
    wait_until(
        lambda: (
            any(one.errors for one in applications)
            or all(len(one.acked) > count + PARTITIONS for one, count in zip(applications, before))
        ),
        30,
        "acknowledgements after a restart",
    )


def run(nodes: dict[int, BrokerProcess]) -> None:
    """All brokers, one after the other, a few times."""
    applications = [kind(everybody(nodes)) for kind in (Confluent, KafkaPython, Aiokafka)]
    for one in applications:
        wait_until(lambda: len(one.seen) > 10 * PARTITIONS or one.errors, 30, f"{one.name}: the first records")  # noqa: B023
    for _ in range(ROUNDS):
        for node in nodes.values():
            restart(node, applications)
    for one in applications:
        one.finish()
    print({one.name: f"{len(one.acked)} acknowledged, {len(one.seen)} read" for one in applications})


def open_sockets() -> set[socket.socket]:
    """All of this process."""
    return {one for one in gc.get_objects() if isinstance(one, socket.socket) and one.fileno() >= 0}


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("one_machine", [False, True], ids=["three-machines", "one-machine"])
def test_a_rolling_restart_shows_applications_no_error(tmp_path: Path, one_machine: bool) -> None:
    before = open_sockets()
    # The delay is the default. Without it kafka-python may have joined its group before it has heard of the topic.
    with three(tmp_path, one_machine=one_machine, group_initial_rebalance_delay_ms=3000) as nodes:
        run(nodes)
    for left in open_sockets() - before:
        left.close()  # kafka-python drops the socket of a refused connection without closing it
