"""The planner: what it reaches, what it never does, and that it ends."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.balance import COUNT_PERCENT, BalanceMove, BalanceNode, Picture, PlacedLog, plan

MB = 1_000_000
VOLUME = frozenset({"volume"})
THRESHOLD = 25


@dataclass
class Cluster:
    """`logs`: by id the topic and what the planner sees."""

    nodes: dict[int, BalanceNode]
    logs: dict[int, tuple[str, PlacedLog]]

    def picture(self) -> Picture:
        picture = Picture(list(self.nodes.values()))
        topics: dict[str, list[PlacedLog]] = {}
        for topic, log in self.logs.values():
            topics.setdefault(topic, []).append(log)
        for topic, logs in topics.items():
            picture.add(topic, logs)
        return picture

    def moves(self, most: int = 10, threshold: int | None = THRESHOLD) -> list[BalanceMove]:
        return [move for move in plan(self.picture(), most, threshold) if move is not None]

    def apply(self, moves: list[BalanceMove]) -> None:
        for move in moves:
            topic, log = self.logs[move.log_id]
            assert log.movable and log.node_id == move.source != move.target
            assert log.kind in self.nodes[move.target].kinds
            self.logs[move.log_id] = (topic, log._replace(node_id=move.target))

    def settle(self, most: int = 10, threshold: int | None = THRESHOLD) -> int:
        """Plans and moves until nothing is left to do; how many moves it took."""
        bound, taken = 4 * len(self.logs) + 4, 0
        while moves := self.moves(most, threshold):
            assert len(moves) <= most
            assert len({move.log_id for move in moves}) == len(moves), "no log twice in one plan"
            before = self.potential()
            self.apply(moves)
            assert self.potential() <= before, "never worse"
            taken += len(moves)
            assert taken <= bound, "it does not end"
        return taken

    def potential(self) -> tuple[int, ...]:
        picture = self.picture()
        return picture.potential()

    @property
    def counts(self) -> list[int]:
        found = Counter(log.node_id for _, log in self.logs.values() if log.node_id in self.nodes)
        return [found[node] for node in self.nodes]

    @property
    def rates(self) -> list[int]:
        return [sum(log.rate for _, log in self.logs.values() if log.node_id == node) for node in self.nodes]

    def spread(self, topic: str) -> list[int]:
        return [sum(log.node_id == node and name == topic for name, log in self.logs.values()) for node in self.nodes]


def cluster(racks: str, *topics: str, rates: dict[str, int] | None = None) -> Cluster:
    """A broker per letter, which is its rack (`-`: none). A topic is given by its logs' nodes: `1123`."""
    nodes = {number: BalanceNode(number, None if rack == "-" else rack, VOLUME) for number, rack in enumerate(racks, 1)}
    logs: dict[int, tuple[str, PlacedLog]] = {}
    for index, leaders in enumerate(topics):
        name = f"t{index}"
        for leader in leaders:
            rate = (rates or {}).get(name, 0)
            logs[len(logs)] = (name, PlacedLog(len(logs), int(leader), "volume", rate, True))
    return Cluster(nodes, logs)


def test_what_is_even_stays() -> None:
    assert cluster("---", "123123", "12", "3", "1").moves() == []
    assert cluster("-").moves() == []
    assert Cluster({}, {}).moves() == []


def test_a_broker_that_joins_gets_its_share_of_every_topic() -> None:
    one = cluster("---", "1212", "121212", "12")
    assert one.settle() == 4
    assert one.counts == [4, 4, 4]
    assert one.spread("t1") == [2, 2, 2] and max(one.spread("t0")) == 2


def test_no_more_moves_at_once_than_asked_for() -> None:
    one = cluster("--", "1" * 40)
    assert len(one.moves(3)) == 3
    assert one.settle(3) == 20


def test_ten_per_cent_of_difference_are_not_worth_a_move() -> None:
    one = cluster("--", *["1"] * 104, *["2"] * 96)
    assert one.moves() == []
    one = cluster("--", *["1"] * 106, *["2"] * 94)
    one.settle()
    assert max(one.counts) - min(one.counts) <= 5, "and what began is brought to half of that"


def test_a_topic_that_lies_on_one_broker_is_spread_though_counts_are_even() -> None:
    one = cluster("--", "1111", *"2222")
    one.settle()
    assert one.spread("t0") == [2, 2] and one.counts == [4, 4]


def test_a_topic_goes_to_the_rack_that_has_none_of_it() -> None:
    one = cluster("aabb", "12", *"3344", *"12")
    assert one.settle() == 2
    (first, second) = sorted(node for node, count in zip(one.nodes, one.spread("t0")) if count)
    assert first in (1, 2) and second in (3, 4) and one.counts == [2, 2, 2, 2]


def test_a_rack_with_one_broker_gets_the_share_of_one() -> None:
    one = cluster("abbb", "1111", *["2222", "3333", "4444"])
    one.settle()
    assert all(one.spread(topic) == [1, 1, 1, 1] for topic in ("t0", "t1", "t2", "t3"))


def test_busy_logs_change_places_with_idle_ones() -> None:
    one = cluster("--", *"1111", *"2222", rates={f"t{n}": 10 * MB for n in range(4)})
    assert one.rates == [40 * MB, 0]
    assert one.settle() == 4
    assert one.rates == [20 * MB, 20 * MB] and one.counts == [4, 4]


