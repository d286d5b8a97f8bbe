"""One partition of `__transaction_state` as pure state: its transactional ids and their transactions.

Commands decide and return an `Outcome`; `apply` puts an outcome whose changes were persisted into effect; `replay`
applies one change read from the log; `live` is the state as changes again.

What is answered is Kafka 4.3's (`TransactionCoordinator`, `TransactionMetadata`). A transition that Kafka calls pending
is in force here as soon as it is appended, and its answer waits until it is durable. So CONCURRENT_TRANSACTIONS is
answered only while markers are being written, where Kafka also answers it while a change is on its way to replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from broker.transactions.model import (
    EPOCH_LAST,
    EPOCH_MAX,
    NO_EPOCH,
    NO_PRODUCER_ID,
    NO_TIMESTAMP,
    TV2,
    AddPartitions,
    Change,
    Effect,
    Ending,
    EndTxn,
    InitProducer,
    ListedTransaction,
    Outcome,
    PartitionsAnswer,
    ProducerAnswer,
    Reply,
    SendMarkers,
    State,
    Transaction,
    TransactionConfig,
    TransactionRemoved,
    TransactionSaved,
    TransactionView,
    VerifyPartitions,
)
from broker.transactions.records import log_version
from protocol.errors import ErrorCode

NewId: TypeAlias = int | None
"""A producer id that nobody has, for the decision to use; None: ask without one first."""


class NeedsProducerId(Exception):
    """The decision takes a new producer id: ask again with one. Nothing changed."""


class Shard:
    """State and decisions. Nothing but `apply` and `replay` changes it.

    `version`: the level at which `transaction.version` is finalized now; it decides how records are written and how
    the coordinator itself aborts.
    """

    def __init__(self, config: TransactionConfig, version: Callable[[], int]) -> None:
        self.config = config
        self.version = version
        self.transactions: dict[str, Transaction] = {}
        self.suspects: dict[str, None] = {}
        """Transactional ids whose newest record lies below what was declared lost of the log, newer ones perhaps."""

    # -- decide

    def init_producer(self, command: InitProducer, now_ms: int, new_id: NewId = None) -> Outcome:
        """Who a producer is from now on. An ongoing transaction is aborted first: CONCURRENT_TRANSACTIONS makes the
        producer come again. NeedsProducerId for a new transactional id and when the epochs are used up."""
        if not 0 < command.timeout_ms <= self.config.max_timeout_ms:
            return _reply(command.waiter, ProducerAnswer(ErrorCode.INVALID_TRANSACTION_TIMEOUT))
        current = self.transactions.get(command.transactional_id)
        if current is None:
            current = Transaction(_taken(new_id), NO_EPOCH, command.timeout_ms)
        elif current.state.is_preparing:
            return _reply(command.waiter, ProducerAnswer(ErrorCode.CONCURRENT_TRANSACTIONS))
        elif not _may_be(command, current):
            return _reply(command.waiter, ProducerAnswer(ErrorCode.PRODUCER_FENCED))
        elif current.state is State.ONGOING:
            aborting = self._fence(current, now_ms, new_id)
            return self._ended(
                command.transactional_id,
                aborting,
                [Reply(command.waiter, ProducerAnswer(ErrorCode.CONCURRENT_TRANSACTIONS))],
            )
        begun = self._begun(command, current, now_ms, new_id)
        if begun is None:
            return _reply(command.waiter, ProducerAnswer(ErrorCode.PRODUCER_FENCED))
        answer = ProducerAnswer(ErrorCode.NONE, begun.producer_id, begun.producer_epoch)
        return Outcome([self._saved(command.transactional_id, begun)], [Reply(command.waiter, answer)])

    def _begun(self, command: InitProducer, current: Transaction, now_ms: int, new_id: NewId) -> Transaction | None:
        """The state without a transaction that InitProducerId leads to; None: the producer was fenced."""
        expected = command.producer_epoch if command.producer_id != NO_PRODUCER_ID else None
        begun = current._replace(
            state=State.EMPTY,
            timeout_ms=command.timeout_ms,
            partitions=frozenset(),
            started_ms=NO_TIMESTAMP,
            updated_ms=now_ms,
            previous_producer_id=current.producer_id,
        )
        if current.is_exhausted and expected in (None, current.producer_epoch):
            return begun._replace(
                producer_id=_taken(new_id),
                producer_epoch=0,
                last_epoch=NO_EPOCH if expected is None else current.producer_epoch,
            )
        if expected is None:
            return begun._replace(producer_epoch=current.producer_epoch + 1, last_epoch=NO_EPOCH)
        if current.producer_epoch in (NO_EPOCH, expected):
            return begun._replace(producer_epoch=current.producer_epoch + 1, last_epoch=current.producer_epoch)
        if expected == current.last_epoch:
            # A repeat of what was done. A new producer would have cleared `last_epoch`.
            return begun
        return None

    def add_partitions(self, command: AddPartitions, now_ms: int) -> Outcome:
        """AddPartitionsToTxn, and AddOffsetsToTxn with the partition of `__consumer_offsets`."""
        current = self.transactions.get(command.transactional_id)
        if current is None:
            error = ErrorCode.INVALID_PRODUCER_ID_MAPPING
        elif current.state.is_preparing:
            error = ErrorCode.CONCURRENT_TRANSACTIONS
        else:
            error = _check_producer(current, command.producer_id, command.producer_epoch)
        if error is not ErrorCode.NONE:
            return _reply(command.waiter, PartitionsAnswer(error))
        assert current is not None
        answer = Reply(command.waiter, PartitionsAnswer(ErrorCode.NONE))
        if current.state is State.ONGOING and command.partitions <= current.partitions:
            return Outcome(effects=[answer])
        ongoing = current._replace(
            state=State.ONGOING,
            partitions=current.partitions | command.partitions,
            started_ms=current.started_ms if current.state is State.ONGOING else now_ms,
            updated_ms=now_ms,
            previous_producer_id=current.producer_id,
            client_version=command.client_version,
        )
        return Outcome([self._saved(command.transactional_id, ongoing)], [answer])

    def verify_partitions(self, command: VerifyPartitions) -> PartitionsAnswer:
        """Whether partitions are part of the producer's ongoing transaction (KIP-890)."""
        current = self.transactions.get(command.transactional_id)
        if current is None:
            return PartitionsAnswer(ErrorCode.INVALID_PRODUCER_ID_MAPPING)
        error = _check_producer(current, command.producer_id, command.producer_epoch)
        if error is ErrorCode.NONE and current.state.is_preparing:
            error = ErrorCode.CONCURRENT_TRANSACTIONS
        if error is not ErrorCode.NONE:
            return PartitionsAnswer(error)
        missing = command.partitions - current.partitions
        return PartitionsAnswer(ErrorCode.NONE, dict.fromkeys(sorted(missing), ErrorCode.TRANSACTION_ABORTABLE))

    def end(self, command: EndTxn, now_ms: int, new_id: NewId = None) -> Outcome:
        """EndTxn of a client. NeedsProducerId when this transaction uses up the epochs (`transaction.version` 2)."""
        current = self.transactions.get(command.transactional_id)
        if current is None:
            return _reply(command.waiter, ProducerAnswer(ErrorCode.INVALID_PRODUCER_ID_MAPPING))
        if command.client_version >= TV2:
            return self._end_with_bump(command, current, now_ms, new_id)
        return self._end_in_place(command, current, now_ms)

    def _end_in_place(self, command: EndTxn, current: Transaction, now_ms: int) -> Outcome:
        """The first generation: the epoch stays, and a repeat shows in the state alone."""
        error = _check_producer(current, command.producer_id, command.producer_epoch)
        if error is ErrorCode.NONE and current.state.is_preparing:
            error = ErrorCode.CONCURRENT_TRANSACTIONS
        if error is ErrorCode.NONE and current.state is State.ONGOING:
            ended = current._replace(
                state=State.PREPARE_COMMIT if command.commit else State.PREPARE_ABORT,
                updated_ms=now_ms,
                previous_producer_id=current.producer_id,
                next_producer_id=NO_PRODUCER_ID,
                client_version=command.client_version,
            )
            answer = Reply(command.waiter, ProducerAnswer(ErrorCode.NONE))
            return self._ended(command.transactional_id, ended, [answer])
        done = State.COMPLETE_COMMIT if command.commit else State.COMPLETE_ABORT
        if error is ErrorCode.NONE and current.state is not done:
            error = ErrorCode.INVALID_TXN_STATE
        return _reply(command.waiter, ProducerAnswer(error))

    def _end_with_bump(self, command: EndTxn, current: Transaction, now_ms: int, new_id: NewId) -> Outcome:
        """The second generation: the epoch before the current one is a repeat, the current one is the next
        transaction, which may also be one that no partition ever heard of: an abort is always possible."""
        if current.state.is_preparing:
            return _reply(command.waiter, ProducerAnswer(ErrorCode.CONCURRENT_TRANSACTIONS))
        error, repeated = _check_end(command, current)
        if error is ErrorCode.NONE and repeated:
            done = State.COMPLETE_COMMIT if command.commit else State.COMPLETE_ABORT
            if current.state is done:
                answer = ProducerAnswer(ErrorCode.NONE, current.producer_id, current.producer_epoch)
                return _reply(command.waiter, answer)
            error = ErrorCode.INVALID_TXN_STATE
        elif error is ErrorCode.NONE and command.commit and current.state is not State.ONGOING:
            error = ErrorCode.INVALID_TXN_STATE
        if error is not ErrorCode.NONE:
            return _reply(command.waiter, ProducerAnswer(error))
        state = State.PREPARE_COMMIT if command.commit else State.PREPARE_ABORT
        ended = _bumped(current, state, now_ms, command.client_version, new_id)
        next_id, next_epoch = _after_markers(ended)
        answer = ProducerAnswer(ErrorCode.NONE, next_id, next_epoch)
        return self._ended(command.transactional_id, ended, [Reply(command.waiter, answer)])

    def timed_out(self, now_ms: int) -> list[str]:
        """Transactional ids whose transaction takes longer than it said."""
        return [
            transactional_id
            for transactional_id, one in self.transactions.items()
            if one.state is State.ONGOING and one.started_ms + one.timeout_ms < now_ms
        ]

    def abort_timed_out(self, transactional_id: str, now_ms: int, new_id: NewId = None) -> Outcome:
        """Abort and fence, if it is still over its time."""
        current = self.transactions.get(transactional_id)
        if current is None or current.state is not State.ONGOING or current.started_ms + current.timeout_ms >= now_ms:
            return Outcome()
        return self._ended(transactional_id, self._fence(current, now_ms, new_id), [])

    def _fence(self, current: Transaction, now_ms: int, new_id: NewId) -> Transaction:
        """The abort of an ongoing transaction that its producer did not ask for: it has a stale epoch from now on."""
        version = self.version()
        if version >= TV2:
            return _bumped(current, State.PREPARE_ABORT, now_ms, version, new_id)
        return current._replace(
            state=State.PREPARE_ABORT,
            producer_epoch=min(current.producer_epoch + 1, EPOCH_MAX),
            last_epoch=NO_EPOCH,
            updated_ms=now_ms,
            previous_producer_id=current.producer_id,
            next_producer_id=NO_PRODUCER_ID,
            client_version=version,
        )

    def complete(self, ending: Ending, now_ms: int) -> Outcome:
        """All markers of `ending` are written. Nothing if that is not what is going on any more."""
        current = self.transactions.get(ending.transactional_id)
        if current is None or self.ending(ending.transactional_id) != ending:
            return Outcome()
        producer_id, epoch = _after_markers(current)
        done = current._replace(
            state=State.COMPLETE_COMMIT if ending.commit else State.COMPLETE_ABORT,
            producer_id=producer_id,
            producer_epoch=EPOCH_MAX if ending.transactional_id in self.suspects else epoch,
            partitions=frozenset(),
            updated_ms=now_ms,
            previous_producer_id=current.producer_id,
            next_producer_id=NO_PRODUCER_ID,
        )
        return Outcome([self._saved(ending.transactional_id, done)])

    def fence_lost(self, transactional_id: str, now_ms: int) -> Outcome:
        """Fence whoever has a suspect transactional id, with the last epoch there is: the next producer gets a new
        producer id, of which no log can have seen a later epoch than the coordinator has.

        What was going on is aborted: nobody knows what became of it. A decision to commit is carried out if its markers
        have an epoch of their own, by which a log knows what they end; of the first generation they would also commit
        what may have been begun and lost after it, so they are not sent: what is open is left to the operator.
        """
        current = self.transactions[transactional_id]
        if current.state is State.PREPARE_COMMIT and current.client_version >= TV2:
            return Outcome()  # `complete` fences
        fenced = current._replace(
            producer_epoch=EPOCH_MAX,
            last_epoch=NO_EPOCH,
            updated_ms=now_ms,
            previous_producer_id=current.producer_id,
            next_producer_id=NO_PRODUCER_ID,
        )
        if current.state in (State.ONGOING, State.PREPARE_ABORT):
            aborting = fenced._replace(state=State.PREPARE_ABORT, client_version=self.version())
            return self._ended(transactional_id, aborting, [])
        if current.state is State.PREPARE_COMMIT:
            fenced = fenced._replace(state=State.COMPLETE_COMMIT, partitions=frozenset())
        return Outcome([self._saved(transactional_id, fenced)])

    def expired(self, transactional_ids: Iterable[str], now_ms: int) -> Outcome:
        """Remove those that nothing happened to for `transactional.id.expiration.ms` and that have no transaction."""
        before_ms = now_ms - self.config.expiration_ms
        return Outcome(
            [
                TransactionRemoved(transactional_id)
                for transactional_id in transactional_ids
                if (one := self.transactions.get(transactional_id)) is not None
                and (one.state is State.EMPTY or one.state.is_complete)
                and one.updated_ms <= before_ms
            ]
        )

    def _ended(self, transactional_id: str, ended: Transaction, effects: list[Effect]) -> Outcome:
        return Outcome([self._saved(transactional_id, ended)], [*effects, SendMarkers(transactional_id)])

    def _saved(self, transactional_id: str, value: Transaction) -> TransactionSaved:
        return TransactionSaved(transactional_id, value, log_version(self.version()))

    # -- apply

    def apply(self, outcome: Outcome) -> None:
        for change in outcome.changes:
            self.replay(change)

    def replay(self, change: Change) -> None:
        self.suspects.pop(change.transactional_id, None)
        match change:
            case TransactionSaved(transactional_id, value):
                self.transactions[transactional_id] = value
            case TransactionRemoved(transactional_id):
                self.transactions.pop(transactional_id, None)

    def replay_loss(self) -> None:
        """What followed all that was replayed by now was declared lost."""
        self.suspects = dict.fromkeys(self.transactions)

    def live(self, transactional_ids: Iterable[str]) -> list[Change]:
        """What is persisted now of these, as changes."""
        return [
            self._saved(transactional_id, self.transactions[transactional_id])
            for transactional_id in transactional_ids
            if transactional_id in self.transactions
        ]

    # -- look

    def ending(self, transactional_id: str) -> Ending | None:
        """The markers that a transaction waits for; None: it waits for none."""
        one = self.transactions.get(transactional_id)
        if one is None or not one.state.is_preparing:
            return None
        commit = one.state is State.PREPARE_COMMIT
        return Ending(transactional_id, one.producer_id, one.producer_epoch, commit, one.partitions, one.client_version)

    def endings(self) -> list[str]:
        """Transactional ids that wait for markers."""
        return [transactional_id for transactional_id, one in self.transactions.items() if one.state.is_preparing]

    def describe(self, transactional_id: str) -> TransactionView:
        one = self.transactions.get(transactional_id)
        error = ErrorCode.TRANSACTIONAL_ID_NOT_FOUND if one is None else ErrorCode.NONE
        return TransactionView(error, transactional_id, one)

    def list_transactions(
        self,
        now_ms: int,
        *,
        states: frozenset[State] | None = None,
        producer_ids: frozenset[int] = frozenset(),
        longer_than_ms: int = -1,
        matches: Callable[[str], bool] = lambda transactional_id: True,
    ) -> list[ListedTransaction]:
        """Those in these states (None: any), of these producers (empty: any) that began longer ago than that (below 0:
        any)."""
        return [
            ListedTransaction(transactional_id, one.producer_id, one.state)
            for transactional_id, one in self.transactions.items()
            if (states is None or one.state in states)
            and (not producer_ids or one.producer_id in producer_ids)
            and (longer_than_ms < 0 or now_ms - one.started_ms > longer_than_ms)
            and matches(transactional_id)
        ]


