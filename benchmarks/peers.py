"""The brokers that are compared: each a process of its own, in a directory of its own, on ports the system chooses.

`tidelog` runs with its defaults (file-system bucket and WAL on the disk that Kafka's logs are on, uploads running).
`kafka-cache` is Apache Kafka with its defaults: an acknowledged record is in the page cache. `kafka-fsync` flushes
before it acknowledges, which is what tidelog promises. `tidelog-postponed` seals by age only, so
that what a load costs and what sealing and uploading it costs can be told apart. `tidelog-before` is tidelog from
another source tree: what a change costs is seen in one run with what it was made to.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from benchmarks.processes import ROOT, BenchError, cpu_s_of_one, end, free_port, idle_share, run, spawn
from benchmarks.toolchain import kafka_classpath

READY_TIMEOUT_S = 60

GIB = 1 << 30
TIDELOG_POSTPONED = {"tidelog.seal.bytes": 2 * GIB, "tidelog.tail.bytes.max": 3 * GIB}

KAFKA_OPTIONS = [  # those of kafka-server-start.sh and kafka-run-class.sh
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
]
KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={directory}/logs
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""


class Peer:
    """One broker. Subclasses say how it is started."""

    cold_by_restart = False  # whether a start leaves nothing in memory of what was written before

    def __init__(self, name: str, directory: Path, settings: Mapping[str, object]) -> None:
        self.name = name
        self.directory = directory
        self.settings = dict(settings)
        self.tree = ROOT  # where it is started
        self.port = 0
        self.idle_share = 0.0  # of a core, once warm
        self.look_cpu_s = 0.0  # of one `unfinished`, once warm
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The broker's process id."""
        assert self._process is not None, f"{self.name} is not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.directory.with_suffix(".log")

    def start(self) -> None:
        """Start on an empty directory and wait until the broker answers."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.prepare()
        self.resume()

    def resume(self) -> None:
        """Start on the directory as it is and wait until the broker answers."""
        assert not self.running, f"{self.name} runs already"
        if not self.port:
            self.port = free_port()
        self._process = spawn(self.command(), self.log, cwd=self.tree)
        self._wait_until_ready()

    def restart(self) -> None:
        """A clean stop, then a start on the same data."""
        self.stop()
        self.resume()

    def stop(self) -> None:
        """End the process cleanly; nothing happens if it does not run."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def clear(self) -> None:
        """Delete the data; the log file stays."""
        assert not self.running, f"{self.name} still runs"
        shutil.rmtree(self.directory, ignore_errors=True)

    def create_topic(self, name: str, partitions: int, configs: Mapping[str, str] | None = None) -> None:
        """Create a topic and wait until every partition is served."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            topic = NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=dict(configs or {}))
            admin.create_topics([topic], timeout_ms=30_000)
            with contextlib.closing(KafkaConsumer(bootstrap_servers=self.bootstrap)) as consumer:
                consumer.end_offsets([TopicPartition(name, partition) for partition in range(partitions)])
        except KafkaError as error:
            raise BenchError(f"{self.name}: topic {name}: {error!r}\n{self.log_tail()}") from None
        finally:
            admin.close()

    def delete_topic(self, name: str) -> None:
        """Delete a topic; a broker that cannot is no reason to stop."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.delete_topics([name])
        except KafkaError as error:
            print(f"  {self.name}: topic {name} stays: {error!r}", file=sys.stderr)
        finally:
            admin.close()

    def log_tail(self, characters: int = 2000) -> str:
        """The end of what the process said."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def note_idle(self) -> None:
        """Measure what the broker uses without any load, and what looking at it costs."""
        self.idle_share = idle_share(self.pid)
        self.look_cpu_s = cpu_s_of_one(self.pid, self.unfinished)

    def unfinished(self) -> bool:
        """Whether the way through the broker of what producers sent is not complete."""
        return False

    def unsealed_bytes(self) -> int:
        """Bytes taken from producers that are in the broker's memory alone, more or less."""
        return 0

    def prepare(self) -> None:
        """Whatever must be in the directory before the first start."""

    def command(self) -> list[str]:
        """The command line of the broker."""
        raise NotImplementedError

    def _wait_until_ready(self) -> None:
        deadline = time.perf_counter() + READY_TIMEOUT_S
        while time.perf_counter() < deadline:
            if not self.running:
                self._process = None
                raise BenchError(f"{self.name} ended at its start:\n{self.log_tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()  # kafka-python would wait long
                admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
                try:
                    if admin.describe_cluster().get("brokers"):
                        return
                finally:
                    admin.close()
            except (KafkaError, OSError, ValueError):
                pass
            time.sleep(0.2)
        self.stop()
        raise BenchError(f"{self.name} did not answer in {READY_TIMEOUT_S} s:\n{self.log_tail()}")


class Tidelog(Peer):
    """`tidelog start` from a source tree."""

    cold_by_restart = True
    http_port = 0

    def __init__(self, name: str, directory: Path, settings: Mapping[str, object], tree: Path = ROOT) -> None:
        super().__init__(name, directory, settings)
        self.tree = tree

    def unfinished(self) -> bool:
        values = self._metrics()
        return bool(values["tidelog_unsealed_logs"] or values["tidelog_seals_in_flight"])

    def unsealed_bytes(self) -> int:
        values = self._metrics()
        return int(values["tidelog_tail_bytes"] - values["tidelog_tail_kept_bytes"])

    def _metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, value in (line.split() for line in lines if line.count(" ") == 1)}

    def command(self) -> list[str]:
        self.http_port = self.http_port or free_port()
        settings: dict[str, object] = {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "tidelog.http.listener": f"127.0.0.1:{self.http_port}",
            "tidelog.data.dir": self.directory,
            **self.settings,
        }
        overrides = [part for key, value in settings.items() for part in ("--override", f"{key}={value}")]
        return [sys.executable, "-m", "broker", "start", *overrides]


