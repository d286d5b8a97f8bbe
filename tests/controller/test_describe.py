import asyncio
import json

import pytest

from controller import commands as c
from controller import facts as f
from controller.describe import MetadataReport, describe_metadata
from controller.entries import Entry, encode_entry, hash_of
from controller.object_log import BOUNDARY, entry_key, snapshot_key
from controller.runtime import ControllerSettings
from storage.memory import MemoryStore
from tests.controller.builders import CLUSTER, wal_id
from tests.controller.processes import Process
from tests.controller.virtual import run


async def bucket() -> MemoryStore:
    """A small cluster's bucket after a loss, with a snapshot, a boundary and entries on both sides."""
    store = MemoryStore()
    await store.put("cluster.json", json.dumps({"cluster_id": CLUSTER, "format": 1}).encode())
    async with asyncio.TaskGroup() as group:
        process = Process(group, store, 1, 100, settings=ControllerSettings(snapshot_entries=10, keep_entries=4))
        await process.client.wait_ready()
        await process.register()
        for i in range(12):
            await process.create(f"t{i}")
        await process.client.ask(c.DeclareLost(process.token(16), wal_id(100), host_is_destroyed=True))
        await asyncio.sleep(1)
        await process.kill()
    return store


def report(work: object) -> tuple[MetadataReport, MemoryStore]:
    async def main() -> tuple[MetadataReport, MemoryStore]:
        store = await bucket()
        await work(store)  # type: ignore[operator]
        before = [(info, (await store.get(info.key)).data) async for info in store.list("")]
        found = await describe_metadata(store)
        assert before == [(info, (await store.get(info.key)).data) async for info in store.list("")], "never modifies"
        return found, store

    return run(main)


async def nothing(store: MemoryStore) -> None:
    pass


def test_a_sound_bucket() -> None:
    found, _ = report(nothing)
    assert found.problems == []
    assert found.boundary == 6 and found.snapshots == [10] and found.first_entry == 7
    assert found.last_entry == found.entries + 6 and found.zombies == 0
    assert found.state is not None and len(found.state.topics) == 12
    summary = json.loads(json.dumps(found.summary()))
    assert summary["state"]["losses"][0]["wal_id"] == wal_id(100).hex()
    assert summary["facts"]["LossDeclared"] == 12
    text = "\n".join(found.lines())
    for word in (CLUSTER, "12 topics", "boundary 6", "session ended (lost)", "loss "):
        assert word in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda store: store.delete("cluster.json"), "cluster.json: missing"),
        (lambda store: store.put("cluster.json", b"{"), "cluster.json cannot be read"),
        (lambda store: store.delete(entry_key(9)), "entries 9 to 9 are missing"),
        (lambda store: flip(store, entry_key(9)), "checksum does not match"),
        (lambda store: flip(store, snapshot_key(10)), "checksum does not match"),
        (lambda store: copy(store, entry_key(8), entry_key(9)), "is entry 8"),
        (lambda store: store.put(BOUNDARY, b"{"), "meta/boundary: cannot be read"),
        (lambda store: store.put(BOUNDARY, b'{"position": 10, "cluster_id": "B"}'), "belongs to cluster B"),
        (lambda store: store.delete(snapshot_key(10)), "no readable snapshot above the boundary"),
    ],
)
def test_damage_is_named(damage: object, words: str) -> None:
    found, _ = report(damage)
    assert words in "\n".join(found.problems)
    json.dumps(found.summary())
    found.lines()


def test_leftovers_below_the_boundary_are_no_problem() -> None:
    found, _ = report(lambda store: store.put(entry_key(3), b"late"))
    assert found.problems == [] and found.zombies == 1
    assert "1 entries at or below the boundary" in "\n".join(found.lines())


async def flip(store: MemoryStore, key: str) -> None:
    data = bytearray((await store.get(key)).data)
    data[-1] ^= 1
    await store.put(key, bytes(data))


async def copy(store: MemoryStore, source: str, target: str) -> None:
    await store.put(target, (await store.get(source)).data)


def test_a_fact_that_does_not_apply_is_named() -> None:
    async def contradict(store: MemoryStore) -> None:
        last = [info.key async for info in store.list("meta/entries/")][-1]
        position = int(last.rpartition("/")[2]) + 1
        previous = hash_of((await store.get(last)).data)
        entry = Entry(CLUSTER, position, previous, 1, bytes(16), 0, (), (f.ProducerIdsAllocated(5, 5),))
        await store.put(entry_key(position), encode_entry(entry))

    found, _ = report(contradict)
    assert "AssertionError" in "\n".join(found.problems)
