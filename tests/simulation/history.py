"""What happened in one run: a list of events that clients and faults append to, and the checker judges."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One thing that happened at a virtual time. `fields` are plain values: numbers, strings, tuples and lists."""

    at_ns: int
    kind: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        told = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.at_ns / 1e9:12.6f} {self.kind} {told}"


class History:
    """Events in the order in which they were recorded. `now_ns` is the world's clock."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.events: list[Event] = []
        self._now_ns = now_ns

    def record(self, kind: str, **fields: Any) -> None:
        """Append an event that happens now."""
        self.events.append(Event(self._now_ns(), kind, fields))

    def digest(self) -> str:
        """A hash of everything recorded, for comparing two runs of one seed."""
        hashed = hashlib.sha256()
        for event in self.events:
            hashed.update(f"{event}\n".encode())
        return hashed.hexdigest()

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)
