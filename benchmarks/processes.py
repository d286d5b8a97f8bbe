"""Processes: start them with their output in a file, measure them by `/proc`, end them by their id."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A peer or a client did not do what it should; the message says which and how it ended."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def family(pid: int) -> Iterator[int]:
    """`pid` and all its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in children.read_text().split():
                    yield from family(int(child))


def cpu_s(pid: int) -> float:
    """User and system CPU of a process with its descendants, in seconds (resolution: one tick, 10 ms)."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def peak_rss_mb(pid: int) -> float:
    """The largest resident memory since `forget_peak`, in MB of 10^6 bytes."""
    kib = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    kib += int(line.split()[1])
    return kib * 1024 / 1e6


def forget_peak(pid: int) -> None:
    """Let the peak of resident memory begin again at what is resident now."""
    for member in family(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5")


@dataclass
class Usage:
    """What a broker used during one run."""

    cpu_s: float = 0.0
    seconds: float = 0.0
    peak_rss_mb: float = 0.0


@contextlib.contextmanager
def measure(
    pid: int,
    *,
    idle: float = 0.0,
    unfinished: Callable[[], bool] = lambda: False,
    look_cpu_s: float = 0.0,
    finish_s: float = 15.0,
) -> Iterator[Usage]:
    """Measure a broker while the block runs. CPU is counted until the broker has calmed down, and while `unfinished()`
    says that work put off is still to be done (at most `finish_s`): what a load causes belongs to it. What the broker
    uses anyhow, `idle` of a core, is not counted while it is waited for, nor is what every `unfinished()` costs it.
    """
    usage = Usage()
    os.sync()  # what other peers left dirty is not written during this run
    forget_peak(pid)
    cpu_before, began = cpu_s(pid), time.perf_counter()
    yield usage
    usage.seconds = time.perf_counter() - began
    settle(pid)
    deadline = began + usage.seconds + finish_s
    looks = 1
    while unfinished() and time.perf_counter() < deadline:
        time.sleep(0.5)
        looks += 1
    waited_s = time.perf_counter() - began - usage.seconds
    usage.cpu_s = cpu_s(pid) - cpu_before - idle * waited_s - look_cpu_s * looks
    usage.peak_rss_mb = peak_rss_mb(pid)


def idle_share(pid: int, seconds: float = 5.0) -> float:
    """How much of a core a process uses that has nothing to do; CPU is told in ticks of 10 ms, so not in a moment."""
    settle(pid)
    before, began = cpu_s(pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_s(pid) - before) / (time.perf_counter() - began)


def cpu_s_of_one(pid: int, call: Callable[[], object], calls: int = 100) -> float:
    """What one `call` costs the process."""
    before = cpu_s(pid)
    for _ in range(calls):
        call()
    return (cpu_s(pid) - before) / calls


def settle(pid: int, *, quiet_below: float = 0.1, at_most_s: float = 10.0) -> None:
    """Wait until the process uses less than `quiet_below` of a core over 0.3 s."""
    end = time.perf_counter() + at_most_s
    while time.perf_counter() < end:
        before = cpu_s(pid)
        time.sleep(0.3)
        if cpu_s(pid) - before <= 0.3 * quiet_below:
            return


def spawn(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> "subprocess.Popen[bytes]":
    """Start a process in `cwd` whose output goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
        )


def end(process: "subprocess.Popen[bytes]", timeout_s: float = 60) -> None:
    """SIGTERM, and SIGKILL when that takes too long; reaps."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def run(command: Sequence[str], timeout_s: float) -> str:
    """Run a client to its end; its standard output. BenchError with its output when it fails or hangs."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{_name(command)} did not end in {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise BenchError(f"{_name(command)} exited with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


def _name(command: Sequence[str]) -> str:
    return next((part for part in command if "Performance" in part), Path(command[0]).name)


def disk_used(path: Path) -> int:
    """Bytes allocated below a directory."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total
