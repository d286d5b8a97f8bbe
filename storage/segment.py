"""Segment bytes <-> batches, index and footer."""

from collections.abc import Sequence
from typing import NamedTuple

from protocol import Buffer
from storage.object_store import ObjectStore
from storage.seal import AbortedEntry, Range, SealedLog, Writer

__all__ = ["Range", "SealedLog"]


class SegmentWriter(NamedTuple):
    """Who writes this object, and as which part of which seal."""

    writer: Writer
    seal: int
    part: int = 0

    @property
    def key(self) -> str:
        """`segments/<node>/<incarnation hex>/<seal>-<part>`."""
        raise NotImplementedError


class Segment(NamedTuple):
    """An encoded segment: `parts` in order are the object. Batches are not copied: they stay frozen until it is stored."""

    key: str
    parts: list[Buffer]
    size: int
    ranges: tuple[Range, ...]


class SegmentIndex:
    """The verified index of one object: `log(log_id)` gives the blocks of one log."""


def encode_segment(writer: SegmentWriter, logs: Sequence[SealedLog]) -> Segment:
    """One object from the logs, sorted by log id. Holds the interpreter for as long as it takes: see the async one."""
    raise NotImplementedError


async def encode_segment_in_steps(writer: SegmentWriter, logs: Sequence[SealedLog]) -> Segment:
    """As `encode_segment`, giving way to the loop after every block of about 512 KiB."""
    raise NotImplementedError


async def read_index(store: ObjectStore, key: str, size: int) -> SegmentIndex:
    """Footer and index, in one ranged GET if they fit into 64 KiB. Raises `RangeMissing`, `CorruptSegment`, `StoreError`."""
    raise NotImplementedError


async def read_producers(store: ObjectStore, key: str, size: int, log_id: int) -> bytes:
    """The producer snapshot at the end of the range of `log_id`; b"" if there is none. Errors as `read_index`."""
    raise NotImplementedError


class SegmentReport(NamedTuple):
    """What the bytes of one object say, for people; `problems` is empty if every checksum and rule holds."""

    key: str
    size: int
    aborted: tuple[AbortedEntry, ...]
    problems: tuple[str, ...]


async def describe_segment(store: ObjectStore, key: str) -> SegmentReport:
    """Reads the whole object, verifies every block and batch. Damage goes into `problems`. Raises `StoreError`."""
    raise NotImplementedError
