"""How far a start moves; Kafka's `deleteOldSegments` is the model."""

import pytest

from controller import facts as f
from controller.retention import new_start, sweep
from tests.controller.builders import Cluster

NOW = 1_700_000_000_000


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t")
    for age in (100, 50, 70, 10):
        cluster.commit(100, cluster.log("t"), timestamp=NOW - age)
    return cluster


def start(cluster: Cluster, retention_ms: int = -1, retention_bytes: int = -1, now_ms: int = NOW) -> int:
    return new_start(cluster.state, cluster.log("t"), now_ms, retention_ms, retention_bytes)


@pytest.mark.parametrize(
    ("retention_ms", "expected"),
    [(-1, 0), (100, 0), (99, 10), (50, 10), (49, 30), (10, 30), (9, 40), (0, 40)],
)
def test_by_time_only_from_the_head_on(cluster: Cluster, retention_ms: int, expected: int) -> None:
    assert start(cluster, retention_ms) == expected


@pytest.mark.parametrize(
    ("retention_bytes", "expected"), [(-1, 0), (400, 0), (301, 0), (300, 10), (299, 10), (100, 30), (1, 30), (0, 40)]
)
def test_by_size_never_below_the_limit(cluster: Cluster, retention_bytes: int, expected: int) -> None:
    assert start(cluster, -1, retention_bytes) == expected


def test_both(cluster: Cluster) -> None:
    assert start(cluster, 99, 200) == 20
    assert start(cluster, 49, 400) == 30


def test_ranges_without_timestamps_count_from_their_commit(cluster: Cluster) -> None:
    cluster.create("u")
    cluster.commit(100, cluster.log("u"))
    log = cluster.log("u")
    assert new_start(cluster.state, log, NOW + 50, 50, -1) == 0
    assert new_start(cluster.state, log, NOW + 51, 50, -1) == 10


def test_a_start_inside_a_range_is_not_moved_back(cluster: Cluster) -> None:
    cluster.apply(f.LogStartAdvanced((f.LogStart(0, 5),)))
    assert start(cluster, 100) == 5
    assert start(cluster, 99) == 10


def test_a_sweep_asks_each_topic(cluster: Cluster) -> None:
    cluster.create("compacted", cleanup_policy="compact", retention_ms="0")
    cluster.create("short", retention_ms="0")
    cluster.create("empty", retention_ms="0")
    cluster.commit(100, cluster.log("compacted"), cluster.log("short"), timestamp=NOW - 1)
    found = list(sweep(cluster.state, [*cluster.state.logs, 99], cluster.rules, NOW))
    assert found == [None, None, f.LogStart(2, 10), None, None]
