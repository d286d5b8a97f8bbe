"""Planned moves: what is wanted, and the entry in which a log changes hands together with its last commit.

A wish binds nobody: the leader freezes the log and asks for commit and move; only then, and only if leader, epoch and
end are what the leader said, does the log get its next epoch. So a move is in the log of facts or it never was.
"""

from collections.abc import Sequence

from controller import facts as f
from controller.commands import (
    CancelMoves,
    DrainAnswer,
    DrainBroker,
    LeaveCluster,
    MoveRefusal,
    MovesAnswer,
    RequestMoves,
)
from controller.decide.context import Context, Decision, require_alive
from controller.decide.seals import commit_seal
from controller.log_index import OPEN, LogState
from controller.placement import Wanted
from controller.state import ClusterState
from controller.topics import Topic
from controller.wals import WalState
from protocol.errors import ErrorCode, KafkaError
from storage.seal import CommitAndMove, Move

MOVES_PER_COMMAND_MAX = 10_000


def request_moves(state: ClusterState, command: RequestMoves, context: Context) -> Decision:
    """Each log is judged by itself; what is true already or wanted already needs no fact."""
    if len(command.moves) > MOVES_PER_COMMAND_MAX:
        raise KafkaError(
            ErrorCode.POLICY_VIOLATION, f"{len(command.moves)} moves at once, at most {MOVES_PER_COMMAND_MAX}"
        )
    chosen = _choose(state, command, context)
    moves: list[f.MoveTarget] = []
    there: list[f.MoveTarget] = []
    refused: list[MoveRefusal] = []
    for log_id, asked in dict(command.moves).items():
        node_id = chosen.get(log_id, asked)
        try:
            _check_target(state, log_id, node_id, context)
        except KafkaError as error:
            refused.append(MoveRefusal(log_id, int(error.code), error.message))
            continue
        log = state.logs[log_id]
        explicit = log_id in state.move_table.explicit
        if log.leader_node == node_id and _has_right_kind(state, log, context):
            there.append(f.MoveTarget(log_id, node_id))
        elif state.moves.get(log_id) != node_id or (command.explicit and not explicit):
            moves.append(f.MoveTarget(log_id, node_id))
    facts: list[f.Fact] = []
    if moves:
        facts.append(f.MovesRequested(tuple(moves), command.explicit))
    withdrawn = tuple(item.log_id for item in there if item.log_id in state.moves)
    if withdrawn:
        facts.append(f.MovesCancelled(withdrawn))
    changed = tuple(item for item in there if state.preferred_leader(item.log_id) != item.node_id)
    if command.explicit and changed:
        facts.append(f.LeadersPreferred(changed))
    accepted = len(dict(command.moves)) - len(refused)
    return Decision(tuple(facts), MovesAnswer(accepted, tuple(refused)))


def _choose(state: ClusterState, command: RequestMoves, context: Context) -> dict[int, int]:
    """Targets for the logs whose asker leaves the choice to us, where there are any."""
    open_ids = [
        log_id
        for log_id, node_id in command.moves
        if node_id == f.NO_NODE and log_id in state.logs and state.logs[log_id].leader_node != f.NO_NODE
    ]
    return dict(choose_targets(state, [state.logs[log_id] for log_id in open_ids], context))


def choose_targets(state: ClusterState, logs: Sequence[LogState], context: Context) -> list[f.MoveTarget]:
    """Another leader for each log that has one, but for those that nobody else can lead."""
    by_leader: dict[int, list[LogState]] = {}
    for log in logs:
        by_leader.setdefault(log.leader_incarnation, []).append(log)
    found = []
    for incarnation, own in by_leader.items():
        candidates = [one for one in context.candidates(state, without=incarnation) if not one.drained]
        wanted = [Wanted(log.topic, context.wal_kind(state, state.topics[log.topic])) for log in own]
        places = context.places(state, candidates, wanted)
        found += [f.MoveTarget(log.log_id, chosen.node_id) for log, chosen in zip(own, places) if chosen is not None]
    return found


