"""What consumers write into their group metadata, read as far as the coordinator needs it."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as struct_error

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
