"""What handlers may use: one object for the process, handed to every handler in its request context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.background import Tasks
    from broker.cold import ColdReads
    from broker.configs import TopicDefaults
    from broker.connection import Connection
    from broker.dispatch import Entry
    from broker.dynamic_configs import DynamicConfigs
    from broker.fetch_sessions import FetchSessions
    from broker.groups.coordinator import GroupCoordinators
    from broker.handlers.control import ControlEndpoint
    from broker.handlers.init_producer_id import ProducerIds
    from broker.log_table import LogTable
    from broker.metadata_cache import MetadataCache
    from broker.metrics import Counters, Metrics
    from broker.quotas import ClientQuotas
    from broker.sealing import Sealing
    from broker.settings import Settings
    from broker.transactions.coordinator import TransactionCoordinators
    from broker.transactions.verification import TransactionVerifier
    from broker.wheel import Wheel
    from controller.client import ControllerClient, Session
    from protocol.apis import ApiKey
    from storage.clock import Clock
    from storage.reader import Reader


@dataclass(slots=True, kw_only=True)
class Services:
    """Built once by the composition root. `ticks_us` is a cheap monotonic microsecond counter for latencies."""

    settings: Settings
    clock: Clock
    ticks_us: Callable[[], int]
    token: Callable[[int], bytes]
    controller: ControllerClient
    session: Session
    logs: LogTable
    cold: ColdReads
    reader: Reader
    sealing: Sealing
    groups: GroupCoordinators
    topic_defaults: TopicDefaults
    metadata_cache: MetadataCache
    fetch_sessions: FetchSessions
    producer_ids: ProducerIds
    quotas: ClientQuotas
    coordinators: TransactionCoordinators
    """Of transactions."""
    transactions: TransactionVerifier
    """What asks them, and those of other brokers, before a batch opens a transaction."""
    wheel: Wheel
    cold_fetches: asyncio.Semaphore
    """Requests that may read from the bucket at the same time (`handlers.fetch.COLD_PARALLEL`)."""
    counters: Counters
    metrics: Metrics
    tasks: Tasks
    handlers: dict[ApiKey, Entry]
    """The dispatch table."""
    control: ControlEndpoint | None = None
    """What serves other brokers; None: nothing does."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Services of handler families that come later, by name."""

    @property
    def dynamic_configs(self) -> DynamicConfigs:
        """Broker configs that may change at run time."""
        return self.topic_defaults.dynamic


@dataclass(slots=True)
class RequestContext:
    """One request as its handler sees it. `principal` is Kafka's string form; `User:ANONYMOUS` is nobody."""

    services: Services
    connection: Connection
    api_version: int
    client_id: str | None
    client_address: str
    listener: str
    principal: str
