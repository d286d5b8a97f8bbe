"""A broker announces itself to the controller, wherever that one is; waits for it; or learns that it is not wanted."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from broker.bucket import TELL_S, CannotStart
from controller.client import ClusterController
from controller.commands import RegisterBroker
from controller.remote import RemoteController
from controller.sessions import with_margin
from controller.state import FORGET_LEVEL
from protocol.errors import RETRIABLE, ErrorCode, KafkaError
from storage.seal import Recovery

log = logging.getLogger(__name__)

RETRY_S = 0.5
WHO_MS = 1_000


class Registration:
    """One registration. `session_ms` and `lease_ms`: how long the session of a dead predecessor may still stand."""

    def __init__(
        self,
        controller: ClusterController,
        remote: RemoteController,
        boottime_ms: Callable[[], int],
        *,
        session_ms: int,
        lease_ms: int,
    ) -> None:
        self._controller = controller
        self._remote = remote
        self._boottime_ms = boottime_ms
        self._in_use_after_ms = with_margin(session_ms + lease_ms)
        self.asked = False
        """Whether the controller may have heard of this broker."""
        self._told = False
        self._rival = 0  # the live incarnation of our node id
        self._rival_since_ms = 0

    async def register(self, command: RegisterBroker) -> tuple[Recovery, ...]:
        """The instances to recover. CannotStart: the controller refuses this broker, and why."""
        telling = asyncio.get_running_loop().call_later(TELL_S, self._tell_who_is_missing)
        try:
            await self._controller.wait_ready()
            self.asked = True
            position = self._controller.registering()
            if self._controller.state.format_level >= FORGET_LEVEL:  # else its controller may not read it
                command = replace(command, position=position)
            while True:
                try:
                    return (await self._controller.ask(command)).recoveries
                except KafkaError as error:
                    if error.code is ErrorCode.DUPLICATE_BROKER_REGISTRATION:
                        await self._check_rival(command)
                    elif error.code not in RETRIABLE:
                        raise CannotStart(f"the controller refuses this broker: {error.message}") from None
                    self._tell(error.message)
                    await asyncio.sleep(RETRY_S)
        finally:
            telling.cancel()

    async def _check_rival(self, command: RegisterBroker) -> None:
        """A dead one's session ends by itself; one that is there is another process under our node id.

        Not at once: it may be on its way out, stopping cleanly.
        """
        rival = self._controller.state.brokers.get(command.node_id)
        if rival is None or not rival.alive:
            return
        now = self._boottime_ms()
        if rival.incarnation != self._rival:
            self._rival, self._rival_since_ms = rival.incarnation, now
        elif now >= self._rival_since_ms + self._in_use_after_ms and await self._remote.is_there(rival, WHO_MS):
            where = ", ".join(f"{one.host}:{one.port}" for one in rival.listeners)
            raise CannotStart(
                f"node.id={command.node_id} is in use by a live broker at {where}: every broker has its own node.id"
            )

    def _tell_who_is_missing(self) -> None:
        why = self._controller.why_not()
        if why is not None:
            self._tell(why)

    def _tell(self, why: str) -> None:
        if not self._told:
            log.warning("waiting to register: %s", why)
            self._told = True
