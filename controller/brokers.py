"""Incarnations of brokers: registration, session, last committed seal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.facts import BrokerRegistered, Listener, SessionEnded
from storage.seal import CommitAnswer

NO_SEAL = CommitAnswer((), 0)


@dataclass(slots=True)
class Broker:
    """One incarnation. `alive` until its session was ended by a fact; the end is final.

    `last_answer` is the answer to seal `last_seal`; `last_heard_ms` (wall time) is the controller's last sign of
    life, known once the session ended.
    """

    node_id: int
    incarnation: int
    boot_id: str
    rack: str | None
    listeners: tuple[Listener, ...]
    format_level: int
    registered_ms: int
    alive: bool = True
    end_reason: str = ""
    last_heard_ms: int = 0
    last_seal: int = 0
    last_answer: CommitAnswer = NO_SEAL


@dataclass(slots=True)
class BrokerTable:
    """`brokers`: the newest incarnation of each node; `incarnations`: those that still matter, by incarnation.

    `closed`: incarnations that ended, were followed by a newer one, and whose WAL instances are all retired or lost,
    with their node ids, in the order in which they closed. What they left in the bucket may be deleted because they are
    known to be closed. Then they may be forgotten. An incarnation is refused for ever once it ended: a forgotten one is
    told by its registration, which was made before the entry that registered it (`registered_at`; of those that are
    forgotten, `forgotten_at` is the highest).
    """

    brokers: dict[int, Broker] = field(default_factory=dict)
    incarnations: dict[int, Broker] = field(default_factory=dict)
    closed: dict[int, int] = field(default_factory=dict)
    registered_at: dict[int, int] = field(default_factory=dict)
    forgotten_at: int = 0

    def register(self, fact: BrokerRegistered, position: int | None) -> None:
        """Adds the incarnation as the newest of its node; `position` of the entry, None: it cannot be forgotten."""
        assert fact.incarnation not in self.incarnations and fact.incarnation not in self.closed
        older = self.brokers.get(fact.node_id)
        assert older is None or not older.alive, f"node {fact.node_id} has a live session"
        broker = Broker(
            fact.node_id,
            fact.incarnation,
            fact.boot_id,
            fact.rack,
            fact.listeners,
            fact.format_level,
            fact.now_ms,
        )
        self.brokers[fact.node_id] = self.incarnations[fact.incarnation] = broker
        if position is not None:
            self.registered_at[fact.incarnation] = position

    def note_registered(self, position: int) -> None:
        """All that are known were registered at `position` or before."""
        self.registered_at = dict.fromkeys([*self.closed, *self.incarnations], position)

    def end(self, fact: SessionEnded) -> None:
        """The session is over."""
        broker = self.incarnations[fact.incarnation]
        assert broker.alive
        broker.alive, broker.end_reason, broker.last_heard_ms = False, fact.reason, fact.last_heard_ms

    def close(self, incarnation: int) -> None:
        """Forgets all but the number of an ended incarnation that a newer one followed."""
        broker = self.incarnations.get(incarnation)
        if broker is not None and not broker.alive and self.brokers.get(broker.node_id) is not broker:
            del self.incarnations[incarnation]
            self.closed[incarnation] = broker.node_id

    def unregister(self, node_id: int) -> None:
        """Forgets a node whose session ended and whose WAL instances are all closed."""
        broker = self.brokers.pop(node_id)
        assert not broker.alive
        self.close(broker.incarnation)

    def forget(self, incarnations: Iterable[int], position: int) -> None:
        """These closed ones; the last of them was registered at `position` or before."""
        for incarnation in incarnations:
            del self.closed[incarnation]
            self.registered_at.pop(incarnation, None)
        self.forgotten_at = max(self.forgotten_at, position)

    def is_alive(self, incarnation: int) -> bool:
        """Whether the session of the incarnation stands."""
        broker = self.incarnations.get(incarnation)
        return broker is not None and broker.alive

    def alive(self) -> list[Broker]:
        """Live brokers by node id."""
        return [self.brokers[node_id] for node_id in sorted(self.brokers) if self.brokers[node_id].alive]

    def broker_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the incarnations; of one node the newest comes last."""
        for b in self.incarnations.values():
            yield [
                *[b.node_id, b.incarnation, b.boot_id, b.rack, b.listeners, b.format_level, b.registered_ms],
                *[b.alive, b.end_reason, b.last_heard_ms, b.last_seal, *b.last_answer],
            ]

    def load_broker(self, row: tuple[Any, ...]) -> None:
        """Adds an incarnation from its snapshot row."""
        *head, refused, position = row
        head[4] = tuple(Listener(*listener) for listener in head[4])
        fields = [*head, CommitAnswer(refused, position)]
        broker = Broker(*fields)
        self.brokers[broker.node_id] = self.incarnations[broker.incarnation] = broker

    def closed_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the closed incarnations."""
        for incarnation, node_id in self.closed.items():
            yield [incarnation, node_id]

    def load_closed(self, row: tuple[Any, ...]) -> None:
        """Adds a closed incarnation from its snapshot row."""
        self.closed[row[0]] = row[1]

    def registered_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of `registered_at`."""
        for incarnation, position in self.registered_at.items():
            yield [incarnation, position]

    def load_registered(self, row: tuple[Any, ...]) -> None:
        """Adds from a snapshot row when an incarnation was registered."""
        self.registered_at[row[0]] = row[1]

    def forgotten_rows(self) -> Iterator[list[Any]]:
        """The snapshot row of `forgotten_at`."""
        if self.forgotten_at:
            yield [self.forgotten_at]

    def load_forgotten(self, row: tuple[Any, ...]) -> None:
        """Takes `forgotten_at` from its snapshot row."""
        (self.forgotten_at,) = row
