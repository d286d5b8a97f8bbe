"""Registration and the end of sessions.

A node id with a live session is refused, unless the newcomer proves that the old process is gone: it holds the lock
of one of its WAL instances on the same running kernel. An incarnation whose session ended never comes back.
"""

from controller import facts as f
from controller.commands import (
    CleanStop,
    Done,
    EndSession,
    EndSilentSessions,
    ForgetClosed,
    RaiseFormatLevel,
    RegisterBroker,
    Registered,
    RegisterWal,
)
from controller.decide.context import Context, Decision, require_alive
from controller.decide.takeover import ANYWHERE, take_over
from controller.decide.takeover import FORMAT_LEVEL as TAKEOVER_LEVEL
from controller.placement import Candidate
from controller.state import ClusterState
from controller.wals import ACTIVE, RECOVERING, WalState
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Recovery

WAL_KINDS = ("volume", "objects", "replicated")


def register_broker(state: ClusterState, command: RegisterBroker, context: Context) -> Decision:
    """Sessions of the locked instances end, the broker and its instances exist, it recovers, leaderless logs open."""
    table = state.broker_table
    if command.incarnation in table.closed or command.incarnation in table.incarnations:
        require_alive(state, command.incarnation)
        return Decision((), Registered(tuple(_recoveries(state, command.incarnation))))
    if command.position < table.forgotten_at:
        raise KafkaError(
            ErrorCode.STALE_BROKER_EPOCH,
            f"this registration was made at entry {command.position}; incarnations that were registered up to entry "
            f"{table.forgotten_at} are forgotten, and this one may be among them: start the process again",
        )
    _check_registration(state, command)
    ended = _proven_dead(state, command)
    older = state.brokers.get(command.node_id)
    if older is not None and older.alive and older.incarnation not in ended:
        raise KafkaError(
            ErrorCode.DUPLICATE_BROKER_REGISTRATION,
            f"node.id {command.node_id} has a live session; if that process is gone, its session ends by itself soon",
        )
    facts: list[f.Fact] = [end_session(state, incarnation, "restart", context) for incarnation in ended]
    facts.append(
        f.BrokerRegistered(
            command.node_id,
            command.incarnation,
            command.boot_id,
            command.rack,
            command.listeners,
            command.format_level,
            context.now_ms,
        )
    )
    for wal in command.wals:
        facts.append(f.WalRegistered(wal.wal_id, command.node_id, command.incarnation, wal.kind))
    recoveries = []
    for wal_id in dict.fromkeys(command.locked):
        found = state.wals.get(wal_id)
        if found is not None and found.kind != ANYWHERE and _needs_recoverer(state, found, ended):
            number = found.recovery_number + 1
            facts.append(f.RecoveryNamed(wal_id, command.node_id, command.incarnation, number))
            recoveries.append(Recovery(wal_id, number))
    facts += take_over(state, ended, joining=_joining(command))
    facts += _open_leaderless(state, command, context, ended)
    return Decision(tuple(facts), Registered(tuple(recoveries)))


def _joining(command: RegisterBroker) -> tuple[int, int] | None:
    return (command.node_id, command.incarnation) if command.format_level >= TAKEOVER_LEVEL else None


def _check_registration(state: ClusterState, command: RegisterBroker) -> None:
    if command.format_level < state.format_level:
        raise KafkaError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"the cluster is at format level {state.format_level}, this broker knows {command.format_level}: upgrade",
        )
    if command.node_id < 0 or not command.listeners:
        raise KafkaError(ErrorCode.INVALID_REGISTRATION, "a broker has a node id >= 0 and at least one listener")
    ids = [wal.wal_id for wal in command.wals]
    if len(set(ids)) != len(ids) or any(len(wal_id) != 16 or wal_id in state.wals for wal_id in ids):
        raise KafkaError(ErrorCode.INVALID_REGISTRATION, "every incarnation makes new WAL instances with own ids")
    unknown = [wal.kind for wal in command.wals if wal.kind not in WAL_KINDS]
    if unknown:
        raise KafkaError(ErrorCode.INVALID_REGISTRATION, f"unknown WAL kind {unknown[0]!r}")


def _proven_dead(state: ClusterState, command: RegisterBroker) -> list[int]:
    dead = []
    for wal_id in command.locked:
        wal = state.wals.get(wal_id)
        writer = None if wal is None else state.broker_table.incarnations.get(wal.incarnation)
        if writer is not None and writer.alive and writer.boot_id == command.boot_id:
            dead.append(writer.incarnation)
    return sorted(set(dead))


def _needs_recoverer(state: ClusterState, wal: WalState, ended: list[int]) -> bool:
    if wal.closed:
        return False
    if wal.state == RECOVERING:
        return wal.recoverer in ended or not state.broker_table.is_alive(wal.recoverer)
    return wal.state != ACTIVE or wal.incarnation in ended


def _recoveries(state: ClusterState, incarnation: int) -> list[Recovery]:
    return [
        Recovery(wal.wal_id, wal.recovery_number)
        for wal in state.wals.values()
        if wal.state == RECOVERING and wal.recoverer == incarnation
    ]


