"""From an ended session to open logs, as facts."""

import pytest

from controller import commands as c
from controller import facts as f
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Recovery
from tests.controller.builders import Cluster, next_range, wal_id

LOST = wal_id(100)


def refused(code: ErrorCode) -> "pytest.RaisesExc[KafkaError]":
    return pytest.raises(KafkaError, match=code.name)


@pytest.fixture
def cluster() -> Cluster:
    """Broker 1 led t-0, t-1 and u-0 and is silent; brokers 2 and 3 live."""
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", 2)
    cluster.create("u")
    cluster.commit(100, cluster.log("t"))
    cluster.register(2, 200)
    cluster.register(3, 300)
    cluster.end_silently(100)
    return cluster


def name(cluster: Cluster, incarnation: int = 200) -> Recovery:
    return cluster.decide(c.NameRecoverer(cluster.token(16), LOST, incarnation))


def scan(cluster: Cluster, *logs: f.ScannedLog, number: int = 1, last: int = 9, complete: bool = True) -> c.ScanAnswer:
    return cluster.decide(c.ReportScan(cluster.token(16), LOST, 200, number, logs, last, complete))


def retire(cluster: Cluster, number: int = 1) -> c.Done:
    return cluster.decide(c.RetireWal(cluster.token(16), LOST, 200, number))


def test_the_whole_way(cluster: Cluster) -> None:
    assert name(cluster) == Recovery(LOST, 1)
    assert cluster.facts == [f.RecoveryNamed(LOST, 2, 200, 1)]

    found = f.ScannedLog(0, 5, 30)
    assert scan(cluster, found, f.ScannedLog(999, 0, 5)) == c.ScanAnswer((c.ReplayLog(0, 0, 10, 30),))
    assert cluster.facts == [
        f.WalScanned(LOST, 1, (found,), 9),
        f.LeaderNamed(1, 2, 200, 1, wal_id(200)),
        f.LeaderNamed(2, 3, 300, 1, wal_id(300)),
    ], "logs not listed open now, spread over the survivors"

    log = cluster.log("t")
    assert cluster.seal(200, 1, [next_range(log, 20)], Recovery(LOST, 1)).refused == ()
    assert log.end == 30
    retire(cluster)
    named = f.LeaderNamed(0, 3, 300, 1, wal_id(300))
    assert cluster.facts == [f.WalRetired(LOST), named], "where the topic has no other partition"
    assert log.status == "open"
    assert cluster.state.wals[LOST].state == "retired"
    retire(cluster)
    assert cluster.facts == [], "asking again is harmless"


def test_no_log_opens_before_the_scan_is_a_fact(cluster: Cluster) -> None:
    name(cluster)
    assert {log.status for log in cluster.state.logs.values()} == {"recovering"}
    with refused(ErrorCode.INVALID_REQUEST):
        retire(cluster)


def test_what_the_scan_holds_below_the_committed_end_needs_no_replay(cluster: Cluster) -> None:
    name(cluster)
    assert scan(cluster, f.ScannedLog(0, 0, 10)) == c.ScanAnswer(())
    assert cluster.log("t").status == "open"


def test_one_recoverer_at_a_time_and_a_dead_one_gets_a_successor(cluster: Cluster) -> None:
    name(cluster)
    with refused(ErrorCode.CONCURRENT_TRANSACTIONS):
        name(cluster, 300)
    assert name(cluster) == Recovery(LOST, 1)
    scan(cluster, f.ScannedLog(0, 0, 30))
    cluster.end_silently(200)
    assert cluster.state.wals[LOST].state == "ended"
    assert name(cluster, 300) == Recovery(LOST, 2)
    assert cluster.state.wals[LOST].recoverer == 300
    with refused(ErrorCode.STALE_BROKER_EPOCH):
        scan(cluster)


def test_only_the_named_recoverer_counts(cluster: Cluster) -> None:
    name(cluster, 300)
    with refused(ErrorCode.FENCED_STATE_EPOCH):
        scan(cluster)
    cluster.end_silently(300)
    name(cluster)
    with refused(ErrorCode.FENCED_STATE_EPOCH):
        scan(cluster, number=1)
    with refused(ErrorCode.FENCED_STATE_EPOCH):
        retire(cluster, number=1)


def test_a_second_recovery_scans_again_and_finishes(cluster: Cluster) -> None:
    name(cluster, 300)
    cluster.decide(c.ReportScan(cluster.token(16), LOST, 300, 1, (f.ScannedLog(0, 0, 30),), 9))
    cluster.seal(300, 1, [next_range(cluster.log("t"), 5)], Recovery(LOST, 1))
    cluster.end_silently(300)
    name(cluster)
    assert scan(cluster, f.ScannedLog(0, 0, 30), number=2) == c.ScanAnswer((c.ReplayLog(0, 0, 15, 30),))
    cluster.seal(200, 1, [next_range(cluster.log("t"), 15)], Recovery(LOST, 2))
    retire(cluster, 2)
    assert cluster.log("t").status == "open"


def test_an_active_instance_has_no_recoverer(cluster: Cluster) -> None:
    with refused(ErrorCode.CONCURRENT_TRANSACTIONS):
        cluster.decide(c.NameRecoverer(cluster.token(16), wal_id(300), 200))
    with refused(ErrorCode.RESOURCE_NOT_FOUND):
        cluster.decide(c.NameRecoverer(cluster.token(16), b"?" * 16, 200))


def test_retiring_before_everything_is_committed_is_refused(cluster: Cluster) -> None:
    name(cluster)
    scan(cluster, f.ScannedLog(0, 0, 30))
    with pytest.raises(KafkaError, match=r"t-0 ends at 10, WAL .* holds up to 30"):
        retire(cluster)


