"""Producer state of one log: idempotence windows, open transactions, aborted transactions. Pure.

What is refused and what is remembered is Kafka 4's (`ProducerAppendInfo`, `ProducerStateEntry`, `ProducerStateManager`
of 4.3), with three deliberate differences:

- The state has two ends. Sequence checks use everything appended; duplicates are answered, the last stable offset is
  computed and snapshots are taken from what is durable. So a producer's past is a list of *events*, each holding the
  state right after it, and the state at any end at or above the durable one can be told.
- A snapshot holds all five batches of a window, not only the last one, and a producer is not forgotten in it because
  time has passed: `snapshot(end)` equals a replay of everything below `end`. Expiry is applied where state is used.
- A producer expires by when its last batch was *appended*, not by the timestamp the client put into it: mirrored or
  back-dated data is protected against duplicates like any other.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgpack

from protocol import Buffer
from protocol.errors import ErrorCode, KafkaError
from protocol.records import BatchHeader, parse_end_txn_marker, records
from storage.seal import AbortedEntry

WINDOW = 5
"""Batches per producer that are recognised as duplicates; clients have at most as many in flight."""

SNAPSHOT_VERSION = 1

_SEQUENCE_MASK = 0x7FFFFFFF
_MARKER_BYTES_MAX = 64 * 1024
_PRUNE_AT = 2 * WINDOW
_NONE = -1


class Duplicate(NamedTuple):
    """The log has this batch already. Answer it when append sequence `sequence` is validated; 0: it is, long since."""

    base_offset: int
    last_offset: int
    timestamp: int  # max timestamp of the original, Unix ms
    sequence: int


class ProducerDescription(NamedTuple):
    """A producer as tools see it; -1 for what is not there."""

    producer_id: int
    epoch: int
    last_sequence: int
    last_timestamp: int  # Unix ms, of the last batch or marker
    coordinator_epoch: int
    open_from: int  # first offset of the open transaction


class _Event(NamedTuple):
    """A batch or marker of one producer, and the producer's state right after it."""

    end: int  # offset after the batch
    epoch: int
    coordinator_epoch: int  # -1: no marker yet
    open_from: int  # first offset of the open transaction, -1: none is open
    used_ms: int  # wall time of the append
    timestamp: int  # max timestamp of the batch
    base: int  # offset
    last_sequence: int  # of a data batch; meaningless for what is none
    sequence: int  # append sequence in the WAL, 0: loaded or replayed
    is_data: bool

    @property
    def first_sequence(self) -> int:
        return (self.last_sequence - (self.end - 1 - self.base)) & _SEQUENCE_MASK


_event = tuple.__new__  # three times cheaper than the class itself


class _Producer:
    """The events of one producer that a snapshot or a check may still need, oldest first, never empty."""

    __slots__ = ("events", "packed", "prune_at")

    def __init__(self) -> None:
        self.events: list[_Event] = []
        self.packed = b""  # its snapshot entry at its last event; b"": not made yet
        self.prune_at = _PRUNE_AT

    def at(self, end: int) -> int:
        """Index of the last event below `end`; -1 if there is none."""
        events = self.events
        index = len(events) - 1
        while index >= 0 and events[index].end > end:
            index -= 1
        return index

    def window(self, index: int) -> list[_Event]:
        """The batches that count as duplicates right after event `index`: up to five, of its epoch, oldest first."""
        events = self.events
        epoch = events[index].epoch
        window: list[_Event] = []
        while index >= 0 and len(window) < WINDOW and events[index].epoch == epoch:
            if events[index].is_data:
                window.append(events[index])
            index -= 1
        window.reverse()
        return window

    def prune(self, durable_end: int) -> None:
        """Forgets what neither a check nor a snapshot at or above `durable_end` can need."""
        index = self.at(durable_end)
        if index > 0:
            kept = self.window(index)
            if not self.events[index].is_data:
                kept.append(self.events[index])
            self.events = kept + self.events[index + 1 :]
        self.prune_at = max(_PRUNE_AT, 2 * len(self.events))


