"""What every WAL kind must do: the same tests for each, the object WAL over every kind of store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.filesystem import FileSystemStore
from storage.memory import MemoryStore
from storage.object_store import ObjectStore, open_store
from storage.wal.instances import lock_instances
from storage.wal.object_recovery import ObjectInstance
from storage.wal.port import Wal
from storage.wal.recovery import ScanReport
from tests.storage.wal.objects import QUICK, Owned, open_object_wal
from tests.storage.wal.support import CLUSTER, WAL_ID, Opened, make_batch, open_wal
from tests.support.s3_servers import versitygw_possible

KINDS = [
    "volume",
    "objects-memory",
    "objects-filesystem",
    "objects-moto",
    # The first use may build the server.
    *([pytest.param("objects-versitygw", marks=pytest.mark.timeout(600))] if versitygw_possible() else []),
]

Batches = dict[int, list[tuple[int, int, bytes]]]
"""(epoch, base, batch) by log."""


class Kind:
    """One row of the matrix: opens an instance, and reads it back after its writer is gone."""

    def __init__(self, root: Path, store: ObjectStore | None) -> None:
        self.root = root
        self.store = store
        self.owned = Owned()

    async def open(self, *, small: bool = False) -> Opened:
        if self.store is None:
            size = 64 << 10
            return await open_wal(self.root, file_bytes=size, bytes_max=4 * size, message_bytes_max=32 << 10)
        settings = QUICK._replace(bytes_max=256 << 10) if small else QUICK
        return open_object_wal(self.store, self.owned, settings=settings, message_bytes_max=32 << 10)

    async def recover(self, *, validated: int = 0, committed: int = 0) -> tuple[ScanReport, Batches]:
        found: Batches = {}
        if self.store is None:
            [instance] = lock_instances(self.root, CLUSTER, 1)
            instance.fence()
            report = instance.scan(validated_group=validated, committed_group=committed)
            for extent in report.entries:
                found[extent.log_id] = list(instance.batches(extent.log_id))
            instance.close()
            return report, found
        objects = ObjectInstance(self.store, WAL_ID, token=secrets.token_bytes)
        report = await objects.fence_and_scan(validated_group=validated, committed_group=committed)
        async for group in objects.groups():
            for entry, batch in group.batches:
                found.setdefault(entry.log_id, []).append((entry.leader_epoch, entry.base_offset, bytes(batch)))
        return report, found


@pytest.fixture(params=KINDS)
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kind]:
    store: ObjectStore | None = None
    match request.param.split("-"):
        case [_, "memory"]:
            store = MemoryStore()
        case [_, "filesystem"]:
            store = FileSystemStore(tmp_path / "bucket", token=secrets.token_bytes)
        case [_, server]:
            uri = request.getfixturevalue(f"{server}_server").uri("bucket", secrets.token_hex(6))
            store = open_store(uri, token=secrets.token_bytes)
    made = Kind(tmp_path / "wal", store)
    yield made
    await made.owned.end()
    if store is not None:
        await store.close()


async def test_is_a_wal(kind: Kind) -> None:
    opened = await kind.open()
    wal: Wal = opened.wal
    assert wal.kind == ("volume" if kind.store is None else "objects")
    assert wal.wal_id == WAL_ID and wal.appended == 0 and not wal.fenced and wal.batch_bytes_max >= 32 << 10
    await wal.close()


async def test_what_is_durable_comes_back_in_order(kind: Kind) -> None:
    opened = await kind.open()
    for turn in range(60):
        assert opened.append(turn % 3, epoch=turn // 30, records=2, size=100 + turn, fill=turn) == turn + 1
        if turn % 9 == 0:
            await asyncio.sleep(0.002)
    await opened.durable_through(60)
    sequences, groups = zip(*opened.durable)
    assert list(sequences) == sorted(set(sequences)) and list(groups) == sorted(set(groups))
    assert opened.wal.durable == (60, groups[-1]) and opened.wal.groups == groups[-1]
    await opened.wal.close()
    report, found = await kind.recover(validated=groups[-1])
    assert report.usable and report.last_group == groups[-1] and report.groups == groups[-1]
    for log_id in range(3):
        turns = [turn for turn in range(60) if turn % 3 == log_id]
        bases = [2 * number for number in range(20)]
        expected = [
            (turn // 30, base, make_batch(base, epoch=turn // 30, records=2, size=100 + turn, fill=turn))
            for turn, base in zip(turns, bases)
        ]
        assert found[log_id] == expected
        runs = [extent for extent in report.entries if extent.log_id == log_id]
        assert [(run.leader_epoch, run.base, run.end, run.batches) for run in runs] == [(0, 0, 20, 10), (1, 20, 40, 10)]
    assert opened.failures == []


async def test_close_makes_durable_what_is_queued(kind: Kind) -> None:
    opened = await kind.open()
    for _ in range(5):
        opened.append()
    await opened.wal.close()
    assert opened.durable[-1][0] == 5
    assert (await kind.recover())[0].entries[0].end == 5


async def test_group_below_counts_durable_groups(kind: Kind) -> None:
    opened = await kind.open()
    assert opened.wal.group_below(1) == 0
    ends = []
    for count in (3, 1, 2):
        for _ in range(count):
            opened.append()
        await opened.durable_through(sum((3, 1, 2)[: len(ends) + 1]))
        ends.append(opened.wal.durable)
    for sequence, group in ends:
        assert opened.wal.group_below(sequence + 1) == group
        assert opened.wal.group_below(sequence) < group
    await opened.wal.close()


async def test_full_before_an_append_and_room_after_a_trim(kind: Kind) -> None:
    opened = await kind.open(small=True)
    wal, size = opened.wal, 20_000
    await wal.ready()
    while wal.has_room(size, internal=False):
        opened.append(size=size)
        await opened.durable_through(wal.appended)
    assert 3 <= wal.appended <= 13
    wal.trim(wal.durable[1] - 1)
    await opened.until(lambda: opened.rooms)  # trimmed; or, of the volume, another file is ready
    assert wal.has_room(size, internal=False)
    await wal.close()
    assert opened.failures == []


async def test_internal_logs_have_the_last_of_the_space(kind: Kind) -> None:
    opened = await kind.open(small=True)
    wal, size = opened.wal, 1_000
    await wal.ready()
    for _ in range(4):  # the volume prepares one file after the other
        while wal.has_room(size, internal=False):
            opened.append(size=size)
            await opened.durable_through(wal.appended)
        await asyncio.sleep(0.1)
    assert not wal.has_room(size, internal=False) and wal.has_room(size, internal=True)
    await wal.close()


async def test_recovery_begins_above_what_is_committed(kind: Kind) -> None:
    opened = await kind.open()
    for _ in range(12):
        opened.append(size=20_000)
        await opened.durable_through(opened.wal.appended)
    committed = opened.wal.group_below(9)
    opened.wal.trim(committed)
    await asyncio.sleep(0.05)
    await opened.wal.close()
    report, found = await kind.recover(validated=opened.wal.durable[1], committed=committed)
    assert report.usable and report.last_group == opened.wal.durable[1]
    bases = [base for _, base, _ in found[1]]
    assert bases == list(range(bases[0], 12)) and bases[0] <= 8


async def test_an_instance_that_was_never_written(kind: Kind) -> None:
    opened = await kind.open()
    await opened.wal.ready()
    await opened.wal.close()
    report, found = await kind.recover()
    assert report.usable and (report.first_group, report.last_group, report.groups) == (0, 0, 0) and found == {}


async def test_a_lost_end_is_told(kind: Kind) -> None:
    opened = await kind.open()
    opened.append()
    await opened.durable_through(1)
    await opened.wal.close()
    report, _ = await kind.recover(validated=7)
    assert not report.usable and report.stale is not None and report.stale.validated_group == 7
