"""What is chosen to be merged, and which replacements count."""

from typing import Any

import pytest

from controller import commands as c
from controller import facts as f
from controller.collector import is_orphan
from controller.decide import Limits
from controller.jobs import MANIFEST, MERGE
from controller.merging import MergeRules, choose, plan_jobs
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Range, merged_key
from tests.controller.builders import Cluster
from tests.controller.golden import merged_range

RULES = MergeRules(fan_out=4, object_bytes_max=10_000, shared_ms=1_000, head_max=6, head_keep=3)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", 2)
    return cluster


def commit(cluster: Cluster, count: int = 1, length: int = 100, *logs: Any) -> None:
    for _ in range(count):
        cluster.commit(100, *(logs or (cluster.log("t"),)), length=length)


def chosen(cluster: Cluster, rules: MergeRules = RULES) -> tuple[str, int, int] | None:
    """(kind, first index, ranges) of what is chosen for t-0."""
    log = cluster.log("t")
    choice = choose(cluster.state, log, cluster.now_ms, rules)
    if choice is None:
        return None
    first = log.find_part(choice.part)
    assert first is not None
    return choice.kind, first, choice.part.ranges


def opened(cluster: Cluster, first: int, count: int, kind: str = MERGE, log: Any = None) -> tuple[int, Any]:
    """A job over ranges of t-0; its number, and what a merge would put in their place."""
    log = cluster.log("t") if log is None else log
    new = c.NewJob(100, kind, (log.part(first, count),))
    cluster.decide(c.OpenJobs(cluster.token(16), (new,)))
    inputs = [log.row(index).range for index in range(first, first + count)]
    item = merged_range(inputs)
    return cluster.state.job_table.next_job - 1, f.Merged(item.length + 50, item)


def replace(cluster: Cluster, job: int, *outputs: f.Merged, incarnation: int = 100) -> tuple[int, ...]:
    return cluster.decide(c.ReplaceRanges(cluster.token(16), incarnation, job, outputs)).refused


def merged(cluster: Cluster, first: int, count: int) -> None:
    job, output = opened(cluster, first, count)
    assert replace(cluster, job, output) == ()


def test_full_tiers_are_merged_the_lowest_level_first(cluster: Cluster) -> None:
    commit(cluster, 3)
    assert chosen(cluster) is None
    commit(cluster, 1)
    assert chosen(cluster) == (MERGE, 0, 4)
    for _ in range(3):
        merged(cluster, cluster.log("t").range_count - 4, 4)
        commit(cluster, 4)
    assert chosen(cluster) == (MERGE, 3, 4), "three of level 1, four of level 0"
    merged(cluster, 3, 4)
    assert chosen(cluster) == (MERGE, 0, 4)
    merged(cluster, 0, 4)
    log = cluster.log("t")
    assert (log.range_count, log.row_level(0), log.row_length(0), log.size) == (1, 2, 1_600, 1_600)
    assert not cluster.state.objects.named and cluster.state.log_index.range_total == 1


def test_objects_have_a_largest_size(cluster: Cluster) -> None:
    commit(cluster, 3, 4_000)
    assert chosen(cluster) == (MERGE, 0, 2), "a third would be too large"
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(0, 30),)))
    commit(cluster, 6, 6_000)
    assert chosen(cluster) is None, "each is large enough"
    commit(cluster, 1, 6_000)
    assert chosen(cluster) == (MERGE, 0, 1), "too many: the oldest goes into an object of its own, to be moved then"


def test_nothing_is_merged_across_a_declared_loss(cluster: Cluster) -> None:
    commit(cluster, 3)
    end = cluster.log("t").end
    cluster.apply(f.LossDeclared(0, end, end + f.LOSS_GAP))
    cluster.state.log_index.name_leader(0, 1, 100, 5, b"?" * 16)
    commit(cluster, 3)
    assert chosen(cluster) is None


def test_what_shares_its_object_is_merged_when_it_is_old(cluster: Cluster) -> None:
    commit(cluster, 2, 100, cluster.log("t"), cluster.log("t", 1))
    assert chosen(cluster) is None
    cluster.now_ms += 1_000
    assert chosen(cluster) == (MERGE, 0, 2)


def test_what_is_too_much_moves_to_a_manifest(cluster: Cluster) -> None:
    rules = RULES._replace(fan_out=16)
    commit(cluster, 6)
    assert chosen(cluster, rules) is None
    for first in range(4):
        merged(cluster, first, 1)
    commit(cluster, 1)
    assert chosen(cluster, rules) == (MANIFEST, 0, 4), "the three newest stay"


