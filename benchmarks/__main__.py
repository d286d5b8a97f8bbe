"""`python -m benchmarks`: tidelog beside Apache Kafka on this machine, in alternating runs; see `--help`.

Writes `results.json`, `results.md` and plots, and prints the table for the README. Figures of different runs, or of
different machines, cannot be compared; ratios of one run can.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.machine import describe, line
from benchmarks.peers import BEFORE, NAMES
from benchmarks.plots import draw
from benchmarks.processes import CACHE, BenchError
from benchmarks.report import full, readme_table
from benchmarks.results import Results
from benchmarks.rows import ROWS, Row
from benchmarks.schedule import Options, Schedule, as_json
from benchmarks.toolchain import flood_binary, kafka_classpath, missing

RESULTS = Path(__file__).parent / "results"
KAFKA_NEEDS = frozenset({"java", "mvn"})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, e.g. A,D; --list says what they are")
    parser.add_argument("--peers", default=",".join(NAMES), help="which brokers (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each row and peer (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (default: %(default)s)")
    parser.add_argument(
        "--warmup-seconds", type=float, default=12.0, help="of a broker after its start (default: %(default)s)"
    )
    parser.add_argument("--sustained-seconds", type=float, default=20.0, help="of row S (default: %(default)s)")
    parser.add_argument(
        "--sustained-rate", type=float, default=2000, help="16 KB requests/s of row S; 0: as fast as it goes"
    )
    parser.add_argument("--disk-gb", type=float, default=20.0, help="start over beyond so much disk")
    parser.add_argument("--before", type=Path, help="another source tree of tidelog, to be measured beside this one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (default: benchmarks/results)")
    parser.add_argument("--list", action="store_true", help="say what the rows are, and end")
    parser.add_argument("--report", action="store_true", help="write the report again from results.json, and end")
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> tuple[list[Row], list[str], dict[str, str]]:
    """Rows to measure, peers, and what is left out with the reason."""
    names = [name.strip().upper() for name in arguments.rows.split(",") if name.strip()]
    peers = [name.strip() for name in arguments.peers.split(",") if name.strip()]
    unknown = [name for name in names if name not in ROWS] + [name for name in peers if name not in NAMES]
    if unknown:
        raise BenchError(f"unknown: {', '.join(unknown)}; rows: {', '.join(ROWS)}; peers: {', '.join(NAMES)}")
    if arguments.before:
        peers.append(BEFORE)
    absent, left_out = missing(), {}
    if absent & KAFKA_NEEDS:
        for peer in [name for name in peers if name.startswith("kafka")]:
            left_out[peer] = f"needs {', '.join(sorted(absent & KAFKA_NEEDS))}"
            peers.remove(peer)
    rows: dict[str, Row] = {}
    for name in names:
        row = ROWS[ROWS[name].measured_by or name]
        if row.needs & absent:
            left_out[name] = f"needs {', '.join(sorted(row.needs & absent))}"
        else:
            rows[row.key] = row
    return list(rows.values()), peers, left_out


def write(results: Results, directory: Path) -> None:
    """JSON, Markdown and plots."""
    directory.mkdir(parents=True, exist_ok=True)
    results.save(directory / "results.json")
    (directory / "results.md").write_text(full(results))
    draw(results, directory)


def main() -> int:
    """Exit code 1: something failed and is missing in the results."""
    arguments = parse()
    if arguments.list:
        for row in ROWS.values():
            print(f"{row.key:3} {row.title}\n      {row.note}")
        return 0
    if arguments.report:
        write(Results.load(arguments.out / "results.json"), arguments.out)
        return 0
    try:
        rows, peers, left_out = choose(arguments)
        for name, why in left_out.items():
            print(f"left out: {name} ({why})", file=sys.stderr)
        absent = missing()
        if not absent & KAFKA_NEEDS:
            kafka_classpath()
        if "gcc" not in absent:
            flood_binary()
    except BenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    options = Options(
        rows=tuple(row.key for row in rows),
        peers=tuple(peers),
        repetitions=arguments.repetitions,
        seconds=arguments.seconds,
        warmup_s=arguments.warmup_seconds,
        sustained_s=arguments.sustained_seconds,
        sustained_rate=arguments.sustained_rate,
        disk_max_gb=arguments.disk_gb,
        directory=CACHE / "peers",
        before=arguments.before and arguments.before.resolve(),
    )
    results = Results(describe(CACHE), as_json(options), left_out=left_out)
    Schedule(options, results, raw_client="gcc" not in absent).run(rows, lambda _: write(results, arguments.out))
    print(f"\n{line(results.machine)}\n\n{readme_table(results)}\n\nwritten to {arguments.out}")
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())
