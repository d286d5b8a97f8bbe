"""Simulated consumers: of assigned partitions, and members of a classic group."""

import asyncio
import random  # noqa: TID251
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from protocol.records import iterate_batches, records
from tests.simulation.client import (
    EARLIEST,
    LATEST,
    NO_TOPIC_ID,
    Address,
    ClientSettings,
    Disconnected,
    Part,
    Recorder,
    SimulatedClient,
    decode_value,
    error_name,
    sleep_ms,
)

_INT32 = Struct(">i")
RECORD_BYTES_MAX = 1 << 24


@dataclass(frozen=True)
class ConsumerLoad:
    """How a consumer polls."""

    max_wait_ms: int = 500
    min_bytes: int = 1
    max_bytes: int = 64 * 1024
    pause_ms: tuple[int, int] = (0, 100)
    version: int = 12
    """Of Fetch; from 13 on topics go by id."""
    isolation_level: int = 0
    leader_epochs: bool = True
    """Whether requests say which leader epoch the client knows (KIP-320)."""
    again: float = 0.0
    """How often, after a poll, a partition is read again from somewhere on, mostly near its end."""


@dataclass(frozen=True)
class GroupLoad:
    """How members of a group behave; ms."""

    session_timeout_ms: int = 6_000
    rebalance_timeout_ms: int = 5_000
    heartbeat_ms: int = 1_000
    commit_ms: int = 700
    join_version: int = 7


class Consumer(SimulatedClient):
    """Reads its partitions from their start, poll by poll; goes on from the start after OFFSET_OUT_OF_RANGE."""

    told = "poll"
    """How the names of its events begin."""

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[Address],
        history: Recorder,
        rng: random.Random,
        numbers: Iterator[int],
        parts: Sequence[Part],
        load: ConsumerLoad | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        super().__init__(name, bootstrap, history, rng, numbers, settings)
        self.parts = list(parts)
        self.load = load or ConsumerLoad()
        self.positions: dict[Part, int] = {}
        self._again = False

    async def main(self) -> None:
        await self.refresh(topic for topic, _ in self.parts)
        for part in self.parts:
            self.assign(part, await self.offset_patiently(part, EARLIEST))
        while not self.stopping:
            await self.poll_once()
            await sleep_ms(self.rng.randint(*self.load.pause_ms))
            if self.load.again and self.rng.random() < self.load.again:
                part = self.rng.choice(self.parts)
                start, end = [await self.offset_patiently(part, which) for which in (EARLIEST, LATEST)]
                self.assign(part, end - int((end - start) * self.rng.random() ** 2))

    def assign(self, part: Part, offset: int) -> None:
        """Go on from `offset`, on purpose."""
        self.positions[part] = offset
        self.history.record("assign", client=self.name, topic=part[0], partition=part[1], offset=offset)

    async def poll_once(self) -> None:
        """One Fetch to the leader of each partition that has a position."""
        by_leader: dict[Address, list[Part]] = defaultdict(list)
        unknown = []
        for part in self.positions:
            address = self.address_of(part)
            if address is None:
                unknown.append(part)
            else:
                by_leader[address].append(part)
        if by_leader:
            async with asyncio.TaskGroup() as polls:
                for address, parts in by_leader.items():
                    polls.create_task(self._fetch(address, parts))
        if unknown or self._again:
            self._again = False
            await self.back_off()
            await self.refresh(topic for topic, _ in self.positions)

    def fetch_request(self, parts: Sequence[Part]) -> Any:
        """A Fetch of these partitions from the positions they have."""
        load = self.load
        by_id = load.version >= 13
        topics: dict[str, list[Any]] = defaultdict(list)
        for part in parts:
            leader = self.leaders.get(part)
            topics[part[0]].append(
                m.FetchRequest.FetchPartition(
                    partition=part[1],
                    fetch_offset=self.positions[part],
                    partition_max_bytes=load.max_bytes,
                    current_leader_epoch=leader.epoch if leader is not None and load.leader_epochs else -1,
                    last_fetched_epoch=-1,
                )
            )
        return m.FetchRequest(
            max_wait_ms=load.max_wait_ms,
            min_bytes=load.min_bytes,
            max_bytes=load.max_bytes,
            isolation_level=load.isolation_level,
            session_id=0,
            session_epoch=-1,
            topics=[
                m.FetchRequest.FetchTopic(
                    topic="" if by_id else name,
                    topic_id=self.topic_ids.get(name, NO_TOPIC_ID) if by_id else NO_TOPIC_ID,
                    partitions=asked,
                )
                for name, asked in topics.items()
            ],
            forgotten_topics_data=[],
        )

    async def _fetch(self, address: Address, parts: list[Part]) -> None:
        number = next(self.numbers)
        node = self.leaders[parts[0]].node_id
        positions = {part: self.positions[part] for part in parts}
        try:
            connection = await self.connection(address)
            self.history.record(
                f"{self.told}.invoke",
                client=self.name,
                poll=number,
                node=node,
                max_wait_ms=self.load.max_wait_ms,
                min_bytes=self.load.min_bytes,
                positions=tuple((*part, offset) for part, offset in positions.items()),
            )
            future = connection.ask(ApiKey.FETCH, self.load.version, self.fetch_request(parts), self.name)
            timeout_ms = self.load.max_wait_ms + self.settings.request_timeout_ms
            answer = await self.answer(connection, future, timeout_ms)
        except Disconnected as error:
            self.history.record(f"{self.told}.fail", client=self.name, poll=number, error=str(error))
            self._again = True
            await self.back_off(address)
            return
        names = {topic_id: name for name, topic_id in self.topic_ids.items()}
        for topic in answer.responses:
            for one in topic.partitions:
                part = (topic.topic or names[topic.topic_id], one.partition_index)
                if self.positions.get(part) == positions.get(part):
                    await self._take(part, one, number, node)

    async def _take(self, part: Part, answer: Any, poll: int, node: int) -> None:
        fields = {"client": self.name, "poll": poll, "topic": part[0], "partition": part[1], "node": node}
        position = self.positions[part]
        code = answer.error_code
        if code == ErrorCode.OFFSET_OUT_OF_RANGE:
            self.history.record(f"{self.told}.out_of_range", **fields, offset=position)
            self.assign(part, await self.offset_patiently(part, EARLIEST))
            return
        if code:
            self.history.record(f"{self.told}.refused", **fields, offset=position, error=error_name(code))
            self._again = True
            return
        found, end = self.records_of(answer, position)
        self.positions[part] = end
        self.history.record(
            f"{self.told}.ok",
            **fields,
            offset=position,
            records=found,
            high_watermark=answer.high_watermark,
            last_stable=answer.last_stable_offset,
            log_start=answer.log_start_offset,
        )

    def records_of(self, answer: Any, position: int) -> tuple[tuple[tuple[int, int], ...], int]:
        """((offset, value) of what a consumer gets of a partition's answer, where it goes on)."""
        return read_records(answer.records, position)


