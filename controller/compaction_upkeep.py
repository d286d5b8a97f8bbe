"""The controller's slow work for compaction: looks at logs that are compacted, opens passes, unpacks manifests.

What becomes true here becomes so by commands like any other. Nothing is urgent; errors of the store end the round.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from controller import facts as f
from controller.commands import OpenCompactions, UnpackManifest
from controller.compacting import Dirty, look, plan
from controller.log_index import LogState
from controller.resting import Resting
from storage.clock import Clock
from storage.manifest import read_manifest
from storage.object_store import ObjectStore, StoreError
from storage.seal import CorruptSegment, RangeMissing

if TYPE_CHECKING:
    from controller.runtime import Runtime

COMPACTION_LEVEL = 3
"""Format level from which on logs are compacted."""

LOOKS_PER_STEP = 50
PASSES_PER_BROKER = 2
"""Open passes: one at work, one that waits."""
MANIFESTS_PER_ROUND = 4
REST_MS = 1_000
REST_MS_MAX = 300_000
_log = logging.getLogger(__name__)


class CompactionUpkeep:
    """Belongs to one runtime; idle while another process is controller."""

    def __init__(
        self,
        runtime: "Runtime",
        store: ObjectStore,
        clock: Clock,
        token: Callable[[int], bytes],
        ask: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._clock = clock
        self._token = token
        self._ask = ask
        self._compacted: dict[int, None] = {}
        """Logs that are compacted, as the last round found them."""
        self._since: dict[int, int] = {}
        """When (wall ms) the oldest of what was committed to them and not cleaned was committed, if it was seen."""
        self._of_pass: dict[int, tuple[int, int]] = {}
        """Log and bound of every open pass that was seen to open."""
        self._resting = Resting(REST_MS, REST_MS_MAX)
        self._broken: set[int] = set()
        self._waiting = 0
        self._wake = asyncio.Event()
        self.dirty_bytes = 0
        """What could be cleaned in all logs, at the last round."""
        self.ratio_max = 0.0
        """Of the dirtiest log."""
        self.logs = 0
        """Logs that are compacted."""
        runtime.replica.subscribe(self._on_facts)

    def _on_facts(self, facts: Sequence[f.Fact]) -> None:
        now = self._runtime.replica.state.wall_ms
        for fact in facts:
            match fact:
                case f.SealCommitted():
                    if self._compacted:
                        for item in fact.objects:
                            for found in item.ranges:
                                if found.log_id in self._compacted:
                                    self._since.setdefault(found.log_id, now)
                case f.CompactionOpened():
                    self._of_pass[fact.job] = fact.log_id, fact.bound
                case f.CompactionClosed():
                    self._closed(fact)
                case f.StateReloaded():
                    self._since.clear()
                    self._of_pass.clear()
                case _:
                    pass
        if not self._runtime.leads:
            self._since.clear()
            self._resting.clear()
            self.dirty_bytes = self.logs = 0
            self.ratio_max = 0.0

    def _closed(self, fact: f.CompactionClosed) -> None:
        log_id, _ = self._of_pass.pop(fact.job, (-1, -1))
        if log_id < 0:
            return
        if fact.clean_end >= 0:
            self._resting.forget(log_id)
            log = self._runtime.replica.state.logs.get(log_id)
            if log is not None and log.end <= fact.clean_end:
                self._since.pop(log_id, None)
            else:
                self._since[log_id] = self._oldest_ms(log_id, fact.clean_end)
            if self._waiting:
                self._wake.set()
        else:
            self._resting.begin(log_id, self._clock.boottime_ms())

    def _oldest_ms(self, log_id: int, clean_end: int) -> int:
        """At most when the oldest record that is not clean came; clients may write times that are yet to come."""
        state = self._runtime.replica.state
        log = state.logs.get(log_id)
        index = 0 if log is None else log.first_row_beyond(clean_end)
        if log is None or not log.range_count:
            return state.wall_ms
        return min(state.newest_ms(log.row(min(max(index - 1, 0), log.range_count - 1))), state.wall_ms)

    def is_compacted(self, log: LogState) -> bool:
        """Whether the topic's policy compacts the log. Coordinators keep their own topics short."""
        topic = self._runtime.replica.state.topics[log.topic]
        return (
            self._runtime.settings.compaction
            and not topic.internal
            and self._runtime.rules.compaction(topic.configs) is not None
        )

    async def run(self) -> None:
        """Rounds: now and then, and one when a pass is over while others wait. Ends when cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._runtime.settings.compaction_check_ms / 1000):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._runtime.leads:
                try:
                    await self._round()
                except StoreError as error:
                    _log.info("a round of compaction ended early: %s", error)

    async def _round(self) -> None:
        """Looks at all logs that are compacted, and opens passes over the dirtiest ones."""
        state = self._runtime.replica.state
        if state.format_level < COMPACTION_LEVEL or not self._runtime.settings.compaction:
            return
        self._resting.wake(self._clock.boottime_ms())
        compacted: dict[int, None] = {}
        found: list[Dirty] = []
        manifests = 0
        for name in list(state.topics):
            topic = state.topics.get(name)
            rules = None if topic is None or topic.internal else self._runtime.rules.compaction(topic.configs)
            if topic is None or rules is None:
                continue
            for number, log_id in enumerate(list(topic.log_ids)):
                log = state.logs.get(log_id)
                if log is None:
                    continue
                compacted[log_id] = None
                if log.manifests:
                    if manifests < MANIFESTS_PER_ROUND and log_id not in self._broken:
                        manifests += 1
                        await self._unpack(log)
                    continue
                dirty = look(state, log, rules, self._clock.now_ms(), self._since.get(log_id))
                if dirty is not None:
                    found.append(dirty)
                if number % LOOKS_PER_STEP == LOOKS_PER_STEP - 1:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        self._compacted = compacted
        self.logs = len(compacted)
        self.dirty_bytes = sum(dirty.dirty_bytes for dirty in found)
        self.ratio_max = max((dirty.ratio for dirty in found), default=0.0)
        due = [dirty for dirty in found if dirty.log_id not in self._resting]
        passes, self._waiting = plan(state, due, PASSES_PER_BROKER)
        if passes:
            await self._ask(OpenCompactions(self._token(16), tuple(passes)))

    async def _unpack(self, log: LogState) -> None:
        """The rows of the log's last manifest come back into the state."""
        pointer = log.manifests[-1]
        try:
            manifest = await read_manifest(self._store, log.log_id, pointer, self._runtime.replica.state.cluster_id)
        except (RangeMissing, CorruptSegment) as error:
            if pointer in log.manifests:
                _log.error("ALARM: log %d cannot be compacted, its manifest cannot be read: %s", log.log_id, error)
                self._broken.add(log.log_id)
            return
        if manifest.first_beyond(log.start) > pointer.first:
            return  # what lies below the start is un-named first
        rows = tuple(
            f.UnpackedRange(row.job, row.size, row.newest_ms, row.range) for row in manifest.rows(pointer.first)
        )
        await self._ask(UnpackManifest(self._token(16), log.log_id, pointer, rows))
