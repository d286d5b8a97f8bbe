"""What worlds are drawn from, and what may be fixed instead."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tests.simulation.client import Part
from tests.simulation.history import History

PORT = 9092
TOPICS = {"orders": 2, "events": 1}
PARTS: list[Part] = [(topic, number) for topic, count in TOPICS.items() for number in range(count)]
OFFSETS_PARTS: list[Part] = [("__consumer_offsets", number) for number in range(2)]
GROUP = "readers"
LOADS = (
    ((8, 200), (50, 400)),
    ((8, 200), (10, 150)),
    ((8, 4_000), (50, 400)),
    ((2_000, 30_000), (50, 300)),  # fills the tails and the WAL while the store is away
)
"""(bytes per value, ms between batches) of the idempotent producers."""
BROKERS = (1, 2, 3, 3, 3)
BANKS = 0.15
"""Of how many worlds the clients are those of a bank."""
METADATA = ((1_000, 1_000), (1_000, 1_000), (40, 20), (12, 4))
CLOCK_RATES = ((1.0, 1.0, 0.998, 1.002), (1.0, 1.0, 0.998, 1.002), (0.955, 1.0, 1.045))
"""Among what the rates of the machines' clocks are drawn; 10 % apart at most."""
FAULTS_S = (8, 12, 20)
"""Among what the time in which faults happen is drawn; they are as many in every one."""


WAL_KINDS = {"volume": 3, "objects": 1, "both": 1}
"""Where acknowledged records lie, and how often: on disks; in the bucket, without any disk; one topic in either."""

GROUPS = ("classic", "classic", "consumer", "mixed")
"""Among what the protocol of the group's members is drawn."""


@dataclass(frozen=True)
class Options:
    """What does not come from the seed."""

    brokers: int | None = None
    """None: drawn, mostly several."""
    layout: str | None = None
    """One of `machines.LAYOUTS`; None: drawn."""
    session_ms: int | None = None
    """None: drawn."""
    clock_rates: tuple[float, ...] | None = None
    """Among what the rates of the machines' clocks are drawn; None: drawn from `CLOCK_RATES`."""
    faults_s: int | None = None
    """None: drawn."""
    faults: dict[str, int] | None = None
    """Kinds and weights; None: all that such a cluster may meet; empty: a world without faults."""
    late_s: int | None = None
    """When the last broker starts for the first time; None: with the others."""
    load: int | None = None
    """Which of `LOADS`; None: drawn."""
    metadata: tuple[int, int] | None = None
    """After how many entries of the metadata log a snapshot is taken, and how many of those before it stay; None:
    drawn from `METADATA`."""
    bank: bool | None = False
    """Transactional clients, those of `bankers`, instead of the usual ones; None: drawn."""
    rereaders: int = 0
    """So many more consumers read everything again and again, a little at a time."""
    wal: str | None = None
    """One of `WAL_KINDS`; None: drawn."""
    settings: dict[str, str] | None = None
    """Of every broker, in the place of what the seed draws."""
    log_level: int = logging.WARNING
    moves: float = 0.5
    """How likely it is in a world of several brokers that an operator moves leadership about, and drains brokers."""
    tables: float = 0.3
    """How likely it is that there is a compacted topic too."""
    tuned: float = 0.15
    """How likely it is that an operator changes configs and quotas."""
    groups: str | None = None
    """One of `GROUPS`; None: drawn."""
    upgrade: bool = False
    """The version before began the cluster, and an operator upgrades it."""


@dataclass
class Result:
    """What came of a run."""

    seed: int
    findings: list[str]
    history: History
    counters: dict[str, int]

    @property
    def digest(self) -> str:
        """A hash of the history."""
        return self.history.digest()
