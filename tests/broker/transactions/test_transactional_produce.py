"""Produce with transactional batches over real sockets, against a coordinator whose answers the test decides."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.transactions.verification import Part
from controller import facts as f
from protocol.apis import ApiKey
from protocol.errors import ErrorCode, KafkaError
from tests.support.hot_broker import HotBroker, topic_id_of
from tests.support.raw_client import RawClient, batch_of, produce_request
from tests.support.waiting import until

PID = 4000
WAL_ID = bytes(range(16))


class Coordinator:
    """Says yes to everything but `refused`; holds answers back while `held`."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.refused: dict[Part, ErrorCode] = {}
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
        self.asked.append((transactional_id, producer_id, producer_epoch, sorted(partitions), implicit))
        await self.free.wait()
        return {part: error for part, error in self.refused.items() if part in partitions}


def transactional(value: bytes, sequence: int, *, pid: int = PID, epoch: int = 0) -> bytearray:
    return batch_of(value, producer_id=pid, producer_epoch=epoch, base_sequence=sequence, transactional=True)


async def produce(client: RawClient, *batches: bytearray, version: int = 11, topic: str | bytes = "t") -> list[Any]:
    """One batch per partition of the topic; the partitions' (error code, base offset)."""
    request = produce_request([(topic, n, batch) for n, batch in enumerate(batches)], transactional_id="tx")
    answer = await client.ask(ApiKey.PRODUCE, version, request)
    return [(p.error_code, p.base_offset) for t in answer.responses for p in t.partition_responses]


def with_coordinator(broker: HotBroker) -> Coordinator:
    coordinator = Coordinator()
    broker.services.transactions = coordinator
    return coordinator


