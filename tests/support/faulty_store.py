"""An object store whose calls fail as planned, around any other: what retries are tested against."""

from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum, auto
from typing import TypeVar

from storage.object_store import (
    Body,
    ObjectInfo,
    ObjectStore,
    OutcomeUnknown,
    StoredObject,
    Unavailable,
    Upload,
    body_blocks,
)

T = TypeVar("T")


class Mishap(Enum):
    """What happens to one call. Reads know only NONE and UNAVAILABLE; the others count as UNAVAILABLE for them."""

    NONE = auto()
    UNAVAILABLE = auto()
    LOST = auto()  # not applied, outcome unknown
    UNHEARD = auto()  # applied, outcome unknown
    LATE = auto()  # outcome unknown; applied before the next write attempt


Plan = Callable[[str], Mishap]
"""Takes the name of the called method."""


def in_order(*mishaps: Mishap) -> Plan:
    """One mishap per call; when they are used up, calls succeed."""
    left = iter(mishaps)
    return lambda _name: next(left, Mishap.NONE)


class FaultyUpload:
    """What `plan` says of `write_part` and `create`. A part counts once it was answered, as parts with numbers do."""

    def __init__(self, faulty: "FaultyStore", store: ObjectStore, key: str) -> None:
        self._faulty = faulty
        self._store = store
        self._key = key
        self._parts: list[bytes] = []

    async def write(self, part: Body) -> None:
        async def nothing() -> None:
            pass

        data = b"".join(body_blocks(part))
        try:
            await self._faulty.write("write_part", nothing)
        except OutcomeUnknown as error:
            raise Unavailable(str(error)) from None
        self._parts.append(data)

    async def create(self) -> str:
        return await self._faulty.write("create", lambda: self._store.put_if_absent(self._key, self._parts))

    async def abort(self) -> None:
        self._faulty.calls.append("abort")


class FaultyStore:
    """Calls what `plan` says for every call; assign another plan at any time."""

    def __init__(self, store: ObjectStore, plan: Plan | None = None) -> None:
        self._store = store
        self.plan = plan or in_order()
        self._late: list[Callable[[], Awaitable[object]]] = []
        self.calls: list[str] = []
        self.applied = 0

    async def put(self, key: str, body: Body) -> str:
        return await self.write("put", lambda: self._store.put(key, body))

    async def put_if_absent(self, key: str, body: Body) -> str:
        return await self.write("put_if_absent", lambda: self._store.put_if_absent(key, body))

    def upload(self, key: str) -> Upload:
        return FaultyUpload(self, self._store, key)

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        return await self.write("put_if_match", lambda: self._store.put_if_match(key, body, etag))

    async def delete(self, key: str) -> None:
        await self.write("delete", lambda: self._store.delete(key))

    async def get(self, key: str) -> StoredObject:
        return await self._read("get", self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._read("get_range", self._store.get_range(key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._read("head", self._store.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """The mishap strikes after three objects."""
        self.calls.append("list")
        mishap = self.plan("list")
        count = 0
        async for info in self._store.list(prefix, start_after):
            if count == 3 and mishap is not Mishap.NONE:
                raise Unavailable("planned")
            count += 1
            yield info

    async def close(self) -> None:
        await self._store.close()

    async def _read(self, name: str, call: Awaitable[T]) -> T:
        self.calls.append(name)
        result = await _outcome(call)
        if self.plan(name) is not Mishap.NONE:
            raise Unavailable("planned")
        if isinstance(result, Exception):
            raise result
        return result

    async def write(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(name)
        mishap = self.plan(name)
        if mishap is Mishap.UNAVAILABLE:
            raise Unavailable("planned")
        for late in self._late:
            await self._apply(late)
        self._late.clear()
        if mishap is Mishap.LOST:
            raise OutcomeUnknown("planned")
        if mishap is Mishap.LATE:
            self._late.append(call)
            raise OutcomeUnknown("planned")
        result = await self._apply(call)
        if mishap is Mishap.UNHEARD:
            raise OutcomeUnknown("planned")
        if isinstance(result, Exception):
            raise result
        return result

    async def _apply(self, call: Callable[[], Awaitable[T]]) -> T | Exception:
        result = await _outcome(call())
        if not isinstance(result, Exception):
            self.applied += 1
        return result


async def _outcome(call: Awaitable[T]) -> T | Exception:
    try:
        return await call
    except Exception as error:
        return error
