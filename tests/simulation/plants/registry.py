"""How a planted bug is declared, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest.mock import patch

from tests.simulation.cluster import Options, World

Patches: TypeAlias = "Iterator[tuple[Any, str, Any]]"
"""(class or module, name, what it becomes)."""


@dataclass(frozen=True)
class Plant:
    """One bug, and the worlds that show it."""

    name: str
    make: Callable[[], Patches]
    options: Options

    @contextmanager
    def planted(self) -> Iterator[None]:
        """While this is entered the product has the bug."""
        with ExitStack() as stack:
            for owner, name, new in self.make():
                stack.enter_context(patch.object(owner, name, new))
            yield

    def caught_by(self, seeds: int) -> tuple[int, str] | None:
        """The first seed whose world notices the bug and runs clean without it, and what it notices.

        That a process stopped because of an error is not enough, unless the product asserts that it cannot be: it may
        be one of the plant's own.
        """
        for seed in range(seeds):
            with self.planted():
                findings = World(seed, self.options).run().findings
            told = [finding for finding in findings if " a bug: " not in finding or "AssertionError" in finding]
            if told and not World(seed, self.options).run().findings:
                return seed, told[0].splitlines()[0]
        return None


PLAIN: dict[str, Any] = {"tables": 0.0, "tuned": 0.0, "settings": {"tidelog.merge.enable": "false"}}
"""Bugs show sooner where less goes on."""

PLANTS: dict[str, Plant] = {}
"""By name; those that a world of one broker shows."""

CLUSTER_PLANTS: dict[str, Plant] = {}
"""Those that take several brokers to show."""


MOVE_PLANTS: dict[str, Plant] = {}
"""Those of planned moves."""

OBJECT_PLANTS: dict[str, Plant] = {}
"""Those of the object WAL."""

TRANSACTION_PLANTS: dict[str, Plant] = {}
"""Those of transactions, which worlds with a bank show."""


def _register(among: dict[str, Plant], options: Options) -> Callable[[Callable[[], Patches]], None]:
    def register(make: Callable[[], Patches]) -> None:
        among[make.__name__] = Plant(make.__name__, make, options)

    return register


def registered_in(among: dict[str, Plant], **defaults: Any) -> Callable[..., Callable[[Callable[[], Patches]], None]]:
    """A decorator for bugs of an area, whose worlds have these options; more of them may be given with each bug.

    It registers a bug under the name of the generator that makes its patches. `faults` is what the bug needs, where
    those of every world would take many seeds: a bug is to show in one of three worlds or more, because every change of
    how worlds are drawn makes other worlds.
    """

    def area_plant(**options: Any) -> Callable[[Callable[[], Patches]], None]:
        return _register(among, Options(**PLAIN | defaults | options))

    return area_plant


plant = registered_in(PLANTS, brokers=1, wal="volume", faults_s=12)
cluster_plant = registered_in(CLUSTER_PLANTS, brokers=3, wal="volume", faults_s=12)
