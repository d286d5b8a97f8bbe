"""The simulated operator who ends transactions that nobody else would, as `kafka-transactions.sh` does.

After a declared loss some are left to him. He looks when all is quiet, and only where something was declared lost:
everywhere else a transaction without an end is a finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from protocol import messages as m
from protocol.apis import ApiKey
from tests.simulation.client import Disconnected, Part, SimulatedClient, sleep_ms

LOOK_MS = 1_000
LOOKS_MAX = 30
SEEN = 3
"""So many looks in a row show a transaction hanging: one look asks several brokers, one after the other."""


class Hanging(NamedTuple):
    """A transaction that is open in a partition, and that no coordinator says is under way there."""

    part: Part
    producer_id: int
    producer_epoch: int
    coordinator_epoch: int
    start: int


class Finisher(SimulatedClient):
    """Looks for hanging transactions and aborts them."""

    def __init__(self, *args: Any, parts: Sequence[Part], declared: Callable[[], bool], **options: Any) -> None:
        """`declared`: whether anything was declared lost."""
        super().__init__(*args, **options)
        self.parts = list(parts)
        self.declared = declared

    async def main(self) -> None:
        while not self.stopping:
            await sleep_ms(LOOK_MS)
        seen: Counter[Hanging] = Counter()
        for _ in range(LOOKS_MAX if self.declared() else 0):
            try:
                await self.refresh(topic for topic, _ in self.parts)
                found = [one for part in self.parts for one in await self._open_in(part)]
                hanging = [one for one in found if await self._hangs(one)]
                seen = Counter({one: seen[one] + 1 for one in hanging})
                for one in hanging:
                    if seen[one] >= SEEN:
                        await self._abort(one)
                if not found:
                    return
            except Disconnected:
                self.leaders.clear()
            await sleep_ms(LOOK_MS)

    async def _open_in(self, part: Part) -> list[Hanging]:
        asked = m.DescribeProducersRequest.TopicRequest(name=part[0], partition_indexes=[part[1]])
        address = await self.leader_address(part)
        answer = await self.ask(address, ApiKey.DESCRIBE_PRODUCERS, 0, m.DescribeProducersRequest(topics=[asked]))
        one = answer.topics[0].partitions[0]
        if one.error_code:
            raise Disconnected("another leader")
        return [
            Hanging(
                part,
                producer.producer_id,
                producer.producer_epoch,
                max(producer.coordinator_epoch, 0),
                producer.current_txn_start_offset,
            )
            for producer in one.active_producers
            if producer.current_txn_start_offset >= 0
        ]

    async def _hangs(self, one: Hanging) -> bool:
        for address in list(self.brokers.values()):
            request = m.ListTransactionsRequest(producer_id_filters=[one.producer_id])
            listed = await self.ask(address, ApiKey.LIST_TRANSACTIONS, 0, request)
            if listed.error_code:
                raise Disconnected("a coordinator loads")
            ids = [state.transactional_id for state in listed.transaction_states]
            if not ids:
                continue
            described = await self.ask(
                address, ApiKey.DESCRIBE_TRANSACTIONS, 0, m.DescribeTransactionsRequest(transactional_ids=ids)
            )
            parts = {
                (topic.topic, partition)
                for state in described.transaction_states
                for topic in state.topics
                for partition in topic.partitions
            }
            if one.part in parts:
                return False
        return True

    async def _abort(self, one: Hanging) -> None:
        topic, partition = one.part
        self.history.record("operator.abort_transaction", topic=topic, partition=partition, producer=one.producer_id)
        marker = m.WriteTxnMarkersRequest.WritableTxnMarker(
            producer_id=one.producer_id,
            producer_epoch=one.producer_epoch,
            transaction_result=False,
            topics=[m.WriteTxnMarkersRequest.WritableTxnMarkerTopic(name=topic, partition_indexes=[partition])],
            coordinator_epoch=one.coordinator_epoch,
        )
        address = await self.leader_address(one.part)
        await self.ask(address, ApiKey.WRITE_TXN_MARKERS, 1, m.WriteTxnMarkersRequest(markers=[marker]))
