"""The workloads, one function each. A function runs one repetition against one peer and returns its figures.

Records are random, 1 KiB unless said otherwise, acks=all, not compressed. GB are 10^9 bytes, MiB 2^20.
CPU is the broker's, and holds what a load causes later: for tidelog until everything is in the bucket.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import WARMUP_SHARE, Flood, consumer_performance, producer_performance, python_client
from benchmarks.peers import Peer
from benchmarks.processes import BenchError, Usage, measure, settle

Figures = dict[str, Any]
RECORD_BYTES = 1024
BATCH_RECORDS = 16  # a batch of 16 KB, the default size of the Java producer
PARTITIONS = 6
PROBE_RECORDS = 40_000
MIB_READ_PER_S = 200  # row I reads so much for each second that a run may take
FALLEN_BEHIND_SHARE = 0.98
FIRST_REQUESTS = 8  # of a partition: Kafka makes its files and, after 4 KiB, touches its indexes (tens of ms on some)
SEALING_RECORDS = 256 * 1024  # to be produced before the first of them is `tidelog.seal.ms` old
TIDELOG_POSTPONED = "tidelog-postponed"


@dataclass
class Cell:
    """One row on one peer: what a row's function gets."""

    row: str
    peer: Peer
    full_seconds: float  # of a repetition
    directory: Path
    sustained_s: float = 20.0
    sustained_rate: float = 2000.0
    warming: bool = False
    memory: dict[str, Any] = field(default_factory=dict)  # kept from repetition to repetition

    @property
    def seconds(self) -> float:
        """How long this run may take; a warm-up is half as long."""
        return self.full_seconds / (2 if self.warming else 1)

    def topic(self, partitions: int, configs: Mapping[str, str] | None = None) -> str:
        """The row's topic on this peer, created on first use."""
        name = f"bench-{self.row.lower()}"
        if "topic" not in self.memory:
            self.peer.create_topic(name, partitions, configs)
            self.memory["topic"] = name
        return name

    def flood(self, partitions: int, *, records: int, record_bytes: int, **configs: str) -> Flood:
        """The raw client for the row's topic."""
        if "flood" not in self.memory:
            topic = self.topic(partitions, configs)
            self.memory["flood"] = Flood(
                self.directory / self.peer.name / topic, topic, partitions, records=records, record_bytes=record_bytes
            )
        flood: Flood = self.memory["flood"]
        return flood

    def measure(self) -> AbstractContextManager[Usage]:
        """Measure the broker during a run."""
        return measure(self.peer.pid, idle=self.peer.idle_share)

    def measure_all(self) -> AbstractContextManager[Usage]:
        """Measure the broker, what it puts off included (but not after a warm-up)."""
        return self.measure() if self.warming else self.measure_sealing()

    def measure_sealing(self) -> AbstractContextManager[Usage]:
        """Measure the broker until everything is sealed."""
        return measure(
            self.peer.pid,
            idle=self.peer.idle_share,
            unfinished=self.peer.unfinished,
            look_cpu_s=self.peer.look_cpu_s,
        )

    def used(self, usage: Usage, n_bytes: float) -> Figures:
        """The figures of a usage for so many bytes."""
        return {"cpu_s_per_gb": usage.cpu_s / (n_bytes / 1e9) if n_bytes else None, "peak_rss_mb": usage.peak_rss_mb}


