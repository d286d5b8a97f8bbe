"""A compacted topic in a world: producers with keys and tombstones, readers of the whole table, and what they must see.

Everything follows from the value, a number that nobody else in the history has: its key, and whether it is written as a
tombstone. Events are recorded as `table.*`, so that the judge of logs, in which nothing may be missing, leaves them
alone; `judge` here is pure.
"""

from __future__ import annotations

import random  # noqa: TID251
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE
from protocol.records import NewRecord, build_batch, iterate_batches, records
from tests.simulation.book import Finding, Loss
from tests.simulation.client import (
    EARLIEST,
    LATEST,
    NO_TOPIC_ID,
    Disconnected,
    Part,
    Recorder,
    SimulatedClient,
    decode_value,
    encode_value,
    sleep_ms,
)
from tests.simulation.history import Event
from tests.simulation.producers import TIMESTAMP_MS, Batch, IdempotentProducer

TABLE = "table"
PART: Part = (TABLE, 0)
KEYS = 60
RECORD_BYTES_MAX = 1 << 20
TOMBSTONE = -1
MS = 1_000_000


def key_of(value: int) -> int:
    """The key that a value is written under."""
    return value * 7 % KEYS


def is_tombstone(value: int) -> bool:
    """Whether it is written as a tombstone."""
    return value // KEYS % 4 == 0


class Renamed:
    """A recorder for events of tables."""

    def __init__(self, history: Recorder) -> None:
        self._history = history

    def record(self, kind: str, **fields: Any) -> None:
        self._history.record(kind if kind.startswith("table.") else f"table.{kind}", **fields)


class TableProducer(IdempotentProducer):
    """An idempotent producer whose records have keys."""

    def make_batch(self, part: Part, values: tuple[int, ...], **fields: Any) -> Batch:
        low, high = self.load.value_bytes
        made: list[NewRecord] = []
        for value in values:
            data = None if is_tombstone(value) else encode_value(value, self.rng.randint(low, high))
            made.append((TIMESTAMP_MS, b"key %d" % key_of(value), data, ()))
        codec = self.rng.choice([0, 0, 2, 3, 4])
        data = bytes(build_batch(made, codec=codec, **fields))
        return Batch(part, values, data, next(self.numbers), fields.get("base_sequence", -1))


