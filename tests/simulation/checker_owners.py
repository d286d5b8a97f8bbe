"""Who owned which partition when, in consumer groups: a partition is given only when nobody has it."""

from collections import defaultdict
from collections.abc import Iterator

from tests.simulation.book import Book, Finding, Part
from tests.simulation.history import Event

SESSION_SHARE = 0.9
"""Clocks of brokers may be fast: at least so much of a session a member that was heard is safe."""
SESSION_MS = 2_000
"""The session of consumer groups in every world."""


def owners(book: Book) -> Iterator[Finding]:
    """No partition is given to a member while another one, which the coordinator has heard within a session, has not
    given it up. A member that was not heard may have been removed without knowing."""
    if any(loss.topic == "__consumer_offsets" for loss in book.final.losses):
        return
    invoked: dict[int, int] = {}
    heard: dict[tuple[str, str], int] = {}
    owned: dict[tuple[str, Part], dict[str, Event]] = defaultdict(dict)
    for event in book.events:
        fields = event.fields
        match event.kind:
            case "group.beat.invoke":
                invoked[fields["beat"]] = event.at_ns
            case "group.beat.ok":
                heard[fields["group"], fields["client"]] = invoked[fields["beat"]]
            case "group.released":
                for part in fields["parts"]:
                    owned[fields["group"], tuple(part)].pop(fields["client"], None)
            case "group.given":
                for part in fields["parts"]:
                    holders = owned[fields["group"], tuple(part)]
                    for client, since in holders.items():
                        safe_ns = heard[fields["group"], client] + int(SESSION_SHARE * SESSION_MS * 1e6)
                        if client != fields["client"] and event.at_ns < safe_ns:
                            message = f"{part} was given to {fields['client']} while {client} had it"
                            yield Finding("given-before-released", message, (since, event))
                    holders[fields["client"]] = event
