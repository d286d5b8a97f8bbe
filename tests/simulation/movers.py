"""Simulated operators that move leadership about: one reassigns, takes back and brings home, one drains brokers."""

from __future__ import annotations

import random  # noqa: TID251
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from broker.operators import Drains
from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import KafkaError
from tests.simulation.client import Address, Disconnected, Part, Recorder, SimulatedClient, error_name, sleep_ms
from tests.simulation.scheduler import MS

if TYPE_CHECKING:
    from tests.simulation.cluster import World

ELECT, WITHDRAW = 0.15, 0.1
"""Shares of requests that are no reassignment."""


class Mover(SimulatedClient):
    """Asks any broker, again and again, to have partitions led by brokers drawn from `nodes`."""

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[Address],
        history: Recorder,
        rng: random.Random,
        numbers: Iterator[int],
        parts: Sequence[Part],
        nodes: Sequence[int],
        *,
        pause_ms: tuple[int, int] = (100, 1_500),
    ) -> None:
        super().__init__(name, bootstrap, history, rng, numbers)
        self.parts = list(parts)
        self.nodes = list(nodes)
        self.pause_ms = pause_ms

    async def main(self) -> None:
        await self.refresh(topic for topic, _ in self.parts)
        while True:
            await sleep_ms(self.rng.randint(*self.pause_ms))
            if self.stopping:
                return
            addresses = self.known_addresses()
            address = addresses[self.rng.randrange(len(addresses))]
            parts = self.rng.sample(self.parts, self.rng.randint(1, len(self.parts)))
            try:
                if self.rng.random() < ELECT:
                    await self._elect(address, parts)
                else:
                    await self._reassign(address, parts)
            except Disconnected:
                await self.back_off(address)

    async def _reassign(self, address: Address, parts: Sequence[Part]) -> None:
        wanted: dict[Part, list[int] | None] = {
            part: None if self.rng.random() < WITHDRAW else [self.rng.choice(self.nodes)] for part in parts
        }
        topic = m.AlterPartitionReassignmentsRequest.ReassignableTopic
        one = m.AlterPartitionReassignmentsRequest.ReassignablePartition
        request = m.AlterPartitionReassignmentsRequest(
            topics=[
                topic(name=name, partitions=[one(partition_index=index, replicas=nodes)])
                for (name, index), nodes in wanted.items()
            ]
        )
        self._note("reassign.invoke", wanted=tuple((*part, nodes) for part, nodes in wanted.items()))
        answer = await self.ask(address, ApiKey.ALTER_PARTITION_REASSIGNMENTS, 1, request, timeout_ms=8_000)
        codes = [error_name(one.error_code) for topic in answer.responses for one in topic.partitions]
        self._note("reassign.answer", codes=tuple(codes))

    async def _elect(self, address: Address, parts: Sequence[Part]) -> None:
        topic = m.ElectLeadersRequest.TopicPartitions
        request = m.ElectLeadersRequest(
            topic_partitions=[topic(topic=name, partitions=[index]) for name, index in parts], timeout_ms=2_000
        )
        self._note("elect.invoke", parts=tuple(parts))
        answer = await self.ask(address, ApiKey.ELECT_LEADERS, 2, request, timeout_ms=8_000)
        results = [one for topic in answer.replica_election_results for one in topic.partition_result]
        self._note("elect.answer", codes=tuple(error_name(one.error_code) for one in results))

    def _note(self, kind: str, **fields: Any) -> None:
        self.history.record(f"mover.{kind}", client=self.name, **fields)


class Drainer:
    """The operator at a console: drains brokers now and then, and takes that back, until the world is quiet."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.scheduler.stream("drains")
        self.drained: set[int] = set()

    def later(self) -> None:
        """Do something in a while."""
        self.world.scheduler.call_later_ns(self.rng.randint(1_000, 6_000) * MS, self._act)

    def _act(self) -> None:
        if self.world.quiet:
            for node_id in sorted(self.drained):
                self._drain(node_id, undo=True)
            if not self.drained:
                return
        else:
            node_id = self.rng.choice(self.world.nodes).node_id
            self._drain(node_id, undo=node_id in self.drained)
        self.later()

    def _drain(self, node_id: int, *, undo: bool) -> None:
        """Ask some broker; nothing happens if that fails."""
        asked = [node for node in self.world.nodes if node.running and node.ready]
        if not asked:
            return
        node = self.rng.choice(asked)
        assert node.broker is not None and node.process is not None
        drains, tasks = Drains(node.broker.controller, node.broker.token), node.broker.services.tasks

        async def ask() -> None:
            try:
                await drains.drain(node_id, undo=undo)
            except KafkaError:
                return
            (self.drained.discard if undo else self.drained.add)(node_id)
            self.world.history.record("operator.drain", node=node_id, undo=undo)

        def begin() -> None:
            asking = ask()
            try:
                tasks.spawn(asking, name="drain")
            except RuntimeError:  # the broker is just ending
                asking.close()

        node.process.call(begin)
