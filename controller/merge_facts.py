"""Facts of merging, manifests and compaction. Part of `controller.facts`."""

from dataclasses import dataclass
from typing import NamedTuple

from storage.seal import ManifestPointer, Range


class MergePart(NamedTuple):
    """The inputs of one output: `ranges` neighbouring ranges of a log that cover [base, end). `crc` is the CRC-32 of
    their rows in the state: what was replaced since, or whose first range fell below the start, does not match it.
    """

    log_id: int
    base: int
    end: int
    ranges: int
    crc: int


class Merged(NamedTuple):
    """The one range, in an object of its own of `size` bytes, that replaces a part."""

    size: int
    range: Range


class NewManifest(NamedTuple):
    """A manifest with the rows of a part. `replaces`: the job of the log's last manifest, whose rows it begins with;
    -1: it begins with the part."""

    log_id: int
    replaces: int
    pointer: ManifestPointer


class UnpackedRange(NamedTuple):
    """A range that a manifest held: made by job `job`, alone in an object of `size` bytes. Its age counts from
    `newest_ms`."""

    job: int
    size: int
    newest_ms: int
    range: Range


class UnnamedObject(NamedTuple):
    """An object that nothing names any more."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class MergeJobOpened:
    """`incarnation` merges each part into one range (`kind` `merge`), or moves it to a manifest (`manifest`).

    Jobs are numbered from 0. What a job makes lies under keys of its own, and may be named only while it is open. It
    closes by one of the next three facts, or with the session of its incarnation; never opens again.
    """

    job: int
    node_id: int
    incarnation: int
    kind: str
    parts: tuple[MergePart, ...]


@dataclass(frozen=True, slots=True)
class RangesReplaced:
    """The job is done: these ranges stand in the place of their parts. Outputs of its other parts are void."""

    job: int
    outputs: tuple[Merged, ...]


@dataclass(frozen=True, slots=True)
class ManifestsWritten:
    """The job is done: the rows of these parts are in manifests. Outputs of its other parts are void."""

    job: int
    manifests: tuple[NewManifest, ...]


@dataclass(frozen=True, slots=True)
class JobClosed:
    """Nothing of the job is named, nor ever will be."""

    job: int


@dataclass(frozen=True, slots=True)
class ManifestRowsDropped:
    """Rows of a manifest that lie below the log's start, or whose log is gone, are gone: `objects` were theirs.

    `job` is the manifest's. `pointer`: what is left of it; None: nothing, the manifest goes too.
    """

    log_id: int
    job: int
    pointer: ManifestPointer | None
    objects: tuple[UnnamedObject, ...]


@dataclass(frozen=True, slots=True)
class JobsForgotten:
    """Void outputs of these jobs are not looked for any more: the bucket was searched for them."""

    jobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompactionOpened:
    """`incarnation` cleans the log from `dirty_from` up to `bound`, as far as it comes.

    Its outputs have the numbers `job` to `job + outputs - 1` among those of merge jobs, and are named one after the
    other, in the order of their offsets. It closes by `CompactionClosed`, or with the session of its incarnation.
    """

    job: int
    outputs: int
    node_id: int
    incarnation: int
    log_id: int
    dirty_from: int
    bound: int


@dataclass(frozen=True, slots=True)
class RangesCompacted:
    """Output `number` of the pass stands in the place of the part's ranges, without what was cleaned."""

    job: int
    number: int
    part: MergePart
    output: Merged


@dataclass(frozen=True, slots=True)
class CompactionClosed:
    """The pass is over. `clean_end`: the log is clean below it; -1: it did not come to its end, and what it stored and
    nothing names is void."""

    job: int
    clean_end: int = -1


@dataclass(frozen=True, slots=True)
class ManifestUnpacked:
    """The rows of the log's last manifest, which is that of job `job`, are in the state again; it is not needed."""

    log_id: int
    job: int
    rows: tuple[UnpackedRange, ...]
