"""Grants and silence. The walk is `model/sessions.py` of the design over the real classes: whoever is declared silent
must already be past its own deadline, on its own clock; each planted mistake must break that.
"""

import random  # noqa: TID251
from collections.abc import Callable

import pytest

from controller.client import Grant, Session
from controller.sessions import Sessions, with_margin

SESSION, LEASE, TICK = 6_000, 3_000, 250
BROKER = 7


def made(now: int = 0) -> Sessions:
    sessions = Sessions(SESSION, LEASE)
    sessions.took_over(now, 1)
    sessions.appended(now, now)
    return sessions


def test_the_margin_covers_rates_and_rounding() -> None:
    assert with_margin(6_000) == 6_850


def test_grants_only_while_the_lease_stands() -> None:
    sessions = made()
    assert sessions.grant(BROKER, LEASE - 1, own=False) == SESSION
    assert sessions.grant(BROKER, LEASE, own=False) is None
    sessions.appended(LEASE - 500, LEASE + 100)
    assert sessions.grant(BROKER, 2 * LEASE - 501, own=True) == 1
    assert sessions.grant(BROKER, 2 * LEASE - 500, own=True) is None


def test_silence_counts_from_the_last_grant() -> None:
    sessions = made(-60_000)
    sessions.appended(0, 0)
    sessions.grant(BROKER, 1_000, own=False)
    for now in range(0, 20_000, 500):
        sessions.appended(now, now)
        due = sessions.expired([BROKER], now)
        assert due == ([BROKER] if now >= 1_000 + with_margin(SESSION) else [])
        if due:
            assert sessions.grant(BROKER, now, own=False) is None, "decided: never renewed"
    sessions.forget(BROKER)
    assert sessions.grant(BROKER, now, own=False) == SESSION


def test_a_new_controller_waits_for_what_the_old_one_may_have_granted() -> None:
    sessions = made(10_000)
    assert sessions.expires(BROKER) == 10_000 + with_margin(LEASE + SESSION)
    assert sessions.expires(1) == 10_000 + with_margin(LEASE), "the old controller's own broker"
    sessions.seen(1, 11_000)
    assert sessions.expires(1) > 10_000 + with_margin(LEASE), "it registered again: a session like any other"


def test_silence_does_not_count_while_nobody_could_be_heard() -> None:
    sessions = made()
    sessions.grant(BROKER, 0, own=False)
    assert sessions.expired([BROKER], 60_000) == [], "the lease does not stand"
    sessions.appended(60_000, 60_100)
    assert sessions.expired([BROKER], 60_200) == []
    assert sessions.expires(BROKER) == 60_100 + with_margin(SESSION)


def test_the_brokers_side() -> None:
    session = Session()
    assert not session.stands(0)
    session.granted(1_000, Grant(6_000, 2_000))
    assert session.stands(6_999) and not session.stands(7_000)
    session.granted(500, Grant(6_000, 2_000))
    assert session.deadline_ms == 7_000, "a late answer to an earlier heartbeat shortens nothing"
    session.end()
    session.granted(2_000, Grant(6_000, 2_000))
    assert not session.stands(3_000)


