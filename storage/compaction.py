"""Which records of a compacted log stay: the last one of every key. Pure.

The rules are those of Kafka 4.3's log cleaner (`Cleaner`, `CleanedTransactionMetadata`, `MemoryRecords.filterTo`). A
pass has two halves. The first one reads the part of a log that was not cleaned before and notes the last offset of
every key in an `OffsetMap`, as far as that has room. The second one reads the log from its start to where the map
reached and leaves out, below that:

- records whose key has a later one, and records without key;
- tombstones whose batch got its delete horizon in an earlier pass, if that has come: it lies `delete.retention.ms`
  after the first pass that saw the tombstone, when nothing older of its key was left;
- data of aborted transactions; and markers, first marked with a horizon and later left out, once a pass has met no
  batch of their transaction any more.

The last batch of every producer stays, if need be without records, and so does the last batch that is looked at. One
thing is stricter than in Kafka: a batch beyond where the map reached gets no horizon, since older records of its keys
may still be there. So what was superseded is always gone before its tombstone, as long as ranges are replaced in the
order of their offsets.

A batch that its producer wrote wrongly, so that its records cannot be read, stays as it is, and makes nothing
superfluous: topics that were not compacted when it came may hold some.

Work that takes long is yielded: generators give None where others may go on, or a function that may be called off the
event loop, and get its result.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from protocol import Buffer
from protocol.compression import Codec, compress, decompress
from protocol.errors import ProtocolError
from protocol.record_filter import rewrite, spans, with_timestamp, without_records
from protocol.records import HEADER_SIZE, BatchHeader, parse_end_txn_marker, records, wrapped
from storage.offset_map import OffsetMap
from storage.seal import AbortedEntry

BATCH_BYTES_MAX = 64 * 1024 * 1024
"""What decompresses to more is taken for unreadable. Producers to compacted topics may send a quarter of it."""
MARKER_BYTES_MAX = 64 * 1024
TIMESTAMP_MAX = 2**63 - 1
INLINE_BYTES = 8 * 1024
"""Up to here compressing takes less than asking somebody else to do it."""
STEP_RECORDS = 256


class Unreadable(Exception):
    """The records of a batch are not as the format says."""


_T = TypeVar("_T")
Work: TypeAlias = Generator[Callable[[], Any] | None, Any, _T]


def run(work: Work[_T]) -> _T:
    """Does the work at once."""
    result = None
    while True:
        try:
            asked = work.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        result = None if asked is None else asked()


class LastBatches(NamedTuple):
    """What has to stay for the sake of producers that may come back: the batches that end at these offsets, and of
    producers of which only markers are known, those with these epochs."""

    offsets: frozenset[int] = frozenset()
    epochs: Mapping[int, int] = MappingProxyType({})

    def holds(self, header: BatchHeader) -> bool:
        """Whether the batch has to stay."""
        if header.producer_id < 0:
            return False
        if header.is_control:
            return self.epochs.get(header.producer_id) == header.producer_epoch
        return header.last_offset in self.offsets


class CleanedTransactions:
    """Which batches belong to aborted transactions, and which markers still have batches of their transaction.

    It sees the batches of a log in order, from one end to the other.
    """

    def __init__(self) -> None:
        self._committed: set[int] = set()
        self._coming: list[tuple[int, AbortedEntry]] = []
        self._aborted: dict[int, AbortedEntry] = {}
        self._seen: set[int] = set()

    def add(self, entries: Iterable[AbortedEntry]) -> None:
        """Aborted transactions with data that was not seen yet."""
        for entry in entries:
            heappush(self._coming, (entry.first_offset, entry))

    def _advance(self, offset: int) -> None:
        while self._coming and self._coming[0][0] <= offset:
            entry = heappop(self._coming)[1]
            self._aborted.setdefault(entry.producer_id, entry)

    def is_aborted(self, header: BatchHeader) -> bool:
        """Whether a batch of data belongs to an aborted transaction."""
        self._advance(header.last_offset)
        if not header.is_transactional:
            return False
        if header.producer_id in self._aborted:
            self._seen.add(header.producer_id)
            return True
        self._committed.add(header.producer_id)
        return False

    def may_discard(self, header: BatchHeader, batch: Buffer) -> tuple[bool, AbortedEntry | None]:
        """Whether no batch of the transaction that a marker ended was seen; else its entry, if it was aborted."""
        self._advance(header.last_offset)
        if not header.record_count:
            return True, None  # emptied by an earlier pass
        record = next(records(batch, max_size=MARKER_BYTES_MAX), None)
        marker = None if record is None else parse_end_txn_marker(record)
        if marker is None:
            return False, None  # of a type that is not ours to judge
        producer = header.producer_id
        if marker.commit:
            seen = producer in self._committed
            self._committed.discard(producer)
            return not seen, None
        entry = self._aborted.pop(producer, None)
        if producer in self._seen:
            self._seen.discard(producer)
            return False, entry
        return True, None


def note_keys(
    header: BatchHeader,
    batch: Buffer,
    offsets: OffsetMap,
    transactions: CleanedTransactions,
    dirty_from: int,
    *,
    check: bool = False,
) -> Work[bool]:
    """The keys of one batch go into the map; whether there was room for all of them.

    Unreadable: they should not have, the map is spoilt. With `check` all records are looked at first, which takes
    longer, and of an unreadable batch no key is noted.
    """
    if header.is_control:
        transactions.may_discard(header, batch)
    elif not transactions.is_aborted(header) and header.record_count > 0:
        data = yield from _decompressed(header, batch)
        if data is not None and (not check or (yield from _is_readable(header, data))):
            noted = yield from _note(header, data, offsets, dirty_from)
            if not noted:
                return False
    offsets.latest = max(offsets.latest, header.last_offset)
    return True


def _note(header: BatchHeader, data: bytes, offsets: OffsetMap, dirty_from: int) -> Work[bool]:
    base = header.base_offset
    try:
        for number, span in enumerate(spans(header, data)):
            offset, key = base + span[4], span[5]
            if key is not None and offset >= dirty_from:
                while not offsets.put(key, offset):
                    if not offsets.may_grow:
                        return False
                    yield from offsets.grow()
            if number % STEP_RECORDS == STEP_RECORDS - 1:
                yield None
    except ProtocolError as error:
        raise Unreadable from error
    return True


def _is_readable(header: BatchHeader, data: bytes) -> Work[bool]:
    try:
        for number, _ in enumerate(spans(header, data)):
            if number % STEP_RECORDS == STEP_RECORDS - 1:
                yield None
    except ProtocolError:
        return False
    return True


def _decompressed(header: BatchHeader, batch: Buffer) -> Work[bytes | None]:
    """The bytes of the records; None if there is no telling them."""
    payload = memoryview(batch)[HEADER_SIZE:]
    if header.codec == Codec.NONE:
        return bytes(payload)
    if len(payload) <= INLINE_BYTES:
        return _decompress(header.codec, payload)
    data: bytes | None = yield lambda: _decompress(header.codec, payload)
    return data


def _decompress(codec: int, payload: Buffer) -> bytes | None:
    try:
        return bytes(decompress(codec, payload, BATCH_BYTES_MAX))
    except ProtocolError:
        return None


class Cleaned(NamedTuple):
    """What became of one batch: its bytes, None if it is gone, and the aborted transaction that its marker ended, if
    that has to be remembered."""

    batch: Buffer | None
    aborted: AbortedEntry | None = None


class _Kept:
    """The records of a batch that stay, as runs of bytes."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []
        self.count = 0
        self.newest_delta: int | None = None
        self.tombstones = False

    def add(self, start: int, stop: int, timestamp_delta: int) -> None:
        if self.runs and self.runs[-1][1] == start:
            self.runs[-1] = (self.runs[-1][0], stop)
        else:
            self.runs.append((start, stop))
        self.count += 1
        if self.newest_delta is None or timestamp_delta > self.newest_delta:
            self.newest_delta = timestamp_delta


