"""Who owned which partition when, in consumer groups: a partition is given only when nobody has it, and if nothing
disturbs somebody gets it.
"""

from collections import defaultdict
from collections.abc import Iterator

from tests.simulation.book import Book, Finding, Part
from tests.simulation.history import Event

SESSION_SHARE = 0.9
"""Clocks of brokers may be fast: at least so much of a session a member that was heard is safe."""
SESSION_MS = 2_000
"""The session of consumer groups in every world."""
DISTURBED_NS = 20_000_000_000
"""So long after a fault began it may still disturb."""
SETTLED_NS = 8_000_000_000
"""A group whose members and subscriptions stay as they are has given everything to somebody after so long."""


def owners(book: Book) -> Iterator[Finding]:
    """No partition is given to a member while another one, which the coordinator has heard within a session, has not
    given it up. A member that was not heard may have been removed without knowing, and so may one that looks only now
    at an answer that came long ago."""
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
                        both = heard[fields["group"], client], heard[fields["group"], fields["client"]]
                        safe_ns = min(both) + int(SESSION_SHARE * SESSION_MS * 1e6)
                        if client != fields["client"] and event.at_ns < safe_ns:
                            message = f"{part} was given to {fields['client']} while {client} had it"
                            yield Finding("given-before-released", message, (since, event))
                    holders[fields["client"]] = event


class _Group:
    """One group at a moment: what its members subscribe to, what they own, and when they were heard."""

    def __init__(self) -> None:
        self.wanted: dict[str, frozenset[Part]] = {}
        self.owned: dict[str, set[Part]] = defaultdict(set)
        self.heard_ns: dict[str, int] = {}
        self.changed_ns = 0

    def heard(self, client: str, at_ns: int) -> None:
        """A heartbeat of a member was answered."""
        if at_ns > self.heard_ns.get(client, -DISTURBED_NS) + SESSION_MS * 1_000_000:
            self.changed_ns = at_ns
        self.heard_ns[client] = at_ns

    def unowned(self, now_ns: int) -> set[Part]:
        """What somebody subscribes to and nobody has."""
        alive = [client for client, at_ns in self.heard_ns.items() if now_ns <= at_ns + SESSION_MS * 1_000_000]
        wanted = {part for client in alive for part in self.wanted.get(client, ())}
        return wanted.difference(*(self.owned[client] for client in alive))


def everything_owned(book: Book) -> Iterator[Finding]:
    """Where nothing disturbs, what members subscribe to is given to somebody. Groups with classic members are left
    out."""
    modern = {event.fields["client"] for event in book.events if event.kind == "group.subscribed"}
    joined = [event.fields for event in book.events if event.kind == "group.joined"]
    mixed = {fields["group"] for fields in joined if fields["client"] not in modern}
    groups: dict[str, _Group] = defaultdict(_Group)
    disturbed_ns, told = -DISTURBED_NS, set[tuple[str, Part]]()
    for event in book.events:
        fields = event.fields
        if event.kind.startswith("fault.") or event.kind in ("broker.end", "broker.ready", "stop"):
            disturbed_ns = event.at_ns
        if not event.kind.startswith("group.") or fields["group"] in mixed:
            continue
        group = groups[fields["group"]]
        match event.kind:
            case "group.subscribed":
                parts = frozenset(map(tuple, fields["parts"]))
                if group.wanted.get(fields["client"]) != parts:
                    group.wanted[fields["client"]], group.changed_ns = parts, event.at_ns
            case "group.released":
                group.owned[fields["client"]] -= set(map(tuple, fields["parts"]))
                group.changed_ns = event.at_ns  # it goes to somebody else, or the member leaves
            case "group.given":
                group.owned[fields["client"]] |= set(map(tuple, fields["parts"]))
            case "group.beat.ok":
                group.heard(fields["client"], event.at_ns)
                calm = event.at_ns > disturbed_ns + DISTURBED_NS and event.at_ns > group.changed_ns + SETTLED_NS
                for part in sorted(group.unowned(event.at_ns)) if calm else ():
                    if (fields["group"], part) not in told:
                        told.add((fields["group"], part))
                        yield Finding("owned-by-nobody", f"{part} is given to nobody in {fields['group']}", (event,))
