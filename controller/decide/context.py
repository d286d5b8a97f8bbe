"""What a decision may look at besides the state, and what it is made of."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controller.configs import ConfigRules
from controller.facts import Fact, LeaderNamed
from controller.log_index import LogState
from controller.placement import Candidate, Place, Wanted, place
from controller.state import RANGES_MAX, RANGES_PER_LOG_MAX, ClusterState
from controller.topics import Topic, wal_kinds_named
from controller.wals import ACTIVE
from protocol.errors import ErrorCode, KafkaError


class Limits(NamedTuple):
    """Bounds that decisions keep."""

    partitions_per_request: int = 10_000
    logs: int = 200_000
    ranges_per_log: int = RANGES_PER_LOG_MAX
    ranges: int = RANGES_MAX
    declare_lost_after_ms: int = 30 * 60_000


DEFAULT_LIMITS = Limits()


@dataclass(slots=True)
class Heard:
    """What heartbeats told this controller; it is lost when the controller changes.

    `applied`: entry position per incarnation; `validated`: group per WAL; `at_ms`: wall time of the last heartbeat per
    incarnation; `quiet`: incarnations whose heartbeat is overdue, though their sessions stand.
    """

    applied: Mapping[int, int] = field(default_factory=dict)
    validated: Mapping[bytes, int] = field(default_factory=dict)
    at_ms: Mapping[int, int] = field(default_factory=dict)
    quiet: Set[int] = frozenset()


class Decision(NamedTuple):
    """Facts to write, all or none, and the answer to give once they are durable. No facts: answer without writing."""

    facts: tuple[Fact, ...]
    answer: Any


@dataclass(slots=True)
class Context:
    """One per entry: several commands decided on one state share its counters and loads.

    `now_ms` is wall time. `token(n)` gives n random bytes. `rates`: bytes/s by node id, empty while they are not known.
    """

    now_ms: int
    token: Callable[[int], bytes]
    rules: ConfigRules
    limits: Limits = DEFAULT_LIMITS
    heard: Heard = field(default_factory=Heard)
    rates: Mapping[int, int] = field(default_factory=dict)
    log_ids_taken: int = 0
    producer_ids_taken: int = 0
    loads: dict[int, int] = field(default_factory=dict)
    kinds_in_use: tuple[str, ...] | None = None

    def take_log_ids(self, state: ClusterState, count: int) -> tuple[int, ...]:
        """Log ids that nobody used before. POLICY_VIOLATION beyond the cluster's bound."""
        if len(state.logs) + self.log_ids_taken + count > self.limits.logs:
            raise KafkaError(
                ErrorCode.POLICY_VIOLATION,
                f"the cluster has {len(state.logs)} partitions; {count} more would exceed {self.limits.logs}",
            )
        first = state.log_index.next_log_id + self.log_ids_taken
        self.log_ids_taken += count
        return tuple(range(first, first + count))

    def candidates(self, state: ClusterState, without: int | None = None) -> list[Candidate]:
        """Live brokers that can lead, with what this entry gives them counted in; not incarnation `without`."""
        found = []
        for broker in state.broker_table.alive():
            if broker.incarnation == without:
                continue
            active = [wal for wal in state.wal_table.of(broker.incarnation) if wal.state == ACTIVE]
            if broker.incarnation not in self.loads:
                self.loads[broker.incarnation] = sum(
                    len(state.log_index.led_through.get(wal.wal_id, ())) for wal in active
                )
            wals = {wal.kind: wal.wal_id for wal in active}
            load = self.loads[broker.incarnation]
            drained = state.move_table.takes_none(broker.node_id, broker.incarnation)
            drained = drained or broker.incarnation in self.heard.quiet
            rate = self.rates.get(broker.node_id, 0)
            found.append(Candidate(broker.node_id, broker.incarnation, broker.rack, wals, load, drained, rate))
        return found

    def places(self, state: ClusterState, candidates: list[Candidate], wanted: Sequence[Wanted]) -> list[Place | None]:
        """A place for each log, or None, counted into what later decisions of this entry see."""
        topics = dict.fromkeys(item.topic for item in wanted)
        places = place(candidates, wanted, leaders_of(state, [topic for topic in topics if topic in state.topics]))
        self.count_loads(candidates)
        return places

    def count_loads(self, candidates: list[Candidate]) -> None:
        """Remembers what `place` gave to each candidate."""
        for candidate in candidates:
            self.loads[candidate.incarnation] = candidate.load

    def wal_kind(self, state: ClusterState, topic: Topic) -> str:
        """The WAL kind of a topic's logs."""
        return self.kind_of(state, topic.configs, topic.internal)

    def kind_of(self, state: ClusterState, configs: Mapping[str, str], internal: bool) -> str:
        """The WAL kind of the logs of a topic with these overrides."""
        if not internal:
            return self.rules.wal_kind(configs, internal)
        if self.kinds_in_use is None:
            self.kinds_in_use = wal_kinds_named(state.topics.values())
        return self.rules.wal_kind(configs, internal, self.kinds_in_use)

    def name_leaders(self, state: ClusterState, logs: list[LogState], candidates: list[Candidate]) -> list[LeaderNamed]:
        """Leaders with the next epoch for logs that may open; a log whose WAL kind nobody has gets none."""
        kinds = {topic: self.wal_kind(state, state.topics[topic]) for topic in dict.fromkeys(log.topic for log in logs)}
        places = self.places(state, candidates, [Wanted(log.topic, kinds[log.topic]) for log in logs])
        return [
            LeaderNamed(log.log_id, chosen.node_id, chosen.incarnation, log.epoch + 1, chosen.wal_id)
            for log, chosen in zip(logs, places)
            if chosen is not None
        ]


def leaders_of(state: ClusterState, topics: Iterable[str]) -> dict[str, Counter[int]]:
    """Per topic how many of its logs each node leads, or is to lead when the moves that are wanted are done."""
    logs, moves = state.logs, state.moves
    return {
        topic: Counter(moves.get(log_id, logs[log_id].leader_node) for log_id in state.topics[topic].log_ids)
        for topic in topics
    }


def require_alive(state: ClusterState, incarnation: int) -> None:
    """BROKER_ID_NOT_REGISTERED or STALE_BROKER_EPOCH unless the session of the incarnation stands."""
    broker = state.broker_table.incarnations.get(incarnation)
    if broker is None and incarnation not in state.broker_table.closed:
        raise KafkaError(ErrorCode.BROKER_ID_NOT_REGISTERED, f"incarnation {incarnation:016x} is not registered")
    if broker is None or not broker.alive:
        raise KafkaError(ErrorCode.STALE_BROKER_EPOCH, f"the session of incarnation {incarnation:016x} was ended")
