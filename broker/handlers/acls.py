"""DescribeAcls v1 to v3, CreateAcls v1 to v3, DeleteAcls v1 to v3.

Without `authorizer.class.name` they answer SECURITY_DISABLED, as Kafka does. With it the access list is stored and
returned; **nothing is enforced**, because nobody is authenticated in this version. v3 adds the resource type USER,
which needs nothing here.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from broker.services import RequestContext
from controller import commands as c
from controller.facts import Acl
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError, ProtocolError

UNKNOWN, ANY = 0, 1
CLUSTER = 4
CLUSTER_NAME = "kafka-cluster"
MATCH, LITERAL, PREFIXED = 2, 3, 4
WILDCARD = "*"
MOST = {"resourceType": 7, "patternType": 4, "operation": 15, "permissionType": 3}
"""The highest number of each kind that Kafka 4.3 knows."""
DELETED_MAX = 10_000
"""What one request may match, an entry that several filters match counted for each: Kafka's bound of an operation."""
COMPARISONS_MAX = 10_000_000
"""Filters of a request times entries of the list: some seconds of work, done beside everything else."""


class Filter(NamedTuple):
    """Which entries are meant; None and 1 stand for any."""

    resource_type: int
    resource_name: str | None
    pattern_type: int
    principal: str | None
    host: str | None
    operation: int
    permission_type: int

    def matches(self, acl: Acl) -> bool:
        """Whether the entry is meant."""
        return (
            self.resource_type in (ANY, acl.resource_type)
            and self._matches_name(acl)
            and self.principal in (None, acl.principal)
            and self.host in (None, acl.host)
            and self.operation in (ANY, acl.operation)
            and self.permission_type in (ANY, acl.permission_type)
        )

    def _matches_name(self, acl: Acl) -> bool:
        name = self.resource_name
        if self.pattern_type not in (ANY, MATCH, acl.pattern_type):
            return False
        if name is None or name == acl.resource_name:
            return True
        if self.pattern_type != MATCH:
            return False
        if acl.pattern_type == PREFIXED:
            return name.startswith(acl.resource_name)
        return acl.resource_name == WILDCARD


def _enabled(context: RequestContext) -> bool:
    return bool(context.services.settings.authorizer_class_name)


def _check_number(kind: str, number: int) -> None:
    """INVALID_REQUEST for one that no version knows; what is never sent ends the connection."""
    if number == UNKNOWN:
        raise ProtocolError(f"{kind} UNKNOWN")
    if not UNKNOWN < number <= MOST[kind]:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Invalid {kind} UNKNOWN")


def describe_acls(request: m.DescribeAclsRequest, context: RequestContext) -> m.DescribeAclsResponse:
    """Entries that match, one element per resource."""
    response = m.DescribeAclsResponse
    if not _enabled(context):
        why = "No Authorizer is configured on the broker"
        return response(error_code=ErrorCode.SECURITY_DISABLED, error_message=why)
    wanted = Filter(
        request.resource_type_filter,
        request.resource_name_filter,
        request.pattern_type_filter,
        request.principal_filter,
        request.host_filter,
        request.operation,
        request.permission_type,
    )
    _check_filter(wanted)
    found: dict[tuple[int, str, int], list[Acl]] = {}
    for acl in context.services.controller.state.acls:
        if wanted.matches(acl):
            found.setdefault((acl.resource_type, acl.resource_name, acl.pattern_type), []).append(acl)
    return response(
        error_message=None,
        resources=[
            response.DescribeAclsResource(
                resource_type=resource_type,
                resource_name=name,
                pattern_type=pattern_type,
                acls=[
                    response.AclDescription(
                        principal=acl.principal,
                        host=acl.host,
                        operation=acl.operation,
                        permission_type=acl.permission_type,
                    )
                    for acl in acls
                ],
            )
            for (resource_type, name, pattern_type), acls in found.items()
        ],
    )


def _check_filter(wanted: Filter) -> None:
    """Something unknown in a filter would mean another thing than its sender does: as in Kafka the connection ends."""
    numbers = (wanted.resource_type, wanted.pattern_type, wanted.operation, wanted.permission_type)
    for (kind, most), number in zip(MOST.items(), numbers):
        if not UNKNOWN < number <= most:
            raise ProtocolError(f"an access list filter with {kind} {number}")


