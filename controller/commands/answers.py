"""Answers to commands. `Recovery` and `CommitAnswer` (`storage.seal`) are answers too."""

from dataclasses import dataclass
from typing import NamedTuple

from controller.facts import LogStart
from storage.seal import Recovery


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