def java_producer(cell: Cell, **properties: object) -> Figures:
    """ProducerPerformance as fast as it goes, for about `seconds`: how many records that are, the run before tells."""
    topic = cell.topic(PARTITIONS)
    rate = cell.memory.get("records_per_s")
    records = PROBE_RECORDS if rate is None else max(PROBE_RECORDS // 2, int(rate * cell.seconds / (1 - WARMUP_SHARE)))
    with cell.measure_all() as usage:
        figures = producer_performance(cell.peer.bootstrap, topic, records, properties=properties)
    cell.memory["records_per_s"] = figures["records_per_s"]
    return figures | cell.used(usage, records * RECORD_BYTES)


def raw(
    cell: Cell,
    *,
    connections: int,
    in_flight: int,
    records: int,
    record_bytes: int,
    partitions: int | None = None,
    rate: float = 0,
) -> Figures:
    """The raw client; each connection writes to a partition of its own unless `partitions` says otherwise.

    What small records cost later is too little to wait for.
    """
    partitions = partitions or connections
    flood = cell.flood(partitions, records=records, record_bytes=record_bytes)
    if cell.warming:
        flood.run(
            cell.peer.bootstrap,
            connections=connections,
            in_flight=1,
            seconds=180,
            warmup_s=0,
            requests=partitions * FIRST_REQUESTS,
        )
    with cell.measure_all() if records > 1 else cell.measure() as usage:
        figures = flood.run(
            cell.peer.bootstrap, connections=connections, in_flight=in_flight, seconds=cell.seconds, rate=rate
        )
    return figures | cell.used(usage, figures["all_bytes"])


def row_a(cell: Cell) -> Figures:
    """Kafka's ProducerPerformance with its defaults, 6 partitions: what a Java application gets without tuning."""
    return java_producer(cell)


def row_b(cell: Cell) -> Figures:
    """The same with `batch.size=131072 linger.ms=10`: what it gets when tuned for throughput."""
    return java_producer(cell, **{"batch.size": 131072, "linger.ms": 10})


def row_c(cell: Cell) -> Figures:
    """librdkafka with its defaults, as fast as it goes, 6 partitions."""
    topic = cell.topic(PARTITIONS)
    with cell.measure_all() as usage:
        figures = python_client("flood", cell.peer.bootstrap, topic, cell.seconds)
    figures["mib_per_s"] = figures["records"] * RECORD_BYTES / 2**20 / figures["seconds"]
    return figures | cell.used(usage, figures["all_records"] * RECORD_BYTES)


def row_d(cell: Cell) -> Figures:
    """Raw requests: 1 connection, 5 in flight, one 16 KB batch each. What one default producer can get at best."""
    return raw(cell, connections=1, in_flight=5, records=BATCH_RECORDS, record_bytes=RECORD_BYTES)


def row_d4(cell: Cell) -> Figures:
    """Raw requests: 4 connections, 5 in flight each, one 16 KB batch per request."""
    return raw(cell, connections=4, in_flight=5, records=BATCH_RECORDS, record_bytes=RECORD_BYTES)


def row_e(cell: Cell) -> Figures:
    """Raw requests: 1 connection, 5 in flight, one 128 KB batch each."""
    return raw(cell, connections=1, in_flight=5, records=8 * BATCH_RECORDS, record_bytes=RECORD_BYTES)


def row_f(cell: Cell) -> Figures:
    """ProducerPerformance at 5,000 records/s with `linger.ms=0`: the latency that a Java application sees."""
    topic = cell.topic(PARTITIONS)
    records = int(5000 * cell.seconds / (1 - WARMUP_SHARE))
    with cell.measure() as usage:
        figures = producer_performance(
            cell.peer.bootstrap, topic, records, throughput=5000, properties={"linger.ms": 0}
        )
    return figures | cell.used(usage, records * RECORD_BYTES)


def row_g(cell: Cell) -> Figures:
    """Raw requests: one 100-byte record in flight, round trips per second. What a careful sequential producer gets."""
    return raw(cell, connections=1, in_flight=1, records=1, record_bytes=100)


def row_h(cell: Cell) -> Figures:
    """librdkafka: from produce to the record in the hands of a polling consumer, one after the other.

    `waited`: records that took above 100 ms, which is what a lost wake-up of a long poll looks like.
    """
    return python_client("round-trips", cell.peer.bootstrap, cell.topic(1), cell.seconds)


def row_i(cell: Cell) -> Figures:
    """Kafka's ConsumerPerformance over 16 KB batches on 6 partitions; the rate leaves the join of the group out.

    Hot: the broker that took the records. Cold (tidelog): a broker just started, with nothing in memory, so that every
    byte comes from the bucket.
    """
    requests = int(cell.full_seconds * MIB_READ_PER_S * 2**20) // (BATCH_RECORDS * RECORD_BYTES)
    records = requests * BATCH_RECORDS
    flood = cell.flood(PARTITIONS, records=BATCH_RECORDS, record_bytes=RECORD_BYTES)
    if "filled" not in cell.memory:
        flood.run(cell.peer.bootstrap, connections=PARTITIONS, in_flight=5, seconds=120, warmup_s=0, requests=requests)
        cell.memory["filled"] = True
    with cell.measure() as usage:
        figures = consumer_performance(cell.peer.bootstrap, flood.topic, records)
    figures |= cell.used(usage, figures["bytes"])
    if cell.peer.cold_by_restart and not cell.warming:
        cell.peer.restart()
        with cell.measure() as usage:
            cold = consumer_performance(cell.peer.bootstrap, flood.topic, records)
        figures["cold_mib_per_s"] = cold["mib_per_s"]
        figures["cold_cpu_s_per_gb"] = usage.cpu_s / (cold["bytes"] / 1e9)
    return figures


def row_k(cell: Cell) -> Figures:
    """What sealing and uploading cost: row A with a fixed number of records.

    tidelog: everything together. tidelog-postponed seals nothing before the load is over, so that `sealing` can be
    measured alone.
    """
    topic = cell.topic(PARTITIONS)
    n_bytes = SEALING_RECORDS * RECORD_BYTES
    cell.peer.note_idle()  # it matters here, and is not what it was when the broker was new
    if cell.peer.name != TIDELOG_POSTPONED:
        with cell.measure_all() as usage:
            figures = producer_performance(cell.peer.bootstrap, topic, SEALING_RECORDS)
        return figures | cell.used(usage, n_bytes)
    figures = producer_performance(cell.peer.bootstrap, topic, SEALING_RECORDS)
    if cell.peer.unsealed_bytes() < n_bytes:
        raise BenchError("uploads began before the load was over: this machine is too slow for row K")
    with cell.measure_sealing() as usage:
        settle(cell.peer.pid)
    return figures | {"sealing_cpu_s_per_gb": usage.cpu_s / (n_bytes / 1e9)}


def row_l(cell: Cell) -> Figures:
    """Raw requests on one connection, 5,000 per second of one 1 KiB record, sent when due whatever is outstanding."""
    figures = raw(cell, connections=1, in_flight=20_000, records=1, record_bytes=RECORD_BYTES, rate=5000)
    figures["behind"] = figures["requests_per_s"] < FALLEN_BEHIND_SHARE * 5000
    return figures


def row_m(cell: Cell) -> Figures:
    """kafka-python's producer with its defaults in one process, 6 partitions: bound by the client."""
    topic = cell.topic(PARTITIONS)
    with cell.measure() as usage:
        figures = python_client("kafka-python", cell.peer.bootstrap, topic, cell.seconds)
    figures["records_per_s"] = figures["records"] / figures["seconds"]
    return figures | cell.used(usage, figures["all_records"] * RECORD_BYTES)


def row_t(cell: Cell) -> Figures:
    """Raw requests: 16 connections, 5 in flight each, one 100-byte record per request."""
    return raw(cell, connections=16, in_flight=5, records=1, record_bytes=100)


def row_n(cell: Cell) -> Figures:
    """Raw requests: 1,000 connections, one 100-byte record in flight each, 16 partitions."""
    return raw(cell, connections=1000, in_flight=1, records=1, record_bytes=100, partitions=16)


def row_p(cell: Cell) -> Figures:
    """Raw requests: 4 connections, 5 in flight each, one 1 KiB record per request, to 1,000 partitions in turn."""
    return raw(cell, connections=4, in_flight=5, records=1, record_bytes=RECORD_BYTES, partitions=1000)


def row_s(cell: Cell) -> Figures:
    """Sustained: a fixed rate of 16 KB batches on 4 connections, long enough for many uploads."""
    keep = str(1 << 30)  # so that a long run does not fill the disk
    flood = cell.flood(4, records=BATCH_RECORDS, record_bytes=RECORD_BYTES, **{"retention.bytes": keep})
    seconds = min(cell.seconds, 2.0) if cell.warming else cell.sustained_s
    rate = cell.sustained_rate
    with cell.measure_all() as usage:
        figures = flood.run(
            cell.peer.bootstrap,
            connections=4,
            in_flight=1000 if rate else 5,
            seconds=seconds,
            rate=rate,
            series=True,
        )
    figures["behind"] = rate > 0 and figures["requests_per_s"] < FALLEN_BEHIND_SHARE * rate
    return figures | cell.used(usage, figures["all_bytes"])


@dataclass(frozen=True)
class Metric:
    """A figure that is shown. `combine`: how repetitions become one figure (`median`, `sum`, `any`)."""

    key: str
    unit: str
    digits: int = 0
    combine: str = "median"


MIB = Metric("mib_per_s", "MiB/s")
COLD_MIB = Metric("cold_mib_per_s", "MiB/s cold")
REQUESTS = Metric("requests_per_s", "requests/s")
RECORDS = Metric("records_per_s", "records/s")
CPU = Metric("cpu_s_per_gb", "CPU-s/GB", 1)
SEALING_CPU = Metric("sealing_cpu_s_per_gb", "CPU-s/GB for sealing", 1)
RSS = Metric("peak_rss_mb", "MB resident")
P50 = Metric("p50_ms", "ms p50", 2)
P99 = Metric("p99_ms", "ms p99", 2)
P999 = Metric("p999_ms", "ms p99.9", 2)
WAITED = Metric("waited", "above 100 ms", 0, "sum")
BEHIND = Metric("behind", "fell behind", 0, "any")


@dataclass(frozen=True)
class Row:
    """A row of the table. The first metric is the one whose ratios are shown."""

    key: str
    title: str
    metrics: tuple[Metric, ...]
    run: Callable[[Cell], Figures]
    needs: frozenset[str] = frozenset()  # of the machine; the Kafka peers need Java and Maven anyhow
    peers: tuple[str, ...] = ()  # instead of those asked for
    measured_by: str = ""  # this row shows figures of another one

    @property
    def note(self) -> str:
        """The docstring of the function: what is measured."""
        return " ".join((self.run.__doc__ or "").split())


JAVA = frozenset({"java", "mvn"})
C = frozenset({"gcc"})

ROWS: dict[str, Row] = {
    row.key: row
    for row in (
        Row("A", "Java producer, defaults, 6 partitions", (MIB, CPU, P99), row_a, JAVA),
        Row("B", "the same, 128 KB batches, linger 10 ms", (MIB, CPU, P99), row_b, JAVA),
        Row("C", "librdkafka producer, 6 partitions", (MIB, CPU), row_c),
        Row("D", "1 connection x 5 in flight, 16 KB", (REQUESTS, CPU, P50, P99), row_d, C),
        Row("D4", "4 connections x 5 in flight, 16 KB", (REQUESTS, CPU, P50, P99), row_d4, C),
        Row("E", "1 connection x 5 in flight, 128 KB", (REQUESTS, CPU, P50, P99), row_e, C),
        Row("T", "16 connections x 5 in flight, 100 B", (REQUESTS, CPU, P50, P99), row_t, C),
        Row("G", "1 connection x 1 in flight, 100 B", (REQUESTS, P50, P99), row_g, C),
        Row("F", "Java producer, 5,000 records/s, linger 0", (P99, P50), row_f, JAVA),
        Row("L", "1 connection, 5,000 requests/s of 1 KiB", (P99, P50, REQUESTS, BEHIND), row_l, C),
        Row("H", "librdkafka, produce to poll", (P50, P99, P999, WAITED), row_h),
        Row("I", "Java consumer, 6 partitions", (MIB, CPU, COLD_MIB), row_i, JAVA | C),
        Row("J", "peak resident memory at A", (RSS,), row_a, JAVA, measured_by="A"),
        Row("K", "what sealing costs in A", (CPU, SEALING_CPU), row_k, JAVA, peers=("tidelog", TIDELOG_POSTPONED)),
        Row("M", "kafka-python producer, 6 partitions", (RECORDS, CPU), row_m),
        Row("S", "sustained, uploads running", (P99, P50, P999, MIB, CPU, RSS, BEHIND), row_s, C),
        Row("N", "1,000 connections x 1 in flight, 100 B", (REQUESTS, P50, P99, RSS), row_n, C),
        Row("P", "1,000 partitions, 4 x 5 in flight, 1 KiB", (REQUESTS, P50, P99, RSS), row_p, C),
    )
}
