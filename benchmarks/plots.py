"""Plots of a benchmark as SVG."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "tidelog"  # the same figures give the same file

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.report import PEERS  # noqa: E402
from benchmarks.results import Results  # noqa: E402
from benchmarks.rows import ROWS  # noqa: E402
from benchmarks.targets import CACHE  # noqa: E402

COLOURS = dict(zip(PEERS, ("#1b6ca8", "#e0a458", "#8d99ae")))
RATES = ("mib_per_s", "requests_per_s", "records_per_s")
GROUP_WIDTH = 0.8


def draw(results: Results, directory: Path) -> list[Path]:
    """Every plot that the results have figures for; the files."""
    medians = {row: results.medians(row) for row in ROWS if results.medians(row)}

    def rate(row: str, peer: str) -> float | None:
        key = ROWS[row].metrics[0].key
        theirs = medians[row].get(CACHE, {}).get(key)
        value = medians[row].get(peer, {}).get(key)
        return value / theirs if key in RATES and value is not None and theirs else None

    def figure(key: str) -> Callable[[str, str], float | None]:
        return lambda row, peer: medians[row].get(peer, {}).get(key)

    plots = {
        "throughput": ("throughput over kafka-cache's (higher is better)", rate),
        "cpu": ("broker CPU-s per GB (lower is better)", figure("cpu_s_per_gb")),
        "p50": ("p50, ms (lower is better)", figure("p50_ms")),
        "p99": ("p99, ms (lower is better)", figure("p99_ms")),
    }
    paths = []
    for name, (title, value) in plots.items():
        rows = [row for row in medians if sum(value(row, peer) is not None for peer in PEERS) > 1]
        if rows:
            paths.append(_bars(directory / f"{name}.svg", title, rows, value))
    if "S" in results.runs:
        paths.append(_sustained(directory / "sustained.svg", results))
    return paths


def _bars(path: Path, title: str, rows: list[str], value: Callable[[str, str], float | None]) -> Path:
    figure, axes = pyplot.subplots(figsize=(1.5 + 0.8 * len(rows), 3.5), layout="constrained")
    width = GROUP_WIDTH / len(PEERS)
    for number, peer in enumerate(PEERS):
        shown = [(at, found) for at, row in enumerate(rows) if (found := value(row, peer)) is not None]
        places = [at + (number - (len(PEERS) - 1) / 2) * width for at, _ in shown]
        axes.bar(places, [found for _, found in shown], width, label=peer, color=COLOURS[peer])
    axes.set_xticks(range(len(rows)), rows)
    axes.set_yscale("log")
    if all(value(row, CACHE) == 1 for row in rows):  # ratios
        axes.axhline(1, color="black", linewidth=0.5)
    return _finish(path, title, figure, axes)


def _sustained(path: Path, results: Results) -> Path:
    """The worst latency of each second of the last repetition."""
    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    for peer, runs in results.of("S").items():
        worst = [ms for _, ms in runs[-1]["series"]]
        axes.plot(range(len(worst)), worst, label=peer, color=COLOURS.get(peer), linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("second")
    return _finish(path, "S: worst latency of each second, ms", figure, axes)


def _finish(path: Path, title: str, figure: Any, axes: Axes) -> Path:
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
