"""The architecture as tests: purity of cores, size, every module is used, the prose is about the project alone."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from broker.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "storage", "controller", "broker")
MODULE_LINES_MAX = 700
FUNCTION_LINES_MAX = 90

# Cores decide; they are handed time and tokens and never wait.
PURE = [
    "protocol/**/*.py",
    "storage/tail.py",
    "storage/producers.py",
    "storage/range_plan.py",
    "storage/wal/format.py",
    "controller/facts.py",
    "controller/commands/*.py",
    "controller/state.py",
    "controller/rows.py",
    "controller/topics.py",
    "controller/brokers.py",
    "controller/log_index.py",
    "controller/placement.py",
    "controller/decide/*.py",
    "controller/batch.py",
    "controller/codec.py",
    "controller/entries.py",
    "controller/sessions.py",
    "controller/election.py",
    "controller/wals.py",
    "controller/objects.py",
    "controller/configs.py",
    "controller/answers.py",
    "controller/retention.py",
    "broker/groups/assignors.py",
    "broker/groups/classic.py",
    "broker/groups/configs.py",
    "broker/groups/consumer.py",
    "broker/groups/consumer_model.py",
    "broker/groups/consumer_records.py",
    "broker/groups/conversion.py",
    "broker/groups/heartbeats.py",
    "broker/groups/mixed.py",
    "broker/groups/model.py",
    "broker/groups/offsets.py",
    "broker/groups/pending.py",
    "broker/groups/rebalance.py",
    "broker/groups/reconcile.py",
    "broker/groups/records.py",
    "broker/groups/regexes.py",
    "broker/groups/shard.py",
    "broker/groups/subscription.py",
    "broker/groups/topics.py",
    "broker/transactions/model.py",
    "broker/transactions/records.py",
    "broker/transactions/shard.py",
    "broker/fetch_sessions.py",
]
IMPURE_IMPORTS = {"asyncio", "socket", "threading", "time", "random", "secrets", "logging", "os", "selectors", "uvloop"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> set[str]:
    """Dotted names a file imports; `from a import b` counts as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("pattern", PURE)
def test_pure_modules_have_no_clock_loop_or_randomness(pattern: str) -> None:
    paths = [path for path in ROOT.glob(pattern) if "schema/stubs" not in path.as_posix()]
    assert paths, f"{pattern} names no file: update the list"
    for path in paths:
        impure = {name.split(".")[0] for name in imported_names(path)} & IMPURE_IMPORTS
        assert not impure, f"{path.relative_to(ROOT)} is a pure core and imports {sorted(impure)}"
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), (
                f"{path.relative_to(ROOT)}:{node.lineno} awaits"
            )


def test_modules_and_functions_stay_small() -> None:
    too_long = []
    for path in sources():
        text = path.read_text()
        if text.count("\n") > MODULE_LINES_MAX:
            too_long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not too_long, "split these: " + "; ".join(too_long)


def test_every_module_is_imported_by_the_product() -> None:
    used = {"broker.__main__", "broker.cli"} | {module for module, _ in COMMANDS.values()}  # entry points, commands
    for path in sources():
        used |= imported_names(path) - {module_name(path)}
    run_by_name = {"protocol.schema.stubs", "broker.reference"}  # `python -m`: they write generated files
    unused = [
        module_name(path)
        for path in sources()
        if path.name != "__init__.py" and module_name(path) not in used | run_by_name
    ]
    assert not unused, f"modules nobody imports: {unused}"


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listing.splitlines() if (ROOT / line).is_file()]


def test_the_repository_speaks_of_the_project_alone() -> None:
    workplace = re.compile(
        r"/work/|/root/|\.library\b|pypi\.org|files\.pythonhosted|repo1?\.maven|proxy\.golang|registry\.npmjs"
    )
    hits = []
    for path in tracked_files():
        if path == Path(__file__).resolve() or path.suffix in {".png", ".bin", ".seg", ".svg"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if workplace.search(line):
                hits.append(f"{path.relative_to(ROOT)}:{number}")
    assert not hits, f"absolute paths or registry hosts: {hits}"
