from hypothesis import given
from hypothesis import strategies as st

from controller.placement import Candidate, Place, place


def test_least_loaded_first_then_the_lower_node_id() -> None:
    candidates = [Candidate(2, 20, None, {"volume": b"2"}, 0), Candidate(1, 10, None, {"volume": b"1"}, 1)]
    places = place(candidates, ["volume"] * 4)
    assert [found.node_id for found in places if found] == [2, 1, 2, 1]
    assert [candidate.load for candidate in candidates] == [2, 3]


def test_only_who_has_the_kind() -> None:
    candidates = [
        Candidate(1, 10, "a", {"volume": b"v"}, 5),
        Candidate(2, 20, "b", {"volume": b"w", "objects": b"o"}, 0),
    ]
    places = place(candidates, ["objects", "paper", "volume", "objects", "volume"])
    assert places[0] == Place(2, 20, b"o")
    assert places[1] is None
    assert [found.node_id for found in places if found] == [2, 2, 2, 2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 100))
def test_nobody_gets_more_while_another_has_less(loads: list[int], count: int) -> None:
    candidates = [Candidate(node, node, None, {"volume": b"v"}, load) for node, load in enumerate(loads)]
    assert all(place(candidates, ["volume"] * count))
    final = [candidate.load for candidate in candidates]
    assert sum(final) == sum(loads) + count
    grown = [after for after, before in zip(final, loads) if after > before]
    assert not grown or max(grown) <= min(final) + 1
