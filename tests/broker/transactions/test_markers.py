"""WriteTxnMarkers and DescribeProducers over real sockets, and what consumers see of transactions meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.log import Log, LogStatus
from controller import facts as f
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode, KafkaError
from protocol.records import parse_end_txn_marker, parse_header, records
from storage.producers import ProducerStates
from tests.broker.transactions.test_transactional_produce import PID, produce, transactional, with_coordinator
from tests.support.hot_broker import OTHER_INCARNATION, OTHER_NODE, OTHER_WAL, HotBroker
from tests.support.manual_clock import ManualClock
from tests.support.raw_client import RawClient, batch_of
from tests.support.waiting import until

NOW = 1_700_000_000_000
COMMITTED = 1


def markers(
    *parts: tuple[str, int],
    pid: int = PID,
    epoch: int = 0,
    coordinator_epoch: int = 1,
    commit: bool = True,
    transaction_version: int = 0,
) -> Any:
    """One marker for these partitions."""
    asked = m.WriteTxnMarkersRequest
    topics = [asked.WritableTxnMarkerTopic(name=name, partition_indexes=[partition]) for name, partition in parts]
    marker = asked.WritableTxnMarker(
        producer_id=pid,
        producer_epoch=epoch,
        transaction_result=commit,
        topics=topics,
        coordinator_epoch=coordinator_epoch,
        transaction_version=transaction_version,
    )
    return asked(markers=[marker])


def outcomes(answer: Any) -> list[int]:
    return [p.error_code for one in answer.markers for topic in one.topics for p in topic.partitions]


async def write(client: RawClient, *parts: tuple[str, int], version: int = 2, **fields: Any) -> list[int]:
    return outcomes(await client.ask(ApiKey.WRITE_TXN_MARKERS, version, markers(*parts, **fields)))


async def describe(client: RawClient, topic: str, *partitions: int) -> Any:
    asked = m.DescribeProducersRequest.TopicRequest(name=topic, partition_indexes=list(partitions))
    return (await client.ask(ApiKey.DESCRIBE_PRODUCERS, 0, m.DescribeProducersRequest(topics=[asked]))).topics[0]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_marker_is_answered_once_it_is_validated_and_only_then_moves_the_last_stable_offset(
    tmp_path: Path, version: int
) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client, RawClient(broker.port) as reader:
        logs = broker.create_topic("t", 2)
        with_coordinator(broker)
        await produce(client, transactional(b"a", 0), transactional(b"b", 0))
        broker.gate.closed = True
        request = markers(("t", 0), ("t", 1), ("t", 9), ("missing", 0))
        client.send(ApiKey.WRITE_TXN_MARKERS, version, request)
        await until(lambda: broker.gate.last[0] >= 4)
        await asyncio.sleep(0.01)
        assert [(log.end, log.lso) for log in logs] == [(2, 0), (2, 0)]
        seen = await reader.fetch("t", 0, isolation_level=COMMITTED)
        assert (seen.records or b"", seen.last_stable_offset, seen.high_watermark) == (b"", 0, 1)
        broker.gate.open()
        _, answer = await client.receive(ApiKey.WRITE_TXN_MARKERS, version)
        unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert outcomes(answer) == [0, 0, unknown, unknown]
        assert answer.markers[0].producer_id == PID
        assert [log.lso for log in logs] == [2, 2]
        stored, _ = logs[0].tail.read(1, 2, 1 << 20)
        header = parse_header(stored[0])
        assert (header.is_control, header.is_transactional, header.base_offset) == (True, True, 1)
        (record,) = records(stored[0], max_size=1000)
        marker = parse_end_txn_marker(record)
        assert marker is not None
        assert (marker.commit, marker.coordinator_epoch) == (True, 1)
        assert broker.services.counters.transaction_markers == 2


async def test_coordinators_and_epochs_are_fenced_and_repeats_succeed(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        with_coordinator(broker)
        part = ("t", 0)
        await produce(client, transactional(b"a", 0, epoch=3))
        assert await write(client, part, epoch=2) == [ErrorCode.INVALID_PRODUCER_EPOCH]
        late = [ErrorCode.INVALID_PRODUCER_EPOCH]
        assert await write(client, part, epoch=3, transaction_version=2) == late, "the epoch of what it ends"
        assert await write(client, part, epoch=4, coordinator_epoch=5, transaction_version=2) == [0]
        assert await write(client, part, epoch=4, coordinator_epoch=5, transaction_version=2) == [0], "a repeat"
        fenced = [ErrorCode.TRANSACTION_COORDINATOR_FENCED]
        assert await write(client, part, epoch=4, coordinator_epoch=4, transaction_version=2) == fenced
        assert await write(client, part, epoch=4, coordinator_epoch=5, commit=False) == [0]
        assert log.lso == log.hw == 4
        # The next transaction: a repeat of its predecessor's marker must not end it.
        await produce(client, transactional(b"b", 0, epoch=4), version=12)
        assert await write(client, part, epoch=4, coordinator_epoch=5, transaction_version=2) == late
        assert (log.hw, log.lso) == (5, 4)
        # Without the version a marker of the same epoch ends it: so did the first generation.
        assert await write(client, part, epoch=4, coordinator_epoch=5, version=1) == [0]
        assert log.lso == log.hw == 6


async def test_logs_that_take_no_markers_now(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        broker.create_topic("theirs", lead=False)
        elsewhere = ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert await write(client, ("theirs", 0), ("t", 0)) == [elsewhere, 0]
        log.status = LogStatus.MOVING
        assert await write(client, ("t", 0)) == [elsewhere]
        log.status = LogStatus.OPEN

        def loading(of: Log) -> None:
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "its groups are being loaded")

        broker.logs.before_marker(loading)
        assert await write(client, ("t", 0)) == [elsewhere]
        assert log.end == 1
        assert (await client.ask(ApiKey.WRITE_TXN_MARKERS, 2, m.WriteTxnMarkersRequest(markers=[]))).markers == []


async def test_markers_take_the_space_of_internal_logs_and_are_refused_when_that_is_full_too(tmp_path: Path) -> None:
    async with HotBroker(tmp_path, tidelog_tail_bytes_max=1 << 20) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        held = broker.logs.memory
        held.bytes += broker.logs.client_bytes_max
        assert await write(client, ("t", 0)) == [0], "what clients may not fill"
        held.bytes += 1 << 20
        assert await write(client, ("t", 0)) == [ErrorCode.NOT_ENOUGH_REPLICAS]
        held.bytes -= broker.logs.client_bytes_max + (1 << 20)
        assert log.end == 1


async def test_a_log_that_is_lost_while_its_marker_is_not_validated(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        lost, kept = broker.create_topic("t", 2)
        broker.gate.closed = True
        client.send(ApiKey.WRITE_TXN_MARKERS, 2, markers(("t", 0), ("t", 1)))
        await until(lambda: broker.gate.last[0] >= 2)
        broker.controller.apply(f.LeaderNamed(lost.log_id, OTHER_NODE, OTHER_INCARNATION, 1, OTHER_WAL))
        await asyncio.sleep(0)
        broker.gate.open()
        _, answer = await client.receive(ApiKey.WRITE_TXN_MARKERS, 2)
        assert outcomes(answer) == [ErrorCode.NOT_LEADER_OR_FOLLOWER, 0]
        assert not kept.waiters


async def test_producers_are_described_as_far_as_they_are_durable(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    async with HotBroker(tmp_path, clock) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        broker.create_topic("theirs", lead=False)
        with_coordinator(broker)
        plain = batch_of(b"x", b"y", producer_id=7, producer_epoch=1, base_sequence=0, timestamp=NOW)
        await client.produce("t", plain)
        await produce(client, transactional(b"a", 0))

        def shown(answer: Any) -> list[tuple[int, ...]]:
            return [
                (
                    p.producer_id,
                    p.producer_epoch,
                    p.last_sequence,
                    p.last_timestamp,
                    p.coordinator_epoch,
                    p.current_txn_start_offset,
                )
                for p in answer.partitions[0].active_producers
            ]

        assert shown(await describe(client, "t", 0)) == [(7, 1, 1, NOW + 1, -1, -1), (PID, 0, 0, NOW, -1, 2)]
        broker.gate.closed = True
        client.send(ApiKey.WRITE_TXN_MARKERS, 2, markers(("t", 0), coordinator_epoch=9, epoch=1, transaction_version=2))
        async with RawClient(broker.port) as other:
            await until(lambda: broker.gate.last[0] >= 3)
            assert shown(await describe(other, "t", 0))[1][5] == 2, "the marker is not durable"
            broker.gate.open()
            await client.receive(ApiKey.WRITE_TXN_MARKERS, 2)
            assert shown(await describe(other, "t", 0))[1:] == [(PID, 1, -1, NOW, 9, -1)]
            clock.advance(86_400_000)
            assert shown(await describe(other, "t", 0)) == []
            answer = await describe(other, "theirs", 0, 5)
            codes = [(p.error_code, p.active_producers) for p in answer.partitions]
            assert codes == [(ErrorCode.NOT_LEADER_OR_FOLLOWER, []), (ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, [])]
            broker.session.end()
            assert (await describe(other, "t", 0)).partitions[0].error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER


async def test_silent_producers_are_forgotten_and_those_with_open_transactions_are_not(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    settings = {"producer_id_expiration_check_interval_ms": 1}
    async with HotBroker(tmp_path, clock, **settings) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        with_coordinator(broker)
        await client.produce("t", batch_of(b"x", producer_id=7, producer_epoch=1, base_sequence=0, timestamp=NOW))
        await produce(client, transactional(b"a", 0))
        broker.services.tasks.spawn(broker.logs.expire_producers(), name="expire producers")
        await asyncio.sleep(0.02)
        assert log.producers.ids() == [7, PID]
        clock.advance(86_400_000)
        await until(lambda: log.producers.ids() == [PID])
        assert await write(client, ("t", 0)) == [0]
        clock.advance(86_400_000)
        await until(lambda: not log.producers.ids())
        assert log.producers.snapshot(log.hw) == b""
        states = ProducerStates()
        states.load(log.producers.snapshot(log.hw))
        assert not states.ids()


async def test_deleted_records_are_open_no_more_and_the_rest_of_their_transaction_can_be_aborted(
    tmp_path: Path,
) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        with_coordinator(broker)
        for n in range(4):
            await produce(client, transactional(b"%d" % n, n))
        await broker.commit([log])
        assert (log.hw, log.lso) == (4, 0)
        broker.controller.apply(f.LogStartAdvanced((f.LogStart(log.log_id, 2),)))
        assert (log.start, log.lso) == (2, 2)
        await client.produce("t", batch_of(b"later"))
        assert (log.hw, log.lso) == (5, 2)
        assert await write(client, ("t", 0), commit=False) == [0]
        seen = await client.fetch("t", 2, isolation_level=COMMITTED)
        assert log.lso == 6
        assert [(a.producer_id, a.first_offset) for a in seen.aborted_transactions] == [(PID, 0)]
