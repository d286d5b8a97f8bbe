"""Clients that keep going while brokers die, and what they saw: an idempotent producer, a committing group."""

import os
import random  # noqa: TID251
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC = "load"
PAUSES_PER_S = 50
CONSUME_S = 0.1
LOOKS, LOOK_S = 300, 0.1
RETRIABLE_FATAL_NEVER = "a client met an error that is not retriable"


def seeded() -> random.Random:
    """Instants and sizes of a run: the seed is printed, `CHAOS_SEED` repeats it."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


def create_topic(bootstrap: str, partitions: int, topic: str = TOPIC) -> None:
    """Create a topic and wait until every broker of `bootstrap` says who leads it.

    A client that asks one whose facts lag behind sees no partitions, and looks again minutes later (kafka-python).
    """
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for created in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        created.result(30)
    for address in bootstrap.split(","):
        for _ in range(LOOKS):
            if _is_led(address, topic, partitions):
                break
            threading.Event().wait(LOOK_S)
        else:
            raise AssertionError(f"{address} does not know the leaders of {topic}")


def _is_led(address: str, topic: str, partitions: int) -> bool:
    """What the broker there says: a client that knows no other yet asks it."""
    told = AdminClient({"bootstrap.servers": address}).list_topics(topic, timeout=10).topics[topic].partitions
    return len(told) == partitions and all(one.leader >= 0 for one in told.values())


@dataclass
class IdempotentLoad:
    """Sends numbered records round robin until stopped; `acknowledged` grows as delivery reports come.

    Record n of partition p has the value `p:n`, so what comes out can be checked without remembering what went in.
    """

    bootstrap: str
    partitions: int
    value_bytes: int = 100
    topic: str = TOPIC
    records_per_s: int = 0
    """0: as fast as it goes."""
    options: dict[str, object] = field(default_factory=dict)
    """Settings of the producer beside those that every load has."""
    acknowledged: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """What the client library reported besides delivery: it goes on by itself after these."""
    sent: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "enable.idempotence": True,
                "linger.ms": 2,
                "queue.buffering.max.messages": 20_000,
                "message.timeout.ms": 0,  # as long as it takes
                "reconnect.backoff.max.ms": 500,
                "socket.timeout.ms": 10_000,
                "error_cb": self._error,
                **self.options,
            }
        )
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> "IdempotentLoad":
        """Begin to send."""
        self._thread.start()
        return self

    def wait_for(self, acknowledged: int, timeout_s: float = 60) -> None:
        """Return once so many records are acknowledged."""
        with self._progress:
            done = self._progress.wait_for(lambda: self.acknowledged >= acknowledged or self.failures, timeout_s)
        assert not self.failures, self.failures[:3]
        assert done, f"{self.acknowledged} of {acknowledged} acknowledged in {timeout_s} s"

    def finish(self, timeout_s: float = 60) -> dict[int, int]:
        """Stop sending, wait until everything sent is acknowledged; records per partition."""
        self._stop.set()
        self._thread.join(timeout_s)
        left = self._producer.flush(timeout_s)
        assert not self.failures, self.failures[:3]
        assert left == 0, f"{left} records are not acknowledged"
        assert self.acknowledged == sum(self.sent.values())
        return dict(self.sent)

    def _run(self) -> None:
        number, step = 0, max(1, self.records_per_s // PAUSES_PER_S)
        while not self._stop.is_set():
            partition = number % self.partitions
            value = f"{partition}:{self.sent[partition]}".encode().ljust(self.value_bytes, b".")
            try:
                self._producer.produce(self.topic, value, partition=partition, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.05)
                continue
            self.sent[partition] += 1
            number += 1
            self._producer.poll(0)
            if self.records_per_s and number % step == 0:
                self._stop.wait(step / self.records_per_s)
        while not self._stop.is_set():
            self._producer.poll(0.05)

    def _error(self, error: KafkaError) -> None:
        self.errors[error.name()] += 1
        if error.fatal():
            with self._progress:
                self.failures.append(f"fatal: {error}")
                self._progress.notify_all()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        with self._progress:
            if error is not None:
                self.failures.append(f"partition {message.partition()}: {error}")
            else:
                self.acknowledged += 1
            self._progress.notify_all()


def check_all(bootstrap: str, sent: dict[int, int], topic: str = TOPIC, timeout_s: float = 60) -> None:
    """Read everything; every record exactly once and in order in its partition, offsets ascending."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "check", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in sent])
        next_number = dict.fromkeys(sent, 0)
        last_offset = dict.fromkeys(sent, -1)
        idle = 0.0
        while any(next_number[partition] < count for partition, count in sent.items()):
            messages = consumer.consume(5000, timeout=CONSUME_S)
            idle = 0.0 if messages else idle + CONSUME_S
            assert idle < timeout_s, f"nothing more comes: have {next_number}, want {sent}"
            for message in messages:
                assert message.error() is None, message.error()
                partition = message.partition()
                number = int(message.value().split(b":")[1].rstrip(b"."))
                assert number == next_number[partition], (
                    f"partition {partition}: {number}, not {next_number[partition]}"
                )
                assert message.offset() > last_offset[partition]
                next_number[partition] += 1
                last_offset[partition] = message.offset()
        for partition, offset in last_offset.items():
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            assert (low, high) == (0, offset + 1), f"partition {partition}: {low} to {high}, last record at {offset}"
    finally:
        consumer.close()


@dataclass
class CommittingGroup:
    """One member that reads in order and commits what it has read; restarts resume exactly at the commit."""

    bootstrap: str
    topic: str = TOPIC
    committed: dict[int, int] = field(default_factory=dict)
    resumed: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="group", daemon=True)

    def start(self) -> "CommittingGroup":
        """Begin to consume."""
        self._thread.start()
        return self

    def finish(self) -> None:
        """Stop; whatever went wrong is raised here."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert not self.problems, self.problems[:5]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._session()
            except KafkaException as error:
                if not error.args[0].retriable() and error.args[0].code() not in TOLERATED:
                    self.problems.append(f"{RETRIABLE_FATAL_NEVER}: {error}")
                    return

    def _session(self) -> None:
        """One consumer from joining to the first error or 40 commits: the next one resumes."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "group",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6000,
                "reconnect.backoff.max.ms": 500,
            }
        )
        position: dict[int, int] = {}
        try:
            consumer.subscribe([self.topic])
            for _ in range(40):
                if self._stop.is_set():
                    return
                messages = [m for m in consumer.consume(500, timeout=0.5) if m.error() is None]
                for message in messages:
                    partition, offset = message.partition(), message.offset()
                    if partition not in position:
                        self._check_resume(partition, offset)
                    elif offset != position[partition]:
                        self.problems.append(f"partition {partition}: read {offset}, expected {position[partition]}")
                    position[partition] = offset + 1
                if messages:
                    done = consumer.commit(
                        offsets=[TopicPartition(self.topic, p, o) for p, o in position.items()], asynchronous=False
                    )
                    for part in done:
                        if part.error is None:
                            self.committed[part.partition] = part.offset
        finally:
            consumer.close()

    def _check_resume(self, partition: int, offset: int) -> None:
        """A commit whose answer was lost may have counted, so resuming later than the last answered one is right."""
        self.resumed += 1
        if offset < self.committed.get(partition, 0):
            self.problems.append(f"partition {partition}: resumed at {offset}, committed {self.committed[partition]}")


TOLERATED = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._STATE,
    KafkaError._NO_OFFSET,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
}
