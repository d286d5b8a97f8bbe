"""What clients of a cluster under faults saw, and the judge of it.

Producer n's record k of a partition has the value `n:k`, so every record tells who sent it and which one it is.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Value(NamedTuple):
    """Which record it is."""

    producer: int
    number: int

    def encode(self, size: int) -> bytes:
        """Padded to `size` bytes."""
        return f"{self.producer}:{self.number}:".encode().ljust(size, b".")

    @classmethod
    def decode(cls, data: bytes) -> "Value":
        producer, number, _ = data.split(b":", 2)
        return cls(int(producer), int(number))


class Ack(NamedTuple):
    """A record was acknowledged at this offset."""

    partition: int
    value: Value
    offset: int


class Read(NamedTuple):
    """A member of the group got a record. `session` changes whenever the partition is assigned."""

    session: int
    partition: int
    offset: int
    value: Value


class Session(NamedTuple):
    """A partition was assigned to a member at this time, and the first offset it got then."""

    number: int
    partition: int
    assigned_s: float
    first_s: float
    first: int


class Commit(NamedTuple):
    """The group's position: answered (`done`), or perhaps stored."""

    partition: int
    offset: int
    began_s: float
    ended_s: float
    done: bool


@dataclass
class History:
    """Filled by clients in several threads; lists only grow. `log`: everything as read at the end, by partition."""

    partitions: int
    sent: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    """Records sent by (producer, partition)."""
    acks: list[Ack] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    log: dict[int, list[tuple[int, Value]]] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    """What the group has committed at the end, by partition."""


def judge(history: History, most: int = 20) -> list[str]:
    """What must not have happened; empty: all is well. At most `most` of each kind."""
    found: list[str] = []
    for check in (_log, _acks, _reads, _resumes, _group_end):
        for number, what in enumerate(check(history)):
            if number == most:
                found.append("and more of this kind")
                break
            found.append(what)
    return found


def _log(history: History) -> Iterator[str]:
    """Offsets grow, no record twice, each producer's in the order in which it sent them, none that nobody sent."""
    for partition, records in history.log.items():
        newest: dict[int, int] = {}
        before = -1
        for offset, value in records:
            if offset <= before:
                yield f"partition {partition}: offset {offset} after {before}"
            before = offset
            last = newest.get(value.producer, -1)
            if value.number == last:
                yield f"duplicate: partition {partition} holds {value} twice, again at {offset}"
            elif value.number < last:
                yield f"disorder: partition {partition} holds {value} at {offset}, after {last}"
            newest[value.producer] = max(last, value.number)
            if value.number >= history.sent.get((value.producer, partition), 0):
                yield f"partition {partition} holds {value} at {offset}, which nobody sent"


def _acks(history: History) -> Iterator[str]:
    """Every acknowledged record is where the acknowledgement said."""
    logs = {partition: dict(records) for partition, records in history.log.items()}
    for ack in history.acks:
        there = logs.get(ack.partition, {}).get(ack.offset)
        if there is None:
            yield f"lost: partition {ack.partition} has nothing at {ack.offset}, where {ack.value} was acknowledged"
        elif there != ack.value:
            yield f"lost: partition {ack.partition} has {there} at {ack.offset}, where {ack.value} was acknowledged"


def _reads(history: History) -> Iterator[str]:
    """What the group read is what stands there in the end, and no session leaves anything out."""
    logs = {partition: dict(records) for partition, records in history.log.items()}
    positions: dict[int, int] = {}
    for read in history.reads:
        there = logs.get(read.partition, {}).get(read.offset)
        if there != read.value:
            yield f"two values: partition {read.partition} showed {read.value} at {read.offset}, and holds {there}"
        before = positions.get(read.session)
        if before is not None and read.offset != before + 1:
            yield f"gap: session {read.session} of partition {read.partition} got {read.offset} after {before}"
        positions[read.session] = read.offset


def _resumes(history: History) -> Iterator[str]:
    """A session begins where the group was: not before a commit that was answered, not beyond any that was tried."""
    commits: dict[int, list[Commit]] = defaultdict(list)
    for commit in history.commits:
        commits[commit.partition].append(commit)
    for session in history.sessions:
        own = commits[session.partition]
        answered = [commit.offset for commit in own if commit.done and commit.ended_s < session.assigned_s]
        if session.first < max(answered, default=0):
            yield (
                f"resumed too early: session {session.number} of partition {session.partition} began at "
                f"{session.first}, {max(answered)} was committed"
            )
        tried = [commit.offset for commit in own if commit.began_s < session.first_s]
        if session.first > max(tried, default=0):
            yield (
                f"resumed too late: session {session.number} of partition {session.partition} began at "
                f"{session.first}, {max(tried, default=0)} was the most that anybody committed"
            )


def _group_end(history: History) -> Iterator[str]:
    """In the end the group has read everything and its commits are there."""
    seen: dict[int, set[int]] = defaultdict(set)
    for read in history.reads:
        seen[read.partition].add(read.offset)
    for partition, records in history.log.items():
        missing = [offset for offset, _ in records if offset not in seen[partition]]
        if missing:
            yield f"unread: the group never got {len(missing)} records of partition {partition}, first {missing[0]}"
    answered: dict[int, int] = {}
    for commit in history.commits:
        if commit.done:
            answered[commit.partition] = max(commit.offset, answered.get(commit.partition, 0))
    for partition, offset in answered.items():
        if history.positions.get(partition, -1) < offset:
            there = history.positions.get(partition, -1)
            yield f"commit lost: partition {partition} is at {there}, {offset} was committed"


def spread_of(values: Iterable[float]) -> dict[str, float]:
    """Count, quantiles and maximum, in seconds."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {"count": len(ordered), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": round(ordered[-1], 3)}


BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60)


def buckets_of(values: Iterable[float]) -> dict[str, int]:
    """How many are at most so many seconds and more than the bound before."""
    found = dict.fromkeys([*map(str, BUCKETS_S), "more"], 0)
    for value in values:
        found[next((str(bound) for bound in BUCKETS_S if value <= bound), "more")] += 1
    return {bound: count for bound, count in found.items() if count}
