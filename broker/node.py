"""The composition root: builds one broker from its settings, starts it (DESIGN 7.9), stops it cleanly (7.4)."""

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from broker import process_metrics
from broker.background import Tasks
from broker.clock import SystemClock
from broker.cold import ColdReads
from broker.configs import TopicDefaults, TopicRules
from broker.dispatch import HANDLERS
from broker.fetch_sessions import FetchSessions
from broker.groups.coordinator import GroupCoordinators
from broker.groups.runtime import GroupLog
from broker.handlers.fetch import COLD_PARALLEL
from broker.handlers.init_producer_id import ProducerIds
from broker.http.server import HttpServer
from broker.log import Log, LogStatus
from broker.log_table import LogTable
from broker.metadata_cache import MetadataCache
from broker.metrics import Counters, Metrics
from broker.recovery import WalRecovery
from broker.sealing import Sealing
from broker.server import Server
from broker.services import Services
from broker.settings import Listener, Settings
from broker.validation import FileFence, SessionFence, Validation
from broker.wheel import Wheel
from controller import facts as f
from controller.client import LocalController, Session
from controller.cluster_file import ClusterFile, ClusterFileError, open_cluster
from controller.commands import CleanStop, NewWal, RegisterBroker
from controller.decide import Limits
from controller.election import Identity
from controller.entries import CorruptMetadata
from controller.object_log import ObjectLog
from controller.runtime import ControllerSettings, Runtime
from protocol.errors import RETRIABLE, ErrorCode, KafkaError
from storage.object_store import Denied, ObjectStore, OutcomeUnknown, StoreError, Unavailable, open_store
from storage.probe import probe
from storage.reader import Reader
from storage.seal import Recovery, Writer
from storage.uploader import Uploader
from storage.wal.instances import LockedInstance, lock_instances
from storage.wal.port import WalError
from storage.wal.volume import VolumeWal

log = logging.getLogger(__name__)

_T = TypeVar("_T")

DONE, FAILED = 0, 1
RETRY_S = 0.5
TELL_S = 3
INDEX_CACHE_SHARE = 8
READ_AHEAD_SHARE = 2


class CannotStart(Exception):
    """The broker cannot start with what it was given; the message says what to do."""


