"""The transaction APIs on a whole broker, through sockets: both generations, fencing, offsets, looking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from protocol.records import iterate_batches, records
from tests.support.node_runs import NodeRuns, hurry
from tests.support.raw_client import RawClient, batch_of, fetch_request, produce_request

NONE = ErrorCode.NONE
T = "t"
GROUP = "g"


class Producer:
    """A transactional producer of few words: what it sends is what the test says."""

    def __init__(self, client: RawClient, transactional_id: str = "tx") -> None:
        self.client = client
        self.transactional_id = transactional_id
        self.identity = (-1, -1)
        self.sequences: dict[tuple[str, int], int] = {}

    async def init(self, version: int = 5, *, known: bool = False, timeout_ms: int = 60_000) -> int:
        """Tried again while the coordinator is loading or aborting."""
        while True:
            producer_id, epoch = self.identity if known else (-1, -1)
            answer = await self.client.ask(
                ApiKey.INIT_PRODUCER_ID,
                version,
                m.InitProducerIdRequest(
                    transactional_id=self.transactional_id,
                    transaction_timeout_ms=timeout_ms,
                    producer_id=producer_id,
                    producer_epoch=epoch,
                )
                if version >= 3
                else m.InitProducerIdRequest(transactional_id=self.transactional_id, transaction_timeout_ms=timeout_ms),
            )
            if answer.error_code not in (
                ErrorCode.CONCURRENT_TRANSACTIONS,
                ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,
                ErrorCode.NOT_COORDINATOR,
            ):
                break
            await asyncio.sleep(0.01)
        if answer.error_code == NONE:
            self.identity = (answer.producer_id, answer.producer_epoch)
            self.sequences.clear()
        return int(answer.error_code)

    async def add(self, *partitions: int, version: int = 3, topic: str = T) -> list[int]:
        answer = await self.client.ask(
            ApiKey.ADD_PARTITIONS_TO_TXN,
            version,
            m.AddPartitionsToTxnRequest(
                v3_and_below_transactional_id=self.transactional_id,
                v3_and_below_producer_id=self.identity[0],
                v3_and_below_producer_epoch=self.identity[1],
                v3_and_below_topics=[
                    m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name=topic, partitions=list(partitions))
                ],
            ),
        )
        (result,) = answer.results_by_topic_v3_and_below
        return [one.partition_error_code for one in result.results_by_partition]

    async def batched(self, *partitions: int, verify_only: bool, version: int = 5, topic: str = T) -> list[int]:
        answer = await self.client.ask(
            ApiKey.ADD_PARTITIONS_TO_TXN,
            version,
            m.AddPartitionsToTxnRequest(
                transactions=[
                    m.AddPartitionsToTxnRequest.AddPartitionsToTxnTransaction(
                        transactional_id=self.transactional_id,
                        producer_id=self.identity[0],
                        producer_epoch=self.identity[1],
                        verify_only=verify_only,
                        topics=[
                            m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name=topic, partitions=list(partitions))
                        ],
                    )
                ]
            ),
        )
        (result,) = answer.results_by_transaction
        return [one.partition_error_code for topic in result.topic_results for one in topic.results_by_partition]

    async def produce(self, value: bytes, partition: int = 0, version: int = 12, topic: str = T) -> int:
        sequence = self.sequences.get((topic, partition), 0)
        batch = batch_of(
            value,
            producer_id=self.identity[0],
            producer_epoch=self.identity[1],
            base_sequence=sequence,
            transactional=True,
        )
        answer = await self.client.ask(
            ApiKey.PRODUCE,
            version,
            produce_request([(topic, partition, batch)], transactional_id=self.transactional_id),
        )
        error = int(answer.responses[0].partition_responses[0].error_code)
        if error == NONE:
            self.sequences[topic, partition] = sequence + 1
        return error

    async def end(self, commit: bool, version: int = 5) -> int:
        answer = await self.client.ask(
            ApiKey.END_TXN,
            version,
            m.EndTxnRequest(
                transactional_id=self.transactional_id,
                producer_id=self.identity[0],
                producer_epoch=self.identity[1],
                committed=commit,
            ),
        )
        if version >= 5 and answer.error_code == NONE:
            self.identity = (answer.producer_id, answer.producer_epoch)
            self.sequences.clear()
        return int(answer.error_code)

    async def add_offsets(self, version: int = 4) -> int:
        answer = await self.client.ask(
            ApiKey.ADD_OFFSETS_TO_TXN,
            version,
            m.AddOffsetsToTxnRequest(
                transactional_id=self.transactional_id,
                producer_id=self.identity[0],
                producer_epoch=self.identity[1],
                group_id=GROUP,
            ),
        )
        return int(answer.error_code)

    async def commit_offset(self, offset: int, partition: int = 0, version: int = 5, **member: Any) -> int:
        answer = await self.client.ask(
            ApiKey.TXN_OFFSET_COMMIT,
            version,
            m.TxnOffsetCommitRequest(
                transactional_id=self.transactional_id,
                group_id=GROUP,
                producer_id=self.identity[0],
                producer_epoch=self.identity[1],
                topics=[
                    m.TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic(
                        name=T,
                        partitions=[
                            m.TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition(
                                partition_index=partition, committed_offset=offset, committed_metadata="m"
                            )
                        ],
                    )
                ],
                **member,
            ),
        )
        return int(answer.topics[0].partitions[0].error_code)


async def settled(producer: Producer) -> str:
    """The state of the transaction once its markers are written."""
    while True:
        state = await described(producer)
        if not state.transaction_state.startswith("Prepare"):
            return str(state.transaction_state)
        await asyncio.sleep(0.01)


async def described(producer: Producer) -> Any:
    request = m.DescribeTransactionsRequest(transactional_ids=[producer.transactional_id])
    answer = await producer.client.ask(ApiKey.DESCRIBE_TRANSACTIONS, 0, request)
    return answer.transaction_states[0]


async def fetched(client: RawClient, require_stable: bool = True) -> list[tuple[int, int, int]]:
    """(partition, offset, error) of the group."""
    while True:
        answer = await client.ask(
            ApiKey.OFFSET_FETCH,
            8,
            m.OffsetFetchRequest(
                groups=[
                    m.OffsetFetchRequest.OffsetFetchRequestGroup(
                        group_id=GROUP,
                        topics=[m.OffsetFetchRequest.OffsetFetchRequestTopics(name=T, partition_indexes=[0, 1])],
                    )
                ],
                require_stable=require_stable,
            ),
        )
        group = answer.groups[0]
        if group.error_code == NONE:
            return [(one.partition_index, one.committed_offset, one.error_code) for one in group.topics[0].partitions]
        assert group.error_code in (ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, ErrorCode.NOT_COORDINATOR)
        await asyncio.sleep(0.01)


async def find(client: RawClient, key_type: int, key: str) -> None:
    request = m.FindCoordinatorRequest(key_type=key_type, coordinator_keys=[key])
    while (await client.ask(ApiKey.FIND_COORDINATOR, 4, request)).coordinators[0].error_code != NONE:
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeRuns]:
    hurry(monkeypatch)
    made = NodeRuns(
        tmp_path,
        offsets_topic_num_partitions=2,
        transaction_state_log_num_partitions=2,
        transaction_abort_timed_out_transaction_cleanup_interval_ms=20,
    )
    async with made:
        await made.start()
        async with made.client() as client:
            topic = m.CreateTopicsRequest.CreatableTopic(name=T, num_partitions=2, replication_factor=1)
            await client.ask(ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic]))
            await find(client, 1, "tx")
        yield made


@pytest_asyncio.fixture
async def client(runs: NodeRuns) -> AsyncIterator[RawClient]:
    async with runs.client() as made:
        yield made


@pytest.mark.parametrize("version", range(6))
async def test_init_producer_id(client: RawClient, version: int) -> None:
    first, second = Producer(client), Producer(client)
    assert await first.init(version) == NONE
    assert await second.init(version) == NONE
    assert second.identity == (first.identity[0], first.identity[1] + 1)
    if version >= 3:
        fenced = await first.init(version, known=True)
        assert fenced == (ErrorCode.PRODUCER_FENCED if version >= 4 else ErrorCode.INVALID_PRODUCER_EPOCH)
    assert await Producer(client, "").init(version) == ErrorCode.INVALID_REQUEST
    assert await first.init(version, timeout_ms=900_001) == ErrorCode.INVALID_TRANSACTION_TIMEOUT


@pytest.mark.parametrize("version", range(4))
async def test_first_generation(client: RawClient, version: int) -> None:
    """AddPartitionsToTxn v0 to v3, EndTxn with the same version; a fenced producer gets the error that it knows."""
    producer = Producer(client)
    await producer.init()
    assert await producer.produce(b"x", version=11) == ErrorCode.TRANSACTION_ABORTABLE, "not added"
    assert await producer.add(0, 1, version=version) == [NONE, NONE]
    assert await producer.add(1, 2, version=version) == [
        ErrorCode.OPERATION_NOT_ATTEMPTED,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    ]
    assert await producer.produce(b"a", version=11) == NONE
    assert await producer.produce(b"b", 1, version=11) == NONE
    assert (await described(producer)).transaction_state == "Ongoing"
    assert await producer.end(True, version) == NONE
    assert await settled(producer) == "CompleteCommit"
    assert await producer.end(True, version) == NONE
    assert await producer.end(False, version) == ErrorCode.INVALID_TXN_STATE
    await Producer(client).init()
    fenced = ErrorCode.PRODUCER_FENCED if version >= 2 else ErrorCode.INVALID_PRODUCER_EPOCH
    assert await producer.add(0, version=version) == [fenced]
    assert await producer.end(True, version) == fenced
    assert await producer.add_offsets(version) == fenced


async def read(client: RawClient, partition: int = 0, *, committed: bool = True) -> list[bytes]:
    """Values that a consumer of this isolation sees."""
    request = fetch_request([(T, partition, 0)])
    request.isolation_level = 1 if committed else 0
    answer = await client.ask(ApiKey.FETCH, 11, request)
    part = answer.responses[0].partitions[0]
    aborted = {(one.producer_id, one.first_offset) for one in part.aborted_transactions or ()}
    open_aborts: set[int] = set()
    values: list[bytes] = []
    data = bytes(part.records or b"")
    for position, header in iterate_batches(data):
        batch = memoryview(data)[position : position + header.size]
        for producer_id, first in aborted:
            if header.producer_id == producer_id and header.base_offset >= first and not header.is_control:
                open_aborts.add(producer_id)
        if header.is_control:
            open_aborts.discard(header.producer_id)
            aborted = {one for one in aborted if one[0] != header.producer_id or one[1] > header.base_offset}
            continue
        if header.producer_id in open_aborts and committed:
            continue
        values += [record.value or b"" for record in records(batch)]
    return values


async def test_second_generation(client: RawClient) -> None:
    """A batch adds its partition, every transaction has its own epoch, and what was aborted is not seen."""
    producer = Producer(client)
    await producer.init()
    first = producer.identity
    assert await producer.produce(b"a") == NONE
    assert await producer.produce(b"b", 1) == NONE
    topics = (await described(producer)).topics
    assert [(topic.topic, topic.partitions) for topic in topics] == [(T, [0, 1])]
    assert await producer.end(True) == NONE
    assert producer.identity == (first[0], first[1] + 1)
    while await producer.produce(b"c") != NONE:  # the markers of the first may still be on their way
        await asyncio.sleep(0.01)
    assert await producer.end(False) == NONE
    assert producer.identity == (first[0], first[1] + 2)
    assert await settled(producer) == "CompleteAbort"
    assert await producer.end(False) == NONE, "an abort of nothing"
    assert await settled(producer) == "CompleteAbort"
    assert await producer.end(True) == ErrorCode.INVALID_TXN_STATE


async def test_a_producer_that_ends_is_told_its_epoch_again(client: RawClient) -> None:
    producer = Producer(client)
    await producer.init()
    await producer.produce(b"a")
    before = producer.identity
    await producer.end(True)
    after = producer.identity
    await settled(producer)
    producer.identity = before
    assert await producer.end(True) == NONE
    assert producer.identity == after
    producer.identity = before
    assert await producer.produce(b"late") == ErrorCode.INVALID_PRODUCER_EPOCH


@pytest.mark.parametrize("version", [4, 5])
async def test_brokers_verify_and_add(client: RawClient, version: int) -> None:
    producer = Producer(client)
    await producer.init()
    abortable = ErrorCode.TRANSACTION_ABORTABLE
    assert await producer.batched(0, verify_only=True, version=version) == [abortable]
    assert await producer.batched(0, verify_only=False, version=version) == [NONE]
    assert await producer.batched(0, 1, verify_only=True, version=version) == [NONE, abortable]
    assert await producer.batched(0, 9, verify_only=False, version=version) == [
        ErrorCode.OPERATION_NOT_ATTEMPTED,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    ]
    producer.identity = (producer.identity[0], 7)
    assert await producer.batched(0, verify_only=True, version=version) == [ErrorCode.PRODUCER_FENCED]
    producer.identity = (12345678, 0)
    assert await producer.batched(0, verify_only=False, version=version) == [ErrorCode.INVALID_PRODUCER_ID_MAPPING]
    producer.transactional_id = ""
    assert await producer.batched(0, verify_only=False, version=version) == [ErrorCode.INVALID_REQUEST]


async def test_a_timeout_aborts_and_fences(client: RawClient) -> None:
    producer = Producer(client)
    await producer.init(timeout_ms=50)
    await producer.produce(b"a")
    while (await described(producer)).transaction_state != "CompleteAbort":
        await asyncio.sleep(0.01)
    assert await producer.produce(b"b") == ErrorCode.INVALID_PRODUCER_EPOCH
    assert await producer.end(True) == ErrorCode.INVALID_TXN_STATE
    assert await producer.init() == NONE


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("version", range(6))
async def test_offsets_in_a_transaction(client: RawClient, version: int, commit: bool) -> None:
    producer = Producer(client)
    await producer.init()
    await find(client, 0, GROUP)
    assert (await fetched(client))[0] == (0, -1, NONE)
    if version < 5:
        refused = ErrorCode.TRANSACTION_ABORTABLE if version >= 4 else ErrorCode.INVALID_TXN_STATE
        assert await producer.commit_offset(7, version=version) == refused, "the group's offsets were not added"
        assert await producer.add_offsets(min(version, 4)) == NONE
    assert await producer.commit_offset(7, version=version) == NONE
    assert await producer.commit_offset(9, version=version) == NONE
    assert await producer.commit_offset(3, partition=5, version=version) == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await fetched(client))[0] == (0, -1, ErrorCode.UNSTABLE_OFFSET_COMMIT)
    assert (await fetched(client, require_stable=False))[0] == (0, -1, NONE)
    assert await producer.end(commit, version=min(version, 5)) == NONE
    await settled(producer)
    assert (await fetched(client))[0] == ((0, 9, NONE) if commit else (0, -1, NONE))
    late = await producer.commit_offset(11, version=min(version, 4))
    assert late in (ErrorCode.TRANSACTION_ABORTABLE, ErrorCode.INVALID_TXN_STATE), "outside of a transaction"


async def test_offsets_of_members(client: RawClient) -> None:
    producer = Producer(client)
    await producer.init()
    await find(client, 0, GROUP)
    await fetched(client)
    stranger = {"generation_id": 3, "member_id": "nobody"}
    assert await producer.commit_offset(7, **stranger) == ErrorCode.ILLEGAL_GENERATION
    assert await producer.commit_offset(7) == NONE
    assert await producer.commit_offset(7, **stranger) == ErrorCode.UNKNOWN_MEMBER_ID


@pytest.mark.parametrize("commit", [True, False])
async def test_everything_survives_a_crash_in_the_middle(runs: NodeRuns, commit: bool) -> None:
    """The transaction goes on where it was: its partitions, its offsets, its epochs."""
    async with runs.client() as client:
        producer = Producer(client)
        await producer.init()
        await find(client, 0, GROUP)
        await fetched(client)
        assert await producer.produce(b"a") == NONE
        assert await producer.commit_offset(5) == NONE
    await runs.kill()
    await runs.start()
    async with runs.client() as client:
        producer.client = client
        await find(client, 1, "tx")
        assert (await fetched(client))[0] == (0, -1, ErrorCode.UNSTABLE_OFFSET_COMMIT)
        while (error := await producer.produce(b"b")) != NONE:
            assert error in (ErrorCode.NOT_ENOUGH_REPLICAS, ErrorCode.NOT_LEADER_OR_FOLLOWER), error
            await asyncio.sleep(0.01)
        assert await producer.end(commit) == NONE
    await runs.kill()
    await runs.start()
    async with runs.client() as client:
        producer.client = client
        await find(client, 1, "tx")
        while (await described(producer)).error_code != NONE:
            await asyncio.sleep(0.01)
        assert await settled(producer) == ("CompleteCommit" if commit else "CompleteAbort")
        assert (await fetched(client))[0] == ((0, 5, NONE) if commit else (0, -1, NONE))
        while (error := await producer.produce(b"c")) != NONE:
            assert error in (ErrorCode.NOT_ENOUGH_REPLICAS, ErrorCode.NOT_LEADER_OR_FOLLOWER), error
            await asyncio.sleep(0.01)


async def test_describing_what_is_not_there(client: RawClient) -> None:
    assert (await described(Producer(client, "nobody"))).error_code == ErrorCode.TRANSACTIONAL_ID_NOT_FOUND
    assert (await described(Producer(client, ""))).error_code == ErrorCode.INVALID_REQUEST


async def listed(client: RawClient, version: int, **filters: Any) -> Any:
    return await client.ask(ApiKey.LIST_TRANSACTIONS, version, m.ListTransactionsRequest(**filters))


@pytest.mark.parametrize("version", range(3))
async def test_listing(client: RawClient, version: int) -> None:
    idle, busy = Producer(client, "idle-1"), Producer(client, "busy-1")
    await idle.init()
    await busy.init()
    await busy.produce(b"a")

    async def names(**filters: Any) -> list[str]:
        answer = await listed(client, version, **filters)
        assert answer.error_code == NONE
        return sorted(one.transactional_id for one in answer.transaction_states)

    assert await names() == ["busy-1", "idle-1"]
    assert await names(state_filters=["Ongoing"]) == ["busy-1"]
    assert await names(producer_id_filters=[idle.identity[0]]) == ["idle-1"]
    answer = await listed(client, version, state_filters=["Ongoing", "Dozing"])
    assert answer.unknown_state_filters == ["Dozing"] and len(answer.transaction_states) == 1
    assert await names(state_filters=["Dozing"]) == []
    if version >= 1:
        assert await names(state_filters=["Ongoing"], duration_filter=0) == ["busy-1"]
        assert await names(state_filters=["Ongoing"], duration_filter=60_000) == []
    if version >= 2:
        assert await names(transactional_id_pattern="busy-[0-9]") == ["busy-1"]
        assert await names(transactional_id_pattern="busy") == []
        broken = await listed(client, version, transactional_id_pattern="(")
        assert broken.error_code == ErrorCode.INVALID_REGULAR_EXPRESSION


@pytest.mark.parametrize("version", range(1, 7))
async def test_finding_the_coordinator(client: RawClient, version: int) -> None:
    keys: dict[str, Any] = {"coordinator_keys": ["tx", "other"]} if version >= 4 else {"key": "tx"}
    answer = await client.ask(ApiKey.FIND_COORDINATOR, version, m.FindCoordinatorRequest(key_type=1, **keys))
    found = answer.coordinators if version >= 4 else [answer]
    assert [(one.error_code, one.node_id, one.port) for one in found] == [(NONE, 1, client.port)] * len(found)
