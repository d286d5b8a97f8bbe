"""Server-side assignors `uniform` and `range`: who is to have which partition, as pure generators.

They stop between slices of work, so that thousands of members and partitions can be given out beside the requests of
others. The same input gives the same answer, whatever the order of its dicts.

`range`: each topic is cut into contiguous ranges, one per subscriber in the order of instance ids, then member ids; so
topics with as many partitions and the same subscribers are cut alike. As Kafka's.
`uniform`: as even as subscriptions allow, counted over all topics, with as few moves from the last target as that
takes. With equal subscriptions no member has two partitions more than another; with different ones no partition could
go to a subscriber that has two fewer than its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple, TypeAlias, TypeVar

from broker.groups.consumer_model import Partitions

SLICE_PARTITIONS = 500
"""Partitions looked at between two stops: about a millisecond."""

_Result = TypeVar("_Result")
Steps: TypeAlias = Generator[None, None, _Result]
Targets: TypeAlias = dict[str, Partitions]


class Subscriber(NamedTuple):
    instance_id: str | None
    topics: frozenset[bytes]
    """Ids of topics that exist."""
    target: Partitions
    """What it was to have until now."""


class Input(NamedTuple):
    assignor: str
    topics: Mapping[bytes, int]
    """Topic id -> number of partitions."""
    members: Mapping[str, Subscriber]

    @property
    def work(self) -> int:
        """A measure of what the assignment takes: members and partitions."""
        return len(self.members) + sum(self.topics.values())


def assign(given: Input) -> Steps[Targets]:
    """The target of every member, with the assignor that `given` names (KeyError: there is no such)."""
    return (yield from ASSIGNORS[given.assignor](given))


def run_to_end(steps: Steps[_Result]) -> _Result:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


def assign_range(given: Input) -> Steps[Targets]:
    members = given.members
    order = sorted(members, key=lambda name: (members[name].instance_id is None, members[name].instance_id or name))
    subscribers: dict[bytes, list[str]] = {topic_id: [] for topic_id in given.topics}
    for name in order:
        for topic_id in members[name].topics:
            subscribers[topic_id].append(name)
    targets: dict[str, dict[bytes, frozenset[int]]] = {name: {} for name in order}
    for topic_id in sorted(given.topics):
        yield
        names, count = subscribers[topic_id], given.topics[topic_id]
        if not names:
            continue
        share, extra = divmod(count, len(names))
        start = 0
        for position, name in enumerate(names):
            end = start + share + (position < extra)
            if end > start:
                targets[name][topic_id] = frozenset(range(start, end))
            start = end
    return dict(targets)


def assign_uniform(given: Input) -> Steps[Targets]:
    if not given.members:
        return {}
    if len({member.topics for member in given.members.values()}) == 1:
        return (yield from _Even(given).run())
    return (yield from _Uneven(given).run())


ASSIGNORS: Mapping[str, Callable[[Input], Steps[Targets]]] = {"uniform": assign_uniform, "range": assign_range}


class _Placing:
    """Partitions on their way to members: what members keep, and what nobody has."""

    def __init__(self, given: Input) -> None:
        self.given = given
        self.names = sorted(given.members)
        self.owned: dict[str, dict[bytes, set[int]]] = {name: {} for name in self.names}
        self.load: dict[str, int] = dict.fromkeys(self.names, 0)
        self.taken: dict[bytes, set[int]] = {topic_id: set() for topic_id in given.topics}

    def valid(self, name: str) -> Iterator[tuple[bytes, list[int]]]:
        """What the member had and may keep. A partition that two had goes to the first: targets in parts may overlap
        until the whole of a new one is there."""
        member, topics = self.given.members[name], self.given.topics
        for topic_id in sorted(member.target):
            if topic_id not in member.topics or topic_id not in topics:
                continue
            count, taken = topics[topic_id], self.taken[topic_id]
            kept = [one for one in sorted(member.target[topic_id]) if one < count and one not in taken]
            if kept:
                yield topic_id, kept

    def give(self, name: str, topic_id: bytes, partition: int) -> None:
        self.owned[name].setdefault(topic_id, set()).add(partition)
        self.taken[topic_id].add(partition)
        self.load[name] += 1

    def free(self, topic_id: bytes) -> list[int]:
        taken = self.taken[topic_id]
        return [partition for partition in range(self.given.topics[topic_id]) if partition not in taken]

    def targets(self) -> Targets:
        return {
            name: {topic_id: frozenset(partitions) for topic_id, partitions in sorted(owned.items()) if partitions}
            for name, owned in self.owned.items()
        }


class _Even(_Placing):
    """All members read the same topics: everybody gets the same number, some one more."""

    def run(self) -> Steps[Targets]:
        topics = {topic_id for member in self.given.members.values() for topic_id in member.topics}
        share, extra = divmod(sum(self.given.topics[topic_id] for topic_id in topics), len(self.names))
        work = 0
        for name in self.names:
            room = share
            for topic_id, partitions in self.valid(name):
                work += len(partitions)
                for partition in partitions:
                    if not room and extra and self.load[name] == share:
                        room, extra = 1, extra - 1
                    if not room:
                        break
                    self.give(name, topic_id, partition)
                    room -= 1
            if work >= SLICE_PARTITIONS:
                work = 0
                yield
        # Those with the fewest come first, one more each time round: a new member gets some of every topic.
        heap = [(self.load[name], name) for name in self.names]
        heapify(heap)
        for topic_id in sorted(topics):
            for partition in self.free(topic_id):
                load, name = heappop(heap)
                self.give(name, topic_id, partition)
                heappush(heap, (load + 1, name))
                work += 1
                if work >= SLICE_PARTITIONS:
                    work = 0
                    yield
        return self.targets()


class _Uneven(_Placing):
    """Members read different topics: the free partitions go to whoever has the fewest, then what lies uneven moves."""

    def run(self) -> Steps[Targets]:
        self.subscribers: dict[bytes, list[str]] = {topic_id: [] for topic_id in self.given.topics}
        for name in self.names:
            for topic_id in sorted(self.given.members[name].topics):
                self.subscribers[topic_id].append(name)
            for topic_id, partitions in self.valid(name):
                for partition in partitions:
                    self.give(name, topic_id, partition)
            yield
        # Topics with few subscribers first: the others can still be given around them.
        order = sorted(self.given.topics, key=lambda topic_id: (len(self.subscribers[topic_id]), topic_id))
        for topic_id in order:
            yield from self._place(topic_id)
        moved = True
        while moved:
            moved = False
            for topic_id in order:
                moved = (yield from self._even_out(topic_id)) or moved
        return self.targets()

    def _place(self, topic_id: bytes) -> Steps[None]:
        free = self.free(topic_id)
        if not free or not self.subscribers[topic_id]:
            return
        heap = [(self.load[name], name) for name in self.subscribers[topic_id]]
        heapify(heap)
        for number, partition in enumerate(free, 1):
            load, name = heappop(heap)
            self.give(name, topic_id, partition)
            heappush(heap, (load + 1, name))
            if number % SLICE_PARTITIONS == 0:
                yield
        yield

    def _even_out(self, topic_id: bytes) -> Steps[bool]:
        """Move partitions of one topic from its fullest owner to its emptiest subscriber while that evens out; every
        move makes the sum of the squares of all loads smaller, so that this ends. True: something moved."""
        names = self.subscribers[topic_id]
        if len(names) < 2:
            return False
        receivers = [(self.load[name], name) for name in names]
        if max(receivers)[0] - min(receivers)[0] < 2:
            return False
        givers = [(-self.load[name], name) for name in names if self.owned[name].get(topic_id)]
        heapify(receivers)
        heapify(givers)
        moves = 0
        while givers and receivers:
            load, giver = -givers[0][0], givers[0][1]
            if load != self.load[giver] or not self.owned[giver].get(topic_id):
                heappop(givers)
                if self.owned[giver].get(topic_id):
                    heappush(givers, (-self.load[giver], giver))
                continue
            low, receiver = receivers[0]
            if low != self.load[receiver]:
                heappop(receivers)
                heappush(receivers, (self.load[receiver], receiver))
                continue
            if load - low < 2:
                break
            partition = max(self.owned[giver][topic_id])
            self.owned[giver][topic_id].remove(partition)
            self.owned[receiver].setdefault(topic_id, set()).add(partition)
            self.load[giver] -= 1
            self.load[receiver] += 1
            heappush(givers, (-self.load[receiver], receiver))
            moves += 1
            if moves % SLICE_PARTITIONS == 0:
                yield
        yield
        return moves > 0
