"""Manifests: immutable objects with the rows of old ranges of one log, so that the metadata need not hold them.

    head      big-endian: magic `tdlogman`, format version u16, length of the cluster id u16, job u32, log id u32,
              number of rows u32
    cluster id
    rows      little-endian, in offset order without overlap, 68 bytes each: base, end, max timestamp, greatest max
              timestamp of this row and all before it, newest ms, LSO at end (i64 each), job, leader epoch, length, size
              of the object, batch count (u32 each)
    CRC-32C   u32, big-endian, of all that

Only ranges that merge jobs made may be here: each is alone in its object, which is named by job and log. Newest ms is
what retention counts the age of a range from. Offsets may be missing between two rows only where a loss was declared.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from crc32c import crc32c

from protocol import Buffer
from storage.cache import ByteCache, arrival
from storage.object_store import NotFound, ObjectStore
from storage.seal import CorruptSegment, ManifestPointer, Range, RangeMissing, RangeRow, manifest_key, merged_key
from storage.tasks import TaskOwner

FORMAT_VERSION = 1
MAGIC = b"tdlogman"
ROWS_MAX = 1 << 20
"""No manifest has more rows; writers stop far below."""

_HEAD = Struct(">8sHHIII")
_ROW = Struct("<qqqqqqIIIII")
_CRC = Struct(">I")
_END, _RUNNING = Struct("<8xq52x"), Struct("<24xq36x")


class ManifestRow(NamedTuple):
    """One range: made by merge job `job`, alone in an object of `size` bytes."""

    job: int
    size: int
    range: Range
    newest_ms: int  # wall time from which its age counts


class Manifest:
    """The verified rows of a manifest, packed."""

    __slots__ = ("_packed", "count", "log_id")

    def __init__(self, log_id: int, packed: bytes) -> None:
        self.log_id = log_id
        self.count = len(packed) // _ROW.size
        self._packed = packed

    @property
    def memory_bytes(self) -> int:
        return len(self._packed) + 200

    def row(self, index: int) -> ManifestRow:
        """The row at `index` (not negative)."""
        base, end, newest, _, newest_ms, stable, job, epoch, length, size, batches = _ROW.unpack_from(
            self._packed, index * _ROW.size
        )
        return ManifestRow(
            job, size, Range(self.log_id, epoch, base, end, 0, length, newest, stable, batches), newest_ms
        )

    def rows(self, first: int, last: int | None = None) -> list[ManifestRow]:
        """Rows `first` to `last` (exclusive, or all that follow)."""
        return [self.row(index) for index in range(first, self.count if last is None else min(last, self.count))]

    def first_beyond(self, offset: int) -> int:
        """Index of the first row that ends above `offset`; `count` if none does."""
        return bisect_right(range(self.count), offset, key=self._end)

    def first_since(self, timestamp: int) -> int:
        """Index of the first row with a max timestamp of at least `timestamp`; `count` if there is none."""
        return bisect_left(range(self.count), timestamp, key=self._running)

    def _end(self, index: int) -> int:
        return int(_END.unpack_from(self._packed, index * _ROW.size)[0])

    def _running(self, index: int) -> int:
        return int(_RUNNING.unpack_from(self._packed, index * _ROW.size)[0])


def range_row(log_id: int, row: ManifestRow) -> RangeRow:
    """The row as reads are planned from."""
    return RangeRow(merged_key(row.job, log_id), row.size, row.range)


def encode_manifest(cluster_id: str, job: int, log_id: int, rows: Sequence[ManifestRow]) -> bytes:
    """The object at `manifest_key(job, log_id)`."""
    identity = cluster_id.encode()
    out = bytearray(_HEAD.pack(MAGIC, FORMAT_VERSION, len(identity), job, log_id, len(rows)) + identity)
    running = -1
    for row in rows:
        found = row.range
        running = max(running, found.max_timestamp)
        out += _ROW.pack(
            *(found.base, found.end, found.max_timestamp, running, row.newest_ms, found.last_stable_offset),
            *(row.job, found.leader_epoch, found.length, row.size, found.batch_count),
        )
    return bytes(out + _CRC.pack(crc32c(out)))


def decode_manifest(key: str, cluster_id: str | None, job: int, log_id: int, data: Buffer) -> Manifest:
    """Verifies the bytes of the object `key`. `CorruptSegment`. `cluster_id` None: any."""
    view = memoryview(data)
    if len(view) < _HEAD.size + _CRC.size:
        raise CorruptSegment(key, f"{len(view)} bytes are too few for a manifest")
    if crc32c(view[: -_CRC.size]) != _CRC.unpack(view[-_CRC.size :])[0]:
        raise CorruptSegment(key, "checksum of the manifest does not match")
    magic, version, length, own_job, own_log, count = _HEAD.unpack_from(view)
    if magic != MAGIC or version != FORMAT_VERSION:
        raise CorruptSegment(key, f"no manifest of format {FORMAT_VERSION}: magic {magic!r}, version {version}")
    start = _HEAD.size + length
    if (own_job, own_log) != (job, log_id) or len(view) != start + count * _ROW.size + _CRC.size:
        raise CorruptSegment(key, f"these are {count} rows of log {own_log} that job {own_job} wrote")
    if cluster_id not in (None, str(view[_HEAD.size : start], "utf-8", "replace")):
        raise CorruptSegment(key, "is of another cluster")
    manifest = Manifest(log_id, bytes(view[start : -_CRC.size]))
    end = -1
    for index in range(count):
        row = manifest.row(index).range
        if not end <= row.base < row.end:
            raise CorruptSegment(key, f"row {index} is [{row.base}, {row.end}) after offset {end}")
        end = row.end
    return manifest


def point_to(
    job: int, size: int, rows: Sequence[ManifestRow], first: int = 0, max_timestamp: int = -1
) -> ManifestPointer:
    """The pointer to a manifest of `rows`, of which those from `first` on, at least one, are needed.

    `max_timestamp`: of an earlier pointer to these rows, or some of them. It is never lowered: too high costs a look.
    """
    left = rows[first:]
    return ManifestPointer(
        job=job,
        size=size,
        first=first,
        rows=len(left),
        bytes=sum(row.range.length for row in left),
        base=left[0].range.base,
        end=left[-1].range.end,
        max_timestamp=max(max_timestamp, *(row.range.max_timestamp for row in left)),
        oldest_ms=left[0].newest_ms,
        oldest_bytes=left[0].range.length,
    )


class Manifests:
    """Reads manifests, one flight each, and keeps the last ones, up to `bytes_max`."""

    def __init__(
        self, store: ObjectStore, tasks: TaskOwner, *, bytes_max: int = 8 * 1024 * 1024, cluster_id: str | None = None
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._cluster_id = cluster_id
        self.cache: ByteCache[str, Manifest] = ByteCache(bytes_max)

    async def get(self, log_id: int, pointer: ManifestPointer) -> Manifest:
        """`RangeMissing` (no such object), `CorruptSegment`, `StoreError`."""
        key = manifest_key(pointer.job, log_id)
        manifest = self.cache.get(key)
        if manifest is None:
            flight = self.cache.flight(key)
            if flight is None:
                flight = self.cache.open_flight(key)
                self._tasks.create_task(self._fetch(key, log_id, pointer))
            manifest = await arrival(flight)
        return manifest

    async def _fetch(self, key: str, log_id: int, pointer: ManifestPointer) -> None:
        try:
            manifest = await read_manifest(self._store, log_id, pointer, self._cluster_id)
            self.cache.land(key, manifest, manifest.memory_bytes)
        except asyncio.CancelledError:
            self.cache.cancel(key)
            raise
        except Exception as error:
            self.cache.fail(key, error)


async def read_manifest(
    store: ObjectStore, log_id: int, pointer: ManifestPointer, cluster_id: str | None = None
) -> Manifest:
    """The manifest that the pointer names. Errors as `Manifests.get`."""
    key = manifest_key(pointer.job, log_id)
    try:
        data = (await store.get(key)).data
    except NotFound:
        raise RangeMissing(key) from None
    manifest = decode_manifest(key, cluster_id, pointer.job, log_id, data)
    if len(data) != pointer.size or manifest.count != pointer.first + pointer.rows:
        raise CorruptSegment(key, f"{manifest.count} rows in {len(data)} bytes, the metadata says {pointer}")
    return manifest
