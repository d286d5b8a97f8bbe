"""Reading an instance back: the exact valid prefix of its groups, and the difference between a torn tail and damage.

Group n is written only after n - 1 is synced. So of the groups on disk only the last may be torn, and a valid group
beyond an invalid one proves that what is invalid was durable once: that is damage, and nobody but an operator may go
on from there. A file ends where the next file begins with the next group number.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from storage.wal.format import (
    FIXED_SIZE,
    PREFIX_SIZE,
    Entry,
    GroupHeader,
    batch_end,
    batch_fault,
    entry_count,
    file_name,
    file_number,
    group_prefix,
    header_size,
    parse_header,
)
from storage.wal.port import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.wal.disk import Disk, DiskFile

_WINDOW = 256 << 10
_SEARCH_WINDOW = 4 << 20
_SECTOR = 4096
_RUN_BYTES = 1 << 20  # batches of one log that lie this close are read together
_RUN_GAP = 32 << 10
_RESCANS = 3
#: Where a batch lies (file number << 40 | position) and its first 16 bytes, taken from its entry.
_PLACE = struct.Struct(">Q16s")
_PLACE_FIELDS = struct.Struct(">Qqii")
_ENTRY_BEGIN = struct.Struct(">qii")
_POSITION_BITS = 40
_POSITION_MASK = (1 << _POSITION_BITS) - 1


class Extent(NamedTuple):
    """What one instance holds of one log under one leader epoch: offsets [base, end)."""

    log_id: int
    leader_epoch: int
    base: int
    end: int
    batches: int
    bytes: int


class Missing(NamedTuple):
    """Offsets of a log that may be lost: [base, end); end None: not known."""

    log_id: int
    leader_epoch: int
    base: int
    end: int | None


class Damage(NamedTuple):
    """Acknowledged bytes are not what was written: `group` is the first invalid one, `found` the valid ones beyond it.

    `missing` names what the headers that can still be read say; groups whose headers are gone may hold more.
    """

    file: str
    position: int
    group: int
    reason: str
    found: tuple[int, int] | None
    missing: list[Missing]

    def __str__(self) -> str:
        later = f", though groups {self.found[0]} to {self.found[1]} were written later" if self.found else ""
        return f"{self.file} at byte {self.position}: group {self.group} {self.reason}{later}"


class StaleCopy(NamedTuple):
    """The files end below what the controller knows to be validated: a restored snapshot, a clone, lost sectors."""

    last_group: int
    validated_group: int

    def __str__(self) -> str:
        return f"the WAL ends with group {self.last_group}, but group {self.validated_group} was acknowledged"


class ScanReport(NamedTuple):
    """The valid prefix. Write no `WalScanned` unless `usable`."""

    entries: list[Extent]  # by log, in append order
    first_group: int  # 0: there is none
    last_group: int
    groups: int
    torn: str | None  # why the last group was dropped; it was never acknowledged
    damage: Damage | None
    stale: StaleCopy | None
    usable: bool


class FoundGroup(NamedTuple):
    """A valid group."""

    file: int
    position: int
    header: GroupHeader


class FirstInvalid(NamedTuple):
    """Where the valid prefix ends: the group that should be there, and its header if that is valid."""

    file: int
    position: int
    group: int
    reason: str
    header: GroupHeader | None


class FileEnd(NamedTuple):
    """Where the groups of a file end, and why no further one is valid there."""

    position: int
    reason: str


class Reader:
    """The files of an instance, read through a window; sectors that the disk cannot read count as zeros."""

    def __init__(self, disk: Disk, path: str, wal_id: bytes) -> None:
        self.unreadable: list[tuple[int, int]] = []  # (file number, position)
        self._disk = disk
        self._path = path
        self._wal_id = wal_id
        self._files: dict[int, DiskFile] = {}
        self._sizes: dict[int, int] = {}
        self._window = (0, 0, b"")  # file number, position, bytes

    def numbers(self) -> list[int]:
        """Open all files; their numbers."""
        self.close()
        listed = (file_number(name) for name in self._disk.names(self._path))
        for number in sorted(number for number in listed if number is not None):
            try:
                self._files[number] = self._disk.open(os.path.join(self._path, file_name(number)))
            except FileNotFoundError:
                continue  # trimmed by its writer a moment ago
            self._sizes[number] = self._files[number].size()
        return list(self._files)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._sizes.clear()
        self._window = (0, 0, b"")
        self.unreadable.clear()

    def size(self, number: int) -> int:
        return self._sizes[number]

    def read(self, number: int, position: int, length: int) -> bytes:
        """Up to `length` bytes, fewer at the end of the file."""
        file = self._files[number]
        try:
            return file.read(position, length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        pieces = []
        end = min(position + length, self._sizes[number])
        while position < end:
            size = min(_SECTOR - position % _SECTOR, end - position)
            try:
                pieces.append(file.read(position, size))
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self.unreadable.append((number, position))
                pieces.append(bytes(size))
            position += size
        return b"".join(pieces)

    def _at(self, number: int, position: int, length: int) -> tuple[bytes, int]:
        """A buffer and where in it the bytes from `position` on are: `length` of them unless the file ends."""
        held, start, data = self._window
        if held != number or position < start or position + length > start + len(data):
            start, data = position, self.read(number, position, max(length, _WINDOW))
            self._window = (number, start, data)
        return data, position - start

    def header(self, number: int, position: int) -> GroupHeader | None:
        """The valid group header at a position, or None."""
        prefix = group_prefix(self._wal_id, number)
        data, at = self._at(number, position, FIXED_SIZE)
        count = entry_count(data, at, prefix)
        if not count:
            return None
        data, at = self._at(number, position, header_size(count))
        return parse_header(data, at, prefix)

    def group(self, number: int, position: int, expected: int | None, *, verify: bool) -> GroupHeader | str:
        """The group at a position, or why it is not valid. Without `verify` its batches are not read."""
        header = self.header(number, position)
        if header is None:
            return "has no valid header"
        if expected is not None and header.group != expected:
            return f"should be here, but group {header.group} is"
        if position + header.size > self._sizes[number]:
            return "is longer than its file"
        if verify:
            at = position + header.header_size
            data = self.read(number, at, header.size - header.header_size)
            view = memoryview(data)
            at = 0
            for entry in header.entries:
                fault = batch_fault(view[at : at + entry.size], entry_begin(entry))
                if fault is not None:
                    return f"is invalid: the batch of log {entry.log_id} at offset {entry.base_offset} {fault}"
                at += entry.size
        return header

    def batch_at(self, number: int, position: int, begin: bytes) -> bytes | None:
        """The batch at a position if it is valid."""
        _, length, _ = _ENTRY_BEGIN.unpack(begin)
        batch = self.read(number, position, length + 12)
        return batch if len(batch) == length + 12 and batch_fault(batch, begin) is None else None

    def search(self, number: int, position: int) -> Iterator[FoundGroup]:
        """Every valid group header of this file from a position on, wherever it begins."""
        # A regular expression: `find` is ten times slower over zeros.
        pattern = re.compile(re.escape(group_prefix(self._wal_id, number)))
        while position < self._sizes[number]:
            data = self.read(number, position, _SEARCH_WINDOW)
            match = pattern.search(data)
            if match is None:
                position += max(1, len(data) - PREFIX_SIZE + 1)
                continue
            position += match.start()
            header = self.header(number, position)
            if header is None:
                position += 1
            else:
                yield FoundGroup(number, position, header)
                position += header.size


def entry_begin(entry: Entry) -> bytes:
    """The first 16 bytes that the entry's batch must have."""
    return _ENTRY_BEGIN.pack(entry.base_offset, entry.batch_length, entry.leader_epoch)


