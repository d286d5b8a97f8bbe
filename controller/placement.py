"""Which broker leads which log: the least loaded first. Pure arithmetic over counts."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class Candidate:
    """A live incarnation that may lead: its active WAL instance per kind, and how many logs it leads already.

    One that is `drained` leads only what nobody else can.
    """

    node_id: int
    incarnation: int
    rack: str | None
    wals: Mapping[str, bytes]
    load: int
    drained: bool = False


class Place(NamedTuple):
    """A leader and the instance it leads through."""

    node_id: int
    incarnation: int
    wal_id: bytes


def place(candidates: Sequence[Candidate], kinds: Sequence[str]) -> list[Place | None]:
    """A place for each log, given the WAL kind of each, counted into the candidates' loads.

    The least loaded candidate that has an instance of the kind, the lower node id among equals; None if nobody has one.
    """
    heaps: dict[str, list[tuple[bool, int, int, int]]] = {}
    places: list[Place | None] = []
    for kind in kinds:
        heap = heaps.get(kind)
        if heap is None:
            heap = heaps[kind] = [(c.drained, c.load, c.node_id, i) for i, c in enumerate(candidates) if kind in c.wals]
            heapq.heapify(heap)
        places.append(_take(candidates, heap, kind))
    return places


def _take(candidates: Sequence[Candidate], heap: list[tuple[bool, int, int, int]], kind: str) -> Place | None:
    while heap:
        drained, load, node_id, index = heap[0]
        chosen = candidates[index]
        if load != chosen.load:  # grew through the heap of another kind
            heapq.heapreplace(heap, (drained, chosen.load, node_id, index))
            continue
        chosen.load += 1
        heapq.heapreplace(heap, (drained, chosen.load, node_id, index))
        return Place(chosen.node_id, chosen.incarnation, chosen.wals[kind])
    return None
