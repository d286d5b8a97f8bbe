"""Decisions of the transaction coordinator, as Kafka 4.3's `TransactionCoordinator` takes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.transactions.model import (
    EPOCH_LAST,
    EPOCH_MAX,
    AddPartitions,
    Change,
    Ending,
    EndTxn,
    InitProducer,
    Outcome,
    ProducerAnswer,
    Reply,
    SendMarkers,
    State,
    Transaction,
    TransactionConfig,
    TransactionSaved,
    VerifyPartitions,
)
from broker.transactions.records import decode, encode
from broker.transactions.shard import NeedsProducerId, Shard
from protocol.errors import ErrorCode

T0 = ("orders", 0)
T1 = ("orders", 1)
NONE = ErrorCode.NONE


class World:
    """One shard: every outcome is encoded, decoded and applied, as a log would do it."""

    def __init__(self, version: int = 2, **config: int) -> None:
        self.level = version
        self.shard = Shard(TransactionConfig(**config), lambda: self.level)
        self.now_ms = 1_000_000
        self.next_id = 5000
        self.written: list[Change] = []
        self.hole: int | None = None
        """How many changes lie below what was declared lost."""
        self.markers: list[Ending] = []

    def take(self, outcome: Outcome) -> Any:
        for change in outcome.changes:
            read = decode(*encode(change))
            assert read is not None
            self.written.append(read)
        self.shard.apply(outcome)
        answer = None
        for effect in outcome.effects:
            match effect:
                case Reply(_, answer):
                    pass
                case SendMarkers(transactional_id):
                    ending = self.shard.ending(transactional_id)
                    assert ending is not None
                    self.markers.append(ending)
        return answer

    def init(self, producer_id: int = -1, epoch: int = -1, timeout_ms: int = 60_000, name: str = "t") -> ProducerAnswer:
        command = InitProducer(1, name, timeout_ms, producer_id, epoch)
        try:
            answer: ProducerAnswer = self.take(self.shard.init_producer(command, self.now_ms))
        except NeedsProducerId:
            answer = self.take(self.shard.init_producer(command, self.now_ms, self.new_id()))
        return answer

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def add(self, producer_id: int, epoch: int, *parts: tuple[str, int], client: int = 2, name: str = "t") -> ErrorCode:
        command = AddPartitions(1, name, producer_id, epoch, frozenset(parts or (T0,)), client)
        error: ErrorCode = self.take(self.shard.add_partitions(command, self.now_ms)).error
        return error

    def verify(self, producer_id: int, epoch: int, *parts: tuple[str, int]) -> list[ErrorCode]:
        answer = self.shard.verify_partitions(VerifyPartitions(1, "t", producer_id, epoch, frozenset(parts)))
        return [answer.of(part) for part in parts]

    def end(self, producer_id: int, epoch: int, commit: bool, client: int = 2, name: str = "t") -> ProducerAnswer:
        command = EndTxn(1, name, producer_id, epoch, commit, client)
        try:
            answer: ProducerAnswer = self.take(self.shard.end(command, self.now_ms))
        except NeedsProducerId:
            answer = self.take(self.shard.end(command, self.now_ms, self.new_id()))
        return answer

    def complete(self) -> None:
        for ending in self.markers:
            self.take(self.shard.complete(ending, self.now_ms))
        self.markers.clear()

    def expire_transactions(self) -> list[str]:
        due = self.shard.timed_out(self.now_ms)
        for name in due:
            try:
                self.take(self.shard.abort_timed_out(name, self.now_ms))
            except NeedsProducerId:
                self.take(self.shard.abort_timed_out(name, self.now_ms, self.new_id()))
        return due

    def restart(self) -> None:
        """Another coordinator loads what was written."""
        self.shard = Shard(self.shard.config, lambda: self.level)
        for number, change in enumerate(self.written):
            if number == self.hole:
                self.shard.replay_loss()
            self.shard.replay(change)
        if self.hole == len(self.written):
            self.shard.replay_loss()
        for name in list(self.shard.suspects):
            self.take(self.shard.fence_lost(name, self.now_ms))
        self.markers = [ending for name in self.shard.endings() if (ending := self.shard.ending(name)) is not None]

    def lose(self, count: int) -> None:
        """The last so many changes are declared lost, and another coordinator loads the rest."""
        del self.written[len(self.written) - count :]
        self.hole = len(self.written)
        self.restart()

    def state(self, name: str = "t") -> State:
        return self.shard.transactions[name].state

    def put(self, **values: Any) -> None:
        """A transactional id in a state that takes long to reach."""
        current = self.shard.transactions.get("t", Transaction(100, 0, 60_000))
        change = TransactionSaved("t", current._replace(**values), 1)
        read = decode(*encode(change))
        assert read is not None
        self.written.append(read)
        self.shard.replay(change)


def test_second_generation_bumps_the_epoch_with_every_transaction() -> None:
    world = World()
    assert world.init() == ProducerAnswer(NONE, 5001, 0)
    assert world.add(5001, 0, T0, T1) is NONE
    assert world.end(5001, 0, True) == ProducerAnswer(NONE, 5001, 1)
    assert world.markers == [Ending("t", 5001, 1, True, frozenset({T0, T1}), 2)]
    assert world.add(5001, 1) is ErrorCode.CONCURRENT_TRANSACTIONS
    assert world.end(5001, 0, True).error is ErrorCode.CONCURRENT_TRANSACTIONS
    assert world.init().error is ErrorCode.CONCURRENT_TRANSACTIONS
    world.complete()
    assert world.state() is State.COMPLETE_COMMIT
    assert world.end(5001, 0, True) == ProducerAnswer(NONE, 5001, 1), "repeated"
    assert world.end(5001, 0, False).error is ErrorCode.INVALID_TXN_STATE
    assert world.add(5001, 1, T1) is NONE
    assert world.end(5001, 1, False) == ProducerAnswer(NONE, 5001, 2)
    world.complete()
    assert world.state() is State.COMPLETE_ABORT
    assert world.end(5001, 1, False) == ProducerAnswer(NONE, 5001, 2), "repeated"
    assert world.add(5001, 1) is ErrorCode.PRODUCER_FENCED


@pytest.mark.parametrize(
    ("state", "commit", "epoch", "error", "bumped"),
    [
        (State.EMPTY, False, 6, ErrorCode.PRODUCER_FENCED, False),
        (State.EMPTY, False, 7, NONE, True),
        (State.EMPTY, True, 6, ErrorCode.PRODUCER_FENCED, False),
        (State.EMPTY, True, 7, ErrorCode.INVALID_TXN_STATE, False),
        (State.COMPLETE_ABORT, False, 6, NONE, False),
        (State.COMPLETE_ABORT, False, 7, NONE, True),
        (State.COMPLETE_ABORT, True, 6, ErrorCode.INVALID_TXN_STATE, False),
        (State.COMPLETE_ABORT, True, 7, ErrorCode.INVALID_TXN_STATE, False),
        (State.COMPLETE_COMMIT, False, 6, ErrorCode.INVALID_TXN_STATE, False),
        (State.COMPLETE_COMMIT, False, 7, NONE, True),
        (State.COMPLETE_COMMIT, True, 6, NONE, False),
        (State.COMPLETE_COMMIT, True, 7, ErrorCode.INVALID_TXN_STATE, False),
        (State.ONGOING, True, 6, ErrorCode.PRODUCER_FENCED, False),
        (State.ONGOING, True, 8, ErrorCode.PRODUCER_FENCED, False),
        (State.COMPLETE_COMMIT, True, 5, ErrorCode.PRODUCER_FENCED, False),
    ],
)
def test_end_without_an_ongoing_transaction(
    state: State, commit: bool, epoch: int, error: ErrorCode, bumped: bool
) -> None:
    """Kafka's table of retries: epoch 6 repeats the end of the transaction before, 7 is the current one."""
    world = World()
    world.put(state=state, producer_epoch=7, client_version=2)
    answer = world.end(100, epoch, commit)
    assert answer.error is error
    if error is NONE:
        assert answer == ProducerAnswer(NONE, 100, 8 if bumped else 7)
    if bumped:
        assert world.markers == [Ending("t", 100, 8, False, frozenset(), 2)], "no partition to tell"
        world.complete()
        assert world.state() is State.COMPLETE_ABORT


