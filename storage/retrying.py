"""All retries against an object store, in one wrapper: bounded, jittered, and exact about conditional writes.

A conditional write whose outcome is unknown is looked up before it is sent again, so that the caller never hears
`PreconditionFailed` about its own earlier attempt. Time is the event loop's, so a simulation owns it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple, TypeVar

from storage.object_store import (
    Body,
    NotFound,
    ObjectInfo,
    ObjectStore,
    OutcomeUnknown,
    PreconditionFailed,
    StoredObject,
    StoreError,
    Unavailable,
    Upload,
    body_blocks,
    body_size,
)

T = TypeVar("T")

USUAL_TIMES = 2
"""An attempt that takes no longer than so many times what others lately took is not given up."""
USUAL_DECAY = 0.5
COMPARE_BYTES = 4 * 1024 * 1024
"""An object is compared with a body in ranges of this size."""


class RetryLimits(NamedTuple):
    """When to stop. Times grow with the body: slow links are no failure.

    `attempt_ms`: give up the first attempt that has no answer by then, the second after twice that time, and so on;
    a store that lately was slower gets more. None: only the store's own client gives up.
    """

    attempts_max: int = 8
    deadline_ms: int = 30_000
    attempt_ms: int | None = None
    bytes_per_second_min: int = 1024 * 1024
    backoff_ms: int = 50
    backoff_ms_max: int = 2_000


class _Usual:
    """How long the calls of one store lately took."""

    seconds = 0.0

    def note(self, took_s: float) -> None:
        """A call was answered."""
        self.seconds = max(took_s, self.seconds * USUAL_DECAY)


class _Patience:
    """The attempts of one call: what is left of them, and the pauses between."""

    def __init__(self, limits: RetryLimits, token: Callable[[int], bytes], usual: _Usual, size: int = 0) -> None:
        self._limits = limits
        self._token = token
        self._usual = usual
        self._loop = asyncio.get_running_loop()
        self._failures = 0
        self._body_s = size / limits.bytes_per_second_min
        self.deadline = self._loop.time() + limits.deadline_ms / 1000 + self._body_s

    async def attempt(self, call: Awaitable[T], on_timeout: type[StoreError]) -> T:
        """The call's result; `on_timeout` if the deadline, or the patience with this attempt, passes first."""
        began = self._loop.time()
        until, limit_ms = self.deadline, self._limits.attempt_ms
        if limit_ms is not None:
            patience_s = max(limit_ms / 1000, USUAL_TIMES * self._usual.seconds) * (1 + self._failures)
            until = min(until, began + patience_s + self._body_s)
        try:
            async with asyncio.timeout_at(until):
                result = await call
        except TimeoutError:
            text = f"no answer within {(until - began) * 1000:.0f} ms"
            raise on_timeout(text if until < self.deadline else f"{text}, the last of all attempts") from None
        except (NotFound, PreconditionFailed):
            self._usual.note(self._loop.time() - began - self._body_s)
            raise
        self._usual.note(self._loop.time() - began - self._body_s)
        return result

    async def pause(self) -> bool:
        """Sleeps before the next attempt; False if there is none left. Full jitter (AWS architecture blog)."""
        self._failures += 1
        if self._failures >= self._limits.attempts_max:
            return False
        limits = self._limits
        ceiling_ms = min(limits.backoff_ms_max, limits.backoff_ms << min(self._failures - 1, 16))
        delay = ceiling_ms / 1000 * (1 + int.from_bytes(self._token(2))) / 65536
        if self._loop.time() + delay >= self.deadline:
            return False
        await asyncio.sleep(delay)
        return True


