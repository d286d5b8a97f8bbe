"""Steps about transactions: their coordinator, their records, their offsets, and what tools ask about them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.records import build_batch
from tests.differential.log_steps import TIME, LogSteps
from tests.differential.machine import NAMES

# Few of each, and what is possible most often: a transaction needs several steps about the same things.
IDS = st.sampled_from(["alpha"] * 4 + ["beta"])
PARTITION = st.sampled_from([0] * 6 + [1, 9])
SHORT = st.sampled_from([NAMES[0]] * 9 + [NAMES[1]])
SLIP = st.sampled_from([0] * 14 + [-1, 1])
MOVING = ("PrepareCommit", "PrepareAbort", "PrepareEpochFence")
ENDED_BY_EPOCH = 5  # from this version of EndTxn on every transaction has an epoch of its own


class TxnSteps(LogSteps):
    """InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, Produce, TxnOffsetCommit, EndTxn; what is told of them."""

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.owners: dict[str, tuple[int, int]] = {}  # transactional id: (Kafka's producer id, epoch)

    @initialize()
    def own(self) -> None:
        """Both ids have an owner."""
        for short in ("alpha", "beta"):
            request = m.InitProducerIdRequest(transactional_id=self.name(short), transaction_timeout_ms=60_000)
            answer = self.ask(ApiKey.INIT_PRODUCER_ID, 5, request)
            self.owners[short] = (answer.producer_id, answer.producer_epoch)

    def _owner(self, data: st.DataObject, short: str) -> tuple[int, int]:
        """Who has the id, sometimes with an epoch that is not his."""
        producer_id, epoch = self.owners[short]
        return producer_id, max(0, epoch + data.draw(SLIP, label="epoch slip"))

    def _settle(self) -> None:
        """Until no transaction of ours is on its way to its end: both write markers after they have answered."""
        names = [self.name(short) for short in self.owners]
        request = m.DescribeTransactionsRequest(transactional_ids=names)

        def settled() -> bool:
            answers = self.pair.each(ApiKey.DESCRIBE_TRANSACTIONS, 0, request)
            return not any(one.transaction_state in MOVING for answer in answers for one in answer.transaction_states)

        if names:
            self.wait("transactions that end", settled)

    @rule(data=st.data(), short=IDS, known=st.booleans())
    def init_transactional(self, data: st.DataObject, short: str, known: bool) -> None:
        """A producer begins with a transactional id, or goes on as who it was."""
        version = self.version(data, ApiKey.INIT_PRODUCER_ID)
        producer_id, epoch = self._owner(data, short) if known and version >= 3 else (-1, -1)
        request = m.InitProducerIdRequest(
            transactional_id=data.draw(st.sampled_from([self.name(short)] * 8 + [""])),
            transaction_timeout_ms=data.draw(st.sampled_from([60_000] * 6 + [0, -1, 10**9])),
            producer_id=producer_id,
            producer_epoch=epoch,
        )
        answer = self.ask(ApiKey.INIT_PRODUCER_ID, version, request)
        if answer is not None and answer.error_code == 0:
            self.owners[short] = (answer.producer_id, answer.producer_epoch)
        self._settle()

    @rule(data=st.data(), owner=IDS, short=SHORT, partitions=st.lists(PARTITION, min_size=1, max_size=2, unique=True))
    def add_partitions(self, data: st.DataObject, owner: str, short: str, partitions: list[int]) -> None:
        """Partitions join a transaction, as clients before implicit addition do it."""
        version = min(self.version(data, ApiKey.ADD_PARTITIONS_TO_TXN), 3)
        producer_id, epoch = self._owner(data, owner)
        topic = m.AddPartitionsToTxnRequest.AddPartitionsToTxnTopic
        request = m.AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=self.name(owner),
            v3_and_below_producer_id=producer_id,
            v3_and_below_producer_epoch=epoch,
            v3_and_below_topics=[topic(name=self.name(short), partitions=partitions)],
        )
        self.ask(ApiKey.ADD_PARTITIONS_TO_TXN, version, request)

    @rule(data=st.data(), owner=IDS, short=SHORT, partition=PARTITION, count=st.integers(1, 3))
    def produce_in_transaction(self, data: st.DataObject, owner: str, short: str, partition: int, count: int) -> None:
        """A transactional batch; from Produce v12 on it may be what adds the partition.

        Its epoch is right: after one that is too high Kafka refuses the next batch as out of sequence, and we do not.
        """
        name = self.name(short)
        producer_id, epoch = self.owners[owner]
        key = (producer_id, epoch, name, partition)
        sequence = max(0, self.sequences.get(key, 0) + data.draw(SLIP, label="sequence slip"))
        records: list[Any] = [(TIME + number, b"k", b"t%d" % number, ()) for number in range(count)]
        options: dict[str, Any] = {"producer_id": producer_id, "producer_epoch": epoch, "base_sequence": sequence}
        batch = bytes(build_batch(records, transactional=True, **options))
        version = self.version(data, ApiKey.PRODUCE, first=3)
        answer = self.send(version, name, partition, batch, options, transactional_id=self.name(owner))
        parts = [part for topic in answer.responses for part in topic.partition_responses] if answer else []
        if parts and parts[0].error_code == 0 and sequence == self.sequences.get(key, 0):
            self.sequences[key] = sequence + count

    @rule(data=st.data(), owner=IDS, group=st.sampled_from(["g", "h"]))
    def add_offsets(self, data: st.DataObject, owner: str, group: str) -> None:
        """A group's offsets join a transaction."""
        producer_id, epoch = self._owner(data, owner)
        request = m.AddOffsetsToTxnRequest(
            transactional_id=self.name(owner),
            producer_id=producer_id,
            producer_epoch=epoch,
            group_id=data.draw(st.sampled_from([self.name(group)] * 5 + [""])),
        )
        self.ask(ApiKey.ADD_OFFSETS_TO_TXN, self.version(data, ApiKey.ADD_OFFSETS_TO_TXN), request)

    @rule(data=st.data(), owner=IDS, group=st.sampled_from(["g", "h"]), short=SHORT, offset=st.integers(0, 9))
    def commit_offsets(self, data: st.DataObject, owner: str, group: str, short: str, offset: int) -> None:
        """Offsets that count once the transaction is committed."""
        producer_id, epoch = self._owner(data, owner)
        version = self.version(data, ApiKey.TXN_OFFSET_COMMIT)
        part = m.TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition(
            partition_index=data.draw(PARTITION), committed_offset=offset, committed_metadata="by a transaction"
        )
        topic = m.TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic(name=self.name(short), partitions=[part])
        request = m.TxnOffsetCommitRequest(
            transactional_id=self.name(owner),
            group_id=self.name(group),
            producer_id=producer_id,
            producer_epoch=epoch,
            generation_id=data.draw(st.sampled_from([-1, -1, -1, 4])) if version >= 3 else -1,
            topics=[topic],
        )
        self.ask(ApiKey.TXN_OFFSET_COMMIT, version, request)

    @rule(data=st.data(), group=st.sampled_from(["g", "h"]), stable=st.booleans())
    def transactional_offsets(self, data: st.DataObject, group: str, stable: bool) -> None:
        """What is committed, or whether something is pending."""
        wanted = m.OffsetFetchRequest.OffsetFetchRequestGroup
        request = m.OffsetFetchRequest(groups=[wanted(group_id=self.name(group), topics=None)], require_stable=stable)
        self.ask(ApiKey.OFFSET_FETCH, 9, request)

    @rule(data=st.data(), owner=IDS, commit=st.booleans())
    def end(self, data: st.DataObject, owner: str, commit: bool) -> None:
        """Commit or abort; with newer versions the producer goes on with the next epoch."""
        producer_id, epoch = self._owner(data, owner)
        version = self.version(data, ApiKey.END_TXN)
        request = m.EndTxnRequest(
            transactional_id=self.name(owner), producer_id=producer_id, producer_epoch=epoch, committed=commit
        )
        answer = self.ask(ApiKey.END_TXN, version, request)
        if answer is not None and answer.error_code == 0 and version >= ENDED_BY_EPOCH:
            self.owners[owner] = (answer.producer_id, answer.producer_epoch)
        self._settle()

    @rule(data=st.data(), owners=st.lists(IDS, min_size=1, max_size=2, unique=True))
    def describe_transactions(self, data: st.DataObject, owners: list[str]) -> None:
        """Their states, as the coordinator has them."""
        names = [self.name(owner) for owner in owners]
        request = m.DescribeTransactionsRequest(transactional_ids=names)
        self.ask(ApiKey.DESCRIBE_TRANSACTIONS, self.version(data, ApiKey.DESCRIBE_TRANSACTIONS), request)

    @rule(data=st.data(), owner=IDS)
    def list_transactions(self, data: st.DataObject, owner: str) -> None:
        """By state, by producer, by name."""
        version = self.version(data, ApiKey.LIST_TRANSACTIONS)
        request = m.ListTransactionsRequest(
            state_filters=data.draw(st.sampled_from([[], ["Ongoing"], ["Empty", "CompleteCommit"], ["Sleeping"]])),
            producer_id_filters=[self.owners[owner][0]],
        )
        if version >= 2:
            request.transactional_id_pattern = data.draw(st.sampled_from([None, f"s{self.sequence}-.*", "nobody", "("]))
        self.ask(ApiKey.LIST_TRANSACTIONS, version, request)

    @rule(data=st.data(), short=SHORT, partitions=st.lists(PARTITION, min_size=1, max_size=2, unique=True))
    def describe_producers(self, data: st.DataObject, short: str, partitions: list[int]) -> None:
        """Who has written, and who has a transaction open."""
        topic = m.DescribeProducersRequest.TopicRequest(name=self.name(short), partition_indexes=partitions)
        self.ask(
            ApiKey.DESCRIBE_PRODUCERS,
            self.version(data, ApiKey.DESCRIBE_PRODUCERS),
            m.DescribeProducersRequest(topics=[topic]),
        )

    @rule(data=st.data(), owner=IDS, short=SHORT, partitions=st.lists(PARTITION, min_size=1, max_size=2, unique=True))
    def mark(self, data: st.DataObject, owner: str, short: str, partitions: list[int]) -> None:
        """A marker, as a tool writes it to end a transaction that nobody ends; its coordinator does not hear of it.

        Its epoch is never higher: Kafka's coordinator, refused for that later, leaves its transaction without an end.
        """
        version = self.version(data, ApiKey.WRITE_TXN_MARKERS)
        producer_id, epoch = self.owners[owner]
        epoch = max(0, epoch - data.draw(st.sampled_from([0] * 14 + [1]), label="epochs before"))
        topic = m.WriteTxnMarkersRequest.WritableTxnMarkerTopic(name=self.name(short), partition_indexes=partitions)
        marker = m.WriteTxnMarkersRequest.WritableTxnMarker(
            producer_id=producer_id,
            producer_epoch=epoch,
            transaction_result=data.draw(st.sampled_from([False, False, True])),
            topics=[topic],
            coordinator_epoch=data.draw(st.sampled_from([-1, 0])),
            transaction_version=data.draw(st.sampled_from([0, 2])) if version >= 2 else 0,
        )
        self.ask(ApiKey.WRITE_TXN_MARKERS, version, m.WriteTxnMarkersRequest(markers=[marker]))

    def teardown(self) -> None:
        """Nothing stays open."""
        for owner, (producer_id, epoch) in self.owners.items():
            request = m.EndTxnRequest(
                transactional_id=self.name(owner), producer_id=producer_id, producer_epoch=epoch, committed=False
            )
            self.pair.each(ApiKey.END_TXN, 3, request)
        self._settle()
        super().teardown()
