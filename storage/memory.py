"""Objects in memory: for tests, simulations and brokers that keep nothing.

Deterministic: no thread, clock or randomness. Faults are a wrapper's business. Every call gives way to the loop once
before its one atomic step, so that racing callers interleave as they do over a network.
"""

import asyncio
import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator

from storage.object_store import (
    Body,
    NotFound,
    ObjectInfo,
    PreconditionFailed,
    StoredObject,
    Upload,
    body_blocks,
    check_key,
)


class MemoryStore:
    """An `ObjectStore` whose objects end with it. The etag is a hash of the content, as weak as S3's may be."""

    def __init__(self) -> None:
        self._objects: dict[str, StoredObject] = {}
        self._keys: list[str] = []  # sorted

    def __repr__(self) -> str:
        return "memory:"

    async def put(self, key: str, body: Body) -> str:
        check_key(key)
        await asyncio.sleep(0)
        return self._store(key, body)

    async def put_if_absent(self, key: str, body: Body) -> str:
        check_key(key)
        await asyncio.sleep(0)
        if key in self._objects:
            raise PreconditionFailed(f"memory: {key} exists")
        return self._store(key, body)

    def upload(self, key: str) -> Upload:
        return _MemoryUpload(self, check_key(key))

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        check_key(key)
        await asyncio.sleep(0)
        stored = self._objects.get(key)
        if stored is None:
            raise PreconditionFailed(f"memory: {key} does not exist, so it has not etag {etag}")
        if stored.etag != etag:
            raise PreconditionFailed(f"memory: {key} has etag {stored.etag}, not {etag}")
        return self._store(key, body)

    async def get(self, key: str) -> StoredObject:
        check_key(key)
        await asyncio.sleep(0)
        return self._find(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        assert start >= 0 and length > 0, (start, length)
        await asyncio.sleep(0)
        data = self._find(key).data[start : start + length]
        if len(data) != length:
            raise NotFound(f"memory: {key} ends before byte {start + length}")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        await asyncio.sleep(0)
        stored = self._find(key)
        return ObjectInfo(key, len(stored.data), stored.etag)

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await asyncio.sleep(0)
        at = max(bisect_left(self._keys, prefix), bisect_right(self._keys, start_after))
        while at < len(self._keys) and (key := self._keys[at]).startswith(prefix):
            stored = self._objects[key]
            yield ObjectInfo(key, len(stored.data), stored.etag)
            at = bisect_right(self._keys, key)  # the caller may have changed the store meanwhile

    async def delete(self, key: str) -> None:
        check_key(key)
        await asyncio.sleep(0)
        if self._objects.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    async def close(self) -> None:
        """Nothing to give back; the objects stay readable."""

    def _find(self, key: str) -> StoredObject:
        stored = self._objects.get(key)
        if stored is None:
            raise NotFound(f"memory: {key} does not exist")
        return stored

    def _store(self, key: str, body: Body) -> str:
        data = body if isinstance(body, bytes) else b"".join(body_blocks(body))
        if key not in self._objects:
            insort(self._keys, key)
        etag = hashlib.sha256(data).hexdigest()[:32]
        self._objects[key] = StoredObject(data, etag)
        return etag


class _MemoryUpload:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._parts: list[bytes] = []

    async def write(self, part: Body) -> None:
        await asyncio.sleep(0)
        self._parts.append(b"".join(body_blocks(part)))

    async def create(self) -> str:
        return await self._store.put_if_absent(self._key, self._parts)

    async def abort(self) -> None:
        self._parts.clear()
