"""Reading an `objects` instance back, fencing it at its first hole. Any broker can do it.

It begins above the number that the facts call committed: a lower object that is gone was deleted, it is no hole. What
is present is read in order; at the first absent number the fence is created, if it is still absent: from then on the
writer can store nothing there, so it can never again acknowledge anything. What lies beyond the fence is void for ever.
A writer that is faster than its recoverer is stopped by a barrier: another fence some numbers ahead, where it gets to
later. It decides nothing unless all below it is present. A store that is away is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from storage.object_store import NotFound, ObjectStore, PreconditionFailed, StoreError
from storage.wal.format import Entry, batch_end
from storage.wal.object_format import (
    FENCE,
    HEADER_SIZE,
    LANE,
    PREFIX,
    ObjectGroup,
    ObjectName,
    check_name,
    encode_fence,
    object_key,
    parse_group,
    parse_group_header,
    parse_object_header,
)
from storage.wal.port import Damaged, WalError
from storage.wal.recovery import Damage, Extent, Missing, ScanReport, StaleCopy

log = logging.getLogger(__name__)

READS_AT_ONCE = 32
READS_FIRST = 8
READ_BYTES = 32 << 20
"""Objects are read ahead up to so many, and up to about so many bytes."""
CACHE_BYTES = 32 << 20
"""Of what the scan read, so much stays for the replay; the rest is read again."""
BARRIER_AHEAD, BARRIER_AHEAD_MAX = 32, 1024
"""So far ahead of a writer that was faster its way is barred; twice as far after each further race."""
RETRY_S = 0.2
RETRY_S_MAX = 2.0
ATTEMPT_S = 10.0


class _Found(NamedTuple):
    """What lies under a number: a group, a fence, or something that cannot be read (`fault`)."""

    data: bytes
    fence: bool = False
    fault: str = ""


class ObjectInstance:
    """One instance, for the broker that was named to recover it. `fence_and_scan` comes first."""

    def __init__(
        self, store: ObjectStore, wal_id: bytes, *, token: Callable[[int], bytes], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.wal_id = wal_id
        self.path = f"{PREFIX}{wal_id.hex()}"
        self.fence: int | None = None
        """Where the fence is, after the scan."""
        self._store = store
        self._token = token
        self._cache_bytes = cache_bytes
        self._cache: dict[int, bytes] = {}
        self._cached = 0
        self._largest = READ_BYTES // READS_FIRST
        self._first = self._last = 0
        """The numbers that hold the valid prefix, `_first` to `_last`."""

    def close(self) -> None:
        """Forget what was read."""
        self._cache.clear()
        self._cached = 0

    async def fence_and_scan(
        self, *, validated_group: int = 0, committed_group: int = 0, accept_loss: bool = False
    ) -> ScanReport:
        """Stop the writer and find the valid prefix; every checksum is verified. Repeatable.

        As `Instance.scan`: damage and missing groups are reported, not raised, and `usable` tells. A group is never
        torn: an object is whole or absent.
        """
        self.close()
        self._first, number = committed_group + 1, committed_group + 1
        runs = _Runs()
        damage: Damage | None = None
        async for number, found in self._present(self._first):
            name = ObjectName(self.wal_id, LANE, number)
            if damage is None:
                try:
                    runs.add(_group(found, name))
                    self._keep(number, found.data)
                    continue
                except Damaged as error:
                    damage = Damage(object_key(*name), 0, number, str(error), None, [])
            damage = _with_missing(damage, found, name)
        assert self.fence is not None
        self._last = (self.fence if damage is None else damage.group) - 1
        stale = StaleCopy(self._last, validated_group) if damage is None and self._last < validated_group else None
        groups = max(0, self._last - committed_group)
        return ScanReport(
            runs.extents(),
            self._first if groups else 0,
            self._last,
            groups,
            None,
            damage,
            stale,
            accept_loss or (damage is None and stale is None),
        )

    async def groups(self) -> AsyncIterator[ObjectGroup]:
        """The valid prefix in order, after the scan. Damaged when an object is not what the scan read."""
        number = self._first
        while number <= self._last:
            count = min(self._window(), self._last + 1 - number)
            wanted = range(number, number + count)
            for at, found in zip(wanted, await self._read_all(wanted)):
                if found is None:
                    raise Damaged(f"{object_key(self.wal_id, LANE, at)} has disappeared")
                yield _group(found, ObjectName(self.wal_id, LANE, at))
            number += count

    async def _present(self, first: int) -> AsyncIterator[tuple[int, _Found]]:
        """Every number from `first` on that is present, up to the fence, which is there when this ends."""
        number, ahead_of_writer = first, BARRIER_AHEAD
        while True:
            window = range(number, number + self._window())
            ahead = dict(zip(window, await self._read_all(window)))
            raced = False
            for number in window:
                found = ahead[number]
                if found is None and raced:
                    found = await self._read(number)  # what was read ahead is old
                while found is None or found.fence:
                    if found is not None or await self._create_fence(number):
                        self.fence = number
                        return
                    await self._create_fence(number + ahead_of_writer)
                    ahead_of_writer, raced = min(2 * ahead_of_writer, BARRIER_AHEAD_MAX), True
                    found = await self._read(number)
                yield number, found
            number = window.stop

    async def _create_fence(self, number: int) -> bool:
        """Whether it is ours; False: something is there, or may be."""
        key = object_key(self.wal_id, LANE, number)
        body = encode_fence(self.wal_id, LANE, number, self._token(16))
        wait_s = RETRY_S
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    await self._store.put_if_absent(key, body)
                return True
            except PreconditionFailed:
                return False
            except (StoreError, TimeoutError) as error:
                log.info("%s cannot be fenced yet: %s", self.path, str(error) or "no answer in time")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)
            if await self._read(number) is not None:
                return False

    def _window(self) -> int:
        return max(1, min(READS_AT_ONCE, READ_BYTES // self._largest))

    async def _read_all(self, numbers: range) -> list[_Found | None]:
        found = await asyncio.gather(*map(self._read, numbers))
        sizes = [len(each.data) for each in found if each is not None]
        if sizes:
            self._largest = max(HEADER_SIZE, *sizes)
        return found

    async def _read(self, number: int) -> _Found | None:
        """What lies there; None: nothing. However long it takes."""
        cached = self._cache.get(number)
        if cached is not None:
            return _Found(cached)
        key = object_key(self.wal_id, LANE, number)
        wait_s = RETRY_S
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_S + self._largest / (1 << 20)):
                    data = (await self._store.get(key)).data
            except NotFound:
                return None
            except (StoreError, TimeoutError) as error:
                log.info("%s cannot be read yet: %s", key, str(error) or "no answer in time")
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                continue
            try:
                header = parse_object_header(data)
                check_name(header, ObjectName(self.wal_id, LANE, number))
            except WalError as error:
                return _Found(data, fault=str(error))
            return _Found(data, fence=header.what == FENCE)

    def _keep(self, number: int, data: bytes) -> None:
        if self._cached + len(data) <= self._cache_bytes:
            self._cache[number] = data
            self._cached += len(data)


def _group(found: _Found, name: ObjectName) -> ObjectGroup:
    if found.fault:
        raise Damaged(found.fault)
    return parse_group(found.data, name)


def _with_missing(damage: Damage, found: _Found, name: ObjectName) -> Damage:
    """The damage, with what may be lost of one more object: the damaged one or one beyond it."""
    header = None if found.fault else parse_group_header(found.data, name)
    missing = {(part.log_id, part.leader_epoch): part for part in damage.missing}
    at = HEADER_SIZE + (header.header_size if header is not None else 0)
    for entry in header.entries if header is not None else ():
        batch = found.data[at : at + entry.size]
        end = batch_end(batch, entry.base_offset) if len(batch) == entry.size else None
        key = (entry.log_id, entry.leader_epoch)
        base = missing[key].base if key in missing else entry.base_offset
        missing[key] = Missing(*key, base, end)
        at += entry.size
    beyond = damage.found
    if name.sequence > damage.group:
        beyond = (beyond[0] if beyond else name.sequence, name.sequence)
    return damage._replace(found=beyond, missing=[missing[key] for key in sorted(missing)])


class _Runs:
    """What is found of each log, run by run of one epoch."""

    def __init__(self) -> None:
        self._logs: dict[int, list[Extent]] = {}

    def add(self, group: ObjectGroup) -> None:
        for entry, batch in group.batches:
            self._add(entry, batch_end(batch, entry.base_offset))

    def _add(self, entry: Entry, end: int) -> None:
        runs = self._logs.setdefault(entry.log_id, [])
        if runs and runs[-1].leader_epoch == entry.leader_epoch:
            last = runs[-1]
            runs[-1] = last._replace(end=end, batches=last.batches + 1, bytes=last.bytes + entry.size)
        else:
            runs.append(Extent(entry.log_id, entry.leader_epoch, entry.base_offset, end, 1, entry.size))

    def extents(self) -> list[Extent]:
        return [run for _, runs in sorted(self._logs.items()) for run in runs]
