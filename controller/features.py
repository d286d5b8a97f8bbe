"""Finalized features (KIP-584): what of Kafka's contract is in force in this cluster, whatever its brokers could do.

`metadata.version` stands for Kafka's metadata records, which are not ours: its tools want to see one, so the one of the
Kafka whose contract this is, and it never changes. The others are facts and need format level 3; a feature without one
is at 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controller.admin_facts import FeaturesFinalized

METADATA_VERSION, TRANSACTION_VERSION, GROUP_VERSION = "metadata.version", "transaction.version", "group.version"


class Versions(NamedTuple):
    """The lowest and the highest level of a feature that this version of the broker knows."""

    least: int
    most: int


SUPPORTED = {METADATA_VERSION: Versions(30, 30), TRANSACTION_VERSION: Versions(0, 2), GROUP_VERSION: Versions(0, 1)}
"""30 is 4.3-IV0."""

FORMAT_LEVEL = 3
"""The format level from which on features are facts."""

NEW_CLUSTER = FeaturesFinalized(((TRANSACTION_VERSION, 2), (GROUP_VERSION, 1)))
"""What a cluster begins with, as one that `kafka-storage format` makes."""


@dataclass(slots=True)
class FeatureTable:
    """Levels by feature name; those at 0 are not here."""

    levels: dict[str, int] = field(default_factory=lambda: {METADATA_VERSION: SUPPORTED[METADATA_VERSION].most})

    def finalize(self, fact: FeaturesFinalized) -> None:
        """Levels from here on."""
        for name, level in fact.levels:
            if level:
                self.levels[name] = level
            else:
                self.levels.pop(name, None)

    def rows(self) -> Iterator[list[Any]]:
        """Snapshot rows."""
        for name, level in self.levels.items():
            if name != METADATA_VERSION:
                yield [name, level]

    def load(self, row: tuple[Any, ...]) -> None:
        """Adds a level from its snapshot row."""
        self.levels[row[0]] = row[1]
