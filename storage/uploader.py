"""Sealed tails -> segments in the bucket, many at once, committed in order."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from storage.clock import Clock
from storage.object_store import ObjectStore
from storage.seal import (
    CommitAnswer,
    CommitSeal,
    CommittedThrough,
    Recovery,
    SealedLog,
    Verdict,
    Writer,
)

Commit = Callable[[CommitSeal], Awaitable[CommitAnswer]]


class Uploader:
    """Uploads many seals at a time and commits them strictly in seal order.

    Tasks run in the TaskGroup that the owner hands in; they end by themselves when their seal is decided.
    """

    def __init__(
        self,
        store: ObjectStore,
        writer: Writer,
        commit: Commit,
        tasks: asyncio.TaskGroup,
        clock: Clock,
        *,
        parallel: int = 4,
        own_object_bytes: int = 8 * 1024 * 1024,
        pace_bytes_per_s: int = 0,
    ) -> None:
        raise NotImplementedError

    in_flight: int
    in_flight_bytes: int
    away_since: int | None

    def submit(
        self,
        logs: Sequence[SealedLog],
        committed_through: Sequence[CommittedThrough] = (),
        recovery: Recovery | None = None,
    ) -> "asyncio.Future[Verdict]":
        """Takes the next seal number at once; await the future for the verdict. Cancelling it stops nothing."""
        raise NotImplementedError
