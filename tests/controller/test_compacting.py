"""Which logs are compacted, how far, by whom; and which outputs count."""

from typing import Any

import pytest

from controller import commands as c
from controller import facts as f
from controller.collector import is_orphan
from controller.compacting import Dirty, look, plan
from controller.configs import CompactionRules
from controller.log_index import LEVEL_MAX
from controller.merging import MergeRules, choose
from protocol.errors import KafkaError
from storage.manifest import ManifestRow, point_to
from storage.seal import ManifestPointer, merged_key
from tests.controller.builders import Cluster
from tests.controller.golden import merged_range

NOW = 1_700_000_000_000
EAGER = CompactionRules(dirty_ratio=0.5, segment_ms=1, segment_bytes=1 << 20)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", 2, cleanup_policy="compact")
    return cluster


def commit(cluster: Cluster, *ages_ms: int, length: int = 100) -> None:
    """A range of 10 offsets for each age of its newest record."""
    for age_ms in ages_ms:
        cluster.commit(100, cluster.log("t"), length=length, timestamp=NOW - age_ms)


def looked(cluster: Cluster, rules: CompactionRules = EAGER, since_ms: int | None = 0) -> Dirty | None:
    return look(cluster.state, cluster.log("t"), rules, NOW, since_ms)


def bound(cluster: Cluster, rules: CompactionRules = EAGER, since_ms: int | None = 0) -> int:
    found = looked(cluster, rules, since_ms)
    return -1 if found is None else found.bound


def opened(cluster: Cluster, to: int = 30, log_id: int = 0, incarnation: int = 100) -> int:
    """The number of a pass over t-0 from where it is clean."""
    log = cluster.state.logs[log_id]
    dirty_from = max(cluster.state.compactions.clean.get(log_id, 0), log.start)
    new = c.NewCompaction(incarnation, log_id, dirty_from, to)
    cluster.decide(c.OpenCompactions(cluster.token(16), (new,)))
    return next(iter(cluster.state.compactions.open), -1)


def output(cluster: Cluster, first: int, count: int, length: int = 30) -> tuple[f.MergePart, f.Merged]:
    log = cluster.log("t")
    made = merged_range([log.row(index).range for index in range(first, first + count)])
    return log.part(first, count), f.Merged(length + 50, made._replace(length=length, batch_count=1))


def replace(cluster: Cluster, job: int, number: int, made: tuple[f.MergePart, f.Merged], who: int = 100) -> Any:
    return cluster.decide(c.CompactRanges(cluster.token(16), who, job, number, *made)).refused


# What is chosen


def test_what_is_as_large_as_a_segment_or_as_old_is_cleaned(cluster: Cluster) -> None:
    rules = CompactionRules(segment_ms=1_000, segment_bytes=250)
    assert looked(cluster) is None, "nothing is there"
    commit(cluster, 10, 9, 8, 7, 6)
    assert bound(cluster, rules, NOW - 999) == 30, "three ranges are a segment, two are not"
    assert bound(cluster, rules, NOW - 1_000) == 50, "its first record is old enough"
    assert bound(cluster, rules._replace(segment_bytes=1_000), NOW - 999) == -1
    assert bound(cluster, rules._replace(max_lag_ms=900), NOW - 900) == 50, "a lag that is shorter than a segment"


def test_young_records_wait(cluster: Cluster) -> None:
    commit(cluster, 500, 100, 400)
    rules = EAGER._replace(min_lag_ms=300)
    assert bound(cluster, rules) == 10, "the second holds a record that is too young"
    assert bound(cluster, rules._replace(min_lag_ms=50)) == 30
    assert bound(cluster, rules._replace(min_lag_ms=501)) == -1


def test_nothing_is_cleaned_beyond_the_last_stable_offset(cluster: Cluster) -> None:
    commit(cluster, 5, 5)
    log = cluster.log("t")
    item = log.row(0).range._replace(base=20, end=30, last_stable_offset=15, position=0)
    cluster.commit_ranges(100, [item])
    assert bound(cluster) == 10
    assert opened(cluster, 20) == -1, "a pass that goes further is not opened"
    assert opened(cluster, 10) == 0


