"""Offsets in transactions: in force when a marker says so, whatever is rewritten and whoever loads the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.coordination import runtime
from broker.groups.model import (
    ZERO_UUID,
    Change,
    Commit,
    DeleteGroups,
    DeleteOffsets,
    GroupConfig,
    Offset,
    OffsetCommitted,
    OffsetRemoved,
    OffsetToCommit,
    PendingOffset,
    TxnCommit,
)
from broker.groups.shard import Shard
from broker.transactions.verification import Part
from protocol.errors import ErrorCode, KafkaError
from tests.broker.groups.conftest import Bench
from tests.support.memory_log import MemoryLog

NONE = ErrorCode.NONE


def value(offset: int) -> Offset:
    return Offset(offset, -1, "", 0)


class Rewritten(RuleBasedStateMachine):
    """A shard, the log it would have, and what happens to both; a simple truth beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = Shard(GroupConfig())
        self.entries: list[Change | tuple[int, bool]] = []
        """Changes, and (producer id, committed) for markers."""
        self.start = 0
        self.number = 0
        self.committed: dict[tuple[str, int], tuple[int, int]] = {}
        """(group, partition) -> (when, offset)."""
        self.pending: dict[int, dict[tuple[str, int], tuple[int, int]]] = {}

    def write(self, change: Change) -> None:
        self.entries.append(change)
        self.shard.replay(change)

    places = st.tuples(st.sampled_from(["g", "h"]), st.integers(0, 1))
    producers = st.integers(1, 3)

    @rule(place=places)
    def commit(self, place: tuple[str, int]) -> None:
        self.number += 1
        self.write(OffsetCommitted(place[0], "t", place[1], value(self.number)))
        self.committed[place] = (self.number, self.number)

    @rule(place=places, producer=producers)
    def commit_in_a_transaction(self, place: tuple[str, int], producer: int) -> None:
        self.number += 1
        self.write(PendingOffset(producer, 0, place[0], "t", place[1], value(self.number)))
        self.pending.setdefault(producer, {})[place] = (self.number, self.number)

    @rule(place=places)
    def remove(self, place: tuple[str, int]) -> None:
        self.write(OffsetRemoved(place[0], "t", place[1]))
        self.committed.pop(place, None)
        for places in self.pending.values():
            places.pop(place, None)

    @rule(producer=producers, committed=st.booleans())
    def end(self, producer: int, committed: bool) -> None:
        self.number += 1
        self.entries.append((producer, committed))
        self.shard.end_transaction(producer, committed=committed)
        for place, (when, offset) in self.pending.pop(producer, {}).items():
            if committed and when > self.committed.get(place, (0, 0))[0]:
                self.committed[place] = (when, offset)

    @rule()
    def rewrite(self) -> None:
        begin = len(self.entries)
        open_from = self.first_open()
        for group in ("g", "h"):
            self.entries += self.shard.live(self.shard.keys(group))
        self.start = max(self.start, min(begin, open_from))

    def first_open(self) -> int:
        """The log's first record of a transaction without a marker."""
        opened: dict[int, int] = {}
        for position, entry in enumerate(self.entries):
            match entry:
                case PendingOffset(producer):
                    opened.setdefault(producer, position)
                case (int(producer), bool()):
                    opened.pop(producer, None)
        return min(opened.values(), default=len(self.entries))

    @rule()
    def another_coordinator(self) -> None:
        self.shard = Shard(GroupConfig())
        for entry in self.entries[self.start :]:
            match entry:
                case (int(producer), bool(committed)):
                    self.shard.end_transaction(producer, committed=committed)
                case _:
                    self.shard.replay(entry)  # type: ignore[arg-type]

    @invariant()
    def holds(self) -> None:
        for group in ("g", "h"):
            for partition in (0, 1):
                place = (group, partition)
                answer = self.shard.fetch(group, [("t", ZERO_UUID, partition)], require_stable=True)
                offset = answer.offsets[0][2]
                assert (None if offset is None else offset.offset) == self.committed.get(place, (0, None))[1]
                unstable = any(place in places for places in self.pending.values())
                assert answer.unstable == ({("t", partition)} if unstable else set())


Rewritten.TestCase.settings = hypothesis_settings(max_examples=80, stateful_step_count=25, deadline=None)
TestRewritten = Rewritten.TestCase


