"""Offsets committed in transactions that are still open, as pure state: in force when the marker says so.

An offset waits under its producer until a marker in `__consumer_offsets` commits or drops all that the producer has. Of
what is in force the one that was written last in the log wins, as in Kafka. An offset that another one has overtaken
goes on to make its partition unstable until its own marker comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from broker.groups.model import OffsetCommitted, OffsetRemoved, PendingOffset

Place: TypeAlias = tuple[str, str, int]
"""Group id, topic, partition."""


class _Entry(NamedTuple):
    pending: PendingOffset
    number: int
    """Grows in the order of the log."""
    is_newest: bool
    """Nothing that is in force was written for its place after it."""


class PendingOffsets:
    """producer id -> place -> offset."""

    def __init__(self) -> None:
        self.by_producer: dict[int, dict[Place, _Entry]] = {}
        self._producers_of: dict[Place, dict[int, None]] = {}
        self._places_of: dict[str, dict[Place, None]] = {}
        self._added = 0

    def __len__(self) -> int:
        return sum(len(places) for places in self.by_producer.values())

    def add(self, pending: PendingOffset) -> None:
        place = (pending.group_id, pending.topic, pending.partition)
        self._added += 1
        self.by_producer.setdefault(pending.producer_id, {})[place] = _Entry(pending, self._added, True)
        self._producers_of.setdefault(place, {})[pending.producer_id] = None
        self._places_of.setdefault(pending.group_id, {})[place] = None

    def changed(self, change: OffsetCommitted | OffsetRemoved) -> None:
        """An offset was committed outside of a transaction, or removed."""
        place = (change.group_id, change.topic, change.partition)
        for producer_id in list(self._producers_of.get(place, ())):
            if isinstance(change, OffsetRemoved):
                self._drop(producer_id, place)
            else:
                self._overtake(producer_id, place)

    def end(self, producer_id: int, *, committed: bool) -> list[PendingOffset]:
        """The producer's transaction ended: the offsets that are in force now."""
        entries = list(self.by_producer.get(producer_id, {}).items())
        for place, _ in entries:
            self._drop(producer_id, place)
        in_force = [(place, entry) for place, entry in entries if committed and entry.is_newest]
        for place, entry in in_force:
            for other in self._producers_of.get(place, ()):
                if self.by_producer[other][place].number < entry.number:
                    self._overtake(other, place)
        return [entry.pending for _, entry in in_force]

    def groups_of(self, producer_id: int) -> set[str]:
        """Groups that a marker of the producer concerns."""
        return {place[0] for place in self.by_producer.get(producer_id, ())}

    def is_unstable(self, group_id: str, topic: str, partition: int) -> bool:
        """Whether an open transaction may still change the offset."""
        return (group_id, topic, partition) in self._producers_of

    def places(self, group_id: str) -> Iterator[Place]:
        """Places of the group's pending offsets, in order."""
        yield from sorted(self._places_of.get(group_id, ()))

    def groups(self) -> list[str]:
        return list(self._places_of)

    def live(self, place: Place) -> list[PendingOffset]:
        """What is to be written down again after the committed offset of the place. What a later commit has overtaken
        is not: what stands in the log of it is enough."""
        entries = [self.by_producer[producer_id][place] for producer_id in self._producers_of.get(place, ())]
        return [entry.pending for entry in sorted(entries, key=lambda entry: entry.number) if entry.is_newest]

    def _overtake(self, producer_id: int, place: Place) -> None:
        places = self.by_producer[producer_id]
        places[place] = places[place]._replace(is_newest=False)

    def _drop(self, producer_id: int, place: Place) -> None:
        places = self.by_producer[producer_id]
        del places[place]
        if not places:
            del self.by_producer[producer_id]
        producers = self._producers_of[place]
        del producers[producer_id]
        if not producers:
            del self._producers_of[place]
            of_group = self._places_of[place[0]]
            del of_group[place]
            if not of_group:
                del self._places_of[place[0]]
