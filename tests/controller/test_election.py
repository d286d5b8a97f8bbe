from controller import facts as f
from controller.election import Election, Identity, is_over
from controller.state import ClusterState
from tests.controller.builders import Cluster, wal_id

LEASE = 3_000


def election(**parts: object) -> Election:
    made = Election(Identity(2, 200, (wal_id(200),), **parts), LEASE)  # type: ignore[arg-type]
    made.observed(10_000)
    return made


def test_an_empty_log_is_anybodys() -> None:
    assert election().may_take_over(ClusterState("A" * 22), 10_000)
    assert not election(eligible=False).may_take_over(ClusterState("A" * 22), 10_000)


def test_a_lease_is_respected() -> None:
    state = Cluster().state
    assert not election().may_take_over(state, 12_999)
    assert election().may_take_over(state, 13_000)
    assert not election(eligible=False).may_take_over(state, 99_000)


def test_a_lock_proves_that_the_controller_is_gone() -> None:
    cluster = Cluster()
    assert not election(locked=(wal_id(1),)).may_take_over(cluster.state, 10_000)
    cluster.apply(f.ControllerElected(2, 1, 100, (wal_id(100),)))
    assert election(locked=(wal_id(1), wal_id(100))).may_take_over(cluster.state, 10_000)
    cluster.register(1, 100)
    cluster.apply(f.ControllerElected(3, 1, 100))
    assert election(locked=(wal_id(100),)).may_take_over(cluster.state, 10_000), "known by its registration"


def test_nobody_waits_for_one_that_resigned_or_whose_session_was_ended() -> None:
    cluster = Cluster()
    cluster.apply(f.ControllerResigned(1))
    assert election().may_take_over(cluster.state, 10_000)
    cluster.register(2, 201)
    cluster.apply(f.ControllerElected(2, 2, 201))
    assert not election().may_take_over(cluster.state, 10_000)
    cluster.end_silently(201)
    assert election().may_take_over(cluster.state, 10_000)


def test_the_same_incarnation_goes_on_and_an_ended_one_never() -> None:
    cluster = Cluster()
    cluster.register(2, 200)
    cluster.apply(f.ControllerElected(2, 2, 200))
    assert election().may_take_over(cluster.state, 10_000)
    cluster.end_silently(200)
    assert is_over(cluster.state, 200) and not is_over(cluster.state, 999)
    assert not election().may_take_over(cluster.state, 99_000)


def test_followers_look_calmly() -> None:
    assert election().wait_ms(10_000) == 500
    assert election().wait_ms(12_900) == 100
    assert election().wait_ms(99_000) == 500
