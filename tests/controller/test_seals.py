"""CommitSeal: numbers, verdict per range, objects."""

import dataclasses

import pytest

from controller import commands as c
from controller import facts as f
from controller.decide import Limits
from protocol.errors import ErrorCode, KafkaError
from storage.seal import CommitAnswer, CommittedThrough, Range, RangeRow, Recovery
from tests.controller.builders import Cluster, next_range, seal_command, wal_id


def refused(code: ErrorCode) -> "pytest.RaisesExc[KafkaError]":
    return pytest.raises(KafkaError, match=code.name)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", 3)
    return cluster


def test_a_seal_makes_ranges_part_of_their_logs(cluster: Cluster) -> None:
    ranges = [next_range(cluster.log("t", partition), 10 + partition) for partition in range(3)]
    through = (CommittedThrough(wal_id(100), 5), CommittedThrough(b"?" * 16, 5))
    answer = cluster.seal(100, 1, ranges, parts=2, through=through)
    assert answer == CommitAnswer((), cluster.state.position)
    assert [log.end for log in cluster.state.logs.values()] == [10, 11, 12]
    assert cluster.state.wals[wal_id(100)].committed == {0: 5}
    row = RangeRow("segments/1/0000000000000064/1-0", 1000, ranges[0])
    assert cluster.state.ranges(0, 0) == [row]
    assert cluster.state.ranges(0, 9) == [row]
    assert cluster.state.ranges(0, 10) == []
    assert cluster.state.newest_range(0) == row
    assert cluster.state.range_at(0, 0) == row
    assert cluster.state.bytes(0) == 100
    assert cluster.state.newest_range(999) is None and cluster.state.ranges(999, 0) == []
    assert cluster.state.bytes(999) == 0


def test_a_repeat_gets_the_first_answer(cluster: Cluster) -> None:
    stale = next_range(cluster.log("t", 1))._replace(base=3, end=5)
    command = seal_command(100, 1, [next_range(cluster.log("t")), stale])
    first = cluster.decide(command)
    assert first == CommitAnswer((1,), cluster.state.position)
    cluster.create("u")
    assert cluster.decide(command) == first
    assert cluster.facts == []


def test_only_the_next_seal_is_taken(cluster: Cluster) -> None:
    cluster.commit(100, cluster.log("t"))
    with refused(ErrorCode.THROTTLING_QUOTA_EXCEEDED):
        cluster.seal(100, 3, [])
    cluster.seal(100, 2, [])
    with refused(ErrorCode.INVALID_REQUEST):
        cluster.seal(100, 1, [])


def test_an_unknown_or_ended_incarnation_commits_nothing(cluster: Cluster) -> None:
    with refused(ErrorCode.BROKER_ID_NOT_REGISTERED):
        cluster.seal(999, 1, [])
    cluster.end_silently(100)
    with refused(ErrorCode.STALE_BROKER_EPOCH):
        cluster.commit(100, cluster.log("t"))


@pytest.mark.parametrize(
    "change",
    [
        {"base": 9, "end": 20},
        {"base": 11, "end": 20},
        {"leader_epoch": 1},
        {"leader_epoch": -1},
        {"end": 10},
        {"length": 0},
        {"last_stable_offset": 21},
        {"log_id": 77},
    ],
)
def test_a_bad_range_is_named_and_dropped_and_the_rest_commits(cluster: Cluster, change: dict[str, int]) -> None:
    cluster.commit(100, *cluster.state.logs.values())
    good = next_range(cluster.log("t", 1))
    bad = next_range(cluster.log("t", 0))._replace(**change)
    answer = cluster.seal(100, 2, [bad, good], parts=2)
    assert answer.refused == (bad.log_id,)
    assert [log.end for log in cluster.state.logs.values()] == [10, 20, 10]
    assert cluster.state.objects.doomed == {"segments/1/0000000000000064/2-0": 1000}, "no range names it"
    cluster.commit(100, cluster.log("t", 0))
    assert cluster.log("t", 0).end == 20, "the seal's number counted"


