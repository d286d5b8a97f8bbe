"""The group coordinator of one broker: a runtime shell around the pure group cores.

Every partition of `__consumer_offsets` that this broker leads is one shard. A command is decided by the shard's core, its records
are appended to the partition's log, and only when the append was accepted the outcome is applied. Every answer waits until
what it reveals is validated (durable, and the right to acknowledge was checked), and is then given only while this broker may
give authoritative answers; otherwise it is NOT_COORDINATOR.

Shape and error mapping follow Kafka's GroupCoordinatorService and CoordinatorRuntime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker.settings import Settings
    from controller.client import ControllerClient
    from protocol import Buffer
    from storage.clock import Clock

OFFSETS_TOPIC = "__consumer_offsets"


class GroupLog(Protocol):
    """What the coordinator needs of the log of one `__consumer_offsets` partition (`broker.log.Log` has it)."""

    log_id: int
    start: int
    end: int

    def append_own(self, batch: bytearray) -> int:
        """Append one batch; its append sequence. KafkaError when this broker does not lead the log or it is full."""
        ...

    def read_all(self, from_offset: int) -> AsyncIterator[Buffer]:
        """Batches from the one that holds `from_offset` up to the high watermark."""
        ...


class GroupCoordinators:
    """All shards of this broker. `run` owns every task and must be running before `open` is called."""

    def __init__(
        self,
        settings: Settings,
        controller: ControllerClient,
        clock: Clock,
        token: Callable[[int], bytes],
        *,
        when_validated: Callable[[int, Callable[[], None]], None],
        advance_start: Callable[[GroupLog, int], Awaitable[None]],
        may_answer: Callable[[], bool],
    ) -> None:
        """`when_validated(append sequence, callback)`; `advance_start(log, offset)` seals what is needed and moves the log
        start; `may_answer()` is the right to give authoritative answers, checked after the request was read."""

    async def run(self) -> None:
        """Own the tasks of all shards until cancelled."""

    def open(self, partition: int, log: GroupLog, epoch: int) -> None:
        """This broker leads the partition from now on: load it. COORDINATOR_LOAD_IN_PROGRESS until done."""

    def close(self, partition: int) -> None:
        """This broker does not lead the partition any more: everything waiting is answered NOT_COORDINATOR."""
