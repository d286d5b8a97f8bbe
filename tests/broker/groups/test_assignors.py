"""The server-side assignors: complete, disjoint, even, and with as few moves as that takes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.groups.assignors import Input, Subscriber, assign, run_to_end
from broker.groups.consumer_model import Partitions

TOPICS = [bytes([number]) * 16 for number in range(1, 5)]
COUNTS = st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 12), min_size=1)
NAMES = [f"m{number}" for number in range(7)]
SUBSETS = st.sets(st.sampled_from(TOPICS)).map(frozenset)


@st.composite
def inputs(draw: st.DrawFn, *, assignor: str, alike: bool) -> Input:
    counts = draw(COUNTS)
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    common = draw(SUBSETS)
    members = {}
    for name in names:
        topics = (common if alike else draw(SUBSETS)) & counts.keys()
        target = draw(st.dictionaries(st.sampled_from(TOPICS), st.sets(st.integers(0, 14)).map(frozenset), max_size=3))
        instance = draw(st.none() | st.just(f"i{name}"))
        members[name] = Subscriber(instance, frozenset(topics), target)
    return Input(assignor, counts, members)


def made(what: Input) -> dict[str, Partitions]:
    return run_to_end(assign(what))


def load(target: Partitions) -> int:
    return sum(map(len, target.values()))


def after(what: Input, targets: dict[str, Partitions], *, without: str = "", plus: str = "") -> Input:
    """The next assignment's input: the last one's result, with one member fewer or more."""
    members = {name: member._replace(target=targets[name]) for name, member in what.members.items() if name != without}
    if plus:
        topics = next(iter(what.members.values())).topics
        members[plus] = Subscriber(None, topics, {})
    return what._replace(members=members)


def moved(before: dict[str, Partitions], now: dict[str, Partitions]) -> int:
    """Partitions that somebody who is still there has lost."""
    return sum(
        len(partitions - now[name].get(topic_id, frozenset()))
        for name, target in before.items()
        if name in now
        for topic_id, partitions in target.items()
    )


def check_complete(what: Input, targets: dict[str, Partitions]) -> None:
    assert targets.keys() == what.members.keys()
    given_out: dict[bytes, list[int]] = {}
    for name, target in targets.items():
        for topic_id, partitions in target.items():
            assert partitions, "a topic without partitions"
            assert topic_id in what.members[name].topics, "not subscribed"
            given_out.setdefault(topic_id, []).extend(partitions)
    for topic_id, count in what.topics.items():
        wanted = any(topic_id in member.topics for member in what.members.values())
        assert sorted(given_out.get(topic_id, [])) == (list(range(count)) if wanted else [])


@given(inputs(assignor="uniform", alike=True))
def test_uniform_alike(what: Input) -> None:
    targets = made(what)
    check_complete(what, targets)
    loads = [load(target) for target in targets.values()]
    assert max(loads) - min(loads) <= 1
    assert made(what) == targets, "twice the same"
    assert moved(targets, made(after(what, targets))) == 0, "stable"


@given(inputs(assignor="uniform", alike=True))
def test_uniform_joins_and_leaves_move_little(what: Input) -> None:
    targets = made(what)
    joined = after(what, targets, plus="zz")
    now = made(joined)
    # The new one's share, and nothing else, moves; nobody who stays gets anything from the others.
    assert moved(targets, now) == load(now["zz"])
    assert all(
        partitions <= targets[name].get(topic_id, frozenset())
        for name in targets
        for topic_id, partitions in now[name].items()
    )
    if len(what.members) > 1:
        gone = min(what.members)
        assert moved(targets, made(after(what, targets, without=gone))) == 0


@given(inputs(assignor="uniform", alike=False))
def test_uniform_unlike(what: Input) -> None:
    targets = made(what)
    check_complete(what, targets)
    loads = {name: load(target) for name, target in targets.items()}
    for name, target in targets.items():
        for topic_id in target:
            for other, member in what.members.items():
                if topic_id in member.topics:
                    assert loads[name] - loads[other] <= 1, "one partition less uneven were possible"
    assert made(what) == targets, "twice the same"
    assert moved(targets, made(after(what, targets))) == 0, "stable"
    if len(what.members) > 1:
        # What the others have is only moved to even out what the leaver left.
        gone = min(what.members)
        now = made(after(what, targets, without=gone))
        assert moved(targets, now) <= load(targets[gone])


@given(inputs(assignor="range", alike=False))
def test_range(what: Input) -> None:
    targets = made(what)
    check_complete(what, targets)
    order = sorted(
        what.members, key=lambda name: (what.members[name].instance_id is None, what.members[name].instance_id or name)
    )
    for topic_id in what.topics:
        readers = [name for name in order if topic_id in what.members[name].topics]
        counts = [len(targets[name].get(topic_id, ())) for name in readers]
        assert all(one >= other for one, other in pairwise(counts))
        assert not counts or counts[0] - counts[-1] <= 1
        in_order = [partition for name in readers for partition in sorted(targets[name].get(topic_id, ()))]
        assert in_order == sorted(in_order), "contiguous, in the order of members"
    assert made(what) == targets


def test_range_cuts_equal_topics_alike() -> None:
    topics = {TOPICS[0]: 5, TOPICS[1]: 5}
    member = Subscriber(None, frozenset(topics), {})
    targets = made(Input("range", topics, {"a": member, "b": member, "c": member._replace(instance_id="z")}))
    assert targets["c"] == dict.fromkeys(topics, frozenset({0, 1}))
    assert targets["a"] == dict.fromkeys(topics, frozenset({2, 3}))
    assert targets["b"] == dict.fromkeys(topics, frozenset({4}))


def test_work_is_done_in_slices() -> None:
    topics = {TOPICS[0]: 20_000}
    members = {str(number): Subscriber(None, frozenset(topics), {}) for number in range(100)}
    steps = assign(Input("uniform", topics, members))
    assert sum(1 for _ in steps) >= 40


def test_of_partitions_that_two_had_one_keeps_each() -> None:
    topics = {TOPICS[0]: 4}
    had = {TOPICS[0]: frozenset(range(4))}
    members = {name: Subscriber(None, frozenset(topics), had) for name in ("a", "b")}
    targets = made(Input("uniform", topics, members))
    assert load(targets["a"]) == load(targets["b"]) == 2
