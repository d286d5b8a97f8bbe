"""What a broker knows of the controller: follow the facts, ask for changes, keep the session alive.

`LocalController` is the one in the same process; `ClusterController` is the one of the cluster, in this process or in
another, and goes over from one to the next.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, overload

from controller import commands as c
from controller.cluster_file import open_cluster
from controller.configs import ConfigRules
from controller.election import Identity
from controller.facts import BrokerRegistered, ControllerElected, ControllerResigned, Fact, StateReloaded
from controller.object_log import ObjectLog
from controller.remote import RemoteController
from controller.runtime import ControllerSettings, Runtime
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from storage.clock import Clock
from storage.object_store import ObjectStore
from storage.seal import CommitAnswer, CommitSeal, Recovery

Listener = Callable[[Sequence[Fact]], None]
"""Called on the event loop after the facts of one entry were applied; must not raise or wait."""

ASK_TIMEOUT_MS = 20_000
"""Less than the 30 s after which common clients give up: they get an error that says what is wrong."""
ATTEMPT_MS = 3_000
"""A controller that does not answer for so long is asked again: it may be another one by then."""
LOOK_AGAIN_MS = 200
LOOK_AGAIN_MS_FIRST = 10


class Grant(NamedTuple):
    """The answer to a heartbeat: the session stands until `valid_ms` after the heartbeat was sent.

    Send the next one `next_ms` after that moment.
    """

    valid_ms: int
    next_ms: int


class Session:
    """The broker's side of its session: a deadline on CLOCK_BOOTTIME, and whether it was ended for good.

    The deadline counts from when the heartbeat was *sent*; a late answer extends nothing. Pure: times are arguments.
    """

    def __init__(self) -> None:
        self.deadline_ms = 0
        self.ended = False

    def granted(self, sent_ms: int, grant: Grant) -> None:
        """A heartbeat that was sent at `sent_ms` (boottime) was answered."""
        if not self.ended:
            self.deadline_ms = max(self.deadline_ms, sent_ms + grant.valid_ms)

    def end(self) -> None:
        """A fact ended the session, or the controller said so. Final: the process stops serving and exits."""
        self.ended = True

    def stands(self, now_ms: int) -> bool:
        """Whether the broker may do what needs its session at `now_ms` (boottime)."""
        return not self.ended and now_ms < self.deadline_ms


class ControllerClient(Protocol):
    """Facts in, commands out."""

    @property
    def state(self) -> ClusterState:
        """What is known to be true. Read it again after every await: it changes between."""
        ...

    @property
    def position(self) -> int:
        """The last applied entry."""
        ...

    @property
    def reachable(self) -> bool:
        """Whether the metadata log could be read or written lately. If not, `state` may be old."""
        ...

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with the facts of every entry from now on, in order; returns how to stop that.

        `(StateReloaded(),)` means: the state was replaced as a whole.
        """
        ...

    async def wait_applied(self, position: int) -> None:
        """Returns when `state` holds entry `position`."""
        ...

    async def heartbeat(self, incarnation: int, position: int, validated: Mapping[bytes, int]) -> Grant:
        """Renews the session of a registered incarnation that applied the facts up to `position`.

        `validated`: the last validated group of each of its WAL instances. Errors: STALE_BROKER_EPOCH (the session
        was ended: stop and exit), BROKER_ID_NOT_REGISTERED, NOT_CONTROLLER (retriable: nobody may grant just now).
        """
        ...

    @overload
    async def ask(self, command: CommitSeal, timeout_ms: int = ASK_TIMEOUT_MS) -> CommitAnswer: ...
    @overload
    async def ask(self, command: c.RegisterBroker, timeout_ms: int = ASK_TIMEOUT_MS) -> c.Registered: ...
    @overload
    async def ask(self, command: c.NameRecoverer, timeout_ms: int = ASK_TIMEOUT_MS) -> Recovery: ...
    @overload
    async def ask(self, command: c.ReportScan, timeout_ms: int = ASK_TIMEOUT_MS) -> c.ScanAnswer: ...
    @overload
    async def ask(self, command: c.DeclareLost, timeout_ms: int = ASK_TIMEOUT_MS) -> c.LossReport: ...
    @overload
    async def ask(
        self,
        command: c.CreateTopics | c.CreateInternalTopic | c.CreatePartitions | c.DeleteTopics,
        timeout_ms: int = ASK_TIMEOUT_MS,
    ) -> c.TopicResults: ...
    @overload
    async def ask(self, command: c.AlterConfigs, timeout_ms: int = ASK_TIMEOUT_MS) -> c.ConfigResults: ...
    @overload
    async def ask(self, command: c.AdvanceLogStart, timeout_ms: int = ASK_TIMEOUT_MS) -> c.LogStarts: ...
    @overload
    async def ask(
        self, command: c.ReplaceRanges | c.WriteManifests, timeout_ms: int = ASK_TIMEOUT_MS
    ) -> c.JobAnswer: ...
    @overload
    async def ask(self, command: c.RequestMoves | c.CancelMoves, timeout_ms: int = ASK_TIMEOUT_MS) -> c.MovesAnswer: ...
    @overload
    async def ask(self, command: c.DrainBroker | c.LeaveCluster, timeout_ms: int = ASK_TIMEOUT_MS) -> c.DrainAnswer: ...
    @overload
    async def ask(self, command: c.AlterQuotas | c.AlterScram, timeout_ms: int = ASK_TIMEOUT_MS) -> c.Results: ...
    @overload
    async def ask(self, command: c.AllocateProducerIds, timeout_ms: int = ASK_TIMEOUT_MS) -> c.ProducerIdBlock: ...
    @overload
    async def ask(
        self,
        command: c.RegisterWal
        | c.EndSession
        | c.RetireWal
        | c.CleanStop
        | c.RaiseFormatLevel
        | c.CloseJob
        | c.UpdateFeatures
        | c.CreateAcls
        | c.DeleteAcls
        | c.UnregisterBroker,
        timeout_ms: int = ASK_TIMEOUT_MS,
    ) -> c.Done: ...

    async def ask(self, command: Any, timeout_ms: int = ASK_TIMEOUT_MS) -> Any:
        """The answer, once what it says is durable and applied here. Refusals are `KafkaError`, see `commands`.

        REQUEST_TIMED_OUT, NOT_CONTROLLER and THROTTLING_QUOTA_EXCEEDED are retriable and leave the outcome open: ask
        again with the *same* command (same id) to learn it.
        """
        return await self.send(command, timeout_ms)

    async def send(self, command: Any, timeout_ms: int) -> Any:
        """What `ask` does, without types: for implementations."""
        ...


