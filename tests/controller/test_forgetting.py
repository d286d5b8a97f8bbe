"""Closed incarnations are forgotten, and nobody can tell: what comes late is refused as it would have been."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import collector
from controller import commands as c
from controller import facts as f
from controller.collector import ABANDONED_MS, FENCE_MS, abandoned, forgettable, forgettable_losses, too_many_closed
from controller.decide import decide
from controller.election import Election, Identity
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from storage.seal import CommittedThrough, Recovery
from tests.controller.builders import LISTENERS, Cluster, next_range, seal_command, tokens, wal_id


def registration(cluster: Cluster, node_id: int, incarnation: int, *locked: bytes, kind: str = "volume") -> Any:
    """As a process makes it that has applied everything."""
    wals = (c.NewWal(wal_id(incarnation), kind),)
    return c.RegisterBroker(
        cluster.token(16), node_id, incarnation, "boot", None, LISTENERS, wals, locked, 3, cluster.state.position
    )


def restarted(cluster: Cluster, count: int, kind: str = "volume") -> list[Any]:
    """Registrations of a node that was restarted so often; all but the last of its incarnations are closed."""
    made = []
    for incarnation in range(1000, 1000 + count):
        made.append(registration(cluster, 1, incarnation, kind=kind))
        cluster.decide(made[-1])
        if incarnation < 999 + count:
            cluster.decide(c.CleanStop(cluster.token(16), incarnation))
    return made


def refused(code: ErrorCode) -> "pytest.RaisesExc[KafkaError]":
    return pytest.raises(KafkaError, match=code.name)


def test_a_late_registration_of_a_forgotten_incarnation_is_refused() -> None:
    cluster = Cluster()
    made = restarted(cluster, 4)
    assert list(cluster.state.broker_table.closed) == [1000, 1001, 1002] and len(cluster.state.wals) == 4
    cluster.decide(c.ForgetClosed(cluster.token(16), (1000, 1001)))
    state = cluster.state
    assert list(state.broker_table.closed) == [1002] and list(state.wals) == [wal_id(1002), wal_id(1003)]
    assert list(state.wal_table.by_incarnation) == [1002, 1003]
    cluster.decide(c.CleanStop(cluster.token(16), 1003))
    for late in made:
        again = c.RegisterBroker(*[cluster.token(16), *[getattr(late, name) for name in late.__slots__[1:]]])
        with refused(ErrorCode.STALE_BROKER_EPOCH):
            cluster.decide(again)
    cluster.decide(registration(cluster, 1, 2000))
    assert cluster.state.broker_table.is_alive(2000)
    for command in (
        c.NameRecoverer(cluster.token(16), wal_id(1000), 1000),
        c.RegisterWal(cluster.token(16), 1000, wal_id(1000, 1), "volume"),
        c.RetireWal(cluster.token(16), wal_id(1000), 1000, 0),
        c.CleanStop(cluster.token(16), 1000),
        c.EndSession(cluster.token(16), 1000, 2000, wal_id(1000)),
        c.AllocateProducerIds(cluster.token(16), 1000),
        seal_command(1000, 1, []),
    ):
        with pytest.raises(KafkaError):
            cluster.decide(command)


def test_a_registration_that_was_made_before_something_was_forgotten_is_not_old() -> None:
    cluster = Cluster()
    restarted(cluster, 3)
    slow = registration(cluster, 2, 2000)
    cluster.apply(f.LeaseExtended())
    cluster.decide(c.ForgetClosed(cluster.token(16), (1000, 1001)))
    assert cluster.decide(slow) == c.Registered(())


def test_the_last_controller_and_what_is_not_closed_are_not_forgotten() -> None:
    cluster = Cluster()
    restarted(cluster, 3)
    cluster.apply(f.ControllerElected(2, 1, 1000))
    cluster.decide(c.ForgetClosed(cluster.token(16), (1000, 1002, 77)))
    assert cluster.facts == []
    cluster.apply(f.ControllerElected(3, 1, 1002))
    cluster.decide(c.ForgetClosed(cluster.token(16), (1000,)))
    assert cluster.facts == [f.ClosedForgotten((1000,), cluster.state.broker_table.forgotten_at)]


def test_nothing_is_forgotten_below_the_level_of_it() -> None:
    cluster = Cluster(format_level=2)
    for incarnation in (1000, 1001):
        cluster.register(1, incarnation)
        cluster.decide(c.CleanStop(cluster.token(16), incarnation))
    cluster.register(1, 1002)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collector, "CLOSED_KEPT", 0)
        patch.setattr(collector, "CLOSED_MAX", 0)
        assert forgettable(cluster.state, 0) == too_many_closed(cluster.state) == []
        with refused(ErrorCode.UNSUPPORTED_VERSION):
            cluster.decide(c.ForgetClosed(cluster.token(16), (1000,)))
        cluster.apply(f.FormatLevel(3))
        raised = cluster.state.position
        assert forgettable(cluster.state, 0) == too_many_closed(cluster.state) == [1000, 1001]
    cluster.decide(c.ForgetClosed(cluster.token(16), (1000,)))
    assert cluster.state.broker_table.forgotten_at == raised
    assert ClusterState.decode(cluster.state.encode()) == cluster.state


def test_an_instance_whose_fence_must_stay_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "CLOSED_KEPT", 1)
    cluster = Cluster()
    cluster.decide(registration(cluster, 2, 50, kind="objects"))
    cluster.decide(registration(cluster, 1, 100, kind="objects"))
    cluster.create("t", 2, tidelog_wal="objects")
    through = [log for log in cluster.state.logs.values() if log.leader_incarnation == 100]
    assert through
    cluster.end_silently(100)
    cluster.decide(c.ReportScan(cluster.token(16), wal_id(100), 50, 1, (), 0))
    cluster.decide(c.RetireWal(cluster.token(16), wal_id(100), 50, 1))
    for incarnation in (101, 102, 103):
        cluster.decide(registration(cluster, 1, incarnation, kind="objects"))
        cluster.decide(c.CleanStop(cluster.token(16), incarnation))
    assert list(cluster.state.broker_table.closed) == [100, 101, 102]
    assert forgettable(cluster.state, cluster.now_ms + FENCE_MS - 1) == [101]
    assert forgettable(cluster.state, cluster.now_ms + FENCE_MS) == [100, 101]
    monkeypatch.setattr(collector, "CLOSED_MAX", 2)
    assert too_many_closed(cluster.state) == [100]


def test_a_process_that_slept_finds_itself_forgotten() -> None:
    cluster = Cluster()
    election = Election(Identity(1, 1000), 3_000)
    assert not election.is_over(cluster.state) and election.may_take_over(cluster.state, 10_000)
    election.asked_at = cluster.state.position
    assert not election.is_over(cluster.state), "not registered yet"
    restarted(cluster, 3)
    assert election.is_over(cluster.state), "closed"
    cluster.decide(c.ForgetClosed(cluster.token(16), (1000,)))
    assert election.is_over(cluster.state) and not election.may_take_over(cluster.state, 10_000)
    unborn = Election(Identity(1, 3000), 3_000)
    assert not unborn.is_over(cluster.state)


# Losses, and instances that nobody came back with


def lose(cluster: Cluster, incarnation: int) -> bytes:
    """The disk of an incarnation of node 1 is destroyed, and the next one starts."""
    cluster.end_silently(incarnation)
    cluster.decide(c.DeclareLost(cluster.token(16), wal_id(incarnation), host_is_destroyed=True))
    cluster.register(1, incarnation + 1)
    return wal_id(incarnation)


def test_a_loss_is_forgotten_once_no_log_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "LOSSES_KEPT", 1)
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", 2)
    cluster.create("gone")
    first = lose(cluster, 100)
    assert forgettable_losses(cluster.state) == [], "the newest ones stay"
    second = lose(cluster, 101)
    log, other = cluster.log("t", 0), cluster.log("t", 1)
    assert [len(cluster.state.wal_table.losses[one].logs) for one in (first, second)] == [3, 3]
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("gone"),)))
    hole = 2**32
    for each, start in ((log, hole), (other, hole - 1)):
        cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(each.log_id, start),)))
    forget = c.ForgetLosses(cluster.token(16), (first, second, first, bytes(16)))
    assert forgettable_losses(cluster.state) == [], "the other log may hold what lies below the hole"
    cluster.decide(forget)
    assert cluster.facts == []
    cluster.decide(c.AdvanceLogStart(cluster.token(16), (f.LogStart(other.log_id, hole),)))
    assert forgettable_losses(cluster.state) == [first]
    cluster.decide(c.ForgetLosses(cluster.token(16), forget.wal_ids))
    assert cluster.facts == [f.LossesForgotten((first,))]
    assert list(cluster.state.wal_table.losses) == [second]
    assert ClusterState.decode(cluster.state.encode()) == cluster.state
    with pytest.raises(KafkaError, match=r"RESOURCE_NOT_FOUND.*`tidelog inspect losses` shows the report"):
        cluster.decide(c.DeclareLost(cluster.token(16), first))
    assert cluster.decide(c.DeclareLost(cluster.token(16), second)).wal_id == second


def test_an_instance_that_holds_nothing_is_waited_for_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crashed broker led nothing, and its disk does not come back: nobody would ever recover or retire it."""
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.register(2, 200)
    cluster.create("t", 2)
    cluster.register(3, 300)
    cluster.end_silently(300, 100)
    heard_ms = cluster.state.broker_table.incarnations[300].last_heard_ms
    assert abandoned(cluster.state, heard_ms + ABANDONED_MS - 1) == []
    assert abandoned(cluster.state, heard_ms + ABANDONED_MS) == [wal_id(300)], "a log is led through the other one"
    cluster.decide(c.RetireAbandoned(cluster.token(16), (wal_id(300), wal_id(100), wal_id(200), bytes(16))))
    assert cluster.facts == [f.WalRetired(wal_id(300))]
    cluster.register(3, 301, locked=(wal_id(300),))
    assert list(cluster.state.broker_table.closed) == [300]
    for incarnation in (301, 302, 303):
        cluster.end_silently(incarnation)
        cluster.register(3, incarnation + 1)
    monkeypatch.setattr(collector, "ABANDONED_MAX", 1)
    assert abandoned(cluster.state, heard_ms) == [wal_id(301), wal_id(302)], "the oldest"


