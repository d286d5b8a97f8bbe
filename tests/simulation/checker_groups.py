"""Committed offsets and generations of groups, as a checker sees them."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tests.simulation.book import Book, Finding, Part
from tests.simulation.history import Event

NEVER = 1 << 62
GroupPart = tuple[str, Part]


@dataclass
class _Commit:
    """One offset of a commit: in force somewhere between places `at` and `done` of the history, if at all."""

    offset: int
    at: int
    invoke: Event
    done: int = NEVER
    acknowledged: bool = False
    failed: bool = False


@dataclass
class _Look:
    """A committed offset that somebody was told, asked at `at` and answered at `done`."""

    offset: int
    at: int
    done: int
    event: Event


def _gather(book: Book) -> tuple[dict[GroupPart, list[_Commit]], dict[GroupPart, list[_Look]]]:
    made: dict[GroupPart, list[_Commit]] = defaultdict(list)
    looks: dict[GroupPart, list[_Look]] = defaultdict(list)
    by_number: dict[int, list[_Commit]] = defaultdict(list)
    asked: dict[int, int] = {}
    for at, event in enumerate(book.events):
        kind, fields = event.kind, event.fields
        if kind == "commit.invoke":
            for topic, partition, offset in fields["offsets"]:
                commit = _Commit(offset, at, event)
                made[fields["group"], (topic, partition)].append(commit)
                by_number[fields["commit"]].append(commit)
        elif kind in ("commit.ok", "commit.fail"):
            for commit in by_number[fields["commit"]]:
                commit.done, commit.acknowledged, commit.failed = at, kind == "commit.ok", kind == "commit.fail"
        elif kind == "fetch_offsets.invoke":
            asked[fields["fetch"]] = at
        elif kind in ("fetch_offsets.ok", "final.offsets"):
            begun = asked[fields["fetch"]] if kind == "fetch_offsets.ok" else at
            for topic, partition, offset in fields["offsets"]:
                looks[fields["group"], (topic, partition)].append(_Look(offset, begun, at, event))
    return made, looks


def _coordinator_lost_something(book: Book) -> bool:
    """Whether groups may have been set back, by a declared loss."""
    return any(loss.topic == "__consumer_offsets" for loss in book.final.losses)


def commits(book: Book) -> Iterator[Finding]:
    """Committed offsets are a register that only its group's members write, each going on from what it holds."""
    if _coordinator_lost_something(book):
        return
    made, looks = _gather(book)
    for where in sorted({*made, *looks}):
        writes = [commit for commit in made[where] if not commit.failed]
        yield from _going_back(where, writes)
        before: _Look | None = None
        for look in looks[where]:
            yield from _judge(where, writes, look)
            if before is not None and look.at > before.done:
                yield from _compare(where, writes, before, look)
            before = look


def _going_back(where: GroupPart, writes: list[_Commit]) -> Iterator[Finding]:
    """A commit that is taken although a higher one was in force when its member asked: the member was not fenced."""
    highest: _Commit | None = None
    taken = sorted((commit for commit in writes if commit.acknowledged), key=lambda commit: commit.done)
    for commit in taken:
        if highest is not None and commit.offset < highest.offset and commit.at > highest.done:
            message = f"{where} was committed at {commit.offset} after {highest.offset}"
            yield Finding("commit-backwards", message, (highest.invoke, commit.invoke))
        if highest is None or commit.offset > highest.offset:
            highest = commit


def _judge(where: GroupPart, writes: list[_Commit], look: _Look) -> Iterator[Finding]:
    """What is told was written, and not certainly replaced before it was asked for."""
    before = [commit for commit in writes if commit.acknowledged and commit.done < look.at]
    if look.offset < 0:
        if before:
            message = f"{where} had {before[-1].offset} committed, and nothing is known of it"
            yield Finding("commit-lost", message, (before[-1].invoke, look.event))
        return
    candidates = [commit for commit in writes if commit.offset == look.offset and commit.at < look.done]
    if not candidates:
        yield Finding("commit-never-made", f"{where}: nobody committed {look.offset}", (look.event,))
        return
    for newer in before:
        if newer.offset != look.offset and all(commit.done < newer.at for commit in candidates):
            message = f"{where} is committed at {look.offset}, though {newer.offset} was acknowledged later"
            yield Finding("commit-lost", message, (newer.invoke, look.event))
            return


def _compare(where: GroupPart, writes: list[_Commit], first: _Look, second: _Look) -> Iterator[Finding]:
    """Once a committed offset was told, no older one is told any more."""
    if first.offset < 0 or first.offset == second.offset:
        return
    newer = [commit for commit in writes if commit.offset == first.offset]
    older = [commit for commit in writes if commit.offset == second.offset]
    if all(old.done < new.at for old in older for new in newer):
        message = f"{where} was told to be at {first.offset}, then at {second.offset}"
        yield Finding("commit-backwards", message, (first.event, second.event))


def generations(book: Book) -> Iterator[Finding]:
    """In one generation of a classic group no partition belongs to two members.

    Where members of the consumer protocol take part numbers mean less: a group that they left empty begins anew at 1
    when a classic member joins (`checker_owners` judges those by who was heard when).
    """
    owners: dict[tuple[str, int, Part], Event] = {}
    if _coordinator_lost_something(book):
        return
    of_both = {event.fields["group"] for event in book.events if event.kind == "group.beat.invoke"}
    for event in book.events:
        if event.kind != "group.joined" or event.fields["group"] in of_both:
            continue
        fields = event.fields
        for part in fields["parts"]:
            first = owners.setdefault((fields["group"], fields["generation"], tuple(part)), event)
            if first.fields["client"] != fields["client"]:
                message = f"{part} belongs to two members of generation {fields['generation']} of {fields['group']}"
                yield Finding("two-owners", message, (first, event))
