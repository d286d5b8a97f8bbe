"""The composition root: builds one broker from its settings, starts it (DESIGN 7.9), ends it (`shutdown.py`)."""

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence

from broker import process_metrics
from broker.background import Tasks, collect_young_garbage
from broker.bucket import Bucket, CannotStart
from broker.clock import SystemClock
from broker.cold import ColdReads
from broker.compaction import Compacting, delete_retention_ms
from broker.configs import TopicDefaults, TopicRules
from broker.control_settings import compaction_limits, controller_settings, merge_rules
from broker.coordination.runtime import CoordinatorLog
from broker.dispatch import HANDLERS
from broker.dynamic_configs import BROKER_RESOURCE, DynamicConfigs
from broker.earlier_instances import EarlierInstances
from broker.fetch_sessions import FetchSessions
from broker.groups.coordinator import GroupCoordinators
from broker.handlers.control import ControlEndpoint
from broker.handlers.fetch import COLD_PARALLEL
from broker.handlers.init_producer_id import ProducerIds
from broker.heartbeats import Heartbeats
from broker.http.port import HttpPort
from broker.job_worker import Workplace
from broker.log import Log
from broker.log_table import LogTable
from broker.merging import Merging
from broker.metadata_cache import MetadataCache
from broker.metadata_place import MetadataPlace
from broker.metrics import Counters, Metrics
from broker.moves import Moves
from broker.named_recovery import NamedRecoveries
from broker.operators import Drains, FormatLevels, Operators
from broker.outputs import Pacer
from broker.peers import Peers
from broker.quotas import ClientQuotas
from broker.recovery import WalRecovery
from broker.registration import Registration
from broker.sealing import Sealing
from broker.server import Server
from broker.services import Services
from broker.settings import Listener, Settings
from broker.shutdown import Shutdown
from broker.siblings import Siblings
from broker.space import watch_space
from broker.transactions.abandoned import Abandoned
from broker.transactions.calls import (
    CoordinatorCalls,
    MarkerCalls,
    Neighbours,
    OpenTransactionCalls,
    UnderWayCalls,
)
from broker.transactions.coordinator import TransactionCoordinators
from broker.transactions.marker_sender import MarkerSender
from broker.transactions.undecided import Undecided
from broker.wals import OwnWals
from broker.wheel import Wheel
from controller import facts as f
from controller.client import ClusterController, Session
from controller.commands import RegisterBroker
from controller.election import Identity
from controller.entries import CorruptMetadata, NewerFormat
from controller.metadata_log import MetadataLog
from controller.remote import RemoteController
from controller.runtime import Runtime
from controller.service import ControllerService
from protocol.errors import KafkaError
from storage.manifest import Manifests
from storage.object_store import ObjectStore, StoreError
from storage.object_store import open_store as open_store_of
from storage.reader import Reader
from storage.seal import CorruptSegment, Recovery, Writer
from storage.uploader import Uploader, UploaderStopped
from storage.wal.disk import Disk, LinuxDisk
from storage.wal.instances import LockedInstance
from storage.wal.port import WalError
from storage.wal.worker import StartWorker, ThreadWorker

log = logging.getLogger(__name__)

DONE, FAILED = 0, 1
SIBLINGS_SHARE = 12
"""How often in a session other WAL instances on this machine are looked at."""
PEERS_LATER_S = 5
INDEX_CACHE_SHARE = 8
READ_AHEAD_SHARE = 2
HEARTBEAT_SHARE = 6
HEARTBEAT_MS_MIN = 250
"""The part of the session, and the least, for which the answer to one heartbeat is waited for."""
EXPECTED = (
    KafkaError,
    StoreError,
    WalError,
    CorruptMetadata,
    NewerFormat,
    f.UnknownFact,
    CorruptSegment,
    UploaderStopped,
)
"""What may end the process without being a bug: the message says all there is to say."""


