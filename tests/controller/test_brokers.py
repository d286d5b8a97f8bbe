"""Registration, sessions, clean stop, format level: commands in, facts out."""

import pytest

from controller import commands as c
from controller import facts as f
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Recovery
from tests.controller.builders import LISTENERS, Cluster, wal_id


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def refused(code: ErrorCode) -> "pytest.RaisesExc[KafkaError]":
    return pytest.raises(KafkaError, match=code.name)


def test_registration_names_broker_and_wal(cluster: Cluster) -> None:
    assert cluster.register(1, 100) == c.Registered(())
    assert cluster.facts == [
        f.BrokerRegistered(1, 100, "boot", None, LISTENERS, f.FORMAT_LEVEL, cluster.now_ms),
        f.WalRegistered(wal_id(100), 1, 100, "volume"),
    ]
    assert cluster.state.brokers[1].alive
    assert cluster.state.wals[wal_id(100)].state == "active"


def test_asking_again_with_the_same_id_gets_the_first_answer(cluster: Cluster) -> None:
    wals = (c.NewWal(wal_id(100), "volume"),)
    command = c.RegisterBroker(b"i" * 16, 1, 100, "boot", None, LISTENERS, wals)
    first = cluster.decide(command)
    assert cluster.decide(command) == first
    assert cluster.facts == []
    cluster.end_silently(100)
    assert cluster.decide(command) == first, "even when it is no longer true"