def test_second_generation_goes_on_with_another_id_when_epochs_are_used_up() -> None:
    world = World()
    world.put(state=State.ONGOING, producer_epoch=EPOCH_LAST, partitions=frozenset({T0}), started_ms=1)
    assert world.end(100, EPOCH_LAST, True) == ProducerAnswer(NONE, 5001, 0)
    assert world.markers == [Ending("t", 100, EPOCH_LAST + 1, True, frozenset({T0}), 2)]
    world.restart()
    assert len(world.markers) == 1
    world.complete()
    assert world.end(100, EPOCH_LAST, True) == ProducerAnswer(NONE, 5001, 0), "repeated, after a change of coordinator"
    world.restart()
    assert world.end(100, EPOCH_LAST, True) == ProducerAnswer(NONE, 5001, 0)
    assert world.add(100, EPOCH_LAST) is ErrorCode.INVALID_PRODUCER_ID_MAPPING
    assert world.add(5001, 0) is NONE
    assert world.end(100, EPOCH_LAST, True).error is ErrorCode.INVALID_PRODUCER_ID_MAPPING


def test_first_generation_keeps_the_epoch() -> None:
    world = World(version=1)
    assert world.init() == ProducerAnswer(NONE, 5001, 0)
    assert world.end(5001, 0, False, client=0).error is ErrorCode.INVALID_TXN_STATE, "nothing to abort"
    assert world.add(5001, 0, client=0) is NONE
    assert world.end(5001, 0, True, client=0) == ProducerAnswer(NONE)
    assert world.markers == [Ending("t", 5001, 0, True, frozenset({T0}), 0)]
    assert world.end(5001, 0, True, client=0).error is ErrorCode.CONCURRENT_TRANSACTIONS
    world.complete()
    assert world.end(5001, 0, True, client=0) == ProducerAnswer(NONE), "repeated"
    assert world.end(5001, 0, False, client=0).error is ErrorCode.INVALID_TXN_STATE
    assert world.end(5001, 1, True, client=0).error is ErrorCode.PRODUCER_FENCED
    assert world.end(4000, 0, True, client=0).error is ErrorCode.INVALID_PRODUCER_ID_MAPPING


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_new_producer_fences_the_old_one_and_aborts_its_transaction(level: int) -> None:
    world = World(version=level)
    world.init()
    world.add(5001, 0, client=level)
    assert world.init().error is ErrorCode.CONCURRENT_TRANSACTIONS
    assert world.markers == [Ending("t", 5001, 1, False, frozenset({T0}), level)]
    world.complete()
    assert world.init() == ProducerAnswer(NONE, 5001, 2)
    assert world.end(5001, 0, True, client=level).error is ErrorCode.PRODUCER_FENCED
    assert world.add(5001, 0, client=level) is ErrorCode.PRODUCER_FENCED


