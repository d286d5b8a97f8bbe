"""Small facts: log starts, producer ids, deleted objects, freed names."""

from controller import facts as f
from controller.commands import (
    AdvanceLogStart,
    AllocateProducerIds,
    Done,
    ForgetObjects,
    FreeNames,
    LogStarts,
    ProducerIdBlock,
    SweepLogStarts,
)
from controller.decide.context import Context, Decision, require_alive
from controller.state import ClusterState
from controller.topics import DeletedTopic
from protocol.errors import ErrorCode, KafkaError

PRODUCER_ID_BLOCK = 1_000
PRODUCER_ID_MAX = 2**63 - 1


def advance_log_start(state: ClusterState, command: AdvanceLogStart, context: Context) -> Decision:
    """All starts or none. Below the present start nothing happens."""
    moved, answers = [], []
    for item in command.starts:
        log = state.logs.get(item.log_id)
        if log is None:
            raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"log {item.log_id} does not exist")
        if item.start > log.end:
            raise KafkaError(
                ErrorCode.OFFSET_OUT_OF_RANGE,
                f"{log.topic}-{log.partition} is committed up to {log.end}: {item.start} must be sealed first",
            )
        if item.start > log.start:
            moved.append(item)
        answers.append(f.LogStart(item.log_id, max(item.start, log.start)))
    facts = (f.LogStartAdvanced(tuple(moved)),) if moved else ()
    return Decision(facts, LogStarts(tuple(answers)))


def sweep_log_starts(state: ClusterState, command: SweepLogStarts, context: Context) -> Decision:
    """What still makes sense of a retention sweep."""
    logs = state.logs
    moved = tuple(
        item
        for item in command.starts
        if item.log_id in logs and logs[item.log_id].start < item.start <= logs[item.log_id].end
    )
    return Decision((f.LogStartAdvanced(moved),) if moved else (), Done())


def allocate_producer_ids(state: ClusterState, command: AllocateProducerIds, context: Context) -> Decision:
    """The next block."""
    require_alive(state, command.incarnation)
    first = state.next_producer_id + context.producer_ids_taken
    if first > PRODUCER_ID_MAX - PRODUCER_ID_BLOCK:
        raise KafkaError(ErrorCode.UNKNOWN_SERVER_ERROR, "all producer ids are used up")
    context.producer_ids_taken += PRODUCER_ID_BLOCK
    fact = f.ProducerIdsAllocated(first, PRODUCER_ID_BLOCK)
    return Decision((fact,), ProducerIdBlock(first, PRODUCER_ID_BLOCK))


def forget_objects(state: ClusterState, command: ForgetObjects, context: Context) -> Decision:
    """Those that are still on the doomed list leave it."""
    keys = tuple(key for key in command.keys if key in state.objects.doomed)
    return Decision((f.ObjectsDeleted(keys),) if keys else (), Done())


def is_free(state: ClusterState, deleted: DeletedTopic, context: Context) -> bool:
    """Whether every old leader of a deleted topic knows that it is gone, or is gone itself."""
    return all(
        not state.broker_table.is_alive(leader) or context.heard.applied.get(leader, 0) >= deleted.position
        for leader in deleted.leaders
    )


def free_names(state: ClusterState, command: FreeNames, context: Context) -> Decision:
    """Those of the names that nobody needs any more."""
    deleted = state.topic_table.deleted
    names = tuple(name for name in command.names if name in deleted and is_free(state, deleted[name], context))
    return Decision((f.NamesFreed(names),) if names else (), Done())