def test_a_log_is_due_when_it_is_dirty_enough(cluster: Cluster) -> None:
    commit(cluster, *[5] * 10)
    assert looked(cluster) == Dirty(0, 0, 100, 0, 1_000, True)
    cluster.state.compactions.clean[0] = 55
    found = looked(cluster)
    assert found == Dirty(0, 55, 100, 550, 450, False), "half of a range counts as half of its bytes"
    late = looked(cluster, EAGER._replace(max_lag_ms=100), NOW - 100)
    assert late is not None and late.is_due
    cluster.state.compactions.clean[0] = 100
    assert looked(cluster) is None
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(0, 100),)))
    assert looked(cluster) is None, "only the producer state is left"


def test_passes_go_to_leaders_the_dirtiest_log_first(cluster: Cluster) -> None:
    logs = [cluster.log("t"), cluster.log("t", 1)]
    for log in logs:
        cluster.commit(100, log)
    found = [Dirty(0, 0, 10, 100, 110, True), Dirty(1, 0, 10, 0, 10, True), Dirty(9, 0, 5, 0, 9, True)]
    assert plan(cluster.state, found, 1) == ([c.NewCompaction(100, 1, 0, 10)], 1)
    assert plan(cluster.state, [found[0]._replace(is_due=False)], 1) == ([], 0)
    opened(cluster, 10, log_id=1)
    assert plan(cluster.state, found, 2) == ([c.NewCompaction(100, 0, 0, 10)], 0), "one is at work"
    cluster.decide(c.OpenJobs(cluster.token(16), (c.NewJob(100, "merge", (logs[0].part(0, 1),)),)))
    assert plan(cluster.state, found, 2) == ([], 1), "a merge job has its ranges"


# What counts


def test_outputs_replace_ranges_one_after_the_other(cluster: Cluster) -> None:
    commit(cluster, *[5] * 4)
    log = cluster.log("t")
    job = opened(cluster)
    assert cluster.state.compactions.open[job].outputs == 3 and cluster.state.job_table.next_job == 3
    assert replace(cluster, job, 0, output(cluster, 0, 2)) == ()
    assert (log.range_count, log.size, log.row_level(0), log.row_end(0)) == (3, 230, LEVEL_MAX, 20)
    assert cluster.state.range_at(0, 0).key == merged_key(0, 0)
    assert replace(cluster, job, 1, output(cluster, 1, 1, 0)) == ()
    assert (log.range_count, log.size, log.row_length(1)) == (3, 130, 0), "nothing is left of it, but its offsets"
    assert len(cluster.state.objects.named) == 1
    cluster.decide(c.CloseCompaction(cluster.token(16), 100, job, 25))
    assert cluster.state.compactions.clean == {0: 25} and not cluster.state.compactions.open
    assert not cluster.state.job_table.void and log.end == 40
    assert cluster.state.log_index.range_total == 3


def test_an_output_must_fit(cluster: Cluster) -> None:
    commit(cluster, *[5] * 5)
    wrong: list[dict[str, int]] = [
        {"base": 1},
        {"end": 19},
        {"batch_count": 3},
        {"position": 1},
        {"last_stable_offset": 19},
        {"max_timestamp": NOW},
        {"leader_epoch": 9},
        {"log_id": 1},
    ]
    for change in wrong:
        job = opened(cluster)
        part, made = output(cluster, 0, 2)
        assert replace(cluster, job, job, (part, made._replace(range=made.range._replace(**change)))) == (0,), change
        assert cluster.facts == [f.CompactionClosed(job)]
        assert is_orphan(cluster.state, merged_key(job, 0))
        assert not is_orphan(cluster.state, merged_key(job + 1, 0)), "it was never begun"
    job = opened(cluster)
    part, made = output(cluster, 0, 2)
    assert replace(cluster, job, job, (part, made._replace(size=made.range.length - 1))) == (0,)
    job = opened(cluster)
    assert replace(cluster, job, job + 1, output(cluster, 0, 2)) == (0,), "not the next one"
    job = opened(cluster)
    assert replace(cluster, job, job, output(cluster, 2, 2)) == (0,), "it reaches into what is not to be cleaned"
    job = opened(cluster)
    assert replace(cluster, job, job, output(cluster, 1, 1)) == ()
    assert replace(cluster, job, job + 1, output(cluster, 0, 1)) == (0,), "out of order: a tombstone might go first"


