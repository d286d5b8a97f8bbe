"""How transactions end, told to the leaders of their partitions until every one of them has written it.

One request at a time to each broker; what is decided meanwhile goes into the next, so that many small transactions
cost few requests. Whatever is not answered well is asked again, of whoever leads then; a partition of a deleted topic
needs no marker. A leader that knows a newer coordinator ends the work for that transaction: the newer one does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from broker.transactions.markers import Marker
from broker.transactions.model import Ending, Part
from controller import facts as f
from controller.remote import LinkError
from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from broker.background import Tasks
    from controller.state import ClusterState

log = logging.getLogger(__name__)

PARTITIONS_MAX = 1000
"""Markers of one request."""
BACKOFF_MS = 20
BACKOFF_MS_MAX = 500

Wanted: TypeAlias = list[tuple[Marker, list[Part]]]
Send: TypeAlias = Callable[[int, Wanted], Awaitable[list[dict[Part, ErrorCode]]]]
"""(node id, markers and where they are wanted) -> results, in the same order. LinkError: there is no answer."""

_MOVES_NOTHING = (f.LeaseExtended, f.SealCommitted, f.LogStartAdvanced, f.ProducerIdsAllocated, f.ObjectsDeleted)


class _Job:
    """The markers of one transaction."""

    __slots__ = ("coordinator_epoch", "done", "dropped", "ending", "failures", "owner", "waiting")

    def __init__(self, owner: object, ending: Ending, coordinator_epoch: int, done: Callable[[], None]) -> None:
        self.owner = owner
        self.ending = ending
        self.coordinator_epoch = coordinator_epoch
        self.done = done
        self.waiting = set(ending.partitions)
        self.failures = 0
        self.dropped = False

    @property
    def marker(self) -> Marker:
        of = self.ending
        return Marker(of.producer_id, of.producer_epoch, self.coordinator_epoch, of.commit, of.client_version)


class MarkerSender:
    """Of one broker. `state` gives what is applied here; `on_facts` is subscribed to the controller client's facts."""

    def __init__(self, state: Callable[[], ClusterState], send: Send, tasks: Tasks) -> None:
        self._state = state
        self._send = send
        self._tasks = tasks
        self._jobs: dict[tuple[object, str], _Job] = {}
        self._queues: dict[int, dict[tuple[_Job, Part], None]] = {}
        """Node -> markers to send; a node that is here has a task that sends."""
        self._parked: dict[tuple[_Job, Part], None] = {}
        """Without a leader, or to be asked again in a moment."""
        self._unpark: asyncio.TimerHandle | None = None
        self.written = 0
        self.retries = 0

    def __len__(self) -> int:
        """Transactions that wait for markers."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Markers not known to be written."""
        return sum(len(job.waiting) for job in self._jobs.values())

    def begin(self, owner: object, ending: Ending, coordinator_epoch: int, done: Callable[[], None]) -> None:
        """Write the markers of `ending`, then call `done`; until `owner` drops its work."""
        key = (owner, ending.transactional_id)
        old = self._jobs.get(key)
        if old is not None:
            old.dropped = True
        job = self._jobs[key] = _Job(owner, ending, coordinator_epoch, done)
        if job.waiting:
            self._assign([(job, part) for part in sorted(job.waiting)])
        else:
            self._finish(job)

    def drop(self, owner: object) -> None:
        """Not ours to end any more; what is on its way arrives or not."""
        for key in [key for key in self._jobs if key[0] is owner]:
            self._jobs.pop(key).dropped = True

    def on_facts(self, facts: Sequence[f.Fact]) -> None:
        """A leader may be another one now."""
        if self._parked and not all(isinstance(fact, _MOVES_NOTHING) for fact in facts):
            self._assign_parked()

    # -- who leads

    def _leader(self, part: Part) -> int | None:
        """The node that leads a partition, -1: nobody does now; None: there is no such partition."""
        state = self._state()
        topic = state.topics.get(part[0])
        if topic is None or not 0 <= part[1] < len(topic.log_ids):
            return None
        leadership = state.logs[topic.log_ids[part[1]]]
        return leadership.leader_node if leadership.status == "open" else -1

    def _assign(self, wanted: Sequence[tuple[_Job, Part]]) -> None:
        for job, part in wanted:
            if job.dropped:
                continue
            node = self._leader(part)
            if node is None:
                self._settle(job, part)
            elif node < 0:
                self._park(job, part)
            else:
                if node not in self._queues:
                    self._queues[node] = {}
                    self._tasks.spawn(self._serve(node), name=f"send markers to {node}")
                self._queues[node][job, part] = None

    def _park(self, job: _Job, part: Part) -> None:
        self._parked[job, part] = None
        if self._unpark is None:
            delay_ms = min(BACKOFF_MS << min(job.failures, 10), BACKOFF_MS_MAX)
            self._unpark = asyncio.get_running_loop().call_later(delay_ms / 1000, self._assign_parked)

    def _assign_parked(self) -> None:
        if self._unpark is not None:
            self._unpark.cancel()
            self._unpark = None
        parked, self._parked = self._parked, {}
        self.retries += len(parked)
        self._assign(list(parked))

    # -- sending

    async def _serve(self, node: int) -> None:
        """Send to one broker until there is nothing more for it."""
        queue = self._queues[node]
        while queue:
            batch = list(queue)[:PARTITIONS_MAX]
            for item in batch:
                del queue[item]
            batch = [(job, part) for job, part in batch if not job.dropped]
            if not batch:
                continue
            jobs: dict[_Job, list[Part]] = {}
            for job, part in batch:
                jobs.setdefault(job, []).append(part)
            try:
                results = await self._send(node, [(job.marker, parts) for job, parts in jobs.items()])
            except LinkError as error:
                log.info("%d markers for node %d are sent again: %s", len(batch), node, error)
                results = [{} for _ in jobs]
            for (job, parts), result in zip(jobs.items(), results):
                self._answered(job, parts, result)
        del self._queues[node]

    def _answered(self, job: _Job, parts: Sequence[Part], result: dict[Part, ErrorCode]) -> None:
        job.failures += any(result.get(part) is not ErrorCode.NONE for part in parts)
        for part in parts:
            error = result.get(part, ErrorCode.NETWORK_EXCEPTION)
            if job.dropped:
                return
            if error is ErrorCode.NONE:
                self.written += 1
                self._settle(job, part)
            elif error is ErrorCode.INVALID_PRODUCER_EPOCH:
                self._pass_over(job, part)
            elif error is ErrorCode.TRANSACTION_COORDINATOR_FENCED:
                self._give_up(job, part)
            else:
                self._park(job, part)

    def _settle(self, job: _Job, part: Part) -> None:
        job.waiting.discard(part)
        if not job.waiting:
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        if not job.dropped:
            job.dropped = True
            del self._jobs[job.owner, job.ending.transactional_id]
            job.done()

    def _pass_over(self, job: _Job, part: Part) -> None:
        """The log has seen a later epoch than the coordinator: records of `__transaction_state` were declared lost.

        Kafka leaves such a transaction as it is, and its producer waits for ever. No marker can end anything of it
        there, but its other partitions can be ended, and the producer goes on.
        """
        log.error(
            "%s-%d knows a later epoch of producer %d than its coordinator has for %s (%d): was its state lost?",
            *part,
            job.ending.producer_id,
            job.ending.transactional_id,
            job.ending.producer_epoch,
        )
        self._settle(job, part)

    def _give_up(self, job: _Job, part: Part) -> None:
        log.error(
            "%s-%d refuses the marker of %s (producer %d, epoch %d): there is a newer coordinator, which ends it",
            *part,
            job.ending.transactional_id,
            job.ending.producer_id,
            job.ending.producer_epoch,
        )
        job.dropped = True
        del self._jobs[job.owner, job.ending.transactional_id]