class LocalController(ControllerClient):
    """A `ControllerClient` over the controller in this process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def state(self) -> ClusterState:
        """See `ControllerClient`."""
        return self._runtime.replica.state

    @property
    def position(self) -> int:
        """See `ControllerClient`."""
        return self._runtime.replica.state.position

    @property
    def reachable(self) -> bool:
        """See `ControllerClient`."""
        return self._runtime.reachable

    @property
    def leads(self) -> bool:
        """Whether this process is the controller just now."""
        return self._runtime.leads

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `ControllerClient`."""
        return self._runtime.replica.subscribe(listener)

    async def wait_applied(self, position: int) -> None:
        """See `ControllerClient`."""
        await self._runtime.replica.wait_applied(position)

    async def heartbeat(self, incarnation: int, position: int, validated: Mapping[bytes, int]) -> Grant:
        """See `ControllerClient`."""
        return Grant(*self._runtime.heartbeat(incarnation, position, validated))

    async def send(self, command: Any, timeout_ms: int) -> Any:
        """See `ControllerClient`."""
        return await self._runtime.ask(command, timeout_ms)

    async def run(self) -> None:
        """Follows and, when elected, controls, until `stop`. The owner runs it in a task group and may cancel it."""
        await self._runtime.run()

    async def wait_ready(self) -> None:
        """Returns when the facts were followed to the end of the log and there is a controller."""
        await self._runtime.ready.wait()

    async def stop(self) -> None:
        """Resigns if this process controls and the store can be reached; `run` ends soon after."""
        await self._runtime.stop()


