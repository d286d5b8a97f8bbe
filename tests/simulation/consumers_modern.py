"""Simulated members of consumer groups (KIP-848): the coordinator assigns, and they go to it one step at a time."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import ErrorCode
from tests.simulation.client import EARLIEST, Disconnected, Part, error_name, sleep_ms
from tests.simulation.consumers import GroupMember, Rejoin

REBALANCE_TIMEOUT_MS = 60_000
"""Longer than any world: a member is removed for its silence alone."""
_GONE = (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.FENCED_MEMBER_EPOCH, ErrorCode.GROUP_ID_NOT_FOUND)


@dataclass(frozen=True)
class ModernLoad:
    """How a member behaves; ms. The session is the broker's setting."""

    heartbeat_ms: int = 400
    commit_ms: int = 700
    assignor: str | None = None
    resubscribe: float = 0.04
    """How often, at a heartbeat, a member subscribes to other topics than before."""


class ModernMember(GroupMember):
    """Joins with an id of its own, reads what it is given from the committed offsets on, gives up what it is asked to
    after it has committed that, and says so. Its generation is its epoch."""

    commit_version = 9

    def __init__(self, *args: Any, modern_load: ModernLoad | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.modern_load = modern_load or ModernLoad()
        self.generation = 0
        self.owned: set[Part] = set()
        self.topics = {topic for topic, _ in self.parts}
        """What it subscribes to."""
        self._said_topics: set[str] = set()
        self._said: set[Part] | None = None
        """What the coordinator was told that we own; None: say everything."""

    async def main(self) -> None:
        await self.refresh(topic for topic, _ in self.parts)
        self.member_id = f"{self.name}-{self.rng.getrandbits(64):x}"
        while not self.stopping:
            try:
                await self._beat()
                await self._until_next()
            except Rejoin:
                self._release(set(self.owned))
                self.generation, self._said = 0, None
            except Disconnected:
                await self.back_off(self._coordinator)
                self._coordinator, self._said = None, None
        await self._go()

    async def _check(self, code: int) -> None:
        if code in _GONE:
            raise Rejoin(error_name(code))
        if code == ErrorCode.STALE_MEMBER_EPOCH:
            self._said = None  # the next heartbeat tells which epoch it is
            return
        await super()._check(code)

    async def _until_next(self) -> None:
        """Poll and commit until the next heartbeat."""
        loop = asyncio.get_running_loop()
        load = self.modern_load
        beat_at = loop.time() + load.heartbeat_ms / 1000
        while not self.stopping and loop.time() < beat_at:
            if not self.positions:
                await sleep_ms(load.heartbeat_ms / 4)
                continue
            await self.poll_once()
            await sleep_ms(self.rng.randint(*self.load.pause_ms))
            if self.rng.randrange(load.commit_ms) < load.heartbeat_ms:
                await self._commit()

    async def _beat(self) -> None:
        """One heartbeat, and another one at once when something was given up."""
        if self.generation > 0 and not self.stopping and self.rng.random() < self.modern_load.resubscribe:
            every = sorted({topic for topic, _ in self.parts})
            self.topics = set(every if self.rng.random() < 0.5 else [self.rng.choice(every)])
        answer = await self._heartbeat_with(self.generation)
        if answer.error_code:
            await self._check(answer.error_code)
            return
        self._set_epoch(answer.member_epoch)
        if answer.assignment is None:
            return
        assigned = await self._parts_of(answer.assignment.topic_partitions)
        lost = self.owned - assigned
        if lost:
            await self._commit()
            self._release(lost)
        given = assigned - self.owned
        if given:
            self.owned |= given
            fields = {"client": self.name, "group": self.group, "epoch": self.generation}
            self.history.record("group.given", **fields, parts=tuple(sorted(given)))
            self._set_epoch(self.generation)
            offsets = await self.fetch_offsets(sorted(given))
            self._committed.update(offsets)
            for part, offset in offsets.items():
                if part in self.owned:
                    self.assign(part, offset if offset >= 0 else await self.offset_patiently(part, EARLIEST))
        if lost or given:
            await self._beat()

    async def _heartbeat_with(self, epoch: int) -> Any:
        full = self._said is None or epoch == 0
        owned, topics = set(self.owned), set(self.topics)
        request = m.ConsumerGroupHeartbeatRequest(
            group_id=self.group,
            member_id=self.member_id,
            member_epoch=epoch,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS if full else -1,
            subscribed_topic_names=sorted(topics) if full or topics != self._said_topics else None,
            server_assignor=self.modern_load.assignor if full else None,
            topic_partitions=self._request_of(owned) if full or owned != self._said else None,
        )
        number = next(self.numbers)
        fields = {"client": self.name, "group": self.group, "beat": number}
        self.history.record("group.beat.invoke", **fields)
        answer = await self.coordinate(ApiKey.CONSUMER_GROUP_HEARTBEAT, 1, request)
        if not answer.error_code:
            self.history.record("group.beat.ok", **fields, epoch=answer.member_epoch)
            self._said = owned
            if topics != self._said_topics or full:
                self._said_topics = topics
                parts = tuple(part for part in self.parts if part[0] in topics)
                self.history.record("group.subscribed", client=self.name, group=self.group, parts=parts)
        return answer

    def _set_epoch(self, epoch: int) -> None:
        """What is owned at an epoch is owned by nobody else at it."""
        self.generation = epoch
        fields = {"client": self.name, "group": self.group, "generation": epoch}
        self.history.record("group.joined", **fields, parts=tuple(sorted(self.owned)))

    def _release(self, parts: set[Part]) -> None:
        if parts:
            for part in parts:
                self.positions.pop(part, None)
                self._committed.pop(part, None)
            self.owned -= parts
            self.history.record("group.released", client=self.name, group=self.group, parts=tuple(sorted(parts)))

    async def _go(self) -> None:
        try:
            if self.generation > 0:
                await self._commit()
                self._release(set(self.owned))
                await self._heartbeat_with(-1)
        except (Rejoin, Disconnected):
            pass  # its session ends by itself

    def _request_of(self, parts: Iterable[Part]) -> list[Any]:
        topics: dict[str, list[int]] = defaultdict(list)
        for topic, partition in sorted(parts):
            topics[topic].append(partition)
        return [
            m.ConsumerGroupHeartbeatRequest.TopicPartitions(topic_id=self.topic_ids[name], partitions=numbers)
            for name, numbers in topics.items()
        ]

    async def _parts_of(self, topics: Sequence[Any]) -> set[Part]:
        """Topics may be newer than what we know."""
        while any(one.topic_id not in self.topic_ids.values() for one in topics):
            await self.refresh(topic for topic, _ in self.parts)
            await self.back_off()
        names = {topic_id: name for name, topic_id in self.topic_ids.items()}
        return {(names[one.topic_id], partition) for one in topics for partition in one.partitions}
