"""Consumer groups of kafka-python, librdkafka and aiokafka: who gets what, and where a group goes on."""

from collections.abc import Mapping

import pytest
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from tests.compatibility.admin import admin, create_topic
from tests.compatibility.clients import CLIENTS, confluent, each_client, poll_until, read
from tests.compatibility.clients.base import Client, Consumer, Out, Partition
from tests.compatibility.clients.members import Member, Traffic, shared_evenly, wait_until
from tests.support.broker_process import BrokerProcess

FROM_START: Mapping[str, object] = {"auto.offset.reset": "earliest"}
QUICK: Mapping[str, object] = {**FROM_START, "heartbeat.interval.ms": 300, "session.timeout.ms": 6000}
"""A rebalance is noticed at the next heartbeat: the default of 3 s would only make the tests slow."""

ROUND_ROBIN: Mapping[str, Mapping[str, object]] = {
    "kafka-python": {"partition.assignment.strategy": (RoundRobinPartitionAssignor,)},
    "confluent-kafka": {"partition.assignment.strategy": "roundrobin"},
    "aiokafka": {},
}
"""aiokafka's only default; the others prefer range."""


def join(
    broker: BrokerProcess, client: Client, topic: str, options: Mapping[str, object] | None = None, **more: object
) -> Member:
    """A member of the group that is named like the topic; names in `more` with `_` for `.`."""
    extra = {key.replace("_", "."): value for key, value in more.items()}
    return Member(client, broker.bootstrap, topic, {**QUICK, "group.id": topic, **(options or {}), **extra})


@each_client
def test_members_come_and_go(broker: BrokerProcess, client: Client, topic: str) -> None:
    """One member has all, two have halves, three thirds, and back; under traffic nothing is missed."""
    create_topic(broker, topic, 6)
    with Traffic(broker, topic, 6) as traffic:
        everybody: list[Member] = []
        members: list[Member] = []

        def settled() -> bool:
            return shared_evenly(members, 6)

        for _ in range(3):
            members.append(join(broker, client, topic))
            everybody.append(members[-1])
            wait_until(settled, members)
        while len(members) > 1:
            members.pop(0).close()
            wait_until(settled, members)
        traffic.stop()

        def all_seen() -> bool:
            seen = {(one.partition, one.offset) for member in everybody for one in member.seen}
            return seen == {(partition, offset) for partition, end in traffic.ends.items() for offset in range(end)}

        wait_until(all_seen, members)
        traffic.start()  # a poll that is under way ends with a record
        members.pop().close()


def test_libraries_share_a_group(broker: BrokerProcess, topic: str) -> None:
    """Members of different libraries agree on a protocol and on who has what."""
    create_topic(broker, topic, 6)
    with Traffic(broker, topic, 6):
        members = [join(broker, client, topic, ROUND_ROBIN[client.name]) for client in CLIENTS]
        wait_until(lambda: shared_evenly(members, 6), members)
        for one in members:
            one.close()


@each_client
def test_static_members(broker: BrokerProcess, client: Client, topic: str) -> None:
    """A static member that returns in time gets what it had, and the other members notice nothing."""
    create_topic(broker, topic, 4)
    with Traffic(broker, topic, 4), admin(broker) as manager:
        members = [join(broker, client, topic, group_instance_id=f"member-{i}") for i in range(2)]
        wait_until(lambda: shared_evenly(members, 4), members)
        before = manager.describe_groups([topic])[topic]
        had = members[1].assigned
        members.pop().close()
        members.append(join(broker, client, topic, group_instance_id="member-1"))
        wait_until(lambda: members[1].assigned == had, members)
        after = manager.describe_groups([topic])[topic]
        for one in members:
            one.close()
    ids = [{one["group_instance_id"]: one["member_id"] for one in group["members"]} for group in (before, after)]
    assert ids[0].keys() == ids[1].keys() == {"member-0", "member-1"}
    assert ids[0]["member-0"] == ids[1]["member-0"]
    assert ids[0]["member-1"] != ids[1]["member-1"]
    assert before["group_state"] == after["group_state"] == "Stable"


def consumer_of(broker: BrokerProcess, client: Client, topic: str, **more: object) -> Consumer:
    """The only member of its group."""
    extra = {key.replace("_", "."): value for key, value in more.items()}
    consumer = client.consumer(broker.bootstrap, {**QUICK, "group.id": topic, **extra})
    consumer.subscribe(topic)
    return consumer


