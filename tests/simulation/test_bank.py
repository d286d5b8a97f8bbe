"""Money is moved between accounts by transactions under every fault, and none is made or lost; worlds notice when some
is, and so does the checker by itself.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.simulation.bankers import ACCOUNT_PARTS, REQUEST_PARTS, Transfer
from tests.simulation.checker import Final, Loss, check
from tests.simulation.cluster import Options, World
from tests.simulation.history import Event
from tests.simulation.plants import TRANSACTION_PLANTS

WORLDS = 16
SEEDS = 40


def test_what_all_accounts_hold_together_stays_the_same() -> None:
    seen: Counter[str] = Counter()
    for seed in range(WORLDS):
        result = World(seed, Options(bank=True)).run()
        assert not result.findings, (seed, result.findings)
        seen.update(result.counters)
    assert seen["bank.end.ok"] > 15 * WORLDS and seen["audit.ok"] > 30 * WORLDS
    assert seen["bank.fenced"] > WORLDS / 2 and seen["audit.read"] == WORLDS * len(ACCOUNT_PARTS)


@pytest.mark.parametrize("name", TRANSACTION_PLANTS)
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    caught = TRANSACTION_PLANTS[name].caught_by(SEEDS)
    assert caught is not None, f"{name} survives {SEEDS} seeds"
    with capsys.disabled():
        print(f"\n{name}: caught by seed {caught[0]}: {caught[1]}", end="")


class Day:
    """A day at the bank, event by event. Request 100 + n is at offset n of the first partition of requests."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.committed = 0
        self.read: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(ACCOUNT_PARTS))}
        self.ends: dict[int, int] = {}

    def record(self, kind: str, **fields: Any) -> None:
        self.events.append(Event(len(self.events) * 1_000_000, kind, fields))

    def session(self, number: int, epoch: int) -> None:
        self.record("bank.init.ok", client=f"c{number}", id="b", session=number, producer=(7, epoch))

    def begin(self, txn: int, *requests: int, session: int = 1) -> tuple[int, ...]:
        """From account 0 to account 1: the entries are 10, 11 for transaction 1, and so on."""
        transfers = tuple(
            Transfer(100 + request, 0, 10 * txn + 2 * at, 1, 10 * txn + 2 * at + 1)
            for at, request in enumerate(requests)
        )
        self.record("bank.begin", client=f"c{session}", id="b", session=session, txn=txn, transfers=transfers)
        return tuple(entry for one in transfers for entry in (one.debit, one.credit))

    def write(self, txn: int, kind: str, session: int = 1) -> None:
        where = {"topic": "accounts", "partition": 0}
        self.record(f"bank.write.{kind}", client=f"c{session}", id="b", session=session, txn=txn, **where)

    def end(self, txn: int, kind: str = "ok", *, commit: bool = True, session: int = 1) -> None:
        fields = {"client": f"c{session}", "id": "b", "session": session, "txn": txn, "commit": commit}
        self.record("bank.end.invoke", **fields)
        if kind:
            self.record(f"bank.end.{kind}", **fields)

    def audit(self, offset: int, *records: tuple[int, int], stable: int = 9, node: int = 1, partition: int = 0) -> None:
        part = {"topic": "accounts", "partition": partition}
        poll = len(self.events)
        self.record("audit.invoke", client="a", poll=poll, node=node, positions=(("accounts", partition, offset),))
        self.record(
            "audit.ok", client="a", poll=poll, node=node, **part, offset=offset, records=records, last_stable=stable,
            high_watermark=9,
        )  # fmt: skip

    def close(self, *losses: Loss) -> set[str]:
        """The kinds of findings."""
        for number, (topic, partition) in enumerate(ACCOUNT_PARTS):
            records = tuple(self.read[number])
            position = max((offset + 1 for offset, _ in records), default=0)
            where = {"topic": topic, "partition": partition, "start": 0, "position": position}
            self.record("audit.read", **where, end=self.ends.get(number, position), records=records)
        for topic, partition in REQUEST_PARTS:
            requests = tuple((offset, 100 + offset) for offset in range(4)) if not partition else ()
            where = {"topic": topic, "partition": partition, "start": 0, "end": len(requests)}
            self.record("final.read", **where, position=len(requests), records=requests)
        self.record("bank.offsets", group="bank", offsets=((*REQUEST_PARTS[0], self.committed),))
        found = {finding.anomaly for finding in check(self.events, Final(losses=losses))}
        return found - {"never-sent"}  # nobody sent these requests


def good_day() -> Day:
    """Two requests fulfilled, an attempt at a third one aborted."""
    day = Day()
    day.session(1, 0)
    for txn, requests in ((1, [0]), (2, [1])):
        day.begin(txn, *requests)
        day.write(txn, "invoke")
        day.write(txn, "ok")
        day.end(txn)
    day.begin(3, 2)
    day.end(3, commit=False)
    day.read[0], day.read[1] = [(0, 10), (2, 20)], [(0, 11), (2, 21)]
    day.committed = 2
    return day


