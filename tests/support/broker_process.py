"""A real broker process for tests: `tidelog start` on ports the system chooses, ended by its id."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"^ready in ")
LISTENER = re.compile(r"clients\s+[A-Z_]+://(\S+):(\d+)")
HTTP = re.compile(r"http\s+http://(\S+):(\d+)")


class BrokerProcess:
    """Starts, kills and restarts one broker over one data directory.

    Small files and bounds by default, so that tests reach the interesting sizes quickly; `overrides` win.
    """

    def __init__(self, data_dir: Path, **overrides: object) -> None:
        self.data_dir = data_dir
        self.overrides: dict[str, object] = {
            "listeners": "PLAINTEXT://127.0.0.1:0",
            "tidelog.http.listener": "127.0.0.1:0",
            "tidelog.data.dir": data_dir,
            "tidelog.wal.file.bytes": 8 << 20,
            "group.initial.rebalance.delay.ms": 0,
            **{key.replace("_", "."): value for key, value in overrides.items()},
        }
        self.command = [sys.executable, "-m", "broker"]
        self.process: subprocess.Popen[str] | None = None
        self.bootstrap = ""
        self.http = ""
        self.output: list[str] = []
        self._ready = threading.Event()
        self._reader: threading.Thread | None = None
        self._stderr = data_dir.with_suffix(".log")

    @property
    def port(self) -> int:
        """Port of the client listener."""
        return int(self.bootstrap.rpartition(":")[2])

    def spawn(self, *, fixed_port: bool = True) -> None:
        """Start the process without waiting; a restart keeps the client port unless told otherwise."""
        assert self.process is None or self.process.poll() is not None, "still running"
        overrides = dict(self.overrides)
        if fixed_port and self.bootstrap:
            overrides["listeners"] = f"PLAINTEXT://{self.bootstrap}"
        command = [*self.command, "start"]
        for key, value in overrides.items():
            command += ["--override", f"{key}={value}"]
        self._ready.clear()
        self.output = []
        with self._stderr.open("a") as stderr:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("KAFKA_")}
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
            )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line)
                if found := LISTENER.search(line):
                    self.bootstrap = f"{found[1]}:{found[2]}"
                if found := HTTP.search(line):
                    self.http = f"http://{found[1]}:{found[2]}"
                if READY.match(line):
                    self._ready.set()
        self._ready.set()

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Wait for the line that says the broker serves; fail with the log when it ends instead."""
        assert self._ready.wait(timeout_s), f"not ready in {timeout_s} s:\n{self.log_tail()}"
        assert any(READY.match(line) for line in self.output), f"ended before it was ready:\n{self.log_tail()}"

    def start(self, timeout_s: float = 30) -> "BrokerProcess":
        """Start and wait until it serves."""
        self.spawn()
        self.wait_ready(timeout_s)
        return self

    def signal(self, number: int) -> None:
        """Send a signal to exactly this process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL and reap."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        self.wait()

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM, wait, and give the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for the end of the process; its exit code."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end in {timeout_s} s:\n{self.log_tail()}") from None
        if self._reader is not None:
            self._reader.join()
        return code

    def log_tail(self, lines: int = 40) -> str:
        """The end of what the process wrote to stderr, over all its runs."""
        if not self._stderr.exists():
            return ""
        return "\n".join(self._stderr.read_text().splitlines()[-lines:])

    def __enter__(self) -> "BrokerProcess":
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill()
