"""WAL instances and their life cycle: active, ended, recovering, retired or lost; and what was lost with them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.facts import NO_NODE, RecoveryNamed, WalGroup, WalLost, WalRegistered, WalScanned
from storage.seal import CommittedThrough

ACTIVE, ENDED, RECOVERING, RETIRED, LOST = "active", "ended", "recovering", "retired", "lost"


@dataclass(slots=True)
class WalState:
    """One WAL instance.

    `recoverer` is the incarnation named last and `recovery_number` its number, counting from 1; it counts only in
    state `recovering`. After a scan, `scan_complete` tells whether it found no damage, and `scanned` is per log the
    end of what the instance holds, while the log still needs it. `committed` is per lane what `CommittedThrough`
    said.
    """

    wal_id: bytes
    node_id: int
    incarnation: int
    kind: str
    state: str = ACTIVE
    recoverer_node: int = NO_NODE
    recoverer: int = 0
    recovery_number: int = 0
    has_scan: bool = False
    scan_complete: bool = False
    scanned: dict[int, int] = field(default_factory=dict)
    validated_group: int = 0
    recovered_group: int = 0
    committed: dict[int, int] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Retired or lost: nothing of it will ever be committed again."""
        return self.state in (RETIRED, LOST)

    @property
    def acknowledged_group(self) -> int:
        """The last group known to have been acknowledged: its broker said so, or it is committed."""
        return max(self.validated_group, *self.committed.values(), 0)


@dataclass(slots=True)
class Loss:
    """A declared loss; `logs` as (log id, topic, partition, from offset, to offset)."""

    wal_id: bytes
    node_id: int
    incarnation: int
    now_ms: int
    validated_group: int
    recovered_group: int
    logs: list[tuple[int, str, int, int, int]]


