"""Create, grow, delete topics: facts and Kafka's refusals."""

import pytest

from controller import commands as c
from controller import facts as f
from controller.decide import Limits
from controller.decide.topics import _new_topic_id
from controller.topics import topic_name_problem
from protocol.errors import ErrorCode
from tests.controller.builders import Cluster, wal_id


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register(1, 100)
    return cluster


def create(cluster: Cluster, *topics: c.NewTopic, validate_only: bool = False) -> list[c.TopicResult]:
    return list(cluster.decide(c.CreateTopics(cluster.token(16), topics, validate_only)).results)


def code(cluster: Cluster, topic: c.NewTopic) -> ErrorCode:
    return ErrorCode(create(cluster, topic)[0].error_code)


def test_a_topic_gets_its_leaders_in_the_same_entry(cluster: Cluster) -> None:
    result = create(cluster, c.NewTopic("t", 2, 3, (("retention.ms", "5"),)))[0]
    topic = cluster.state.topics["t"]
    assert result == c.TopicResult("t", 0, None, topic.topic_id, 2, 3)
    assert cluster.facts == [
        f.TopicCreated("t", topic.topic_id, False, (0, 1), (("retention.ms", "5"),), 3),
        f.LeaderNamed(0, 1, 100, 0, wal_id(100)),
        f.LeaderNamed(1, 1, 100, 0, wal_id(100)),
    ]
    assert cluster.state.topic_by_id[topic.topic_id] is topic
    log = cluster.log("t", 1)
    assert (log.topic, log.partition, log.leader_node, log.epoch, log.status) == ("t", 1, 1, 0, "open")


def test_logs_spread_over_brokers(cluster: Cluster) -> None:
    create(cluster, c.NewTopic("t", 3))
    cluster.register(2, 200)
    create(cluster, c.NewTopic("u", 4), c.NewTopic("v", 1))
    leaders = [log.leader_node for log in cluster.state.logs.values()]
    assert leaders == [1, 1, 1, 2, 1, 2, 1, 2], "each topic spread; then least loaded first, counted over the entry"


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 250, "a b", "a/b", "ä", "a\n"])
def test_names_that_kafka_does_not_allow(cluster: Cluster, name: str) -> None:
    assert code(cluster, c.NewTopic(name, 1)) is ErrorCode.INVALID_TOPIC_EXCEPTION
    assert topic_name_problem(name)


def test_names_that_kafka_allows() -> None:
    for name in ("a" * 249, "...", "A-b_c.9"):
        assert topic_name_problem(name) is None


def test_colliding_names(cluster: Cluster) -> None:
    create(cluster, c.NewTopic("a.b"))
    assert code(cluster, c.NewTopic("a.b")) is ErrorCode.TOPIC_ALREADY_EXISTS
    assert code(cluster, c.NewTopic("a_b")) is ErrorCode.INVALID_TOPIC_EXCEPTION
    both = create(cluster, c.NewTopic("c.d"), c.NewTopic("c_d"), c.NewTopic("e"), c.NewTopic("e"))
    assert [ErrorCode(result.error_code).name for result in both] == [
        "NONE",
        "INVALID_TOPIC_EXCEPTION",
        "INVALID_REQUEST",
        "INVALID_REQUEST",
    ]


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        (c.NewTopic("t", 0), ErrorCode.INVALID_PARTITIONS),
        (c.NewTopic("t", -2), ErrorCode.INVALID_PARTITIONS),
        (c.NewTopic("t", 1, 0), ErrorCode.INVALID_REPLICATION_FACTOR),
        (c.NewTopic("t", 1, -2), ErrorCode.INVALID_REPLICATION_FACTOR),
        (c.NewTopic("t", 1, 99), ErrorCode.NONE),
        (c.NewTopic("t", -1, -1), ErrorCode.NONE),
        (c.NewTopic("t", 10_001), ErrorCode.POLICY_VIOLATION),
        (c.NewTopic("t", configs=(("retention.ms", None),)), ErrorCode.INVALID_CONFIG),
        (c.NewTopic("t", configs=(("tidelog.wal", "objects"),)), ErrorCode.INVALID_CONFIG),
        (c.NewTopic("t", 2, assignments=((0, (1,)),)), ErrorCode.INVALID_REQUEST),
        (c.NewTopic("t", assignments=((0, (1,)),)), ErrorCode.NONE),
        (c.NewTopic("t", assignments=((1, (1,)),)), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.NewTopic("t", assignments=((0, (1,)), (0, (1,)))), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.NewTopic("t", assignments=((0, ()),)), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.NewTopic("t", assignments=((0, (1, 1)),)), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
        (c.NewTopic("t", assignments=((0, (7,)),)), ErrorCode.INVALID_REPLICA_ASSIGNMENT),
    ],
)
def test_shapes(cluster: Cluster, topic: c.NewTopic, expected: ErrorCode) -> None:
    assert code(cluster, topic) is expected
    assert bool(cluster.facts) == (expected is ErrorCode.NONE)


