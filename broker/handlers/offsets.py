"""OffsetCommit v2 to v10, OffsetFetch v1 to v10, OffsetDelete v0: committed offsets of groups and of lone consumers.

OffsetCommit v2 to v4 may bring a retention of their own. v6: leader epoch. v7: static members. v9: GROUP_ID_NOT_FOUND
for a generation of an unknown group, and members of consumer groups with their epochs: STALE_MEMBER_EPOCH, but what a
member has held since an older epoch of its own may be committed with that one (KIP-1251). v10: topics by id. A
partition that does not exist is refused by itself, as in Kafka. OffsetFetch v2: all topics (null), and an error for the
whole answer. v7: require stable. v8: many groups. v9: in the name of a member, whose epoch is checked. v10: topics by
id. An offset that was committed for a deleted topic of the same name is not seen.

Answers come when what they reveal is durable: OffsetFetch waits for commits before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from broker.groups.answering import answer_with
from broker.groups.model import (
    ZERO_UUID,
    Commit,
    CommitAnswer,
    DeleteOffsets,
    DeleteOffsetsAnswer,
    FetchAnswer,
    Offset,
    OffsetToCommit,
)
from broker.services import RequestContext
from controller.state import ClusterState
from protocol import messages as m
from protocol.errors import ErrorCode

NO_OFFSET = Offset(-1, -1, "", -1)
IDS_FROM = 10
GROUPS_FROM = 8
TOP_LEVEL_ERROR_FROM = 2


def offset_commit(
    request: m.OffsetCommitRequest, context: RequestContext
) -> m.OffsetCommitResponse | Awaitable[m.OffsetCommitResponse]:
    """One error per partition asked, in the order asked."""
    state = context.services.controller.state
    by_id = context.api_version >= IDS_FROM
    errors: list[list[ErrorCode]] = []
    places: list[tuple[int, int]] = []
    offsets: list[OffsetToCommit] = []
    for number, asked in enumerate(request.topics):
        topic = state.topic_by_id.get(asked.topic_id) if by_id else state.topics.get(asked.name)
        unknown = ErrorCode.UNKNOWN_TOPIC_ID if topic is None and by_id else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        errors.append([unknown] * len(asked.partitions))
        for place, partition in enumerate(asked.partitions):
            if topic is None or not 0 <= partition.partition_index < len(topic.log_ids):
                continue
            places.append((number, place))
            offsets.append(
                OffsetToCommit(
                    topic.name,
                    topic.topic_id,
                    partition.partition_index,
                    partition.committed_offset,
                    partition.committed_leader_epoch,
                    partition.committed_metadata,
                )
            )

    def respond(answer: CommitAnswer) -> m.OffsetCommitResponse:
        for (number, place), error in zip(places, answer.errors):
            errors[number][place] = error
        return _committed(request, errors)

    if not offsets:
        return respond(CommitAnswer(()))
    commit = Commit(
        0,
        request.group_id,
        request.generation_id_or_member_epoch,
        request.member_id,
        request.group_instance_id,
        request.retention_time_ms,
        tuple(offsets),
        ErrorCode.GROUP_ID_NOT_FOUND if context.api_version >= 9 else ErrorCode.ILLEGAL_GENERATION,
    )
    return answer_with(context.services.groups.commit(commit), respond)


def _committed(request: m.OffsetCommitRequest, errors: list[list[ErrorCode]]) -> m.OffsetCommitResponse:
    return m.OffsetCommitResponse(
        topics=[
            m.OffsetCommitResponse.OffsetCommitResponseTopic(
                name=asked.name,
                topic_id=asked.topic_id,
                partitions=[
                    m.OffsetCommitResponse.OffsetCommitResponsePartition(
                        partition_index=partition.partition_index, error_code=error
                    )
                    for partition, error in zip(asked.partitions, topic_errors)
                ],
            )
            for asked, topic_errors in zip(request.topics, errors)
        ]
    )


async def offset_fetch(request: m.OffsetFetchRequest, context: RequestContext) -> m.OffsetFetchResponse:
    """Groups are looked up together; each waits only for its own commits."""
    if context.api_version >= GROUPS_FROM:
        asked = request.groups
    else:
        asked = [_as_group(request)]
    waiting = [_fetch(group, request.require_stable, context) for group in asked]
    answers = [await future for future in waiting]
    state = context.services.controller.state
    fetched = [_fetched(group, answer, context.api_version, state) for group, answer in zip(asked, answers)]
    if context.api_version >= GROUPS_FROM:
        return m.OffsetFetchResponse(groups=fetched)
    return _flat(request, fetched[0], context.api_version)


def _as_group(request: m.OffsetFetchRequest) -> m.OffsetFetchRequest.OffsetFetchRequestGroup:
    topics = None
    if request.topics is not None:
        topics = [
            m.OffsetFetchRequest.OffsetFetchRequestTopics(name=topic.name, partition_indexes=topic.partition_indexes)
            for topic in request.topics
        ]
    return m.OffsetFetchRequest.OffsetFetchRequestGroup(group_id=request.group_id, topics=topics)


def _fetch(
    group: m.OffsetFetchRequest.OffsetFetchRequestGroup, require_stable: bool, context: RequestContext
) -> asyncio.Future[FetchAnswer]:
    state = context.services.controller.state
    partitions: list[tuple[str, bytes, int]] | None = None
    if group.topics is not None:
        partitions = []
        for topic in group.topics:
            name, topic_id = topic.name, topic.topic_id
            if context.api_version >= IDS_FROM:
                known = state.topic_by_id.get(topic_id)
                if known is None:
                    continue
                name = known.name
            else:
                by_name = state.topics.get(name)
                topic_id = ZERO_UUID if by_name is None else by_name.topic_id
            partitions += [(name, topic_id, partition) for partition in topic.partition_indexes]
    return context.services.groups.fetch(
        group.group_id,
        partitions,
        require_stable=require_stable,
        member_id=group.member_id,
        member_epoch=group.member_epoch,
    )


def _fetched(
    group: m.OffsetFetchRequest.OffsetFetchRequestGroup, answer: FetchAnswer, version: int, state: ClusterState
) -> m.OffsetFetchResponse.OffsetFetchResponseGroup:
    fetched = m.OffsetFetchResponse.OffsetFetchResponseGroup(group_id=group.group_id, error_code=answer.error)
    if answer.error is not ErrorCode.NONE:
        return fetched
    found = {(topic, partition): offset for topic, partition, offset in answer.offsets}
    topics: list[tuple[str, bytes, list[int], ErrorCode]] = []
    if group.topics is None:
        by_name: dict[str, list[int]] = {}
        for name, partition, _ in answer.offsets:
            by_name.setdefault(name, []).append(partition)
        for name, partitions in by_name.items():
            known = state.topics.get(name)
            # Whoever asks by id cannot be told of a topic that has none any more.
            if version < IDS_FROM or known is not None:
                topics.append((name, ZERO_UUID if known is None else known.topic_id, partitions, ErrorCode.NONE))
    else:
        for topic in group.topics:
            name, error = topic.name, ErrorCode.NONE
            if version >= IDS_FROM:
                by_id = state.topic_by_id.get(topic.topic_id)
                name, error = ("", ErrorCode.UNKNOWN_TOPIC_ID) if by_id is None else (by_id.name, ErrorCode.NONE)
            topics.append((name, topic.topic_id, topic.partition_indexes, error))
    for name, topic_id, partitions, error in topics:
        fetched.topics.append(
            m.OffsetFetchResponse.OffsetFetchResponseTopics(
                name=name,
                topic_id=topic_id,
                partitions=[
                    _partition(partition, None, ErrorCode.UNSTABLE_OFFSET_COMMIT)
                    if (name, partition) in answer.unstable
                    else _partition(partition, found.get((name, partition)), error)
                    for partition in partitions
                ],
            )
        )
    return fetched


def _partition(
    partition: int, offset: Offset | None, error: ErrorCode
) -> m.OffsetFetchResponse.OffsetFetchResponsePartitions:
    shown = offset or NO_OFFSET
    return m.OffsetFetchResponse.OffsetFetchResponsePartitions(
        partition_index=partition,
        committed_offset=shown.offset,
        committed_leader_epoch=shown.leader_epoch,
        metadata=shown.metadata,
        error_code=error,
    )


def _flat(
    request: m.OffsetFetchRequest, group: m.OffsetFetchResponse.OffsetFetchResponseGroup, version: int
) -> m.OffsetFetchResponse:
    """Before v8 the answer is that of one group; before v2 it has an error per partition only."""
    topics = group.topics
    error = ErrorCode(group.error_code)
    if error is not ErrorCode.NONE and version < TOP_LEVEL_ERROR_FROM:
        topics = [
            m.OffsetFetchResponse.OffsetFetchResponseTopics(
                name=topic.name,
                partitions=[_partition(partition, None, error) for partition in topic.partition_indexes],
            )
            for topic in request.topics or ()
        ]
    return m.OffsetFetchResponse(
        error_code=error,
        topics=[
            m.OffsetFetchResponse.OffsetFetchResponseTopic(
                name=topic.name,
                partitions=[
                    m.OffsetFetchResponse.OffsetFetchResponsePartition(
                        partition_index=partition.partition_index,
                        committed_offset=partition.committed_offset,
                        committed_leader_epoch=partition.committed_leader_epoch,
                        metadata=partition.metadata,
                        error_code=partition.error_code,
                    )
                    for partition in topic.partitions
                ],
            )
            for topic in topics
        ],
    )


def offset_delete(
    request: m.OffsetDeleteRequest, context: RequestContext
) -> m.OffsetDeleteResponse | Awaitable[m.OffsetDeleteResponse]:
    """Offsets of partitions that exist and that no member of the group reads."""
    state = context.services.controller.state
    errors: dict[tuple[str, int], ErrorCode] = {}
    partitions: list[tuple[str, int]] = []
    for asked in request.topics:
        topic = state.topics.get(asked.name)
        for partition in asked.partitions:
            place = (asked.name, partition.partition_index)
            errors[place] = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            if topic is not None and 0 <= partition.partition_index < len(topic.log_ids):
                partitions.append(place)

    def respond(answer: DeleteOffsetsAnswer) -> m.OffsetDeleteResponse:
        if answer.error is not ErrorCode.NONE:
            return m.OffsetDeleteResponse(error_code=answer.error)
        errors.update(zip(partitions, answer.errors))
        return m.OffsetDeleteResponse(
            topics=[
                m.OffsetDeleteResponse.OffsetDeleteResponseTopic(
                    name=asked.name,
                    partitions=[
                        m.OffsetDeleteResponse.OffsetDeleteResponsePartition(
                            partition_index=partition.partition_index,
                            error_code=errors[(asked.name, partition.partition_index)],
                        )
                        for partition in asked.partitions
                    ],
                )
                for asked in request.topics
            ]
        )

    # Asked even when no partition is left, as in Kafka: whether the group exists comes first.
    return answer_with(
        context.services.groups.delete_offsets(DeleteOffsets(0, request.group_id, tuple(partitions))), respond
    )