def test_jobs_go_to_leaders_and_are_bounded(cluster: Cluster) -> None:
    cluster.register(2, 200)
    logs = [cluster.log("t"), cluster.log("t", 1)]
    for _ in range(4):
        for log in logs:
            cluster.commit(log.leader_incarnation, log)
    jobs, waiting = plan_jobs(cluster.state, [0, 1, 99], cluster.now_ms, RULES)
    assert waiting == []
    assert {job.incarnation: len(job.parts) for job in jobs} in ({100: 2}, {100: 1, 200: 1})
    leaders = [log.leader_incarnation for log in logs]
    assert all(leaders[part.log_id] == job.incarnation for job in jobs for part in job.parts)
    jobs, waiting = plan_jobs(cluster.state, [0, 1], cluster.now_ms, RULES._replace(jobs_per_broker=0))
    assert (jobs, waiting) == ([], [0, 1])
    cluster.decide(c.OpenJobs(cluster.token(16), tuple(plan_jobs(cluster.state, [0, 1], 0, RULES)[0])))
    assert plan_jobs(cluster.state, [0, 1], cluster.now_ms, RULES) == ([], []), "they are at work"


def test_a_replacement_must_be_exact(cluster: Cluster) -> None:
    commit(cluster, 4)
    wrong: list[dict[str, int]] = [
        {"base": 1},
        {"end": 39},
        {"length": 399},
        {"batch_count": 3},
        {"position": 1},
        {"last_stable_offset": 39},
        {"max_timestamp": 7},
        {"leader_epoch": 9},
        {"log_id": 1},
    ]
    for change in wrong:
        job, output = opened(cluster, 0, 4)
        bad = output._replace(range=output.range._replace(**change))
        assert replace(cluster, job, bad) == (bad.range.log_id,), change
        assert cluster.facts == [f.JobClosed(job)]
        assert is_orphan(cluster.state, merged_key(job, 0))
    job, output = opened(cluster, 0, 4)
    assert replace(cluster, job, output._replace(size=output.range.length - 1)) == (0,)
    assert cluster.log("t").range_count == 4


def test_a_replacement_needs_its_inputs_as_they_were(cluster: Cluster) -> None:
    commit(cluster, 6)
    early, output = opened(cluster, 1, 3)
    late, same = opened(cluster, 1, 3)
    overlapping, other = opened(cluster, 3, 2)
    assert replace(cluster, early, output) == ()
    assert replace(cluster, late, same) == (0,), "the same offsets, but another job was faster"
    assert replace(cluster, overlapping, other) == (0,)
    moved, output = opened(cluster, 0, 2)
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(0, 10),)))
    assert replace(cluster, moved, output) == (0,), "the start has passed the first input"
    inside, output = opened(cluster, 0, 2)
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(0, 15),)))
    assert replace(cluster, inside, output) == (), "it lies inside of the first input"
    gone, output = opened(cluster, 0, 2)
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    assert replace(cluster, gone, output) == (0,)


def test_only_an_open_job_of_the_asker_counts(cluster: Cluster) -> None:
    commit(cluster, 4)
    cluster.register(2, 200)
    job, output = opened(cluster, 0, 4)
    with pytest.raises(KafkaError, match="is no open merge job of incarnation c8"):
        replace(cluster, job, output, incarnation=200)
    assert not is_orphan(cluster.state, merged_key(job, 0)), "it may be named yet"
    cluster.decide(c.CloseJob(cluster.token(16), 200, job))
    assert job in cluster.state.jobs
    cluster.end_silently(100)
    assert is_orphan(cluster.state, merged_key(job, 0)), "its session closed it"
    with pytest.raises(KafkaError, match="STALE_BROKER_EPOCH"):
        replace(cluster, job, output)
    cluster.decide(c.ForgetJobs(cluster.token(16), (job, 77)))
    assert cluster.facts == [f.JobsForgotten((job,))]
    assert not cluster.state.job_table.void


def test_jobs_need_format_level_2() -> None:
    cluster = Cluster(format_level=1)
    cluster.register(1, 100)
    cluster.create("t")
    commit(cluster, 4)
    with pytest.raises(KafkaError) as refused:
        opened(cluster, 0, 4)
    assert refused.value.code == ErrorCode.UNSUPPORTED_VERSION


def test_ranges_that_were_merged_count_for_the_bound_of_a_log(cluster: Cluster) -> None:
    cluster.limits = Limits(ranges_per_log=4)
    commit(cluster, 4)
    with pytest.raises(KafkaError, match="its bound"):
        commit(cluster)
    merged(cluster, 0, 4)
    commit(cluster)
    assert cluster.log("t").range_count == 2


def test_a_range_without_timestamps_keeps_the_time_of_its_commit(cluster: Cluster) -> None:
    commit(cluster, 1)
    cluster.now_ms += 50
    commit(cluster, 1)
    committed_ms = cluster.now_ms
    cluster.now_ms += 1_000
    merged(cluster, 0, 2)
    row = cluster.log("t").row(0)
    assert row.range == Range(0, row.range.leader_epoch, 0, 20, 0, 200, -1, 20, 2)
    assert cluster.state.newest_ms(row) == committed_ms
