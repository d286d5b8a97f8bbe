"""Crashes anywhere: what is recovered is an exact prefix of what was appended, with everything acknowledged in it."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.wal.instances import LockedInstance, lock_instances
from storage.wal.recovery import ScanReport
from tests.simulation.disk import SimulatedDisk
from tests.storage.wal.support import CLUSTER, FILE_BYTES, Opened, make_batch, open_wal

ROOT = "/wal"


class Run:
    """A WAL under a random load until the machine crashes in the middle of some disk operation."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.disk = SimulatedDisk()
        self.appended: list[tuple[int, int, int, bytes]] = []  # by sequence: log, epoch, base, batch
        self.trimmed = [0]  # last sequences of trimmed groups

    async def until_crash(self) -> Opened:
        files_max = self.chance.choice([3, 5])
        opened = await open_wal(ROOT, disk=self.disk, bytes_max=files_max * FILE_BYTES)
        self.disk.crash_at = self.chance.randint(0, 400)
        if self.chance.random() < 0.3:
            self.disk.shorten = lambda length: self.chance.choice([length, self.chance.randint(1, length)])
        epoch, ends = 1, dict[int, int]()
        for _ in range(self.chance.randint(1, 250)):
            if self.disk.crash_at == 0:
                break
            for _ in range(self.chance.choice([1, 1, 2, 5])):
                log_id, records = self.chance.randint(1, 4), self.chance.randint(1, 3)
                size = self.chance.choice([61, 100, 700, 5000, 20_000])
                if not opened.wal.has_room(size, internal=False):
                    break
                base = ends.get(log_id, 0)
                ends[log_id] = base + records
                batch = make_batch(base, epoch=epoch, records=records, size=size, fill=self.chance.randint(0, 255))
                opened.wal.append(log_id, epoch, base, batch)
                self.appended.append((log_id, epoch, base, batch))
            for _ in range(self.chance.choice([0, 1, 3, 20])):
                await asyncio.sleep(0)
            if self.chance.random() < 0.2 and opened.durable:
                group = self.chance.randint(1, opened.durable[-1][1])
                if group >= opened.wal._group_base:
                    self.trimmed.append(opened.wal._writer.group_ends[group - opened.wal._group_base])
                    opened.wal.trim(group)
            epoch += self.chance.random() < 0.02
            files = [name for name in self.disk.folder(opened.wal.path).entries if name not in {"superblock", "fence"}]
            assert len(files) <= files_max, "more of the disk than allowed"
        await opened.settle()
        self.disk.crash(self.chance.randint(0, 2**32))
        return opened

    def check(self, opened: Opened) -> tuple[LockedInstance, ScanReport]:
        acknowledged, group = opened.durable[-1] if opened.durable else (0, 0)
        [instance] = lock_instances(ROOT, CLUSTER, 1, disk=self.disk)
        assert not instance.same_boot()
        report = instance.scan(validated_group=group)
        assert report.usable and report.damage is None, report
        found: dict[int, list[tuple[int, int, bytes]]] = {}
        for log_id in {extent.log_id for extent in report.entries}:
            found[log_id] = list(instance.batches(log_id))
        count = sum(map(len, found.values()))
        # Trimming goes by files, so what is left begins anywhere at or below the last trimmed group.
        for first in range(max(self.trimmed) + 1):
            last = first + count
            expected: dict[int, list[tuple[int, int, bytes]]] = {}
            for log_id, epoch, base, batch in self.appended[first:last]:
                expected.setdefault(log_id, []).append((epoch, base, batch))
            if found == expected and last >= acknowledged:
                break
        else:
            raise AssertionError("not a run of what was appended, or something acknowledged is missing")
        return instance, report


@settings(max_examples=120)
@given(st.integers(0, 2**32))
def test_recovery_finds_an_exact_prefix(seed: int) -> None:
    run = Run(seed)

    async def main() -> None:
        instance, report = run.check(await run.until_crash())
        # Recovery itself may crash: fencing and reading again gives the same.
        instance.fence()
        run.disk.crash(seed)
        [again] = lock_instances(ROOT, CLUSTER, 1, disk=run.disk)
        assert again.scan() == report
        again.remove()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_a_lost_sync_is_noticed(seed: int) -> None:
    """Sectors of an acknowledged group that never reached the disk: a stale copy, or damage; never silence."""

    async def main() -> bool:
        run = Run(seed)
        opened = await open_wal(ROOT, disk=run.disk)
        for _ in range(12):
            opened.append(size=3000)
            await opened.settle()
        acknowledged = opened.durable[-1]
        assert acknowledged == (12, 12)
        # The disk lied: of one group a sector is as it was before.
        file = run.disk.inode(f"{opened.wal.path}/000000000001.wal")
        group = run.chance.randint(1, 12)
        position = (group - 1) * 3068 + run.chance.randint(0, 3067)
        if file.data[position : position + 64] == bytes(64):
            return False
        file.data[position : position + 64] = bytes(64)
        file.durable[:] = file.data
        run.disk.crash(seed)
        [instance] = lock_instances(ROOT, CLUSTER, 1, disk=run.disk)
        report = instance.scan(validated_group=12)
        if report.usable:
            with pytest.raises(Exception, match="the batch of log"):
                list(instance.batches(1))
            report = instance.scan(validated_group=12, accept_loss=True)
        assert report.damage is not None or report.stale is not None
        assert report.last_group == group - 1
        return True

    asyncio.run(main())
