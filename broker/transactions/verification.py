"""Before a batch opens a transaction in a log, its coordinator says that the log is part of it (KIP-890).

Without this a late batch would open a transaction that nobody ever ends, or land in the producer's next one. A leader
asks only for the first batch of a transaction: while one is open in the log, its coordinator knows of it.

The coordinator's word may be out of date when it arrives: a marker may have ended the transaction meanwhile, and the
producer may have begun another. So every verification is an object that the log forgets at the next marker and at the
next transactional batch of the producer, and a batch is appended only while the log still holds the very object that
was made before the question was asked (Kafka's `VerificationGuard`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

from protocol.errors import ErrorCode, KafkaError
from protocol.records import BatchHeader

VERIFICATIONS_MAX = 1000
"""Per log. The oldest goes first; its batch, if it is still on its way, is refused and its transaction is aborted."""

ABORTABLE_SINCE = 11
"""Version of Produce from which on clients know TRANSACTION_ABORTABLE."""
IMPLICIT_SINCE = 12
"""Version of Produce from which on a batch adds its partition to the transaction (KIP-890 part 2)."""

Part: TypeAlias = tuple[str, int]
"""Topic and partition."""

_RETRIABLE = (
    ErrorCode.NETWORK_EXCEPTION,
    ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,
    ErrorCode.COORDINATOR_NOT_AVAILABLE,
    ErrorCode.NOT_COORDINATOR,
)


class TransactionVerifier(Protocol):
    """What leaders need of the transaction coordinators of the cluster."""

    async def verify(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[Part],
        *,
        implicit: bool,
    ) -> dict[Part, ErrorCode]:
        """Ask the coordinator once whether the partitions are part of the producer's ongoing transaction; `implicit`:
        add those that are not, and begin a transaction if none is ongoing.

        Returns the partitions that are not, with the coordinator's own error: INVALID_PRODUCER_ID_MAPPING,
        PRODUCER_FENCED, CONCURRENT_TRANSACTIONS, TRANSACTION_ABORTABLE, .. COORDINATOR_NOT_AVAILABLE: nobody leads its
        partition. NETWORK_EXCEPTION: it did not answer in time. Raises nothing.
        """
        ...


class Verification:
    """One under way, or done and not used yet."""

    __slots__ = ("implicit", "lowest_sequence", "producer_epoch", "since_ms")

    def __init__(self, producer_epoch: int, sequence: int, implicit: bool, now_ms: int) -> None:
        self.producer_epoch = producer_epoch
        self.lowest_sequence = sequence
        """Of the batches of this epoch that asked: no later one may come first."""
        self.implicit = implicit
        self.since_ms = now_ms


class Verifications:
    """Those of one log, by producer id. Pure; times are wall time in ms."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[int, Verification] = {}

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, header: BatchHeader, implicit: bool, now_ms: int) -> Verification:
        """Before the coordinator is asked for this batch. Batches that ask at the same time share one."""
        held = self._held.get(header.producer_id)
        if held is None:
            if len(self._held) >= VERIFICATIONS_MAX:
                del self._held[next(iter(self._held))]
            held = Verification(header.producer_epoch, header.base_sequence, implicit, now_ms)
            self._held[header.producer_id] = held
        elif header.producer_epoch > held.producer_epoch:
            held.producer_epoch, held.lowest_sequence = header.producer_epoch, header.base_sequence
        elif header.producer_epoch == held.producer_epoch:
            held.lowest_sequence = min(held.lowest_sequence, header.base_sequence)
        return held

    def begin_own(self, producer_id: int, producer_epoch: int, implicit: bool, now_ms: int) -> Verification:
        """The same for what a coordinator writes under the producer, which has no sequence."""
        held = self._held.get(producer_id)
        if held is None or producer_epoch > held.producer_epoch:
            if held is None and len(self._held) >= VERIFICATIONS_MAX:
                del self._held[next(iter(self._held))]
            held = self._held[producer_id] = Verification(producer_epoch, 0, implicit, now_ms)
        return held

    def check_held(self, producer_id: int, verification: Verification | None) -> None:
        """KafkaError INVALID_TXN_STATE: a marker was faster, or nobody was asked."""
        held = self._held.get(producer_id)
        if held is None or held is not verification:
            raise KafkaError(ErrorCode.INVALID_TXN_STATE, "Record was not part of an ongoing transaction")

    def check(self, header: BatchHeader, verification: Verification | None, *, known: bool) -> None:
        """Whether a batch that opens a transaction may be appended, now. `verification`: what `begin` gave it;
        `known`: the log has state of its producer.

        KafkaError as `check_held`, or OUT_OF_ORDER_SEQUENCE_NUMBER: a batch before this one also waits to be the first.
        """
        self.check_held(header.producer_id, verification)
        held = self._held[header.producer_id]
        expected = 0 if held.implicit and not known else held.lowest_sequence
        if header.base_sequence > expected:
            raise KafkaError(
                ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
                f"producer {header.producer_id} begins with sequence {header.base_sequence} instead of {expected}",
            )

    def end(self, producer_id: int) -> None:
        """A transactional batch or a marker of the producer was appended."""
        self._held.pop(producer_id, None)

    def expire(self, before_ms: int) -> None:
        """Drop what began before that."""
        for producer_id in [key for key, held in self._held.items() if held.since_ms < before_ms]:
            del self._held[producer_id]


