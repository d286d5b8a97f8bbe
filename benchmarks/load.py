"""The clients of the workloads, each a process of its own: started, awaited, its figures as a dictionary."""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchError, run
from benchmarks.raw.requests import error_offset, write_requests
from benchmarks.toolchain import flood_binary, kafka_classpath

JAVA_TOOL = ("java", "-Xmx512M", "-cp")
SUMMARY = re.compile(
    r"^(\d+) (steady state )?records sent, ([\d.]+) records/sec \(([\d.]+) MB/sec\), ([\d.]+) ms avg latency, "
    r"([\d.]+) ms max latency, (\d+) ms 50th, (\d+) ms 95th, (\d+) ms 99th, (\d+) ms 99\.9th"
)
WARMUP_SHARE = 0.25


def producer_performance(
    bootstrap: str,
    topic: str,
    records: int,
    *,
    throughput: int = -1,
    properties: Mapping[str, object] | None = None,
    timeout_s: float = 180,
) -> dict[str, float]:
    """Kafka's ProducerPerformance with 1 KiB random records; the first quarter warms its JIT up and is not in the rate.

    Its MB are MiB. `all_records` are all that reached the broker.
    """
    options = [f"{key}={value}" for key, value in (properties or {}).items()]
    command = [*JAVA_TOOL, kafka_classpath(), "org.apache.kafka.tools.ProducerPerformance"]
    command += ["--bootstrap-server", bootstrap, "--topic", topic, "--record-size", "1024"]
    command += ["--num-records", str(records), "--warmup-records", str(int(records * WARMUP_SHARE))]
    command += ["--throughput", str(throughput)]
    command += ["--command-property", *options] if options else []
    output = run(command, timeout_s)
    found = [match for match in map(SUMMARY.match, output.splitlines()) if match and match[2]]
    if not found:
        raise BenchError(f"ProducerPerformance said nothing of a steady state: {output[-1500:]}")
    match = found[-1]
    if any("Exception" in line for line in output.splitlines()):
        raise BenchError(f"ProducerPerformance had errors: {output[:1500]}")
    return {
        "records_per_s": float(match[3]),
        "mib_per_s": float(match[4]),
        "avg_ms": float(match[5]),
        "max_ms": float(match[6]),
        "p50_ms": float(match[7]),
        "p99_ms": float(match[9]),
        "p999_ms": float(match[10]),
        "all_records": records,
    }


def consumer_performance(bootstrap: str, topic: str, records: int, *, timeout_s: float = 180) -> dict[str, float]:
    """Kafka's ConsumerPerformance from the beginning; the rate leaves the join of the group out."""
    command = [*JAVA_TOOL, kafka_classpath(), "org.apache.kafka.tools.ConsumerPerformance"]
    command += ["--bootstrap-server", bootstrap, "--topic", topic, "--num-records", str(records)]
    lines = run(command, timeout_s).splitlines()
    at = next((at for at, line in enumerate(lines) if line.startswith("start.time")), None)
    if at is None or at + 1 >= len(lines):
        raise BenchError(f"ConsumerPerformance gave no figures: {lines[-5:]}")
    names, values = (lines[at].split(", "), lines[-1].split(", "))
    if len(names) != len(values):
        raise BenchError(f"ConsumerPerformance did not get {records} records: {lines[at:]}")
    figures = dict(zip(names, values))
    got = int(figures["data.consumed.in.nMsg"])
    if got < records:
        raise BenchError(f"ConsumerPerformance got {got} of {records} records")
    return {
        "mib_per_s": float(figures["fetch.MB.sec"]),
        "records_per_s": float(figures["fetch.nMsg.sec"]),
        "join_ms": float(figures["rebalance.time.ms"]),
        "bytes": float(figures["data.consumed.in.MB"]) * 2**20,
    }


class Flood:
    """The raw client against one topic, with its requests built once."""

    def __init__(self, directory: Path, topic: str, partitions: int, *, records: int, record_bytes: int) -> None:
        self.topic = topic
        self.payload_bytes = records * record_bytes
        self.records = records
        self._files = write_requests(
            directory, topic, partitions, records=records, record_bytes=record_bytes, now_ms=time.time_ns() // 10**6
        )

    def run(
        self,
        bootstrap: str,
        *,
        connections: int,
        in_flight: int,
        seconds: float,
        warmup_s: float = 0.5,
        rate: float = 0,
        requests: int = 0,
        series: bool = False,
    ) -> dict[str, Any]:
        """`rate`: requests per second, 0: as fast as `in_flight` lets. `requests`: end after so many of them.

        `requests_per_s`, percentiles in ms, `all_bytes`. BenchError when the broker refused any request."""
        host, _, port = bootstrap.rpartition(":")
        options = [f"-c{connections}", f"-f{in_flight}", f"-t{seconds}", f"-w{warmup_s}", f"-r{rate}", f"-n{requests}"]
        options += [f"-e{error_offset(self.topic)}", *(["-s"] if series else [])]
        command = [flood_binary(), *options, host, port, *map(str, self._files)]
        answer: dict[str, Any] = json.loads(run(command, seconds + warmup_s + 60))
        if answer["errors"]:
            raise BenchError(f"{answer['errors']} requests were refused, the first with error {answer['first_error']}")
        if requests and answer["all_requests"] < requests:
            raise BenchError(f"{answer['all_requests']} of {requests} requests were answered in {seconds:.0f} s")
        answer["all_bytes"] = answer["all_requests"] * self.payload_bytes
        answer["mib_per_s"] = answer["requests_per_s"] * self.payload_bytes / 2**20
        return answer


def python_client(name: str, bootstrap: str, topic: str, seconds: float, *, timeout_s: float = 180) -> dict[str, Any]:
    """One of `benchmarks.clients`."""
    command: Sequence[str] = [sys.executable, "-m", "benchmarks.clients", name, bootstrap, topic, str(seconds)]
    answer: dict[str, Any] = json.loads(run(command, timeout_s).splitlines()[-1])
    return answer