class ClusterController(LocalController):
    """A `ControllerClient` of a process that follows, and controls if it was elected.

    A command goes to whoever controls. When that one is lost, or is it no more, the same command goes to the next: by
    its id, or its seal number, it happens once.
    """

    def __init__(self, runtime: Runtime, remote: RemoteController, *, heartbeat_timeout_ms: int) -> None:
        """`runtime` has the same `remote`."""
        super().__init__(runtime)
        self._remote = remote
        self._heartbeat_timeout_ms = heartbeat_timeout_ms
        self._changed = asyncio.Event()
        self._asking: dict[asyncio.Timeout, None] = {}
        self.subscribe(self._on_facts)

    def _on_facts(self, facts: Sequence[Fact]) -> None:
        if any(isinstance(fact, _WHO_CONTROLS) for fact in facts):
            self._changed.set()
        if any(isinstance(fact, ControllerElected) for fact in facts):
            now = asyncio.get_running_loop().time()
            for asking in self._asking:
                asking.reschedule(now)

    def registering(self) -> int:
        """See `Runtime.registering`."""
        return self._runtime.registering()

    def proved_dead(self, wal_id: bytes) -> None:
        """See `Runtime.proved_dead`."""
        self._runtime.proved_dead(wal_id)

    def why_not(self) -> str | None:
        """Why nobody can be asked just now; None if somebody can."""
        if self.leads:
            return None
        try:
            self._remote.target(self.state)
        except KafkaError as error:
            return error.message
        return None

    async def heartbeat(self, incarnation: int, position: int, validated: Mapping[bytes, int]) -> Grant:
        """See `ControllerClient`."""
        if self.leads or self._runtime.is_over:
            return await super().heartbeat(incarnation, position, validated)
        grant = Grant(*await self._remote.heartbeat(self.state, position, validated, self._heartbeat_timeout_ms))
        self._runtime.answered()
        return grant

    async def send(self, command: Any, timeout_ms: int) -> Any:
        """See `ControllerClient`."""
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_ms / 1000
        wait_ms = LOOK_AGAIN_MS_FIRST
        while True:
            left_ms = int((deadline - now()) * 1000)
            self._changed.clear()
            try:
                if self.leads:
                    return await super().send(command, max(1, left_ms))
                return await self._ask_remote(command, left_ms, deadline)
            except KafkaError as error:
                if error.code in _ENDED and not hasattr(command, "incarnation"):
                    # Nobody asks in the name of our session: whoever asked us can ask another broker.
                    raise KafkaError(ErrorCode.NOT_CONTROLLER, f"this broker is leaving: {error.message}") from None
                if self._runtime.stopping or error.code not in _ASK_AGAIN:
                    raise
                if now() >= deadline:
                    raise KafkaError(
                        ErrorCode.REQUEST_TIMED_OUT,
                        f"{type(command).__name__} was not answered within {timeout_ms} ms: {error.message}",
                    ) from None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self._changed.wait()
            wait_ms = min(2 * wait_ms, LOOK_AGAIN_MS)

    async def _ask_remote(self, command: Any, left_ms: int, deadline: float) -> Any:
        answer, position = await self._ask_whom_we_know(command, min(max(1, left_ms), ATTEMPT_MS))
        self._runtime.answered()
        try:
            async with asyncio.timeout_at(deadline):
                await self.wait_applied(position)
        except TimeoutError:
            raise KafkaError(ErrorCode.REQUEST_TIMED_OUT, f"entry {position} did not arrive here") from None
        return answer

    async def _ask_whom_we_know(self, command: Any, timeout_ms: int) -> tuple[Any, int]:
        """One attempt, given up as soon as another process is known to control: the one asked may be dead."""
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._asking[scope] = None
                return await self._remote.ask(self.state, command, timeout_ms)
        except TimeoutError:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "another process controls the cluster now") from None
        finally:
            self._asking.pop(scope, None)


_WHO_CONTROLS = (ControllerElected, ControllerResigned, BrokerRegistered, StateReloaded)
_ENDED = (ErrorCode.STALE_BROKER_EPOCH, ErrorCode.BROKER_ID_NOT_REGISTERED)
_ASK_AGAIN = (ErrorCode.NOT_CONTROLLER, ErrorCode.REQUEST_TIMED_OUT)


async def open_local(
    store: ObjectStore,
    *,
    clock: Clock,
    token: Callable[[int], bytes],
    identity: Identity,
    rules: ConfigRules,
    settings: ControllerSettings | None = None,
    expected_cluster_id: str | None = None,
) -> LocalController:
    """The controller of this process over the metadata log in `store`; nothing runs before `run`.

    Reads or creates `cluster.json`. Errors: `cluster_file.ClusterFileError`, `StoreError` (try again).
    """
    cluster = await open_cluster(store, token, expected_cluster_id)
    runtime = Runtime(
        log=ObjectLog(store, cluster.cluster_id),
        store=store,
        cluster_id=cluster.cluster_id,
        clock=clock,
        token=token,
        identity=identity,
        rules=rules,
        settings=settings,
    )
    return LocalController(runtime)
