"""Balance at work: measures what logs take, looks at the cluster, asks for the moves that `controller.balance` plans.

Runs where the controller is. A new controller knows no rates at first: it balances counts and topics until it has
measured for a while. It does nothing while brokers come and go, so that a rolling restart is not followed around.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from controller import facts as f
from controller.balance import BalanceMove, BalanceNode, Picture, PlacedLog, plan
from controller.commands import MovesAnswer, RequestMoves
from controller.load import LoadMeter
from controller.log_index import OPEN
from controller.state import MOVES_LEVEL, ClusterState
from controller.topics import Topic, wal_kinds_named
from controller.wals import ACTIVE
from protocol.errors import KafkaError
from storage.clock import Clock

if TYPE_CHECKING:
    from controller.runtime import Runtime

ASK_TIMEOUT_MS = 30_000
AGAIN_MS = 1_000
"""After a round that moved something the next one follows so soon."""
LOOK_MS = 100
LOGS_PER_STEP = 500
WAVES = 10
"""A plan holds so many times the moves that go on at once: looking at the cluster costs more than planning does."""
HALF_LIFE_INTERVALS = 4
"""A rate is an average over a few rounds, or two busy minutes would make it move back and forth."""

_log = logging.getLogger(__name__)


class Balancing:
    """`rates`: bytes/s by node id as of the last round, empty while they are not known. `moves`: how many it asked for.

    Call `on_facts` with every fact that becomes true.
    """

    def __init__(self, runtime: "Runtime", clock: Clock, token: Callable[[int], bytes]) -> None:
        self.rates: dict[int, int] = {}
        self.moves = 0
        self._runtime = runtime
        self._clock = clock
        self._token = token
        self._meter: LoadMeter | None = None
        self._members: list[int] = []

    def on_facts(self, facts: Sequence[f.Fact]) -> None:
        """Measures while this process controls."""
        if not self._runtime.leads:
            if self._meter is not None:
                self._meter, self._members, self.rates = None, [], {}
            return
        now = self._clock.boottime_ms()
        if self._meter is None:
            self._meter = LoadMeter(HALF_LIFE_INTERVALS * self._runtime.settings.balance_interval_ms, now)
        for fact in facts:
            if isinstance(fact, f.SealCommitted):
                for item in fact.objects:
                    self._meter.add(item.ranges, now)

    async def run(self) -> None:
        """For ever; a round that moved something is soon followed by another one."""
        interval_ms = self._runtime.settings.balance_interval_ms
        pause_ms = interval_ms
        while True:
            await asyncio.sleep(pause_ms / 1000)
            moved = self._runtime.leads and await self.round()
            pause_ms = min(AGAIN_MS, interval_ms) if moved else interval_ms

    async def round(self) -> bool:
        """Looks once; whether it asked for moves and was heard."""
        meter, state, settings = self._meter, self._runtime.replica.state, self._runtime.settings
        if meter is None:
            return False
        meter.keep(state.logs)
        known = meter.knows_enough(self._clock.boottime_ms())
        before, self._members = self._members, members(state)
        settled = self._members == before  # the same brokers as a round ago
        picture = await self._look(meter if known else None)
        self.rates = dict(picture.rates) if known else {}
        room = settings.balance_moves_max - len(state.moves)
        if not settings.balance or not settled or room <= 0 or state.format_level < MOVES_LEVEL:
            return False
        moves = []
        for move in plan(picture, WAVES * room, settings.balance_threshold_percent if known else None):
            if move is not None:
                moves.append(move)
            await asyncio.sleep(0)
        asked = self.moves
        for at in range(0, len(moves), room):
            if not await self._move(moves[at : at + room]):
                break
        return self.moves > asked

    async def _look(self, meter: LoadMeter | None) -> Picture:
        """The cluster as it is, or nearly: topics are looked at a few at a time while it changes."""
        state = self._runtime.replica.state
        picture = Picture(balance_nodes(state))
        scale = 0.0 if meter is None else meter.scale(self._clock.boottime_ms())
        seen = 0
        for name in list(state.topics):
            topic = state.topics.get(name)
            if topic is None:
                continue
            picture.add(name, self._placed(state, topic, meter, scale))
            seen += len(topic.log_ids)
            if seen >= LOGS_PER_STEP:
                seen = 0
                await asyncio.sleep(0)
        return picture

    def _placed(self, state: ClusterState, topic: Topic, meter: LoadMeter | None, scale: float) -> list[PlacedLog]:
        rules = self._runtime.rules
        in_use = wal_kinds_named(state.topics.values()) if topic.internal else ()
        kind = rules.wal_kind(topic.configs, topic.internal, in_use)
        movable = rules.may_balance(topic.configs)
        placed = []
        for log_id in topic.log_ids:
            log = state.logs[log_id]
            if log.status != OPEN or log.leader_node == f.NO_NODE:
                continue
            node = state.moves.get(log_id)
            rate = 0 if meter is None else int(meter.weight(log_id) * scale)
            placed.append(
                PlacedLog(log_id, log.leader_node if node is None else node, kind, rate, movable and node is None)
            )
        return placed

    async def _move(self, moves: Sequence[BalanceMove]) -> bool:
        """Asks for the moves that still make sense and waits for their end; False: do not go on with this plan."""
        state = self._runtime.replica.state
        fitting = [f.MoveTarget(move.log_id, move.target) for move in moves if still_fits(state, move)]
        if not fitting:
            return True
        _log.info("balance: %d logs are to change their leader", len(fitting))
        try:
            answer = await self._runtime.ask(RequestMoves(self._token(16), tuple(fitting)), ASK_TIMEOUT_MS)
        except KafkaError as error:
            _log.info("balance asked for moves in vain: %s", error)
            return False
        assert isinstance(answer, MovesAnswer)
        self.moves += answer.accepted
        for refusal in answer.refused:
            _log.info("balance may not move log %d: %s", refusal.log_id, refusal.error_message)
        deadline = self._clock.boottime_ms() + self._runtime.settings.balance_interval_ms
        while any(log_id in state.moves for log_id, _ in fitting):
            if not self._runtime.leads or self._clock.boottime_ms() >= deadline:
                return False
            await asyncio.sleep(LOOK_MS / 1000)
        return members(state) == self._members


def members(state: ClusterState) -> list[int]:
    """Incarnations that may lead more."""
    return [
        one.incarnation
        for one in state.broker_table.alive()
        if not state.move_table.takes_none(one.node_id, one.incarnation)
    ]


def balance_nodes(state: ClusterState) -> list[BalanceNode]:
    """Brokers that may be given more."""
    return [
        BalanceNode(
            broker.node_id,
            broker.rack,
            frozenset(wal.kind for wal in state.wal_table.of(broker.incarnation) if wal.state == ACTIVE),
        )
        for broker in state.broker_table.alive()
        if not state.move_table.takes_none(broker.node_id, broker.incarnation)
    ]


def still_fits(state: ClusterState, move: BalanceMove) -> bool:
    """Whether the log is where the plan found it, and the target takes logs."""
    log, target = state.logs.get(move.log_id), state.brokers.get(move.target)
    return (
        log is not None
        and log.status == OPEN
        and log.leader_node == move.source
        and move.log_id not in state.moves
        and target is not None
        and target.alive
        and not state.move_table.takes_none(move.target, target.incarnation)
    )
