"""Helm, and the checker of this directory: what the tests here look at `deploy/` with."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import go_tools

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "tidelog"
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
CHECKER = Path(__file__).parent / "checker"

needs_go = [
    pytest.mark.skipif(not go_tools.possible(HELM), reason="needs Go"),
    pytest.mark.timeout(900),  # the first test builds what is not in .cache
]


def checker(verb: str, path: Path, **environment: str) -> Any:
    """What `tests/deploy/checker` reads in a file; fails with its words where it refuses the file."""
    binary = go_tools.build(CHECKER)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("COMPOSE_", "TIDELOG_"))}
    done = subprocess.run([binary, verb, path], env={**clean, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Refused(Exception):
    """Helm's words."""


def helm(*arguments: object) -> str:
    """What helm prints; Refused when it fails."""
    command = [go_tools.install(HELM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def expand(value: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` as the kubelet replaces it: only what was defined before."""
    for name, text in variables.items():
        value = value.replace(f"$({name})", text)
    return value


def environment_of(container: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, str]:
    """The environment of a container; `fields` says what the paths of the downward API hold."""
    variables: dict[str, str] = {}
    for entry in container["env"]:
        if "value" in entry:
            variables[entry["name"]] = expand(entry["value"], variables)
        elif "fieldRef" in entry["valueFrom"]:
            variables[entry["name"]] = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
    return variables


def one(objects: Sequence[Mapping[str, Any]], kind: str, name: str | None = None) -> Any:
    """The only object of a kind, or the one with this name."""
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]
