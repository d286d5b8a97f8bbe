"""Transfers by consume-process-produce while clients, brokers and coordinators are killed and stopped: under
read_committed the total is constant, and no transfer is torn, lost, doubled or seen although it was aborted."""

from __future__ import annotations

import contextlib
import json
import os
import random  # noqa: TID251
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep  # noqa: TID251

import pytest
from confluent_kafka import Consumer, IsolationLevel, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.broker.test_cluster import everybody, three
from tests.chaos.bank import GROUP, LEDGER, ORDERS, Books, Entry, Order, judge
from tests.chaos.cluster import lasting_port
from tests.chaos.outage import Background
from tests.compatibility import versions
from tests.compatibility.jvm import tools as tools_of
from tests.support.broker_process import BrokerProcess
from tests.support.disturbed_link import NONE, DisturbedLink, Trouble

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ACCOUNTS = 20
PARTITIONS = 3
FAULTS = 20
HANGS_AFTER_S = 20
ROOT = Path(__file__).parents[2]


class Workers:
    """Processes that carry out orders; each that ends is started again."""

    def __init__(self, books: Books, commands: list[Callable[[int], list[str]]]) -> None:
        self.books = books
        self.commands = commands
        self.processes: list[subprocess.Popen[str]] = []
        self.chatter: list[str] = []
        self.restarts: Counter[int] = Counter()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._keep, args=(n,)) for n in range(len(commands))]
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.heard = dict.fromkeys(range(len(commands)), monotonic())
        self.hung = 0
        for thread in self.threads:
            thread.start()

    def _keep(self, number: int) -> None:
        while not self.stopping.is_set():
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                self.commands[number](self.restarts[number]),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            self.running[number] = process
            self.heard[number] = monotonic()
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    self.books.note(line)
                    self.heard[number] = monotonic()
                    if line.startswith("failed"):
                        self.chatter.append(line.strip())
            process.wait()
            self.restarts[number] += 1
            self.stopping.wait(0.2)

    def kill(self, number: int) -> None:
        """SIGKILL, in the middle of whatever it does."""
        process = self.running.get(number)
        if process is not None and process.poll() is None:
            process.kill()

    def look(self) -> None:
        """Kill who hangs: librdkafka can wait for ever for a request to a broker that left the metadata meanwhile, and
        keeps its partitions all the time."""
        for number, heard in self.heard.items():
            if monotonic() > heard + HANGS_AFTER_S:
                self.hung += 1
                self.heard[number] = monotonic()
                self.kill(number)

    def stop(self) -> None:
        self.stopping.set()
        for number in range(len(self.commands)):
            self.kill(number)
        for thread in self.threads:
            thread.join()


class Reader:
    """Reads the ledger as it grows, and keeps what it saw."""

    def __init__(self, bootstrap: str, books: Books) -> None:
        self.bootstrap = bootstrap
        self.books = books
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        consumer = committed_reader(self.bootstrap)
        consumer.assign([TopicPartition(LEDGER, n, 0) for n in range(PARTITIONS)])
        while not self.stopping.is_set():
            for one in consumer.consume(500, 0.3):
                partition, offset = one.partition(), one.offset()
                if one.error() is None and partition is not None and offset is not None:
                    self.books.seen_before[partition, offset] = Entry.decode(one.value() or b"")
        consumer.close()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()


def committed_reader(bootstrap: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "nobody",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
    )


def read_ledger(bootstrap: str, books: Books) -> None:
    """Everything up to the ends of all partitions."""
    consumer = committed_reader(bootstrap)
    for partition in range(PARTITIONS):
        consumer.assign([TopicPartition(LEDGER, partition, 0)])
        deadline = monotonic() + 60
        while True:
            one = consumer.poll(1)
            assert monotonic() < deadline, f"ledger {partition} cannot be read to its end"
            if one is None:
                continue
            if one.error() is not None:
                if one.error().name() == "_PARTITION_EOF":
                    break
                continue
            offset = one.offset()
            assert offset is not None
            books.ledger.append((partition, offset, Entry.decode(one.value() or b"")))
    consumer.close()


def until(
    what: str,
    holds: Callable[[], bool],
    seconds: float,
    look: Callable[[], None] = lambda: None,
    told: Callable[[], object] = lambda: "",
) -> float:
    """Seconds that it took."""
    began = monotonic()
    while not holds():
        look()
        assert monotonic() < began + seconds, f"not within {seconds} s: {what} {told()}"
        sleep(0.2)
    return monotonic() - began


