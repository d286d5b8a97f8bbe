"""The write-ahead log port: what every WAL kind offers to the broker, and the errors it speaks in.

A WAL makes opaque record batches durable. It knows logs by their number and nothing of topics, connections
or high watermarks. Every append gets the next *sequence*; what one write and sync makes durable together is a
*group*; groups of an instance are numbered from 1. One instance belongs to one incarnation of one broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol import Buffer


class OnDurable(Protocol):
    """Called on the event loop: every append up to `sequence` is durable, the last of them in `group`.

    Calls coalesce: one call may stand for many groups. Numbers only grow.
    """

    def __call__(self, sequence: int, group: int) -> None: ...


OnFailed: TypeAlias = "Callable[[BaseException], None]"
OnRoom: TypeAlias = "Callable[[], None]"


class Wal(Protocol):
    """One open WAL instance. All methods are for the event loop's thread."""

    wal_id: bytes
    kind: str
    fenced: bool
    appended: int
    batch_bytes_max: int

    def append(self, log_id: int, leader_epoch: int, base_offset: int, batch: Buffer) -> int:
        """Queue one batch and return its sequence (from 1). Never blocks, never fails for lack of space.

        The caller asked `has_room` first. The batch's own base offset, length and leader epoch are already
        patched to the arguments, and it stays unchanged until its sequence was reported durable.
        """

    def has_room(self, n_bytes: int, *, internal: bool, batches: int = 1) -> bool:
        """Whether `batches` batches of `n_bytes` bytes in all can be appended now.

        Counts group headers and the waste at the ends of files. The last 5 % are for `internal` logs.
        After a False, `on_room` is called once the smallest refused request would fit.
        """

    def group_below(self, sequence: int) -> int:
        """The highest group all of whose sequences are durable and lower than `sequence`; 0 when there is none."""

    def trim(self, through_group: int) -> None:
        """Give back the space of groups up to `through_group`: committed by applied facts, or refused for good."""

    async def close(self) -> None:
        """Write what is queued, stop, and release the instance. Its files stay."""


class WalError(Exception):
    """The WAL refuses. The message says what is wrong and what to do."""


class Fenced(WalError):
    """Somebody else recovers this instance: nothing more is reported durable."""


class InstanceLocked(WalError):
    """Another process has the instance open."""


class ForeignCluster(WalError):
    """The instance belongs to another cluster."""


class UnknownFormat(WalError):
    """Written by a version of tidelog that this one does not know."""


class Damaged(WalError):
    """Bytes that were acknowledged are not what was written."""


class MountRefused(WalError):
    """The file system cannot keep a WAL safe."""
