"""Who recovers an instance that lies in the bucket, from the entry that ends a session; what of it may be deleted."""

import pytest

from controller import commands as c
from controller import facts as f
from controller.collector import FENCE_MS, is_wal_orphan
from controller.state import ClusterState
from controller.wals import ACTIVE, ENDED, LOST, RECOVERING, RETIRED, WalState
from storage.object_store import ObjectInfo
from storage.seal import CommittedThrough, Recovery
from storage.wal.object_format import FENCE_SIZE, object_key
from tests.controller.builders import LISTENERS, Cluster, next_range, wal_id

GROUP_SIZE = FENCE_SIZE + 100


def register(cluster: Cluster, node_id: int, incarnation: int, level: int = f.FORMAT_LEVEL) -> None:
    """A broker without a disk."""
    wals = (c.NewWal(wal_id(incarnation), "objects"),)
    command = c.RegisterBroker(cluster.token(16), node_id, incarnation, "boot", None, LISTENERS, wals, (), level)
    cluster.decide(command)


@pytest.fixture
def cluster() -> Cluster:
    """Three brokers, a topic of six logs; log n is led by node n % 3 + 1."""
    cluster = Cluster()
    for node_id in (1, 2, 3):
        register(cluster, node_id, 100 * node_id)
    cluster.create("t", 6, tidelog_wal="objects")
    return cluster


def wal_of(cluster: Cluster, incarnation: int) -> WalState:
    return cluster.state.wals[wal_id(incarnation)]


def recover(cluster: Cluster, of: int, by: int, number: int) -> None:
    """A whole recovery that finds nothing."""
    cluster.decide(c.ReportScan(cluster.token(16), wal_id(of), by, number, (), 0))
    cluster.decide(c.RetireWal(cluster.token(16), wal_id(of), by, number))


def test_the_least_busy_survivor_is_named_in_the_entry_that_ends_the_session(cluster: Cluster) -> None:
    cluster.end_silently(100)
    assert [type(fact) for fact in cluster.facts] == [f.SessionEnded, f.RecoveryNamed]
    assert cluster.facts[1] == f.RecoveryNamed(wal_id(100), 2, 200, 1)
    register(cluster, 4, 400)
    register(cluster, 1, 101)
    cluster.create("u", 2, tidelog_wal="objects")
    cluster.end_silently(300)
    assert cluster.facts[1] == f.RecoveryNamed(wal_id(300), 1, 101, 1), "node 2 recovers one already"
    assert wal_of(cluster, 100).recoverer_node == 2


def test_two_that_die_together_are_spread(cluster: Cluster) -> None:
    register(cluster, 4, 400)
    cluster.end_silently(100, 200)
    named = [fact for fact in cluster.facts if isinstance(fact, f.RecoveryNamed)]
    assert [(fact.wal_id, fact.node_id) for fact in named] == [(wal_id(100), 3), (wal_id(200), 4)]


def test_a_recoverer_that_dies_gets_a_successor_and_nobody_listens_to_it_any_more(cluster: Cluster) -> None:
    cluster.end_silently(100)
    cluster.end_silently(200)
    named = [fact for fact in cluster.facts if isinstance(fact, f.RecoveryNamed)]
    assert named == [f.RecoveryNamed(wal_id(100), 3, 300, 2), f.RecoveryNamed(wal_id(200), 3, 300, 1)]
    log = cluster.log("t")
    answer = cluster.commit_ranges(300, [next_range(log)], Recovery(wal_id(100), 1))
    assert answer.refused == (log.log_id,)


def test_the_last_broker_leaves_it_to_the_next_one(cluster: Cluster) -> None:
    cluster.end_silently(200, 300)
    recover(cluster, 200, 100, 1)
    recover(cluster, 300, 100, 1)
    cluster.end_silently(100)
    assert wal_of(cluster, 100).state == ENDED
    register(cluster, 5, 500)
    assert f.RecoveryNamed(wal_id(100), 5, 500, 1) in cluster.facts
    recover(cluster, 100, 500, 1)
    assert {log.leader_node for log in cluster.state.logs.values()} == {5}


def test_a_clean_stop_passes_on_what_it_was_recovering(cluster: Cluster) -> None:
    cluster.end_silently(100)
    cluster.decide(c.CleanStop(cluster.token(16), 200))
    assert wal_of(cluster, 200).state == RETIRED
    assert f.RecoveryNamed(wal_id(100), 3, 300, 2) in cluster.facts


