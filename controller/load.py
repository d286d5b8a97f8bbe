"""How many bytes/s each log takes: an exponential average over the ranges that commits name.

Every commit weighs twice as much as one a half-life earlier. Instead of ageing what is there, what comes is weighed
more (forward decay, Cormode et al. 2009): a commit costs one multiplication and one addition per log, a reading one
multiplication, and only when the weights grow large are all of them scaled down, once in `RESCALE_HALF_LIVES`.
"""

import math
from collections.abc import Container, Iterable

from storage.seal import Range

RESCALE_HALF_LIVES = 64
FORGET_BYTES = 1e-6
"""An aged weight below this is that of a log that was silent for long."""


class LoadMeter:
    """Bytes/s by log id. Times are milliseconds of one clock that never goes back.

    A meter begins knowing nothing; its averages are of the time since then, until that is much longer than a half-life.
    """

    def __init__(self, half_life_ms: int, now_ms: int) -> None:
        self.half_life_ms = half_life_ms
        self._began_ms = self._landmark_ms = now_ms
        self._weights: dict[int, float] = {}

    def knows_enough(self, now_ms: int) -> bool:
        """Whether a half-life was seen: before that one upload more or less says too much."""
        return now_ms - self._began_ms >= self.half_life_ms

    def add(self, ranges: Iterable[Range], now_ms: int) -> None:
        """These were committed."""
        if now_ms - self._landmark_ms >= RESCALE_HALF_LIVES * self.half_life_ms:
            self._rescale(now_ms)
        growth = self._growth(now_ms)
        weights = self._weights
        for item in ranges:
            weights[item.log_id] = weights.get(item.log_id, 0.0) + item.length * growth

    def rate(self, log_id: int, now_ms: int) -> float:
        """Bytes/s of one log."""
        return self._weights.get(log_id, 0.0) * self.scale(now_ms)

    def weight(self, log_id: int) -> float:
        """What `scale` makes bytes/s of: for many logs at one time."""
        return self._weights.get(log_id, 0.0)

    def scale(self, now_ms: int) -> float:
        """Bytes/s per unit of weight at this time."""
        seen = 1.0 - math.exp2((self._began_ms - now_ms) / self.half_life_ms)
        if seen <= 0.0:
            return 0.0
        return 1000.0 * math.log(2) / self.half_life_ms / self._growth(now_ms) / seen

    def keep(self, log_ids: Container[int]) -> None:
        """Forgets all other logs."""
        for log_id in [log_id for log_id in self._weights if log_id not in log_ids]:
            del self._weights[log_id]

    def __len__(self) -> int:
        return len(self._weights)

    def _growth(self, now_ms: int) -> float:
        # The exponent is bounded: nothing is added that far from the landmark, and readings only shrink.
        return math.exp2(min(1000.0, (now_ms - self._landmark_ms) / self.half_life_ms))

    def _rescale(self, now_ms: int) -> None:
        factor = 1.0 / self._growth(now_ms)
        aged = {log_id: weight * factor for log_id, weight in self._weights.items()}
        self._weights = {log_id: weight for log_id, weight in aged.items() if weight >= FORGET_BYTES}
        self._landmark_ms = now_ms