def test_assignments_name_the_leader(cluster: Cluster) -> None:
    cluster.register(2, 200)
    cluster.register(3, 300)
    cluster.end_silently(300)
    result = create(cluster, c.NewTopic("t", assignments=((1, (2, 1)), (0, (3, 2)), (2, (3, 1)))))[0]
    assert (result.partitions, result.replication_factor) == (3, 2)
    assert [log.leader_node for log in cluster.state.logs.values()] == [2, 2, 1], "the first that is alive"
    odd = c.NewTopic("u", assignments=((0, (1, 2)), (1, (1,))))
    assert code(cluster, odd) is ErrorCode.INVALID_REPLICA_ASSIGNMENT


def test_validating_creates_nothing(cluster: Cluster) -> None:
    results = create(cluster, c.NewTopic("t", 4), c.NewTopic("u", 0), validate_only=True)
    assert [result.error_code for result in results] == [0, ErrorCode.INVALID_PARTITIONS]
    assert (results[0].partitions, results[0].topic_id) == (4, bytes(16))
    assert not cluster.state.topics


def test_without_a_live_broker_nothing_is_created(cluster: Cluster) -> None:
    cluster.end_silently(100)
    assert code(cluster, c.NewTopic("t")) is ErrorCode.INVALID_REPLICATION_FACTOR


def test_the_cluster_has_a_bound(cluster: Cluster) -> None:
    cluster.limits = Limits(logs=3)
    results = create(cluster, c.NewTopic("t", 2), c.NewTopic("u", 2), c.NewTopic("v", 1))
    assert [result.error_code for result in results] == [0, ErrorCode.POLICY_VIOLATION, 0]


def test_internal_topics_are_compacted_and_created_once(cluster: Cluster) -> None:
    def ask() -> c.TopicResult:
        command = c.CreateInternalTopic(cluster.token(16), "__consumer_offsets", 50, 3)
        return cluster.decide(command).results[0]

    first = ask()
    topic = cluster.state.topics["__consumer_offsets"]
    assert (topic.internal, topic.configs, len(topic.log_ids)) == (True, {"cleanup.policy": "compact"}, 50)
    assert ask() == first and first.error_code == 0
    assert cluster.facts == []
    create(cluster, c.NewTopic("__transaction_state"))
    assert cluster.state.topics["__transaction_state"].internal


def test_more_partitions(cluster: Cluster) -> None:
    create(cluster, c.NewTopic("t", 2))

    def grow(*more: c.MorePartitions, validate_only: bool = False) -> list[ErrorCode]:
        answer = cluster.decide(c.CreatePartitions(cluster.token(16), more, validate_only))
        return [ErrorCode(result.error_code) for result in answer.results]

    assert grow(c.MorePartitions("t", 4), validate_only=True) == [ErrorCode.NONE]
    assert cluster.facts == []
    assert grow(c.MorePartitions("t", 4)) == [ErrorCode.NONE]
    assert cluster.facts == [
        f.PartitionsAdded(cluster.state.topics["t"].topic_id, (2, 3)),
        f.LeaderNamed(2, 1, 100, 0, wal_id(100)),
        f.LeaderNamed(3, 1, 100, 0, wal_id(100)),
    ]
    assert cluster.log("t", 3).partition == 3
    assert grow(c.MorePartitions("t", 4)) == [ErrorCode.INVALID_PARTITIONS]
    assert grow(c.MorePartitions("t", 3)) == [ErrorCode.INVALID_PARTITIONS]
    assert grow(c.MorePartitions("u", 3)) == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
    assert grow(c.MorePartitions("t", 6, ((1,),))) == [ErrorCode.INVALID_REPLICA_ASSIGNMENT]
    assert grow(c.MorePartitions("t", 5, ((9,),))) == [ErrorCode.INVALID_REPLICA_ASSIGNMENT]
    assert grow(c.MorePartitions("t", 5, ((1,),))) == [ErrorCode.NONE]
    assert grow(c.MorePartitions("t", 20_000)) == [ErrorCode.POLICY_VIOLATION]
    assert grow(c.MorePartitions("t", 7), c.MorePartitions("t", 8)) == [ErrorCode.INVALID_REQUEST] * 2


