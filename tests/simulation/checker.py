"""Judge a history in the spirit of Jepsen's Kafka workload. Pure: events in, findings out.

Events that are read; all others are ignored. `client` is a name, values are unique integers, `request`, `poll`, `list`,
`commit`, `fetch` are numbers that an outcome repeats, unique in the history. The order of events is the real order.

- `produce.invoke {client, request, topic, partition, values, acks, producer, sequence}`: retries of the identical batch
  are one request; `producer` is (id, epoch) or None.
- `produce.ok {request, offset, node}`: `offset` of the first value. `produce.fail {request, error}`: certainly not
  written. `produce.unknown {request, error}`: may be there, or may still come. `produce.refused {request, error}`: the
  broker's reason not to take it was not one that a client can do anything about.
- `poll.invoke {client, poll, node, positions, max_wait_ms, min_bytes}`, `positions` of (topic, partition, offset);
  `poll.ok {client, poll, node, topic, partition, offset, records, high_watermark, log_start}`, `records` of
  (offset, value); `poll.out_of_range {client, topic, partition, offset}`; `poll.fail {poll}`.
- `assign {client, topic, partition, offset}`: the consumer goes on from `offset` on purpose.
- `list_offsets.invoke/ok {list, topic, partition, timestamp, offset}`.
- `delete_records.invoke/ok {topic, partition, offset}`.
- `group.joined {client, group, generation, parts}`; of consumer groups: see `checker_owners`.
- `commit.invoke {client, group, commit, offsets}`, `commit.ok/fail/unknown {commit}`; `fetch_offsets.invoke {fetch}`,
  `fetch_offsets.ok {group, fetch, offsets}`: `offsets` of (topic, partition, offset).
- `tune.*`: see `checker_tuned`.
- `final.read {topic, partition, start, end, records}`: everything that is there when all is quiet.
  `final.offsets {group, offsets}`: what a group has committed then.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.simulation import checker_bank, checker_groups, checker_live, checker_owners, checker_tuned
from tests.simulation.book import Book, Final, Finding, Loss, Part, Request, part_of
from tests.simulation.client import EARLIEST, LATEST
from tests.simulation.history import Event

FINDINGS_MAX = 5
"""Of one kind; more of the same help nobody."""

__all__ = ["Final", "Finding", "Loss", "check"]


def check(history: Iterable[Event], final: Final) -> list[Finding]:
    """Every kind of anomaly of the history with up to five examples; empty when all is well."""
    book = Book(history, final)
    found: list[Finding] = []
    for judge in CHECKS:
        counts: dict[str, int] = defaultdict(int)
        for finding in judge(book):
            counts[finding.anomaly] += 1
            if counts[finding.anomaly] <= FINDINGS_MAX:
                found.append(finding)
    return found


def inconsistent_offsets(book: Book) -> Iterator[Finding]:
    """One offset, two values: among polls, final reads and answers to producers."""
    told: dict[Part, dict[int, dict[int, Event]]] = {}
    for part, by_offset in book.seen.items():
        told[part] = {offset: dict(values) for offset, values in by_offset.items()}
    for request in book.acknowledged():
        by_offset_told = told.setdefault(request.part, {})
        for offset, value in enumerate(request.values, request.offset):
            by_offset_told.setdefault(offset, {}).setdefault(value, request.told)
    for part, by_offset_told in told.items():
        for offset, values in by_offset_told.items():
            if len(values) > 1:
                message = f"{part} has the values {sorted(values)} at offset {offset}"
                yield Finding("inconsistent-offset", message, tuple(values.values()))


def lost_writes(book: Book) -> Iterator[Finding]:
    """Acknowledged, not deleted and not there in the end: below the end it is lost, above it was never seen."""
    for request in book.acknowledged():
        read = book.reads.get(request.part)
        if read is None:
            continue
        deleted, end = book.deleted[request.part], read.fields["end"]
        for offset, value in enumerate(request.values, request.offset):
            if offset < deleted or book.excused(request.part, offset):
                continue
            events = (request.invoke, request.told, read)
            if offset >= end:
                message = f"{value} was acknowledged at offset {offset} of {request.part}, which ends at {end}"
                yield Finding("unseen", message, events)
            elif offset not in book.values_at[request.part]:
                message = f"{value} was acknowledged at offset {offset} of {request.part} and is not there"
                yield Finding("lost-write", message, events)


def duplicates(book: Book) -> Iterator[Finding]:
    """More copies of a value than attempts to write it. All attempts of an idempotent producer are one."""
    for part, values in book.offsets_of.items():
        for value, offsets in values.items():
            writers = [request for request in book.writers.get(value, ()) if request.part == part]
            if writers and len(offsets) > len(writers):
                message = f"{value} is at offsets {sorted(offsets)} of {part}, sent {len(writers)} times"
                yield Finding("duplicate", message, tuple(request.invoke for request in writers))


def unsent_values(book: Book) -> Iterator[Finding]:
    """Values that nobody sent to that partition, or whose every attempt certainly failed."""
    for part, by_offset in book.seen.items():
        for offset, values in by_offset.items():
            for value, event in values.items():
                writers = [request for request in book.writers.get(value, ()) if request.part == part]
                if not writers:
                    yield Finding("never-sent", f"{value} at offset {offset} of {part} was never sent", (event,))
                elif all(request.failed for request in writers):
                    events = (*(request.told for request in writers), event)
                    yield Finding("aborted-read", f"{value} at offset {offset} of {part} was refused", events)


def reordered_sends(book: Book) -> Iterator[Finding]:
    """The order of one idempotent session is that of its sequences, without holes; and what is sent after an
    acknowledgement comes behind what was acknowledged."""
    sessions: dict[tuple[object, Part], list[Request]] = defaultdict(list)
    for request in book.requests.values():
        if request.producer is not None:
            sessions[request.producer, request.part].append(request)
    for (_, part), requests in sessions.items():
        yield from _session_order(book, part, sorted(requests, key=lambda request: request.sequence))
    yield from _real_order(book)


def torn_batches(book: Book) -> Iterator[Finding]:
    """In the end a batch without an answer is there as a whole, in one piece, or not at all."""
    for request in book.requests.values():
        base, read = book.base_of(request), book.reads.get(request.part)
        if request.acknowledged or base is None or read is None:
            continue
        there = book.values_at[request.part]
        places = [
            (offset, value)
            for offset, value in enumerate(request.values, base)
            if offset >= read.fields["start"] and not book.excused(request.part, offset)
        ]
        missing = [place for place in places if there.get(place[0]) != place[1]]
        if missing and len(missing) < len(places):
            offset, value = missing[0]
            message = f"{value} is not at {offset} of {request.part}, where the rest of its batch would have it"
            yield Finding("torn-batch", message, (request.invoke, read))


def _session_order(book: Book, part: Part, requests: list[Request]) -> Iterator[Finding]:
    last: tuple[int, Request] | None = None
    skipped: list[Request] = []
    start = book.reads[part].fields["start"] if part in book.reads else None
    for request in requests:
        base = book.base_of(request)
        if base is None:
            skipped.append(request)
            continue
        if last is not None and base <= last[0]:
            message = f"sequence {request.sequence} is at {base} of {part}, {last[1].sequence} before it at {last[0]}"
            yield Finding("reordered-sends", message, (last[1].invoke, request.invoke))
        below = last[0] if last is not None else 0
        if skipped and start is not None and start <= below and not book.lost_something(part):
            message = f"sequence {request.sequence} is at {base} of {part}, {skipped[0].sequence} before it nowhere"
            yield Finding("skipped-send", message, (skipped[0].invoke, request.invoke))
        skipped = []
        last = base, request


def _real_order(book: Book) -> Iterator[Finding]:
    """One pass: at each invocation, the highest end that was acknowledged before."""
    floors: dict[Part, tuple[int, Request]] = {}
    steps: list[tuple[int, bool, Request]] = []
    for request in book.requests.values():
        steps.append((request.at, False, request))
        if request.done is not None and request.offset >= 0:
            steps.append((request.done, True, request))
    for _, done, request in sorted(steps, key=lambda step: step[:2]):
        floor = floors.get(request.part)
        if done:
            end = request.offset + len(request.values)
            if floor is None or end > floor[0]:
                floors[request.part] = end, request
        elif floor is not None:
            base = book.base_of(request)
            if base is not None and base < floor[0]:
                message = f"sent after offset {floor[0] - 1} of {request.part} was acknowledged, it is at {base}"
                yield Finding("reordered-sends", message, (floor[1].told, request.invoke))


def refusals(book: Book) -> Iterator[Finding]:
    """A producer that keeps the rules is never told that its sequence does not fit; ids are given once."""
    owners: dict[tuple[int, int], Request] = {}
    for request in book.requests.values():
        if request.producer is None:
            continue
        first = owners.setdefault(request.producer, request)
        if first.invoke.fields["client"] != request.invoke.fields["client"]:
            message = f"producer id and epoch {request.producer} were given to two producers"
            yield Finding("producer-id-twice", message, (first.invoke, request.invoke))
    for event in book.events:
        if event.kind == "produce.refused" and not book.lost_something(part_of(event)):
            yield Finding("refused", f"a producer was refused with {event.fields['error']}", (event,))


def polls(book: Book) -> Iterator[Finding]:
    """What one consumer sees only goes forward, skips nothing, and is still there in the end."""
    last: dict[tuple[str, Part], int] = {}
    for event in book.events:
        if event.kind not in ("assign", "poll.ok"):
            continue
        part, fields = part_of(event), event.fields
        reader = fields["client"], part
        if event.kind == "assign":
            last[reader] = fields["offset"] - 1
            continue
        offsets = [offset for offset, _ in fields["records"]]
        for offset in offsets:
            if offset <= last.get(reader, -1):
                message = f"{reader[0]} saw offset {offset} of {part} after {last[reader]}"
                yield Finding("nonmonotonic-poll", message, (event,))
            last[reader] = offset
        if not offsets:
            continue
        got = set(offsets)
        for offset in book.between(part, fields["offset"], offsets[-1]):
            if offset not in got and not book.excused(part, offset):
                message = f"{reader[0]} went from {fields['offset']} to {offsets[-1]} of {part} without {offset}"
                yield Finding("skipped-poll", message, (event,))
        yield from _beyond(book, part, event)


def _beyond(book: Book, part: Part, event: Event) -> Iterator[Finding]:
    read = book.reads.get(part)
    if read is None:
        return
    for offset, value in event.fields["records"]:
        if offset < read.fields["start"] or book.excused(part, offset):
            continue
        if offset not in book.values_at[part]:
            message = f"{value} was read at offset {offset} of {part} and is not there in the end"
            yield Finding("read-beyond", message, (event, read))


@dataclass(frozen=True)
class _Observed:
    """What an event says of where a partition ends or starts. `question`: the request that it answers."""

    part: Part
    node: int
    value: int
    question: tuple[str, int] | None = None


def _end_of(book: Book, event: Event) -> _Observed | None:
    fields = event.fields
    if event.kind == "poll.ok":
        return _Observed(part_of(event), fields["node"], fields["high_watermark"], ("poll", fields["poll"]))
    if event.kind == "list_offsets.ok" and fields["timestamp"] == LATEST:
        return _Observed(part_of(event), fields["node"], fields["offset"], ("list", fields["list"]))
    if event.kind == "produce.ok" and fields["offset"] >= 0:
        request = book.requests[fields["request"]]
        return _Observed(request.part, fields["node"], request.offset + len(request.values))
    return None


def _start_of(book: Book, event: Event) -> _Observed | None:
    fields = event.fields
    if event.kind == "poll.ok":
        return _Observed(part_of(event), fields["node"], fields["log_start"], ("poll", fields["poll"]))
    if event.kind == "list_offsets.ok" and fields["timestamp"] == EARLIEST:
        return _Observed(part_of(event), fields["node"], fields["offset"], ("list", fields["list"]))
    if event.kind == "delete_records.ok":
        return _Observed(part_of(event), fields["node"], fields["start"])
    return None


def watermarks(book: Book) -> Iterator[Finding]:
    """Ends and starts that one broker tells never go back; those of ListOffsets are never behind any broker's."""
    yield from _never_back(book, "high-watermark", _end_of)
    yield from _never_back(book, "log-start", _start_of)


