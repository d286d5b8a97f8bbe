from collections import deque
from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ErrorCode, KafkaError
from protocol.records import BatchHeader, build_control_batch, parse_header
from storage.producers import Duplicate, ProducerStates
from storage.seal import AbortedEntry

NOW = 1_700_000_000_000
DAY = 86_400_000
LAST_SEQUENCE = 2**31 - 1


def header(
    pid: int,
    epoch: int,
    sequence: int,
    *,
    base: int = 0,
    count: int = 1,
    timestamp: int = 5,
    transactional: bool = False,
) -> BatchHeader:
    attributes = 0x10 if transactional else 0
    return BatchHeader(base, 49, 0, 2, 0, attributes, count - 1, timestamp, timestamp, pid, epoch, sequence, count)


class Log:
    """Appends as a leader does: check, give an offset and a sequence, apply. Everything is durable at once."""

    def __init__(self) -> None:
        self.states = ProducerStates(DAY)
        self.end = 0
        self.now = NOW

    def produce(self, pid: int, epoch: int, sequence: int, **fields: int | bool) -> Duplicate | int:
        sent = header(pid, epoch, sequence, **fields)  # type: ignore[arg-type]
        duplicate = self.states.check(sent, self.now)
        if duplicate is not None:
            return duplicate
        base = self.end
        self.end += sent.record_count
        self.states.append(sent, base, base + 1000, self.now, self.end)
        return base

    def refused(self, pid: int, epoch: int, sequence: int, **fields: int | bool) -> str:
        with pytest.raises(KafkaError) as caught:
            self.produce(pid, epoch, sequence, **fields)
        return caught.value.code.name

    def end_transaction(self, pid: int, epoch: int, *, abort: bool, coordinator_epoch: int = 1) -> AbortedEntry | None:
        offset = self.end
        self.end += 1
        return self.states.complete(
            pid, epoch, coordinator_epoch, offset, self.now, timestamp=7, abort=abort, durable_end=self.end
        )


def test_the_last_five_batches_are_duplicates_of_their_originals() -> None:
    log = Log()
    for number in range(7):
        assert log.produce(1, 0, 10 * number, count=10, timestamp=100 + number) == 10 * number
    for number in range(2, 7):
        duplicate = log.produce(1, 0, 10 * number, count=10)
        assert duplicate == Duplicate(10 * number, 10 * number + 9, 100 + number, 10 * number + 1000)
    assert log.refused(1, 0, 10, count=10) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    # Only the exact sequence range is a duplicate.
    assert log.refused(1, 0, 60, count=5) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    assert log.refused(1, 0, 65, count=5) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    assert log.refused(1, 0, 71) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    assert log.produce(1, 0, 70) == 70


def test_a_transaction_does_not_go_on_across_what_was_declared_lost() -> None:
    log = Log()
    log.produce(1, 0, 0, transactional=True)
    log.produce(2, 3, 0, transactional=True)
    snapshot = log.states.snapshot(log.end)
    log.states = ProducerStates(DAY, hole_end=1000)
    log.states.load(snapshot)
    log.end = 1000
    for pid, epoch, sequence in ((1, 0, 1), (1, 1, 0), (2, 3, 1), (2, 4, 0)):
        assert log.refused(pid, epoch, sequence, transactional=True) == "TRANSACTION_ABORTABLE"
        with pytest.raises(KafkaError, match="was declared lost") as caught:
            log.states.check_own(pid, epoch)
        assert caught.value.code is ErrorCode.TRANSACTION_ABORTABLE
    assert log.states.first_open_offset(log.end) == 0
    # What was appended before is still answered, and what ends a transaction still does.
    assert log.produce(1, 0, 0, transactional=True) == Duplicate(0, 0, 5, 0)
    assert log.end_transaction(1, 1, abort=True) == AbortedEntry(1, 0, 1000, 1)
    assert log.end_transaction(2, 3, abort=False) is None
    # Behind the hole everything is as ever, and later holes are known by their own end.
    assert log.produce(1, 2, 0, transactional=True) == 1002
    assert log.produce(1, 2, 1, transactional=True) == 1003
    log.states.check_own(1, 2)