def test_an_instance_that_no_log_is_led_through_is_retired_unread(cluster: Cluster) -> None:
    register(cluster, 4, 400)
    cluster.end_silently(400)
    assert [type(fact) for fact in cluster.facts] == [f.SessionEnded, f.WalRetired]
    assert cluster.state.wal_table.closed_ms == {}, "nobody made a fence"


def test_who_does_not_know_how_is_not_named() -> None:
    cluster = Cluster(format_level=1)
    for node_id in (1, 2):
        register(cluster, node_id, 100 * node_id, level=1)
    cluster.create("t", 2, tidelog_wal="objects")
    cluster.end_silently(100)
    assert wal_of(cluster, 100).state == ENDED
    register(cluster, 3, 300, level=2)
    assert wal_of(cluster, 100).recoverer == 300
    recover(cluster, 100, 300, 1)
    assert cluster.state.wal_table.closed_ms == {}, "a process of level 1 could not read the snapshot"


def test_the_controller_finds_what_nobody_was_named_for(cluster: Cluster) -> None:
    cluster.apply(f.SessionEnded(100, "silence", 0))
    cluster.decide(c.RecoverInstances(cluster.token(16)))
    assert cluster.facts == [f.RecoveryNamed(wal_id(100), 2, 200, 1)]
    cluster.decide(c.RecoverInstances(cluster.token(16)))
    assert cluster.facts == []


def test_an_instance_that_is_given_up_needs_nobody(cluster: Cluster) -> None:
    cluster.decide(c.DeclareLost(cluster.token(16), wal_id(100), True))
    assert wal_of(cluster, 100).state == LOST and wal_of(cluster, 100).recovery_number == 0
    assert not any(isinstance(fact, f.RecoveryNamed) for fact in cluster.facts)


def test_a_locked_directory_beside_it_is_recovered_by_its_holder() -> None:
    cluster = Cluster()
    volume, bucket = wal_id(100), wal_id(100, 1)
    wals = (c.NewWal(volume, "volume"), c.NewWal(bucket, "objects"))
    cluster.decide(c.RegisterBroker(cluster.token(16), 1, 100, "boot", None, LISTENERS, wals))
    cluster.create("t")
    cluster.create("u", 1, tidelog_wal="objects")
    answer = cluster.register(1, 101, locked=(volume, bucket))
    assert answer.recoveries == (Recovery(volume, 1),)
    assert [cluster.state.wals[one].state for one in (volume, bucket)] == [RECOVERING, RECOVERING]
    assert cluster.state.wals[bucket].recovery_number == 1


# The collector


def info(incarnation: int, number: int, size: int = GROUP_SIZE) -> ObjectInfo:
    return ObjectInfo(object_key(wal_id(incarnation), 0, number), size, "")


def test_what_is_committed_may_go_and_nothing_else_of_an_active_instance(cluster: Cluster) -> None:
    cluster.seal(100, 1, [next_range(cluster.log("t"))], through=(CommittedThrough(wal_id(100), 5),))
    state, now = cluster.state, cluster.now_ms
    assert is_wal_orphan(state, info(100, 5), now) and not is_wal_orphan(state, info(100, 6), now)
    cluster.end_silently(100)
    assert wal_of(cluster, 100).state == RECOVERING
    assert is_wal_orphan(state, info(100, 5), now) and not is_wal_orphan(state, info(100, 6), now)


def test_everything_of_a_closed_instance_may_go_but_its_fence(cluster: Cluster) -> None:
    cluster.end_silently(100)
    recover(cluster, 100, 200, 1)
    state, now = cluster.state, cluster.now_ms
    assert wal_of(cluster, 100).state == RETIRED and state.wal_table.closed_ms == {wal_id(100): now}
    assert is_wal_orphan(state, info(100, 6), now)
    assert not is_wal_orphan(state, info(100, 7, FENCE_SIZE), now + FENCE_MS - 1)
    assert is_wal_orphan(state, info(100, 7, FENCE_SIZE), now + FENCE_MS)
    again = ClusterState.decode(state.encode())
    assert again == state and is_wal_orphan(again, info(100, 7, FENCE_SIZE), now + FENCE_MS)


def test_what_the_state_does_not_know_stays(cluster: Cluster) -> None:
    state = cluster.state
    assert not is_wal_orphan(state, info(999, 1), cluster.now_ms + 2 * FENCE_MS)
    assert not is_wal_orphan(state, ObjectInfo("wal/notes", 10, ""), cluster.now_ms + 2 * FENCE_MS)
    assert wal_of(cluster, 100).state == ACTIVE
