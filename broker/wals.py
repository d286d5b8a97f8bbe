"""The WAL instances of this process, one per kind: made, fenced, told of, given back.

The instance of kind `objects` costs nothing until a log is led through it, so every broker has one; that of kind
`volume` needs a directory, and no disk is touched where no setting asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from broker.bucket import CannotStart
from broker.validation import FileFence, SessionFence, Validation
from controller.commands import NewWal
from storage.wal.objects import ObjectWal, ObjectWalSettings
from storage.wal.port import Wal, WalError
from storage.wal.volume import VolumeWal

if TYPE_CHECKING:
    from broker.settings import Settings
    from controller.client import Session
    from storage.clock import Clock
    from storage.object_store import ObjectStore
    from storage.tasks import TaskOwner
    from storage.wal.disk import Disk
    from storage.wal.worker import StartWorker

log = logging.getLogger(__name__)


class OwnWal(NamedTuple):
    """One instance and what is in flight through it."""

    wal: Wal
    validation: Validation


class OwnWals:
    """All of them. `on_failed(message)`: the process has to end. `on_room`: an instance has space again."""

    def __init__(
        self,
        settings: Settings,
        *,
        token: Callable[[int], bytes],
        on_failed: Callable[[str], None],
        on_room: Callable[[], None],
    ) -> None:
        self.volume: VolumeWal | None = None
        self.objects: ObjectWal | None = None
        self.all: list[OwnWal] = []
        self._settings = settings
        self._token = token
        self._on_failed = on_failed
        self._on_room = on_room

    def __iter__(self) -> Iterator[OwnWal]:
        return iter(self.all)

    async def create_volume(
        self, cluster_id: str, *, disk: Disk, start_worker: StartWorker, fence_kind: str | None
    ) -> None:
        """A new instance directory; its first file is prepared beside what follows. CannotStart."""
        settings, validation = self._settings, Validation()
        try:
            wal = await VolumeWal.create(
                settings.wal_dir,
                cluster_id=cluster_id,
                node_id=settings.node_id,
                wal_id=self._token(16),
                on_durable=validation.on_durable,
                on_failed=lambda error: self._on_failed(f"the WAL cannot be written: {error}"),
                on_room=self._on_room,
                bytes_max=settings.tidelog_wal_bytes_max,
                message_bytes_max=settings.message_max_bytes,
                file_bytes=settings.tidelog_wal_file_bytes,
                wait=False,
                fence_kind=fence_kind,
                disk=disk,
                start_worker=start_worker,
            )
        except (WalError, OSError) as error:
            raise CannotStart(f"tidelog.wal.dir {settings.wal_dir}: {error}") from None
        self.volume = wal
        self.all.append(OwnWal(wal, validation))
        for warning in wal.warnings:
            log.warning("%s", warning)

    def create_objects(self, store: ObjectStore, tasks: TaskOwner) -> None:
        """An instance in the bucket; nothing is stored before its first append."""
        settings, validation = self._settings, Validation()
        self.objects = ObjectWal(
            store,
            tasks,
            wal_id=self._token(16),
            token=self._token,
            on_durable=validation.on_durable,
            on_failed=lambda error: self._on_failed(f"the WAL in the bucket cannot be written: {error}"),
            on_room=self._on_room,
            message_bytes_max=settings.message_max_bytes,
            settings=ObjectWalSettings(
                interval_ms=settings.tidelog_wal_objects_interval_ms,
                busy_interval_ms=settings.tidelog_wal_objects_busy_interval_ms,
                busy_bytes=settings.tidelog_wal_objects_busy_bytes,
                group_bytes=settings.tidelog_wal_objects_group_bytes,
                in_flight_max=settings.tidelog_wal_objects_in_flight_max,
                bytes_max=settings.tidelog_wal_objects_bytes_max,
            ),
        )
        self.all.append(OwnWal(self.objects, validation))

    def attach_fences(self, session: Session, clock: Clock, reachable: Callable[[], bool]) -> None:
        """What acknowledging through each needs (DESIGN 4.3). `reachable`: the metadata log answers."""
        for wal, validation in self.all:
            if isinstance(wal, VolumeWal) and wal.fence_kind == "file":
                validation.attach(FileFence(wal, session, clock, reachable))
            elif isinstance(wal, VolumeWal | ObjectWal):
                validation.attach(SessionFence(wal, session, clock))

    @property
    def validated(self) -> dict[bytes, int]:
        """The last validated group of each: what heartbeats tell."""
        return {wal.wal_id: validation.validated_group for wal, validation in self.all}

    @property
    def registered(self) -> tuple[NewWal, ...]:
        """What a registration says of them."""
        return tuple(NewWal(wal.wal_id, wal.kind) for wal, _ in self.all)

    @property
    def locked_ids(self) -> tuple[bytes, ...]:
        """Those whose lock proves that this process lives."""
        return () if self.volume is None else (self.volume.wal_id,)

    def recheck(self) -> None:
        """The right to acknowledge may have come back."""
        for _, validation in self.all:
            validation.recheck()

    async def remove(self) -> None:
        """They are retired: their files and objects go."""
        if self.objects is not None:
            await self.objects.remove()
        if self.volume is not None:
            try:
                await self.volume.remove()
            except OSError as error:
                log.warning("%s is not needed any more and cannot be deleted: %s", self.volume.path, error)

    async def release(self, *, known: bool) -> None:
        """The process ends; files stay, unless nobody ever heard of them (`known` False)."""
        if self.objects is not None:
            self.objects.stop()
        if self.volume is not None and known:
            await self.volume.close()
        elif self.volume is not None:
            await self.volume.remove()