class TableReader(SimulatedClient):
    """Reads the whole table, from its start to where it ended when the read began: again and again, or `once`."""

    def __init__(
        self, *args: Any, once: bool = False, pause_ms: tuple[int, int] = (300, 2_000), **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.once = once
        self.pause_ms = pause_ms
        self.max_bytes = self.rng.choice([600, 3_000, 20_000])
        self.rest_ms = self.rng.choice([0, 0, 100])

    async def main(self) -> None:
        while self.once or not self.stopping:
            if await self._read() and self.once:
                return
            await sleep_ms(self.rng.randint(*self.pause_ms))

    async def _read(self) -> bool:
        """One read; whether it came to its end."""
        number = next(self.numbers)
        start = await self.offset_patiently(PART, EARLIEST)
        end = await self.offset_patiently(PART, LATEST)
        self.history.record("table.begin", client=self.name, read=number)
        found: list[tuple[int, int, int]] = []
        position, failed = start, 0
        while position < end and failed < 200 and (self.once or not self.stopping):
            try:
                address = await self.leader_address(PART)
                answer = await self.ask(address, ApiKey.FETCH, 12, self._request(position))
            except Disconnected:
                failed += 1
                await self.back_off()
                continue
            one = answer.responses[0].partitions[0]
            if one.error_code:
                failed += 1
                self.leaders.pop(PART, None)
                if one.error_code not in RETRIABLE:
                    fields = {"client": self.name, "read": number, "offset": position, "error": one.error_code}
                    self.history.record("table.refused", **fields)
                    return False
                await self.back_off()
                continue
            got, following = parse(one.records, position)
            if self.rest_ms and not self.once:
                await sleep_ms(self.rng.randint(0, self.rest_ms))
            found += got
            failed = 0 if following > position else failed + 1
            position = following
        whole = position >= end
        fields = {"client": self.name, "read": number, "start": start, "end": end, "whole": whole}
        self.history.record("table.read", **fields, final=self.once, position=position, records=tuple(found))
        return whole

    def _request(self, position: int) -> Any:
        asked = m.FetchRequest.FetchPartition(
            partition=PART[1],
            fetch_offset=position,
            partition_max_bytes=self.max_bytes,
            current_leader_epoch=-1,
            last_fetched_epoch=-1,
        )
        topics = [m.FetchRequest.FetchTopic(topic=TABLE, topic_id=NO_TOPIC_ID, partitions=[asked])]
        return m.FetchRequest(
            max_wait_ms=100,
            min_bytes=1,
            max_bytes=self.max_bytes,
            isolation_level=0,
            session_id=0,
            session_epoch=-1,
            topics=topics,
            forgotten_topics_data=[],
        )


def parse(data: Any, position: int) -> tuple[list[tuple[int, int, int]], int]:
    """((offset, key, value or TOMBSTONE) of the records from `position` on, where to go on)."""
    found: list[tuple[int, int, int]] = []
    end = position
    if data:
        view = memoryview(data)
        for at, header in iterate_batches(view, partial_ok=True):
            end = max(end, header.next_offset)
            if header.is_control:
                continue
            for record in records(view[at : at + header.size], max_size=RECORD_BYTES_MAX):
                if record.offset >= position:
                    key = int((record.key or b"key -1").split()[1])
                    value = TOMBSTONE if record.value is None else decode_value(record.value)
                    found.append((record.offset, key, value))
    return found, end


def draw(rng: random.Random) -> tuple[dict[str, str], dict[str, str]]:
    """Configs of the topic, and settings of the brokers."""
    configs = {
        "cleanup.policy": "compact",
        "segment.ms": rng.choice(["1", "500"]),
        "min.cleanable.dirty.ratio": rng.choice(["0.01", "0.3"]),
        "delete.retention.ms": rng.choice(["0", "3000", "60000"]),
        "min.compaction.lag.ms": rng.choice(["0", "0", "1000"]),
    }
    values = {
        "log.cleaner.backoff.ms": rng.choice(["100", "700"]),
        "log.cleaner.dedupe.buffer.size": rng.choice(["1024", "1048576"]),
    }
    return configs, values


# The judge


@dataclass
class _Known:
    """What is known of the records of a table: by key and offset the value, and the request or read that told."""

    at: dict[int, dict[int, tuple[int, int]]] = field(default_factory=lambda: defaultdict(dict))
    """Key -> offset -> (value or TOMBSTONE, time (ns) from which on it may have been there)."""
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Offset -> (key, value or TOMBSTONE)."""
    unsure: dict[int, int] = field(default_factory=dict)
    """Keys with a tombstone whose outcome nobody knows -> since when."""
    aborted: set[int] = field(default_factory=set)
    """Values of transactions that were not committed: they supersede nothing."""


def judge(history: Iterable[Event], losses: Sequence[Loss], retention_ms: int) -> Iterator[Finding]:
    """Every offset has one value; the last value of every key is there; tombstones stay as long as they have to."""
    events = [event for event in history if event.kind.startswith("table.")]
    lost = [loss for loss in losses if loss.topic == TABLE]
    known = _Known()
    acknowledged: dict[int, int] = {}
    yield from _learn(events, known, acknowledged)
    if not lost:  # else markers may be lost: nobody knows the outcome of any transaction
        yield from _decide(events, known, acknowledged)
    begun = {event.fields["read"]: event for event in events if event.kind == "table.begin"}
    places: dict[int, int] = {}
    for event in events:
        if event.kind == "table.refused":
            yield Finding("table-refused", f"a read of a table was refused: {event}", (event,))
        if event.kind == "table.read" and event.fields["whole"]:
            yield from _judge_read(begun[event.fields["read"]], event, known, acknowledged, lost, retention_ms)
            for offset, _, value in event.fields["records"]:
                if value >= 0 and places.setdefault(value, offset) != offset:
                    yield Finding("table-duplicate", f"{value} is at {places[value]} and {offset}", (event,))


def _learn(events: list[Event], known: _Known, acknowledged: dict[int, int]) -> Iterator[Finding]:
    invoked: dict[int, Event] = {}
    decided: set[int] = set()
    for event in events:
        if event.kind == "table.produce.invoke":
            invoked[event.fields["request"]] = event
        elif event.kind == "table.produce.ok":
            request = invoked[event.fields["request"]]
            decided.add(event.fields["request"])
            for offset, number in enumerate(request.fields["values"], event.fields["offset"]):
                value = TOMBSTONE if is_tombstone(number) else number
                acknowledged[offset] = event.at_ns
                yield from _note(known, offset, key_of(number), value, request.at_ns, event)
        elif event.kind == "table.produce.fail":
            decided.add(event.fields["request"])
        elif event.kind == "table.read":
            for offset, key, value in event.fields["records"]:
                yield from _note(known, offset, key, value, 0, event)
                if value >= 0 and key_of(value) != key:
                    yield Finding("table-key", f"{value} has the key {key} at {offset}", (event,))
    for number, event in invoked.items():
        if number not in decided:
            for value in event.fields["values"]:
                if is_tombstone(value):
                    known.unsure.setdefault(key_of(value), event.at_ns)


def _decide(events: list[Event], known: _Known, acknowledged: dict[int, int]) -> Iterator[Finding]:
    """What transactions wrote is acknowledged when their commit is."""
    written: dict[int, list[tuple[Event, Event]]] = defaultdict(list)
    writing: dict[int, Event] = {}
    values: dict[int, tuple[int, ...]] = {}
    undecided: set[int] = set()
    for event in events:
        fields = event.fields
        match event.kind:
            case "table.bank.begin":
                values[fields["txn"]] = fields["values"]
            case "table.bank.write.invoke":
                writing[fields["txn"]] = event
            case "table.bank.write.ok" if fields["offset"] >= 0:
                written[fields["txn"]].append((writing[fields["txn"]], event))
            case "table.bank.end.invoke" if fields["commit"]:
                undecided.add(fields["txn"])
            case "table.bank.end.ok" if fields["commit"]:
                for asked, answer in written[fields["txn"]]:
                    for offset, value in enumerate(asked.fields["entries"], answer.fields["offset"]):
                        acknowledged[offset] = event.at_ns
                        yield from _note(known, offset, key_of(value), value, asked.at_ns, answer)
    known.aborted.update(value for txn, all_values in values.items() if txn not in undecided for value in all_values)


def _note(known: _Known, offset: int, key: int, value: int, since_ns: int, event: Event) -> Iterator[Finding]:
    if known.offsets.setdefault(offset, (key, value)) != (key, value):
        message = f"offset {offset} had {known.offsets[offset]} and has {(key, value)}"
        yield Finding("table-inconsistent-offset", message, (event,))
    known.at[key].setdefault(offset, (value, since_ns))


def _judge_read(
    begin: Event, read: Event, known: _Known, acknowledged: dict[int, int], lost: list[Loss], retention_ms: int
) -> Iterator[Finding]:
    seen = {offset: (key, value) for offset, key, value in read.fields["records"]}
    by_key: dict[int, list[int]] = defaultdict(list)
    for offset, (key, value) in seen.items():
        if value not in known.aborted:
            by_key[key].append(offset)
    for key, places in known.at.items():
        for offset, (value, since_ns) in places.items():
            if offset in seen or not read.fields["start"] <= offset < read.fields["end"]:
                continue
            if acknowledged.get(offset, read.at_ns) > begin.at_ns:
                continue  # it may have been written, or become visible, during the read
            if value in known.aborted or any(loss.start <= offset < loss.end for loss in lost):
                continue
            later = [
                at
                for at, (other, since) in places.items()
                if at > offset and since < read.at_ns and other not in known.aborted
            ]
            if value >= 0 and not later and known.unsure.get(key, read.at_ns) >= read.at_ns:
                message = f"{value}, the last value of key {key}, was acknowledged at {offset} and is not there"
                yield Finding("table-lost", message, (begin, read))
            if value == TOMBSTONE and not later:
                older = [at for at in by_key[key] if at < offset]
                if read.at_ns < since_ns + 0.8 * retention_ms * MS:
                    message = f"the tombstone of key {key} at {offset} is gone before delete.retention.ms"
                    yield Finding("table-tombstone-too-early", message, (begin, read))
                elif older and max(by_key[key]) < offset and read.fields["final"]:
                    message = f"key {key} was deleted at {offset}, and {seen[older[-1]][1]} at {older[-1]} came back"
                    yield Finding("table-came-back", message, (begin, read))