class ProducerStates:
    """What one log knows of its producers.

    Order of use for a batch: `check`, give it an offset and an append sequence, `append`. Times are wall time in ms and
    only ever compared with each other. Whoever recovers a log uses `load` and `replay` and then goes on with these.
    """

    __slots__ = ("_aborted", "_closing", "_floor", "_open", "_producers", "expiration_ms", "hole_end")

    def __init__(self, expiration_ms: int = 86_400_000, hole_end: int = 0) -> None:
        """`expiration_ms`: `producer.id.expiration.ms`. It may be changed at any time. `hole_end`: where the log goes
        on behind what was last declared lost of it; 0: nothing was."""
        self.expiration_ms = expiration_ms
        self.hole_end = hole_end
        self._producers: dict[int, _Producer] = {}
        self._open: dict[int, int] = {}  # producer id -> first offset, in the order of first offsets
        self._closing: list[tuple[int, int]] = []  # (end of the marker, first offset) of markers not known durable
        self._aborted: list[AbortedEntry] = []  # by marker
        self._floor = 0  # snapshots below are not possible any more

    def __len__(self) -> int:
        return len(self._producers)

    def check(self, header: BatchHeader, now_ms: int) -> Duplicate | None:
        """Whether a client's data batch with a producer id may be appended; None: yes.

        A batch already in the window is a `Duplicate`. `KafkaError` INVALID_PRODUCER_EPOCH: the epoch is lower than
        the last one seen. OUT_OF_ORDER_SEQUENCE_NUMBER: it does not follow the last batch (0 follows 2^31 - 1), or a
        new epoch does not begin at 0. INVALID_TXN_STATE: not transactional while a transaction is open.
        TRANSACTION_ABORTABLE: see `_check_hole`. A producer without state, new or expired, may begin with any sequence.
        """
        producer = self._producers.get(header.producer_id)
        if producer is None:
            return None
        last = producer.events[-1]
        base_sequence = header.base_sequence
        if last.epoch == header.producer_epoch and last.is_data:
            follows = base_sequence == (last.last_sequence + 1) & _SEQUENCE_MASK
        else:
            follows = False
        if not follows:
            if self._expired(last, now_ms):
                return None
            if last.epoch == header.producer_epoch:
                duplicate = _find_duplicate(producer, header)
                if duplicate is not None:
                    return duplicate
            _check_epoch_and_sequence(producer, header)
        if last.open_from != _NONE:
            if not header.is_transactional:
                raise KafkaError(
                    ErrorCode.INVALID_TXN_STATE,
                    f"producer {header.producer_id} has an open transaction and sent a batch outside of it",
                )
            self._check_hole(header.producer_id, last)
        return None

    def knows(self, producer_id: int, now_ms: int) -> bool:
        """Whether the producer has state here that has not expired."""
        producer = self._producers.get(producer_id)
        return producer is not None and not self._expired(producer.events[-1], now_ms)

    def in_transaction(self, producer_id: int, producer_epoch: int) -> bool:
        """Whether the producer has a transaction open in what was appended, and is of this epoch."""
        return producer_id in self._open and self._producers[producer_id].events[-1].epoch == producer_epoch

    def check_own(self, producer_id: int, producer_epoch: int) -> None:
        """Whether a batch that a coordinator writes for a producer may be appended: it has no sequence of its own.
        `KafkaError` INVALID_PRODUCER_EPOCH or TRANSACTION_ABORTABLE, as `check`."""
        producer = self._producers.get(producer_id)
        if producer is None:
            return
        last = producer.events[-1]
        if producer_epoch < last.epoch:
            raise KafkaError(
                ErrorCode.INVALID_PRODUCER_EPOCH,
                f"producer {producer_id} has epoch {producer_epoch}, the last seen one is {last.epoch}",
            )
        self._check_hole(producer_id, last)

    def append(self, header: BatchHeader, base_offset: int, sequence: int, now_ms: int, durable_end: int) -> None:
        """Applies a data batch that got `base_offset` and append sequence `sequence`.

        `header` is that of the stored batch (under LogAppendTime: its stamped timestamp) but for the base offset.
        `durable_end`: no snapshot below it will be asked for; it lets old events go.
        """
        self._add_batch(header, base_offset, sequence, now_ms, durable_end)

    def check_marker(
        self, producer_id: int, producer_epoch: int, coordinator_epoch: int, transaction_version: int
    ) -> None:
        """Whether a marker that ends a transaction may be appended.

        `transaction_version` 2: a marker's epoch is above that of its transaction, so that a late repeat cannot end the
        next transaction; a repeat that finds no open transaction may be written again. `KafkaError`
        INVALID_PRODUCER_EPOCH or TRANSACTION_COORDINATOR_FENCED.
        """
        producer = self._producers.get(producer_id)
        if producer is None:
            return
        last = producer.events[-1]
        repeat = producer_epoch == last.epoch and last.open_from == _NONE
        if producer_epoch < last.epoch or (transaction_version >= 2 and producer_epoch == last.epoch and not repeat):
            raise KafkaError(
                ErrorCode.INVALID_PRODUCER_EPOCH,
                f"marker of producer {producer_id} has epoch {producer_epoch}, the last seen one is {last.epoch}",
            )
        if coordinator_epoch < last.coordinator_epoch:
            raise KafkaError(
                ErrorCode.TRANSACTION_COORDINATOR_FENCED,
                f"marker of producer {producer_id} has coordinator epoch {coordinator_epoch}, "
                f"the last seen one is {last.coordinator_epoch}",
            )

    def complete(
        self,
        producer_id: int,
        producer_epoch: int,
        coordinator_epoch: int,
        offset: int,
        now_ms: int,
        *,
        timestamp: int,
        abort: bool,
        durable_end: int,
        sequence: int = 0,
    ) -> AbortedEntry | None:
        """Applies a marker that was appended at `offset`; the entry of the transaction if it aborted one.

        The transaction counts as open until the marker is durable: see `first_open_offset`. `durable_end`: as `append`.
        """
        end = offset + 1
        event = (end, producer_epoch, coordinator_epoch, _NONE, now_ms, timestamp, offset, _NONE, sequence, False)
        self._add(producer_id, event, durable_end)
        open_from = self._open.pop(producer_id, _NONE)
        if open_from == _NONE:
            return None
        self._closing.append((end, open_from))
        if not abort:
            return None
        entry = AbortedEntry(producer_id, open_from, offset, next(iter(self._open.values()), end))
        self._aborted.append(entry)
        return entry

    def replay(self, header: BatchHeader, now_ms: int, batch: Buffer | None = None) -> AbortedEntry | None:
        """Applies a stored batch, whatever it is, without refusing: replay only ever applies state.

        Batches without a producer id change nothing. A control batch needs its bytes. Returns as `complete`. What was
        replayed is durable: snapshots are possible at the base of this batch and above.
        """
        if header.producer_id < 0:
            return None
        base_offset = header.base_offset
        if not header.is_control:
            self._add_batch(header, base_offset, 0, now_ms, base_offset)
            return None
        assert batch is not None, "a control batch is replayed from its bytes"
        record = next(records(batch, max_size=_MARKER_BYTES_MAX), None)
        marker = parse_end_txn_marker(record) if record is not None else None
        if marker is None:  # emptied by compaction, or of a type that is no business of a log
            return None
        return self.complete(
            header.producer_id,
            header.producer_epoch,
            marker.coordinator_epoch,
            base_offset,
            now_ms,
            timestamp=header.max_timestamp,
            abort=not marker.commit,
            durable_end=base_offset,
        )

    def first_open_offset(self, durable_end: int) -> int | None:
        """First offset of the oldest transaction that is open as of `durable_end`, which never goes back; or None.

        A transaction whose marker is not durable is open. The last stable offset is this, or the high watermark if
        that is lower or there is none.
        """
        oldest: int | None = None
        if self._closing:
            del self._closing[: bisect_right(self._closing, durable_end, key=_marker_end)]
            oldest = min((first for _, first in self._closing), default=None)
        for first in self._open.values():
            return first if oldest is None or first < oldest else oldest
        return oldest

    def last_stable_offset(self, end: int) -> int:
        """The last stable offset exactly at `end`, for the range that ends there. Looks at every producer."""
        assert end >= self._floor, (end, self._floor)
        oldest = end
        for producer in self._producers.values():
            index = producer.at(end)
            if index >= 0 and _NONE < producer.events[index].open_from < oldest:
                oldest = producer.events[index].open_from
        return oldest

    def open_transactions(self) -> Iterator[tuple[int, int]]:
        """(producer id, first offset) of the transactions that are open in what was appended, oldest first."""
        return iter(self._open.items())

    @property
    def aborted_count(self) -> int:
        """Aborted transactions that are remembered here."""
        return len(self._aborted)

    @property
    def open_count(self) -> int:
        """Transactions that are open in what was appended."""
        return len(self._open)

    def aborted_since(self, base: int) -> Iterator[AbortedEntry]:
        """The aborted transactions whose marker lies at `base` or above, in the order of their markers.

        For use at once: nothing may be appended meanwhile.
        """
        return islice(self._aborted, bisect_left(self._aborted, base, key=_marker_offset), None)

    def aborted(self, base: int, end: int) -> list[AbortedEntry]:
        """The aborted transactions whose marker lies in [base, end), in the order of their markers."""
        first = bisect_left(self._aborted, base, key=_marker_offset)
        return self._aborted[first : bisect_left(self._aborted, end, first, key=_marker_offset)]

    def forget_aborted(self, below: int) -> None:
        """Drops the entries whose marker lies below `below`: the committed ranges have them."""
        del self._aborted[: bisect_left(self._aborted, below, key=_marker_offset)]

    def ids(self) -> list[int]:
        """The producers that are known, those that have expired included."""
        return list(self._producers)

    def describe(self, producer_id: int, end: int, now_ms: int) -> ProducerDescription | None:
        """What is known of a producer as of `end`; None: nothing, or it has expired."""
        producer = self._producers.get(producer_id)
        index = -1 if producer is None else producer.at(end)
        if producer is None or index < 0 or self._expired(producer.events[index], now_ms):
            return None
        event = producer.events[index]
        window = producer.window(index)
        last_sequence = window[-1].last_sequence if window else _NONE
        return ProducerDescription(
            producer_id, event.epoch, last_sequence, event.timestamp, event.coordinator_epoch, event.open_from
        )

    def expire(self, now_ms: int, durable_end: int, among: Iterable[int]) -> int:
        """Drops those of `among` that have expired and returns their number. For a rare, periodic call.

        Their next batch may begin with any sequence, as it may before: this only frees memory, and room in snapshots.
        """
        gone = 0
        for producer_id in among:
            producer = self._producers.get(producer_id)
            if producer is None:
                continue
            last = producer.events[-1]
            if last.end <= durable_end and self._expired(last, now_ms):
                del self._producers[producer_id]
                gone += 1
        return gone

    def snapshot(self, end: int) -> bytes:
        """The state exactly at `end`, whatever was appended above it; b"" if no producer was known.

        msgpack: [version, [producer..]] by producer id; producer: [id, epoch, coordinator epoch, first offset of the
        open transaction or -1, wall time of the last append, max timestamp of the last batch, offset after the last
        batch or marker, window]; window: [last sequence, base offset, last offset, max timestamp] of up to five
        batches, flat, oldest first.
        """
        assert end >= self._floor, f"the state at {end} is gone, {self._floor} is the lowest that is kept"
        packer = msgpack.Packer(autoreset=False)
        entries: list[bytes] = []
        for producer_id in sorted(self._producers):
            producer = self._producers[producer_id]
            index = producer.at(end)
            if index < 0:
                continue
            if index < len(producer.events) - 1:
                entries.append(_pack(producer_id, producer, index))
            else:
                if not producer.packed:
                    producer.packed = _pack(producer_id, producer, index)
                entries.append(producer.packed)
        if not entries:
            return b""
        packer.pack_array_header(2)
        packer.pack(SNAPSHOT_VERSION)
        packer.pack_array_header(len(entries))
        return b"".join([packer.bytes(), *entries])

    def load(self, snapshot: bytes) -> None:
        """Replaces everything by a snapshot, b"" included. ValueError if it is damaged or of an unknown version.

        Aborted transactions are not part of it: they lie in the ranges.
        """
        self._producers = {}
        self._open = {}
        self._closing = []
        self._aborted = []
        self._floor = 0
        opened: list[tuple[int, int]] = []
        for entry in _unpack(snapshot):
            self._producers[entry[0]] = _load_producer(entry)
            if entry[3] != _NONE:
                opened.append((entry[3], entry[0]))
            self._floor = max(self._floor, entry[6])
        self._open = {producer_id: first for first, producer_id in sorted(opened)}

    def _add_batch(self, header: BatchHeader, base_offset: int, sequence: int, now_ms: int, durable_end: int) -> None:
        producer_id = header.producer_id
        producer = self._producers.get(producer_id)
        coordinator_epoch = open_from = _NONE
        if producer is not None:
            last = producer.events[-1]
            coordinator_epoch, open_from = last.coordinator_epoch, last.open_from
        if open_from == _NONE and header.is_transactional:
            open_from = self._open[producer_id] = base_offset
        event = (
            base_offset + header.last_offset_delta + 1,
            header.producer_epoch,
            coordinator_epoch,
            open_from,
            now_ms,
            header.max_timestamp,
            base_offset,
            header.last_sequence,
            sequence,
            True,
        )
        self._add(producer_id, event, durable_end)

    def _add(self, producer_id: int, event: tuple[int | bool, ...], durable_end: int) -> None:
        producer = self._producers.get(producer_id)
        if producer is None:
            producer = self._producers[producer_id] = _Producer()
        producer.events.append(_event(_Event, event))
        producer.packed = b""
        if len(producer.events) >= producer.prune_at:
            self._floor = max(self._floor, durable_end)
            producer.prune(durable_end)

    def _check_hole(self, producer_id: int, last: _Event) -> None:
        """A transaction does not go on across a hole: its marker may be what was lost, and the end of the producer's
        next one would commit what was aborted. The abort that a client answers this with ends both."""
        if _NONE < last.open_from < self.hole_end:
            raise KafkaError(
                ErrorCode.TRANSACTION_ABORTABLE,
                f"producer {producer_id} has a transaction open from offset {last.open_from}, and what followed up to "
                f"{self.hole_end} was declared lost, its end perhaps: abort",
            )

    def _expired(self, last: _Event, now_ms: int) -> bool:
        return last.open_from == _NONE and now_ms - last.used_ms >= self.expiration_ms


