"""Money that moves between accounts by transactions, and what a reader of committed records may see of it.

An order says from whom to whom and how much. A worker reads orders as a member of a group, and in one transaction
writes a debit and a credit for each, to the partitions of the two accounts, and the offsets of the orders. What it
wrote is known by the attempt, which no other transaction has. Balances may be negative: nothing is refused.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

ORDERS, LEDGER = "orders", "ledger"
GROUP = "bank"


class Order(NamedTuple):
    """Who pays whom."""

    number: int
    debtor: int
    creditor: int
    amount: int

    def encode(self) -> bytes:
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> Order:
        return cls(*json.loads(data))


class Entry(NamedTuple):
    """One half of a transfer, as it stands in the ledger."""

    attempt: str
    order: int
    account: int
    amount: int

    def encode(self) -> bytes:
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        return cls(*json.loads(data))


def entries_of(attempt: str, order: Order) -> tuple[Entry, Entry]:
    """Both halves."""
    return (
        Entry(attempt, order.number, order.debtor, -order.amount),
        Entry(attempt, order.number, order.creditor, order.amount),
    )


@dataclass
class Books:
    """What was asked for, what workers know, and the ledger as committed readers saw it."""

    orders: dict[int, Order] = field(default_factory=dict)
    begun: dict[str, list[int]] = field(default_factory=dict)
    """Attempt -> its orders."""
    committed: set[str] = field(default_factory=set)
    """Attempts whose commit was answered well."""
    aborted: set[str] = field(default_factory=set)
    """Attempts whose abort was."""
    ledger: list[tuple[int, int, Entry]] = field(default_factory=list)
    """(partition, offset, entry), read once at the end."""
    seen_before: dict[tuple[int, int], Entry] = field(default_factory=dict)
    """(partition, offset) -> what a reader saw there while things failed."""

    def note(self, line: str) -> None:
        """One line of a worker: `begin ATTEMPT [orders]`, `committed ATTEMPT`, `aborted ATTEMPT`, or chatter."""
        word, _, rest = line.strip().partition(" ")
        if word == "begin":
            attempt, _, orders = rest.partition(" ")
            self.begun[attempt] = json.loads(orders)
        elif word == "committed":
            self.committed.add(rest)
        elif word == "aborted":
            self.aborted.add(rest)


def judge(books: Books, most: int = 20) -> list[str]:
    """What must not be, the first `most` of each kind."""
    found: dict[str, list[str]] = defaultdict(list)
    for kind, text in _findings(books):
        found[kind].append(f"{kind}: {text}")
    return [text for texts in found.values() for text in texts[:most]]


def _findings(books: Books) -> Iterator[tuple[str, str]]:
    halves: dict[str, Counter[tuple[int, int, int]]] = defaultdict(Counter)
    for _, _, entry in books.ledger:
        halves[entry.attempt][entry.order, entry.account, entry.amount] += 1
    for attempt in halves:
        if attempt not in books.begun:
            yield "unknown", f"{attempt} is in the ledger, and nobody began it"
        if attempt in books.aborted:
            yield "aborted-seen", f"{attempt} was aborted, and is in the ledger"
    for attempt, orders in books.begun.items():
        wanted: Counter[tuple[int, int, int]] = Counter(
            (entry.order, entry.account, entry.amount)
            for number in orders
            for entry in entries_of(attempt, books.orders[number])
        )
        got = halves.get(attempt, Counter())
        if got and got != wanted:
            yield "torn", f"{attempt} wrote {sorted(wanted)}, committed readers see {sorted(got.elements())}"
        if attempt in books.committed and not got:
            yield "lost", f"{attempt} was committed, and is not in the ledger"
    done: dict[int, set[str]] = defaultdict(set)
    for attempt, counts in halves.items():
        for number, _, _ in counts:
            done[number].add(attempt)
    for number in books.orders:
        attempts = done.get(number, set())
        if not attempts:
            yield "order-lost", f"order {number} was never carried out"
        elif len(attempts) > 1:
            yield "order-doubled", f"order {number} was carried out by {sorted(attempts)}"
    total = sum(entry.amount for _, _, entry in books.ledger)
    if total:
        yield "total", f"{total} came from nowhere"
    now = {(partition, offset): entry for partition, offset, entry in books.ledger}
    for place, entry in books.seen_before.items():
        if now.get(place) != entry:
            yield "taken-back", f"{entry} was seen at {place}, where {now.get(place)} is now"
