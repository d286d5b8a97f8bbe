"""`tidelog cluster start`: several brokers on this machine, to try a cluster without containers.

Every broker is a process of its own with a properties file of its own, so that each can be killed, stopped and started
by hand. They share one bucket and one WAL root: a broker that dies is recovered by its siblings at once. Nothing is
started again by itself.
"""

import argparse
import ctypes
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.cli.output import CommandError, positive
from broker.settings import SettingError
from broker.settings_sources import ENVIRONMENT_PREFIX, key_of_variable, load, parse_overrides

PORT, HTTP_PORT, PORT_STEP = 9092, 9644, 100
LOG_LINES = 5
_PR_SET_PDEATHSIG = 1
_CLIENTS = re.compile(r"  clients  [A-Z_]+://(\S+)$")
_HTTP = re.compile(r"  http     (\S+)$")
_CLUSTER = re.compile(r"tidelog \S+, node \d+ of cluster (\S+)$")
_READY = re.compile(r"ready in ")


def add_verb(verbs: Any) -> None:
    """The options of the verb; `verbs` are the sub-parsers of `tidelog cluster`."""
    text = "run several brokers on this machine, with one bucket; Ctrl-C stops them"
    verb = verbs.add_parser("start", help=text, description=text)
    verb.add_argument("--brokers", type=positive, default=3, help="how many (default: 3)")
    verb.add_argument("--data-dir", type=Path, default=Path("tidelog-data"), help="default: ./tidelog-data")
    verb.add_argument(
        "--port", type=int, default=PORT, help=f"of node 1, each next one {PORT_STEP} above; 0: the system chooses"
    )
    verb.add_argument(
        "--http-port", type=int, default=HTTP_PORT, help="the same for metrics, probes and operator commands"
    )
    verb.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="a setting of all brokers; repeatable"
    )
    verb.set_defaults(run=run)


def properties_of(options: argparse.Namespace, node_id: int, overrides: Mapping[str, str]) -> dict[str, str]:
    """The settings of one broker; `overrides` win."""

    def port(first: int) -> int:
        return first + (node_id - 1) * PORT_STEP if first else 0

    return {
        "node.id": str(node_id),
        "listeners": f"PLAINTEXT://127.0.0.1:{port(options.port)}",
        "advertised.listeners": "",
        "tidelog.http.listener": f"127.0.0.1:{port(options.http_port)}",
        "tidelog.data.dir": str(options.data_dir),
        **overrides,
    }


class Node:
    """One broker process and what it has told."""

    def __init__(self, node_id: int, properties: Mapping[str, str], data_dir: Path) -> None:
        self.node_id = node_id
        self.properties = properties
        self.file = data_dir / f"node-{node_id}.properties"
        self.log = data_dir / f"node-{node_id}.log"
        self.address = self.http = self.cluster_id = ""
        self.ready = False
        self.code: int | None = None
        self._unread = b""

    def spawn(self, die_with_us: ctypes.CDLL) -> None:
        """Start the process: in a group of its own, so that Ctrl-C reaches it through us alone."""
        text = "".join(f"{key}={value}\n" for key, value in self.properties.items())
        self.file.write_text(f"# written by `tidelog cluster start` at every start\n{text}")
        environment = {
            key: value
            for key, value in os.environ.items()
            if not (key.startswith(ENVIRONMENT_PREFIX) and key_of_variable(key) in self.properties)
        }
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        with self.log.open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "broker", "start", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                process_group=0,
                preexec_fn=lambda: die_with_us.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def read(self) -> None:
        """Take what the process has printed; `code` is set when that was its end."""
        data = os.read(self.stdout.fileno(), 65_536)
        if not data:
            self.stdout.close()
            self.code = self.process.wait()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._heard(line.decode(errors="replace"))

    def _heard(self, line: str) -> None:
        if found := _CLIENTS.match(line):
            self.address = found[1]
        elif found := _HTTP.match(line):
            self.http = found[1]
        elif found := _CLUSTER.match(line):
            self.cluster_id = found[1]
        elif _READY.match(line):
            self.ready = True

    def ended(self) -> str:
        """How it ended, in words."""
        assert self.code is not None
        if self.code < 0:
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"ended with exit code {self.code}"

    def log_end(self) -> str:
        """The last lines of its log, indented."""
        return "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


