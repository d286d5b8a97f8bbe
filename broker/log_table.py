"""(topic, partition) and (topic id, partition) -> Log; memory of all tails together; who leads what, from facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.log import Log
    from controller.client import ControllerClient
    from controller.facts import Fact
    from protocol.errors import KafkaError


class LogTable:
    """The logs this broker leads. `apply` is subscribed to the controller client's facts."""

    find: dict[tuple[str | bytes, int], Log]
    """By (name, partition) and by (16-byte topic id, partition)."""
    by_log_id: dict[int, Log]
    tail_bytes: int
    """Payload and overhead of every batch in memory."""

    def apply(self, facts: Sequence[Fact]) -> None:
        """Open, close and configure logs as facts say; the listener given to `ControllerClient.subscribe`."""
        raise NotImplementedError

    def open_all(self) -> None:
        """Open every log that the state says this incarnation leads (at start, after recovery)."""
        raise NotImplementedError

    def refusal(self, topic: str | bytes, partition: int) -> KafkaError:
        """Why `find` has no such log: unknown topic, unknown topic id, or another leader."""
        raise NotImplementedError

    def has_room(self, n_bytes: int, n_batches: int, *, internal: bool) -> bool:
        """Whether WAL and tails take so much more; asked before an offset is assigned."""
        raise NotImplementedError

    def on_open(self, callback: Callable[[Log], None]) -> None:
        """Called when a log begins to serve (coordinators load their partition)."""
        raise NotImplementedError

    def on_close(self, callback: Callable[[Log], None]) -> None:
        """Called when a log is not ours any more."""
        raise NotImplementedError

    def room(self) -> None:
        """Space came back (given to the WAL as `on_room`): serve requests that wait for it."""
        raise NotImplementedError
