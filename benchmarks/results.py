"""What a benchmark measured: every repetition, and what it comes to."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS, Figures, Metric


@dataclass
class Results:
    """All repetitions of all rows: `runs[row][peer]` is a list of figures, in the order of the repetitions."""

    machine: dict[str, Any]
    options: dict[str, Any]
    runs: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, peer: str, figures: Figures) -> None:
        """One repetition."""
        self.runs.setdefault(row, {}).setdefault(peer, []).append(figures)

    def of(self, row: str) -> dict[str, list[Figures]]:
        """The repetitions that a row shows, by peer."""
        return self.runs.get(ROWS[row].measured_by or row, {})

    def medians(self, row: str) -> dict[str, dict[str, float | None]]:
        """What each peer's repetitions come to, by metric."""
        return {
            peer: {metric.key: combine(metric, runs) for metric in ROWS[row].metrics}
            for peer, runs in self.of(row).items()
            if runs
        }

    def spread(self, row: str, peer: str, metric: Metric) -> tuple[float, float] | None:
        """Smallest and largest of the repetitions."""
        values = _values(metric, self.of(row).get(peer, []))
        return (min(values), max(values)) if values else None

    def save(self, path: Path) -> None:
        """Everything as JSON."""
        medians = {row: self.medians(row) for row in ROWS if self.of(row)}
        document = {
            "machine": self.machine,
            "options": self.options,
            "medians": medians,
            "runs": self.runs,
            "errors": self.errors,
            "left_out": self.left_out,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """What `save` wrote."""
        document = json.loads(path.read_text())
        return cls(**{key: document[key] for key in ("machine", "options", "runs", "errors", "left_out")})


def combine(metric: Metric, runs: list[Figures]) -> float | None:
    """The one figure of a metric over the repetitions; None when no repetition has it."""
    values = _values(metric, runs)
    if not values:
        return None
    match metric.combine:
        case "sum":
            return sum(values)
        case "any":
            return max(values)
    return statistics.median(values)


def _values(metric: Metric, runs: list[Figures]) -> list[float]:
    return [float(figures[metric.key]) for figures in runs if figures.get(metric.key) is not None]
