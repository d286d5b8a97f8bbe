"""The internal topic that a kind of coordinator keeps its state in: created on first need, found by key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from controller.commands import CreateInternalTopic
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from controller.client import ControllerClient


class Endpoint(NamedTuple):
    """Where a coordinator is reached, or why it is not."""

    error: ErrorCode
    node_id: int = -1
    host: str = ""
    port: int = -1


def java_hash(text: str) -> int:
    """`String.hashCode()`: over UTF-16 code units, as a signed 32-bit number."""
    value = 0
    data = text.encode("utf-16-be", "surrogatepass")
    for position in range(0, len(data), 2):
        value = (31 * value + (data[position] << 8 | data[position + 1])) & 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def partition_for(key: str, partitions: int) -> int:
    """Kafka's `Utils.abs(key.hashCode()) % partitions`, where the absolute value of the least integer is 0."""
    value = java_hash(key)
    return (0 if value == -(1 << 31) else abs(value)) % partitions


class InternalTopic:
    """One of `__consumer_offsets` and `__transaction_state`, as this broker's facts have it."""

    def __init__(
        self,
        name: str,
        *,
        partitions: int,
        replication_factor: int,
        configs: tuple[tuple[str, str], ...],
        controller: ControllerClient,
        token: Callable[[int], bytes],
        tasks: Tasks,
        format_level: int = 0,
    ) -> None:
        """`partitions`, `replication_factor`, `configs`: what it is created with if nobody has. `format_level`: only
        when the cluster is there are all its brokers able to serve it."""
        self.name = name
        self.partitions = partitions
        self.replication_factor = replication_factor
        self.configs = configs
        self.controller = controller
        self.token = token
        self.tasks = tasks
        self.format_level = format_level
        self._creation: asyncio.Future[ErrorCode] | None = None

    def partition_for(self, key: str) -> int:
        """The partition that holds a group or a transactional id."""
        topic = self.controller.state.topics.get(self.name)
        return partition_for(key, len(topic.log_ids) if topic is not None else self.partitions)

    def leader(self, partition: int) -> int | None:
        """The node that leads a partition; None: nobody does now."""
        state = self.controller.state
        topic = state.topics.get(self.name)
        if topic is None or not 0 <= partition < len(topic.log_ids):
            return None
        leadership = state.logs[topic.log_ids[partition]]
        return leadership.leader_node if leadership.status == "open" else None

    async def ensure(self) -> ErrorCode:
        """Create it if nobody has; COORDINATOR_NOT_AVAILABLE if that is not possible now."""
        if self.name in self.controller.state.topics:
            return ErrorCode.NONE
        if self.controller.state.format_level < self.format_level:
            return ErrorCode.COORDINATOR_NOT_AVAILABLE
        if self._creation is None:
            self._creation = asyncio.get_running_loop().create_future()
            self.tasks.spawn(self._create(self._creation), name=f"create {self.name}")
        return await asyncio.shield(self._creation)

    async def _create(self, done: asyncio.Future[ErrorCode]) -> None:
        """One creation at a time, whoever asks meanwhile."""
        command = CreateInternalTopic(self.token(16), self.name, self.partitions, self.replication_factor, self.configs)
        error = ErrorCode.COORDINATOR_NOT_AVAILABLE
        try:
            await self.controller.ask(command)
            error = ErrorCode.NONE
        except KafkaError:
            pass
        finally:
            self._creation = None
            if not done.done():
                done.set_result(error)

    def locate(self, key: str, listener: str) -> Endpoint:
        """The leader of the key's partition, as clients of `listener` reach it."""
        leader = self.leader(self.partition_for(key))
        broker = self.controller.state.brokers.get(leader) if leader is not None else None
        if broker is not None and broker.alive:
            for address in broker.listeners:
                if address.name == listener:
                    return Endpoint(ErrorCode.NONE, broker.node_id, address.host, address.port)
        return Endpoint(ErrorCode.COORDINATOR_NOT_AVAILABLE)
