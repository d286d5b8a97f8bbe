"""Reads of what is in the bucket: planned from the newest facts, planned again when an object is gone (DESIGN 6)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from protocol.errors import ErrorCode, KafkaError
from protocol.records import iterate_batches
from storage.manifest import range_row
from storage.object_store import StoreError
from storage.seal import AbortedEntry, CorruptSegment, RangeMissing, RangeRow

if TYPE_CHECKING:
    from controller.client import ControllerClient
    from storage.manifest import Manifests
    from storage.producers import ProducerStates
    from storage.reader import FoundBatch, Reader, ReadResult

log = logging.getLogger(__name__)

PLANS_MAX = 8
FACTS_S = 1.0
"""How far behind a broker's facts may be while it serves: only what is named after so long is missing for certain."""
BACK_OFF_SECONDS_MAX = 2.0
REPLAY_BYTES = 1024 * 1024
ROWS_MAX = 64
"""Ranges that a read is planned from."""
NO_TIMESTAMP = -1 << 63

_T = TypeVar("_T")


class StoreAway(KafkaError):
    """The bucket does not answer now; the same read may succeed later."""


class _Window:
    """A log's ranges are read a few at a time: `end` is where the last ones given to `read` end. `since`: of those that
    lie in manifests only those with a greatest timestamp of at least that are wanted."""

    def __init__(
        self,
        offset: int,
        read: Callable[[Sequence[RangeRow], int], Awaitable[FoundBatch | None]],
        since: int = NO_TIMESTAMP,
    ) -> None:
        self.offset = offset
        self.since = since
        self._read = read
        self.end: int | None = None

    def read(self, rows: Sequence[RangeRow]) -> Awaitable[FoundBatch | None]:
        self.end = rows[-1].range.end if rows else None
        return self._read(rows, self.offset)