def test_inputs_must_be_as_they_were_and_the_policy_too(cluster: Cluster) -> None:
    commit(cluster, *[5] * 4)
    job = opened(cluster)
    made = output(cluster, 0, 2)
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(0, 10),)))
    assert replace(cluster, job, job, made) == (0,), "retention took one of them"
    job = opened(cluster)
    made = output(cluster, 0, 2)
    change = c.ConfigAlteration(2, "t", False, (c.ConfigChange("cleanup.policy", 0, "delete"),))
    cluster.decide(c.AlterConfigs(cluster.token(16), (change,)))
    assert replace(cluster, job, job, made) == (0,)
    assert opened(cluster) == -1


def test_a_stale_pass_counts_for_nothing(cluster: Cluster) -> None:
    commit(cluster, *[5] * 4)
    cluster.register(2, 200)
    job = opened(cluster)
    made = output(cluster, 0, 2)
    with pytest.raises(KafkaError, match="is not open for incarnation c8"):
        replace(cluster, job, job, made, who=200)
    cluster.decide(c.CloseCompaction(cluster.token(16), 200, job, 30))
    assert job in cluster.state.compactions.open
    assert replace(cluster, job, job, made) == ()
    cluster.end_silently(100)
    assert not cluster.state.compactions.open and not cluster.state.compactions.clean
    assert cluster.state.job_table.void == {job + 1: (0,)}, "the next one may have been stored"
    with pytest.raises(KafkaError, match="STALE_BROKER_EPOCH"):
        replace(cluster, job, job + 1, output(cluster, 1, 1))
    again = opened(cluster, incarnation=200)
    assert cluster.state.compactions.open[again].dirty_from == 0, "the whole pass is done again"


def test_a_pass_does_not_claim_what_it_did_not_look_at(cluster: Cluster) -> None:
    commit(cluster, *[5] * 4)
    for claimed in (0, 31, 40):
        job = opened(cluster)
        cluster.decide(c.CloseCompaction(cluster.token(16), 100, job, claimed))
        assert cluster.facts == [f.CompactionClosed(job)], claimed
    cluster.decide(c.OpenCompactions(cluster.token(16), (c.NewCompaction(100, 0, 10, 30),)))
    assert cluster.facts == [], "a pass begins where the log is clean, not above"


def test_logs_that_are_gone(cluster: Cluster) -> None:
    commit(cluster, *[5] * 2)
    job = opened(cluster, 20)
    cluster.decide(c.CloseCompaction(cluster.token(16), 100, job, 20))
    commit(cluster, 5)
    job = opened(cluster)
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    assert not cluster.state.compactions.clean
    cluster.decide(c.CloseCompaction(cluster.token(16), 100, job, 30))
    assert not cluster.state.compactions.open and not cluster.state.compactions.clean


def test_merging_keeps_away_from_a_pass(cluster: Cluster) -> None:
    rules = MergeRules(fan_out=4, object_bytes_max=10_000, head_max=6, head_keep=3)
    commit(cluster, *[5] * 8)
    log = cluster.log("t")
    job = opened(cluster, 30)
    choice = choose(cluster.state, log, NOW, rules, compacted=True)
    assert choice is not None and log.find_part(choice.part) == 3
    assert replace(cluster, job, job, output(cluster, 0, 3)) == ()
    cluster.decide(c.CloseCompaction(cluster.token(16), 100, job, 30))
    choice = choose(cluster.state, log, NOW, rules, compacted=True)
    assert choice is not None and log.find_part(choice.part) == 1, "what is clean is not merged with what is not"


