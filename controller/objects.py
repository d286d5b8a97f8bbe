"""Objects of the bucket that committed ranges name: reference counts of sealed objects, and the doomed list.

Ranges name an object by its number (u32, given in commit order, never reused), so that a range stays small. What merge
jobs made holds one range each and is named by job and log; it comes here only to be doomed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class ObjectState:
    """A named object: `refs` ranges lie in it; `committed_ms` is the wall time of its commit."""

    key: str
    size: int
    refs: int
    committed_ms: int


@dataclass(slots=True)
class ObjectTable:
    """`named` by number and `numbers` by key: never deleted. `doomed`, key to size: un-named, to be deleted."""

    named: dict[int, ObjectState] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    doomed: dict[str, int] = field(default_factory=dict)
    next_number: int = 0

    def commit(self, key: str, size: int, refs: int, now_ms: int) -> int:
        """Names an object `refs` times, or dooms it if nothing does; returns its number."""
        assert key not in self.numbers and key not in self.doomed, f"object {key} was committed before"
        number = self.next_number
        self.next_number += 1
        if refs:
            self.named[number] = ObjectState(key, size, refs, now_ms)
            self.numbers[key] = number
        else:
            self.doomed[key] = size
        return number

    def release(self, numbers: Iterable[int]) -> None:
        """One reference less for each; who has none left is doomed."""
        for number in numbers:
            found = self.named[number]
            found.refs -= 1
            if not found.refs:
                del self.named[number]
                del self.numbers[found.key]
                self.doomed[found.key] = found.size

    def doom(self, key: str, size: int) -> None:
        """An object that has no number here is not named any more."""
        assert key not in self.numbers
        self.doomed[key] = size

    def deleted(self, keys: Iterable[str]) -> None:
        """They are gone from the bucket."""
        for key in keys:
            self.doomed.pop(key, None)

    def named_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the named objects."""
        for number, x in self.named.items():
            yield [number, x.key, x.size, x.refs, x.committed_ms]

    def load_named(self, row: tuple[Any, ...]) -> None:
        """Adds a named object from its snapshot row."""
        number, *fields = row
        found = self.named[number] = ObjectState(*fields)
        self.numbers[found.key] = number

    def doomed_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the doomed list."""
        for key, size in self.doomed.items():
            yield [key, size]

    def load_doomed(self, row: tuple[Any, ...]) -> None:
        """Adds a doomed object from its snapshot row."""
        self.doomed[row[0]] = row[1]
