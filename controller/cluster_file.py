"""`cluster.json`: which cluster a bucket belongs to, and in which format. Created once, never changed."""

import base64
import json
from collections.abc import Callable
from typing import NamedTuple

from controller.object_log import ENTRIES, SNAPSHOTS
from storage.object_store import NotFound, ObjectStore, OutcomeUnknown, PreconditionFailed

KEY = "cluster.json"
FORMAT = 1


class ClusterFileError(Exception):
    """The bucket is not one that this process may use. The message says why and what to do."""


class ClusterFile(NamedTuple):
    """`cluster_id` is Kafka's form: 22 characters of base64 for 16 random bytes."""

    cluster_id: str
    format: int


async def open_cluster(
    store: ObjectStore, token: Callable[[int], bytes], expected_id: str | None = None
) -> ClusterFile:
    """Reads `cluster.json`, or creates it in an empty bucket. `token(n)` gives n random bytes.

    `ClusterFileError` if it is damaged, of another format or another cluster than `expected_id`, or missing in a bucket
    that holds metadata. `StoreError`: try again.
    """
    try:
        found = await read_cluster(store)
    except NotFound:
        found = await _create(store, token, expected_id)
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
        found = ClusterFile(str(value["cluster_id"]), int(value["format"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterFileError(f"{KEY} cannot be read ({error!r}): restore it from a copy of the bucket") from error
    if found.format != FORMAT:
        raise ClusterFileError(f"{KEY} is of format {found.format}, this version reads {FORMAT}: use a newer version")
    if len(found.cluster_id) != 22:
        raise ClusterFileError(f"{KEY} holds no valid cluster id: {found.cluster_id!r}")
    return found


async def _create(store: ObjectStore, token: Callable[[int], bytes], expected_id: str | None) -> ClusterFile:
    for prefix in (ENTRIES, SNAPSHOTS):
        async for info in store.list(prefix):
            raise ClusterFileError(f"{KEY} is missing, but {info.key} exists: restore it from a copy of the bucket")
    cluster_id = expected_id or _new_id(token)
    body = json.dumps({"cluster_id": cluster_id, "format": FORMAT}).encode() + b"\n"
    try:
        await store.put_if_absent(KEY, body)
    except (PreconditionFailed, OutcomeUnknown):
        pass  # somebody was faster, or we were: what is there counts
    return await read_cluster(store)


def _new_id(token: Callable[[int], bytes]) -> str:
    while True:
        text = base64.urlsafe_b64encode(token(16)).decode().rstrip("=")
        if not text.startswith("-"):  # Kafka avoids them: they look like options on a command line
            return text
