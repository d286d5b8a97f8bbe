"""What we write for consumer groups against what Kafka's own coordinator writes, and the hashes of topics and groups.

`kafka_group_records.txt` beside the quick test is what `GroupRecords.java` printed with Kafka's classes; here it is
printed again.
"""

import subprocess
from pathlib import Path

import pytest

from tests.broker.groups.test_kafka_records import PRINTED
from tests.compatibility import java

pytestmark = pytest.mark.compatibility


def test_kafka_writes_what_is_kept() -> None:
    jars = java.fetch(java.kafka("kafka-clients", "kafka-group-coordinator"))
    classpath = java.compile_source(Path(__file__).with_name("GroupRecords.java"), jars)
    command = [java.tool("java"), "-Xmx256m", "-cp", classpath, "GroupRecords"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == PRINTED.read_text()
