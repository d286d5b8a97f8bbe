"""The subscriptions of consumers of every version, and whatever else may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.groups.subscription import subscribed_topics
from protocol import messages as m


@pytest.mark.parametrize("version", range(4))
def test_every_version_begins_alike(version: int) -> None:
    first = m.ConsumerProtocolSubscription(topics=["t", "u"], user_data=b"x").encode(version)
    second = m.ConsumerProtocolSubscription(topics=["v", "u"]).encode(version)
    prefix = version.to_bytes(2, "big")
    assert subscribed_topics([prefix + first, prefix + second]) == {"t", "u", "v"}
    assert subscribed_topics([]) == frozenset()


@given(st.binary(max_size=40))
def test_anything_else_is_not_understood(data: bytes) -> None:
    topics = subscribed_topics([data])
    assert topics is None or all(len(topic.encode()) <= len(data) for topic in topics)


@pytest.mark.parametrize("data", ["", "0000", "000000000001", "0000ffffffff", "ffff00000000", "0000000000010002ff"])
def test_damaged(data: str) -> None:
    assert subscribed_topics([bytes.fromhex(data)]) is None
