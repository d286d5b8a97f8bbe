"""JoinGroup v0 to v9, SyncGroup v0 to v5, Heartbeat v0 to v4, LeaveGroup v0 to v5, DescribeGroups v0 to v6,
ListGroups v0 to v5, DeleteGroups v0 to v2: classic groups, with Kafka 4.3's semantics.

JoinGroup v1: rebalance timeout of its own (the session timeout before). v4: a new dynamic member is first told its id
(MEMBER_ID_REQUIRED). v5: static members. v7: protocol type and a null protocol in errors. v9: a restarted static
leader may skip its assignment. SyncGroup v5: protocol type and name must be there, and be the group's. LeaveGroup v3:
many members, also by instance id alone. DescribeGroups v3: authorised operations. v6: GROUP_ID_NOT_FOUND instead of a
dead group. ListGroups v4: filter by state, v5: by type.

An answer comes when what it reveals is durable. JoinGroup and SyncGroup wait for other members, as in Kafka. Members
of the classic protocol may also be in consumer groups (`broker.handlers.consumer_groups`); DescribeGroups knows only
classic groups, the others here know both. Not implemented: share and streams groups; their APIs are not advertised.
"""

from __future__ import annotations

from collections.abc import Awaitable

from broker.groups.answering import answer_with
from broker.groups.model import (
    GroupView,
    Heartbeat,
    Join,
    JoinAnswer,
    Leave,
    LeaveAnswer,
    Leaver,
    Sync,
    SyncAnswer,
)
from broker.operations import GROUP_OPERATIONS, NOT_ASKED
from broker.services import RequestContext
from protocol import messages as m
from protocol.errors import ErrorCode


def join_group(
    request: m.JoinGroupRequest, context: RequestContext
) -> m.JoinGroupResponse | Awaitable[m.JoinGroupResponse]:
    version = context.api_version
    rebalance_timeout_ms = request.session_timeout_ms if version == 0 else request.rebalance_timeout_ms
    groups = context.services.groups
    join = Join(
        0,
        request.group_id,
        request.member_id,
        request.group_instance_id,
        context.client_id or "",
        f"/{context.client_address}",
        request.session_timeout_ms,
        rebalance_timeout_ms,
        request.protocol_type,
        tuple({protocol.name: protocol.metadata for protocol in request.protocols}.items()),
        groups.new_token(),
        needs_member_id=version >= 4,
        may_skip_assignment=version >= 9,
    )

    def respond(answer: JoinAnswer) -> m.JoinGroupResponse:
        return m.JoinGroupResponse(
            error_code=answer.error,
            generation_id=answer.generation,
            protocol_type=answer.protocol_type,
            protocol_name="" if answer.protocol is None and version < 7 else answer.protocol,
            leader=answer.leader,
            skip_assignment=answer.skip_assignment,
            member_id=answer.member_id,
            members=[
                m.JoinGroupResponse.JoinGroupResponseMember(
                    member_id=member.member_id, group_instance_id=member.instance_id, metadata=member.metadata
                )
                for member in answer.members
            ],
        )

    return answer_with(groups.join(join), respond)


def sync_group(
    request: m.SyncGroupRequest, context: RequestContext
) -> m.SyncGroupResponse | Awaitable[m.SyncGroupResponse]:
    if context.api_version >= 5 and (request.protocol_type is None or request.protocol_name is None):
        return m.SyncGroupResponse(error_code=ErrorCode.INCONSISTENT_GROUP_PROTOCOL)
    sync = Sync(
        0,
        request.group_id,
        request.generation_id,
        request.member_id,
        request.group_instance_id,
        request.protocol_type,
        request.protocol_name,
        tuple((one.member_id, one.assignment) for one in request.assignments),
    )

    def respond(answer: SyncAnswer) -> m.SyncGroupResponse:
        return m.SyncGroupResponse(
            error_code=answer.error,
            protocol_type=answer.protocol_type,
            protocol_name=answer.protocol,
            assignment=answer.assignment,
        )

    return answer_with(context.services.groups.sync(sync), respond)


def heartbeat(
    request: m.HeartbeatRequest, context: RequestContext
) -> m.HeartbeatResponse | Awaitable[m.HeartbeatResponse]:
    beat = Heartbeat(0, request.group_id, request.generation_id, request.member_id, request.group_instance_id)
    return answer_with(context.services.groups.heartbeat(beat), lambda error: m.HeartbeatResponse(error_code=error))


def leave_group(
    request: m.LeaveGroupRequest, context: RequestContext
) -> m.LeaveGroupResponse | Awaitable[m.LeaveGroupResponse]:
    many = context.api_version >= 3
    if many:
        leavers = tuple(Leaver(member.member_id, member.group_instance_id) for member in request.members)
    else:
        leavers = (Leaver(request.member_id, None),)

    def respond(answer: LeaveAnswer) -> m.LeaveGroupResponse:
        if not many:
            errors = [error for _, error in answer.members if error is not ErrorCode.NONE]
            return m.LeaveGroupResponse(error_code=errors[0] if errors else answer.error)
        return m.LeaveGroupResponse(
            error_code=answer.error,
            members=[
                m.LeaveGroupResponse.MemberResponse(
                    member_id=leaver.member_id, group_instance_id=leaver.instance_id, error_code=error
                )
                for leaver, error in answer.members
            ],
        )

    return answer_with(context.services.groups.leave(Leave(0, request.group_id, leavers)), respond)


async def describe_groups(request: m.DescribeGroupsRequest, context: RequestContext) -> m.DescribeGroupsResponse:
    groups = context.services.groups
    operations = GROUP_OPERATIONS if request.include_authorized_operations else NOT_ASKED
    views = [await waiting for waiting in [groups.describe(group_id) for group_id in request.groups]]
    return m.DescribeGroupsResponse(groups=[_described(view, context.api_version, operations) for view in views])


def _described(view: GroupView, version: int, operations: int) -> m.DescribeGroupsResponse.DescribedGroup:
    error, message = view.error, None
    if error is ErrorCode.GROUP_ID_NOT_FOUND:
        if version >= 6:
            message = f"Group {view.group_id} not found."
        else:
            error = ErrorCode.NONE
    return m.DescribeGroupsResponse.DescribedGroup(
        error_code=error,
        error_message=message,
        group_id=view.group_id,
        group_state=view.state,
        protocol_type=view.protocol_type,
        protocol_data=view.protocol,
        members=[
            m.DescribeGroupsResponse.DescribedGroupMember(
                member_id=member.member_id,
                group_instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                member_metadata=member.metadata,
                member_assignment=member.assignment,
            )
            for member in view.members
        ],
        authorized_operations=operations if error is ErrorCode.NONE else NOT_ASKED,
    )


async def list_groups(request: m.ListGroupsRequest, context: RequestContext) -> m.ListGroupsResponse:
    answer = await context.services.groups.list_groups(request.states_filter, request.types_filter)
    return m.ListGroupsResponse(
        error_code=answer.error,
        groups=[
            m.ListGroupsResponse.ListedGroup(
                group_id=group.group_id,
                protocol_type=group.protocol_type,
                group_state=group.state,
                group_type=group.type,
            )
            for group in answer.groups
        ],
    )


async def delete_groups(request: m.DeleteGroupsRequest, context: RequestContext) -> m.DeleteGroupsResponse:
    errors = await context.services.groups.delete_groups(request.groups_names)
    return m.DeleteGroupsResponse(
        results=[
            m.DeleteGroupsResponse.DeletableGroupResult(group_id=group_id, error_code=error)
            for group_id, error in errors.items()
        ]
    )
