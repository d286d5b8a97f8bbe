"""The words of the transaction core: what is stored, what is asked, what is answered, what is to be done.

A decision is an `Outcome`: changes to persist and effects. The caller persists the changes first; refused, the outcome
is dropped and nothing happened. Times are Unix ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from protocol.errors import ErrorCode

NO_PRODUCER_ID = -1
NO_EPOCH = -1
NO_TIMESTAMP = -1
EPOCH_MAX = 2**15 - 1
EPOCH_LAST = EPOCH_MAX - 1
"""The last one a producer is given: one more is left, to fence it with."""

TV0, TV1, TV2 = 0, 1, 2
"""Levels of the feature `transaction.version`: 1 stores flexible records, 2 bumps the epoch with every transaction."""

Part: TypeAlias = tuple[str, int]
"""Topic and partition."""


class State(Enum):
    """States of a transactional id: Kafka's number in records, Kafka's name in answers.

    A record never says Dead (an id that expires is removed) nor PrepareEpochFence (the abort is decided with it).
    """

    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5
    DEAD = 6
    PREPARE_EPOCH_FENCE = 7

    @property
    def shown(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def is_preparing(self) -> bool:
        """Decided, and its markers are not all written."""
        return self in (State.PREPARE_COMMIT, State.PREPARE_ABORT)

    @property
    def is_complete(self) -> bool:
        return self in (State.COMPLETE_COMMIT, State.COMPLETE_ABORT)


class TransactionConfig(NamedTuple):
    """The settings that decide; Kafka's names and defaults."""

    max_timeout_ms: int = 15 * 60 * 1000
    expiration_ms: int = 7 * 24 * 3600 * 1000


# --- what is stored: one change is one record of __transaction_state


class Transaction(NamedTuple):
    """What is known of one transactional id (`TransactionMetadata`).

    `last_epoch`, the epoch before the current one, is not in Kafka's records: after a change of coordinator a repeated
    InitProducerId is told that it was fenced, as by Kafka.
    """

    producer_id: int
    producer_epoch: int
    timeout_ms: int
    state: State = State.EMPTY
    partitions: frozenset[Part] = frozenset()
    updated_ms: int = NO_TIMESTAMP
    started_ms: int = NO_TIMESTAMP
    previous_producer_id: int = NO_PRODUCER_ID
    """The id before the last change; of a repeated EndTxn that used up the epochs."""
    next_producer_id: int = NO_PRODUCER_ID
    """What the completion goes on with, when this transaction used up the epochs."""
    last_epoch: int = NO_EPOCH
    client_version: int = TV0
    """The generation of the protocol of whoever decided last."""

    @property
    def is_exhausted(self) -> bool:
        return self.producer_epoch >= EPOCH_LAST


class TransactionSaved(NamedTuple):
    transactional_id: str
    value: Transaction
    log_version: int
    """Of the value: 0 before `transaction.version` 1."""


class TransactionRemoved(NamedTuple):
    transactional_id: str


Change: TypeAlias = TransactionSaved | TransactionRemoved


# --- what is asked; `waiter` is the number under which the caller keeps the request


class InitProducer(NamedTuple):
    waiter: int
    transactional_id: str
    timeout_ms: int
    producer_id: int = NO_PRODUCER_ID
    """What the producer believes to be, NO_PRODUCER_ID: it begins."""
    producer_epoch: int = NO_EPOCH


class AddPartitions(NamedTuple):
    waiter: int
    transactional_id: str
    producer_id: int
    producer_epoch: int
    partitions: frozenset[Part]
    client_version: int


class VerifyPartitions(NamedTuple):
    waiter: int
    transactional_id: str
    producer_id: int
    producer_epoch: int
    partitions: frozenset[Part]


class EndTxn(NamedTuple):
    waiter: int
    transactional_id: str
    producer_id: int
    producer_epoch: int
    commit: bool
    client_version: int


# --- what is answered


class ProducerAnswer(NamedTuple):
    """InitProducerId, and EndTxn from v5: who the producer is from now on."""

    error: ErrorCode
    producer_id: int = NO_PRODUCER_ID
    producer_epoch: int = NO_EPOCH


class PartitionsAnswer(NamedTuple):
    """One error for the transaction, and those of partitions that have their own."""

    error: ErrorCode
    errors: Mapping[Part, ErrorCode] = MappingProxyType({})

    def of(self, part: Part) -> ErrorCode:
        return self.error if self.error is not ErrorCode.NONE else self.errors.get(part, ErrorCode.NONE)


class TransactionView(NamedTuple):
    """A transactional id as plain data: for DescribeTransactions."""

    error: ErrorCode
    transactional_id: str
    transaction: Transaction | None = None


class ListedTransaction(NamedTuple):
    transactional_id: str
    producer_id: int
    state: State


class ListAnswer(NamedTuple):
    error: ErrorCode
    transactions: tuple[ListedTransaction, ...] = ()


# --- what is to be done


class Reply(NamedTuple):
    waiter: int
    answer: Any


class SendMarkers(NamedTuple):
    """Once the changes are validated, tell the leaders of its partitions how the transaction ends."""

    transactional_id: str


Effect: TypeAlias = Reply | SendMarkers


@dataclass(slots=True)
class Outcome:
    """What the core decided."""

    changes: list[Change] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)


class Ending(NamedTuple):
    """A transaction whose markers are to be written: what they carry, and where."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    commit: bool
    partitions: frozenset[Part]
    client_version: int
