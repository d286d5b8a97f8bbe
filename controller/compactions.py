"""Passes of compaction: the open ones, and how far each log was cleaned."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.facts import CompactionOpened

_CLEAN, _OPEN = range(2)


@dataclass(slots=True)
class Compaction:
    """An open pass: what `CompactionOpened` said, and how far it is.

    Its outputs are numbered from `number` on, `outputs` of them at most; `done` are named, and cover nothing from
    `position` on.
    """

    number: int
    outputs: int
    node_id: int
    incarnation: int
    log_id: int
    dirty_from: int
    bound: int
    done: int = 0
    position: int = 0

    @property
    def next_output(self) -> int:
        """The number of the output that may be named next."""
        return self.number + self.done


@dataclass(slots=True)
class CompactionTable:
    """`open`: passes by number. `clean`: by log, the offset below which it was cleaned; logs that never were are not
    here."""

    open: dict[int, Compaction] = field(default_factory=dict)
    clean: dict[int, int] = field(default_factory=dict)

    def begin(self, fact: CompactionOpened) -> None:
        """A new pass."""
        self.open[fact.job] = Compaction(
            fact.job, fact.outputs, fact.node_id, fact.incarnation, fact.log_id, fact.dirty_from, fact.bound
        )

    def of_log(self, log_id: int) -> Compaction | None:
        """The open pass over a log: there is one at most."""
        return next((one for one in self.open.values() if one.log_id == log_id), None)

    def of_incarnation(self, incarnation: int) -> list[Compaction]:
        """The open passes that it does, the oldest first."""
        return [one for one in self.open.values() if one.incarnation == incarnation]

    def forget(self, log_id: int) -> None:
        """The log is gone."""
        self.clean.pop(log_id, None)

    def rows(self) -> Iterator[list[Any]]:
        """Snapshot rows."""
        for log_id, end in self.clean.items():
            yield [_CLEAN, log_id, end]
        for one in self.open.values():
            yield [
                *[_OPEN, one.number, one.outputs, one.node_id, one.incarnation, one.log_id],
                *[one.dirty_from, one.bound, one.done, one.position],
            ]

    def load(self, row: tuple[Any, ...]) -> None:
        """Adds what a snapshot row says."""
        kind, *fields = row
        if kind == _CLEAN:
            self.clean[fields[0]] = fields[1]
        elif kind == _OPEN:
            self.open[fields[0]] = Compaction(*fields)
        else:
            raise ValueError(f"row {kind} of compactions")
