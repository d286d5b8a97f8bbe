"""Steps about records: produce, fetch, offsets by time, deleting records, producer ids."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.records import batch_crc, build_batch
from tests.differential.machine import NAMES, UNKNOWN_ID, Machine

TIME = 1_700_000_000_000
SHORT = st.sampled_from((NAMES[0], *NAMES))
PARTITION = st.sampled_from([0, 0, 0, 1, 2, 9, -1])
OFFSET = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 100, -1])
EPOCH = st.sampled_from([-1, -1, -1, 0, 1, 5])
FAULTS = (
    "crc",
    "cut",
    "magic",
    "empty",
    "two",
    "length",
    "offset",
    "count",
    "future",
    "large",
    "control",
    "transactional",
    "codec",
    "no sequence",
)


class LogSteps(Machine):
    """Produce, Fetch, ListOffsets, OffsetForLeaderEpoch, DeleteRecords, InitProducerId."""

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.producers: list[tuple[int, int]] = []  # (Kafka's id, epoch)
        self.sequences: dict[tuple[int, int, str, int], int] = {}

    @initialize(stamped=st.booleans())
    def begin(self, stamped: bool) -> None:
        """Topics to begin with: most steps are about what is there."""
        config = m.CreateTopicsRequest.CreatableTopicConfig
        kind = "LogAppendTime" if stamped else "CreateTime"
        topic = m.CreateTopicsRequest.CreatableTopic(
            name=self.name(NAMES[0]),
            num_partitions=2,
            replication_factor=1,
            configs=[config(name="message.timestamp.type", value=kind)],
        )
        self.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic], timeout_ms=10_000))
        self.wait_for_topic(topic.name, 2)

    @rule(data=st.data())
    def init_producer(self, data: st.DataObject) -> None:
        """A new idempotent producer, or a bump of one that is known."""
        version = self.version(data, ApiKey.INIT_PRODUCER_ID)
        answer = self.ask(
            ApiKey.INIT_PRODUCER_ID,
            version,
            m.InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=1000),
        )
        if answer is not None and answer.error_code == 0:
            self.producers.append((answer.producer_id, answer.producer_epoch))

    @rule(data=st.data(), short=SHORT, partition=PARTITION, count=st.integers(1, 4), codec=st.integers(0, 4))
    def produce(self, data: st.DataObject, short: str, partition: int, count: int, codec: int) -> None:
        """A batch as a client makes it, from no producer or an idempotent one, sometimes out of sequence."""
        name = self.name(short)
        options: dict[str, Any] = {"codec": codec}
        key: Any = None
        if self.producers and data.draw(st.booleans(), label="idempotent"):
            producer_id, epoch = data.draw(st.sampled_from(self.producers))
            key = (producer_id, epoch, name, partition)
            slip = data.draw(st.sampled_from([0, 0, 0, 0, -1, 1, 7]), label="slip")
            sequence = max(0, self.sequences.get(key, 0) + slip)
            options.update(producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)
        step = data.draw(st.sampled_from([1, 0, 1000, -5]))
        records = [
            (TIME + step * number, b"k%d" % number, b"v%d" % data.draw(st.integers(0, 9)), ())
            for number in range(count)
        ]
        version = self.version(data, ApiKey.PRODUCE, first=3)
        answer = self.send(version, name, partition, bytes(build_batch(records, **options)), options)
        if answer is not None and key is not None:
            parts = [part for topic in answer.responses for part in topic.partition_responses]
            if parts and parts[0].error_code == 0 and options["base_sequence"] == self.sequences.get(key, 0):
                self.sequences[key] = options["base_sequence"] + count

    @rule(
        data=st.data(),
        short=SHORT,
        fault=st.sampled_from(FAULTS),
    )
    def produce_badly(self, data: st.DataObject, short: str, fault: str) -> None:
        """What no client should send."""
        version, acks = self.version(data, ApiKey.PRODUCE, first=3), data.draw(st.sampled_from([-1, 1, -1, 2]))
        self.send(version, self.name(short), 0, bad_batch(fault), {}, acks)

    def send(
        self,
        version: int,
        name: str,
        partition: int,
        batch: bytes,
        options: dict[str, Any],
        acks: int = -1,
        transactional_id: str | None = None,
    ) -> Any:
        """One batch; `options`: those it was built with."""
        by_id = version >= 13
        part = m.ProduceRequest.PartitionProduceData(index=partition, records=batch)
        topic = m.ProduceRequest.TopicProduceData(
            name="" if by_id else name,
            topic_id=self.topic_ids.get(name, UNKNOWN_ID) if by_id else bytes(16),
            partition_data=[part],
        )
        request = m.ProduceRequest(transactional_id=transactional_id, acks=acks, timeout_ms=5000, topic_data=[topic])
        producer_id = options.get("producer_id", -1)
        if producer_id < 0:
            return self.ask(ApiKey.PRODUCE, version, request)
        return self._ask_with_producer(version, request, part, batch, producer_id)

    def _ask_with_producer(self, version: int, request: Any, part: Any, batch: bytes, producer_id: int) -> Any:
        """Producer ids lie inside the batch, where `Values` cannot see them: it is written anew for ours."""
        pair = self.pair
        ours = pair.values.counterpart("producer_id", producer_id)
        pair.translate_records = lambda data: with_producer(data, ours) if data == batch else data
        try:
            return self.ask(ApiKey.PRODUCE, version, request)
        finally:
            pair.translate_records = None

    @rule(data=st.data(), short=SHORT, partition=PARTITION, offset=OFFSET)
    def fetch(self, data: st.DataObject, short: str, partition: int, offset: int) -> None:
        """From an offset, without a fetch session."""
        name = self.name(short)
        version = self.version(data, ApiKey.FETCH, first=4)
        by_id = version >= 13
        wanted = m.FetchRequest.FetchPartition(
            partition=partition,
            fetch_offset=offset,
            partition_max_bytes=data.draw(st.sampled_from([1 << 20, 1 << 20, 1, 0])),
            current_leader_epoch=data.draw(EPOCH, label="epoch") if version >= 9 else -1,
        )
        topic = m.FetchRequest.FetchTopic(
            topic="" if by_id else name,
            topic_id=self.topic_ids.get(name, UNKNOWN_ID) if by_id else bytes(16),
            partitions=[wanted],
        )
        self.ask(
            ApiKey.FETCH,
            version,
            m.FetchRequest(
                max_wait_ms=0,
                min_bytes=data.draw(st.sampled_from([0, 1])),
                max_bytes=data.draw(st.sampled_from([1 << 25, 1 << 25, 1])),
                isolation_level=data.draw(st.sampled_from([0, 1])),
                topics=[topic],
            ),
        )

    @rule(
        data=st.data(),
        short=SHORT,
        partition=PARTITION,
        spec=st.sampled_from([-1, -2, -3, -4, -5, -6, TIME - 1, TIME, TIME + 1, TIME + 1000, TIME + 10**9, 0]),
    )
    def list_offsets(self, data: st.DataObject, short: str, partition: int, spec: int) -> None:
        """By any spec."""
        version = self.version(data, ApiKey.LIST_OFFSETS)
        asked = m.ListOffsetsRequest.ListOffsetsPartition(
            partition_index=partition,
            timestamp=spec,
            current_leader_epoch=data.draw(EPOCH, label="epoch") if version >= 4 else -1,
        )
        topic = m.ListOffsetsRequest.ListOffsetsTopic(name=self.name(short), partitions=[asked])
        self.ask(
            ApiKey.LIST_OFFSETS,
            version,
            m.ListOffsetsRequest(
                replica_id=data.draw(st.sampled_from([-1] * 6 + [-2, 0]), label="replica"),
                isolation_level=data.draw(st.sampled_from([0, 1])) if version >= 2 else 0,
                topics=[topic],
                timeout_ms=5000,
            ),
        )

    @rule(data=st.data(), short=SHORT, partition=PARTITION, epoch=st.sampled_from([0, 0, 1, 5, -1]))
    def leader_epoch_end(self, data: st.DataObject, short: str, partition: int, epoch: int) -> None:
        """Where an epoch ends."""
        asked = m.OffsetForLeaderEpochRequest.OffsetForLeaderPartition(
            partition=partition, current_leader_epoch=data.draw(EPOCH), leader_epoch=epoch
        )
        topic = m.OffsetForLeaderEpochRequest.OffsetForLeaderTopic(topic=self.name(short), partitions=[asked])
        self.ask(
            ApiKey.OFFSET_FOR_LEADER_EPOCH,
            self.version(data, ApiKey.OFFSET_FOR_LEADER_EPOCH),
            m.OffsetForLeaderEpochRequest(replica_id=-2, topics=[topic]),
        )

    @rule(data=st.data(), short=SHORT, partition=PARTITION, offset=OFFSET)
    def delete_records(self, data: st.DataObject, short: str, partition: int, offset: int) -> None:
        """Up to an offset, or the high watermark."""
        asked = m.DeleteRecordsRequest.DeleteRecordsPartition(partition_index=partition, offset=offset)
        topic = m.DeleteRecordsRequest.DeleteRecordsTopic(name=self.name(short), partitions=[asked])
        self.ask(
            ApiKey.DELETE_RECORDS,
            self.version(data, ApiKey.DELETE_RECORDS),
            m.DeleteRecordsRequest(topics=[topic], timeout_ms=10_000),
        )

    @rule(data=st.data(), shorts=st.lists(SHORT, min_size=1, max_size=2, unique=True))
    def describe_log_dirs(self, data: st.DataObject, shorts: list[str]) -> None:
        """How much there is of some topics."""
        topic = m.DescribeLogDirsRequest.DescribableLogDirTopic
        partitions = data.draw(st.sampled_from([[0], [0, 1], [9], []]))
        request = m.DescribeLogDirsRequest(
            topics=[topic(topic=self.name(short), partitions=partitions) for short in shorts]
        )
        self.ask(ApiKey.DESCRIBE_LOG_DIRS, self.version(data, ApiKey.DESCRIBE_LOG_DIRS), request)


def with_producer(batch: bytes, producer_id: int) -> bytes:
    """The batch from another producer."""
    changed = bytearray(batch)
    changed[43:51] = producer_id.to_bytes(8, "big", signed=True)
    changed[17:21] = batch_crc(changed, 0, len(changed)).to_bytes(4, "big")
    return bytes(changed)


def bad_batch(fault: str) -> bytes:
    records: list[Any] = [(TIME, b"k", b"value", ()), (TIME + 1, b"k", b"value", ())]
    batch = build_batch(records)
    match fault:
        case "crc":
            batch[-1] ^= 1
        case "cut":
            del batch[-3:]
        case "magic":
            batch[16] = 1
        case "empty":
            return b""
        case "two":
            batch += build_batch(records)
        case "length":
            batch[8:12] = (7).to_bytes(4, "big")
        case "offset":
            batch = build_batch(records, base_offset=5)
        case "count":
            batch[57:61] = (5).to_bytes(4, "big")
            _seal(batch)
        case "future":
            batch = build_batch([(TIME * 2, b"k", b"v", ())])
        case "large":
            batch = build_batch([(TIME, b"k", bytes(1_100_000), ())])
        case "control":
            batch = build_batch(records, control=True)
        case "transactional":
            batch = build_batch(records, transactional=True, producer_id=1, producer_epoch=0, base_sequence=0)
        case "codec":
            batch[22] = 6
            _seal(batch)
        case "no sequence":
            batch = build_batch(records, producer_id=1, producer_epoch=0, base_sequence=-1)
    return bytes(batch)


def _seal(batch: bytearray) -> None:
    batch[17:21] = batch_crc(batch, 0, len(batch)).to_bytes(4, "big")
