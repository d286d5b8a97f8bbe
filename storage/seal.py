"""What a broker seals, names in a commit and reads back: plain data shared by uploader, controller and reader.

A *seal* is what one incarnation uploads together; seals are numbered from 1 without holes. A seal becomes one or
several objects; each holds one *range* per log. The controller commits whole seals in order and judges range by range.
"""

from dataclasses import dataclass
from typing import NamedTuple

from protocol import Buffer

MERGED = "merged/"
MANIFESTS = "manifests/"


class Writer(NamedTuple):
    """Who writes segments: one run of one broker."""

    cluster_id: str
    node_id: int
    incarnation: int  # u64


class AbortedEntry(NamedTuple):
    """An aborted transaction, kept with the range that holds its marker (Kafka's `AbortedTxn`)."""

    producer_id: int
    first_offset: int  # of the transaction's data in this log
    last_offset: int  # the offset of the abort marker
    last_stable_offset: int  # of the log right after the marker


class Range(NamedTuple):
    """One log's part of one segment: offsets `base` to `end` (exclusive) in bytes `position` to `position + length`."""

    log_id: int
    leader_epoch: int
    base: int
    end: int
    position: int
    length: int
    max_timestamp: int  # Unix ms of the newest record, -1 if none has one
    last_stable_offset: int  # as it was at `end`: below it every transaction was decided
    batch_count: int


class RangeRow(NamedTuple):
    """A committed range and the object that holds it: what a read is planned from."""

    key: str
    size: int  # bytes of the whole object
    range: Range


class ManifestPointer(NamedTuple):
    """A manifest: an immutable object of range rows of one log, of which the first `first` are not needed any more.

    `rows`, `bytes` (of batches), `base`, `end` and the last two are of the rows that are left; a row can be dropped by
    time when `oldest_ms`, that of its newest record, or of its commit if it has none, is old enough.
    """

    job: int
    size: int  # bytes of the object
    first: int
    rows: int
    bytes: int
    base: int
    end: int
    max_timestamp: int  # of all its rows, -1 if none has one
    oldest_ms: int  # of the first row that is left
    oldest_bytes: int  # of the first row that is left


def merged_key(job: int, log_id: int) -> str:
    """Where the range of `log_id` that merge job `job` makes lies: every job has keys of its own."""
    return f"{MERGED}{job:010d}/{log_id}"


def manifest_key(job: int, log_id: int) -> str:
    """Where the manifest of `log_id` that job `job` writes lies."""
    return f"{MANIFESTS}{job:010d}/{log_id}"


@dataclass(slots=True)
class SealedLog:
    """The batches of one log that go into one seal, all of one leader epoch, all validated.

    `producers` is the snapshot of the producer states exactly at `end` (`ProducerStates.snapshot`), b"" if none.
    `aborted` are the transactions whose abort marker lies in [base, end), in the order of their markers.
    """

    log_id: int
    leader_epoch: int
    base: int
    end: int
    batches: list[Buffer]
    max_timestamp: int
    last_stable_offset: int
    producers: bytes
    aborted: list[AbortedEntry]
    size: int = -1  # bytes of all batches; counted if it is not given, which takes milliseconds for many small ones

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = sum(map(len, self.batches))


class SegmentObject(NamedTuple):
    """An uploaded object and what it holds; ranges in the order of their log ids."""

    key: str
    size: int  # bytes
    ranges: tuple[Range, ...]


class CommittedThrough(NamedTuple):
    """Every batch of this instance and lane up to this group is in this seal or an earlier one, or was refused."""

    wal_id: bytes  # 16 bytes
    group: int  # for the object WAL: the sequence
    lane: int = 0


class Recovery(NamedTuple):
    """The right to commit for logs that are `recovering`: the instance and the number `RecoveryNamed` gave."""

    wal_id: bytes  # 16 bytes
    number: int


@dataclass(frozen=True, slots=True)
class CommitSeal:
    """The command that makes a seal's ranges part of their logs.

    Keyed by (incarnation, seal): the controller answers a seal at or below the last one it committed with the first
    answer, refuses anything but the next one with a retriable `KafkaError`, and judges every range by itself: leader,
    epoch and base == end, or the recovery's right. Bad ranges are named in the answer and dropped; the seal still
    counts. Only an incarnation that is unknown or was ended is refused as a whole, by a `KafkaError` that is not
    retriable.
    """

    command_id: bytes  # 16 bytes: incarnation and seal
    node_id: int
    incarnation: int
    seal: int
    objects: tuple[SegmentObject, ...]
    committed_through: tuple[CommittedThrough, ...] = ()
    recovery: Recovery | None = None


class Move(NamedTuple):
    """A log that changes its leader with a commit, from `leader_epoch` on, if it then ends at `end`."""

    log_id: int
    leader_epoch: int
    end: int
    node_id: int  # the new leader


@dataclass(frozen=True, slots=True)
class CommitAndMove(CommitSeal):
    """A seal and, in the same entry, the moves that it was the last step of.

    Every move is judged by itself, after the ranges: leader, epoch, end, and a target that is still wanted and can
    lead. A log whose move is refused stays where it is; facts tell which. Repeated as `CommitSeal` is.
    """

    moves: tuple[Move, ...] = ()


class CommitAnswer(NamedTuple):
    """What was decided. A seal holds a log at most once, so log ids name ranges."""

    refused: tuple[int, ...]  # log ids, ascending
    position: int  # of the metadata entry that holds the commit


class Verdict(NamedTuple):
    """The outcome of one seal, as `Uploader.submit` tells it."""

    seal: int
    committed: tuple[RangeRow, ...]
    refused: frozenset[int]  # log ids whose range was dropped for good
    position: int  # wait until facts are applied up to here before trimming


class CorruptSegment(Exception):
    """Bytes of a segment are not what was written. `what` says which part and how it is known."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"segment {key}: {what}")
        self.key = key
        self.what = what


class RangeMissing(Exception):
    """The object of a planned range does not exist (404).

    Refresh the facts and plan again; if the newest facts still name the object, data is lost: raise the alarm.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"segment {key} does not exist")
        self.key = key
