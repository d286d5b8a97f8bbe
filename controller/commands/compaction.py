"""Passes of compaction."""

from dataclasses import dataclass
from typing import NamedTuple

from controller.facts import Merged, MergePart, UnpackedRange
from storage.seal import ManifestPointer


class NewCompaction(NamedTuple):
    """A pass for a live incarnation, as in the fact `CompactionOpened`."""

    incarnation: int
    log_id: int
    dirty_from: int
    bound: int


@dataclass(frozen=True, slots=True)
class OpenCompactions:
    """The controller's own: these are to be done. Those that do not fit the state are left out. Answer `Done`."""

    command_id: bytes
    passes: tuple[NewCompaction, ...]


@dataclass(frozen=True, slots=True)
class CompactRanges:
    """The next output of a pass is stored. Answer `JobAnswer`: a refused output closes the pass.

    It counts if the topic is compacted still, the pass is at this number, and the inputs are all still named, next to
    each other, the same, and above those of earlier outputs; and if the output covers exactly their offsets and holds
    no more than they did. INVALID_REQUEST: the pass is not open, or not the asker's.
    """

    command_id: bytes
    incarnation: int
    job: int
    number: int
    part: MergePart
    output: Merged


@dataclass(frozen=True, slots=True)
class CloseCompaction:
    """The pass is over: the log is clean below `clean_end`, or it was given up (-1). Answer `Done`, also if it was
    closed before."""

    command_id: bytes
    incarnation: int
    job: int
    clean_end: int = -1


@dataclass(frozen=True, slots=True)
class UnpackManifest:
    """The controller's own: `rows` are what `found`, the last manifest of the log, holds. Answer `Done`; nothing
    happens if the manifest has changed."""

    command_id: bytes
    log_id: int
    found: ManifestPointer
    rows: tuple[UnpackedRange, ...]