def test_an_instance_that_somebody_recovers_is_not_abandoned() -> None:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.end_silently(100)
    cluster.register(1, 101, locked=(wal_id(100),))
    assert abandoned(cluster.state, 2**60) == []
    cluster.decide(c.RetireAbandoned(cluster.token(16), (wal_id(100),)))
    assert cluster.facts == []


# Nobody can tell

NODES = (1, 2, 3)


class Twins:
    """Two clusters in which the same happens, but only the first one forgets."""

    def __init__(self) -> None:
        self.forgets, self.remembers = Cluster(), Cluster()
        self.made: list[Any] = []
        self.incarnations = 0
        self.forgotten = 0
        for node_id in NODES:
            self.start(node_id, 0)
            self.ask(self.made[-1])
        self.ask(
            c.CreateTopics(self.token(), (c.NewTopic("v", 3), c.NewTopic("o", 3, -1, (("tidelog.wal", "objects"),))))
        )

    def token(self) -> bytes:
        return self.forgets.token(16)

    @property
    def state(self) -> ClusterState:
        return self.remembers.state

    def start(self, node_id: int, lag: int) -> None:
        """A process begins: what it has applied is `lag` entries old. It locks what lies on its disk."""
        self.incarnations += 1
        incarnation = 1000 + self.incarnations
        wals = (c.NewWal(wal_id(incarnation), "volume"), c.NewWal(wal_id(incarnation, 1), "objects"))
        locked = tuple(
            wal.wal_id
            for wal in self.state.wals.values()
            if wal.node_id == node_id and wal.kind == "volume" and not wal.closed
        )
        position = max(0, self.forgets.state.position - lag)
        command = c.RegisterBroker(
            self.token(), node_id, incarnation, "boot", None, LISTENERS, wals, locked, 3, position
        )
        self.made.append(command)

    def ask(self, command: Any) -> None:
        """In both; whoever sends a late duplicate has another id for it, as one that is no longer remembered."""
        outcomes = [outcome(twin, command) for twin in (self.forgets, self.remembers)]
        known = getattr(command, "incarnation", 0) in self.state.broker_table.incarnations
        if isinstance(command, c.RegisterBroker) and not known:
            closed = command.incarnation in self.state.broker_table.closed
            if not closed and outcomes[0] is None and command.position < self.forgets.state.broker_table.forgotten_at:
                return  # never registered, but too slow: its process starts again as another incarnation
        assert outcomes[0] == outcomes[1], command
        if outcomes[0]:
            self.forgets.apply(*outcomes[0])
            self.remembers.apply(*outcomes[0])

    def forget(self, count: int) -> None:
        closed = self.forgets.state.broker_table.closed
        oldest = tuple(list(closed)[:count])
        found = outcome(self.forgets, c.ForgetClosed(self.token(), oldest)) if oldest else ()
        self.forgotten += len(found[0].incarnations) if found else 0
        self.forgets.apply(*(found or (f.LeaseExtended(),)))
        self.remembers.apply(f.LeaseExtended())

    def check(self) -> None:
        """Equal, but for what was forgotten, all of which is closed."""
        mine, full = self.forgets.state, self.remembers.state
        assert mine.logs == full.logs and mine.brokers == full.brokers and mine.moves == full.moves
        assert mine.broker_table.incarnations == full.broker_table.incarnations
        assert mine.wals == {key: full.wals[key] for key in mine.wals}
        gone = full.broker_table.closed.keys() - mine.broker_table.closed.keys()
        assert {key: wal for key, wal in full.wals.items() if wal.incarnation not in gone} == mine.wals
        assert ClusterState.decode(mine.encode()) == mine


