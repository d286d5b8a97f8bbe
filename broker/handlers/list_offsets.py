"""ListOffsets: v1 to v11.

Timestamps: -1 latest, -2 earliest, -3 (v7) the record with the greatest timestamp, -4 (v8) earliest local, -5 (v9)
latest tiered, -6 (v11) earliest pending upload; others: the first record at that time or later, exact to the record.
Every topic answers as one of Kafka without remote storage does: earliest local is earliest; latest tiered and earliest
pending upload are -1. v2: isolation level. v4: leader epochs. v10: timeout; 0 or less: none was given.
All answers are authoritative: NOT_LEADER_OR_FOLLOWER without the right to give them, checked again after a read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from broker.handlers.common import check_leader_epoch, leader_log, not_sure
from broker.handlers.fetch import READ_COMMITTED, limit_of
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError, ProtocolError
from protocol.records import first_since, offset_of_max_timestamp, parse_header

if TYPE_CHECKING:
    from broker.log import Log
    from broker.services import RequestContext, Services
    from protocol import Buffer

LATEST, EARLIEST, MAX_TIMESTAMP, EARLIEST_LOCAL, LATEST_TIERED, EARLIEST_PENDING = -1, -2, -3, -4, -5, -6
_SINCE_VERSION = {LATEST: 1, EARLIEST: 1, MAX_TIMESTAMP: 7, EARLIEST_LOCAL: 8, LATEST_TIERED: 9, EARLIEST_PENDING: 11}

CONSUMER = -1
"""The replica id of who is no broker and no debugging tool."""
SMALL_BYTES = 16 * 1024
"""Uncompressed batches up to this size are searched on the loop, others off it."""
BATCH_BYTES_MAX = 256 * 1024 * 1024
"""The most one batch may decompress to while it is searched."""
TIMEOUT_MS = 30_000

_Asked = m.ListOffsetsRequest.ListOffsetsPartition
_Answer = m.ListOffsetsResponse.ListOffsetsPartitionResponse


def list_offsets(
    request: m.ListOffsetsRequest, context: RequestContext
) -> m.ListOffsetsResponse | Awaitable[m.ListOffsetsResponse]:
    """One result per partition asked for."""
    committed = request.isolation_level == READ_COMMITTED and request.replica_id == CONSUMER
    seen: set[tuple[str, int]] = set()
    searches: list[Search] = []
    response = m.ListOffsetsResponse(topics=[])
    for topic in request.topics:
        answers = []
        for asked in topic.partitions:
            answer = _Answer(partition_index=asked.partition_index)
            answers.append(answer)
            try:
                if (topic.name, asked.partition_index) in seen:
                    raise KafkaError(ErrorCode.INVALID_REQUEST, "the partition is asked for twice")
                seen.add((topic.name, asked.partition_index))
                search = _at_once(context, topic.name, asked, answer, committed)
            except KafkaError as error:
                _refuse(context.services, answer, error)
            else:
                if search is not None:
                    searches.append(search)
        response.topics.append(m.ListOffsetsResponse.ListOffsetsTopicResponse(name=topic.name, partitions=answers))
    if not searches:
        return _for_version(response, context.api_version)
    # kafka-python sends no timeout, which reads as 0; Kafka never waits for a local log, so there it does not matter.
    timeout_ms = request.timeout_ms if context.api_version >= 10 and request.timeout_ms > 0 else TIMEOUT_MS
    return _search_all(context, searches, response, timeout_ms)


class Search:
    """A partition whose answer needs a look into batches."""

    __slots__ = ("answer", "committed", "log", "timestamp")

    def __init__(self, log: Log, timestamp: int, committed: bool, answer: _Answer) -> None:
        self.log = log
        self.timestamp = timestamp
        self.committed = committed
        self.answer = answer


def _refuse(services: Services, answer: _Answer, error: KafkaError) -> None:
    services.counters.error(error.code)
    answer.error_code = error.code


def _at_once(context: RequestContext, topic: str, asked: _Asked, answer: _Answer, committed: bool) -> Search | None:
    """Fill `answer` from what is known; a `Search` if that is not enough."""
    timestamp = asked.timestamp
    if timestamp < 0 and context.api_version < _SINCE_VERSION.get(timestamp, 1 << 15):
        raise KafkaError(ErrorCode.UNSUPPORTED_VERSION, f"timestamp {timestamp} has no meaning in this version")
    log = leader_log(context.services, topic, asked.partition_index, authoritative=True)
    check_leader_epoch(log, asked.current_leader_epoch)
    if timestamp in (EARLIEST, EARLIEST_LOCAL):
        answer.offset, answer.leader_epoch = log.start, log.epoch_at(log.start)
    elif timestamp == LATEST:
        answer.offset, answer.leader_epoch = limit_of(log, committed), log.epoch
    elif timestamp in (LATEST_TIERED, EARLIEST_PENDING):
        pass
    elif log.start < limit_of(log, committed):
        return Search(log, timestamp, committed, answer)
    return None


async def _search_all(
    context: RequestContext, searches: list[Search], response: m.ListOffsetsResponse, timeout_ms: int
) -> m.ListOffsetsResponse:
    services = context.services
    unfinished = dict.fromkeys(searches)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            for search in searches:
                try:
                    await _search(services, search)
                    if not search.log.serving or not search.log.may_answer_authoritatively():
                        raise not_sure(search.log)
                except KafkaError as error:
                    _refuse(services, search.answer, error)
                    search.answer.offset = search.answer.timestamp = search.answer.leader_epoch = -1
                del unfinished[search]
    except TimeoutError:
        for search in unfinished:
            _refuse(services, search.answer, KafkaError(ErrorCode.REQUEST_TIMED_OUT))
    return _for_version(response, context.api_version)


def _for_version(response: m.ListOffsetsResponse, version: int) -> m.ListOffsetsResponse:
    if version < 4:
        for topic in response.topics:
            for answer in topic.partitions:
                answer.leader_epoch = -1
    return response


async def _search(services: Services, search: Search) -> None:
    if search.timestamp == MAX_TIMESTAMP:
        found = await _max_timestamp(services, search)
    else:
        found = await _first_since(services, search)
    if found is not None:
        search.answer.offset, search.answer.timestamp = found
        search.answer.leader_epoch = search.log.epoch_at(found[0])


async def _first_since(services: Services, search: Search) -> tuple[int, int] | None:
    """(offset, timestamp) of the first record at the time or later, below the limit."""
    log, timestamp = search.log, search.timestamp
    offset = log.start
    while True:
        limit = limit_of(log, search.committed)
        batch: Buffer | None = None
        if offset < log.tail.start:
            cold = await services.cold.find_timestamp(log.log_id, offset, timestamp, min(limit, log.committed_end))
            batch = None if cold is None else cold.batch
        if batch is None:
            hot = log.tail.first_batch_with_timestamp(timestamp, limit, max(offset, log.tail.start))
            batch = None if hot is None else hot[1]
        if batch is None:
            return None
        header = parse_header(batch)
        found = await _in_batch(batch, timestamp, log.start)
        if found is not None:
            return found if found[0] < limit else None
        offset = header.next_offset  # the header promised what the records do not hold


async def _max_timestamp(services: Services, search: Search) -> tuple[int, int] | None:
    """(offset, timestamp) of the first record with the greatest timestamp, below the limit."""
    log = search.log
    limit = limit_of(log, search.committed)
    best: tuple[int, Buffer] | None = None
    if log.start < log.tail.start:
        cold = await services.cold.find_max_timestamp(log.log_id, log.start, min(limit, log.committed_end))
        if cold is not None:
            best = (cold.max_timestamp, cold.batch)
    hot = log.tail.max_timestamp(limit, max(log.start, log.tail.start))
    if hot is not None and (best is None or hot[0] > best[0]):
        best = hot
    if best is None or best[0] < 0:
        return None
    return await _in_batch(best[1], None, log.start)


async def _in_batch(batch: Buffer, timestamp: int | None, from_offset: int) -> tuple[int, int] | None:
    """The record looked for (None: the one with the greatest timestamp); the batch's own word if it is unreadable."""
    header = parse_header(batch)
    if len(batch) <= SMALL_BYTES and header.codec == 0:
        return _look(batch, timestamp, from_offset)
    return await asyncio.get_running_loop().run_in_executor(None, _look, batch, timestamp, from_offset)


def _look(batch: Buffer, timestamp: int | None, from_offset: int) -> tuple[int, int] | None:
    try:
        if timestamp is None:
            return offset_of_max_timestamp(batch, max_size=BATCH_BYTES_MAX)
        return first_since(batch, timestamp, max_size=BATCH_BYTES_MAX, from_offset=from_offset)
    except ProtocolError:
        header = parse_header(batch)
        return max(header.base_offset, from_offset), header.max_timestamp
