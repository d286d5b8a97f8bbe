"""Simulated clients that run a cluster: one that creates topics and deletes records, and the reader of everything."""

import asyncio
import random  # noqa: TID251
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.errors import RETRIABLE, ErrorCode
from tests.simulation.client import (
    EARLIEST,
    LATEST,
    Address,
    ClientSettings,
    Disconnected,
    Part,
    Recorder,
    Refused,
    SimulatedClient,
    error_name,
    sleep_ms,
)
from tests.simulation.consumers import ConsumerLoad, GroupMember, offsets_of, offsets_request

NOTHING_MORE_S = 8
"""An end that is not reached after so long without a record: behind the last one there is only a declared loss."""
IN_USE = {ErrorCode.TOPIC_ALREADY_EXISTS}


class Admin(SimulatedClient):
    """Creates topics first, then now and then deletes records or looks where partitions begin and end.

    `created` is true once every topic exists.
    """

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[Address],
        history: Recorder,
        rng: random.Random,
        numbers: Iterator[int],
        topics: Mapping[str, int],
        *,
        configs: Mapping[str, Mapping[str, str]] | None = None,
        delete_from: Sequence[str] = (),
        pause_ms: tuple[int, int] = (1_000, 4_000),
        settings: ClientSettings | None = None,
    ) -> None:
        """`topics`: partitions by name; `configs`: of topics by name; `delete_from`: topics whose records may go."""
        super().__init__(name, bootstrap, history, rng, numbers, settings)
        self.topics = dict(topics)
        self.configs = configs or {}
        self.delete_from = list(delete_from)
        self.pause_ms = pause_ms
        self.created = False

    async def main(self) -> None:
        for name, partitions in self.topics.items():
            await self._create(name, partitions)
        self.created = True
        parts = [(name, partition) for name, count in self.topics.items() for partition in range(count)]
        while True:
            await sleep_ms(self.rng.randint(*self.pause_ms))
            if self.stopping:
                return
            try:
                part = parts[self.rng.randrange(len(parts))]
                end = await self.offset_at(part, LATEST)
                start = await self.offset_at(part, EARLIEST)
                if part[0] in self.delete_from and end > start and self.rng.random() < 0.5:
                    await self.delete_records(part, self.rng.randint(start, end))
            except (Disconnected, Refused):
                await self.back_off()

    async def _create(self, name: str, partitions: int) -> None:
        topic = m.CreateTopicsRequest.CreatableTopic(
            name=name,
            num_partitions=partitions,
            replication_factor=1,
            configs=[
                m.CreateTopicsRequest.CreatableTopicConfig(name=key, value=value)
                for key, value in self.configs.get(name, {}).items()
            ],
        )
        while True:
            answer = await self.ask_any(
                ApiKey.CREATE_TOPICS, 7, m.CreateTopicsRequest(topics=[topic], timeout_ms=5_000)
            )
            code = answer.topics[0].error_code
            if not code or code in IN_USE:
                self.history.record("topic.created", client=self.name, topic=name, partitions=partitions)
                return
            assert code in RETRIABLE, (name, error_name(code), answer.topics[0].error_message)
            await self.back_off()

    async def delete_records(self, part: Part, offset: int) -> None:
        """Once; Disconnected when the outcome is unknown."""
        address = await self.leader_address(part)
        number, node = next(self.numbers), self.leaders[part].node_id
        fields = {"client": self.name, "delete": number, "topic": part[0], "partition": part[1], "node": node}
        asked = m.DeleteRecordsRequest.DeleteRecordsTopic(
            name=part[0],
            partitions=[m.DeleteRecordsRequest.DeleteRecordsPartition(partition_index=part[1], offset=offset)],
        )
        self.history.record("delete_records.invoke", **fields, offset=offset)
        request = m.DeleteRecordsRequest(topics=[asked], timeout_ms=5_000)
        answer = await self.ask(address, ApiKey.DELETE_RECORDS, 2, request, timeout_ms=8_000)
        found = answer.topics[0].partitions[0]
        if found.error_code:
            self.leaders.pop(part, None)
            raise Refused(found.error_code, "DeleteRecords")
        self.history.record("delete_records.ok", **fields, offset=offset, start=found.low_watermark)


class FinalReader(GroupMember):
    """When all is quiet: reads every partition from its start to its end, and what every group has committed.

    `done` is true when everything was read.
    """

    final = "final"
    """How the names of its events begin."""
    offsets = "final.offsets"
    isolation_level = 0

    def __init__(self, *args: Any, groups: Sequence[str] = (), **options: Any) -> None:
        load = ConsumerLoad(max_wait_ms=100, max_bytes=1 << 20, isolation_level=self.isolation_level)
        super().__init__(*args, group="", load=load, **options)
        self.groups = groups
        self.done = False

    async def main(self) -> None:
        await self.refresh(topic for topic, _ in self.parts)
        for part in self.parts:
            await self._read(part)
        for group in self.groups:
            await self._offsets(group)
        self.done = True

    async def _read(self, part: Part) -> None:
        start = await self.offset_patiently(part, EARLIEST)
        end = await self.offset_patiently(part, LATEST)
        found: list[tuple[int, int]] = []
        self.positions = {part: start}
        loop = asyncio.get_running_loop()
        moved = loop.time()
        while self.positions[part] < end and loop.time() < moved + NOTHING_MORE_S:
            try:
                address = await self.leader_address(part)
                answer = await self.ask(address, ApiKey.FETCH, self.load.version, self.fetch_request([part]))
            except Disconnected:
                await self.back_off()
                continue
            one = answer.responses[0].partitions[0]
            if one.error_code:
                self.leaders.pop(part, None)
                fields = {"topic": part[0], "partition": part[1], "offset": self.positions[part]}
                self.history.record(f"{self.final}.refused", **fields, error=error_name(one.error_code))
                if one.error_code not in RETRIABLE:
                    return
                await self.back_off()
                continue
            got, position = self.records_of(one, self.positions[part])
            found += got
            if position > self.positions[part]:
                self.positions[part], moved = position, loop.time()
        fields = {"topic": part[0], "partition": part[1], "start": start, "end": end}
        self.history.record(f"{self.final}.read", **fields, position=self.positions[part], records=tuple(found))

    async def _offsets(self, group: str) -> None:
        self.group, self._coordinator = group, None
        while True:
            try:
                answer = await self.coordinate(ApiKey.OFFSET_FETCH, 8, offsets_request(group, self.parts))
            except Disconnected:
                await self.back_off()
                self._coordinator = None
                continue
            code, found = offsets_of(answer)
            if not code:
                break
            self._coordinator = None
            await self.back_off()
        told = tuple((*part, found.get(part, -1)) for part in self.parts)
        self.history.record(self.offsets, group=group, offsets=told)
