"""The clean stop (DESIGN 7.4): leadership goes first, then everything is committed, and one entry says so."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from broker.log import Log
from controller.commands import CleanStop
from protocol.errors import KafkaError
from storage.object_store import StoreError

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.heartbeats import Heartbeats
    from broker.moves import Moves
    from broker.server import Server
    from broker.wals import OwnWals

log = logging.getLogger(__name__)

RETRY_S = 0.5
LEAVE_SHARE = 2
"""The part of `tidelog.shutdown.timeout.ms` in which other brokers may take leadership over."""
DRAIN_MS = 5_000
"""What a clean stop gives clients to read their answers."""


class Shutdown:
    """What a clean stop of one broker takes, in its order."""

    def __init__(
        self, server: Server, *, incarnation: int, moves: Moves, wals: OwnWals, heartbeats: Heartbeats
    ) -> None:
        self._server = server
        self._services = server.services
        self._incarnation = incarnation
        self._moves = moves
        self._wals = wals
        self._heartbeats = heartbeats

    async def run(self, tasks: Tasks, *, others: bool) -> bool:
        """Hand leadership over, freeze, answer what is appended, commit everything, say so in one entry.

        `others`: other brokers are alive. False: that was not possible in time, the WAL stays. Heartbeats go on
        meanwhile, so that what is appended can be acknowledged.
        """
        services = self._services
        timeout_ms = services.settings.tidelog_shutdown_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                if others:
                    await self._leave(timeout_ms // LEAVE_SHARE)
                self._moves.stop()
                self._server.stop_accepting(but_peers=others)
                services.groups.stop()
                services.coordinators.stop()
                services.logs.on_open(Log.freeze)
                for one in services.logs.logs:
                    one.freeze()
                # From here on nothing is appended: clients read their answers while everything is committed.
                draining = tasks.spawn(
                    self._server.drain(min(DRAIN_MS, timeout_ms // 2), but_peers=others), name="drain connections"
                )
                await services.sealing.drain()
                await draining
                self._heartbeats.expect_end()
                await self._ask_until_answered(CleanStop(services.token(16), self._incarnation))
        except (TimeoutError, KafkaError, StoreError) as error:
            log.error(
                "no clean stop within tidelog.shutdown.timeout.ms=%d (%s): the WAL stays and will be recovered",
                timeout_ms,
                str(error) or "time is over",
            )
            return False
        await self._wals.remove()
        log.info("stopped: everything is in the bucket")
        return True

    async def _leave(self, timeout_ms: int) -> None:
        """Other brokers take the logs over while clients are served: those see no more than a leader that changed."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._moves.leave()
        except TimeoutError:
            log.warning("%d logs were not taken over in time", len(self._services.logs))

    async def _ask_until_answered(self, command: CleanStop) -> None:
        while True:
            try:
                await self._services.controller.ask(command)
            except KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return
