"""How a planted bug is declared, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest.mock import patch

from tests.simulation.cluster import Options

Patches: TypeAlias = "Iterator[tuple[Any, str, Any]]"
"""(class or module, name, what it becomes)."""


@dataclass(frozen=True)
class Plant:
    """One bug, and the worlds that show it."""

    name: str
    make: Callable[[], Patches]
    options: Options
    first: int
    """The seed at which the search begins."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """While this is entered the product has the bug."""
        with ExitStack() as stack:
            for owner, name, new in self.make():
                stack.enter_context(patch.object(owner, name, new))
            yield


NO_MERGING = {"tidelog.merge.enable": "false"}
"""Bugs of other areas show sooner where less goes on."""

PLANTS: dict[str, Plant] = {}
"""By name; those that a world of one broker shows."""

CLUSTER_PLANTS: dict[str, Plant] = {}
"""Those that take several brokers to show."""


MOVE_PLANTS: dict[str, Plant] = {}
"""Those of planned moves."""

OBJECT_PLANTS: dict[str, Plant] = {}
"""Those of the object WAL."""


def _register(among: dict[str, Plant], first: int, options: Options) -> Callable[[Callable[[], Patches]], None]:
    def register(make: Callable[[], Patches]) -> None:
        among[make.__name__] = Plant(make.__name__, make, options, first)

    return register


def plant(*, first: int = 0, **options: Any) -> Callable[[Callable[[], Patches]], None]:
    """Register a bug under the name of the generator that makes its patches.

    `first`: the seed at which the search for a world that shows it begins, where from seed 0 on it would cost many
    worlds each time. `options`: those of the worlds; `faults` is what the bug needs, where those of every world would
    take too many seeds.
    """
    return _register(
        PLANTS, first, Options(**{"brokers": 1, "wal": "volume", "faults_s": 12, "settings": NO_MERGING} | options)
    )


def cluster_plant(*, first: int = 0, **options: Any) -> Callable[[Callable[[], Patches]], None]:
    """The same for `CLUSTER_PLANTS`."""
    return _register(
        CLUSTER_PLANTS,
        first,
        Options(**{"brokers": 3, "wal": "volume", "faults_s": 12, "settings": NO_MERGING} | options),
    )


def registered_in(among: dict[str, Plant], **defaults: Any) -> Callable[..., Callable[[Callable[[], Patches]], None]]:
    """A decorator as `plant` for bugs of another area, whose worlds have these options."""

    def area_plant(*, first: int = 0, **options: Any) -> Callable[[Callable[[], Patches]], None]:
        return _register(among, first, Options(**{"settings": NO_MERGING} | defaults | options))

    return area_plant
