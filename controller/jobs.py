"""Merge jobs and what they leave: open jobs, void outputs, manifests whose rows still have to be un-named."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.facts import MergeJobOpened, MergePart
from storage.seal import ManifestPointer

MERGE, MANIFEST = "merge", "manifest"

_NEXT, _OPEN, _VOID, _SPENT = range(4)


@dataclass(slots=True)
class Job:
    """An open job: what `MergeJobOpened` said."""

    number: int
    node_id: int
    incarnation: int
    kind: str
    parts: tuple[MergePart, ...]

    def part(self, log_id: int) -> MergePart | None:
        """The part of a log."""
        return next((part for part in self.parts if part.log_id == log_id), None)


@dataclass(slots=True)
class JobTable:
    """`jobs`: the open ones, by number. `void`: closed jobs, and the logs whose outputs nothing names, nor ever will;
    kept until the bucket was searched for them. `spent`: by (job, log id), manifests that are no part of a log any
    more, with rows whose objects are not doomed yet.
    """

    jobs: dict[int, Job] = field(default_factory=dict)
    void: dict[int, tuple[int, ...]] = field(default_factory=dict)
    spent: dict[tuple[int, int], ManifestPointer] = field(default_factory=dict)
    next_job: int = 0

    def open(self, fact: MergeJobOpened) -> None:
        """A new job."""
        assert fact.job == self.next_job
        self.next_job += 1
        self.jobs[fact.job] = Job(fact.job, fact.node_id, fact.incarnation, fact.kind, fact.parts)

    def reserve(self, first: int, count: int) -> None:
        """Numbers from `first` on name outputs of a compaction."""
        assert first == self.next_job
        self.next_job += count

    def close(self, number: int, named: Iterable[int] = ()) -> Job:
        """The job is over; outputs of the logs `named` count, the others are void."""
        job = self.jobs.pop(number)
        accepted = set(named)
        void = tuple(part.log_id for part in job.parts if part.log_id not in accepted)
        if void:
            self.void[number] = void
        return job

    def end(self, incarnation: int) -> None:
        """The session is over: its jobs close."""
        for number in [job.number for job in self.jobs.values() if job.incarnation == incarnation]:
            self.close(number)

    def is_void(self, number: int, log_id: int) -> bool:
        """Whether what the job may have left of a log is garbage."""
        return log_id in self.void.get(number, ())

    def spend(self, log_id: int, manifests: Iterable[ManifestPointer]) -> None:
        """Manifests whose rows are all below the start, or whose log is gone."""
        for pointer in manifests:
            self.spent[pointer.job, log_id] = pointer

    def rows(self) -> Iterator[list[Any]]:
        """Snapshot rows."""
        if self.next_job:
            yield [_NEXT, self.next_job]
        for job in self.jobs.values():
            yield [_OPEN, job.number, job.node_id, job.incarnation, job.kind, job.parts]
        for number, log_ids in self.void.items():
            yield [_VOID, number, log_ids]
        for (_, log_id), pointer in self.spent.items():
            yield [_SPENT, log_id, pointer]

    def load(self, row: tuple[Any, ...]) -> None:
        """Adds what a snapshot row says."""
        kind, *fields = row
        if kind == _NEXT:
            (self.next_job,) = fields
        elif kind == _OPEN:
            number, node_id, incarnation, job_kind, parts = fields
            self.jobs[number] = Job(number, node_id, incarnation, job_kind, tuple(MergePart(*part) for part in parts))
        elif kind == _VOID:
            self.void[fields[0]] = tuple(fields[1])
        elif kind == _SPENT:
            self.spend(fields[0], [ManifestPointer(*fields[1])])
        else:
            raise ValueError(f"row {kind} of merge jobs")
