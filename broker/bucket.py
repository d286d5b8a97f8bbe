"""The bucket when a broker starts: opened, probed, its cluster found (DESIGN 7.9, step 2). A store that is away is
waited for; one that cannot be used is `CannotStart`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.metadata_place import MetadataPlace, WrongPlace
from controller.cluster_file import ClusterFile, ClusterFileError, open_cluster, read_cluster
from controller.postgres_tables import TablesError
from storage.object_store import Denied, NotFound, ObjectStore, OutcomeUnknown, StoreError, Unavailable
from storage.probe import probe
from storage.retrying import RetryingStore

log = logging.getLogger(__name__)

RETRY_S = 0.5
TELL_S = 3
"""A store that hangs fails no call for a while: this long it may take before somebody is told."""
ATTEMPT_MS = 1_000
"""A request of a start that has no answer by then is made again: a lost packet would cost what its client waits."""

_T = TypeVar("_T")


class CannotStart(Exception):
    """The broker cannot start with what it was given; the message says what to do."""


class Bucket:
    """`store` is open; nothing was read or written yet."""

    def __init__(self, uri: str, open_store: Callable[[str], ObjectStore], token: Callable[[int], bytes]) -> None:
        self._uri = uri
        self._token = token
        self._told = False
        try:
            self.store = self._small = open_store(uri)
        except ValueError as error:
            raise CannotStart(f"tidelog.storage: {error}") from None
        if isinstance(self.store, RetryingStore):
            self._small = self.store.hurried(ATTEMPT_MS)

    async def probe(self) -> None:
        """Returns when the store was found to keep its word."""
        await self._patiently(lambda: probe(self._small, self._token))

    async def find_cluster(self, probed: Awaitable[None], place: MetadataPlace) -> ClusterFile:
        """Which cluster the bucket holds. An empty one gets its own, once `probed` returns, with its log in `place`."""

        async def look() -> ClusterFile | None:
            try:
                return await read_cluster(self._small)
            except NotFound:
                return None

        found = await self._patiently(look)
        if found is None:
            await probed
            found = await self._patiently(lambda: open_cluster(self._small, self._token, elsewhere=place.elsewhere))
        known = found
        await self._patiently(lambda: place.check(known))
        return known

    async def _patiently(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat `work` while the store is away; say so once."""

        def tell(why: object) -> None:
            if not self._told:
                log.warning("waiting for %s: %s", self._uri, why)
                self._told = True

        telling = asyncio.get_running_loop().call_later(TELL_S, tell, f"no success within {TELL_S} s")
        try:
            while True:
                try:
                    return await work()
                except (Unavailable, OutcomeUnknown) as error:
                    tell(error)
                    await asyncio.sleep(RETRY_S)
        except TablesError as error:
            raise CannotStart(f"tidelog.metadata: {error}") from None
        except WrongPlace as error:
            raise CannotStart(str(error)) from None
        except Denied as error:
            raise CannotStart(f"the object store refuses: {error}; check credentials and permissions") from None
        except (StoreError, ClusterFileError) as error:
            raise CannotStart(f"{self._uri} cannot be used: {error}") from None
        finally:
            telling.cancel()
