"""The volume WAL keeps its word through everything a disk and its processes may do, and worlds notice when it does not.

`wal_world.py` tells what is judged. Each planted bug is one that somebody could write in good faith.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from crc32c import crc32c

from storage.wal import files, format, instances, recovery, volume, writer
from storage.wal.port import Fenced
from tests.simulation.wal_world import Settings, WalWorld

SEEDS = 240
GROUPS = 8
CAUGHT_WITHIN = 60
"""Seeds."""
CALM = Settings(trouble=(), rot=0.0, copies=0.0, siblings=0.0, crashes=1.0)
WORLDS = {
    "torn_is_damage": CALM,
    "lost_front_files_are_not_missed": CALM._replace(rot=1.0, rot_kinds=("file",)),
    "header_checksum_is_not_looked_at": CALM._replace(rot=1.0, rot_kinds=("header",)),
    "short_writes_are_whole": CALM._replace(trouble=("short",)),
    "goes_on_after_an_error": CALM._replace(trouble=("errors",)),
    "fence_is_looked_for_before_the_write": CALM._replace(siblings=1.0),
    "removal_is_not_renamed_first": CALM._replace(killed_removals=1.0),
}
"""Those in which bugs show soon that are rare elsewhere."""


pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.mark.parametrize("group", range(GROUPS))
def test_what_was_acknowledged_is_found_or_missed_aloud(group: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(group * SEEDS // GROUPS, (group + 1) * SEEDS // GROUPS):
        world = WalWorld(seed)
        assert world.run() == [], f"seed {seed}"
        seen.update(world.seen)
    assert min(seen.values()) > 0, seen


def test_one_seed_is_one_run() -> None:
    def run(seed: int) -> list[Any]:
        world = WalWorld(seed)
        world.run()
        return [
            (wal_id, truth.reports, truth.committed, truth.taken_over) for wal_id, truth in world.truths.items()
        ] + [world.scheduler.now_ns, world.scheduler.events_run]

    for seed in range(3):
        assert run(seed) == run(seed)
    assert run(0) != run(1)


Patch = Callable[[pytest.MonkeyPatch], None]


def torn_is_damage(patch: pytest.MonkeyPatch) -> None:
    real = recovery.Scanner._evidence

    def evidence(self: Any, numbers: list[int], stop: recovery.FirstInvalid) -> recovery.Damage | None:
        if stop.header is None:
            return real(self, numbers, stop)
        return recovery.Damage(format.file_name(stop.file), stop.position, stop.group, stop.reason, None, [])

    patch.setattr(recovery.Scanner, "_evidence", evidence)


def damage_is_torn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery.Scanner, "_evidence", lambda self, numbers, stop: None)


def evidence_only_in_the_same_file(patch: pytest.MonkeyPatch) -> None:
    real = recovery.Scanner._evidence
    patch.setattr(
        recovery.Scanner,
        "_evidence",
        lambda self, numbers, stop: real(self, [number for number in numbers if number == stop.file], stop),
    )


def stale_copies_are_taken(patch: pytest.MonkeyPatch) -> None:
    real = recovery.Scanner.scan
    patch.setattr(
        recovery.Scanner,
        "scan",
        lambda self, validated, committed, *, accept_loss: real(self, 0, committed, accept_loss=accept_loss),
    )


def lost_front_files_are_not_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery.Scanner, "_front", lambda self, numbers, first, committed_group: None)


def last_group_is_not_verified(patch: pytest.MonkeyPatch) -> None:
    real = recovery.Reader.group
    patch.setattr(
        recovery.Reader,
        "group",
        lambda self, number, position, expected, *, verify: real(self, number, position, expected, verify=False),
    )


def batches_are_not_verified(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "batch_fault", lambda batch, begin: None)


def header_checksum_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    def parse(data: Any, position: int, prefix: bytes) -> format.GroupHeader | None:
        count = format.entry_count(data, position, prefix)
        size = format.header_size(count)
        if not count or position + size > len(data):
            return None
        whole = bytearray(data[position : position + size])
        whole[-4:] = format._CRC.pack(crc32c(memoryview(whole)[:-4]))
        return real(whole, 0, prefix)

    real = format.parse_header
    patch.setattr(recovery, "parse_header", parse)


def file_number_is_not_in_the_groups(patch: pytest.MonkeyPatch) -> None:
    for module in (recovery, writer):
        patch.setattr(module, "group_prefix", lambda wal_id, file_number: format.group_prefix(wal_id, 0))


def reported_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    real = files.write_all
    patch.setattr(writer, "write_all", lambda write, buffers, at: real(write.__self__.write, buffers, at))


def short_writes_are_whole(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writer, "write_all", lambda write, buffers, at: write(buffers, at))


def goes_on_after_an_error(patch: pytest.MonkeyPatch) -> None:
    real = files.write_all

    def write_all(write: Any, buffers: Sequence[Any], at: int) -> None:
        try:
            real(write, buffers, at)
        except OSError:
            write.__self__.sync()  # the kernel has forgotten that the pages are dirty

    patch.setattr(writer, "write_all", write_all)


def fence_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(volume.VolumeWal, "look_for_fence", lambda self: False)


def fence_is_looked_for_before_the_write(patch: pytest.MonkeyPatch) -> None:
    write_group, publish = writer.Writer._write_group, writer.Writer._publish

    def look_and_write(self: Any) -> bool:
        if self._queue and self._fenced():
            raise Fenced
        return write_group(self)

    def publish_blindly(self: Any, written: writer.Progress) -> None:
        fenced, self._fenced = self._fenced, lambda: False
        publish(self, written)
        self._fenced = fenced

    patch.setattr(writer.Writer, "_write_group", look_and_write)
    patch.setattr(writer.Writer, "_publish", publish_blindly)


def fence_is_not_made_before_reading(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(instances.Instance, "fence", lambda self: None)


def superblock_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    real = instances.create_instance

    def create(disk: Any, root: str, superblock: format.Superblock) -> Any:
        class Careless:
            def __getattr__(self, name: str) -> Any:
                return getattr(disk, name)

            def create(self, path: str) -> Any:
                file = disk.create(path)

                class File:
                    write, close = file.write, file.close

                    def sync(self) -> None:
                        pass

                return File()

        return real(Careless(), root, superblock)

    patch.setattr(volume, "create_instance", create)


def new_files_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    def add(self: Any, path: str, file: files.WalFile) -> None:
        number = self.ready_through + 1
        self._disk.rename(path, f"{self._path}/{format.file_name(number)}")
        file.number = number
        self.ready.append(file)
        self.ready_through = number

    patch.setattr(files.FileRing, "_add", add)


def recycled_files_keep_their_number(patch: pytest.MonkeyPatch) -> None:
    """Their name is new, what is written into them says otherwise."""
    real = files.FileRing._add

    def add(self: Any, path: str, file: files.WalFile) -> None:
        old = file.number
        real(self, path, file)
        file.number = old or file.number

    patch.setattr(files.FileRing, "_add", add)


def trimmed_too_far(patch: pytest.MonkeyPatch) -> None:
    real = volume.VolumeWal.trim
    patch.setattr(volume.VolumeWal, "trim", lambda self, group: real(self, max(group, self.durable[1] - 1)))


def removal_is_not_renamed_first(patch: pytest.MonkeyPatch) -> None:
    def remove(disk: Any, root: str, path: str, node_id: int) -> None:
        instances._delete(disk, path)
        disk.sync_directory(root)

    patch.setattr(instances, "remove_instance", remove)


def locks_are_not_taken(patch: pytest.MonkeyPatch) -> None:
    real = instances.create_instance

    def create(disk: Any, root: str, superblock: format.Superblock) -> Any:
        path, lock = real(disk, root, superblock)
        lock.close()
        return path, lock

    patch.setattr(volume, "create_instance", create)


def batch_changes_after_append(patch: pytest.MonkeyPatch) -> None:
    """Its buffer is used again while the WAL still writes it."""
    append = volume.VolumeWal.append

    def append_and_reuse(self: Any, log_id: int, epoch: int, base: int, batch: bytes) -> int:
        buffer = bytearray(batch)
        sequence = append(self, log_id, epoch, base, buffer)
        self._loop.call_later(0.0003, lambda: buffer.__setitem__(30, buffer[30] ^ 1))
        return sequence

    patch.setattr(volume.VolumeWal, "append", append_and_reuse)


PLANTS: list[Patch] = [
    torn_is_damage,
    damage_is_torn,
    evidence_only_in_the_same_file,
    stale_copies_are_taken,
    lost_front_files_are_not_missed,
    last_group_is_not_verified,
    batches_are_not_verified,
    header_checksum_is_not_looked_at,
    file_number_is_not_in_the_groups,
    reported_before_the_sync,
    short_writes_are_whole,
    goes_on_after_an_error,
    fence_is_not_looked_for,
    fence_is_looked_for_before_the_write,
    fence_is_not_made_before_reading,
    superblock_is_not_synced,
    new_files_are_not_synced,
    recycled_files_keep_their_number,
    trimmed_too_far,
    removal_is_not_renamed_first,
    locks_are_not_taken,
    batch_changes_after_append,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(
    plant: Patch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WORLDS.get(plant.__name__, Settings())
    for seed in range(CAUGHT_WITHIN):
        with monkeypatch.context() as patch:
            plant(patch)
            findings = WalWorld(seed, settings).run()
        if findings and not WalWorld(seed, settings).run():
            with capsys.disabled():
                print(f"\n{plant.__name__}: caught by seed {seed}", end="")
            return
    raise AssertionError(f"{plant.__name__} was not noticed in {CAUGHT_WITHIN} worlds")
