"""Clients of other languages, unmodified: franz-go and Sarama (Go), KafkaJS (Node), each as a program of its own."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import go_tools
from tests.support.broker_process import BrokerProcess

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(600)]

FOREIGN = Path(__file__).with_name("foreign")


def go_program(name: str) -> list[str]:
    """Built from `foreign/NAME`; versions are in its go.sum."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    return [str(go_tools.build(FOREIGN / name))]


def kafkajs() -> list[str]:
    """From npm, as package-lock.json says, beside a copy of our program."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    lock = (FOREIGN / "kafkajs" / "package-lock.json").read_bytes()
    target = go_tools.CACHE / f"kafkajs-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not (target / "node_modules").exists():
        shutil.copytree(FOREIGN / "kafkajs", target, dirs_exist_ok=True)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=target, check=True, capture_output=True)
    return ["node", str(shutil.copy(FOREIGN / "kafkajs" / "client.js", target))]


PROGRAMS: dict[str, Callable[[], list[str]]] = {
    "franz-go": lambda: go_program("franz"),
    "sarama": lambda: go_program("sarama"),
    "kafkajs": kafkajs,
}


@pytest.mark.parametrize("scenario", ["roundtrip", "transactions"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_scenario(broker: BrokerProcess, topic: str, program: str, scenario: str) -> None:
    command = [*PROGRAMS[program](), scenario, broker.bootstrap, topic]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (told.returncode, told.stdout.strip()) == (0, "passed"), told.stderr[-3000:]