def test_a_log_stands_in_a_seal_once(cluster: Cluster) -> None:
    log = cluster.log("t")
    second = next_range(log)._replace(base=10, end=20)
    assert cluster.seal(100, 1, [next_range(log), second]).refused == (0,)


def test_a_deposed_leader_is_refused(cluster: Cluster) -> None:
    late = next_range(cluster.log("t"))
    cluster.register(2, 200)
    cluster.apply(f.LeaderNamed(0, 2, 200, 1, wal_id(200)))
    assert cluster.seal(100, 1, [late]).refused == (0,)
    assert cluster.seal(200, 1, [late]).refused == (0,), "the epoch is in the check"
    assert cluster.seal(200, 2, [late._replace(leader_epoch=1)]).refused == ()


class TestRecovering:
    @pytest.fixture
    def cluster(self) -> Cluster:
        cluster = Cluster()
        cluster.register(1, 100)
        cluster.create("t", 1)
        cluster.register(2, 200)
        cluster.end_silently(100)
        cluster.decide(c.NameRecoverer(cluster.token(16), wal_id(100), 200))
        return cluster

    def scan(self, cluster: Cluster) -> None:
        cluster.decide(c.ReportScan(cluster.token(16), wal_id(100), 200, 1, (f.ScannedLog(0, 0, 10),), 1))

    def test_only_the_recoverer_commits_and_with_its_number(self, cluster: Cluster) -> None:
        self.scan(cluster)
        found = next_range(cluster.log("t"))
        for seal, recovery in enumerate(
            [None, Recovery(wal_id(100), 2), Recovery(wal_id(200), 1), Recovery(b"?" * 16, 1)], 1
        ):
            assert cluster.seal(200, seal, [found], recovery).refused == (0,)
        assert cluster.seal(200, 5, [found], Recovery(wal_id(100), 1)).refused == ()
        assert cluster.log("t").end == 10

    def test_not_before_the_scan_is_a_fact(self, cluster: Cluster) -> None:
        found = next_range(cluster.log("t"))
        assert cluster.seal(200, 1, [found], Recovery(wal_id(100), 1)).refused == (0,)

    def test_a_recovery_commits_nothing_to_an_open_log(self, cluster: Cluster) -> None:
        self.scan(cluster)
        cluster.create("u")
        assert cluster.seal(200, 1, [next_range(cluster.log("u"))], Recovery(wal_id(100), 1)).refused == (1,)


def test_bounds_refuse_the_whole_seal_and_may_be_tried_again(cluster: Cluster) -> None:
    cluster.limits = Limits(ranges_per_log=2)
    cluster.commit(100, cluster.log("t"))
    cluster.commit(100, cluster.log("t"))
    with pytest.raises(KafkaError, match="t-0 has 2 ranges") as caught:
        cluster.commit(100, cluster.log("t"), cluster.log("t", 1))
    assert caught.value.retriable
    cluster.limits = Limits(ranges=3)
    cluster.commit(100, cluster.log("t"))
    with pytest.raises(KafkaError, match="bound of 3 ranges"):
        cluster.commit(100, cluster.log("t"))


def test_an_object_is_committed_once(cluster: Cluster) -> None:
    command = seal_command(100, 1, [next_range(cluster.log("t"))])
    cluster.decide(command)
    again = dataclasses.replace(command, seal=2)
    with refused(ErrorCode.INVALID_REQUEST):
        cluster.decide(again)


def test_range_pressure(cluster: Cluster) -> None:
    assert cluster.state.range_pressure(0) == 0.0
    cluster.commit(100, cluster.log("t"))
    assert 0 < cluster.state.range_pressure(0) == 1 / 65_536
    assert 0 < cluster.state.range_pressure(999) < 1 / 65_536


def test_a_far_away_lso_reads_back_too_low_never_too_high(cluster: Cluster) -> None:
    cluster.apply(f.LossDeclared(0, 0, 2**33), f.LeaderNamed(0, 1, 100, 1, wal_id(100)))
    found = Range(0, 1, 2**33, 2**33 + 10, 0, 100, -1, 5, 1)
    cluster.seal(100, 1, [found])
    row = cluster.state.newest_range(0)
    assert row is not None and row.range == found._replace(last_stable_offset=0)
