"""The real clock. Nothing else in the product reads one."""

import time


class SystemClock:
    """Wall time and CLOCK_BOOTTIME (which counts suspended time), in whole milliseconds."""

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return time.time_ns() // 1_000_000  # noqa: TID251

    def boottime_ms(self) -> int:
        """Milliseconds since boot, suspended time included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def ticks_us(self) -> int:
        """Microseconds of a clock that never goes back: for latencies only, the cheapest reading there is."""
        return time.perf_counter_ns() // 1000