class ColdReads:
    """Every method raises KafkaError(KAFKA_STORAGE_ERROR): the store is away (`StoreAway`), or an object that the
    newest facts name is missing or damaged (an alarm is logged)."""

    def __init__(self, reader: Reader, manifests: Manifests, controller: ControllerClient) -> None:
        self._reader = reader
        self._manifests = manifests
        self._controller = controller
        self.alarms = 0
        """Named objects found missing or damaged."""

    async def read(
        self, log_id: int, offset: int, limit: int, max_bytes: int, *, read_committed: bool = False
    ) -> ReadResult:
        """Batches from the one holding `offset` on, none that begins at or above `limit`; at least one if there is.

        `read_committed`: with the aborted transactions whose marker is in the bucket.
        """
        end = offset

        def read(rows: Sequence[RangeRow]) -> Awaitable[ReadResult]:
            nonlocal end
            end = rows[-1].range.end if rows else offset
            return self._reader.read(rows, offset, limit, max_bytes, read_committed=read_committed)

        result = await self._planned(partial(self._ranges, log_id, offset), read)
        if read_committed and not result.aborted_complete:
            return await self._with_later_markers(log_id, offset, end, result)
        return result

    async def _with_later_markers(self, log_id: int, offset: int, at: int, read: ReadResult) -> ReadResult:
        """A marker may lie further on than the ranges, up to `at`, that its data was read from."""

        async def collect(rows: Sequence[RangeRow]) -> tuple[list[AbortedEntry], bool, int]:
            found: list[AbortedEntry] = []
            complete = await self._reader.collect_aborted(rows, offset, read.next_offset, found)
            return found, complete, rows[-1].range.end if rows else -1

        aborted = list(read.aborted)
        complete = False
        while not complete:
            found, complete, end = await self._planned(partial(self._ranges, log_id, at), collect)
            aborted += found
            if end <= at:
                break
            at = end
        # Ranges that were merged meanwhile may have told of some a second time.
        return read._replace(aborted=list(dict.fromkeys(aborted)), aborted_complete=complete)

    async def read_patiently(self, log_id: int, offset: int, limit: int, max_bytes: int) -> ReadResult:
        """The same, waiting for a store that is away."""
        return await self._patiently(lambda: self.read(log_id, offset, limit, max_bytes))

    async def find_timestamp(self, log_id: int, offset: int, timestamp: int, limit: int) -> FoundBatch | None:
        """The first committed batch in [offset, limit) whose max timestamp is at least `timestamp`."""
        while True:
            window = _Window(
                offset, lambda rows, at: self._reader.find_timestamp(rows, timestamp, limit, at), timestamp
            )
            found = await self._planned(partial(self._window, log_id, window), window.read)
            if found is not None or window.end is None or window.end >= limit:
                return found
            offset = window.end
            await asyncio.sleep(0)

    async def find_max_timestamp(self, log_id: int, offset: int, limit: int) -> FoundBatch | None:
        """The committed batch with the greatest max timestamp in [offset, limit), the first of equals."""
        best: FoundBatch | None = None
        while True:
            since = NO_TIMESTAMP if best is None else best.max_timestamp + 1
            window = _Window(offset, lambda rows, at: self._reader.find_max_timestamp(rows, limit, at), since)
            found = await self._planned(partial(self._window, log_id, window), window.read)
            if found is not None and (best is None or found.max_timestamp > best.max_timestamp):
                best = found
            if window.end is None or window.end >= limit:
                return best
            offset = window.end
            await asyncio.sleep(0)

    async def warm(self, log_id: int) -> None:
        """Read ahead what `producers` needs, as far as it is there: the newest range's index, no batches."""

        async def read(rows: Sequence[RangeRow]) -> None:
            if rows:
                await self._reader.warm(rows[0])

        await self._planned(lambda: self._newest(log_id), read)

    async def producers(self, log_id: int, states: ProducerStates, now_ms: int) -> int:
        """Fill `states` with what is known at the committed end; waits for a store that is away.

        Returns how many bytes of batches had to be read: none if the newest range has a snapshot. ValueError: the
        snapshot is of an unknown version.
        """
        snapshot, offset = await self._patiently(lambda: self._snapshot(log_id))
        if snapshot:
            states.load(snapshot)
        replayed = 0
        while True:
            known = self._controller.state.logs.get(log_id)
            if known is None or offset >= known.end:
                return replayed
            read = await self.read_patiently(log_id, offset, known.end, REPLAY_BYTES)
            replayed += read.size
            for buffer in read.buffers:
                view = memoryview(buffer)
                for at, header in iterate_batches(view):
                    if header.base_offset >= offset:
                        states.replay(header, now_ms, view[at : at + header.size])
            if read.next_offset <= offset:
                return replayed
            offset = read.next_offset

    async def _snapshot(self, log_id: int) -> tuple[bytes, int]:
        """The newest producer snapshot and the offset at which it is exact."""

        async def read(rows: Sequence[RangeRow]) -> tuple[bytes, int]:
            return await self._reader.producers(rows[0]) if rows else (b"", 1 << 62)

        return await self._planned(partial(self._newest, log_id), read)

    async def _ranges(self, log_id: int, offset: int) -> list[RangeRow]:
        """The ranges from the one that holds `offset` on, at most `ROWS_MAX`; those in manifests too."""
        rows: list[RangeRow] = []
        while len(rows) < ROWS_MAX:
            pointer = self._controller.state.manifest_at(log_id, offset)
            if pointer is None:
                return rows + self._controller.state.ranges(log_id, offset, ROWS_MAX - len(rows))
            manifest = await self._manifests.get(log_id, pointer)
            first = max(pointer.first, manifest.first_beyond(offset))
            rows += [range_row(log_id, row) for row in manifest.rows(first, first + ROWS_MAX - len(rows))]
            offset = rows[-1].range.end
        return rows

    async def _window(self, log_id: int, window: _Window) -> list[RangeRow]:
        """As `_ranges` from the window's offset on, past the ranges in manifests that are too old for it."""
        state, offset = self._controller.state, window.offset
        while (pointer := state.manifest_at(log_id, offset)) is not None:
            if pointer.max_timestamp >= window.since:
                manifest = await self._manifests.get(log_id, pointer)
                first = manifest.first_since(window.since)
                if first < manifest.count:
                    offset = max(offset, manifest.row(first).range.base)
                    break
            offset = pointer.end
        return await self._ranges(log_id, offset)

    async def _newest(self, log_id: int) -> list[RangeRow]:
        row = self._controller.state.newest_range(log_id)
        return [] if row is None else [row]

    async def _planned(
        self, plan: Callable[[], Awaitable[Sequence[RangeRow]]], read: Callable[[Sequence[RangeRow]], Awaitable[_T]]
    ) -> _T:
        missing, waited_s = None, 0.0
        plans = 0
        while plans < PLANS_MAX:
            try:
                rows = await plan()
                if missing is None or not any(row.key == missing for row in rows):
                    plans += 1
                    return await read(rows)
            except RangeMissing as error:
                if error.key != missing:
                    missing, waited_s = error.key, 0.0
                    continue
            except CorruptSegment as error:
                raise self._alarm(str(error)) from None
            except StoreError as error:
                raise StoreAway(ErrorCode.KAFKA_STORAGE_ERROR, f"the object store does not answer: {error}") from None
            if waited_s >= FACTS_S:
                raise self._alarm(f"{missing} is named by the newest facts and does not exist")
            await asyncio.sleep(FACTS_S / 10)  # the facts that un-named it may be on their way
            waited_s += FACTS_S / 10
        raise StoreAway(ErrorCode.KAFKA_STORAGE_ERROR, "ranges changed faster than they could be read")

    async def _patiently(self, read: Callable[[], Awaitable[_T]]) -> _T:
        seconds = 0.05
        while True:
            try:
                return await read()
            except StoreAway as error:
                if seconds == 0.05:
                    log.warning("waiting for the object store: %s", error.message)
                await asyncio.sleep(seconds)
                seconds = min(seconds * 2, BACK_OFF_SECONDS_MAX)

    def _alarm(self, what: str) -> KafkaError:
        self.alarms += 1
        log.error("ALARM: data cannot be read: %s", what)
        return KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, what)