def test_two_are_never_at_work_on_the_same_ranges(cluster: Cluster) -> None:
    """Whatever was chosen at the same time: who comes first counts."""
    commit(cluster, *[5] * 6)
    log = cluster.log("t")
    cluster.decide(c.OpenJobs(cluster.token(16), (c.NewJob(100, "merge", (log.part(0, 2),)),)))
    assert opened(cluster) == -1, "a range that is merged meanwhile would be seen twice"
    cluster.decide(c.CloseJob(cluster.token(16), 100, 0))
    job = opened(cluster)
    assert job >= 0
    parts = [log.part(0, 2), log.part(2, 2), log.part(3, 2)]
    for kind in ("merge", "manifest"):
        for part in parts[: 2 if kind == "merge" else 3]:
            cluster.decide(c.OpenJobs(cluster.token(16), (c.NewJob(100, kind, (part,)),)))
            assert cluster.facts == [], (kind, part)
    cluster.decide(c.OpenJobs(cluster.token(16), (c.NewJob(100, "merge", (parts[2],)),)))
    assert len(cluster.state.jobs) == 1, "what lies beyond the pass may be merged"


def with_manifest(cluster: Cluster) -> tuple[ManifestPointer, list[ManifestRow]]:
    log = cluster.log("t")
    for index in range(2):
        cluster.decide(c.OpenJobs(cluster.token(16), (c.NewJob(100, "merge", (log.part(index, 1),)),)))
        number = cluster.state.job_table.next_job - 1
        made = f.Merged(150, log.row(index).range._replace(position=0))
        cluster.decide(c.ReplaceRanges(cluster.token(16), 100, number, (made,)))
    cluster.decide(c.OpenJobs(cluster.token(16), (c.NewJob(100, "manifest", (log.part(0, 2),)),)))
    number = cluster.state.job_table.next_job - 1
    rows = [
        ManifestRow(row.object, row.size, row.range, cluster.state.newest_ms(row)) for row in (log.row(0), log.row(1))
    ]
    pointer = point_to(number, 300, rows)
    cluster.decide(c.WriteManifests(cluster.token(16), 100, number, (f.NewManifest(0, -1, pointer),)))
    assert log.manifests == [pointer]
    return pointer, rows


def test_manifests_are_unpacked(cluster: Cluster) -> None:
    commit(cluster, *[5] * 4)
    log = cluster.log("t")
    pointer, held = with_manifest(cluster)
    size, before = log.size, [row.range for row in held]
    rows = tuple(f.UnpackedRange(row.job, row.size, row.newest_ms, row.range) for row in held)
    assert opened(cluster) == -1, "all ranges have to be in the state"
    for wrong in (rows[:1], (), (rows[0], rows[0])):
        cluster.decide(c.UnpackManifest(cluster.token(16), 0, pointer, wrong))
        assert cluster.facts == []
    cluster.decide(c.UnpackManifest(cluster.token(16), 0, pointer, rows))
    assert not log.manifests and log.range_count == 4 and log.size == size
    assert [log.row(index).range for index in range(2)] == before
    assert cluster.state.range_at(0, 0).key == merged_key(held[0].job, 0)
    assert "manifests/0000000002/0" in cluster.state.objects.doomed
    assert cluster.state.log_index.range_total == 4
    assert opened(cluster) >= 0


def test_rows_below_the_start_are_not_unpacked(cluster: Cluster) -> None:
    """They would stay in the state, and their objects in the bucket, until the start moves once more."""
    commit(cluster, *[5] * 4)
    pointer, held = with_manifest(cluster)
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(0, 12),)))
    rows = tuple(f.UnpackedRange(row.job, row.size, row.newest_ms, row.range) for row in held)
    cluster.decide(c.UnpackManifest(cluster.token(16), 0, pointer, rows))
    assert cluster.facts == []
    left = point_to(pointer.job, pointer.size, held, 1)
    gone = f.UnnamedObject(merged_key(held[0].job, 0), held[0].size)
    cluster.decide(c.DropManifestRows(cluster.token(16), 0, pointer, left, (gone,)))
    cluster.decide(c.UnpackManifest(cluster.token(16), 0, left, rows[1:]))
    assert not cluster.log("t").manifests and cluster.log("t").range_count == 3


def test_compaction_needs_format_level_3() -> None:
    cluster = Cluster(format_level=2)
    cluster.register(1, 100)
    cluster.create("t", cleanup_policy="compact")
    commit(cluster, 5)
    with pytest.raises(KafkaError, match="needs format level 3"):
        opened(cluster, 10)
