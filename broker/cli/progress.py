"""A line on stderr that tells how far a transfer is and how fast it goes."""

import sys
import time
from collections.abc import Callable


class Progress:
    """Counts records and bytes; prints at most once a second, and once at the end.

    `clock` gives seconds; the default is the process's monotonic clock, fit for a rate shown to a person.
    """

    def __init__(self, verb: str, quiet: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self.records = 0
        self.bytes = 0
        self._verb = verb
        self._quiet = quiet
        self._clock = clock
        self._began = self._shown = clock()

    def add(self, n_bytes: int) -> None:
        """One more record of `n_bytes`."""
        self.records += 1
        self.bytes += n_bytes
        now = self._clock()
        if now - self._shown >= 1:
            self._shown = now
            self._print("\r")

    def done(self) -> None:
        """Print the total."""
        self._print("\n")

    def _print(self, end: str) -> None:
        if self._quiet:
            return
        seconds = max(self._clock() - self._began, 1e-9)
        rate = f"{self.records / seconds:,.0f} records/s, {self.bytes / seconds / 2**20:,.1f} MiB/s"
        print(
            f"{self._verb} {self.records:,} records, {self.bytes:,} bytes ({rate})",
            end=end,
            file=sys.stderr,
            flush=True,
        )