def test_rates_that_are_not_known_move_nothing() -> None:
    one = cluster("--", *"1111", *"2222", rates={f"t{n}": 10 * MB for n in range(4)})
    assert one.moves(threshold=None) == []


def test_one_log_that_is_busier_than_all_others_stays_where_it_is() -> None:
    one = cluster("--", *"111", *"222", rates={"t0": 100 * MB, "t1": 2_000, "t2": 2_000})
    assert one.moves() == []


def test_many_small_logs_add_up() -> None:
    one = cluster("--", *["1"] * 200, *["2"] * 200, rates={f"t{n}": 50_000 if n < 200 else 25_000 for n in range(400)})
    one.settle(most=1_000)
    assert max(one.rates) <= 1.13 * sum(one.rates) / 2 and is_even(one)


def test_little_load_is_no_reason() -> None:
    assert cluster("--", *"11", *"22", rates={"t0": 30_000, "t1": 30_000}).moves() == []


def test_moving_and_excluded_logs_count_and_stay() -> None:
    one = cluster("--", *"11111")
    for log_id in (0, 1, 2):
        topic, log = one.logs[log_id]
        one.logs[log_id] = (topic, log._replace(movable=False))
    assert {move.log_id for move in one.moves()} == {3, 4}
    one.settle()
    assert one.counts == [3, 2]


def test_logs_of_brokers_that_are_not_in_the_picture_do_not_count() -> None:
    assert cluster("--", *"12", "3333").moves() == []


def test_only_to_brokers_with_a_wal_of_the_kind() -> None:
    one = cluster("---", *"111111")
    one.nodes[2] = BalanceNode(2, None, frozenset({"objects"}))
    one.settle()
    assert one.counts == [3, 0, 3]


NODES = st.lists(st.sampled_from([None, "a", "b"]), min_size=1, max_size=6)
LOGS = st.lists(
    st.tuples(
        st.integers(0, 7),  # topic
        st.integers(0, 6),  # node, one of them not in the picture
        st.sampled_from([0, 0, 500, 40_000, 900_000, 5 * MB, 60 * MB]),
        st.sampled_from([True, True, True, True, False]),
    ),
    max_size=80,
)


def drawn(racks: list[str | None], logs: list[tuple[int, int, int, bool]], *, all_movable: bool = False) -> Cluster:
    return Cluster(
        {number: BalanceNode(number, rack, VOLUME) for number, rack in enumerate(racks)},
        {
            log_id: (f"t{topic}", PlacedLog(log_id, node % (len(racks) + 1), "volume", rate, movable or all_movable))
            for log_id, (topic, node, rate, movable) in enumerate(logs)
        },
    )


def is_even(one: Cluster) -> bool:
    slack = max(1, COUNT_PERCENT * sum(one.counts) // (100 * len(one.counts)))
    return max(one.counts) - min(one.counts) <= slack


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(NODES, LOGS, st.integers(2, 12))
def test_it_ends_and_is_never_worse(racks: list[str | None], logs: list[tuple[int, int, int, bool]], most: int) -> None:
    one = drawn(racks, logs)
    one.settle(most)
    assert one.moves(100) == [], "stable, whatever the size of a plan"


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(NODES, LOGS)
def test_counts_and_topics_are_even_if_everything_may_move(
    racks: list[str | None], logs: list[tuple[int, int, int, bool]]
) -> None:
    one = drawn(racks, logs, all_movable=True)
    one.settle()
    assert is_even(one)
    for topic in {topic for topic, _ in one.logs.values()}:
        found = one.spread(topic)
        assert max(found) - min(found) <= 1, topic


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(NODES, LOGS, st.data())
def test_brokers_come_and_go(
    racks: list[str | None], logs: list[tuple[int, int, int, bool]], data: st.DataObject
) -> None:
    one = drawn(racks, logs, all_movable=True)
    one.settle()
    joined = max(one.nodes) + 10
    one.nodes[joined] = BalanceNode(joined, data.draw(st.sampled_from([None, "a", "b"])), VOLUME)
    before = sum(one.counts)
    taken = one.settle()
    assert is_even(one) and taken <= 2 * before
    left = data.draw(st.sampled_from(sorted(one.nodes)))
    del one.nodes[left]
    for index, log_id in enumerate([log_id for log_id, (_, log) in one.logs.items() if log.node_id == left]):
        topic, log = one.logs[log_id]
        one.logs[log_id] = (topic, log._replace(node_id=sorted(one.nodes)[index % len(one.nodes)]))
    one.settle()
    assert is_even(one)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(NODES, LOGS, st.lists(st.floats(0.96, 1.04), min_size=80, max_size=80))
def test_a_load_that_trembles_moves_little(
    racks: list[str | None], logs: list[tuple[int, int, int, bool]], factors: list[float]
) -> None:
    one = drawn(racks, logs, all_movable=True)
    one.settle()
    picture = one.picture()
    if max(picture.rates.values()) > picture.mean_rate * 1.13:
        return  # it could not be made even
    for log_id, factor in zip(list(one.logs), factors):
        topic, log = one.logs[log_id]
        one.logs[log_id] = (topic, log._replace(rate=int(log.rate * factor)))
    assert one.moves() == []