class Walk:
    """One pass over the valid prefix; iterate it, then look at where and why it ended."""

    def __init__(self, reader: Reader, numbers: list[int], *, verify: bool) -> None:
        self.next_group: int | None = None  # None: nothing valid yet
        self.ends: dict[int, FileEnd] = {}
        self.stopped_at = (numbers[0], 0, "has no file") if numbers else (0, 0, "has no file")
        self._reader = reader
        self._numbers = numbers
        self._verify = verify

    def __iter__(self) -> Iterator[FoundGroup]:
        for index, number in enumerate(self._numbers):
            position = 0
            while True:
                found = self._reader.group(number, position, self.next_group, verify=self._verify)
                if isinstance(found, str):
                    break
                self.next_group = found.group + 1
                yield FoundGroup(number, position, found)
                position += found.size
            self.ends[number] = FileEnd(position, found)
            self.stopped_at = (number, position, found)
            if index + 1 == len(self._numbers) or self._numbers[index + 1] != number + 1:
                return
            following = self._reader.header(number + 1, 0)
            if following is None or self.next_group is None or following.group != self.next_group:
                return


class Scanner:
    """Scans one instance and then hands out its batches log by log."""

    def __init__(self, disk: Disk, path: str, wal_id: bytes) -> None:
        self._disk = disk
        self._path = path
        self._reader = Reader(disk, path, wal_id)
        self._places: dict[int, bytearray] = {}  # log -> packed _PLACE of its batches, in append order

    def close(self) -> None:
        self._reader.close()

    def scan(self, validated_group: int, committed_group: int | None, *, accept_loss: bool) -> ScanReport:
        for attempt in range(_RESCANS):
            names = self._disk.names(self._path)
            report = self._scan(validated_group, committed_group, verify=accept_loss)
            if report is None:  # a batch below the last group is not what was written: find the first one
                report = self._scan(validated_group, committed_group, verify=True)
            if report is None:
                raise Damaged(f"{self._path}: the disk returns other bytes at every read")
            # A fenced writer that is still alive may have trimmed a file or finished its last group while we read.
            if report.damage is None or (attempt and self._disk.names(self._path) == names):
                break
        assert report is not None
        return report._replace(usable=accept_loss or (report.damage is None and report.stale is None))

    def batches(self, log_id: int) -> Iterator[tuple[int, int, bytes]]:
        """(leader epoch, base offset, batch) of one log; batches that lie close together are read together."""
        places = list(_PLACE_FIELDS.iter_unpack(self._places.get(log_id, b"")))
        first = 0
        while first < len(places):
            number, start = places[first][0] >> _POSITION_BITS, places[first][0] & _POSITION_MASK
            end = start + places[first][2] + 12
            last = first + 1
            while last < len(places):
                place, _, length, _ = places[last]
                position = place & _POSITION_MASK
                far = position - end > _RUN_GAP or position + length + 12 - start > _RUN_BYTES
                if place >> _POSITION_BITS != number or far:
                    break
                end = position + length + 12
                last += 1
            data = self._reader.read(number, start, end - start)
            for place, base, length, epoch in places[first:last]:
                at = (place & _POSITION_MASK) - start
                batch = data[at : at + length + 12]
                fault = batch_fault(batch, _ENTRY_BEGIN.pack(base, length, epoch))
                if fault is not None:
                    raise Damaged(f"{file_name(number)}: the batch of log {log_id} at offset {base} {fault}")
                yield epoch, base, batch
            first = last

    def _scan(self, validated_group: int, committed_group: int | None, *, verify: bool) -> ScanReport | None:
        """None: a batch that must be valid is not, which `verify` finds out for every one."""
        reader = self._reader
        numbers = reader.numbers()
        walk = Walk(reader, numbers, verify=verify)
        self._places = {}
        first: FoundGroup | None = None
        last: FoundGroup | None = None
        groups = 0
        for last in walk:
            first = first or last
            groups += 1
            self._remember(last)
        stop_file, stop_position, reason = walk.stopped_at
        stop_group = walk.next_group or 0
        if last is not None and not verify:
            whole = reader.group(last.file, last.position, last.header.group, verify=True)
            if isinstance(whole, str):
                self._forget(last)
                groups -= 1
                stop_file, stop_position, stop_group, reason = last.file, last.position, last.header.group, whole
        last_group = stop_group - 1 if groups else 0
        own = reader.header(stop_file, stop_position) if numbers else None
        if walk.next_group is None:  # nothing is valid: which group is it that should be there?
            stop_group = own.group if own is not None else int(numbers[:1] == [1])
        elif own is not None and own.group != stop_group:
            own = None
        damage = self._evidence(numbers, FirstInvalid(stop_file, stop_position, stop_group, reason, own))
        damage = damage or self._front(numbers, first if groups else None, committed_group)
        torn = f"group {stop_group} {reason}" if own is not None and damage is None else None
        extents = self._extents()
        if extents is None:
            return None
        stale = StaleCopy(last_group, validated_group) if last_group < validated_group else None
        first_group = first.header.group if first is not None and groups else 0
        return ScanReport(extents, first_group, last_group, groups, torn, damage, stale, False)

    def _remember(self, found: FoundGroup) -> None:
        place = (found.file << _POSITION_BITS) + found.position + found.header.header_size
        for log_id, base, length, epoch in found.header.entries:
            packed = _PLACE_FIELDS.pack(place, base, length, epoch)
            known = self._places.get(log_id)
            if known is None:
                self._places[log_id] = bytearray(packed)
            else:
                known += packed
            place += length + 12

    def _forget(self, found: FoundGroup) -> None:
        for entry in found.header.entries:
            places = self._places[entry.log_id]
            del places[-_PLACE.size :]
            if not places:
                del self._places[entry.log_id]

    def _extents(self) -> list[Extent] | None:
        """By log and run of one epoch; None when the last batch of one is not valid."""
        extents = []
        for log_id, places in sorted(self._places.items()):
            run: tuple[int, int, int, int] | None = None  # epoch, base, batches, bytes
            previous = (0, b"")
            for packed in range(0, len(places), _PLACE.size):
                _, base, length, epoch = _PLACE_FIELDS.unpack_from(places, packed)
                if run is not None and run[0] == epoch:
                    run = (epoch, run[1], run[2] + 1, run[3] + length + 12)
                else:
                    if run is not None:
                        extents.append(self._extent(log_id, run, previous))
                    run = (epoch, base, 1, length + 12)
                previous = _PLACE.unpack_from(places, packed)
            assert run is not None
            extents.append(self._extent(log_id, run, previous))
        whole = [extent for extent in extents if extent is not None]
        return whole if len(whole) == len(extents) else None

    def _extent(self, log_id: int, run: tuple[int, int, int, int], last: tuple[int, bytes]) -> Extent | None:
        epoch, base, batches, size = run
        place, begin = last
        batch = self._reader.batch_at(place >> _POSITION_BITS, place & _POSITION_MASK, begin)
        if batch is None:
            return None
        end = batch_end(batch, _ENTRY_BEGIN.unpack(begin)[0])
        return Extent(log_id, epoch, base, end, batches, size)

    def _evidence(self, numbers: list[int], stop: FirstInvalid) -> Damage | None:
        """Damage if any valid group lies beyond the first invalid one."""
        found: list[FoundGroup] = []
        for number in numbers:
            if number > stop.file:
                found += self._reader.search(number, 0)
            elif number == stop.file:
                found += self._reader.search(number, stop.position + (stop.header.size if stop.header else 1))
        if not found:
            return None
        span = (min(place.header.group for place in found), max(place.header.group for place in found))
        if stop.header is not None:  # it can be read, its batches are damaged
            found.insert(0, FoundGroup(stop.file, stop.position, stop.header))
        missing = dict[tuple[int, int], Missing]()
        for place in found:
            at = place.position + place.header.header_size
            for entry in place.header.entries:
                key = (entry.log_id, entry.leader_epoch)
                batch = self._reader.batch_at(place.file, at, entry_begin(entry))
                end = None if batch is None else batch_end(batch, entry.base_offset)
                base = missing[key].base if key in missing else entry.base_offset
                missing[key] = Missing(*key, base, end)
                at += entry.size
        return Damage(
            file_name(stop.file),
            stop.position,
            stop.group,
            stop.reason,
            span,
            [missing[key] for key in sorted(missing)],
        )

    def _front(self, numbers: list[int], first: FoundGroup | None, committed_group: int | None) -> Damage | None:
        """Damage if groups are missing at the front: a file was lost."""
        if first is None:
            return None
        wanted = None
        if numbers[0] == 1:
            wanted = 1
        elif committed_group is not None:
            wanted = committed_group + 1
        if wanted is None or first.header.group <= wanted:
            return None
        reason = f"is missing: the files begin with group {first.header.group}"
        return Damage(file_name(first.file), 0, wanted, reason, None, [])
