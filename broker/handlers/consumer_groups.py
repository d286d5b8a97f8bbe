"""ConsumerGroupHeartbeat v0 to v1, ConsumerGroupDescribe v0 to v1: consumer groups (KIP-848), with Kafka 4.3's
semantics.

Heartbeat v1: subscriptions by regular expression, and the member makes its own id. Describe v1: which protocol each
member speaks. An answer comes when what it reveals is durable; none waits for other members. Both are refused with
UNSUPPORTED_VERSION while the feature `group.version` is at 0. Not implemented: client-side assignors, which Kafka does
not have either.
"""

from __future__ import annotations

from collections.abc import Awaitable

from broker.groups.answering import answer_with
from broker.groups.consumer_model import (
    LEAVE_EPOCH,
    STATIC_LEAVE_EPOCH,
    ConsumerGroupView,
    ConsumerHeartbeat,
    ConsumerHeartbeatAnswer,
    ConsumerMemberView,
    Partitions,
)
from broker.operations import GROUP_OPERATIONS, NOT_ASKED
from broker.services import RequestContext
from controller.features import GROUP_VERSION
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

OWN_IDS_FROM = 1
CLASSIC_MEMBER, CONSUMER_MEMBER = 0, 1
"""Numbers of member types."""


def consumer_group_heartbeat(
    request: m.ConsumerGroupHeartbeatRequest, context: RequestContext
) -> m.ConsumerGroupHeartbeatResponse | Awaitable[m.ConsumerGroupHeartbeatResponse]:
    if not _enabled(context):
        return m.ConsumerGroupHeartbeatResponse(error_code=ErrorCode.UNSUPPORTED_VERSION)
    try:
        _check(request, context)
    except KafkaError as refused:
        return m.ConsumerGroupHeartbeatResponse(error_code=refused.code, error_message=refused.message)
    groups = context.services.groups
    asked = ConsumerHeartbeat(
        0,
        request.group_id,
        request.member_id,
        request.member_epoch,
        request.instance_id,
        request.rack_id,
        context.client_id or "",
        f"/{context.client_address}",
        request.rebalance_timeout_ms,
        None if request.subscribed_topic_names is None else tuple(request.subscribed_topic_names),
        request.subscribed_topic_regex,
        request.server_assignor,
        _owned(request),
        groups.new_token(),
    )
    return answer_with(groups.consumer_heartbeat(asked), _answered)


def _enabled(context: RequestContext) -> bool:
    return context.services.controller.state.features.get(GROUP_VERSION, 0) >= 1


def _check(request: m.ConsumerGroupHeartbeatRequest, context: RequestContext) -> None:
    """What can be refused without looking at the group, in Kafka's words."""

    def refuse(problem: str) -> KafkaError:
        return KafkaError(ErrorCode.INVALID_REQUEST, problem)

    epoch = request.member_epoch
    if (context.api_version >= OWN_IDS_FROM or epoch > 0 or epoch == LEAVE_EPOCH) and not request.member_id:
        raise refuse("MemberId can't be empty.")
    for name, value in (("Group", request.group_id), ("Instance", request.instance_id), ("Rack", request.rack_id)):
        if value == "":
            raise refuse(f"{name}Id can't be empty.")
    if epoch == 0:
        if request.rebalance_timeout_ms == -1:
            raise refuse("RebalanceTimeoutMs must be provided in first request.")
        if request.topic_partitions is None or request.topic_partitions:
            raise refuse("TopicPartitions must be empty when (re-)joining.")
        if request.subscribed_topic_names is None and request.subscribed_topic_regex is None:
            raise refuse("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.")
    elif epoch == STATIC_LEAVE_EPOCH and request.instance_id is None:
        raise refuse("InstanceId can't be null.")
    elif epoch < STATIC_LEAVE_EPOCH:
        raise refuse("MemberEpoch is invalid.")
    known = context.services.settings.consumer_assignors
    if request.server_assignor is not None and request.server_assignor not in known:
        raise KafkaError(
            ErrorCode.UNSUPPORTED_ASSIGNOR,
            f"ServerAssignor {request.server_assignor} is not supported. Supported assignors: {', '.join(known)}.",
        )


