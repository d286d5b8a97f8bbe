"""An object store with virtual latency and faults: one `Bucket` per world, one handle per process."""

from __future__ import annotations

import random  # noqa: TID251
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from storage.object_store import ObjectStore
    from tests.simulation.disk import Timeline


class StoreClient(Protocol):
    """The part of a `Process` that a handle uses; an `Owner` with a source of tokens and a host."""

    @property
    def name(self) -> str: ...

    @property
    def alive(self) -> bool: ...

    def token(self, n: int) -> bytes: ...


@dataclass
class StoreFaults:
    """Chances per call, and how slow it is. Turn them at any time; `StoreFaults()` is a store without faults."""

    unavailable: float = 0.0
    """Refused at once: certainly not applied."""
    lost: float = 0.0
    """A write that never arrives, its outcome unknown."""
    unheard: float = 0.0
    """A write that is applied, its outcome unknown."""
    late: float = 0.0
    """A write whose outcome is unknown and that lands up to `late_ns_max` after that."""
    hang: float = 0.0
    """No answer until the caller gives up."""
    cut: float = 0.0
    """A body that breaks off."""
    slow: float = 0.0
    """A call that takes `slow_factor` times as long."""
    slow_factor: int = 50
    late_ns_max: int = 60_000_000_000


class Bucket:
    """The objects of a world and what happens to calls. `findings` tells what the product did wrong with the port."""

    def __init__(
        self,
        timeline: Timeline,
        rng: random.Random,
        *,
        record: Callable[..., None] = lambda kind, **fields: None,
    ) -> None:
        self.faults = StoreFaults()
        self.findings: list[str] = []
        raise NotImplementedError

    def opener(self, process: StoreClient, host: str) -> Callable[[str], ObjectStore]:
        """What `Broker(open_store=...)` takes: handles of this process, wrapped in the product's retries."""
        raise NotImplementedError

    def handle(self, process: StoreClient, host: str) -> SimulatedStore:
        """One process's bare client: one attempt per call."""
        raise NotImplementedError

    def outage(self, hosts: tuple[str, ...] | None = None) -> None:
        """From now on the store answers nobody, or not these hosts."""
        raise NotImplementedError

    def end_outage(self) -> None:
        """Everybody reaches the store again."""
        raise NotImplementedError

    @property
    def objects(self) -> dict[str, bytes]:
        """What is there now, by key in order."""
        raise NotImplementedError


class SimulatedStore:
    """An `ObjectStore`. Calls of a process that dies or gives up may be applied or not, now or later."""

    async def close(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError
