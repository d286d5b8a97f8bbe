"""The fence kind by mountinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.wal.mounts import detect, fence_of, mount_of, parse_mounts
from storage.wal.port import MountRefused

TABLE = r"""
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw
23 22 0:21 / /proc rw,nosuid,nodev - proc proc rw
30 22 259:2 / /data rw,noatime shared:7 master:2 - xfs /dev/nvme1n1 rw,attr2
31 30 0:44 / /data/nfs41 rw - nfs4 filer:/export rw,vers=4.1,hard,proto=tcp
32 30 0:45 / /data/nfs42 rw - nfs4 filer:/export rw,vers=4.2,hard
33 30 0:46 / /data/nfs40 rw - nfs4 filer:/export rw,vers=4.0,hard
34 30 0:47 / /data/nfs3 rw - nfs filer:/export rw,vers=3,hard
35 30 0:48 / /data/soft rw - nfs4 filer:/export rw,vers=4.2,soft,timeo=600
36 30 0:49 / /data/smb rw - cifs //server/share rw,vers=3.0
37 30 0:50 / /data/s3fs rw - fuse.s3fs s3fs rw
38 30 0:51 / /data/fuse rw - fuse /dev/fuse rw
39 22 0:52 / /dev/shm rw - tmpfs tmpfs rw,size=1024k
40 22 0:53 / /container rw - overlay overlay rw,lowerdir=/a,upperdir=/b
41 22 0:54 / /with\040space\134slash rw - btrfs /dev/sdb rw
42 22 0:55 / /shared rw - ceph mon:/ rw
43 30 259:3 / /data/over rw - ext4 /dev/nvme2n1 rw
44 30 0:56 / /data/over rw - tmpfs tmpfs rw
45 22 259:4 / /ntfs rw - fuseblk /dev/sdc rw
46 22 0:57 / /mem rw - ramfs ramfs rw
47 30 0:58 / /data/nfs rw - nfs filer:/export rw,hard
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind", "warning"),
    [
        ("/var/lib/tidelog", "file", None),
        ("/data", "file", None),
        ("/database", "file", None),
        ("/data/wal", "file", None),
        ("/data/nfs41/wal", "session", None),
        ("/data/nfs42", "session", None),
        ("/dev/shm/wal", "file", "do not survive the machine"),
        ("/mem/wal", "file", "do not survive the machine"),
        ("/container/wal", "file", "mount a volume"),
        (r"/with space\slash/wal", "file", "copy-on-write"),
        ("/shared/wal", "file", "never be mounted on another machine"),
        ("/data/over/wal", "file", "do not survive"),
        ("/ntfs/wal", "file", None),
    ],
)
def test_what_holds_a_wal(path: str, kind: str, warning: str | None) -> None:
    found, warnings = fence_of(mount_of(parse_mounts(TABLE), path))
    assert found == kind
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/data/nfs40/wal", "vers=4.0: mount it with vers=4.1"),
        ("/data/nfs3/wal", "vers=3: mount it with vers=4.1"),
        ("/data/nfs/wal", "vers=unknown: mount it with vers=4.1"),
        ("/data/soft/wal", "mount it hard"),
        ("/data/smb/wal", "SMB"),
        ("/data/s3fs/wal", "FUSE"),
        ("/data/fuse/wal", "FUSE"),
    ],
)
def test_what_cannot_hold_a_wal(path: str, message: str) -> None:
    with pytest.raises(MountRefused, match=message):
        fence_of(mount_of(parse_mounts(TABLE), path))


def test_an_unknown_mount_is_warned_about() -> None:
    assert mount_of(parse_mounts(""), "/x") is None
    kind, warnings = fence_of(None)
    assert kind == "file" and len(warnings) == 1


def test_this_machine(tmp_path: Path) -> None:
    kind, warnings = detect(str(tmp_path / "not" / "there" / "yet"))
    assert kind in {"file", "session"} and isinstance(warnings, list)