@dataclass(slots=True)
class WalTable:
    """`wals` by id (one per kind and restart), forgotten with their incarnation; `by_incarnation` in order; `losses` by
    WAL, as long as a log needs them.

    `closed_ms`: when (wall time of the entry) an instance that may have a fence in the bucket was retired or lost.
    """

    wals: dict[bytes, WalState] = field(default_factory=dict)
    by_incarnation: dict[int, list[WalState]] = field(default_factory=dict)
    losses: dict[bytes, Loss] = field(default_factory=dict)
    closed_ms: dict[bytes, int] = field(default_factory=dict)

    def register(self, fact: WalRegistered) -> None:
        """A new active instance."""
        assert fact.wal_id not in self.wals
        self._add(WalState(fact.wal_id, fact.node_id, fact.incarnation, fact.kind))

    def _add(self, wal: WalState) -> None:
        self.wals[wal.wal_id] = wal
        self.by_incarnation.setdefault(wal.incarnation, []).append(wal)

    def of(self, incarnation: int) -> list[WalState]:
        """The instances of an incarnation."""
        return self.by_incarnation.get(incarnation, [])

    def active(self, incarnation: int, kind: str) -> WalState | None:
        """The newest active instance of that kind."""
        for wal in reversed(self.of(incarnation)):
            if wal.kind == kind and wal.state == ACTIVE:
                return wal
        return None

    def end(self, incarnation: int) -> list[WalState]:
        """The session ended: its active instances are `ended`, and so are those that it was recovering.

        Returns its own instances that were active.
        """
        own = [wal for wal in self.of(incarnation) if wal.state == ACTIVE]
        for wal in own:
            wal.state = ENDED
        for wal in self.wals.values():
            if wal.state == RECOVERING and wal.recoverer == incarnation:
                wal.state = ENDED
        return own

    def name_recoverer(self, fact: RecoveryNamed) -> None:
        """One recoverer at a time; the number grows by one."""
        wal = self.wals[fact.wal_id]
        assert wal.state in (ENDED, RECOVERING) and fact.number == wal.recovery_number + 1
        wal.state = RECOVERING
        wal.recoverer_node, wal.recoverer, wal.recovery_number = fact.node_id, fact.incarnation, fact.number

    def scan(self, fact: WalScanned) -> None:
        """Remembers what the instance holds, per log."""
        wal = self.wals[fact.wal_id]
        assert wal.state == RECOVERING and wal.recovery_number == fact.number
        wal.has_scan, wal.scan_complete, wal.recovered_group = True, fact.complete, fact.last_group
        wal.scanned = {log.log_id: log.end for log in fact.logs}

    def retire(self, wal_id: bytes) -> WalState:
        """Its files may go."""
        wal = self.wals[wal_id]
        assert not wal.closed
        wal.state = RETIRED
        wal.scanned.clear()
        return wal

    def lose(self, fact: WalLost) -> WalState:
        """Given up; opens the record of the loss."""
        wal = self.wals[fact.wal_id]
        assert not wal.closed
        wal.state = LOST
        wal.scanned.clear()
        self.losses[wal.wal_id] = Loss(
            wal.wal_id, wal.node_id, wal.incarnation, fact.now_ms, fact.validated_group, fact.recovered_group, []
        )
        return wal

    def forget_losses(self, wal_ids: Iterable[bytes]) -> None:
        """Nobody needs them any more."""
        for wal_id in wal_ids:
            del self.losses[wal_id]

    def validate(self, groups: Iterable[WalGroup]) -> None:
        """Validated group numbers only grow."""
        for wal_id, group in groups:
            wal = self.wals.get(wal_id)
            if wal is not None and group > wal.validated_group:
                wal.validated_group = group

    def is_closed(self, wal_id: bytes) -> bool:
        """Whether an instance that was once known is retired or lost; one that is not known any more was."""
        wal = self.wals.get(wal_id)
        return wal is None or wal.closed

    def forget(self, incarnation: int) -> None:
        """The instances of an incarnation, all of them closed."""
        for wal in self.by_incarnation.pop(incarnation, ()):
            assert wal.closed
            del self.wals[wal.wal_id]
            self.closed_ms.pop(wal.wal_id, None)

    def note_closed(self, wal: WalState, wall_ms: int) -> None:
        """When it was closed, if a recoverer may have made a fence object: that stays for a while."""
        if wal.kind == "objects" and wal.recovery_number:
            self.closed_ms[wal.wal_id] = wall_ms

    def commit_through(self, through: Iterable[CommittedThrough]) -> None:
        """Committed group numbers only grow."""
        for item in through:
            wal = self.wals.get(item.wal_id)
            if wal is not None:
                wal.committed[item.lane] = max(item.group, wal.committed.get(item.lane, 0))

    def wal_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the instances, in the order of registration."""
        for w in self.wals.values():
            yield [
                *[w.wal_id, w.node_id, w.incarnation, w.kind, w.state, w.recoverer_node, w.recoverer],
                *[w.recovery_number, w.has_scan, w.scan_complete, list(w.scanned.items()), w.validated_group],
                *[w.recovered_group, list(w.committed.items())],
            ]

    def load_wal(self, row: tuple[Any, ...]) -> None:
        """Adds an instance from its snapshot row."""
        *head, scanned, validated_group, recovered_group, committed = row
        fields = [*head, dict(scanned), validated_group, recovered_group, dict(committed)]
        self._add(WalState(*fields))

    def closed_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of `closed_ms`."""
        for wal_id, wall_ms in self.closed_ms.items():
            yield [wal_id, wall_ms]

    def load_closed(self, row: tuple[Any, ...]) -> None:
        """Adds a time from its snapshot row."""
        self.closed_ms[row[0]] = row[1]

    def newest_hole(self, log_id: int) -> int:
        """Where a log goes on behind what was last declared lost of it; 0: nothing was."""
        return max((lost[4] for loss in self.losses.values() for lost in loss.logs if lost[0] == log_id), default=0)

    def loss_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the losses."""
        for x in self.losses.values():
            yield [x.wal_id, x.node_id, x.incarnation, x.now_ms, x.validated_group, x.recovered_group, x.logs]

    def load_loss(self, row: tuple[Any, ...]) -> None:
        """Adds a loss from its snapshot row."""
        fields = [*row[:-1], list(row[-1])]
        self.losses[row[0]] = Loss(*fields)