def outcome(cluster: Cluster, command: Any) -> tuple[f.Fact, ...] | None:
    """The facts; None: refused."""
    try:
        return decide(cluster.state, command, replace(cluster.context(), token=tokens("topic ids"))).facts
    except KafkaError:
        return None


def _recover(twins: Twins, incarnation: int) -> None:
    """Whatever the incarnation recovers is scanned and retired."""
    for wal in list(twins.state.wals.values()):
        if wal.state == "recovering" and wal.recoverer == incarnation:
            number = wal.recovery_number
            found = [twins.state.logs[one] for one in sorted(twins.state.log_index.through(wal.wal_id))]
            scanned = tuple(f.ScannedLog(log.log_id, log.end, log.end + 5) for log in found)
            twins.ask(c.ReportScan(twins.token(), wal.wal_id, incarnation, number, scanned, 1))
            seal = twins.state.broker_table.incarnations[incarnation].last_seal + 1
            ranges = [next_range(log, 5) for log in found]
            through = (CommittedThrough(wal.wal_id, 1),)
            twins.ask(seal_command(incarnation, seal, ranges, Recovery(wal.wal_id, number), through=through))
            twins.ask(c.RetireWal(twins.token(), wal.wal_id, incarnation, number))


def _late(twins: Twins, incarnation: int, what: int) -> None:
    """Something that an incarnation, mostly an old one, had on its way."""
    wal, other = wal_id(incarnation), wal_id(incarnation - 1)
    broker = twins.state.broker_table.incarnations.get(incarnation)
    seal = 1 if broker is None else broker.last_seal + 1
    log = twins.state.logs[what % len(twins.state.logs)]
    commands: list[Callable[[], Any]] = [
        lambda: c.NameRecoverer(twins.token(), other, incarnation),
        lambda: c.ReportScan(twins.token(), other, incarnation, 1, (), 9),
        lambda: c.RegisterWal(twins.token(), incarnation, wal_id(incarnation, 2), "volume"),
        lambda: c.EndSession(twins.token(), incarnation - 1, incarnation, other),
        lambda: c.EndSession(twins.token(), incarnation, incarnation + 1, wal),
        lambda: c.RetireWal(twins.token(), other, incarnation, 1),
        lambda: c.DeclareLost(twins.token(), other, host_is_destroyed=False),
        lambda: c.LeaveCluster(twins.token(), incarnation),
        lambda: c.AllocateProducerIds(twins.token(), incarnation),
        lambda: seal_command(incarnation, seal, [next_range(log)]),
        lambda: seal_command(incarnation, seal, [next_range(log)], Recovery(other, 1)),
        lambda: c.EndSilentSessions(twins.token(), (incarnation, incarnation - 1)),
    ]
    command = commands[what % len(commands)]()
    before = outcome(twins.forgets, command), outcome(twins.remembers, command)
    if before[0] is None and before[1] == ():
        return  # done long ago: that it was is forgotten too
    twins.ask(command)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from(NODES), st.integers(0, 12)),
        st.tuples(st.just("register"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("register"), st.integers(0, 40), st.just(0)),
        st.tuples(st.sampled_from(("stop", "silent", "recover")), st.sampled_from(NODES), st.just(0)),
        st.tuples(st.just("late"), st.integers(0, 40), st.integers(0, 50)),
        st.tuples(st.just("forget"), st.integers(1, 6), st.just(0)),
    ),
    min_size=30,
    max_size=90,
)


@given(steps=STEPS)
def test_what_comes_late_does_what_it_would_have_done(steps: list[tuple[str, int, int]]) -> None:
    twins = Twins()
    for kind, which, more in steps:
        broker = twins.state.brokers.get(which)
        if kind == "start":
            twins.start(which, more)
            twins.ask(twins.made[-1])
        elif kind == "register":
            old = twins.made[-1 - which % len(twins.made)]
            fields = [getattr(old, name) for name in old.__slots__[1:]]
            twins.ask(c.RegisterBroker(twins.token(), *fields))
        elif kind == "late":
            _late(twins, 1001 + which % (twins.incarnations + 1), more)
        elif kind == "forget":
            twins.forget(which)
        elif broker is not None and broker.alive:
            if kind == "stop":
                twins.ask(c.CleanStop(twins.token(), broker.incarnation))
            elif kind == "silent":
                twins.ask(c.EndSilentSessions(twins.token(), (broker.incarnation,)))
            else:
                _recover(twins, broker.incarnation)
        twins.check()
