"""A clock that the test moves."""


class ManualClock:
    """`storage.clock.Clock` with two readings that only change when told."""

    def __init__(self, now_ms: int = 1_700_000_000_000, boottime_ms: int = 1_000_000) -> None:
        self.wall = now_ms
        self.boot = boottime_ms

    def now_ms(self) -> int:
        return self.wall

    def boottime_ms(self) -> int:
        return self.boot

    def advance(self, ms: int) -> None:
        self.wall += ms
        self.boot += ms