def _owned(request: m.ConsumerGroupHeartbeatRequest) -> Partitions | None:
    if request.topic_partitions is None:
        return None
    owned: dict[bytes, frozenset[int]] = {}
    for one in request.topic_partitions:
        owned[one.topic_id] = owned.get(one.topic_id, frozenset()).union(one.partitions)
    return owned


def _answered(answer: ConsumerHeartbeatAnswer) -> m.ConsumerGroupHeartbeatResponse:
    response = m.ConsumerGroupHeartbeatResponse
    assignment = None
    if answer.assignment is not None:
        assignment = response.Assignment(
            topic_partitions=[
                response.TopicPartitions(topic_id=topic_id, partitions=sorted(partitions))
                for topic_id, partitions in sorted(answer.assignment.items())
            ]
        )
    return response(
        error_code=answer.error,
        error_message=answer.message,
        member_id=answer.member_id,
        member_epoch=answer.member_epoch,
        heartbeat_interval_ms=answer.heartbeat_interval_ms,
        assignment=assignment,
    )


async def consumer_group_describe(
    request: m.ConsumerGroupDescribeRequest, context: RequestContext
) -> m.ConsumerGroupDescribeResponse:
    if not _enabled(context):
        return m.ConsumerGroupDescribeResponse(
            groups=[
                m.ConsumerGroupDescribeResponse.DescribedGroup(
                    group_id=group_id, error_code=ErrorCode.UNSUPPORTED_VERSION
                )
                for group_id in request.group_ids
            ]
        )
    groups = context.services.groups
    operations = GROUP_OPERATIONS if request.include_authorized_operations else NOT_ASKED
    asked = {group_id: groups.describe_consumer(group_id) for group_id in request.group_ids if group_id}
    views = {group_id: await waiting for group_id, waiting in asked.items()}
    views[""] = ConsumerGroupView(ErrorCode.INVALID_GROUP_ID, "")
    return m.ConsumerGroupDescribeResponse(
        groups=[_described(views[group_id], context, operations) for group_id in request.group_ids]
    )


def _described(
    view: ConsumerGroupView, context: RequestContext, operations: int
) -> m.ConsumerGroupDescribeResponse.DescribedGroup:
    return m.ConsumerGroupDescribeResponse.DescribedGroup(
        error_code=view.error,
        error_message=view.message,
        group_id=view.group_id,
        group_state=view.state,
        group_epoch=view.epoch,
        assignment_epoch=view.assignment_epoch,
        assignor_name=view.assignor,
        members=[_member(member, context) for member in view.members],
        authorized_operations=operations if view.error is ErrorCode.NONE else NOT_ASKED,
    )


def _member(view: ConsumerMemberView, context: RequestContext) -> m.ConsumerGroupDescribeResponse.Member:
    return m.ConsumerGroupDescribeResponse.Member(
        member_id=view.member_id,
        instance_id=view.instance_id,
        rack_id=view.rack_id,
        member_epoch=view.epoch,
        client_id=view.client_id,
        client_host=view.client_host,
        subscribed_topic_names=list(view.topics),
        subscribed_topic_regex=view.regex,
        assignment=_assignment(view.assigned, context),
        target_assignment=_assignment(view.target, context),
        member_type=CLASSIC_MEMBER if view.is_classic else CONSUMER_MEMBER,
    )


def _assignment(partitions: Partitions, context: RequestContext) -> m.ConsumerGroupDescribeResponse.Assignment:
    """Topics that exist."""
    response = m.ConsumerGroupDescribeResponse
    topics = context.services.controller.state.topic_by_id
    return response.Assignment(
        topic_partitions=[
            response.TopicPartitions(
                topic_id=topic_id, topic_name=topics[topic_id].name, partitions=sorted(partitions[topic_id])
            )
            for topic_id in sorted(partitions)
            if topic_id in topics
        ]
    )
