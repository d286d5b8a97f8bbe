"""What the coordinators of groups and of transactions share: the partitions of a topic that are served here."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from broker.coordination.runtime import CoordinatorLog, PartitionRuntime
from broker.coordination.topic import InternalTopic

if TYPE_CHECKING:
    from broker.log import Log
    from broker.log_table import LogTable

RuntimeT = TypeVar("RuntimeT", bound=PartitionRuntime[Any])


class Coordinators(ABC, Generic[RuntimeT]):
    """Every partition of `topic` that this broker leads has a runtime; requests for others are answered
    NOT_COORDINATOR. Futures of a subclass always get an answer, never an exception: a refusal is an answer with an
    error.
    """

    def __init__(self, topic: InternalTopic, regularly: Sequence[tuple[int, Callable[[], None]]]) -> None:
        """`regularly`: (interval in ms, what is called then), from the first partition on."""
        self.topic = topic
        self.partitions: dict[int, RuntimeT] = {}
        self._regularly = regularly
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    @abstractmethod
    def load(self, log: CoordinatorLog) -> RuntimeT:
        """The runtime of a partition, which reads its log by itself: COORDINATOR_LOAD_IN_PROGRESS until it is done."""

    def follow(self, logs: LogTable) -> None:
        """Open and close partitions as this broker comes to lead their logs."""
        logs.on_open(self._log_opened)
        logs.on_close(self._log_closed)

    def open(self, partition: int, log: CoordinatorLog) -> None:
        """This broker leads the partition from now on."""
        self.close(partition)
        self.partitions[partition] = self.load(log)
        if not self._timers:
            for interval_ms, call in self._regularly:
                self._call_later(interval_ms, call)

    def close(self, partition: int) -> None:
        """This broker does not lead the partition any more: everything waiting is answered NOT_COORDINATOR."""
        runtime = self.partitions.pop(partition, None)
        if runtime is not None:
            runtime.close()

    def stop(self) -> None:
        """The process is about to end: answer what is decided once it is validated, everybody else NOT_COORDINATOR."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for runtime in self.partitions.values():
            runtime.resign()

    def partition_for(self, key: str) -> int:
        """The partition that holds a group or a transactional id."""
        return self.topic.partition_for(key)

    def runtime_for(self, key: str) -> RuntimeT | None:
        """What serves a group or a transactional id, if it is served here."""
        return self.partitions.get(self.partition_for(key))

    def _log_opened(self, log: Log) -> None:
        if log.topic == self.topic.name:
            self.open(log.partition, log)

    def _log_closed(self, log: Log) -> None:
        runtime = self.partitions.get(log.partition)
        if log.topic == self.topic.name and runtime is not None and runtime.log is log:
            self.close(log.partition)

    def _call_later(self, interval_ms: int, call: Callable[[], None]) -> None:
        def again() -> None:
            call()
            self._call_later(interval_ms, call)

        self._timers[call] = asyncio.get_running_loop().call_later(interval_ms / 1000, again)


def answered(answer: Any) -> asyncio.Future[Any]:
    """A future that has its answer."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future
