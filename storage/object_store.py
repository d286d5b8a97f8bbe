"""The port to object storage: a handful of methods, typed errors, and the helpers that every engine shares.

Engines: `memory.py`, `filesystem.py`, `s3.py` (obstore), `s3_aiobotocore.py`. Engines make one attempt per call; all
retries live in `retrying.py`. `probe.py` checks at start that a store keeps the promises below.

Promises of every engine:

- A write is whole or absent. A reader never sees half of a body.
- When a write returned, every later read, head and listing sees it, from every process.
- `put_if_absent` and `put_if_match` are atomic: of racing writers exactly one wins.
- An etag names content: another content has another etag. Equal content may have an equal etag, so whoever must tell
  two equal writes apart puts a nonce into the body.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from protocol import Buffer

Body: TypeAlias = Buffer | Sequence[Buffer]
"""What is written: one buffer, or several sent in order. Frozen: nobody changes it until the call returns."""

BLOCK_BYTES = 512 * 1024
"""Large bodies are hashed, copied and sent in blocks of this size: one join of a segment would hold the interpreter."""

UPLOAD_PART_BYTES = 16 * 1024 * 1024
"""Parts of an upload are at least so large, but for the last one. S3 asks for 5 MiB and takes 10,000 of them."""

SMALL_PART_BYTES = 8 * 1024
"""Shorter buffers than this are joined to blocks before they are sent."""

KEY_BYTES_MAX = 768
"""S3 allows 1024 bytes; what remains is for the prefix of the store's URI."""


class StoreError(Exception):
    """An object store refused or failed. The message names the store, the key and what to do."""


class NotFound(StoreError):
    """No object has this key, or the asked range lies beyond its end."""


class PreconditionFailed(StoreError):
    """A conditional write was refused: this call changed nothing."""


class OutcomeUnknown(StoreError):
    """A write may or may not have happened, or may still happen: time-out, lost connection, 5xx, 409 conflict."""


class Unavailable(StoreError):
    """Certainly not applied, or a call that only reads. Worth trying again."""


class Denied(StoreError):
    """Credentials or permissions do not allow the call. Trying again does not help."""


class StoredObject(NamedTuple):
    """A whole object."""

    data: bytes
    etag: str


class ObjectInfo(NamedTuple):
    """One object without its bytes; `size` in bytes.

    In a listing the etag may be "" where telling it would mean to read the object (file system); `head` always tells.
    """

    key: str
    size: int
    etag: str


class Upload(Protocol):
    """An object that comes part by part, so that nobody has to hold all of it; nobody sees any of it before `create`.

    One call at a time. After an error of `write` or `create` the same call may be made again; an engine that cannot go
    on refuses it again. Whoever does not come to the end of `create` calls `abort`.
    """

    async def write(self, part: Body) -> None:
        """The next `UPLOAD_PART_BYTES` or more; the last part may be smaller. At least one."""
        ...

    async def create(self) -> str:
        """As `put_if_absent` of all parts. `PreconditionFailed` may mean an earlier call of this upload whose answer
        was lost: the caller looks whose object it is. Returns the etag.
        """
        ...

    async def abort(self) -> None:
        """Give back what the parts take; raises nothing. What this misses ends with the process, or by the bucket's
        rule for incomplete uploads.
        """
        ...


class ObjectStore(Protocol):
    """Keys are `/`-separated, see `check_key`. Every method may raise `StoreError` or one of its kinds."""

    async def put(self, key: str, body: Body) -> str:
        """Create or replace, whatever is there; returns the etag.

        After `OutcomeUnknown` the write may still arrive late: only for content that a key never changes again.
        """
        ...

    async def put_if_absent(self, key: str, body: Body) -> str:
        """Create; `PreconditionFailed` if the key exists. Returns the etag."""
        ...

    def upload(self, key: str) -> Upload:
        """Begins nothing yet."""
        ...

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        """Replace if the object still has `etag`; `PreconditionFailed` if it has another one or does not exist."""
        ...

    async def get(self, key: str) -> StoredObject:
        """The whole object and its etag, which belong together. `NotFound` if there is none."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly `length` > 0 bytes from `start` on. `NotFound` if the object is absent or shorter than that."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Size and etag. `NotFound` if there is none."""
        ...

    def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """The objects whose key begins with `prefix` and is greater than `start_after`, in the order of their UTF-8.

        `prefix` is any beginning of a key, not only whole segments. What is created or deleted meanwhile may be
        listed or not.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove; an absent key is no error."""
        ...

    async def close(self) -> None:
        """Give back connections and threads. Safe to call twice."""
        ...