def all_done(bootstrap: str) -> bool:
    """Whether the group has committed the end of all orders, as far as that can be told now."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": GROUP})
    try:
        asked = [TopicPartition(ORDERS, n) for n in range(PARTITIONS)]
        for one in consumer.committed(asked, 10):
            _, high = consumer.get_watermark_offsets(one, 10)
            if one.offset != high:
                return False
        return True
    except KafkaException:
        return False
    finally:
        consumer.close()


def hanging(bootstrap: str) -> list[int]:
    """Partitions of the ledger whose last stable offset is not their end."""
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def ends(isolation: int) -> dict[int, int]:
        asked = {TopicPartition(LEDGER, n): OffsetSpec.latest() for n in range(PARTITIONS)}
        found = admin.list_offsets(asked, isolation_level=isolation)  # type: ignore[arg-type]
        return {where.partition: future.result(10).offset for where, future in found.items()}

    last, stable = ends(IsolationLevel.READ_UNCOMMITTED), ends(IsolationLevel.READ_COMMITTED)  # type: ignore[arg-type]
    return [n for n in range(PARTITIONS) if stable[n] != last[n]]


def give_orders(bootstrap: str, books: Books, rng: random.Random, count: int, producer: Producer) -> None:
    for _ in range(count):
        debtor, creditor = rng.sample(range(ACCOUNTS), 2)
        order = Order(len(books.orders), debtor, creditor, rng.randrange(1, 100))
        books.orders[order.number] = order
        producer.produce(ORDERS, value=order.encode(), key=str(order.number))
    producer.flush(60)


class LinkedBroker(BrokerProcess):
    """One whose ports stay, and who is reached through links."""

    def spawn(self, *, fixed_port: bool = True) -> None:
        super().spawn(fixed_port=False)


class Links:
    """A link before each broker for its clients, and one for the other brokers, all of which may be disturbed."""

    def __init__(self) -> None:
        self._background = Background("links")
        self.clients: list[DisturbedLink] = []
        self.peers: list[DisturbedLink] = []

    def broker(self, directory: Path, **overrides: object) -> BrokerProcess:
        """The next broker, to be reached through links."""
        ports = lasting_port(), lasting_port()
        for port, links in zip(ports, (self.clients, self.peers)):
            links.append(DisturbedLink("127.0.0.1", port))
            self._background.call(links[-1].open())
        return LinkedBroker(
            directory,
            **overrides,
            listeners=f"CLIENTS://127.0.0.1:{ports[0]},PEERS://127.0.0.1:{ports[1]}",
            advertised_listeners=(
                f"CLIENTS://127.0.0.1:{self.clients[-1].port},PEERS://127.0.0.1:{self.peers[-1].port}"
            ),
            listener_security_protocol_map="CLIENTS:PLAINTEXT,PEERS:PLAINTEXT",
            inter_broker_listener_name="PEERS",
        )

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{link.port}" for link in self.clients)

    def disturb(self, links: list[DisturbedLink], rng: random.Random) -> None:
        """Some of these for a while, which may be longer than a session."""
        chosen = rng.sample(links, rng.choice([1, 1, 3]))
        trouble = rng.choice(
            [
                NONE,  # connections end
                Trouble(refuse=True),
                Trouble(hold_up=True, hold_down=True),
                Trouble(hold_down=True),
                Trouble(hold_up=True),
                Trouble(delay_s=0.3),
                Trouble(cut_after=rng.randint(1, 200)),
            ]
        )
        resets = trouble in (NONE, Trouble(refuse=True)) or rng.random() < 0.3

        async def put(trouble: Trouble) -> None:
            for link in chosen:
                await link.set(trouble)

        self._background.call(put(trouble))
        if resets:
            self._background.call(self._reset(chosen))
        sleep(rng.uniform(0.3, 4))
        self._background.call(put(NONE))

    @staticmethod
    async def _reset(links: list[DisturbedLink]) -> None:
        for link in links:
            link.reset()

    def close(self) -> None:
        for link in (*self.clients, *self.peers):
            self._background.call(link.close())
        self._background.close()


def revive(nodes: dict[int, BrokerProcess]) -> None:
    """What a supervisor does: a broker that was cut off for longer than its session ends, and begins again."""
    for node in nodes.values():
        if node.process is not None and node.process.poll() is not None:
            node.start()


def fail_something(
    nodes: dict[int, BrokerProcess], workers: Workers, rng: random.Random, links: Links | None = None
) -> str:
    """One fault, and its end."""
    kinds = ["broker", "broker", "worker", "worker", "worker", "stop", "pause", "both"]
    if links is not None:
        kinds += ["clients cut", "brokers cut"] * 4
    kind = rng.choice(kinds)
    if links is not None and kind.endswith("cut"):
        links.disturb(links.clients if kind == "clients cut" else links.peers, rng)
        return kind
    revive(nodes)
    node = nodes[rng.choice(sorted(nodes))]
    worker = rng.randrange(len(workers.commands))
    if kind in ("worker", "both"):
        workers.kill(worker)
    if kind in ("broker", "both"):
        node.kill()
        sleep(rng.uniform(0, 3))
        node.start()
    elif kind == "stop":
        assert node.stop() == 0, node.log_tail()
        node.start()
    elif kind == "pause":
        node.signal(signal.SIGSTOP)
        sleep(rng.uniform(0.5, 2.5))
        node.signal(signal.SIGCONT)
    return kind


@contextlib.contextmanager
def cluster(path: Path, wal: str, links: Links | None) -> Iterator[dict[int, BrokerProcess]]:
    settings = {
        "offsets_topic_num_partitions": 3,
        "transaction_state_log_num_partitions": 3,
        "transaction_abort_timed_out_transaction_cleanup_interval_ms": 500,
        "tidelog_session_timeout_ms": 3000,
        "tidelog_controller_lease_ms": 1500,
        "tidelog_wal": wal,
        "tidelog_internal_wal": wal,
    }
    make = BrokerProcess if links is None else links.broker
    with three(path, one_machine=True, make=make, **settings) as nodes:
        yield nodes


def python_worker(bootstrap: str, number: int) -> Callable[[int], list[str]]:
    return lambda turn: [
        *(sys.executable, "-m", "tests.chaos.bank_worker", bootstrap),
        *(f"bank-{number}", str(1000 * number + turn)),
    ]


def java_worker(bootstrap: str, number: int) -> Callable[[int], list[str]]:
    tools = tools_of(versions.KAFKA, [Path(__file__).with_name("BankWorker.java")])
    return lambda turn: tools.command("main.BankWorker", bootstrap, f"bank-{number}", 1000 * number + turn)


@pytest.mark.parametrize(
    ("generation", "wal", "network"),
    [
        (1, "volume", "good"),
        (1, "objects", "good"),
        (1, "volume", "bad"),
        (2, "volume", "good"),
        (2, "objects", "good"),
        (2, "volume", "bad"),
    ],
)
def test_money_transfers(tmp_path: Path, generation: int, wal: str, network: str) -> None:
    """Generation 1: librdkafka, 2: Kafka's own client of 4.x. In a bad network links are disturbed too."""
    if generation == 2 and shutil.which("java") is None:
        pytest.skip("java is not installed")
    rng = random.Random(generation)
    books = Books()
    with contextlib.ExitStack() as stack:
        links = None
        if network == "bad":
            links = Links()
            stack.callback(links.close)
        nodes = stack.enter_context(cluster(tmp_path, wal, links))
        bootstrap = everybody(nodes) if links is None else links.bootstrap
        admin = AdminClient({"bootstrap.servers": bootstrap})
        for future in admin.create_topics([NewTopic(ORDERS, PARTITIONS, 1), NewTopic(LEDGER, PARTITIONS, 1)]).values():
            future.result(30)
        producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
        give_orders(bootstrap, books, rng, 50, producer)
        make = python_worker if generation == 1 else java_worker
        workers = Workers(books, [make(bootstrap, number) for number in range(3)])
        stack.callback(workers.stop)
        reader = Reader(bootstrap, books)
        stack.callback(reader.stop)
        until("the first transfers", lambda: len(books.committed) > 3, 60)
        faults: Counter[str] = Counter()

        def look() -> None:
            workers.look()
            revive(nodes)

        for _ in range(FAULTS):
            give_orders(bootstrap, books, rng, 30, producer)
            faults[fail_something(nodes, workers, rng, links)] += 1
            had = len(books.committed)
            until(
                f"transfers go on after {dict(faults)}",
                lambda had=had: len(books.committed) > had or all_done(bootstrap),
                90,
                look,
                lambda: workers.chatter[-5:],
            )
        took_s = until("every order is carried out", lambda: all_done(bootstrap), 120, look)
        workers.stop()
        revive(nodes)
        until("no transaction hangs", lambda: not hanging(bootstrap), 40)
        reader.stop()
        read_ledger(bootstrap, books)
        for node in nodes.values():
            assert node.stop() == 0, node.log_tail()
    print(
        json.dumps(
            {
                "faults": dict(faults),
                "orders": len(books.orders),
                "attempts": len(books.begun),
                "committed": len(books.committed),
                "aborted": len(books.aborted),
                "unknown": len(books.begun) - len(books.committed | books.aborted),
                "hung": workers.hung,
                "restarts": sum(workers.restarts.values()),
                "caught up in s": round(took_s, 1),
            }
        )
    )
    findings = judge(books)
    assert not findings, "\n".join([*findings, *workers.chatter[-20:]])
