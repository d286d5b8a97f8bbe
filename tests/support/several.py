"""Several brokers in one loop over one bucket."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from protocol.apis import ApiKey
from protocol.records import iterate_batches, records
from storage.memory import MemoryStore
from tests.support.node_runs import NodeRuns
from tests.support.raw_client import batch_of

SHORT: dict[str, object] = {"tidelog_session_timeout_ms": 1200, "tidelog_controller_lease_ms": 600}
SHORTER: dict[str, object] = {"tidelog_session_timeout_ms": 400, "tidelog_controller_lease_ms": 200}


class Several:
    """Nodes 1 to `count`; `one_machine`: they share a WAL root."""

    def __init__(self, stack: contextlib.AsyncExitStack, path: Path, *, one_machine: bool = False) -> None:
        self.memory = MemoryStore()
        self.nodes: dict[int, NodeRuns] = {}
        self._stack = stack
        self._path = path
        self._one_machine = one_machine

    async def start(self, *node_ids: int, **overrides: object) -> None:
        """Start these nodes together."""
        for node_id in node_ids:
            if node_id not in self.nodes:
                node = self.nodes[node_id] = NodeRuns(self._path / str(node_id), **{**SHORT, **overrides})
                node.memory = self.memory
                node.overrides["node.id"] = node_id
                if self._one_machine:
                    node.overrides["tidelog.wal.dir"] = self._path / "wal"
                await self._stack.enter_async_context(node)
        await asyncio.gather(*[self.nodes[node_id].start() for node_id in node_ids])

    @property
    def controller(self) -> int:
        """The node that controls."""
        (found,) = [node_id for node_id, node in self.running.items() if node.broker.controller.leads]
        return found

    @property
    def running(self) -> dict[int, NodeRuns]:
        """Nodes that serve."""
        return {node_id: node for node_id, node in self.nodes.items() if node.broker.ready}

    @property
    def others(self) -> list[int]:
        """Nodes that serve and do not control."""
        return [node_id for node_id in self.running if node_id != self.controller]

    def leader(self, topic: str, partition: int, *, seen_by: int) -> int:
        """Who leads, as one node has it; -1: nobody."""
        state = self.nodes[seen_by].broker.controller.state
        return state.logs[state.topics[topic].log_ids[partition]].leader_node

    async def ask(self, node_id: int, api: ApiKey, version: int, request: Any) -> Any:
        async with self.nodes[node_id].client() as client:
            return await client.ask(api, version, request)

    async def spread(self, topic: str, partitions: int, *, by: int) -> None:
        """A topic whose creation every node has applied."""
        await self.nodes[by].create(topic, partitions)
        position = self.nodes[by].broker.controller.position
        for node in self.running.values():
            await node.broker.controller.wait_applied(position)

    async def produce(self, topic: str, partition: int, *values: bytes) -> list[int]:
        """At the leader."""
        leader = self.leader(topic, partition, seen_by=next(iter(self.running)))
        return await self.nodes[leader].produce(topic, *[batch_of(value) for value in values], partition=partition)


async def read(several: Several, topic: str, partition: int) -> list[bytes]:
    """Every record's value, at the leader."""
    leader = several.leader(topic, partition, seen_by=next(iter(several.running)))
    values: list[bytes] = []
    async with several.nodes[leader].client() as client:
        while True:
            answer = await client.fetch(topic, len(values), partition=partition)
            assert answer.error_code == 0
            found = bytes(answer.records)
            for start, header in iterate_batches(found):
                batch = found[start : start + header.size]
                values += [record.value or b"" for record in records(batch, max_size=1 << 20)]
            if len(values) == answer.high_watermark:
                return values