class Broker:
    """One run of one broker: one incarnation."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: SystemClock,
        token: Callable[[int], bytes],
        open_store: Callable[[str], ObjectStore] | None = None,
        disk: Disk | None = None,
        start_worker: StartWorker = ThreadWorker,
        fence_kind: str | None = None,
    ) -> None:
        """`open_store(uri)` None: by the scheme of the URI; ValueError for one that cannot be used.

        `disk` None: this machine's. `fence_kind` None: by the mount of `tidelog.wal.dir` (DESIGN 4.2).
        """
        self.settings = settings = dataclasses.replace(settings)  # its own: dynamic ones change
        self.clock = clock
        self.token = token
        self.incarnation = int.from_bytes(token(8), "big") or 1
        self.counters = Counters()
        self.dynamic = DynamicConfigs(settings)
        self.metrics = Metrics()
        self.session = Session()
        self.ready = False
        self.listeners: list[Listener] = []
        self.http_address: tuple[str, int] | None = None
        self.cluster_id = ""
        self.wals = OwnWals(settings, token=token, on_failed=self.fail, on_room=lambda: self.logs.room())
        self._open_store = open_store or (lambda uri: open_store_of(uri, token=token))
        self._disk = disk or LinuxDisk()
        self._start_worker = start_worker
        self._fence_kind = fence_kind
        self._started = asyncio.Event()
        self._operators: Operators | None = None
        self._registration: Registration | None = None
        self._fatal: asyncio.Future[str] | None = None
        self._releases: list[Callable[[], Awaitable[None]]] = []
        process_metrics.register_process(self)

    async def run(
        self,
        stop: asyncio.Event,
        on_ready: Callable[["Broker"], None],
        on_end: Callable[[int], None] = lambda code: None,
    ) -> int:
        """Start, serve until `stop` is set, stop cleanly; the exit code. CannotStart: nothing was served.

        Whatever else goes wrong is told in one log line, and the code is FAILED. `on_end(code)` is called when nothing
        is left to do but cleaning up.
        """
        self._fatal = asyncio.get_running_loop().create_future()
        listener = self.settings.tidelog_http_listener
        port = HttpPort.bind(listener) if listener else None  # told at once if it is in use
        self.http_address = port.address if port is not None else None
        code = FAILED
        try:
            async with Tasks() as tasks:
                if port is not None:
                    serving = port.serve(self._started, self.metrics, lambda: self.ready, lambda: self._operators)
                    tasks.spawn(serving, name="HTTP")
                code = await self._live(tasks, stop, on_ready)
                on_end(code)
        except BaseExceptionGroup as errors:
            code = FAILED
            on_end(code)
            self._tell_end(errors)
        finally:
            self.ready = False
            self._fatal.cancel()
            for release in reversed(self._releases):
                try:
                    await release()
                except (OSError, StoreError) as error:
                    log.warning("while cleaning up: %s", error)
        return code

    async def _live(self, tasks: Tasks, stop: asyncio.Event, on_ready: Callable[["Broker"], None]) -> int:
        assert self._fatal is not None
        stopping = tasks.spawn(stop.wait(), name="wait for stop")
        starting = tasks.spawn(self._start(tasks), name="start")
        await asyncio.wait({stopping, starting, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and not self._fatal.done():
            if starting.exception() is not None:
                return FAILED  # leaving the tasks' block raises it
            self.ready = True
            on_ready(self)
            await asyncio.wait({stopping, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
            self.ready = False
            if not self._fatal.done():
                leaving = tasks.spawn(self._shutdown.run(tasks, others=self._others()), name="stop")
                await asyncio.wait({leaving, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done() and leaving.exception() is None:
                    return DONE if leaving.result() else FAILED
        if self._fatal.done():
            log.critical("stopping: %s", self._fatal.result())
        elif not starting.done():
            log.warning("stopped while starting: what older WAL instances hold stays there")
        return FAILED

    def _tell_end(self, errors: BaseExceptionGroup) -> None:
        """One line for what ended the process; the trace of it only where it is a bug of ours."""
        first, *_ = leaves(errors)
        if isinstance(first, CannotStart):
            raise first from None
        if isinstance(first, EXPECTED):
            log.critical("stopping: %s: %s", type(first).__name__, first)
        else:
            log.critical("stopping because of a bug: %r", first, exc_info=first)

    def fail(self, why: str) -> None:
        """The process must end at once, without a clean stop."""
        assert self._fatal is not None
        if not self._fatal.done():
            self._fatal.set_result(why)

    # Start

    async def _start(self, tasks: Tasks) -> None:
        bucket = Bucket(self.settings.storage_uri, self._open_store, self.token)
        self.store = bucket.store
        self._releases.append(self.store.close)
        probing = tasks.spawn(bucket.probe(), name="probe the store")
        place = MetadataPlace(self.settings.tidelog_metadata)
        self.cluster_id = (await bucket.find_cluster(probing, place)).cluster_id
        attempt_ms = self.settings.tidelog_controller_lease_ms // 3
        metadata = place.open(self.store, self.cluster_id, self.settings.node_id, attempt_ms)
        self._releases.append(metadata.close)
        locked: list[LockedInstance] = []
        if self.settings.uses_volume or self._disk.exists(self.settings.wal_dir):  # of runs with other settings
            earlier = EarlierInstances(
                str(self.settings.wal_dir), self.cluster_id, self.settings.node_id, disk=self._disk
            )
            self._releases.append(earlier.close)
            locked = await earlier.lock()
        if self.settings.uses_volume:
            await self.wals.create_volume(
                self.cluster_id, disk=self._disk, start_worker=self._start_worker, fence_kind=self._fence_kind
            )
        self.wals.create_objects(self.store, tasks)
        self._releases.append(self._release_wals)
        await probing  # a store that was not found to keep its word gets no data
        self.controller = self._make_controller(metadata, locked)
        tasks.spawn(self.controller.run(), name="controller")
        self._build(tasks)
        self.listeners = await self._bind()
        tasks.spawn(self._serve_peers(), name="serve peers")
        registered = await self._register(locked)
        self._operators = Operators(
            self.recovery, FormatLevels(self.controller, self.token), Drains(self.controller, self.token)
        )
        tasks.spawn(self.heartbeats.run(), name="heartbeats")
        tasks.spawn(self.sealing.run(), name="sealing")
        tasks.spawn(self.moves.run(), name="move logs")
        tasks.spawn(self.moves.warm_up(), name="warm up")
        tasks.spawn(self.merging.run(), name="merging")
        tasks.spawn(self.compacting.run(), name="compaction")
        tasks.spawn(watch_space(self.logs.space, self.wals), name="watch space")
        tasks.spawn(self.named.run(), name="recover named instances")
        await self.recovery.recover_all(locked, registered)
        await self._wait_for_file(may_begin_full=bool(locked))
        await self.named.wait_own()
        await self.logs.wait_opened()
        await self.server.serve()
        self._started.set()
        tasks.spawn(collect_young_garbage(), name="collect young garbage")
        if self.wals.volume is not None or locked:
            tasks.spawn(self.siblings.run(), name="watch siblings")

    async def _wait_for_file(self, *, may_begin_full: bool) -> None:
        """The first WAL file. `may_begin_full`: older instances give back their space now that they are recovered."""
        wal = self.wals.volume
        if wal is None:
            return
        try:
            await wal.ready()
        except OSError as error:
            if not may_begin_full:
                raise CannotStart(f"tidelog.wal.dir {self.settings.wal_dir}: {error}") from None
            log.warning("no space for a WAL file in %s; older instances go first", self.settings.wal_dir)
            await self.recovery.remove_settled()
            wal.look_for_space()

    def _make_controller(self, metadata: MetadataLog, locked: list[LockedInstance]) -> ClusterController:
        settings = self.settings
        identity = Identity(
            settings.node_id,
            self.incarnation,
            wal_ids=self.wals.locked_ids,
            locked=tuple(instance.wal_id for instance in locked if instance.same_boot()),
            eligible=settings.may_control,
        )
        self._peers = Peers()
        self._releases.append(self._peers.close)
        self._remote = RemoteController(
            self._peers,
            cluster_id=self.cluster_id,
            node_id=settings.node_id,
            incarnation=self.incarnation,
            listener=settings.peer_listener,
        )
        self.runtime = Runtime(
            log=metadata,
            store=self.store,
            cluster_id=self.cluster_id,
            clock=self.clock,
            token=self.token,
            identity=identity,
            rules=TopicRules(settings, self.dynamic),
            settings=controller_settings(settings),
            remote=self._remote,
        )
        return ClusterController(
            self.runtime,
            self._remote,
            heartbeat_timeout_ms=max(HEARTBEAT_MS_MIN, settings.tidelog_session_timeout_ms // HEARTBEAT_SHARE),
        )

    def _build(self, tasks: Tasks) -> None:
        """Everything that needs the WAL and the controller; from here on facts are listened to."""
        settings, controller = self.settings, self.controller
        self.wals.attach_fences(self.session, self.clock, lambda: controller.reachable)
        cache = settings.tidelog_read_cache_bytes
        reader = Reader(
            self.store,
            tasks,
            cache_bytes_max=cache,
            index_bytes_max=cache // INDEX_CACHE_SHARE,
            read_ahead_bytes_max=cache // READ_AHEAD_SHARE,
            parallel=settings.tidelog_read_parallel,
        )
        cold = ColdReads(reader, Manifests(self.store, tasks, cluster_id=self.cluster_id), controller)
        defaults = TopicDefaults(settings, self.dynamic)
        self.logs = LogTable(
            settings, controller, self.clock, defaults, cold, tasks, self.counters, incarnation=self.incarnation
        )
        for wal, validation in self.wals:
            self.logs.attach(wal, validation)
        self._build_uploads(tasks, cold)
        self._build_background(reader, cold, defaults)
        self._build_services(tasks, reader, cold, defaults)
        self.dynamic.listen(self._settings_changed)
        # In this order facts are told; what one of them does with a fact may ask what stands before it.
        for listener in (
            self._configs_changed,
            self.logs.apply,
            self.sealing.on_facts,
            self.moves.on_facts,
            self.merging.on_facts,
            self.compacting.on_facts,
            self.services.metadata_cache.on_facts,
            self.services.quotas.on_facts,
            self.named.on_facts,
            self.heartbeats.on_facts,
        ):
            controller.subscribe(listener)
        self.dynamic.update(controller.state.configs)
        self.logs.on_close(self.sealing.on_close)
        self.logs.on_open(self.moves.on_open)
        self.services.groups.follow(self.logs)
        self.services.coordinators.follow(self.logs)
        self.undecided.follow(self.logs)
        self.server: Server = Server(self.services)
        self._releases.append(self.server.close)
        self._shutdown = Shutdown(
            self.server, incarnation=self.incarnation, moves=self.moves, wals=self.wals, heartbeats=self.heartbeats
        )
        process_metrics.register(self)

    def _build_background(self, reader: Reader, cold: ColdReads, defaults: TopicDefaults) -> None:
        """What goes on beside requests: the session, logs that move, merging, compaction."""
        settings = self.settings
        self.heartbeats = Heartbeats(
            self.session,
            incarnation=self.incarnation,
            session_ms=settings.tidelog_session_timeout_ms,
            controller=self.controller,
            clock=self.clock,
            wals=self.wals,
            on_ended=self.fail,
        )
        self.moves = Moves(
            node_id=settings.node_id,
            incarnation=self.incarnation,
            settings=settings,
            controller=self.controller,
            logs=self.logs,
            sealing=self.sealing,
            cold=cold,
            clock=self.clock,
            token=self.token,
        )
        self.pacer = Pacer(
            settings.tidelog_merge_bytes_per_second, is_busy=lambda: bool(len(self.logs.space)) or reader.busy
        )
        place = Workplace(self.store, self.controller, self.incarnation, self.cluster_id, self.token, self.pacer)
        self.merging = Merging(place, merge_rules(settings))
        self.compacting = Compacting(
            place,
            clock=self.clock,
            limits=lambda: compaction_limits(settings),
            delete_retention_ms=lambda topic: delete_retention_ms(defaults, self.controller.state, topic),
        )

    def _build_services(self, tasks: Tasks, reader: Reader, cold: ColdReads, defaults: TopicDefaults) -> None:
        """What handlers of requests use."""
        settings, controller = self.settings, self.controller
        producer_ids = ProducerIds(controller, self.token, incarnation=self.incarnation)
        neighbours = Neighbours(self._peers, controller, node_id=settings.node_id, listener=settings.peer_listener)
        markers = MarkerSender(lambda: controller.state, MarkerCalls(neighbours, self.logs, self.counters), tasks)
        describe = OpenTransactionCalls(neighbours, self.logs)
        coordinators = TransactionCoordinators(
            settings,
            controller,
            self.clock,
            self.token,
            tasks,
            advance_start=self._advance_start,
            markers=markers,
            abandoned=Abandoned(lambda: controller.state, describe, markers),
            producer_ids=producer_ids,
        )
        under_way = UnderWayCalls(neighbours, coordinators)
        self.undecided = Undecided(lambda: controller.state, under_way, tasks, settings.tidelog_session_timeout_ms)
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
            groups=GroupCoordinators(settings, controller, self.clock, self.token, tasks, self._advance_start),
            topic_defaults=defaults,
            metadata_cache=MetadataCache(lambda: controller.state),
            fetch_sessions=FetchSessions(
                settings.max_incremental_fetch_session_cache_slots,
                lambda: int.from_bytes(self.token(4), "big") >> 1 or 1,
            ),
            producer_ids=producer_ids,
            coordinators=coordinators,
            transactions=CoordinatorCalls(neighbours, coordinators, tasks),
            wheel=Wheel(),
            quotas=ClientQuotas(settings, self.clock, self.clock.ticks_us, self.counters, lambda: controller.state),
            cold_fetches=asyncio.Semaphore(COLD_PARALLEL),
            counters=self.counters,
            metrics=self.metrics,
            tasks=tasks,
            handlers=HANDLERS,
            control=ControlEndpoint(ControllerService(self.runtime), settings.peer_listener),
        )

    def _configs_changed(self, facts: Sequence[f.Fact]) -> None:
        """Dynamic configs of brokers are facts."""
        for fact in facts:
            if isinstance(fact, f.StateReloaded) or (
                isinstance(fact, f.ConfigsChanged) and fact.resource_type == BROKER_RESOURCE
            ):
                self.dynamic.update(self.controller.state.configs)

    def _settings_changed(self, changed: frozenset[str]) -> None:
        """Tell those who keep something made of settings; all others read them when they need them."""
        settings = self.settings
        self.runtime.settings = controller_settings(settings)
        self.uploader.pace_bytes_per_s = settings.tidelog_upload_bytes_per_second
        self.pacer.bytes_per_s = settings.tidelog_merge_bytes_per_second
        self.logs.reconfigure()

    def _build_uploads(self, tasks: Tasks, cold: ColdReads) -> None:
        """What goes into the bucket: from the tails, and from the WAL instances of earlier runs."""
        settings = self.settings
        self.uploader = Uploader(
            self.store,
            Writer(self.cluster_id, settings.node_id, self.incarnation),
            self.controller.ask,
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
            controller=self.controller,
            logs=self.logs,
            wals=self.wals.all,
            uploader=self.uploader,
            on_failed=lambda error: self.fail(f"a seal cannot be committed: {error}"),
        )
        self.recovery = WalRecovery(
            node_id=settings.node_id,
            incarnation=self.incarnation,
            controller=self.controller,
            store=self.store,
            cold=cold,
            uploader=self.uploader,
            clock=self.clock,
            token=self.token,
            tasks=tasks,
            memory_bytes=settings.tidelog_tail_bytes_max,
        )
        self.siblings = Siblings(
            root=settings.wal_dir,
            disk=self._disk,
            incarnation=self.incarnation,
            controller=self.controller,
            recovery=self.recovery,
            token=self.token,
            interval_ms=settings.tidelog_session_timeout_ms // SIBLINGS_SHARE,
            shared=self.wals.volume is not None and self.wals.volume.fence_kind == "session",
        )
        self._releases.append(self.siblings.close)
        self.named = NamedRecoveries(
            node_id=settings.node_id,
            incarnation=self.incarnation,
            store=self.store,
            controller=self.controller,
            recovery=self.recovery,
            token=self.token,
        )

    async def _bind(self) -> list[Listener]:
        try:
            return await self.server.bind(self.settings.bound_listeners)
        except OSError as error:
            raise CannotStart(f"cannot listen on {self.settings.listeners}: {error.strerror or error}") from None

    async def _serve_peers(self) -> None:
        """Other brokers need their controller before clients are served here: at once if there are any, or when this
        start takes a while. Alone, the port opens when it serves.
        """
        await self.controller.wait_ready()
        if not self._others():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PEERS_LATER_S):
                    await self._started.wait()
        if not self._started.is_set():
            await self.server.serve_peers()

    def _others(self) -> bool:
        """Whether other brokers are alive."""
        return any(one.incarnation != self.incarnation for one in self.controller.state.broker_table.alive())

    async def _register(self, locked: list[LockedInstance]) -> tuple[Recovery, ...]:
        told = self.settings.told_listeners or self.listeners
        every = "" if all(one.host for one in told) else await asyncio.to_thread(local_host)
        command = RegisterBroker(
            self.token(16),
            self.settings.node_id,
            self.incarnation,
            self._disk.boot_id(),
            self.settings.broker_rack,
            tuple(f.Listener(one.name, one.security_protocol, one.host or every, one.port) for one in told),
            self.wals.registered,
            tuple(instance.wal_id for instance in locked if instance.same_boot()),
            format_level=f.FORMAT_LEVEL,
        )
        self._registration = Registration(
            self.controller,
            self._remote,
            self.clock.boottime_ms,
            session_ms=self.settings.tidelog_session_timeout_ms,
            lease_ms=self.settings.tidelog_controller_lease_ms,
        )
        return await self._registration.register(command)

    async def _advance_start(self, one: CoordinatorLog, offset: int) -> None:
        assert isinstance(one, Log)
        await self.sealing.advance_start(one, offset)

    # After the end

    async def _release_wals(self) -> None:
        await self.wals.release(known=self._registration is not None and self._registration.asked)


def leaves(errors: BaseExceptionGroup) -> Iterator[BaseException]:
    """What the tasks raised, in the order in which they ended."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def local_host() -> str:
    """What clients are told when a listener binds every interface and nothing is advertised."""
    return socket.getfqdn()
