"""Simulated clusters with a bank: transfers are whole, whatever fails; planted bugs of transactions are caught."""

from collections import Counter

import pytest

from tests.simulation.cluster import Options, World
from tests.simulation.history import Event
from tests.simulation.plants import TRANSACTION_PLANTS
from tests.simulation.transfers import judge

WORLDS = 4
SEEDS = 20


def test_worlds_with_transfers_run_clean() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(WORLDS):
        result = World(seed, Options(transactions=True)).run()
        assert not result.findings, (seed, result.findings)
        outcomes.update(event.fields["outcome"] for event in result.history if event.kind == "transfer.ended")
    assert outcomes["committed"] > 80 and outcomes["aborted"] > 30


@pytest.mark.parametrize("name", TRANSACTION_PLANTS)
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    caught = TRANSACTION_PLANTS[name].caught_by(SEEDS)
    assert caught is not None, f"{name} survives {SEEDS} seeds"
    with capsys.disabled():
        print(f"\n{name}: caught by seed {caught[0]}: {caught[1]}", end="")


def event(kind: str, **fields: object) -> Event:
    return Event(0, kind, fields)


def final(partition: int, *records: tuple[int, int]) -> Event:
    return event("committed.final", topic="accounts", partition=partition, records=records)


def transfer(number: int, outcome: str) -> list[Event]:
    return [event("transfer.begin", transfer=number), event("transfer.ended", transfer=number, outcome=outcome)]


def poll(partition: int, position: int, *records: tuple[int, int]) -> Event:
    return event(
        "committed.poll",
        client="r",
        topic="accounts",
        partition=partition,
        offset=0,
        position=position,
        records=records,
    )


@pytest.mark.parametrize(
    ("outcome", "left", "right", "found"),
    [
        ("committed", [(0, 5)], [(3, 5)], []),
        ("committed", [(0, 5)], [], ["transfer 5 is torn: [1, 0]"]),
        ("committed", [], [], ["transfer 5 was committed and is lost"]),
        ("committed", [(0, 5), (1, 5)], [(3, 5)], ["transfer 5 is there more than once: [2, 1]"]),
        ("aborted", [], [], []),
        ("aborted", [(0, 5)], [(3, 5)], ["transfer 5 was never committed and is there"]),
        ("unknown", [(0, 5)], [(3, 5)], []),
        ("unknown", [], [], []),
        ("unknown", [], [(3, 5)], ["transfer 5 is torn: [0, 1]"]),
        ("committed", [(0, 5), (1, 6)], [(3, 5)], ["value 6 is there and was never written"]),
    ],
)
def test_transfers_are_judged(
    outcome: str, left: list[tuple[int, int]], right: list[tuple[int, int]], found: list[str]
) -> None:
    assert judge([*transfer(5, outcome), final(0, *left), final(1, *right)]) == found


def test_what_is_read_on_the_way_is_judged() -> None:
    there = [*transfer(5, "committed"), final(0, (4, 5)), final(1, (2, 5))]
    assert judge([poll(0, 5, (4, 5)), poll(1, 2), *there]) == []
    assert judge([poll(0, 5), *there]) == ["0@4 was not shown to r and is committed"]
    assert judge([poll(1, 9, (2, 5), (7, 8)), *there]) == ["1@7 was shown to r and is not committed"]
    assert judge([event("transfer.begin", transfer=1)]) == []
