"""What the tests with Java need: jars from Maven, classes from our own sources, both kept under `.cache/`.

Everything is skipped where there is no JDK or no Maven.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.compatibility import versions

KAFKA_VERSION = versions.PROTOCOL
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "java"

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>tidelog</groupId><artifactId>tests</artifactId><version>1</version>
<dependencies>{}</dependencies></project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def tool(name: str) -> str:
    """The path of `java`, `javac` or `mvn`; skips the test where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def kafka(*artifacts: str, version: str = KAFKA_VERSION) -> list[str]:
    """Kafka's artifacts, by default in the version that we say we speak: `kafka("kafka-clients")`."""
    return [f"org.apache.kafka:{artifact}:{version}" for artifact in artifacts]


def fetch(artifacts: list[str]) -> str:
    """A class path of these artifacts (`group:artifact:version`) and all they depend on. The network is used once."""
    target = CACHE / ("jars-" + _digest("\n".join(artifacts)))
    if not target.exists():
        mvn = tool("mvn")
        with _staging(target) as staging:
            dependencies = "".join(_DEPENDENCY.format(*artifact.split(":")) for artifact in artifacts)
            (staging / "pom.xml").write_text(_POM.format(dependencies))
            options = ["-DincludeScope=runtime", f"-DoutputDirectory={staging}"]
            _run([mvn, "-q", "-B", "-f", str(staging / "pom.xml"), "dependency:copy-dependencies", *options])
    return str(target / "*")


def compile_source(source: Path, classpath: str) -> str:
    """`classpath` with the classes of one source file in front."""
    target = CACHE / ("classes-" + _digest(source.read_text() + classpath))
    if not target.exists():
        javac = tool("javac")
        with _staging(target) as staging:
            _run([javac, "-cp", classpath, "-d", str(staging), str(source)])
    return f"{target}{os.pathsep}{classpath}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _staging:
    """A directory that becomes `target` once it is complete, so that a killed or a second run does no harm."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Path:
        CACHE.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(dir=CACHE))
        return self._path

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None and not self._target.exists():
            self._path.rename(self._target)
        else:
            shutil.rmtree(self._path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
