"""Python client libraries behind one small interface, so that one test runs with each of them."""

import time
from collections.abc import Callable

import pytest

from tests.compatibility.clients import aio, confluent, kafka_python
from tests.compatibility.clients.base import Client, Consumer, In

CLIENTS: list[Client] = [kafka_python, confluent, aio]

each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


def poll_until(
    consumers: Consumer | list[Consumer], condition: Callable[[list[In]], object], seconds: float = 20
) -> list[In]:
    """Poll the consumers in turn until the condition holds for all that was read; what was read, in order."""
    members = consumers if isinstance(consumers, list) else [consumers]
    found: list[In] = []
    deadline = time.monotonic() + seconds  # noqa: TID251
    while not condition(found):
        assert time.monotonic() < deadline, f"{len(found)} records, assignments {[m.assignment() for m in members]}"  # noqa: TID251
        for member in members:
            found += member.poll(1.0)
    return found


def read(consumer: Consumer, count: int, seconds: float = 20) -> list[In]:
    """Exactly so many records."""
    found = poll_until(consumer, lambda records: len(records) >= count, seconds)
    assert len(found) == count
    return found
