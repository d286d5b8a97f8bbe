"""Brokers that are gone, and what else administrators decide beside topics, as the state holds it."""

from time import perf_counter

import pytest

from controller import commands as c
from controller import facts as f
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from tests.controller.builders import Cluster, wal_id


def unregister(cluster: Cluster, node_id: int) -> None:
    assert cluster.decide(c.UnregisterBroker(cluster.token(16), node_id)) == c.Done()


def test_a_broker_that_is_gone_for_good_leaves_the_list_and_may_come_back() -> None:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.register(2, 200)
    cluster.decide(c.DrainBroker(cluster.token(16), 2))
    with pytest.raises(KafkaError, match="INVALID_REQUEST: Broker 2 is alive"):
        unregister(cluster, 2)
    cluster.decide(c.CleanStop(cluster.token(16), 200))
    unregister(cluster, 2)
    assert set(cluster.state.brokers) == {1} and not cluster.state.drained
    assert 200 in cluster.state.broker_table.closed, "what it left in the bucket can still be told to be old"
    assert ClusterState.decode(cluster.state.encode()) == cluster.state
    with pytest.raises(KafkaError, match="RESOURCE_NOT_FOUND: Broker ID 2 is not currently registered"):
        unregister(cluster, 2)
    assert cluster.register(2, 201) == c.Registered(())
    with pytest.raises(KafkaError) as refused:
        cluster.register(2, 200)
    assert refused.value.code in (ErrorCode.STALE_BROKER_EPOCH, ErrorCode.DUPLICATE_BROKER_REGISTRATION)


def test_a_broker_whose_log_was_not_recovered_stays() -> None:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.register(2, 200)
    cluster.create("t", 4)
    cluster.end_silently(200)
    with pytest.raises(KafkaError, match="left a write-ahead log that was not recovered"):
        unregister(cluster, 2)
    cluster.decide(c.DeclareLost(cluster.token(16), wal_id(200), host_is_destroyed=True))
    unregister(cluster, 2)
    cluster.register(3, 300)
    cluster.end_silently(300)
    unregister(cluster, 3)
    assert f.WalRetired(wal_id(300)) in cluster.facts, "nothing was ever led through it"
    assert set(cluster.state.brokers) == {1}
    assert all(log.leader_node == 1 for log in cluster.state.logs.values())


def test_what_administrators_decide_survives_a_snapshot_and_repeats_itself() -> None:
    cluster = Cluster()
    acl = f.Acl(2, "t", 3, "User:a", "*", 3, 3)
    create = c.CreateAcls(cluster.token(16), (acl, acl))
    assert cluster.decide(create) == c.Done() and cluster.facts == [f.AclsCreated((acl,))]
    assert cluster.decide(create) == c.Done() and not cluster.facts
    entry = c.QuotaAlteration((("user", "a"), ("client-id", None)), (("producer_byte_rate", 5.0),))
    cluster.decide(c.AlterQuotas(cluster.token(16), (entry,)))
    assert cluster.state.quotas == {(("client-id", None), ("user", "a")): {"producer_byte_rate": 5.0}}
    cluster.decide(c.AlterQuotas(cluster.token(16), (entry,)))
    assert not cluster.facts, "it is so already"
    scram = c.ScramAlteration("a", 1, 4096, b"salt", b"stored", b"server")
    cluster.decide(c.AlterScram(cluster.token(16), (scram,)))
    assert ClusterState.decode(cluster.state.encode()) == cluster.state
    gone = c.QuotaAlteration(entry.entity, (("producer_byte_rate", None), ("request_percentage", None)))
    cluster.decide(c.AlterQuotas(cluster.token(16), (gone,)))
    assert cluster.facts == [f.QuotasChanged((("client-id", None), ("user", "a")), (("producer_byte_rate", None),))]
    cluster.decide(c.AlterScram(cluster.token(16), (c.ScramAlteration("a", 1),)))
    cluster.decide(c.DeleteAcls(cluster.token(16), (acl,)))
    assert (cluster.state.quotas, cluster.state.scram, cluster.state.acls) == ({}, {}, {})


def test_many_quotas_in_one_request_are_decided_in_a_moment() -> None:
    """All of the cluster waits for a decision: its sessions end if one takes seconds."""
    cluster = Cluster()
    entries = tuple(
        c.QuotaAlteration((("user", f"u{number}"),), (("producer_byte_rate", 5.0),)) for number in range(50_000)
    )
    began = perf_counter()
    answer = cluster.decide(c.AlterQuotas(cluster.token(16), (*entries, entries[0])))
    assert perf_counter() - began < 5, "each was looked for among all others: a minute"
    codes = [one.error_code for one in answer.results]
    assert codes[1:-1] == [0] * 49_999 and codes[0] == codes[-1] == ErrorCode.INVALID_REQUEST


def test_it_needs_format_level_3() -> None:
    cluster = Cluster(format_level=2)
    with pytest.raises(KafkaError, match="AlterQuotas needs format level 3"):
        entry = c.QuotaAlteration((("user", "a"),), (("producer_byte_rate", 5.0),))
        cluster.decide(c.AlterQuotas(cluster.token(16), (entry,)))
