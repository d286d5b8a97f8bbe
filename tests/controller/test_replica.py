import pytest

from controller import facts as f
from controller.entries import FIRST_HASH, CorruptMetadata, Entry, encode_entry, hash_of
from controller.object_log import ObjectLog, entry_key
from controller.replica import READ_LIMIT, ChainBroken, Replica
from storage.memory import MemoryStore
from tests.controller.builders import CLUSTER


def entries(count: int, cluster: str = CLUSTER, nonce: bytes = b"n" * 16) -> list[bytes]:
    made: list[bytes] = []
    for position in range(1, count + 1):
        facts = (f.ControllerElected(1, 1, 1),) if position == 1 else (f.LeaseExtended(),)
        previous = hash_of(made[-1]) if made else FIRST_HASH
        made.append(encode_entry(Entry(cluster, position, previous, 1, nonce, position, (), facts)))
    return made


async def written(data: list[bytes], first: int = 1) -> tuple[MemoryStore, ObjectLog]:
    store = MemoryStore()
    for position, entry in enumerate(data, first):
        await store.put(entry_key(position), entry)
    return store, ObjectLog(store, CLUSTER)


async def test_follows_to_the_end_and_tells_every_entry_in_order() -> None:
    data = entries(READ_LIMIT + 50)
    _, log = await written(data)
    replica = Replica(log, CLUSTER)
    seen: list[f.Fact] = []
    stop = replica.subscribe(seen.extend)
    assert await replica.catch_up() == len(data)
    assert (replica.state.position, replica.state.entry_hash) == (len(data), hash_of(data[-1]))
    assert seen == [f.ControllerElected(1, 1, 1)] + [f.LeaseExtended()] * (len(data) - 1)
    stop()
    await replica.load()
    assert len(seen) == len(data)
    await replica.wait_applied(0)


async def test_what_comes_with_a_snapshot_counts_as_entries() -> None:
    """Else a follower that slept, and finds none behind the snapshot, takes a controller at work for silent: it would
    replace it and end the session of its broker, which may acknowledge still."""
    data = entries(5)
    store, log = await written(data[:2])
    replica = Replica(log, CLUSTER)
    assert await replica.catch_up() == 2
    for position, entry in enumerate(data[2:], 3):
        await store.put(entry_key(position), entry)
    other = Replica(ObjectLog(store, CLUSTER), CLUSTER)
    await other.catch_up()
    await other.log.write_snapshot(5, hash_of(data[-1]), list(other.state.encode_chunks()))
    await other.log.advance_boundary(5)
    assert await other.log.trim() == 5
    assert await replica.catch_up() == 3
    assert await replica.catch_up() == 0


async def test_a_break_in_the_chain_is_answered_by_the_snapshot_and_then_by_an_error() -> None:
    data = entries(5)
    data[3] = entries(5, nonce=b"m" * 16)[3]
    _, log = await written(data)
    replica = Replica(log, CLUSTER)
    with pytest.raises(CorruptMetadata, match="entry 4 does not follow"):
        await replica.catch_up()
    assert replica.state.position == 3


async def test_other_clusters_epochs_and_positions_are_refused() -> None:
    _, log = await written([])
    replica = Replica(log, CLUSTER)
    with pytest.raises(CorruptMetadata, match="belongs to cluster"):
        replica.apply(entries(1, "B" * 22)[0])
    with pytest.raises(ChainBroken):
        replica.apply(entries(2)[1])
    wrong_epoch = Entry(CLUSTER, 1, FIRST_HASH, 7, bytes(16), 0, (), (f.LeaseExtended(),))
    with pytest.raises(ChainBroken, match="controller epoch 7"):
        replica.apply(encode_entry(wrong_epoch))
    assert replica.state.position == 0


async def test_a_snapshot_that_holds_another_state_is_damage() -> None:
    _, log = await written([])
    await log.write_snapshot(9, b"h" * 32, list(Replica(log, CLUSTER).state.encode_chunks()))
    with pytest.raises(CorruptMetadata, match="holds the state at 0"):
        await Replica(log, CLUSTER).load()