@pytest.mark.parametrize("level", [1, 2])
def test_fencing_at_the_last_epoch_gives_a_new_id(level: int) -> None:
    world = World(version=level)
    world.put(state=State.ONGOING, producer_epoch=EPOCH_LAST, partitions=frozenset({T0}), client_version=level)
    assert world.init().error is ErrorCode.CONCURRENT_TRANSACTIONS
    assert world.markers == [Ending("t", 100, EPOCH_LAST + 1, False, frozenset({T0}), level)]
    world.complete()
    answer = world.init()
    assert answer.error is NONE and answer.producer_id != 100
    assert world.end(100, EPOCH_LAST, True, client=level).error is ErrorCode.INVALID_PRODUCER_ID_MAPPING


def test_a_producer_that_goes_on_after_an_error() -> None:
    """KIP-360: it says who it was."""
    world = World()
    world.init()
    assert world.init(5001, 0) == ProducerAnswer(NONE, 5001, 1)
    assert world.init(5001, 0) == ProducerAnswer(NONE, 5001, 1), "repeated"
    assert world.init(5001, 1) == ProducerAnswer(NONE, 5001, 2)
    assert world.init(5001, 0).error is ErrorCode.PRODUCER_FENCED
    assert world.init(4000, 0).error is ErrorCode.PRODUCER_FENCED
    assert world.init() == ProducerAnswer(NONE, 5001, 3)
    assert world.init(5001, 2).error is ErrorCode.PRODUCER_FENCED, "a new producer began, this is no repeat"
    assert world.init(7, 7, name="new") == ProducerAnswer(NONE, 5002, 0), "its id expired: a new one"


