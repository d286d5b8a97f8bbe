"""Which waiting commands share one entry.

All of them are decided on the same state, so none may depend on, or spoil, what another one decides. Commands that
change sessions, instances or leaders go alone; the others name the things they touch and share an entry if those
differ. Nobody overtakes an earlier command that touches the same thing.
"""

from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

from controller import commands as c
from controller.decide.topics import find
from controller.state import ClusterState
from controller.topics import collision_key
from storage.seal import CommitAndMove, CommitSeal

COMMANDS_PER_ENTRY_MAX = 500
LARGE_PER_ENTRY_MAX = 16
"""Of commands that may be as large as a request of an administrator, a megabyte: an entry is written within a lease."""

_LARGE = (
    c.AlterConfigs,
    c.AlterQuotas,
    c.AlterScram,
    c.CreateAcls,
    c.CreatePartitions,
    c.CreateTopics,
    c.DeleteAcls,
    c.DeleteTopics,
)

_T = TypeVar("_T", bound=Any)


def touches(state: ClusterState, command: Any) -> set[Hashable] | None:
    """What a command reads or changes; None: everything, it goes alone.

    Log ids stand for the end of a log, `("start", id)` for its start, strings for topic names.
    """
    if isinstance(command, CommitSeal):
        found: set[Hashable] = {item.log_id for segment in command.objects for item in segment.ranges}
        if isinstance(command, CommitAndMove):
            found.update(move.log_id for move in command.moves)
        return found | {("seal", command.incarnation)}
    if isinstance(command, c.AdvanceLogStart | c.SweepLogStarts):
        return {("start", item.log_id) for item in command.starts}
    if isinstance(command, c.RequestMoves):
        return {item.log_id for item in command.moves}
    if isinstance(command, c.CancelMoves):
        return set(command.log_ids)
    if isinstance(command, c.CreateTopics | c.CreatePartitions):
        return {collision_key(topic.name) for topic in command.topics}
    if isinstance(command, c.CreateInternalTopic):
        return {collision_key(command.name)}
    if isinstance(command, c.DeleteTopics):
        return _deleted(state, command)
    if isinstance(command, c.AlterConfigs):
        return {_resource(item) for item in command.resources}
    if isinstance(command, c.FreeNames):
        return {collision_key(name) for name in command.names}
    if isinstance(command, c.AllocateProducerIds):
        return set()
    if isinstance(command, c.ForgetObjects):
        return {("doomed",)}
    if isinstance(command, c.OpenJobs | c.ReplaceRanges | c.WriteManifests | c.CloseJob | c.DropManifestRows):
        return _merging(state, command)
    if isinstance(command, c.OpenCompactions | c.CompactRanges | c.CloseCompaction | c.UnpackManifest):
        return _compacting(state, command)
    if isinstance(command, c.AlterQuotas):
        return {("quotas",)}
    if isinstance(command, c.AlterScram):
        return {("scram",)}
    if isinstance(command, c.CreateAcls | c.DeleteAcls):
        return {("acls",)}
    if isinstance(command, c.ForgetJobs):
        return {("job", number) for number in command.jobs}
    return None


def _merging(state: ClusterState, command: Any) -> set[Hashable]:
    if isinstance(command, c.OpenJobs):
        log_ids = {part.log_id for job in command.jobs for part in job.parts}
        found: set[Hashable] = {("job",)}
    elif isinstance(command, c.DropManifestRows):
        log_ids, found = {command.log_id}, {("doomed",)}
    else:
        job = state.jobs.get(command.job)
        log_ids = {part.log_id for part in job.parts} if job is not None else set()
        found = {("job", command.job), ("doomed",)}
    return found | log_ids | {("start", log_id) for log_id in log_ids}


def _compacting(state: ClusterState, command: Any) -> set[Hashable]:
    found: set[Hashable]
    if isinstance(command, c.OpenCompactions):
        log_ids, found = {new.log_id for new in command.passes}, {("job",)}
    elif isinstance(command, c.UnpackManifest):
        log_ids, found = {command.log_id}, {("doomed",)}
    else:
        compaction = state.compactions.open.get(command.job)
        log_ids = set() if compaction is None else {compaction.log_id}
        found = {("job", command.job), ("doomed",)}
    return found | log_ids | {("start", log_id) for log_id in log_ids}


def _resource(item: c.ConfigAlteration) -> Hashable:
    if item.resource_type == 2:
        return collision_key(item.resource_name)
    return (item.resource_type, item.resource_name)


def _deleted(state: ClusterState, command: c.DeleteTopics) -> set[Hashable]:
    found: set[Hashable] = set()
    for ref in command.topics:
        topic = find(state, ref)
        if topic is not None:
            found.add(collision_key(topic.name))
            found.update(topic.log_ids)
            found.update(("start", log_id) for log_id in topic.log_ids)
        elif ref.name is not None:
            found.add(collision_key(ref.name))
    return found


def choose(state: ClusterState, waiting: Iterable[tuple[Any, _T]]) -> list[_T]:
    """The items, in order, of the commands that go into the next entry. At least the first one."""
    chosen: list[_T] = []
    taken: set[Hashable] = set()
    large = 0
    for command, item in waiting:
        needs = touches(state, command)
        if needs is None:
            return chosen or [item]
        if not needs & taken and (large < LARGE_PER_ENTRY_MAX or not isinstance(command, _LARGE)):
            chosen.append(item)
            large += isinstance(command, _LARGE)
        taken |= needs
        if len(chosen) == COMMANDS_PER_ENTRY_MAX:
            break
    return chosen
