"""Record batches: built and read back, kafka-python on the other side, every rule of `check_batch`, damage."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from protocol import records as r
from protocol.compression import Codec
from protocol.errors import ErrorCode, ProtocolError

MIB = 1 << 20
NOW = 1_700_000_000_000
INT64_MAX = (1 << 63) - 1
codecs = st.sampled_from(list(Codec))
data = st.none() | st.binary(max_size=200)
headers = st.lists(st.tuples(st.text(max_size=10), st.none() | st.binary(max_size=20)), max_size=3)
timestamps = st.integers(-1, 1 << 45)
new_records = st.lists(st.tuples(timestamps, data, data, headers), min_size=1, max_size=20)


def sample(codec: Codec = Codec.NONE, count: int = 3, **options: Any) -> bytearray:
    new = [(NOW + i * 10, f"key {i}".encode(), b"value" * i, [("name", b"x"), ("", None)][:i]) for i in range(count)]
    return r.build_batch(new, codec=codec, **options)


def with_fields(batch: bytearray, **fields: int) -> bytearray:
    """A copy with other values in the header, and a CRC that matches."""
    out = bytearray(batch)
    header = r.parse_header(out)._replace(**fields)
    struct.pack_into(">qiibIhiqqqhii", out, 0, *header)
    if "crc" not in fields:
        struct.pack_into(">I", out, 17, crc32c(out[21:]))
    return out


def damaged(change: Callable[[bytearray], None], codec: Codec = Codec.NONE) -> bytearray:
    """A batch with changed records and a CRC that matches."""
    batch = sample(codec)
    change(batch)
    struct.pack_into(">i", batch, 8, len(batch) - 12)
    struct.pack_into(">I", batch, 17, crc32c(batch[21:]))
    return batch


def read(batch: bytes | bytearray | memoryview) -> list[r.Record]:
    return list(r.records(batch, max_size=MIB))


@given(
    new=new_records,
    codec=codecs,
    base_offset=st.integers(0, 1 << 60),
    producer_id=st.integers(-1, 1 << 60),
    epoch=st.integers(-1, 32767),
    sequence=st.integers(-1, 0x7FFFFFFF),
    transactional=st.booleans(),
)
@settings(max_examples=150)
def test_build_then_read(
    new: list[r.NewRecord],
    codec: Codec,
    base_offset: int,
    producer_id: int,
    epoch: int,
    sequence: int,
    transactional: bool,
) -> None:
    batch = r.build_batch(
        new,
        base_offset=base_offset,
        leader_epoch=7,
        codec=codec,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        transactional=transactional,
    )
    header = r.parse_header(batch)
    assert (header.size, header.codec, header.record_count) == (len(batch), codec, len(new))
    assert (header.base_offset, header.last_offset) == (base_offset, base_offset + len(new) - 1)
    assert header.next_offset == base_offset + len(new)
    assert (header.leader_epoch, header.producer_id, header.producer_epoch) == (7, producer_id, epoch)
    assert (header.base_timestamp, header.max_timestamp) == (new[0][0], max(record[0] for record in new))
    assert header.is_transactional == transactional
    assert not (header.is_control or header.log_append_time or header.has_delete_horizon)
    assert r.check_crc(batch, 0, len(batch))
    assert read(batch) == [
        r.Record(base_offset + i, timestamp, key, value, tuple(pairs))
        for i, (timestamp, key, value, pairs) in enumerate(new)
    ]
    if producer_id < 0 or sequence >= 0:
        assert r.check_batch(b"ab" + batch + b"c", 2, 2 + len(batch)) == header


@given(new=new_records.filter(lambda new: all(record[0] >= 0 for record in new)), codec=codecs)
@settings(max_examples=100)
def test_kafka_python_reads_what_we_build(new: list[r.NewRecord], codec: Codec) -> None:
    ours = r.build_batch(new, codec=codec, producer_id=5, producer_epoch=1, base_sequence=9, base_offset=100)
    memory = MemoryRecords(bytes(ours))
    batch = memory.next_batch()
    assert batch is not None
    assert not memory.has_next()
    assert batch.validate_crc()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (5, 1, 9)
    theirs = [(x.offset, x.timestamp, x.key, x.value, tuple(x.headers)) for x in batch]
    assert theirs == [(100 + i, *record[:3], tuple(record[3])) for i, record in enumerate(new)]


@given(new=new_records.filter(lambda new: all(record[0] >= 0 for record in new)), codec=codecs)
@settings(max_examples=100)
def test_we_read_what_kafka_python_builds(new: list[r.NewRecord], codec: Codec) -> None:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=int(codec),
        is_transactional=True,
        producer_id=5,
        producer_epoch=1,
        base_sequence=9,
        batch_size=MIB,
    )
    for i, (timestamp, key, value, pairs) in enumerate(new):
        assert builder.append(i, timestamp=timestamp, key=key, value=value, headers=list(pairs)) is not None
    theirs = builder.build()
    header = r.check_batch(theirs, 0, len(theirs))
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (5, 1, 9)
    assert header.is_transactional
    assert [record[1:] for record in read(theirs)] == [(*record[:3], tuple(record[3])) for record in new]
    if header.codec == Codec.NONE:
        options: dict[str, Any] = {"producer_id": 5, "producer_epoch": 1, "base_sequence": 9, "transactional": True}
        assert r.build_batch(new, leader_epoch=header.leader_epoch, **options) == theirs


@given(offset=st.integers(0, INT64_MAX), epoch=st.integers(-1, (1 << 31) - 1), codec=codecs)
@settings(max_examples=50)
def test_offset_and_epoch_are_patched_outside_the_crc(offset: int, epoch: int, codec: Codec) -> None:
    batch = sample(codec)
    before = r.parse_header(batch)
    frame = bytearray(b"12345") + batch + b"67"
    copy = r.copy_with_offset_and_epoch(before, bytes(frame), 5, 5 + len(batch), offset, epoch)
    r.patch_offset_and_epoch(frame, 5, offset, epoch)
    assert copy == frame[5:-2] and copy == r.copy_with_offset_and_epoch(before, frame, 5, 5 + len(batch), offset, epoch)
    assert r.check_crc(frame, 5, len(batch))
    assert r.parse_header(frame, 5) == before._replace(base_offset=offset, leader_epoch=epoch)
    assert frame[:5] + frame[-2:] == b"1234567"
    assert frame[5 + 16 : -2] == batch[16:]
    theirs = DefaultRecordBatch(memoryview(frame)[5:-2])
    assert theirs.validate_crc()
    offsets = [record.offset for record in r.records(memoryview(frame)[5:-2], max_size=MIB)]
    assert offsets == [offset, offset + 1, offset + 2]


def test_log_append_time() -> None:
    batch = bytearray(b"xx") + sample(Codec.GZIP, transactional=True, producer_id=1, producer_epoch=0, base_sequence=0)
    r.stamp_log_append_time(batch, 2, len(batch) - 2, NOW + 999)
    header = r.parse_header(batch, 2)
    assert header.log_append_time
    assert (header.max_timestamp, header.base_timestamp) == (NOW + 999, NOW)
    assert header.is_transactional
    assert r.check_crc(batch, 2, len(batch) - 2)
    assert {record.timestamp for record in r.records(memoryview(batch)[2:], max_size=MIB)} == {NOW + 999}
    assert {record.timestamp for record in DefaultRecordBatch(bytes(batch[2:]))} == {NOW + 999}
    stamped = bytes(batch)
    r.stamp_log_append_time(batch, 2, len(batch) - 2, NOW + 999)
    assert batch == stamped
    r.stamp_timestamps(batch, 2, len(batch) - 2, log_append_time=False, max_timestamp=NOW + 20)
    assert batch[2:] == sample(Codec.GZIP, transactional=True, producer_id=1, producer_epoch=0, base_sequence=0)


def test_built_with_log_append_time() -> None:
    batch = sample(log_append_time=True)
    assert r.parse_header(batch).log_append_time
    assert {record.timestamp for record in read(batch)} == {NOW + 20}


def test_last_sequence_wraps() -> None:
    assert r.parse_header(sample(producer_id=1, producer_epoch=0, base_sequence=5)).last_sequence == 7
    wrapped = sample(producer_id=1, producer_epoch=0, base_sequence=0x7FFFFFFF)
    assert r.parse_header(wrapped).last_sequence == 1
    assert r.parse_header(sample()).last_sequence == -1


RULES: list[tuple[dict[str, int], ErrorCode, str]] = [
    ({"magic": 1}, ErrorCode.INVALID_RECORD, "magic 2"),
    ({"magic": -2}, ErrorCode.INVALID_RECORD, "magic 2"),
    ({"batch_length": 10}, ErrorCode.CORRUPT_MESSAGE, "says 22 bytes"),
    ({"batch_length": -1}, ErrorCode.CORRUPT_MESSAGE, "says 11 bytes"),
    ({"batch_length": 0x7FFFFFFF}, ErrorCode.INVALID_RECORD, "says 2147483659 bytes"),
    ({"batch_length": 60}, ErrorCode.INVALID_RECORD, "follow the only record batch"),
    ({"record_count": 0}, ErrorCode.INVALID_RECORD, "record count 0"),
    ({"record_count": -1, "last_offset_delta": -2}, ErrorCode.INVALID_RECORD, "record count -1"),
    ({"record_count": 4}, ErrorCode.INVALID_RECORD, "record count 4"),
    ({"last_offset_delta": 3}, ErrorCode.INVALID_RECORD, "last offset delta 3"),
    ({"attributes": r.LOG_APPEND_TIME}, ErrorCode.INVALID_TIMESTAMP, "LogAppendTime"),
    ({"record_count": 0, "last_offset_delta": -1}, ErrorCode.INVALID_RECORD, "record count 0"),
    ({"crc": 12345}, ErrorCode.CORRUPT_MESSAGE, "CRC"),
    ({"attributes": 5}, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, "codec 5"),
    ({"attributes": 7}, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, "codec 7"),
    ({"attributes": r.DELETE_HORIZON}, ErrorCode.INVALID_RECORD, "delete horizon"),
    ({"attributes": 0x80}, ErrorCode.INVALID_RECORD, "0x0080"),
    ({"attributes": -0x8000}, ErrorCode.INVALID_RECORD, "0x8000"),
    ({"producer_id": 1, "producer_epoch": 0}, ErrorCode.INVALID_RECORD, "sequence"),
]


@pytest.mark.parametrize(("fields", "code", "message"), RULES, ids=lambda value: str(value))
def test_rules(fields: dict[str, int], code: ErrorCode, message: str) -> None:
    batch = with_fields(sample(), **fields)
    with pytest.raises(r.BatchError, match=message) as refused:
        r.check_batch(batch, 0, len(batch))
    assert refused.value.code is code


def test_what_the_caller_judges_is_let_through() -> None:
    for fields in ({"attributes": r.CONTROL | r.TRANSACTIONAL}, {"base_offset": 5}, {"attributes": int(Codec.ZSTD)}):
        batch = with_fields(sample(), **fields)
        assert r.check_batch(batch, 0, len(batch)).record_count == 3


def test_two_batches_are_one_too_many() -> None:
    two = sample() + sample()
    with pytest.raises(r.BatchError, match="follow") as refused:
        r.check_batch(two, 0, len(two))
    assert refused.value.code is ErrorCode.INVALID_RECORD


@pytest.mark.parametrize("codec", Codec)
def test_check_refuses_every_truncation(codec: Codec) -> None:
    batch = sample(codec)
    for size in range(len(batch)):
        for buffer in (batch[:size], batch):  # the rest is missing, or belongs to somebody else
            with pytest.raises(r.BatchError):
                r.check_batch(buffer, 0, size)
    with pytest.raises(r.BatchError):
        r.check_batch(batch, 0, len(batch) + 1)
    with pytest.raises(r.BatchError):
        r.check_batch(batch, -5, len(batch))


def test_check_notices_every_flipped_bit() -> None:
    batch = sample()
    for position in (*range(8, 12), *range(16, len(batch))):  # not base offset and epoch, which are not covered
        for bit in range(8):
            batch[position] ^= 1 << bit
            with pytest.raises(r.BatchError):
                r.check_batch(batch, 0, len(batch))
            batch[position] ^= 1 << bit
    assert r.check_batch(batch, 0, len(batch))


def test_header_and_crc_need_their_bytes() -> None:
    batch = sample()
    with pytest.raises(ProtocolError, match="cut off"):
        r.parse_header(batch[:60])
    with pytest.raises(ProtocolError, match="cut off"):
        r.parse_header(batch, len(batch) - 60)
    for size in (60, len(batch) + 1, -1):
        with pytest.raises(ProtocolError):
            r.check_crc(batch, 0, size)
    assert r.check_crc(memoryview(batch), 0, len(batch))
    batch[-1] ^= 1
    assert not r.check_crc(batch, 0, len(batch))


def test_iterate_batches() -> None:
    batches = [sample(codec, base_offset=3 * i) for i, codec in enumerate(Codec)]
    joined = b"".join(batches)
    found = list(r.iterate_batches(joined))
    assert [header.base_offset for _, header in found] == [0, 3, 6, 9, 12]
    assert [joined[pos : pos + header.size] for pos, header in found] == batches
    inner = b"##" + joined + b"##"
    assert [pos for pos, _ in r.iterate_batches(memoryview(inner), 2, 2 + len(joined))] == [pos + 2 for pos, _ in found]
    assert list(r.iterate_batches(b"")) == []


def test_iterate_batches_cut_off_anywhere() -> None:
    first, second = sample(), sample(Codec.LZ4)
    joined = first + second
    for size in range(1, len(joined)):
        whole = [0] if size >= len(first) else []
        assert [pos for pos, _ in r.iterate_batches(joined[:size], partial_ok=True)] == whole
        assert [pos for pos, _ in r.iterate_batches(joined, 0, size, partial_ok=True)] == whole
        if size != len(first):
            with pytest.raises(ProtocolError, match="cut off"):
                list(r.iterate_batches(joined[:size]))


@pytest.mark.parametrize("fields", [{"magic": 0}, {"batch_length": 48}, {"batch_length": -13}])
@pytest.mark.parametrize("partial_ok", [False, True])
def test_iterate_batches_damaged(fields: dict[str, int], partial_ok: bool) -> None:
    joined = sample() + with_fields(sample(), **fields)
    batches = r.iterate_batches(joined, partial_ok=partial_ok)
    assert next(batches)[0] == 0
    with pytest.raises(ProtocolError):
        next(batches)


@pytest.mark.parametrize("codec", Codec)
def test_records_cut_off_anywhere(codec: Codec) -> None:
    """Cut at every byte, with a header that agrees."""
    whole = sample(codec)
    for size in range(r.HEADER_SIZE, len(whole)):
        batch = with_fields(whole[:size], batch_length=size - 12)
        with pytest.raises(ProtocolError):
            read(batch)
        with pytest.raises(ProtocolError):
            r.offset_of_max_timestamp(batch, max_size=MIB)
    for size in range(r.HEADER_SIZE):
        with pytest.raises(ProtocolError):
            read(whole[:size])


@pytest.mark.parametrize("codec", Codec)
def test_records_need_exactly_one_batch(codec: Codec) -> None:
    batch = sample(codec)
    for wrong in (batch + b"\0", batch + batch, batch[:-1], with_fields(batch, magic=1)):
        with pytest.raises(ProtocolError):
            read(wrong)


@pytest.mark.parametrize("count", [-1, 0, 2, 4, 0x7FFFFFFF])
def test_record_count_that_lies(count: int) -> None:
    batch = with_fields(sample(), record_count=count)
    with pytest.raises(ProtocolError):
        read(batch)
    with pytest.raises(ProtocolError):
        r.first_since(batch, INT64_MAX, max_size=MIB)


def test_offset_deltas_lie_in_the_batch() -> None:
    batch = with_fields(sample(), last_offset_delta=1)
    with pytest.raises(ProtocolError, match="offset delta 2"):
        read(batch)


def test_compacted_batches_have_gaps() -> None:
    """Compaction removes records and keeps offsets; a batch may lose all."""
    batch = with_fields(sample(), last_offset_delta=9, base_offset=50)
    assert [record.offset for record in read(batch)] == [50, 51, 52]
    empty = with_fields(batch[: r.HEADER_SIZE], batch_length=r.HEADER_SIZE - 12, record_count=0)
    assert read(empty) == []
    assert r.offset_of_max_timestamp(empty, max_size=MIB) is None
    assert r.first_since(empty, 0, max_size=MIB) is None


BODIES: list[tuple[str, bytes]] = [
    # length, attributes, timestamp delta, offset delta, key length, value length, header count
    ("length beyond the end", b"\x10" + b"\0\0\0\1\1\0"),
    ("length too short", b"\x0a" + b"\0\0\0\1\1"),
    ("negative length", b"\x01" + b"\0\0\0\1\1\0"),
    ("endless varint", b"\xff" * 11),
    ("varint of 65 bits", b"\x1e" + b"\0" + b"\xff" * 9 + b"\x02" + b"\0\1\1\0"),
    ("key beyond the record", b"\x0c" + b"\0\0\0\x06\1\0"),
    ("key length -2", b"\x0c" + b"\0\0\0\x03\1\0"),
    ("huge value", b"\x14" + b"\0\0\0\1\xfe\xff\xff\xff\x0f\0"),
    ("header count beyond the record", b"\x0c" + b"\0\0\0\1\1\2"),
    ("negative header count", b"\x0c" + b"\0\0\0\1\1\1"),
    ("header without a name", b"\x10" + b"\0\0\0\1\1\2\1\1"),
    ("header name is not UTF-8", b"\x12" + b"\0\0\0\1\1\2\2\xff\1"),
    ("bytes after the headers", b"\x0e" + b"\0\0\0\1\1\0\0"),
    ("bytes after the only record", b"\x0c" + b"\0\0\0\1\1\0" + b"\0"),
    ("nothing", b""),
]


@pytest.mark.parametrize(("name", "body"), BODIES, ids=[name for name, _ in BODIES])
def test_malformed_records(name: str, body: bytes) -> None:
    one = sample(count=1)
    batch = with_fields(one[: r.HEADER_SIZE] + body, batch_length=r.HEADER_SIZE + len(body) - 12)
    assert r.check_batch(batch, 0, len(batch)), "the header is fine"
    with pytest.raises(ProtocolError):
        read(batch)


@given(noise=st.binary(max_size=100), codec=codecs, count=st.integers(0, 50))
@settings(max_examples=200)
def test_noise_instead_of_records(noise: bytes, codec: Codec, count: int) -> None:
    fields = {"batch_length": r.HEADER_SIZE + len(noise) - 12, "record_count": count, "last_offset_delta": 100}
    batch = with_fields(sample(codec)[: r.HEADER_SIZE] + noise, **fields)
    for function in (read, lambda b: r.first_since(b, INT64_MAX, max_size=MIB)):
        try:
            function(batch)
        except ProtocolError:
            pass


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4), codec=codecs)
@settings(max_examples=200)
def test_damage_gives_protocol_errors_only(flips: list[tuple[int, int]], codec: Codec) -> None:
    batch = sample(codec, count=8)
    for position, mask in flips:
        batch[position % len(batch)] ^= mask
    for function in (
        read,
        lambda b: list(r.iterate_batches(b)),
        lambda b: r.check_batch(b, 0, len(b)),
        lambda b: r.offset_of_max_timestamp(b, max_size=MIB),
    ):
        try:
            function(batch)
        except ProtocolError:
            pass


@pytest.mark.parametrize("codec", Codec)
def test_bombs(codec: Codec) -> None:
    batch = r.build_batch([(NOW, None, bytes(4 * MIB), ())], codec=codec)
    with pytest.raises(ProtocolError, match="longer than"):
        read(batch)
    with pytest.raises(ProtocolError, match="longer than"):
        r.first_since(batch, 0, max_size=MIB)
    assert len(next(r.records(batch, max_size=5 * MIB)).value or b"") == 4 * MIB


@pytest.mark.parametrize("codec", Codec)
def test_looking_for_timestamps(codec: Codec) -> None:
    times = [NOW + 5, NOW, NOW + 9, NOW + 9, NOW + 2]
    batch = r.build_batch([(at, b"k", b"v" * 100, ()) for at in times], codec=codec, base_offset=10)
    assert r.offset_of_max_timestamp(batch, max_size=MIB) == (12, NOW + 9)
    assert r.first_since(batch, NOW, max_size=MIB) == (10, NOW + 5)
    assert r.first_since(batch, NOW + 6, max_size=MIB) == (12, NOW + 9)
    assert r.first_since(batch, NOW, max_size=MIB, from_offset=11) == (11, NOW)
    assert r.first_since(batch, NOW, max_size=MIB, from_offset=15) is None
    assert r.first_since(batch, NOW + 10, max_size=MIB) is None
    r.stamp_log_append_time(batch, 0, len(batch), NOW + 50)
    assert r.offset_of_max_timestamp(batch, max_size=MIB) == (10, NOW + 50)
    assert r.first_since(batch, NOW + 10, max_size=MIB) == (10, NOW + 50)


@pytest.mark.parametrize("commit", [False, True])
def test_control_batches(commit: bool) -> None:
    batch = r.build_control_batch(
        commit=commit, producer_id=7, producer_epoch=3, coordinator_epoch=11, timestamp=NOW, base_offset=42
    )
    header = r.check_batch(batch, 0, len(batch))
    assert header.is_control
    assert header.is_transactional
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 3, -1)
    (record,) = read(batch)
    assert (record.offset, record.timestamp) == (42, NOW)
    assert record.key == bytes([0, 0, 0, commit])
    assert record.value == bytes([0, 0, 0, 0, 0, 11])
    assert r.parse_end_txn_marker(record) == r.EndTxnMarker(commit, 11)
    theirs = MemoryRecords(bytes(batch)).next_batch()
    assert theirs.is_control_batch
    (control,) = theirs
    assert (control.commit, control.abort) == (commit, not commit)


def test_control_records_of_others() -> None:
    def record(key: bytes | None, value: bytes | None) -> r.Record:
        return r.Record(0, NOW, key, value, ())

    assert r.parse_end_txn_marker(record(b"\0\0\0\2", b"")) is None, "a leader change"
    later = record(b"\0\1\0\1more", b"\0\1\0\0\0\5more")
    assert r.parse_end_txn_marker(later) == r.EndTxnMarker(True, 5)
    for key, value in (
        (None, None),
        (b"\0\0\0", b"\0\0\0\0\0\5"),
        (b"\0\0\0\1", None),
        (b"\0\0\0\1", b"\0\0\0\0\0"),
        (b"\xff\xff\0\1", b"\0\0\0\0\0\5"),
        (b"\0\0\0\1", b"\xff\xff\0\0\0\5"),
    ):
        with pytest.raises(ProtocolError):
            r.parse_end_txn_marker(record(key, value))


def test_empty_batches_span_any_gap() -> None:
    for base, end in ((5, 6), (0, 2**31), (7, 7 + 2**31 + 1), (3, 3 + 2**32), (0, 3 * 2**31)):
        data = bytes(r.build_empty_batches(base, end, 4))
        at = base
        for position, header in r.iterate_batches(data):
            assert r.check_crc(data, position, header.size)
            assert (header.base_offset, header.record_count, header.leader_epoch) == (at, 0, 4)
            assert list(r.records(data[position : position + header.size], max_size=100)) == []
            at = header.next_offset
        assert at == end
    assert r.build_empty_batches(3, 3, 0) == b""