class RetryingStore:
    """Wraps any `ObjectStore`. `token(n)` gives n random bytes, for the jitter.

    No local variable outlives its `except` with an error in it: through its traceback it would keep the body alive
    until the garbage collector comes, and outages are full of errors.

    Errors are the port's. After the last attempt a write raises `OutcomeUnknown` if any of its attempts may have been
    applied, `Unavailable` only if certainly none was.
    """

    def __init__(self, store: ObjectStore, *, token: Callable[[int], bytes], limits: RetryLimits | None = None) -> None:
        self._store = store
        self._token = token
        self._limits = limits or RetryLimits()
        self._usual = _Usual()

    def hurried(self, attempt_ms: int, size: int = 0) -> "RetryingStore":
        """The same store for objects that somebody waits for: see `RetryLimits.attempt_ms`.

        `size`: of the objects that are read, in bytes, where they are not small.
        """
        attempt_ms += size * 1000 // self._limits.bytes_per_second_min
        deadline_ms = self._limits.deadline_ms + size * 1000 // self._limits.bytes_per_second_min
        limits = self._limits._replace(attempt_ms=attempt_ms, deadline_ms=deadline_ms)
        return RetryingStore(self._store, token=self._token, limits=limits)

    def __repr__(self) -> str:
        return repr(self._store)

    async def get(self, key: str) -> StoredObject:
        return await self._read(lambda: self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._read(lambda: self._store.get_range(key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._read(lambda: self._store.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """As the port says; after an error it goes on behind the last key it gave."""
        patience = self._patience()
        while True:
            listing = self._store.list(prefix, start_after)
            if self._limits.attempt_ms is not None:
                listing = _impatiently(listing, patience)
            try:
                async for info in listing:
                    start_after = info.key
                    patience = self._patience()  # progress
                    yield info
                return
            except Unavailable:
                if not await patience.pause():
                    raise

    async def delete(self, key: str) -> None:
        await self._write(lambda: self._store.delete(key), 0)

    async def put(self, key: str, body: Body) -> str:
        return await self._write(lambda: self._store.put(key, body), body_size(body))

    async def put_if_absent(self, key: str, body: Body) -> str:
        """As the port says. After an unknown outcome another object under the key counts as `PreconditionFailed`:
        what is created if absent is not replaced while its creator still waits."""

        async def settle() -> str | None:
            found = await self._look(key, body)
            if found is None:
                return None
            if not found.ours:
                raise PreconditionFailed(f"{key} exists with other content")
            return found.etag

        return await self._write(lambda: self._store.put_if_absent(key, body), body_size(body), settle)

    def upload(self, key: str) -> Upload:
        """As the port says; each part is retried by itself."""
        return _RetryingUpload(self, self._store.upload(key), key)

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        """As the port says. `OutcomeUnknown` if after an unknown outcome a third content is found: ours may have been
        applied and replaced since."""

        async def settle() -> str | None:
            found = await self._look(key, body)
            if found is not None and found.ours:
                return found.etag
            if found is not None and found.etag == etag:
                return None
            raise OutcomeUnknown(f"{key} may have been replaced, and changed again since")

        return await self._write(lambda: self._store.put_if_match(key, body, etag), body_size(body), settle)

    async def close(self) -> None:
        await self._store.close()

    def _patience(self, size: int = 0) -> _Patience:
        return _Patience(self._limits, self._token, self._usual, size)

    async def _read(self, call: Callable[[], Awaitable[T]]) -> T:
        patience = self._patience()
        while True:
            try:
                return await patience.attempt(call(), Unavailable)
            except Unavailable:
                if not await patience.pause():
                    raise

    async def _write(
        self, call: Callable[[], Awaitable[T]], size: int, settle: Callable[[], Awaitable[T | None]] | None = None
    ) -> T:
        """Repeats `call`. `settle` tells after an unknown outcome: the result, a final error, or None to send again."""
        patience = self._patience(size)
        unknown: str | None = None  # what an attempt said whose outcome is not known
        while True:
            if unknown is not None and settle is not None:
                try:
                    settled = await patience.attempt(settle(), Unavailable)
                except (PreconditionFailed, OutcomeUnknown):
                    raise
                except StoreError as error:
                    if await patience.pause():
                        continue
                    raise OutcomeUnknown(unknown) from error
                if settled is not None:
                    return settled
            try:
                return await patience.attempt(call(), OutcomeUnknown)
            except OutcomeUnknown as error:
                unknown = str(error)
                if not await patience.pause():
                    raise
            except (Unavailable, PreconditionFailed) as error:
                if unknown is None and isinstance(error, PreconditionFailed):
                    raise
                # Else it may be of our own earlier attempt: look.
                if not await patience.pause():
                    if unknown is None:
                        raise
                    raise OutcomeUnknown(unknown) from error
            except StoreError as error:
                if unknown is None:
                    raise
                raise OutcomeUnknown(f"{unknown}; then {error}") from error

    async def write_part(self, upload: Upload, part: Body) -> None:
        """Parts change nothing that anybody sees: they are repeated like reads, but have time for their bytes."""
        patience = self._patience(body_size(part))
        while True:
            try:
                return await patience.attempt(upload.write(part), Unavailable)
            except Unavailable:
                if not await patience.pause():
                    raise

    async def create_uploaded(self, upload: Upload, key: str, size: int) -> str:
        """`PreconditionFailed` also when an object is there after an outcome that is not known."""

        async def settle() -> None:
            try:
                await self.head(key)
            except NotFound:
                return
            raise PreconditionFailed(f"{key} exists, perhaps by an earlier attempt")

        return await self._write(upload.create, size, settle)

    async def _look(self, key: str, body: Body) -> "_Found | None":
        """Which content `key` holds now, compared with `body`; None if it holds none. Its reads are retried."""
        size = body_size(body)
        try:
            if size <= COMPARE_BYTES:
                stored = await self.get(key)
                ours = len(stored.data) == size and _begins_with(stored.data, body)
                return _Found(ours, stored.etag)
            info = await self.head(key)
            if info.size != size:
                return _Found(False, info.etag)
            for start, part in _ranges(body, COMPARE_BYTES):
                length = body_size(part)
                if not _begins_with(await self.get_range(key, start, length), part):
                    return _Found(False, info.etag)
            again = await self.head(key)
        except NotFound:
            return None
        if again.etag != info.etag:
            raise Unavailable(f"{key} was replaced while it was compared")
        return _Found(True, info.etag)


class _RetryingUpload:
    def __init__(self, store: RetryingStore, upload: Upload, key: str) -> None:
        self._store = store
        self._upload = upload
        self._key = key
        self._size = 0

    async def write(self, part: Body) -> None:
        await self._store.write_part(self._upload, part)
        self._size += body_size(part)

    async def create(self) -> str:
        return await self._store.create_uploaded(self._upload, self._key, self._size)

    async def abort(self) -> None:
        await self._upload.abort()


async def _impatiently(listing: AsyncIterator[ObjectInfo], patience: _Patience) -> AsyncIterator[ObjectInfo]:
    """The same keys; `Unavailable` when the patience with an attempt passes before the next one comes."""
    while True:
        try:
            info = await patience.attempt(anext(listing), Unavailable)
        except StopAsyncIteration:
            return
        yield info


class _Found(NamedTuple):
    """What lies under a key: whether it is our body, and its etag."""

    ours: bool
    etag: str


def _begins_with(data: bytes, body: Body) -> bool:
    """Compares block by block: never a join of the whole body."""
    position = 0
    for block in body_blocks(body):
        if data[position : position + block.nbytes] != bytes(block):
            return False
        position += block.nbytes
    return True


def _ranges(body: Body, length: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Cuts a body into (start, blocks) of about `length` bytes."""
    start, size, blocks = 0, 0, list[memoryview]()
    for block in body_blocks(body):
        blocks.append(block)
        size += block.nbytes
        if size >= length:
            yield start, blocks
            start, size, blocks = start + size, 0, []
    if blocks:
        yield start, blocks
