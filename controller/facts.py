"""Facts: everything that can become true of a cluster, one frozen dataclass each.

A fact is a payload `[tag, field, ...]` inside an entry of the metadata log. Tags are on disk for ever: never reuse
one. A class may grow at its end by fields with defaults (`FIRST_FIELDS`). A reader that meets an unknown tag or a
longer payload stops (`UnknownFact`): it must not guess what became true. So nothing that needs a higher format level
than the cluster has is written (`level_of`); `FormatLevel` raises it, once every broker understands that level.

Times are wall milliseconds and are for people only; no fact's meaning depends on a clock. `log_id` and object numbers
are u32, incarnations u64, uuids 16 raw bytes. Tags 40 to 49 are for merging and manifests, 50 to 54 for the `objects`
WAL, 60 to 69 for moves and drains, 70 to 79 for features, quotas, users and access lists, 80 to 84 for compaction.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from controller.admin_facts import Acl as Acl
from controller.admin_facts import AclsCreated as AclsCreated
from controller.admin_facts import AclsDeleted as AclsDeleted
from controller.admin_facts import BrokerUnregistered as BrokerUnregistered
from controller.admin_facts import FeaturesFinalized as FeaturesFinalized
from controller.admin_facts import QuotasChanged as QuotasChanged
from controller.admin_facts import ScramCredentialRemoved as ScramCredentialRemoved
from controller.admin_facts import ScramCredentialSet as ScramCredentialSet
from controller.codec import Registry, UnknownTag
from controller.merge_facts import CompactionClosed as CompactionClosed
from controller.merge_facts import CompactionOpened as CompactionOpened
from controller.merge_facts import JobClosed as JobClosed
from controller.merge_facts import JobsForgotten as JobsForgotten
from controller.merge_facts import ManifestRowsDropped as ManifestRowsDropped
from controller.merge_facts import ManifestsWritten as ManifestsWritten
from controller.merge_facts import ManifestUnpacked as ManifestUnpacked
from controller.merge_facts import Merged as Merged
from controller.merge_facts import MergeJobOpened as MergeJobOpened
from controller.merge_facts import MergePart as MergePart
from controller.merge_facts import NewManifest as NewManifest
from controller.merge_facts import RangesCompacted as RangesCompacted
from controller.merge_facts import RangesReplaced as RangesReplaced
from controller.merge_facts import UnnamedObject as UnnamedObject
from controller.merge_facts import UnpackedRange as UnpackedRange
from storage.seal import CommittedThrough, Recovery, SegmentObject

FORMAT_LEVEL = 3
"""The highest format level that this version writes and understands."""

FIRST_TAG = {1: 1, 2: 40, 3: 70}
"""The lowest tag of the facts that came with a format level."""

LOSS_GAP = 2**32
"""How far a log jumps ahead at a declared loss, so that no offset is ever used twice."""

NO_NODE = -1
NO_UUID = bytes(16)

_facts = Registry("fact")


class UnknownFact(ValueError):
    """A fact of a newer version. A follower stops here; nothing may be skipped."""


class Listener(NamedTuple):
    """Where a broker is reached under one listener name; `security_protocol` is Kafka's name (`PLAINTEXT`)."""

    name: str
    security_protocol: str
    host: str
    port: int


class WalGroup(NamedTuple):
    """The highest validated group number that an instance reported."""

    wal_id: bytes
    group: int


class ScannedLog(NamedTuple):
    """What a WAL holds of a log in the epoch under recovery: offsets from `base` up to `end`, exclusive."""

    log_id: int
    base: int
    end: int


class LogStart(NamedTuple):
    """A log and its new first offset."""

    log_id: int
    start: int


class MoveTarget(NamedTuple):
    """A log and the node that is to lead it."""

    log_id: int
    node_id: int


@dataclass(frozen=True, slots=True)
class FormatLevel:
    """From here on, facts up to `level` may be written. Raised only when every registered broker supports it."""

    level: int


@dataclass(frozen=True, slots=True)
class ControllerElected:
    """`incarnation` of `node_id` decides from here on.

    `wal_ids` are the WAL instances that its process holds locked: whoever gets one of these locks knows that the
    process is gone and may take over at once.
    """

    epoch: int
    node_id: int
    incarnation: int
    wal_ids: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ControllerResigned:
    """The controller of this epoch stopped: nobody needs to wait for its lease."""

    epoch: int


