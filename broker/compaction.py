"""Does the passes of compaction that the controller opened for this broker, one after the other.

When a pass ends before its end, the next one begins anew, with what was replaced until then. Outputs are stored and
named one by one, in the order of their offsets, each before the next one is begun. Whatever is refused, missing or
damaged ends the pass.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.configs import TopicDefaults
from broker.job_worker import JobWorker, Workplace
from broker.outputs import ASK_ATTEMPTS, YIELD_S, StreamedOutput, ask
from controller.commands import CloseCompaction, CompactRanges
from controller.compactions import Compaction
from controller.facts import CompactionOpened, Merged, MergePart
from controller.log_index import LogState
from controller.state import ClusterState
from storage.clock import Clock
from storage.compacting import Compactor, Done, Place, RangesChanged, build_map, last_batches
from storage.compaction import LastBatches
from storage.merging import Write
from storage.object_store import StoreError
from storage.offset_map import OffsetMap
from storage.seal import CorruptSegment, RangeMissing, RangeRow, merged_key

log = logging.getLogger(__name__)


class PassGone(Exception):
    """The pass was closed, or its ranges are not as they were."""


class Limits(NamedTuple):
    """Bounds of one broker's passes."""

    map_bytes: int
    object_bytes: int
    producer_expiration_ms: int


def delete_retention_ms(defaults: TopicDefaults, state: ClusterState, name: str) -> int | None:
    """`delete.retention.ms` of a topic; None if it is not compacted, or gone."""
    topic = state.topics.get(name)
    if topic is None or not defaults.compacts(topic.configs):
        return None
    return defaults.number(topic.configs, "delete.retention.ms")


