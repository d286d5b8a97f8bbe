"""The clock that storage code is given. The real one is the broker's; tests and simulations bring their own."""

from typing import Protocol


class Clock(Protocol):
    """Two readings of time, both whole milliseconds."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds. May jump, also backwards: only for what people and Kafka clients see."""
        ...

    def boottime_ms(self) -> int:
        """Milliseconds since boot, suspended time included. Never goes back: for leases, sessions and timeouts."""
        ...
