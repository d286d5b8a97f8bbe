"""The controller's side of sessions: whom it may grant, and when silence is the end. Pure; times are boottime ms.

It grants only while `now < send time of its last successful append + lease`, looked at after the heartbeat arrived, and
never renews a session that it decided to end. It ends a session by silence only when the deadline has certainly passed
on the broker's own clock, however slow: a new controller also waits for what the old one may have granted unseen.
Silence counts only while this controller could have answered: after an outage of the store everybody gets a full
session to be heard again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

MARGIN_PERCENT = 10
MARGIN_MS = 250


def with_margin(wait_ms: int) -> int:
    """A wait, made longer for clocks that run at other rates."""
    return wait_ms + wait_ms * MARGIN_PERCENT // 100 + MARGIN_MS


@dataclass(slots=True)
class Sessions:
    """Grants of one controller since it took over.

    `lease_until`: it may grant before that; `able_since`: could be asked without a break since then. `granted`: last
    grant (or first sight) per incarnation. `before`: when the old controller's last entry was first seen, and its
    incarnation, whose own broker is bound to its lease.
    """

    session_ms: int
    lease_ms: int
    lease_until: int = 0
    able_since: int = 0
    granted: dict[int, int] = field(default_factory=dict)
    ending: set[int] = field(default_factory=set)
    before: int = 0
    before_incarnation: int = 0

    def took_over(self, last_entry_seen_ms: int, old_controller: int) -> None:
        """This process became controller; nothing was granted by it yet."""
        self.granted.clear()
        self.ending.clear()
        self.before, self.before_incarnation = last_entry_seen_ms, old_controller

    def appended(self, sent_ms: int, now: int) -> None:
        """An append that was sent at `sent_ms` succeeded; its answer came just now."""
        if now >= self.lease_until:
            self.able_since = now
        self.lease_until = max(self.lease_until, sent_ms + self.lease_ms)

    def found(self, now: int) -> None:
        """The controller's own broker registered, or somebody asked it before: from here on others know where to ask.

        Whoever lives does so several times in half a session; no safety hangs on this.
        """
        self.able_since = max(self.able_since, now - self.session_ms // 2)

    def may_grant(self, now: int) -> bool:
        """Whether the lease stands."""
        return now < self.lease_until

    def seen(self, incarnation: int, now: int) -> None:
        """A registration became a fact: its silence counts from here."""
        self.granted.setdefault(incarnation, now)

    def forget(self, incarnation: int) -> None:
        """The session is over."""
        self.granted.pop(incarnation, None)
        self.ending.discard(incarnation)

    def grant(self, incarnation: int, now: int, *, own: bool) -> int | None:
        """How long the session stands from now on, in ms; None if it must not be renewed.

        `own`: the broker in the controller's process, whose session never outlives the lease.
        """
        if not self.may_grant(now) or incarnation in self.ending:
            return None
        self.granted[incarnation] = now
        return min(self.session_ms, self.lease_until - now) if own else self.session_ms

    def expires(self, incarnation: int) -> int:
        """When silence since the last grant is certainly the end."""
        granted = self.granted.get(incarnation)
        if granted is None and incarnation == self.before_incarnation:
            return self.before + with_margin(self.lease_ms)
        heard = max(self.able_since, granted or 0)
        return max(self.before + with_margin(self.lease_ms + self.session_ms), heard + with_margin(self.session_ms))

    def quiet(self, incarnations: Iterable[int], now: int) -> frozenset[int]:
        """Who should have been heard from again: heartbeats come three to a session."""
        overdue = now - self.session_ms // 2
        return frozenset(one for one in incarnations if max(self.able_since, self.granted.get(one, 0)) < overdue)

    def expired(self, alive: Iterable[int], now: int) -> list[int]:
        """Sessions to end now, those included that should have ended before. From here on they are not renewed."""
        if not self.may_grant(now):
            return []
        found = [one for one in alive if one in self.ending or now >= self.expires(one)]
        self.ending.update(found)
        return found
