"""Commands: everything a broker or a tool may ask the controller for, and the answers; a module per area.

Every command carries a `command_id` of 16 random bytes: asking again with the same id gets the first answer, whoever
is controller by then. `CommitSeal` (`storage.seal`) is a command too; it is idempotent by its seal number instead.
Refusals are `KafkaError`; commands over several resources answer with one result per resource instead. Tags are the
wire form for remote controllers, answers are also stored in entries: never reuse a tag.
"""

from typing import Any

from controller.codec import Registry
from controller.commands.administration import (
    AlterQuotas,
    AlterScram,
    CreateAcls,
    DeleteAcls,
    FeatureUpdate,
    QuotaAlteration,
    Result,
    Results,
    ScramAlteration,
    UnregisterBroker,
    UpdateFeatures,
)
from controller.commands.answers import (
    ConfigResult,
    ConfigResults,
    Done,
    DrainAnswer,
    JobAnswer,
    LogStarts,
    LossReport,
    LostLog,
    MoveRefusal,
    MovesAnswer,
    ProducerIdBlock,
    Registered,
    ReplayLog,
    ScanAnswer,
    TopicResult,
    TopicResults,
)
from controller.commands.brokers import (
    CleanStop,
    DeclareLost,
    EndSession,
    EndSilentSessions,
    ForgetClosed,
    ForgetLosses,
    NameRecoverer,
    NewWal,
    RaiseFormatLevel,
    RecoverInstances,
    RegisterBroker,
    RegisterWal,
    ReportScan,
    RetireAbandoned,
    RetireWal,
)
from controller.commands.compaction import (
    CloseCompaction,
    CompactRanges,
    NewCompaction,
    OpenCompactions,
    UnpackManifest,
)
from controller.commands.merging import (
    CloseJob,
    DropManifestRows,
    ForgetJobs,
    NewJob,
    OpenJobs,
    ReplaceRanges,
    WriteManifests,
)
from controller.commands.moves import (
    CancelMoves,
    DrainBroker,
    LeaveCluster,
    RequestMoves,
)
from controller.commands.topics import (
    AdvanceLogStart,
    AllocateProducerIds,
    AlterConfigs,
    ConfigAlteration,
    ConfigChange,
    CreateInternalTopic,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    ForgetObjects,
    FreeNames,
    MorePartitions,
    NewTopic,
    SweepLogStarts,
    TopicRef,
)
from storage.seal import CommitAndMove, CommitAnswer, CommitSeal, Recovery

__all__ = [
    "ANSWER_TAGS",
    "COMMAND_TAGS",
    "AdvanceLogStart",
    "AllocateProducerIds",
    "AlterConfigs",
    "AlterQuotas",
    "AlterScram",
    "CancelMoves",
    "CleanStop",
    "CloseCompaction",
    "CloseJob",
    "CompactRanges",
    "ConfigAlteration",
    "ConfigChange",
    "ConfigResult",
    "ConfigResults",
    "CreateAcls",
    "CreateInternalTopic",
    "CreatePartitions",
    "CreateTopics",
    "DeclareLost",
    "DeleteAcls",
    "DeleteTopics",
    "Done",
    "DrainAnswer",
    "DrainBroker",
    "DropManifestRows",
    "EndSession",
    "EndSilentSessions",
    "FeatureUpdate",
    "ForgetClosed",
    "ForgetJobs",
    "ForgetLosses",
    "ForgetObjects",
    "FreeNames",
    "JobAnswer",
    "LeaveCluster",
    "LogStarts",
    "LossReport",
    "LostLog",
    "MorePartitions",
    "MoveRefusal",
    "MovesAnswer",
    "NameRecoverer",
    "NewCompaction",
    "NewJob",
    "NewTopic",
    "NewWal",
    "OpenCompactions",
    "OpenJobs",
    "ProducerIdBlock",
    "QuotaAlteration",
    "RaiseFormatLevel",
    "RecoverInstances",
    "RegisterBroker",
    "RegisterWal",
    "Registered",
    "ReplaceRanges",
    "ReplayLog",
    "ReportScan",
    "RequestMoves",
    "Result",
    "Results",
    "RetireAbandoned",
    "RetireWal",
    "ScanAnswer",
    "ScramAlteration",
    "SweepLogStarts",
    "TopicRef",
    "TopicResult",
    "TopicResults",
    "UnpackManifest",
    "UnregisterBroker",
    "UpdateFeatures",
    "WriteManifests",
    "decode_answer",
    "decode_command",
    "encode_answer",
    "encode_command",
]

_commands = Registry("command")
_answers = Registry("answer")

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
    80: UpdateFeatures,
    81: AlterQuotas,
    82: AlterScram,
    83: CreateAcls,
    84: DeleteAcls,
    85: UnregisterBroker,
    120: ForgetClosed,
    100: OpenCompactions,
    101: CompactRanges,
    102: CloseCompaction,
    103: UnpackManifest,
    180: RetireAbandoned,
    181: ForgetLosses,
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
    50: Results,
}

FIRST_FIELDS: dict[type, int] = {RegisterBroker: 9}
"""How many fields a command had at first, if it has grown since: a later one is said only in a cluster whose format
level tells that every controller reads it."""

for _tag, _cls in COMMAND_TAGS.items():
    _commands.register(_tag, _cls, FIRST_FIELDS.get(_cls))
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
