"""A controller client whose facts the test writes itself: the real state, no election, no storage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controller import commands as c
from controller import facts as f
from controller.client import Grant, Listener
from controller.state import ClusterState


class FactsController:
    """`ControllerClient` over a `ClusterState` that `apply` feeds."""

    def __init__(self, cluster_id: str = "test-cluster") -> None:
        self.state = ClusterState(cluster_id)
        self.reachable = True
        self.asked: list[Any] = []
        self.refuse: Exception | None = None
        self._listeners: list[Listener] = []

    @property
    def position(self) -> int:
        return self.state.position

    def apply(self, *facts: f.Fact) -> None:
        """One entry with these facts."""
        self.state.apply_entry(self.state.position + 1, bytes(32), 0, (), facts)
        for listener in list(self._listeners):
            listener(facts)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_applied(self, position: int) -> None:
        assert self.position >= position

    async def heartbeat(self, incarnation: int, position: int, validated: Mapping[bytes, int]) -> Grant:
        return Grant(6000, 2000)

    async def ask(self, command: Any, timeout_ms: int = 30_000) -> Any:
        self.asked.append(command)
        if self.refuse is not None:
            raise self.refuse
        if isinstance(command, c.AllocateProducerIds):
            first = self.state.next_producer_id
            self.apply(f.ProducerIdsAllocated(first, 1000))
            return c.ProducerIdBlock(first, 1000)
        raise AssertionError(f"no answer to {command}")


def facts_of(*groups: Sequence[f.Fact]) -> list[f.Fact]:
    """The groups in one list."""
    return [fact for group in groups for fact in group]
