"""From a coordinator's future to what a handler returns: the response itself when it is known already, so that
heartbeats and the like cost no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_Answer = TypeVar("_Answer")
_Response = TypeVar("_Response")


def answer_with(
    future: asyncio.Future[_Answer], respond: Callable[[_Answer], _Response]
) -> _Response | Awaitable[_Response]:
    if future.done():
        return respond(future.result())
    return _later(future, respond)


async def _later(future: asyncio.Future[_Answer], respond: Callable[[_Answer], _Response]) -> _Response:
    return respond(await future)
