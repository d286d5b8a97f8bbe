"""What merging and compaction have in common: a worker for the jobs that the controller opens for this broker."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from broker.outputs import OutputWriter, Pacer
from controller.client import ControllerClient
from controller.facts import CompactionOpened, Fact, MergeJobOpened, StateReloaded
from storage.object_store import ObjectStore


class Workplace(NamedTuple):
    """Where a worker works, and for whom."""

    store: ObjectStore
    controller: ControllerClient
    incarnation: int
    cluster_id: str
    token: Callable[[int], bytes]
    pacer: Pacer


class Numbered(Protocol):
    """A job."""

    number: int


JobT = TypeVar("JobT", bound=Numbered)


class JobWorker(ABC, Generic[JobT]):
    """Does the jobs of one kind, one after the other, the oldest first. `run` is its task.

    A job is taken when its fact is applied, and nothing is kept of it but what the facts say: the session that ends
    closes it.
    """

    opens: ClassVar[type[MergeJobOpened] | type[CompactionOpened]]
    """The fact that opens such a job."""

    def __init__(self, place: Workplace) -> None:
        self._store = place.store
        self._controller = place.controller
        self._incarnation = place.incarnation
        self._cluster_id = place.cluster_id
        self._token = place.token
        self._writer = OutputWriter(place.store, place.pacer)
        self._wake = asyncio.Event()
        self.alarms = 0
        """Inputs found damaged, and named inputs found missing."""

    @abstractmethod
    def _mine(self) -> list[JobT]:
        """The open jobs of this broker."""

    @abstractmethod
    async def _do(self, job: JobT) -> None:
        """Returns when the job is closed, or as good as that."""

    def on_facts(self, facts: Sequence[Fact]) -> None:
        """Subscribed to the controller client."""
        for fact in facts:
            if isinstance(fact, StateReloaded) or (
                isinstance(fact, self.opens) and fact.incarnation == self._incarnation
            ):
                self._wake.set()

    @property
    def bytes_read(self) -> int:
        """From the bucket."""
        return self._writer.bytes_read

    @property
    def bytes_written(self) -> int:
        """To the bucket."""
        return self._writer.bytes_written

    @property
    def waiting(self) -> int:
        """Open jobs of this broker."""
        return len(self._mine())

    async def run(self) -> None:
        """Do what there is to do, until cancelled."""
        while True:
            self._wake.clear()
            mine = self._mine()
            if mine:
                await self._do(min(mine, key=lambda job: job.number))
            else:
                await self._wake.wait()
