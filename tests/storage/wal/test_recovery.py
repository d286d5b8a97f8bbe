"""The valid prefix: torn tails, damage, stale copies, recycled files; every byte of the last groups."""

from __future__ import annotations

from collections import defaultdict

import pytest

from storage.wal.format import ENTRY, LONE_OVERHEAD, encode_header, group_prefix, header_size
from storage.wal.inspect import groups_of
from storage.wal.instances import LockedInstance, lock_instances
from storage.wal.port import Damaged
from storage.wal.recovery import Extent, FoundGroup, Missing, ScanReport, StaleCopy
from tests.simulation.disk import SimulatedDisk
from tests.simulation.volume import SECTOR, Inode
from tests.storage.wal.support import CLUSTER, FILE_BYTES, WAL_ID, Opened, make_batch, open_wal

ROOT = "/wal"


class Image:
    """An instance of three files whose groups hold one to four batches of three logs, to be spoilt."""

    disk: SimulatedDisk
    groups: list[FoundGroup]
    content: list[list[tuple[int, int, bytes]]]  # by group: log, base, batch
    last: int  # group; at the end of a file one may have been split in two

    @classmethod
    async def make(cls, groups: int = 14, size: int = 3000, growth: int = 100) -> Image:
        image = cls()
        image.disk = SimulatedDisk()
        image.opened = opened = await open_wal(ROOT, disk=image.disk)
        await opened.settle()
        written = []
        for group in range(groups):
            for turn in range(group % 4 + 1):
                log_id = turn % 3
                base = opened.ends.get(log_id, 0)
                opened.append(log_id, epoch=5, records=2, size=size + growth * group + turn, fill=group)
                written.append((log_id, base, make_image_batch(base, size + growth * group + turn, group)))
            await opened.settle()
        await opened.wal.close()
        image.groups = list(groups_of(opened.wal.path, disk=image.disk))
        rest = iter(written)
        image.content = [[next(rest) for _ in found.header.entries] for found in image.groups]
        image.last = len(image.groups)
        assert not list(rest) and image.last >= groups
        return image

    opened: Opened

    def file(self, number: int) -> Inode:
        return self.disk.inode(f"{self.opened.wal.path}/{number:012d}.wal")

    def lock(self) -> LockedInstance:
        [instance] = lock_instances(ROOT, CLUSTER, 1, disk=self.disk)
        return instance

    def scan(self, **settings: int) -> ScanReport:
        instance = self.lock()
        try:
            return instance.scan(**settings)
        finally:
            instance.close()

    def expect_prefix(self, groups: int, *, accept_loss: bool = False) -> ScanReport:
        """The scan is usable and hands out exactly the batches of the first groups."""
        instance = self.lock()
        report = instance.scan(accept_loss=accept_loss)
        assert report.usable and report.last_group == report.groups == groups, report
        wanted = defaultdict(list)
        for log_id, base, batch in (entry for content in self.content[:groups] for entry in content):
            wanted[log_id].append((5, base, batch))
        found = {extent.log_id: list(instance.batches(extent.log_id)) for extent in report.entries}
        assert found == wanted
        for extent in report.entries:
            assert extent == Extent(
                extent.log_id,
                5,
                wanted[extent.log_id][0][1],
                wanted[extent.log_id][-1][1] + 2,
                len(wanted[extent.log_id]),
                sum(len(batch) for _, _, batch in wanted[extent.log_id]),
            )
        instance.close()
        return report


def make_image_batch(base: int, size: int, fill: int) -> bytes:
    return make_batch(base, epoch=5, records=2, size=size, fill=fill)


async def test_an_empty_instance() -> None:
    disk = SimulatedDisk()
    await (await open_wal(ROOT, disk=disk)).wal.close()
    [instance] = lock_instances(ROOT, CLUSTER, 1, disk=disk)
    report = instance.scan()
    assert report == ScanReport([], 0, 0, 0, None, None, None, True)
    assert list(instance.batches(1)) == []
    instance.close()


async def test_everything_is_found() -> None:
    image = await Image.make()
    report = image.expect_prefix(image.last)
    assert report.first_group == 1 and report.torn is None
    assert image.expect_prefix(image.last, accept_loss=True).damage is None


