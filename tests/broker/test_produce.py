"""Produce and InitProducerId over real sockets: versions, acks, refusals, idempotence, waiting for space."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.log import LogStatus
from controller import facts as f
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode, KafkaError
from protocol.records import Codec, build_batch, build_control_batch, check_crc, parse_header, records
from tests.support.hot_broker import INCARNATION, NODE, WAL_ID, HotBroker, topic_id_of
from tests.support.manual_clock import ManualClock
from tests.support.raw_client import RawClient, batch_of, produce_request
from tests.support.waiting import until

NOW = 1_700_000_000_000


def topic_key(name: str, version: int) -> str | bytes:
    return topic_id_of(name) if version >= 13 else name


@pytest.mark.parametrize("version", range(3, 14))
async def test_every_version_appends_in_order(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        for i in range(3):
            request = produce_request([(topic_key("t", version), 0, batch_of(b"a", b"b"))])
            answer = await client.ask(ApiKey.PRODUCE, version, request)
            part = answer.responses[0].partition_responses[0]
            assert (part.index, part.error_code, part.base_offset, part.log_append_time_ms) == (0, 0, 2 * i, -1)
            assert part.log_start_offset == (0 if version >= 5 else -1)
            assert answer.responses[0].name == ("t" if version < 13 else "")
            assert answer.responses[0].topic_id == (topic_id_of("t") if version >= 13 else bytes(16))
        assert (log.hw, log.end, log.lso) == (6, 6, 6)
        stored, _ = log.tail.read(0, log.hw, 1 << 20)
        for i, batch in enumerate(stored):
            header = parse_header(batch)
            assert (header.base_offset, header.leader_epoch) == (2 * i, log.epoch)
            assert check_crc(batch, 0, len(batch))
            assert [r.value for r in records(batch, max_size=1 << 20)] == [b"a", b"b"]


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_old_versions_answer_unsupported_version(tmp_path: Path, version: int) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        body = b"\xff\xff" + b"\0\0\x03\xe8" + b"\0\0\0\x01" + b"\0\x01t" + b"\0\0\0\x02"
        body += b"\0\0\0\x05" + b"\0\0\0\x03abc" + b"\0\0\0\x06" + b"\xff\xff\xff\xff"
        header = b"\0\0" + version.to_bytes(2, "big") + b"\0\0\0\x09" + b"\xff\xff"
        client.writer.write((len(header) + len(body)).to_bytes(4, "big") + header + body)
        frame = await client.receive_frame()
        refused = (35).to_bytes(2, "big") + b"\xff" * 8 + (b"\xff" * 8 if version == 2 else b"")
        wanted = b"\0\0\0\x09" + b"\0\0\0\x01" + b"\0\x01t" + b"\0\0\0\x02"
        wanted += b"\0\0\0\x05" + refused + b"\0\0\0\x06" + refused + (b"\0\0\0\0" if version else b"")
        assert frame == wanted
        assert broker.services.counters.errors == {35: 1}


async def test_acks_1_waits_like_all_and_acks_0_gets_no_answer(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        broker.gate.closed = True
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"0"))], acks=0))
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"1"))], acks=1))
        second = client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"2"))], acks=-1))
        await until(lambda: broker.gate.last[0] >= 3)
        await asyncio.sleep(0.01)
        assert (log.end, log.hw) == (3, 0)
        assert not broker.services.counters.bytes_out, "nothing is told before it is validated"
        broker.gate.open()
        _, answer = await client.receive(ApiKey.PRODUCE, 9)
        assert answer.responses[0].partition_responses[0].base_offset == 1
        number, answer = await client.receive(ApiKey.PRODUCE, 9)
        assert number == second
        assert answer.responses[0].partition_responses[0].base_offset == 2
        assert log.hw == 3


async def test_an_error_with_acks_0_closes_the_connection(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        client.send(ApiKey.PRODUCE, 9, produce_request([("missing", 0, batch_of(b"0"))], acks=0))
        assert await client.closed()


async def test_nothing_is_acknowledged_without_the_right_to(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        broker.session.end()
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"0"))]))
        await until(lambda: broker.gate.last[0] >= 1)
        await asyncio.sleep(0.01)
        assert (log.end, log.hw, broker.validation.withheld) == (1, 0, 1)
        assert not broker.services.counters.bytes_out


async def test_many_partitions_are_checked_before_the_first_is_appended(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        logs = broker.create_topic("t", 4)
        broken = batch_of(b"x")
        broken[-1] ^= 1
        request = produce_request(
            [
                ("t", 0, batch_of(b"a")),
                ("t", 1, broken),
                ("t", 7, batch_of(b"c")),
                ("missing", 0, batch_of(b"d")),
                ("t", 2, batch_of(b"e" * 6000)),
                ("t", 3, None),
            ]
        )
        answer = await client.ask(ApiKey.PRODUCE, 11, request)
        got = [(t.name, p.index, p.error_code, p.base_offset) for t in answer.responses for p in t.partition_responses]
        assert got == [
            ("t", 0, 0, 0),
            ("t", 1, ErrorCode.CORRUPT_MESSAGE, -1),
            ("t", 7, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1),
            ("missing", 0, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1),
            ("t", 2, 0, 0),
            ("t", 3, ErrorCode.INVALID_RECORD, -1),
        ]
        assert [log.end for log in logs] == [1, 0, 1, 0]
        assert broker.services.counters.errors == {2: 1, 3: 2, 87: 1}


def stamped(batch: bytearray, position: int, value: int) -> bytearray:
    """The batch with another byte and a right CRC."""
    from protocol.records import batch_crc

    batch[position] = value
    batch[17:21] = batch_crc(batch, 0, len(batch)).to_bytes(4, "big")
    return batch


@pytest.mark.parametrize(
    ("batch", "version", "code"),
    [
        (batch_of(b"x" * 2000), 9, ErrorCode.MESSAGE_TOO_LARGE),
        (stamped(batch_of(b"x"), 16, 1), 9, ErrorCode.INVALID_RECORD),
        (batch_of(b"x") + batch_of(b"y"), 9, ErrorCode.INVALID_RECORD),
        (batch_of(b"x")[:-3], 9, ErrorCode.INVALID_RECORD),
        (b"", 9, ErrorCode.INVALID_RECORD),
        (batch_of(b"x", base_offset=5), 9, ErrorCode.INVALID_RECORD),
        (stamped(batch_of(b"x"), 60, 2), 9, ErrorCode.INVALID_RECORD),
        (stamped(batch_of(b"x"), 22, 5), 9, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
        (batch_of(b"x", codec=Codec.ZSTD), 6, ErrorCode.UNSUPPORTED_COMPRESSION_TYPE),
        (batch_of(b"x", timestamp=NOW + 7_200_000), 9, ErrorCode.INVALID_TIMESTAMP),
        (batch_of(b"x", timestamp=NOW - 7_200_000), 9, ErrorCode.INVALID_TIMESTAMP),
        (batch_of(b"x", log_append_time=True), 9, ErrorCode.INVALID_TIMESTAMP),
        (
            build_control_batch(commit=True, producer_id=1, producer_epoch=0, coordinator_epoch=0, timestamp=NOW),
            9,
            ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        ),
        (stamped(batch_of(b"x"), 22, 0x20), 9, ErrorCode.INVALID_RECORD),
        (
            batch_of(b"x", producer_id=1, producer_epoch=0, base_sequence=0, transactional=True),
            9,
            ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        ),
    ],
)
async def test_what_may_not_be_appended(tmp_path: Path, batch: bytes, version: int, code: ErrorCode) -> None:
    async with HotBroker(tmp_path, ManualClock(NOW)) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t", max_message_bytes="1500", message_timestamp_before_max_ms="3600000")
        part = await client.produce("t", batch, version=version)
        assert (part.error_code, part.base_offset) == (code, -1)
        if version >= 8:
            assert part.error_message
            assert bool(part.record_errors) == (code == ErrorCode.INVALID_TIMESTAMP and b"x" in batch and batch[22] < 8)
        assert log.end == 0
        assert (await client.produce("t", batch_of(b"fine", timestamp=NOW), version=version)).base_offset == 0
        assert (await client.produce("t", batch_of(b"no time", timestamp=-1))).error_code == 0


async def test_zstd_is_taken_from_version_7_on(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        assert (await client.produce("t", batch_of(b"x" * 100, codec=Codec.ZSTD), version=7)).error_code == 0


async def test_refusals_of_a_whole_request(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        assert (await client.produce("t", batch_of(b"x"), acks=2)).error_code == ErrorCode.INVALID_REQUIRED_ACKS
        assert (await client.ask(ApiKey.PRODUCE, 9, produce_request([]))).responses == []


async def test_nothing_takes_the_place_of_a_batch_that_was_refused(tmp_path: Path) -> None:
    """The log has never heard of the producer: it would take any of its batches for the first."""

    def batch(producer_id: int, sequence: int) -> bytearray:
        return batch_of(b"x", b"y", producer_id=producer_id, producer_epoch=0, base_sequence=sequence)

    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        log.status = LogStatus.CLOSED
        assert (await client.produce("t", batch(7, 2))).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (await client.produce("t", batch(7, 0))).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        log.status = LogStatus.OPEN
        assert (await client.produce("t", batch(7, 2))).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (await client.produce("t", batch(8, 5))).base_offset == 0, "another producer's"
        assert (await client.produce("t", batch_of(b"z"))).base_offset == 2, "nobody's"
        assert (await client.produce("t", batch(7, 0))).base_offset == 3
        assert (await client.produce("t", batch(7, 2))).base_offset == 5
        assert (await client.produce("t", batch(7, 0))).base_offset == 3, "a repeat"
        assert (await client.produce("t", batch(7, 4))).base_offset == 7


async def test_internal_topics_are_the_brokers_own(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("__consumer_offsets", internal=True)
        part = await client.produce("__consumer_offsets", batch_of(b"x"))
        assert part.error_code == ErrorCode.INVALID_TOPIC_EXCEPTION
        sequence = log.append_own(batch_of(b"own"))
        validated = asyncio.Event()
        broker.validation.when_validated(sequence, validated.set)
        await asyncio.wait_for(validated.wait(), 5)
        assert log.hw == 1
        assert [bytes(b) async for b in log.read_all(0)] == [bytes(log.tail.read(0, 1, 100)[0][0])]


async def test_compacted_topics_need_keys(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t", cleanup_policy="compact")
        mixed = build_batch([(NOW, b"k", b"1", ()), (NOW, None, b"2", ())], codec=Codec.GZIP)
        part = await client.produce("t", mixed, version=8)
        assert part.error_code == ErrorCode.INVALID_RECORD
        assert [(e.batch_index, e.batch_index_error_message) for e in part.record_errors] == [
            (1, "Compacted topic cannot accept message without key")
        ]
        good = build_batch([(NOW, b"k", b"1", ())])
        assert (await client.produce("t", good)).error_code == 0
        unreadable = stamped(bytearray(build_batch([(NOW, b"k", b"v" * 100, ())])), 61, 0x7F)
        assert (await client.produce("t", unreadable)).error_code == ErrorCode.INVALID_RECORD


async def test_log_append_time_is_stamped(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    async with HotBroker(tmp_path, clock) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t", message_timestamp_type="LogAppendTime")
        part = await client.produce("t", batch_of(b"a", b"b", timestamp=5))
        assert (part.error_code, part.log_append_time_ms) == (0, NOW)
        (stored,), _ = log.tail.read(0, 2, 1 << 20)
        assert check_crc(stored, 0, len(stored))
        assert [r.timestamp for r in records(stored, max_size=1000)] == [NOW, NOW]
        broker.controller.apply(f.ConfigsChanged(2, "t", (("message.timestamp.type", "CreateTime"),)))
        assert (await client.produce("t", batch_of(b"c", timestamp=NOW))).log_append_time_ms == -1


async def test_the_leader_travels_with_the_refusal(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("theirs", lead=False)
        for version in (9, 10, 13):
            request = produce_request([(topic_key("theirs", version), 0, batch_of(b"x"))])
            answer = await client.ask(ApiKey.PRODUCE, version, request)
            part = answer.responses[0].partition_responses[0]
            assert part.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
            if version >= 10:
                assert (part.current_leader.leader_id, part.current_leader.leader_epoch) == (2, 0)
                (endpoint,) = answer.node_endpoints
                assert (endpoint.node_id, endpoint.host, endpoint.port, endpoint.rack) == (2, "other", 9, "rack-b")
        unknown = await client.ask(ApiKey.PRODUCE, 13, produce_request([(b"?" * 16, 0, batch_of(b"x"))]))
        assert unknown.responses[0].partition_responses[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID


async def test_frozen_moved_and_deleted_logs_refuse(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        frozen, moved = broker.create_topic("t", 2)
        broker.create_topic("gone")
        frozen.freeze()
        assert (await client.produce("t", batch_of(b"x"))).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        broker.controller.apply(f.LeaderNamed(moved.log_id, 2, 88, 1, bytes(range(16, 32))))
        part = await client.produce("t", batch_of(b"x"), partition=1, version=10)
        assert (part.error_code, part.current_leader.leader_id) == (ErrorCode.NOT_LEADER_OR_FOLLOWER, 2)
        with pytest.raises(KafkaError) as caught:
            moved.append_own(batch_of(b"x"))
        assert caught.value.code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        broker.controller.apply(f.TopicDeleted(topic_id_of("gone")))
        assert (await client.produce("gone", batch_of(b"x"))).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        broker.controller.apply(f.LeaderNamed(moved.log_id, NODE, INCARNATION, 2, WAL_ID))
        assert (await client.produce("t", batch_of(b"x"), partition=1)).base_offset == 0
        assert broker.log("t", 1).epoch == 2


def idempotent(sequence: int, *values: bytes, epoch: int = 0) -> bytearray:
    return batch_of(*values, producer_id=7, producer_epoch=epoch, base_sequence=sequence)


async def test_a_duplicate_is_answered_when_its_original_is_validated(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as first, RawClient(broker.port) as again:
        (log,) = broker.create_topic("t")
        broker.gate.closed = True
        first.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, idempotent(0, b"a", b"b"))]))
        await until(lambda: log.end == 2)
        again.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, idempotent(0, b"a", b"b"))]))
        await until(lambda: broker.services.counters.duplicates)
        await asyncio.sleep(0.01)
        assert not broker.services.counters.bytes_out
        broker.gate.open()
        for client in (first, again):
            _, answer = await client.receive(ApiKey.PRODUCE, 9)
            part = answer.responses[0].partition_responses[0]
            assert (part.error_code, part.base_offset) == (0, 0)
        part = await again.produce("t", idempotent(0, b"a", b"b"))
        assert (part.error_code, part.base_offset) == (0, 0)
        assert log.end == 2


async def test_sequences_and_epochs(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        assert (await client.produce("t", idempotent(0, b"a"))).base_offset == 0
        assert (await client.produce("t", idempotent(2, b"c"))).error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        assert (await client.produce("t", idempotent(1, b"b"))).base_offset == 1
        assert (await client.produce("t", idempotent(0, b"a", epoch=1))).base_offset == 2
        assert (await client.produce("t", idempotent(2, b"c"))).error_code == ErrorCode.INVALID_PRODUCER_EPOCH


async def test_a_broker_that_may_have_been_replaced_refuses_no_sequence(tmp_path: Path) -> None:
    """The producer may have gone on at the next leader: OUT_OF_ORDER_SEQUENCE_NUMBER would end its session."""
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        broker.create_topic("t")
        assert (await client.produce("t", idempotent(0, b"a"))).base_offset == 0
        broker.session.deadline_ms = 0
        assert (await client.produce("t", idempotent(2, b"c"))).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert (await client.produce("t", idempotent(1, b"b"))).base_offset == 1


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        logs = broker.create_topic("t", 4)
        sent: list[tuple[ApiKey, int]] = []
        for i in range(300):
            if i % 7 == 0:
                sent.append((ApiKey.API_VERSIONS, client.send(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())))
            else:
                size = 5 if i % 5 else 90_000
                request = produce_request([("t", i % 4, batch_of(b"v" * size))])
                sent.append((ApiKey.PRODUCE, client.send(ApiKey.PRODUCE, 9, request)))
        for api, number in sent:
            got, answer = await client.receive(api, 9 if api == ApiKey.PRODUCE else 0)
            assert got == number
            if api == ApiKey.PRODUCE:
                assert answer.responses[0].partition_responses[0].error_code == 0
        assert sum(log.hw for log in logs) == 300 - 43


async def test_a_full_tail_makes_producers_wait_and_then_go_on(tmp_path: Path) -> None:
    async with (
        HotBroker(tmp_path, tidelog_tail_bytes_max=1 << 20, tidelog_tail_keep_bytes=0) as broker,
        RawClient(broker.port) as client,
        RawClient(broker.port) as other,
    ):
        (log,) = broker.create_topic("t")
        for _ in range(9):
            assert (await client.produce("t", batch_of(b"x" * 100_000))).error_code == 0
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"x" * 100_000))]))
        # The connection that waits is muted, others are served.
        client.send(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
        await until(lambda: len(broker.logs.space))
        await other.ask(ApiKey.API_VERSIONS, 0, m.ApiVersionsRequest())
        assert log.end == 9
        assert broker.server.hub.budget.used > 100_000
        await broker.commit([log])
        _, answer = await client.receive(ApiKey.PRODUCE, 9)
        assert answer.responses[0].partition_responses[0].base_offset == 9
        await client.receive(ApiKey.API_VERSIONS, 0)
        assert broker.services.counters.full_waits == 1


async def test_a_full_tail_is_a_retriable_error_in_the_end(tmp_path: Path) -> None:
    async with (
        HotBroker(tmp_path, tidelog_tail_bytes_max=1 << 20, tidelog_tail_keep_bytes=0) as broker,
        RawClient(broker.port) as client,
        RawClient(broker.port) as other,
    ):
        (log,) = broker.create_topic("t")
        (own,) = broker.create_topic("__internal", internal=True)
        for _ in range(9):
            assert (await client.produce("t", batch_of(b"x" * 100_000))).error_code == 0
        part = await client.produce("t", batch_of(b"x" * 100_000), timeout_ms=30)
        assert part.error_code == ErrorCode.NOT_ENOUGH_REPLICAS
        # The last 5 % are for coordinators.
        own.append_own(batch_of(b"x" * 100_000))
        with pytest.raises(KafkaError) as caught:
            own.append_own(batch_of(b"x" * 100_000))
        assert caught.value.code == ErrorCode.NOT_ENOUGH_REPLICAS
        # Whoever comes while others wait queues behind them, and a connection that goes away is forgotten.
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"x" * 100_000))], timeout_ms=10_000))
        await until(lambda: len(broker.logs.space))
        assert (await other.produce("t", batch_of(b"x"), timeout_ms=10)).error_code == ErrorCode.NOT_ENOUGH_REPLICAS
        client.writer.transport.abort()
        await until(lambda: len(broker.server.hub.connections) == 1)
        await broker.commit([log])
        assert (await other.produce("t", batch_of(b"x"))).base_offset == 9


async def test_a_full_wal_makes_producers_wait(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tidelog_wal_bytes_max": 6 << 20, "message_max_bytes": 1 << 20}
    async with HotBroker(tmp_path, **settings) as broker, RawClient(broker.port) as client:
        (log,) = broker.create_topic("t")
        part = None
        while part is None or not part.error_code:
            part = await client.produce("t", batch_of(b"x" * 500_000), timeout_ms=500)
            assert log.end < 20
        assert part.error_code == ErrorCode.NOT_ENOUGH_REPLICAS
        client.send(ApiKey.PRODUCE, 9, produce_request([("t", 0, batch_of(b"y" * 500_000))], timeout_ms=10_000))
        await until(lambda: len(broker.logs.space))
        await broker.commit([log])
        broker.wal.trim(broker.validation.validated_group)
        _, answer = await client.receive(ApiKey.PRODUCE, 9)
        assert answer.responses[0].partition_responses[0].error_code == 0


async def test_producer_ids_come_in_blocks(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        ids = []
        for version in [*range(6)] * 2:
            answer = await client.ask(ApiKey.INIT_PRODUCER_ID, version, m.InitProducerIdRequest(transactional_id=None))
            assert (answer.error_code, answer.producer_epoch) == (0, 0)
            ids.append(answer.producer_id)
        assert ids == list(range(12))
        assert len(broker.controller.asked) == 1
        again = m.InitProducerIdRequest(transactional_id=None, producer_id=3, producer_epoch=4)
        assert (await client.ask(ApiKey.INIT_PRODUCER_ID, 5, again)).producer_id == 12
        wrong = m.InitProducerIdRequest(transactional_id=None, producer_id=3)
        answer = await client.ask(ApiKey.INIT_PRODUCER_ID, 5, wrong)
        assert (answer.error_code, answer.producer_id) == (ErrorCode.INVALID_REQUEST, -1)


async def test_a_controller_that_is_away_is_a_retriable_error(tmp_path: Path) -> None:
    async with HotBroker(tmp_path) as broker, RawClient(broker.port) as client:
        request = m.InitProducerIdRequest(transactional_id=None)
        for refusal, code in (
            (ErrorCode.REQUEST_TIMED_OUT, ErrorCode.REQUEST_TIMED_OUT),
            (ErrorCode.STALE_BROKER_EPOCH, ErrorCode.COORDINATOR_LOAD_IN_PROGRESS),
        ):
            broker.controller.refuse = KafkaError(refusal)
            assert (await client.ask(ApiKey.INIT_PRODUCER_ID, 4, request)).error_code == code
        broker.controller.refuse = None
        assert (await client.ask(ApiKey.INIT_PRODUCER_ID, 4, request)).producer_id == 0
