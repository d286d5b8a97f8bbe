"""Durable -> validated: who may be told what, and when. One `Validation` per WAL instance of this process.

`on_durable` is the one place where the right to acknowledge is checked (DESIGN 4.3), high watermarks and last stable
offsets are assigned, replies become ready, fetches wake and coordinators' answers go out; once per group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker.connection import Reply
    from broker.log import Log
    from storage.clock import Clock
    from storage.wal.port import Wal


class Session:
    """This incarnation's session as the heartbeat loop keeps it (DESIGN 7.3). Times are boottime milliseconds."""

    def __init__(self, clock: Clock) -> None:
        self.deadline_ms = 0
        """Sent time of the last granted heartbeat + session."""
        self.ended = False
        """A fact told that the session was ended; never taken back."""
        self.island = False
        """The metadata log cannot be reached, so no newer fact can be known."""

    @property
    def valid(self) -> bool:
        """Whether the session stands now."""
        raise NotImplementedError


class Fence(Protocol):
    """The right to acknowledge and to answer of one WAL kind."""

    def may_acknowledge(self) -> bool:
        """Asked after a group is durable, before any of it is told to anybody."""
        ...

    def may_answer(self) -> bool:
        """Asked for authoritative answers, after the request was read."""
        ...


class Validation:
    """What is in flight through one WAL instance."""

    def __init__(self, fence: Fence) -> None:
        self.validated = 0
        """Highest append sequence that is durable and may be acknowledged."""
        self.validated_group = 0
        """Its group: what heartbeats tell the controller."""

    def attach(self, wal: Wal) -> None:
        """The WAL whose `on_durable` is ours; once, before the first append."""
        raise NotImplementedError

    def appended(self, log: Log, end: int) -> None:
        """The batch that ends at `end` took the next append sequence."""
        raise NotImplementedError

    def when_reply(self, sequence: int, reply: Reply) -> None:
        """Count `reply` down once `sequence` is validated."""
        raise NotImplementedError

    def when_validated(self, sequence: int, callback: Callable[[], None]) -> None:
        """Call `callback` once `sequence` is validated; at once when it already is."""
        raise NotImplementedError

    def on_durable(self, sequence: int, group: int) -> None:
        """Given to the WAL: everything up to `sequence` (of `group`) is durable."""
        raise NotImplementedError

    def recheck(self) -> None:
        """The right to acknowledge may have come back: validate what is durable."""
        raise NotImplementedError

    def may_answer_authoritatively(self) -> bool:
        """Whether OFFSET_OUT_OF_RANGE, ListOffsets, coordinator answers and the like may be given now."""
        raise NotImplementedError
