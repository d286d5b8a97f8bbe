"""What quotas are measured with, as Kafka measures (`org.apache.kafka.common.metrics.stats.Rate` and `TokenBucket`),
and whose quota counts for whom (KIP-55, KIP-546). Pure: time is an argument, milliseconds of one clock that never goes
back.
"""

from collections.abc import Mapping
from typing import NamedTuple

from controller.access import Entity

USER, CLIENT_ID, IP = "user", "client-id", "ip"

LONG_MAX = 2**63 - 1


class Rate:
    """A sum per second over the last `samples` windows of `window_ms`, the present one included.

    Before so many windows went by the time is counted as if all but one had: a burst after silence is a rate over the
    whole of it. Unlike in Kafka what is too large for the windows, which would be forgotten before it is paid for, is
    not put into them: nothing more must happen until it is.
    """

    __slots__ = ("_at", "_debt", "_debt_ms", "_samples", "_starts", "_sums", "_window_ms")

    def __init__(self, samples: int, window_ms: int, now_ms: int) -> None:
        self._samples = samples
        self._window_ms = window_ms
        self._starts = [now_ms]
        self._sums = [0.0]
        self._at = 0
        self._debt = 0.0
        self._debt_ms = now_ms

    def record(self, value: float, now_ms: int) -> None:
        """So much happened now."""
        if now_ms - self._starts[self._at] >= self._window_ms:
            self._at = (self._at + 1) % self._samples
            if self._at == len(self._starts):
                self._starts.append(now_ms)
                self._sums.append(0.0)
            else:
                self._starts[self._at], self._sums[self._at] = now_ms, 0.0
        self._sums[self._at] += value

    def most(self, bound: float) -> int:
        """The largest amount that the windows are there for, at least one."""
        return max(1, _whole(bound * (self._samples - 1) * self._window_ms / 1000))

    def room(self, bound: float, now_ms: int) -> int:
        """What may happen now: what is left of the bound, but at least what one window brings, which is worth to wait
        for.
        """
        total, elapsed = self._total(now_ms)
        left = max(bound * elapsed / 1000 - total, bound * self._window_ms / 1000)
        return max(1, min(_whole(left), self.most(bound)))

    def record_large(self, value: float, bound: float, now_ms: int) -> None:
        """So much happened now, and is more than `most`."""
        self._debt = self._owed(bound, now_ms) + value

    def _owed(self, bound: float, now_ms: int) -> float:
        """What of large amounts is not paid for."""
        self._debt = max(0.0, self._debt - (now_ms - self._debt_ms) * bound / 1000)
        self._debt_ms = now_ms
        return self._debt

    def _total(self, now_ms: int) -> tuple[float, int]:
        """(sum of what is not too old, milliseconds that it is divided by)."""
        oldest, total = now_ms, 0.0
        for start, value in zip(self._starts, self._sums):
            if now_ms - start < self._samples * self._window_ms:
                total += value
                oldest = min(oldest, start)
        elapsed = now_ms - oldest
        full = elapsed // self._window_ms
        least = self._samples - 1
        if full < least:
            elapsed += (least - full) * self._window_ms
        return total, max(elapsed, self._window_ms)

    def per_second(self, now_ms: int) -> float:
        """The rate."""
        total, elapsed = self._total(now_ms)
        return total * 1000 / elapsed

    def throttle_ms(self, bound: float, now_ms: int) -> int:
        """How long nothing must happen until the rate is at the bound again; 0: it is not above."""
        total, elapsed = self._total(now_ms)
        rate = total * 1000 / elapsed
        over_ms = _whole((rate - bound) / bound * elapsed) if rate > bound else 0
        return max(over_ms, _whole(self._owed(bound, now_ms) * 1000 / bound))


class TokenBucket:
    """Tokens come at a rate until the bucket has those of `seconds`; taking may leave it below zero (KIP-599)."""

    __slots__ = ("_last_ms", "_seconds", "_tokens")

    def __init__(self, seconds: float, bound: float, now_ms: int) -> None:
        self._seconds = seconds
        self._tokens = seconds * bound
        self._last_ms = now_ms

    def _refill(self, bound: float, now_ms: int) -> None:
        gained = (now_ms - self._last_ms) / 1000 * bound
        self._tokens = min(self._seconds * bound, self._tokens + gained)
        self._last_ms = now_ms

    def take(self, count: float, bound: float, now_ms: int) -> None:
        """Take tokens, whether they are there or not."""
        self._refill(bound, now_ms)
        self._tokens -= count

    def throttle_ms(self, bound: float, now_ms: int) -> int:
        """How long until the bucket is not below zero; 0: it is not."""
        self._refill(bound, now_ms)
        return _whole(-self._tokens / bound * 1000) if self._tokens < 0 else 0


def _whole(value: float) -> int:
    """As Java rounds: a bound may be so small that no number says how long it takes, or so large that none says what it
    allows.
    """
    return round(value) if value < LONG_MAX else LONG_MAX


class Found(NamedTuple):
    """A quota that counts for somebody; `sharers` names the meter, which others may share."""

    bound: float
    sharers: tuple[str | None, str | None]


def find(quotas: Mapping[Entity, Mapping[str, float]], key: str, user: str, client_id: str) -> Found | None:
    """The quota `key` that counts for a client: of user and client id before one of the user before one of the client
    id, and at each step the name before the default. None: there is none.

    Who comes under a quota of users shares it with all clients of that user, and so on.
    """
    for named_user in (user, None):
        for named_client in (client_id, None):
            bound = quotas.get(((CLIENT_ID, named_client), (USER, named_user)), {}).get(key)
            if bound is not None:
                return Found(bound, (user, client_id))
        bound = quotas.get(((USER, named_user),), {}).get(key)
        if bound is not None:
            return Found(bound, (user, None))
    for named_client in (client_id, None):
        bound = quotas.get(((CLIENT_ID, named_client),), {}).get(key)
        if bound is not None:
            return Found(bound, (None, client_id))
    return None
