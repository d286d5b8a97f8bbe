"""Bugs of planned moves: what the steps of DESIGN 7.5 are there for."""

from __future__ import annotations

import asyncio
from typing import Any

import controller.decide.moves
from broker.cold import ColdReads
from broker.log import LogStatus
from broker.moves import Moves
from broker.sealing import Sealing
from controller.log_index import OPEN
from controller.state import ClusterState
from storage.reader import Reader
from storage.seal import Move, RangeRow
from storage.uploader import Uploader
from tests.simulation.plants.registry import MOVE_PLANTS, Patches, registered_in

THAW_S = 0.1

move_plant = registered_in(MOVE_PLANTS, brokers=3, faults_s=12, moves=1.0)


@move_plant()
def thaw_by_timer() -> Patches:
    """The answer takes long, so the log takes records again though the controller was asked; then it moved."""

    async def impatient(self: Sealing, seal: int, patience_s: float) -> bool:
        decided = self._deciding.get(seal)
        if decided is None:
            return True
        await asyncio.wait([decided], timeout=THAW_S)
        return decided.done()

    yield Sealing, "moved", impatient


def _submit_with(moves_of: Any) -> Any:
    """`Uploader.submit` with other moves: `moves_of(uploader, moves)`."""
    submit = Uploader.submit

    def planted(self: Uploader, logs: Any, through: Any = (), recovery: Any = None, moves: Any = ()) -> Any:
        return submit(self, logs, through, recovery, moves_of(self, tuple(moves)))

    return planted


@move_plant()
def move_named_before_the_commit() -> Patches:
    """The leader is named at once, and what is still in memory is to follow."""
    seal = Sealing._seal

    async def take_nothing(self: Sealing, due: Any, targets: Any = None) -> None:
        await seal(self, () if targets is not None else due, targets)

    state_of = controller.decide.moves._may_move

    def any_end(state: ClusterState, command: Any, log: Any, move: Move, end: int) -> bool:
        return state_of(state, command, log, move._replace(end=end), end)

    yield Sealing, "_seal", take_nothing
    yield controller.decide.moves, "_may_move", any_end


@move_plant()
def freeze_does_not_wait_for_what_is_in_flight() -> Patches:
    """What was appended before the freeze and becomes durable after the last seal is acknowledged all the same."""

    async def at_once(self: Moves, logs: Any, patience_s: float) -> set[Any]:
        return set()

    may_move = controller.decide.moves._may_move

    def any_end(state: ClusterState, command: Any, log: Any, move: Move, end: int) -> bool:
        return may_move(state, command, log, move._replace(end=end), end)

    yield Moves, "_validate", at_once
    yield controller.decide.moves, "_may_move", any_end


def _wanted_only(state: ClusterState, command: Any, log: Any, move: Move, end: int) -> bool:
    return log.status == OPEN and state.moves.get(move.log_id) == move.node_id


@move_plant()
def move_without_leader_and_epoch() -> Patches:
    """A broker that moved a log asks for its moves ever after, and is listened to."""
    asked: dict[Uploader, dict[int, Move]] = {}
    on_facts = Moves.on_facts
    wishes: dict[Any, Any] = {}

    def remember(self: Moves, facts: Any) -> None:
        wishes[self._sealing._uploader] = self._controller
        on_facts(self, facts)

    def again(uploader: Uploader, moves: tuple[Move, ...]) -> tuple[Move, ...]:
        known = asked.setdefault(uploader, {})
        known.update({move.log_id: move for move in moves})
        client = wishes.get(uploader)
        if client is None:
            return moves
        state = client.state
        named = {move.log_id for move in moves}
        stale = [
            move._replace(node_id=state.moves[log_id])
            for log_id, move in known.items()
            if log_id not in named and log_id in state.moves and log_id in state.logs
        ]
        return (*moves, *stale)

    yield Moves, "on_facts", remember
    yield Uploader, "submit", _submit_with(again)
    yield controller.decide.moves, "_may_move", _wanted_only


@move_plant()
def producers_are_left_behind() -> Patches:
    """The new leader does not know what the producers sent last."""

    async def nobody(self: ColdReads, log_id: int, states: Any, now_ms: int) -> int:
        return 0

    yield ColdReads, "producers", nobody


@move_plant()
def warm_snapshot_taken_for_the_newest() -> Patches:
    """What was read ahead is used though the log got more ranges since."""
    warm, producers = Reader.warm, Reader.producers
    kept: dict[Reader, dict[int, RangeRow]] = {}

    async def keep(self: Reader, row: RangeRow) -> None:
        await warm(self, row)
        kept.setdefault(self, {}).setdefault(row.range.log_id, row)

    async def stale(self: Reader, row: RangeRow) -> tuple[bytes, int]:
        older = kept.get(self, {}).pop(row.range.log_id, row)
        snapshot, _ = await producers(self, older)
        return snapshot, row.range.end

    yield Reader, "warm", keep
    yield Reader, "producers", stale


@move_plant()
def old_leader_goes_on() -> Patches:
    """A log that moved takes records as if it had been refused."""
    thaw_or_count = Moves._move

    async def move(self: Moves, batch: Any) -> bool:
        done = await thaw_or_count(self, batch)
        for each in batch:
            if each.status is LogStatus.CLOSED:
                self._logs.by_log_id.setdefault(each.log_id, each)
                self._logs.find.setdefault((each.topic, each.partition), each)
                self._logs.find.setdefault((each.topic_id, each.partition), each)
                each.status = LogStatus.OPEN
        return done

    yield Moves, "_move", move