def _marker_end(closing: tuple[int, int]) -> int:
    return closing[0]


def _marker_offset(entry: AbortedEntry) -> int:
    return entry.last_offset


def _find_duplicate(producer: _Producer, header: BatchHeader) -> Duplicate | None:
    last_sequence = header.last_sequence
    for event in producer.window(len(producer.events) - 1):
        if event.last_sequence == last_sequence and event.first_sequence == header.base_sequence:
            return Duplicate(event.base, event.end - 1, event.timestamp, event.sequence)
    return None


def _check_epoch_and_sequence(producer: _Producer, header: BatchHeader) -> None:
    """Refuses as Kafka's `checkProducerEpoch` and `checkSequence`; the caller has ruled out that the batch just follows
    a data batch of the same epoch."""
    epoch = producer.events[-1].epoch
    if header.producer_epoch < epoch:
        raise KafkaError(
            ErrorCode.INVALID_PRODUCER_EPOCH,
            f"producer {header.producer_id} has epoch {header.producer_epoch}, the last seen one is {epoch}",
        )
    if header.producer_epoch > epoch:
        if header.base_sequence == 0:
            return
        raise KafkaError(
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
            f"producer {header.producer_id} begins epoch {header.producer_epoch} with sequence "
            f"{header.base_sequence} instead of 0",
        )
    window = producer.window(len(producer.events) - 1)
    last_sequence = window[-1].last_sequence if window else _NONE
    if header.base_sequence != (last_sequence + 1) & _SEQUENCE_MASK:
        raise KafkaError(
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
            f"producer {header.producer_id} sent sequence {header.base_sequence} after {last_sequence}",
        )


