"""Commits and replays that do not look at the epoch, each with a second mistake that makes it matter on volumes.

Only what is validated is sealed, and a log that moves away is committed to its end, so that no frame of another epoch
lies above the end of a log. Here leaders do not wait for what is in flight when a log is to move: they give it up, and
nobody hears anything of it unless the log stays. That alone is harmless, because the epoch tells what came of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import broker.recovery
import controller.decide.seals
from broker.log import Log, LogStatus
from broker.moves import Moves
from controller.state import ClusterState
from protocol.records import parse_header
from storage.seal import SealedLog
from storage.uploader import Uploader
from tests.simulation.plants.broker import give_up
from tests.simulation.plants.registry import MOVE_PLANTS, Patches, registered_in

SEALED_LATE = {"tidelog.merge.enable": "false", "tidelog.seal.ms": "4000", "tidelog.balance.interval.ms": "30000"}

epoch_plant = registered_in(
    MOVE_PLANTS, brokers=2, layout="apart", wal="volume", faults_s=12, moves=0.0, settings=SEALED_LATE
)


def _ghosts(kept: dict[Log, SealedLog]) -> Patches:
    """What is in flight when a log is to move is given up; `kept` gets what a seal of it would be."""

    frozen: dict[int, Log] = {}
    submit = Uploader.submit

    def to_what_is_sealed(self: Uploader, logs: Any, through: Any = (), recovery: Any = None, moves: Any = ()) -> Any:
        moves = [move._replace(end=frozen[move.log_id].sealed_end) for move in moves]
        return submit(self, logs, through, recovery, moves)

    async def at_once(self: Moves, logs: Iterable[Log], timeout_s: float) -> set[Any]:
        for log in logs:
            if log.status is LogStatus.MOVING:
                frozen[log.log_id] = log
            if log.status is not LogStatus.MOVING or log.hw == log.end:
                continue
            base, end = log.hw, log.end
            kept[log] = SealedLog(
                log_id=log.log_id,
                leader_epoch=log.epoch,
                base=base,
                end=end,
                batches=log.tail.slice(base, end),
                max_timestamp=log.tail.max_timestamp_between(base, end),
                last_stable_offset=log.lso,
                producers=log.producers.snapshot(end),
                aborted=[],
                size=log.tail.payload_between(base, end),
            )
            give_up(log.validation, {log})
        return set()

    yield Moves, "_validate", at_once
    yield Uploader, "submit", to_what_is_sealed


@epoch_plant(faults={"there_and_back": 2})
def replay_by_offset_alone() -> Patches:
    """A recovery takes every frame that continues its log, whichever leader wrote it."""

    def wanted(batches: Iterator[tuple[int, int, bytes]], plan: Any, done: Any) -> Iterator[bytes]:
        end = plan.end
        for _, base, batch in batches:
            if base == end and end < plan.scanned_end:
                end = parse_header(batch).next_offset
                yield batch
            elif base > end:
                return

    yield from _ghosts({})
    yield broker.recovery, "_wanted", wanted


@epoch_plant(faults={"there_and_back": 2})
def commit_by_offset_alone() -> Patches:
    """Whoever's seal continues the log is committed; and leaders seal what they gave up, when their log is gone."""
    kept: dict[Log, SealedLog] = {}
    move = Moves._move
    fits = controller.decide.seals._fits

    async def and_seal(self: Moves, batch: Any) -> bool:
        moved = await move(self, batch)
        ghosts = [kept.pop(log) for log in batch if log in kept and log.status is LogStatus.CLOSED]
        if ghosts:
            self._sealing._uploader.submit(ghosts)
        return moved

    def any_epoch(state: ClusterState, command: Any, found: Any) -> bool:
        log = state.logs.get(found.log_id)
        return fits(state, command, found) or (log is not None and found.base == log.end and not command.recovery)

    yield from _ghosts(kept)
    yield Moves, "_move", and_seal
    yield controller.decide.seals, "_fits", any_epoch
