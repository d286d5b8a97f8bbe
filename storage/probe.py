"""The start-up probe: does this store keep the promises that everything else rests on? (DESIGN 7.1)

A store that takes a conditional write for a plain one loses acknowledged data without any error, so it is refused
before the first byte. What cannot be probed: rules in the bucket that delete by age must not cover our prefix.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TypeVar

from storage.object_store import (
    NotFound,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
)

T = TypeVar("T")

PREFIX = "probe/"
RACERS = 16
RACES = 3
"""A store that checks and writes in two steps passes a single race by luck."""
DELETES = 3
"""A DELETE whose answer was lost is sent again, and the first one may land late: on one key that is no lie."""
CLEAN_UP_TIMEOUT_S = 5


async def probe(store: ObjectStore, token: Callable[[int], bytes]) -> None:
    """Raises `StoreError` naming the promise that `store` does not keep. `token(n)` gives n random bytes.

    Writes below a prefix of its own and removes it. `Unavailable` and `OutcomeUnknown` mean that nothing was learnt:
    try again. `Denied`: rights are missing.
    """
    run = _Probe(store, f"{PREFIX}{token(12).hex()}/", token(8))
    try:
        await run.create()
        await run.replace()
        await run.create_after_delete()
        for number in range(RACES):
            await _together(run.race_to_create(f"create-{number}"), run.race_to_replace(f"replace-{number}"))
        await run.ranged_read()
        await run.listing()
    finally:
        await run.clean_up()


class _Probe:
    """Each step checks one promise and leaves its objects behind for `clean_up`."""

    def __init__(self, store: ObjectStore, prefix: str, nonce: bytes) -> None:
        self._store = store
        self._prefix = prefix
        self._nonce = nonce
        self._keys: set[str] = set()
        self._may_vanish: set[str] = set()

    async def create(self) -> None:
        key = self._key("object")
        etag = await self._store.put_if_absent(key, self._body("first"))
        await self._holds(key, "first", etag)
        await self._refused(
            self._store.put_if_absent(key, self._body("second")),
            "refuse a write with If-None-Match: * on an existing key",
        )
        await self._holds(key, "first", etag)

    async def replace(self) -> None:
        key = self._key("object")
        old = (await self._store.get(key)).etag
        new = await self._store.put_if_match(key, self._body("third"), old)
        await self._holds(key, "third", new)
        promise = "refuse a write with If-Match and an etag of former content"
        await self._refused(self._store.put_if_match(key, self._body("fourth"), old), promise)
        await self._holds(key, "third", new)
        promise = "refuse a write with If-Match on a key that does not exist"
        await self._refused(self._store.put_if_match(self._key("missing"), self._body("fifth"), old), promise)

    async def create_after_delete(self) -> None:
        for number in range(DELETES):
            try:
                await self._create_after_delete(self._key(f"deleted-{number}", may_vanish=True))
            except StoreError as error:
                if type(error) is not StoreError or number + 1 == DELETES:
                    raise
            else:
                return

    async def _create_after_delete(self, key: str) -> None:
        await self._store.put_if_absent(key, self._body("first"))
        await self._store.delete(key)
        try:
            await self._store.get(key)
        except NotFound:
            pass
        else:
            raise self._broken("no longer show an object that was deleted")
        try:
            etag = await self._store.put_if_absent(key, self._body("second"))
        except PreconditionFailed as error:
            raise self._broken("create a key again after it was deleted") from error
        await self._holds(key, "second", etag)

    async def race_to_create(self, name: str) -> None:
        key = self._key(name)
        await self._race(key, "create", lambda body: self._store.put_if_absent(key, body))

    async def race_to_replace(self, name: str) -> None:
        key = self._key(name)
        etag = await self._store.put_if_absent(key, self._body("start"))
        await self._race(key, "replace", lambda body: self._store.put_if_match(key, body, etag))

    async def ranged_read(self) -> None:
        key = self._key("ranged")
        data = bytes(range(256)) * 40
        await self._store.put_if_absent(key, [memoryview(data)[:5000], data[5000:]])
        for start, length in ((0, 1), (250, 20), (len(data) - 7, 7)):
            if await self._store.get_range(key, start, length) != data[start : start + length]:
                raise self._broken("answer a ranged read with exactly those bytes")

    async def listing(self) -> None:
        for name in ("list/a", "list/a-b", "list/b/c", "list/c"):
            await self._store.put_if_absent(self._key(name), self._body(name))
        for prefix, start_after in (("", ""), ("list/a", ""), ("list/", "list/a-b")):
            full, after = self._prefix + prefix, self._prefix + start_after if start_after else ""
            found = [info.key async for info in self._store.list(full, after)]
            listed = [key for key in found if key not in self._may_vanish]
            if listed != sorted(key for key in self._keys if key.startswith(full) and key > after):
                raise self._broken("list every object as soon as it is written, in the order of keys")

    async def clean_up(self) -> None:
        """Best effort: what stays behind harms nobody."""

        async def remove(key: str) -> None:
            try:
                await self._store.delete(key)
            except StoreError:
                pass

        try:
            async with asyncio.timeout(CLEAN_UP_TIMEOUT_S), asyncio.TaskGroup() as group:
                for key in sorted(self._keys | self._may_vanish | {self._key("missing")}):
                    group.create_task(remove(key))
        except TimeoutError:
            pass

    async def _race(self, key: str, verb: str, write: Callable[[bytes], Awaitable[str]]) -> None:
        async def contend(number: int) -> bool | None:
            try:
                await write(self._body(f"racer {number}"))
            except PreconditionFailed:
                return False
            except OutcomeUnknown:  # S3's 409: may have won
                return None
            return True

        outcomes = await _together(*(contend(number) for number in range(RACERS)))
        if outcomes.count(True) > 1:
            promise = f"let exactly one of {RACERS} racing writers {verb} a key"
            raise self._broken(promise, f"{outcomes.count(True)} of them won")
        data = (await self._store.get(key)).data
        possible = [self._body(f"racer {number}") for number, won in enumerate(outcomes) if won]
        if not possible:
            possible = [self._body(f"racer {number}") for number, won in enumerate(outcomes) if won is None]
        if data not in possible:
            raise self._broken(f"keep what the winner of {RACERS} racing writers wrote")

    async def _holds(self, key: str, text: str, etag: str) -> None:
        try:
            stored = await self._store.get(key)
            info = await self._store.head(key)
        except NotFound as error:
            raise self._broken("show an object as soon as it is written") from error
        if stored.data != self._body(text) or info.size != len(stored.data):
            raise self._broken("show exactly what was written last")
        if not etag == stored.etag == info.etag:
            raise self._broken("give an object the same etag in every answer", f"{etag}, {stored.etag}, {info.etag}")

    async def _refused(self, write: Awaitable[str], promise: str) -> None:
        try:
            await write
        except PreconditionFailed:
            return
        raise self._broken(promise)

    def _broken(self, promise: str, detail: str = "") -> StoreError:
        seen = f" ({detail})" if detail else ""
        return StoreError(
            f"{self._store!r} does not {promise}{seen}. Without that data would be lost: use another store"
        )

    def _key(self, name: str, *, may_vanish: bool = False) -> str:
        key = self._prefix + name
        if may_vanish:
            self._may_vanish.add(key)
        elif name != "missing":
            self._keys.add(key)
        return key

    def _body(self, text: str) -> bytes:
        return self._nonce + text.encode()


async def _together(*calls: Coroutine[None, None, T]) -> Sequence[T]:
    """The results of all; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
