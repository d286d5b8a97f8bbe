"""From an ended session to open logs: name a recoverer, take its scan, retire the instance, or declare it lost.

One recoverer per instance at a time, known by a number. No log led through an instance opens before its scan is a fact;
those that the instance holds nothing of open then, the others when everything was committed and the instance is
retired.
"""

from controller import facts as f
from controller.commands import (
    DeclareLost,
    Done,
    ForgetLosses,
    LossReport,
    LostLog,
    NameRecoverer,
    ReplayLog,
    ReportScan,
    RetireAbandoned,
    RetireWal,
    ScanAnswer,
)
from controller.decide.brokers import end_session
from controller.decide.context import Context, Decision, require_alive
from controller.decide.takeover import take_over
from controller.log_index import LogState
from controller.state import ClusterState
from controller.wals import ACTIVE, LOST, RECOVERING, RETIRED, WalState
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Recovery


def _find(state: ClusterState, wal_id: bytes) -> WalState:
    wal = state.wals.get(wal_id)
    if wal is None:
        raise KafkaError(ErrorCode.RESOURCE_NOT_FOUND, f"WAL {wal_id.hex()} is not registered")
    return wal


def name_recoverer(state: ClusterState, command: NameRecoverer, context: Context) -> Decision:
    """The asker recovers the instance, unless a live one does."""
    require_alive(state, command.incarnation)
    wal = _find(state, command.wal_id)
    if wal.closed:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"WAL {wal.wal_id.hex()} is {wal.state}: nothing to recover")
    if wal.state == ACTIVE:
        raise KafkaError(ErrorCode.CONCURRENT_TRANSACTIONS, "the session of the instance's writer has not ended yet")
    if wal.state == RECOVERING and state.broker_table.is_alive(wal.recoverer):
        if wal.recoverer == command.incarnation:
            return Decision((), Recovery(wal.wal_id, wal.recovery_number))
        raise KafkaError(ErrorCode.CONCURRENT_TRANSACTIONS, f"broker {wal.recoverer_node} recovers this instance")
    node_id = state.broker_table.incarnations[command.incarnation].node_id
    number = wal.recovery_number + 1
    fact = f.RecoveryNamed(wal.wal_id, node_id, command.incarnation, number)
    return Decision((fact,), Recovery(wal.wal_id, number))


def _require_recoverer(state: ClusterState, wal_id: bytes, incarnation: int, number: int) -> WalState:
    require_alive(state, incarnation)
    wal = _find(state, wal_id)
    if wal.state != RECOVERING or (wal.recoverer, wal.recovery_number) != (incarnation, number):
        raise KafkaError(
            ErrorCode.FENCED_STATE_EPOCH,
            f"recovery {number} of WAL {wal_id.hex()} is over: the instance is {wal.state}, "
            f"its last recovery number is {wal.recovery_number}",
        )
    return wal


def report_scan(state: ClusterState, command: ReportScan, context: Context) -> Decision:
    """Logs that the instance holds nothing of open; the answer names those to replay."""
    wal = _require_recoverer(state, command.wal_id, command.incarnation, command.number)
    validated = max(wal.acknowledged_group, context.heard.validated.get(wal.wal_id, 0))
    if command.complete and command.last_group < validated:
        raise KafkaError(
            ErrorCode.INVALID_RECORD_STATE,
            f"WAL {wal.wal_id.hex()} ends at group {command.last_group}, but group {validated} was acknowledged: "
            "a stale copy (restored snapshot, clone, lost sectors). Bring the right volume, or declare the loss",
        )
    bound = [state.logs[log_id] for log_id in state.log_index.through(wal.wal_id)]
    ends = {log.log_id: log for log in command.logs}
    kept = [(log, ends[log.log_id]) for log in bound if log.log_id in ends and ends[log.log_id].end > log.end]
    facts: list[f.Fact] = [
        f.WalScanned(
            wal.wal_id, command.number, tuple(found for _, found in kept), command.last_group, command.complete
        )
    ]
    if command.complete:
        listed = {log.log_id for log, _ in kept}
        empty = [log for log in bound if log.log_id not in listed]
        facts += context.name_leaders(state, empty, context.candidates(state))
    replay = tuple(ReplayLog(log.log_id, log.epoch, log.end, found.end) for log, found in kept)
    return Decision(tuple(facts), ScanAnswer(replay))


