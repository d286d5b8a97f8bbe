"""Topics and their configs, where logs start, producer ids, names and objects of what is deleted."""

from dataclasses import dataclass
from typing import NamedTuple

from controller.facts import LogStart


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
