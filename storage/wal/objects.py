"""The object WAL: groups of batches as objects of the bucket, created if absent, several on their way at a time.

A group counts (acknowledgements, high watermarks, commits) only when it and every lower one are known to be stored. An
object that was refused because its key exists is ours if it carries our nonce; anything else under our key ends the
process: somebody recovers this instance. Outcomes that are not known are looked up, then the identical bytes are sent
again; no number is ever left out. A late attempt may create a deleted object once more: nobody trusts an object at or
below the committed number.

Everything runs on the event loop. What is not written yet waits in memory (it is in the tails as well); how much may be
written and not committed is bounded, and full is told before an offset is assigned.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from storage.object_store import NotFound, PreconditionFailed, StoreError, body_size
from storage.wal.format import ENTRY, LONE_OVERHEAD
from storage.wal.object_format import (
    FENCE,
    GROUP,
    HEADER_SIZE,
    LANE,
    OVERHEAD,
    PREFIX,
    ObjectName,
    check_name,
    encode_group,
    object_key,
    parse_object_header,
)
from storage.wal.port import Damaged, Fenced, WalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol import Buffer
    from storage.object_store import ObjectStore
    from storage.tasks import TaskOwner
    from storage.wal.port import OnDurable, OnFailed, OnRoom

log = logging.getLogger(__name__)

ENTRIES_MAX = 32_768
"""Batches in one object."""
ATTEMPT_S = 3.0
ATTEMPT_BYTES_PER_S = 1 << 20
"""After so long an attempt counts as unknown: the store is looked at and asked again."""
BACKOFF_S, BACKOFF_S_MAX = 0.05, 2.0
DELETES_AT_ONCE = 16
CLOSE_S = 5.0
"""What is queued at `close`, or left to delete at `remove`, gets so long."""
_INTERNAL_SHARE = 20
_LARGEST_SHARE = 4
"""No batch may take more than this part of the space."""
_NEVER = 1 << 62
_HISTOGRAM_BUCKETS = 25
_HOUR_S = 3_600
_SLOT_S = 60


class ObjectWalSettings(NamedTuple):
    """When a group is stored, and bounds. Times in ms, sizes in bytes with headers."""

    interval_ms: int = 250
    """At most one group begins in this time, unless more is waiting."""
    busy_interval_ms: int = 100
    """The same once `busy_bytes` are waiting."""
    busy_bytes: int = 64 << 10
    group_bytes: int = 4 << 20
    """As much is stored at once, without waiting."""
    in_flight_max: int = 8
    """Groups that are stored at the same time, those included that wait for a lower one."""
    bytes_max: int = 1 << 30
    """What may be stored and not yet committed to segments."""


class _Flight:
    """One group from its first attempt until it and all lower ones are stored."""

    __slots__ = ("began", "body", "cost", "group", "nonce", "sequence", "size", "stored")

    def __init__(self, group: int, nonce: bytes, body: list[Buffer], sequence: int, cost: int, began: float) -> None:
        self.group = group
        self.nonce = nonce
        self.body = body
        self.sequence = sequence  # of its last batch
        self.cost = cost  # of all batches ever appended, up to its end
        self.began = began  # loop time
        self.size = body_size(body)
        self.stored = False


class ObjectWal:
    """One open instance: objects `wal/<wal_id hex>/<lane>/<number>`. Every method is for the event loop's thread."""

    kind = "objects"
    fence_kind = "storage"

    def __init__(
        self,
        store: ObjectStore,
        tasks: TaskOwner,
        *,
        wal_id: bytes,
        token: Callable[[int], bytes],
        on_durable: OnDurable,
        on_failed: OnFailed,
        on_room: OnRoom,
        message_bytes_max: int,
        settings: ObjectWalSettings | None = None,
    ) -> None:
        """Nothing is stored before the first append. `tasks` own what is on its way; `token(n)`: n random bytes.

        `message_bytes_max` is the largest batch that must fit; WalError for settings that contradict each other.
        """
        self.settings = settings or ObjectWalSettings()
        if message_bytes_max + OVERHEAD > self.settings.bytes_max // _LARGEST_SHARE:
            raise WalError(
                f"tidelog.wal.objects.bytes.max={self.settings.bytes_max} is too little for batches of "
                f"message.max.bytes={message_bytes_max}: make it at least "
                f"{_LARGEST_SHARE * (message_bytes_max + OVERHEAD)}"
            )
        self.wal_id = wal_id
        self.path = f"{PREFIX}{wal_id.hex()}"
        self.fenced = False
        self.appended = 0
        self.durable = (0, 0)  # sequence and group last reported
        self.batch_bytes_max = self.settings.bytes_max // _LARGEST_SHARE - OVERHEAD
        self._store = store
        self._tasks = tasks
        self._token = token
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, Buffer]] = deque()
        self._queued = 0  # cost of what waits
        self._mark = 1  # when as much waits, `_schedule` decides anew
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._last_sent = float("-inf")
        self._flights: deque[_Flight] = deque()
        self._group = 0  # last one given out
        self._failed = False
        self._closing = False
        self._idle = asyncio.Event()  # nothing is queued and nothing on its way
        self._idle.set()
        self._group_base = 1  # number of the first group in `_ends`
        self._ends = array("q")  # last sequence of each durable group that is not trimmed
        self._costs: deque[int] = deque()  # the same of their costs
        self._trimmed = 0
        self._trimmed_sequence = 0
        self._deleted = 0
        self._deleter: asyncio.Task[None] | None = None
        self._cost = 0  # of all batches ever appended
        self._freed = 0  # of those that were trimmed
        self._reserve = self.settings.bytes_max // _INTERNAL_SHARE
        self._refused: dict[bool, int] = {}  # internal -> smallest refused cost
        self._away = False
        # Counters, for a scraper.
        self.batches = self.bytes = self.puts = self.looks = self.deletes = 0
        self.put_ns_sum = 0
        self.put_histogram = [0] * _HISTOGRAM_BUCKETS  # [i]: puts that took less than 2**i us, and not 2**(i-1)
        self._puts_by_minute: deque[tuple[int, int]] = deque()

    def append(self, log_id: int, leader_epoch: int, base_offset: int, batch: Buffer) -> int:
        """Queue one batch and return its sequence."""
        size = len(batch)
        entry = ENTRY.pack(log_id, base_offset, size - 12, leader_epoch)
        assert batch[:16] == entry[4:], "the batch's own offset, length and epoch must be those of the append"
        self._cost += size + LONE_OVERHEAD
        self._queue.append((entry, batch))
        self._queued = queued = self._queued + size + LONE_OVERHEAD
        self.appended = sequence = self.appended + 1
        if queued >= self._mark:
            self._schedule()
        return sequence

    def has_room(self, n_bytes: int, *, internal: bool, batches: int = 1) -> bool:
        """Whether so much more may wait for its commit. The last 5 % are for `internal` logs."""
        cost = self._cost + n_bytes + batches * LONE_OVERHEAD
        if cost <= self._limit(internal) and not self._failed:
            return True
        self._refused[internal] = min(cost - self._cost, self._refused.get(internal, _NEVER))
        return False

    def _limit(self, internal: bool) -> int:
        return self._freed + self.settings.bytes_max - (0 if internal else self._reserve)

    def group_below(self, sequence: int) -> int:
        """The highest group all of whose sequences are durable and lower than `sequence`; 0 when there is none."""
        assert sequence > self._trimmed_sequence, "the sequence was trimmed"
        return self._group_base - 1 + bisect_left(self._ends, sequence)

    def trim(self, through_group: int) -> None:
        """Groups up to `through_group` are committed by applied facts: their objects are deleted beside all else."""
        count = through_group + 1 - self._group_base
        assert count <= len(self._ends), f"group {through_group} is not durable"
        if count <= 0:
            return
        self._trimmed_sequence = self._ends[count - 1]
        del self._ends[:count]
        for _ in range(count):
            self._freed = self._costs.popleft()
        self._group_base = through_group + 1
        self._trimmed = through_group
        if not self._closing and (self._deleter is None or self._deleter.done()):
            self._deleter = self._tasks.create_task(self._delete_trimmed())
        for internal, cost in list(self._refused.items()):
            if not self._failed and self._cost + cost <= self._limit(internal):
                self._refused.clear()
                self._on_room()
                return

    def look_for_fence(self) -> bool:
        """What is known of a fence; acknowledging needs the session beside it."""
        return self.fenced

    async def ready(self) -> None:
        """Nothing has to be prepared."""

    async def close(self) -> None:
        """Store what is queued and stop. Without a store this gives up soon: nothing of it was acknowledged."""
        self._closing = True
        self._schedule()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._idle.wait()
        except TimeoutError:
            pass
        self.stop()

    async def remove(self) -> None:
        """Stop and delete the objects: only after a fact says that the instance is retired. The rest is collected."""
        self.stop()
        self._trimmed = self._group
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._delete_trimmed()
        except TimeoutError:
            log.info("objects of %s are left to the collector", self.path)

    def stop(self) -> None:
        """Stop at once. What is not durable yet was acknowledged to nobody."""
        self._closing = self._failed = True
        self._idle.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # When a group is stored

    def _schedule(self) -> None:
        """Decide when the next group begins; asked whenever that may have changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        settings = self.settings
        if not self._queue or self._failed or len(self._flights) >= settings.in_flight_max:
            self._mark = 1 if not self._queue else _NEVER
            if not self._queue and not self._flights:
                self._idle.set()
            return
        self._idle.clear()
        if self._queued >= settings.group_bytes or self._closing:
            self._mark, when = _NEVER, 0.0
        elif self._queued >= settings.busy_bytes:
            self._mark, when = settings.group_bytes, self._last_sent + settings.busy_interval_ms / 1000
        else:
            self._mark, when = settings.busy_bytes, self._last_sent + settings.interval_ms / 1000
        if when <= self._loop.time():
            # At the end of this turn of the loop, so that everything appended in it becomes one group.
            self._mark = _NEVER
            self._timer = self._loop.call_soon(self._send)
        else:
            self._timer = self._loop.call_at(when, self._send)

    def _send(self) -> None:
        self._timer = None
        self._last_sent = self._loop.time()
        while True:
            flight = self._take()
            self._flights.append(flight)
            self._tasks.create_task(self._store_group(flight))
            if self._queued < self.settings.group_bytes or len(self._flights) >= self.settings.in_flight_max:
                break
        self._schedule()

    def _take(self) -> _Flight:
        """What is queued, up to the size of a group."""
        queue, most = self._queue, self.settings.group_bytes
        entries: list[bytes] = []
        body: list[Buffer] = [b""]
        size = 0
        while queue and len(entries) < ENTRIES_MAX:
            cost = len(queue[0][1]) + LONE_OVERHEAD
            if entries and size + cost > most:
                break
            entry, batch = queue.popleft()
            entries.append(entry)
            body.append(batch)
            size += cost
        self._queued -= size
        self._group += 1
        nonce = self._token(16)
        body[0] = encode_group(self.wal_id, LANE, self._group, nonce, entries)
        before = self._flights[-1] if self._flights else None
        sequence = self.durable[0] if before is None else before.sequence
        cost = self._durable_cost if before is None else before.cost
        return _Flight(self._group, nonce, body, sequence + len(entries), cost + size, self._loop.time())

    @property
    def _durable_cost(self) -> int:
        return self._costs[-1] if self._costs else self._freed

    # One group

    async def _store_group(self, flight: _Flight) -> None:
        """Attempts until the group is stored, or until something else lies under its key."""
        try:
            wait_s = BACKOFF_S
            while not await self._attempt(flight):
                if self._failed:
                    return
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S_MAX)
        except WalError as error:
            self._fail(error)
            return
        if self._away:
            self._away = False
            log.info("groups of the WAL are stored again")
        flight.stored = True
        self._count(flight)
        self._advance()

    async def _attempt(self, flight: _Flight) -> bool:
        """Whether the group is stored; False: not known, or certainly not. Fenced, Damaged: it never will be."""
        key = object_key(self.wal_id, LANE, flight.group)
        try:
            async with asyncio.timeout(ATTEMPT_S + flight.size / ATTEMPT_BYTES_PER_S):
                self._count_put()
                try:
                    await self._store.put_if_absent(key, flight.body)
                except PreconditionFailed:
                    return await self._is_ours(flight, key)
                return True
        except (StoreError, TimeoutError) as error:
            self._note_away(error)
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await self._is_ours(flight, key)
        except (StoreError, TimeoutError):
            return False

    async def _is_ours(self, flight: _Flight, key: str) -> bool:
        """Whether our object lies there; False: none does. Fenced or Damaged: another one."""
        self.looks += 1
        try:
            head = await self._store.get_range(key, 0, HEADER_SIZE)
        except NotFound:
            try:
                size = (await self._store.head(key)).size
            except NotFound:
                return False
            if size >= HEADER_SIZE:
                return False  # it landed between the two: look again
            head = b""
        try:
            header = parse_object_header(head)
            check_name(header, ObjectName(self.wal_id, LANE, flight.group))
        except WalError as error:
            raise Damaged(f"{key} is not what this process stores there: it {error}") from None
        if header.what == FENCE:
            raise Fenced(f"{key} is a fence: another broker recovers this WAL, nothing more is ours to acknowledge")
        if header.what != GROUP or header.nonce != flight.nonce:
            raise Fenced(f"{key} was written by somebody else: two processes write one WAL; this one stops")
        return True

    def _advance(self) -> None:
        """Report the groups that are stored without a hole below them."""
        if self._failed:
            return
        flights, before = self._flights, self.durable
        while flights and flights[0].stored:
            flight = flights.popleft()
            self._ends.append(flight.sequence)
            self._costs.append(flight.cost)
            self.durable = (flight.sequence, flight.group)
        if self.durable != before:
            self._schedule()
            self._on_durable(*self.durable)

    def _fail(self, error: WalError) -> None:
        if not self._failed:
            self.stop()
            self.fenced = isinstance(error, Fenced)
            self._on_failed(error)

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            log.warning("groups of the WAL cannot be stored, trying on: %s", str(error) or "no answer in time")

    # Deletion

    async def _delete_trimmed(self) -> None:
        """Delete what is committed, a few objects at a time; what a dead process leaves is collected once retired."""
        wait_s = BACKOFF_S
        while self._deleted < self._trimmed:
            through = min(self._deleted + DELETES_AT_ONCE, self._trimmed)
            keys = [object_key(self.wal_id, LANE, number) for number in range(self._deleted + 1, through + 1)]
            outcomes = await asyncio.gather(*map(self._store.delete, keys), return_exceptions=True)
            self.deletes += len(keys)
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if not errors:
                self._deleted, wait_s = through, BACKOFF_S
                continue
            for error in errors:
                if not isinstance(error, StoreError):
                    raise error
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S_MAX)

    # Counters, for a scraper

    def _count_put(self) -> None:
        self.puts += 1
        slot = int(self._loop.time()) // _SLOT_S
        minutes = self._puts_by_minute
        if not minutes or minutes[-1][0] != slot:
            minutes.append((slot, self.puts - 1))
        while minutes[0][0] <= slot - _HOUR_S // _SLOT_S:
            minutes.popleft()

    def _count(self, flight: _Flight) -> None:
        took_us = int((self._loop.time() - flight.began) * 1_000_000)
        self.batches += len(flight.body) - 1
        self.bytes += flight.size
        self.put_ns_sum += took_us * 1000
        self.put_histogram[min(took_us.bit_length(), _HISTOGRAM_BUCKETS - 1)] += 1
        flight.body = []

    @property
    def puts_last_hour(self) -> int:
        """PUTs that began in the last hour: what a bill counts."""
        oldest = int(self._loop.time()) // _SLOT_S - _HOUR_S // _SLOT_S
        return next((self.puts - before for slot, before in self._puts_by_minute if slot > oldest), 0)

    @property
    def groups(self) -> int:
        return self.durable[1]

    @property
    def queue_depth(self) -> int:
        return self.appended - self.durable[0]

    @property
    def in_flight(self) -> int:
        """Groups on their way."""
        return len(self._flights)

    @property
    def oldest_in_flight_s(self) -> float:
        """Age of the oldest group that is not stored yet."""
        return self._loop.time() - self._flights[0].began if self._flights else 0.0

    @property
    def free_bytes(self) -> int:
        """What clients may still append."""
        return max(0, self._limit(False) - self._cost)
