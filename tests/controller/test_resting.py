from controller.resting import Resting


def test_rests_grow_until_something_is_done() -> None:
    resting = Resting(500, 3_000)
    now_ms = 10_000
    for wait_ms in (500, 1_000, 2_000, 3_000, 3_000):
        resting.begin(7, now_ms)
        assert 7 in resting and list(resting.wake(now_ms + wait_ms - 1)) == []
        now_ms += wait_ms
        assert list(resting.wake(now_ms)) == [7] and 7 not in resting
    resting.forget(7)
    resting.begin(7, now_ms)
    resting.begin(8, now_ms)
    assert list(resting.wake(now_ms + 500)) == [7, 8]
    resting.begin(7, now_ms)
    resting.clear()
    assert 7 not in resting
    resting.begin(7, now_ms)
    assert list(resting.wake(now_ms + 500)) == [7], "a new controller begins anew"