@each_client
def test_commits(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Committed at the positions, at given offsets, asynchronously, and by closing; the group goes on there."""
    create_topic(broker, topic, 1)
    where: Partition = (topic, 0)
    with client.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"%d" % i) for i in range(100)])

    def resumes_at(offset: int, **more: object) -> Consumer:
        consumer = consumer_of(broker, client, topic, **more)
        found = poll_until(consumer, lambda records: records)
        assert found[0].offset == offset
        return consumer

    with resumes_at(0, enable_auto_commit=False) as consumer:
        assert consumer.committed(where) is None
        consumer.commit({where: 10})
        assert consumer.committed(where) == 10
    with resumes_at(10, enable_auto_commit=False) as consumer:
        poll_until(consumer, lambda _: consumer.position(where) == 100)
        consumer.commit()
        assert consumer.committed(where) == 100
        consumer.commit({where: 20})
    with resumes_at(20, enable_auto_commit=False) as consumer:
        poll_until(consumer, lambda _: consumer.position(where) == 100)
        answers: list[BaseException | None] = []
        consumer.commit_async(answers.append)
        poll_until(consumer, lambda _: answers)
        assert answers == [None]
        assert consumer.committed(where) == 100
        consumer.commit({where: 30})
    with resumes_at(30) as consumer:
        poll_until(consumer, lambda _: consumer.position(where) == 100)
    with client.consumer(broker.bootstrap, {"group.id": topic}) as consumer:
        assert consumer.committed(where) == 100


@each_client
def test_commit_of_a_stranger_is_refused(broker: BrokerProcess, client: Client, topic: str) -> None:
    """While a group has members, only they commit."""
    with client.producer(broker.bootstrap) as producer:
        producer.send(topic, [Out(b"v")])
    with consumer_of(broker, client, topic) as consumer:
        read(consumer, 1)
        with client.consumer(broker.bootstrap, {"group.id": topic}) as stranger:
            stranger.assign({(topic, 0): "beginning"})
            with pytest.raises(Exception, match=r"(?i)unknown.*member|commit.*failed|illegal"):
                stranger.commit({(topic, 0): 5})
        assert consumer.committed((topic, 0)) != 5


@each_client
def test_group_sees_new_partitions(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Partitions added to a topic are found by the metadata refresh and shared out."""
    create_topic(broker, topic, 1)
    age = "topic.metadata.refresh.interval.ms" if client.name == "confluent-kafka" else "metadata.max.age.ms"
    with Traffic(broker, topic, 1), admin(broker) as manager:
        members = [join(broker, client, topic, {age: 300})]
        wait_until(lambda: shared_evenly(members, 1), members)
        manager.create_partitions({topic: 3})
        with client.producer(broker.bootstrap) as producer:
            producer.send(topic, [Out(b"new", partition=partition) for partition in (1, 2)])
        wait_until(lambda: shared_evenly(members, 3), members)
        wait_until(lambda: {one.partition for one in members[0].seen} == {0, 1, 2}, members)
        members.pop().close()


@each_client
def test_topics_by_pattern(broker: BrokerProcess, client: Client, topic: str) -> None:
    """Topics that appear later are found by the metadata refresh."""
    age = "topic.metadata.refresh.interval.ms" if client.name == "confluent-kafka" else "metadata.max.age.ms"
    options = {**QUICK, "group.id": topic, age: 300}
    with client.producer(broker.bootstrap) as producer, client.consumer(broker.bootstrap, options) as consumer:
        producer.send(f"{topic}-1", [Out(b"1")])
        consumer.subscribe_pattern(topic)
        seen = [one.topic for one in poll_until(consumer, lambda records: records)]
        producer.send(f"{topic}-2", [Out(b"2")])
        seen += [one.topic for one in poll_until(consumer, lambda records: records)]
        assert seen == [f"{topic}-1", f"{topic}-2"]


def test_cooperative_sticky(broker: BrokerProcess, topic: str) -> None:
    """Members keep what stays theirs while partitions move in two steps."""
    create_topic(broker, topic, 6)
    cooperative = {"partition.assignment.strategy": "cooperative-sticky"}
    with Traffic(broker, topic, 6):
        members = [join(broker, confluent, topic, cooperative)]
        wait_until(lambda: shared_evenly(members, 6), members)
        fewest = 6
        members.append(join(broker, confluent, topic, cooperative))

        def halves() -> bool:
            nonlocal fewest
            fewest = min(fewest, len(members[0].assigned))
            return shared_evenly(members, 6)

        wait_until(halves, members)
        assert fewest == 3, "the first member never lost what it kept"
        members.append(join(broker, confluent, topic, cooperative))
        wait_until(lambda: shared_evenly(members, 6), members)
        kept = set(members[1].assigned)
        members.pop(0).close()
        wait_until(lambda: shared_evenly(members, 6), members)
        assert members[0].assigned > kept
        for one in members:
            one.close()