_USUAL_KEY = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)


def check_key(key: str) -> str:
    """Returns `key` if every engine can hold it, else `ValueError`: it would be our own bug.

    One to `KEY_BYTES_MAX` bytes of UTF-8, segments between single `/`, none empty, `.` or `..`, no control characters.
    No key may be the parent of another one (`a` and `a/b`): a file system cannot hold both.
    """
    if len(key) <= KEY_BYTES_MAX and _USUAL_KEY.fullmatch(key):
        return key
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"object key {key!r} is not valid Unicode") from None
    if not 0 < size <= KEY_BYTES_MAX:
        raise ValueError(f"object key of {size} bytes: 1 to {KEY_BYTES_MAX} are allowed: {key[:80]!r}")
    if any(segment in {"", ".", ".."} for segment in key.split("/")):
        raise ValueError(f"object key {key!r} has an empty segment, '.' or '..' between its slashes")
    if any(c < " " or c == "\x7f" for c in key):
        raise ValueError(f"object key {key!r} has a control character")
    return key


def body_parts(body: Body) -> Sequence[Buffer]:
    """The body as a sequence of buffers, nothing copied."""
    return (body,) if isinstance(body, bytes | bytearray | memoryview) else body


def body_size(body: Body) -> int:
    """Bytes of the whole body."""
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in body_parts(body))


def body_blocks(body: Body, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """Views of the body in order, each of 1 to `block_bytes` bytes, nothing copied."""
    for part in body_parts(body):
        view = memoryview(part).cast("B")
        for start in range(0, view.nbytes, block_bytes):
            yield view[start : start + block_bytes]


async def gathered_blocks(body: Body) -> list[Buffer]:
    """The body in blocks that are cheap to hand on one by one: large buffers as they are, small ones joined.

    Gives way to the loop after each block that it had to copy.
    """
    blocks: list[Buffer] = []
    small = bytearray()
    for part in body_parts(body):
        view = memoryview(part).cast("B")
        if view.nbytes < SMALL_PART_BYTES:
            small += view
        if small and (view.nbytes >= SMALL_PART_BYTES or len(small) >= BLOCK_BYTES):
            blocks.append(small)
            small = bytearray()
            await asyncio.sleep(0)
        if view.nbytes >= SMALL_PART_BYTES:
            blocks.append(view)
    if small:
        blocks.append(small)
    return blocks


def open_store(uri: str, *, token: Callable[[int], bytes]) -> ObjectStore:
    """Opens the store that `uri` names; nothing is read or written yet. `token(n)` gives n random bytes.

    `file:PATH`, `memory:` (a new, empty one), `s3://bucket/prefix?region=..&endpoint=..&client=..` (`s3_location.py`).
    S3 comes wrapped in `RetryingStore`; the others have nothing that a retry would help.
    Errors: `ValueError` that names the bad part of the URI and what to write instead.
    """
    # Imported when asked for: the S3 clients take longer to import than the rest of the broker.
    scheme, colon, rest = uri.partition(":")
    if scheme == "memory" and colon:
        from storage.memory import MemoryStore

        if rest:
            raise ValueError(f"storage URI {uri!r}: memory has no name; write memory:")
        return MemoryStore()
    if scheme == "file" and colon:
        from storage.filesystem import FileSystemStore

        return FileSystemStore(_file_path(uri, rest), token=token)
    if scheme == "s3" and colon:
        from storage.retrying import RetryingStore
        from storage.s3_location import parse_s3_uri

        location = parse_s3_uri(uri)
        if location.client == "aiobotocore":
            from storage.s3_aiobotocore import AiobotocoreStore

            return RetryingStore(AiobotocoreStore(location), token=token)
        from storage.s3 import ObstoreS3Store

        return RetryingStore(ObstoreS3Store(location), token=token)
    known = "write file:PATH, s3://bucket/prefix or memory:"
    if not colon:
        raise ValueError(f"storage URI {uri!r} has no scheme; {known}")
    raise ValueError(f"storage URI {uri.partition('?')[0]!r}: unknown scheme {scheme!r}; {known}")


def _file_path(uri: str, rest: str) -> str:
    """The path of a `file:` URI: `file:PATH` as it stands, or `file:///absolute`."""
    if rest.startswith("//"):
        rest = rest[2:]
        if not rest.startswith("/"):
            raise ValueError(f"storage URI {uri!r}: two slashes begin a host name; write file:{rest} or file:/{rest}")
    if not rest or "\0" in rest:
        raise ValueError(f"storage URI {uri!r} has no path; write file:PATH")
    return rest
