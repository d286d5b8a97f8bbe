"""The checker on hand-written histories, good and bad, and on those of a correct toy log and its corruptions."""

import random  # noqa: TID251
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.checker import Final, Loss, check
from tests.simulation.client import EARLIEST, LATEST
from tests.simulation.history import Event

SECOND = 1_000_000_000
T0 = {"topic": "t", "partition": 0}
Pairs = tuple[tuple[int, int], ...]


class Story:
    """Writes a history event by event, a millisecond apart."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now_ns = 0
        self._number = 1000

    def record(self, kind: str, **fields: Any) -> None:
        self.now_ns += 1_000_000
        self.events.append(Event(self.now_ns, kind, fields))

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def number(self) -> int:
        self._number += 1
        return self._number

    def send(self, *values: int, sequence: int = -1, client: str = "p", partition: int = 0, pid: int = 7) -> int:
        """Begin a request; idempotent with a sequence."""
        number = self.number()
        producer = None if sequence < 0 else (pid, 0)
        where = {"topic": "t", "partition": partition}
        self.record(
            "produce.invoke", client=client, request=number, values=values, acks=-1, producer=producer,
            sequence=sequence, **where,
        )  # fmt: skip
        return number

    def ok(self, request: int, offset: int, partition: int = 0, client: str = "p") -> None:
        where = {"topic": "t", "partition": partition}
        self.record("produce.ok", client=client, request=request, offset=offset, node=1, **where)

    def no(self, kind: str, request: int) -> None:
        self.record(f"produce.{kind}", client="p", request=request, error="WHY", **T0)

    def sent(self, *values: int, offset: int, **options: Any) -> None:
        """A request and its acknowledgement."""
        self.ok(self.send(*values, **options), offset)

    def ask(self, offset: int, client: str = "c") -> int:
        number = self.number()
        self.record(
            "poll.invoke", client=client, poll=number, node=1, max_wait_ms=5000, min_bytes=1,
            positions=(("t", 0, offset),),
        )  # fmt: skip
        return number

    def got(self, poll: int, offset: int, *records: tuple[int, int], hw: int = 0, start: int = 0, **more: Any) -> None:
        hw = hw or max((at + 1 for at, _ in records), default=0)
        fields = {"client": "c", "poll": poll, "node": 1, **T0, **more}
        self.record("poll.ok", **fields, offset=offset, records=records, high_watermark=hw, log_start=start)

    def poll(self, offset: int, *records: tuple[int, int], **more: Any) -> None:
        """A poll and its answer."""
        self.got(self.ask(offset, more.get("client", "c")), offset, *records, **more)

    def final(self, *records: tuple[int, int], start: int = 0, end: int = -1) -> None:
        position = max((at + 1 for at, _ in records), default=start)
        end = position if end < 0 else end
        self.record("final.read", **T0, start=start, end=end, position=position, records=records)

    def list_offsets(self, timestamp: int, offset: int) -> None:
        number = self.number()
        fields = {"client": "c", "list": number, "timestamp": timestamp, "node": 1, **T0}
        self.record("list_offsets.invoke", **fields)
        self.record("list_offsets.ok", **fields, offset=offset)

    def commit(self, offset: int, outcome: str = "ok", client: str = "m") -> None:
        number = self.number()
        self.record("commit.invoke", client=client, group="g", commit=number, offsets=(("t", 0, offset),))
        if outcome:
            self.record(f"commit.{outcome}", client=client, group="g", commit=number)

    def fetch_offsets(self, offset: int) -> None:
        number = self.number()
        self.record("fetch_offsets.invoke", client="m", group="g", fetch=number)
        self.record("fetch_offsets.ok", client="m", group="g", fetch=number, offsets=(("t", 0, offset),))

    def anomalies(self, **final: Any) -> set[str]:
        return {finding.anomaly for finding in check(self.events, Final(**final))}


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_good_history(story: Story) -> None:
    story.sent(1, 2, offset=0, sequence=0)
    lost = story.send(3, sequence=2)
    story.poll(0, (0, 1), (1, 2))
    story.no("unknown", lost)
    story.sent(4, offset=3, pid=8, sequence=0)
    story.poll(2, (2, 3), (3, 4))
    story.list_offsets(LATEST, 4)
    story.list_offsets(EARLIEST, 0)
    story.fetch_offsets(-1)
    story.commit(2)
    story.commit(3, "unknown")
    story.commit(4, "fail")
    story.fetch_offsets(3)
    story.final((0, 1), (1, 2), (2, 3), (3, 4))
    story.record("final.offsets", group="g", offsets=(("t", 0, 3),))
    assert story.anomalies(quiet_from_ns=0) == set()


def test_lost_write(story: Story) -> None:
    story.sent(1, offset=0)
    story.sent(2, offset=1)
    story.sent(3, offset=2)
    story.final((0, 1), (2, 3))
    assert story.anomalies() == {"lost-write"}
    assert story.anomalies(losses=[Loss("t", 0, 1, 2)]) == set()
    assert story.anomalies(losses=[Loss("t", 1, 1, 2)]) == {"lost-write"}


def test_deleted_records_are_not_lost(story: Story) -> None:
    story.sent(1, offset=0)
    story.sent(2, offset=1)
    story.record("delete_records.invoke", client="a", delete=1, offset=1, node=1, **T0)
    story.final((1, 2), start=1)
    assert story.anomalies() == set()


def test_records_that_nobody_wanted_deleted_are_lost(story: Story) -> None:
    story.sent(1, offset=0)
    story.sent(2, offset=1)
    story.final((1, 2), start=1)
    assert story.anomalies() == {"lost-write"}


def test_unseen(story: Story) -> None:
    story.sent(1, offset=0)
    story.sent(2, offset=1)
    story.final((0, 1))
    assert story.anomalies() == {"unseen"}


def test_duplicate_of_an_idempotent_producer(story: Story) -> None:
    story.sent(1, offset=0, sequence=0)
    story.final((0, 1), (1, 1))
    assert story.anomalies() == {"duplicate"}


def test_a_plain_producer_may_leave_as_many_copies_as_attempts(story: Story) -> None:
    story.no("unknown", story.send(1))
    story.sent(1, offset=1)
    story.final((0, 1), (1, 1))
    assert story.anomalies() == set()
    story.poll(2, (2, 1))
    assert "duplicate" in story.anomalies()


def test_what_was_seen_and_declared_lost_may_be_sent_again(story: Story) -> None:
    sent = story.send(1, sequence=0)
    story.poll(0, (0, 1))
    story.ok(sent, 5)
    story.final((5, 1))
    assert story.anomalies(losses=[Loss("t", 0, 0, 5)]) == set()
    assert "duplicate" in story.anomalies()


def test_inconsistent_offset(story: Story) -> None:
    story.no("unknown", story.send(1))
    story.sent(2, offset=0)
    story.poll(0, (0, 1))
    story.final((0, 2))
    assert story.anomalies() == {"inconsistent-offset"}
    assert story.anomalies(losses=[Loss("t", 0, 0, 1)]) == {"inconsistent-offset"}, "no loss excuses two values"


def test_inconsistent_offset_of_an_answer(story: Story) -> None:
    story.sent(1, offset=0)
    story.sent(2, offset=0, client="q")
    assert "inconsistent-offset" in story.anomalies()


def test_reordered_sends_of_a_session(story: Story) -> None:
    first, second = story.send(1, sequence=0), story.send(2, sequence=1)
    story.ok(second, 0)
    story.ok(first, 1)
    story.final((0, 2), (1, 1))
    assert story.anomalies() == {"reordered-sends"}


def test_reordered_sends_of_two_clients(story: Story) -> None:
    story.sent(1, offset=1)
    story.sent(2, offset=0, client="q")
    story.final((0, 2), (1, 1))
    assert story.anomalies() == {"reordered-sends"}


def test_sends_at_the_same_time_have_no_order(story: Story) -> None:
    first, second = story.send(1), story.send(2, client="q")
    story.ok(first, 1)
    story.ok(second, 0)
    story.final((0, 2), (1, 1))
    assert story.anomalies() == set()


def test_skipped_send(story: Story) -> None:
    story.sent(1, offset=0, sequence=0)
    story.send(2, sequence=1)
    story.send(3, sequence=2)
    story.final((0, 1), (1, 3))
    assert story.anomalies() == {"skipped-send"}
    assert story.anomalies(losses=[Loss("t", 0, 5, 6)]) == set()


def test_a_skipped_send_may_be_deleted(story: Story) -> None:
    story.send(2, sequence=1)
    story.send(3, sequence=2)
    story.final((5, 3), start=5)
    assert story.anomalies() == set()


def test_torn_batch(story: Story) -> None:
    story.no("unknown", story.send(1, 2))
    story.sent(3, offset=1)
    story.final((0, 1), (1, 3))
    assert story.anomalies() == {"torn-batch"}


def test_torn_batch_with_something_in_between(story: Story) -> None:
    story.no("unknown", story.send(1, 2))
    story.sent(3, offset=1, client="q")
    story.final((0, 1), (1, 3), (2, 2))
    assert story.anomalies() == {"torn-batch"}


def test_nonmonotonic_poll(story: Story) -> None:
    story.sent(1, offset=0)
    story.sent(2, offset=1)
    story.poll(0, (0, 1), (1, 2))
    story.poll(1, (1, 2))
    story.final((0, 1), (1, 2))
    assert story.anomalies() == {"nonmonotonic-poll"}


def test_going_back_on_purpose_is_no_anomaly(story: Story) -> None:
    story.sent(1, offset=0)
    story.poll(0, (0, 1))
    story.record("assign", client="c", offset=0, **T0)
    story.poll(0, (0, 1))
    story.final((0, 1))
    assert story.anomalies() == set()


def test_skipped_poll(story: Story) -> None:
    for value in range(3):
        story.sent(value, offset=value)
    story.poll(0, (0, 0), (2, 2))
    story.final((0, 0), (1, 1), (2, 2))
    assert story.anomalies() == {"skipped-poll"}


def test_read_beyond_what_is_there_in_the_end(story: Story) -> None:
    story.no("unknown", story.send(1))
    story.poll(0, (0, 1))
    story.final(end=0)
    assert story.anomalies() == {"read-beyond"}


def test_never_sent(story: Story) -> None:
    story.poll(0, (0, 9))
    assert story.anomalies() == {"never-sent"}


def test_value_of_another_partition(story: Story) -> None:
    story.send(9, partition=1)
    story.poll(0, (0, 9))
    assert story.anomalies() == {"never-sent"}


def test_aborted_read(story: Story) -> None:
    story.no("fail", story.send(1))
    story.poll(0, (0, 1))
    assert story.anomalies() == {"aborted-read"}


def test_refused(story: Story) -> None:
    story.no("refused", story.send(1, sequence=0))
    assert story.anomalies() == {"refused"}
    assert story.anomalies(losses=[Loss("t", 0, 0, 1)]) == set()


def test_producer_id_twice(story: Story) -> None:
    story.send(1, sequence=0)
    story.send(2, sequence=0, client="q")
    assert story.anomalies() == {"producer-id-twice"}


def test_high_watermark_backwards(story: Story) -> None:
    story.poll(0, hw=5)
    story.poll(0, hw=4)
    assert story.anomalies() == {"high-watermark-backwards"}


def test_high_watermarks_of_polls_at_the_same_time(story: Story) -> None:
    late = story.ask(0, client="d")
    story.poll(0, hw=5)
    story.got(late, 0, hw=4, client="d")
    assert story.anomalies() == set()


def test_list_offsets_behind_an_acknowledgement(story: Story) -> None:
    story.sent(1, offset=4)
    story.list_offsets(LATEST, 4)
    assert story.anomalies() == {"high-watermark-backwards"}


def test_log_start_backwards(story: Story) -> None:
    story.record("delete_records.invoke", client="a", delete=1, offset=3, node=1, **T0)
    story.record("delete_records.ok", client="a", delete=1, offset=3, start=3, node=1, **T0)
    story.list_offsets(EARLIEST, 0)
    assert story.anomalies() == {"log-start-backwards"}


def test_false_out_of_range(story: Story) -> None:
    story.record("poll.out_of_range", client="c", poll=1, offset=3, node=1, **T0)
    assert story.anomalies() == {"false-out-of-range"}


def test_out_of_range_behind_deleted_records(story: Story) -> None:
    story.record("delete_records.invoke", client="a", delete=1, offset=4, node=1, **T0)
    story.record("poll.out_of_range", client="c", poll=1, offset=3, node=1, **T0)
    assert story.anomalies() == set()


def test_commit_lost(story: Story) -> None:
    story.commit(3)
    story.fetch_offsets(-1)
    assert story.anomalies() == {"commit-lost"}
    assert story.anomalies(losses=[Loss("__consumer_offsets", 1, 7, 9)]) == set()


def test_commit_replaced_by_an_older_one(story: Story) -> None:
    story.commit(3)
    story.commit(4)
    story.record("final.offsets", group="g", offsets=(("t", 0, 3),))
    assert story.anomalies() == {"commit-lost"}


def test_commit_of_unknown_outcome_may_count_or_not(story: Story) -> None:
    story.commit(3)
    story.commit(4, "unknown")
    story.fetch_offsets(3)
    story.fetch_offsets(4)
    assert story.anomalies() == set()


def test_told_offset_taken_back(story: Story) -> None:
    story.commit(3)
    story.commit(4, "")
    story.fetch_offsets(4)
    story.fetch_offsets(3)
    assert story.anomalies() == {"commit-backwards"}


def test_commit_of_a_member_that_should_be_fenced(story: Story) -> None:
    story.commit(5)
    story.commit(4, client="n")
    assert story.anomalies() == {"commit-backwards"}


def test_commit_never_made(story: Story) -> None:
    story.commit(3, "fail")
    story.fetch_offsets(3)
    assert story.anomalies() == {"commit-never-made"}


def test_two_owners(story: Story) -> None:
    for client in ("m", "n"):
        story.record("group.joined", client=client, group="g", generation=1, parts=(("t", 0),))
    assert story.anomalies() == {"two-owners"}


def heard(story: Story, client: str, beat: int) -> None:
    story.record("group.beat.invoke", client=client, group="g", beat=beat)
    story.record("group.beat.ok", client=client, group="g", beat=beat, epoch=2)


def test_given_before_released(story: Story) -> None:
    parts = (("t", 0),)
    for beat, client in enumerate(("m", "n")):
        heard(story, client, beat)
        story.record("group.given", client=client, group="g", epoch=2 + beat, parts=parts)
    assert story.anomalies() == {"given-before-released"}


def test_given_when_it_was_released(story: Story) -> None:
    parts = (("t", 0),)
    for beat, client in enumerate(("m", "n")):
        heard(story, client, beat)
        story.record("group.given", client=client, group="g", epoch=2 + beat, parts=parts)
        story.record("group.released", client=client, group="g", parts=parts)
    assert story.anomalies() == set()


def test_not_readable(story: Story) -> None:
    story.sent(1, offset=0)
    assert story.anomalies(quiet_from_ns=0) == {"not-readable"}


def test_not_readable_to_its_end(story: Story) -> None:
    story.sent(1, offset=0)
    story.final((0, 1), end=5)
    assert story.anomalies(quiet_from_ns=0) == {"not-readable"}
    assert story.anomalies(quiet_from_ns=0, losses=[Loss("t", 0, 1, 5)]) == set()


def test_stalled_producer(story: Story) -> None:
    request = story.send(1, sequence=0)
    story.wait(20)
    story.ok(request, 0)
    story.final((0, 1))
    assert story.anomalies(quiet_from_ns=0) == {"stalled"}
    assert story.anomalies(quiet_from_ns=10 * SECOND) == set()


def test_stalled_for_ever(story: Story) -> None:
    story.ask(0)
    story.wait(20)
    story.record("the end")
    assert story.anomalies(quiet_from_ns=0) == {"stalled"}
    story.events.insert(1, Event(SECOND, "fault.client_kill", {"client": "c"}))
    assert story.anomalies(quiet_from_ns=0) == set()


def test_late_poll(story: Story) -> None:
    poll = story.ask(0)
    story.sent(1, offset=0)
    story.wait(3)
    story.got(poll, 0, (0, 1))
    story.final((0, 1))
    assert story.anomalies(quiet_from_ns=0) == {"late-poll"}
    assert story.anomalies(quiet_from_ns=story.now_ns) == {"late-poll"}
    story.events.insert(1, Event(story.events[0].at_ns, "fault.pause", {}))
    assert story.anomalies(quiet_from_ns=story.now_ns) == set()


def correct_story(seed: int) -> Story:
    """A toy log that is right, with crashes (unknown outcomes), two producers, a consumer and a committing member."""
    rng, story = random.Random(seed), Story()
    log: list[int] = []
    value, position, committed, start = 1, 0, -1, 0
    sequences = {1: 0, 2: 0}
    for _ in range(rng.randrange(5, 40)):
        step = rng.randrange(8)
        if step < 3:
            values = tuple(range(value, value + rng.randrange(1, 4)))
            value += len(values)
            kind = rng.choice(["idempotent", "plain", "unknown", "fail"])
            if kind == "idempotent":
                pid = rng.choice([1, 2])
                story.sent(*values, offset=len(log), sequence=sequences[pid], pid=pid, client=f"p{pid}")
                sequences[pid] += len(values)
                log += values
            else:
                request = story.send(*values)
                if kind == "plain":
                    story.ok(request, len(log))
                    log += values
                else:
                    story.no(kind, request)
                    if kind == "unknown" and rng.random() < 0.5:
                        log += values
        elif step < 5 and position < start:
            story.record("poll.out_of_range", client="c", poll=0, offset=position, node=1, **T0)
            position = start
            story.record("assign", client="c", offset=start, **T0)
        elif step < 5:
            end = rng.randint(position, len(log))
            story.poll(position, *[(at, log[at]) for at in range(position, end)], hw=len(log), start=start)
            position = end
        elif step == 5 and position > committed:
            outcome = rng.choice(["ok", "ok", "unknown"])
            story.commit(position, outcome)
            committed = position if outcome == "ok" or rng.random() < 0.5 else committed
        elif step == 6:
            story.fetch_offsets(committed)
            story.list_offsets(LATEST, len(log))
        elif step == 7 and rng.random() < 0.3:
            start = rng.randint(start, len(log))
            story.record("delete_records.invoke", client="a", delete=1, offset=start, node=1, **T0)
            story.record("delete_records.ok", client="a", delete=1, offset=start, start=start, node=1, **T0)
    story.final(*[(at, log[at]) for at in range(start, len(log))], start=start, end=len(log))
    story.record("final.offsets", group="g", offsets=(("t", 0, committed),))
    return story


@given(st.integers(0, 1 << 32))
def test_a_correct_log_passes(seed: int) -> None:
    assert correct_story(seed).anomalies(quiet_from_ns=0) == set()


def corrupt(story: Story, rng: random.Random) -> bool:
    """Damage what the log answered in one place that matters; False if there is none."""
    *_, read, _ = story.events
    records = list(read.fields["records"])
    acknowledged = {
        (offset, value)
        for event in story.events
        if event.kind == "produce.ok"
        for request in story.events
        if request.kind == "produce.invoke" and request.fields["request"] == event.fields["request"]
        for offset, value in enumerate(request.fields["values"], event.fields["offset"])
    }
    sure = [record for record in records if record in acknowledged]
    if not sure:
        return False
    chosen = rng.choice(sure)
    at = records.index(chosen)
    match rng.randrange(4):
        case 0:
            del records[at]
        case 1:
            records[at] = (chosen[0], 999_999)
        case 2:
            end = read.fields["end"]
            records.append((end, chosen[1]))
            read.fields["end"] = end + 1
        case 3:
            records = records[:at]
            read.fields["end"] = chosen[0]
    read.fields["records"] = tuple(records)
    return True


@given(st.integers(0, 1 << 32))
def test_every_corruption_of_it_is_found(seed: int) -> None:
    story = correct_story(seed)
    if corrupt(story, random.Random(seed)):
        assert story.anomalies()