def test_a_good_day_is_good() -> None:
    day = good_day()
    day.audit(0, (0, 10), (2, 20))
    assert day.close() == set()


def test_transfers_are_whole() -> None:
    torn, lost, aborted = good_day(), good_day(), good_day()
    torn.read[1].pop()
    assert torn.close() == {"torn-transfer", "total-changed"}
    lost.read[0].pop(), lost.read[1].pop()
    assert lost.close() == {"lost-transfer", "lost-request"}
    aborted.read[0].append((4, 30)), aborted.read[1].append((4, 31))
    assert aborted.close() == {"aborted-transfer", "offset-behind"}


def test_a_transaction_of_unknown_outcome_is_there_or_not() -> None:
    for there in (True, False):
        day = good_day()
        entries = day.begin(4, 2)
        day.end(4, "unknown")
        if there:
            day.read[0].append((4, entries[0])), day.read[1].append((4, entries[1]))
        day.committed += there
        assert day.close() == set()


def test_a_request_is_fulfilled_once() -> None:
    twice, ahead = good_day(), good_day()
    entries = twice.begin(4, 1)
    twice.end(4)
    twice.read[0].append((4, entries[0])), twice.read[1].append((4, entries[1]))
    assert twice.close() == {"transferred-twice"}
    ahead.committed = 3
    assert ahead.close() == {"lost-request"}
    repeated = good_day()
    repeated.read[0].append((5, 20))
    assert repeated.close() == {"entry-twice"}


def test_auditors_see_only_what_is_decided_and_all_of_it() -> None:
    early, gone, beyond, gap, backwards = (good_day() for _ in range(5))
    entries = early.begin(4, 2)
    early.audit(0, (0, 10), (2, 20), (4, entries[0]))
    early.end(4)
    early.read[0].append((4, entries[0])), early.read[1].append((4, entries[1]))
    early.committed = 3
    assert early.close() == {"dirty-read"}
    gone.audit(0, (0, 10), (2, 20), (4, 30))
    assert gone.close() == {"dirty-read"}
    beyond.audit(0, (0, 10), (3, 20))
    assert beyond.close() == {"audit-beyond"}
    gap.audit(0, (2, 20))
    assert gap.close() == {"skipped-audit"}
    backwards.audit(0, (0, 10), (2, 20))
    backwards.audit(2, (2, 20))
    assert backwards.close() == {"audit-backwards"}


def test_the_last_stable_offset_goes_forward_and_every_transaction_ends() -> None:
    back, high, other, hangs = (good_day() for _ in range(4))
    back.audit(0, stable=5), back.audit(0, stable=4)
    assert back.close() == {"last-stable-backwards"}
    high.audit(0, stable=10)
    assert high.close() == {"last-stable-too-high"}
    other.audit(0, stable=5), other.audit(0, stable=4, node=2)
    assert other.close() == set()
    hangs.ends[0] = 7
    assert hangs.close() == {"hanging-transaction"}


def test_who_was_fenced_neither_writes_nor_commits() -> None:
    wrote, ended, before, refused = (good_day() for _ in range(4))
    wrote.begin(4, 2)
    wrote.session(2, 1)
    wrote.write(4, "invoke"), wrote.write(4, "ok")
    assert wrote.close() == {"zombie-banker"}
    ended.begin(4)
    ended.session(2, 1)
    ended.end(4)
    assert ended.close() == {"zombie-banker"}
    before.begin(4, 2)
    before.write(4, "invoke")
    before.session(2, 1)
    before.write(4, "ok")
    assert before.close() == set()
    refused.begin(4, 2)
    refused.session(2, 1)
    refused.write(4, "invoke"), refused.end(4, "unknown")
    assert refused.close() == set()


def test_an_epoch_is_one_sessions_alone() -> None:
    day = good_day()
    day.session(2, 0)
    assert day.close(Loss("__transaction_state", 1, 2, 1 << 32)) == {"epoch-twice"}


def test_behind_a_loss_any_other_producer_id_fences() -> None:
    day = good_day()
    day.record("bank.init.ok", client="c2", id="b", session=2, producer=(6, 0))
    day.begin(4, 2, session=2)
    day.write(4, "invoke", session=2), day.write(4, "ok", session=2)
    assert day.close() == set()
    day.begin(5, 3)
    day.write(5, "invoke"), day.write(5, "ok")
    assert "zombie-banker" in {finding.anomaly for finding in check(day.events, Final())}


def test_a_declared_loss_tears_transactions() -> None:
    day = good_day()
    day.read[1].pop()
    assert day.close(Loss("accounts", 1, 2, 1 << 32)) == set()
