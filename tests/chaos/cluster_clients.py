"""Real clients of a cluster under faults: what they see goes into a `History`."""

import itertools
import threading
from collections import Counter
from time import monotonic  # noqa: TID251

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tests.chaos.history import Ack, Commit, History, Read, Session, Value
from tests.chaos.load import TOLERATED

TOPIC = "load"
GROUP = "readers"
CLIENT = {"reconnect.backoff.max.ms": 500, "socket.timeout.ms": 10_000}
SLICES_PER_S = 50


class Sender:
    """An idempotent producer that sends to all partitions in turn until it is stopped; its rate may be changed."""

    def __init__(self, bootstrap: str, number: int, history: History, records_per_s: int, value_bytes: int) -> None:
        self.number = number
        self.records_per_s = records_per_s
        self.value_bytes = value_bytes
        self.errors: Counter[str] = Counter()
        self.failures: list[str] = []
        self.newest_sent_s = [0.0] * history.partitions
        """When the newest record was sent that is acknowledged, by partition."""
        self.answered_s: list[list[float]] = [[] for _ in range(history.partitions)]
        """When acknowledgements came, by partition."""
        self._history = history
        self._stop = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "queue.buffering.max.messages": 20_000,
                "message.timeout.ms": 0,  # as long as it takes
                "error_cb": self._error,
                **CLIENT,
            }
        )
        self._thread = threading.Thread(target=self._run, name=f"sender {number}", daemon=True)
        self._thread.start()

    def finish(self, timeout_s: float = 120) -> None:
        """Stops sending and waits until everything is acknowledged."""
        self._stop.set()
        self._thread.join(timeout_s)
        left = self._producer.flush(timeout_s)
        assert not self.failures, self.failures[:3]
        assert left == 0, f"{left} records of sender {self.number} are not acknowledged after {timeout_s} s"

    def _run(self) -> None:
        partitions = itertools.cycle(range(self._history.partitions))
        while not self._stop.wait(1 / SLICES_PER_S):
            for _ in range(max(1, self.records_per_s // SLICES_PER_S)):
                self._send(next(partitions))
            self._producer.poll(0)

    def _send(self, partition: int) -> None:
        sent = self._history.sent
        value = Value(self.number, sent[self.number, partition])
        try:
            self._producer.produce(
                TOPIC, value.encode(self.value_bytes), partition=partition, on_delivery=self._delivered
            )
        except BufferError:
            self._producer.poll(0.05)
            return
        sent[self.number, partition] += 1

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.failures.append(f"sender {self.number}, partition {message.partition()}: {error}")
            return
        now, partition = monotonic(), message.partition()
        self._history.acks.append(Ack(partition, Value.decode(message.value()), message.offset()))
        self.newest_sent_s[partition] = max(self.newest_sent_s[partition], now - message.latency())
        answered = self.answered_s[partition]
        if not answered or now > answered[-1]:
            answered.append(now)

    def _error(self, error: KafkaError) -> None:
        self.errors[error.name()] += 1
        if error.fatal():
            self.failures.append(f"sender {self.number}: {error}")


class Member:
    """A member of the group: reads in order, commits what it read, goes on whatever happens."""

    _sessions = itertools.count(1)

    def __init__(self, bootstrap: str, history: History) -> None:
        self.problems: list[str] = []
        self.errors: Counter[str] = Counter()
        self._history = history
        self._bootstrap = bootstrap
        self._assigned: dict[int, tuple[int, float]] = {}
        self._positions: dict[int, int] = {}
        self._leave = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Leaves the group and joins again."""
        self._leave.set()

    def finish(self) -> None:
        """Leaves for good."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a member does not come to an end"
        assert not self.problems, self.problems[:5]

    def _run(self) -> None:
        while not self._stop.is_set():
            self._leave.clear()
            consumer = Consumer(
                {
                    "bootstrap.servers": self._bootstrap,
                    "group.id": GROUP,
                    "auto.offset.reset": "earliest",
                    "enable.auto.commit": False,
                    "session.timeout.ms": 10_000,
                    **CLIENT,
                }
            )
            try:
                consumer.subscribe([TOPIC], on_assign=self._on_assign, on_revoke=self._on_revoke)
                while not self._stop.is_set() and not self._leave.is_set():
                    self._step(consumer)
            except KafkaException as error:
                self._note(error.args[0])
            finally:
                self._assigned, self._positions = {}, {}
                consumer.close()

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        now = monotonic()
        self._assigned = {one.partition: (next(self._sessions), now) for one in partitions}
        self._positions = {}

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned, self._positions = {}, {}

    def _step(self, consumer: Consumer) -> None:
        for message in consumer.consume(500, timeout=0.2):
            if message.error() is not None:
                self._note(message.error())
            elif message.partition() in self._assigned:
                self._take(message)
        if self._positions:
            self._commit(consumer)

    def _take(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        number, assigned_s = self._assigned[partition]
        if partition not in self._positions:
            self._history.sessions.append(Session(number, partition, assigned_s, monotonic(), offset))
        self._positions[partition] = offset + 1
        self._history.reads.append(Read(number, partition, offset, Value.decode(message.value())))

    def _commit(self, consumer: Consumer) -> None:
        wanted = dict(self._positions)
        began = monotonic()
        done: dict[int, bool] = {}
        try:
            offsets = [TopicPartition(TOPIC, partition, offset) for partition, offset in wanted.items()]
            for one in consumer.commit(offsets=offsets, asynchronous=False):
                done[one.partition] = one.error is None
                if one.error is not None:
                    self._note(one.error)
        except KafkaException as error:
            self._note(error.args[0])
        finally:
            ended = monotonic()
            for partition, offset in wanted.items():
                self._history.commits.append(Commit(partition, offset, began, ended, done.get(partition, False)))

    def _note(self, error: KafkaError) -> None:
        self.errors[error.name()] += 1
        if not error.retriable() and error.code() not in TOLERATED:
            self.problems.append(f"a member met an error that is not retriable: {error}")


def read_log(bootstrap: str, history: History, timeout_s: float = 120) -> None:
    """Everything that is there, and where the group is, into the history."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": GROUP, "enable.auto.commit": False, **CLIENT})
    try:
        parts = [TopicPartition(TOPIC, partition, 0) for partition in range(history.partitions)]
        ends = {part.partition: consumer.get_watermark_offsets(part, timeout=30)[1] for part in parts}
        for one in consumer.committed(parts, timeout=30):
            history.positions[one.partition] = one.offset
        history.log = {partition: [] for partition in ends}
        consumer.assign(parts)
        deadline = monotonic() + timeout_s
        open_ends = {partition for partition, end in ends.items() if end}
        while open_ends:
            assert monotonic() < deadline, f"partitions {sorted(open_ends)} cannot be read to their ends"
            for message in consumer.consume(5_000, timeout=0.5):
                assert message.error() is None or message.error().retriable(), message.error()
                if message.error() is not None:
                    continue
                partition, offset = message.partition(), message.offset()
                if offset < ends[partition]:
                    history.log[partition].append((offset, Value.decode(message.value())))
                if offset >= ends[partition] - 1:
                    open_ends.discard(partition)
    finally:
        consumer.close()


def group_positions(bootstrap: str, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
    """(what the group has committed, where partitions end)."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": GROUP, **CLIENT})
    try:
        parts = [TopicPartition(TOPIC, partition) for partition in range(partitions)]
        committed = {one.partition: max(0, one.offset) for one in consumer.committed(parts, timeout=10)}
        ends = {part.partition: consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts}
        return committed, ends
    except KafkaException:
        return {}, dict.fromkeys(range(partitions), 1)
    finally:
        consumer.close()
