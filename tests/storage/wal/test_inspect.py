"""What the inspector says about whole, torn and damaged instances; and that it changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from storage.wal.inspect import FileReport, describe_instance, groups_of
from storage.wal.instances import lock_instances
from tests.storage.wal.support import CLUSTER, FILE_BYTES, WAL_ID, open_wal


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


async def filled(root: Path) -> Path:
    opened = await open_wal(root)
    for _ in range(30):
        opened.append(size=3000, fill=7)
        await opened.durable_through(opened.wal.appended)
    path = Path(opened.wal.path)
    before = describe_instance(path)  # also while it is open
    assert before.last_group == 30 and before.problems == []
    await opened.wal.close()
    return path


async def test_a_whole_instance(tmp_path: Path) -> None:
    path = await filled(tmp_path)
    before = snapshot(tmp_path)
    report = describe_instance(path)
    assert report.superblock is not None and report.superblock.wal_id == WAL_ID and not report.fenced
    assert report.problems == [] and report.torn is None and (report.first_group, report.last_group) == (1, 30)
    assert [(extent.log_id, extent.base, extent.end) for extent in report.logs] == [(1, 0, 30)]
    per_file = FILE_BYTES // 3068
    rest = 30 - per_file
    assert report.files[:2] == [
        FileReport("000000000001.wal", FILE_BYTES, per_file, per_file, 1, per_file, per_file * 3068, "zeros"),
        FileReport("000000000002.wal", FILE_BYTES, rest, rest, per_file + 1, 30, rest * 3068, "zeros"),
    ]
    groups = list(groups_of(path))
    assert [found.header.group for found in groups] == list(range(1, 31))
    assert groups[0].header.entries[0].log_id == 1
    assert snapshot(tmp_path) == before
    [instance] = lock_instances(tmp_path, CLUSTER, 1)
    instance.fence()
    assert describe_instance(path).fenced
    instance.close()


async def test_damage_and_torn_tails(tmp_path: Path) -> None:
    path = await filled(tmp_path)
    copy = tmp_path / "copy"  # a copy under another name may be looked at
    shutil.copytree(path, copy)
    file = copy / "000000000002.wal"
    data = bytearray(file.read_bytes())
    data[9 * 3068 - 5] ^= 1  # the last group
    file.write_bytes(data)
    report = describe_instance(copy)
    assert report.problems == [] and report.last_group == 29
    assert report.torn is not None and report.torn.startswith("group 30 is invalid: the batch of log 1 at offset 29")
    assert report.files[1].rest == "old bytes"
    data[5 * 3068 + 500] ^= 1
    file.write_bytes(data)
    report = describe_instance(copy)
    assert len(report.problems) == 1 and report.problems[0].startswith("000000000002.wal at byte 15340: group 27")
    assert report.last_group == 26


def test_what_is_no_instance(tmp_path: Path) -> None:
    assert "has no superblock" in describe_instance(tmp_path).problems[0]
    (tmp_path / "superblock").write_bytes(b"nonsense")
    assert "not a WAL superblock" in describe_instance(tmp_path).problems[0]