def _pack(producer_id: int, producer: _Producer, index: int) -> bytes:
    event = producer.events[index]
    window: list[int] = []
    for batch in producer.window(index):
        window += (batch.last_sequence, batch.base, batch.end - 1, batch.timestamp)
    packed: bytes = msgpack.packb(
        (
            producer_id,
            event.epoch,
            event.coordinator_epoch,
            event.open_from,
            event.used_ms,
            event.timestamp,
            event.end,
            window,
        )
    )
    return packed


def _unpack(snapshot: bytes) -> list[list[Any]]:
    """The producers of a snapshot, their shape checked."""
    if not snapshot:
        return []
    try:
        version, entries = msgpack.unpackb(snapshot, use_list=True)
        if version != SNAPSHOT_VERSION:
            raise ValueError(f"producer snapshot of version {version}, only {SNAPSHOT_VERSION} is known")
        for entry in entries:
            window = entry[7]
            numbers = [*entry[:7], *window]
            if len(entry) != 8 or len(window) % 4 or len(window) > 4 * WINDOW or {*map(type, numbers)} != {int}:
                raise ValueError(f"producer snapshot: entry {entry!r}")
    except (TypeError, IndexError, msgpack.UnpackException) as error:
        raise ValueError(f"producer snapshot is damaged: {error!r}") from error
    return list(entries)


