"""Tools for tests that come as Go modules: built once per version into `.cache/`, where Go is present."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache"


def possible(package: str) -> bool:
    """Whether this machine has the tool or can build it."""
    return shutil.which("go") is not None or _binary(package).exists()


def install(package: str) -> Path:
    """The binary of `path@version`. The first build takes minutes: allow the first test for it."""
    binary = _binary(package)
    return _built(binary, ["go", "install", package], {"GOBIN": str(binary.parent)}, CACHE.parent)


def build(module: Path) -> Path:
    """The binary of a module of ours, built again when a file of it has changed."""
    digest = hashlib.sha256()
    for path in sorted(module.iterdir()):
        digest.update(path.read_bytes())
    binary = CACHE / f"{module.name}-{digest.hexdigest()[:16]}" / module.name
    return _built(binary, ["go", "build", "-mod=readonly", "-buildvcs=false", "-o", str(binary), "."], {}, module)


def _binary(package: str) -> Path:
    path, _, version = package.partition("@")
    name = path.rpartition("/")[2]
    return CACHE / f"{name}-{version}" / name


def _built(binary: Path, command: list[str], environment: dict[str, str], directory: Path) -> Path:
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{binary.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if not binary.exists():
            subprocess.run(command, cwd=directory, env={**os.environ, **environment, "GOFLAGS": ""}, check=True)
    return binary