class Broker:
    """One run of one broker: one incarnation."""

    def __init__(self, settings: Settings, *, clock: SystemClock, token: Callable[[int], bytes]) -> None:
        self.settings = settings
        self.clock = clock
        self.token = token
        self.incarnation = int.from_bytes(token(8), "big") or 1
        self.wal_id = token(16)
        self.counters = Counters()
        self.metrics = Metrics()
        self.session = Session()
        self.validation = Validation()
        self.ready = False
        self.listeners: list[Listener] = []
        self.http_address: tuple[str, int] | None = None
        self.cluster_id = ""
        self._stopped = False
        self._fatal: asyncio.Future[str] | None = None

    async def run(self, stop: asyncio.Event, on_ready: Callable[["Broker"], None]) -> int:
        """Start, serve until `stop` is set, stop cleanly; the exit code. CannotStart, OSError while starting."""
        self._fatal = asyncio.get_running_loop().create_future()
        http = HttpServer(self.metrics, lambda: self.ready)
        await self._start_http(http)
        try:
            async with Tasks() as tasks:
                stopping = tasks.spawn(stop.wait(), name="wait for stop")
                starting = tasks.spawn(self._start(tasks, http), name="start")
                await asyncio.wait({stopping, starting, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    starting.result()
                    self.ready = True
                    on_ready(self)
                    await asyncio.wait({stopping, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
                self.ready = False
                if self._fatal.done():
                    log.critical("stopping: %s", self._fatal.result())
                    return FAILED
                return await self._stop() if starting.done() else FAILED
        finally:
            await http.stop()
            self._fatal.cancel()

    def fail(self, why: str) -> None:
        """The process must end at once, without a clean stop."""
        assert self._fatal is not None
        if not self._fatal.done():
            self._fatal.set_result(why)

    # Start

    async def _start_http(self, http: HttpServer) -> None:
        if self.settings.tidelog_http_listener:
            host, _, port = self.settings.tidelog_http_listener.rpartition(":")
            try:
                self.http_address = await http.start(host, int(port))
            except OSError as error:
                raise CannotStart(f"cannot listen on tidelog.http.listener {host}:{port}: {error.strerror}") from None

    async def _start(self, tasks: Tasks, http: HttpServer) -> None:
        self.store = self._open_store()
        cluster = await self._patiently(self._open_cluster)
        self.cluster_id = cluster.cluster_id
        locked = await asyncio.to_thread(self._lock_instances)
        await self._create_wal(may_begin_full=bool(locked))
        self.controller = self._make_controller(locked)
        tasks.spawn(self.controller.run(), name="controller")
        self._build(tasks)
        self.listeners = await self.server.bind(self.settings.bound_listeners)
        registered = await self._register(locked)
        http.controller, http.recovery = self.controller, self.recovery
        tasks.spawn(self._heartbeats(), name="heartbeats")
        tasks.spawn(self.sealing.run(), name="sealing")
        self.logs.open_all()
        await self.recovery.recover_all(locked, registered)
        self.wal.look_for_space()
        await self.logs.wait_opened()
        await self.server.serve()
        gc.collect()
        gc.freeze()
        # Rare collections: a full one walks every tail. What the hot path makes is freed by counting.
        gc.set_threshold(50_000, 20, 100)

    def _open_store(self) -> ObjectStore:
        try:
            return open_store(self.settings.storage_uri, token=self.token)
        except ValueError as error:
            raise CannotStart(f"tidelog.storage: {error}") from None

    async def _open_cluster(self) -> ClusterFile:
        await probe(self.store, self.token)
        return await open_cluster(self.store, self.token)

    async def _patiently(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat `work` while the store is away; say so once, soon: a store that hangs fails no call for a while."""
        told = False

        def tell(why: object) -> None:
            nonlocal told
            if not told:
                log.warning("waiting for the object store %s: %s", self.settings.storage_uri, why)
                told = True

        telling = asyncio.get_running_loop().call_later(TELL_S, tell, f"no success within {TELL_S} s")
        while True:
            try:
                return await work()
            except (Unavailable, OutcomeUnknown) as error:
                tell(error)
                await asyncio.sleep(RETRY_S)
            except Denied as error:
                raise CannotStart(f"the object store refuses: {error}; check credentials and permissions") from None
            except (StoreError, ClusterFileError, CorruptMetadata) as error:
                raise CannotStart(f"{self.settings.storage_uri} cannot be used: {error}") from None
            finally:
                telling.cancel()

    def _lock_instances(self) -> list[LockedInstance]:
        try:
            os.makedirs(self.settings.wal_dir, exist_ok=True)
            return lock_instances(self.settings.wal_dir, self.cluster_id, self.settings.node_id)
        except (WalError, OSError) as error:
            raise CannotStart(str(error)) from None

    async def _create_wal(self, *, may_begin_full: bool) -> None:
        """`may_begin_full`: there are older instances, which give back their space when they are recovered."""
        settings = self.settings
        try:
            self.wal = await VolumeWal.create(
                settings.wal_dir,
                cluster_id=self.cluster_id,
                node_id=settings.node_id,
                wal_id=self.wal_id,
                on_durable=self.validation.on_durable,
                on_failed=lambda error: self.fail(f"the WAL cannot be written: {error}"),
                on_room=lambda: self.logs.room(),
                bytes_max=settings.tidelog_wal_bytes_max,
                message_bytes_max=settings.message_max_bytes,
                file_bytes=settings.tidelog_wal_file_bytes,
                may_begin_full=may_begin_full,
            )
        except (WalError, OSError) as error:
            raise CannotStart(f"tidelog.wal.dir {settings.wal_dir}: {error}") from None
        for warning in self.wal.warnings:
            log.warning("%s", warning)
        if self.wal.file_error is not None:
            log.warning("no space for a WAL file in %s; older instances go first", settings.wal_dir)

    def _make_controller(self, locked: list[LockedInstance]) -> LocalController:
        identity = Identity(
            self.settings.node_id,
            self.incarnation,
            wal_ids=(self.wal_id,),
            locked=tuple(instance.wal_id for instance in locked if instance.same_boot()),
        )
        settings = self.settings
        return LocalController(
            Runtime(
                log=ObjectLog(self.store, self.cluster_id),
                store=self.store,
                cluster_id=self.cluster_id,
                clock=self.clock,
                token=self.token,
                identity=identity,
                rules=TopicRules(settings),
                settings=ControllerSettings(
                    session_ms=settings.tidelog_session_timeout_ms,
                    lease_ms=settings.tidelog_controller_lease_ms,
                    delete_grace_ms=settings.tidelog_delete_grace_ms,
                    retention_check_ms=settings.log_retention_check_interval_ms,
                    orphan_check_ms=settings.tidelog_orphan_check_interval_ms,
                    limits=Limits(ranges_per_log=settings.tidelog_log_ranges_max),
                ),
            )
        )

    def _build(self, tasks: Tasks) -> None:
        settings, controller = self.settings, self.controller
        if self.wal.fence_kind == "session":
            self.validation.attach(SessionFence(self.wal, self.session, self.clock))
        else:
            self.validation.attach(FileFence(self.wal, self.session, self.clock, lambda: controller.reachable))
        cache = settings.tidelog_read_cache_bytes
        reader = Reader(
            self.store,
            tasks,
            cache_bytes_max=cache,
            index_bytes_max=cache // INDEX_CACHE_SHARE,
            read_ahead_bytes_max=cache // READ_AHEAD_SHARE,
            parallel=settings.tidelog_read_parallel,
        )
        cold = ColdReads(reader, controller)
        defaults = TopicDefaults(settings)
        self.logs = LogTable(
            settings, controller, self.clock, defaults, cold, tasks, self.counters, incarnation=self.incarnation
        )
        self.logs.attach(self.wal, self.validation)
        self.uploader = Uploader(
            self.store,
            Writer(self.cluster_id, settings.node_id, self.incarnation),
            controller.ask,
            tasks,
            self.clock,
            parallel=settings.tidelog_upload_parallel,
            pace_bytes_per_s=settings.tidelog_upload_bytes_per_second,
        )
        self.sealing = Sealing(
            settings=settings,
            clock=self.clock,
            token=self.token,
            incarnation=self.incarnation,
            controller=controller,
            logs=self.logs,
            wal=self.wal,
            uploader=self.uploader,
            on_failed=lambda error: self.fail(f"a seal cannot be committed: {error}"),
        )
        self.recovery = WalRecovery(
            incarnation=self.incarnation,
            controller=controller,
            store=self.store,
            cold=cold,
            uploader=self.uploader,
            clock=self.clock,
            token=self.token,
        )
        groups = GroupCoordinators(settings, controller, self.clock, self.token, tasks, self._advance_start)
        metadata_cache = MetadataCache(lambda: controller.state)
        for listener in (self.logs.apply, self.sealing.on_facts, metadata_cache.on_facts, self._on_facts):
            controller.subscribe(listener)
        self.logs.on_close(self.sealing.on_close)
        groups.follow(self.logs)
        self.services = Services(
            settings=settings,
            clock=self.clock,
            ticks_us=self.clock.ticks_us,
            token=self.token,
            controller=controller,
            session=self.session,
            logs=self.logs,
            cold=cold,
            reader=reader,
            sealing=self.sealing,
            groups=groups,
            topic_defaults=defaults,
            metadata_cache=metadata_cache,
            fetch_sessions=FetchSessions(
                settings.max_incremental_fetch_session_cache_slots,
                lambda: int.from_bytes(self.token(4), "big") >> 1 or 1,
            ),
            producer_ids=ProducerIds(controller, self.token, incarnation=self.incarnation),
            wheel=Wheel(),
            cold_fetches=asyncio.Semaphore(COLD_PARALLEL),
            counters=self.counters,
            metrics=self.metrics,
            tasks=tasks,
            handlers=HANDLERS,
        )
        self.server = Server(self.services)
        process_metrics.register(self)

    async def _register(self, locked: list[LockedInstance]) -> tuple[Recovery, ...]:
        told = self.settings.told_listeners or self.listeners
        command = RegisterBroker(
            self.token(16),
            self.settings.node_id,
            self.incarnation,
            boot_id(),
            self.settings.broker_rack,
            tuple(f.Listener(one.name, one.security_protocol, one.host or local_host(), one.port) for one in told),
            (NewWal(self.wal_id, self.wal.kind),),
            tuple(instance.wal_id for instance in locked if instance.same_boot()),
        )
        waiting = False
        while True:
            try:
                return (await self.controller.ask(command)).recoveries
            except KafkaError as error:
                if error.code is not ErrorCode.DUPLICATE_BROKER_REGISTRATION and error.code not in RETRIABLE:
                    raise CannotStart(f"the controller refuses this broker: {error.message}") from None
                if not waiting:
                    log.warning("waiting to register: %s", error.message)
                    waiting = True
                await asyncio.sleep(RETRY_S)

    # While it runs

    async def _heartbeats(self) -> None:
        """Renew the session until it was ended; the deadline counts from when a heartbeat was sent."""
        while True:
            sent_ms = self.clock.boottime_ms()
            next_ms = self.settings.tidelog_session_timeout_ms // 12
            try:
                validated = {self.wal_id: self.validation.validated_group}
                grant = await self.controller.heartbeat(self.incarnation, self.controller.position, validated)
            except KafkaError as error:
                if error.code is ErrorCode.STALE_BROKER_EPOCH:
                    self._session_ended(error.message)
                    return
            else:
                self.session.granted(sent_ms, grant)
                self.validation.recheck()
                next_ms = grant.next_ms
            await asyncio.sleep(max(0, sent_ms + next_ms - self.clock.boottime_ms()) / 1000)

    def _on_facts(self, facts: Sequence[f.Fact]) -> None:
        for fact in facts:
            if isinstance(fact, f.SessionEnded) and fact.incarnation == self.incarnation and not self._stopped:
                self._session_ended(f"its session was ended ({fact.reason})")

    def _session_ended(self, why: str) -> None:
        self.session.end()
        self.fail(f"this broker leads nothing any more: {why}")

    async def _advance_start(self, one: GroupLog, offset: int) -> None:
        assert isinstance(one, Log)
        await self.sealing.advance_start(one, offset)

    # Stop

    async def _stop(self) -> int:
        """Freeze, answer what is appended, commit everything, say so in one entry. FAILED: the WAL stays."""
        timeout_ms = self.settings.tidelog_shutdown_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                self.server.stop_accepting()
                self.services.groups.stop()
                logs = list(self.logs.logs)
                for one in logs:
                    if one.status is LogStatus.OPEN:
                        one.status = LogStatus.FROZEN
                await self.server.drain(timeout_ms // 2)
                await self.sealing.drain(logs)
                self._stopped = True
                await self.controller.ask(CleanStop(self.token(16), self.incarnation))
                await self.wal.remove()
                await self.controller.stop()
        except (TimeoutError, KafkaError, StoreError) as error:
            log.error(
                "no clean stop within tidelog.shutdown.timeout.ms=%d (%s): the WAL in %s stays and the next start "
                "recovers it",
                timeout_ms,
                error or "time is over",
                self.settings.wal_dir,
            )
            return FAILED
        log.info("stopped: everything is in the bucket")
        return DONE


def boot_id() -> str:
    """Which run of the kernel this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def local_host() -> str:
    """What clients are told when a listener binds every interface and nothing is advertised."""
    return socket.getfqdn()
