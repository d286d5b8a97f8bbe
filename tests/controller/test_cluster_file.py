import asyncio

import pytest

from controller.cluster_file import KEY, POSTGRESQL, ClusterFile, ClusterFileError, open_cluster, read_cluster
from controller.object_log import entry_key
from storage.memory import MemoryStore
from storage.object_store import NotFound, StoredObject, Unavailable
from tests.controller import golden
from tests.controller.builders import tokens
from tests.support.faulty_store import FaultyStore, Mishap, in_order


async def test_created_once_by_whoever_is_first() -> None:
    store = MemoryStore()
    found = await asyncio.gather(*[open_cluster(store, tokens(str(i))) for i in range(8)])
    assert len(set(found)) == 1
    assert len(found[0].cluster_id) == 22 and found[0].format == 1
    assert await open_cluster(store, tokens("later"), found[0].cluster_id) == found[0]


async def test_who_looks_while_another_begins_the_cluster_joins_it() -> None:
    class Slow(MemoryStore):
        async def get(self, key: str) -> StoredObject:
            try:
                return await super().get(key)
            except NotFound:
                if not begun:
                    begun.append(await open_cluster(other, tokens("other")))
                    await other.put_if_absent(entry_key(1), b"")
                raise

    begun: list[ClusterFile] = []
    store = Slow()
    other = MemoryStore()
    other._objects = store._objects
    assert await open_cluster(store, tokens("slow")) == begun[0]


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


@pytest.mark.parametrize(
    "rest", ['"format": 3', '"format": 2', '"format": 1, "metadata": "postgresql"', '"format": 2, "metadata": "etcd"']
)
async def test_another_format_is_refused(rest: str) -> None:
    store = MemoryStore()
    await store.put(KEY, f'{{"cluster_id": "AAAAAAAAAAAAAAAAAAAAAA", {rest}}}'.encode())
    with pytest.raises(ClusterFileError, match="use a newer version"):
        await open_cluster(store, tokens())


class Elsewhere:
    """A place for logs that remembers which there are."""

    def __init__(self) -> None:
        self.logs: list[str] = []

    async def create(self, cluster_id: str) -> None:
        self.logs.append(cluster_id)
        await asyncio.sleep(0)

    async def discard(self, cluster_id: str) -> None:
        self.logs.remove(cluster_id)


async def test_a_log_elsewhere_is_there_before_the_file_names_it_and_only_one_stays() -> None:
    store, elsewhere = MemoryStore(), Elsewhere()
    found = await asyncio.gather(*[open_cluster(store, tokens(str(i)), elsewhere=elsewhere) for i in range(4)])
    assert len(set(found)) == 1 and elsewhere.logs == [found[0].cluster_id]
    assert (found[0].format, found[0].metadata) == (2, POSTGRESQL)
    assert await open_cluster(store, tokens("later")) == found[0]

    class Refusing(Elsewhere):
        async def create(self, cluster_id: str) -> None:
            raise Unavailable("away")

    empty = MemoryStore()
    with pytest.raises(Unavailable):
        await open_cluster(empty, tokens(), elsewhere=Refusing())
    with pytest.raises(NotFound):
        await read_cluster(empty)


async def test_both_forms_are_read_and_written_for_ever() -> None:
    for name, elsewhere in (("cluster-1.json", None), ("cluster-2.json", Elsewhere())):
        golden_bytes = (golden.FILES / name).read_bytes()
        store = MemoryStore()
        await store.put(KEY, golden_bytes)
        found = await read_cluster(store)
        assert found.cluster_id == "A" * 22
        fresh = MemoryStore()
        assert await open_cluster(fresh, lambda n: b"\x00" * n, elsewhere=elsewhere) == found
        assert (await fresh.get(KEY)).data == golden_bytes


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
