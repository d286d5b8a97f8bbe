"""Fetch sessions (KIP-227): what a consumer asked for is remembered, and only what changed travels. Pure.

Rules of Kafka's FetchManager, FetchSessionCache and IncrementalFetchContext: a full request (epoch 0) may open a
session, epoch -1 closes one, any other epoch must be the session's next. A session with topic ids stays so. When all
slots are taken, a session that was not used for two minutes goes, else one smaller than the newcomer that is two
minutes old; otherwise the newcomer gets no session and goes on with full requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from protocol.errors import ErrorCode
from protocol.fast import FetchPart, FetchResult

FINAL_EPOCH = -1
INITIAL_EPOCH = 0
NO_SESSION = 0
EVICTION_MS = 120_000
PARTS_MAX = 1_000_000
"""Partitions remembered by all sessions together; beyond it newcomers get no session."""

_EPOCH_MAX = 2**31 - 1

Key = tuple[str | bytes, int]


class SessionPart:
    """A partition as its consumer wants it, and what it was last told of it (-1: nothing)."""

    __slots__ = (
        "high_watermark",
        "last_epoch",
        "leader_epoch",
        "log_start_offset",
        "max_bytes",
        "offset",
        "partition",
        "topic",
    )

    def __init__(self, part: FetchPart) -> None:
        self.topic, self.partition = part[0], part[1]
        self.high_watermark = -1
        self.log_start_offset = -1
        self.update(part)

    def update(self, part: FetchPart) -> None:
        """The consumer asks for it anew."""
        _, _, self.offset, self.max_bytes, self.leader_epoch, self.last_epoch, _ = part


class FetchSession:
    """`epoch` is that of the next request; `parts` in the order in which they are served."""

    __slots__ = ("by_id", "created_ms", "epoch", "id", "parts", "used_ms")

    def __init__(self, session_id: int, by_id: bool, parts: dict[Key, SessionPart], now_ms: int) -> None:
        self.id = session_id
        self.by_id = by_id
        self.parts = parts
        self.epoch = 1
        self.created_ms = self.used_ms = now_ms


class Turn(NamedTuple):
    """One request: what to serve and how its answer travels.

    `error_code` other than 0 answers the whole request. `session` None: everything is answered. `incremental`: only
    what changed is.
    """

    parts: list[SessionPart]
    session: FetchSession | None = None
    incremental: bool = False
    error_code: int = 0
    opens: bool = False
    """A session is to be opened for these parts when the answer is made."""


class FetchSessions:
    """All sessions of this broker. `new_id()` gives a random positive int32; times are boottime milliseconds."""

    def __init__(self, slots: int, new_id: Callable[[], int]) -> None:
        self.slots = slots
        self.evictions = 0
        self.parts_held = 0
        self._new_id = new_id
        self._sessions: dict[int, FetchSession] = {}  # by last use, oldest first

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(
        self,
        session_id: int,
        epoch: int,
        parts: Sequence[FetchPart],
        forgotten: Iterable[Key],
        *,
        by_id: bool,
        now_ms: int,
    ) -> Turn:
        """What a request asks for. An incremental one moves its session to the next epoch."""
        if epoch in (INITIAL_EPOCH, FINAL_EPOCH):
            if session_id != NO_SESSION:
                self._drop(session_id)
            return Turn(_wanted(parts), opens=epoch == INITIAL_EPOCH)
        session = self._sessions.get(session_id)
        if session is None:
            return Turn([], error_code=ErrorCode.FETCH_SESSION_ID_NOT_FOUND)
        if session.epoch != epoch:
            return Turn([], error_code=ErrorCode.INVALID_FETCH_SESSION_EPOCH)
        if session.by_id != by_id:
            return Turn([], error_code=ErrorCode.FETCH_SESSION_TOPIC_ID_ERROR)
        self._change(session, parts, forgotten)
        if not session.parts:
            self._drop(session_id)
            return Turn(_wanted(parts))  # Kafka serves once more what came and was forgotten at the same time
        if self.parts_held > PARTS_MAX:
            self._drop(session_id)
            return Turn([], error_code=ErrorCode.FETCH_SESSION_ID_NOT_FOUND)
        session.epoch = 1 if epoch == _EPOCH_MAX else epoch + 1
        session.used_ms = now_ms
        self._sessions[session_id] = self._sessions.pop(session_id)
        return Turn(list(session.parts.values()), session, incremental=True)

    def open(self, turn: Turn, *, by_id: bool, now_ms: int) -> int:
        """The id of a new session for a full request's parts, 0 if there is no place for it."""
        if not turn.opens or not self._make_place(len(turn.parts), now_ms):
            return NO_SESSION
        session_id = self._new_id()
        while session_id == NO_SESSION or session_id in self._sessions:
            session_id = self._new_id()
        parts = {(part.topic, part.partition): part for part in turn.parts}
        self._sessions[session_id] = FetchSession(session_id, by_id, parts, now_ms)
        self.parts_held += len(parts)
        return session_id

    def _change(self, session: FetchSession, parts: Sequence[FetchPart], forgotten: Iterable[Key]) -> None:
        held = session.parts
        before = len(held)
        for part in parts:
            known = held.get((part[0], part[1]))
            if known is None:
                held[part[0], part[1]] = SessionPart(part)
            else:
                known.update(part)
        for key in forgotten:
            held.pop(key, None)
        self.parts_held += len(held) - before

    def _drop(self, session_id: int) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self.parts_held -= len(session.parts)

    def _make_place(self, size: int, now_ms: int) -> bool:
        if self.parts_held + size > PARTS_MAX:
            return False
        if len(self._sessions) < self.slots:
            return True
        if not self._sessions:
            return False
        oldest = next(iter(self._sessions.values()))
        if now_ms - oldest.used_ms > EVICTION_MS:
            self._evict(oldest)
            return True
        old = (s for s in self._sessions.values() if now_ms - s.created_ms > EVICTION_MS)
        smallest = min(old, key=lambda session: len(session.parts), default=None)
        if smallest is None or len(smallest.parts) >= size:
            return False
        self._evict(smallest)
        return True

    def _evict(self, session: FetchSession) -> None:
        self.evictions += 1
        self._drop(session.id)


def _wanted(parts: Sequence[FetchPart]) -> list[SessionPart]:
    """What a request names, each partition once."""
    return list({(part[0], part[1]): SessionPart(part) for part in parts}.values())


def changed(part: SessionPart, result: FetchResult) -> bool:
    """Whether an incremental answer has to mention the partition; notes what it will have been told."""
    must = bool(
        result.size > 0
        or result.error_code
        or result.diverging_epoch is not None
        or result.high_watermark != part.high_watermark
        or result.log_start_offset != part.log_start_offset
    )
    note(part, result)
    return must


def note(part: SessionPart, result: FetchResult) -> None:
    """What the consumer will have been told. After an error the next success has to be told in any case."""
    part.high_watermark = -1 if result.error_code else result.high_watermark
    part.log_start_offset = result.log_start_offset


def served(session: FetchSession, part: SessionPart) -> None:
    """The partition gave data: it goes to the end, so that a byte limit does not starve the others."""
    key = (part.topic, part.partition)
    held = session.parts.pop(key, None)
    if held is not None:
        session.parts[key] = held
