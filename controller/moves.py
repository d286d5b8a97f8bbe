"""Which logs are to move where, which nodes get no new logs, and which node an operator last chose for a log."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.facts import BrokerLeaving, LeadersPreferred, MovesCancelled, MovesRequested, NodeDrained


@dataclass(slots=True)
class MoveTable:
    """`wanted`: log id -> node id. `explicit`: those of them that an operator asked for. `drained`: node ids.
    `leaving`: incarnations that are about to stop.

    `preferred`: log id -> the node where the log was created or that an operator last chose; a log without is at home
    where it is.
    """

    wanted: dict[int, int] = field(default_factory=dict)
    explicit: set[int] = field(default_factory=set)
    drained: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    preferred: dict[int, int] = field(default_factory=dict)

    def request(self, fact: MovesRequested) -> None:
        """Wishes; each replaces what was wanted of its log."""
        for log_id, node_id in fact.moves:
            self.wanted[log_id] = node_id
            if fact.explicit:
                self.explicit.add(log_id)
            else:
                self.explicit.discard(log_id)

    def cancel(self, fact: MovesCancelled) -> None:
        """These logs stay."""
        self._withdraw(fact.log_ids)

    def drain(self, fact: NodeDrained) -> None:
        """A node gets no logs any more, or does again."""
        if fact.undone:
            self.drained.discard(fact.node_id)
        else:
            self.drained.add(fact.node_id)
            self.lose(fact.node_id)

    def leave(self, fact: BrokerLeaving, node_id: int) -> None:
        """An incarnation of the node is about to stop."""
        self.leaving.add(fact.incarnation)
        self.lose(node_id)

    def end(self, incarnation: int, node_id: int) -> None:
        """The session of an incarnation of the node ended."""
        self.leaving.discard(incarnation)
        self.lose(node_id)

    def takes_none(self, node_id: int, incarnation: int) -> bool:
        """Whether the broker is to get no logs."""
        return node_id in self.drained or incarnation in self.leaving

    def prefer(self, fact: LeadersPreferred) -> None:
        """An operator chose leaders."""
        self.preferred.update(fact.logs)

    def lead(self, log_id: int, node_id: int) -> None:
        """The node leads the log from here on: a wish may be fulfilled."""
        if self.wanted.get(log_id) == node_id:
            del self.wanted[log_id]
            if log_id in self.explicit:
                self.explicit.discard(log_id)
                self.preferred[log_id] = node_id
        self.preferred.setdefault(log_id, node_id)

    def lose(self, node_id: int) -> None:
        """The node cannot take logs over now: nobody waits for it."""
        self._withdraw([log_id for log_id, target in self.wanted.items() if target == node_id])

    def forget(self, log_ids: Iterable[int]) -> None:
        """These logs are deleted."""
        for log_id in log_ids:
            self._withdraw((log_id,))
            self.preferred.pop(log_id, None)

    def _withdraw(self, log_ids: Iterable[int]) -> None:
        for log_id in log_ids:
            self.wanted.pop(log_id, None)
            self.explicit.discard(log_id)

    def wanted_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the wishes."""
        for log_id, node_id in self.wanted.items():
            yield [log_id, node_id, log_id in self.explicit]

    def load_wanted(self, row: tuple[Any, ...]) -> None:
        """Adds a wish from its snapshot row."""
        log_id, node_id, explicit = row
        self.wanted[log_id] = node_id
        if explicit:
            self.explicit.add(log_id)

    def drained_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the drained nodes."""
        for node_id in sorted(self.drained):
            yield [node_id]

    def load_drained(self, row: tuple[Any, ...]) -> None:
        """Adds a drained node from its snapshot row."""
        self.drained.add(row[0])

    def leaving_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the incarnations that are about to stop."""
        for incarnation in sorted(self.leaving):
            yield [incarnation]

    def load_leaving(self, row: tuple[Any, ...]) -> None:
        """Adds an incarnation that is about to stop from its snapshot row."""
        self.leaving.add(row[0])

    def preferred_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the preferred leaders."""
        for log_id, node_id in self.preferred.items():
            yield [log_id, node_id]

    def load_preferred(self, row: tuple[Any, ...]) -> None:
        """Adds a preferred leader from its snapshot row."""
        self.preferred[row[0]] = row[1]
