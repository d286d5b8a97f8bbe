"""Transactions that nobody would end any more, because what their coordinator knew of them was declared lost.

All leaders are asked where they are open (DescribeProducers), and there they are aborted with the last epoch there is.
The producer id is fenced with it for good, so these markers need no decision that is written down, and to send them
twice changes nothing. It is done once, by the coordinator that fences: what it does not reach in time is left to the
operator.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from broker.transactions.model import EPOCH_MAX, TV2, Ending, Part
from controller.remote import LinkError

if TYPE_CHECKING:
    from broker.transactions.marker_sender import MarkerSender
    from controller.state import ClusterState

log = logging.getLogger(__name__)

PARTITIONS_MAX = 500
"""Of one question."""
ROUNDS = 20
ROUND_MS = 500
"""How often leaders that did not answer are looked for and asked again, and how long after."""

Describe: TypeAlias = Callable[[int, list[Part]], Awaitable[dict[Part, list[int]]]]
"""(node id, partitions) -> producers with an open transaction, of the partitions that it leads. LinkError."""


class Abandoned:
    """Of one broker. `state` gives what is applied here."""

    def __init__(self, state: Callable[[], ClusterState], describe: Describe, markers: MarkerSender) -> None:
        self._state = state
        self._describe = describe
        self._markers = markers

    async def end(self, owner: object, producers: Mapping[int, str], coordinator_epoch: int) -> None:
        """Abort what these producers have open: producer id -> transactional id. Until `owner` drops its markers."""
        left = self._partitions()
        found: dict[int, set[Part]] = defaultdict(set)
        for number in range(ROUNDS):
            if number:
                await asyncio.sleep(ROUND_MS / 1000)
            left = await self._look(left, producers, found)
            if not left:
                break
        if left:
            log.warning(
                "%d partitions have no leader that answers, the first is %s-%d: transactions that producers whose "
                "coordinator lost its state have open there are not found; see kafka-transactions.sh find-hanging",
                len(left),
                *left[0],
            )
        for producer_id, parts in sorted(found.items()):
            ending = Ending(producers[producer_id], producer_id, EPOCH_MAX, False, frozenset(parts), TV2)
            log.warning(
                "transactions of %s (producer %d) are aborted, their coordinator's state was declared lost: %s",
                ending.transactional_id,
                producer_id,
                sorted(parts),
            )
            self._markers.begin(owner, ending, coordinator_epoch, lambda: None)

    def _partitions(self) -> list[Part]:
        return [
            (topic.name, partition)
            for topic in self._state().topics.values()
            for partition in range(len(topic.log_ids))
        ]

    async def _look(self, parts: list[Part], producers: Mapping[int, str], found: dict[int, set[Part]]) -> list[Part]:
        """Ask the leaders of these partitions; those to be asked again."""
        state = self._state()
        by_node: dict[int, list[Part]] = defaultdict(list)
        again: list[Part] = []
        for part in parts:
            topic = state.topics.get(part[0])
            if topic is None or part[1] >= len(topic.log_ids):
                continue
            leadership = state.logs[topic.log_ids[part[1]]]
            if leadership.status == "open":
                by_node[leadership.leader_node].append(part)
            else:
                again.append(part)
        for node, led in by_node.items():
            for first in range(0, len(led), PARTITIONS_MAX):
                asked = led[first : first + PARTITIONS_MAX]
                try:
                    answer = await self._describe(node, asked)
                except LinkError:
                    answer = {}
                again += [part for part in asked if part not in answer]
                for part, open_there in answer.items():
                    for producer_id in open_there:
                        if producer_id in producers:
                            found[producer_id].add(part)
        return again