def _bumped(current: Transaction, state: State, now_ms: int, version: int, new_id: NewId) -> Transaction:
    """The end of a transaction in the second generation: markers carry the next epoch, and so does the producer."""
    had_partitions = current.state is State.ONGOING
    return current._replace(
        state=state,
        producer_epoch=min(current.producer_epoch + 1, EPOCH_MAX),
        last_epoch=current.producer_epoch,
        partitions=current.partitions if had_partitions else frozenset(),
        started_ms=current.started_ms if had_partitions else now_ms,
        updated_ms=now_ms,
        previous_producer_id=current.producer_id,
        next_producer_id=_taken(new_id) if current.is_exhausted else NO_PRODUCER_ID,
        client_version=version,
    )


def _after_markers(ended: Transaction) -> tuple[int, int]:
    """Producer id and epoch once a transaction is complete."""
    if ended.client_version >= TV2 and ended.next_producer_id != NO_PRODUCER_ID:
        return ended.next_producer_id, 0
    return ended.producer_id, ended.producer_epoch


def _may_be(command: InitProducer, current: Transaction) -> bool:
    """Whether who asks may be the current producer (the epoch is looked at later), or one that was given a new id
    because its epochs were used up, and was not told (KIP-360)."""
    return (
        command.producer_id in (NO_PRODUCER_ID, current.producer_id)
        or current.producer_epoch == NO_EPOCH
        or (command.producer_id == current.previous_producer_id and command.producer_epoch >= EPOCH_LAST)
    )


