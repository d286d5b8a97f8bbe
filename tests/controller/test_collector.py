"""What may be deleted: conditions that never become false again."""

from controller import commands as c
from controller.collector import Grace, is_orphan
from tests.controller.builders import Cluster, wal_id


def key(incarnation: int, seal: int, part: int = 0) -> str:
    return f"segments/1/{incarnation:016x}/{seal}-{part}"


def test_an_unnamed_object_goes_only_when_nothing_can_name_it() -> None:
    cluster = Cluster()
    assert not is_orphan(cluster.state, key(100, 1)), "not registered yet, as far as this view knows"
    cluster.register(1, 100)
    cluster.create("t")
    cluster.commit(100, cluster.log("t"))
    cluster.seal(100, 2, [], parts=1)
    assert not is_orphan(cluster.state, key(100, 1)), "named"
    assert not is_orphan(cluster.state, key(100, 2)), "doomed: its grace runs"
    assert is_orphan(cluster.state, key(100, 2, 1)), "its seal is over"
    assert not is_orphan(cluster.state, key(100, 3)), "may still be committed"
    for odd in ("segments/1/x/1-0", "meta/entries/1", "segments/1/0000000000000064/1-0/more"):
        assert not is_orphan(cluster.state, odd)
    cluster.register(2, 200)
    cluster.end_silently(100)
    assert not is_orphan(cluster.state, key(100, 3)), "its instance is not retired"
    cluster.decide(c.DeclareLost(cluster.token(16), wal_id(100), host_is_destroyed=True))
    assert is_orphan(cluster.state, key(100, 3))
    cluster.register(1, 101)
    assert cluster.state.broker_table.closed or cluster.state.broker_table.incarnations[100]
    assert is_orphan(cluster.state, key(100, 3)) and not is_orphan(cluster.state, key(100, 1))


def test_an_incarnation_without_instances_is_over_with_its_session() -> None:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.decide(c.RetireWal(cluster.token(16), wal_id(100), 100, 0))
    assert not is_orphan(cluster.state, key(100, 1)), "alive: it may commit a recovery"
    cluster.end_silently(100)
    assert is_orphan(cluster.state, key(100, 1))


def test_the_grace_counts_from_the_first_sight_and_is_forgotten_with_the_key() -> None:
    grace = Grace(100)
    assert grace.due(["a"], 0, 10) == []
    assert grace.due(["a", "b"], 99, 10) == []
    assert grace.due(["a", "b"], 100, 10) == ["a"]
    assert grace.due(["b"], 199, 10) == ["b"]
    assert grace.due(["a", "b", "c"], 299, 10) == ["b"]
    assert grace.due(["a", "b", "c"], 999, 2) == ["a", "b"]