def test_a_producer_whose_epochs_are_used_up() -> None:
    world = World()
    world.put(producer_epoch=EPOCH_LAST)
    assert world.init(100, EPOCH_LAST) == ProducerAnswer(NONE, 5001, 0)
    assert world.init(100, EPOCH_LAST) == ProducerAnswer(NONE, 5001, 0), "repeated"
    assert world.init() == ProducerAnswer(NONE, 5001, 1)
    assert world.init(100, EPOCH_LAST).error is ErrorCode.PRODUCER_FENCED


def test_timeouts_are_bounded() -> None:
    world = World(max_timeout_ms=1000)
    for timeout_ms in (0, -1, 1001):
        assert world.init(timeout_ms=timeout_ms).error is ErrorCode.INVALID_TRANSACTION_TIMEOUT
    assert world.init(timeout_ms=1000).error is NONE


def test_transactions_over_their_time_are_aborted() -> None:
    world = World()
    world.init(timeout_ms=1000)
    world.now_ms += 5000
    assert world.expire_transactions() == [], "none began"
    world.add(5001, 0)
    world.now_ms += 600
    world.add(5001, 0, T1)
    world.now_ms += 400
    assert world.expire_transactions() == []
    world.now_ms += 1
    assert world.expire_transactions() == ["t"]
    assert world.end(5001, 0, True).error is ErrorCode.CONCURRENT_TRANSACTIONS
    world.complete()
    assert world.end(5001, 0, True).error is ErrorCode.INVALID_TXN_STATE
    assert world.end(5001, 0, False) == ProducerAnswer(NONE, 5001, 1), "what it wanted has happened"
    assert world.add(5001, 0) is ErrorCode.PRODUCER_FENCED
    assert world.expire_transactions() == []


def test_verification() -> None:
    world = World()
    assert world.verify(5001, 0, T0) == [ErrorCode.INVALID_PRODUCER_ID_MAPPING]
    world.init()
    assert world.verify(5001, 0, T0) == [ErrorCode.TRANSACTION_ABORTABLE]
    world.add(5001, 0, T0)
    assert world.verify(5001, 0, T0, T1) == [NONE, ErrorCode.TRANSACTION_ABORTABLE]
    assert world.verify(5001, 1, T0) == [ErrorCode.PRODUCER_FENCED]
    assert world.verify(5000, 0, T0) == [ErrorCode.INVALID_PRODUCER_ID_MAPPING]
    world.end(5001, 0, True)
    assert world.verify(5001, 1, T0) == [ErrorCode.CONCURRENT_TRANSACTIONS]
    world.complete()
    assert world.verify(5001, 1, T0) == [ErrorCode.TRANSACTION_ABORTABLE]


def test_ids_nobody_uses_expire() -> None:
    world = World(expiration_ms=1000)
    for name in ("idle", "busy", "preparing"):
        world.init(name=name)
    world.add(5002, 0, name="busy")
    world.add(5003, 0, name="preparing")
    world.end(5003, 0, True, name="preparing")
    world.now_ms += 999
    assert world.shard.expired(list(world.shard.transactions), world.now_ms).changes == []
    world.now_ms += 1
    world.take(world.shard.expired(list(world.shard.transactions), world.now_ms))
    assert sorted(world.shard.transactions) == ["busy", "preparing"]
    world.restart()
    assert sorted(world.shard.transactions) == ["busy", "preparing"]
    assert world.init(5001, 0, name="idle") == ProducerAnswer(NONE, 5004, 0)


