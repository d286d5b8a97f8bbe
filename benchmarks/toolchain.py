"""What the machine must have: Java and Maven for Apache Kafka and its tools, a C compiler for `flood`."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.processes import CACHE, BenchError
from tests.compatibility import java

KAFKA_VERSION = "4.3.1"
TOOLS = ("java", "mvn", "gcc")
SOURCE = Path(__file__).parent / "raw" / "flood.c"


def missing() -> frozenset[str]:
    """Which of `TOOLS` are not installed."""
    return frozenset(tool for tool in TOOLS if shutil.which(tool) is None)


@functools.cache
def kafka_classpath() -> str:
    """Apache Kafka's broker, tools and clients from Maven Central; fetched once, kept under `.cache/`."""
    artifacts = ("kafka_2.13", "kafka-tools", "kafka-clients")
    try:
        return java.fetch([f"org.apache.kafka:{artifact}:{KAFKA_VERSION}" for artifact in artifacts])
    except AssertionError as error:
        raise BenchError(f"Apache Kafka {KAFKA_VERSION} cannot be fetched: {error}") from None


@functools.cache
def flood_binary() -> str:
    """The raw produce client, compiled; kept under `.cache/` by the digest of its source."""
    binary = CACHE / f"flood-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if not binary.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as staging:
            built = Path(staging) / "flood"
            command = ["gcc", "-O2", "-Wall", "-o", str(built), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BenchError(f"flood.c does not compile: {done.stderr[-1500:]}")
            os.replace(built, binary)
    return str(binary)
