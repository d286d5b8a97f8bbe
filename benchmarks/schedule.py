"""The order of a benchmark: peers side by side, a warm-up for each, then one repetition of each in turn."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Flood
from benchmarks.peers import EXTRA_NAMES, Peer, make_peer
from benchmarks.processes import BenchError, disk_used
from benchmarks.results import Results
from benchmarks.rows import BATCH_RECORDS, RECORD_BYTES, Cell, Row

SEALED_WITHIN_S = 30
TRIES_MAX = 2  # a peer that failed so often in a row's repetitions is left alone


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    rows: tuple[str, ...]
    peers: tuple[str, ...]
    repetitions: int
    seconds: float
    warmup_s: float
    sustained_s: float
    sustained_rate: float
    disk_max_gb: float
    directory: Path
    before: Path | None = None
    """The source tree of `tidelog-before`."""


class Schedule:
    """Runs rows and collects what they measure. Errors of one peer in one row leave the rest going."""

    def __init__(self, options: Options, results: Results, raw_client: bool) -> None:
        self._options = options
        self._results = results
        self._raw_client = raw_client  # whether `flood` is there to warm brokers up
        self._peers: dict[str, Peer] = {}

    def run(self, rows: Sequence[Row], done: Callable[[Row], None]) -> None:
        """All rows in their order; `done` after each. Every process is ended at the end."""
        shutil.rmtree(self._options.directory, ignore_errors=True)
        try:
            for row in rows:
                self._row(row)
                done(row)
        finally:
            self._end_all()
            shutil.rmtree(self._options.directory / "requests", ignore_errors=True)

    def _row(self, row: Row) -> None:
        print(f"{time.strftime('%H:%M:%S')} {row.key}: {row.title}", flush=True)
        self._keep_disk_bounded()
        cells = []
        for name in row.peers or self._options.peers:
            with self._reported(f"{row.key}, {name}, start"):
                cells.append(self._cell(row, self._started(name)))
        failures: dict[str, int] = {}
        for repetition in range(-1, self._options.repetitions):
            for cell in cells:
                name = cell.peer.name
                if failures.get(name, 0) >= TRIES_MAX:
                    continue
                failures[name] = failures.get(name, 0) + 1
                with self._reported(f"{row.key}, {name}, {'warm-up' if repetition < 0 else repetition + 1}"):
                    self._repetition(row, cell, warming=repetition < 0)
                    failures[name] -= 1
        for cell in cells:
            self._leave(cell)

    def _repetition(self, row: Row, cell: Cell, *, warming: bool) -> None:
        name = cell.peer.name
        if not cell.peer.running:
            cell.memory.clear()
            self._started(name)
        cell.warming = warming
        began = time.perf_counter()
        figures = row.run(cell)
        took_s = time.perf_counter() - began
        shown = ", ".join(
            f"{figures[metric.key]:,.{metric.digits}f} {metric.unit}"
            for metric in row.metrics
            if figures.get(metric.key) is not None
        )
        print(f"  {name:18}{took_s:5.1f} s  {'(warm-up) ' if warming else ''}{shown}", flush=True)
        if not warming:
            self._results.add(row.key, name, figures)

    def _cell(self, row: Row, peer: Peer) -> Cell:
        return Cell(
            row=row.key,
            peer=peer,
            full_seconds=self._options.seconds,
            directory=self._options.directory / "requests",
            sustained_s=self._options.sustained_s,
            sustained_rate=self._options.sustained_rate,
        )

    def _started(self, name: str) -> Peer:
        """The peer of that name, running and warm."""
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = make_peer(name, self._options.directory, self._options.before)
        if not peer.running:
            peer.start()
            self._warm_up(peer)
        return peer

    def _warm_up(self, peer: Peer) -> None:
        """The first requests of a broker cost more than later ones, above all in Java: do not measure them."""
        if not self._raw_client:
            return
        peer.create_topic("warm-up", 4)
        requests = self._options.directory / "requests" / peer.name
        for records, connections in ((BATCH_RECORDS, 4), (1, 16)):
            flood = Flood(requests, "warm-up", 4, records=records, record_bytes=RECORD_BYTES)
            flood.run(peer.bootstrap, connections=connections, in_flight=5, seconds=self._options.warmup_s / 2)
        end = time.perf_counter() + SEALED_WITHIN_S
        while peer.unfinished() and time.perf_counter() < end:
            time.sleep(0.2)
        peer.delete_topic("warm-up")
        peer.note_idle()

    def _leave(self, cell: Cell) -> None:
        """After a row: its topic goes; a peer that only this row has goes as well."""
        if cell.peer.name in EXTRA_NAMES:
            cell.peer.kill()
            cell.peer.clear()
        elif cell.peer.running and "topic" in cell.memory:
            with self._reported(f"{cell.row}, {cell.peer.name}, deleting the topic"):
                cell.peer.delete_topic(cell.memory["topic"])

    def _keep_disk_bounded(self) -> None:
        """Deleted topics free their disk late; begin anew when they hold too much."""
        if disk_used(self._options.directory) > self._options.disk_max_gb * 1e9:
            print("  (starting over on empty disks)", flush=True)
            self._end_all()

    def _end_all(self) -> None:
        for peer in self._peers.values():
            peer.kill()
            peer.clear()

    @contextlib.contextmanager
    def _reported(self, where: str) -> Iterator[None]:
        """Note what went wrong and go on."""
        try:
            yield
        except (BenchError, OSError, ValueError, KeyError) as error:
            message = f"{where}: {error}" if isinstance(error, BenchError) else f"{where}: {error!r}"
            self._results.errors.append(message)
            print(f"  FAILED {message}", file=sys.stderr, flush=True)


def as_json(options: Options) -> dict[str, object]:
    """The options for the results."""
    named = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    del named["directory"], named["before"]
    return {**named, "began_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