class Verifier:
    """Says yes, or what the test wants."""

    def __init__(self) -> None:
        self.refusal: ErrorCode | None = None
        self.asked: list[tuple[str, int, int, tuple[Part, ...], bool]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def verify(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[Part],
        *,
        implicit: bool,
    ) -> dict[Part, ErrorCode]:
        self.asked.append((transactional_id, producer_id, producer_epoch, tuple(partitions), implicit))
        await self.free.wait()
        return {} if self.refusal is None else dict.fromkeys(partitions, self.refusal)


class Transacting:
    """A bench with a partition, and producers that commit offsets there."""

    def __init__(self, bench: Bench, log: MemoryLog) -> None:
        self.bench = bench
        self.log = log
        self.verifier = Verifier()

    async def commit(
        self, producer: int, offset: int, *, epoch: int = 0, group: str = "g", partition: int = 0, **who: Any
    ) -> ErrorCode:
        asked = (OffsetToCommit("t", ZERO_UUID, partition, offset, -1, None),)
        command = Commit(
            0, group, who.get("generation", -1), who.get("member", ""), None, -1, asked, ErrorCode.GROUP_ID_NOT_FOUND
        )
        answer = await self.bench.groups.txn_commit(
            TxnCommit(producer, epoch, command), "tx", self.verifier, implicit=True
        )
        return answer.errors[0]

    async def plain(self, offset: int, group: str = "g") -> None:
        asked = (OffsetToCommit("t", ZERO_UUID, 0, offset, -1, None),)
        command = Commit(0, group, -1, "", None, -1, asked, ErrorCode.GROUP_ID_NOT_FOUND)
        assert (await self.bench.groups.commit(command)).errors == (NONE,)

    def mark(self, producer: int, commit: bool, epoch: int = 0) -> None:
        self.bench.groups._before_marker(self.log)  # type: ignore[arg-type]
        self.log.append_marker(producer, epoch, commit=commit)
        self.bench.groups._marked(self.log, producer, commit)  # type: ignore[arg-type]

    async def offset(self, group: str = "g") -> int | str | None:
        answer = await self.bench.groups.fetch(group, [("t", ZERO_UUID, 0)], require_stable=True)
        assert answer.error is NONE
        found = answer.offsets[0][2]
        return "unstable" if answer.unstable else None if found is None else found.offset


async def transacting(bench: Bench, **options: Any) -> Transacting:
    return Transacting(bench, await bench.open(MemoryLog(**options)))


@pytest.mark.parametrize("commit", [True, False])
async def test_a_marker_decides(bench: Bench, commit: bool) -> None:
    world = await transacting(bench)
    await world.plain(1)
    assert await world.commit(7, 5) is NONE
    assert await world.commit(7, 6) is NONE
    assert len(world.verifier.asked) == 1, "the second commit is in a transaction that is open there"
    assert await world.offset() == "unstable"
    world.mark(7, commit)
    assert await world.offset() == (6 if commit else 1)


async def test_answers_wait_for_the_marker_to_be_validated(bench: Bench) -> None:
    world = await transacting(bench, validate_soon=False)
    committing = asyncio.ensure_future(world.commit(7, 5))  # noqa: TID251
    while not world.log.batches:
        await asyncio.sleep(0)
    world.log.validate()
    assert await committing is NONE
    world.mark(7, True)
    waiting = bench.groups.fetch("g", [("t", ZERO_UUID, 0)], require_stable=True)
    other = bench.groups.fetch("other", None, require_stable=True)
    await asyncio.sleep(0)
    assert not waiting.done() and other.done()
    world.log.validate()
    offset = (await waiting).offsets[0][2]
    assert offset is not None and offset.offset == 5


async def test_what_the_coordinator_refuses(bench: Bench) -> None:
    world = await transacting(bench)
    world.verifier.refusal = ErrorCode.INVALID_PRODUCER_ID_MAPPING
    assert await world.commit(7, 5) is ErrorCode.INVALID_PRODUCER_ID_MAPPING
    assert await world.offset() is None and not world.log.batches


async def test_a_marker_before_the_coordinators_word_wins(bench: Bench) -> None:
    world = await transacting(bench)
    world.verifier.free.clear()
    late = asyncio.ensure_future(world.commit(7, 5))  # noqa: TID251
    await asyncio.sleep(0)
    world.mark(7, False)
    world.verifier.free.set()
    assert await late is ErrorCode.INVALID_TXN_STATE
    assert not world.log.producers.in_transaction(7, 0)


async def test_a_fenced_producer(bench: Bench) -> None:
    world = await transacting(bench)
    assert await world.commit(7, 5, epoch=3) is NONE
    world.mark(7, True, epoch=4)
    assert await world.commit(7, 6, epoch=3) is ErrorCode.INVALID_PRODUCER_EPOCH
    assert await world.offset() == 5


async def test_who_commits(bench: Bench) -> None:
    world = await transacting(bench)
    assert await world.commit(7, 5, generation=1, member="m") is ErrorCode.ILLEGAL_GENERATION, "no such group"
    await world.plain(1)
    assert await world.commit(7, 5, generation=1, member="m") is ErrorCode.UNKNOWN_MEMBER_ID
    assert await world.commit(7, 5) is NONE


async def test_a_deleted_group_takes_its_pending_offsets(bench: Bench) -> None:
    world = await transacting(bench)
    await world.commit(7, 5)
    shard = bench.groups.partitions[0].shard
    assert shard.expire("g", 10**15).changes == [], "there may be offsets in a moment"
    outcome = shard.delete_groups(DeleteGroups(1, ("g",)))
    assert OffsetRemoved("g", "t", 0) in outcome.changes
    assert await bench.groups.delete_groups(["g"]) == {"g": NONE}
    world.mark(7, True)
    assert await world.offset() is None


async def test_a_deleted_offset_does_not_come_back_with_a_transaction(bench: Bench) -> None:
    world = await transacting(bench)
    await world.commit(7, 5)
    assert (await bench.groups.delete_offsets(DeleteOffsets(0, "g", (("t", 0), ("t", 1))))).errors == (NONE, NONE)
    world.mark(7, True)
    assert await world.offset() is None


async def test_offsets_of_a_deleted_topic_do_not_come_back_with_a_transaction(bench: Bench) -> None:
    """A new topic of that name begins without any."""
    world = await transacting(bench)
    await world.commit(7, 5)
    bench.controller.state.remove("t")
    bench.groups.partitions[0].forget_deleted_topics()
    await asyncio.sleep(0.01)
    world.mark(7, True)
    bench.controller.state.add("t", 4)
    assert await world.offset() is None


async def test_nothing_is_rewritten_that_cannot_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that is open from below a declared loss takes nothing more: writing it down again would fail, and
    begin again, for ever."""
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 1000)
    monkeypatch.setattr(runtime, "RETRY_MS", 1)
    world = await transacting(bench)
    await world.commit(7, 5)
    bench.groups.close(0)
    world.log = await bench.open(world.log.cut(len(world.log.batches), lost=True))
    for offset in range(100):
        await world.plain(offset, group="busy")
    await asyncio.sleep(0.02)
    assert len(world.log.batches) == 101 and not bench.groups.partitions[0].rewriting
    assert await world.commit(7, 6) is ErrorCode.TRANSACTION_ABORTABLE
    world.mark(7, False)
    await world.plain(7, group="busy")
    while not bench.groups.partitions[0].rewrites:
        await asyncio.sleep(0.001)
    assert await world.offset() is None


async def test_a_rewrite_that_cannot_succeed_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 1000)
    monkeypatch.setattr(runtime, "RETRY_MS", 1)
    world = await transacting(bench)
    await world.plain(0, group="busy")
    shard = bench.groups.partitions[0]
    shard.bytes_since_rewrite = 10**6
    world.log.refuse = ErrorCode.INVALID_PRODUCER_EPOCH
    shard._rewrite_if_due()
    while shard.rewriting:
        await asyncio.sleep(0.001)
    assert len(world.log.batches) == 1 and not shard.rewrites
    world.log.refuse = None
    await world.plain(1, group="busy")
    assert not shard.rewriting, "not before there is as much again"


async def test_markers_wait_until_the_log_is_read(bench: Bench) -> None:
    bench.groups.open(0, MemoryLog())
    with pytest.raises(KafkaError) as caught:
        bench.groups._before_marker(bench.groups.partitions[0].log)  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.NOT_LEADER_OR_FOLLOWER, "Kafka's tool gives up on others"
    bench.groups.close(0)
    with pytest.raises(KafkaError) as caught:
        bench.groups._before_marker(MemoryLog())  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.NOT_LEADER_OR_FOLLOWER


@pytest.mark.parametrize("commit", [True, False])
async def test_rewrites_keep_open_transactions(bench: Bench, monkeypatch: pytest.MonkeyPatch, commit: bool) -> None:
    """The log is rewritten many times over; a new leader finds the transaction, and the marker still decides."""
    monkeypatch.setattr(runtime, "REWRITE_BYTES_MIN", 1000)
    world = await transacting(bench)
    await world.plain(1)
    await world.plain(1, group="overtaken")
    await world.commit(7, 5)
    await world.commit(7, 5, group="overtaken")
    await world.plain(2, group="overtaken")
    for offset in range(200):
        await world.plain(offset, group="busy")
    await asyncio.sleep(0.01)
    assert bench.groups.partitions[0].rewrites > 3
    assert world.log.start <= world.log.lso < world.log.end
    for _ in range(2):
        later = world.log.cut(len(world.log.batches))
        bench.groups.close(0)
        world.log = await bench.open(later)
        assert await world.offset() == "unstable"
        for offset in range(100):
            await world.plain(offset, group="busy")
    world.mark(7, commit)
    assert await world.offset() == (5 if commit else 1)
    assert await world.offset("overtaken") == 2
    for offset in range(200):
        await world.plain(offset, group="busy")
    await asyncio.sleep(0.01)
    assert world.log.start > world.log.end - 200, "nothing keeps the start"
    bench.groups.close(0)
    world.log = await bench.open(world.log.cut(len(world.log.batches)))
    assert await world.offset() == (5 if commit else 1)
