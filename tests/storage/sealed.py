"""Batches, sealed logs and a store with scripted faults for the tests of this directory."""

import asyncio
from collections import Counter
from collections.abc import Callable

from protocol.records import build_batch, parse_header
from storage.memory import MemoryStore
from storage.object_store import Body, ObjectInfo
from storage.seal import AbortedEntry, RangeRow, SealedLog, Writer
from storage.segment import Segment, SegmentWriter

WRITER = Writer("cluster-under-test", 1, 0xABCD)


def batch(base: int, count: int = 1, *, timestamp: int = 1_000, value_bytes: int = 10, **fields: int | bool) -> bytes:
    """A batch of `count` equal records from offset `base` on; each is a millisecond newer than the one before."""
    records = [(timestamp + at, None, b"v" * value_bytes, ()) for at in range(count)]
    return bytes(build_batch(records, base_offset=base, leader_epoch=3, **fields))  # type: ignore[arg-type]


def batches(base: int, sizes: list[int], *, timestamp: int = 1_000, value_bytes: int = 10) -> list[bytes]:
    """Consecutive batches of these record counts; each is 100 ms newer than the one before."""
    made = []
    for at, count in enumerate(sizes):
        made.append(batch(base, count, timestamp=timestamp + 100 * at, value_bytes=value_bytes))
        base += count
    return made


def seal(
    log_id: int,
    contents: list[bytes],
    *,
    base: int | None = None,
    end: int | None = None,
    lso: int | None = None,
    producers: bytes = b"",
    aborted: list[AbortedEntry] | None = None,
) -> SealedLog:
    headers = [parse_header(content) for content in contents]
    end = headers[-1].next_offset if end is None else end
    return SealedLog(
        log_id,
        3,
        headers[0].base_offset if base is None else base,
        end,
        list(contents),
        max((header.max_timestamp for header in headers), default=-1),
        end if lso is None else lso,
        producers,
        aborted or [],
    )


def writer(number: int = 1, part: int = 0) -> SegmentWriter:
    return SegmentWriter(WRITER, number, part)


def rows_of(segment: Segment, log_id: int) -> list[RangeRow]:
    return [RangeRow(segment.key, segment.size, range_) for range_ in segment.ranges if range_.log_id == log_id]


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def boottime_ms(self) -> int:
        return 1_000


class ScriptedStore(MemoryStore):
    """Calls are counted and noted. `script[method]` holds what the next calls of a method meet, in order: an exception
    to raise before anything happens, ("after", exception) to raise it once it has happened, an event to wait for,
    or None."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.ranges: list[tuple[str, int, int]] = []
        self.script: dict[str, list[object]] = {}
        self.running = self.running_max = 0

    async def _meet(self, method: str, call: Callable[[], object]) -> object:
        self.calls[method] += 1
        script = self.script.get(method)
        fault = script.pop(0) if script else None
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            if isinstance(fault, Exception):
                raise fault
            if isinstance(fault, asyncio.Event):
                await fault.wait()
            result = await call()  # type: ignore[misc]
            if isinstance(fault, tuple):
                raise fault[1]
            return result
        finally:
            self.running -= 1

    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self._meet("put_if_absent", lambda: MemoryStore.put_if_absent(self, key, body))  # type: ignore[return-value]

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((key, start, length))
        return await self._meet("get_range", lambda: MemoryStore.get_range(self, key, start, length))  # type: ignore[return-value]

    async def head(self, key: str) -> ObjectInfo:
        return await self._meet("head", lambda: MemoryStore.head(self, key))  # type: ignore[return-value]

    def damage(self, key: str, data: bytes) -> None:
        self._store(key, data)
