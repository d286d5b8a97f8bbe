"""Log starts, producer ids, doomed objects."""

import pytest

from controller import commands as c
from controller import facts as f
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
    assert cluster.log("t", 1).range_count == 0 and cluster.log("t", 1).end == 30
    assert cluster.state.log_index.range_total == 2


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