def test_behind_a_loss_a_transactional_id_gets_another_producer_id() -> None:
    """The logs may know later epochs of the one it had."""
    for level in (0, 2):
        world = World(level)
        world.init()
        world.init()
        world.lose(1)
        assert world.shard.transactions["t"].producer_epoch == EPOCH_MAX
        assert world.add(5001, 0) is ErrorCode.PRODUCER_FENCED
        assert world.verify(5001, 1, T0) == [ErrorCode.PRODUCER_FENCED]
        assert world.init(5001, 0).error is ErrorCode.PRODUCER_FENCED
        assert world.init() == ProducerAnswer(NONE, 5002, 0)
        world.restart()
        assert world.init() == ProducerAnswer(NONE, 5002, 1), "once"


def test_behind_a_loss_what_was_going_on_is_aborted_whatever_epoch_it_has() -> None:
    world = World()
    world.init()
    world.add(5001, 0, T0)
    world.end(5001, 0, False)
    world.lose(1)
    assert world.markers == [Ending("t", 5001, EPOCH_MAX, False, frozenset({T0}), 2)]
    assert world.end(5001, 0, True).error is ErrorCode.CONCURRENT_TRANSACTIONS
    world.restart()
    assert len(world.markers) == 1
    world.complete()
    for epoch in (0, EPOCH_LAST):
        assert world.end(5001, epoch, False).error is ErrorCode.PRODUCER_FENCED
    assert world.init() == ProducerAnswer(NONE, 5002, 0)


def test_behind_a_loss_a_commit_is_carried_out_where_that_ends_nothing_else() -> None:
    world = World()
    world.init()
    world.add(5001, 0, T0)
    world.end(5001, 0, True)
    world.complete()
    world.lose(1)
    assert world.markers == [Ending("t", 5001, 1, True, frozenset({T0}), 2)], "a log that knows epoch 1 refuses it"
    world.complete()
    assert world.state() is State.COMPLETE_COMMIT and world.add(5001, 1) is ErrorCode.PRODUCER_FENCED
    assert world.init() == ProducerAnswer(NONE, 5002, 0)


def test_behind_a_loss_a_commit_of_the_first_generation_is_left_alone() -> None:
    """Its marker would commit the next transaction too, which has the same epoch."""
    world = World()
    world.init()
    world.add(5001, 0, T0, client=0)
    world.end(5001, 0, True, client=0)
    world.complete()
    world.lose(1)
    assert not world.markers and world.state() is State.COMPLETE_COMMIT
    assert world.init() == ProducerAnswer(NONE, 5002, 0)


def test_completion_of_what_is_not_going_on_changes_nothing() -> None:
    world = World()
    world.init()
    world.add(5001, 0)
    world.end(5001, 0, True)
    (ending,) = world.markers
    world.complete()
    world.add(5001, 1)
    assert world.shard.complete(ending, world.now_ms).changes == []
    world.end(5001, 1, True)
    assert world.shard.complete(ending, world.now_ms).changes == []


def test_listing() -> None:
    world = World()
    for name in ("a-1", "a-2", "b"):
        world.init(name=name)
    world.add(5002, 0, name="a-2")
    world.now_ms += 100
    listed = world.shard.list_transactions
    assert [one.transactional_id for one in listed(world.now_ms)] == ["a-1", "a-2", "b"]
    assert [one.transactional_id for one in listed(world.now_ms, states=frozenset({State.ONGOING}))] == ["a-2"]
    assert [one.transactional_id for one in listed(world.now_ms, producer_ids=frozenset({5003}))] == ["b"]
    assert listed(world.now_ms, states=frozenset()) == []
    assert [one.producer_id for one in listed(world.now_ms, matches=lambda name: name.startswith("a"))] == [5001, 5002]
    ongoing = frozenset({State.ONGOING})
    assert len(listed(world.now_ms, states=ongoing, longer_than_ms=99)) == 1
    assert listed(world.now_ms, states=ongoing, longer_than_ms=100) == []