class LastAppend(NamedTuple):
    """What a snapshot says of the newest append of one producer."""

    producer_id: int
    epoch: int
    used_ms: int  # wall time
    last_offset: int  # of its last batch of data, -1: only markers are known
    is_open: bool  # it has an open transaction


def last_appends(snapshot: bytes) -> Iterator[LastAppend]:
    """One for each producer of a snapshot, b"" included. ValueError as `ProducerStates.load`."""
    for producer_id, epoch, _, open_from, used_ms, _, _, window in _unpack(snapshot):
        yield LastAppend(producer_id, epoch, used_ms, window[-2] if window else _NONE, open_from != _NONE)


def _load_producer(entry: list[Any]) -> _Producer:
    """The window as events, and one that is no batch for the state after the last batch or marker."""
    _, epoch, coordinator_epoch, open_from, used_ms, timestamp, end, window = entry
    producer = _Producer()
    for at in range(0, len(window), 4):
        last_sequence, base, last, at_ms = window[at : at + 4]
        event = (last + 1, epoch, coordinator_epoch, open_from, used_ms, at_ms, base, last_sequence, 0, True)
        producer.events.append(_event(_Event, event))
    state = (end, epoch, coordinator_epoch, open_from, used_ms, timestamp, end - 1, _NONE, 0, False)
    producer.events.append(_event(_Event, state))
    return producer