@pytest.mark.parametrize("version", [3, 9, 11, 12, 13])
async def test_only_the_first_batch_of_a_transaction_is_verified(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        logs = broker.create_topic("t", 2)
        coordinator = with_coordinator(broker)
        topic = topic_id_of("t") if version >= 13 else "t"
        batches = transactional(b"a", 0), transactional(b"b", 0)
        assert await produce(client, *batches, version=version, topic=topic) == [(0, 0), (0, 0)]
        assert coordinator.asked == [("tx", PID, 0, [("t", 0), ("t", 1)], version >= 12)]
        assert await produce(client, transactional(b"c", 1), version=version, topic=topic) == [(0, 1)]
        assert len(coordinator.asked) == 1
        assert [(log.hw, log.lso) for log in logs] == [(2, 0), (1, 0)]
        assert sum(broker.services.counters.verification_latency) == 1
        sequence = logs[0].append_marker(PID, 0, 1, commit=True, transaction_version=0)
        await until(lambda: broker.validation.validated >= sequence)
        assert (logs[0].lso, logs[1].lso) == (3, 0)
        assert await produce(client, transactional(b"d", 2), version=version, topic=topic) == [(0, 3)]
        assert coordinator.asked[1:] == [("tx", PID, 0, [("t", 0)], version >= 12)]


async def test_batches_outside_of_transactions_ask_nobody(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        plain = batch_of(b"x", producer_id=PID, producer_epoch=0, base_sequence=0)
        assert await produce(client, plain) == [(0, 0)]
        assert not coordinator.asked
        assert log.lso == 1


async def test_refused_partitions_say_why_and_the_others_are_appended(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        logs = broker.create_topic("t", 2)
        coordinator = with_coordinator(broker)
        coordinator.refused = {("t", 1): ErrorCode.TRANSACTION_ABORTABLE}
        batches = transactional(b"a", 0), transactional(b"b", 0)
        assert await produce(client, *batches, version=11) == [(0, 0), (ErrorCode.TRANSACTION_ABORTABLE, -1)]
        assert await produce(client, *batches, version=10) == [(0, 0), (ErrorCode.INVALID_TXN_STATE, -1)]
        assert [log.end for log in logs] == [1, 0]
        assert broker.services.counters.verification_failures == 2


async def test_a_marker_that_comes_during_the_verification_wins(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        coordinator.free.clear()
        client.send(ApiKey.PRODUCE, 11, produce_request([("t", 0, transactional(b"late", 0))], transactional_id="tx"))
        await until(lambda: bool(coordinator.asked))
        log.append_marker(PID, 0, 1, commit=False, transaction_version=0)
        coordinator.free.set()
        _, answer = await client.receive(ApiKey.PRODUCE, 11)
        assert answer.responses[0].partition_responses[0].error_code == ErrorCode.INVALID_TXN_STATE
        assert log.end == 1
        assert list(log.producers.open_transactions()) == []


async def test_requests_behind_one_that_is_verified_keep_their_order(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        coordinator.free.clear()
        for n in range(5):
            request = produce_request([("t", 0, transactional(b"%d" % n, n))], transactional_id="tx")
            client.send(ApiKey.PRODUCE, 11, request)
        await until(lambda: bool(coordinator.asked))
        assert log.end == 0
        coordinator.free.set()
        got = [(await client.receive(ApiKey.PRODUCE, 11))[1].responses[0].partition_responses[0] for _ in range(5)]
        assert [(part.error_code, part.base_offset) for part in got] == [(0, n) for n in range(5)]
        assert len(coordinator.asked) == 1


async def test_a_batch_that_overtook_the_first_one_on_another_connection_is_refused(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as one, RawClient(broker.port) as two:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        coordinator.refused = {("t", 0): ErrorCode.NOT_COORDINATOR}
        assert await produce(one, transactional(b"0", 0)) == [(ErrorCode.NOT_ENOUGH_REPLICAS, -1)]
        coordinator.refused = {}
        assert await produce(two, transactional(b"1", 1)) == [(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, -1)]
        assert await produce(one, transactional(b"0", 0)) == [(0, 0)]
        assert await produce(two, transactional(b"1", 1)) == [(0, 1)]
        assert log.end == 2


async def test_an_unknown_producer_of_the_second_generation_begins_at_0(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        with_coordinator(broker)
        refused = [(ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, -1)]
        assert await produce(client, transactional(b"x", 3), version=12) == refused
        assert await produce(client, transactional(b"x", 0), version=12) == [(0, 0)]


async def test_an_older_epoch_is_told_before_anything_else(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        with_coordinator(broker)
        assert await produce(client, transactional(b"x", 0, epoch=2)) == [(0, 0)]
        assert await produce(client, transactional(b"x", 0, epoch=1)) == [(ErrorCode.INVALID_PRODUCER_EPOCH, -1)]


async def test_a_repeated_first_batch_is_a_duplicate(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        assert await produce(client, transactional(b"x", 0)) == [(0, 0)]
        assert await produce(client, transactional(b"x", 0)) == [(0, 0)]
        log.append_marker(PID, 0, 1, commit=True, transaction_version=0)
        assert await produce(client, transactional(b"x", 0)) == [(0, 0)], "verified again, and known"
        assert (log.end, len(coordinator.asked)) == (2, 2)


async def test_whole_requests_that_no_coordinator_can_be_asked_for(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t", 2)
        mixed = transactional(b"a", 0), transactional(b"b", 0, pid=PID + 1)
        coordinator = with_coordinator(broker)
        mapping = (ErrorCode.INVALID_PRODUCER_ID_MAPPING, -1)
        assert await produce(client, *mixed) == [mapping] * 2
        assert await produce(client, mixed[0], transactional(b"b", 0, epoch=1)) == [mapping] * 2
        assert await produce(client, transactional(b"a", -1, pid=-1)) == [mapping]
        unauthorized = ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        for topic in ("t", "missing"):
            request = produce_request([("t", 1, batch_of(b"plain")), (topic, 0, mixed[0])])
            answer = await client.ask(ApiKey.PRODUCE, 11, request)
            codes = [p.error_code for t in answer.responses for p in t.partition_responses]
            assert codes == [unauthorized] * 2
        assert not coordinator.asked


@pytest.mark.parametrize(
    ("version", "error"),
    [(9, ErrorCode.INVALID_TXN_STATE), (11, ErrorCode.TRANSACTION_ABORTABLE), (12, ErrorCode.TRANSACTION_ABORTABLE)],
)
async def test_a_transaction_whose_end_may_be_lost_is_aborted_before_the_next_one(
    tmp_path: Path, version: int, error: ErrorCode
) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        assert await produce(client, transactional(b"a", 0), version=version) == [(0, 0)]
        await broker.commit([log])
        hole_end = log.end + f.LOSS_GAP
        broker.controller.apply(
            f.WalLost(WAL_ID, 0, 0, 0),
            f.LossDeclared(log.log_id, log.end, hole_end),
            f.LeaderNamed(log.log_id, 1, 77, 1, WAL_ID),
        )
        await until(lambda: broker.log("t").serving)
        log = broker.log("t")
        # A batch of the same epoch, and one of a later transaction, which the coordinator knows of by now.
        assert await produce(client, transactional(b"b", 1), version=version) == [(error, -1)]
        assert await produce(client, transactional(b"c", 0, epoch=1), version=version) == [(error, -1)]
        assert [one[2] for one in coordinator.asked] == [0, 1]
        assert (log.end, log.lso) == (hole_end, 0)
        sequence = log.append_marker(PID, 2, 1, commit=False, transaction_version=2)
        await until(lambda: broker.validation.validated >= sequence)
        assert log.lso == hole_end + 1
        assert await produce(client, transactional(b"d", 0, epoch=2), version=version) == [(0, hole_end + 1)]


async def test_a_client_that_left_while_its_batch_was_verified(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        (log,) = broker.create_topic("t")
        coordinator = with_coordinator(broker)
        coordinator.free.clear()
        async with RawClient(broker.port) as client:
            request = produce_request([("t", 0, transactional(b"x", 0))], transactional_id="tx")
            client.send(ApiKey.PRODUCE, 11, request)
            await until(lambda: bool(coordinator.asked))
        await until(lambda: not broker.server.hub.connections)
        coordinator.free.set()
        await until(lambda: broker.server.hub.budget.used == 0)
        assert log.end == 0


async def test_the_same_partition_twice_has_one_answer_and_the_last_batch_counts(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        logs = broker.create_topic("t", 2)
        request = produce_request([("t", 0, batch_of(b"1")), ("t", 1, batch_of(b"2")), ("t", 0, batch_of(b"3", b"4"))])
        answer = await client.ask(ApiKey.PRODUCE, 11, request)
        got = [(p.index, p.error_code, p.base_offset) for t in answer.responses for p in t.partition_responses]
        assert got == [(0, 0, 0), (1, 0, 0)]
        assert [log.end for log in logs] == [2, 1]


async def test_markers_are_refused_where_the_log_cannot_take_them(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker:
        (log,) = broker.create_topic("t")
        told: list[tuple[str, int, bool]] = []
        broker.logs.on_marker(lambda of, pid, commit: told.append((of.topic, pid, commit)))
        log.append_marker(PID, 3, 7, commit=False, transaction_version=1)
        assert told == [("t", PID, False)]

        def refused(epoch: int, coordinator_epoch: int, version: int) -> ErrorCode:
            with pytest.raises(KafkaError) as caught:
                log.append_marker(PID, epoch, coordinator_epoch, commit=True, transaction_version=version)
            return caught.value.code

        assert refused(2, 7, 1) is ErrorCode.INVALID_PRODUCER_EPOCH
        assert refused(3, 6, 1) is ErrorCode.TRANSACTION_COORDINATOR_FENCED
        log.append_marker(PID, 3, 7, commit=False, transaction_version=2)
        broker.session.end()
        assert refused(2, 7, 1) is ErrorCode.NOT_LEADER_OR_FOLLOWER, "somebody else may know better"
        log.freeze()
        assert refused(9, 9, 1) is ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert len(told) == 2
