from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from controller.placement import Candidate, Place, Wanted, place


def broker(node: int, load: int = 0, rack: str | None = None, rate: int = 0) -> Candidate:
    return Candidate(node, 10 * node, rack, {"volume": bytes([node])}, load, rate=rate)


def nodes(places: list[Place | None]) -> list[int]:
    return [found.node_id for found in places if found is not None]


def singles(count: int) -> list[Wanted]:
    """Logs of as many topics."""
    return [Wanted(f"t{number}", "volume") for number in range(count)]


ONE = Wanted("t", "volume")


def test_least_loaded_first_then_the_lower_node_id() -> None:
    candidates = [broker(2), broker(1, 1)]
    assert nodes(place(candidates, singles(4))) == [2, 1, 2, 1]
    assert [candidate.load for candidate in candidates] == [2, 3]


def test_only_who_has_the_kind() -> None:
    candidates = [
        Candidate(1, 10, "a", {"volume": b"v"}, 5),
        Candidate(2, 20, "b", {"volume": b"w", "objects": b"o"}, 0),
    ]
    kinds = ["objects", "paper", "volume", "objects", "volume"]
    places = place(candidates, [Wanted(f"t{number}", kind) for number, kind in enumerate(kinds)])
    assert places[0] == Place(2, 20, b"o")
    assert places[1] is None
    assert nodes(places) == [2, 2, 2, 2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 100))
def test_nobody_gets_more_while_another_has_less(loads: list[int], count: int) -> None:
    candidates = [broker(node, load) for node, load in enumerate(loads)]
    step = max(1, sum(loads) // len(loads) // 20)
    assert all(place(candidates, singles(count)))
    final = [candidate.load for candidate in candidates]
    assert sum(final) == sum(loads) + count
    grown = [after for after, before in zip(final, loads) if after > before]
    assert not grown or max(grown) <= min(final) + step


def test_a_topic_spreads_over_brokers_even_if_one_of_them_is_nearly_empty() -> None:
    assert Counter(nodes(place([broker(1, 90), broker(2, 90), broker(3)], [ONE] * 6))) == {1: 2, 2: 2, 3: 2}


def test_new_partitions_go_where_the_topic_has_least() -> None:
    candidates = [broker(1, 2), broker(2, 9), broker(3, 3)]
    assert sorted(nodes(place(candidates, [ONE] * 2, {"t": {1: 1, 3: 2}}))) == [1, 2]


def test_a_topic_spreads_over_racks_by_the_number_of_their_brokers() -> None:
    candidates = [broker(1, 0, "a"), broker(2, 0, "a"), broker(3, 5, "b"), broker(4, 5, "b")]
    assert nodes(place(candidates, [ONE] * 2)) == [1, 3]
    uneven = [broker(1, 0, "a"), broker(2, 5, "b"), broker(3, 5, "b"), broker(4, 5, "b")]
    assert sorted(nodes(place(uneven, [ONE] * 4))) == [1, 2, 3, 4]


def test_of_brokers_that_lead_about_as_many_the_less_busy_one_gets_more() -> None:
    candidates = [broker(1, 1_000, rate=9_000_000), broker(2, 1_010, rate=1_000_000)]
    assert nodes(place(candidates, singles(3))) == [2, 2, 2]
    far = [broker(1, 1_000, rate=9_000_000), broker(2, 1_200, rate=1_000_000)]
    assert nodes(place(far, singles(3))) == [1, 1, 1]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([None, "a", "b"]), st.integers(0, 10**8)), min_size=1),
    st.lists(st.integers(0, 9), max_size=60),
)
def test_every_topic_is_spread_and_the_answer_is_always_the_same(
    brokers: list[tuple[int, str | None, int]], topics: list[int]
) -> None:
    def run() -> list[Place | None]:
        candidates = [broker(node % 256, *one) for node, one in enumerate(brokers)]
        return place(candidates, [Wanted(str(topic), "volume") for topic in topics])

    places = run()
    assert places == run()
    for topic in set(topics):
        counts = Counter(nodes([found for found, name in zip(places, topics) if name == topic]))
        assert max(counts.values()) - (min(counts.values()) if len(counts) == len(brokers) else 0) <= 1