class Compacting(JobWorker[Compaction]):
    """The worker of one broker."""

    opens = CompactionOpened

    def __init__(
        self,
        place: Workplace,
        *,
        clock: Clock,
        limits: Callable[[], Limits],
        delete_retention_ms: Callable[[str], int | None],
    ) -> None:
        """`delete_retention_ms`: of a topic; None if it is not compacted."""
        super().__init__(place)
        self._clock = clock
        self._limits = limits
        self._delete_retention_ms = delete_retention_ms
        self._rest = place.pacer.rest
        self.passes = self.given_up = self.outputs = self.ranges = 0
        self.records_in = self.records_out = 0
        self.map_bytes = 0
        """Memory of the map of the pass at work."""
        self.last_pass_ms = 0
        """Wall time at which the last pass came to its end; 0: none did."""

    def _mine(self) -> list[Compaction]:
        return self._controller.state.compactions.of_incarnation(self._incarnation)

    async def _do(self, one: Compaction) -> None:
        clean_end = -1
        try:
            clean_end = await self._pass(one)
        except (PassGone, RangesChanged):
            pass
        except StoreError as error:
            log.info("compaction %d of log %d is given up: %s", one.number, one.log_id, error)
        except (RangeMissing, CorruptSegment) as error:
            known = self._controller.state.logs.get(one.log_id)
            if known is not None and self._names(known, error.key):  # else retention was faster
                self.alarms += 1
                log.error("ALARM: compaction %d cannot read what is named: %s", one.number, error)
        finally:
            self.map_bytes = 0
        if clean_end < 0:
            self.given_up += 1
        await self._close(one, clean_end)

    def _names(self, known: LogState, key: str) -> bool:
        state = self._controller.state
        return any(state.range_at(known.log_id, index).key == key for index in range(known.range_count))

    async def _pass(self, one: Compaction) -> int:
        """Both halves; the offset below which the log is clean afterwards."""
        known = self._log_of(one)
        retention_ms = self._delete_retention_ms(known.topic)
        newest = self._controller.state.newest_range(one.log_id)
        if retention_ms is None or newest is None:
            raise PassGone
        now_ms = self._clock.now_ms()
        place = Place(
            self._store, self._cluster_id, lambda offset: self._row_at(one, offset), self._writer.read_pace, self._rest
        )
        last = await last_batches(place, newest, now_ms, self._limits().producer_expiration_ms)
        seed = int.from_bytes(self._token(8), "big")
        dirty = sum(row.range.length for row in self._rows(one))
        offsets, _ = await build_map(
            place, one.dirty_from, one.bound, self._limits().map_bytes, seed=seed, dirty_bytes=dirty
        )
        self.map_bytes = offsets.memory_bytes
        await self._replace(one, place, offsets, known.start, now_ms, retention_ms, last)
        return offsets.latest + 1

    async def _replace(
        self,
        one: Compaction,
        place: Place,
        offsets: OffsetMap,
        start: int,
        now_ms: int,
        retention_ms: int,
        last: LastBatches,
    ) -> None:
        compactor = Compactor(
            place,
            offsets,
            start=start,
            now_ms=now_ms,
            delete_retention_ms=retention_ms,
            last=last,
            object_bytes_max=self._limits().object_bytes,
        )
        output: StreamedOutput | None = None

        def begin() -> tuple[int, Write]:
            nonlocal output
            number = self._open(one).next_output
            output = self._writer.output(merged_key(number, one.log_id))
            return number, output.write

        try:
            async for done in compactor.outputs(begin):
                assert output is not None
                part = self._part(one, done.rows)
                await output.finish(done.output.parts)
                output = None
                await self._name(one, part, done)
        except BaseException:
            if output is not None:
                await output.abort()
            raise
        self.records_in += compactor.cleaner.records_in
        self.records_out += compactor.cleaner.records_out
        if compactor.cleaner.unreadable:
            log.warning(
                "log %d of %s holds %d batches that nobody can read: compaction leaves them as they are",
                *(one.log_id, self._log_of(one).topic, compactor.cleaner.unreadable),
            )

    async def _name(self, one: Compaction, part: MergePart, done: Done) -> None:
        """Makes an output that is stored part of the log."""
        number = self._open(one).next_output
        made = Merged(done.output.size, done.output.range)
        command = CompactRanges(self._token(16), self._incarnation, one.number, number, part, made)
        answer = await ask(self._controller, command)
        if answer is None or answer.refused:
            raise PassGone
        self.outputs += 1
        self.ranges += len(done.rows)
        for _ in range(ASK_ATTEMPTS):
            if self._open(one).done > number - one.number:
                return
            await asyncio.sleep(YIELD_S)
        raise PassGone  # the facts of the answer do not come

    def _part(self, one: Compaction, rows: Sequence[RangeRow]) -> MergePart:
        """The ranges as the state has them now; PassGone if they are others."""
        known = self._log_of(one)
        first = known.first_row_beyond(rows[0].range.base)
        state = self._controller.state
        found = [state.range_at(one.log_id, index) for index in range(first, min(first + len(rows), known.range_count))]
        if found != list(rows):
            raise PassGone
        return known.part(first, len(rows))

    async def _close(self, one: Compaction, clean_end: int) -> None:
        """Close the pass, if it is open still."""
        told = False
        while one.number in self._controller.state.compactions.open:
            answer = await ask(
                self._controller, CloseCompaction(self._token(16), self._incarnation, one.number, clean_end)
            )
            if answer is not None and not told and clean_end >= 0:
                told = True
                self.passes += 1
                self.last_pass_ms = self._clock.now_ms()
            for _ in range(ASK_ATTEMPTS):
                if one.number not in self._controller.state.compactions.open:
                    return
                await asyncio.sleep(YIELD_S)

    # What the state says

    def _open(self, one: Compaction) -> Compaction:
        found = self._controller.state.compactions.open.get(one.number)
        if found is None:
            raise PassGone
        return found

    def _log_of(self, one: Compaction) -> LogState:
        self._open(one)
        known = self._controller.state.logs.get(one.log_id)
        if known is None or known.manifests:  # what is in a manifest would not be seen
            raise PassGone
        return known

    def _row_at(self, one: Compaction, offset: int) -> RangeRow | None:
        self._log_of(one)
        rows = self._controller.state.ranges(one.log_id, offset, 1)
        return rows[0] if rows else None

    def _rows(self, one: Compaction) -> list[RangeRow]:
        known = self._log_of(one)
        first = known.first_row_beyond(one.dirty_from)
        found = [self._controller.state.range_at(one.log_id, index) for index in range(first, known.range_count)]
        return [row for row in found if row.range.base < one.bound]
