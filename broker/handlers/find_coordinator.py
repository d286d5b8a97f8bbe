"""FindCoordinator v0 to v6: which broker serves a group or a transactional id.

v0 knows only groups. v1: key types (0 group, 1 transaction, 2 share). v4: many keys in one request, one result each.
v5 and v6 changed what clients may ask for, not the format. The first question creates `__consumer_offsets` or
`__transaction_state`, and is answered when it is there; the latter needs format level 3. Answers show what this broker
has applied; they are no proof of leadership, the coordinator itself checks. Not implemented: coordinators of share
groups (INVALID_REQUEST), whose APIs are not advertised.
"""

from __future__ import annotations

from broker.coordination.topic import Endpoint
from broker.services import RequestContext
from protocol import messages as m
from protocol.errors import ErrorCode

GROUP, TRANSACTION = 0, 1
KEYS_FROM = 4


async def find_coordinator(request: m.FindCoordinatorRequest, context: RequestContext) -> m.FindCoordinatorResponse:
    """One answer per key, in the order asked."""
    keys = request.coordinator_keys if context.api_version >= KEYS_FROM else [request.key]
    found = await _find(keys, request.key_type, context)
    if context.api_version >= KEYS_FROM:
        return m.FindCoordinatorResponse(
            coordinators=[
                m.FindCoordinatorResponse.Coordinator(
                    key=key,
                    node_id=endpoint.node_id,
                    host=endpoint.host,
                    port=endpoint.port,
                    error_code=endpoint.error,
                    error_message="" if endpoint.error is ErrorCode.NONE else message,
                )
                for key, (endpoint, message) in zip(keys, found)
            ]
        )
    endpoint, message = found[0]
    return m.FindCoordinatorResponse(
        error_code=endpoint.error,
        error_message=message,
        node_id=endpoint.node_id,
        host=endpoint.host,
        port=endpoint.port,
    )


async def _find(keys: list[str], key_type: int, context: RequestContext) -> list[tuple[Endpoint, str]]:
    services = context.services
    if key_type == GROUP:
        topic = services.groups.topic
    elif key_type == TRANSACTION:
        topic = services.coordinators.topic
    else:
        refused = (Endpoint(ErrorCode.INVALID_REQUEST), f"There is no coordinator of type {key_type}.")
        return [refused] * len(keys)
    error = await topic.ensure() if keys else ErrorCode.NONE
    found = []
    for key in keys:
        endpoint = topic.locate(key, context.listener) if error is ErrorCode.NONE else Endpoint(error)
        found.append((endpoint, "NONE" if endpoint.error is ErrorCode.NONE else "The coordinator is not available."))
    return found
