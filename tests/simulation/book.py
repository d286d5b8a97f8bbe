"""What a checker looks things up in: the requests, places and polls of a history."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.simulation.history import Event

Part = tuple[str, int]


@dataclass(frozen=True)
class Loss:
    """Offsets [start, end) of a partition that an operator declared lost."""

    topic: str
    partition: int
    start: int
    end: int


@dataclass(frozen=True)
class Final:
    """What the world knows at the end beside the history."""

    losses: Sequence[Loss] = ()
    quiet_from_ns: int | None = None
    """When faults stopped; None: liveness is not judged."""
    store_quiet_from_ns: int = 0
    """When the last call of the bucket that met a fault was answered: till then reads of old records may take long."""
    live_within_ns: int = 15_000_000_000
    """From then on every partition that is written to must acknowledge and serve within this time."""


@dataclass(frozen=True)
class Finding:
    """One anomaly and the events that prove it."""

    anomaly: str
    message: str
    events: tuple[Event, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return "\n".join([f"{self.anomaly}: {self.message}", *(f"    {event}" for event in self.events)])


@dataclass
class Request:
    """A batch that a producer sent, once or several times. `at` and `done` are places in the history."""

    invoke: Event
    at: int
    part: Part
    values: tuple[int, ...]
    producer: tuple[int, int] | None
    sequence: int
    outcome: Event | None = None
    done: int | None = None

    @property
    def told(self) -> Event:
        """The outcome if there is one, else the invocation."""
        return self.outcome or self.invoke

    @property
    def acknowledged(self) -> bool:
        return self.outcome is not None and self.outcome.kind == "produce.ok"

    @property
    def failed(self) -> bool:
        return self.outcome is not None and self.outcome.kind == "produce.fail"

    @property
    def offset(self) -> int:
        """Where the answer says that the first value is; -1 if no answer says it."""
        return int(self.outcome.fields["offset"]) if self.outcome is not None and self.acknowledged else -1


def part_of(event: Event) -> Part:
    """The partition that an event is about."""
    return event.fields["topic"], event.fields["partition"]


class Book:
    """A history, indexed. `seen` is what polls and the final reads found: part -> offset -> value -> first event."""

    def __init__(self, history: Iterable[Event], final: Final) -> None:
        self.events = list(history)
        self.final = final
        self.requests: dict[int, Request] = {}
        self.writers: dict[int, list[Request]] = defaultdict(list)
        self.seen: dict[Part, dict[int, dict[int, Event]]] = defaultdict(lambda: defaultdict(dict))
        self.reads: dict[Part, Event] = {}
        """The final ones."""
        self.values_at: dict[Part, dict[int, int]] = {}
        self.offsets: dict[Part, list[int]] = {}
        """Of the final reads, ascending."""
        self.deleted: dict[Part, int] = defaultdict(int)
        """Below which offset somebody asked for records to be deleted."""
        self.offsets_of: dict[Part, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        """Value -> offsets, of everything acknowledged, or seen and not declared lost."""
        for at, event in enumerate(self.events):
            self._note(at, event)
        for part, by_offset in self.seen.items():
            for offset, values in by_offset.items():
                if self.excused(part, offset):
                    continue  # it was there, is lost, and may be sent again
                for value in values:
                    self.offsets_of[part][value].add(offset)
        for request in self.acknowledged():
            for offset, value in enumerate(request.values, request.offset):
                self.offsets_of[request.part][value].add(offset)

    def _note(self, at: int, event: Event) -> None:
        kind, fields = event.kind, event.fields
        if kind == "produce.invoke":
            request = Request(
                event, at, part_of(event), tuple(fields["values"]), fields["producer"], fields["sequence"]
            )
            self.requests[fields["request"]] = request
            for value in request.values:
                self.writers[value].append(request)
        elif kind in ("produce.ok", "produce.fail", "produce.unknown"):
            known = self.requests.get(fields["request"])
            if known is not None and known.outcome is None:
                known.outcome, known.done = event, at
        elif kind == "delete_records.invoke":
            part = part_of(event)
            self.deleted[part] = max(self.deleted[part], fields["offset"])
        elif kind in ("poll.ok", "final.read"):
            part = part_of(event)
            seen = self.seen[part]
            for offset, value in fields["records"]:
                seen[offset].setdefault(value, event)
            if kind == "final.read":
                self.reads[part] = event
                self.values_at[part] = dict(fields["records"])
                self.offsets[part] = sorted(self.values_at[part])

    def acknowledged(self) -> Iterator[Request]:
        """Requests whose answer names an offset."""
        return (request for request in self.requests.values() if request.acknowledged and request.offset >= 0)

    def excused(self, part: Part, offset: int) -> bool:
        """Whether the offset lies in a declared loss."""
        return any(
            (loss.topic, loss.partition) == part and loss.start <= offset < loss.end for loss in self.final.losses
        )

    def lost_something(self, part: Part) -> bool:
        """Whether anything of the partition was declared lost."""
        return any((loss.topic, loss.partition) == part for loss in self.final.losses)

    def base_of(self, request: Request) -> int | None:
        """Offset of the request's first value: as answered, or as found if no other request has the same values."""
        if request.offset >= 0:
            return request.offset
        for delta, value in enumerate(request.values):
            found = self.offsets_of[request.part].get(value)
            if found and len(self.writers[value]) == 1:
                return min(found) - delta
        return None

    def between(self, part: Part, start: int, end: int) -> list[int]:
        """Offsets of records in [start, end) that are there in the end."""
        offsets = self.offsets.get(part, [])
        return offsets[bisect_left(offsets, start) : bisect_left(offsets, end)]