def retire_wal(state: ClusterState, command: RetireWal, context: Context) -> Decision:
    """Everything in the instance is committed: its logs open under new leaders."""
    wal = _find(state, command.wal_id)
    if wal.state == RETIRED:
        return Decision((), Done())
    bound = [state.logs[log_id] for log_id in state.log_index.through(wal.wal_id)]
    if wal.state == ACTIVE and wal.incarnation == command.incarnation:
        require_alive(state, command.incarnation)
        if bound:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"{len(bound)} logs are led through WAL {wal.wal_id.hex()}")
        return Decision((f.WalRetired(wal.wal_id),), Done())
    _require_recoverer(state, command.wal_id, command.incarnation, command.number)
    if not wal.has_scan or not wal.scan_complete:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"WAL {wal.wal_id.hex()} has no scan without damage yet")
    behind = [log for log in bound if log.end < wal.scanned.get(log.log_id, 0)]
    if behind:
        log = behind[0]
        raise KafkaError(
            ErrorCode.INVALID_REQUEST,
            f"{len(behind)} logs are not recovered: {log.topic}-{log.partition} ends at {log.end}, "
            f"WAL {wal.wal_id.hex()} holds up to {wal.scanned[log.log_id]}",
        )
    leaders = context.name_leaders(state, bound, context.candidates(state))
    return Decision((f.WalRetired(wal.wal_id), *leaders), Done())


def retire_abandoned(state: ClusterState, command: RetireAbandoned, context: Context) -> Decision:
    """Those that hold nothing still: what was never led through them cannot be missed."""
    found = [wal for wal_id in command.wal_ids if (wal := state.wals.get(wal_id)) is not None]
    return Decision(tuple(f.WalRetired(wal.wal_id) for wal in found if state.holds_nothing(wal)), Done())


def forget_losses(state: ClusterState, command: ForgetLosses, context: Context) -> Decision:
    """Those that are not needed."""
    losses = state.wal_table.losses
    gone = tuple(one for one in dict.fromkeys(command.wal_ids) if one in losses and not state.is_needed(losses[one]))
    return Decision((f.LossesForgotten(gone),) if gone else (), Done())


def declare_lost(state: ClusterState, command: DeclareLost, context: Context) -> Decision:
    """Gives an instance up: each of its logs goes on behind an explicit hole. The answer is the report."""
    wal = _find(state, command.wal_id)
    if wal.state == LOST:
        return Decision((), report_of(state, wal.wal_id))
    if wal.state == RETIRED:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"WAL {wal.wal_id.hex()} is retired: all of it is committed")
    _check_silence(state, wal, command, context)
    facts: list[f.Fact] = []
    without = None
    if wal.state == ACTIVE:
        facts.append(end_session(state, wal.incarnation, "lost", context))
        facts += take_over(state, [wal.incarnation], lost=wal.wal_id)
        without = wal.incarnation
    validated = max(wal.acknowledged_group, context.heard.validated.get(wal.wal_id, 0))
    facts.append(f.WalLost(wal.wal_id, validated, command.recovered_group, context.now_ms))
    bound = [state.logs[log_id] for log_id in state.log_index.through(wal.wal_id)]
    facts += [f.LossDeclared(log.log_id, log.end, log.end + f.LOSS_GAP) for log in bound]
    facts += context.name_leaders(state, bound, context.candidates(state, without=without))
    report = LossReport(
        wal.wal_id,
        wal.node_id,
        wal.incarnation,
        context.now_ms,
        validated,
        command.recovered_group,
        tuple(_lost(log) for log in bound),
    )
    return Decision(tuple(facts), report)


def _lost(log: LogState) -> LostLog:
    return LostLog(log.log_id, log.topic, log.partition, log.end, log.end + f.LOSS_GAP)


def _check_silence(state: ClusterState, wal: WalState, command: DeclareLost, context: Context) -> None:
    if command.host_is_destroyed:
        return
    if wal.state == ACTIVE:
        raise KafkaError(ErrorCode.POLICY_VIOLATION, f"broker {wal.node_id}, its writer, has a live session")
    writer = state.broker_table.incarnations.get(wal.incarnation)
    silent_ms = context.now_ms - (writer.last_heard_ms if writer is not None else context.now_ms)
    wait_ms = context.limits.declare_lost_after_ms - silent_ms
    if wait_ms > 0:
        raise KafkaError(
            ErrorCode.POLICY_VIOLATION,
            f"broker {wal.node_id} was heard {max(silent_ms, 0) // 1000} s ago and may still be writing or may return; "
            f"try again in {-(-wait_ms // 60_000)} min, or say that its host is destroyed (--host-is-destroyed)",
        )


def report_of(state: ClusterState, wal_id: bytes) -> LossReport:
    """The report of a loss that is a fact. RESOURCE_NOT_FOUND if it is not remembered any more."""
    loss = state.wal_table.losses.get(wal_id)
    if loss is None:
        why = f"WAL {wal_id.hex()} was declared lost long ago: `tidelog inspect losses` shows the report in the bucket"
        raise KafkaError(ErrorCode.RESOURCE_NOT_FOUND, why)
    return LossReport(
        loss.wal_id,
        loss.node_id,
        loss.incarnation,
        loss.now_ms,
        loss.validated_group,
        loss.recovered_group,
        tuple(LostLog(*log) for log in loss.logs),
    )
