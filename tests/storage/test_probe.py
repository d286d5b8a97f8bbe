"""The probe refuses a store for each promise that it breaks, and says which."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from storage.memory import MemoryStore
from storage.object_store import (
    Body,
    ObjectInfo,
    OutcomeUnknown,
    PreconditionFailed,
    StoredObject,
    StoreError,
    Unavailable,
    open_store,
)
from storage.probe import RACERS, probe
from tests.support.faulty_proxy import FaultyProxy, Strip
from tests.support.s3_servers import S3Server


class IgnoresIfNoneMatch(MemoryStore):
    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self.put(key, body)


class IgnoresIfMatch(MemoryStore):
    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        return await self.put(key, body)


class IfMatchCreates(MemoryStore):
    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        if key not in self._objects:
            return await self.put(key, body)
        return await super().put_if_match(key, body, etag)


class RemembersDeletedKeys(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    async def delete(self, key: str) -> None:
        self.deleted.add(key)
        await super().delete(key)

    async def put_if_absent(self, key: str, body: Body) -> str:
        if key in self.deleted:
            raise PreconditionFailed("a tombstone is in the way")
        return await super().put_if_absent(key, body)


class DeletesOnceMoreLater(MemoryStore):
    """An attempt to delete whose answer was lost lands after so many further calls, when the key was made again."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.late: str | None = None

    async def delete(self, key: str) -> None:
        self.late = self.late or key
        await super().delete(key)

    async def _later(self) -> None:
        if self.late is not None:
            self.calls -= 1
            if self.calls == 0:
                await super().delete(self.late)

    async def get(self, key: str) -> StoredObject:
        await self._later()
        return await super().get(key)

    async def head(self, key: str) -> ObjectInfo:
        await self._later()
        return await super().head(key)


class NeverDeletes(MemoryStore):
    async def delete(self, key: str) -> None:
        pass


class ChecksThenCreates(MemoryStore):
    async def put_if_absent(self, key: str, body: Body) -> str:
        if key in self._objects:
            raise PreconditionFailed("exists")
        return await self.put(key, body)


class ChecksThenReplaces(MemoryStore):
    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        stored = self._objects.get(key)
        if stored is None or stored.etag != etag:
            raise PreconditionFailed("other etag")
        return await self.put(key, body)


class LosersOverwrite(MemoryStore):
    """Only one writer hears that it won, but the others' bytes may stay."""

    async def put_if_absent(self, key: str, body: Body) -> str:
        await asyncio.sleep(0)
        existed = key in self._objects
        if existed and b"racer" not in bytes(body):  # type: ignore[arg-type]
            raise PreconditionFailed("exists")
        etag = self._store(key, body)
        if existed:
            raise PreconditionFailed("exists")
        return etag


class ShowsFormerContent(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.former: dict[str, StoredObject] = {}

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        self.former[key] = self._objects[key]
        return await super().put_if_match(key, body, etag)

    async def get(self, key: str) -> StoredObject:
        return self.former.get(key) or await super().get(key)


class ListsLate(MemoryStore):
    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        infos = [info async for info in super().list(prefix, start_after)]
        for info in infos[:-1]:
            yield info


class ListsBackwards(MemoryStore):
    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        infos = [info async for info in super().list(prefix, start_after)]
        for info in reversed(infos):
            yield info


class IgnoresStartAfter(MemoryStore):
    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix):
            yield info


class CountsRangesFromOne(MemoryStore):
    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await super().get_range(key, max(0, start - 1), length)


class ChangesEtags(MemoryStore):
    async def head(self, key: str) -> ObjectInfo:
        return (await super().head(key))._replace(etag="another")


BROKEN = {
    IgnoresIfNoneMatch: "If-None-Match",
    IgnoresIfMatch: "If-Match and an etag of former content",
    IfMatchCreates: "If-Match on a key that does not exist",
    RemembersDeletedKeys: "create a key again",
    NeverDeletes: "no longer show",
    ChecksThenCreates: f"exactly one of {RACERS} racing writers create",
    ChecksThenReplaces: f"exactly one of {RACERS} racing writers replace",
    LosersOverwrite: "keep what the winner",
    ShowsFormerContent: "show exactly what was written last",
    ListsLate: "list every object",
    ListsBackwards: "in the order of keys",
    IgnoresStartAfter: "list every object",
    CountsRangesFromOne: "ranged read",
    ChangesEtags: "same etag",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_promise_is_named(kind: type[MemoryStore]) -> None:
    store = kind()
    with pytest.raises(StoreError, match=BROKEN[kind]) as caught:
        await probe(store, secrets.token_bytes)
    assert type(caught.value) is StoreError
    if kind is not NeverDeletes:
        assert not store._objects


@pytest.mark.parametrize("client", ["obstore", "aiobotocore"])
@pytest.mark.parametrize(("header", "named"), [("if-none-match", "If-None-Match"), ("if-match", "If-Match")])
async def test_an_s3_server_that_does_not_know_a_condition(
    moto_server: S3Server, client: str, header: str, named: str
) -> None:
    async with FaultyProxy(moto_server.host, moto_server.port) as proxy:
        proxy.plan = lambda _request: Strip((header,))
        uri = moto_server.uri("bucket", secrets.token_hex(6), client=client, endpoint=proxy.endpoint)
        store = open_store(uri, token=secrets.token_bytes)
        with pytest.raises(StoreError, match=f"does not refuse a write with {named}"):
            await probe(store, secrets.token_bytes)
        assert [info.key async for info in store.list("")] == []
        await store.close()


async def test_a_store_that_is_away_is_not_called_broken() -> None:
    for after in range(0, 120, 7):
        calls = 0

        class Away(MemoryStore):
            async def put_if_absent(self, key: str, body: Body, after: int = after) -> str:
                nonlocal calls
                calls += 1
                if calls > after:
                    raise Unavailable("away")
                return await super().put_if_absent(key, body)

        try:
            await probe(Away(), secrets.token_bytes)
        except Unavailable:
            assert calls > after


async def test_unknown_outcomes_of_a_race_are_no_failure() -> None:
    """S3 answers 409 to some of the racers."""

    class Conflicts(MemoryStore):
        async def put_if_absent(self, key: str, body: Body) -> str:
            await asyncio.sleep(0)
            if key in self._objects and b"racer" in bytes(body):  # type: ignore[arg-type]
                raise OutcomeUnknown("409")
            return await super().put_if_absent(key, body)

    await probe(Conflicts(), secrets.token_bytes)


async def test_probes_do_not_meet() -> None:
    store = MemoryStore()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(probe(store, secrets.token_bytes))
    assert not store._objects


@pytest.mark.parametrize("calls", range(1, 60, 3))
async def test_a_delete_that_lands_late_is_no_lie(calls: int) -> None:
    store = DeletesOnceMoreLater(calls)
    await probe(store, secrets.token_bytes)
    assert not store._objects