def test_deleting_by_name_and_by_id(cluster: Cluster) -> None:
    create(cluster, c.NewTopic("t", 2), c.NewTopic("u"))
    cluster.commit(100, cluster.log("t"), cluster.log("u"))
    t, u = cluster.state.topics["t"], cluster.state.topics["u"]
    both = (c.TopicRef("t"), c.TopicRef(None, t.topic_id))
    (refused,) = cluster.decide(c.DeleteTopics(cluster.token(16), both)).results
    assert (refused.name, refused.error_code, refused.topic_id) == ("t", ErrorCode.INVALID_REQUEST, t.topic_id)
    assert cluster.facts == [], "what is named twice is not deleted"
    refs = (c.TopicRef(None, t.topic_id), c.TopicRef("?"), c.TopicRef(None, b"?" * 16))
    results = cluster.decide(c.DeleteTopics(cluster.token(16), refs)).results
    assert [ErrorCode(result.error_code).name for result in results] == [
        "NONE",
        "UNKNOWN_TOPIC_OR_PARTITION",
        "UNKNOWN_TOPIC_ID",
    ]
    assert results[0] == c.TopicResult("t", 0, None, t.topic_id, 2, 1)
    assert cluster.facts == [f.TopicDeleted(t.topic_id)]
    assert set(cluster.state.logs) == {2}
    assert not cluster.state.objects.doomed, "u still lies in the object"
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef(None, u.topic_id),)))
    assert list(cluster.state.objects.doomed) == ["segments/1/0000000000000064/1-0"]
    assert cluster.state.log_index.range_total == 0


def test_a_name_is_free_when_every_old_leader_knows_or_is_gone(cluster: Cluster) -> None:
    def again() -> ErrorCode:
        return code(cluster, c.NewTopic("t"))

    for end in ("applied", "session"):
        create(cluster, c.NewTopic("t"))
        cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
        deleted_at = cluster.state.position
        cluster.heard.applied[100] = deleted_at - 1  # type: ignore[index]
        assert again() is ErrorCode.TOPIC_ALREADY_EXISTS
        cluster.decide(c.FreeNames(cluster.token(16), ("t", "unknown")))
        assert cluster.facts == []
        if end == "applied":
            cluster.heard.applied[100] = deleted_at  # type: ignore[index]
            assert again() is ErrorCode.NONE
            cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
            cluster.heard.applied[100] = cluster.state.position  # type: ignore[index]
            cluster.decide(c.FreeNames(cluster.token(16), ("t", "unknown")))
            assert cluster.facts == [f.NamesFreed(("t",))]
            assert not cluster.state.topic_table.deleted
        else:
            cluster.register(2, 200)
            cluster.end_silently(100)
            assert again() is ErrorCode.NONE


def test_ids_are_never_used_again(cluster: Cluster) -> None:
    create(cluster, c.NewTopic("t"))
    first = cluster.state.topics["t"].topic_id
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    cluster.heard.applied[100] = cluster.state.position  # type: ignore[index]
    create(cluster, c.NewTopic("t"))
    assert cluster.state.topics["t"].topic_id != first
    assert cluster.state.topics["t"].log_ids == [1]


def test_topic_ids_are_random_uuids_without_a_leading_dash(cluster: Cluster) -> None:
    given = [b"\xfb" * 16, b"\x01" * 16]
    cluster.token = lambda n: given.pop(0) if len(given) and n == 16 else bytes(n)
    context = cluster.context()
    topic_id = _new_topic_id(cluster.state, context.token)
    assert topic_id == bytes.fromhex("01010101010141018101010101010101")
