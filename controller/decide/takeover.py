"""What follows at once from the end of a session: instances that any broker can read get a recoverer, or their end.

An instance of kind `objects` lies in the bucket. One that no log is led through holds nothing that could still be
committed, and nothing can be acknowledged through it any more: it is retired without anybody looking at it. The others
are spread over the live brokers, those first that recover least. One whose recoverer is gone gets a successor.
"""

from collections.abc import Collection

from controller import facts as f
from controller.commands import Done, RecoverInstances
from controller.decide.context import Context, Decision
from controller.state import ClusterState
from controller.wals import ACTIVE, RECOVERING, WalState

ANYWHERE = "objects"
"""The kind whose instances any broker can recover."""
FORMAT_LEVEL = 2
"""Brokers below it do not know how."""


def take_over(
    state: ClusterState,
    ended: Collection[int] = (),
    *,
    joining: tuple[int, int] | None = None,
    lost: bytes | None = None,
) -> list[f.WalRetired | f.RecoveryNamed]:
    """The facts for every instance that waits for somebody.

    `ended`: incarnations whose session ends in this entry. `joining`: node id and incarnation of a broker that is
    registered in this entry. `lost`: an instance that is given up in this entry.
    """
    waiting = [
        wal for wal in state.wals.values() if wal.kind == ANYWHERE and wal.wal_id != lost and _waits(state, wal, ended)
    ]
    if not waiting:
        return []
    alive = {
        broker.incarnation: broker.node_id
        for broker in state.broker_table.alive()
        if broker.incarnation not in ended and broker.format_level >= FORMAT_LEVEL
    }
    if joining is not None:
        alive[joining[1]] = joining[0]
    busy = dict.fromkeys(alive, 0)
    for wal in state.wals.values():
        if wal.state == RECOVERING and wal.recoverer in busy:
            busy[wal.recoverer] += 1
    facts: list[f.WalRetired | f.RecoveryNamed] = []
    for wal in waiting:
        if not wal.recovery_number and not state.log_index.through(wal.wal_id):
            facts.append(f.WalRetired(wal.wal_id))
        elif alive:
            chosen = min(busy, key=lambda incarnation: (busy[incarnation], alive[incarnation]))
            busy[chosen] += 1
            facts.append(f.RecoveryNamed(wal.wal_id, alive[chosen], chosen, wal.recovery_number + 1))
    return facts


def _waits(state: ClusterState, wal: WalState, ended: Collection[int]) -> bool:
    if wal.closed:
        return False
    if wal.state == ACTIVE:
        return wal.incarnation in ended
    if wal.state == RECOVERING:
        return wal.recoverer in ended or not state.broker_table.is_alive(wal.recoverer)
    return True


def recover_instances(state: ClusterState, command: RecoverInstances, context: Context) -> Decision:
    """The controller saw instances that wait for nobody who is alive."""
    return Decision(tuple(take_over(state)), Done())
