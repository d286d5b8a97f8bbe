"""Brokers join, lose their sessions and leave; their WAL instances are recovered, retired or given up."""

from dataclasses import dataclass
from typing import NamedTuple

from controller.facts import FORMAT_LEVEL, Listener, ScannedLog


class NewWal(NamedTuple):
    """A WAL instance that the registering incarnation created; `kind` is `volume` or `objects`."""

    wal_id: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class RegisterBroker:
    """A process announces itself, its new WAL instances and the older instances that it holds `locked`.

    Answer `Registered`. Ends at once the sessions of locked instances of the same `boot_id`, names the caller
    recoverer of every locked instance that nobody else is recovering, and gives leaderless logs a leader. Errors:
    DUPLICATE_BROKER_REGISTRATION (the node id has another live session; try again when it ended), STALE_BROKER_EPOCH
    (this incarnation's session was ended, perhaps so long ago that nobody remembers it), UNSUPPORTED_VERSION
    (`format_level`, the highest that the process understands, is below the cluster's), INVALID_REGISTRATION.

    `position`: the last entry that the process had applied when it asked for the first time; asking again, it says the
    same. So a registration that was delayed for as long as it takes to forget an incarnation is known to be old.
    """

    command_id: bytes
    node_id: int
    incarnation: int
    boot_id: str
    rack: str | None
    listeners: tuple[Listener, ...]
    wals: tuple[NewWal, ...]
    locked: tuple[bytes, ...] = ()
    format_level: int = FORMAT_LEVEL
    position: int = 0


@dataclass(frozen=True, slots=True)
class RegisterWal:
    """Another WAL instance of a live incarnation. Answer `Done`."""

    command_id: bytes
    incarnation: int
    wal_id: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class EndSession:
    """Ends the session of `incarnation` at once. Answer `Done`.

    Asked for by itself, or by `requester`, a live incarnation on the same running kernel that holds the lock of
    `locked_wal_id`, an instance of it. Else CLUSTER_AUTHORIZATION_FAILED.
    """

    command_id: bytes
    incarnation: int
    requester: int
    locked_wal_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class EndSilentSessions:
    """The controller's own: these sessions have certainly passed their deadline. Answer `Done`."""

    command_id: bytes
    incarnations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NameRecoverer:
    """`incarnation` wants to recover the instance. Answer `Recovery`.

    Refused with CONCURRENT_TRANSACTIONS (retriable) while another live incarnation recovers it or its writer's
    session stands, RESOURCE_NOT_FOUND if unknown, INVALID_REQUEST if it is retired or lost.
    """

    command_id: bytes
    wal_id: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class ReportScan:
    """What the recoverer found, after fencing. Answer `ScanAnswer`.

    `logs` hold what carries the log's epoch. `complete=False` (damage): nothing opens until the operator decides.
    INVALID_RECORD_STATE: `last_group` is below what was validated, a stale copy: nothing may be recovered from it.
    FENCED_STATE_EPOCH: another recoverer was named.
    """

    command_id: bytes
    wal_id: bytes
    incarnation: int
    number: int
    logs: tuple[ScannedLog, ...]
    last_group: int
    complete: bool = True


@dataclass(frozen=True, slots=True)
class RetireWal:
    """Everything in the instance is committed: its logs get leaders. Answer `Done`.

    By its recoverer with the recovery `number`; or by its own live incarnation (`number` 0) once no log is led
    through it. INVALID_REQUEST if a scanned log is not committed up to its scanned end.
    """

    command_id: bytes
    wal_id: bytes
    incarnation: int
    number: int


@dataclass(frozen=True, slots=True)
class CleanStop:
    """Everything of the incarnation is committed: retires its instances and ends its session in one entry.

    Answer `Done`. If it is the controller's own incarnation, the controller resigns with it.
    """

    command_id: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class DeclareLost:
    """The operator gives up an instance. Answer `LossReport`.

    POLICY_VIOLATION until 30 minutes after the last sign of life, unless `host_is_destroyed`. `recovered_group`: the
    highest group whose batches were committed by a recovery, 0 if none.
    """

    command_id: bytes
    wal_id: bytes
    host_is_destroyed: bool = False
    recovered_group: int = 0


@dataclass(frozen=True, slots=True)
class RecoverInstances:
    """The controller's own: instances in the bucket that wait for a live recoverer get one. Answer `Done`."""

    command_id: bytes


@dataclass(frozen=True, slots=True)
class ForgetClosed:
    """The controller's own: nobody needs to know of these closed incarnations any more. Answer `Done`."""

    command_id: bytes
    incarnations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RetireAbandoned:
    """The controller's own: these instances ended long ago, hold nothing of any log, and nobody came back with them.
    Answer `Done`; those for which that is not so any more stay.
    """

    command_id: bytes
    wal_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ForgetLosses:
    """The controller's own: the reports of these losses are stored, and no log needs to know of them. Answer `Done`;
    those of which that is not so stay.
    """

    command_id: bytes
    wal_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RaiseFormatLevel:
    """Answer `Done`. UNSUPPORTED_VERSION if a registered broker does not understand `level`."""

    command_id: bytes
    level: int
