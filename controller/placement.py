"""Which broker leads which log. Pure arithmetic over counts and rates, the same for the same input.

What is compared, in this order: how many logs of the topic a broker leads, so that a topic spreads over brokers; how
many its rack leads, per broker of the rack; how many logs the broker leads at all, where a few per cent count as equal;
its bytes/s; its node id. Counts come before rates because a rate says little of what a new log will carry, and because
`controller.balance` moves logs away from a broker that leads too many.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

EQUAL_SHARE = 20
"""Brokers whose counts lie in one step of a twentieth of the mean are equally loaded: their rates decide."""

_Key = tuple[bool, int, float, int, int, int, int, int]


@dataclass(slots=True)
class Candidate:
    """A live incarnation that may lead: its active WAL instance per kind, how many logs it leads already, and how much
    of them is committed, in bytes/s (0: not known).

    One that is `drained`, about to stop, or not heard from in time, leads only what nobody else can.
    """

    node_id: int
    incarnation: int
    rack: str | None
    wals: Mapping[str, bytes]
    load: int
    drained: bool = False
    rate: int = 0


class Wanted(NamedTuple):
    """A log that needs a leader: its topic, and the WAL kind that it is led through."""

    topic: str
    kind: str


class Place(NamedTuple):
    """A leader and the instance it leads through."""

    node_id: int
    incarnation: int
    wal_id: bytes


def place(
    candidates: Sequence[Candidate], wanted: Sequence[Wanted], led: Mapping[str, Mapping[int, int]] | None = None
) -> list[Place | None]:
    """A place for each log, counted into the candidates' loads; None if nobody has its kind.

    `led`: per topic how many of its logs each node leads already.
    """
    loads = sum(candidate.load for candidate in candidates)
    step = max(1, loads // max(1, len(candidates)) // EQUAL_SHARE)
    mean_rate = sum(candidate.rate for candidate in candidates) // max(1, loads)
    groups: dict[Wanted, _Group] = {}
    places: list[Place | None] = []
    for item in wanted:
        group = groups.get(item)
        if group is None:
            counts = {} if led is None else led.get(item.topic, {})
            able = [candidate for candidate in candidates if item.kind in candidate.wals]
            group = groups[item] = _Group(able, counts, step)
        chosen = group.take(mean_rate)
        places.append(None if chosen is None else Place(chosen.node_id, chosen.incarnation, chosen.wals[item.kind]))
    return places


class _Group:
    """The logs of one topic and kind: a heap of the brokers that may lead them.

    No key ever shrinks, whichever group a broker grows through: one that is not up to date is found when it is on top.
    """

    def __init__(self, able: Sequence[Candidate], counts: Mapping[int, int], step: int) -> None:
        self._able = able
        self._step = step
        self._counts = dict(counts)
        self._racks: dict[str | None, int] = {}
        self._sizes: dict[str | None, int] = {}
        for candidate in able:
            self._sizes[candidate.rack] = self._sizes.get(candidate.rack, 0) + (not candidate.drained)
            led = counts.get(candidate.node_id, 0)
            self._racks[candidate.rack] = self._racks.get(candidate.rack, 0) + led
        self._heap = [self._key(index) for index in range(len(able))]
        heapq.heapify(self._heap)

    def _key(self, index: int) -> _Key:
        one = self._able[index]
        share = self._racks[one.rack] / max(1, self._sizes[one.rack])
        own = self._counts.get(one.node_id, 0)
        return (one.drained, own, share, one.load // self._step, one.rate, one.load, one.node_id, index)

    def take(self, mean_rate: int) -> Candidate | None:
        while self._heap:
            index = self._heap[0][-1]
            key = self._key(index)
            if key != self._heap[0]:
                heapq.heapreplace(self._heap, key)
                continue
            chosen = self._able[index]
            chosen.load += 1
            chosen.rate += mean_rate
            self._counts[chosen.node_id] = self._counts.get(chosen.node_id, 0) + 1
            self._racks[chosen.rack] += 1
            heapq.heapreplace(self._heap, self._key(index))
            return chosen
        return None