def interesting_bytes(found: FoundGroup) -> list[int]:
    """Positions in the file: all of the header and entries, the first bytes of each batch, samples of the rest."""
    positions = list(range(found.position, found.position + found.header.header_size))
    at = found.position + found.header.header_size
    for entry in found.header.entries:
        positions += [*range(at, at + 61), *range(at + 61, at + entry.size, 997), at + entry.size - 1]
        at += entry.size
    return positions


async def test_any_spoilt_byte_of_the_last_group_drops_it() -> None:
    """A torn tail: it was never acknowledged."""
    image = await Image.make()
    last = image.groups[-1]
    data = image.file(last.file).data
    for position in interesting_bytes(last):
        data[position] ^= 0x40
        report = image.scan()
        assert report.usable and report.last_group == image.last - 1, position
        assert report.torn is None or report.torn.startswith(f"group {image.last} ")
        data[position] ^= 0x40
    data[last.position + 1000] ^= 1
    image.expect_prefix(image.last - 1)


@pytest.mark.parametrize("back", [2, 3])
async def test_any_spoilt_byte_before_the_last_group_is_damage(back: int) -> None:
    image = await Image.make()
    spoilt = image.groups[-back]
    data = image.file(spoilt.file).data
    header_end = spoilt.position + spoilt.header.header_size
    for count, position in enumerate(interesting_bytes(spoilt)):
        data[position] ^= 0x40
        instance = image.lock()
        report = instance.scan()
        if report.damage is None:
            # Headers alone look well. Whoever reads the log meets it.
            assert position >= header_end
            with pytest.raises(Damaged, match="the batch of log"):
                for extent in report.entries:
                    list(instance.batches(extent.log_id))
            report = instance.scan(accept_loss=True)
        else:
            assert not report.usable
        instance.close()
        assert report.damage is not None
        assert (report.damage.group, report.damage.position) == (spoilt.header.group, spoilt.position)
        assert report.last_group == spoilt.header.group - 1
        assert report.damage.found is not None and report.damage.found[1] == image.last
        if count % 50 == 0:
            image.expect_prefix(spoilt.header.group - 1, accept_loss=True)
        data[position] ^= 0x40


async def test_damage_names_what_may_be_missing() -> None:
    image = await Image.make()
    spoilt = next(found for found in image.groups[8:] if len(found.header.entries) >= 3)
    group = spoilt.header.group
    at = spoilt.position + spoilt.header.header_size
    image.file(spoilt.file).data[at + 100] ^= 1
    damage = image.scan(accept_loss=True).damage
    assert damage is not None and damage.found == (group + 1, image.last)
    assert f"group {group} is invalid: the batch of log 0" in str(damage)
    assert f"groups {group + 1} to {image.last} were written later" in str(damage)
    wanted = []
    for log_id in (0, 1, 2):
        bases = [base for content in image.content[group - 1 :] for found, base, _ in content if found == log_id]
        wanted.append(Missing(log_id, 5, bases[0], bases[-1] + 2))
    assert damage.missing == wanted


async def test_truncation_at_every_byte() -> None:
    image = await Image.make(size=90, growth=0)
    by_end = [(found.position + found.header.size, found.header.group) for found in image.groups]
    last_file = image.groups[-1].file
    inode = image.file(last_file)
    whole = bytes(inode.data)
    first = next(found.header.group for found in image.groups if found.file == last_file)
    for end in range(by_end[-1][0] + 10, image.groups[-4].position, -1):
        inode.data[:] = whole[:end]
        whole_groups = sum(1 for stop, group in by_end if group >= first and stop <= end)
        report = image.scan()
        assert report.usable and report.last_group == first - 1 + whole_groups
        inode.data[:] = whole[:end] + bytes(len(whole) - end)
        report = image.scan()
        zeros = whole[end : by_end[-1][0]].strip(b"\0")  # cutting off zeros changes nothing
        assert (report.usable and report.last_group == first - 1 + whole_groups) or not zeros
    image.expect_prefix(image.scan().last_group)


