"""CommitSeal: the verdict on every range, and the seal's number.

A seal at or below the last committed one of its incarnation gets that answer again; anything but the next one is
refused and may come again. A bad range never holds up the others: it is named in the answer, dropped, and the seal
counts.
"""

from controller.brokers import Broker
from controller.decide.context import Context, Decision, require_alive
from controller.facts import SealCommitted
from controller.log_index import OPEN, LogState
from controller.state import ClusterState
from controller.wals import RECOVERING
from protocol.errors import ErrorCode, KafkaError
from storage.seal import CommitAnswer, CommitSeal, Range


def commit_seal(state: ClusterState, command: CommitSeal, context: Context) -> Decision:
    """The facts of a seal. Its answer's `position` is the entry after the state, where the facts go."""
    require_alive(state, command.incarnation)
    broker = state.broker_table.incarnations[command.incarnation]
    if command.seal <= broker.last_seal:
        return Decision((), _first_answer(broker, command))
    if command.seal != broker.last_seal + 1:
        raise KafkaError(
            ErrorCode.THROTTLING_QUOTA_EXCEEDED,
            f"seal {command.seal} cannot be committed before seal {broker.last_seal + 1}: try again after that one",
        )
    _check_bounds(state, command, context)
    refused: set[int] = set()
    seen: set[int] = set()
    objects = []
    for item in command.objects:
        accepted = []
        for found in item.ranges:
            if found.log_id in seen or not _fits(state, command, found):
                refused.add(found.log_id)
            else:
                accepted.append(found)
                seen.add(found.log_id)
        objects.append(item._replace(ranges=tuple(accepted)))
    names = tuple(sorted(refused))
    fact = SealCommitted(
        command.incarnation, command.seal, tuple(objects), command.committed_through, names, command.recovery
    )
    return Decision((fact,), CommitAnswer(names, state.position + 1))


def _first_answer(broker: Broker, command: CommitSeal) -> CommitAnswer:
    # Seals are committed in order, each after the answer to the one before: only the last one's answer can be missing.
    if command.seal == broker.last_seal:
        return broker.last_answer
    raise KafkaError(ErrorCode.INVALID_REQUEST, f"seal {command.seal} was committed and answered long ago")


def _check_bounds(state: ClusterState, command: CommitSeal, context: Context) -> None:
    total = state.log_index.range_total
    for item in command.objects:
        if item.key in state.objects.numbers or item.key in state.objects.doomed:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"object {item.key} was committed before")
        total += len(item.ranges)
        for found in item.ranges:
            log = state.logs.get(found.log_id)
            if log is not None and log.range_count >= context.limits.ranges_per_log:
                raise KafkaError(
                    ErrorCode.THROTTLING_QUOTA_EXCEEDED,
                    f"{log.topic}-{log.partition} has {log.range_count} ranges, its bound: seal again after retention",
                )
    if total > context.limits.ranges:
        raise KafkaError(
            ErrorCode.THROTTLING_QUOTA_EXCEEDED,
            f"all logs together are at their bound of {context.limits.ranges} ranges",
        )


def _fits(state: ClusterState, command: CommitSeal, found: Range) -> bool:
    log = state.logs.get(found.log_id)
    if log is None or found.leader_epoch != log.epoch or found.base != log.end or not found.base < found.end:
        return False
    if not 0 <= found.last_stable_offset <= found.end or found.length <= 0:
        return False
    if command.recovery is None:
        return log.status == OPEN and log.leader_incarnation == command.incarnation and log.leader_node >= 0
    return _may_recover(state, command, log)


def _may_recover(state: ClusterState, command: CommitSeal, log: LogState) -> bool:
    assert command.recovery is not None
    wal = state.wals.get(command.recovery.wal_id)
    return (
        wal is not None
        and log.status != OPEN
        and log.wal_id == wal.wal_id
        and wal.state == RECOVERING
        and wal.recoverer == command.incarnation
        and wal.recovery_number == command.recovery.number
        and wal.has_scan
    )
