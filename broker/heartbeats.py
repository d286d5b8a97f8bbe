"""The session of this broker: renewed by heartbeats, ended by the controller's word or a fact."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controller import facts as f
from protocol.errors import ErrorCode, KafkaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker.wals import OwnWals
    from controller.client import ControllerClient, Session
    from storage.clock import Clock

FIRST_SHARE = 12
"""How often in a session a heartbeat is sent before the controller said when the next is due."""


class Heartbeats:
    """Keeps `session`. `on_ended(why)`: it was ended and nobody asked for it, so the process must end."""

    def __init__(
        self,
        session: Session,
        *,
        incarnation: int,
        session_ms: int,
        controller: ControllerClient,
        clock: Clock,
        wals: OwnWals,
        on_ended: Callable[[str], None],
    ) -> None:
        self._session = session
        self._incarnation = incarnation
        self._session_ms = session_ms
        self._controller = controller
        self._clock = clock
        self._wals = wals
        self._on_ended = on_ended
        self._expected = False

    async def run(self) -> None:
        """Renew the session until it was ended; the deadline counts from when a heartbeat was sent."""
        while True:
            sent_ms = self._clock.boottime_ms()
            next_ms = self._session_ms // FIRST_SHARE
            try:
                position = self._controller.position
                grant = await self._controller.heartbeat(self._incarnation, position, self._wals.validated)
            except KafkaError as error:
                if error.code is ErrorCode.STALE_BROKER_EPOCH:
                    self._ended(error.message)
                    return
            else:
                self._session.granted(sent_ms, grant)
                self._wals.recheck()
                next_ms = grant.next_ms
            await asyncio.sleep(max(0, sent_ms + next_ms - self._clock.boottime_ms()) / 1000)

    def on_facts(self, facts: Sequence[f.Fact]) -> None:
        """To be subscribed to the facts."""
        for fact in facts:
            if isinstance(fact, f.SessionEnded) and fact.incarnation == self._incarnation:
                self._ended(f"its session was ended ({fact.reason})")

    def expect_end(self) -> None:
        """From now on the session ends by our own word."""
        self._expected = True

    def _ended(self, why: str) -> None:
        self._session.end()
        if not self._expected:
            self._on_ended(f"this broker leads nothing any more: {why}")