class LocalCluster:
    """Starts the brokers, tells what happens to them, and stops them when told to."""

    def __init__(self, nodes: Sequence[Node], data_dir: Path) -> None:
        self._nodes = nodes
        self._data_dir = data_dir
        self._running: list[Node] = []
        self._stopping = self._failed = False
        self._announced = False

    def run(self) -> int:
        """Until every broker has ended; 0: they all stopped cleanly when told to."""
        told, tell = socket.socketpair()
        tell.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(tell.fileno())
        libc = ctypes.CDLL(None)
        print(f"starting {len(self._nodes)} brokers over {self._data_dir}", flush=True)
        with told, tell, selectors.DefaultSelector() as selector:
            selector.register(told, selectors.EVENT_READ)
            for node in self._nodes:
                node.spawn(libc)
                self._running.append(node)
                selector.register(node.stdout, selectors.EVENT_READ, node)
            while self._running:
                for key, _ in selector.select():
                    if key.data is None:
                        told.recv(64)
                        self._stop("stopping all brokers: each commits what it has to the bucket")
                        continue
                    fileno = key.fd
                    key.data.read()
                    if key.data.code is not None:
                        selector.unregister(fileno)
                        self._ended(key.data)
                if not self._announced and not self._stopping and all(node.ready for node in self._nodes):
                    self._announced = True
                    print(announcement(self._nodes), flush=True)
            signal.set_wakeup_fd(-1)
        print("every broker has ended", flush=True)
        return int(self._failed)

    def _stop(self, why: str) -> None:
        print(why, flush=True)
        self._stopping = True
        for node in self._running:
            node.process.send_signal(signal.SIGTERM)

    def _ended(self, node: Node) -> None:
        self._running.remove(node)
        if self._stopping and node.code == 0:
            return
        print(f"node {node.node_id} (pid {node.process.pid}) {node.ended()}", flush=True)
        if node.code != 0 and not (node.ready and node.code == -signal.SIGKILL):
            print(f"  {node.log} ends with\n{node.log_end()}", flush=True)
        if self._stopping:
            self._failed = True
        elif not node.ready:
            self._failed = True
            self._stop("stopping the others")
        elif self._running:
            print(f"  start it again: {command()} start {node.file}", flush=True)


def command() -> str:
    """How to call us, as far as we know."""
    return sys.argv[0] if Path(sys.argv[0]).name == "tidelog" else "tidelog"


def announcement(nodes: Sequence[Node]) -> str:
    """Where the brokers are, and what to try."""
    tidelog, first, victim, leaving = command(), nodes[0], nodes[len(nodes) // 2], nodes[-1]
    where = "" if first.address == f"127.0.0.1:{PORT}" else f" -b {first.address}"
    lines = [f"cluster {first.cluster_id}: {len(nodes)} brokers are ready", ""]
    for node in nodes:
        http = f"  {node.http}" if node.http else ""
        lines.append(f"  node {node.node_id}  pid {node.process.pid}  {node.address}{http}  {node.log}")
    tries = [
        (f"{tidelog} broker list{where}", "who is there, who leads how much"),
        (f"{tidelog} topic create payments --partitions 6{where}", ""),
        (f"seq 1 100000 | {tidelog} produce payments{where}", ""),
        (f"kill -9 {victim.process.pid}", f"node {victim.node_id} dies; the others recover its WAL and lead for it"),
        (f"{tidelog} topic describe payments{where}", "leaders and epochs have changed, no record is missing"),
        (f"{tidelog} consume payments --exit-at-end{where} | wc -l", ""),
        (f"{tidelog} start {victim.file}", f"node {victim.node_id} is back; within a minute it leads its share again"),
        (
            f"kill {leaving.process.pid}",
            f"node {leaving.node_id} leaves: the others take over first",
        ),
    ]
    if victim is first:
        del tries[3:]
    width = max(len(text) for text, _ in tries)
    lines += ["", "Try in another terminal:", ""]
    lines += [f"  {text:{width}}  # {note}" if note else f"  {text}" for text, note in tries]
    return "\n".join([*lines, "", "Ctrl-C stops them all."])


def run(options: argparse.Namespace) -> int:
    """Start, tell, wait for Ctrl-C, stop."""
    nodes = []
    try:
        overrides = parse_overrides(options.override)
        options.data_dir.mkdir(parents=True, exist_ok=True)
        for node_id in range(1, options.brokers + 1):
            properties = properties_of(options, node_id, overrides)
            load(None, "", {}, properties)  # what cannot be used is told once, before anything is started
            nodes.append(Node(node_id, properties, options.data_dir))
        return LocalCluster(nodes, options.data_dir).run()
    except (OSError, SettingError) as error:
        raise CommandError(str(error)) from None
