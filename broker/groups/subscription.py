"""What consumers of the classic protocol write into their group metadata, and what they are assigned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

from protocol import messages as m

SUBSCRIPTION_VERSION_MAX = 3

_COUNT = Struct(">hi")
_LENGTH = Struct(">h")


def subscribed_topics(subscriptions: Iterable[bytes]) -> frozenset[str] | None:
    """Topics of all ConsumerProtocolSubscriptions together; None when one of them cannot be read.

    Every version begins as version 0 does (version, array of topics), so that the rest need not be known.
    """
    topics: set[str] = set()
    for data in subscriptions:
        try:
            version, count = _COUNT.unpack_from(data, 0)
            if version < 0 or count < 0:
                return None
            pos = _COUNT.size
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(data, pos)
                pos += 2 + length
                if length < 0 or pos > len(data):
                    return None
                topics.add(data[pos - length : pos].decode())
        except (ValueError, struct_error):
            return None
    return frozenset(topics)


class Subscription(NamedTuple):
    """What a consumer of the classic protocol tells its group's leader."""

    version: int
    topics: tuple[str, ...]
    """Sorted."""
    rack_id: str | None
    owned: Mapping[str, frozenset[int]]


def read_subscription(data: bytes) -> Subscription:
    """ProtocolError or ValueError: malformed. A newer version is read as the newest that is known, as in Kafka."""
    version = _version_of(data)
    read = m.ConsumerProtocolSubscription.decode(data, version, _LENGTH.size)
    owned: dict[str, frozenset[int]] = {}
    for one in read.owned_partitions:
        owned[one.topic] = owned.get(one.topic, frozenset()).union(one.partitions)
    return Subscription(version, tuple(sorted(set(read.topics))), read.rack_id, owned)


def read_assignment(data: bytes) -> tuple[dict[str, frozenset[int]], bytes]:
    """(topic -> partitions, what a custom assignor added). No bytes: nothing is assigned."""
    if not data:
        return {}, b""
    read = m.ConsumerProtocolAssignment.decode(data, _version_of(data), _LENGTH.size)
    assigned: dict[str, frozenset[int]] = {}
    for one in read.assigned_partitions:
        assigned[one.topic] = assigned.get(one.topic, frozenset()).union(one.partitions)
    return assigned, read.user_data or b""


def write_assignment(assigned: Mapping[str, Iterable[int]], version: int) -> bytes:
    """What a consumer gets in SyncGroup, in the version of its subscription."""
    written = m.ConsumerProtocolAssignment(
        assigned_partitions=[
            m.ConsumerProtocolAssignment.TopicPartition(topic=topic, partitions=sorted(partitions))
            for topic, partitions in sorted(assigned.items())
        ],
        user_data=None,
    )
    return _LENGTH.pack(version) + written.encode(version)


def assignment_version(subscription: bytes) -> int:
    """The version in which a member that sent this reads its assignment; 0 if there is no telling: what a member wrote
    for an assignor that was not chosen nobody has looked at."""
    try:
        return _version_of(subscription)
    except ValueError:
        return 0


def _version_of(data: bytes) -> int:
    try:
        (version,) = _LENGTH.unpack_from(data, 0)
    except struct_error as error:
        raise ValueError("no version") from error
    if version < 0:
        raise ValueError(f"version {version}")
    return int(min(version, SUBSCRIPTION_VERSION_MAX))
