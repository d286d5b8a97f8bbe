"""Log starts, producer ids, doomed objects."""

import pytest

from controller import commands as c
from controller import facts as f
from controller.state import ClusterState
from protocol.errors import KafkaError
from tests.controller.builders import Cluster


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", 2)
    for _ in range(3):
        cluster.commit(100, cluster.log("t"), cluster.log("t", 1))
    return cluster


def advance(cluster: Cluster, *starts: f.LogStart) -> tuple[f.LogStart, ...]:
    return cluster.decide(c.AdvanceLogStart(cluster.token(16), starts)).starts


def test_the_start_moves_and_ranges_wholly_below_it_go(cluster: Cluster) -> None:
    assert advance(cluster, f.LogStart(0, 15)) == (f.LogStart(0, 15),)
    log = cluster.log("t")
    assert (log.start, log.end, log.range_count, log.size) == (15, 30, 2, 200)
    assert not cluster.state.objects.doomed, "t-1 still lies there"
    assert advance(cluster, f.LogStart(1, 30), f.LogStart(0, 3)) == (f.LogStart(1, 30), f.LogStart(0, 15))
    assert cluster.facts == [f.LogStartAdvanced((f.LogStart(1, 30),))]
    assert list(cluster.state.objects.doomed) == ["segments/1/0000000000000064/1-0"]
    assert cluster.log("t", 1).size == 0 and cluster.log("t", 1).end == 30
    assert cluster.state.log_index.range_total == 3, "two of t-0, the producer state of t-1"


def test_the_producer_state_outlives_the_records(cluster: Cluster) -> None:
    """The newest range stays as a row without bytes, and its object with it, until another brings a newer state."""
    newest = cluster.state.newest_range(0)
    assert newest is not None
    advance(cluster, f.LogStart(0, 30), f.LogStart(1, 30))
    log = cluster.log("t")
    assert (log.start, log.end, log.range_count, log.size) == (30, 30, 1, 0)
    assert cluster.state.newest_range(0) == newest._replace(
        range=newest.range._replace(base=30, length=0, max_timestamp=-1, batch_count=0)
    )
    assert cluster.state.ranges(0, 30) == []
    assert list(cluster.state.objects.doomed) == [f"segments/1/0000000000000064/{seal}-0" for seal in (1, 2)]
    assert ClusterState.decode(cluster.state.encode()) == cluster.state
    advance(cluster, f.LogStart(0, 30))
    cluster.commit(100, log)
    assert log.range_count == 1 and not log.has_state_row
    assert newest.key not in cluster.state.objects.doomed, "t-1 needs it still"
    cluster.commit(100, cluster.log("t", 1))
    assert newest.key in cluster.state.objects.doomed
    assert cluster.state.log_index.range_total == 2
    advance(cluster, f.LogStart(0, 40))
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    assert not cluster.state.objects.named and cluster.state.log_index.range_total == 0


def test_below_format_level_2_nothing_is_left_of_a_log() -> None:
    """A process of the first version, which may control the cluster, has the object for doomed and deletes it."""
    cluster = Cluster(format_level=1)
    cluster.register(1, 100)
    cluster.create("t")
    cluster.commit(100, cluster.log("t"))
    advance(cluster, f.LogStart(0, 10))
    assert cluster.log("t").range_count == 0 and list(cluster.state.objects.doomed)


def test_all_starts_or_none(cluster: Cluster) -> None:
    with pytest.raises(KafkaError, match="OFFSET_OUT_OF_RANGE: t-1 is committed up to 30"):
        advance(cluster, f.LogStart(0, 10), f.LogStart(1, 31))
    with pytest.raises(KafkaError, match="UNKNOWN_TOPIC_OR_PARTITION"):
        advance(cluster, f.LogStart(0, 10), f.LogStart(9, 1))
    assert cluster.log("t").start == 0


def test_a_sweep_takes_what_still_fits(cluster: Cluster) -> None:
    starts = (f.LogStart(0, 10), f.LogStart(1, 31), f.LogStart(9, 1), f.LogStart(0, 0))
    cluster.decide(c.SweepLogStarts(cluster.token(16), starts))
    assert cluster.facts == [f.LogStartAdvanced((f.LogStart(0, 10),))]
    cluster.decide(c.SweepLogStarts(cluster.token(16), starts))
    assert cluster.facts == []


def test_producer_ids_come_in_blocks_that_never_overlap(cluster: Cluster) -> None:
    def block() -> c.ProducerIdBlock:
        return cluster.decide(c.AllocateProducerIds(cluster.token(16), 100))

    assert [block(), block()] == [c.ProducerIdBlock(0, 1000), c.ProducerIdBlock(1000, 1000)]
    cluster.state.next_producer_id = 2**63 - 500
    with pytest.raises(KafkaError):
        block()


def test_deleted_objects_leave_the_doomed_list(cluster: Cluster) -> None:
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    doomed = list(cluster.state.objects.doomed)
    assert len(doomed) == 3
    cluster.decide(c.ForgetObjects(cluster.token(16), (doomed[0], "unknown")))
    assert cluster.facts == [f.ObjectsDeleted((doomed[0],))]
    assert list(cluster.state.objects.doomed) == doomed[1:]
    cluster.decide(c.ForgetObjects(cluster.token(16), (doomed[0],)))
    assert cluster.facts == []
