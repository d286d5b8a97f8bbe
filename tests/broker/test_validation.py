"""Validation without a WAL: nothing is told before it is durable and the right was checked."""

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from broker.connection import Reply
from broker.log import Log
from broker.validation import FileFence, SessionFence, Validation, assign_last_stable_offset
from controller.client import Grant, Session
from tests.support.manual_clock import ManualClock


class Producers:
    def __init__(self) -> None:
        self.open_from: int | None = None

    def first_open_offset(self, durable_end: int) -> int | None:
        return self.open_from


class AnyLog:
    """What `Validation` touches of a log."""

    def __init__(self) -> None:
        self.hw = self.lso = self.start = 0
        self.producers = Producers()
        self.waiters: dict[Any, None] = {}


class AnyConnection:
    def __init__(self) -> None:
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


class Right:
    def __init__(self) -> None:
        self.held = True

    def may_acknowledge(self) -> bool:
        return self.held

    def may_answer(self) -> bool:
        return self.held


def make() -> tuple[Validation, Right]:
    validation, right = Validation(), Right()
    validation.attach(right)
    return validation, right


def reply_on(connection: AnyConnection, waits: int = 1) -> Reply:
    return Reply(cast(Any, connection), b"", waits, 0, [])


def append(validation: Validation, log: AnyLog, end: int) -> None:
    validation.in_flight.append((cast(Log, log), end, None))


def test_high_watermarks_replies_waiters_and_callbacks_follow_a_group() -> None:
    validation, _ = make()
    first, second = AnyLog(), AnyLog()
    one, two = AnyConnection(), AnyConnection()
    told: list[object] = []

    class Waiter:
        def wake(self) -> None:
            told.append(("woken", first.hw, second.hw))

    waiter = Waiter()
    first.waiters[waiter] = second.waiters[waiter] = None
    for log, end in ((first, 1), (second, 5), (first, 3), (second, 9)):
        append(validation, log, end)
    replies = [reply_on(one), reply_on(one), reply_on(two, waits=2), reply_on(two)]
    for sequence, reply in enumerate(replies, 1):
        validation.when_reply(sequence, reply)
    validation.when_validated(3, lambda: told.append("three"))
    validation.when_validated(1, lambda: told.append("one"))
    validation.when_validated(4, lambda: told.append("four"))
    validation.when_validated(0, lambda: told.append("at once"))
    validation.on_durable(3, 7)
    assert (first.hw, second.hw, validation.validated, validation.validated_group) == (3, 5, 3, 7)
    assert [reply.waits for reply in replies] == [0, 0, 1, 1]
    assert (one.flushes, two.flushes) == (1, 0)
    assert told == ["at once", ("woken", 3, 5), "one", "three"]
    validation.on_durable(4, 8)
    assert (second.hw, two.flushes, told[-1]) == (9, 1, "four")


def test_without_the_right_nothing_is_told_until_it_comes_back() -> None:
    validation, right = make()
    log, connection = AnyLog(), AnyConnection()
    append(validation, log, 1)
    reply = reply_on(connection)
    validation.when_reply(1, reply)
    right.held = False
    validation.on_durable(1, 1)
    assert (log.hw, reply.waits, validation.validated, validation.validated_group) == (0, 1, 0, 0)
    append(validation, log, 2)
    validation.on_durable(2, 2)
    assert validation.withheld == 2
    assert not validation.may_answer_authoritatively()
    right.held = True
    validation.recheck()
    assert (log.hw, reply.waits, connection.flushes, validation.validated_group) == (2, 0, 1, 2)
    validation.recheck()
    assert connection.flushes == 1


def test_the_last_stable_offset_stops_at_an_open_transaction() -> None:
    validation, _ = make()
    log = AnyLog()
    log.producers.open_from = 3
    for sequence, (end, stable) in enumerate(((2, 2), (5, 3), (6, 3)), 1):
        append(validation, log, end)
        validation.on_durable(sequence, sequence)
        assert (log.hw, log.lso) == (end, stable)
    log.start = 4
    assign_last_stable_offset(log)
    assert (log.hw, log.lso) == (6, 4), "what was deleted is open no more"
    log.producers.open_from = None
    append(validation, log, 7)
    validation.on_durable(4, 4)
    assert log.lso == 7


def test_a_duplicate_that_waits_for_less_keeps_the_order() -> None:
    validation, _ = make()
    log, connection = AnyLog(), AnyConnection()
    for end in (1, 2):
        append(validation, log, end)
    later, duplicate = reply_on(connection), reply_on(connection)
    validation.when_reply(2, later)
    validation.when_reply(1, duplicate)
    validation.on_durable(1, 1)
    assert (later.waits, duplicate.waits) == (1, 1)
    validation.on_durable(2, 2)
    assert (later.waits, duplicate.waits) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=60), st.data())
def test_watermarks_are_the_last_validated_ends(appends: list[tuple[int, int]], data: st.DataObject) -> None:
    validation, right = make()
    logs = [AnyLog() for _ in range(3)]
    ends = [0, 0, 0]
    history: list[tuple[int, ...]] = [(0, 0, 0)]
    for which, count in appends:
        ends[which] += count
        append(validation, logs[which], ends[which])
        history.append(tuple(ends))
    durable = 0
    while durable < len(appends):
        durable = data.draw(st.integers(durable + 1, len(appends)))
        right.held = data.draw(st.booleans())
        before = tuple(log.hw for log in logs)
        validation.on_durable(durable, durable)
        assert tuple(log.hw for log in logs) == (history[durable] if right.held else before)


class Wal:
    def __init__(self) -> None:
        self.fenced = False
        self.fence_there = False

    def look_for_fence(self) -> bool:
        return self.fence_there


def test_the_file_fence_needs_no_clock_to_acknowledge() -> None:
    clock, wal, session, reachable = ManualClock(), Wal(), Session(), [True]
    fence = FileFence(wal, session, clock, lambda: reachable[0])
    session.granted(clock.boottime_ms(), Grant(1000, 300))
    assert fence.may_acknowledge() and fence.may_answer()
    clock.advance(2000)
    assert fence.may_acknowledge() and not fence.may_answer()
    reachable[0] = False
    assert fence.may_answer()
    wal.fence_there = True
    assert not fence.may_answer() and fence.may_acknowledge(), "acknowledging looks after each sync, not here"
    wal.fenced = True
    assert not fence.may_acknowledge() and not fence.may_answer()
    wal = Wal()
    fence = FileFence(wal, session, clock, lambda: reachable[0])
    session.end()
    assert not fence.may_acknowledge() and not fence.may_answer()


def test_the_session_fence_is_the_session() -> None:
    clock, wal, session = ManualClock(), Wal(), Session()
    fence = SessionFence(wal, session, clock)
    assert not fence.may_acknowledge()
    session.granted(clock.boottime_ms(), Grant(1000, 300))
    assert fence.may_acknowledge() and fence.may_answer()
    clock.advance(1000)
    assert not fence.may_acknowledge() and not fence.may_answer()
