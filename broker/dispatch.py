"""API key -> handler: the one table from which requests are dispatched and ApiVersions answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from broker.services import RequestContext
from protocol.apis import ApiKey

__all__ = ["HANDLERS", "Entry", "RequestContext"]


class Entry(NamedTuple):
    """One API.

    `handler(request, context)` takes the decoded request and returns the response or an awaitable of it. An awaitable
    runs as a task of the server and the connection's later requests wait for it, as in Kafka.
    `raw` handlers (Produce, Fetch) take the bytes instead and answer through the connection themselves.
    `min_version` and `max_version` are what is served; `test` names the test that proves it (README's table).
    """

    handler: Callable[..., Any]
    min_version: int
    max_version: int
    test: str
    raw: bool = False


HANDLERS: dict[ApiKey, Entry] = {}