@dataclass(frozen=True, slots=True)
class LeaseExtended:
    """The controller is alive; `validated` are the group numbers that changed since the last such fact."""

    validated: tuple[WalGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokerRegistered:
    """A new incarnation of a node. `format_level` is the highest it understands; `now_ms` is wall time."""

    node_id: int
    incarnation: int
    boot_id: str
    rack: str | None
    listeners: tuple[Listener, ...]
    format_level: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class WalRegistered:
    """A WAL instance exists; before this fact it holds no group. `kind` is `volume` or `objects`."""

    wal_id: bytes
    node_id: int
    incarnation: int
    kind: str


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The incarnation leads nothing any more: its logs are recovering, its instances ended. It never comes back.

    `reason`: `clean`, `silence`, `restart`, `fenced`, `lost`. `last_heard_ms`: wall time of the last sign of life
    that the controller knows of.
    """

    incarnation: int
    reason: str
    last_heard_ms: int


@dataclass(frozen=True, slots=True)
class RecoveryNamed:
    """`incarnation` recovers the instance; only its commits with this `number` count. Numbers grow by one."""

    wal_id: bytes
    node_id: int
    incarnation: int
    number: int


@dataclass(frozen=True, slots=True)
class WalScanned:
    """What the recoverer found. Of the logs led through the instance those not listed hold nothing in it."""

    wal_id: bytes
    number: int
    logs: tuple[ScannedLog, ...]
    last_group: int
    complete: bool = True


@dataclass(frozen=True, slots=True)
class WalRetired:
    """Everything in the instance is committed or void; only now may its files go."""

    wal_id: bytes


@dataclass(frozen=True, slots=True)
class WalLost:
    """An operator gave the instance up: groups up to `validated_group` may have been acknowledged, those up to
    `recovered_group` are committed. `now_ms` is the wall time of the decision."""

    wal_id: bytes
    validated_group: int
    recovered_group: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class LossDeclared:
    """The log has a hole from `from_offset` up to `to_offset`, exclusive, and goes on behind it."""

    log_id: int
    from_offset: int
    to_offset: int


@dataclass(frozen=True, slots=True)
class TopicCreated:
    """A topic with one log per partition, in partition order. `replication_factor` is what was asked for, stored
    only.
    """

    name: str
    topic_id: bytes
    internal: bool
    log_ids: tuple[int, ...]
    configs: tuple[tuple[str, str], ...]
    replication_factor: int = 1


@dataclass(frozen=True, slots=True)
class PartitionsAdded:
    """More partitions at the end of a topic."""

    topic_id: bytes
    log_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TopicDeleted:
    """The topic and its logs are gone; its name stays taken until every old leader knows."""

    topic_id: bytes


@dataclass(frozen=True, slots=True)
class NamesFreed:
    """Names of deleted topics that may be used again."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigsChanged:
    """Config values of one resource; None removes the override. `resource_type` is Kafka's (2 topic, 4 broker)."""

    resource_type: int
    resource_name: str
    changes: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class LeaderNamed:
    """`incarnation` leads the log in `epoch`, through exactly this WAL instance, from the log's end on."""

    log_id: int
    node_id: int
    incarnation: int
    epoch: int
    wal_id: bytes


@dataclass(frozen=True, slots=True)
class SealCommitted:
    """A seal of `incarnation`: the accepted ranges are part of their logs now, those of `refused` logs never will be.

    `objects` are all that the seal uploaded, each with its accepted ranges only; one without any is deletable at
    once. `recovery` is None for a seal of the leader.
    """

    incarnation: int
    seal: int
    objects: tuple[SegmentObject, ...]
    committed_through: tuple[CommittedThrough, ...] = ()
    refused: tuple[int, ...] = ()
    recovery: Recovery | None = None


@dataclass(frozen=True, slots=True)
class LogStartAdvanced:
    """Retention or DeleteRecords: offsets below the starts are gone, ranges wholly below them are un-named."""

    starts: tuple[LogStart, ...]


@dataclass(frozen=True, slots=True)
class ObjectsDeleted:
    """Doomed objects that are no longer in the bucket."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProducerIdsAllocated:
    """The block of `count` producer ids from `first` on was handed out."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class MovesRequested:
    """These logs are to be led by these nodes; their leaders see to it. A later wish replaces an earlier one.

    A target that leads the log already is to lead it through an instance of its topic's WAL kind. `explicit`: an
    operator chose the node, which becomes the preferred leader once it leads.
    """

    moves: tuple[MoveTarget, ...]
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class MovesCancelled:
    """Nobody wants these logs to move any more. What is under way may still be refused."""

    log_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeDrained:
    """The node gets no new logs, whatever its incarnation, and wanted moves to it are void; `undone`: it does again."""

    node_id: int
    undone: bool = False


@dataclass(frozen=True, slots=True)
class LeadersPreferred:
    """An operator chose these nodes for logs that they lead already."""

    logs: tuple[MoveTarget, ...]


@dataclass(frozen=True, slots=True)
class BrokerLeaving:
    """The incarnation is about to stop: it gets no new logs, and wanted moves to it are void."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class ClosedForgotten:
    """Closed incarnations and all their WAL instances are not remembered any more.

    The last of them was registered at entry `position` or before: a registration that was made at an earlier one is
    refused from now on, because it may be theirs.
    """

    incarnations: tuple[int, ...]
    position: int


@dataclass(frozen=True, slots=True)
class LossesForgotten:
    """Losses that no log needs any more, by WAL instance: their reports lie in the bucket."""

    wal_ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StateReloaded:
    """Never written: tells listeners that the state was replaced as a whole by a snapshot. Look at everything again."""


Fact = (
    FormatLevel
    | ControllerElected
    | ControllerResigned
    | LeaseExtended
    | BrokerRegistered
    | WalRegistered
    | SessionEnded
    | RecoveryNamed
    | WalScanned
    | WalRetired
    | WalLost
    | LossDeclared
    | TopicCreated
    | PartitionsAdded
    | TopicDeleted
    | NamesFreed
    | ConfigsChanged
    | LeaderNamed
    | SealCommitted
    | LogStartAdvanced
    | ObjectsDeleted
    | ProducerIdsAllocated
    | MergeJobOpened
    | RangesReplaced
    | ManifestsWritten
    | JobClosed
    | ManifestRowsDropped
    | JobsForgotten
    | MovesRequested
    | MovesCancelled
    | NodeDrained
    | LeadersPreferred
    | BrokerLeaving
    | FeaturesFinalized
    | QuotasChanged
    | ScramCredentialSet
    | ScramCredentialRemoved
    | AclsCreated
    | AclsDeleted
    | BrokerUnregistered
    | ClosedForgotten
    | LossesForgotten
    | CompactionOpened
    | RangesCompacted
    | CompactionClosed
    | ManifestUnpacked
    | StateReloaded
)

TAGS: dict[int, type] = {
    1: FormatLevel,
    2: ControllerElected,
    3: ControllerResigned,
    4: LeaseExtended,
    5: BrokerRegistered,
    6: WalRegistered,
    7: SessionEnded,
    8: RecoveryNamed,
    9: WalScanned,
    10: WalRetired,
    11: WalLost,
    12: LossDeclared,
    20: TopicCreated,
    21: PartitionsAdded,
    22: TopicDeleted,
    23: NamesFreed,
    24: ConfigsChanged,
    25: LeaderNamed,
    30: SealCommitted,
    31: LogStartAdvanced,
    32: ObjectsDeleted,
    33: ProducerIdsAllocated,
    40: MergeJobOpened,
    41: RangesReplaced,
    42: ManifestsWritten,
    43: JobClosed,
    44: ManifestRowsDropped,
    45: JobsForgotten,
    60: MovesRequested,
    61: MovesCancelled,
    62: NodeDrained,
    63: LeadersPreferred,
    64: BrokerLeaving,
    70: FeaturesFinalized,
    71: QuotasChanged,
    72: ScramCredentialSet,
    73: ScramCredentialRemoved,
    74: AclsCreated,
    75: AclsDeleted,
    76: BrokerUnregistered,
    90: ClosedForgotten,
    80: CompactionOpened,
    81: RangesCompacted,
    82: CompactionClosed,
    83: ManifestUnpacked,
    150: LossesForgotten,
}

FIRST_FIELDS: dict[type, int] = {}
"""How many fields a class had below level 3, if it has grown since."""

FIELDS_LEVEL = 3
"""What a later field says needs this level: none came with an earlier one."""

for _tag, _cls in TAGS.items():
    _facts.register(_tag, _cls, FIRST_FIELDS.get(_cls))


def level_of_tag(tag: int) -> int:
    """The format level that a fact with this tag came with."""
    return max(level for level, first in FIRST_TAG.items() if tag >= first)


def level_of(fact: Fact) -> int:
    """The format level that a reader needs to understand the fact."""
    level = level_of_tag(_facts.tag(fact))
    return max(level, FIELDS_LEVEL) if _facts.says_more(fact) else level


def encode_fact(fact: Fact) -> list[Any]:
    """`[tag, fields...]` for msgpack."""
    return _facts.encode(fact)


def decode_fact(payload: Any) -> Fact:
    """The fact of a payload that msgpack gave as tuples. `UnknownFact`, `codec.Malformed`."""
    try:
        fact: Fact = _facts.decode(payload)
    except UnknownTag as error:
        raise UnknownFact(f"{error}; upgrade this process before it joins the cluster") from None
    return fact
