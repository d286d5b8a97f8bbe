"""When a batch may open a transaction: the rules on their own, without a log."""

from collections.abc import Sequence

import pytest

from broker.transactions import verification as v
from protocol.errors import ErrorCode, KafkaError
from protocol.records import BatchHeader


def header(pid: int, epoch: int, sequence: int) -> BatchHeader:
    return BatchHeader(0, 49, 0, 2, 0, 0x10, 0, 5, 5, pid, epoch, sequence, 1)


def refusal(held: v.Verifications, of: BatchHeader, guard: v.Verification | None, *, known: bool = True) -> ErrorCode:
    try:
        held.check(of, guard, known=known)
    except KafkaError as error:
        return error.code
    return ErrorCode.NONE


def test_a_batch_needs_the_verification_that_its_log_still_holds() -> None:
    held = v.Verifications()
    assert refusal(held, header(1, 0, 0), None) is ErrorCode.INVALID_TXN_STATE
    first = held.begin(header(1, 0, 0), False, 0)
    assert held.begin(header(1, 0, 1), False, 0) is first, "batches that ask at the same time share it"
    assert refusal(held, header(1, 0, 0), first) is ErrorCode.NONE
    assert refusal(held, header(2, 0, 0), first) is ErrorCode.INVALID_TXN_STATE
    held.end(1)
    assert refusal(held, header(1, 0, 0), first) is ErrorCode.INVALID_TXN_STATE
    second = held.begin(header(1, 0, 0), False, 0)
    assert refusal(held, header(1, 0, 0), first) is ErrorCode.INVALID_TXN_STATE, "the answer to an older question"
    assert refusal(held, header(1, 0, 0), second) is ErrorCode.NONE


def test_the_batch_with_the_lowest_sequence_of_the_newest_epoch_comes_first() -> None:
    held = v.Verifications()
    guard = held.begin(header(1, 0, 7), False, 0)
    held.begin(header(1, 0, 5), False, 0)
    held.begin(header(1, 0, 9), False, 0)
    assert refusal(held, header(1, 0, 7), guard) is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert refusal(held, header(1, 0, 5), guard, known=False) is ErrorCode.NONE
    held.begin(header(1, 1, 8), False, 0)
    held.begin(header(1, 0, 2), False, 0)
    assert refusal(held, header(1, 1, 9), guard) is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert refusal(held, header(1, 1, 8), guard) is ErrorCode.NONE


def test_an_unknown_producer_of_the_second_generation_begins_at_0() -> None:
    held = v.Verifications()
    guard = held.begin(header(1, 0, 3), True, 0)
    assert refusal(held, header(1, 0, 3), guard, known=False) is ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert refusal(held, header(1, 0, 3), guard, known=True) is ErrorCode.NONE
    held.begin(header(1, 0, 0), True, 0)
    assert refusal(held, header(1, 0, 0), guard, known=False) is ErrorCode.NONE


def test_their_number_and_age_are_bounded() -> None:
    held = v.Verifications()
    guards = [held.begin(header(pid, 0, 0), False, pid) for pid in range(v.VERIFICATIONS_MAX + 1)]
    assert len(held) == v.VERIFICATIONS_MAX
    assert refusal(held, header(0, 0, 0), guards[0]) is ErrorCode.INVALID_TXN_STATE
    held.expire(v.VERIFICATIONS_MAX)
    assert len(held) == 1
    assert refusal(held, header(v.VERIFICATIONS_MAX, 0, 0), guards[-1]) is ErrorCode.NONE


class Scripted:
    """A coordinator that answers what it is told to; `now` moves with every question."""

    def __init__(self, *answers: dict[v.Part, ErrorCode]) -> None:
        self.answers = list(answers)
        self.asked: list[Sequence[v.Part]] = []
        self.now = 0

    async def verify(
        self,
        transactional_id: str,
        producer_id: int,
        producer_epoch: int,
        partitions: Sequence[v.Part],
        *,
        implicit: bool,
    ) -> dict[v.Part, ErrorCode]:
        self.asked.append(partitions)
        self.now += 40
        return self.answers.pop(0)

    async def ask(self, implicit: bool) -> dict[v.Part, ErrorCode]:
        parts = [("t", 0), ("t", 1)]
        return await v.verify(
            self, "tx", (1, 0), parts, implicit=implicit, boottime_ms=lambda: self.now, backoff_ms=0, backoff_ms_max=100
        )


BUSY = ErrorCode.CONCURRENT_TRANSACTIONS


async def test_a_transaction_that_is_being_completed_is_waited_for_where_the_batch_adds_the_partition() -> None:
    coordinator = Scripted({("t", 0): BUSY, ("t", 1): BUSY}, {("t", 1): BUSY}, {("t", 1): ErrorCode.PRODUCER_FENCED})
    assert await coordinator.ask(True) == {("t", 1): ErrorCode.PRODUCER_FENCED}
    assert coordinator.asked == [[("t", 0), ("t", 1)], [("t", 0), ("t", 1)], [("t", 1)]]
    tired = Scripted(*[{("t", 0): BUSY}] * 3)
    assert await tired.ask(True) == {("t", 0): BUSY}
    assert not tired.answers
    older = Scripted({("t", 0): BUSY})
    assert await older.ask(False) == {("t", 0): BUSY}


@pytest.mark.parametrize(
    ("error", "version", "told"),
    [
        (ErrorCode.NOT_COORDINATOR, 13, ErrorCode.NOT_ENOUGH_REPLICAS),
        (ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, 9, ErrorCode.NOT_ENOUGH_REPLICAS),
        (ErrorCode.COORDINATOR_NOT_AVAILABLE, 9, ErrorCode.NOT_ENOUGH_REPLICAS),
        (ErrorCode.NETWORK_EXCEPTION, 12, ErrorCode.NOT_ENOUGH_REPLICAS),
        (ErrorCode.CONCURRENT_TRANSACTIONS, 11, ErrorCode.NOT_ENOUGH_REPLICAS),
        (ErrorCode.CONCURRENT_TRANSACTIONS, 12, ErrorCode.CONCURRENT_TRANSACTIONS),
        (ErrorCode.TRANSACTION_ABORTABLE, 10, ErrorCode.INVALID_TXN_STATE),
        (ErrorCode.TRANSACTION_ABORTABLE, 11, ErrorCode.TRANSACTION_ABORTABLE),
        (ErrorCode.PRODUCER_FENCED, 12, ErrorCode.INVALID_PRODUCER_EPOCH),
        (ErrorCode.INVALID_PRODUCER_ID_MAPPING, 12, ErrorCode.INVALID_PRODUCER_ID_MAPPING),
        (ErrorCode.INVALID_TXN_STATE, 12, ErrorCode.INVALID_TXN_STATE),
        (ErrorCode.CLUSTER_AUTHORIZATION_FAILED, 12, ErrorCode.INVALID_TXN_STATE),
    ],
)
def test_what_producers_are_told(error: ErrorCode, version: int, told: ErrorCode) -> None:
    assert v.produce_error(error, version).code is told