async def test_a_stale_copy_is_told_by_the_validated_group() -> None:
    image = await Image.make()
    assert image.scan(validated_group=image.last).usable
    report = image.scan(validated_group=image.last + 1)
    assert report.stale == StaleCopy(image.last, image.last + 1) and not report.usable and report.damage is None
    assert str(report.stale) == f"the WAL ends with group {image.last}, but group {image.last + 1} was acknowledged"
    assert image.scan(validated_group=image.last + 1, accept_loss=True).usable


async def test_damage_in_the_last_group_of_a_file() -> None:
    image = await Image.make()
    last_of_first = next(a for a, b in zip(image.groups, image.groups[1:]) if a.file != b.file)
    image.file(last_of_first.file).data[last_of_first.position + 4] ^= 1
    report = image.scan()
    assert report.damage is not None and report.damage.group == last_of_first.header.group and not report.usable
    image.expect_prefix(last_of_first.header.group - 1, accept_loss=True)


async def test_damage_in_the_first_group_of_a_file() -> None:
    image = await Image.make()
    first_of_second = next(b for a, b in zip(image.groups, image.groups[1:]) if a.file != b.file)
    image.file(first_of_second.file).data[30] ^= 1
    report = image.scan()
    assert report.damage is not None and report.damage.group == first_of_second.header.group
    image.expect_prefix(first_of_second.header.group - 1, accept_loss=True)


async def test_damage_in_the_very_first_group() -> None:
    image = await Image.make()
    data = image.file(1).data
    data[0] ^= 1
    report = image.scan()
    assert report.damage is not None and report.groups == report.last_group == 0 and not report.usable
    assert report.damage.group == 1
    image.expect_prefix(0, accept_loss=True)
    data[0] ^= 1
    data[image.groups[0].header.size - 1] ^= 1
    damage = image.scan(accept_loss=True).damage
    assert damage is not None and damage.group == 1
    assert [missing.base for missing in damage.missing] == [0, 0, 0], (
        "the first group's header still tells what it held"
    )


async def test_a_missing_file() -> None:
    image = await Image.make(groups=20)
    files = sorted({found.file for found in image.groups})
    assert len(files) >= 3
    image.disk.delete(f"{image.opened.wal.path}/{files[1]:012d}.wal")
    report = image.scan()
    first_lost = next(found.header.group for found in image.groups if found.file == files[1])
    assert report.damage is not None and report.last_group == first_lost - 1
    image.disk.delete(f"{image.opened.wal.path}/{files[0]:012d}.wal")
    begins = next(found.header.group for found in image.groups if found.file == files[2])
    # Trimmed or lost? Only what is known to be committed tells.
    assert image.scan().usable and image.scan(committed_group=begins - 1).usable
    report = image.scan(committed_group=begins - 2)
    assert report.damage is not None and "the files begin with group" in str(report.damage)


async def test_file_one_begins_with_group_one() -> None:
    image = await Image.make()
    prefix = group_prefix(WAL_ID, 1)
    batch = make_batch(0)
    header = encode_header(prefix, 2, [ENTRY.pack(1, 0, len(batch) - 12, 0)])
    for name in image.disk.names(image.opened.wal.path):
        if name.endswith(".wal") and name != "000000000001.wal":
            image.disk.delete(f"{image.opened.wal.path}/{name}")
    image.file(1).data[:] = header + batch
    report = image.scan()
    assert report.damage is not None and report.damage.group == 1


async def test_an_unreadable_sector_in_the_tail_and_before_it() -> None:
    image = await Image.make()
    last, before = image.groups[-1], image.groups[-3]
    path = f"{image.opened.wal.path}/{last.file:012d}.wal"
    image.disk.unreadable[path] = {last.position + last.header.size - 3}
    report = image.scan()
    assert report.usable and report.last_group == image.last - 1
    path = f"{image.opened.wal.path}/{before.file:012d}.wal"
    image.disk.unreadable = {path: {before.position + 10}}
    report = image.scan()
    assert report.damage is not None and not report.usable and report.last_group < before.header.group


