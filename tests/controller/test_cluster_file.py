import asyncio

import pytest

from controller.cluster_file import KEY, ClusterFileError, open_cluster, read_cluster
from controller.object_log import entry_key
from storage.memory import MemoryStore
from storage.object_store import NotFound
from tests.controller.builders import tokens
from tests.support.faulty_store import FaultyStore, Mishap, in_order


async def test_created_once_by_whoever_is_first() -> None:
    store = MemoryStore()
    found = await asyncio.gather(*[open_cluster(store, tokens(str(i))) for i in range(8)])
    assert len(set(found)) == 1
    assert len(found[0].cluster_id) == 22 and found[0].format == 1
    assert await open_cluster(store, tokens("later"), found[0].cluster_id) == found[0]


async def test_kafka_avoids_a_leading_dash() -> None:
    given = [b"\xfb" * 16, b"\x00" * 16]
    assert (await open_cluster(MemoryStore(), lambda n: given.pop(0))).cluster_id == "A" * 22


async def test_another_cluster_is_refused() -> None:
    store = MemoryStore()
    await open_cluster(store, tokens(), "A" * 22)
    with pytest.raises(ClusterFileError, match="belongs to another cluster"):
        await open_cluster(store, tokens(), "B" * 22)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{}", b'{"cluster_id": "short", "format": 1}', b'{"cluster_id": "AAAAAAAAAAAAAAAAAAAAAA"}']
)
async def test_damage(body: bytes) -> None:
    store = MemoryStore()
    await store.put(KEY, body)
    with pytest.raises(ClusterFileError):
        await open_cluster(store, tokens())


async def test_another_format_is_refused() -> None:
    store = MemoryStore()
    await store.put(KEY, b'{"cluster_id": "AAAAAAAAAAAAAAAAAAAAAA", "format": 2}')
    with pytest.raises(ClusterFileError, match="use a newer version"):
        await open_cluster(store, tokens())


async def test_a_bucket_in_use_that_lost_its_file_is_not_taken_for_an_empty_one() -> None:
    store = MemoryStore()
    await store.put(entry_key(1), b"entry")
    with pytest.raises(ClusterFileError, match=r"missing, but meta/entries/.* exists"):
        await open_cluster(store, tokens())
    with pytest.raises(NotFound):
        await read_cluster(store)


async def test_an_unknown_outcome_is_looked_up() -> None:
    store = FaultyStore(MemoryStore())
    store.plan = lambda name: Mishap.UNHEARD if name == "put_if_absent" else Mishap.NONE
    assert await open_cluster(store, tokens()) == await read_cluster(store)
    store.plan = in_order()