class World:
    """One broker, an old controller and one that takes over; messages wait as long as the walk likes."""

    def __init__(self, seed: int, sessions: type[Sessions] = Sessions, session: type[Session] = Session) -> None:
        self.random = random.Random(seed)
        self.now = 100_000
        self.slow = 0
        self.skew = self.random.choice([0, 0, 80])  # per mille that the broker's clock is slow
        self.broker = session()
        self.controllers = [sessions(SESSION, LEASE), sessions(SESSION, LEASE)]
        self.controllers[0].took_over(self.now, 0)
        self.controllers[0].appended(self.now, self.now)
        self.leader = 0  # the log's truth
        self.knows = [True, False]
        self.last_entry = self.now
        self.append: int | None = None
        self.landed = False
        self.heartbeat: int | None = None
        self.answer: int | None = None
        self.dead = False
        self.weights: dict[str, float] = {}

    def weight(self, step: Callable[[], None]) -> float:
        """Some walks do some things rarely: late answers, rare takeovers."""
        return self.weights.setdefault(
            step.__name__, 1.0 if step == self.tick else self.random.choice([0.1, 1.0, 1.0, 1.0])
        )

    def local(self) -> int:
        return self.now - self.slow // 1000

    def deadline_from(self, sent: int) -> int:
        return sent

    def steps(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = [self.tick] * 8 + [self.take_over, self.declare, self.declare]
        if self.append is None:
            found.append(self.send_append)
        elif not self.landed:
            found.append(self.land)
        else:
            found.append(self.hear_append)
        if self.heartbeat is None:
            found.append(self.beat)
        elif self.answer is None:
            found += [self.grant, self.lose]
        else:
            found += [self.hear, self.hear, self.lose]
        return found

    def tick(self) -> None:
        self.now += TICK
        self.slow += TICK * self.skew

    def send_append(self) -> None:
        if self.knows[0]:
            self.append, self.landed = self.now, False

    def land(self) -> None:
        if self.leader == 0:
            self.landed, self.last_entry = True, self.now
        else:
            self.append, self.knows[0] = None, False

    def hear_append(self) -> None:
        assert self.append is not None
        self.controllers[0].appended(self.append, self.now)
        self.append = None

    def take_over(self) -> None:
        if self.leader == 0 and self.random.random() < 0.2:
            self.leader, self.knows[1] = 1, True
            self.controllers[1].took_over(self.last_entry, 0)
            self.controllers[1].appended(self.now, self.now)
        elif self.leader == 1:
            self.controllers[1].appended(self.now, self.now)

    def beat(self) -> None:
        self.heartbeat = self.local()

    def grant(self) -> None:
        who = self.random.choice([index for index in (0, 1) if self.knows[index]] or [1])
        if self.knows[who] and not (who == 1 and self.dead):
            self.answer = self.controllers[who].grant(BROKER, self.now, own=False)

    def lose(self) -> None:
        self.heartbeat = self.answer = None

    def hear(self) -> None:
        assert self.heartbeat is not None and self.answer is not None
        self.broker.granted(self.deadline_from(self.heartbeat), Grant(self.answer, 0))
        self.heartbeat = self.answer = None

    def declare(self) -> None:
        """The fact lands at once, or it does not: the old controller's only while it is the log's."""
        who = self.random.choice([0, 1])
        if self.knows[who] and self.controllers[who].expired([BROKER], self.now) and who == self.leader:
            self.dead = self.dead or self.random.random() < 0.5

    def run(self, length: int) -> bool:
        """Whether the promise held all the way."""
        for _ in range(length):
            step = self.random.choice(self.steps())
            if self.random.random() < self.weight(step):
                step()
            if self.dead and self.broker.stands(self.local()):
                return False
        return True


def holds(world: type[World], seeds: int, **parts: type) -> bool:
    return all(world(seed, **parts).run(250) for seed in range(seeds))


def test_nobody_is_declared_dead_before_its_own_deadline() -> None:
    assert holds(World, 2_000)


class DeadlineFromReply(World):
    def deadline_from(self, sent: int) -> int:
        return self.local()


class LeaseFromReply(Sessions):
    def appended(self, sent_ms: int, now: int) -> None:
        super().appended(now, now)


class GrantsWithoutLease(Sessions):
    def grant(self, incarnation: int, now: int, *, own: bool) -> int | None:
        self.granted[incarnation] = now
        return None if incarnation in self.ending else self.session_ms


class RenewsTheEnding(Sessions):
    def grant(self, incarnation: int, now: int, *, own: bool) -> int | None:
        return self.session_ms if self.may_grant(now) else None


class WaitsOneSession(Sessions):
    def expires(self, incarnation: int) -> int:
        granted = self.granted.get(incarnation)
        return with_margin(self.session_ms) + (self.before if granted is None else granted)


class WaitsForNobody(Sessions):
    def expires(self, incarnation: int) -> int:
        granted = self.granted.get(incarnation)
        return 0 if granted is None else granted + with_margin(self.session_ms)


class NoMargin(Sessions):
    def expires(self, incarnation: int) -> int:
        heard = max(self.able_since, self.granted.get(incarnation, 0))
        return max(self.before + self.lease_ms + self.session_ms, heard + self.session_ms)


@pytest.mark.parametrize(
    ("world", "parts"),
    [
        (DeadlineFromReply, {}),
        (World, {"sessions": LeaseFromReply}),
        (World, {"sessions": GrantsWithoutLease}),
        (World, {"sessions": RenewsTheEnding}),
        (World, {"sessions": WaitsOneSession}),
        (World, {"sessions": WaitsForNobody}),
        (World, {"sessions": NoMargin}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(part.__name__ for part in value.values()) or "-",
)
def test_every_planted_mistake_is_caught(world: type[World], parts: dict[str, type]) -> None:
    assert not holds(world, 3_000, **parts)