def test_a_producer_without_state_begins_anywhere() -> None:
    log = Log()
    assert log.produce(1, 3, 17) == 0
    assert log.produce(1, 3, 18) == 1


def test_sequences_wrap_to_zero() -> None:
    log = Log()
    assert log.produce(1, 0, LAST_SEQUENCE - 4, count=4) == 0
    assert log.produce(1, 0, LAST_SEQUENCE, count=3) == 4
    assert log.produce(1, 0, LAST_SEQUENCE, count=3) == Duplicate(4, 6, 5, 1004)
    assert log.produce(1, 0, 2) == 7
    log = Log()
    assert log.produce(1, 0, LAST_SEQUENCE) == 0
    assert log.produce(1, 0, 0) == 1
    assert log.refused(1, 0, 2) == "OUT_OF_ORDER_SEQUENCE_NUMBER"


def test_epochs_only_grow_and_begin_at_zero() -> None:
    log = Log()
    log.produce(1, 4, 0)
    assert log.refused(1, 3, 1) == "INVALID_PRODUCER_EPOCH"
    assert log.refused(1, 3, 0) == "INVALID_PRODUCER_EPOCH"
    assert log.refused(1, 5, 1) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    assert log.produce(1, 5, 0) == 1
    # The window is that of the new epoch.
    assert log.refused(1, 4, 0) == "INVALID_PRODUCER_EPOCH"
    assert log.produce(1, 5, 0) == Duplicate(1, 1, 5, 1001)
    assert log.produce(2, 0, 0) == 2


def test_expiry_counts_from_the_append_and_is_applied_at_use() -> None:
    log = Log()
    log.produce(1, 4, 0, timestamp=1)  # the client's own, long ago
    log.now += DAY - 1
    assert isinstance(log.produce(1, 4, 0), Duplicate)
    assert log.states.expire(log.now, log.end, log.states.ids()) == 0
    log.now += 1
    assert log.states.snapshot(log.end)
    assert log.produce(1, 2, 9) == 1
    assert log.produce(1, 2, 10) == 2
    log.now += DAY
    assert log.states.expire(log.now, log.end, log.states.ids()) == 1
    assert len(log.states) == 0 and log.states.snapshot(log.end) == b""


def test_an_open_transaction_does_not_expire() -> None:
    log = Log()
    log.produce(1, 0, 0, transactional=True)
    log.now += 2 * DAY
    assert log.refused(1, 0, 5, transactional=True) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    assert log.states.expire(log.now, log.end, log.states.ids()) == 0


def test_batches_outside_of_an_open_transaction_are_refused() -> None:
    log = Log()
    log.produce(1, 0, 0, transactional=True)
    assert log.refused(1, 0, 1) == "INVALID_TXN_STATE"
    log.end_transaction(1, 0, abort=False)
    assert log.produce(1, 0, 1) == 2


def test_sequences_go_on_after_a_marker_and_begin_anew_after_an_epoch_bump() -> None:
    log = Log()
    log.produce(1, 0, 0, count=3, transactional=True)
    log.end_transaction(1, 0, abort=False)
    assert log.produce(1, 0, 0, count=3, transactional=True) == Duplicate(0, 2, 5, 1000)
    assert log.produce(1, 0, 3, transactional=True) == 4
    log.end_transaction(1, 1, abort=False)  # as transactions of version 2 do
    assert log.refused(1, 0, 4, transactional=True) == "INVALID_PRODUCER_EPOCH"
    assert log.refused(1, 1, 4, transactional=True) == "OUT_OF_ORDER_SEQUENCE_NUMBER"
    assert log.produce(1, 1, 0, transactional=True) == 6