async def create_acls(request: m.CreateAclsRequest, context: RequestContext) -> m.CreateAclsResponse:
    """One result per entry."""
    services = context.services
    results: list[KafkaError | None] = []
    good: list[Acl] = []
    for one in request.creations:
        acl = Acl(
            one.resource_type,
            one.resource_name,
            one.resource_pattern_type,
            one.principal,
            one.host,
            one.operation,
            one.permission_type,
        )
        try:
            if not _enabled(context):
                raise KafkaError(ErrorCode.SECURITY_DISABLED, "No Authorizer is configured.")
            _check(acl)
            results.append(None)
            good.append(acl)
        except KafkaError as error:
            results.append(error)
    if good:
        try:
            await services.controller.ask(c.CreateAcls(services.token(16), tuple(good)))
        except KafkaError as error:
            results = [error if result is None else result for result in results]
    response = m.CreateAclsResponse
    return response(
        results=[
            response.AclCreationResult(error_message=None)
            if error is None
            else response.AclCreationResult(error_code=error.code, error_message=error.message)
            for error in results
        ]
    )


def _check(acl: Acl) -> None:
    """INVALID_REQUEST for an entry that cannot stand."""
    numbers = (acl.resource_type, acl.pattern_type, acl.operation, acl.permission_type)
    for kind, number in zip(MOST, numbers):
        _check_number(kind, number)
        if number == ANY or (kind == "patternType" and number == MATCH):
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"Invalid {kind} in an entry of the access list: {number}")
    if not acl.resource_name:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "Invalid empty resource name")
    if acl.resource_type == CLUSTER and acl.resource_name != CLUSTER_NAME:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"The only valid name for the CLUSTER resource is {CLUSTER_NAME}")
    if ":" not in acl.principal:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST,
            f"Could not parse principal from `{acl.principal}` (no colon is present separating the principal type from "
            "the principal name)",
        )


async def delete_acls(request: m.DeleteAclsRequest, context: RequestContext) -> m.DeleteAclsResponse:
    """Entries that match, per filter."""
    services = context.services
    response = m.DeleteAclsResponse
    if not _enabled(context):
        why = "No Authorizer is configured."
        refused = response.DeleteAclsFilterResult(error_code=ErrorCode.SECURITY_DISABLED, error_message=why)
        return response(filter_results=[refused for _ in request.filters])
    filters = [
        Filter(
            one.resource_type_filter,
            one.resource_name_filter,
            one.pattern_type_filter,
            one.principal_filter,
            one.host_filter,
            one.operation,
            one.permission_type,
        )
        for one in request.filters
    ]
    for wanted in filters:
        _check_filter(wanted)
    matched: list[list[Acl]] = []
    failure: KafkaError | None = None
    try:
        async for found in _matching(filters, list(services.controller.state.acls)):
            matched.append(found)
        gone = tuple(dict.fromkeys(acl for each in matched for acl in each))
        if gone:
            await services.controller.ask(c.DeleteAcls(services.token(16), gone))
    except KafkaError as error:
        failure = error
        matched = [[] for _ in filters]
    return response(filter_results=[_deleted(acls, failure) for acls in matched])


async def _matching(filters: Sequence[Filter], acls: Sequence[Acl]) -> AsyncIterator[list[Acl]]:
    """The entries that each filter means. POLICY_VIOLATION, with Kafka's bound and words, when they are too many."""
    too_many = KafkaError(ErrorCode.POLICY_VIOLATION, "Unable to perform excessively large batch operation.")
    if len(filters) * len(acls) > COMPARISONS_MAX:
        raise too_many
    count = 0
    for wanted in filters:
        found = [acl for acl in acls if wanted.matches(acl)]
        count += len(found)
        if count > DELETED_MAX:
            raise too_many
        yield found
        await asyncio.sleep(0)


def _deleted(acls: list[Acl], failure: KafkaError | None) -> m.DeleteAclsResponse.DeleteAclsFilterResult:
    response = m.DeleteAclsResponse
    if failure is not None:
        return response.DeleteAclsFilterResult(error_code=failure.code, error_message=failure.message)
    return response.DeleteAclsFilterResult(
        error_message=None,
        matching_acls=[
            response.DeleteAclsMatchingAcl(
                error_message=None,
                resource_type=acl.resource_type,
                resource_name=acl.resource_name,
                pattern_type=acl.pattern_type,
                principal=acl.principal,
                host=acl.host,
                operation=acl.operation,
                permission_type=acl.permission_type,
            )
            for acl in acls
        ],
    )