class Cleaner:
    """The second half of a pass. `clean` gets every batch of the log in order, up to where the map reached and beyond
    to the end of the range that holds that."""

    def __init__(
        self,
        offsets: OffsetMap,
        *,
        now_ms: int,
        delete_retention_ms: int,
        last: LastBatches,
    ) -> None:
        self._offsets = offsets
        self._now_ms = now_ms
        self._horizon_ms = min(now_ms + delete_retention_ms, TIMESTAMP_MAX)
        self._last = last
        self.transactions = CleanedTransactions()
        self.records_in = self.records_out = 0
        self.unreadable = 0
        """Batches that nobody can read."""

    def clean(self, header: BatchHeader, batch: Buffer) -> Work[Cleaned]:
        """What stays of the batch: the very same bytes if all does. ProtocolError: a marker that nobody wrote so."""
        entry: AbortedEntry | None = None
        horizon_passed = header.has_delete_horizon and header.base_timestamp <= self._now_ms
        within = header.last_offset <= self._offsets.latest
        marker_alone = False
        if header.is_control:
            discardable, entry = self.transactions.may_discard(header, batch)
            discard = discardable and within and (horizon_passed or not header.record_count)
            marker_alone = discardable
        else:
            discard = self.transactions.is_aborted(header) and within
        stays = self._last.holds(header) or header.last_offset == self._offsets.latest
        self.records_in += max(header.record_count, 0)
        if discard or header.record_count <= 0:
            return Cleaned(self._empty(header, batch) if stays else None, entry)
        if header.base_offset > self._offsets.latest:
            self.records_out += header.record_count
            return Cleaned(batch, entry)
        kept = _Kept()
        data = yield from _decompressed(header, batch)
        if data is None or not (yield from self._sift(header, data, kept, horizon_passed)):
            self.unreadable += 1
            self.records_out += header.record_count
            return Cleaned(batch, entry)
        self.records_out += kept.count
        marked = (kept.tombstones or marker_alone) and within and not header.has_delete_horizon
        if not kept.count:
            return Cleaned(self._empty(header, batch) if stays else None, entry)
        if kept.count == header.record_count and not marked:
            return Cleaned(batch, entry)
        rewritten = yield from self._rewrite(header, data, kept, marked)
        return Cleaned(rewritten, entry)

    def _empty(self, header: BatchHeader, batch: Buffer) -> Buffer:
        """The batch without records; itself if it has none."""
        return batch if not header.record_count and len(batch) == HEADER_SIZE else without_records(header)

    def _sift(self, header: BatchHeader, data: bytes, kept: _Kept, horizon_passed: bool) -> Work[bool]:
        """Finds what stays; whether all records could be read."""
        base, latest, last_of = header.base_offset, self._offsets.latest, self._offsets.get
        control = header.is_control
        try:
            for number, span in enumerate(spans(header, data)):
                start, stop, _, timestamp_delta, offset_delta, key, has_value = span
                offset = base + offset_delta
                if (
                    control
                    or offset > latest
                    or (key is not None and (has_value or not horizon_passed) and offset >= last_of(key))
                ):
                    kept.add(start, stop, timestamp_delta)
                    if not has_value:
                        kept.tombstones = True
                if number % STEP_RECORDS == STEP_RECORDS - 1:
                    yield None
        except ProtocolError:
            return False
        return True

    def _rewrite(self, header: BatchHeader, data: bytes, kept: _Kept, marked: bool) -> Work[bytes]:
        if marked:
            payload = yield from self._with_horizon(header, data, kept)
        else:
            payload = b"".join([data[start:stop] for start, stop in kept.runs])
        if header.codec != Codec.NONE:
            if len(payload) <= INLINE_BYTES:
                payload = compress(header.codec, payload)
            else:
                plain = payload
                payload = yield lambda: compress(header.codec, plain)
        newest = header.max_timestamp
        if not header.log_append_time and kept.newest_delta is not None:
            # What a client wrote into its records may be later than what it said of them; ranges go by the latter.
            newest = min(wrapped(header.base_timestamp + kept.newest_delta), newest)
        return rewrite(header, payload, kept.count, newest, self._horizon_ms if marked else None)

    def _with_horizon(self, header: BatchHeader, data: bytes, kept: _Kept) -> Work[bytes]:
        """The records that stay, their timestamps counted from the horizon."""
        shift = header.base_timestamp - self._horizon_ms
        parts: list[bytes] = []
        runs = iter(kept.runs)
        first, last = next(runs)
        for number, span in enumerate(spans(header, data)):
            if span.start >= last:
                following = next(runs, None)
                if following is None:
                    break
                first, last = following
            if span.start >= first:
                parts.append(with_timestamp(data, span, wrapped(span.timestamp_delta + shift)))
            if number % STEP_RECORDS == STEP_RECORDS - 1:
                yield None
        return b"".join(parts)


__all__ = [
    "Cleaned",
    "CleanedTransactions",
    "Cleaner",
    "LastBatches",
    "Unreadable",
    "Work",
    "note_keys",
    "run",
]
