"""`tidelog cluster start` as a user meets it: three processes, one is killed, nothing is lost, Ctrl-C ends them all."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli import main
from tests.chaos.load import IdempotentLoad, check_all, create_topic

ROOT = Path(__file__).resolve().parents[2]
NODE = re.compile(r"  node (\d+)  pid (\d+)  (\S+)  (http://\S+)  (\S+)\n")
PORTS = ("--port", "0", "--http-port", "0")
SMALL = ("--override", "tidelog.wal.file.bytes=2097152")
PARTITIONS = 6
RECORDS = 2000


class Local:
    """The command in a process of its own, over `directory`."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.output: list[str] = []
        environment = {key: value for key, value in os.environ.items() if not key.startswith("KAFKA_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "broker", "cluster", "start", *PORTS, *SMALL, *options],
            cwd=directory,
            env={**environment, "PYTHONPATH": str(ROOT), "KAFKA_NODE_ID": "77"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_to(self, text: str) -> str:
        """The line that holds `text`; fails with everything printed when there is none."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if text in line:
                return line
        raise AssertionError("".join(self.output))

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.readlines()
        return self.process.wait(60)


@contextlib.contextmanager
def local(directory: Path, *options: str) -> Iterator[Local]:
    started = Local(directory, *options)
    try:
        yield started
    finally:
        started.process.kill()  # its brokers end with it
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()


NOWHERE = "http://127.0.0.1:9"


def has_ended(pid: int, timeout_s: float) -> bool:
    """Whether a process that is no child of ours ends in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


def test_a_broker_is_killed_nothing_is_lost_and_ctrl_c_ends_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with local(tmp_path) as cluster:
        cluster.read_to("Ctrl-C stops them all")
        nodes = {int(found[1]): found for found in NODE.finditer("".join(cluster.output))}
        assert sorted(nodes) == [1, 2, 3]
        everywhere = ",".join(found[3] for found in nodes.values())
        create_topic(everywhere, PARTITIONS)
        load = IdempotentLoad(everywhere, PARTITIONS, records_per_s=2 * RECORDS).start()
        load.wait_for(RECORDS)

        assert main(["broker", "list", "-b", nodes[1][3], "--http", NOWHERE]) == 0
        listed, told = (text.splitlines() for text in capsys.readouterr())
        assert "drained brokers are not marked, see --http: no broker answers at" in told[0]
        assert [line.split()[:2] for line in listed[1:]] == [
            [str(node_id), found[3]] for node_id, found in nodes.items()
        ]
        assert [line.split()[-1] for line in listed[1:]] == ["2", "2", "2"]
        assert sum(" yes " in line for line in listed) == 1
        assert all(" alive " in line for line in listed[1:])

        os.kill(int(nodes[2][2]), signal.SIGKILL)
        assert "was killed by SIGKILL" in cluster.read_to("node 2 ")
        assert cluster.read_to("start it again").endswith("start tidelog-data/node-2.properties\n")
        load.wait_for(load.acknowledged + RECORDS)
        check_all(everywhere, load.finish())
        assert main(["broker", "list", "-b", nodes[1][3], "--http", NOWHERE]) == 0
        listed = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in listed if " gone " in line] == ["2"]
        assert main(["topic", "describe", "load", "-b", nodes[1][3]]) == 0
        assert {line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]} == {"1", "3"}

        cluster.process.send_signal(signal.SIGINT)
        assert cluster.finish() == 0, "".join(cluster.output)
        assert list((tmp_path / "tidelog-data" / "wal").iterdir()) == []


def test_the_brokers_end_with_who_started_them(tmp_path: Path) -> None:
    with local(tmp_path, "--brokers", "2") as cluster:
        cluster.read_to("Ctrl-C stops them all")
        pids = [int(found[2]) for found in NODE.finditer("".join(cluster.output))]
        cluster.process.kill()
        assert len(pids) == 2
        assert all(has_ended(pid, 30) for pid in pids)
    assert list((tmp_path / "tidelog-data" / "wal").iterdir()) == []


def test_a_broker_that_cannot_start_stops_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with local(tmp_path, "--brokers", "2", "--http-port", str(port)) as cluster:
            assert cluster.finish() == 1
    text = "".join(cluster.output)
    assert "stopping the others" in text
    assert f"cannot listen on tidelog.http.listener 127.0.0.1:{port}" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--override", "tidelog.seal.mss=5"], "did you mean tidelog.seal.ms?"),
        (["--override", "tidelog.seal.ms"], "write key=value"),
        (["--port", "65500"], "is not NAME://host:port"),
        (["--data-dir", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_unusable_settings_are_told_before_anything_starts(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", "start", "--data-dir", str(tmp_path / "data"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.properties"))