def _check_target(state: ClusterState, log_id: int, node_id: int, context: Context) -> None:
    log = state.logs.get(log_id)
    if log is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"log {log_id} does not exist")
    where = f"{log.topic}-{log.partition}"
    if node_id == f.NO_NODE:
        if log.leader_node == f.NO_NODE:
            raise KafkaError(ErrorCode.LEADER_NOT_AVAILABLE, f"{where} has no leader to move it away from")
        raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"{where} has to stay: no other live broker can lead it")
    if node_id in state.drained:
        raise KafkaError(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"broker {node_id} is drained (tidelog broker drain {node_id} --undo)"
        )
    broker = state.brokers.get(node_id)
    if broker is not None and broker.incarnation in state.move_table.leaving:
        raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"broker {node_id} is about to stop")
    if _target_wal(state, log, node_id, context) is None:
        kind = context.wal_kind(state, state.topics[log.topic])
        alive = broker is not None and broker.alive
        why = f"has no WAL of kind {kind!r}" if alive else "has no live session"
        raise KafkaError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"{where} cannot go to broker {node_id}, which {why}")


def _target_wal(state: ClusterState, log: LogState, node_id: int, context: Context) -> WalState | None:
    broker = state.brokers.get(node_id)
    if broker is None or not broker.alive:
        return None
    return state.wal_table.active(broker.incarnation, context.wal_kind(state, state.topics[log.topic]))


def _has_right_kind(state: ClusterState, log: LogState, context: Context) -> bool:
    wal = state.wals.get(log.wal_id)
    return wal is not None and wal.kind == context.wal_kind(state, state.topics[log.topic])


def cancel_moves(state: ClusterState, command: CancelMoves, context: Context) -> Decision:
    """Wishes are withdrawn; a log whose leader asked for the move already may still move."""
    asked = tuple(dict.fromkeys(command.log_ids))
    wanted = tuple(log_id for log_id in asked if log_id in state.moves)
    refused = []
    for log_id in asked:
        if log_id not in state.logs:
            refused.append(
                MoveRefusal(log_id, int(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION), f"log {log_id} does not exist")
            )
        elif log_id not in state.moves:
            refused.append(MoveRefusal(log_id, int(ErrorCode.NO_REASSIGNMENT_IN_PROGRESS), "nobody wants it to move"))
    return Decision((f.MovesCancelled(wanted),) if wanted else (), MovesAnswer(len(wanted), tuple(refused)))


def drain_broker(state: ClusterState, command: DrainBroker, context: Context) -> Decision:
    """The node gets no new logs, and the logs it leads get targets, as far as there are any."""
    node_id = command.node_id
    broker = state.brokers.get(node_id)
    if broker is None and not command.undo:
        raise KafkaError(ErrorCode.BROKER_ID_NOT_REGISTERED, f"no broker with node.id {node_id} was ever registered")
    led = _led_by(state, node_id)
    if command.undo:
        if node_id not in state.drained:
            return Decision((), DrainAnswer(0, 0))
        facts: list[f.Fact] = [f.NodeDrained(node_id, undone=True)]
        leaving = tuple(log.log_id for log in led if log.log_id in state.moves)
        if leaving:
            facts.append(f.MovesCancelled(leaving))
        return Decision(tuple(facts), DrainAnswer(0, 0))
    facts = [] if node_id in state.drained else [f.NodeDrained(node_id)]
    return _move_away(state, node_id, led, facts, context)


def leave_cluster(state: ClusterState, command: LeaveCluster, context: Context) -> Decision:
    """As a drain, of this incarnation only."""
    require_alive(state, command.incarnation)
    node_id = state.broker_table.incarnations[command.incarnation].node_id
    known = command.incarnation in state.move_table.leaving
    facts: list[f.Fact] = [] if known else [f.BrokerLeaving(command.incarnation)]
    return _move_away(state, node_id, _led_by(state, node_id), facts, context)


