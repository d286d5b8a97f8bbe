"""Plain integer counters of the hot path, and the registry a scraper reads. Nothing here is called per request.

The hot path adds to attributes of `Counters`; whoever exposes metrics calls `Metrics.read`, which calls the registered
read functions. Labels are chosen by the reader, never built on the hot path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

API_KEYS_MAX = 128
LATENCY_BUCKETS = 40


def new_histogram() -> list[int]:
    """A latency histogram: `histogram[n]` counts values v in microseconds with `v.bit_length() == n` (v < 2**n)."""
    return [0] * LATENCY_BUCKETS


class Counters:
    """Everything that is counted where requests pass. Bytes are bytes on the wire, frames' length prefixes included."""

    __slots__ = (
        "batches_in",
        "bytes_in",
        "bytes_out",
        "connections_closed",
        "connections_idle_closed",
        "connections_opened",
        "connections_refused",
        "control_latency",
        "duplicates",
        "errors",
        "fetch_bytes",
        "fetch_cold",
        "fetch_latency",
        "fetch_waits",
        "full_timeouts",
        "full_waits",
        "other_latency",
        "produce_bytes",
        "produce_latency",
        "protocol_errors",
        "requests",
        "server_errors",
        "settle_waits",
        "slow_readers_closed",
        "throttled",
        "transaction_markers",
        "verification_failures",
        "verification_latency",
    )

    def __init__(self) -> None:
        self.requests = [0] * API_KEYS_MAX
        self.errors: dict[int, int] = {}
        """Error code -> how often it was answered for a partition or a request by Produce, Fetch and ListOffsets."""
        self.produce_latency = new_histogram()
        self.fetch_latency = new_histogram()
        """Long polls included."""
        self.other_latency = new_histogram()
        self.control_latency = new_histogram()
        """Of what other brokers asked the controller here; their long polls included."""
        self.bytes_in = self.bytes_out = 0
        self.produce_bytes = self.batches_in = self.duplicates = 0
        self.fetch_bytes = self.fetch_waits = self.fetch_cold = 0
        self.full_waits = self.full_timeouts = self.settle_waits = 0
        self.connections_opened = self.connections_closed = 0
        self.connections_refused = self.connections_idle_closed = self.slow_readers_closed = 0
        self.throttled = 0
        """How often a connection was muted because its client used more than its quota."""
        self.protocol_errors = self.server_errors = 0
        self.transaction_markers = self.verification_failures = 0
        self.verification_latency = new_histogram()
        """Of questions to transaction coordinators whether a log is part of a transaction."""

    def error(self, code: int) -> None:
        """One more answer with this error code."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def verified(self, micros: int, failures: int) -> None:
        """A transaction coordinator answered after so long; so many partitions are not part of the transaction."""
        self.verification_latency[min(micros.bit_length(), LATENCY_BUCKETS - 1)] += 1
        self.verification_failures += failures


class Sample(NamedTuple):
    """One value. `labels` is `()` for a metric without any."""

    labels: tuple[tuple[str, str], ...]
    value: float


class Family(NamedTuple):
    """One metric: name, kind (`counter`, `gauge` or `histogram`), help and its values."""

    name: str
    kind: str
    help: str
    samples: list[Sample]
    histogram: Mapping[float, int] | None = None
    """For histograms: upper bound in seconds -> count in that bucket alone."""


Read = Callable[[], float | Iterable[tuple[Mapping[str, str], float]]]


class Metrics:
    """Registered read functions by metric name, in order of registration."""

    def __init__(self) -> None:
        self._plain: dict[str, tuple[str, str, Read]] = {}
        self._histograms: dict[str, tuple[str, list[int]]] = {}

    def counter(self, name: str, help: str, read: Read) -> None:
        """A value that only grows. `read` returns a number, or (labels, number) pairs."""
        self._add("counter", name, help, read)

    def gauge(self, name: str, help: str, read: Read) -> None:
        """A value that goes up and down."""
        self._add("gauge", name, help, read)

    def histogram(self, name: str, help: str, buckets: list[int]) -> None:
        """A latency histogram as `new_histogram` makes it; read in place."""
        assert name not in self._histograms, f"metric {name} is registered twice"
        self._histograms[name] = (help, buckets)

    def _add(self, kind: str, name: str, help: str, read: Read) -> None:
        assert name not in self._plain, f"metric {name} is registered twice"
        self._plain[name] = (kind, help, read)

    def read(self) -> list[Family]:
        """Every metric with its values now."""
        families = []
        for name, (kind, text, read) in self._plain.items():
            value = read()
            if isinstance(value, int | float):
                samples = [Sample((), value)]
            else:
                samples = [Sample(tuple(sorted(labels.items())), number) for labels, number in value]
            families.append(Family(name, kind, text, samples))
        for name, (text, buckets) in self._histograms.items():
            bounds = {2**n / 1e6: count for n, count in enumerate(buckets)}
            families.append(Family(name, "histogram", text, [], bounds))
        return families