class Producers(RuleBasedStateMachine):
    """Producers of one transactional id that die, repeat and compete, under coordinators that change.

    The truth is what a producer may conclude: a commit that was answered well is committed, once; a producer that was
    fenced commits nothing after that; markers of a transaction all say the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.client = 2
        self.identity = (-1, -1)
        self.old: list[tuple[int, int]] = []
        self.open = False
        self.decided: dict[tuple[int, int], set[bool]] = {}
        """(producer id, epoch of the marker) -> how it ended."""
        self.epochs: list[tuple[int, int]] = []
        self.lost: set[int] = set()
        """Producer ids of which epochs may be lost."""

    @initialize(client=st.sampled_from([0, 2]), level=st.sampled_from([0, 1, 2]))
    def begin(self, client: int, level: int) -> None:
        self.world.level = level
        self.client = client if level == 2 else 0

    def note(self) -> None:
        for ending in self.world.markers:
            if ending.partitions:
                key = (ending.producer_id, ending.producer_epoch)
                if self.client == 2:
                    self.decided.setdefault(key, set()).add(ending.commit)

    @rule(known=st.booleans())
    def init(self, known: bool) -> None:
        answer = self.world.init(*(self.identity if known and self.identity[0] >= 0 else (-1, -1)))
        self.note()
        if answer.error is NONE:
            if not known:
                self.old.append(self.identity)
            self.identity = (answer.producer_id, answer.producer_epoch)
            self.open = False
            assert self.identity not in self.epochs or known, "a new producer has an epoch of its own"
            assert answer.producer_id not in self.lost
            self.epochs.append(self.identity)

    @rule(part=st.sampled_from([T0, T1, ("other", 0)]))
    def add(self, part: tuple[str, int]) -> None:
        error = self.world.add(*self.identity, part, client=self.client)
        if error is NONE:
            self.open = True
            assert part in self.world.shard.transactions["t"].partitions

    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        answer = self.world.end(*self.identity, commit, client=self.client)
        self.note()
        if answer.error is NONE:
            self.open = False
            if self.client == 2:
                self.identity = (answer.producer_id, answer.producer_epoch)

    @rule(commit=st.booleans(), data=st.data())
    def end_as_a_fenced_producer(self, commit: bool, data: st.DataObject) -> None:
        old = [identity for identity in self.old if identity[0] >= 0 and identity != self.identity]
        if old:
            before = self.world.shard.transactions.get("t")
            identity = data.draw(st.sampled_from(old))
            answer = self.world.end(*identity, commit, client=self.client)
            after = self.world.shard.transactions.get("t")
            assert answer.error is not NONE or after == before, "a fenced producer changes nothing"

    @rule()
    def complete(self) -> None:
        self.world.complete()

    @rule()
    def time_out(self) -> None:
        self.world.now_ms += 61_000
        if self.world.expire_transactions():
            self.old.append(self.identity)
            self.open = False
        self.note()

    @rule()
    def use_up_epochs(self) -> None:
        one = self.world.shard.transactions.get("t")
        if one is not None and not one.state.is_preparing and self.identity == (one.producer_id, one.producer_epoch):
            self.world.put(producer_epoch=max(one.producer_epoch, EPOCH_LAST - 1))
            self.identity = (one.producer_id, self.world.shard.transactions["t"].producer_epoch)

    @rule()
    def another_coordinator(self) -> None:
        before = {
            name: one._replace(last_epoch=-1, previous_producer_id=-1, next_producer_id=-1, client_version=0)
            for name, one in self.world.shard.transactions.items()
        }
        next_ids = {name: one.next_producer_id for name, one in self.world.shard.transactions.items()}
        self.world.restart()
        after = self.world.shard.transactions
        assert {
            name: one._replace(previous_producer_id=-1, next_producer_id=-1, client_version=0)
            for name, one in after.items()
        } == before
        if self.world.level >= 1:
            assert {name: one.next_producer_id for name, one in after.items()} == next_ids

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.lost.update(producer_id for producer_id, _ in self.epochs)
        self.world.lose(data.draw(st.integers(0, len(self.world.written))))
        self.note()

    @invariant()
    def decisions_do_not_change(self) -> None:
        assert all(len(ways) == 1 for ways in self.decided.values())
        for one in self.world.shard.transactions.values():
            assert -1 <= one.producer_epoch <= EPOCH_LAST + 1
            assert bool(one.partitions) <= (one.state is State.ONGOING or one.state.is_preparing)


Producers.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestProducers = Producers.TestCase
