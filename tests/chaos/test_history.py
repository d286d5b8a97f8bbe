"""The judge of a cluster's clients: a history in which all is well, and each thing that can go wrong in it."""

from collections.abc import Callable

import pytest

from tests.chaos.history import Ack, Commit, History, Read, Session, Value, buckets_of, judge, spread_of


def good() -> History:
    """Two producers, two partitions; a group whose partition 0 changes hands once, after an unanswered commit."""
    history = History(2)
    for partition in range(2):
        log = []
        for number in range(10):
            for producer in range(2):
                value = Value(producer, number)
                history.acks.append(Ack(partition, value, len(log)))
                log.append((len(log), value))
            history.sent[0, partition] = history.sent[1, partition] = 10
        history.log[partition] = log
        history.positions[partition] = 20
    first, second, other = 1, 2, 3
    history.sessions += [Session(first, 0, 1.0, 1.5, 0), Session(other, 1, 1.0, 1.5, 0)]
    history.reads += [Read(first, 0, offset, value) for offset, value in history.log[0][:12]]
    history.reads += [Read(other, 1, offset, value) for offset, value in history.log[1]]
    history.commits += [
        Commit(0, 5, 2.0, 2.1, True),
        Commit(0, 12, 3.0, 3.5, False),
        Commit(1, 20, 3.0, 3.1, True),
    ]
    history.sessions.append(Session(second, 0, 4.0, 4.5, 5))
    history.reads += [Read(second, 0, offset, value) for offset, value in history.log[0][5:]]
    history.commits.append(Commit(0, 20, 5.0, 5.1, True))
    return history


def test_a_good_history_has_no_fault() -> None:
    assert judge(good()) == []


def drop_record(history: History) -> None:
    del history.log[1][7]
    history.reads = [read for read in history.reads if (read.partition, read.offset) != (1, 7)]


def move_record(history: History) -> None:
    one, other = history.log[1][6], history.log[1][7]
    history.log[1][6:8] = [(6, other[1]), (7, one[1])]


def repeat_record(history: History) -> None:
    history.log[1].append((20, Value(1, 9)))


def reorder(history: History) -> None:
    log = history.log[1]
    log[0], log[2] = (0, log[2][1]), (2, log[0][1])


def invent(history: History) -> None:
    history.log[1].append((20, Value(0, 10)))


def shuffle_offsets(history: History) -> None:
    history.log[1].append((3, Value(0, 11)))


def show_something_else(history: History) -> None:
    read = history.reads[3]
    history.reads[3] = read._replace(value=Value(1, 99))


def show_what_was_taken_back(history: History) -> None:
    history.reads.append(Read(3, 1, 20, Value(1, 10)))


def skip(history: History) -> None:
    history.reads = [read for read in history.reads if (read.session, read.offset) != (3, 4)]


def resume_early(history: History) -> None:
    history.sessions[2] = history.sessions[2]._replace(first=4)


def resume_late(history: History) -> None:
    history.sessions[2] = history.sessions[2]._replace(first=13)


def resume_late_at_first(history: History) -> None:
    history.sessions[0] = history.sessions[0]._replace(first=1)


def leave_unread(history: History) -> None:
    history.reads = [read for read in history.reads if (read.partition, read.offset) != (0, 19)]


def forget_commit(history: History) -> None:
    history.positions[1] = 19


def forget_all_commits(history: History) -> None:
    del history.positions[0]


@pytest.mark.parametrize(
    ("plant", "word"),
    [
        (drop_record, "lost"),
        (move_record, "lost"),
        (repeat_record, "duplicate"),
        (reorder, "disorder"),
        (invent, "nobody sent"),
        (shuffle_offsets, "after 19"),
        (show_something_else, "two values"),
        (show_what_was_taken_back, "two values"),
        (skip, "gap"),
        (resume_early, "resumed too early"),
        (resume_late, "resumed too late"),
        (resume_late_at_first, "resumed too late"),
        (leave_unread, "unread"),
        (forget_commit, "commit lost"),
        (forget_all_commits, "commit lost"),
    ],
)
def test_a_planted_fault_is_found(plant: Callable[[History], None], word: str) -> None:
    history = good()
    plant(history)
    assert any(word in what for what in judge(history)), judge(history)


def test_values_come_back_as_they_were() -> None:
    assert Value.decode(Value(3, 12).encode(100)) == Value(3, 12)
    assert len(Value(3, 12).encode(100)) == 100


def test_times_are_told_as_quantiles_and_buckets() -> None:
    values = [0.01, 0.02, 0.3, 4.0]
    assert spread_of(values) == {"count": 4, "p50": 0.3, "p90": 4.0, "p99": 4.0, "max": 4.0}
    assert buckets_of(values) == {"0.05": 2, "0.5": 1, "5": 1}
    assert spread_of([]) == {"count": 0}