def _move_away(
    state: ClusterState, node_id: int, led: Sequence[LogState], facts: list[f.Fact], context: Context
) -> Decision:
    # A move to oneself ends here: such a log needs another target.
    staying = [log for log in led if state.moves.get(log.log_id, node_id) == node_id]
    targets = choose_targets(state, staying[:MOVES_PER_COMMAND_MAX], context)
    if targets:
        facts.append(f.MovesRequested(tuple(targets)))
    without = min(len(staying), MOVES_PER_COMMAND_MAX) - len(targets)
    return Decision(tuple(facts), DrainAnswer(len(led) - without, without))


def _led_by(state: ClusterState, node_id: int) -> list[LogState]:
    broker = state.brokers.get(node_id)
    if broker is None or not broker.alive:
        return []
    wals = state.wal_table.of(broker.incarnation)
    return [state.logs[log_id] for wal in wals for log_id in state.log_index.through(wal.wal_id)]


def is_leaving(state: ClusterState, node_id: int) -> bool:
    """Whether the node is drained and leads logs that nobody was asked to take over."""
    broker = state.brokers.get(node_id)
    if node_id not in state.drained or broker is None or not broker.alive:
        return False
    wals = state.wal_table.of(broker.incarnation)
    return any(log_id not in state.moves for wal in wals for log_id in state.log_index.led_through.get(wal.wal_id, ()))


def moves_of_kind(state: ClusterState, topic: Topic, kind: str, context: Context) -> list[f.MoveTarget]:
    """Where the logs of a topic go whose WAL kind becomes `kind`: to where they are, if that broker has such a WAL."""
    found: list[f.MoveTarget] = []
    away: list[LogState] = []
    for log in (state.logs[log_id] for log_id in topic.log_ids):
        wal = state.wals.get(log.wal_id)
        if log.leader_node == f.NO_NODE or wal is None or wal.kind == kind:
            continue
        if state.wal_table.active(log.leader_incarnation, kind) is not None:
            found.append(f.MoveTarget(log.log_id, log.leader_node))
        else:
            away.append(log)
    candidates = [one for one in context.candidates(state) if not one.drained]
    places = context.places(state, candidates, [Wanted(topic.name, kind)] * len(away))
    return found + [f.MoveTarget(log.log_id, to.node_id) for log, to in zip(away, places) if to is not None]


def commit_and_move(state: ClusterState, command: CommitAndMove, context: Context) -> Decision:
    """The seal's facts and a new leader for every log that may move. A wish that cannot be fulfilled is withdrawn."""
    decision = commit_seal(state, command, context)
    if not decision.facts:
        return decision  # it was decided before
    refused = set(decision.answer.refused)
    ends = {part.log_id: part.end for item in command.objects for part in item.ranges if part.log_id not in refused}
    leaders = []
    void = []
    for move in {move.log_id: move for move in command.moves}.values():
        log = state.logs.get(move.log_id)
        if log is None or not _may_move(state, command, log, move, ends.get(move.log_id, log.end)):
            continue
        broker = state.brokers.get(move.node_id)
        wal = _target_wal(state, log, move.node_id, context)
        takes_none = broker is None or state.move_table.takes_none(broker.node_id, broker.incarnation)
        if broker is None or wal is None or wal.wal_id == log.wal_id or takes_none:
            void.append(move.log_id)
        else:
            leaders.append(f.LeaderNamed(log.log_id, broker.node_id, broker.incarnation, log.epoch + 1, wal.wal_id))
    cancelled = (f.MovesCancelled(tuple(void)),) if void else ()
    return Decision((*decision.facts, *leaders, *cancelled), decision.answer)


def _may_move(state: ClusterState, command: CommitAndMove, log: LogState, move: Move, end: int) -> bool:
    return (
        log.status == OPEN
        and log.leader_node != f.NO_NODE
        and log.leader_incarnation == command.incarnation
        and log.epoch == move.leader_epoch
        and end == move.end
        and state.moves.get(move.log_id) == move.node_id
    )
