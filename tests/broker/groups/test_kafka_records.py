"""Records and hashes, byte for byte, of what Kafka 4.3.0's own classes made of the same groups.

`kafka_group_records.txt` is what `tests/compatibility/GroupRecords.java` prints (`GroupCoordinatorRecordHelpers`, the
coordinator's serde, `Utils`); `tests/compatibility/test_java_group_records.py` prints it again. To write it anew: `java
-cp <jars of kafka-group-coordinator> GroupRecords.java`.
"""

from pathlib import Path

import pytest

from broker.groups.consumer import ConsumerMember
from broker.groups.consumer_model import (
    ClassicProtocols,
    CurrentRemoved,
    EpochRemoved,
    EpochSaved,
    MemberRemoved,
    RegexRemoved,
    RegexSaved,
    TargetEpochRemoved,
    TargetEpochSaved,
    TargetRemoved,
    TargetSaved,
    TopicsOfOldVersion,
)
from broker.groups.model import Change
from broker.groups.records import decode, encode
from broker.groups.topics import TopicInfo, metadata_hash, topic_hash
from tests.broker.groups.world import FakeTopics

PRINTED = Path(__file__).with_name("kafka_group_records.txt")
LINES = dict(line.split(" ", 1) for line in PRINTED.read_text().splitlines())
FIRST = bytes(range(16))
SECOND = bytes(range(0xFF, 0xEF, -1))


def member(**fields: object) -> ConsumerMember:
    return ConsumerMember("m", client_id="client", client_host="/10.0.0.1", **fields)  # type: ignore[arg-type]


CLASSIC = ClassicProtocols(45_000, (("range", b"\0\3\1"), ("cooperative-sticky", b"")))
RECORDS: dict[str, Change] = {
    "member-plain": member(rebalance_timeout_ms=300_000, topics=("t", "u"), regex="").saved("g"),
    "member-full": member(
        instance_id="i", rack_id="r", rebalance_timeout_ms=1, regex="t.*", topics=("t",), assignor="range"
    ).saved("g"),
    "member-classic": member(rebalance_timeout_ms=60_000, topics=("t",), regex="", classic=CLASSIC).saved("g"),
    "current-joining": member(previous_epoch=-1).current("g"),
    "current-holding": member(
        epoch=7, previous_epoch=6, state=1, assigned={FIRST: {1: 5, 2: 7}}, revoking={SECOND: {0: 3}}
    ).current("g"),
    "current-away": member(epoch=-2, previous_epoch=7, assigned={FIRST: {1: 0}}).current("g"),
    "target-nothing": TargetSaved("g", "m", {}),
    "target": TargetSaved("g", "m", {FIRST: frozenset({1, 2, 300})}),
    "epoch": EpochSaved("g", 7, -2),
    "epoch-no-topics": EpochSaved("g", 7, 0),
    "target-epoch": TargetEpochSaved("g", 7, 258),
    "target-epoch-never": TargetEpochSaved("g", 7, 0),
    "regex": RegexSaved("g", "t.*", ("s", "t", "u"), 4, 5),
    "regex-nothing": RegexSaved("g", "x", (), -1, -1),
    "member-gone": MemberRemoved("g", "m"),
    "current-gone": CurrentRemoved("g", "m"),
    "target-gone": TargetRemoved("g", "m"),
    "target-epoch-gone": TargetEpochRemoved("g"),
    "epoch-gone": EpochRemoved("g"),
    "topics-gone": TopicsOfOldVersion("g"),
    "regex-gone": RegexRemoved("g", "t.*"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_those_of_kafka(name: str) -> None:
    key, value = encode(RECORDS[name])
    assert f"{key.hex()} {'-' if value is None else value.hex()}" == LINES[name]
    assert decode(key, value) == RECORDS[name]


def test_hashes_are_those_of_kafka() -> None:
    topics = FakeTopics()
    infos = [
        TopicInfo(FIRST, "t", 1),
        TopicInfo(SECOND, "a topic", 300),
        TopicInfo(FIRST, "\u00fcnic\u00f6de \U0001f600", 3),
    ]
    topics.by_name = {info.name: info for info in infos}
    for number, info in enumerate(infos, 1):
        assert topic_hash(info) == int(LINES[f"topic-hash-{number}"]) % 2**64
    assert metadata_hash(["t"], topics) == int(LINES["group-hash-1"])
    assert metadata_hash(["t", "gone", "a topic", infos[2].name], topics) == int(LINES["group-hash-all"])
    assert metadata_hash(["gone"], topics) == int(LINES["group-hash-none"]) == int(LINES["topic-hash-unknown"])


def test_all_that_is_kept_is_looked_at() -> None:
    hashes = {name for name in LINES if "-hash-" in name}
    assert RECORDS.keys() | hashes == LINES.keys() and len(hashes) == 7
