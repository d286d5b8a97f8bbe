"""The meters of quotas on a virtual clock, and whose quota counts for whom."""

from hypothesis import example, given
from hypothesis import strategies as st

from broker.quota_meters import Found, Rate, TokenBucket, find

SAMPLES, WINDOW_MS = 11, 1000


def test_a_rate_as_kafka_counts_it() -> None:
    rate = Rate(SAMPLES, WINDOW_MS, 0)
    rate.record(1000, 0)
    assert rate.per_second(0) == 100, "before all windows went by, they count but one as if they had"
    assert rate.per_second(500) == 1000 / 10.5
    assert rate.throttle_ms(50, 0) == 10_000
    rate.record(1000, 10_000)
    assert rate.per_second(10_000) == 200
    assert rate.per_second(11_000) == 100, "what is older than all windows is gone"
    assert rate.throttle_ms(100, 11_000) == 0


@given(
    bound=st.floats(10, 1e9),
    requests=st.lists(st.tuples(st.floats(0.001, 5), st.integers(0, 3000)), min_size=1, max_size=200),
)
def test_who_waits_as_told_stays_within_the_bound(bound: float, requests: list[tuple[float, int]]) -> None:
    rate, now_ms, taken = Rate(SAMPLES, WINDOW_MS, 0), 0, []
    for share, pause_ms in requests:
        now_ms += pause_ms
        rate.record(share * bound, now_ms)
        taken.append((now_ms, share * bound))
        throttle_ms = rate.throttle_ms(bound, now_ms)
        assert throttle_ms >= 0
        now_ms += throttle_ms
    span_ms = max(now_ms, 1)
    largest = max(amount for _, amount in taken)
    # What comes in while nothing is throttled is at most the bound over the windows, and one request more.
    assert sum(amount for _, amount in taken) <= bound * (span_ms / 1000 + SAMPLES) + largest


def test_what_is_too_large_for_the_windows_is_paid_for() -> None:
    rate = Rate(SAMPLES, WINDOW_MS, 0)
    assert (rate.most(100), rate.room(100, 0), rate.most(1e-9)) == (1000, 1000, 1)
    assert rate.most(1e308) == rate.room(1e308, 0) > 2**62
    rate.record_large(5000, 100, 0)
    assert rate.throttle_ms(100, 0) == 50_000
    rate.record_large(2000, 100, 20_000)
    assert rate.throttle_ms(100, 20_000) == 50_000
    assert rate.throttle_ms(1000, 21_000) == 4000, "at the new rate, if the quota changes"
    assert rate.throttle_ms(1000, 25_000) == 0 == rate.throttle_ms(1000, 99_000)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 2500)), max_size=60))
def test_a_rate_is_a_plain_sum_over_the_windows_that_are_left(events: list[tuple[float, int]]) -> None:
    rate, now_ms, seen = Rate(SAMPLES, WINDOW_MS, 0), 0, []
    for amount, pause_ms in events:
        now_ms += pause_ms
        rate.record(amount, now_ms)
        seen.append((now_ms, amount))
    newest = sum(amount for at, amount in seen if now_ms - at < (SAMPLES - 1) * WINDOW_MS)
    everything = sum(amount for _, amount in seen)
    assert newest / (SAMPLES * WINDOW_MS / 1000) <= rate.per_second(now_ms) * 1.0001
    assert rate.per_second(now_ms) <= everything / ((SAMPLES - 1) * WINDOW_MS / 1000) * 1.0001


@given(
    bound=st.floats(0.1, 1000),
    takes=st.lists(st.tuples(st.integers(1, 500), st.integers(0, 20_000)), min_size=1, max_size=100),
)
def test_a_bucket_gives_what_it_holds_and_what_came_meanwhile(bound: float, takes: list[tuple[int, int]]) -> None:
    bucket, now_ms, taken, last = TokenBucket(11, bound, 0), 0, 0, 0
    for count, pause_ms in takes:
        now_ms += pause_ms
        if not bucket.throttle_ms(bound, now_ms):
            bucket.take(count, bound, now_ms)
            taken, last = taken + count, count
    assert taken - last <= 11 * bound + now_ms / 1000 * bound + 1e-6 * (1 + taken)
    wait_ms = bucket.throttle_ms(bound, now_ms)
    assert bucket.throttle_ms(bound, now_ms + wait_ms + 1) == 0


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
@example(5e-324)
@example(1e-310)
def test_the_smallest_bounds_are_bounds(bound: float) -> None:
    """Whoever sets one by mistake must be able to take it back: a request that cannot be counted would end him."""
    rate = Rate(SAMPLES, WINDOW_MS, 0)
    rate.record(100.0, 0)
    bucket = TokenBucket(11, bound, 0)
    bucket.take(100, bound, 0)
    assert rate.throttle_ms(bound, 0) > 0 and bucket.throttle_ms(bound, 0) > 0


def test_the_more_special_quota_counts() -> None:
    order = [
        (("client-id", "c"), ("user", "u")),
        (("client-id", None), ("user", "u")),
        (("user", "u"),),
        (("client-id", "c"), ("user", None)),
        (("client-id", None), ("user", None)),
        (("user", None),),
        (("client-id", "c"),),
        (("client-id", None),),
    ]
    sharers = [("u", "c"), ("u", "c"), ("u", None), ("u", "c"), ("u", "c"), ("u", None), (None, "c"), (None, "c")]
    quotas = {entity: {"k": float(place), "other": 1.0} for place, entity in enumerate(order, 1)}
    for place, entity in enumerate(order, 1):
        assert find(quotas, "k", "u", "c") == Found(place, sharers[place - 1])
        del quotas[entity]["k"]
    assert find(quotas, "k", "u", "c") is None
