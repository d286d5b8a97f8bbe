"""FindCoordinator: v0 to v6.

v1: key types (0 group, 1 transaction, 2 share). v4: many keys in one request, one result each. v6: share groups' key type.
Not implemented: transaction and share coordinators (INVALID_REQUEST), as long as those APIs are not advertised.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.services import RequestContext
    from protocol import messages as m


def find_coordinator(
    request: m.FindCoordinatorRequest, context: RequestContext
) -> m.FindCoordinatorResponse | Awaitable[m.FindCoordinatorResponse]:
    raise NotImplementedError