def _open_leaderless(
    state: ClusterState, command: RegisterBroker, context: Context, ended: list[int]
) -> list[f.LeaderNamed]:
    logs = [state.logs[log_id] for log_id in state.log_index.through(f.NO_UUID)]
    if not logs:
        return []
    candidates = [c for c in context.candidates(state) if c.incarnation not in ended]
    wals = {wal.kind: wal.wal_id for wal in command.wals}
    drained = command.node_id in state.drained
    candidates.append(Candidate(command.node_id, command.incarnation, command.rack, wals, 0, drained))
    return context.name_leaders(state, logs, candidates)


def register_wal(state: ClusterState, command: RegisterWal, context: Context) -> Decision:
    """Another instance of a live incarnation, before its first group."""
    require_alive(state, command.incarnation)
    known = state.wals.get(command.wal_id)
    if known is not None and (known.incarnation, known.kind) == (command.incarnation, command.kind):
        return Decision((), Done())
    if known is not None or len(command.wal_id) != 16 or command.kind not in WAL_KINDS:
        raise KafkaError(ErrorCode.INVALID_REGISTRATION, "a WAL instance has a new id of 16 bytes and a known kind")
    node_id = state.broker_table.incarnations[command.incarnation].node_id
    return Decision((f.WalRegistered(command.wal_id, node_id, command.incarnation, command.kind),), Done())


def end_session(state: ClusterState, incarnation: int, reason: str, context: Context) -> f.SessionEnded:
    """The fact that ends a session, with the last sign of life that is known."""
    registered = state.broker_table.incarnations[incarnation].registered_ms
    heard = context.heard.at_ms.get(incarnation, context.now_ms if reason == "clean" else state.wall_ms)
    return f.SessionEnded(incarnation, reason, max(registered, heard))


def end_session_now(state: ClusterState, command: EndSession, context: Context) -> Decision:
    """On the broker's own request, or proven dead by the lock of its WAL on the same running kernel."""
    broker = state.broker_table.incarnations.get(command.incarnation)
    if command.incarnation in state.broker_table.closed or (broker is not None and not broker.alive):
        return Decision((), Done())
    require_alive(state, command.incarnation)
    assert broker is not None
    if command.requester == command.incarnation:
        return Decision(_ended(state, [command.incarnation], "request", context), Done())
    require_alive(state, command.requester)
    requester = state.broker_table.incarnations[command.requester]
    wal = state.wals.get(command.locked_wal_id or b"")
    if wal is None or wal.incarnation != command.incarnation or requester.boot_id != broker.boot_id:
        raise KafkaError(
            ErrorCode.CLUSTER_AUTHORIZATION_FAILED,
            "only the holder of the lock of its WAL, on the same running machine, may end another broker's session",
        )
    return Decision(_ended(state, [command.incarnation], "restart", context), Done())


def end_silent_sessions(state: ClusterState, command: EndSilentSessions, context: Context) -> Decision:
    """The controller saw that these sessions passed their deadline, on every clock."""
    silent = [one for one in command.incarnations if state.broker_table.is_alive(one)]
    return Decision(_ended(state, silent, "silence", context), Done())


def _ended(state: ClusterState, incarnations: list[int], reason: str, context: Context) -> tuple[f.Fact, ...]:
    ends = [end_session(state, incarnation, reason, context) for incarnation in incarnations]
    return (*ends, *take_over(state, incarnations)) if ends else ()


def clean_stop(state: ClusterState, command: CleanStop, context: Context) -> Decision:
    """Its instances are retired, its session ends, survivors lead its logs: one entry."""
    broker = state.broker_table.incarnations.get(command.incarnation)
    if broker is not None and broker.end_reason == "clean":
        return Decision((), Done())
    require_alive(state, command.incarnation)
    own = [wal for wal in state.wal_table.of(command.incarnation) if wal.state == ACTIVE]
    logs = [state.logs[log_id] for wal in own for log_id in state.log_index.through(wal.wal_id)]
    facts: list[f.Fact] = [f.WalRetired(wal.wal_id) for wal in own]
    facts.append(end_session(state, command.incarnation, "clean", context))
    retired = {wal.wal_id for wal in own}
    facts += [fact for fact in take_over(state, [command.incarnation]) if fact.wal_id not in retired]
    facts += context.name_leaders(state, logs, context.candidates(state, without=command.incarnation))
    return Decision(tuple(facts), Done())


def forget_closed(state: ClusterState, command: ForgetClosed, context: Context) -> Decision:
    """Those that are closed. The last controller's stays: the locks of its instances still tell that it is gone."""
    table = state.broker_table
    forgotten = tuple(
        one for one in command.incarnations if one in table.closed and one != state.controller_incarnation
    )
    if not forgotten:
        return Decision((), Done())
    position = max(table.registered_at.get(one, state.position) for one in forgotten)
    return Decision((f.ClosedForgotten(forgotten, position),), Done())


def raise_format_level(state: ClusterState, command: RaiseFormatLevel, context: Context) -> Decision:
    """Only when every registered broker understands it."""
    if command.level <= state.format_level:
        return Decision((), Done())
    behind = [broker.node_id for broker in state.broker_table.alive() if broker.format_level < command.level]
    if behind or command.level > f.FORMAT_LEVEL:
        who = f"brokers {behind} do not understand" if behind else "this controller does not know"
        raise KafkaError(ErrorCode.UNSUPPORTED_VERSION, f"{who} format level {command.level}")
    return Decision((f.FormatLevel(command.level),), Done())
