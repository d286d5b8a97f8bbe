"""A broker process that ends and comes back under running clients: clean stop and SIGKILL."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.compatibility.admin import admin, create_topic
from tests.compatibility.clients import CLIENTS, read
from tests.compatibility.clients.base import Client, Out
from tests.support.broker_process import BrokerProcess

# kafka-python drops the socket of a refused connection without closing it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

PATIENT: dict[str, dict[str, object]] = {
    "kafka-python": {"retries": 1000, "reconnect.backoff.max.ms": 200},
    "confluent-kafka": {"reconnect.backoff.max.ms": 200},
    "aiokafka": {"enable.idempotence": True},
}
"""Quicker reconnects, so that the tests do not wait for back-off; aiokafka repeats safely only when it is told to."""

ROUNDS, BATCH = 6, 50


@pytest.fixture(autouse=True)
def dropped_sockets() -> Iterator[None]:
    """They are found here and not in the middle of another test."""
    yield
    gc.collect()


class Work(threading.Thread):
    """A long-lived producer and a long-lived member of a group, which go on whatever happens to the broker."""

    def __init__(self, client: Client, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self.client, self.bootstrap, self.topic = client, bootstrap, f"restart-{client.name}"
        self.halfway, self.go_on = threading.Event(), threading.Event()
        self.seen: list[tuple[int, bytes | None]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
        finally:
            self.halfway.set()

    def _run(self) -> None:
        group = {"group.id": self.topic, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        with (
            self.client.producer(self.bootstrap, PATIENT[self.client.name]) as producer,
            self.client.consumer(self.bootstrap, group) as consumer,
        ):
            consumer.subscribe(self.topic)
            for number in range(ROUNDS):
                if number == ROUNDS // 2:
                    self.halfway.set()
                    assert self.go_on.wait(60)
                producer.send(self.topic, [Out(b"%d.%d" % (number, i)) for i in range(BATCH)])
                found = read(consumer, BATCH, seconds=60)
                self.seen += [(one.offset, one.value) for one in found]
                consumer.commit()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["clean", "killed"])
def test_running_clients_go_on(make_broker: Callable[..., BrokerProcess], how: signal.Signals) -> None:
    """Producers and members of groups survive: nothing lost, doubled or out of order; topics and groups stay."""
    broker = make_broker()
    work = [Work(client, broker.bootstrap) for client in CLIENTS]
    for one in work:
        create_topic(broker, one.topic, 1, retention_ms="987654321")
        one.start()
    committed = commit_some(broker)
    for one in work:
        assert one.halfway.wait(60)
    with admin(broker) as manager:
        before = manager.describe_cluster()["cluster_id"], manager.describe_topics([one.topic for one in work])
    if how == signal.SIGTERM:
        assert broker.stop() == 0
    else:
        broker.kill()
    for one in work:
        one.go_on.set()  # while there is no broker
    broker.start()
    for one in work:
        one.join(60)
        if one.error is not None:
            raise one.error
        values = [b"%d.%d" % (number, i) for number in range(ROUNDS) for i in range(BATCH)]
        assert one.seen == list(enumerate(values)), one.client.name
    with admin(broker) as manager:
        after = manager.describe_cluster()["cluster_id"], manager.describe_topics([one.topic for one in work])
        for told in (before[1], after[1]):
            for topic in told:
                for partition in topic["partitions"]:
                    partition.pop("leader_epoch")
        assert before == after
        assert {one.topic for one in work} <= {group["group_id"] for group in manager.list_groups()}
    check_resumed(broker, committed)


def commit_some(broker: BrokerProcess) -> dict[Client, int]:
    """A group per library that ends after it committed in the middle; where it did."""
    committed = {client: 10 * number + 5 for number, client in enumerate(CLIENTS)}
    for client, offset in committed.items():
        group = f"resume-{client.name}"
        with client.producer(broker.bootstrap) as producer:
            producer.send(group, [Out(b"%d" % i) for i in range(100)])
        with client.consumer(broker.bootstrap, {"group.id": group, "enable.auto.commit": False}) as consumer:
            consumer.assign({(group, 0): 0})
            read(consumer, 100)
            consumer.commit({(group, 0): offset})
    return committed


def check_resumed(broker: BrokerProcess, committed: dict[Client, int]) -> None:
    """New members begin where the group committed."""
    for client, offset in committed.items():
        group = f"resume-{client.name}"
        with client.consumer(broker.bootstrap, {"group.id": group}) as consumer:
            consumer.subscribe(group)
            assert [one.offset for one in read(consumer, 100 - offset)] == list(range(offset, 100)), client.name


def test_default_broker_settings(make_broker: Callable[..., BrokerProcess]) -> None:
    """A new group waits for `group.initial.rebalance.delay.ms`; all libraries at once, defaults on both sides."""
    broker = make_broker(group_initial_rebalance_delay_ms=3000)
    consumers = []
    for client in CLIENTS:
        with client.producer(broker.bootstrap) as producer:
            producer.send(f"default-{client.name}", [Out(b"v")])
        consumers.append(client.consumer(broker.bootstrap, {"group.id": client.name, "auto.offset.reset": "earliest"}))
        consumers[-1].subscribe(f"default-{client.name}")
    threads = []
    seen: dict[str, int] = {}
    for client, consumer in zip(CLIENTS, consumers, strict=True):

        def work(client: Client = client, consumer: object = consumer) -> None:
            seen[client.name] = len(read(consumer, 1))  # type: ignore[arg-type]

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
    for consumer in consumers:
        consumer.close()
    assert seen == {client.name: 1 for client in CLIENTS}