def test_markers_are_fenced_by_producer_and_coordinator_epoch() -> None:
    log = Log()
    log.states.check_marker(9, 0, 0, 1)
    log.produce(1, 3, 0, transactional=True)
    log.states.check_marker(1, 3, 5, 1)
    with pytest.raises(KafkaError) as caught:
        log.states.check_marker(1, 2, 5, 1)
    assert caught.value.code is ErrorCode.INVALID_PRODUCER_EPOCH
    with pytest.raises(KafkaError) as caught:
        log.states.check_marker(1, 3, 5, 2)  # equal epoch, open transaction: a late repeat of the one before
    assert caught.value.code is ErrorCode.INVALID_PRODUCER_EPOCH
    log.states.check_marker(1, 4, 5, 2)
    log.end_transaction(1, 4, abort=False, coordinator_epoch=5)
    log.states.check_marker(1, 4, 5, 2)  # a repeat that finds nothing open
    with pytest.raises(KafkaError) as caught:
        log.states.check_marker(1, 4, 4, 2)
    assert caught.value.code is ErrorCode.TRANSACTION_COORDINATOR_FENCED


def test_aborted_entries_tell_the_stable_offset_after_their_marker() -> None:
    log = Log()
    log.produce(1, 0, 0, transactional=True)
    log.produce(2, 0, 0, transactional=True)
    log.produce(3, 0, 0, transactional=True)
    assert log.end_transaction(2, 0, abort=True) == AbortedEntry(2, 1, 3, 0)
    assert log.end_transaction(1, 0, abort=True) == AbortedEntry(1, 0, 4, 2)
    assert log.end_transaction(3, 0, abort=False) is None
    log.produce(1, 0, 1, transactional=True)
    assert log.end_transaction(1, 0, abort=True) == AbortedEntry(1, 6, 7, 8)
    assert log.end_transaction(1, 0, abort=True) is None  # nothing open
    assert [entry.last_offset for entry in log.states.aborted(0, 100)] == [3, 4, 7]
    assert [entry.last_offset for entry in log.states.aborted(4, 7)] == [4]
    log.states.forget_aborted(5)
    assert [entry.last_offset for entry in log.states.aborted(0, 100)] == [7]


def test_a_transaction_is_open_until_its_marker_is_durable() -> None:
    log = Log()
    log.produce(1, 0, 0, transactional=True)
    log.produce(2, 0, 0, transactional=True)
    assert log.states.first_open_offset(2) == 0
    log.end_transaction(1, 0, abort=True)
    assert log.states.first_open_offset(2) == 0
    assert log.states.first_open_offset(3) == 1
    log.end_transaction(2, 0, abort=False)
    assert log.states.first_open_offset(3) == 1
    assert log.states.first_open_offset(4) is None
    assert list(log.states.open_transactions()) == []


def test_a_duplicate_names_the_append_sequence_it_waits_for() -> None:
    states = ProducerStates()
    states.append(header(1, 0, 0, count=2), 40, 77, NOW, 0)
    assert states.check(header(1, 0, 0, count=2), NOW) == Duplicate(40, 41, 5, 77)
    restored = ProducerStates()
    restored.load(states.snapshot(42))
    assert restored.check(header(1, 0, 0, count=2), NOW) == Duplicate(40, 41, 5, 0)


def test_states_below_what_was_let_go_are_not_made_up() -> None:
    log = Log()
    for number in range(30):
        log.produce(1, 0, number)
    assert len(log.states._producers[1].events) <= 10
    with pytest.raises(AssertionError):
        log.states.snapshot(3)


def test_a_window_survives_what_was_let_go() -> None:
    log = Log()
    for number in range(40):
        log.produce(1, 0, number)
        restored = ProducerStates()
        restored.load(log.states.snapshot(log.end))
        for states in (log.states, restored):
            for known in range(max(number - 4, 0), number + 1):
                duplicate = states.check(header(1, 0, known), NOW)
                assert duplicate is not None and duplicate.base_offset == known


def test_many_markers_without_data_do_not_pile_up() -> None:
    log = Log()
    for _ in range(1000):
        log.end_transaction(1, 0, abort=True)
    assert len(log.states._producers[1].events) <= 10
    assert log.states.first_open_offset(log.end) is None
    assert log.states._closing == []