def test_a_deleted_topic_needs_no_recovery(cluster: Cluster) -> None:
    name(cluster)
    scan(cluster, f.ScannedLog(0, 0, 30))
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    retire(cluster)
    assert cluster.facts == [f.WalRetired(LOST)]


def test_a_stale_copy_is_refused(cluster: Cluster) -> None:
    cluster.apply(f.LeaseExtended((f.WalGroup(LOST, 7), f.WalGroup(b"?" * 16, 3))))
    name(cluster)
    with refused(ErrorCode.INVALID_RECORD_STATE):
        scan(cluster, last=6)
    cluster.heard.validated[LOST] = 8  # type: ignore[index]
    with refused(ErrorCode.INVALID_RECORD_STATE):
        scan(cluster, last=7)
    scan(cluster, last=8)


def test_a_copy_that_lacks_what_is_committed_is_refused(cluster: Cluster) -> None:
    """Its broker's word of what it acknowledged may have come late; what it committed, it had acknowledged before."""
    cluster.state.wals[LOST].committed[0] = 7
    name(cluster)
    with refused(ErrorCode.INVALID_RECORD_STATE):
        scan(cluster, last=6)
    scan(cluster, last=7)


def test_a_damaged_instance_opens_nothing_until_the_loss_is_declared(cluster: Cluster) -> None:
    name(cluster)
    found = f.ScannedLog(0, 0, 30)
    assert scan(cluster, found, last=3, complete=False) == c.ScanAnswer((c.ReplayLog(0, 0, 10, 30),))
    assert cluster.facts == [f.WalScanned(LOST, 1, (found,), 3, False)]
    cluster.seal(200, 1, [next_range(cluster.log("t"), 20)], Recovery(LOST, 1))
    with refused(ErrorCode.INVALID_REQUEST):
        retire(cluster)
    report = cluster.decide(c.DeclareLost(cluster.token(16), LOST, True, recovered_group=3))
    assert report.recovered_group == 3
    assert [log.from_offset for log in report.logs] == [30, 0, 0]
    assert {log.status for log in cluster.state.logs.values()} == {"open"}


def test_declaring_a_loss(cluster: Cluster) -> None:
    cluster.apply(f.LeaseExtended((f.WalGroup(LOST, 7),)))
    report = cluster.decide(c.DeclareLost(cluster.token(16), LOST, host_is_destroyed=True))
    gap = f.LOSS_GAP
    assert report == c.LossReport(
        LOST,
        1,
        100,
        cluster.now_ms,
        7,
        0,
        (c.LostLog(0, "t", 0, 10, 10 + gap), c.LostLog(1, "t", 1, 0, gap), c.LostLog(2, "u", 0, 0, gap)),
    )
    assert cluster.facts == [
        f.WalLost(LOST, 7, 0, cluster.now_ms),
        f.LossDeclared(0, 10, 10 + gap),
        f.LossDeclared(1, 0, gap),
        f.LossDeclared(2, 0, gap),
        f.LeaderNamed(0, 2, 200, 1, wal_id(200)),
        f.LeaderNamed(1, 3, 300, 1, wal_id(300)),
        f.LeaderNamed(2, 2, 200, 1, wal_id(200)),
    ]
    log = cluster.log("t")
    assert (log.start, log.end, log.epochs) == (0, 10 + gap, [(0, 0), (1, 10 + gap)])
    assert cluster.state.ranges(0, 15) == [], "the hole holds nothing, and nothing lies behind it yet"
    cluster.commit(200, log)
    assert [row.range.base for row in cluster.state.ranges(0, 15)] == [10 + gap]
    assert cluster.decide(c.DeclareLost(cluster.token(16), LOST)) == report, "told again, not done again"
    assert cluster.facts == []
    with refused(ErrorCode.INVALID_REQUEST):
        name(cluster)


def test_a_loss_is_not_declared_while_the_writer_may_return(cluster: Cluster) -> None:
    command = c.DeclareLost(cluster.token(16), LOST)
    cluster.now_ms += 30 * 60_000 - 1
    with pytest.raises(KafkaError, match="try again in 1 min"):
        cluster.decide(command)
    with pytest.raises(KafkaError, match="live session"):
        cluster.decide(c.DeclareLost(cluster.token(16), wal_id(200)))
    cluster.now_ms += 1
    assert cluster.decide(command).logs
    with refused(ErrorCode.RESOURCE_NOT_FOUND):
        cluster.decide(c.DeclareLost(cluster.token(16), b"?" * 16))


def test_a_destroyed_host_ends_the_session_in_the_same_entry(cluster: Cluster) -> None:
    cluster.create("v", 2)
    cluster.decide(c.DeclareLost(cluster.token(16), wal_id(200), host_is_destroyed=True))
    assert cluster.facts[0] == f.SessionEnded(200, "lost", cluster.now_ms)
    assert cluster.facts[-1] == f.LeaderNamed(3, 3, 300, 1, wal_id(300))


def test_an_instance_without_logs_retires_on_its_brokers_word(cluster: Cluster) -> None:
    cluster.decide(c.RegisterWal(cluster.token(16), 200, wal_id(200, 1), "objects"))
    cluster.decide(c.RetireWal(cluster.token(16), wal_id(200, 1), 200, 0))
    assert cluster.facts == [f.WalRetired(wal_id(200, 1))]
    cluster.create("v", 2)
    with refused(ErrorCode.INVALID_REQUEST):
        cluster.decide(c.RetireWal(cluster.token(16), wal_id(200), 200, 0))
    with refused(ErrorCode.INVALID_REQUEST):
        cluster.decide(c.DeclareLost(cluster.token(16), wal_id(200, 1)))
