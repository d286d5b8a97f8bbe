"""One host's disk in memory: it forgets what was not synced, fills up, fails, rots and comes back as an older copy.

`SimulatedDisk` is the hardware; `for_process` gives the `storage.wal.disk.Disk` that one process sees.
"""

from __future__ import annotations

import random  # noqa: TID251
from collections.abc import Callable
from typing import Protocol

SECTOR = 512


class Timeline(Protocol):
    """The part of a `Scheduler` that simulated hardware uses."""

    @property
    def now_ns(self) -> int: ...

    def call_at_ns(self, when_ns: int, callback: Callable[..., object], *args: object, owner: Owner | None) -> object:
        """Call at a virtual time; not before its owner goes on if it is paused then, never if it is dead."""


class Owner(Protocol):
    """The part of a `Process` that simulated hardware uses."""

    @property
    def name(self) -> str: ...

    @property
    def alive(self) -> bool: ...


class Dead(BaseException):
    """The process or its machine is gone: what raises it once raises it at every later call."""


class Image:
    """What a volume held at one moment, as a snapshot of the storage service would: un-synced sectors may miss."""


class SimulatedDisk:
    """The disk of one host, which survives its crashes.

    Knobs, to be turned at any time: `limit_bytes` (None: endless), `sync_error_chance`, `write_error_chance` per call,
    `slowness` (factor), `stalled_until_ns`, `gone` (every call fails with EIO).
    """

    def __init__(self, rng: random.Random | None = None, *, timeline: Timeline | None = None) -> None:
        self.limit_bytes: int | None = None
        self.sync_error_chance = 0.0
        self.write_error_chance = 0.0
        self.slowness = 1.0
        self.stalled_until_ns = 0
        self.gone = False
        raise NotImplementedError

    def for_process(self, process: Owner, *, boot_id: str) -> ProcessDisk:
        """The `Disk` that a process uses. Its locks fall when the process is no longer alive."""
        raise NotImplementedError

    def process_died(self, process: Owner) -> None:
        """To be called by `Process.kill` while the process is still alive: interrupts what its workers are at."""
        raise NotImplementedError

    def crash(self) -> None:
        """The host lost power; all its processes were killed before. Un-synced sectors and names may be gone."""
        raise NotImplementedError

    def snapshot(self) -> Image:
        """A copy of the volume, made by the storage service under a running host."""
        raise NotImplementedError

    def restore(self, image: Image | None) -> None:
        """The volume comes back as it was then; None: as an empty one. No process may have it open."""
        raise NotImplementedError

    def move(self, other: SimulatedDisk) -> None:
        """Attach this volume as the other's; this one is empty then. Both hosts are down."""
        raise NotImplementedError

    def flip_bit(self, suffix: str = ".wal") -> tuple[str, int] | None:
        """Rot: one bit of a durable byte of some file flips. (path, position), None: nothing there."""
        raise NotImplementedError


class ProcessDisk:
    """A `storage.wal.disk.Disk`. Every call of a dead process raises `Dead`."""

    def kill_after(self, operations: int, kill: Callable[[], None]) -> None:
        """Call `kill` in the middle of whatever the process does with its disk then, and raise `Dead` there."""
        raise NotImplementedError
