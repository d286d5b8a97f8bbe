"""Where the metadata log of the cluster is: in its bucket, or in PostgreSQL (`tidelog.metadata`)."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from controller.cluster_file import POSTGRESQL, STORAGE, ClusterFile
from controller.metadata_log import MetadataLog
from controller.object_log import ObjectLog
from controller.postgres_log import PostgresLog
from controller.postgres_tables import PostgresTables
from controller.postgres_uri import address
from storage.object_store import ObjectStore

_T = TypeVar("_T")


class WrongPlace(Exception):
    """The cluster's log is not where the setting says; the message says where and what to do."""


class MetadataPlace:
    """`uri` is `tidelog.metadata`; empty: the bucket. Also a `LogElsewhere` for a new cluster."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.name = f"PostgreSQL at {address(uri)}" if uri else "the bucket"

    @property
    def elsewhere(self) -> "MetadataPlace | None":
        """Itself, unless it is the bucket."""
        return self if self._uri else None

    async def create(self, cluster_id: str) -> None:
        """See `LogElsewhere`."""
        await self._with_tables(cluster_id, PostgresTables.create)

    async def discard(self, cluster_id: str) -> None:
        """See `LogElsewhere`."""
        await self._with_tables(cluster_id, PostgresTables.discard)

    async def check(self, cluster: ClusterFile) -> None:
        """Returns if the log is here. `WrongPlace`, `StoreError`."""
        if cluster.metadata == STORAGE and self._uri:
            raise WrongPlace(
                "the metadata log of this cluster is in its bucket and does not move: remove tidelog.metadata"
            )
        if cluster.metadata == POSTGRESQL and not self._uri:
            raise WrongPlace(
                "the metadata log of this cluster is in PostgreSQL: set tidelog.metadata, as on its other brokers"
            )
        if self._uri and not await self._with_tables(cluster.cluster_id, PostgresTables.exists):
            raise WrongPlace(
                f"{self.name} holds no metadata log of cluster {cluster.cluster_id}: is it the right database? If it "
                "was lost, restore it from a backup"
            )

    async def _with_tables(self, cluster_id: str, work: Callable[[PostgresTables], Awaitable[_T]]) -> _T:
        tables = PostgresTables(self._uri, cluster_id)
        try:
            return await work(tables)
        finally:
            await tables.close()

    def open(self, store: ObjectStore, cluster_id: str, node_id: int, attempt_ms: int) -> MetadataLog:
        """The log. Nothing is asked yet. `attempt_ms`: how long the first attempt of a call may take."""
        if not self._uri:
            return ObjectLog(store, cluster_id, attempt_ms=attempt_ms)
        tables = PostgresTables(self._uri, cluster_id, attempt_ms=attempt_ms)
        return PostgresLog(tables, cluster_id, f"broker {node_id}")
