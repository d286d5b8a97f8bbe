"""Commands: everything a broker or a tool may ask the controller for, and the answers.

Every command carries a `command_id` of 16 random bytes: asking again with the same id gets the first answer, whoever
is controller by then. `CommitSeal` (`storage.seal`) is a command too; it is idempotent by its seal number instead.
Refusals are `KafkaError`; commands over several resources answer with one result per resource instead. Tags are the
wire form for remote controllers, answers are also stored in entries: never reuse a tag.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from controller.codec import Registry
from controller.facts import (
    FORMAT_LEVEL,
    Listener,
    LogStart,
    Merged,
    MergePart,
    MoveTarget,
    NewManifest,
    ScannedLog,
    UnnamedObject,
)
from storage.seal import CommitAndMove, CommitAnswer, CommitSeal, ManifestPointer, Recovery

_commands = Registry("command")
_answers = Registry("answer")


class NewWal(NamedTuple):
    """A WAL instance that the registering incarnation created; `kind` is `volume` or `objects`."""

    wal_id: bytes
    kind: str


class NewTopic(NamedTuple):
    """A topic to create. -1 partitions: the default. Either counts, or `assignments`: per partition the node ids,
    leader first.
    """

    name: str
    partitions: int = -1
    replication_factor: int = -1
    configs: tuple[tuple[str, str | None], ...] = ()
    assignments: tuple[tuple[int, tuple[int, ...]], ...] = ()


class MorePartitions(NamedTuple):
    """Grow a topic to `total` partitions in all; `assignments` names the nodes of each new one, if not None."""

    name: str
    total: int
    assignments: tuple[tuple[int, ...], ...] | None = None


class TopicRef(NamedTuple):
    """A topic by name, or by id when the name is None."""

    name: str | None
    topic_id: bytes = bytes(16)


class ConfigChange(NamedTuple):
    """`operation` is Kafka's: 0 set, 1 delete, 2 append, 3 subtract."""

    key: str
    operation: int
    value: str | None


class ConfigAlteration(NamedTuple):
    """Changes of one resource; `replace` (AlterConfigs) first removes every override that is not set here."""

    resource_type: int
    resource_name: str
    replace: bool
    changes: tuple[ConfigChange, ...]


class NewJob(NamedTuple):
    """A merge job for a live incarnation; `kind` and `parts` as in the fact `MergeJobOpened`."""

    incarnation: int
    kind: str
    parts: tuple[MergePart, ...]


class TopicResult(NamedTuple):
    """What became of one topic; `error_code` 0 is success. Counts are -1 and the id zero if refused."""

    name: str | None
    error_code: int
    error_message: str | None
    topic_id: bytes = bytes(16)
    partitions: int = -1
    replication_factor: int = -1


class ConfigResult(NamedTuple):
    """What became of one resource."""

    resource_type: int
    resource_name: str
    error_code: int
    error_message: str | None


class ReplayLog(NamedTuple):
    """A log to replay: only batches of `epoch`, from `end` (its committed end) on, at most up to `scanned_end`."""

    log_id: int
    epoch: int
    end: int
    scanned_end: int


class LostLog(NamedTuple):
    """A log that continues at `to_offset`; acknowledged records from `from_offset` on may be lost."""

    log_id: int
    topic: str
    partition: int
    from_offset: int
    to_offset: int


class MoveRefusal(NamedTuple):
    """A log that is not to move, and why."""

    log_id: int
    error_code: int
    error_message: str


@dataclass(frozen=True, slots=True)
class RegisterBroker:
    """A process announces itself, its new WAL instances and the older instances that it holds `locked`.

    Answer `Registered`. Ends at once the sessions of locked instances of the same `boot_id`, names the caller
    recoverer of every locked instance that nobody else is recovering, and gives leaderless logs a leader. Errors:
    DUPLICATE_BROKER_REGISTRATION (the node id has another live session; try again when it ended), STALE_BROKER_EPOCH
    (this incarnation's session was ended), UNSUPPORTED_VERSION (`format_level`, the highest that the process
    understands, is below the cluster's), INVALID_REGISTRATION.
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
class CreateTopics:
    """Answer `TopicResults`, in the order asked."""

    command_id: bytes
    topics: tuple[NewTopic, ...]
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class CreateInternalTopic:
    """A coordinator's topic, created compacted on first need. Answer `TopicResults`: success also if it is there."""

    command_id: bytes
    name: str
    partitions: int
    replication_factor: int = -1
    configs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class CreatePartitions:
    """Answer `TopicResults`, in the order asked; `partitions` is the new count."""

    command_id: bytes
    topics: tuple[MorePartitions, ...]
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class DeleteTopics:
    """Answer `TopicResults`, in the order asked."""

    command_id: bytes
    topics: tuple[TopicRef, ...]


