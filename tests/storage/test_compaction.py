"""Compaction against a dictionary: whatever was produced and however often it is cleaned, the last value of every key
stays, at its offset; only what was superseded, deleted or aborted goes, and nothing goes too early."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.record_filter import rewrite, spans
from protocol.records import (
    BatchHeader,
    Codec,
    Record,
    build_batch,
    build_control_batch,
    check_crc,
    offset_of_max_timestamp,
    parse_header,
    records,
    wrapped,
)
from storage.compaction import CleanedTransactions, Cleaner, LastBatches, note_keys, run
from storage.offset_map import OffsetMap
from storage.producers import ProducerStates
from storage.seal import AbortedEntry

KEYS = [b"a", b"b", b"c", b"a much longer key than sixteen bytes", b""]
MAX = 1 << 20


class Op(NamedTuple):
    """A batch of records of one producer, -1 for none, or the end of its transaction."""

    producer: int
    transactional: bool
    records: tuple[tuple[bytes | None, bytes | None], ...]
    codec: int
    append_time: bool
    commit: bool | None  # None: a batch of data


ops = st.lists(
    st.builds(
        Op,
        st.sampled_from([-1, -1, 1, 2, 3]),
        st.booleans(),
        st.lists(
            st.tuples(st.sampled_from([*KEYS, None]), st.sampled_from([b"v", b"w" * 40, None, b""])),
            min_size=1,
            max_size=6,
        ).map(tuple),
        st.sampled_from(list(Codec)),
        st.booleans(),
        st.sampled_from([None, None, None, True, False]),
    ),
    max_size=30,
)


@dataclass
class Log:
    """A log as its leader has it, and what is true of its records."""

    batches: list[bytes] = field(default_factory=list)
    end: int = 0
    open: dict[int, int] = field(default_factory=dict)
    sequences: dict[int, int] = field(default_factory=dict)
    aborted: list[AbortedEntry] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    markers: set[int] = field(default_factory=set)

    @property
    def lso(self) -> int:
        return min(self.open.values(), default=self.end)

    def add(self, op: Op) -> None:
        producer = op.producer
        now = 1_000 + 10 * self.end
        if op.commit is not None:
            if producer not in self.open:
                return
            first = self.open.pop(producer)
            batch = build_control_batch(
                commit=op.commit,
                producer_id=producer,
                producer_epoch=0,
                coordinator_epoch=0,
                timestamp=now,
                base_offset=self.end,
                leader_epoch=4,
            )
            self.markers.add(self.end)
            if not op.commit:
                self.aborted.append(AbortedEntry(producer, first, self.end, min(self.lso, self.end + 1)))
                for found in self.batches:
                    header = parse_header(found)
                    if header.producer_id == producer and header.base_offset >= first and not header.is_control:
                        self.dropped.update(range(header.base_offset, header.next_offset))
        else:
            transactional = producer >= 0 and (op.transactional or producer in self.open)
            made = [(now + 3 * at, key, value, ()) for at, (key, value) in enumerate(op.records)]
            batch = build_batch(
                made,
                base_offset=self.end,
                leader_epoch=4,
                codec=op.codec,
                producer_id=producer,
                producer_epoch=-1 if producer < 0 else 0,
                base_sequence=-1 if producer < 0 else self.sequences.get(producer, 0),
                log_append_time=op.append_time,
                transactional=transactional,
            )
            if producer >= 0:
                self.sequences[producer] = self.sequences.get(producer, 0) + len(made)
            if transactional:
                self.open.setdefault(producer, self.end)
        self.batches.append(bytes(batch))
        self.end = parse_header(batch).next_offset


def contents(batches: list[bytes]) -> dict[int, Record]:
    return {
        record.offset: record
        for batch in batches
        if not parse_header(batch).is_control
        for record in records(batch, max_size=MAX)
    }


def last_of(batches: list[bytes]) -> LastBatches:
    """The last batch of every producer, data before markers."""
    offsets: dict[int, int] = {}
    for batch in batches:
        header = parse_header(batch)
        if header.producer_id >= 0 and not header.is_control:
            offsets[header.producer_id] = header.last_offset
    return LastBatches(frozenset(offsets.values()))


class Pass(NamedTuple):
    batches: list[bytes]
    reach: int


def clean(
    batches: list[bytes], log: Log, dirty_from: int, bound: int, *, room: int, now_ms: int, retention_ms: int
) -> Pass:
    """One pass, as the shell does it."""
    offsets = OffsetMap(room, dirty_from - 1)
    transactions = CleanedTransactions()
    transactions.add(entry for entry in log.aborted if entry.last_offset >= dirty_from)
    full = False
    for batch in batches:
        header = parse_header(batch)
        if header.last_offset < dirty_from:
            continue
        if header.base_offset >= bound:
            break
        if not run(note_keys(header, batch, offsets, transactions, dirty_from)):
            full = True
            break
    if not full:
        offsets.latest = max(offsets.latest, bound - 1)
    cleaner = Cleaner(offsets, now_ms=now_ms, delete_retention_ms=retention_ms, last=last_of(batches))
    cleaner.transactions.add(log.aborted)
    left: list[bytes] = []
    for batch in batches:
        header = parse_header(batch)
        if header.base_offset > offsets.latest:
            left.append(batch)
            continue
        done = run(cleaner.clean(header, batch))
        if done.batch is not None:
            left.append(bytes(done.batch))
    return Pass(left, offsets.latest + 1)


def check_headers(before: list[bytes], after: list[bytes]) -> None:
    """Batches keep what identifies them."""
    known = {parse_header(batch).base_offset: parse_header(batch) for batch in before}
    last = -1
    for batch in after:
        header = parse_header(batch)
        assert header.size == len(batch) and check_crc(batch, 0, len(batch))
        assert header.base_offset > last
        last = header.last_offset
        was = known[header.base_offset]
        same = (
            "last_offset_delta",
            "leader_epoch",
            "producer_id",
            "producer_epoch",
            "base_sequence",
            "log_append_time",
        )
        for name in same:
            assert getattr(header, name) == getattr(was, name), name
        assert header.is_control == was.is_control and header.is_transactional == was.is_transactional
        if header.record_count:
            assert header.codec == was.codec
            stamps = [record.timestamp for record in records(batch, max_size=MAX)]
            assert len(stamps) == header.record_count
            assert max(stamps) == header.max_timestamp


@given(
    parts=st.lists(ops, min_size=1, max_size=4),
    room=st.sampled_from([90, 200, 1 << 20]),
    retention_ms=st.sampled_from([0, 10_000]),
    stops=st.lists(st.integers(0, 40), min_size=4, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_the_last_value_of_every_key_stays(
    parts: list[list[Op]], room: int, retention_ms: int, stops: list[int]
) -> None:
    """Passes between appends, each as far as it may; with a map that holds a few keys, or many."""
    log = Log()
    left: list[bytes] = []
    clean_to = now_ms = 0
    seen_at: dict[int, int] = {}
    for part, stop in zip(parts, stops):
        for op in part:
            before = len(log.batches)
            log.add(op)
            left += log.batches[before:]
        bases = [parse_header(batch).base_offset for batch in log.batches]
        allowed = [base for base in [*bases, log.end] if base <= log.lso]
        bound = max(allowed[: stop + 1], default=0) if stop < len(allowed) else max(allowed, default=0)
        if bound <= clean_to:
            continue
        now_ms += 6_000
        left, clean_to = clean(left, log, clean_to, bound, room=room, now_ms=now_ms, retention_ms=retention_ms)
        original, found = contents(log.batches), contents(left)
        check_headers(log.batches, left)
        assert clean_to <= bound
        for offset, record in found.items():
            assert record == original[offset], "an offset never changes its value"
            if offset < clean_to and offset not in log.dropped:
                assert record.key is not None, "records without key go"
        last: dict[bytes, Record] = {}
        for offset, record in original.items():
            if offset >= clean_to:
                assert offset in found, "beyond the map nothing goes"
            elif offset not in log.dropped and record.key is not None:
                last[record.key] = record
        for key, record in last.items():
            if record.value is None:
                seen_at.setdefault(record.offset, now_ms)
            if record.offset not in found:
                assert record.value is None, "the last value stays"
                assert now_ms >= seen_at[record.offset] + retention_ms, "and its tombstone as long as it has to"
                assert now_ms > seen_at[record.offset], "and one pass at least"
            older = [offset for offset, other in found.items() if other.key == key and offset < record.offset]
            assert not older, "nothing comes to life again"
        for offset in log.dropped:
            assert offset >= clean_to or offset not in found, "aborted data goes"
        kept = {parse_header(batch).base_offset for batch in left}
        for marker in log.markers - kept:
            assert marker < clean_to
        states, replayed = ProducerStates(), ProducerStates()
        for batch in log.batches:
            states.replay(parse_header(batch), 0, batch)
        for batch in left:
            replayed.replay(parse_header(batch), 0, batch)
        for producer, sequence in log.sequences.items():
            again = build_batch([(0, b"k", b"v", ())], producer_id=producer, producer_epoch=0, base_sequence=sequence)
            transactional = producer in log.open
            header = parse_header(again)._replace(attributes=0x10 if transactional else 0)
            assert replayed.check(header, 0) is None, "every producer goes on where it was"


def batch_of(
    *made: tuple[bytes | None, bytes | None], base: int = 0, **options: int | bool
) -> tuple[BatchHeader, bytes]:
    batch = bytes(build_batch([(5, key, value, ()) for key, value in made], base_offset=base, **options))  # type: ignore[arg-type]
    return parse_header(batch), batch


def map_of(*batches: tuple[BatchHeader, bytes], room: int = 1 << 20) -> OffsetMap:
    offsets = OffsetMap(room, -1)
    for header, batch in batches:
        run(note_keys(header, batch, offsets, CleanedTransactions(), 0))
    return offsets


def cleaner(offsets: OffsetMap, now_ms: int = 0, retention_ms: int = 100, last: LastBatches | None = None) -> Cleaner:
    return Cleaner(offsets, now_ms=now_ms, delete_retention_ms=retention_ms, last=last or LastBatches())


def test_what_stays_as_it_is_is_not_copied() -> None:
    one, two = batch_of((b"a", b"1"), (b"b", b"2")), batch_of((b"c", b"3"), base=2)
    work = cleaner(map_of(one, two))
    assert run(work.clean(*one)).batch is one[1]
    assert run(work.clean(*two)).batch is two[1]


def test_a_tombstone_gets_a_horizon_and_goes_when_it_has_come() -> None:
    value, gone, other = batch_of((b"a", b"1")), batch_of((b"a", None), base=1), batch_of((b"z", b"1"), base=2)
    offsets = map_of(value, gone, other)
    work = cleaner(offsets, now_ms=1_000)
    assert run(work.clean(*value)).batch is None
    marked = bytes(run(work.clean(*gone)).batch or b"")
    header = parse_header(marked)
    assert header.has_delete_horizon and header.base_timestamp == 1_100 and header.max_timestamp == 5
    assert list(records(marked, max_size=MAX)) == list(records(gone[1], max_size=MAX))
    nothing = OffsetMap(1 << 20, -1)
    nothing.latest = offsets.latest
    assert run(cleaner(nothing, now_ms=1_099).clean(header, marked)).batch is marked
    assert run(cleaner(nothing, now_ms=1_100).clean(header, marked)).batch is None


def test_nothing_beyond_the_map_gets_a_horizon() -> None:
    gone = batch_of((b"a", None), base=5)
    offsets = OffsetMap(1 << 20, 4)
    assert run(cleaner(offsets).clean(*gone)).batch is gone[1]


def test_a_map_that_is_full_reaches_into_the_batch() -> None:
    batch = batch_of(*[(b"key %d" % number, b"v") for number in range(100)])
    offsets = OffsetMap(30 * 30, -1)
    assert not run(note_keys(*batch, offsets, CleanedTransactions(), 0))
    assert 10 < offsets.count < 30 and offsets.latest == offsets.count - 1


def test_the_last_batch_of_a_producer_stays_without_records() -> None:
    old = batch_of((b"a", b"1"), producer_id=7, producer_epoch=2, base_sequence=9)
    new = batch_of((b"a", b"2"), base=1)
    kept = run(cleaner(map_of(old, new), last=LastBatches(frozenset([0]))).clean(*old)).batch
    assert kept is not None
    header = parse_header(kept)
    assert (header.record_count, header.producer_id, header.producer_epoch, header.last_sequence) == (0, 7, 2, 9)
    assert check_crc(kept, 0, len(kept))
    again = run(cleaner(map_of(old, new), last=LastBatches(frozenset([0]))).clean(header, kept)).batch
    assert again is kept


def test_markers_go_last() -> None:
    data = batch_of((b"a", b"1"), producer_id=7, producer_epoch=0, base_sequence=0, transactional=True)
    later = batch_of((b"a", b"2"), base=2)
    marker = bytes(
        build_control_batch(
            commit=True, producer_id=7, producer_epoch=0, coordinator_epoch=0, timestamp=9, base_offset=1
        )
    )
    end = (parse_header(marker), marker)
    offsets = map_of(data, end, later)
    first = cleaner(offsets, now_ms=1)
    assert run(first.clean(*data)).batch is None
    assert run(first.clean(*end)).batch is marker, "a batch of its transaction was seen"
    second = cleaner(offsets, now_ms=2)
    marked = bytes(run(second.clean(*end)).batch or b"")
    assert parse_header(marked).has_delete_horizon
    assert next(records(marked, max_size=MAX))[1:] == next(records(marker, max_size=MAX))[1:]
    assert run(cleaner(offsets, now_ms=101).clean(parse_header(marked), marked)).batch is marked
    assert run(cleaner(offsets, now_ms=102).clean(parse_header(marked), marked)).batch is None


def test_a_tombstone_may_be_kept_for_ever() -> None:
    """`delete.retention.ms` may be as large as a timestamp; the horizon is one."""
    gone = batch_of((b"a", None))
    work = cleaner(map_of(gone), now_ms=1_700_000_000_000, retention_ms=2**63 - 1)
    marked = bytes(run(work.clean(*gone)).batch or b"")
    header = parse_header(marked)
    assert header.has_delete_horizon and header.base_timestamp == 2**63 - 1
    assert next(records(marked, max_size=MAX)).timestamp == 5


def stamped(base_ms: int, delta: int, max_ms: int) -> tuple[BatchHeader, bytes]:
    """Records of keys `a` and `b` from a client that writes what it likes: the second is `delta` after the first."""
    zigzag = (delta << 1) ^ (delta >> 63)
    varint = b"".join(bytes([zigzag >> at & 0x7F | 0x80]) for at in range(0, 63, 7)) + bytes([zigzag >> 63])
    body = b"\0" + varint + b"\2\2b\1\0"
    payload = b"\x10\0\0\0\2a\2v\0" + bytes([2 * len(body)]) + body
    header = parse_header(build_batch([(0, b"a", b"v", ()), (0, b"b", None, ())]))
    batch = rewrite(header._replace(base_timestamp=base_ms), payload, 2, max_ms)
    return parse_header(batch), batch


@pytest.mark.parametrize("base_ms", [-(2**63), -7, 0, 1_700_000_000_000, 2**63 - 1])
@pytest.mark.parametrize("delta", [-(2**63), -1, 0, 2**63 - 1])
@pytest.mark.parametrize("max_ms", [-(2**63), -1, 1_700_000_000_000])
def test_times_that_nobody_checked(base_ms: int, delta: int, max_ms: int) -> None:
    """What is left has the times that clients read before, counted in 64 bits as they do; and a batch never gets newer
    than it was, or the range that holds it would."""
    one, newer = stamped(base_ms, delta, max_ms), batch_of((b"a", b"2"), base=2)
    for retention_ms in (0, 2**63 - 1):
        work = cleaner(map_of(one, newer), now_ms=1_700_000_000_000, retention_ms=retention_ms)
        left = bytes(run(work.clean(*one)).batch or b"")
        header = parse_header(left)
        assert header.has_delete_horizon and header.record_count == 1 and header.max_timestamp <= max_ms
        (span,) = spans(header, left[61:])
        assert wrapped(header.base_timestamp + span.timestamp_delta) == wrapped(base_ms + delta)
        assert [record.timestamp for record in records(left, max_size=MAX)] == [wrapped(base_ms + delta)]
        assert offset_of_max_timestamp(left, max_size=MAX) == (1, wrapped(base_ms + delta))


def test_damage_is_an_error() -> None:
    header, batch = batch_of((b"a", b"1"), (b"b", None))
    data = batch[61:]
    assert [span.key for span in spans(header, data)] == [b"a", b"b"]
    for at in range(len(data)):
        with pytest.raises(ProtocolError):
            list(spans(header, data[:at]))
    with pytest.raises(ProtocolError):
        list(spans(header, data + b"\0"))


@pytest.mark.parametrize("expected", [0, 10, 1_000, 5_000, 9_000, 20_000, 10**9])
def test_the_map_grows_within_its_bound(expected: int) -> None:
    room = 400_000
    offsets = OffsetMap(room, -1, expected=expected)
    most = offsets.memory_bytes
    for offset in range(20_000):
        if not offsets.put(b"%d" % offset, offset):
            if not offsets.may_grow:
                break
            held = offsets.memory_bytes
            for _ in offsets.grow():
                pass
            most = max(most, held + offsets.memory_bytes)
            assert offsets.put(b"%d" % offset, offset)
    assert offsets.count == int(room // 30 * 0.8) and most <= room


@given(keys=st.lists(st.binary(max_size=20), max_size=300), room=st.integers(60, 10_000))
def test_the_map_is_a_dictionary_of_bounded_size(keys: list[bytes], room: int) -> None:
    offsets, model = OffsetMap(room, -1, seed=3), dict[bytes, int]()
    for offset, key in enumerate(keys):
        put = offsets.put(key, offset)
        while not put and offsets.may_grow:
            for _ in offsets.grow():
                pass
            put = offsets.put(key, offset)
        if not put:
            assert key not in model
            break
        model[key] = offset
        assert offsets.memory_bytes <= max(room, 48)
    assert offsets.count == len(model)
    for key in keys:
        assert offsets.get(key) == model.get(key, -1)
