"""AlterConfigs and IncrementalAlterConfigs."""

from collections.abc import Collection, Mapping

import pytest

from controller import commands as c
from controller import facts as f
from controller.configs import APPEND, BROKER, DELETE, SET, SUBTRACT, TOPIC, PlainRules
from protocol.errors import ErrorCode, KafkaError
from tests.controller.builders import Cluster


class Picky(PlainRules):
    def validate(
        self, resource_type: int, resource_name: str, overrides: Mapping[str, str], changed: Collection[str] = ()
    ) -> None:
        if overrides.get("a") == "bad":
            raise KafkaError(ErrorCode.INVALID_CONFIG, "bad a")


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.rules = Picky()
    cluster.register(1, 100)
    cluster.create("t", a="1", b="2")
    return cluster


def alter(
    cluster: Cluster,
    *changes: tuple[str, int, str | None],
    topic: str = "t",
    kind: int = TOPIC,
    replace: bool = False,
    validate_only: bool = False,
) -> ErrorCode:
    wanted = c.ConfigAlteration(kind, topic, replace, tuple(c.ConfigChange(*change) for change in changes))
    answer = cluster.decide(c.AlterConfigs(cluster.token(16), (wanted,), validate_only))
    return ErrorCode(answer.results[0].error_code)


def test_incremental_changes_touch_only_what_they_name(cluster: Cluster) -> None:
    assert alter(cluster, ("a", SET, "9"), ("c", SET, "3"), ("b", DELETE, None)) is ErrorCode.NONE
    assert cluster.facts == [f.ConfigsChanged(TOPIC, "t", (("a", "9"), ("b", None), ("c", "3")))]
    assert cluster.state.topics["t"].configs == {"a": "9", "c": "3"}


def test_replacing_drops_what_it_does_not_name(cluster: Cluster) -> None:
    assert alter(cluster, ("a", SET, "1"), replace=True) is ErrorCode.NONE
    assert cluster.facts == [f.ConfigsChanged(TOPIC, "t", (("b", None),))]


def test_no_difference_no_fact(cluster: Cluster) -> None:
    assert alter(cluster, ("a", SET, "1"), ("zzz", DELETE, None)) is ErrorCode.NONE
    assert cluster.facts == []


def test_lists(cluster: Cluster) -> None:
    policy = "cleanup.policy"
    alter(cluster, (policy, APPEND, "compact"))
    assert cluster.state.topics["t"].configs[policy] == "delete,compact", "the default counts as present"
    alter(cluster, (policy, APPEND, "compact , delete"))
    assert cluster.facts == []
    alter(cluster, (policy, APPEND, "x,x"))
    assert cluster.state.topics["t"].configs[policy] == "delete,compact,x", (
        "what comes twice is added once, as in Kafka"
    )
    alter(cluster, (policy, SUBTRACT, "delete,x"))
    assert cluster.state.topics["t"].configs[policy] == "compact"
    assert alter(cluster, ("a", APPEND, "x")) is ErrorCode.INVALID_CONFIG
    assert alter(cluster, ("a", SUBTRACT, "x")) is ErrorCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("a", SET, "bad")], ErrorCode.INVALID_CONFIG),
        ([("a", SET, None)], ErrorCode.INVALID_REQUEST),
        ([("a", SET, "1"), ("a", SET, "2")], ErrorCode.INVALID_REQUEST),
        ([("a", 9, "1")], ErrorCode.INVALID_REQUEST),
    ],
)
def test_refusals(cluster: Cluster, changes: list[tuple[str, int, str | None]], expected: ErrorCode) -> None:
    assert alter(cluster, *changes) is expected
    assert cluster.facts == []


def test_unknown_topics_and_repeated_resources(cluster: Cluster) -> None:
    assert alter(cluster, ("a", SET, "1"), topic="x") is ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert alter(cluster, ("a", SET, "1"), topic="?") is ErrorCode.INVALID_TOPIC_EXCEPTION
    assert alter(cluster, ("a", SET, "1"), topic="") is ErrorCode.INVALID_REQUEST
    one = c.ConfigAlteration(TOPIC, "t", False, (c.ConfigChange("a", SET, "7"),))
    results = cluster.decide(c.AlterConfigs(cluster.token(16), (one, one))).results
    assert [result.error_code for result in results] == [ErrorCode.INVALID_REQUEST] * 2


def test_validating_changes_nothing(cluster: Cluster) -> None:
    assert alter(cluster, ("a", SET, "7"), validate_only=True) is ErrorCode.NONE
    assert cluster.facts == []


def test_broker_configs_lie_beside_the_topics(cluster: Cluster) -> None:
    assert alter(cluster, ("log.retention.ms", SET, "7"), kind=BROKER, topic="") is ErrorCode.NONE
    assert cluster.state.configs == {(BROKER, ""): {"log.retention.ms": "7"}}
    alter(cluster, ("log.retention.ms", DELETE, None), kind=BROKER, topic="")
    assert cluster.state.configs == {}


def test_plain_rules() -> None:
    rules = PlainRules()
    rules.validate(TOPIC, "t", {})
    assert rules.retention({}) == (604_800_000, -1)
    assert rules.retention({"cleanup.policy": "compact"}) is None
    assert rules.retention({"cleanup.policy": "compact,delete", "retention.ms": "-1"}) == (-1, -1)
    assert (rules.default_partitions(), rules.default_replication()) == (1, 1)
    assert rules.wal_kind({"tidelog.wal": "objects"}, False) == "objects"
