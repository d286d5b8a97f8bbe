"""Consumer groups of KIP-848 with librdkafka: who gets what, expressions, static members, classic members in them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.compatibility.admin import create_topic
from tests.compatibility.clients import confluent, kafka_python, poll_until
from tests.compatibility.clients.base import Client, Out
from tests.compatibility.clients.members import Member, Traffic, shared_evenly, wait_until
from tests.compatibility.health import check
from tests.support.broker_process import BrokerProcess

NEW: Mapping[str, object] = {"group.protocol": "consumer", "auto.offset.reset": "earliest"}
CLASSIC: Mapping[str, object] = {
    "auto.offset.reset": "earliest",
    "heartbeat.interval.ms": 300,
    "session.timeout.ms": 6000,
}
QUICK = {
    "group_consumer_heartbeat_interval_ms": 300,
    "group_consumer_min_heartbeat_interval_ms": 300,
    "group_consumer_session_timeout_ms": 6000,
    "group_consumer_min_session_timeout_ms": 6000,
    "group_consumer_assignment_interval_ms": 0,
}
"""A rebalance takes a few heartbeats: the default of 5 s would only make the tests slow."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("groups") / "data", **QUICK) as running:
        yield running
        check(running)
        assert running.stop() == 0, running.log_tail()


def join(broker: BrokerProcess, topic: str, client: Client = confluent, **more: object) -> Member:
    """A member of the group that is named like the topic; names in `more` with `_` for `.`."""
    options = CLASSIC if "group_protocol" not in more and client is not confluent else NEW
    extra = {key.replace("_", "."): value for key, value in more.items()}
    return Member(client, broker.bootstrap, topic, {**options, "group.id": topic, **extra})


def saw_everything(members: list[Member], traffic: Traffic) -> bool:
    seen = {(one.partition, one.offset) for member in members for one in member.seen}
    return seen == {(partition, offset) for partition, end in traffic.ends.items() for offset in range(end)}


def test_members_come_and_go(broker: BrokerProcess, topic: str) -> None:
    """One member has all, two have halves, three thirds, and back; under traffic nothing is missed."""
    create_topic(broker, topic, 6)
    with Traffic(broker, topic, 6) as traffic:
        everybody: list[Member] = []
        members: list[Member] = []
        for _ in range(3):
            members.append(join(broker, topic))
            everybody.append(members[-1])
            wait_until(lambda: shared_evenly(members, 6), members)
        while len(members) > 1:
            members.pop(0).close()
            wait_until(lambda: shared_evenly(members, 6), members)
        traffic.stop()
        wait_until(lambda: saw_everything(everybody, traffic), members)
        traffic.start()  # a poll that is under way ends with a record
        members.pop().close()


def test_both_protocols_in_one_group(broker: BrokerProcess, topic: str) -> None:
    """Classic members are replaced by new ones, one at a time, and back; nobody misses a record."""
    create_topic(broker, topic, 4)
    with Traffic(broker, topic, 4) as traffic:
        members = [join(broker, topic, kafka_python), join(broker, topic, kafka_python)]
        everybody = list(members)
        wait_until(lambda: shared_evenly(members, 4), members)
        for client in (confluent, confluent, kafka_python, kafka_python):
            members.append(join(broker, topic, client))
            everybody.append(members[-1])
            members.pop(0).close()
            wait_until(lambda: shared_evenly(members, 4), members, 60)
        traffic.stop()
        wait_until(lambda: saw_everything(everybody, traffic), members)
        traffic.start()
        for one in members:
            one.close()


def test_static_members(broker: BrokerProcess, topic: str) -> None:
    """A static member that returns in time gets what it had, and the other one notices nothing."""
    create_topic(broker, topic, 4)
    with Traffic(broker, topic, 4):
        first, second = (join(broker, topic, group_instance_id=name) for name in ("a", "b"))
        wait_until(lambda: shared_evenly([first, second], 4), [first, second])
        had, others = set(first.assigned), set(second.assigned)
        first.close()
        first = join(broker, topic, group_instance_id="a")
        wait_until(lambda: first.assigned, [first, second])
        assert (first.assigned, second.assigned) == (had, others)
        first.close()
        second.close()


def test_topics_by_expression(broker: BrokerProcess, topic: str) -> None:
    options = {**NEW, "group.id": topic}
    with confluent.producer(broker.bootstrap) as producer, confluent.consumer(broker.bootstrap, options) as consumer:
        producer.send(f"{topic}-1", [Out(b"1")])
        producer.send(f"other-{topic}", [Out(b"0")])
        consumer.subscribe_pattern(topic)
        seen = [one.topic for one in poll_until(consumer, lambda records: records)]
        producer.send(f"{topic}-2", [Out(b"2")])
        # Expressions are resolved again after ten seconds at the earliest.
        seen += [one.topic for one in poll_until(consumer, lambda records: records, 40)]
        assert seen == [f"{topic}-1", f"{topic}-2"]


def test_a_group_goes_on_after_its_coordinator_was_killed(tmp_path: Path, topic: str) -> None:
    """Members keep their epochs, partitions and commits."""
    with BrokerProcess(tmp_path / "data", **QUICK) as broker:
        create_topic(broker, topic, 4)
        with Traffic(broker, topic, 4) as traffic:
            members = [join(broker, topic), join(broker, topic)]
            wait_until(lambda: shared_evenly(members, 4), members)
            had = [set(one.assigned) for one in members]
            traffic.stop()
            broker.kill()
            broker.start()
            traffic.start()
            counts = [len(one.seen) for one in members]
            wait_until(lambda: all(len(one.seen) > count for one, count in zip(members, counts)), members)
            assert [one.assigned for one in members] == had
            traffic.stop()
            wait_until(lambda: saw_everything(members, traffic), members)
            traffic.start()
            for one in members:
                one.close()