@dataclass(frozen=True, slots=True)
class AlterConfigs:
    """AlterConfigs (`replace`) and IncrementalAlterConfigs. Answer `ConfigResults`, in the order asked."""

    command_id: bytes
    resources: tuple[ConfigAlteration, ...]
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class AdvanceLogStart:
    """DeleteRecords and retention. Answer `LogStarts`: the start of each log afterwards.

    A start at or below the present one changes nothing. OFFSET_OUT_OF_RANGE if one lies above the committed end (seal
    first), UNKNOWN_TOPIC_OR_PARTITION if a log is gone; then nothing of the command happens.
    """

    command_id: bytes
    starts: tuple[LogStart, ...]


@dataclass(frozen=True, slots=True)
class SweepLogStarts:
    """The controller's own retention: as `AdvanceLogStart`, but what no longer fits is left out. Answer `Done`."""

    command_id: bytes
    starts: tuple[LogStart, ...]


@dataclass(frozen=True, slots=True)
class AllocateProducerIds:
    """A block of 1,000 producer ids for a live incarnation. Answer `ProducerIdBlock`."""

    command_id: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class ForgetObjects:
    """The controller's own: these doomed objects are gone from the bucket. Answer `Done`."""

    command_id: bytes
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeNames:
    """The controller's own: every old leader of these deleted topics knows. Answer `Done`."""

    command_id: bytes
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestMoves:
    """These nodes are to lead these logs; node -1: whichever other one is best. Answer `MovesAnswer`, at once: the
    moves are done when facts name the new leaders.

    `explicit`: an operator chose the nodes, they become the preferred leaders. Refused per log:
    UNKNOWN_TOPIC_OR_PARTITION, INVALID_REPLICA_ASSIGNMENT (the node has no live session, is drained, or has no WAL of
    the topic's kind), LEADER_NOT_AVAILABLE (-1, and the log has no leader). A node that leads the log already has no
    more to do: an earlier wish is withdrawn. POLICY_VIOLATION for more than 10,000 logs.
    """

    command_id: bytes
    moves: tuple[MoveTarget, ...]
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class CancelMoves:
    """These logs stay. Answer `MovesAnswer`: NO_REASSIGNMENT_IN_PROGRESS for those that nobody wants to move."""

    command_id: bytes
    log_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DrainBroker:
    """The node gets no new logs, and those that it leads are to move to others; `undo` takes it back, and the moves.

    Answer `DrainAnswer`. Asking again gives targets to logs that had none. BROKER_ID_NOT_REGISTERED if nobody ever
    registered under the node id.
    """

    command_id: bytes
    node_id: int
    undo: bool = False


@dataclass(frozen=True, slots=True)
class LeaveCluster:
    """The incarnation is about to stop cleanly: what it leads is to move to others. Answer `DrainAnswer`; ask again for
    what is left.
    """

    command_id: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class RaiseFormatLevel:
    """Answer `Done`. UNSUPPORTED_VERSION if a registered broker does not understand `level`."""

    command_id: bytes
    level: int


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """The controller's own: these jobs are to be done. Parts that do not fit the state are left out. Answer `Done`."""

    command_id: bytes
    jobs: tuple[NewJob, ...]


@dataclass(frozen=True, slots=True)
class ReplaceRanges:
    """A merge job is done: every output is stored. Answer `JobAnswer`.

    An output counts if its inputs are all still named, next to each other and the same, and it covers exactly their
    offsets, bytes and batches. INVALID_REQUEST: the job is not open, or not the asker's.
    """

    command_id: bytes
    incarnation: int
    job: int
    outputs: tuple[Merged, ...]


@dataclass(frozen=True, slots=True)
class WriteManifests:
    """A job of kind `manifest` is done: every manifest is stored. Answer and errors as `ReplaceRanges`."""

    command_id: bytes
    incarnation: int
    job: int
    manifests: tuple[NewManifest, ...]


@dataclass(frozen=True, slots=True)
class CloseJob:
    """The incarnation gives its job up. Answer `Done`, also if it was closed before."""

    command_id: bytes
    incarnation: int
    job: int


