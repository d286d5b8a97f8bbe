"""S3 and its kin through obstore: Rust does HTTP, TLS, signing and checksums outside the interpreter lock.

One attempt per call: obstore's own retries are off. Every PUT carries a CRC64NVME that the store verifies; the payload
is signed as well where there is no TLS. Bodies are handed over as views, nothing is joined or copied. obstore cannot
make a multi-part upload conditional, so large bodies go through `s3_aiobotocore.py`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as ObstoreS3

from storage.object_store import (
    Body,
    Denied,
    NotFound,
    ObjectInfo,
    OutcomeUnknown,
    PreconditionFailed,
    StoredObject,
    StoreError,
    Unavailable,
    Upload,
    body_size,
    check_key,
    gathered_blocks,
)
from storage.s3_aiobotocore import AiobotocoreStore
from storage.s3_location import (
    CONNECT_TIMEOUT_S,
    PART_BYTES,
    SINGLE_PUT_BYTES_MAX,
    S3Location,
    error_for_status,
    region_unknown,
    timeout_s,
)

if TYPE_CHECKING:
    from obstore import PutMode

T = TypeVar("T")

LIST_PAGE = 1000

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")


class ObstoreS3Store:
    """An `ObjectStore` in one bucket. Opens itself at the first call: finding credentials may block, so in a thread."""

    def __init__(
        self, location: S3Location, *, single_put_bytes_max: int = SINGLE_PUT_BYTES_MAX, part_bytes: int = PART_BYTES
    ) -> None:
        self._location = location
        self._single_put_bytes_max = single_put_bytes_max
        self._large = AiobotocoreStore(location, single_put_bytes_max=single_put_bytes_max, part_bytes=part_bytes)
        self._store: ObstoreS3 | None = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return str(self._location)

    async def put(self, key: str, body: Body) -> str:
        if body_size(body) > self._single_put_bytes_max:
            return await self._large.put(key, body)
        return await self._put(key, body, "overwrite")

    async def put_if_absent(self, key: str, body: Body) -> str:
        if body_size(body) > self._single_put_bytes_max:
            return await self._large.put_if_absent(key, body)
        return await self._put(key, body, "create")

    def upload(self, key: str) -> Upload:
        return self._large.upload(key)

    async def put_if_match(self, key: str, body: Body, etag: str) -> str:
        if body_size(body) > self._single_put_bytes_max:
            return await self._large.put_if_match(key, body, etag)
        return await self._put(key, body, {"e_tag": etag})

    async def _put(self, key: str, body: Body, mode: "PutMode") -> str:
        check_key(key)
        store = await self._opened()
        blocks = await gathered_blocks(body)
        # Views are read until the attempt has ended. Should a cancelled attempt linger while its caller already
        # changes a buffer, the checksum, which was taken before sending, makes the store refuse the body.
        call = obstore.put_async(store, key, blocks, mode=mode, use_multipart=False)
        result = await self._attempt("write", key, call, body_size(body), write=True)
        return result["e_tag"] or ""

    async def get(self, key: str) -> StoredObject:
        check_key(key)
        store = await self._opened()
        result = await self._attempt("read", key, obstore.get_async(store, key), 0)
        size = result.meta["size"]
        data = bytes(await self._attempt("read", key, result.bytes_async(), size))
        if len(data) != size:
            raise Unavailable(f"{self!r}: {key}: {len(data)} of {size} bytes came")
        return StoredObject(data, result.meta["e_tag"] or "")

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        assert start >= 0 and length > 0, (start, length)
        store = await self._opened()
        call = obstore.get_range_async(store, key, start=start, length=length)
        data = bytes(await self._attempt("read", key, call, length))
        if len(data) != length:
            raise NotFound(f"{self!r}: {key} ends before byte {start + length}")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        store = await self._opened()
        meta = await self._attempt("look at", key, obstore.head_async(store, key), 0)
        return ObjectInfo(key, meta["size"], meta["e_tag"] or "")

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """obstore knows only whole segments as a prefix, so the rest is done by a start and a stop."""
        store = await self._opened()
        directory, _, rest = prefix.rpartition("/")
        offset = _offset(max(start_after, _just_below(prefix) if rest else ""))
        stream = obstore.list(store, directory or None, offset=offset or None, chunk_size=LIST_PAGE)
        last = ""
        while True:
            try:
                page = await self._attempt("list", prefix, anext(stream), 0)
            except StopAsyncIteration:
                return
            for meta in page:
                key = meta["path"]
                if key <= last:
                    raise StoreError(f"{self!r} lists {key!r} after {last!r}, not in key order: unsupported store")
                last = key
                if key.startswith(prefix) and key > start_after:
                    yield ObjectInfo(key, meta["size"], meta["e_tag"] or "")
                elif key > prefix and not key.startswith(prefix):
                    return

    async def delete(self, key: str) -> None:
        check_key(key)
        store = await self._opened()
        try:
            await self._attempt("delete", key, obstore.delete_async(store, key), 0, write=True)
        except NotFound:
            pass

    async def close(self) -> None:
        self._store = None
        await self._large.close()

    async def _opened(self) -> ObstoreS3:
        if self._store is None:
            async with self._opening:
                if self._store is None:
                    self._store = await asyncio.to_thread(_open, self._location)
        return self._store

    async def _attempt(self, verb: str, key: str, call: Awaitable[T], size: int, *, write: bool = False) -> T:
        what = f"{self!r}: cannot {verb} {key}"
        try:
            async with asyncio.timeout(timeout_s(size)):
                return await call
        except TimeoutError:
            text = f"{what}: no answer within {timeout_s(size):.0f} s"
            raise (OutcomeUnknown(text) if write else Unavailable(text)) from None
        except (BaseError, OSError) as error:
            raise _translate(what, error, write) from error


def _open(location: S3Location) -> ObstoreS3:
    """Blocking: resolves credentials and region as boto3 does."""
    import boto3  # slow to import, and not needed for other stores
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    try:
        # obstore keeps what it got until five minutes before it expires; boto3 renews ten minutes before. So ask
        # boto3 every minute: it answers from memory.
        provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=6))
    except ValueError:
        raise Denied(
            f"{location}: no AWS credentials found; set AWS_ACCESS_KEY_ID and its secret, a profile or a role"
        ) from None
    region = location.region or session.region_name or ("us-east-1" if location.endpoint else None)
    if region is None:
        raise StoreError(region_unknown(location))
    return ObstoreS3(
        location.bucket,
        prefix=location.prefix.rstrip("/") or None,
        region=region,
        endpoint=location.endpoint or f"https://{location.bucket}.s3.{region}.amazonaws.com",
        virtual_hosted_style_request=location.endpoint is None,
        checksum_algorithm="CRC64NVME",
        unsigned_payload=location.tls,
        disable_bulk_delete=True,
        credential_provider=provider,
        # Our own time-outs know the size of what moves; these two only keep a lost request from living for ever.
        client_options={
            "allow_http": not location.tls,
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "timeout": timedelta(hours=1),
            "user_agent": "tidelog",
        },
        retry_config={"max_retries": 0},
    )


def _translate(what: str, error: Exception, write: bool) -> StoreError:
    """obstore tells status and kind only in its text. Whatever cannot be read there counts as unknown."""
    text = str(error)
    brief = text.partition("\n\nDebug source")[0]
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        found = error_for_status(what, int(status[1]), code[1] if code else "", brief, write=write)
        if isinstance(error, obstore.exceptions.PreconditionError) and isinstance(found, NotFound):
            return PreconditionFailed(f"{what}: it does not exist")
        return found
    if "redirect without LOCATION" in text:
        return error_for_status(what, 301, "", brief, write=write)
    if "kind: Connect" in text:
        return Unavailable(f"{what}: cannot connect: {brief}")
    return OutcomeUnknown(f"{what}: {brief}") if write else Unavailable(f"{what}: {brief}")


def _just_below(prefix: str) -> str:
    """A string a little lower than every key that begins with `prefix`; shorter ones are lower still."""
    last = prefix[-1]
    return prefix[:-1] + (chr(ord(last) - 1) + "~~~~" if "!" < last <= "~" else "")


def _offset(start: str) -> str:
    """The longest beginning of `start` that obstore takes as a path: the listing may begin earlier, never later."""
    segments = start.split("/")
    for index, segment in enumerate(segments):
        if segment in {"", ".", ".."}:
            return "/".join(segments[:index])
    return start
