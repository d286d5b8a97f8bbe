"""JoinGroup, SyncGroup, Heartbeat, LeaveGroup, DescribeGroups, ListGroups, DeleteGroups: Kafka 4.3 versions and semantics."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.services import RequestContext
    from protocol import messages as m


def join_group(request: m.JoinGroupRequest, context: RequestContext) -> Awaitable[m.JoinGroupResponse]:
    raise NotImplementedError


def sync_group(request: m.SyncGroupRequest, context: RequestContext) -> Awaitable[m.SyncGroupResponse]:
    raise NotImplementedError


def heartbeat(request: m.HeartbeatRequest, context: RequestContext) -> Awaitable[m.HeartbeatResponse]:
    raise NotImplementedError


def leave_group(request: m.LeaveGroupRequest, context: RequestContext) -> Awaitable[m.LeaveGroupResponse]:
    raise NotImplementedError


def describe_groups(request: m.DescribeGroupsRequest, context: RequestContext) -> Awaitable[m.DescribeGroupsResponse]:
    raise NotImplementedError


def list_groups(request: m.ListGroupsRequest, context: RequestContext) -> Awaitable[m.ListGroupsResponse]:
    raise NotImplementedError


def delete_groups(request: m.DeleteGroupsRequest, context: RequestContext) -> Awaitable[m.DeleteGroupsResponse]:
    raise NotImplementedError
