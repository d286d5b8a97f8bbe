"""Transactions of logs that this broker leads, open from below what was declared lost of them.

The end of each may be what was lost: then nobody ends it any more, and readers of committed records wait for ever. So
the coordinators are asked. What is under way with the log among its partitions is left to its coordinator; every other
one is over, nobody can tell how, and is aborted here.

A coordinator that came to lead lately may not know it yet, and would say nothing of its transactions. So they are asked
when all have led for as long as a session lasts: facts come with the answers to heartbeats.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from broker.log import LogStatus
from broker.transactions.coordinator import TRANSACTION_TOPIC
from broker.transactions.model import TV0, Part
from controller.remote import LinkError
from protocol.errors import KafkaError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.log import Log
    from broker.log_table import LogTable
    from controller.state import ClusterState

log = logging.getLogger(__name__)

TOLD_MAX = 20
"""Transactions that one line of the log names."""

UnderWay: TypeAlias = Callable[[int, frozenset[int]], Awaitable[dict[int, set[Part]]]]
"""(node id, producer ids) -> partitions of the transactions that this node coordinates and that are not complete, by
producer id. LinkError."""

Leadership: TypeAlias = tuple[int, int, int]
"""Node id, incarnation, leader epoch."""


class Undecided:
    """Of one broker. `state` gives what is applied here."""

    def __init__(
        self, state: Callable[[], ClusterState], under_way: UnderWay, tasks: Tasks, session_timeout_ms: int
    ) -> None:
        self._state = state
        self._under_way = under_way
        self._tasks = tasks
        self._wait_s = session_timeout_ms / 1000
        self._logs: dict[Log, None] = {}
        self._looking = False

    def follow(self, logs: LogTable) -> None:
        """Look at every log that this broker comes to lead."""
        logs.on_open(self._opened)

    def _opened(self, opened: Log) -> None:
        undecided = list(_undecided(opened).items())
        if not undecided:
            return
        log.warning(
            "%r goes on at %d behind what was declared lost. %d transactions are open from before, their end can be "
            "lost: readers of committed records wait at %d until coordinators end them, or they are aborted here, if "
            "no coordinator knows of them. Producers: %s",
            opened,
            opened.producers.hole_end,
            len(undecided),
            undecided[0][1],
            ", ".join(f"{producer_id} from {first}" for producer_id, first in undecided[:TOLD_MAX]),
        )
        self._logs[opened] = None
        if not self._looking:
            self._looking = True
            self._tasks.spawn(self._look(), name="end transactions whose end was declared lost")

    async def _look(self) -> None:
        """Until no log has any."""
        before = self._coordinators()
        while self._drop_decided():
            await asyncio.sleep(self._wait_s)
            coordinators = self._coordinators()
            if coordinators is not None and coordinators == before:
                await self._ask({node for node, _, _ in coordinators})
            before = coordinators
        self._looking = False

    def _drop_decided(self) -> bool:
        for one in list(self._logs):
            if one.status is LogStatus.CLOSED or not _undecided(one):
                del self._logs[one]
        return bool(self._logs)

    def _coordinators(self) -> list[Leadership] | None:
        """Who leads each partition of `__transaction_state`; None while one of them has no leader."""
        state = self._state()
        topic = state.topics.get(TRANSACTION_TOPIC)
        led = [state.logs[log_id] for log_id in topic.log_ids] if topic is not None else []
        if any(one.status != "open" or one.leader_node < 0 for one in led):
            return None
        return [(one.leader_node, one.leader_incarnation, one.epoch) for one in led]

    async def _ask(self, nodes: set[int]) -> None:
        """All coordinators; abort what none of them knows of. If one does not answer, nothing happens this time."""
        asked = {one: _undecided(one) for one in self._logs}
        producer_ids = frozenset(producer_id for open_there in asked.values() for producer_id in open_there)
        under_way: dict[int, set[Part]] = {}
        try:
            for node in sorted(nodes):
                for producer_id, parts in (await self._under_way(node, producer_ids)).items():
                    under_way.setdefault(producer_id, set()).update(parts)
        except LinkError as error:
            log.info("transactions whose end may be lost stay open for now: %s", error)
            return
        for led, open_there in asked.items():
            for producer_id, first in open_there.items():
                if (led.topic, led.partition) not in under_way.get(producer_id, ()):
                    _abort(led, producer_id, first)


def _undecided(led: Log) -> dict[int, int]:
    """Producer id -> first offset of the transactions that are open from below the hole."""
    hole_end = led.producers.hole_end
    return {one: first for one, first in led.producers.open_transactions() if first < hole_end} if hole_end else {}


def _abort(led: Log, producer_id: int, first: int) -> None:
    """If it is the one that was asked about: with the epoch it has, as Kafka's tool for hanging transactions does."""
    known = led.producers.describe(producer_id, led.end, 0)
    if known is None or known.open_from != first:
        return
    try:
        led.append_marker(
            producer_id, known.epoch, max(known.coordinator_epoch, 0), commit=False, transaction_version=TV0
        )
    except KafkaError as error:
        log.info("%r: the transaction of producer %d is not aborted yet: %s", led, producer_id, error)
        return
    log.warning(
        "%r: the transaction that producer %d has open from offset %d is aborted: no coordinator knows of it, its end "
        "was declared lost",
        led,
        producer_id,
        first,
    )
