"""Simulated Kafka clients: the product's codecs over the running event loop's connections, and what they saw.

Plain asyncio code: it runs on a simulated process's loop as on a real one. `world.process.spawn(client.run)`.
"""

import asyncio
import random  # noqa: TID251
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Recorder(Protocol):
    """The part of a `History` that clients use."""

    def record(self, kind: str, **fields: object) -> None:
        """Append an event that happens now."""


@dataclass(frozen=True)
class ClientSettings:
    """As real clients name them; milliseconds."""

    request_timeout_ms: int = 3_000
    reconnect_backoff_ms: int = 50
    reconnect_backoff_max_ms: int = 500
    retry_backoff_ms: int = 50
    delivery_timeout_ms: int = 120_000


class SimulatedClient:
    """What all clients have: a name, brokers to begin with, a history, a seeded source of choices.

    `run()` is the main coroutine of the client's process and ends some time after `stop()` was called (from anywhere:
    it only sets a flag). A client process may be killed at any moment: what it invoked stays without an outcome.
    """

    def __init__(
        self,
        name: str,
        bootstrap: Sequence[tuple[str, int]],
        history: Recorder,
        rng: random.Random,
        settings: ClientSettings = ClientSettings(),  # noqa: B008
    ) -> None:
        self.name = name
        self.bootstrap = tuple(bootstrap)
        self.history = history
        self.rng = rng
        self.settings = settings
        self.stopping = False

    def stop(self) -> None:
        """Begin nothing new; `run` ends when what is under way has an outcome."""
        self.stopping = True

    async def run(self) -> None:
        """The client's life."""
        raise NotImplementedError


async def sleep_ms(ms: float) -> None:
    """Wait on the running loop's clock."""
    await asyncio.sleep(ms / 1000)
