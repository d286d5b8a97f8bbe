"""Whether transfers are all or nothing: what `bankers` did against what auditors saw. Pure.

`id` is a transactional id, `session`, `txn` and entries are numbers, unique in the history.

- `bank.init.invoke/ok {id, session}`: whoever has an older session of that id is fenced once it is answered. `producer`
  is the producer id and epoch; of `bank.end.ok` those that the session goes on with.
- `bank.begin {id, session, txn, start, end, transfers}`: the transaction fulfils the requests at [start, end) of the
  banker's partition, one `Transfer` each.
- `bank.write.invoke/ok {session, txn, topic, partition, entries}`, `bank.end.invoke {session, txn, commit}`,
  `bank.end.ok {txn, commit}`, `bank.end.unknown {txn}`: it may be committed, or not.
- `audit.invoke/ok` as `poll.invoke/ok`, with `read_committed`; `last_stable` is the last stable offset.
- `audit.read {topic, partition, start, end, position, records}`: what is committed when all is quiet; `end` is the high
  watermark then. `bank.offsets {offsets}`: which requests are fulfilled.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.bankers import ACCOUNT_PARTS, REQUEST_PARTS, Transfer
from tests.simulation.book import Book, Finding, Part, part_of
from tests.simulation.history import Event


@dataclass
class Transaction:
    """One attempt to fulfil some requests. `at`, `decided`: places in the history of its begin, and of the moment when
    its commit was asked for."""

    begin: Event
    at: int
    decided: int | None = None
    end: Event | None = None
    """Its outcome, if there is one."""

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        return tuple(self.begin.fields["transfers"])

    @property
    def committed(self) -> bool | None:
        """None: nobody knows."""
        if self.end is not None and self.end.kind == "bank.end.ok":
            return bool(self.end.fields["commit"])
        return False if self.decided is None else None

    def entries(self) -> Iterator[tuple[Part, int]]:
        """All that it was to write."""
        for one in self.transfers:
            yield ACCOUNT_PARTS[one.debtor], one.debit
            yield ACCOUNT_PARTS[one.creditor], one.credit


@dataclass
class Ledger:
    """A history of transfers, indexed."""

    transactions: dict[int, Transaction] = field(default_factory=dict)
    of: dict[int, Transaction] = field(default_factory=dict)
    """By entry."""
    reads: dict[Part, Event] = field(default_factory=dict)
    there: dict[Part, dict[int, int]] = field(default_factory=dict)
    """Of the final reads: entry -> offset."""
    twice: list[tuple[Part, int]] = field(default_factory=list)
    """Entries that are in a partition more than once."""


def _ledger(book: Book) -> Ledger:
    ledger = Ledger()
    for at, event in enumerate(book.events):
        fields = event.fields
        if event.kind == "bank.begin":
            made = ledger.transactions[fields["txn"]] = Transaction(event, at)
            ledger.of.update((entry, made) for _, entry in made.entries())
        elif event.kind == "bank.end.invoke":
            if fields["commit"]:
                ledger.transactions[fields["txn"]].decided = at
        elif event.kind in ("bank.end.ok", "bank.end.unknown"):
            ledger.transactions[fields["txn"]].end = event
        elif event.kind == "audit.read":
            part = part_of(event)
            ledger.reads[part] = event
            there = ledger.there[part] = {}
            for offset, entry in fields["records"]:
                if entry in there:
                    ledger.twice.append((part, entry))
                there[entry] = offset
    return ledger


def bank(book: Book) -> Iterator[Finding]:
    """Nothing is judged where nobody transferred anything."""
    ledger = _ledger(book)
    if not ledger.transactions:
        return
    yield from _fenced(book)
    yield from _epochs(book)
    yield from _audits(book, ledger)
    yield from _last_stable(book)
    if book.final.losses:
        return  # transactions of what was lost are torn, as the operator was told
    yield from _ends(ledger)
    yield from _transactions(ledger)
    yield from _requests(book, ledger)


def _fenced(book: Book) -> Iterator[Finding]:
    """Whoever was fenced before he asked neither writes nor commits. Of two sessions the one with the higher producer
    epoch fences the other; behind a declared loss, the one with another producer id."""
    newest: dict[str, Event] = {}
    began: dict[int, Event] = {}
    asked: dict[tuple[str, object], Event] = {}
    for event in book.events:
        fields = event.fields
        if event.kind == "bank.init.ok":
            began[fields["session"]] = event
            known = newest.setdefault(fields["id"], event)
            if _fences(fields["producer"], known.fields["producer"]):
                newest[fields["id"]] = event
        elif event.kind in ("bank.write.invoke", "bank.end.invoke"):
            fence = newest[fields["id"]]
            if fence is not began[fields["session"]] and (event.kind == "bank.write.invoke" or fields["commit"]):
                asked[event.kind.removesuffix(".invoke"), _which(event)] = fence
        elif event.kind in ("bank.write.ok", "bank.end.ok"):
            before = asked.pop((event.kind.removesuffix(".ok"), _which(event)), None)
            if before is not None:
                yield Finding(
                    "zombie-banker", f"{fields['client']} was fenced before it asked, and got it", (before, event)
                )


def _epochs(book: Book) -> Iterator[Finding]:
    """An epoch of a producer id belongs to one session: logs know nobody else by it."""
    told: dict[tuple[int, int], Event] = {}
    for event in book.events:
        if event.kind in ("bank.init.ok", "bank.end.ok") and "producer" in event.fields:
            before = told.setdefault(event.fields["producer"], event)
            if before.fields["session"] != event.fields["session"]:
                message = f"{event.fields['client']} was told to be {event.fields['producer']}, which another one is"
                yield Finding("epoch-twice", message, (before, event))


def _fences(producer: tuple[int, int], before: tuple[int, int]) -> bool:
    return producer[0] != before[0] or producer[1] > before[1]


def _which(event: Event) -> object:
    return event.fields["txn"], event.fields.get("topic"), event.fields.get("partition")


def _audits(book: Book, ledger: Ledger) -> Iterator[Finding]:
    """What auditors see was decided before they saw it, and is there in the end; and they go forward without a gap."""
    last: dict[tuple[str, Part], int] = {}
    for at, event in enumerate(book.events):
        if event.kind == "audit.out_of_range":
            yield Finding(
                "audit-out-of-range", f"{event.fields['client']} was told so, and nothing was deleted", (event,)
            )
        if event.kind == "assign":
            last[event.fields["client"], part_of(event)] = event.fields["offset"] - 1
        if event.kind != "audit.ok" or not event.fields["records"]:
            continue
        part, records = part_of(event), event.fields["records"]
        reader = event.fields["client"], part
        if records[0][0] <= last.get(reader, -1):
            yield Finding(
                "audit-backwards", f"{reader[0]} saw {records[0][0]} of {part} after {last[reader]}", (event,)
            )
        last[reader] = records[-1][0]
        seen = {entry for _, entry in records}
        for offset, entry in records:
            of = ledger.of.get(entry)
            if of is None:
                yield Finding("never-written", f"{entry} at offset {offset} of {part} is nobody's", (event,))
            elif of.decided is None or of.decided > at or of.committed is False:
                yield Finding(
                    "dirty-read", f"{entry} was read at {offset} of {part}, and was not committed", (of.begin, event)
                )
            elif part in ledger.there and ledger.there[part].get(entry) != offset and not book.final.losses:
                message = f"{entry} was read at {offset} of {part}, where it is not in the end"
                yield Finding("audit-beyond", message, (event, ledger.reads[part]))
        between = range(event.fields["offset"], records[-1][0])
        skipped = [one for one, offset in ledger.there.get(part, {}).items() if offset in between and one not in seen]
        if skipped and not book.final.losses:
            yield Finding(
                "skipped-audit", f"{reader[0]} did not see {skipped[0]} in {part}, which lies between", (event,)
            )


def _last_stable(book: Book) -> Iterator[Finding]:
    """What one broker tells of a partition only grows, and is at most the high watermark."""
    floors: dict[tuple[Part, int], int] = {}
    begun: dict[int, dict[Part, int]] = {}
    for event in book.events:
        fields = event.fields
        if event.kind == "audit.invoke":
            parts = [(topic, partition) for topic, partition, _ in fields["positions"]]
            begun[fields["poll"]] = {part: floors.get((part, fields["node"]), 0) for part in parts}
        elif event.kind == "audit.ok":
            part, stable = part_of(event), fields["last_stable"]
            # A marker that was declared lost leaves its transaction open again.
            if stable < begun[fields["poll"]][part] and not book.final.losses:
                yield Finding("last-stable-backwards", f"{part} was told to be stable to {stable} only", (event,))
            if stable > fields["high_watermark"]:
                yield Finding("last-stable-too-high", f"{part}: {stable} is above the high watermark", (event,))
            key = part, fields["node"]
            floors[key] = max(floors.get(key, 0), stable)


def _ends(ledger: Ledger) -> Iterator[Finding]:
    """Every transaction has an end, and so every partition can be read to its own."""
    for part in ACCOUNT_PARTS:
        read = ledger.reads.get(part)
        if read is None:
            yield Finding("not-auditable", f"{part} could not be read")
        elif read.fields["position"] < read.fields["end"]:
            message = f"{part} ends at {read.fields['end']}, and what follows {read.fields['position']} is undecided"
            yield Finding("hanging-transaction", message, (read,))
    for part, entry in ledger.twice:
        yield Finding("entry-twice", f"{entry} is in {part} twice", (ledger.reads[part],))


def _transactions(ledger: Ledger) -> Iterator[Finding]:
    """Committed: all of it is there. Aborted: nothing. Nobody knows: one of the two."""
    for number, one in ledger.transactions.items():
        entries = list(one.entries())
        if not entries or not all(part in ledger.there for part, _ in entries):
            continue
        missing = [entry for part, entry in entries if entry not in ledger.there[part]]
        events = (one.begin,) if one.end is None else (one.begin, one.end)
        if one.committed is False and len(missing) < len(entries):
            yield Finding(
                "aborted-transfer", f"transaction {number} was not committed, and some of it is there", events
            )
        elif one.committed and len(missing) == len(entries):
            yield Finding("lost-transfer", f"transaction {number} was committed, and is not there", events)
        elif missing and len(missing) < len(entries):
            yield Finding("torn-transfer", f"of transaction {number} {missing} are not there", events)


def _requests(book: Book, ledger: Ledger) -> Iterator[Finding]:
    """What is fulfilled according to the committed offsets is so exactly once, and nothing else is: what all accounts
    hold together stays the same."""
    fulfilled: dict[int, list[int]] = defaultdict(list)
    total = 0
    for number, one in ledger.transactions.items():
        for transfer in one.transfers:
            debited = transfer.debit in ledger.there.get(ACCOUNT_PARTS[transfer.debtor], ())
            credited = transfer.credit in ledger.there.get(ACCOUNT_PARTS[transfer.creditor], ())
            total += credited - debited
            if debited or credited:
                fulfilled[transfer.request].append(number)
    if total:
        yield Finding("total-changed", f"all accounts together hold {total} more than they got")
    committed = {
        (topic, partition): offset
        for event in book.events
        if event.kind == "bank.offsets"
        for topic, partition, offset in event.fields["offsets"]
    }
    for part in REQUEST_PARTS:
        for offset, request in book.reads[part].fields["records"] if part in book.reads else ():
            times = len(fulfilled[request])
            if times > 1:
                message = f"request {request} was fulfilled by the transactions {fulfilled[request]}"
                yield Finding("transferred-twice", message, (book.reads[part],))
            elif part in committed and times != (offset < committed[part]):
                message = (
                    f"request {request} at {offset} of {part}, of which {committed[part]} are done, was {times} times"
                )
                yield Finding("lost-request" if not times else "offset-behind", message, (book.reads[part],))
