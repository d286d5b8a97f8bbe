"""Durable -> validated: who may be told what, and when. One `Validation` per WAL instance of this process.

`on_durable` is the one place where the right to acknowledge is checked (DESIGN 4.3), high watermarks and last stable
offsets are assigned, replies become ready, fetches wake and coordinators' answers go out; once per group.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker.connection import Connection, Reply
    from broker.log import Log, Waiter
    from controller.client import Session
    from storage.clock import Clock

log = logging.getLogger(__name__)


class Fence(Protocol):
    """The right to acknowledge and to answer of one WAL kind."""

    def may_acknowledge(self) -> bool:
        """Asked after a group is durable, before any of it is told to anybody."""
        ...

    def may_answer(self) -> bool:
        """Asked for authoritative answers, after the request was read."""
        ...


class FenceFile(Protocol):
    """What a WAL with a fence file tells of it."""

    fenced: bool
    """As of the last sync: no fence file was there after it."""

    def look_for_fence(self) -> bool:
        """Whether the fence file is there now."""
        ...


class FileFence:
    """Kind `file`: the WAL looks for the fence file after each sync; no clock takes part in acknowledging.

    `reachable()` is False while the metadata log cannot be read: then no newer fact can be known, and the absence of a
    fence file is what answers stand on.
    """

    def __init__(self, wal: FenceFile, session: Session, clock: Clock, reachable: Callable[[], bool]) -> None:
        self._wal = wal
        self._session = session
        self._clock = clock
        self._reachable = reachable

    def may_acknowledge(self) -> bool:
        return not self._wal.fenced and not self._session.ended

    def may_answer(self) -> bool:
        if not self.may_acknowledge():
            return False
        if self._session.stands(self._clock.boottime_ms()):
            return True
        return not self._reachable() and not self._wal.look_for_fence()


class SessionFence:
    """Kind `session`: everything needs the session. The WAL's own fence counts beside it."""

    def __init__(self, wal: FenceFile, session: Session, clock: Clock) -> None:
        self._wal = wal
        self._session = session
        self._clock = clock

    def may_acknowledge(self) -> bool:
        return self._session.stands(self._clock.boottime_ms()) and not self._wal.fenced

    def may_answer(self) -> bool:
        return self.may_acknowledge()


class Validation:
    """What is in flight through one WAL instance, in append order."""

    def __init__(self) -> None:
        self.validated = 0
        """Highest append sequence that is durable and may be acknowledged."""
        self.validated_group = 0
        """Its group: what heartbeats tell the controller."""
        self.durable = 0
        self.durable_group = 0
        self.withheld = 0
        """How often a durable group was not acknowledged because the right was missing."""
        self.in_flight: deque[tuple[Log, int, Reply | None]] = deque()
        """(log, end of the batch, an answer that waits for it) by append sequence, `validated + 1` first.

        `Log.append` appends here.
        """
        self.grown: dict[Log, int] = {}
        """Logs whose high watermark rose, and where to; sealing takes the whole dict away and leaves an empty one."""
        self.on_grown: Callable[[], None] = lambda: None
        """Called when the first log since then has grown."""
        self._replies: deque[tuple[int, Reply]] = deque()
        self._callbacks: list[tuple[int, int, Callable[[], None]]] = []
        self._number = count()
        self._fence: Fence | None = None

    def attach(self, fence: Fence) -> None:
        """The fence of the WAL whose `on_durable` is ours; once, before the first append."""
        assert self._fence is None
        self._fence = fence

    def when_reply(self, sequence: int, reply: Reply) -> None:
        """Count `reply` down once `sequence` is validated; it is not yet."""
        replies = self._replies
        # A duplicate may wait for less than the last reply does; keeping the order costs it one group at most.
        if replies and sequence < replies[-1][0]:
            sequence = replies[-1][0]
        replies.append((sequence, reply))

    def when_validated(self, sequence: int, callback: Callable[[], None]) -> None:
        """Call `callback` once `sequence` is validated; at once when it already is."""
        if sequence <= self.validated:
            callback()
        else:
            heappush(self._callbacks, (sequence, next(self._number), callback))

    def on_durable(self, sequence: int, group: int) -> None:
        """Given to the WAL: everything up to `sequence` (of `group`) is durable."""
        self.durable = sequence
        self.durable_group = group
        self.recheck()

    def recheck(self) -> None:
        """Validate what is durable, if there is the right to. Also called when the right may have come back."""
        if self.durable == self.validated:
            return
        assert self._fence is not None
        if self._fence.may_acknowledge():
            self._validate()
        else:
            if not self.withheld:
                log.warning("durable appends are not acknowledged: this broker lost the right to")
            self.withheld += 1

    def may_answer_authoritatively(self) -> bool:
        """Whether OFFSET_OUT_OF_RANGE, ListOffsets, coordinator answers and the like may be given now."""
        return self._fence is not None and self._fence.may_answer()

    def _validate(self) -> None:
        in_flight = self.in_flight
        ends: dict[Log, int] = {}
        due: dict[Connection, None] = {}
        for _ in range(self.durable - self.validated):
            appended_to, end, reply = in_flight.popleft()
            ends[appended_to] = end
            if reply is not None:
                reply.waits -= 1
                if not reply.waits:
                    due[reply.connection] = None
        self.validated = self.durable
        self.validated_group = self.durable_group
        was_empty = not self.grown
        self.grown.update(ends)
        if was_empty:
            self.on_grown()
        woken: dict[Waiter, None] = {}
        for appended_to, end in ends.items():
            assign_high_watermark(appended_to, end)
            if appended_to.waiters:
                woken.update(appended_to.waiters)
        self._flush(due)
        for waiter in woken:
            waiter.wake()
        callbacks = self._callbacks
        while callbacks and callbacks[0][0] <= self.validated:
            heappop(callbacks)[2]()

    def _flush(self, due: dict[Connection, None]) -> None:
        """Replies up to the validated sequence go out, one write per connection; `due` has some already."""
        replies = self._replies
        validated = self.validated
        while replies and replies[0][0] <= validated:
            reply = replies.popleft()[1]
            reply.waits -= 1
            if not reply.waits:
                due[reply.connection] = None
        for connection in due:
            connection.flush()


def assign_high_watermark(log: Log, end: int) -> None:
    """The only place where `hw` changes after a log was opened: everything below `end` is validated."""
    log.hw = end
    first_open = log.producers.first_open_offset(end)
    log.lso = end if first_open is None or first_open > end else max(first_open, log.start)


def assign_last_stable_offset(log: Log) -> None:
    """The same for `lso`, which also changes with the log's start: what was deleted is open no more."""
    assign_high_watermark(log, log.hw)