@pytest.mark.parametrize(
    "damage",
    [
        b"\xc1",
        b"\x92",
        msgpack.packb([2, []]),
        msgpack.packb([1, [[1, 2]]]),
        msgpack.packb([1, [[1, 0, -1, -1, 0, 0, 5, [1, 2, 3]]]]),
        msgpack.packb([1, [[1, 0, -1, -1, 0, 0, "5", []]]]),
        msgpack.packb([1, 7]),
        msgpack.packb(7),
        msgpack.packb([1, []]) + b"\x00",
    ],
)
def test_a_damaged_snapshot_is_refused(damage: bytes) -> None:
    with pytest.raises(ValueError):
        ProducerStates().load(damage)


# A model that knows nothing of two ends: one entry per producer, as Kafka keeps it.


@dataclass
class ModelEntry:
    epoch: int = -1
    coordinator_epoch: int = -1
    open_from: int = -1
    used_ms: int = -1
    timestamp: int = -1
    end: int = 0
    window: deque[tuple[int, int, int, int]] = field(default_factory=lambda: deque(maxlen=5))

    def of_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.window.clear()
            self.epoch = epoch


@dataclass(frozen=True)
class Step:
    kind: str  # data, commit, abort
    pid: int
    epoch_bump: int
    count: int
    transactional: bool
    in_flight: int  # batches not yet durable after this one

    def __repr__(self) -> str:
        return f"{self.kind}(p{self.pid} +{self.epoch_bump} n{self.count} t{self.transactional:d} f{self.in_flight})"


step = st.builds(
    Step,
    st.sampled_from(["data", "data", "data", "data", "commit", "abort"]),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 8),
)
steps = st.one_of(st.lists(step, max_size=12), st.lists(step, min_size=30, max_size=60))


def play(history: list[Step]) -> tuple[ProducerStates, list[tuple[BatchHeader, bytes | None, int]], list[int]]:
    """Runs a history against a leader's states; the stored batches, and the ends below which all was durable."""
    states = ProducerStates()
    stored: list[tuple[BatchHeader, bytes | None, int]] = []
    epochs: dict[int, int] = {}
    sequences: dict[int, int] = {}
    open_: set[int] = set()
    ends = [0]
    durable_end = end = 0
    for number, step in enumerate(history):
        pid, now = step.pid, NOW + number
        epoch = epochs[pid] = epochs.get(pid, 0) + step.epoch_bump
        if step.epoch_bump:
            sequences[pid] = 0
        if step.kind == "data":
            sent = header(
                pid,
                epoch,
                sequences.get(pid, 0),
                base=end,
                count=step.count,
                timestamp=50 + number,
                transactional=step.transactional or pid in open_,
            )
            assert states.check(sent, now) is None
            states.append(sent._replace(base_offset=999), end, number + 1, now, durable_end)
            sequences[pid] = sent.last_sequence + 1
            if sent.is_transactional:
                open_.add(pid)
            stored.append((sent, None, now))
        else:
            batch = build_control_batch(
                commit=step.kind == "commit",
                producer_id=pid,
                producer_epoch=epoch,
                coordinator_epoch=number,
                timestamp=50 + number,
                base_offset=end,
            )
            states.check_marker(pid, epoch, number, 1)
            states.complete(
                pid, epoch, number, end, now, timestamp=50 + number, abort=step.kind == "abort", durable_end=durable_end
            )
            open_.discard(pid)
            stored.append((parse_header(batch), bytes(batch), now))
        end = stored[-1][0].next_offset
        ends.append(end)
        durable_end = max(durable_end, ends[max(len(ends) - 1 - step.in_flight, 0)])
    return states, stored, [at for at in ends if at >= durable_end]


