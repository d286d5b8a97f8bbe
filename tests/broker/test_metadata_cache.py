"""Cached Metadata bytes are never other than what would be encoded now, and are kept while nothing changes them."""

from collections.abc import Sequence
from typing import Any

import pytest

import broker.metadata_cache
from broker.metadata_cache import UNCHANGING, MetadataCache, partition_of
from controller import facts as f
from protocol.errors import ErrorCode
from protocol.fast.metadata import encode_metadata_topic
from storage.seal import Range, SegmentObject
from tests.support.facts_controller import FactsController

NODE, OLD, NEW = 1, 70, 77
OLD_WAL, NEW_WAL = b"o" * 16, b"n" * 16
TOLD = (f.Listener("PLAINTEXT", "PLAINTEXT", "here", 1),)
OPERATIONS = 0b1000
VERSIONS = range(14)


def history() -> list[Sequence[f.Fact]]:
    """Entries in which every kind of fact comes that may be about a topic, and those that are about none."""
    item = SegmentObject("segments/1/x/1-0", 100, (Range(0, 0, 0, 5, 0, 100, 0, 5, 1),))
    return [
        (f.ControllerElected(1, NODE, OLD, (OLD_WAL,)), f.FormatLevel(1)),
        (f.BrokerRegistered(NODE, OLD, "boot", None, TOLD, 1, 0), f.WalRegistered(OLD_WAL, NODE, OLD, "volume")),
        (f.TopicCreated("a", b"a" * 16, False, (0, 1), ()),),
        (f.LeaderNamed(0, NODE, OLD, 0, OLD_WAL),),
        (f.LeaderNamed(1, NODE, OLD, 0, OLD_WAL),),
        (f.TopicCreated("__b", b"b" * 16, True, (2,), ()), f.LeaderNamed(2, NODE, OLD, 0, OLD_WAL)),
        (f.ConfigsChanged(2, "a", (("retention.ms", "1"),)),),
        (f.SealCommitted(OLD, 1, (item,)),),
        (f.LogStartAdvanced((f.LogStart(0, 3),)),),
        (f.ProducerIdsAllocated(0, 1000),),
        (f.PartitionsAdded(b"a" * 16, (3,)), f.LeaderNamed(3, NODE, OLD, 0, OLD_WAL)),
        (f.LeaseExtended((f.WalGroup(OLD_WAL, 4),)),),
        (f.MovesRequested((f.MoveTarget(0, NODE),)), f.LeadersPreferred((f.MoveTarget(1, NODE),))),
        (f.MovesCancelled((0,)), f.NodeDrained(NODE), f.BrokerLeaving(OLD)),
        (f.SessionEnded(OLD, "silence", 0),),
        (f.BrokerRegistered(NODE, NEW, "boot", None, TOLD, 1, 0), f.WalRegistered(NEW_WAL, NODE, NEW, "volume")),
        (f.RecoveryNamed(OLD_WAL, NODE, NEW, 1),),
        (f.WalScanned(OLD_WAL, 1, (), 4),),
        (f.LeaderNamed(0, NODE, NEW, 1, NEW_WAL),),
        (f.WalRetired(OLD_WAL), f.LeaderNamed(1, NODE, NEW, 1, NEW_WAL)),
        (f.LogStartAdvanced((f.LogStart(0, 5),)), f.TopicDeleted(b"b" * 16)),
        (f.ObjectsDeleted(("segments/1/x/1-0",)),),
        (f.NamesFreed(("__b",)),),
        (f.TopicCreated("__b", b"c" * 16, True, (4,), ()),),
        (f.ControllerResigned(1),),
    ]


def fresh(controller: FactsController, version: int, name: str, operations: int) -> bytes:
    """The bytes without a cache."""
    topic = controller.state.topics[name]
    return encode_metadata_topic(
        version,
        topic.name,
        topic.topic_id,
        [partition_of(controller.state, log_id, index) for index, log_id in enumerate(topic.log_ids)],
        is_internal=topic.internal,
        authorized_operations=operations,
    )


def test_cached_bytes_are_those_of_the_state_after_every_fact() -> None:
    controller = FactsController()
    cache = MetadataCache(lambda: controller.state)
    controller.subscribe(cache.on_facts)
    for facts in history():
        controller.apply(*facts)
        for name, topic in controller.state.topics.items():
            for version in VERSIONS:
                for operations in (-(1 << 31), OPERATIONS):
                    assert cache.topic(version, topic, operations) == fresh(controller, version, name, operations), (
                        facts
                    )
    assert {type(fact) for facts in history() for fact in facts} >= set(UNCHANGING), "each of them was among the facts"


def test_what_changes_nothing_keeps_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []

    def counted(*args: Any, **options: Any) -> bytes:
        encoded.append(args)
        return encode_metadata_topic(*args, **options)

    monkeypatch.setattr(broker.metadata_cache, "encode_metadata_topic", counted)
    controller = FactsController()
    cache = MetadataCache(lambda: controller.state)
    controller.subscribe(cache.on_facts)
    entries = history()
    for facts in entries[:5]:
        controller.apply(*facts)
    topic = controller.state.topics["a"]
    first = cache.topic(9, topic, OPERATIONS)
    for facts in entries[6:10]:
        assert all(isinstance(fact, UNCHANGING) for fact in facts)
        controller.apply(*facts)
    assert cache.topic(9, topic, OPERATIONS) is first and len(encoded) == 1
    assert cache.topic(10, topic, OPERATIONS) != first or len(encoded) == 2, "another version is encoded by itself"
    controller.apply(*entries[10])
    assert cache.topic(9, topic, OPERATIONS) != first
    cache.on_facts((f.StateReloaded(),))
    before = len(encoded)
    cache.topic(9, topic, OPERATIONS)
    assert len(encoded) == before + 1


def test_a_partition_that_nobody_may_lead() -> None:
    controller = FactsController()
    entries = history()
    for facts in entries[:3]:
        controller.apply(*facts)
    assert partition_of(controller.state, 0, 0).error_code == ErrorCode.LEADER_NOT_AVAILABLE
    for facts in entries[3:14]:
        controller.apply(*facts)
    led = partition_of(controller.state, 0, 0)
    assert led == (0, 0, NODE, 0, (NODE,), (NODE,), ())
    controller.apply(*entries[14])
    waiting = partition_of(controller.state, 0, 0)
    assert waiting == (ErrorCode.LEADER_NOT_AVAILABLE, 0, -1, 0, (), (), ())
