"""Commits, merges, manifests, retention, deletion and collection in any order: nothing named is ever missing.

The bucket is a dictionary from key to what lies there: per log the offsets. A job reads its inputs from there when it
begins and asks for its replacement any time later.
"""

from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller import commands as c
from controller import facts as f
from controller.collector import is_orphan
from controller.jobs import MERGE, Job
from controller.merging import MergeRules, plan_jobs
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from storage.manifest import ManifestRow, decode_manifest, encode_manifest, point_to
from storage.seal import ManifestPointer, Range, RangeRow, manifest_key, merged_key
from tests.controller.builders import CLUSTER, Cluster, next_range

RULES = MergeRules(
    fan_out=3,
    object_bytes_max=60,
    shared_ms=1_000,
    head_max=5,
    head_keep=3,
    manifest_rows_max=4,
    jobs_per_broker=2,
    parts_per_job=2,
)
LOGS = 3


class Done(NamedTuple):
    """A job whose outputs are stored and that has not asked yet."""

    job: Job
    command: Any


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.cluster.register(1, 100)
        self.cluster.register(2, 200)
        self.incarnations = [100, 200]
        self.cluster.create("t", LOGS, cleanup_policy="compact,delete")
        self.bucket: dict[str, dict[int, tuple[int, int]] | bytes] = {}
        self.read: dict[int, Job] = {}
        self.done: list[Done] = []
        self.compacted: list[c.CompactRanges] = []
        self.views: list[bytes] = []
        self.forgotten: set[int] = set()

    @property
    def state(self) -> ClusterState:
        return self.cluster.state

    def ask(self, command: Any) -> Any:
        try:
            return self.cluster.decide(command)
        except KafkaError as error:
            assert error.code in (
                ErrorCode.INVALID_REQUEST,
                ErrorCode.STALE_BROKER_EPOCH,
                ErrorCode.OFFSET_OUT_OF_RANGE,
            ), error
            return None

    # What reads the state and the bucket

    def manifest_rows(self, log_id: int, pointer: ManifestPointer) -> list[ManifestRow]:
        key = manifest_key(pointer.job, log_id)
        data = self.bucket[key]
        assert isinstance(data, bytes)
        manifest = decode_manifest(key, CLUSTER, pointer.job, log_id, data)
        assert pointer == point_to(pointer.job, len(data), manifest.rows(0), pointer.first, pointer.max_timestamp), (
            "the pointer says what the rows say"
        )
        return manifest.rows(pointer.first)

    def rows(self, log_id: int) -> list[RangeRow]:
        log = self.state.logs[log_id]
        found = [
            RangeRow(merged_key(row.job, log_id), row.size, row.range)
            for pointer in log.manifests
            for row in self.manifest_rows(log_id, pointer)
        ]
        return found + [self.state.range_at(log_id, index) for index in range(log.range_count)]

    def check(self, log_id: int, row: RangeRow) -> None:
        held = self.bucket[row.key]
        assert isinstance(held, dict)
        base, end = held[log_id]
        assert base <= row.range.base <= row.range.end <= end

    # Rules

    @rule(data=st.data(), counts=st.lists(st.integers(0, 4), min_size=LOGS, max_size=LOGS), stamped=st.booleans())
    def commit(self, data: st.DataObject, counts: list[int], stamped: bool) -> None:
        """A seal of one broker's logs, in one object."""
        self.seal(data.draw(st.sampled_from(self.incarnations)), counts, stamped)

    def seal(self, incarnation: int, counts: list[int], stamped: bool) -> None:
        ranges = []
        for log, count in zip(self.state.logs.values(), counts):
            if log.leader_incarnation == incarnation and count:
                item = next_range(log, count, length=count * 7, timestamp=log.end if stamped else -1)
                ranges.append(item)
        if ranges:
            answer = self.cluster.commit_ranges(incarnation, ranges)
            (fact,) = self.cluster.facts
            assert isinstance(fact, f.SealCommitted) and answer.refused == ()
            self.bucket[fact.objects[0].key] = {item.log_id: (item.base, item.end) for item in ranges}

    @rule(data=st.data(), seals=st.integers(3, 12), each=st.booleans())
    def grow(self, data: st.DataObject, seals: int, each: bool) -> None:
        """Many seals, and merging keeps up with them, or comes late."""
        for _ in range(seals):
            for incarnation in self.incarnations:
                self.seal(incarnation, [1 + self.cluster.now_ms % 3] * LOGS, stamped=each)
            self.cluster.now_ms += 7
            if each:
                self.work()
        if not each and data.draw(st.booleans()):
            self.work()

    def work(self) -> None:
        """All jobs that the controller has for us. A pass of compaction keeps merging away from its ranges."""
        for one in list(self.state.compactions.open.values()):
            self.ask(c.CloseCompaction(self.cluster.token(16), one.incarnation, one.number))
        for _ in range(50):
            jobs, waiting = plan_jobs(self.state, self.state.logs, self.cluster.now_ms, RULES)
            if not jobs:
                busy = {part.log_id for job in self.state.jobs.values() for part in job.parts}
                busy.update(waiting)
                for log in self.state.logs.values():
                    assert log.range_count <= RULES.head_max or log.log_id in busy, "the state keeps few ranges"
                return
            self.ask(c.OpenJobs(self.cluster.token(16), tuple(jobs)))
            for job in list(self.state.jobs.values()):
                if job.number not in self.read:
                    self.ask(self.outcome(job, 0).command)
        raise AssertionError("merging never comes to rest")

    @rule(ms=st.sampled_from([0, 2_000]))
    def choose(self, ms: int) -> None:
        """The controller's own choice of jobs."""
        self.cluster.now_ms += ms
        jobs, _ = plan_jobs(self.state, self.state.logs, self.cluster.now_ms, RULES)
        if jobs:
            self.ask(c.OpenJobs(self.cluster.token(16), tuple(jobs)))

    @rule(data=st.data(), log_id=st.integers(0, LOGS - 1), manifest=st.booleans())
    def any_job(self, data: st.DataObject, log_id: int, manifest: bool) -> None:
        """Any job over any neighbours: they may overlap."""
        log = self.state.logs.get(log_id)
        if log is None or not log.range_count:
            return
        first = 0 if manifest else data.draw(st.integers(0, log.range_count - 1))
        count = data.draw(st.integers(1, log.range_count - first))
        incarnation = data.draw(st.sampled_from(self.incarnations))
        kind = "manifest" if manifest else "merge"
        new = c.NewJob(incarnation, kind, (log.part(first, count),))
        self.ask(c.OpenJobs(self.cluster.token(16), (new,)))

    @rule(data=st.data(), lossy=st.integers(0, 1))
    def do(self, data: st.DataObject, lossy: int) -> None:
        """An open job reads its inputs and stores its outputs."""
        waiting = [job for job in self.state.jobs.values() if job.number not in self.read]
        if not waiting:
            return
        self.done.append(self.outcome(data.draw(st.sampled_from(waiting)), lossy))

    def outcome(self, job: Job, lossy: int) -> Done:
        self.read[job.number] = job
        outputs: list[Any] = []
        for part in job.parts:
            log = self.state.logs.get(part.log_id)
            first = None if log is None else log.find_part(part)
            if log is None or first is None:
                continue
            if job.kind == MERGE:
                outputs.append(self.merge(job, part, first, lossy))
            elif all(log.row_level(index) for index in range(part.ranges)):
                outputs.append(self.write_manifest(job, part))
        kind = c.ReplaceRanges if job.kind == MERGE else c.WriteManifests
        command = kind(self.cluster.token(16), job.incarnation, job.number, tuple(outputs))
        return Done(job, command)

    def merge(self, job: Job, part: f.MergePart, first: int, lossy: int) -> f.Merged:
        inputs = [self.state.range_at(part.log_id, index) for index in range(first, first + part.ranges)]
        for row in inputs:
            self.check(part.log_id, row)
        ranges = [row.range for row in inputs]
        item = Range(
            part.log_id,
            ranges[-1].leader_epoch,
            part.base,
            part.end - lossy,
            0,
            sum(one.length for one in ranges) - 7 * lossy,
            max(one.max_timestamp for one in ranges),
            ranges[-1].last_stable_offset - lossy,
            sum(one.batch_count for one in ranges),
        )
        self.bucket[merged_key(job.number, part.log_id)] = {part.log_id: (item.base, item.end)}
        return f.Merged(max(0, item.length) + 50, item._replace(length=max(0, item.length)))

    def write_manifest(self, job: Job, part: f.MergePart) -> f.NewManifest:
        log = self.state.logs[part.log_id]
        old = log.manifests[-1] if log.manifests and log.manifests[-1].rows < RULES.manifest_rows_max else None
        rows = [] if old is None else self.manifest_rows(part.log_id, old)
        for index in range(part.ranges):
            row = log.row(index)
            rows.append(ManifestRow(row.object, row.size, row.range, self.state.newest_ms(row)))
        data = encode_manifest(CLUSTER, job.number, part.log_id, rows)
        self.bucket[manifest_key(job.number, part.log_id)] = data
        newest = -1 if old is None else old.max_timestamp
        pointer = point_to(job.number, len(data), rows, 0, newest)
        return f.NewManifest(part.log_id, -1 if old is None else old.job, pointer)

    @rule(data=st.data(), again=st.booleans())
    def finish(self, data: st.DataObject, again: bool) -> None:
        """A job that is done asks for its replacement, perhaps twice, perhaps long after it was closed."""
        if not self.done:
            return
        done = data.draw(st.sampled_from(self.done))
        was_open = done.job.number in self.state.jobs
        answer = self.ask(done.command)
        assert was_open or answer is None or not self.cluster.facts, "only an open job changes anything"
        assert done.job.number not in self.state.jobs
        if again:
            assert self.ask(done.command) == answer
        else:
            self.done.remove(done)

    @rule(data=st.data(), log_id=st.integers(0, LOGS - 1))
    def open_pass(self, data: st.DataObject, log_id: int) -> None:
        """A pass of compaction over a log; or what is in its way goes, the last of its manifests."""
        log = self.state.logs.get(log_id)
        if log is None or not log.range_count:
            return
        if log.manifests:
            pointer = log.manifests[-1]
            rows = self.manifest_rows(log_id, pointer)
            unpacked = tuple(f.UnpackedRange(row.job, row.size, row.newest_ms, row.range) for row in rows)
            self.ask(c.UnpackManifest(self.cluster.token(16), log_id, pointer, unpacked))
            return
        dirty_from = max(self.state.compactions.clean.get(log_id, 0), log.start)
        end = log.row(-1).range.last_stable_offset
        if dirty_from < end:
            bound = data.draw(st.integers(dirty_from + 1, end))
            new = c.NewCompaction(data.draw(st.sampled_from(self.incarnations)), log_id, dirty_from, bound)
            self.ask(c.OpenCompactions(self.cluster.token(16), (new,)))

    @rule(data=st.data(), kept=st.sampled_from([0, 1, 7]))
    def store_compacted(self, data: st.DataObject, kept: int) -> None:
        """The next output of a pass, over some of its ranges, is stored; it is named at once or later."""
        if not self.state.compactions.open:
            return
        one = data.draw(st.sampled_from(list(self.state.compactions.open.values())))
        log = self.state.logs.get(one.log_id)
        key = merged_key(one.next_output, one.log_id)
        if log is None or key in self.bucket or not log.range_count or one.done == one.outputs:
            return
        first = data.draw(st.integers(0, log.range_count - 1))
        count = data.draw(st.integers(1, log.range_count - first))
        inputs = [self.state.range_at(one.log_id, index) for index in range(first, first + count)]
        for row in inputs:
            self.check(one.log_id, row)
        last = inputs[-1].range
        item = last._replace(base=inputs[0].range.base, position=0, length=kept, max_timestamp=-1, batch_count=0)
        self.bucket[key] = {one.log_id: (item.base, item.end)}
        part, made = log.part(first, count), f.Merged(item.length + 50, item)
        command = c.CompactRanges(self.cluster.token(16), one.incarnation, one.number, one.next_output, part, made)
        self.compacted.append(command)
        if data.draw(st.booleans()):
            self.ask(command)

    @rule(data=st.data())
    def name_compacted(self, data: st.DataObject) -> None:
        """An output asks for its place, perhaps again, perhaps long after its pass was closed."""
        if self.compacted:
            command = data.draw(st.sampled_from(self.compacted))
            was_open = command.job in self.state.compactions.open
            answer = self.ask(command)
            assert was_open or answer is None or not self.cluster.facts

    @rule(data=st.data(), done=st.booleans())
    def close_pass(self, data: st.DataObject, done: bool) -> None:
        if self.state.compactions.open:
            one = data.draw(st.sampled_from(list(self.state.compactions.open.values())))
            is_named = merged_key(one.next_output, one.log_id) not in self.bucket  # whoever stored one names it first
            clean_end = one.bound if done and is_named else -1
            self.ask(c.CloseCompaction(self.cluster.token(16), one.incarnation, one.number, clean_end))

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.state.jobs:
            job = data.draw(st.sampled_from(list(self.state.jobs.values())))
            self.ask(c.CloseJob(self.cluster.token(16), job.incarnation, job.number))

    @rule(data=st.data(), log_id=st.integers(0, LOGS - 1))
    def advance(self, data: st.DataObject, log_id: int) -> None:
        log = self.state.logs.get(log_id)
        if log is not None:
            start = data.draw(st.integers(log.start, log.end))
            self.ask(c.AdvanceLogStart(self.cluster.token(16), (f.LogStart(log_id, start),)))

    @rule(log_id=st.integers(0, LOGS - 1))
    def drop_rows(self, log_id: int) -> None:
        """Rows of manifests that the start has passed, and those of what is spent."""
        for (_, owner), pointer in list(self.state.job_table.spent.items()):
            self.drop(owner, pointer, len(self.manifest_rows(owner, pointer)))
        log = self.state.logs.get(log_id)
        if log is not None and log.manifests:
            pointer = log.manifests[0]
            rows = self.manifest_rows(log_id, pointer)
            self.drop(log_id, pointer, sum(row.range.end <= log.start for row in rows))

    def drop(self, log_id: int, pointer: ManifestPointer, count: int) -> None:
        rows = self.manifest_rows(log_id, pointer)
        if not count:
            return
        objects = tuple(f.UnnamedObject(merged_key(row.job, log_id), row.size) for row in rows[:count])
        left = None
        if count < len(rows):
            left = point_to(pointer.job, pointer.size, rows, count, pointer.max_timestamp)
            left = left._replace(first=pointer.first + count)
        self.ask(c.DropManifestRows(self.cluster.token(16), log_id, pointer, left, objects))

    @rule(data=st.data())
    def delete_topic(self, data: st.DataObject) -> None:
        if "t" in self.state.topics and data.draw(st.integers(0, 5)) == 0:
            self.ask(c.DeleteTopics(self.cluster.token(16), (c.TopicRef("t"),)))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """A session ends: its jobs close, its logs are led by its successor once it is recovered."""
        if data.draw(st.integers(0, 3)):
            return
        incarnation = data.draw(st.sampled_from(self.incarnations))
        node = incarnation // 100
        self.incarnations.remove(incarnation)
        self.ask(c.CleanStop(self.cluster.token(16), incarnation))
        self.cluster.register(node, incarnation + 1)
        self.incarnations.append(incarnation + 1)

    @rule()
    def remember_a_view(self) -> None:
        self.views.append(self.state.encode())

    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        """Whatever is doomed or an orphan goes, also as an old view of the state sees it."""
        view = self.state
        if self.views and data.draw(st.booleans()):
            view = ClusterState.decode(data.draw(st.sampled_from(self.views)))
        gone = [key for key in self.bucket if key in view.objects.doomed or is_orphan(view, key)]
        for key in gone:
            del self.bucket[key]
        self.ask(c.ForgetObjects(self.cluster.token(16), tuple(view.objects.doomed)))

    @rule()
    def forget_jobs(self) -> None:
        void = tuple(job for job in self.state.job_table.void if job in self.read)
        self.forgotten.update(void)
        self.ask(c.ForgetJobs(self.cluster.token(16), void))

    # What must hold

    @invariant()
    def everything_named_is_there_and_covers_the_log(self) -> None:
        for log_id, log in self.state.logs.items():
            rows = self.rows(log_id)
            expected = None
            for row in rows:
                assert expected is None or row.range.base == expected
                expected = row.range.end
                if row.range.end > log.start:
                    self.check(log_id, row)
            assert not rows or rows[0].range.base <= max(log.start, rows[0].range.base)
            if log.start < log.end:
                assert rows[0].range.base <= log.start and rows[-1].range.end == log.end
            assert log.size == sum(row.range.length for row in rows)
            assert not {row.key for row in rows} & set(self.state.objects.doomed)

    @invariant()
    def counts_are_right(self) -> None:
        state = self.state
        assert state.log_index.range_total == sum(log.range_count for log in state.logs.values())
        refs: dict[int, int] = {}
        for log in state.logs.values():
            for index in range(log.range_count):
                row = log.row(index)
                if not row.level:
                    refs[row.object] = refs.get(row.object, 0) + 1
        assert refs == {number: found.refs for number, found in state.objects.named.items()}

    @invariant()
    def two_are_never_at_work_on_the_same_ranges(self) -> None:
        for one in self.state.compactions.open.values():
            for job in self.state.jobs.values():
                part = job.part(one.log_id)
                assert part is None or (job.kind == MERGE and part.base >= one.bound)

    @invariant()
    def a_snapshot_is_the_state(self) -> None:
        if self.state.position % 3 == 0:
            assert ClusterState.decode(self.state.encode()) == self.state

    def teardown(self) -> None:
        """When all is dropped nothing is left in the bucket."""
        self.ask(c.DeleteTopics(self.cluster.token(16), (c.TopicRef("t"),)))
        for job in list(self.state.jobs.values()):
            self.ask(c.CloseJob(self.cluster.token(16), job.incarnation, job.number))
        for one in list(self.state.compactions.open.values()):
            self.ask(c.CloseCompaction(self.cluster.token(16), one.incarnation, one.number))
        self.drop_rows(0)
        for key in [key for key in self.bucket if key in self.state.objects.doomed or is_orphan(self.state, key)]:
            del self.bucket[key]
        left = {key for key in self.bucket if not key.startswith("segments/")}
        assert not {key for key in left if int(key.split("/")[1]) not in self.forgotten}, "garbage nobody knows of"


Machine.TestCase.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
TestMachine = Machine.TestCase