def test_a_registered_incarnation_may_ask_again_under_another_id(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.end_silently(100)
    cluster.register(2, 200, locked=(wal_id(100),))
    assert cluster.register(2, 200) == c.Registered((Recovery(wal_id(100), 1),))
    assert cluster.facts == []


def test_a_live_node_id_is_refused(cluster: Cluster) -> None:
    cluster.register(1, 100)
    with refused(ErrorCode.DUPLICATE_BROKER_REGISTRATION):
        cluster.register(1, 101)
    with refused(ErrorCode.DUPLICATE_BROKER_REGISTRATION):
        cluster.register(1, 101, locked=(b"?" * 16,))


def test_the_lock_on_the_same_kernel_ends_the_old_session_at_once(cluster: Cluster) -> None:
    cluster.register(1, 100)
    answer = cluster.register(1, 101, locked=(wal_id(100),))
    assert answer == c.Registered((Recovery(wal_id(100), 1),))
    assert cluster.facts == [
        f.SessionEnded(100, "restart", cluster.now_ms),
        f.BrokerRegistered(1, 101, "boot", None, LISTENERS, f.FORMAT_LEVEL, cluster.now_ms),
        f.WalRegistered(wal_id(101), 1, 101, "volume"),
        f.RecoveryNamed(wal_id(100), 1, 101, 1),
    ]


def test_the_lock_on_another_kernel_proves_nothing(cluster: Cluster) -> None:
    cluster.register(1, 100)
    with refused(ErrorCode.DUPLICATE_BROKER_REGISTRATION):
        cluster.register(1, 101, locked=(wal_id(100),), boot="another boot")
    cluster.end_silently(100)
    assert cluster.register(1, 101, (wal_id(100),), "another boot") == c.Registered((Recovery(wal_id(100), 1),))


def test_all_old_instances_are_recovered_not_only_the_last(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.register(1, 101, locked=(wal_id(100),))
    answer = cluster.register(1, 102, locked=(wal_id(100), wal_id(101)))
    assert answer == c.Registered((Recovery(wal_id(100), 2), Recovery(wal_id(101), 1)))


def test_an_instance_that_a_live_broker_recovers_is_left_to_it(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.register(2, 200)
    cluster.end_silently(100)
    cluster.decide(c.NameRecoverer(cluster.token(16), wal_id(100), 200))
    assert cluster.register(1, 101, locked=(wal_id(100),)) == c.Registered(())


def test_an_ended_incarnation_never_comes_back(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.end_silently(100)
    with refused(ErrorCode.STALE_BROKER_EPOCH):
        cluster.register(1, 100)
    cluster.register(1, 101)
    cluster.decide(c.DeclareLost(cluster.token(16), wal_id(100), host_is_destroyed=True))
    assert cluster.state.broker_table.closed == {100: 1}, "followed by a newer one, and its WAL is closed"
    with refused(ErrorCode.STALE_BROKER_EPOCH):
        cluster.register(1, 100)
    with refused(ErrorCode.BROKER_ID_NOT_REGISTERED):
        cluster.decide(c.AllocateProducerIds(cluster.token(16), 999))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format_level": 0}, ErrorCode.UNSUPPORTED_VERSION),
        ({"listeners": ()}, ErrorCode.INVALID_REGISTRATION),
        ({"node_id": -1}, ErrorCode.INVALID_REGISTRATION),
        ({"wals": (c.NewWal(b"short", "volume"),)}, ErrorCode.INVALID_REGISTRATION),
        ({"wals": (c.NewWal(b"x" * 16, "paper"),)}, ErrorCode.INVALID_REGISTRATION),
        ({"wals": (c.NewWal(wal_id(9), "volume"),)}, ErrorCode.INVALID_REGISTRATION),
    ],
)
def test_bad_registrations(cluster: Cluster, change: dict[str, object], code: ErrorCode) -> None:
    cluster.register(9, 9)
    fields = {"node_id": 1, "incarnation": 100, "boot_id": "boot", "rack": "a", "listeners": LISTENERS, "wals": ()}
    with refused(code):
        cluster.decide(c.RegisterBroker(cluster.token(16), **{**fields, **change}))  # type: ignore[arg-type]


def test_another_wal_instance_of_a_live_incarnation(cluster: Cluster) -> None:
    cluster.register(1, 100)
    command = c.RegisterWal(cluster.token(16), 100, wal_id(100, 1), "objects")
    assert cluster.decide(command) == c.Done()
    assert cluster.facts == [f.WalRegistered(wal_id(100, 1), 1, 100, "objects")]
    cluster.decide(c.RegisterWal(cluster.token(16), 100, wal_id(100, 1), "objects"))
    assert cluster.facts == []
    with refused(ErrorCode.INVALID_REGISTRATION):
        cluster.decide(c.RegisterWal(cluster.token(16), 100, wal_id(100, 1), "volume"))


def test_ending_a_session_at_once(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.register(2, 200)
    cluster.register(3, 300, boot="another boot")
    for requester, locked in ((200, None), (200, wal_id(200)), (300, wal_id(100))):
        with refused(ErrorCode.CLUSTER_AUTHORIZATION_FAILED):
            cluster.decide(c.EndSession(cluster.token(16), 100, requester, locked))
    cluster.decide(c.EndSession(cluster.token(16), 100, 200, wal_id(100)))
    assert cluster.facts == [f.SessionEnded(100, "restart", cluster.now_ms)]
    cluster.decide(c.EndSession(cluster.token(16), 100, 200, wal_id(100)))
    assert cluster.facts == []
    cluster.decide(c.EndSession(cluster.token(16), 200, 200))
    assert cluster.facts == [f.SessionEnded(200, "request", cluster.now_ms)]


def test_the_end_of_a_session_makes_its_logs_recovering(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.create("t", 2)
    cluster.end_silently(100, 100 + 1)
    assert cluster.facts == [f.SessionEnded(100, "silence", cluster.now_ms)]
    log = cluster.log("t")
    assert (log.status, log.leader_node, log.epoch, log.wal_id) == ("recovering", -1, 0, wal_id(100))
    assert cluster.state.wals[wal_id(100)].state == "ended"


def test_clean_stop_is_one_entry_and_survivors_lead(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.create("t", 2)
    cluster.register(2, 200)
    cluster.decide(c.CleanStop(cluster.token(16), 100))
    assert cluster.facts == [
        f.WalRetired(wal_id(100)),
        f.SessionEnded(100, "clean", cluster.now_ms),
        f.LeaderNamed(0, 2, 200, 1, wal_id(200)),
        f.LeaderNamed(1, 2, 200, 1, wal_id(200)),
    ]
    assert cluster.state.controller_resigned, "it was the controller's own incarnation"
    assert cluster.decide(c.CleanStop(cluster.token(16), 100)) == c.Done()
    assert cluster.facts == []


def test_logs_of_the_last_broker_wait_for_the_next_one(cluster: Cluster) -> None:
    cluster.register(1, 100)
    cluster.create("t", 2)
    cluster.commit(100, cluster.log("t"))
    cluster.decide(c.CleanStop(cluster.token(16), 100))
    log = cluster.log("t")
    assert (log.status, log.leader_node, log.epoch, log.end) == ("open", -1, 0, 10)
    cluster.register(1, 101)
    assert cluster.facts[2:] == [
        f.LeaderNamed(0, 1, 101, 1, wal_id(101)),
        f.LeaderNamed(1, 1, 101, 1, wal_id(101)),
    ]
    assert (log.leader_incarnation, log.epoch, log.epochs) == (101, 1, [(0, 0), (1, 10)])
    assert cluster.log("t", 1).epochs == [(1, 0)], "an epoch without batches is dropped"
