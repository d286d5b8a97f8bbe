"""The checker of the bank: it is silent about good books, and each fault planted into them is named."""

from collections.abc import Callable

import pytest

from tests.chaos.bank import Books, Entry, Order, entries_of, judge


def good() -> Books:
    """Three transfers by two committed attempts, one aborted and one of which nobody knows how it ended."""
    books = Books(orders={n: Order(n, n, n + 1, 10 + n) for n in range(4)})
    for line in ("begin a [0, 1]", "committed a", "begin b [2]", "aborted b", "begin c [2]", "chatter", "begin d [3]"):
        books.note(line)
    books.committed.add("c")
    offset = 0
    for attempt, orders in (("a", [0, 1]), ("c", [2]), ("d", [3])):
        for number in orders:
            for entry in entries_of(attempt, books.orders[number]):
                books.ledger.append((entry.account % 2, offset, entry))
                books.seen_before[entry.account % 2, offset] = entry
                offset += 1
    return books


def test_good_books() -> None:
    assert judge(good()) == []


def test_records_of_the_ledger_and_of_orders_are_read_as_written() -> None:
    order = Order(1, 2, 3, 4)
    assert Order.decode(order.encode()) == order
    entry = Entry("a-1", 1, 2, -4)
    assert Entry.decode(entry.encode()) == entry


def drop(count: int) -> Callable[[Books], None]:
    def act(books: Books) -> None:
        books.seen_before.clear()
        del books.ledger[:count]

    return act


def add_aborted(books: Books) -> None:
    for entry in entries_of("b", books.orders[2]):
        books.ledger.append((0, 100 + entry.account, entry))


def drop_attempt_d(books: Books) -> None:
    books.seen_before.clear()
    books.ledger = [row for row in books.ledger if row[2].attempt != "d"]


def repeat(books: Books) -> None:
    books.ledger += [(5, offset, entry) for _, offset, entry in books.ledger if entry.attempt == "c"]


def twice(books: Books) -> None:
    books.note("begin e [3]")
    books.ledger += [(5, entry.account, entry) for entry in entries_of("e", books.orders[3])]


def stranger(books: Books) -> None:
    books.ledger += [(5, 0, Entry("x", 0, 1, 0))]


def other_amount(books: Books) -> None:
    partition, offset, entry = books.ledger[0]
    books.ledger[0] = (partition, offset, entry._replace(amount=entry.amount - 1))


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (drop(1), {"torn", "total"}),
        (drop(4), {"lost", "order-lost"}),
        (drop_attempt_d, {"order-lost"}),
        (add_aborted, {"aborted-seen", "order-doubled"}),
        (repeat, {"torn"}),
        (twice, {"order-doubled"}),
        (stranger, {"unknown", "order-doubled"}),
        (other_amount, {"torn", "total", "taken-back"}),
    ],
)
def test_planted_faults(plant: Callable[[Books], None], kinds: set[str]) -> None:
    books = good()
    plant(books)
    assert {finding.partition(":")[0] for finding in judge(books)} == kinds
