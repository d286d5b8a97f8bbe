"""Kafka's own command-line tools and small Java programs of ours, each in a JVM of its own, ended by its id; or many
commands one after the other in one JVM.
"""

import base64
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.compatibility import java, versions

_OPTIONS = (
    "-Xmx512M",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # a tool that lives for a second is not worth the second compiler
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
TIMEOUT_S = 60

_ONCE_IN_A_JVM = {
    "VerifiableProducer",
    "VerifiableShareConsumer",
    "consumer.ConsoleConsumer",
    "consumer.ConsoleShareConsumer",
}
"""They count in static fields what they print, or end their work in a hook of the JVM's own end."""

_BEFORE_4 = {"ConsoleProducer": "kafka.tools.", "BrokerApiVersionsCommand": "kafka.admin."}


class Output(NamedTuple):
    """What a tool said; `err` also holds the warnings of the client inside it."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of the standard output that are not empty."""
        return [line for line in self.out.splitlines() if line.strip()]


def refused(told: Output, words: str) -> None:
    """The tool failed with these words."""
    assert told.code == 1 and words in told.out + told.err, told


@dataclass(frozen=True)
class Tools:
    """The tools of one Kafka version."""

    version: str
    classpath: str

    @property
    def older(self) -> bool:
        """Whether options are spelled as before Kafka 4."""
        return self.version == versions.OLDER_KAFKA

    def main_class(self, name: str) -> str:
        """The class of a tool: it is below `org.apache.kafka.tools`, in `kafka.`, or ours in `main.`."""
        if name.startswith(("kafka.", "main.")):
            return name.removeprefix("main.")
        return ((_BEFORE_4.get(name) if self.older else None) or "org.apache.kafka.tools.") + name

    def command(self, name: str, *arguments: object) -> list[str]:
        """The command line of a tool."""
        return [java.tool("java"), *_OPTIONS, "-cp", self.classpath, self.main_class(name), *map(str, arguments)]

    def try_run(self, name: str, *arguments: object, text: str = "", timeout_s: float = TIMEOUT_S) -> Output:
        """Run to the end."""
        done = subprocess.run(
            self.command(name, *arguments), input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return Output(done.returncode, done.stdout, done.stderr)

    def run(self, name: str, *arguments: object, text: str = "", timeout_s: float = TIMEOUT_S) -> Output:
        """Run to the end; it has to succeed, and the client inside must not have complained."""
        return _succeeded(name, self.try_run(name, *arguments, text=text, timeout_s=timeout_s))

    @contextlib.contextmanager
    def running(self, name: str, *arguments: object) -> "Iterator[Running]":
        """A tool that runs until it is told to end."""
        tool = Running(_spawn(self.command(name, *arguments)))
        try:
            yield tool
        finally:
            tool.kill()


class Running:
    """A tool under way; `lines` grows as it prints."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.err: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=(process.stdout, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, self.err), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream: "Iterator[str]", lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    def wait_for(self, condition: Callable[[list[str]], object], seconds: float = TIMEOUT_S) -> None:
        """Until it holds for the lines printed so far."""
        deadline = time.monotonic() + seconds  # noqa: TID251
        while not condition(self.lines):
            what = f"{self.lines[-5:]} {self.err[-20:]}"
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {what}"
            assert time.monotonic() < deadline, f"it did not happen: {what}"  # noqa: TID251
            time.sleep(0.01)

    def end(self, seconds: float = TIMEOUT_S) -> int:
        """SIGTERM, as a user's control-C; the exit code."""
        self.process.terminate()
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join()
        return code

    def wait(self, seconds: float = TIMEOUT_S) -> int:
        """Until it ends by itself; the exit code."""
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join()
        return code

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Shell:
    """The tools of one Kafka version, one after the other in one JVM (`Shell.java`): a command costs what its work
    costs, and not the start of a JVM. Used as `Tools`.
    """

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.older = tools.older
        self.running = tools.running
        self._jvm: Running | None = None

    def try_run(self, name: str, *arguments: object, text: str = "", timeout_s: float = TIMEOUT_S) -> Output:
        """Run to the end."""
        if name in _ONCE_IN_A_JVM:
            return self.tools.try_run(name, *arguments, text=text, timeout_s=timeout_s)
        jvm = self._jvm
        if jvm is None:
            jvm = self._jvm = Running(_spawn(self.tools.command("main.Shell")))
        words = [text, self.tools.main_class(name), *map(str, arguments)]
        stdin = jvm.process.stdin
        assert stdin is not None
        had = len(jvm.lines)
        stdin.write(" ".join(base64.b64encode(word.encode()).decode() or "-" for word in words) + "\n")
        stdin.flush()
        try:
            jvm.wait_for(lambda lines: len(lines) > had, timeout_s)
        except BaseException:
            self.close()
            raise
        code, out, err = jvm.lines[-1].split(" ")
        return Output(int(code), *("" if part == "-" else base64.b64decode(part).decode() for part in (out, err)))

    def run(self, name: str, *arguments: object, text: str = "", timeout_s: float = TIMEOUT_S) -> Output:
        """See `Tools.run`."""
        return _succeeded(name, self.try_run(name, *arguments, text=text, timeout_s=timeout_s))

    def close(self) -> None:
        """End the JVM."""
        if self._jvm is not None:
            self._jvm.kill()
            self._jvm = None


def _spawn(command: list[str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _succeeded(name: str, told: Output) -> Output:
    assert told.code == 0, f"{name} ended with {told.code}:\n{told.out[-3000:]}\n{told.err[-3000:]}"
    complaints = [line for line in told.err.splitlines() if " WARN " in line or " ERROR " in line]
    assert not [line for line in complaints if not _harmless(line)], complaints
    return told


def _harmless(line: str) -> bool:
    """What the same tools say to an Apache Kafka too."""
    return any(text in line for text in ("These configurations", "AppInfo", "deprecated", "SLF4J"))


def tools(version: str, sources: Sequence[Path] = ()) -> Tools:
    """The tools of a version, fetched once, and programs of ours compiled against its clients."""
    artifacts = java.kafka("kafka_2.13", "kafka-tools", "kafka-clients", version=version)
    # In front, because older versions bring a logger that says nothing unless it finds a file.
    logger = java.fetch([f"org.slf4j:slf4j-simple:{versions.SLF4J}"])
    classpath = f"{logger}{os.pathsep}{java.fetch(artifacts)}"
    for source in sources:
        classpath = java.compile_source(source, classpath)
    return Tools(version, classpath)


@contextlib.contextmanager
def shell(version: str) -> Iterator[Shell]:
    """The tools of a version in one JVM, which is started with the first command."""
    opened = Shell(tools(version, [Path(__file__).with_name("Shell.java")]))
    try:
        yield opened
    finally:
        opened.close()
