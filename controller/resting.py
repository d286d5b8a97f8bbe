"""Logs whose last job came to nothing: they get no other for a while, longer each time. Most likely something of them
is damaged, or the store is away."""

from collections.abc import Iterable


class Resting:
    """Times are boottime, ms."""

    def __init__(self, first_ms: int, longest_ms: int) -> None:
        self._first_ms = first_ms
        self._longest_ms = longest_ms
        self._until: dict[int, int] = {}
        self._waits_ms: dict[int, int] = {}
        """How long each of them rested last."""

    def __contains__(self, log_id: int) -> bool:
        return log_id in self._until

    def begin(self, log_id: int, now_ms: int) -> None:
        """Its job came to nothing."""
        wait_ms = min(2 * self._waits_ms.get(log_id, self._first_ms // 2), self._longest_ms)
        self._waits_ms[log_id] = wait_ms
        self._until[log_id] = now_ms + wait_ms

    def forget(self, log_id: int) -> None:
        """Something was done: the next rest is the first one."""
        self._waits_ms.pop(log_id, None)

    def wake(self, now_ms: int) -> Iterable[int]:
        """The logs whose rest is over: they do not rest any more."""
        over = [log_id for log_id, until in self._until.items() if until <= now_ms]
        for log_id in over:
            del self._until[log_id]
        return over

    def clear(self) -> None:
        """Nobody rests."""
        self._until.clear()
        self._waits_ms.clear()