def read_records(data: Any, position: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """((offset, value) of the records from `position` on, where to go on) of what a Fetch returned."""
    found: list[tuple[int, int]] = []
    end = position
    if data:
        view = memoryview(data)
        for at, header in iterate_batches(view, partial_ok=True):
            end = max(end, header.next_offset)
            if header.is_control:
                continue
            batch = view[at : at + header.size]
            found += [
                (record.offset, decode_value(record.value))
                for record in records(batch, max_size=RECORD_BYTES_MAX)
                if record.offset >= position
            ]
    return tuple(found), end


class Rejoin(Exception):
    """The generation is over for this member."""


class GroupMember(Consumer):
    """A member of a classic group: joins, gets partitions from the leader's assignment, reads from the committed
    offsets on, and commits as it goes. Commits of one member never go back within a generation."""

    commit_version = 8

    def __init__(self, *args: Any, group: str, group_load: GroupLoad | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.group = group
        self.group_load = group_load or GroupLoad()
        self.member_id = ""
        self.generation = -1
        self._coordinator: Address | None = None
        self._committed: dict[Part, int] = {}

    async def main(self) -> None:
        # Nobody assigns partitions of topics that he does not know of yet; a coordinator would not know them either.
        topics = {topic for topic, _ in self.parts}
        while not topics <= self.topic_ids.keys() and not self.stopping:
            await self.refresh(topics)
            await self.back_off()
        while not self.stopping:
            try:
                await self._join()
                await self._consume()
            except Rejoin:
                self.positions.clear()
            except Disconnected:
                await self.back_off(self._coordinator)
                self._coordinator = None
        await self._leave()

    # The coordinator

    async def coordinate(self, api: ApiKey, version: int, message: Any, *, timeout_ms: int | None = None) -> Any:
        """Ask the group's coordinator; Disconnected when it does not answer."""
        while self._coordinator is None:
            asked = m.FindCoordinatorRequest(key_type=0, coordinator_keys=[self.group])
            found = (await self.ask_any(ApiKey.FIND_COORDINATOR, 4, asked)).coordinators[0]
            if found.error_code:
                await self.back_off()
            else:
                self._coordinator = (found.host, found.port)
        return await self.ask(self._coordinator, api, version, message, timeout_ms=timeout_ms)

    async def _check(self, code: int) -> None:
        """Do what an error of a group API asks for: Rejoin, or wait, and the caller asks again."""
        if code in (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.FENCED_INSTANCE_ID):
            self.member_id, self.generation = "", -1
            raise Rejoin(error_name(code))
        if code in (ErrorCode.ILLEGAL_GENERATION, ErrorCode.REBALANCE_IN_PROGRESS):
            raise Rejoin(error_name(code))
        assert code in RETRIABLE, f"{self.name}: {error_name(code)}"
        if code in (ErrorCode.NOT_COORDINATOR, ErrorCode.COORDINATOR_NOT_AVAILABLE):
            self._coordinator = None
        await self.back_off()

    async def _join(self) -> None:
        load = self.group_load
        topics = sorted({topic for topic, _ in self.parts})
        while True:
            answer = await self.coordinate(
                ApiKey.JOIN_GROUP,
                load.join_version,
                m.JoinGroupRequest(
                    group_id=self.group,
                    session_timeout_ms=load.session_timeout_ms,
                    rebalance_timeout_ms=load.rebalance_timeout_ms,
                    member_id=self.member_id,
                    group_instance_id=None,
                    protocol_type="consumer",
                    protocols=[
                        m.JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=encode_subscription(topics))
                    ],
                ),
                timeout_ms=load.rebalance_timeout_ms + self.settings.request_timeout_ms,
            )
            if answer.error_code == ErrorCode.MEMBER_ID_REQUIRED:
                self.member_id = answer.member_id
            elif answer.error_code:
                await self._check(answer.error_code)
            else:
                break
            if self.stopping:
                raise Rejoin("stopping")
        self.member_id, self.generation = answer.member_id, answer.generation_id
        assignments: list[Any] = []
        if answer.leader == answer.member_id:
            members = sorted(member.member_id for member in answer.members)
            shares = {member: self.parts[at :: len(members)] for at, member in enumerate(members)}
            assignments = [
                m.SyncGroupRequest.SyncGroupRequestAssignment(member_id=member, assignment=encode_assignment(share))
                for member, share in shares.items()
            ]
        await self._sync(assignments)

    async def _sync(self, assignments: list[Any]) -> None:
        request = m.SyncGroupRequest(
            group_id=self.group,
            generation_id=self.generation,
            member_id=self.member_id,
            group_instance_id=None,
            protocol_type="consumer",
            protocol_name="range",
            assignments=assignments,
        )
        timeout_ms = self.group_load.rebalance_timeout_ms + self.settings.request_timeout_ms
        while True:
            answer = await self.coordinate(ApiKey.SYNC_GROUP, 5, request, timeout_ms=timeout_ms)
            if not answer.error_code:
                break
            await self._check(answer.error_code)
        parts = decode_assignment(answer.assignment)
        self.history.record(
            "group.joined", client=self.name, group=self.group, generation=self.generation, parts=tuple(parts)
        )
        self.positions.clear()
        self._committed = await self.fetch_offsets(parts)
        for part in parts:
            offset = self._committed[part]
            self.assign(part, offset if offset >= 0 else await self.offset_patiently(part, EARLIEST))

    # A generation

    async def _consume(self) -> None:
        """Poll, commit, heartbeat until the generation ends."""
        load = self.group_load
        loop = asyncio.get_running_loop()
        beat_at = loop.time() + load.heartbeat_ms / 1000
        commit_at = loop.time() + load.commit_ms / 1000
        while not self.stopping:
            if self.positions:
                await self.poll_once()
            await sleep_ms(self.rng.randint(*self.load.pause_ms) if self.positions else load.heartbeat_ms / 2)
            now = loop.time()
            if now >= commit_at:
                await self._commit()
                commit_at = now + load.commit_ms / 1000
            if now >= beat_at:
                await self._heartbeat()
                beat_at = now + load.heartbeat_ms / 1000
        await self._commit()

    async def _heartbeat(self) -> None:
        request = m.HeartbeatRequest(
            group_id=self.group, generation_id=self.generation, member_id=self.member_id, group_instance_id=None
        )
        answer = await self.coordinate(ApiKey.HEARTBEAT, 4, request)
        if answer.error_code == ErrorCode.REBALANCE_IN_PROGRESS:
            await self._commit()
        if answer.error_code:
            await self._check(answer.error_code)

    async def _commit(self) -> None:
        """Commit the positions that moved; once, whatever comes of it."""
        moved = {part: offset for part, offset in self.positions.items() if offset > self._committed.get(part, -1)}
        if not moved:
            return
        topics: dict[str, list[Any]] = defaultdict(list)
        number = next(self.numbers)
        fields = {"client": self.name, "group": self.group, "commit": number}
        for (topic, partition), offset in moved.items():
            topics[topic].append(
                m.OffsetCommitRequest.OffsetCommitRequestPartition(
                    partition_index=partition, committed_offset=offset, committed_metadata=""
                )
            )
        offsets = tuple((*part, offset) for part, offset in moved.items())
        self.history.record("commit.invoke", **fields, generation=self.generation, offsets=offsets)
        request = m.OffsetCommitRequest(
            group_id=self.group,
            generation_id_or_member_epoch=self.generation,
            member_id=self.member_id,
            group_instance_id=None,
            topics=[
                m.OffsetCommitRequest.OffsetCommitRequestTopic(name=topic, partitions=parts)
                for topic, parts in topics.items()
            ],
        )
        try:
            answer = await self.coordinate(ApiKey.OFFSET_COMMIT, self.commit_version, request)
        except Disconnected as error:
            self.history.record("commit.unknown", **fields, error=str(error))
            raise
        codes = {one.error_code for topic in answer.topics for one in topic.partitions}
        if codes == {0}:
            self.history.record("commit.ok", **fields)
            self._committed.update(moved)
            return
        code = max(codes)
        certain = len(codes) == 1 and code not in (ErrorCode.REQUEST_TIMED_OUT, ErrorCode.NOT_COORDINATOR)
        self.history.record("commit.fail" if certain else "commit.unknown", **fields, error=error_name(code))
        await self._check(code)

    async def fetch_offsets(self, parts: Sequence[Part]) -> dict[Part, int]:
        """The committed offsets of these partitions, -1 for none; asks until they are told."""
        while True:
            number = next(self.numbers)
            fields = {"client": self.name, "group": self.group, "fetch": number}
            self.history.record("fetch_offsets.invoke", **fields)
            answer = await self.coordinate(ApiKey.OFFSET_FETCH, 8, offsets_request(self.group, parts))
            code, found = offsets_of(answer)
            if not code:
                offsets = {part: found.get(part, -1) for part in parts}
                told = tuple((*part, offset) for part, offset in offsets.items())
                self.history.record("fetch_offsets.ok", **fields, offsets=told)
                return offsets
            await self._check(code)

    async def _leave(self) -> None:
        if not self.member_id:
            return
        gone = m.LeaveGroupRequest.MemberIdentity(member_id=self.member_id, group_instance_id=None)
        try:
            await self.coordinate(ApiKey.LEAVE_GROUP, 4, m.LeaveGroupRequest(group_id=self.group, members=[gone]))
        except Disconnected:
            pass  # its session ends by itself


def offsets_request(group: str, parts: Sequence[Part]) -> Any:
    """OffsetFetch of these partitions."""
    topics: dict[str, list[int]] = defaultdict(list)
    for topic, partition in parts:
        topics[topic].append(partition)
    asked = m.OffsetFetchRequest.OffsetFetchRequestGroup(
        group_id=group,
        topics=[
            m.OffsetFetchRequest.OffsetFetchRequestTopics(name=name, partition_indexes=indexes)
            for name, indexes in topics.items()
        ],
    )
    return m.OffsetFetchRequest(groups=[asked], require_stable=True)


def offsets_of(answer: Any) -> tuple[int, dict[Part, int]]:
    """(error, committed offset by partition) of an OffsetFetch answer for one group."""
    [group] = answer.groups
    codes = [group.error_code, *(one.error_code for topic in group.topics for one in topic.partitions)]
    found = {
        (topic.name, one.partition_index): one.committed_offset for topic in group.topics for one in topic.partitions
    }
    return next((code for code in codes if code), 0), found


# The consumer protocol, version 0: int16 version, then the topics (and partitions), then null user data.


def _string(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def encode_subscription(topics: Sequence[str]) -> bytes:
    """What a member tells the group's leader."""
    return b"\0\0" + _INT32.pack(len(topics)) + b"".join(map(_string, topics)) + _INT32.pack(-1)


def encode_assignment(parts: Sequence[Part]) -> bytes:
    """What the group's leader tells a member."""
    topics: dict[str, list[int]] = defaultdict(list)
    for topic, partition in parts:
        topics[topic].append(partition)
    told = b"".join(
        _string(topic) + _INT32.pack(len(indexes)) + b"".join(map(_INT32.pack, indexes))
        for topic, indexes in topics.items()
    )
    return b"\0\0" + _INT32.pack(len(topics)) + told + _INT32.pack(-1)


def decode_assignment(data: bytes) -> list[Part]:
    """The partitions of an assignment."""
    parts: list[Part] = []
    if not data:
        return parts
    at = 6
    for _ in range(_INT32.unpack_from(data, 2)[0]):
        size = int.from_bytes(data[at : at + 2], "big")
        topic = data[at + 2 : at + 2 + size].decode()
        at += 2 + size
        (count,) = _INT32.unpack_from(data, at)
        parts += [(topic, _INT32.unpack_from(data, at + 4 + 4 * index)[0]) for index in range(count)]
        at += 4 + 4 * count
    return parts
