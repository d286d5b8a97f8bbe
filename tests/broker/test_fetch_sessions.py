"""Fetch sessions without a broker: Kafka's rules, and a model of what an incremental answer must mention."""

from hypothesis import given
from hypothesis import strategies as st

from broker.fetch_sessions import EVICTION_MS, FetchSessions, changed, served
from protocol.errors import ErrorCode
from protocol.fast import FetchPart, FetchResult


def part(partition: int, offset: int = 0, topic: str | bytes = "t") -> FetchPart:
    return (topic, partition, offset, 1000, -1, -1, -1)


def sessions(slots: int = 10) -> FetchSessions:
    numbers = iter(range(1, 10_000))
    return FetchSessions(slots, lambda: next(numbers))


def open_session(all_of_them: FetchSessions, *partitions: int, now_ms: int = 0, by_id: bool = False) -> int:
    turn = all_of_them.begin(0, 0, [part(p) for p in partitions], [], by_id=by_id, now_ms=now_ms)
    assert turn.opens and turn.session is None
    return all_of_them.open(turn, by_id=by_id, now_ms=now_ms)


def test_epochs_ids_and_topic_ids() -> None:
    kept = sessions()
    number = open_session(kept, 0, 1)
    assert number == 1

    def begin(session_id: int, epoch: int, by_id: bool = False) -> int:
        return kept.begin(session_id, epoch, [], [], by_id=by_id, now_ms=1).error_code

    assert begin(99, 1) == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
    assert begin(number, 2) == ErrorCode.INVALID_FETCH_SESSION_EPOCH
    assert begin(number, 1, by_id=True) == ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR
    assert begin(number, 1) == 0
    assert begin(number, 1) == ErrorCode.INVALID_FETCH_SESSION_EPOCH
    assert begin(number, 2) == 0
    assert begin(number, -1) == 0, "closed"
    assert begin(number, 3) == ErrorCode.FETCH_SESSION_ID_NOT_FOUND
    assert (len(kept), kept.parts_held) == (0, 0)


def test_the_epoch_wraps_to_one() -> None:
    kept = sessions()
    number = open_session(kept, 0)
    session = kept.begin(number, 1, [], [], by_id=False, now_ms=0).session
    assert session is not None
    session.epoch = 2**31 - 1
    assert kept.begin(number, 2**31 - 1, [], [], by_id=False, now_ms=0).error_code == 0
    assert session.epoch == 1


def test_a_full_request_replaces_the_session() -> None:
    kept = sessions()
    number = open_session(kept, 0, 1)
    turn = kept.begin(number, 0, [part(5)], [], by_id=False, now_ms=0)
    assert turn.opens and [p.partition for p in turn.parts] == [5]
    assert kept.begin(number, 1, [], [], by_id=False, now_ms=0).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


def test_partitions_are_added_changed_and_forgotten() -> None:
    kept = sessions()
    number = open_session(kept, 0, 1, 2)
    turn = kept.begin(number, 1, [part(1, 50), part(3)], [("t", 0), ("t", 9)], by_id=False, now_ms=0)
    assert [(p.partition, p.offset) for p in turn.parts] == [(1, 50), (2, 0), (3, 0)]
    assert kept.parts_held == 3
    turn = kept.begin(number, 2, [], [("t", 1), ("t", 2), ("t", 3)], by_id=False, now_ms=0)
    assert turn.parts == [] and turn.session is None and len(kept) == 0


def test_what_came_and_was_forgotten_with_all_the_rest_is_served_once_more() -> None:
    kept = sessions()
    number = open_session(kept, 0, 1)
    turn = kept.begin(number, 1, [part(1, 50)], [("t", 0), ("t", 1)], by_id=False, now_ms=0)
    assert [(p.partition, p.offset) for p in turn.parts] == [(1, 50)]
    assert turn.session is None and not turn.incremental and not turn.opens and len(kept) == 0


def test_a_session_may_begin_empty() -> None:
    kept = sessions()
    number = open_session(kept)
    assert (number, len(kept), kept.parts_held) == (1, 1, 0)
    turn = kept.begin(number, 1, [part(4)], [], by_id=False, now_ms=0)
    assert [p.partition for p in turn.parts] == [4] and turn.session is not None
    number = open_session(kept)
    assert kept.begin(number, 1, [], [], by_id=False, now_ms=0).session is None, "empty still: closed"
    assert len(kept) == 1


def test_what_gave_data_goes_to_the_end() -> None:
    kept = sessions()
    number = open_session(kept, 0, 1, 2)
    turn = kept.begin(number, 1, [], [], by_id=False, now_ms=0)
    assert turn.session is not None
    served(turn.session, turn.parts[0])
    turn = kept.begin(number, 2, [], [], by_id=False, now_ms=0)
    assert [p.partition for p in turn.parts] == [1, 2, 0]


def test_eviction_of_the_unused_then_of_the_smaller_and_old() -> None:
    kept = sessions(slots=2)
    first, second = open_session(kept, 0, now_ms=0), open_session(kept, *range(3), now_ms=10)
    assert open_session(kept, *range(9), now_ms=20) == 0, "nobody is old enough"
    kept.begin(first, 1, [], [], by_id=False, now_ms=EVICTION_MS)
    # `second` was not used for long enough: it goes although it is larger than `first`.
    third = open_session(kept, 0, now_ms=EVICTION_MS + 11)
    assert third and kept.begin(second, 1, [], [], by_id=False, now_ms=0).error_code
    # Of those in use the smaller one that is old enough goes, for a larger one only.
    kept.begin(first, 2, [part(1)], [], by_id=False, now_ms=EVICTION_MS + 12)
    assert open_session(kept, 0, now_ms=EVICTION_MS + 13) == 0
    assert open_session(kept, 0, 1, 2, now_ms=EVICTION_MS + 13)
    assert kept.evictions == 2
    assert kept.begin(first, 3, [], [], by_id=False, now_ms=0).error_code == ErrorCode.FETCH_SESSION_ID_NOT_FOUND


def test_no_slots_and_the_final_epoch_mean_no_session() -> None:
    assert open_session(sessions(slots=0), 0) == 0
    kept = sessions()
    assert kept.open(kept.begin(0, -1, [part(0)], [], by_id=False, now_ms=0), by_id=False, now_ms=0) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 100), st.sampled_from([0, 0, 0, 6])), max_size=12
    )
)
def test_an_incremental_answer_mentions_exactly_what_is_new(steps: list[tuple[int, int, int, int]]) -> None:
    kept = sessions()
    number = open_session(kept, 0)
    session = kept.begin(number, 1, [], [], by_id=False, now_ms=0).session
    assert session is not None
    cached = session.parts["t", 0]
    told: tuple[int, int] | None = None
    for high_watermark, start, size, error in steps:
        result = FetchResult("t", 0, error, high_watermark, high_watermark, start, size=0 if error else size)
        news = bool(error) or size > 0 or (high_watermark, start) != told
        assert changed(cached, result) == news
        told = None if error else (high_watermark, start)
