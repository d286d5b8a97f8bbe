import math

from hypothesis import example, given
from hypothesis import strategies as st

from controller.load import FORGET_BYTES, RESCALE_HALF_LIVES, LoadMeter
from storage.seal import Range

HALF = 60_000


def ranges(**lengths: int) -> list[Range]:
    return [Range(int(name[1:]), 0, 0, 1, 0, length, -1, 1, 1) for name, length in lengths.items()]


def test_a_steady_load_is_read_as_it_is_from_the_beginning() -> None:
    meter = LoadMeter(HALF, 5_000)
    for second in range(1, 400):
        now = 5_000 + 1_000 * second
        meter.add(ranges(l1=10_000, l2=250), now)
        if second >= 60:
            assert abs(meter.rate(1, now) / 10_000 - 1) < 0.02
            assert abs(meter.rate(2, now) / 250 - 1) < 0.02
    assert meter.rate(3, 405_000) == 0


def test_it_says_nothing_before_it_has_seen_a_half_life() -> None:
    meter = LoadMeter(HALF, 1_000)
    assert meter.scale(1_000) == 0
    assert not meter.knows_enough(60_999)
    assert meter.knows_enough(61_000)


def test_silence_halves_it() -> None:
    meter = LoadMeter(HALF, 0)
    for second in range(1, 3_600):
        meter.add(ranges(l1=10_000), 1_000 * second)
    full = meter.rate(1, 3_600_000)
    assert abs(meter.rate(1, 3_600_000 + HALF) / full - 0.5) < 0.01
    assert meter.rate(1, 3_600_000 + 5_000 * HALF) < 1e-200, "no overflow, however long the silence"


@given(st.lists(st.tuples(st.integers(1, 100 * HALF), st.integers(1, 3), st.integers(1, 1 << 40)), max_size=60))
@example([(1_979_949, 1, 186), (1_860_051, 2, 1)])
def test_scaling_down_changes_no_reading(steps: list[tuple[int, int, int]]) -> None:
    meter, now = LoadMeter(HALF, 0), 0
    exact: dict[int, float] = {}
    for pause, log_id, length in steps:
        now += pause
        exact = {one: value * 0.5 ** (pause / HALF) for one, value in exact.items()}
        exact[log_id] = exact.get(log_id, 0.0) + length
        meter.add(ranges(**{f"l{log_id}": length}), now)
        assert all(value < 2.0 ** (RESCALE_HALF_LIVES + 60) for value in map(meter.weight, exact))
    unit = 1000 * math.log(2) / HALF / (1 - 0.5 ** (now / HALF)) if now else 0.0
    for log_id, value in exact.items():
        forgotten = 2 * FORGET_BYTES  # what was silent for long may have been dropped, at each of the scalings
        assert abs(meter.rate(log_id, now) - value * unit) <= (1e-6 * value + forgotten) * unit
        assert meter.weight(log_id) * meter.scale(now) == meter.rate(log_id, now)


def test_logs_that_are_gone_are_forgotten() -> None:
    meter = LoadMeter(HALF, 0)
    meter.add(ranges(l1=1, l2=1, l3=1), 1_000)
    meter.keep({2: None})
    assert len(meter) == 1 and meter.rate(2, 1_000) > 0
    meter.add(ranges(l4=1), 1_000 + 200 * HALF)
    assert len(meter) == 1, "and so are those that were silent for very long"
