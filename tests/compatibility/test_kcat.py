"""kcat, which is an older librdkafka in Debian: produce, consume, list, query, groups."""

import json
import os
import shutil
import subprocess
import threading

import pytest

from tests.compatibility.admin import create_topic
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.compatibility


class Kcat:
    """`kcat -b <broker>`, which must succeed."""

    def __init__(self, bootstrap: str) -> None:
        found = shutil.which("kcat")
        if found is None:
            pytest.skip("kcat is not installed: apt-get install kcat")
        self._command = [found, "-b", bootstrap]
        # The user's own configuration file takes no part.
        self._environment = {"PATH": os.defpath, "HOME": "/nonexistent"}

    def __call__(self, *arguments: object, text: str = "", timeout_s: float = 30) -> str:
        """What it printed."""
        done = subprocess.run(
            [*self._command, *map(str, arguments)],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self._environment,
        )
        assert done.returncode == 0, done.stderr
        assert "ERROR" not in done.stderr, done.stderr
        return done.stdout


@pytest.fixture
def kcat(broker: BrokerProcess) -> Kcat:
    return Kcat(broker.bootstrap)


def test_produce_and_consume(kcat: Kcat, topic: str) -> None:
    """A topic that nobody created; keys, headers, null values."""
    kcat("-P", "-t", topic, "-K:", "-Z", "-H", "a=1", "-H", "b=x", text="k1:v1\nk2:\nk3:v3\n")
    got = kcat("-C", "-t", topic, "-e", "-q", "-Z", "-f", r"%p|%o|%k|%s|%h\n")
    assert got.splitlines() == ["0|0|k1|v1|a=1,b=x", "0|1|k2|NULL|a=1,b=x", "0|2|k3|v3|a=1,b=x"]
    (first, *_) = kcat("-C", "-t", topic, "-e", "-q", "-J", "-c", 1).splitlines()
    message = json.loads(first)
    assert (message["topic"], message["partition"], message["offset"], message["key"], message["payload"]) == (
        *(topic, 0, 0),
        *("k1", "v1"),
    )
    assert message["tstype"] == "create"


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_compression(kcat: Kcat, topic: str, codec: str) -> None:
    lines = [f"{i} " + "compresses well " * 20 for i in range(2000)]
    kcat("-P", "-t", topic, "-X", f"compression.type={codec}", text="\n".join(lines) + "\n")
    assert kcat("-C", "-t", topic, "-e", "-q").splitlines() == lines


@pytest.mark.parametrize("options", ["acks=0", "acks=1", "acks=all", "enable.idempotence=true"])
def test_acks(kcat: Kcat, topic: str, options: str) -> None:
    lines = [str(i) for i in range(500)]
    kcat("-P", "-t", topic, "-X", options, text="\n".join(lines) + "\n")
    assert kcat("-C", "-t", topic, "-c", 500, "-q").splitlines() == lines


def test_offsets(kcat: Kcat, topic: str) -> None:
    """From the beginning, an offset, relative to the end, a time until a time; queries by time."""
    for i in range(5):
        kcat("-P", "-t", topic, text=f"{i}\n")
    times = [int(line) for line in kcat("-C", "-t", topic, "-e", "-q", "-f", r"%T\n").splitlines()]
    for offset, wanted in ((2, "2 3 4"), (-2, "3 4"), ("beginning", "0 1 2 3 4"), (f"s@{times[1]}", "1 2 3 4")):
        assert kcat("-C", "-t", topic, "-p", 0, "-o", offset, "-e", "-q").split() == wanted.split()
    assert kcat("-C", "-t", topic, "-o", f"s@{times[1]}", "-o", f"e@{times[3]}", "-e", "-q").split() == ["1", "2"]
    assert kcat("-Q", "-t", f"{topic}:0:{times[2]}").strip() == f"{topic} [0] offset 2"
    assert kcat("-Q", "-t", f"{topic}:0:-1").strip() == f"{topic} [0] offset 5"
    assert kcat("-Q", "-t", f"{topic}:0:-2").strip() == f"{topic} [0] offset 0"


def test_metadata(kcat: Kcat, broker: BrokerProcess, topic: str) -> None:
    create_topic(broker, topic, 3)
    told = json.loads(kcat("-L", "-J", "-t", topic))
    assert told["brokers"] == [{"id": 1, "name": broker.bootstrap}]
    assert told["controllerid"] == 1
    (described,) = told["topics"]
    assert [(one["partition"], one["leader"]) for one in described["partitions"]] == [(0, 1), (1, 1), (2, 1)]
    assert f'topic "{topic}" with 3 partitions' in kcat("-L")


def test_groups(kcat: Kcat, broker: BrokerProcess, topic: str) -> None:
    """Two members share the partitions; a later member goes on where they committed."""
    create_topic(broker, topic, 4)
    options = ("-X", "auto.offset.reset=earliest", "-X", "heartbeat.interval.ms=300")
    got: dict[int, list[str]] = {}

    def member(number: int) -> None:
        got[number] = kcat("-G", topic, *options, "-q", "-c", 100, topic, timeout_s=60).split()

    for partition in range(4):
        kcat("-P", "-t", topic, "-p", partition, text="\n".join(f"{partition}.{i}" for i in range(50)) + "\n")
    threads = [threading.Thread(target=member, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # A rebalance in the middle may deliver some records again, never skip one.
    first = set(got[0]) | set(got[1])
    assert len(got[0]) == len(got[1]) == 100
    rest = kcat("-G", topic, *options, "-q", "-e", topic).split()
    assert first | set(rest) == {f"{partition}.{i}" for partition in range(4) for i in range(50)}
    kcat("-P", "-t", topic, "-p", 2, text="last\n")
    assert kcat("-G", topic, *options, "-q", "-c", 1, topic).split() == ["last"]
