"""SIGKILL at any moment: nothing that a real process acknowledged is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.wal.instances import lock_instances
from tests.storage.wal import appender
from tests.storage.wal.support import CLUSTER, make_batch


@pytest.mark.parametrize("lines", [1, 40, 333, 1500])
def test_nothing_acknowledged_is_missing(tmp_path: Path, lines: int) -> None:
    acknowledged = 0
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-m", appender.__name__, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            acknowledged = int(process.stdout.readline())
        process.kill()
        rest = process.stdout.read().split(b"\n")  # the last one may be cut off
        acknowledged = max([acknowledged, *map(int, rest[:-1])])
    [instance] = lock_instances(tmp_path, CLUSTER, 1)
    report = instance.scan()
    assert report.usable and instance.same_boot()
    [extent] = report.entries
    assert extent.end >= acknowledged >= lines
    batches = list(instance.batches(1))
    assert [base for _, base, _ in batches] == list(range(extent.base, extent.end))
    for _, base, batch in batches:
        assert batch == make_batch(base, size=300 + base % 1700, fill=base % 256)
    assert report.first_group == 1 or extent.base > 0, "trimmed while it ran"
    instance.remove()