def _never_back(book: Book, name: str, observe: Callable[[Book, Event], _Observed | None]) -> Iterator[Finding]:
    """What is told must not be below what was told before it was asked."""
    everybody = -2
    floors: dict[tuple[Part, int], tuple[int, Event]] = {}
    begun: dict[tuple[str, int, Part], tuple[int, Event]] = {}
    for event in book.events:
        if event.kind == "poll.invoke":
            for topic, partition, _ in event.fields["positions"]:
                floor = floors.get(((topic, partition), event.fields["node"]))
                if floor is not None:
                    begun["poll", event.fields["poll"], (topic, partition)] = floor
            continue
        if event.kind == "list_offsets.invoke":
            floor = floors.get((part_of(event), everybody))
            if floor is not None:
                begun["list", event.fields["list"], part_of(event)] = floor
            continue
        told = observe(book, event)
        if told is None:
            continue
        if told.question is not None:
            before = begun.get((*told.question, told.part))
            if before is not None and told.value < before[0]:
                message = f"{told.part} was told to be at {told.value}, after {before[0]}"
                yield Finding(f"{name}-backwards", message, (before[1], event))
        for key in ((told.part, told.node), (told.part, everybody)):
            if key not in floors or told.value > floors[key][0]:
                floors[key] = told.value, event


def out_of_range(book: Book) -> Iterator[Finding]:
    """OFFSET_OUT_OF_RANGE at a position that a consumer came to, though nothing moved the start above it."""
    starts: dict[Part, int] = defaultdict(int)
    for event in book.events:
        fields = event.fields
        if event.kind == "delete_records.invoke":
            starts[part_of(event)] = max(starts[part_of(event)], fields["offset"])
        elif event.kind == "poll.out_of_range":
            part = part_of(event)
            if fields["offset"] >= starts[part] and not book.excused(part, fields["offset"]):
                message = f"{fields['client']} was told that offset {fields['offset']} of {part} is out of range"
                yield Finding("false-out-of-range", message, (event,))


CHECKS: tuple[Callable[[Book], Iterator[Finding]], ...] = (
    inconsistent_offsets,
    lost_writes,
    duplicates,
    unsent_values,
    reordered_sends,
    torn_batches,
    refusals,
    polls,
    watermarks,
    out_of_range,
    checker_bank.bank,
    checker_groups.commits,
    checker_groups.generations,
    checker_owners.owners,
    checker_owners.everything_owned,
    checker_live.liveness,
    checker_tuned.tuned,
)