def model_at(stored: list[tuple[BatchHeader, bytes | None, int]], end: int) -> dict[int, ModelEntry]:
    entries: dict[int, ModelEntry] = {}
    for batch, marker, now in stored:
        if batch.next_offset > end:
            break
        entry = entries.setdefault(batch.producer_id, ModelEntry())
        entry.of_epoch(batch.producer_epoch)
        entry.used_ms, entry.timestamp, entry.end = now, batch.max_timestamp, batch.next_offset
        if marker is not None:
            entry.coordinator_epoch = batch.max_timestamp - 50  # the number of the step, as `play` chose it
            entry.open_from = -1
        else:
            entry.window.append((batch.last_sequence, batch.base_offset, batch.last_offset, batch.max_timestamp))
            if batch.is_transactional and entry.open_from < 0:
                entry.open_from = batch.base_offset
    return entries


@settings(max_examples=300)
@given(steps)
def test_a_snapshot_is_the_state_exactly_at_its_end(history: list[Step]) -> None:
    states, stored, ends = play(history)
    for end in ends:
        expected = model_at(stored, end)
        snapshot = states.snapshot(end)
        found = {
            pid: ModelEntry(epoch, coordinator, opened, used, at, last, deque(zip(*[iter(window)] * 4, strict=True), 5))
            for pid, epoch, coordinator, opened, used, at, last, window in (
                msgpack.unpackb(snapshot)[1] if snapshot else []
            )
        }
        assert found == expected
        opened = [entry.open_from for entry in expected.values() if entry.open_from >= 0]
        assert states.last_stable_offset(end) == min([end, *opened])

        replayed = ProducerStates()
        for batch, marker, now in stored:
            if batch.next_offset <= end:
                replayed.replay(batch, now, marker)
        assert replayed.snapshot(end) == snapshot
        restored = ProducerStates()
        restored.load(snapshot)
        assert restored.snapshot(end) == snapshot
        assert restored.last_stable_offset(end) == states.last_stable_offset(end)
        assert list(restored.open_transactions()) == list(replayed.open_transactions())


@settings(max_examples=150)
@given(steps, st.data())
def test_a_restored_state_goes_on_like_the_one_it_was_taken_from(history: list[Step], data: st.DataObject) -> None:
    _, stored, _ = play(history)
    cut = data.draw(st.integers(0, len(stored)))
    first = ProducerStates()
    for batch, marker, now in stored[:cut]:
        first.replay(batch, now, marker)
    second = ProducerStates()
    second.load(first.snapshot(stored[cut - 1][0].next_offset if cut else 0))
    for batch, marker, now in stored[cut:]:
        assert first.replay(batch, now, marker) == second.replay(batch, now, marker)
    end = stored[-1][0].next_offset if stored else 0
    assert first.snapshot(end) == second.snapshot(end)
    for pid in range(1, 4):
        for sequence in range(12):
            for epoch in range(3):
                sent = header(pid, epoch, sequence)
                assert outcome(first, sent) == outcome(second, sent)


def outcome(states: ProducerStates, sent: BatchHeader) -> object:
    try:
        duplicate = states.check(sent, NOW)
    except KafkaError as error:
        return error.code
    return duplicate and duplicate._replace(sequence=0)


@settings(max_examples=200)
@given(steps)
def test_aborted_entries_and_open_offsets_equal_a_scan_of_the_log(history: list[Step]) -> None:
    states, stored, ends = play(history)
    open_: dict[int, int] = {}
    expected = []
    for number, (batch, marker, _) in enumerate(stored):
        if marker is None:
            if batch.is_transactional:
                open_.setdefault(batch.producer_id, batch.base_offset)
        else:
            first = open_.pop(batch.producer_id, None)
            if first is not None and history[number].kind == "abort":
                stable = min([*open_.values(), batch.next_offset])
                expected.append(AbortedEntry(batch.producer_id, first, batch.base_offset, stable))
    end = stored[-1][0].next_offset if stored else 0
    assert states.aborted(0, end) == expected
    for at in ends:  # ascending: a durable end never goes back
        durable = [entry.open_from for entry in model_at(stored, at).values() if entry.open_from >= 0]
        found = states.first_open_offset(at)
        assert min(at, end if found is None else found) == min([at, *durable])