async def verify(
    verifier: TransactionVerifier,
    transactional_id: str,
    producer: tuple[int, int],
    partitions: Sequence[Part],
    *,
    implicit: bool,
    boottime_ms: Callable[[], int],
    backoff_ms: int,
    backoff_ms_max: int,
) -> dict[Part, ErrorCode]:
    """As `TransactionVerifier.verify` for (producer id, epoch). With `implicit` a transaction that is just being
    completed is waited for, up to `backoff_ms_max`: to send the batch again would cost its client more."""
    until_ms = boottime_ms() + backoff_ms_max
    refused: dict[Part, ErrorCode] = {}
    asked: Iterable[Part] = partitions
    while True:
        answer = await verifier.verify(transactional_id, *producer, list(asked), implicit=implicit)
        for part in asked:
            refused.pop(part, None)
        refused.update(answer)
        asked = [part for part, error in refused.items() if error is ErrorCode.CONCURRENT_TRANSACTIONS]
        if not implicit or not asked or boottime_ms() >= until_ms:
            return refused
        await asyncio.sleep(backoff_ms / 1000)


def produce_error(error: ErrorCode, version: int) -> KafkaError:
    """What a producer of this version of Produce is told (`AddPartitionsToTxnManager`, `ReplicaManager`).

    Producers take errors of a coordinator for what they are not; NOT_ENOUGH_REPLICAS makes them send again without
    looking for another leader first.
    """
    if error in _RETRIABLE or (error is ErrorCode.CONCURRENT_TRANSACTIONS and version < IMPLICIT_SINCE):
        return KafkaError(
            ErrorCode.NOT_ENOUGH_REPLICAS,
            f"Unable to verify the partition has been added to the transaction. Underlying error: {error.name}",
        )
    if error is ErrorCode.PRODUCER_FENCED:
        return KafkaError(ErrorCode.INVALID_PRODUCER_EPOCH, "the producer was fenced")
    if error in (ErrorCode.INVALID_TXN_STATE, ErrorCode.CLUSTER_AUTHORIZATION_FAILED) or (
        error is ErrorCode.TRANSACTION_ABORTABLE and version < ABORTABLE_SINCE
    ):
        return KafkaError(ErrorCode.INVALID_TXN_STATE, "Partition was not added to the transaction")
    return KafkaError(error, f"the transaction coordinator refused: {error.name}")
