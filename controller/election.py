"""When may this process make itself controller? Pure: decides on the observed facts and boottime.

Taking over needs no clock to be safe: entries are created if absent, so a deposed controller's next append fails. The
lease only keeps a healthy controller from being replaced, and bounds what an unhealthy one may still have granted.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from controller.state import ClusterState


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is.

    `wal_ids`: the instances that it made and holds locked; `locked`: older instances that it found and locked, which
    proves that the processes that made them are gone. `eligible`: it has the controller role.
    """

    node_id: int
    incarnation: int
    wal_ids: tuple[bytes, ...] = ()
    locked: tuple[bytes, ...] = ()
    eligible: bool = True


@dataclass(slots=True)
class Election:
    """What one process saw of the log's liveness.

    `last_seen` is the boottime when the newest entry was first seen, or the log could be reached again. `asked_at` is
    the entry at which this process asked to be registered for the first time.
    """

    identity: Identity
    lease_ms: int
    last_seen: int = 0
    asked_at: int | None = None

    def is_over(self, state: ClusterState) -> bool:
        """Whether this process's session was ended. What slept for long enough may find itself forgotten."""
        table = state.broker_table
        if self.identity.incarnation in table.incarnations or self.asked_at is None:
            return is_over(state, self.identity.incarnation)
        return self.asked_at < table.forgotten_at or is_over(state, self.identity.incarnation)

    def observed(self, now: int) -> None:
        """A new entry was seen, or the log could be reached again after an outage."""
        self.last_seen = now

    def proved_dead(self, wal_id: bytes) -> None:
        """Another older instance was found and locked."""
        self.identity = replace(self.identity, locked=(*self.identity.locked, wal_id))

    def may_take_over(self, state: ClusterState, now: int) -> bool:
        """Whether to append `ControllerElected`. `state` was found to be at the end of the log just now."""
        me = self.identity
        if not me.eligible or self.is_over(state):
            return False
        if state.controller_epoch == 0 or state.controller_resigned or state.controller_incarnation == me.incarnation:
            return True
        return self._is_proven_dead(state, me.locked) or now >= self.last_seen + self.lease_ms

    def _is_proven_dead(self, state: ClusterState, locked: Collection[bytes]) -> bool:
        held = set(state.controller_wal_ids)
        held.update(wal.wal_id for wal in state.wal_table.of(state.controller_incarnation))
        return not held.isdisjoint(locked)

    def wait_ms(self, now: int) -> int:
        """How long to follow before looking again."""
        step = max(1, self.lease_ms // 6)
        left = self.last_seen + self.lease_ms - now
        return min(step, left) if left > 0 else step


def is_over(state: ClusterState, incarnation: int) -> bool:
    """Whether the session of the incarnation was ended: it never leads anything again."""
    broker = state.broker_table.incarnations.get(incarnation)
    return incarnation in state.broker_table.closed or (broker is not None and not broker.alive)