class Kafka(Peer):
    """Apache Kafka in KRaft mode, broker and controller in one process."""

    def prepare(self) -> None:
        self.port = free_port()
        properties = KAFKA_PROPERTIES.format(port=self.port, controller_port=free_port(), directory=self.directory)
        properties += "".join(f"{key}={value}\n" for key, value in self.settings.items())
        (self.directory / "server.properties").write_text(properties)
        tool = ["java", "-cp", kafka_classpath(), "kafka.tools.StorageTool"]
        uuid = run([*tool, "random-uuid"], 60).strip().splitlines()[-1]
        run([*tool, "format", "--standalone", "-t", uuid, "-c", str(self.directory / "server.properties")], 60)

    def command(self) -> list[str]:
        properties = str(self.directory / "server.properties")
        return ["java", *KAFKA_OPTIONS, "-cp", kafka_classpath(), "kafka.Kafka", properties]


NAMES = ("tidelog", "kafka-cache", "kafka-fsync")
BEFORE = "tidelog-before"
EXTRA_NAMES = ("tidelog-postponed",)


def make_peer(name: str, directory: Path, before: Path | None = None) -> Peer:
    """The peer of that name with its data under `directory`; `before`: the source tree of `tidelog-before`."""
    match name:
        case "tidelog":
            return Tidelog(name, directory / name, {})
        case "tidelog-postponed":
            return Tidelog(name, directory / name, TIDELOG_POSTPONED)
        case "tidelog-before" if before is not None:
            return Tidelog(name, directory / name, {}, before)
        case "kafka-cache":
            return Kafka(name, directory / name, {})
        case "kafka-fsync":
            return Kafka(name, directory / name, {"log.flush.interval.messages": 1})
    raise BenchError(f"no such peer: {name}; known: {', '.join(NAMES + EXTRA_NAMES)}")
