"""Tables in Markdown: one for the README, and one with every figure."""

from collections.abc import Sequence

from benchmarks.machine import line
from benchmarks.results import Results
from benchmarks.rows import ROWS, Metric, Row
from benchmarks.targets import CACHE, FIRST, FSYNC, GOAL, POSTPONED, US, Verdict, quotient, verdicts

PEERS = (US, CACHE, FSYNC)


def number(value: float | None, digits: int) -> str:
    """A figure for a table; "-" if there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def readme_table(results: Results) -> str:
    """One line per row: medians of each peer, our ratio to both Kafkas, and whether the first targets hold."""
    lines = [
        "| | workload | tidelog | kafka-cache | kafka-fsync | x cache | x fsync | first target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS.values():
        medians = results.medians(row.key)
        if not medians:
            continue
        cells = [_cell(row, medians.get(peer, {})) for peer in PEERS]
        if POSTPONED in medians:
            cells[1] = _cell(row, medians[POSTPONED])
        first = row.metrics[0].key
        ratios = [
            number(quotient(medians.get(US, {}).get(first), medians.get(peer, {}).get(first)), 2)
            for peer in (CACHE, FSYNC)
        ]
        said = _verdict(verdicts(row.key, FIRST, medians))
        lines.append(f"| {' | '.join([f'**{row.key}**', row.title, *cells, *ratios, said])} |")
    return "\n".join(lines)


def _cell(row: Row, medians: dict[str, float | None]) -> str:
    return "; ".join(said for metric in row.metrics if (said := _said(metric, medians.get(metric.key)))) or "-"


def _said(metric: Metric, value: float | None) -> str:
    if value is None:
        return ""
    if metric.combine == "any":
        return metric.unit if value else ""
    return f"{number(value, metric.digits)} {metric.unit}"


def _verdict(found: Sequence[Verdict]) -> str:
    if not found:
        return ""
    missed = [str(verdict) for verdict in found if verdict.holds is False]
    unknown = [verdict for verdict in found if verdict.holds is None]
    if missed:
        return "; ".join(missed)
    return "partly measured" if unknown else "holds"


def full(results: Results) -> str:
    """Everything for a maintainer: the table, what each row measures, spreads, both levels of targets, what failed."""
    options = results.options
    parts = [
        "# Benchmark",
        f"{line(results.machine)}.",
        f"{options['repetitions']} repetitions, peers alternating, {options['seconds']:g} s a run, medians. "
        "CPU and memory are the broker's. kafka-fsync flushes before it acknowledges, as tidelog does, "
        "kafka-cache does not.",
        readme_table(results),
    ]
    if results.left_out:
        parts.append("Left out: " + "; ".join(f"{row} ({why})" for row, why in results.left_out.items()) + ".")
    if results.errors:
        parts.append("Failed:\n\n" + "\n".join(f"- {_in_short(error)}" for error in results.errors))
    parts.append("## Rows")
    for row in ROWS.values():
        if results.of(row.key):
            parts += _details(row, results)
    return "\n\n".join(parts) + "\n"


def _in_short(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip(" +-")]
    return lines[0] if len(lines) < 2 else f"{lines[0]} ... {lines[-1]}"


def _details(row: Row, results: Results) -> list[str]:
    medians = results.medians(row.key)
    head = [f"{metric.unit} (least to most)" for metric in row.metrics]
    lines = [f"| | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for peer, values in medians.items():
        cells = []
        for metric in row.metrics:
            spread = results.spread(row.key, peer, metric)
            cell = number(values[metric.key], metric.digits)
            if spread and metric.combine == "median":
                cell += f" ({number(spread[0], metric.digits)} to {number(spread[1], metric.digits)})"
            cells.append(cell)
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    said = [f"- {level}: {verdict}" for level in (FIRST, GOAL) for verdict in verdicts(row.key, level, medians)]
    return [f"### {row.key}: {row.title}", row.note, "\n".join(lines), *(["\n".join(said)] if said else [])]
