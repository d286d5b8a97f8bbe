"""Liveness: once faults have stopped, what is asked for happens within a bound."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.simulation.book import Book, Finding, Part, part_of
from tests.simulation.history import Event

LATE_NS = 600_000_000
"""How much later than a record's acknowledgement a waiting poll may be answered, when nothing disturbs."""


DISTURBING = ("fault.", "broker.end", "stop")
"""How events begin after which polls may take longer."""


def liveness(book: Book) -> Iterator[Finding]:
    """Nothing is judged unless the world says when it became quiet."""
    quiet = book.final.quiet_from_ns
    if quiet is None:
        return
    yield from _unread(book)
    yield from _silent(book, quiet)
    yield from _late_polls(book, max(quiet, book.final.store_quiet_from_ns))


def _unread(book: Book) -> Iterator[Finding]:
    """Whatever was written to can be read to its end."""
    touched: dict[Part, Event] = {}
    for request in book.requests.values():
        touched.setdefault(request.part, request.invoke)
    for part, event in touched.items():
        if part not in book.reads:
            yield Finding("not-readable", f"{part} could not be read to its end", (event,))
    for part, read in book.reads.items():
        position, end = read.fields["position"], read.fields["end"]
        if position < end and not book.excused(part, position):
            yield Finding("not-readable", f"{part} ends at {end}, and nothing follows {position}", (read,))


Waiting = tuple[str, str, Any]
"""What is asked for, the client, and of what."""


def _silent(book: Book, quiet: int) -> Iterator[Finding]:
    """Who asks when all is quiet gets an answer within the bound."""
    waiting: dict[Waiting, Event] = {}
    late: dict[Waiting, Event] = {}
    bound = book.final.live_within_ns
    ends = book.events[-1].at_ns if book.events else 0
    for event in book.events:
        if event.kind in GONE:
            for key in [key for key in waiting if key[1] == event.fields["client"] and key[0] in GONE[event.kind]]:
                del waiting[key]
        for key in _asked(event):
            waiting.setdefault(key, event)
        for key in _answered(book, event):
            since = waiting.pop(key, None)
            if since is not None and event.at_ns > max(since.at_ns, quiet) + bound:
                late[key] = since
    for key, event in waiting.items():
        if ends > max(event.at_ns, quiet) + bound:
            late[key] = event
    for (what, client, which), event in late.items():
        message = f"{what} of {which} by {client} had no answer for {bound / 1e9:.0f} s without faults"
        yield Finding("stalled", message, (event,))


GONE = {
    "client.end": ("produce", "poll", "commit"),
    "fault.client_kill": ("produce", "poll", "commit"),
    "group.joined": ("poll", "commit"),
}
"""Events after which a client waits no more, and for what: it is gone, or its partitions are others'."""


def _asked(event: Event) -> list[Waiting]:
    kind, fields = event.kind, event.fields
    if kind == "produce.invoke":
        return [("produce", fields["client"], part_of(event))]
    if kind == "poll.invoke":
        return [("poll", fields["client"], (topic, partition)) for topic, partition, _ in fields["positions"]]
    if kind == "commit.invoke":
        return [("commit", fields["client"], fields["group"])]
    return []


def _answered(book: Book, event: Event) -> list[Waiting]:
    kind, fields = event.kind, event.fields
    if kind == "produce.ok":
        return [("produce", fields["client"], part_of(event))]
    if kind in ("produce.fail", "produce.unknown") and book.requests[fields["request"]].producer is None:
        return [("produce", fields["client"], part_of(event))]  # the end of it: it may never send there again
    if kind in ("poll.ok", "assign"):
        return [("poll", fields["client"], part_of(event))]
    if kind == "commit.ok":
        return [("commit", fields["client"], fields["group"])]
    return []


def _late_polls(book: Book, quiet: int) -> Iterator[Finding]:
    """A poll that waits is answered soon after there is something to read. Judged before the first fault, and again
    for polls that begin when all is quiet.

    One that asks for what was there before does not wait: it reads, from the bucket perhaps, which may take a while.
    """
    ends: dict[Part, int] = defaultdict(int)
    pending: dict[int, Event] = {}
    due: dict[int, tuple[int, Event]] = {}
    waits: dict[Part, dict[int, int]] = defaultdict(dict)
    disturbed = False
    for event in book.events:
        if event.kind.startswith(DISTURBING) and event.at_ns < quiet:
            disturbed = True
            pending.clear()
            due.clear()
            waits.clear()
        fields = event.fields
        if event.kind == "produce.ok":
            request = book.requests[fields["request"]]
            ends[request.part] = max(ends[request.part], request.offset + len(request.values))
        if disturbed and event.at_ns < quiet:
            continue
        if event.kind == "poll.invoke" and fields["min_bytes"] <= 1:
            if any(offset < ends[topic, partition] for topic, partition, offset in fields["positions"]):
                continue
            pending[fields["poll"]] = event
            for topic, partition, offset in fields["positions"]:
                waits[topic, partition][fields["poll"]] = offset
        elif event.kind in ("poll.ok", "poll.fail", "poll.refused", "poll.out_of_range"):
            poll = fields["poll"]
            invoke = pending.pop(poll, None)
            if invoke is None:
                continue
            for topic, partition, _ in invoke.fields["positions"]:
                waits[topic, partition].pop(poll, None)
            since = due.pop(poll, None)
            if since is not None and event.kind == "poll.ok" and event.at_ns > since[0] + LATE_NS:
                message = f"{fields['client']} waited {(event.at_ns - since[0]) / 1e9:.1f} s for what was there"
                yield Finding("late-poll", message, (invoke, since[1], event))
        elif event.kind == "produce.ok":
            request = book.requests[fields["request"]]
            for poll, offset in waits[request.part].items():
                if offset < request.offset + len(request.values):
                    due.setdefault(poll, (event.at_ns, event))
