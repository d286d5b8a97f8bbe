"""Whether every broker goes by what operators were told is set. Pure.

- `tune.ask {ask, knob, value}`: it is asked for; `tune.ok {ask}`: it is acknowledged; `tune.refused {ask, error, why}`.
  What was asked for without an answer may be set, now or later. No value is asked for again once it is acknowledged.
- `tune.seen {node, knob, value}`: what a broker goes by when all is quiet.
- `tune.probe {node, topic, partition, error, throttled}`: what a leader answered to a batch of `PROBE_BYTES`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.simulation.book import Book, Finding
from tests.simulation.history import Event
from tests.simulation.tuners import OF_TOPIC, PROBE_BYTES, QUOTA, SLOW

TOO_LARGE = "MESSAGE_TOO_LARGE"


def may_be(events: Iterable[Event]) -> dict[str, set[int]]:
    """What each knob may be at in the end: the value acknowledged last, and whatever nobody knows the outcome of."""
    asked: dict[int, Event] = {}
    last: dict[str, int] = {}
    for event in events:
        fields = event.fields
        if event.kind == "tune.ask":
            asked[fields["ask"]] = event
        elif event.kind == "tune.ok":
            del asked[fields["ask"]]
            last[fields["knob"]] = fields["value"]
        elif event.kind == "tune.refused":
            del asked[fields["ask"]]
    found: dict[str, set[int]] = defaultdict(set)
    for event in asked.values():
        if event.fields["knob"] in last:
            found[event.fields["knob"]].add(event.fields["value"])
    for knob, value in last.items():
        found[knob].add(value)
    return found


def tuned(book: Book) -> Iterator[Finding]:
    """Nothing is judged where nobody set anything."""
    allowed = may_be(book.events)
    told: dict[str, Event] = {}
    for event in book.events:
        fields = event.fields
        if event.kind == "tune.refused":
            yield Finding("tune-refused", f"{fields['knob']} could not be set: {fields['error']}", (event,))
        elif event.kind == "tune.seen" and fields["knob"] in allowed:
            values = allowed[fields["knob"]]
            first = told.setdefault(fields["knob"], event)
            if fields["value"] not in values:
                message = f"broker {fields['node']} has {fields['knob']} at {fields['value']}, not {sorted(values)}"
                yield Finding("not-tuned", message, (event,))
            elif fields["value"] != first.fields["value"]:
                message = f"brokers {first.fields['node']} and {fields['node']} go by different {fields['knob']}"
                yield Finding("tuned-differently", message, (first, event))
        elif event.kind == "tune.probe":
            yield from _probed(event, allowed)


def _probed(event: Event, allowed: dict[str, set[int]]) -> Iterator[Finding]:
    fields = event.fields
    sizes, rates = allowed.get(OF_TOPIC.name), allowed.get(QUOTA.name)
    refused = fields["error"] == TOO_LARGE
    if fields["error"] not in ("NONE", TOO_LARGE):
        yield Finding("probe-refused", f"broker {fields['node']} answered {fields['error']} to a probe", (event,))
    elif sizes is not None and refused not in {size < PROBE_BYTES for size in sizes}:
        message = f"broker {fields['node']} keeps another {OF_TOPIC.key} than {sorted(sizes)}"
        yield Finding("not-tuned", message, (event,))
    if rates is not None and fields["throttled"] not in {rate <= SLOW[1] for rate in rates}:
        message = f"broker {fields['node']} keeps another {QUOTA.key} than {sorted(rates)}"
        yield Finding("not-tuned", message, (event,))