def _check_producer(current: Transaction, producer_id: int, epoch: int) -> ErrorCode:
    if current.producer_id != producer_id:
        return ErrorCode.INVALID_PRODUCER_ID_MAPPING
    return ErrorCode.NONE if current.producer_epoch == epoch else ErrorCode.PRODUCER_FENCED


def _check_end(command: EndTxn, current: Transaction) -> tuple[ErrorCode, bool]:
    """Of the second generation, without markers under way: an error, and whether it was answered before."""
    of_used_up = (
        command.producer_id == current.previous_producer_id
        and command.producer_epoch == EPOCH_LAST
        and current.producer_epoch == 0
    )
    was_fenced = current.producer_epoch == EPOCH_MAX
    repeated = of_used_up or (current.producer_epoch == command.producer_epoch + 1 and not was_fenced)
    if command.producer_id != current.producer_id and not of_used_up:
        return ErrorCode.INVALID_PRODUCER_ID_MAPPING, False
    if current.producer_epoch == command.producer_epoch:
        return ErrorCode.NONE, False
    if repeated and current.state.is_complete:
        return ErrorCode.NONE, True
    return ErrorCode.PRODUCER_FENCED, False


def _taken(new_id: NewId) -> int:
    if new_id is None:
        raise NeedsProducerId
    return new_id


def _reply(waiter: int, answer: object) -> Outcome:
    return Outcome(effects=[Reply(waiter, answer)])
