"""Which logs shall change their leader so that brokers carry alike. Pure: a picture of the cluster in, moves out.

Three goals, in this order; a move for one of them never costs an earlier one:

1. every broker leads as many logs as any other, give or take one or 10 %;
2. the logs of each topic spread over brokers, and no rack leads more of them than its share of the brokers;
3. no broker takes more bytes/s than the mean and a threshold.

Each goal is a number that its moves make strictly smaller: sums of squares of counts, of counts per topic, of rates. So
planning ends whatever the input is, and nothing is ever moved back and forth. What began is carried on a little beyond
where it had to begin, so that the next log or the next busy minute does not begin it again. Two logs may swap places
where one move alone would cost an earlier goal.

Logs that are moving count where they go. They and those of excluded topics are counted and never chosen; logs without
leader (they are recovering) and brokers that are being drained are not in the picture at all.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

COUNT_PERCENT = 10
RATE_FLOOR = 65_536
"""Bytes/s by which a broker must stand out: below that no difference is worth a move."""
GAIN_FLOOR = 1_024
GAIN_SHARE = 8
"""What one move must take off the busiest broker where many small ones cannot help: this part of what is too much."""
MOVE_WINDOW = 64
SWAP_SOURCES = 64
SWAP_WINDOW = 8
"""How many logs around the best fit are tried: for a move, and for each of the busiest logs in swaps."""
TARGETS = 8
"""The least busy brokers that are tried."""

Change = tuple[int, int]
"""Change of a topic's sum of squares over brokers, and of the logs that racks lead beyond their share."""


class BalanceNode(NamedTuple):
    """A broker that may lead more: live, not drained."""

    node_id: int
    rack: str | None
    kinds: frozenset[str]


class PlacedLog(NamedTuple):
    """A log and its leader; `rate` in bytes/s. `movable`: neither moving nor excluded."""

    log_id: int
    node_id: int
    kind: str
    rate: int
    movable: bool


class BalanceMove(NamedTuple):
    """`log_id` shall go from node `source` to node `target`."""

    log_id: int
    source: int
    target: int


@dataclass(slots=True)
class _Spread:
    """Where the logs of a topic with several of them are."""

    total: int
    by_node: dict[int, int] = field(default_factory=dict)
    by_rack: dict[str | None, int] = field(default_factory=dict)


class _Loose(NamedTuple):
    """A movable log and the name of its topic, None if the topic has no other log. Ordered by rate."""

    rate: int
    log_id: int
    log: PlacedLog
    topic: str | None


