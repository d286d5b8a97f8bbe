"""The metadata log for commands that read it without a broker: in the bucket, or in PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from broker.cli.output import CommandError
from controller.cluster_file import POSTGRESQL, ClusterFile, ClusterFileError, read_cluster
from controller.describe import LogBytes
from controller.postgres_bytes import PostgresBytes
from controller.postgres_tables import PostgresTables
from controller.postgres_uri import address, check_uri
from storage.object_store import NotFound, ObjectStore


@asynccontextmanager
async def opened_tables(store: ObjectStore, uri: str) -> AsyncIterator[tuple[ClusterFile, PostgresTables]]:
    """The cluster of the bucket, and its tables at `uri`. CommandError if they are not there."""
    try:
        cluster = await read_cluster(store)
        check_uri(uri)
    except NotFound:
        raise CommandError("cluster.json is missing: this is no bucket of a cluster") from None
    except ClusterFileError as error:
        raise CommandError(str(error)) from None
    except ValueError as error:
        raise CommandError(f"--metadata {error}") from None
    if cluster.metadata != POSTGRESQL:
        raise CommandError("the metadata log of this cluster is in its bucket, not in PostgreSQL")
    tables = PostgresTables(uri, cluster.cluster_id)
    try:
        if not await tables.exists():
            raise CommandError(f"PostgreSQL at {address(uri)} holds no metadata log of cluster {cluster.cluster_id}")
        yield cluster, tables
    finally:
        await tables.close()


@asynccontextmanager
async def opened_log(store: ObjectStore, uri: str) -> AsyncIterator[Callable[[ClusterFile], LogBytes] | None]:
    """What `describe_metadata` wants beside the bucket."""
    if uri:
        async with opened_tables(store, uri) as (_, tables):
            yield lambda cluster: PostgresBytes(tables, cluster.cluster_id)
        return
    try:
        cluster = await read_cluster(store)
    except (NotFound, ClusterFileError):
        cluster = None  # the report says so
    if cluster is not None and cluster.metadata == POSTGRESQL:
        raise CommandError("the metadata log of this cluster is in PostgreSQL: say --metadata postgresql://...")
    yield None
