"""What the figures were measured on."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.toolchain import KAFKA_VERSION

SYNCS = 50
BLOCK = 4096


def describe(directory: Path) -> dict[str, Any]:
    """The machine as facts; `directory` is where the brokers keep their data."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "file_system": _file_system(directory),
        "sync_4k_ms": sync_ms(directory),
        "python": platform.python_version(),
        "java": _java_version(),
        "kafka": KAFKA_VERSION,
        "librdkafka": _librdkafka_version(),
        "kafka_python": version("kafka-python"),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def line(machine: dict[str, Any]) -> str:
    """The same in one sentence."""
    return (
        "{cores} cores ({cpu}) shared by broker and client, {memory_gb} GB, Linux {kernel}, {file_system}, "
        "a 4 KiB write and fdatasync {sync_4k_ms} ms; Python {python}, Java {java}, Apache Kafka {kafka}, "
        "librdkafka {librdkafka}, kafka-python {kafka_python}; load before the run {load_before}; commit {commit}"
    ).format_map(machine)


def sync_ms(directory: Path) -> float:
    """Median of a 4 KiB write and fdatasync in a file that was written before."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        fd, block = file.fileno(), bytes(BLOCK)
        os.write(fd, bytes(SYNCS * BLOCK))
        os.fsync(fd)
        times = []
        for number in range(SYNCS):
            began = time.perf_counter()
            os.pwrite(fd, block, number * BLOCK)
            os.fdatasync(fd)
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e3, 3)


def _cpu_model() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Type of the file system with the longest mount point above `directory`."""
    best, kind = "", "unknown file system"
    path = str(directory.resolve())
    for mount in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = mount.split()
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _java_version() -> str:
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    except FileNotFoundError:
        return "none"
    return said.split('"')[1] if '"' in said else said.strip()


def _librdkafka_version() -> str:
    import confluent_kafka

    return str(confluent_kafka.libversion()[0])


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
