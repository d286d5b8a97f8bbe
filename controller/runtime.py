"""The controller as a process part: follow the log, become controller, decide, persist, apply, reply.

One task changes the state: it follows while another leads, and leads when it may. Leading is one straight line: take
waiting commands, decide them on the state after entry N - 1, write entry N, apply it, reply. If N turns out to be
another's, that one is applied and the commands are decided again; if the outcome is unknown, N is retried with
identical bytes. Nobody hears of a fact before it is durable. With the store away everything waits, up to each
command's own deadline.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from controller import facts as f
from controller.batch import choose
from controller.commands import EndSilentSessions, encode_answer
from controller.configs import ConfigRules
from controller.decide import Context, Decision, Heard, Limits, decide, is_remembered
from controller.election import Election, Identity, is_over
from controller.entries import FIRST_HASH, CorruptMetadata, Entry, RememberedAnswer, encode_entry
from controller.features import FORMAT_LEVEL as FEATURES_LEVEL
from controller.features import NEW_CLUSTER
from controller.hedging import HedgedLog
from controller.merging import MergeRules
from controller.metadata_log import KEEP_ENTRIES, BelowBoundary, MetadataLog
from controller.queue import CommandQueue, Waiting
from controller.remote import ControllerSilent, RemoteController
from controller.replica import ChainBroken, Replica
from controller.sessions import Sessions
from controller.upkeep import Upkeep
from protocol.errors import ErrorCode, KafkaError
from storage.clock import Clock
from storage.object_store import ObjectStore, StoreError

RETRY_MS = 100
RETRY_MS_MAX = 2_000
HEDGE_SHARE = 3
"""The part of a lease that a call of the metadata log may take before it is made again beside."""
STEP_MS = 5
"""Encoding a snapshot gives way to the event loop after so long."""

_log = logging.getLogger(__name__)


class ControllerSettings(NamedTuple):
    """Bounds and intervals; times in ms."""

    session_ms: int = 6_000
    lease_ms: int = 3_000
    delete_grace_ms: int = 600_000
    retention_check_ms: int = 300_000
    orphan_check_ms: int = 3_600_000
    merge_check_ms: int = 1_000
    merging: MergeRules = MergeRules()
    compaction: bool = True
    compaction_check_ms: int = 15_000
    snapshot_bytes: int = 64 << 20
    snapshot_entries: int = 1_000
    keep_entries: int = KEEP_ENTRIES
    balance: bool = True
    balance_interval_ms: int = 30_000
    balance_moves_max: int = 10
    balance_threshold_percent: int = 25
    commands_max: int = 10_000
    limits: Limits = Limits()


class Runtime:
    """One process's part in controlling a cluster. `run` does the work; everything else is called on its event loop."""

    def __init__(
        self,
        *,
        log: MetadataLog,
        store: ObjectStore,
        cluster_id: str,
        clock: Clock,
        token: Callable[[int], bytes],
        identity: Identity,
        rules: ConfigRules,
        settings: ControllerSettings | None = None,
        remote: RemoteController | None = None,
    ) -> None:
        """`remote`: how to reach a controller in another process; None: it is followed through the log alone, and
        commands wait here until this process leads again.
        """
        self.settings = settings or ControllerSettings()
        self.replica = Replica(HedgedLog(log, self.settings.lease_ms // HEDGE_SHARE), cluster_id)
        self.queue = CommandQueue(self.settings.commands_max)
        self.ready = asyncio.Event()
        self.incarnation = identity.incarnation
        self._remote = remote
        self._remote_from_ms = 0  # boottime before which a controller that was silent is not asked again
        self._clock = clock
        self._token = token
        self._rules = rules
        self._election = Election(identity, self.settings.lease_ms)
        self._sessions = Sessions(self.settings.session_ms, self.settings.lease_ms)
        self._applied: dict[int, int] = {}
        self._validated: dict[bytes, int] = {}
        self._heard_ms: dict[int, int] = {}
        self._epoch = 0
        self._lease_due = 0
        self._stopping = False
        self._away = False
        self._found = False  # since it leads: others know where this process is
        self._answered_ms: int | None = None  # when that was asked to which the last answer came
        self._upkeep = Upkeep(self, store, clock, token)
        self.replica.subscribe(self._facts_applied)
        self.balancing = self._upkeep.balancing
        self.compaction = self._upkeep.compaction
        self.replica.subscribe(self.balancing.on_facts)

    # What others see

    @property
    def leads(self) -> bool:
        """Whether this process is the controller, as far as it knows."""
        state = self.replica.state
        return self._epoch > 0 and state.controller_epoch == self._epoch and not state.controller_resigned

    @property
    def reachable(self) -> bool:
        """Whether the metadata log has answered something that was asked less than a lease ago.

        One that hangs is away long before a call gives up. Leases count from the same moment, so that nobody is
        without both: what a broker may do while it cannot know of newer facts begins where its session ends.
        """
        if self._away or self._answered_ms is None:
            return False
        return self._clock.boottime_ms() < self._answered_ms + self.settings.lease_ms

    @property
    def stopping(self) -> bool:
        """Whether this process takes no part any more."""
        return self._stopping

    @property
    def is_over(self) -> bool:
        """Whether the session of this process was ended, as far as it knows: it never leads anything again."""
        return self._election.is_over(self.replica.state)

    def registering(self) -> int:
        """The entry at which this process asks to be registered: the same at every further attempt."""
        if self._election.asked_at is None:
            self._election.asked_at = self.replica.state.position
        return self._election.asked_at

    @property
    def may_grant(self) -> bool:
        """Whether this process, if it leads, knows that nobody else does."""
        return self._sessions.may_grant(self._clock.boottime_ms())

    @property
    def rules(self) -> ConfigRules:
        """What configs mean."""
        return self._rules

    async def ask(self, command: Any, timeout_ms: int) -> Any:
        """See `ControllerClient.ask`. Commands wait while there is no controller."""
        if self._stopping:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "this controller is stopping")
        return await self.queue.ask(command, timeout_ms)

    def heartbeat(self, incarnation: int, position: int, validated: Mapping[bytes, int]) -> tuple[int, int]:
        """See `ControllerClient.heartbeat`: (valid for ms from now, send the next one after ms)."""
        state = self.replica.state
        if is_over(state, incarnation) or (incarnation == self.incarnation and self.is_over):
            raise KafkaError(ErrorCode.STALE_BROKER_EPOCH, f"the session of incarnation {incarnation:016x} was ended")
        if not self.leads:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "this process is not the controller")
        if incarnation not in state.broker_table.incarnations:
            raise KafkaError(ErrorCode.BROKER_ID_NOT_REGISTERED, f"incarnation {incarnation:016x} is not registered")
        own = incarnation == self.incarnation
        valid_ms = self._sessions.grant(incarnation, self._clock.boottime_ms(), own=own)
        if valid_ms is None:
            raise KafkaError(ErrorCode.NOT_CONTROLLER, "no session may be granted: the metadata log cannot be written")
        self.followed(incarnation, position)
        self._heard_ms[incarnation] = self._clock.now_ms()
        for wal_id, group in validated.items():
            if wal_id in state.wals:
                self._validated[wal_id] = max(group, self._validated.get(wal_id, 0))
        next_ms = min(self.settings.session_ms, self.settings.lease_ms) if own else self.settings.session_ms
        return valid_ms, max(1, next_ms // 3)

    def followed(self, incarnation: int, position: int) -> None:
        """A registered incarnation applied the facts up to `position`."""
        if self.replica.state.broker_table.is_alive(incarnation):
            self._applied[incarnation] = max(position, self._applied.get(incarnation, 0))

    def found(self) -> None:
        """Another process asked this one as the controller, or can from now on."""
        if not self._found:
            self._found = True
            self._sessions.found(self._clock.boottime_ms())

    def answered(self) -> None:
        """The controller in another process answered something just now: it can be followed again."""
        if self._remote_from_ms:
            self._remote_from_ms = 0
            self.queue.wake.set()

    def proved_dead(self, wal_id: bytes) -> None:
        """This process holds the lock of an instance that another one made: that one is gone, also as controller."""
        self._election.proved_dead(wal_id)
        self.queue.wake.set()

    # The one task that changes the state

    async def run(self) -> None:
        """Until `stop`. Raises what no waiting cures: damaged metadata, facts of a newer version."""
        try:
            async with asyncio.TaskGroup() as group:
                upkeep = [group.create_task(work) for work in self._upkeep.tasks()]
                try:
                    await self._main()
                finally:
                    for task in upkeep:
                        task.cancel()
        finally:
            self._stopping = True
            self.queue.refuse_all(KafkaError(ErrorCode.NOT_CONTROLLER, "this controller stopped"))

    async def stop(self) -> None:
        """Asks `run` to end: a controller resigns first, if the store can be reached. Cancel `run` if it takes long."""
        self._stopping = True
        self.queue.wake.set()

    async def _main(self) -> None:
        retry_ms = RETRY_MS
        loaded = False
        while not (self._stopping and not self.leads):
            try:
                if not loaded:
                    await self.replica.load()
                    loaded = True
                    self._election.observed(self._clock.boottime_ms())  # who wrote what it holds may be alive
                if self._remote is not None and not self.leads:
                    self.queue.refuse_all(KafkaError(ErrorCode.NOT_CONTROLLER, "this process is not the controller"))
                await self._step()
                retry_ms = RETRY_MS
            except (BelowBoundary, ChainBroken) as error:
                _log.warning("controller epoch %d left: %s", self._epoch, error)
                self._epoch, loaded = 0, False
            except StoreError as error:
                if self._stopping:
                    return
                self._set_away(error)
                await asyncio.sleep(retry_ms / 1000)
                retry_ms = min(2 * retry_ms, RETRY_MS_MAX)

    async def _step(self) -> None:
        if not self.leads:
            await self._follow()
        elif self._stopping:
            await self._append([f.ControllerResigned(self._epoch)], [])
        else:
            await self._lead()

    async def _follow(self) -> None:
        self.queue.wake.clear()
        if await self._follow_remote():
            return
        asked = self._clock.boottime_ms()
        applied = await self.replica.catch_up()
        self._set_away(None)
        self._answered_ms = asked
        now = self._clock.boottime_ms()
        if applied:
            self._election.observed(now)
        if self._election.may_take_over(self.replica.state, now):
            await self._campaign()
        else:
            if self.replica.state.controller_epoch:
                self.ready.set()
            await self._pause(self._election.wait_ms(now))

    async def _follow_remote(self) -> bool:
        """Entries from the controller itself, as soon as it has them; False: see what the log says.

        Only after the log was read to its end once: till then the controller that we know of may be one of long ago.
        """
        remote, state, asked = self._remote, self.replica.state, self._clock.boottime_ms()
        if remote is None or not self.ready.is_set() or asked < self._remote_from_ms:
            return False
        try:
            entries = await remote.follow(state, state.position + 1, self.settings.lease_ms // 3)
            for data in entries:
                self.replica.apply(data)
        except (ControllerSilent, CorruptMetadata) as error:
            # Each further attempt would cost the time in which the log tells whether it is alive; and what the log
            # itself holds is damaged only if it says so.
            _log.warning("following the metadata log instead of the controller for a while: %s", error)
            self._remote_from_ms = self._clock.boottime_ms() + self.settings.lease_ms
            return False
        except KafkaError:
            return False
        self._set_away(None)
        self._answered_ms = asked
        if entries:
            self._election.observed(self._clock.boottime_ms())
        return True

    async def _campaign(self) -> None:
        state = self.replica.state
        me = self._election.identity
        before, old = self._election.last_seen, state.controller_incarnation
        epoch = state.controller_epoch + 1
        facts: list[f.Fact] = [f.ControllerElected(epoch, me.node_id, me.incarnation, me.wal_ids)]
        if not state.format_level:
            facts.append(f.FormatLevel(f.FORMAT_LEVEL))
            if f.FORMAT_LEVEL >= FEATURES_LEVEL:
                facts.append(NEW_CLUSTER)
        self._sessions.took_over(before, old)
        if await self._append(facts, [], epoch):
            self._epoch = epoch
            self._found = self.replica.state.broker_table.is_alive(self.incarnation)
            self._lease_due = self._clock.boottime_ms() + self.settings.lease_ms // 3
            self._applied.clear()
            self._heard_ms.clear()
            _log.info("controller of cluster %s in epoch %d", state.cluster_id, epoch)
        self.ready.set()

    async def _lead(self) -> None:
        self.queue.wake.clear()
        if await self._end_silent_sessions():
            return  # another may have been elected in that entry
        now = self._clock.boottime_ms()
        if not len(self.queue) and now < self._lease_due:
            await self._pause(self._lease_due - now)
            return
        await self._decide(choose(self.replica.state, self.queue.items()))
        if self._upkeep.snapshot_is_due():
            await self._upkeep.encode_snapshot(STEP_MS)

    async def _end_silent_sessions(self) -> bool:
        # Not by the queue: another controller may have heard these brokers by the time a queued command is decided.
        me = self._election.identity.node_id
        # Before others find us nobody knows where to send heartbeats: only who had our node id is silent.
        brokers = self.replica.state.broker_table.alive()
        alive = [broker.incarnation for broker in brokers if self._found or broker.node_id == me]
        silent = self._sessions.expired(alive, self._clock.boottime_ms())
        if silent:
            _log.warning("silent, their sessions end: %s", ", ".join(f"{one:016x}" for one in silent))
            command = EndSilentSessions(self._token(16), tuple(silent))
            await self._append(decide(self.replica.state, command, self._context()).facts, [])
        return bool(silent)

    async def _decide(self, chosen: Sequence[Waiting]) -> None:
        """Decides on the present state, writes one entry if there are facts, replies. Lost: nothing happened."""
        state = self.replica.state
        context = self._context()
        facts: list[f.Fact] = []
        remembered: list[RememberedAnswer] = []
        settled: list[tuple[Waiting, Any]] = []
        written: list[tuple[Waiting, Any]] = []
        for item in chosen:
            decision = self._decide_one(item, context)
            if isinstance(decision, Decision) and decision.facts:
                facts += decision.facts
                written.append((item, decision.answer))
                if is_remembered(item.command):
                    remembered.append(RememberedAnswer(item.command.command_id, encode_answer(decision.answer)))
            else:
                settled.append((item, decision.answer if isinstance(decision, Decision) else decision))
        if self._sessions.may_grant(self._clock.boottime_ms()):
            self._reply(settled)
        else:
            written += settled  # somebody else may be controller by now: only our next entry tells
        if self._clock.boottime_ms() >= self._lease_due or (written and not facts):
            facts.append(self._lease_fact())
        if facts and await self._append(facts, remembered):
            self._reply(written)
        assert state is self.replica.state

    def _decide_one(self, item: Waiting, context: Context) -> Decision | KafkaError:
        try:
            return decide(self.replica.state, item.command, context)
        except KafkaError as error:
            return error
        except Exception:
            # A mistake of ours, but nothing is decided yet. Were this process to end of it, who asked would ask the
            # next controller the same, and so end one after the other.
            _log.exception("cannot decide %s", type(item.command).__name__)
            return KafkaError(ErrorCode.UNKNOWN_SERVER_ERROR, "the controller failed to decide: see its log")

    def _context(self) -> Context:
        state = self.replica.state
        applied = {**self._applied, self.incarnation: state.position}
        alive = [broker.incarnation for broker in state.broker_table.alive()]
        quiet = self._sessions.quiet(alive, self._clock.boottime_ms())
        heard = Heard(applied, self._validated, self._heard_ms, quiet)
        return Context(
            self._clock.now_ms(), self._token, self._rules, self.settings.limits, heard, self.balancing.rates
        )

    def _lease_fact(self) -> f.LeaseExtended:
        wals = self.replica.state.wals
        changed = [
            f.WalGroup(wal_id, group)
            for wal_id, group in sorted(self._validated.items())
            if wal_id in wals and group > wals[wal_id].validated_group
        ]
        return f.LeaseExtended(tuple(changed))

    def _reply(self, answers: Sequence[tuple[Waiting, Any]]) -> None:
        for item, answer in answers:
            self.queue.settle(item, answer)

    async def _append(
        self, facts: Sequence[f.Fact], remembered: Sequence[RememberedAnswer], epoch: int | None = None
    ) -> bool:
        """Writes the next entry and applies what the position turns out to hold; whether that is ours.

        A controller looks whether it still `leads` after every call: the entry may have elected another one.
        """
        assert epoch is not None or self.leads
        state = self.replica.state
        entry = Entry(
            state.cluster_id,
            state.position + 1,
            state.entry_hash if state.position else FIRST_HASH,
            self._epoch if epoch is None else epoch,
            self._token(16),
            self._clock.now_ms(),
            tuple(remembered),
            tuple(facts),
        )
        data = encode_entry(entry)
        sent = self._clock.boottime_ms()
        held = await self._append_until_known(entry.position, data)
        self.replica.apply(held)
        self._election.observed(self._clock.boottime_ms())
        if held != data:
            return False
        self._sessions.appended(sent, self._clock.boottime_ms())
        if any(isinstance(fact, f.LeaseExtended) for fact in facts):
            self._lease_due = sent + self.settings.lease_ms // 3
        return True

    async def _append_until_known(self, position: int, data: bytes) -> bytes:
        retry_ms = RETRY_MS
        while True:
            asked = self._clock.boottime_ms()
            try:
                held = await self.replica.log.append(position, data)
            except StoreError as error:
                self._set_away(error)
                if self._stopping:
                    raise
                await asyncio.sleep(retry_ms / 1000)
                retry_ms = min(2 * retry_ms, RETRY_MS_MAX)
            else:
                self._set_away(None)
                self._answered_ms = asked
                return held

    def _facts_applied(self, facts: Sequence[f.Fact]) -> None:
        now = self._clock.boottime_ms()
        for fact in facts:
            if isinstance(fact, f.BrokerRegistered):
                self._sessions.seen(fact.incarnation, now)
                if fact.incarnation == self.incarnation:
                    self.found()
            elif isinstance(fact, f.SessionEnded):
                self._sessions.forget(fact.incarnation)
                self._applied.pop(fact.incarnation, None)
                self._heard_ms.pop(fact.incarnation, None)
            elif isinstance(fact, f.WalRetired | f.WalLost):
                self._validated.pop(fact.wal_id, None)

    def _set_away(self, error: StoreError | None) -> None:
        if error is not None and not self._away:
            _log.warning("the metadata log cannot be reached, trying again until it can: %s", error)
        if error is None and self._away:
            _log.info("the metadata log can be reached again")
            self._election.observed(self._clock.boottime_ms())  # a controller that was cut off too gets its lease again
        self._away = error is not None

    async def _pause(self, wait_ms: int) -> None:
        """Until a command comes or the time is over."""
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self.queue.wake.wait()
        except TimeoutError:
            pass
