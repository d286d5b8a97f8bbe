import pytest

from controller.objects import ObjectTable


def test_references_are_counted_and_the_last_one_dooms() -> None:
    table = ObjectTable()
    first, second = table.commit("a", 10, 2, 5), table.commit("b", 20, 1, 6)
    assert (first, second, table.next_number) == (0, 1, 2)
    table.release([first, second])
    assert table.doomed == {"b": 20} and list(table.named) == [0] and table.numbers == {"a": 0}
    table.release([first])
    assert table.doomed == {"b": 20, "a": 10} and not table.named
    table.deleted(["b", "unknown"])
    assert table.doomed == {"a": 10}


def test_without_a_reference_an_object_is_doomed_at_once() -> None:
    table = ObjectTable()
    table.commit("a", 10, 0, 5)
    assert table.doomed == {"a": 10} and not table.named
    for key in ("a",):
        with pytest.raises(AssertionError):
            table.commit(key, 1, 1, 5)
