"""The checker on hand-written histories of operators who change settings, of subscriptions, and of compacted topics."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.checker import Final, check
from tests.simulation.history import Event
from tests.simulation.tables import judge, key_of
from tests.simulation.tuners import ALL_BROKERS, OF_TOPIC, QUOTA

SECOND = 1_000_000_000


class Told:
    """A history, event by event, a millisecond apart."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now_ns = 0

    def record(self, kind: str, **fields: Any) -> None:
        self.now_ns += 1_000_000
        self.events.append(Event(self.now_ns, kind, fields))

    def anomalies(self) -> set[str]:
        return {finding.anomaly for finding in check(self.events, Final())}


# Settings


class Tuning(Told):
    asked = 0

    def set(self, knob: str, value: int, outcome: str = "ok") -> None:
        self.asked += 1
        fields = {"client": "o", "ask": self.asked, "knob": knob, "value": value}
        self.record("tune.ask", **fields)
        if outcome:
            self.record(f"tune.{outcome}", **fields, error="WHY")

    def seen(self, node: int, knob: str, value: int | None) -> None:
        self.record("tune.seen", client="a", node=node, knob=knob, value=value)

    def probe(self, error: str = "NONE", *, throttled: bool = False) -> None:
        self.record("tune.probe", node=1, topic="tuned", partition=0, error=error, throttled=throttled)


def test_brokers_go_by_what_was_acknowledged_last() -> None:
    told = Tuning()
    told.set(ALL_BROKERS.name, 300), told.set(ALL_BROKERS.name, 400)
    told.seen(1, ALL_BROKERS.name, 400), told.seen(2, ALL_BROKERS.name, 400)
    assert told.anomalies() == set()
    told.seen(3, ALL_BROKERS.name, 300)
    assert told.anomalies() == {"not-tuned"}


def test_what_nobody_knows_the_outcome_of_may_be_set_if_it_is_everywhere() -> None:
    told = Tuning()
    told.set(ALL_BROKERS.name, 300, ""), told.set(ALL_BROKERS.name, 400)
    told.seen(1, ALL_BROKERS.name, 300)
    assert told.anomalies() == set()
    told.seen(2, ALL_BROKERS.name, 400)
    assert told.anomalies() == {"tuned-differently"}


def test_nothing_is_refused() -> None:
    told = Tuning()
    told.set(QUOTA.name, 100, "refused")
    assert told.anomalies() == {"tune-refused"}


@pytest.mark.parametrize(
    ("size", "rate", "error", "throttled", "good"),
    [
        (2_500, 10**9, "MESSAGE_TOO_LARGE", False, True),
        (2_500, 10**9, "NONE", False, False),
        (25_000, 10**9, "NONE", False, True),
        (25_000, 10**9, "MESSAGE_TOO_LARGE", False, False),
        (25_000, 100, "NONE", True, True),
        (25_000, 100, "NONE", False, False),
        (25_000, 10**9, "NONE", True, False),
    ],
)
def test_probes_show_what_a_leader_goes_by(size: int, rate: int, error: str, throttled: bool, good: bool) -> None:
    told = Tuning()
    told.set(OF_TOPIC.name, size), told.set(QUOTA.name, rate)
    told.probe(error, throttled=throttled)
    assert told.anomalies() == (set() if good else {"not-tuned"})


# Subscriptions

A, B = ("t", 0), ("t", 1)


class Members(Told):
    def beat(self, client: str, *, seconds: float = 0.5) -> None:
        self.now_ns += int(seconds * SECOND)
        fields = {"client": client, "group": "g", "beat": len(self.events)}
        self.record("group.beat.invoke", **fields)
        self.record("group.beat.ok", **fields, epoch=1)

    def about(self, kind: str, client: str, *parts: tuple[str, int]) -> None:
        self.record(f"group.{kind}", client=client, group="g", epoch=1, parts=parts)


def test_what_is_subscribed_to_is_given_to_somebody() -> None:
    told = Members()
    told.beat("a", seconds=30)
    told.about("subscribed", "a", A, B)
    told.about("given", "a", A)
    for _ in range(8):
        told.beat("a")
    assert told.anomalies() == set()
    for _ in range(10):
        told.beat("a")
    assert told.anomalies() == {"owned-by-nobody"}


def test_what_disturbs_a_group_excuses_it() -> None:
    told = Members()
    told.beat("a", seconds=30)
    told.about("subscribed", "a", A, B)
    told.about("given", "a", A)
    for number in range(60):
        told.beat("a")
        if number % 10 == 0:
            told.record("fault.kill", node=1)
    assert told.anomalies() == set()


# Transactions in compacted topics

VALUES = [value for value in range(60, 4_000) if key_of(value) == key_of(61)]
FIRST, SECOND_VALUE = VALUES[0], VALUES[1]


class Table(Told):
    def transaction(self, number: int, value: int, offset: int, *, commit: bool | None) -> None:
        fields = {"txn": number, "session": 1}
        self.record("table.bank.begin", **fields, values=(value,))
        self.record("table.bank.write.invoke", **fields, entries=(value,))
        self.record("table.bank.write.ok", **fields, offset=offset)
        self.record("table.bank.end.invoke", **fields, commit=commit is not False)
        if commit is not None:
            self.record("table.bank.end.ok", **fields, commit=commit)

    def read(self, *records: tuple[int, int], end: int = 9) -> None:
        number = len(self.events)
        told = tuple((offset, key_of(value), value) for offset, value in records)
        self.record("table.begin", client="r", read=number)
        fields = {"start": 0, "end": end, "whole": True, "final": True, "position": end}
        self.record("table.read", client="r", read=number, **fields, records=told)

    def judged(self) -> set[str]:
        return {finding.anomaly for finding in judge(self.events, (), 0)}


def test_what_was_committed_stays_until_something_committed_follows() -> None:
    for commit, good in ((True, True), (None, True), (False, False)):
        told = Table()
        told.transaction(1, FIRST, 0, commit=True)
        told.transaction(2, SECOND_VALUE, 2, commit=commit)
        told.read((0, FIRST), (2, SECOND_VALUE))
        told.read((2, SECOND_VALUE))
        assert told.judged() == (set() if good else {"table-lost"}), commit


def test_what_was_aborted_may_go() -> None:
    told = Table()
    told.transaction(1, FIRST, 0, commit=True)
    told.transaction(2, SECOND_VALUE, 2, commit=False)
    told.read((0, FIRST), (2, SECOND_VALUE))
    told.read((0, FIRST))
    assert told.judged() == set()
    told.read()
    assert told.judged() == {"table-lost"}
