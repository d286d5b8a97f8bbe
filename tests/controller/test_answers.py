from controller.answers import ANSWER_BYTES_MAX, ANSWERS_MAX, AnswerTable


def test_the_first_answer_stays() -> None:
    table = AnswerTable()
    table.remember(b"a", [1, (2, None)])
    table.remember(b"a", [9])
    assert table.get(b"a") == (1, (2, None))
    assert table.get(b"b") is None


def test_bounded_by_number_oldest_first() -> None:
    table = AnswerTable()
    for number in range(ANSWERS_MAX + 3):
        table.remember(b"%d" % number, [number])
    assert len(table.answers) == ANSWERS_MAX
    assert table.get(b"2") is None and table.get(b"3") == (3,)


def test_bounded_by_bytes_but_the_newest_stays() -> None:
    table = AnswerTable()
    table.remember(b"a", [b"x" * 100])
    table.remember(b"b", [b"x" * 2 * ANSWER_BYTES_MAX])
    assert table.get(b"a") is None and table.get(b"b") is not None
    table.remember(b"c", [1])
    assert list(table.answers) == [b"c"] and table.size == len(table.answers[b"c"])


def test_rows_round_trip() -> None:
    table, copy = AnswerTable(), AnswerTable()
    table.remember(b"a", [1])
    table.remember(b"b", [2])
    for row in table.rows():
        copy.load(tuple(row))
    assert copy == table
