"""What tidelog holds itself to: ratios against a peer in the same run, and a few bounds. `first` must hold now.

A target looks at the medians of one row, `{peer: {metric: value}}`; None: what it needs was not measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Medians = Mapping[str, Mapping[str, float | None]]

US, CACHE, FSYNC, POSTPONED = "tidelog", "kafka-cache", "kafka-fsync", "tidelog-postponed"
FIRST, GOAL = "first", "goal"


@dataclass(frozen=True)
class Target:
    """`value(medians)` must be at least or at most `bound`."""

    row: str
    level: str
    what: str
    value: Callable[[Medians], float | None]
    at_least: bool
    bound: float
    unit: str = "x"

    def __str__(self) -> str:
        return f"{self.what} {'>=' if self.at_least else '<='} {self.bound:g}{self.unit}"

    def verdict(self, medians: Medians) -> "Verdict":
        """Whether it holds."""
        value = self.value(medians)
        holds = None if value is None else (value >= self.bound if self.at_least else value <= self.bound)
        return Verdict(self, value, holds)


@dataclass(frozen=True)
class Verdict:
    """A target with what was measured."""

    target: Target
    value: float | None
    holds: bool | None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.target}: not measured"
        value = f"{self.value:.2f}" if self.target.unit == "x" else f"{self.value:.4g}"
        return f"{self.target}: {value} {'holds' if self.holds else 'MISSED'}"


def figure(medians: Medians, peer: str, metric: str) -> float | None:
    """One median, if it was measured."""
    return medians.get(peer, {}).get(metric)


def quotient(above: float | None, below: float | None) -> float | None:
    """above / below, if both were measured and it says something."""
    return above / below if above is not None and below else None


def ratio(metric: str, peer: str, their_metric: str = "") -> Callable[[Medians], float | None]:
    """Ours over theirs."""
    return lambda medians: quotient(figure(medians, US, metric), figure(medians, peer, their_metric or metric))


def ours(metric: str) -> Callable[[Medians], float | None]:
    """Our own figure."""
    return lambda medians: figure(medians, US, metric)


def sealing_share(medians: Medians) -> float | None:
    """What sealing and uploading a GB costs, over the rest of what it costs."""
    whole, sealing = figure(medians, US, "cpu_s_per_gb"), figure(medians, POSTPONED, "sealing_cpu_s_per_gb")
    return None if whole is None or sealing is None else quotient(sealing, max(whole - sealing, 0.0))


def _at_least(row: str, level: str, metric: str, peer: str, bound: float) -> Target:
    return Target(row, level, f"{_NAMES[metric]} of {peer}", ratio(metric, peer), True, bound)


def _at_most(row: str, level: str, metric: str, peer: str, bound: float) -> Target:
    return Target(row, level, f"{_NAMES[metric]} of {peer}", ratio(metric, peer), False, bound)


_NAMES = {
    "mib_per_s": "throughput",
    "requests_per_s": "requests/s",
    "records_per_s": "records/s",
    "cpu_s_per_gb": "CPU-s/GB",
    "peak_rss_mb": "memory",
    "p50_ms": "p50",
    "p99_ms": "p99",
}

_RAW_16K = [
    target
    for row in ("D", "D4", "E")
    for target in (
        _at_least(row, FIRST, "requests_per_s", FSYNC, 4),
        _at_least(row, FIRST, "requests_per_s", CACHE, 1),
        _at_most(row, FIRST, "cpu_s_per_gb", FSYNC, 0.5),
        _at_least(row, GOAL, "requests_per_s", CACHE, 1.5),
        _at_most(row, GOAL, "cpu_s_per_gb", FSYNC, 0.25),
    )
]

TARGETS: tuple[Target, ...] = (
    _at_least("A", FIRST, "mib_per_s", FSYNC, 3.5),
    _at_least("A", FIRST, "mib_per_s", CACHE, 0.7),
    _at_most("A", FIRST, "cpu_s_per_gb", FSYNC, 0.4),
    _at_least("A", GOAL, "mib_per_s", CACHE, 1),
    _at_most("A", GOAL, "cpu_s_per_gb", CACHE, 1),
    _at_least("B", FIRST, "mib_per_s", FSYNC, 1.5),
    _at_least("B", GOAL, "mib_per_s", CACHE, 1.2),
    _at_least("C", FIRST, "mib_per_s", FSYNC, 1),
    _at_least("C", GOAL, "mib_per_s", CACHE, 1.2),
    *_RAW_16K,
    _at_least("T", FIRST, "requests_per_s", FSYNC, 5),
    _at_least("T", FIRST, "requests_per_s", CACHE, 0.8),
    _at_least("T", GOAL, "requests_per_s", CACHE, 1.3),
    _at_most("F", FIRST, "p99_ms", FSYNC, 1),
    _at_most("F", GOAL, "p99_ms", FSYNC, 0.4),
    Target("F", GOAL, "p50", ours("p50_ms"), False, 1, " ms"),
    _at_least("G", FIRST, "requests_per_s", FSYNC, 1.2),
    _at_least("G", GOAL, "requests_per_s", FSYNC, 1.4),
    _at_most("H", FIRST, "p50_ms", FSYNC, 1),
    Target("H", FIRST, "records above 100 ms", ours("waited"), False, 0, ""),
    _at_most("H", GOAL, "p50_ms", FSYNC, 0.8),
    Target("H", GOAL, "p99.9", ours("p999_ms"), False, 8, " ms"),
    _at_least("I", FIRST, "mib_per_s", FSYNC, 1),
    Target("I", FIRST, "cold throughput of kafka-fsync", ratio("cold_mib_per_s", FSYNC, "mib_per_s"), True, 0.5),
    _at_least("I", GOAL, "mib_per_s", FSYNC, 1.5),
    _at_most("I", GOAL, "cpu_s_per_gb", FSYNC, 1),
    Target("I", GOAL, "cold throughput of kafka-fsync", ratio("cold_mib_per_s", FSYNC, "mib_per_s"), True, 1),
    _at_most("J", FIRST, "peak_rss_mb", CACHE, 0.35),
    _at_most("J", GOAL, "peak_rss_mb", CACHE, 0.25),
    Target("K", FIRST, "cost of sealing beside the rest of A", sealing_share, False, 1),
    Target("K", GOAL, "cost of sealing beside the rest of A", sealing_share, False, 0.5),
    Target("L", FIRST, "fell behind", ours("behind"), False, 0, ""),
    Target("L", FIRST, "p99", ours("p99_ms"), False, 30, " ms"),
    Target("L", GOAL, "p50", ours("p50_ms"), False, 1, " ms"),
    Target("L", GOAL, "p99", ours("p99_ms"), False, 10, " ms"),
    _at_least("M", FIRST, "records_per_s", FSYNC, 1.2),
    _at_least("M", GOAL, "records_per_s", CACHE, 1),
)


def verdicts(row: str, level: str, medians: Medians) -> list[Verdict]:
    """All targets of a row and level."""
    return [target.verdict(medians) for target in TARGETS if target.row == row and target.level == level]