async def test_groups_of_a_recycled_file_are_not_groups() -> None:
    """They carry an old file number: neither part of the prefix nor evidence of damage."""
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk, bytes_max=3 * FILE_BYTES)
    for _ in range(100):
        if not opened.wal.has_room(7000, internal=False):
            opened.wal.trim(opened.wal.durable[1])
            await opened.settle()
        opened.append(size=7000)
        await opened.settle()
    await opened.wal.close()
    groups = list(groups_of(opened.wal.path, disk=disk))
    last = groups[-1]
    data = disk.inode(f"{opened.wal.path}/{last.file:012d}.wal").data
    stale = group_prefix(WAL_ID, last.file)[:24]  # all but the file number
    assert data.find(stale, last.position + last.header.size) > 0
    [instance] = lock_instances(ROOT, CLUSTER, 1, disk=disk)
    assert instance.scan(validated_group=100).last_group == 100
    data[last.position + 2000] ^= 1
    report = instance.scan()
    assert report.usable and report.last_group == 99
    instance.close()


async def test_a_header_inside_the_torn_last_batch_is_no_evidence() -> None:
    """Somebody produced bytes that look like our next group, and that group was torn."""
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    await opened.settle()
    inner = make_batch(0)
    forged = encode_header(group_prefix(WAL_ID, 1), 2, [ENTRY.pack(1, 0, len(inner) - 12, 0)]) + inner
    batch = bytearray(make_batch(0, size=1000))
    batch[200 : 200 + len(forged)] = forged  # its checksum is wrong now: torn
    opened.wal.append(1, 0, 0, batch)
    await opened.settle()
    await opened.wal.close()
    [instance] = lock_instances(ROOT, CLUSTER, 1, disk=disk)
    report = instance.scan()
    assert report.usable and report.last_group == 0 and report.torn is not None
    instance.close()


async def test_epochs_make_extents_and_batches_come_in_append_order() -> None:
    disk = SimulatedDisk()
    opened = await open_wal(ROOT, disk=disk)
    for epoch, base in ((1, 0), (1, 2), (3, 10), (3, 12), (7, 14)):
        opened.wal.append(9, epoch, base, make_batch(base, epoch=epoch, records=2))
        opened.wal.append(4, epoch, base, make_batch(base, epoch=epoch, records=1))
        await opened.settle()
    await opened.wal.close()
    [instance] = lock_instances(ROOT, CLUSTER, 1, disk=disk)
    report = instance.scan()
    assert [extent for extent in report.entries if extent.log_id == 9] == [
        Extent(9, 1, 0, 4, 2, 200),
        Extent(9, 3, 10, 14, 2, 200),
        Extent(9, 7, 14, 16, 1, 100),
    ]
    assert [(epoch, base) for epoch, base, _ in instance.batches(9)] == [(1, 0), (1, 2), (3, 10), (3, 12), (7, 14)]
    instance.close()


async def test_a_large_instance_reads_in_windows() -> None:
    """Groups larger and smaller than the windows, batches near and far from each other."""
    disk = SimulatedDisk()
    size = 3 << 20
    opened = await open_wal(ROOT, disk=disk, file_bytes=size, bytes_max=4 * size, message_bytes_max=1 << 20)
    sizes = [61, 400_000, 100, 90_000, 61, 61, 1 << 20, 500, 30_000, 700_000, 61] * 2
    for log_id, batch_size in enumerate(sizes):
        for target in (log_id % 2, 7):
            opened.append(target, size=batch_size if target != 7 else 61)
        if log_id % 3:
            await opened.settle()
    await opened.settle()
    await opened.wal.close()
    [instance] = lock_instances(ROOT, CLUSTER, 1, disk=disk)
    report = instance.scan()
    assert [extent.batches for extent in report.entries] == [11, 11, 22]
    for extent in report.entries:
        batches = list(instance.batches(extent.log_id))
        assert [base for _, base, _ in batches] == list(range(extent.end))
        assert sum(len(batch) for _, _, batch in batches) == extent.bytes
    instance.close()


def test_the_overhead_of_a_lone_batch() -> None:
    assert LONE_OVERHEAD == header_size(1) == 68 and SECTOR == 512
