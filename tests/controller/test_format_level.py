"""What may be written at which format level; raising it; processes that know only a lower one."""

import pytest

from controller import commands as c
from controller import facts as f
from controller.entries import FIRST_HASH, CorruptMetadata, Entry, NewerFormat, decode_entry, encode_entry, hash_of
from controller.object_log import ObjectLog
from controller.replica import Replica
from protocol.errors import KafkaError
from storage.memory import MemoryStore
from tests.controller.builders import CLUSTER, Cluster, wal_id


def refused(words: str) -> "pytest.RaisesExc[KafkaError]":
    return pytest.raises(KafkaError, match=rf"UNSUPPORTED_VERSION.*{words}")


def test_every_fact_needs_the_level_that_it_came_with() -> None:
    levels = {tag: 1 if tag < 40 else 2 if tag < 70 else 3 for tag in f.TAGS}
    assert {tag: f.level_of_tag(tag) for tag in f.TAGS} == levels
    assert max(f.FIRST_TAG) == f.FORMAT_LEVEL


def test_raising_it_again_leaves_wishes_and_preferred_leaders_as_they_are() -> None:
    cluster = Cluster(format_level=1)
    cluster.register(1, 100)
    cluster.create("t", 2)
    cluster.apply(f.FormatLevel(2))
    assert cluster.state.move_table.preferred == {0: 1, 1: 1}
    cluster.apply(f.MovesRequested((f.MoveTarget(0, 1),)), f.LeadersPreferred((f.MoveTarget(1, 2),)))
    cluster.apply(f.FormatLevel(3))
    assert cluster.state.moves == {0: 1}, "a move to an instance of another kind"
    assert cluster.state.move_table.preferred == {0: 1, 1: 2}


def test_what_needs_a_higher_level_is_refused_until_it_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f, "FIRST_TAG", {1: 1, 2: 33, 3: 70})  # as if blocks of producer ids had come with level 2
    cluster = Cluster(format_level=1)
    cluster.register(1, 100)
    before = cluster.state.encode()
    with refused("AllocateProducerIds needs format level 2, the cluster is at 1.*tidelog cluster format --raise"):
        cluster.decide(c.AllocateProducerIds(cluster.token(16), 100))
    assert cluster.state.encode() == before
    cluster.decide(c.CleanStop(cluster.token(16), 100))
    cluster.decide(c.RaiseFormatLevel(cluster.token(16), 2))
    cluster.register(1, 101)
    assert cluster.decide(c.AllocateProducerIds(cluster.token(16), 101)) == c.ProducerIdBlock(0, 1000)


def test_it_rises_only_with_every_live_broker() -> None:
    cluster = Cluster(format_level=1)
    cluster.register(1, 100)
    assert cluster.decide(c.RaiseFormatLevel(cluster.token(16), 1)) == c.Done()
    assert not cluster.facts
    with refused(r"brokers \[1\] do not understand"):
        cluster.decide(c.RaiseFormatLevel(cluster.token(16), 2))
    with refused("this controller does not know"):
        Cluster().decide(c.RaiseFormatLevel(cluster.token(16), f.FORMAT_LEVEL + 1))
    cluster.decide(c.CleanStop(cluster.token(16), 100))
    cluster.decide(c.RaiseFormatLevel(cluster.token(16), 2))
    assert cluster.facts == [f.FormatLevel(2)]


def test_who_does_not_understand_the_level_cannot_register() -> None:
    cluster = Cluster(format_level=2)
    wals = (c.NewWal(wal_id(100), "volume"),)
    listeners = (f.Listener("PLAINTEXT", "PLAINTEXT", "127.0.0.1", 9092),)
    old = c.RegisterBroker(cluster.token(16), 1, 100, "boot", None, listeners, wals, format_level=1)
    with refused("the cluster is at format level 2, this broker knows 1: upgrade"):
        cluster.decide(old)
    assert cluster.register(1, 101) == c.Registered(())


def log_of(*facts: f.Fact) -> list[bytes]:
    made: list[bytes] = []
    for position, fact in enumerate((f.ControllerElected(1, 1, 1), *facts), 1):
        previous = hash_of(made[-1]) if made else FIRST_HASH
        made.append(encode_entry(Entry(CLUSTER, position, previous, 1, b"n" * 16, 0, (), (fact,))))
    return made


async def replica_of(*facts: f.Fact) -> tuple[Replica, ObjectLog]:
    log = ObjectLog(MemoryStore(), CLUSTER)
    for position, data in enumerate(log_of(*facts), 1):
        await log.append(position, data)
    return Replica(log, CLUSTER), log


async def test_a_follower_stops_before_a_level_that_it_does_not_know() -> None:
    replica, _ = await replica_of(f.FormatLevel(f.FORMAT_LEVEL + 1))
    with pytest.raises(NewerFormat, match=rf"raised to format level {f.FORMAT_LEVEL + 1}.*upgrade"):
        await replica.catch_up()
    assert (replica.state.position, replica.state.format_level) == (1, 0)


async def test_a_follower_stops_before_a_fact_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, _ = await replica_of(f.FormatLevel(1), f.NamesFreed(("x",)))
    with monkeypatch.context() as older:
        older.delitem(f._facts._by_tag, 23)
        with pytest.raises(f.UnknownFact, match=r"tag 23 is not known.*upgrade this process"):
            await replica.catch_up()
        assert replica.state.position == 2
    assert await replica.catch_up() == 1


async def test_a_snapshot_of_a_higher_level_stops_whoever_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, log = await replica_of(f.FormatLevel(2))
    await replica.catch_up()
    await log.write_snapshot(2, replica.state.entry_hash, list(replica.state.encode_chunks()))
    monkeypatch.setattr(f, "FORMAT_LEVEL", 1)
    with pytest.raises(NewerFormat, match="snapshot of format level 2, this version knows 1: upgrade"):
        await Replica(log, CLUSTER).load()


def test_newer_frames_are_told_from_damage() -> None:
    data = bytearray(log_of()[0])
    data[4] = 9
    with pytest.raises(NewerFormat, match="format 9"):
        decode_entry(bytes(data))
    data[4], data[20] = 1, data[20] ^ 1
    with pytest.raises(CorruptMetadata):
        decode_entry(bytes(data))