@dataclass(frozen=True, slots=True)
class DropManifestRows:
    """The controller's own: `found` is the manifest of the log as it is, `left` what remains of it (None: nothing).

    Answer `Done`. The dropped rows hold `objects`; they lie below the log's start, or the log is gone. Nothing happens
    if the manifest has changed.
    """

    command_id: bytes
    log_id: int
    found: ManifestPointer
    left: ManifestPointer | None
    objects: tuple[UnnamedObject, ...]


@dataclass(frozen=True, slots=True)
class ForgetJobs:
    """The controller's own: the bucket was searched for what these closed jobs left. Answer `Done`."""

    command_id: bytes
    jobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """It is a fact."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The instances that the caller must now recover, with their recovery numbers."""

    recoveries: tuple[Recovery, ...]


@dataclass(frozen=True, slots=True)
class ScanAnswer:
    """What to replay. Logs that were led through the instance and are not here opened, or never will."""

    logs: tuple[ReplayLog, ...]


@dataclass(frozen=True, slots=True)
class LossReport:
    """What was given up: groups above `recovered_group` up to `validated_group` had been acknowledged for certain."""

    wal_id: bytes
    node_id: int
    incarnation: int
    now_ms: int
    validated_group: int
    recovered_group: int
    logs: tuple[LostLog, ...]


@dataclass(frozen=True, slots=True)
class TopicResults:
    """One result per topic, in the order asked."""

    results: tuple[TopicResult, ...]


@dataclass(frozen=True, slots=True)
class ConfigResults:
    """One result per resource, in the order asked."""

    results: tuple[ConfigResult, ...]


@dataclass(frozen=True, slots=True)
class LogStarts:
    """The start offset of each log asked for, afterwards."""

    starts: tuple[LogStart, ...]


@dataclass(frozen=True, slots=True)
class ProducerIdBlock:
    """Producer ids `first` to `first + count - 1` belong to the asker."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class MovesAnswer:
    """`accepted` wishes stand or were fulfilled before; the others are listed."""

    accepted: int
    refused: tuple[MoveRefusal, ...] = ()


@dataclass(frozen=True, slots=True)
class DrainAnswer:
    """Of the logs that the node leads so many are to move, and for so many nobody alive can be their leader."""

    moving: int
    without_target: int


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """What became of a job: outputs of the `refused` logs will never be named."""

    refused: tuple[int, ...]


COMMAND_TAGS: dict[int, type] = {
    1: RegisterBroker,
    2: RegisterWal,
    3: EndSession,
    4: EndSilentSessions,
    5: NameRecoverer,
    6: ReportScan,
    7: RetireWal,
    8: CleanStop,
    9: DeclareLost,
    10: CommitSeal,
    20: CreateTopics,
    21: CreateInternalTopic,
    22: CreatePartitions,
    23: DeleteTopics,
    24: AlterConfigs,
    30: AdvanceLogStart,
    31: SweepLogStarts,
    32: AllocateProducerIds,
    33: ForgetObjects,
    34: FreeNames,
    35: RaiseFormatLevel,
    40: RequestMoves,
    41: CancelMoves,
    42: DrainBroker,
    43: CommitAndMove,
    44: LeaveCluster,
    50: OpenJobs,
    51: ReplaceRanges,
    52: WriteManifests,
    53: CloseJob,
    54: DropManifestRows,
    55: ForgetJobs,
    60: RecoverInstances,
}

ANSWER_TAGS: dict[int, type] = {
    1: Done,
    2: Registered,
    3: Recovery,
    4: ScanAnswer,
    5: LossReport,
    6: TopicResults,
    7: ConfigResults,
    8: LogStarts,
    9: ProducerIdBlock,
    10: CommitAnswer,
    20: MovesAnswer,
    21: DrainAnswer,
    30: JobAnswer,
}

for _tag, _cls in COMMAND_TAGS.items():
    _commands.register(_tag, _cls)
for _tag, _cls in ANSWER_TAGS.items():
    _answers.register(_tag, _cls)


def encode_command(command: object) -> list[Any]:
    """`[tag, fields...]` for msgpack."""
    return _commands.encode(command)


def decode_command(payload: Any) -> Any:
    """The command of a payload that msgpack gave as tuples. `codec.UnknownTag`, `codec.Malformed`."""
    return _commands.decode(payload)


def encode_answer(answer: object) -> list[Any]:
    """`[tag, fields...]` for msgpack."""
    return _answers.encode(answer)


def decode_answer(payload: Any) -> Any:
    """The answer of a payload that msgpack gave as tuples. `codec.UnknownTag`, `codec.Malformed`."""
    return _answers.decode(payload)
