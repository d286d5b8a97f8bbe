"""Which value of tidelog's stands for which of Kafka's, where each broker chooses its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.codec import Data

KINDS = {
    "topic_id": "topic id",
    "producer_id": "producer id",
    "producer_id_filters": "producer id",
    "v3_and_below_producer_id": "producer id",
    "member_id": "member id",
    "leader": "member id",
    "session_id": "fetch session",
    "cluster_id": "cluster id",
    "port": "port",
}
"""Fields whose values a broker chooses. `leader` is a member of a group; the leaders of partitions are `leader_id`."""

NOBODY = (0, -1, "", bytes(16))
"""Values that say there is none: they mean the same on both sides."""


class Values:
    """A one-to-one correspondence for each kind, learned from answers."""

    def __init__(self) -> None:
        self._ours: dict[tuple[str, Any], Any] = {}
        self._kafkas: dict[tuple[str, Any], Any] = {}

    def alike(self, field: str, kafka: Any, ours: Any) -> bool:
        """Whether these two stand for each other, as far as is known; learned when neither was seen before."""
        kind = KINDS[field]
        if kafka in NOBODY or ours in NOBODY:
            return bool(kafka == ours)
        if (kind, kafka) not in self._ours and (kind, ours) not in self._kafkas:
            self._ours[kind, kafka] = ours
            self._kafkas[kind, ours] = kafka
        return bool(self._ours.get((kind, kafka)) == ours)

    def ours(self, message: Any, records: Callable[[bytes], bytes] | None = None) -> Any:
        """The same request with tidelog's values in the place of Kafka's."""
        if isinstance(message, list):
            return [self.ours(item, records) for item in message]
        if not isinstance(message, Data):
            return message
        fields = {}
        for name in message._fields:
            value = getattr(message, name)
            kind = KINDS.get(name)
            if name == "records" and records is not None and value is not None:
                fields[name] = records(value)
                continue
            if kind is None:
                fields[name] = self.ours(value, records)
            elif isinstance(value, list):
                fields[name] = [self._ours.get((kind, item), item) for item in value]
            else:
                fields[name] = self._ours.get((kind, value), value)
        return type(message)(**fields)

    def counterpart(self, field: str, kafka: Any) -> Any:
        """Ours for one of Kafka's values; itself if it is not known."""
        return self._ours.get((KINDS[field], kafka), kafka)
