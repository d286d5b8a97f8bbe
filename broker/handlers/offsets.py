"""OffsetCommit, OffsetFetch, OffsetDelete: Kafka 4.3 versions and semantics."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.services import RequestContext
    from protocol import messages as m


def offset_commit(request: m.OffsetCommitRequest, context: RequestContext) -> Awaitable[m.OffsetCommitResponse]:
    raise NotImplementedError


def offset_fetch(request: m.OffsetFetchRequest, context: RequestContext) -> Awaitable[m.OffsetFetchResponse]:
    raise NotImplementedError


def offset_delete(request: m.OffsetDeleteRequest, context: RequestContext) -> Awaitable[m.OffsetDeleteResponse]:
    raise NotImplementedError
