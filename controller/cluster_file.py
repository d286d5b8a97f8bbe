"""`cluster.json`: which cluster a bucket belongs to, in which format, and where its metadata log is.

Created once, never changed. Format 1: the log is in the bucket. Format 2 names another place, so that a version that
knows no other does not begin a second log in the bucket.
"""

import base64
import json
from collections.abc import Callable
from typing import NamedTuple, Protocol

from controller.object_log import ENTRIES, SNAPSHOTS
from storage.object_store import NotFound, ObjectStore, OutcomeUnknown, PreconditionFailed

KEY = "cluster.json"
FORMAT_MAX = 2
STORAGE, POSTGRESQL = "storage", "postgresql"
"""Where the metadata log may be: the bucket itself, or PostgreSQL."""


class ClusterFileError(Exception):
    """The bucket is not one that this process may use. The message says why and what to do."""


class ClusterFile(NamedTuple):
    """`cluster_id` is Kafka's form: 22 characters of base64 for 16 random bytes. `metadata`: see `STORAGE`."""

    cluster_id: str
    format: int
    metadata: str = STORAGE


class LogElsewhere(Protocol):
    """A place for the metadata log that is not the bucket."""

    async def create(self, cluster_id: str) -> None:
        """Makes an empty log for a new cluster."""
        ...

    async def discard(self, cluster_id: str) -> None:
        """Removes it: the cluster never came to be."""
        ...


async def open_cluster(
    store: ObjectStore,
    token: Callable[[int], bytes],
    expected_id: str | None = None,
    elsewhere: LogElsewhere | None = None,
) -> ClusterFile:
    """Reads `cluster.json`, or creates it in an empty bucket. `token(n)` gives n random bytes.

    `elsewhere`: PostgreSQL, if the metadata log of a new cluster is to be there; it is made before `cluster.json` names
    it, so that a log that is missing later was lost. `ClusterFileError` if the file is damaged, of another format or
    another cluster than `expected_id`, or missing in a bucket that holds metadata. `StoreError`: try again.
    """
    try:
        found = await read_cluster(store)
    except NotFound:
        found = await _create(store, token, expected_id, elsewhere)
    if expected_id is not None and found.cluster_id != expected_id:
        raise ClusterFileError(
            f"{KEY} says cluster {found.cluster_id}, but {expected_id} was expected: "
            "this bucket (or prefix) belongs to another cluster; point the broker to its own"
        )
    return found


async def read_cluster(store: ObjectStore) -> ClusterFile:
    """What `cluster.json` says. `NotFound`, `ClusterFileError`."""
    data = (await store.get(KEY)).data
    try:
        value = json.loads(data)
        found = ClusterFile(str(value["cluster_id"]), int(value["format"]), str(value.get("metadata", STORAGE)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterFileError(f"{KEY} cannot be read ({error!r}): restore it from a copy of the bucket") from error
    if (found.format, found.metadata) not in ((1, STORAGE), (2, POSTGRESQL)):
        raise ClusterFileError(
            f"{KEY} is of format {found.format} (metadata in {found.metadata}), this version reads up to {FORMAT_MAX}: "
            "use a newer version"
        )
    if len(found.cluster_id) != 22:
        raise ClusterFileError(f"{KEY} holds no valid cluster id: {found.cluster_id!r}")
    return found


async def _create(
    store: ObjectStore, token: Callable[[int], bytes], expected_id: str | None, elsewhere: LogElsewhere | None
) -> ClusterFile:
    for prefix in (ENTRIES, SNAPSHOTS):
        async for info in store.list(prefix):
            try:
                return await read_cluster(store)  # another process began the cluster meanwhile, and writes this first
            except NotFound:
                text = f"{KEY} is missing, but {info.key} exists: restore it from a copy of the bucket"
                raise ClusterFileError(text) from None
    cluster_id = expected_id or _new_id(token)
    value: dict[str, str | int] = {"cluster_id": cluster_id, "format": 1}
    if elsewhere is not None:
        value |= {"format": 2, "metadata": POSTGRESQL}
        await elsewhere.create(cluster_id)
    body = json.dumps(value).encode() + b"\n"
    try:
        await store.put_if_absent(KEY, body)
    except (PreconditionFailed, OutcomeUnknown):
        pass  # somebody was faster, or we were: what is there counts
    found = await read_cluster(store)
    if elsewhere is not None and found.cluster_id != cluster_id:
        await elsewhere.discard(cluster_id)
    return found


def _new_id(token: Callable[[int], bytes]) -> str:
    while True:
        text = base64.urlsafe_b64encode(token(16)).decode().rstrip("=")
        if not text.startswith("-"):  # Kafka avoids them: they look like options on a command line
            return text