class Picture:
    """Who leads what: filled topic by topic, then changed by the moves that are planned."""

    def __init__(self, nodes: Sequence[BalanceNode]) -> None:
        self.nodes = {node.node_id: node for node in sorted(nodes)}
        self.counts = dict.fromkeys(self.nodes, 0)
        self.rates = dict.fromkeys(self.nodes, 0)
        self._spreads: dict[str, _Spread] = {}
        self._loose: dict[int, dict[str | None, dict[int, PlacedLog]]] = {node: {} for node in self.nodes}
        self._by_rate: dict[int, list[_Loose]] = {}
        self._racks: dict[str | None, int] = {}
        for node in nodes:
            self._racks[node.rack] = self._racks.get(node.rack, 0) + 1

    def add(self, topic: str, logs: Sequence[PlacedLog]) -> None:
        """All logs of a topic; those that brokers outside the picture lead are left out."""
        logs = [log for log in logs if log.node_id in self.nodes]
        spread = None
        if len(logs) > 1:
            spread = self._spreads[topic] = _Spread(len(logs))
        for log in logs:
            self.counts[log.node_id] += 1
            self.rates[log.node_id] += log.rate
            if spread is not None:
                rack = self.nodes[log.node_id].rack
                spread.by_node[log.node_id] = spread.by_node.get(log.node_id, 0) + 1
                spread.by_rack[rack] = spread.by_rack.get(rack, 0) + 1
            if log.movable:
                name = None if spread is None else topic
                self._loose[log.node_id].setdefault(name, {})[log.log_id] = log

    # What is asked of it

    @property
    def slack(self) -> int:
        """By how many logs two brokers may differ."""
        return max(1, COUNT_PERCENT * sum(self.counts.values()) // (100 * max(1, len(self.counts))))

    @property
    def gap(self) -> int:
        """By how many logs the two that differ most do."""
        return max(self.counts.values(), default=0) - min(self.counts.values(), default=0)

    @property
    def mean_rate(self) -> int:
        """Bytes/s of a broker on average."""
        return sum(self.rates.values()) // max(1, len(self.rates))

    def potential(self) -> tuple[int, int, int]:
        """Sum of squares of counts, or 0 where they are alike; the same per topic; logs beyond the share of racks."""
        counts = 0 if self.gap <= self.slack else sum(count * count for count in self.counts.values())
        nodes = sum(count * count for spread in self._spreads.values() for count in spread.by_node.values())
        racks = sum(
            self._beyond(spread, rack, count)
            for spread in self._spreads.values()
            for rack, count in spread.by_rack.items()
        )
        return counts, nodes, racks

    def _beyond(self, spread: _Spread, rack: str | None, count: int) -> int:
        share = -(-spread.total * self._racks[rack] // len(self.nodes))
        return max(0, count - share)

    def change(self, topic: str | None, source: int, target: int) -> Change:
        """What one log's move does to its topic."""
        if topic is None:
            return 0, 0
        spread = self._spreads[topic]
        nodes = 2 * (spread.by_node.get(target, 0) - spread.by_node.get(source, 0) + 1)
        one, other = self.nodes[source].rack, self.nodes[target].rack
        if one == other:
            return nodes, 0
        before, after = spread.by_rack.get(one, 0), spread.by_rack.get(other, 0)
        racks = self._beyond(spread, one, before - 1) - self._beyond(spread, one, before)
        racks += self._beyond(spread, other, after + 1) - self._beyond(spread, other, after)
        return nodes, racks

    def counts_allow(self, source: int, target: int) -> bool:
        """Whether a move leaves the counts of all brokers as alike as they are, or alike enough."""
        if self.counts[source] > self.counts[target]:
            return True
        others = [count for node, count in self.counts.items() if node not in (source, target)]
        moved = [*others, self.counts[source] - 1, self.counts[target] + 1]
        return max(moved) - min(moved) <= self.slack

    def uneven_topics(self) -> Iterator[str | None]:
        """Topics, by name, whose spread could be better; None for each that is as it should be."""
        for topic in sorted(self._spreads):
            spread = self._spreads[topic]
            counts = [spread.by_node.get(node, 0) for node in self.nodes]
            racks = any(self._beyond(spread, rack, count) for rack, count in spread.by_rack.items())
            yield topic if racks or max(counts) - min(counts) > 1 else None

    def led(self, topic: str, node_id: int) -> int:
        """How many logs of a topic with several of them a broker leads."""
        return self._spreads[topic].by_node.get(node_id, 0)

    def topics_at(self, node_id: int) -> list[str | None]:
        """Topics with a movable log there; None stands for all that have one log only."""
        return list(self._loose[node_id])

    def loose(self, node_id: int, topic: str | None, kinds: frozenset[str]) -> list[PlacedLog]:
        """Movable logs of a topic there that are led through one of `kinds`."""
        return [log for log in self._loose[node_id].get(topic, {}).values() if log.kind in kinds]

    def by_rate(self, node_id: int) -> list[_Loose]:
        """All movable logs there, the least busy first."""
        found = self._by_rate.get(node_id)
        if found is None:
            found = self._by_rate[node_id] = sorted(
                _Loose(log.rate, log.log_id, log, topic)
                for topic, logs in self._loose[node_id].items()
                for log in logs.values()
            )
        return found

    def move(self, log: PlacedLog, topic: str | None, target: int) -> BalanceMove:
        """The log is there now, and stays."""
        source = log.node_id
        self.counts[source] -= 1
        self.counts[target] += 1
        self.rates[source] -= log.rate
        self.rates[target] += log.rate
        of_topic = self._loose[source][topic]
        del of_topic[log.log_id]
        if not of_topic:
            del self._loose[source][topic]
        if source in self._by_rate:
            ranked = self._by_rate[source]
            del ranked[bisect_left(ranked, (log.rate, log.log_id))]
        if topic is not None:
            spread = self._spreads[topic]
            spread.by_node[source] -= 1
            spread.by_node[target] = spread.by_node.get(target, 0) + 1
            one, other = self.nodes[source].rack, self.nodes[target].rack
            spread.by_rack[one] -= 1
            spread.by_rack[other] = spread.by_rack.get(other, 0) + 1
        return BalanceMove(log.log_id, source, target)


def plan(picture: Picture, moves_max: int, threshold_percent: int | None) -> Iterator[BalanceMove | None]:
    """At most `moves_max` moves, found one after the other; None where work was done and nothing found.

    `threshold_percent` of goal 3; None: rates are not known, and it is left out.
    """
    left = moves_max
    for goal in (_even_counts(picture), _spread_topics(picture), _even_rates(picture, threshold_percent)):
        for moves in goal:
            if len(moves) > left:
                return
            left -= len(moves)
            yield from moves
            if not moves:
                yield None
            if not left:
                return


def _fit(log: PlacedLog, wanted_rate: float) -> tuple[float, int]:
    """How well a log does, smaller is better: its rate is near what should change hands."""
    return abs(log.rate - wanted_rate), log.log_id


# Goal 1


def _even_counts(picture: Picture) -> Iterator[list[BalanceMove]]:
    if picture.gap <= picture.slack:
        return
    enough = max(1, picture.slack // 2)
    while picture.gap > enough:
        move = _count_move(picture, enough, free=picture.gap <= picture.slack)
        if move is None:
            return
        yield [move]


def _count_move(picture: Picture, enough: int, free: bool) -> BalanceMove | None:
    """From one that leads many to one that leads few. `free`: only if it costs the spread of topics nothing."""
    counts, rates = picture.counts, picture.rates
    targets = sorted(counts, key=lambda node: (counts[node], rates[node], node))
    for source in sorted(counts, key=lambda node: (-counts[node], -rates[node], node)):
        for target in targets:
            if counts[source] - counts[target] <= enough:
                break
            kinds = picture.nodes[target].kinds
            wanted = max(0.0, (rates[source] - rates[target]) / 2)
            best: tuple[Change, tuple[float, int], PlacedLog, str | None] | None = None
            for topic in picture.topics_at(source):
                change = picture.change(topic, source, target)
                if (best is not None and change > best[0]) or (free and change > (0, 0)):
                    continue
                for log in picture.loose(source, topic, kinds):
                    fit = _fit(log, wanted)
                    if best is None or (change, fit) < best[:2]:
                        best = (change, fit, log, topic)
            if best is not None:
                return picture.move(best[2], best[3], target)
    return None


# Goal 2


def _spread_topics(picture: Picture) -> Iterator[list[BalanceMove]]:
    for topic in picture.uneven_topics():
        if topic is None:
            yield []
            continue
        while moves := _spread_moves(picture, topic):
            yield moves


def _spread_moves(picture: Picture, topic: str) -> list[BalanceMove]:
    counts = picture.counts
    targets = sorted(counts, key=lambda node: (picture.led(topic, node), counts[node], node))
    for source in sorted(counts, key=lambda node: (-picture.led(topic, node), -counts[node], node)):
        for target in targets:
            change = picture.change(topic, source, target)
            if change[0] > 0:
                break
            if change >= (0, 0):
                continue
            logs = picture.loose(source, topic, picture.nodes[target].kinds)
            if not logs:
                continue
            wanted = max(0.0, (picture.rates[source] - picture.rates[target]) / 2)
            log = min(logs, key=lambda one: _fit(one, wanted))
            if picture.counts_allow(source, target):
                return [picture.move(log, topic, target)]
            back = _way_back(picture, topic, log, target, change)
            if back is not None:
                moves = [picture.move(log, topic, target)]
                moves.append(picture.move(back.log, back.topic, source))
                return moves
    return []


def _way_back(picture: Picture, topic: str, log: PlacedLog, target: int, change: Change) -> _Loose | None:
    """A log of another topic that may go from `target` to where `log` comes from; both together are a gain."""
    source = log.node_id
    best: tuple[Change, tuple[float, int], _Loose] | None = None
    for other in picture.topics_at(target):
        if other == topic:
            continue
        own = picture.change(other, target, source)
        if (change[0] + own[0], change[1] + own[1]) >= (0, 0) or (best is not None and own > best[0]):
            continue
        for one in picture.loose(target, other, picture.nodes[source].kinds):
            fit = _fit(one, log.rate)
            if best is None or (own, fit) < best[:2]:
                best = (own, fit, _Loose(one.rate, one.log_id, one, other))
    return None if best is None else best[2]


# Goal 3


def _even_rates(picture: Picture, threshold_percent: int | None) -> Iterator[list[BalanceMove]]:
    if threshold_percent is None or not picture.rates:
        return
    mean = picture.mean_rate
    margin = max(mean * threshold_percent // 100, RATE_FLOOR)
    if max(picture.rates.values()) <= mean + margin:
        return
    while moves := _rate_moves(picture, mean, mean + margin // 2):
        yield moves


def _rate_moves(picture: Picture, mean: int, enough: int) -> list[BalanceMove]:
    rates = picture.rates
    targets = sorted(rates, key=lambda node: (rates[node], node))[:TARGETS]
    for source in sorted(rates, key=lambda node: (-rates[node], node)):
        if rates[source] <= enough:
            return []
        for target in targets:
            gap = rates[source] - rates[target]
            gain_min = _gain_min(picture, source, gap, rates[source] - mean)
            if gap < 2 * gain_min:
                break
            moves = _rate_move(picture, source, target, gap, gain_min) or _rate_swap(
                picture, source, target, gap, gain_min
            )
            if moves:
                return moves
    return []


def _gain_min(picture: Picture, source: int, gap: int, excess: int) -> int:
    """What a move must bring: little if enough logs could go, else a good part of what is too much.

    A broker that is busy because of one log that nobody else could carry better keeps it, and its other logs too.
    """
    logs = picture.by_rate(source)
    could_go = sum(item.rate for item in logs[: bisect_right(logs, (gap // 2,))])
    return GAIN_FLOOR if could_go >= excess else max(GAIN_FLOOR, excess // GAIN_SHARE)


def _around(logs: Sequence[_Loose], rate: float, window: int) -> Sequence[_Loose]:
    middle = bisect_left(logs, (rate,))
    return logs[max(0, middle - window) : middle + window]


def _rate_move(picture: Picture, source: int, target: int, gap: int, gain_min: int) -> list[BalanceMove]:
    """The log whose rate is nearest to half of the difference."""
    if not picture.counts_allow(source, target):
        return []
    kinds = picture.nodes[target].kinds
    fitting = [
        item
        for item in _around(picture.by_rate(source), gap / 2, MOVE_WINDOW)
        if gain_min <= item.rate <= gap - gain_min
        and item.log.kind in kinds
        and picture.change(item.topic, source, target) <= (0, 0)
    ]
    if not fitting:
        return []
    best = min(fitting, key=lambda item: _fit(item.log, gap / 2))
    return [picture.move(best.log, best.topic, target)]


def _rate_swap(picture: Picture, source: int, target: int, gap: int, gain_min: int) -> list[BalanceMove]:
    """Two logs that change places, which leaves all counts as they are."""
    to_there, to_here = picture.nodes[target].kinds, picture.nodes[source].kinds
    there = picture.by_rate(target)
    best: tuple[float, _Loose, _Loose] | None = None
    for one in reversed(picture.by_rate(source)[-SWAP_SOURCES:]):
        if one.log.kind not in to_there:
            continue
        for other in _around(there, one.rate - gap / 2, SWAP_WINDOW):
            gain = one.rate - other.rate
            fit = abs(gain - gap / 2)
            if not gain_min <= gain <= gap - gain_min or (best is not None and fit >= best[0]):
                continue
            if other.log.kind in to_here and _swap_is_free(picture, one, other, source, target):
                best = (fit, one, other)
    if best is None:
        return []
    _, one, other = best
    return [picture.move(one.log, one.topic, target), picture.move(other.log, other.topic, source)]


def _swap_is_free(picture: Picture, one: _Loose, other: _Loose, source: int, target: int) -> bool:
    if one.topic == other.topic:
        return True
    there = picture.change(one.topic, source, target)
    back = picture.change(other.topic, target, source)
    return (there[0] + back[0], there[1] + back[1]) <= (0, 0)
