"""Merge jobs, manifests, and what they leave in the bucket."""

from dataclasses import dataclass
from typing import NamedTuple

from controller.facts import Merged, MergePart, NewManifest, UnnamedObject
from storage.seal import ManifestPointer


class NewJob(NamedTuple):
    """A merge job for a live incarnation; `kind` and `parts` as in the fact `MergeJobOpened`."""

    incarnation: int
    kind: str
    parts: tuple[MergePart, ...]


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """The controller's own: these jobs are to be done. Parts that do not fit the state are left out. Answer `Done`."""

    command_id: bytes
    jobs: tuple[NewJob, ...]


@dataclass(frozen=True, slots=True)
class ReplaceRanges:
    """A merge job is done: every output is stored. Answer `JobAnswer`.

    An output counts if its inputs are all still named, next to each other and the same, and it covers exactly their
    offsets, bytes and batches. INVALID_REQUEST: the job is not open, or not the asker's.
    """

    command_id: bytes
    incarnation: int
    job: int
    outputs: tuple[Merged, ...]


@dataclass(frozen=True, slots=True)
class WriteManifests:
    """A job of kind `manifest` is done: every manifest is stored. Answer and errors as `ReplaceRanges`."""

    command_id: bytes
    incarnation: int
    job: int
    manifests: tuple[NewManifest, ...]


@dataclass(frozen=True, slots=True)
class CloseJob:
    """The incarnation gives its job up. Answer `Done`, also if it was closed before."""

    command_id: bytes
    incarnation: int
    job: int


@dataclass(frozen=True, slots=True)
class DropManifestRows:
    """The controller's own: `found` is the manifest of the log as it is, `left` what remains of it (None: nothing).

    Answer `Done`. The dropped rows hold `objects`; they lie below the log's start, or the log is gone. Nothing happens
    if the manifest has changed.
    """

    command_id: bytes
    log_id: int
    found: ManifestPointer
    left: ManifestPointer | None
    objects: tuple[UnnamedObject, ...]


@dataclass(frozen=True, slots=True)
class ForgetJobs:
    """The controller's own: the bucket was searched for what these closed jobs left. Answer `Done`."""

    command_id: bytes
    jobs: tuple[int, ...]
