"""The Dockerfile, read by BuildKit's own parser and linter; its commands and its broker run outside of a container."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.cli import parser
from broker.settings_sources import load
from tests.deploy.tools import DEPLOY, ROOT, checker, needs_go
from tests.support.broker_process import BrokerProcess

pytestmark = needs_go

VENV, SOURCES = "/opt/tidelog", "/src"


@pytest.fixture(scope="module")
def dockerfile() -> dict[str, Any]:
    found: dict[str, Any] = checker("dockerfile", DEPLOY / "Dockerfile")
    return found


def values(stage: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What the instructions of one kind say."""
    return [each["value"] for each in stage["instructions"] if each["name"] == name]


def test_the_linter_finds_nothing(dockerfile: dict[str, Any]) -> None:
    assert dockerfile["warnings"] == []


def test_stages_and_versions(dockerfile: dict[str, Any]) -> None:
    build, final = dockerfile["stages"]
    assert build["base"] == final["base"] == "${PYTHON_IMAGE}"
    version = "{}.{}".format(*sys.version_info)
    assert re.fullmatch(rf"python:{re.escape(version)}\.\d+-slim-[a-z]+", dockerfile["arguments"]["PYTHON_IMAGE"])
    assert [copy["SourcePaths"] for copy in values(final, "COPY") if copy["From"] == build["name"]] == [[VENV]]
    commands = " ".join(line for run in values(build, "RUN") for line in run["CmdLine"])
    assert "--require-hashes --only-binary :all: -r requirements.lock" in commands
    assert "apt-get" not in commands
    (label,) = values(final, "LABEL")
    labels = {pair["Key"]: pair["Value"] for pair in label["Labels"]}
    assert f"\nversion = {labels['org.opencontainers.image.version']}\n" in (ROOT / "pyproject.toml").read_text()


def test_the_image_runs_a_broker_without_rights(dockerfile: dict[str, Any]) -> None:
    final = dockerfile["stages"][-1]
    settings = load((DEPLOY / "server.properties").read_text()).settings
    assert [user["User"] for user in values(final, "USER")] == ["10001:10001"]
    assert [stop["Signal"] for stop in values(final, "STOPSIGNAL")] == ["SIGTERM"]
    (entry,), (command,) = values(final, "ENTRYPOINT"), values(final, "CMD")
    assert not entry["PrependShell"] and not command["PrependShell"]
    assert entry["CmdLine"] == ["tidelog"]
    options = parser("start").parse_args(command["CmdLine"])
    assert str(options.properties) in [copy["DestPath"] for copy in values(final, "COPY")]
    http = int(settings.tidelog_http_listener.rpartition(":")[2])
    assert [{str(settings.bound_listeners[0].port), str(http)}] == [
        set(ports["Ports"]) for ports in values(final, "EXPOSE")
    ]
    assert settings.tidelog_data_dir in values(final, "VOLUME")[0]["Volumes"]
    assert (
        f"install --directory --owner=tidelog --group=tidelog {settings.tidelog_data_dir} {settings.wal_dir}"
        in (values(final, "RUN")[0]["CmdLine"][0])
    )
    (check,) = values(final, "HEALTHCHECK")
    assert f"http://127.0.0.1:{http}/readyz" in check["Health"]["Test"][-1]


def test_everything_that_is_copied_is_in_the_build_context(dockerfile: dict[str, Any]) -> None:
    everything, *allowed = [
        line
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert everything == "*"
    sent = {line.removeprefix("!") for line in allowed if line.startswith("!")}
    copied = {
        path
        for stage in dockerfile["stages"]
        for copy in values(stage, "COPY")
        if not copy["From"]
        for path in copy["SourcePaths"]
    }
    assert copied == sent
    assert all((ROOT / path).exists() for path in copied)
    for package in ("protocol", "storage", "controller", "broker"):
        assert package in copied


@pytest.mark.compatibility
def test_the_build_commands_and_the_broker_run(
    dockerfile: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    build, final = dockerfile["stages"]
    sources, venv = tmp_path / "src", tmp_path / "venv"
    sources.mkdir()
    environment = dict(os.environ)
    for each in build["instructions"]:
        value = each["value"]
        if each["name"] == "ENV":
            environment |= {pair["Key"]: pair["Value"] for pair in value["Env"]}
        elif each["name"] == "COPY":
            for path in value["SourcePaths"]:
                subprocess.run(["cp", "-r", ROOT / path, sources / value["DestPath"]], check=True)
        elif each["name"] == "RUN":
            (line,) = value["CmdLine"]
            line = line.replace(VENV, str(venv)).replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(["/bin/sh", "-ec", line], cwd=sources, env=environment, check=True)
    assert not (venv / "bin" / "pip").exists()

    broker = BrokerProcess(tmp_path / "data")
    broker.command = [str(venv / "bin" / "tidelog")]
    with broker:
        (check,) = values(final, "HEALTHCHECK")
        kind, python, *options, code = check["Health"]["Test"]
        assert (kind, python) == ("CMD", "python")
        code = code.replace("http://127.0.0.1:9644", broker.http)
        subprocess.run([venv / "bin" / "python", *options, code], check=True)
        assert broker.stop() == 0
